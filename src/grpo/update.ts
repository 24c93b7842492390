/**
 * One gradient step: log-probabilities of the drawn completions under the current policy, objective, backward, AdamW.
 *
 * Gradient accumulation: the completions go through the model in micro-batches, and what their sums are divided by
 * belongs to the whole step, so the split changes nothing however uneven the lengths are. Two things are defined by
 * micro-batch: bnpo's divisor, and the threshold of `--top-entropy-quantile`.
 */
import type { AdamW } from "../autograd/adamw.ts";
import { backward, zeroGrad } from "../autograd/backward.ts";
import * as ops from "../autograd/ops.ts";
import type { Variable } from "../autograd/variable.ts";
import type { Gpt } from "../model/gpt.ts";
import { scopeAsync } from "../tensor/memory.ts";
import { readAll, type Tensor } from "../tensor/tensor.ts";
import { advantages, average, decoupledAdvantages, greatest, type AdvantageOptions } from "./advantage.ts";
import { completionLogProbs, readLogProbs } from "./completion_log_probs.ts";
import { objectiveOptions, type TrainConfig } from "./config.ts";
import { lossMetrics, type LossReadback } from "./loss_metrics.ts";
import { evaluateObjective } from "./objective.ts";
import { completionMask, entropyBonus, highEntropyMask, offPolicyMask, policyWeightRows } from "./objective_masks.ts";
import { padRows, wholeStep, type Batch, type StepTotals } from "./objective_parts.ts";
import type { Experience } from "./rollout.ts";

