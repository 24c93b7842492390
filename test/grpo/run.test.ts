/** A run as it is opened: what its flags make of the optimizer, and the weights that it remembers as good. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { parseCommand } from "../../src/grpo/config.ts";
import { digit } from "../../src/grpo/environments/digit.ts";
import { openRun, rememberGood, saveRun, type Run } from "../../src/grpo/run.ts";
import { gradientStep, type UpdateResult } from "../../src/grpo/update.ts";
import type { Gpt } from "../../src/model/gpt.ts";
import { readAll } from "../../src/tensor/tensor.ts";
import { expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { answersTo } from "../support/rollouts.ts";
import { runEntry } from "../support/run_entry.ts";
import { makeDigitLoverDirectory } from "../support/tiny_model.ts";

const directory = makeDigitLoverDirectory();
const root = mkdtempSync(join(tmpdir(), "run-"));
afterAll(() => [directory, root].forEach((path) => rmSync(path, { recursive: true })));

/** A run with these flags; nothing is written. */
const opened = (flags: string): Promise<Run> =>
  openRun(parseCommand(["node", "train", "--dry-run", "--model", directory, ...flags.split(" ")]));

const weightsOf = async ({ parameters }: Gpt): Promise<number[]> =>
  (await readAll([...parameters.values()].map(({ value }) => value))).flatMap((values) => [...values]);

/** A gradient step on two replies with these advantages. */
async function step(
  { model, codec, optimizer, config }: Run, advantages: readonly number[], learningRate: number,
): Promise<UpdateResult> {
  const experiences = await answersTo(model, codec, digit, { samplesPerPrompt: 2, maxNewTokens: 2 });
  return gradientStep(model, optimizer, experiences, advantages, learningRate, config);
}

describe("flags of AdamW", () => {
  test("--weight-decay shrinks the weights where there is no gradient", async () => {
    const run = await opened("--weight-decay 0.25");
    const before = await weightsOf(run.model);
    await step(run, [0, 0], 0.5);
    expectClose("weights", await weightsOf(run.model), before.map((value) => 0.875 * value), { rtol: 1e-6, atol: 0 });
    await run.close();
  });

  /** The norm of the gradient that AdamW works with, from its first moments, beside that of the gradient itself. */
  async function norms(flags: string): Promise<[used: number, whole: number]> {
    const run = await opened(flags);
    const { gradNorm } = await step(run, [1, -1], 0);
    const moments = (await run.optimizer.exportState()).flatMap(({ firstMoment }) => [...firstMoment]);
    await run.close();
    return [Math.hypot(...moments) / (1 - 0.9), gradNorm];
  }

  test("--adam-beta1 and --adam-beta2 say how much of a gradient the moments take up", async () => {
    const moments = async (flags: string): Promise<[first: number, second: number]> => {
      const run = await opened(flags);
      await step(run, [1, -1], 0);
      const saved = await run.optimizer.exportState();
      await run.close();
      return [
        Math.hypot(...saved.flatMap(({ firstMoment }) => [...firstMoment])),
        Math.hypot(...saved.flatMap(({ secondMoment }) => [...secondMoment])),
      ];
    };
    const [first, second] = await moments("--adam-beta1 0 --adam-beta2 0");
    const [firstPart, secondPart] = await moments("--adam-beta1 0.75 --adam-beta2 0.5");
    expect(firstPart / first).toBeCloseTo(0.25, 5);
    expect(secondPart / second).toBeCloseTo(0.5, 5);
  });

  test("--adam-epsilon holds steps back where it is larger than the gradient", async () => {
    const change = async (flags: string): Promise<number> => {
      const run = await opened(`--weight-decay 0 ${flags}`);
      const before = await weightsOf(run.model);
      await step(run, [1, -1], 0.5);
      const after = await weightsOf(run.model);
      await run.close();
      return Math.hypot(...after.map((value, i) => value - before[i]!));
    };
    expect(await change("--adam-epsilon 1000")).toBeLessThan(await change("--adam-epsilon 1e-8") / 100);
  });

  test("--max-grad-norm bounds the gradient; 0, the default, does not", async () => {
    const [free, gradNorm] = await norms("--max-grad-norm 0");
    expect(free / gradNorm).toBeCloseTo(1, 4);
    const [clipped, same] = await norms(`--max-grad-norm ${gradNorm / 4}`);
    expect(clipped / gradNorm).toBeCloseTo(1 / 4, 4);
    expect(same).toBe(gradNorm);
  });
});

