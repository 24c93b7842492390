/**
 * The objectives, one function per equation. All are to be maximised.
 *
 * Shapes: G completions of a group, T tokens of the longest one. logProbs, oldLogProbs and mask are [G, T]; the mask is
 * 1 on tokens that the policy drew (its end token included) and 0 on padding; advantages are [G].
 * Only logProbs carries a gradient: oldLogProbs are stored numbers from the rollout.
 */
import * as ops from "../autograd/ops.ts";
import { constant, type Variable } from "../autograd/variable.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";

export interface GroupBatch {
  /** log pi_theta(o_t | q, o_<t) under the policy being trained. */
  readonly logProbs: Variable;
  /** The same under the policy that drew the tokens. */
  readonly oldLogProbs: Tensor;
  /** float32 0/1. */
  readonly mask: Tensor;
  readonly advantages: Tensor;
}

export interface ClipRange {
  /** The ratio may fall to 1 - low and rise to 1 + high before the gradient stops. */
  readonly low: number;
  readonly high: number;
}

export interface Objective {
  /** Scalar, to be maximised. */
  readonly value: Variable;
  /** The importance ratios it was computed from: [G] per sequence or [G, T] per token. */
  readonly ratio: Variable;
}

/** log pi_theta - log pi_old per token, 0 behind the mask: [G, T] */
function logRatio({ logProbs, oldLogProbs, mask }: GroupBatch): Variable {
  return ops.mul(ops.sub(logProbs, constant(oldLogProbs)), constant(mask));
}

/**
 * min(rho A, clip(rho, 1 - low, 1 + high) A), elementwise: PPO's clipped surrogate (Schulman et al. 2017, equation 7).
 * Where the clip is active the gradient is exactly 0; the minimum leaves the pessimistic side unclipped.
 */
export function clippedSurrogate(ratio: Variable, advantages: Variable, clip: ClipRange): Variable {
  const clipped = ops.clamp(ratio, 1 - clip.low, 1 + clip.high);
  return ops.minimum(ops.mul(ratio, advantages), ops.mul(clipped, advantages));
}

/**
 * J = 1/G sum_i min(rho_i A_i, clip(rho_i) A_i) with ONE ratio per completion, rho_i = exp(sum_t log-ratio_t):
 * the GRPO objective as written in the DeepSeek-R1 paper (2025, equation 1), without its KL term.
 */
export function sequenceObjective(batch: GroupBatch, clip: ClipRange): Objective {
  const ratio = ops.exp(ops.sum(logRatio(batch), [1]));
  return { value: ops.mean(clippedSurrogate(ratio, constant(batch.advantages), clip)), ratio };
}

/**
 * J = sum_i sum_t min(rho_it A_i, clip(rho_it) A_i) / sum_i |o_i| with a ratio per token and one mean over all tokens
 * of the group, so long completions weigh more: DAPO (Yu et al. 2025, equation 8).
 */
export function tokenObjective(batch: GroupBatch, clip: ClipRange, tokens: number): Objective {
  const [group] = batch.mask.shape as [number, number];
  const ratio = ops.exp(logRatio(batch));
  const advantages = ops.reshape(constant(batch.advantages), [group, 1]);
  const surrogate = ops.mul(clippedSurrogate(ratio, advantages, clip), constant(batch.mask));
  return { value: ops.mulScalar(ops.sum(surrogate), 1 / tokens), ratio };
}

/** Rows of unequal length as a [G, T] tensor, padded with zeros: [[1, 2], [3]] -> [1, 2, 3, 0]. */
export function padRows(rows: readonly (readonly number[])[], width: number): Tensor {
  return tensor(Float32Array.from(rows.flatMap((row) => [...row, ...new Array<number>(width - row.length).fill(0)])), [
    rows.length,
    width,
  ]);
}
