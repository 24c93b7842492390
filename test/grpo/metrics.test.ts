/** The records of metrics.jsonl, by hand. Those of a gradient step's ratios are in loss_metrics.test.ts. */
import { expect, test } from "vitest";
import type { Reward } from "../../src/grpo/advantage.ts";
import { evaluationMetrics, rolloutMetrics, updateMetrics } from "../../src/grpo/metrics.ts";
import type { Experience } from "../../src/grpo/rollout.ts";
import { EXPERIENCE } from "../support/made_up_run.ts";

/** A completion of so many tokens; its second reward function could not judge it. */
const completion = (length: number, ended: boolean, reward: Reward, group: string): Experience => ({
  ...EXPERIENCE,
  completionIds: Array.from({ length }, () => 3),
  ended,
  rewards: [reward, null],
  reward,
  group,
});

test("the record of a train step's rollouts", () => {
  const experiences = [
    completion(1, true, 0.5, "flat"), completion(8, false, 0.5, "flat"),
    completion(4, true, 2, "uneven"), completion(7, true, 1, "uneven"), completion(8, false, null, "uneven"),
  ];
  const facts = { trainStep: 6, numTokens: 99, rounds: 1, timeouts: 0 };
  const functions = [{ name: "first" }, { name: "second" }];
  expect(rolloutMetrics(facts, experiences, functions, { mean: 0.25, max: 0.5 })).toEqual({
    kind: "rollout",
    step: 7,
    reward: 1,
    reward_std: Math.sqrt(0.5), // of 0.5, 0.5, 2, 1
    frac_reward_zero_std: 0.5,
    "rewards/first/mean": 1,
    "rewards/first/std": Math.sqrt(0.5),
    "completions/mean_length": 5.6,
    "completions/min_length": 1,
    "completions/max_length": 8,
    "completions/mean_terminated_length": 4,
    "completions/min_terminated_length": 1,
    "completions/max_terminated_length": 7,
    "completions/clipped_ratio": 0.4,
    num_tokens: 99,
    "sampling/sampling_logp_difference/mean": 0.25,
    "sampling/sampling_logp_difference/max": 0.5,
  });
  expect(rolloutMetrics({ ...facts, rounds: 3, timeouts: 2 }, experiences, functions, { mean: 0, max: 0 }))
    .toMatchObject({ "sampling/rounds": 3, "rewards/timeouts": 2 });
});

test("what cannot be said is left out or 0: nobody judged, no reply ended, one reply only", () => {
  const facts = { trainStep: 0, numTokens: 9, rounds: 1, timeouts: 0 };
  const gap = { mean: 0, max: 0 };
  const unjudged = rolloutMetrics(facts, [completion(8, false, null, "one")], [{ name: "first" }], gap);
  expect(unjudged).toMatchObject({ "completions/mean_terminated_length": 0, "completions/max_terminated_length": 0 });
  expect(Object.keys(unjudged).filter((key) => key.includes("reward"))).toEqual(["frac_reward_zero_std"]);
  const single = rolloutMetrics(facts, [completion(8, true, 0.5, "one")], [{ name: "first" }], gap);
  expect(single).toMatchObject({ reward: 0.5, reward_std: 0, "rewards/first/std": 0 });
});

test("the record of a gradient step, and of one that was skipped", () => {
  const at = { trainStep: 1, gradStep: 2, learningRate: 0.5, skipped: 0 };
  const groups = [[completion(1, true, 1, "a"), completion(1, true, null, "a")], [completion(1, true, 4, "b")]];
  const result = { objective: 3, gradNorm: 4, metrics: { entropy: 5 } };
  expect(updateMetrics(at, groups, result)).toEqual({
    kind: "update", step: 2, grad_step: 3, learning_rate: 0.5, "group/reward": 2.5, frac_reward_zero_std: 1,
    objective: 3, grad_norm: 4, entropy: 5,
  });
  for (const bad of [{ objective: NaN }, { gradNorm: Infinity }]) {
    const record = updateMetrics({ ...at, skipped: 2 }, groups, { ...result, ...bad });
    expect(record).toMatchObject({ skipped: 1, skipped_steps: 2 });
    for (const key of ["objective", "grad_norm", "entropy"]) expect(record).not.toHaveProperty(key);
  }
});

test("the record of an evaluation", () => {
  const evaluation = { accuracy: 0.25, greedy: 0.75, passAtK: [{ k: 2, value: 0.5 }], prompts: 8, samples: 3, replies: [] };
  expect(evaluationMetrics(4, evaluation)).toEqual({
    kind: "eval", step: 4, accuracy: 0.25, greedy_accuracy: 0.75, "pass@2": 0.5, prompts: 8, samples: 3,
  });
});
