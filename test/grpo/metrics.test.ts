/** The records of metrics.jsonl, by hand. Those of a gradient step's ratios are in loss_metrics.test.ts. */
import { expect, test } from "vitest";
import type { Reward } from "../../src/grpo/advantage.ts";
import { rolloutMetrics } from "../../src/grpo/metrics.ts";
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
