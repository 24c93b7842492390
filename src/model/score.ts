/**
 * How likely a model finds a given text: log p(token t | tokens before t) for every token but the first.
 *
 * One forward pass over the text. The log-probabilities come straight from the hidden states, a chunk of rows at a
 * time (token_log_prob.ts), so the logits of a long text never exist all at once.
 */
import { NumericsError, UsageError } from "../cli.ts";
import { IGNORE } from "../tensor/cross_entropy.ts";
import { tokenIds } from "../tensor/embedding.ts";
import { scopeAsync } from "../tensor/memory.ts";
import { read, tensor } from "../tensor/tensor.ts";
import { tokenLogProb } from "../tensor/token_log_prob.ts";
import { arangePositions, frozen, headWeight, hiddenStates, type Gpt } from "./gpt.ts";
import { LengthError, NOT_FINITE } from "./sampler.ts";

/** A scored text. */
export interface Score {
  readonly ids: readonly number[];
  /** In nats at temperature 1; null for the first token, which nothing comes before. */
  readonly logProbs: readonly (number | null)[];
  /** Sum of the log-probabilities. */
  readonly total: number;
  /** exp(-mean log-probability): 1 is certainty, V a uniform guess. Null for a single token. */
  readonly perplexity: number | null;
}

/**
 * Scores one sequence of token ids. Equals `F.log_softmax(model(ids).logits[:-1], -1).gather(-1, ids[1:])`.
 * @throws LengthError for no ids, or more than the model has positions; UsageError for an id outside the vocabulary;
 * NumericsError when the model's logits are not finite.
 */
export async function scoreTokens(model: Gpt, ids: readonly number[]): Promise<Score> {
  const { vocabSize, maxPositions } = model.config;
  if (ids.length === 0) throw new LengthError("nothing to score: the text is empty");
  if (ids.length > maxPositions) {
    throw new LengthError(
      `${ids.length} tokens exceed the model's ${maxPositions} positions. Fix: score the text in shorter pieces`,
    );
  }
  const unknown = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (unknown !== undefined) throw new UsageError(`id ${unknown} is not in the model's vocabulary of ${vocabSize}`);
  const policy = frozen(model);
  const values = await scopeAsync(async () => {
    const hidden = hiddenStates(policy, tokenIds(ids, [1, ids.length]), { positions: arangePositions(1, ids.length) });
    // Row t predicts token t + 1; the last row has nothing to predict.
    const targets = tensor(Uint32Array.from(ids, (_, t) => ids[t + 1] ?? IGNORE));
    return read(tokenLogProb(hidden.value, headWeight(policy).value, targets).logProbs);
  });
  const known = [...values.subarray(0, ids.length - 1)];
  if (!known.every(Number.isFinite)) throw new NumericsError(NOT_FINITE);
  const total = known.reduce((sum, value) => sum + value, 0);
  return {
    ids,
    logProbs: [null, ...known],
    total,
    perplexity: known.length === 0 ? null : Math.exp(-total / known.length),
  };
}

/** A text to score: as text, or as token ids. */
export type ScoreInput = { readonly text: string } | { readonly ids: readonly number[] };

/**
 * What a file to score holds: plain text, or JSON: {"text": ...}, {"ids": [...]}, or an array of those. A file that is
 * not a JSON object or array is plain text, every character of it counts.
 * @throws UsageError when an item has neither, or both, of text and ids.
 */
export function parseScoreInput(content: string): ScoreInput | ScoreInput[] {
  let json: unknown;
  try {
    json = JSON.parse(content);
  } catch {
    return { text: content };
  }
  if (typeof json !== "object" || json === null) return { text: content };
  return Array.isArray(json) ? json.map((item, i) => scoreInput(item, `item ${i}`)) : scoreInput(json, "the object");
}

function scoreInput(value: unknown, name: string): ScoreInput {
  const { text, ids } = (value ?? {}) as { text?: unknown; ids?: unknown };
  if (typeof text === "string" && ids === undefined) return { text };
  if (Array.isArray(ids) && text === undefined && ids.every((id) => Number.isInteger(id))) {
    return { ids: ids as number[] };
  }
  throw new UsageError(`${name} to score must have either "text", a string, or "ids", an array of integers`);
}
