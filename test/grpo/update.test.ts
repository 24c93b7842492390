/**
 * A gradient step as the loop takes it: gradient accumulation over micro-batches of uneven lengths, and the options that
 * weigh tokens or add to the objective.
 */
import { describe, expect, test } from "vitest";
import { adamw } from "../../src/autograd/adamw.ts";
import { completionLogProbs } from "../../src/grpo/completion_log_probs.ts";
import { parseConfig, type TrainConfig } from "../../src/grpo/config.ts";
import { OBJECTIVES } from "../../src/grpo/objective.ts";
import type { TextCodec } from "../../src/grpo/rollout.ts";
import { advantagesOf, gradientStep, withReference, type UpdateResult } from "../../src/grpo/update.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { readAll } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { answersTo, type Rewarded } from "../support/rollouts.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

const configOf = (flags: string): TrainConfig =>
  parseConfig(["node", "train", "--out", "runs/unused", "--max-rollout-tokens", "5", ...flags.split(" ")]);

const codec: TextCodec = { encodePrompt: ({ id }) => (id === "p" ? [1, 2, 3] : [4, 5]), decode: String, endIds: [9] };
const prompts = ["p", "q"].map((id) => ({ id, messages: [{ role: "user", content: id }] }));
const environment = { name: "uneven", prompts: () => prompts, rewards: { zero: () => 0 } };

const createPolicy = (): Gpt => createGpt(tinyConfig({}), randomWeights(5, 0.3));

/** Two groups of five, lengths 1 to 5, from a policy that has moved since; and one step of it. */
async function step(flags: string, change: (experiences: Rewarded[]) => Rewarded[] = (same) => same): Promise<{
  result: UpdateResult;
  weights: Float32Array[];
}> {
  const config = configOf(flags);
  const policy = createPolicy();
  const older = createGpt(tinyConfig({}), randomWeights(5, 0.29));
  const drawn = await answersTo(older, codec, environment, { samplesPerPrompt: 5, maxNewTokens: 5 });
  const uneven = change(drawn.map((experience, i) => {
    const length = 1 + ((3 * i) % 5);
    const completionIds = experience.completionIds.slice(0, length);
    const logProbs = experience.logProbs.slice(0, length);
    return { ...experience, completionIds, logProbs, reward: (i * i) % 7, rewards: [(i * i) % 7] };
  }));
  const experiences = config.beta > 0 ? await withReference(older, uneven, 1) : uneven;
  const groups = [experiences.slice(0, 5), experiences.slice(5)];
  const optimizer = adamw([...policy.parameters.values()], { maximize: true, weightDecay: 0, eps: 1 }); // eps 1: no signs
  const result = await gradientStep(policy, optimizer, experiences, advantagesOf(groups, [], config), 1, config);
  const weights = (await readAll([...policy.parameters.values()].map(({ value }) => value))) as Float32Array[];
  optimizer.dispose();
  [policy, older].forEach(disposeGpt);
  return { result, weights };
}

const distance = (a: readonly Float32Array[], b: readonly Float32Array[]): number =>
  Math.max(...a.flatMap((row, i) => Array.from(row, (value, j) => Math.abs(value - b[i]![j]!))));

describe("micro-batches of 3 of 10 completions give the step of all 10", () => {
  const names = Object.keys(OBJECTIVES).filter((name) => name !== "bnpo");
  test.each([...names, "dapo --beta 0.1", "grpo --entropy-bonus 0.1", "gspo --beta 0.1"])("%s", async (name) => {
    const flags = `--objective ${name} --replay groups --rollout-count 5 --groups-per-update 2`;
    const [whole, split] = [await step(flags), await step(`${flags} --micro-batch 3`)];
    expect(Math.abs(split.result.objective - whole.result.objective)).toBeLessThan(1e-5);
    expect(split.result.gradNorm / whole.result.gradNorm).toBeCloseTo(1, 4);
    expect(distance(split.weights, whole.weights)).toBeLessThan(2e-6);
    expect(Object.keys(split.result.metrics)).toEqual(Object.keys(whole.result.metrics));
    for (const [key, value] of Object.entries(whole.result.metrics)) {
      expect(Math.abs(split.result.metrics[key]! - value), key).toBeLessThan(1e-4 * Math.max(1, Math.abs(value)));
    }
  });

  test("bnpo, whose divisor is the micro-batch's, differs: the check above can fail", async () => {
    const flags = "--objective bnpo --replay groups --rollout-count 5 --groups-per-update 2";
    const [whole, split] = [await step(flags), await step(`${flags} --micro-batch 3`)];
    expect(distance(split.weights, whole.weights)).toBeGreaterThan(1e-4);
  });
});