test.each([
  ["--prompts-per-step 3", "note: environment digit gave 1 of the 3 prompts of --prompts-per-step"],
  ["--eval-every 2", "note: environment digit has no held-out prompts: --eval-every does nothing"],
  ["--objective reinforce", "--grad-updates-per-step 1 --replay-buffer-capacity 25"],
  ["--warmup-steps 25", "note: the run's 25 gradient steps end within --warmup-steps 25: no step has the peak rate"],
])("%s: a note says what it does not do", async (flags, note) => {
  const run = await opened(flags);
  expect(run.notes.filter((line) => line.startsWith("note: ") && line.includes(note))).toHaveLength(1);
  await run.close();
});

test("no note about what is as it should be", async () => {
  const run = await opened("--objective reinforce --grad-updates-per-step 1 --replay-buffer-capacity 25 --warmup-steps 4");
  expect(run.notes.filter((line) => line.startsWith("note: "))).toEqual([]);
  await run.close();
});

test("the best checkpoint: the first of the highest accuracy, and of the highest reward before any evaluation", async () => {
  const out = join(root, "best");
  const run = await openRun(parseCommand(["node", "train", "--model", directory, "--out", out, "--eval-every", "2"]));
  const bestAfter = async (reward: number, accuracy: number | null): Promise<number> => {
    run.state.trainStep += 1;
    run.state.meanRewards = [...run.state.meanRewards, reward];
    if (accuracy !== null) run.state.evaluated = { step: run.state.trainStep, accuracy };
    await saveRun(run);
    return run.state.best!.step;
  };
  expect(await bestAfter(0.5, null)).toBe(1);
  expect(await bestAfter(0.4, null)).toBe(1);
  expect(await bestAfter(0.1, 0.3)).toBe(3); // accuracies are no rewards: the comparison begins again
  expect(await bestAfter(0.9, null)).toBe(3); // not evaluated
  expect(await bestAfter(0.9, 0.3)).toBe(3); // no better
  expect(await bestAfter(0.1, 0.4)).toBe(6);
  await run.close();
});

test("a dry run says what the run would take, and leaves nothing", async () => {
  const out = join(root, "dry");
  // More completions in a gradient step than a round draws, and a KL term.
  const flags = "--beta 0.1 --groups-per-update 7 --train-steps 1000 --grad-updates-per-step 3 --max-rollout-tokens 3";
  const { code, stdout, stderr } = await runEntry("grpo/train", [
    "--dry-run", "--model", directory, "--out", out, ...flags.split(" "),
  ]);
  expect(code, stderr).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ trainSteps: 1000, microBatch: 35 });
  const [, rollouts, update, total] = /rollouts ([\d.]+) s, a gradient step ([\d.]+) s .* about (\d+) s/.exec(stderr)!;
  const rounding = 1000 * 4 * 0.005 + 1; // both times have two digits
  expect(Math.abs(Number(total) - 1000 * (Number(rollouts) + 3 * Number(update)))).toBeLessThan(rounding);
  expect(existsSync(out)).toBe(false);
});

test("the good weights are a copy of the newest ones that were good", async () => {
  const run = await opened("--weight-decay 0");
  rememberGood(run);
  await step(run, [1, -1], 0.01);
  rememberGood(run);
  const good = await weightsOf(run.model);
  await step(run, [1, -1], 0.01);
  expect(await weightsOf(run.model)).not.toEqual(good);
  expect(await weightsOf(run.lastGood!)).toEqual(good);
  await run.close();
});
