/**
 * Which tokens count, decided on the host: truncated completions, high-entropy tokens, off-policy completions; and the
 * entropy bonus, which acts on such tokens.
 *
 * The last two masks depend on numbers of the current forward pass (entropies, log-probabilities): whoever uses them
 * reads these back before the backward pass, one readback more per step. Rows are completions; arrays that come from
 * the GPU are flat, [N * T], row by row.
 */
import * as ops from "../autograd/ops.ts";
import { constant, type Variable } from "../autograd/variable.ts";
import { maskedTokens, padRows } from "./objective_parts.ts";

type Rows = readonly (readonly number[])[];

/**
 * 1 for every drawn token. With `maskTruncated`, completions cut at the token limit get zeros: their reward judges a
 * text that was not finished (DAPO's overlong filtering, TRL's `mask_truncated_completions`). Their rewards still count
 * in the group's mean, as in TRL.
 */
export function completionMask(
  completions: readonly { readonly length: number; readonly ended: boolean }[],
  { maskTruncated = false }: { maskTruncated?: boolean } = {},
): number[][] {
  return completions.map(({ length, ended }) => new Array<number>(length).fill(ended || !maskTruncated ? 1 : 0));
}

/**
 * 1 on the fraction `quantile` of tokens where the policy is least decided, 0 elsewhere: "Beyond the 80/20 rule" (Wang
 * et al. 2025; 0.2 there), TRL's `top_entropy_quantile`. The threshold is the (1 - quantile) quantile of the masked
 * tokens' entropies, between two entropies by linear interpolation (torch.quantile).
 */
export function highEntropyMask(entropies: ArrayLike<number>, mask: Rows, quantile: number): number[][] {
  const width = entropies.length / mask.length;
  const counted = mask.map((row, i) => row.flatMap((on, t) => (on === 0 ? [] : [entropies[i * width + t]!])));
  const sorted = counted.flat().sort((a, b) => a - b);
  const rank = (1 - quantile) * (sorted.length - 1);
  const [below, above] = [sorted[Math.floor(rank)]!, sorted[Math.ceil(rank)]!];
  const threshold = below + (rank - Math.floor(rank)) * (above - below);
  return mask.map((row, i) => row.map((value, t) => (value !== 0 && entropies[i * width + t]! >= threshold ? 1 : 0)));
}

/**
 * One number per completion: 0 where the policy has moved away from a completion that was bad anyway, else 1.
 * Moved away: the mean of log pi_sampler - log pi_theta over its tokens exceeds `threshold`; bad: A < 0.
 * DeepSeek-V3.2 (2025), TRL's `off_policy_mask_threshold`.
 */
export function offPolicyMask(
  advantages: readonly number[],
  logProbs: ArrayLike<number>,
  samplerLogProbs: Rows,
  mask: Rows,
  threshold: number,
): number[] {
  const width = logProbs.length / mask.length;
  return mask.map((row, i) => {
    const driftAt = (t: number): number => samplerLogProbs[i]![t]! - logProbs[i * width + t]!;
    const drift = row.reduce((sum, on, t) => (on === 0 ? sum : sum + driftAt(t)), 0);
    return advantages[i]! >= 0 || drift / Math.max(1, maskedTokens(row)) <= threshold ? 1 : 0;
  });
}

/**
 * The product of what weighs policy terms, as rows for `Batch.policyWeights` (by `padRows`). `samplerRatio` is
 * pi_old / pi_sampler per token, truncated as the caller likes: it corrects for a sampler whose probabilities are not
 * the trainer's (TRL's `importance_sampling_ratio`).
 */
export function policyWeightRows(
  mask: Rows,
  factors: {
    readonly offPolicy?: readonly number[] | undefined;
    readonly highEntropy?: Rows | undefined;
    readonly samplerRatio?: Rows | undefined;
  },
): number[][] {
  const { offPolicy, highEntropy, samplerRatio } = factors;
  return mask.map((row, i) =>
    row.map((_, t) => (offPolicy?.[i] ?? 1) * (highEntropy?.[i]?.[t] ?? 1) * (samplerRatio?.[i]?.[t] ?? 1)),
  );
}

/**
 * H = 1/count sum_i sum_t m_it entropy_it, to be added to an objective with a coefficient: a policy that stays
 * undecided goes on exploring. entropies [N, T]; `count` is the number of tokens of the step with mask 1, so that the
 * bonuses of its micro-batches add up to the step's mean entropy. With the mask of high-entropy tokens it acts on
 * those only.
 */
export function entropyBonus(entropies: Variable, mask: Rows, count: number): Variable {
  const weights = padRows(mask.map((row) => row.map((value) => value / Math.max(1, count))), entropies.value.shape[1]!);
  return ops.sum(ops.mul(entropies, constant(weights)));
}