describe("options of the objective", () => {
  const base = "--objective dapo --replay groups --rollout-count 5 --groups-per-update 2";

  test("--entropy-bonus raises the objective by its share of the entropy", async () => {
    const [plain, bonus] = [await step(base), await step(`${base} --entropy-bonus 0.5`)];
    const entropy = plain.result.metrics["entropy"]!;
    expect(bonus.result.objective - plain.result.objective).toBeCloseTo(0.5 * entropy, 4);
    expect(distance(bonus.weights, plain.weights)).toBeGreaterThan(1e-5);
  });

  test("--ratio-level sequence makes grpo gspo", async () => {
    const flags = base.replace("dapo", "grpo");
    const [tokens, sequences, gspo] = [
      await step(flags), await step(`${flags} --ratio-level sequence`),
      await step(`${base.replace("dapo", "gspo")} --epsilon 0.2`),
    ];
    expect(sequences).toEqual(gspo);
    expect(distance(sequences.weights, tokens.weights)).toBeGreaterThan(1e-5);
  });

  test("--top-entropy-quantile: the objective is that of the least decided tokens", async () => {
    let drawn: Rewarded[] = [];
    const flags = `${base} --epsilon 1 --epsilon-high 99 --top-entropy-quantile 0.2`; // nothing is clipped
    const { result } = await step(flags, (experiences) => (drawn = experiences));
    const policy = createPolicy();
    const [logProbs, entropies] = await scopeAsync(async () => {
      const { logProbs, entropy } = completionLogProbs(policy, drawn, { temperature: 1 });
      return readAll([logProbs.value, entropy.value]);
    });
    disposeGpt(policy);
    const advantages = advantagesOf([drawn.slice(0, 5), drawn.slice(5)], [], configOf(flags));
    const tokens = drawn.flatMap((experience, row) =>
      experience.logProbs.map((old, t) => {
        const at = 5 * row + t;
        return { entropy: entropies![at]!, term: Math.exp(logProbs![at]! - old) * advantages[row]! };
      }),
    );
    expect(tokens).toHaveLength(30);
    const kept = tokens.sort((a, b) => b.entropy - a.entropy).slice(0, 6);
    expect(result.objective).toBeCloseTo(kept.reduce((sum, { term }) => sum + term, 0) / 30, 5);
  });

  test("--top-entropy-quantile 1 is everything, less is another step", async () => {
    const [plain, all, few] = [
      await step(base), await step(`${base} --top-entropy-quantile 1`), await step(`${base} --top-entropy-quantile 0.2`),
    ];
    expect(all.weights).toEqual(plain.weights);
    expect(distance(few.weights, plain.weights)).toBeGreaterThan(1e-5);
  });

  test("--off-policy-threshold leaves out bad completions that have become unlikely", async () => {
    /** The first completion was bad, and pretends to have been drawn by a policy that liked it far more. */
    const moved = (experiences: Rewarded[]): Rewarded[] =>
      experiences.map((experience, i) =>
        i === 0 ? { ...experience, reward: -9, logProbs: experience.logProbs.map(() => 0) } : experience,
      );
    const flags = base.replace("dapo", "cispo"); // which does not clip them anyway
    const [plain, masked, loose] = [
      await step(flags, moved),
      await step(`${flags} --off-policy-threshold 1`, moved),
      await step(`${flags} --off-policy-threshold 100`, moved),
    ];
    expect(loose.weights).toEqual(plain.weights);
    expect(distance(masked.weights, plain.weights)).toBeGreaterThan(1e-6);
  });
});

test("advantages: ddof, and each reward function normalised before the sum", () => {
  const reward = (rewards: number[], sum: number) => ({ rewards, reward: sum }) as unknown as Rewarded;
  const group = [reward([1, 0], 1), reward([0, 10], 10), reward([0, 0], 0)];
  const of = (flags: string, weights: readonly number[] = [1, 1]): number[] =>
    advantagesOf([group], [], configOf(flags), weights).map((value) => Number(value.toFixed(3)));
  expect(of("--advantage-ddof 1")).toEqual([-0.484, 1.15, -0.666]);
  expect(of("--advantage-ddof 0")).toEqual([-0.593, 1.408, -0.815]);
  // The right answer in [1, 0] now counts as much as the 10 of the other function.
  expect(of("--reward-aggregation normalize-then-sum")).toEqual([0.577, 0.577, -1.155]);
});
