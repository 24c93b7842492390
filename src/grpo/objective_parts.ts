/**
 * What the objectives are made of: the batch they see, importance ratios, the clipped surrogate, KL estimators, and the
 * weighted sum over tokens that all token-level objectives end in.
 *
 * Shapes: N completions, T tokens of the longest one. logProbs, oldLogProbs, referenceLogProbs are [N, T]; what they
 * hold behind the mask does not matter as long as it is finite. Only logProbs carries a gradient.
 */
import * as ops from "../autograd/ops.ts";
import { constant, detach, type Variable } from "../autograd/variable.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";

/** One micro-batch: completions, of one group or of several. */
export interface Batch {
  /** log pi_theta(o_t | q, o_<t) under the policy being trained. */
  readonly logProbs: Variable;
  /** The same under the policy that drew the tokens. Absent: that is the policy being trained, and every ratio is 1. */
  readonly oldLogProbs?: Tensor;
  /** The same under the frozen reference policy; needed for a KL term only. */
  readonly referenceLogProbs?: Tensor;
  /**
   * One row per completion: 1 for each token that the policy drew (its end token included), 0 for tokens of tools or of
   * left padding. A row may be shorter than T: the rest is padding. A row of zeros is a completion left out.
   */
  readonly mask: readonly (readonly number[])[];
  /** A_i, one per completion. */
  readonly advantages: readonly number[];
  /**
   * [N, T], multiplies each token's policy term but neither its KL nor what the sum is divided by. Off-policy masks,
   * high-entropy masks and the trainer/sampler ratio are such weights (objective_masks.ts). Token objectives only.
   */
  readonly policyWeights?: Tensor;
}

export interface ClipRange {
  /** The ratio may fall to 1 - low and rise to 1 + high before the gradient stops. */
  readonly low: number;
  readonly high: number;
}

export interface KlOptions {
  readonly beta: number;
  /** k3 unless given; see `klEstimate`. */
  readonly estimator?: "k1" | "k2" | "k3";
  /**
   * Multiplies the estimate by the importance ratio (DeepSeek-V3.2, 2025). For tokens of an older policy k1 and k3 then
   * have the value and the gradient of KL(pi_theta || pi_ref).
   */
  readonly biasCorrection?: boolean;
}

export interface ObjectiveOptions {
  readonly clip: ClipRange;
  /** Upper bound of the ratio for negative advantages too (INTELLECT-2, 2025: 4); above 1 + clip.high. */
  readonly delta?: number;
  /** One ratio per "token" (the default) or, as in GSPO, one per "sequence": the geometric mean of its tokens'. */
  readonly ratioLevel?: "token" | "sequence";
  readonly kl?: KlOptions;
}

/**
 * What an optimiser step consists of when it is split into micro-batches: divisors belong to the step, so that the sum
 * of the micro-batches' objectives is the objective of the whole, however uneven their lengths.
 */
export interface StepTotals {
  /** Completions of the step, those left out included. */
  readonly sequences: number;
  /** Tokens of the step whose mask is 1. */
  readonly tokens: number;
  readonly microBatches: number;
  /** The longest completion that generation allows: Dr. GRPO's constant. */
  readonly maxTokens: number;
}

export interface Objective {
  /** Scalar, to be maximised. */
  readonly value: Variable;
  /** The importance ratios, for metrics: [N, T] per token (1 behind the mask), or N per sequence. */
  readonly ratio: Tensor;
  /** The KL estimates, for metrics: [N, T] (0 behind the mask), or [N] where the objective is per sequence. */
  readonly kl: Tensor | null;
}

/** Every objective is one of these. */
export type ObjectiveFunction = (batch: Batch, options: ObjectiveOptions, step: StepTotals) => Objective;

/** The step of a batch that is a whole optimiser step by itself. */
export function wholeStep({ mask }: Pick<Batch, "mask">, maxTokens: number): StepTotals {
  const tokens = mask.reduce((sum, row) => sum + maskedTokens(row), 0);
  return { sequences: mask.length, tokens, microBatches: 1, maxTokens };
}

/** |o_i|: tokens of a mask's row that count. */
export function maskedTokens(row: readonly number[]): number {
  return row.reduce((sum, value) => sum + value, 0);
}

/** Rows of unequal length as a [rows, width] tensor, padded with zeros: [[1, 2], [3]] -> [1, 2, 3, 0]. */
export function padRows(rows: readonly (readonly number[])[], width: number): Tensor {
  return tensor(Float32Array.from(rows.flatMap((row) => [...row, ...new Array<number>(width - row.length).fill(0)])), [
    rows.length,
    width,
  ]);
}

/** The mask as [N, T]. */
export function maskOf({ logProbs, mask }: Batch): Variable {
  return constant(padRows(mask, logProbs.value.shape[1]!));
}

/** A_i as [N, 1], to be broadcast over tokens. */
export function advantageColumn({ advantages }: Batch): Variable {
  return constant(tensor([...advantages], [advantages.length, 1]));
}

