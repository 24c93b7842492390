/** What goes into metrics.jsonl, under TRL's names where TRL has one. No times: the same seed gives the same bytes. */
import { average, standardDeviation } from "./advantage.ts";
import type { Experience } from "./rollout.ts";
import type { UpdateResult } from "./update.ts";

/** One record per train step, after its rollouts. `num_tokens` counts this step's prompts and completions. */
export function rolloutMetrics(
  trainStep: number,
  experiences: readonly Experience[],
  gap: { mean: number; max: number },
): { reward: number } & Record<string, number | string> {
  const rewards = experiences.map(({ reward }) => reward);
  const lengths = experiences.map(({ completionIds }) => completionIds.length);
  return {
    kind: "rollout",
    step: trainStep + 1,
    reward: average(rewards),
    reward_std: rewards.length > 1 ? standardDeviation(rewards) : 0,
    "completions/mean_length": average(lengths),
    "completions/min_length": Math.min(...lengths),
    "completions/max_length": Math.max(...lengths),
    "completions/clipped_ratio": average(experiences.map(({ ended }) => (ended ? 0 : 1))),
    num_tokens: experiences.reduce(
      (sum, { promptIds, completionIds }) => sum + promptIds.length + completionIds.length,
      0,
    ),
    "sampling/sampling_logp_difference/mean": gap.mean,
    "sampling/sampling_logp_difference/max": gap.max,
  };
}

/** One record per gradient step. */
export function updateMetrics(
  at: { trainStep: number; gradStep: number; learningRate: number },
  group: readonly Experience[],
  { objective, gradNorm, metrics }: UpdateResult,
): Record<string, number | string> {
  return {
    kind: "update",
    step: at.trainStep + 1,
    grad_step: at.gradStep + 1,
    objective,
    grad_norm: gradNorm,
    learning_rate: at.learningRate,
    "group/reward": average(group.map(({ reward }) => reward)),
    frac_reward_zero_std: group.every(({ reward }) => reward === group[0]!.reward) ? 1 : 0,
    ...metrics,
  };
}
