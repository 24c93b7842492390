/**
 * Training with the kernels of a GPU, on any machine: what it draws and computes is what this adapter's own kernels give,
 * up to rounding.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { expectClose } from "../support/gradcheck.ts";
import { runEntry } from "../support/run_entry.ts";
import { makeDigitLoverDirectory } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "gpu-kernels-"));
const model = makeDigitLoverDirectory();
afterAll(() => [root, model].forEach((directory) => rmSync(directory, { recursive: true })));

interface Outcome {
  readonly stderr: string;
  readonly completions: string;
  readonly objectives: readonly number[];
  readonly gradNorms: readonly number[];
}

async function train(kernels: string): Promise<Outcome> {
  const out = join(root, `run-${kernels}`);
  const flags =
    `--model ${model} --out ${out} --rollout-count 8 --group-size 8 --max-rollout-tokens 3 --train-steps 2 ` +
    "--grad-updates-per-step 2 --warmup-steps 0 --learning-rate 0.003 --objective dapo --beta 0.1";
  const { code, stderr } = await runEntry("grpo/train", flags.split(" "), { env: { WEBGRPO_KERNELS: kernels } });
  expect(code, stderr).toBe(0);
  const read = (name: string): string => readFileSync(join(out, name), "utf8");
  const updates = read("metrics.jsonl")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, number | string>)
    .filter(({ kind }) => kind === "update");
  const column = (name: string): number[] => updates.map((update) => Number(update[name]));
  return { stderr, completions: read("completions.jsonl"), objectives: column("objective"), gradNorms: column("grad_norm") };
}

test("two train steps draw the same replies and compute the same objectives and gradients", async () => {
  const [own, gpu] = [await train(""), await train("gpu")];
  const isSoftware = own.stderr.includes("(software: runs on the CPU)");
  expect(gpu.stderr.includes("(software: runs on the CPU, with the kernels of a GPU)")).toBe(isSoftware);
  expect(gpu.completions).toBe(own.completions);
  expect(own.objectives).toHaveLength(4);
  expectClose("objectives", gpu.objectives, own.objectives, { rtol: 0, atol: 1e-5 });
  expectClose("gradient norms", gpu.gradNorms, own.gradNorms, { rtol: 1e-3, atol: 0 });
}, 120_000);
