/**
 * One gradient step: log-probabilities of a group's completions under the current policy, objective, backward, AdamW.
 *
 * Only completion tokens meet the output head: their hidden states are picked out first. The mask comes from what the
 * sampler drew, never from token values.
 */
import type { AdamW } from "../autograd/adamw.ts";
import { backward, zeroGrad } from "../autograd/backward.ts";
import * as ops from "../autograd/ops.ts";
import type { Variable } from "../autograd/variable.ts";
import { frozen, arangePositions, headWeight, hiddenStates, type Gpt } from "../model/gpt.ts";
import { IGNORE } from "../tensor/cross_entropy.ts";
import { tokenIds } from "../tensor/embedding.ts";
import { scopeAsync } from "../tensor/memory.ts";
import { read, readAll, tensor, type Tensor } from "../tensor/tensor.ts";
import { advantages } from "./advantage.ts";
import { objectiveOptions, type TrainConfig } from "./config.ts";
import { lossMetrics } from "./loss_metrics.ts";
import { evaluateObjective } from "./objective.ts";
import { completionMask } from "./objective_masks.ts";
import { padRows, wholeStep } from "./objective_parts.ts";
import type { Experience } from "./rollout.ts";

export interface UpdateResult {
  readonly objective: number;
  readonly gradNorm: number;
  /** Ratios, clipping, entropy and KL of the step: see `lossMetrics`. Empty when no completion was trained on. */
  readonly metrics: Readonly<Record<string, number>>;
}

/** What `gradientStep` needs to know of a run. */
export type UpdateConfig = Pick<
  TrainConfig,
  | "objective" | "epsilon" | "epsilonHigh" | "delta" | "ratioLevel" | "beta" | "klEstimator"
  | "maskTruncated" | "maxRolloutTokens" | "temperature" | "gradientCheckpointing"
>;

/**
 * Maximises the objective of one group by one AdamW step; `groupAdvantages` holds A_i of each of its completions. With
 * a KL term (beta > 0) the experiences must carry reference log-probabilities. Reads back once.
 */
export async function gradientStep(
  model: Gpt,
  optimizer: AdamW,
  group: readonly Experience[],
  groupAdvantages: readonly number[],
  learningRate: number,
  config: UpdateConfig,
): Promise<UpdateResult> {
  const completions = group.map(({ completionIds, ended }) => ({ length: completionIds.length, ended }));
  const mask = completionMask(completions, config);
  const longest = Math.max(...completions.map(({ length }) => length));
  const options = objectiveOptions(config);
  return scopeAsync(async () => {
    const policy = completionLogProbs(model, group, config);
    const batch = {
      logProbs: policy.logProbs,
      oldLogProbs: padRows(group.map(({ logProbs }) => logProbs), longest),
      ...(options.kl ? { referenceLogProbs: padRows(group.map(referenceOf), longest) } : {}),
      mask,
      advantages: groupAdvantages,
    };
    const step = wholeStep(batch, config.maxRolloutTokens);
    const { value, ratio, kl } = evaluateObjective(config.objective, batch, options, step);
    backward(value);
    const { gradNorm: norm } = optimizer.step(learningRate);
    zeroGrad(model.parameters.values());
    const outputs = [value.value, norm, ratio, policy.entropy, ...(kl ? [kl] : [])];
    const [objective, gradNorm, ratios, entropies, kls = null] = (await readAll(outputs)) as Float32Array[];
    const readback = { ratio: ratios!, kl: kls, entropies: entropies! };
    return {
      objective: objective![0]!,
      gradNorm: gradNorm![0]!,
      metrics: step.tokens === 0 ? {} : lossMetrics(config.objective, readback, batch, options),
    };
  });
}

function referenceOf({ referenceLogProbs }: Experience): readonly number[] {
  if (!referenceLogProbs) throw new Error("a KL term (beta > 0) needs experiences with reference log-probabilities");
  return referenceLogProbs;
}

