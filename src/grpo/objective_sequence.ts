/**
 * The objectives that take a completion as one action: its log-probability is the SUM over its tokens. All are to be
 * maximised; the normaliser of all three is the number of completions of the step.
 */
import * as ops from "../autograd/ops.ts";
import { constant } from "../autograd/variable.ts";
import { tensor } from "../tensor/tensor.ts";
import {
  advantageColumn,
  clippedSurrogate,
  importanceRatio,
  klEstimate,
  logRatio,
  maskedTokens,
  referenceLogRatio,
  weightedSum,
  type Batch,
  type Objective,
  type ObjectiveOptions,
  type StepTotals,
} from "./objective_parts.ts";

/**
 * J = 1/N sum_i ( min(rho_i A_i, clip(rho_i) A_i) - beta k(o_i) ) with ONE ratio per completion, rho_i = exp(sum_t
 * log-ratio_it), and one KL estimate from the completion's log-probabilities: GRPO as written in the DeepSeek-R1 paper
 * (2025, equations 1 and 2), and as nano-rl runs it. A completion left out (a mask of zeros) adds nothing.
 */
export function sequenceObjective(batch: Batch, options: ObjectiveOptions, { sequences }: StepTotals): Objective {
  const { clip, delta, kl: klOptions } = options;
  const ratio = ops.exp(ops.sum(logRatio(batch), [1]));
  let terms = clippedSurrogate(ratio, constant(tensor([...batch.advantages])), clip, delta);
  let kl = null;
  if (klOptions && klOptions.beta !== 0) {
    kl = klEstimate(ops.sum(referenceLogRatio(batch), [1]), klOptions.estimator);
    if (klOptions.biasCorrection) kl = ops.mul(kl, ratio);
    terms = ops.sub(terms, ops.mulScalar(kl, klOptions.beta));
  }
  const weights = tensor(batch.mask.map((row) => (maskedTokens(row) > 0 ? 1 / sequences : 0)));
  return { value: ops.sum(ops.mul(terms, constant(weights))), ratio: ratio.value, kl: kl && kl.value };
}

/**
 * RLOO with a clipped ratio (Ahmadian et al. 2024; TRL's RLOOTrainer): the sequence objective with leave-one-out
 * advantages (`advantages(groups, { baseline: "leave-one-out", scale: "none" })`). TRL subtracts its KL from the
 * reward; here it is a term of the objective.
 */
export function rlooObjective(batch: Batch, options: ObjectiveOptions, step: StepTotals): Objective {
  return sequenceObjective(batch, options, step);
}

/**
 * J = 1/N sum_i A_i sum_t log pi_theta(o_it): REINFORCE (Williams 1992), and nano-rl's. No ratio and no clip, so it is
 * for fresh completions only: nothing holds back a step that goes too far. With advantages r_i (baseline "none") it is
 * the textbook's. KL estimates are per token and summed like the log-probabilities.
 */
export function reinforceObjective(batch: Batch, options: ObjectiveOptions, { sequences }: StepTotals): Objective {
  const policy = ops.mul(advantageColumn(batch), batch.logProbs);
  return weightedSum(batch, policy, importanceRatio(batch), () => 1 / sequences, options);
}
