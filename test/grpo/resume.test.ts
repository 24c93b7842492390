/**
 * Stopping and going on, through the entry: 10 train steps straight, 5 and 5 more, and 10 with a kill in between leave
 * the same weights, moments, state and metrics, to the byte. Signals, and what a resumed run is told.
 */
import { createHash } from "node:crypto";
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RunState } from "../../src/grpo/run_state.ts";
import { runEntry, type EntryOptions, type EntryResult } from "../support/run_entry.ts";
import { makeDigitLoverDirectory } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "resume-"));
const model = makeDigitLoverDirectory();
afterAll(() => [root, model].forEach((directory) => rmSync(directory, { recursive: true })));

const train = (flags: string, options?: EntryOptions): Promise<EntryResult> =>
  runEntry("grpo/train", flags.split(" "), options);

async function trained(flags: string, options?: EntryOptions): Promise<EntryResult> {
  const result = await train(flags, options);
  expect(result.code, result.stderr).toBe(0);
  return result;
}

/** Kills the process as soon as stdout says `word`, however fast or slow the run is. */
const killAt = (word: string): EntryOptions => ({
  onStdout: (text, child) => {
    if (text.includes(word)) child.kill("SIGKILL");
  },
});

const bytes = (...path: string[]): Buffer => readFileSync(join(...path));

/** Tensors as a hash: a report of where so many bytes differ would take minutes and help nobody. */
const hash = (...path: string[]): string => createHash("sha256").update(bytes(...path)).digest("hex");

/** Everything that must not depend on where the run was interrupted; the times of steps do. */
function outcome(run: string) {
  const last = join(run, "checkpoints", "step-000010");
  const { state } = JSON.parse(bytes(last, "state.json").toString()) as { state: RunState };
  return {
    state,
    weights: hash(last, "model", "model.safetensors"),
    moments: hash(last, "optimizer.safetensors"),
    metrics: bytes(run, "metrics.jsonl").toString(),
    completions: bytes(run, "completions.jsonl").toString(),
    final: hash(run, "model", "model.safetensors"),
  };
}

const SMALL = "--train-steps 10 --save-every 5 --learning-rate 0.01";
const TASKS = {
  digit: `${SMALL} --rollout-count 6 --max-rollout-tokens 2 --grad-updates-per-step 2 --beta 0.01`,
  arithmetic:
    `--preset arithmetic ${SMALL} --prompts-per-step 3 --rollout-count 4 --max-rollout-tokens 2 --groups-per-update 3 ` +
    "--eval-every 4 --eval-prompts 6 --eval-samples 2 --dynamic-sampling 1 --replay-buffer-capacity 24",
};

describe.each(Object.entries(TASKS))("%s: interrupted or not, the same bytes", (name, task) => {
  const run = (kind: string): string => join(root, `${name}-${kind}`);
  const flags = (kind: string): string => `--model ${model} --out ${run(kind)} ${task}`;
  beforeAll(async () => {
    await trained(flags("straight"));
  }, 60_000);

  test("5 + resume + 5", async () => {
    const { stderr } = await trained(`${flags("halves")} --stop-at 5`);
    expect(stderr).toContain(`Go on: npx tsx src/grpo/train.ts --resume ${run("halves")}`);
    expect(readdirSync(run("halves"))).not.toContain("model");
    await trained(`--resume ${run("halves")}`);
    expect(outcome(run("halves"))).toEqual(outcome(run("straight")));
  }, 60_000);

  test("5 + kill -9 + resume", async () => {
    const killed = await train(flags("killed"), killAt("in train step 7/10"));
    expect(killed.code).toBeNull();
    expect(readdirSync(run("killed"))).not.toContain("model");
    const { stderr } = await trained(`--resume ${run("killed")}`);
    expect(stderr).toMatch(/resumed: .*step-000005, after train step 5/);
    expect(outcome(run("killed"))).toEqual(outcome(run("straight")));
  }, 60_000);

  test("the run of another seed differs: the checks above can fail", async () => {
    await trained(`${flags("other")} --seed 2`);
    const [other, straight] = [outcome(run("other")), outcome(run("straight"))];
    for (const key of ["weights", "moments", "metrics", "completions", "final"] as const) {
      expect(other[key]).not.toBe(straight[key]);
    }
  }, 60_000);
});