/** log pi_theta - log pi_old per token, 0 behind the mask: [N, T]. */
export function logRatio(batch: Batch): Variable {
  const { logProbs, oldLogProbs } = batch;
  return ops.mul(ops.sub(logProbs, oldLogProbs ? constant(oldLogProbs) : detach(logProbs)), maskOf(batch));
}

/**
 * rho_it = exp(log-ratio_it), [N, T]; or at sequence level s_i = exp(1/|o_i| sum_t log-ratio_it), [N, 1]: GSPO (Zheng
 * et al. 2025, equation 7). The latter is a geometric mean, so that long completions do not leave the clip range merely
 * by being long.
 */
export function importanceRatio(batch: Batch, level: "token" | "sequence" = "token"): Variable {
  if (level === "token") return ops.exp(logRatio(batch));
  const inverseLengths = batch.mask.map((row) => 1 / Math.max(1, maskedTokens(row)));
  const total = ops.sum(logRatio(batch), [1], true);
  return ops.exp(ops.mul(total, constant(tensor(inverseLengths, [inverseLengths.length, 1]))));
}

/**
 * min(rho A, clip(rho, 1 - low, 1 + high) A), elementwise: PPO's clipped surrogate (Schulman et al. 2017, equation 7).
 * Where the clip is active the gradient is exactly 0; the minimum leaves the pessimistic side unclipped. With `delta`
 * that side is bounded as well: min(min(rho, delta) A, clip(rho) A), INTELLECT-2 (2025).
 */
export function clippedSurrogate(ratio: Variable, advantages: Variable, clip: ClipRange, delta?: number): Variable {
  const clipped = ops.clamp(ratio, 1 - clip.low, 1 + clip.high);
  const bounded = delta === undefined ? ratio : ops.clamp(ratio, 0, delta);
  return ops.minimum(ops.mul(bounded, advantages), ops.mul(clipped, advantages));
}

/**
 * Estimates of KL(pi_theta || pi_ref) from samples of pi_theta (Schulman 2020, "Approximating KL divergence"), with
 * k = log pi_ref - log pi_theta (`logDifference`), elementwise:
 *
 *   k1 = -k            unbiased, may be negative; its gradient averages to 0, so as part of an objective it is noise
 *   k2 = k^2 / 2       biased value, unbiased gradient
 *   k3 = e^k - k - 1   unbiased, never negative; GRPO's choice (DeepSeekMath 2024, equation 4). Its gradient is that of
 *                      the other divergence, KL(pi_ref || pi_theta)
 *
 * float32 leaves k3 an absolute error near 1e-7, where e^k - k - 1 cancels.
 */
export function klEstimate(logDifference: Variable, estimator: "k1" | "k2" | "k3" = "k3"): Variable {
  switch (estimator) {
    case "k1": return ops.neg(logDifference);
    case "k2": return ops.mulScalar(ops.mul(logDifference, logDifference), 0.5);
    case "k3": return ops.addScalar(ops.sub(ops.exp(logDifference), logDifference), -1);
  }
}

/** log pi_ref - log pi_theta per token, 0 behind the mask: [N, T]. */
export function referenceLogRatio(batch: Batch): Variable {
  if (!batch.referenceLogProbs) throw new Error("a KL term (beta > 0) needs referenceLogProbs in the batch");
  return ops.mul(ops.sub(constant(batch.referenceLogProbs), batch.logProbs), maskOf(batch));
}

/**
 * sum_i sum_t w_i m_it (policy_it omega_it - beta kl_it): the last line of every token-level objective. `policy` is
 * [N, T], or [N, 1] when each token of a completion has the same term; omega are the batch's policyWeights.
 * `weightOf(|o_i|)` is w_i, the normaliser, and the only thing in which grpo, bnpo, dapo and dr_grpo differ.
 */
export function weightedSum(
  batch: Batch,
  policy: Variable,
  ratio: Variable,
  weightOf: (length: number) => number,
  { kl: klOptions }: ObjectiveOptions,
): Objective {
  let terms = batch.policyWeights ? ops.mul(policy, constant(batch.policyWeights)) : policy;
  let kl: Variable | null = null;
  if (klOptions && klOptions.beta !== 0) {
    kl = klEstimate(referenceLogRatio(batch), klOptions.estimator);
    if (klOptions.biasCorrection) kl = ops.mul(kl, ratio);
    terms = ops.sub(terms, ops.mulScalar(kl, klOptions.beta));
  }
  // Masked tokens get 0 outright: a completion without tokens may have w_i = 1/0.
  const weights = batch.mask.map((row) => {
    const weight = weightOf(maskedTokens(row));
    return row.map((value) => (value === 0 ? 0 : weight));
  });
  const width = batch.logProbs.value.shape[1]!;
  const value = ops.sum(ops.mul(terms, constant(padRows(weights, width))));
  return { value, ratio: ratio.value, kl: kl && kl.value };
}
