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
import { readAll, tensor, type Tensor } from "../tensor/tensor.ts";
import { groupAdvantages } from "./advantage.ts";
import type { TrainConfig } from "./config.ts";
import { evaluateObjective } from "./objective.ts";
import { padRows, wholeStep } from "./objective_parts.ts";
import type { Experience } from "./rollout.ts";

export interface UpdateResult {
  readonly objective: number;
  readonly gradNorm: number;
  readonly advantages: readonly number[];
  /** Importance ratios: one per completion, or one per completion token. */
  readonly ratios: readonly number[];
  /** The advantage that each ratio multiplies. */
  readonly ratioAdvantages: readonly number[];
  /** Mean entropy (nats) of the policy at the completion tokens. */
  readonly entropy: number;
}

/** Maximises the objective of one group by one AdamW step. Reads back once. */
export async function gradientStep(
  model: Gpt,
  optimizer: AdamW,
  group: readonly Experience[],
  learningRate: number,
  config: Pick<TrainConfig, "objective" | "delta" | "epsilon" | "epsilonHigh" | "temperature">,
): Promise<UpdateResult> {
  const advantages = groupAdvantages(
    group.map(({ reward }) => reward),
    config.delta,
  );
  const lengths = group.map(({ completionIds }) => completionIds.length);
  const tokens = lengths.reduce((sum, length) => sum + length, 0);
  const longest = Math.max(...lengths);
  const [objective, gradNorm, ratios, entropy] = await scopeAsync(async () => {
    const policy = completionLogProbs(model, group, config.temperature);
    const batch = {
      logProbs: policy.logProbs,
      oldLogProbs: padRows(
        group.map(({ logProbs }) => logProbs),
        longest,
      ),
      mask: lengths.map((length) => new Array<number>(length).fill(1)),
      advantages,
    };
    const options = { clip: { low: config.epsilon, high: config.epsilonHigh } };
    const { value, ratio } = evaluateObjective(config.objective, batch, options, wholeStep(batch, longest));
    backward(value);
    const { gradNorm: norm } = optimizer.step(learningRate);
    zeroGrad(model.parameters.values());
    return (await readAll([value.value, norm, ratio, policy.entropy])) as Float32Array[];
  });
  const perToken = ratios!.length > group.length;
  const isReal = (i: number): boolean => !perToken || i % longest < lengths[Math.floor(i / longest)]!;
  const owner = (i: number): number => (perToken ? Math.floor(i / longest) : i);
  const real = [...ratios!.keys()].filter(isReal);
  return {
    objective: objective![0]!,
    gradNorm: gradNorm![0]!,
    advantages,
    ratios: real.map((i) => ratios![i]!),
    ratioAdvantages: real.map((i) => advantages[owner(i)]!),
    entropy: entropy!.reduce((sum, value) => sum + value, 0) / tokens,
  };
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
  const values = await scopeAsync(async () => {
    const { logProbs } = completionLogProbs(frozen(model), experiences, temperature);
    return (await readAll([logProbs.value]))[0] as Float32Array;
  });
  const longest = values.length / experiences.length;
  const gaps = experiences.flatMap(({ logProbs }, row) =>
    logProbs.map((value, i) => Math.abs(value - values[row * longest + i]!)),
  );
  return { mean: gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length, max: Math.max(...gaps) };
}

/** log pi(o_t | q, o_<t) of every completion token, [G, T], 0 where a completion is shorter; and entropies [G * T]. */
function completionLogProbs(
  model: Gpt,
  group: readonly Experience[],
  temperature: number,
): { logProbs: Variable; entropy: Tensor } {
  const sequences = group.map(({ promptIds, completionIds }) => [...promptIds, ...completionIds]);
  const time = Math.max(...sequences.map(({ length }) => length));
  const longest = Math.max(...group.map(({ completionIds }) => completionIds.length));
  // Padding on the right: causal attention never shows it to a real token.
  const ids = sequences.flatMap((sequence) => [...sequence, ...new Array<number>(time - sequence.length).fill(0)]);
  const hidden = hiddenStates(model, tokenIds(ids, [group.length, time]), {
    positions: arangePositions(group.length, time),
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