describe("signals", () => {
  /** Sends a signal while the run trains; with `twice` the same again, once the first has been heard. */
  const send = (signal: NodeJS.Signals, twice = false): EntryOptions => {
    let sent = 0;
    return {
      onStdout: (text, child) => {
        if (sent === 0 && text.includes("-- Training")) sent = child.kill(signal) ? 1 : 0;
      },
      onStderr: (text, child) => {
        if (twice && sent === 1 && text.includes("Again to leave at once")) sent = child.kill(signal) ? 2 : 1;
      },
    };
  };
  const flags = (out: string): string =>
    `--model ${model} --out ${join(root, out)} --train-steps 400 --rollout-count 6 --max-rollout-tokens 2`;

  test.each([["SIGINT", 130], ["SIGTERM", 143]] as const)("%s: finishes the step, saves, says how to go on", async (
    signal, code,
  ) => {
    const result = await train(flags(signal), send(signal));
    expect(result.code, result.stderr).toBe(code);
    expect(result.stderr).toMatch(/stopped after train step \d+\. Go on: npx tsx src\/grpo\/train\.ts --resume /);
    const { stderr } = await trained(`--resume ${join(root, signal)} --train-steps 1`);
    expect(stderr).toContain("changed on resume: trainSteps 400 -> 1");
    expect(readdirSync(join(root, signal))).toContain("model");
  }, 60_000);

  test("a second one leaves at once, and nothing unfinished", async () => {
    // A train step of many gradient steps, so that both signals come before it ends.
    const result = await train(`${flags("twice")} --grad-updates-per-step 2000`, send("SIGINT", true));
    expect(result.code).toBe(130);
    const run = join(root, "twice");
    const checkpoints = readdirSync(run).includes("checkpoints") ? readdirSync(join(run, "checkpoints")) : [];
    expect(checkpoints.filter((name) => name.startsWith("step-"))).toEqual([]);
  }, 60_000);
});

describe("what a resumed run is told", () => {
  test("a finished run has nothing left to do, and stays as it is", async () => {
    const run = join(root, "digit-straight");
    const before = outcome(run);
    await trained(`--resume ${run}`);
    expect(outcome(run)).toEqual(before);
  }, 30_000);

  test("more train steps may follow a finished run", async () => {
    const run = join(root, "digit-halves");
    await trained(`--resume ${run} --train-steps 11`);
    expect(readFileSync(join(run, "metrics.jsonl"), "utf8")).toContain('"step":11');
  }, 30_000);

  test("a reference policy that is not what it was: one line, exit code 3", async () => {
    const [base, run] = [join(root, "base"), join(root, "with-reference")];
    cpSync(model, base, { recursive: true });
    await trained(`--model ${base} --out ${run} ${SMALL} --rollout-count 5 --max-rollout-tokens 2 --beta 0.1 --stop-at 1`);
    const other = makeDigitLoverDirectory(2);
    cpSync(join(other, "model.safetensors"), join(base, "model.safetensors"));
    rmSync(other, { recursive: true });
    const { code, errors } = await train(`--resume ${run}`);
    expect(code).toBe(3);
    expect(errors).toEqual([expect.stringMatching(/base has changed since the run began.*Fix: put the weights/)]);
  }, 60_000);

  test("no checkpoint: one line, exit code 3", async () => {
    const { code, errors } = await train(`--resume ${join(root, "nothing")}`);
    expect(code).toBe(3);
    expect(errors).toHaveLength(1);
    expect(errors[0]).toMatch(/no valid checkpoint at .*nothing.*Fix: give the folder of a run/);
  }, 30_000);
});
