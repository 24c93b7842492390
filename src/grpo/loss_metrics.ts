/**
 * What happened in a gradient step, under TRL's metric names, from numbers that are read back anyway: ratios, KL
 * estimates, entropies. Host only, no GPU work.
 */
import { average, greatest, least } from "./advantage.ts";
import { OBJECTIVES, type ObjectiveEntry, type ObjectiveName } from "./objective.ts";
import type { Batch, ObjectiveOptions } from "./objective_parts.ts";

export interface LossReadback {
  /** `Objective.ratio`: N or N * T numbers. */
  readonly ratio: ArrayLike<number>;
  /** `Objective.kl`: N or N * T numbers; null without a KL term. */
  readonly kl: ArrayLike<number> | null;
  /** Entropy of the policy at each completion token, N * T numbers (nats). */
  readonly entropies: ArrayLike<number>;
}

/**
 *   entropy                       mean over completion tokens
 *   kl                            mean KL estimate, with its bias correction; only with a KL term
 *   clip_ratio/low_mean, high_mean, region_mean   fraction of ratios whose gradient the clip stopped: below the range
 *                                 with A < 0, above it with A > 0, either; objectives that clip
 *   clip_ratio/low_min, high_max  the smallest and largest such fraction of any one completion
 *   cispo_clip_ratio              fraction of ratios above the cap with A > 0; cispo
 *   importance_ratio/min, mean, max   the ratios themselves
 *   approx_kl/k1, k3              KL(pi_old || pi_theta) from these ratios: mean of -log rho, of rho - 1 - log rho
 *
 * Means run over tokens whose mask is 1 or, where ratios are per completion, over completions that have such tokens. For
 * a step of several micro-batches concatenate their readbacks, masks and advantages (all padded to one T).
 */
export function lossMetrics(
  name: ObjectiveName,
  { ratio, kl, entropies }: LossReadback,
  { mask, advantages }: Pick<Batch, "mask" | "advantages">,
  { clip, ratioLevel = "token" }: ObjectiveOptions,
): Record<string, number> {
  const { ratio: use, levels }: ObjectiveEntry = OBJECTIVES[name];
  const width = entropies.length / mask.length;
  const perCompletion = (values: ArrayLike<number>): number[][] =>
    mask.map((row, i) => (row.includes(1) ? [values[i]!] : []));
  const perToken = (values: ArrayLike<number>): number[][] =>
    mask.map((row, i) => row.flatMap((value, t) => (value === 0 ? [] : [values[i * width + t]!])));

  const level = levels.length === 1 ? levels[0] : ratioLevel;
  const ratios = level === "token" ? perToken(ratio) : perCompletion(ratio);
  const clipped = ratios.map((row, i) =>
    row.map((rho) => ({
      low: rho < 1 - clip.low && advantages[i]! < 0 ? 1 : 0,
      high: rho > (use === "capped" ? clip.high : 1 + clip.high) && advantages[i]! > 0 ? 1 : 0,
    })),
  );
  const metrics: Record<string, number> = { entropy: meanOf(perToken(entropies).flat()) };
  if (kl) metrics["kl"] = meanOf((levels.includes("sum") ? perCompletion(kl) : perToken(kl)).flat());
  if (use === "capped") metrics["cispo_clip_ratio"] = meanOf(clipped.flat().map(({ high }) => high));
  if (use === "clipped") {
    const present = clipped.filter((row) => row.length > 0);
    metrics["clip_ratio/low_mean"] = meanOf(clipped.flat().map(({ low }) => low));
    metrics["clip_ratio/high_mean"] = meanOf(clipped.flat().map(({ high }) => high));
    metrics["clip_ratio/region_mean"] = metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"];
    metrics["clip_ratio/low_min"] = least(present.map((row) => average(row.map(({ low }) => low))));
    metrics["clip_ratio/high_max"] = greatest(present.map((row) => average(row.map(({ high }) => high))));
  }
  const all = ratios.flat();
  metrics["importance_ratio/min"] = least(all);
  metrics["importance_ratio/mean"] = average(all);
  metrics["importance_ratio/max"] = greatest(all);
  metrics["approx_kl/k1"] = meanOf(all.map((rho) => -Math.log(rho)));
  metrics["approx_kl/k3"] = meanOf(all.map((rho) => rho - 1 - Math.log(rho)));
  return metrics;
}

/** The mean; 0 of nothing, as TRL's masked means are. */
function meanOf(values: readonly number[]): number {
  return values.length === 0 ? 0 : average(values);
}
