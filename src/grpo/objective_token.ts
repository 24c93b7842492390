/**
 * The token-level objectives, under TRL's names: one function per published equation. All are to be maximised (TRL's
 * losses are minus these).
 *
 * All end in a weighted sum over tokens. N completions make the step, |o_i| is the length of completion i, rho_it its
 * importance ratio at token t (or s_i, the same for all its tokens, at `ratioLevel` "sequence"), and
 * surr(rho, A) = min(rho A, clip(rho, 1 - low, 1 + high) A). The KL term -beta k_it is left out of the formulas below;
 * it stands beside surr, inside the sum.
 */
import * as ops from "../autograd/ops.ts";
import { constant, detach, type Variable } from "../autograd/variable.ts";
import { tensor } from "../tensor/tensor.ts";
import {
  advantageColumn,
  clippedSurrogate,
  importanceRatio,
  maskedTokens,
  weightedSum,
  type Batch,
  type Objective,
  type ObjectiveOptions,
  type StepTotals,
} from "./objective_parts.ts";

/** Ratios and clipped surrogates: what grpo, bnpo, dapo and dr_grpo share. */
function surrogates(
  batch: Batch,
  { clip, delta, ratioLevel }: ObjectiveOptions,
): { ratio: Variable; policy: Variable } {
  const ratio = importanceRatio(batch, ratioLevel);
  return { ratio, policy: clippedSurrogate(ratio, advantageColumn(batch), clip, delta) };
}

/**
 * J = 1/N sum_i 1/|o_i| sum_t surr(rho_it, A_i): DeepSeekMath (Shao et al. 2024, equation 3).
 * Normaliser: the mean of each completion, then the mean over completions. Short completions weigh more per token.
 */
export function grpoObjective(batch: Batch, options: ObjectiveOptions, { sequences }: StepTotals): Objective {
  const { ratio, policy } = surrogates(batch, options);
  return weightedSum(batch, policy, ratio, (length) => 1 / (sequences * length), options);
}

/**
 * J = sum_i sum_t surr(rho_it, A_i) / sum_i |o_i|: DAPO (Yu et al. 2025, equation 8), and nano-rl's dapo of one group.
 * Normaliser: all tokens of the optimiser step (TRL's `num_items_in_batch`; the paper writes one prompt's group, and
 * its code does the same as TRL). Long completions weigh more.
 */
export function dapoObjective(batch: Batch, options: ObjectiveOptions, { tokens }: StepTotals): Objective {
  const { ratio, policy } = surrogates(batch, options);
  return weightedSum(batch, policy, ratio, () => 1 / tokens, options);
}

/**
 * The same sum divided by the tokens of the MICRO-BATCH, then averaged over micro-batches: TRL's `bnpo`.
 * The one normaliser that depends on how the step is split; equal to dapo when it is not.
 */
export function bnpoObjective(batch: Batch, options: ObjectiveOptions, { microBatches }: StepTotals): Objective {
  const { ratio, policy } = surrogates(batch, options);
  const localTokens = batch.mask.reduce((sum, row) => sum + maskedTokens(row), 0);
  return weightedSum(batch, policy, ratio, () => 1 / (microBatches * localTokens), options);
}

/**
 * J = sum_i sum_t surr(rho_it, A_i) / (N L), L = the longest completion allowed: Dr. GRPO (Liu et al. 2025),
 * which goes with advantages that are not divided by a deviation.
 * Normaliser: a constant, so that neither a completion's own length nor the others' changes its weight.
 */
export function drGrpoObjective(batch: Batch, options: ObjectiveOptions, step: StepTotals): Objective {
  const { ratio, policy } = surrogates(batch, options);
  return weightedSum(batch, policy, ratio, () => 1 / (step.sequences * step.maxTokens), options);
}

/**
 * J = 1/N sum_i surr(s_i, A_i), s_i = exp(1/|o_i| sum_t log-ratio_it): GSPO (Zheng et al. 2025, equations 5 and 7).
 * It clips completions, not tokens, and its ratios move little: ranges are near 3e-4 and 4e-4. TRL writes it as grpo
 * with `importance_sampling_level="sequence"`; so do we. Normaliser: the mean over completions.
 */
export function gspoObjective(batch: Batch, options: ObjectiveOptions, step: StepTotals): Objective {
  return grpoObjective(batch, { ...options, ratioLevel: "sequence" }, step);
}

/**
 * J = sum_i sum_t sg[min(rho_it, cap)] A_i log pi_theta(o_it) / sum_i |o_i|: CISPO (MiniMax-M1, 2025, equations 4 and
 * 5); sg stops the gradient. REINFORCE with a capped importance weight: no token ever loses its gradient. The cap is
 * `clip.high` itself, not 1 + high, and there is no lower bound, as TRL has it (5 is recommended).
 * Normaliser: all tokens of the optimiser step.
 */
export function cispoObjective(batch: Batch, options: ObjectiveOptions, { tokens }: StepTotals): Objective {
  const ratio = importanceRatio(batch, options.ratioLevel);
  const weight = ops.mul(ops.clamp(detach(ratio), 0, options.clip.high), advantageColumn(batch));
  return weightedSum(batch, ops.mul(weight, batch.logProbs), ratio, () => 1 / tokens, options);
}

/** SAPO's tau for A > 0 and for the rest: negative tokens fade a little sooner. The paper's values, and TRL's. */
const SAPO_TEMPERATURES = { positive: 1, other: 1.05 };

/**
 * J = 1/N sum_i 1/|o_i| sum_t f(rho_it) A_i, f(rho) = 4/tau sigmoid(tau (rho - 1)): SAPO (Gao et al. 2025), and
 * TRL's `sapo`. A soft clip: f'(1) = 1, and the gradient fades on both sides instead of stopping. f(1) is 2/tau, not 1,
 * so the value says even less than the others'. Normaliser: as grpo.
 */
export function sapoObjective(batch: Batch, options: ObjectiveOptions, { sequences }: StepTotals): Objective {
  const { advantages } = batch;
  const column = (values: number[]): Variable => constant(tensor(values, [values.length, 1]));
  const tau = advantages.map((advantage) => SAPO_TEMPERATURES[advantage > 0 ? "positive" : "other"]);
  const ratio = importanceRatio(batch, options.ratioLevel);
  // sigmoid(z) = (1 + tanh(z / 2)) / 2; no cancellation, since z >= -tau.
  const halfZ = ops.mul(ops.addScalar(ratio, -1), column(tau.map((t) => t / 2)));
  const scale = column(advantages.map((advantage, i) => (2 / tau[i]!) * advantage));
  const policy = ops.mul(ops.addScalar(ops.tanh(halfZ), 1), scale);
  return weightedSum(batch, policy, ratio, (length) => 1 / (sequences * length), options);
}
