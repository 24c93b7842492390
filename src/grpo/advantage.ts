/** Group-relative advantages: how much better a completion did than the others of its group. */

/**
 * A_i = (r_i - mean(r)) / (std(r) + delta), with the sample standard deviation (ddof 1): DeepSeekMath (2024), section
 * 4.1. A group of equal rewards gives exactly 0: it teaches nothing. [1, 0, 0, 0] with delta 1e-6 -> [1.499997,
 * -0.499999 x 3]. `delta` keeps the quotient finite; with 0 it only matters for equal rewards, which are handled apart.
 * @throws RangeError for fewer than two rewards (no spread exists) or a reward that is not a finite number.
 */
export function groupAdvantages(rewards: readonly number[], delta = 1e-6): number[] {
  if (rewards.length < 2) throw new RangeError(`a group needs at least two completions, not ${rewards.length}`);
  if (!rewards.every(Number.isFinite)) throw new RangeError(`rewards must be finite numbers: ${rewards.join(", ")}`);
  if (rewards.every((reward) => reward === rewards[0])) return rewards.map(() => 0);
  const mean = average(rewards);
  const std = standardDeviation(rewards);
  return rewards.map((reward) => (reward - mean) / (std + delta));
}

/** Arithmetic mean. */
export function average(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Sample standard deviation (ddof 1). */
export function standardDeviation(values: readonly number[]): number {
  const mean = average(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (values.length - 1));
}