export interface UpdateResult {
  readonly objective: number;
  /** Before clipping. Not finite: the step changed no weight and no moment (see adamw.ts). */
  readonly gradNorm: number;
  /** Ratios, clipping, entropy and KL of the step: see `lossMetrics`. Empty when no completion was trained on. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** What `gradientStep` needs to know of a run. */
export type UpdateConfig = Pick<
  TrainConfig,
  | "objective" | "epsilon" | "epsilonHigh" | "delta" | "ratioLevel" | "beta" | "klEstimator"
  | "klBiasCorrection" | "maskTruncated" | "entropyBonus" | "topEntropyQuantile" | "offPolicyThreshold"
  | "maxRolloutTokens" | "temperature" | "microBatch" | "gradientCheckpointing"
>;

/**
 * Maximises the objective of some completions by one AdamW step; `completionAdvantages` holds A_i of each of them. With
 * a KL term (beta > 0) the experiences must carry reference log-probabilities. Reads back once per micro-batch, and once
 * more where masks depend on the current policy.
 */
export async function gradientStep(
  model: Gpt,
  optimizer: AdamW,
  experiences: readonly Experience[],
  completionAdvantages: readonly number[],
  learningRate: number,
  config: UpdateConfig,
): Promise<UpdateResult> {
  const completions = experiences.map(({ completionIds, ended }) => ({ length: completionIds.length, ended }));
  const mask = completionMask(completions, config);
  const size = Math.min(config.microBatch, experiences.length);
  const microBatches = Math.ceil(experiences.length / size);
  const step = { ...wholeStep({ mask }, config.maxRolloutTokens), microBatches };

  const applyGradients = (): Tensor => {
    const { gradNorm } = optimizer.step(learningRate);
    zeroGrad(model.parameters.values());
    return gradNorm;
  };
  const parts: MicroBatchResult[] = [];
  for (let start = 0; start < experiences.length; start += size) {
    const rows = <T>(all: readonly T[]): readonly T[] => all.slice(start, start + size);
    const finish = start + size >= experiences.length ? applyGradients : null;
    parts.push(
      await microBatch(model, rows(experiences), rows(mask), rows(completionAdvantages), step, config, finish),
    );
  }

  const readback = joinReadbacks(parts);
  const options = objectiveOptions(config);
  return {
    objective: parts.reduce((sum, { objective }) => sum + objective, 0),
    gradNorm: parts.at(-1)!.finished!,
    metrics: step.tokens === 0
      ? {}
      : lossMetrics(config.objective, readback, { mask, advantages: completionAdvantages }, options),
  };
}

interface MicroBatchResult extends LossReadback {
  readonly objective: number;
  /** Completions. */
  readonly rows: number;
  /** What `finish` gave; null without it. */
  readonly finished: number | null;
}

/**
 * Forward and backward of some of a step's completions: adds to the parameters' gradients. `finish` follows backward
 * within the same submission, so that its result [1] is read back with the others.
 */
async function microBatch(
  model: Gpt,
  experiences: readonly Experience[],
  mask: readonly (readonly number[])[],
  completionAdvantages: readonly number[],
  step: StepTotals,
  config: UpdateConfig,
  finish: (() => Tensor) | null,
): Promise<MicroBatchResult> {
  const longest = Math.max(...experiences.map(({ completionIds }) => completionIds.length));
  const options = objectiveOptions(config);
  return scopeAsync(async () => {
    const policy = completionLogProbs(model, experiences, config);
    const weights = await policyWeights(policy, experiences, mask, completionAdvantages, config);
    const batch: Batch = {
      logProbs: policy.logProbs,
      oldLogProbs: padRows(experiences.map(({ logProbs }) => logProbs), longest),
      ...(options.kl ? { referenceLogProbs: padRows(experiences.map(referenceOf), longest) } : {}),
      ...(weights ? { policyWeights: padRows(weights, longest) } : {}),
      mask,
      advantages: completionAdvantages,
    };
    const { value, ratio, kl } = evaluateObjective(config.objective, batch, options, step);
    let total = value;
    if (config.entropyBonus > 0) {
      const entropies = ops.reshape(policy.entropy, policy.logProbs.value.shape);
      total = ops.add(value, ops.mulScalar(entropyBonus(entropies, mask, step.tokens), config.entropyBonus));
    }
    backward(total);
    const finished = finish?.() ?? null;
    const outputs = [total.value, ratio, policy.entropy.value, ...(finished ? [finished] : []), ...(kl ? [kl] : [])];
    const [objective, ratios, entropies, ...rest] = (await readAll(outputs)) as Float32Array[];
    return {
      objective: objective![0]!,
      ratio: ratios!,
      entropies: entropies!,
      finished: finished ? rest.shift()![0]! : null,
      kl: rest[0] ?? null,
      rows: experiences.length,
    };
  });
}

/** What weighs each token's policy term; null when nothing does. */
async function policyWeights(
  policy: { logProbs: Variable; entropy: Variable },
  experiences: readonly Experience[],
  mask: readonly (readonly number[])[],
  completionAdvantages: readonly number[],
  { topEntropyQuantile, offPolicyThreshold }: UpdateConfig,
): Promise<number[][] | null> {
  if (topEntropyQuantile === 1 && offPolicyThreshold === undefined) return null;
  const [logProbs, entropies] = await readAll([policy.logProbs.value, policy.entropy.value]);
  const drawn = experiences.map((experience) => experience.logProbs);
  return policyWeightRows(mask, {
    highEntropy: topEntropyQuantile < 1 ? highEntropyMask(entropies!, mask, topEntropyQuantile) : undefined,
    offPolicy:
      offPolicyThreshold === undefined
        ? undefined
        : offPolicyMask(completionAdvantages, logProbs!, drawn, mask, offPolicyThreshold),
  });
}

function referenceOf({ referenceLogProbs }: Experience): readonly number[] {
  if (!referenceLogProbs) throw new Error("a KL term (beta > 0) needs experiences with reference log-probabilities");
  return referenceLogProbs;
}

/** Micro-batches have rows of different length: the joint readback has those of the longest. */
function joinReadbacks(parts: readonly MicroBatchResult[]): LossReadback {
  const width = Math.max(...parts.map(({ entropies, rows }) => entropies.length / rows));
  const joined = (pick: (part: MicroBatchResult) => ArrayLike<number>): number[] =>
    parts.flatMap((part) => {
      const values = Array.from(pick(part));
      const own = values.length / part.rows;
      // One number per completion stays one number.
      const target = own === part.entropies.length / part.rows ? width : own;
      return Array.from({ length: part.rows * target }, (_, i) =>
        i % target < own ? values[Math.floor(i / target) * own + (i % target)]! : 0,
      );
    });
  const hasKl = parts.every(({ kl }) => kl !== null);
  return {
    ratio: joined(({ ratio }) => ratio),
    entropies: joined(({ entropies }) => entropies),
    kl: hasKl ? joined(({ kl }) => kl!) : null,
  };
}

/**
 * A_i of the completions of some groups, in their order. `others` are rewarded completions that take part in the
 * deviation of a "batch" (the replay buffer's): steadier than that of a few.
 */
export function advantagesOf(
  groups: readonly (readonly Experience[])[],
  experiences: readonly Experience[],
  config: Pick<
    TrainConfig,
    "baseline" | "scaleRewards" | "advantageEpsilon" | "advantageDdof" | "rewardAggregation"
  >,
  weights: readonly number[] = [],
): readonly number[] {
  const options: AdvantageOptions = {
    baseline: config.baseline,
    scale: config.scaleRewards,
    delta: config.advantageEpsilon,
    ddof: config.advantageDdof,
  };
  if (config.rewardAggregation === "normalize-then-sum") {
    const rewards = groups.map((group) => group.map((experience) => experience.rewards));
    return decoupledAdvantages(rewards, weights, { delta: config.advantageEpsilon, ddof: config.advantageDdof }).flat();
  }
  const drawn = new Set(groups.flat());
  const others = experiences.filter((experience) => !drawn.has(experience));
  const rewards = [...groups, others].map((group) => group.map(({ reward }) => reward));
  return advantages(rewards, options).slice(0, groups.length).flat();
}

/**
 * Largest and mean |log p - log p| between sampler and trainer on the same weights and tokens. Cached decoding and the
 * full forward pass compute the same numbers in another order: anything above float32 noise is a bug in one of them.
 */
export async function logProbGap(
  model: Gpt,
  experiences: readonly Experience[],
  temperature: number,
): Promise<{ mean: number; max: number }> {
  const values = await readLogProbs(model, experiences, temperature);
  const gaps = experiences.flatMap(({ logProbs }, row) =>
    logProbs.map((value, i) => Math.abs(value - values[row]![i]!)),
  );
  return { mean: average(gaps), max: greatest(gaps) };
}

/** The experiences with log pi_ref of their tokens: computed once, though they may be in many groups. */
export async function withReference(
  reference: Gpt,
  experiences: readonly Experience[],
  temperature: number,
): Promise<Experience[]> {
  const values = await readLogProbs(reference, experiences, temperature);
  return experiences.map((experience, row) => ({ ...experience, referenceLogProbs: values[row]! }));
}
