/**
 * What goes into metrics.jsonl, under TRL's names where TRL has one (docs/metrics.md explains each). No times: the same
 * seed gives the same bytes.
 */
import { average, greatest, least, standardDeviation, type Reward } from "./advantage.ts";
import type { Evaluation } from "./evaluate.ts";
import { groupsOf, hasRewardSpread, type Experience } from "./rollout.ts";
import type { UpdateResult } from "./update.ts";

/** A line of metrics.jsonl. */
export type MetricsRecord = { readonly kind: string; readonly step: number } & Readonly<Record<string, number | string>>;

/**
 * One record per train step, after its rollouts. `numTokens` counts prompts and completions since the run began;
 * rewards that are null are in no mean, and where all
 * are there is no mean.
 */
export function rolloutMetrics(
  { trainStep, numTokens, rounds, timeouts }: { trainStep: number; numTokens: number; rounds: number; timeouts: number },
  experiences: readonly Experience[],
  functions: readonly { readonly name: string }[],
  gap: { mean: number; max: number },
): MetricsRecord {
  const rewards = present(experiences.map(({ reward }) => reward));
  const lengths = experiences.map(({ completionIds }) => completionIds.length);
  const terminated = experiences.filter(({ ended }) => ended).map(({ completionIds }) => completionIds.length);
  const byFunction = functions.flatMap(({ name }, k) => {
    const own = present(experiences.map((experience) => experience.rewards[k]!));
    return own.length === 0 ? [] : [[`rewards/${name}/mean`, average(own)], [`rewards/${name}/std`, deviation(own)]];
  });
  return {
    kind: "rollout",
    step: trainStep + 1,
    ...(rewards.length === 0 ? {} : { reward: average(rewards), reward_std: deviation(rewards) }),
    frac_reward_zero_std: fractionWithoutSpread(groupsOf(experiences)),
    ...Object.fromEntries(byFunction),
    ...spread("completions", "length", lengths),
    ...spread("completions", "terminated_length", terminated.length > 0 ? terminated : [0]),
    "completions/clipped_ratio": average(experiences.map(({ ended }) => (ended ? 0 : 1))),
    num_tokens: numTokens,
    "sampling/sampling_logp_difference/mean": gap.mean,
    "sampling/sampling_logp_difference/max": gap.max,
    ...(timeouts > 0 ? { "rewards/timeouts": timeouts } : {}),
    ...(rounds > 1 ? { "sampling/rounds": rounds } : {}),
  };
}

/** One record per gradient step. `skipped` counts those so far that were not finite and changed nothing. */
export function updateMetrics(
  at: { trainStep: number; gradStep: number; learningRate: number; skipped: number },
  groups: readonly (readonly Experience[])[],
  { objective, gradNorm, metrics }: UpdateResult,
): MetricsRecord {
  const isFinite = Number.isFinite(objective) && Number.isFinite(gradNorm);
  return {
    kind: "update",
    step: at.trainStep + 1,
    grad_step: at.gradStep + 1,
    learning_rate: at.learningRate,
    "group/reward": average(present(groups.flat().map(({ reward }) => reward))),
    frac_reward_zero_std: fractionWithoutSpread(groups),
    // JSON has no NaN: a skipped step says so, and leaves out what it cannot say.
    ...(isFinite ? { objective, grad_norm: gradNorm, ...metrics } : { skipped: 1 }),
    ...(at.skipped > 0 ? { skipped_steps: at.skipped } : {}),
  };
}

/** One record per evaluation; step 0 is before training. */
export function evaluationMetrics(step: number, { accuracy, greedy, passAtK, prompts, samples }: Evaluation): MetricsRecord {
  const pass = Object.fromEntries(passAtK.map(({ k, value }) => [`pass@${k}`, value]));
  return { kind: "eval", step, accuracy, greedy_accuracy: greedy, ...pass, prompts, samples };
}

function fractionWithoutSpread(groups: readonly (readonly Experience[])[]): number {
  return average(groups.map((group) => (hasRewardSpread(group) ? 0 : 1)));
}

function present(rewards: readonly Reward[]): number[] {
  return rewards.filter((reward) => reward !== null);
}

function deviation(values: readonly number[]): number {
  return values.length > 1 ? standardDeviation(values) : 0;
}

function spread(prefix: string, name: string, values: readonly number[]): Record<string, number> {
  return {
    [`${prefix}/mean_${name}`]: average(values),
    [`${prefix}/min_${name}`]: least(values),
    [`${prefix}/max_${name}`]: greatest(values),
  };
}
