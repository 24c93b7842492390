/**
 * log pi(o_t | q, o_<t): the log-probabilities of completions that are already there, under any policy, with or without
 * gradients. The mask comes from what the sampler drew, never from token values.
 *
 * Departs from the textbook, which runs one padded row of prompt and completion per completion. Here nothing is
 * computed twice and nothing is padded: the sequences are one row, a tree of their prefixes (prefix_tree.ts), in which
 * the prompt of a group, and whatever else sequences begin with, appears once, forward and backward. The last token of
 * a completion is not in it: its hidden state would predict what nobody has drawn. Only states that predict completion
 * tokens meet the output head, equal predictions once.
 */
import * as ops from "../autograd/ops.ts";
import type { Variable } from "../autograd/variable.ts";
import { frozen, headWeight, hiddenStates, type Gpt } from "../model/gpt.ts";
import { IGNORE } from "../tensor/cross_entropy.ts";
import { tokenIds } from "../tensor/embedding.ts";
import { scopeAsync } from "../tensor/memory.ts";
import { read, tensor } from "../tensor/tensor.ts";
import { prefixTree, treeParts } from "./prefix_tree.ts";
import type { Experience } from "./rollout.ts";

/** What this file needs to know of an experience. */
type Completion = Pick<Experience, "promptIds" | "completionIds">;

/** Tokens that `readLogProbs` runs together: there may be many more rollouts than a gradient step has completions. */
export const MAX_TOKENS = 4096;

/** log pi(o_t | q, o_<t) of every completion token under `model`, a row per experience; no gradients. */
export async function readLogProbs(
  model: Gpt,
  experiences: readonly Completion[],
  temperature: number,
): Promise<number[][]> {
  const policy = frozen(model);
  const result: number[][] = [];
  for (const part of treeParts(experiences.map(tokensToRun), MAX_TOKENS)) {
    const values = await scopeAsync(async () => {
      const { logProbs } = completionLogProbs(policy, part.map((i) => experiences[i]!), { temperature });
      return read(logProbs.value);
    });
    const longest = values.length / part.length;
    part.forEach((i, row) => {
      result[i] = [...values.subarray(row * longest, row * longest + experiences[i]!.completionIds.length)];
    });
  }
  return result;
}

/**
 * log pi(o_t | q, o_<t) of every completion token, [N, T], 0 where a completion is shorter than the longest; and the
 * entropies of the distributions they were drawn from, [N * T].
 */
export function completionLogProbs(
  model: Gpt,
  experiences: readonly Completion[],
  { temperature, gradientCheckpointing = false }: { temperature: number; gradientCheckpointing?: boolean },
): { logProbs: Variable; entropy: Variable } {
  const { ids, positions, ends, places } = prefixTree(experiences.map(tokensToRun));
  const row = [1, ids.length];
  const hidden = hiddenStates(model, tokenIds(ids, row), {
    positions: tokenIds(positions, row),
    keyEnd: tensor(Uint32Array.from(ends), row),
    checkpointLayers: gradientCheckpointing,
  });

  // The hidden state at one place predicts one target; number 0 is padding, whose results and gradient are 0.
  const predictions = [{ place: 0, target: IGNORE }];
  const numbers = new Map<string, number>();
  const numberOf = (place: number, target: number): number => {
    const key = `${place} ${target}`;
    const known = numbers.get(key);
    if (known !== undefined) return known;
    numbers.set(key, predictions.length);
    return predictions.push({ place, target }) - 1;
  };
  const longest = Math.max(...experiences.map(({ completionIds }) => completionIds.length));
  const padded = experiences.flatMap(({ promptIds, completionIds }, i) =>
    Array.from({ length: longest }, (_, t) => {
      // Completion token t is predicted by the token before it: that of position prompt length - 1 + t.
      return t < completionIds.length ? numberOf(places[i]![promptIds.length - 1 + t]!, completionIds[t]!) : 0;
    }),
  );

  // Picking rows of a matrix is what an embedding does: hidden states by place, and results by prediction.
  const picked = ops.embedding(hidden, tokenIds(predictions.map(({ place }) => place)));
  const targets = tensor(Uint32Array.from(predictions, ({ target }) => target));
  const { logProbs, entropy } = ops.tokenLogProb(picked, headWeight(model), targets, { temperature });
  const pad = (x: Variable): Variable => ops.embedding(ops.reshape(x, [-1, 1]), tokenIds(padded));
  return {
    logProbs: ops.reshape(pad(logProbs), [experiences.length, longest]),
    entropy: ops.reshape(pad(entropy), [-1]),
  };
}

/** The tokens whose hidden states predict a completion token, and those before them. */
function tokensToRun({ promptIds, completionIds }: Completion): number[] {
  return [...promptIds, ...completionIds.slice(0, -1)];
}
