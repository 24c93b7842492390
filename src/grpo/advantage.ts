/**
 * Advantages: how much better a completion did than the others of its group. Host numbers in, host numbers out.
 *
 * A reward may be null: nobody could say what the completion is worth. It then counts in no mean and no deviation, and
 * its advantage is 0. A group without spread gives exactly 0, never 0/0: it teaches nothing.
 */

/** The worth of a completion; null when it could not be judged. */
export type Reward = number | null;

export interface AdvantageOptions {
  /**
   * What is taken off each reward. "mean": the group's mean (GRPO). "leave-one-out": the mean of the OTHERS of the
   * group, which does not depend on the reward itself (RLOO). "none": nothing (REINFORCE); needs scale "none".
   */
  readonly baseline?: "mean" | "leave-one-out" | "none";
  /**
   * What it is then divided by: the standard deviation of the "group" (DeepSeekMath), of the whole "batch" (Lite-PPO),
   * or "none" (Dr. GRPO: the deviation weighs groups by how hard they are). TRL's `scale_rewards`.
   */
  readonly scale?: "group" | "batch" | "none";
  /** 1: sample deviation, n - 1 in its denominator (TRL, verl, nano-rl); 0: population deviation (GRPO-Zero). */
  readonly ddof?: 0 | 1;
  /** Added to the deviation, so that a tiny spread is not blown up: 1e-6 here and in nano-rl and verl, 1e-4 in TRL. */
  readonly delta?: number;
}

/**
 * A_i = (r_i - baseline) / (std(r) + delta) for groups of completions to one prompt each; as many numbers as rewards.
 *
 *   [1, 0, 0, 0]:  mean, group, delta 1e-6 -> [1.499997, -0.499999 x 3]      (DeepSeekMath 2024, section 4.1)
 *                  mean, none              -> [0.75, -0.25 x 3]              (Dr. GRPO, Liu et al. 2025)
 *                  leave-one-out, none     -> [1, -1/3 x 3]                  (RLOO, Ahmadian et al. 2024)
 * @throws RangeError for a reward that is neither null nor a finite number, or a scale without a baseline.
 */
export function advantages(
  groups: readonly (readonly Reward[])[],
  { baseline = "mean", scale = "group", ddof = 1, delta = 1e-6 }: AdvantageOptions = {},
): number[][] {
  if (baseline === "none" && scale !== "none") {
    throw new RangeError(`advantages: scale "${scale}" needs a baseline; without one use scale "none"`);
  }
  const batch = scored(groups.flat());
  return groups.map((group) => {
    const rewards = scored(group);
    if (baseline === "none") return group.map((reward) => reward ?? 0);
    if (!hasSpread(rewards)) return group.map(() => 0);
    const mean = average(rewards);
    const others = (reward: number): number => (mean * rewards.length - reward) / (rewards.length - 1);
    const divisor = scale === "none" ? 1 : standardDeviation(scale === "group" ? rewards : batch, ddof) + delta;
    return group.map((reward) => {
      if (reward === null) return 0;
      return (reward - (baseline === "mean" ? mean : others(reward))) / divisor;
    });
  });
}

/**
 * Several reward functions, one number: sum_k w_k r_k over the functions that gave a reward; null where none did.
 * `rewards` holds one row per completion, one column per function (TRL's `sum_then_normalize`, its first half).
 */
export function weightedRewards(rewards: readonly (readonly Reward[])[], weights: readonly number[]): Reward[] {
  return rewards.map((row) => {
    if (row.every((reward) => reward === null)) return null;
    return row.reduce<number>((sum, reward, k) => sum + (reward ?? 0) * weights[k]!, 0);
  });
}

/**
 * GDPO (Liu et al. 2026): each reward function is z-scored within its group BEFORE the weighted sum, so that a function
 * with a large spread does not drown the others; the sums are then z-scored over the batch. TRL's `normalize_then_sum`.
 * `groups`: per group one row per completion, one column per function.
 */
export function decoupledAdvantages(
  groups: readonly (readonly (readonly Reward[])[])[],
  weights: readonly number[],
  { ddof = 1, delta = 1e-6 }: Pick<AdvantageOptions, "ddof" | "delta"> = {},
): number[][] {
  const sums = groups.map((group) => {
    const byFunction = weights.map((_, k) => advantages([group.map((row) => row[k]!)], { ddof, delta })[0]!);
    const normalized = group.map((row, i) => row.map((reward, k) => (reward === null ? null : byFunction[k]![i]!)));
    return weightedRewards(normalized, weights);
  });
  const flat = advantages([sums.flat()], { ddof, delta })[0]!;
  let start = 0;
  return sums.map(({ length }) => flat.slice(start, (start += length)));
}

/** The rewards that exist. */
function scored(rewards: readonly Reward[]): number[] {
  const values = rewards.filter((reward) => reward !== null);
  if (!values.every(Number.isFinite)) throw new RangeError(`rewards must be finite numbers: ${rewards.join(", ")}`);
  return values;
}

/**
 * Whether rewards differ by more than rounding. 0.1 + 0.2 and 0.3 do not: divided by their deviation, the last bit
 * would weigh as much as the difference between right and wrong. A single reward has no spread either.
 */
export function hasSpread(rewards: readonly number[]): boolean {
  const [low, high] = [least(rewards), greatest(rewards)];
  return rewards.length > 1 && high - low > 4 * Number.EPSILON * Math.max(Math.abs(low), Math.abs(high));
}

/** Arithmetic mean. */
export function average(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The smallest value. Math.min takes no more values than fit on the stack. */
export function least(values: readonly number[]): number {
  return values.reduce((low, value) => Math.min(low, value), Infinity);
}

/** The largest value. */
export function greatest(values: readonly number[]): number {
  return values.reduce((high, value) => Math.max(high, value), -Infinity);
}

/** Standard deviation; `ddof` 1 (the default) divides by n - 1, 0 by n. */
export function standardDeviation(values: readonly number[], ddof: 0 | 1 = 1): number {
  const mean = average(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - ddof));
}
