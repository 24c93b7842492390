/** What goes into metrics.jsonl, under TRL's names where TRL has one. No times: the same seed gives the same bytes. */
import { average, standardDeviation } from "./advantage.ts";
import type { ClipRange } from "./objective_parts.ts";
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

/** One record per gradient step. A clip fraction counts ratios whose gradient the clip stopped. */
export function updateMetrics(
  at: { trainStep: number; gradStep: number; learningRate: number },
  group: readonly Experience[],
  result: UpdateResult,
  clip: ClipRange,
): Record<string, number | string> {
  const { objective, gradNorm, ratios, ratioAdvantages, entropy } = result;
  const fraction = (isClipped: (ratio: number, advantage: number) => boolean): number =>
    average(ratios.map((ratio, i) => (isClipped(ratio, ratioAdvantages[i]!) ? 1 : 0)));
  const low = fraction((ratio, advantage) => ratio < 1 - clip.low && advantage < 0);
  const high = fraction((ratio, advantage) => ratio > 1 + clip.high && advantage > 0);
  return {
    kind: "update",
    step: at.trainStep + 1,
    grad_step: at.gradStep + 1,
    objective,
    grad_norm: gradNorm,
    learning_rate: at.learningRate,
    entropy,
    "group/reward": average(group.map(({ reward }) => reward)),
    frac_reward_zero_std: group.every(({ reward }) => reward === group[0]!.reward) ? 1 : 0,
    "clip_ratio/low_mean": low,
    "clip_ratio/high_mean": high,
    "clip_ratio/region_mean": low + high,
    "importance_ratio/min": Math.min(...ratios),
    "importance_ratio/mean": average(ratios),
    "importance_ratio/max": Math.max(...ratios),
  };
}