/**
 * A_i of the completions of `group`, a part of the replay buffer's `experiences`: baseline and deviation within the
 * group, or at `scaleRewards` "batch" the deviation of all rewards in the buffer, which is steadier than that of a few.
 */
export function advantagesOf(
  group: readonly Experience[],
  experiences: readonly Experience[],
  { baseline, scaleRewards, advantageEpsilon }: Pick<TrainConfig, "baseline" | "scaleRewards" | "advantageEpsilon">,
): readonly number[] {
  const others = experiences.filter((experience) => !group.includes(experience));
  const rewards = [group, others].map((part) => part.map(({ reward }) => reward));
  return advantages(rewards, { baseline, scale: scaleRewards, delta: advantageEpsilon })[0]!;
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
  return { mean: gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length, max: Math.max(...gaps) };
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

/** Tokens that `readLogProbs` runs together: there may be many more rollouts than a gradient step has rows. */
const MAX_TOKENS = 4096;

/** log pi(o_t | q, o_<t) of every completion token under `model`, a row per experience; no gradients. */
export async function readLogProbs(
  model: Gpt,
  experiences: readonly Experience[],
  temperature: number,
): Promise<number[][]> {
  const policy = frozen(model);
  const time = Math.max(...experiences.map(({ promptIds, completionIds }) => promptIds.length + completionIds.length));
  const rowsAtOnce = Math.max(1, Math.floor(MAX_TOKENS / time));
  const result: number[][] = [];
  for (let start = 0; start < experiences.length; start += rowsAtOnce) {
    const part = experiences.slice(start, start + rowsAtOnce);
    const values = await scopeAsync(async () => {
      const { logProbs } = completionLogProbs(policy, part, { temperature, gradientCheckpointing: false });
      return read(logProbs.value);
    });
    const longest = values.length / part.length;
    part.forEach(({ completionIds }, row) => {
      result.push([...values.subarray(row * longest, row * longest + completionIds.length)]);
    });
  }
  return result;
}

/** log pi(o_t | q, o_<t) of every completion token, [G, T], 0 where a completion is shorter; and entropies [G * T]. */
function completionLogProbs(
  model: Gpt,
  group: readonly Experience[],
  { temperature, gradientCheckpointing }: Pick<TrainConfig, "temperature" | "gradientCheckpointing">,
): { logProbs: Variable; entropy: Tensor } {
  const sequences = group.map(({ promptIds, completionIds }) => [...promptIds, ...completionIds]);
  const time = Math.max(...sequences.map(({ length }) => length));
  const longest = Math.max(...group.map(({ completionIds }) => completionIds.length));
  // Padding on the right: causal attention never shows it to a real token.
  const ids = sequences.flatMap((sequence) => [...sequence, ...new Array<number>(time - sequence.length).fill(0)]);
  const hidden = hiddenStates(model, tokenIds(ids, [group.length, time]), {
    positions: arangePositions(group.length, time),
    checkpointLayers: gradientCheckpointing,
  });
  // The hidden state at position t predicts token t + 1: completion token i is predicted at prompt length - 1 + i.
  const rows: number[] = [];
  const targets: number[] = [];
  group.forEach(({ promptIds, completionIds }, row) => {
    for (let i = 0; i < longest; i++) {
      const isReal = i < completionIds.length;
      rows.push(row * time + (isReal ? promptIds.length - 1 + i : 0));
      targets.push(isReal ? completionIds[i]! : IGNORE);
    }
  });
  const picked = ops.embedding(hidden, tokenIds(rows)); // picking rows of a matrix is what an embedding does
  const { logProbs, entropy } = ops.tokenLogProb(picked, headWeight(model), tensor(Uint32Array.from(targets)), {
    temperature,
  });
  return { logProbs: ops.reshape(logProbs, [group.length, longest]), entropy: entropy.value };
}
