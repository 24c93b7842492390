/**
 * Batched decoding: prompts in, sampled completions with their log-probabilities out.
 *
 * Each distinct prompt is run once (prefill); its keys and values are copied to all of its samples. Then one forward
 * pass per token serves every row. Sampling, end-of-text and positions live on the GPU, so the host reads back only
 * every few tokens, and a step is put together once and repeated for the tokens that follow (`capture`). In between,
 * rows that have ended go on computing, unrecorded; after a readback they are dropped, as soon as that halves the
 * batch. What is drawn does not depend on any of it.
 */
import { constant } from "../autograd/variable.ts";
import { capture, disposeCapture, replay, type Capture } from "../tensor/capture.ts";
import { gpu } from "../tensor/device.ts";
import { embedding, tokenIds, type TokenIds } from "../tensor/embedding.ts";
import {
  copyCachePrefix,
  createKvCache,
  disposeKvCache,
  firstCacheRows,
  moveCacheRows,
  type KvCache,
} from "../tensor/kv_cache.ts";
import { scope, scopeAsync } from "../tensor/memory.ts";
import { sample, type KeptTokens, type SamplerState } from "../tensor/sample.ts";
import { readAll, reshape, tensor, type Tensor } from "../tensor/tensor.ts";
import { arangePositions, frozen, hiddenStates, logits, type Gpt } from "./gpt.ts";

export interface SamplingOptions extends KeptTokens {
  /** Longest completion in tokens, the end token included. */
  readonly maxNewTokens: number;
  /** Divides the logits; 0 takes the most likely token. */
  readonly temperature: number;
  /** A u32. Together with prompt, sample number and position it determines every random number. */
  readonly seed: number;
  /** Tokens that end a completion; they are part of it. */
  readonly endIds: readonly number[];
  /**
   * Number of the first sample of each prompt (default 0): later calls continue where earlier ones stopped. Where a
   * prompt comes again in one call, its numbers go on after those of its first place.
   */
  readonly firstSample?: number;
  /** Tokens drawn between two readbacks (default 8; on a CPU, where a readback costs less than a token, 2). */
  readonly tokensPerReadback?: number;
  /** Called after each readback with each row's tokens so far; for streaming. */
  readonly onTokens?: (rows: readonly (readonly number[])[]) => void;
  /** Once aborted, nothing more is drawn after the next readback; what was drawn by then is the result. */
  readonly signal?: AbortSignal;
}

export interface Completion {
  /** Sampled ids, the end token included if one was drawn. */
  readonly tokens: readonly number[];
  /**
   * log p(token) under the distribution each token was drawn from: logits divided by the temperature, restricted to the
   * tokens that top-k and top-p keep, renormalised. Greedy: temperature 1, all tokens.
   */
  readonly logProbs: readonly number[];
  /** Whether an end token was drawn; otherwise the completion was cut at `maxNewTokens` or by the signal. */
  readonly ended: boolean;
}

/** What to say when a log-probability is NaN: the drawn tokens mean nothing then. */
export const NOT_FINITE = "the model's logits are not finite. Fix: check the weights given to --model";

/** A prompt that leaves no room for its completion, or is empty. */
export class LengthError extends RangeError {
  override name = "LengthError";
}

/** @throws LengthError for an empty prompt, or when a prompt and its completion exceed the model's positions. */
export function checkLengths(
  { config }: Pick<Gpt, "config">,
  prompts: readonly (readonly number[])[],
  maxNewTokens: number,
): void {
  if (prompts.length === 0 || prompts.some(({ length }) => length === 0)) {
    throw new LengthError("empty prompt. Fix: give it at least one token to go on from");
  }
  const longest = Math.max(...prompts.map(({ length }) => length));
  if (longest + maxNewTokens > config.maxPositions) {
    throw new LengthError(
      `${longest} prompt tokens and ${maxNewTokens} new ones exceed the model's ${config.maxPositions} positions. ` +
        "Fix: a shorter prompt or fewer new tokens (--max-tokens)",
    );
  }
}

/**
 * Draws `samples` completions of every prompt: result[prompt][sample].
 * @throws LengthError for an empty prompt, or when prompt and completion exceed the model's positions.
 */
export async function sampleCompletions(
  model: Gpt,
  prompts: readonly (readonly number[])[],
  samples: number,
  options: SamplingOptions,
): Promise<Completion[][]> {
  const { config } = model;
  const { maxNewTokens, firstSample = 0 } = options;
  checkLengths(model, prompts, maxNewTokens);
  const longest = Math.max(...prompts.map(({ length }) => length));
  const policy = frozen(model);
  const rowPrompt = prompts.flatMap((_, prompt) => new Array<number>(samples).fill(prompt));
  const repeats = repeatsOf(prompts);
  const rows = rowPrompt.map((prompt, row) => ({
    prompt: prompts[prompt]!,
    sample: firstSample + repeats[prompt]! * samples + (row % samples),
  }));
  const cache = createKvCache(config.layers, { ...config, batch: rows.length, capacity: longest + maxNewTokens });
  try {
    const first = (): Tensor => prefill(policy, prompts, rowPrompt, cache, longest);
    const result = await drawTokens(policy, cache, rows, first, options);
    return prompts.map((_, prompt) => result.slice(prompt * samples, (prompt + 1) * samples));
  } finally {
    disposeKvCache(cache);
  }
}

/** How many equal prompts stand before each: their samples come first in the prompt's stream of random numbers. */
export function repeatsOf(prompts: readonly (readonly number[])[]): number[] {
  const seen = new Map<number, number>();
  return prompts.map(promptStream).map((stream) => {
    const before = seen.get(stream) ?? 0;
    seen.set(stream, before + 1);
    return before;
  });
}

/** One row of a batch: its prompt, and the number of this sample among those of the same prompt. */
export interface SampleRow {
  readonly prompt: readonly number[];
  readonly sample: number;
}

/**
 * The decoding loop. `firstLogits` fills `cache` with the keys and values of each row's prompt and returns the logits
 * [rows, V] that follow it. The cache must hold maxNewTokens more; of several rows, those that end last may move to
 * other rows of it.
 */
export async function drawTokens(
  policy: Gpt,
  cache: KvCache,
  rows: readonly SampleRow[],
  firstLogits: () => Tensor,
  options: SamplingOptions,
): Promise<Completion[]> {
  const { maxNewTokens, temperature, seed, signal } = options;
  const { tokensPerReadback = gpu().software ? 2 : 8 } = options;
  return scopeAsync(async () => {
    let result: Completion[] = rows.map(() => ({ tokens: [], logProbs: [], ended: false }));
    let batch: Batch = { kv: cache, rows: rows.map((_, row) => row), state: samplerState(rows, result, options) };
    let decoding: Capture | null = null; // of the batch as it is
    for (let step = 0; step < maxNewTokens && !signal?.aborted; step++) {
      const { kv, state } = batch;
      if (step === 0) {
        scope(() => sample(firstLogits(), state, step, temperature, seed, options));
      } else {
        if (decoding) replay(decoding);
        else decoding = capture(() => decodeStep(policy, kv, state));
        sample(decoding.result, state, step, temperature, seed, options);
      }
      if ((step + 1) % tokensPerReadback !== 0 && step < maxNewTokens - 1) continue;
      const drawn = await readState(state);
      result = result.map((completion, row) => drawn[batch.rows.indexOf(row)] ?? completion);
      options.onTokens?.(result.map(({ tokens }) => tokens));
      if (result.every(({ ended }) => ended)) break;
      const remaining = withoutEnded(batch, rows, result, options);
      if (remaining === batch) continue;
      batch = remaining;
      if (decoding) disposeCapture(decoding);
      decoding = null;
    }
    return result;
  });
}

/** The rows that still draw. */
interface Batch {
  readonly kv: KvCache;
  /** Which of all rows each row of the batch is. */
  readonly rows: readonly number[];
  readonly state: SamplerState;
}

/** The generation state of rows that have drawn so much. */
function samplerState(
  rows: readonly SampleRow[],
  drawn: readonly Completion[],
  { maxNewTokens, endIds }: SamplingOptions,
): SamplerState {
  const count = rows.length;
  const table = <T extends Float32Array | Uint32Array>(all: T, numbers: (row: Completion) => readonly number[]): T => {
    drawn.forEach((completion, row) => all.set(numbers(completion), row * maxNewTokens));
    return all;
  };
  return {
    streams: tensor(
      Uint32Array.from(rows.flatMap((row) => [promptStream(row.prompt), row.sample])),
      [count, 2],
    ),
    endIdList: tensor(Uint32Array.from(endIds.length > 0 ? endIds : [0])),
    endIdCount: endIds.length,
    nextIds: tensor(Uint32Array.from(drawn, ({ tokens }) => tokens.at(-1) ?? 0)),
    // The sampler adds 1 to positions: the first token it draws stands where the prompt ends.
    positions: tensor(Uint32Array.from(rows, ({ prompt }, i) => prompt.length - 1 + drawn[i]!.tokens.length)),
    progress: tensor(Uint32Array.from(drawn.flatMap(({ tokens, ended }) => [tokens.length, ended ? 1 : 0])), [count, 2]),
    tokens: tensor(table(new Uint32Array(count * maxNewTokens), ({ tokens }) => tokens), [count, maxNewTokens]),
    logProbs: tensor(table(new Float32Array(count * maxNewTokens), ({ logProbs }) => logProbs), [count, maxNewTokens]),
  };
}

/** The batch without rows that have ended, if that halves it. Rows behind the new end move into the gaps before it. */
function withoutEnded(
  batch: Batch,
  all: readonly SampleRow[],
  result: readonly Completion[],
  options: SamplingOptions,
): Batch {
  const going = [...batch.rows.keys()].filter((line) => !result[batch.rows[line]!]!.ended);
  if (going.length > batch.rows.length / 2) return batch;
  const isGoing = new Set(going);
  const gaps = Array.from({ length: going.length }, (_, line) => line).filter((line) => !isGoing.has(line));
  const moves = going.filter((line) => line >= going.length).map((from, i) => ({ from, to: gaps[i]! }));
  const rows = batch.rows.slice(0, going.length);
  for (const { from, to } of moves) rows[to] = batch.rows[from]!;
  // The token drawn last has no keys yet.
  const filled = rows.map((row) => all[row]!.prompt.length + result[row]!.tokens.length - 1);
  scope(() => moveCacheRows(batch.kv, moves, Math.max(...filled)));
  return {
    kv: firstCacheRows(batch.kv, rows.length),
    rows,
    state: samplerState(rows.map((row) => all[row]!), rows.map((row) => result[row]!), options),
  };
}

/**
 * Runs all prompts at once, right-padded, fills the cache of every row, and returns the logits [rows, V] that follow.
 */
function prefill(
  policy: Gpt,
  prompts: readonly (readonly number[])[],
  rowPrompt: readonly number[],
  cache: KvCache,
  longest: number,
): Tensor {
  const { config } = policy;
  const batch = prompts.length;
  const promptCache = createKvCache(config.layers, { ...config, batch, capacity: longest });
  try {
    return scope(() => {
      // Padding comes after the prompt: causal attention never shows it to a real token, and decoding overwrites it.
      const padded = Uint32Array.from(
        { length: batch * longest },
        (_, i) => prompts[Math.floor(i / longest)]![i % longest] ?? 0,
      );
      const hidden = hiddenStates(policy, tokenIds(padded, [batch, longest]), {
        positions: arangePositions(batch, longest),
        cache: { kv: promptCache, starts: tensor(new Uint32Array(batch)) },
      });
      // Picking rows of a matrix is what the embedding kernel does: the hidden state at each prompt's last token.
      const lastTokens = rowPrompt.map((prompt) => prompt * longest + prompts[prompt]!.length - 1);
      const last = embedding(hidden.value, tokenIds(lastTokens));
      copyCachePrefix(cache, promptCache, tensor(Uint32Array.from(rowPrompt)), longest);
      return logits(policy, constant(last)).value;
    });
  } finally {
    disposeKvCache(promptCache);
  }
}

/** One forward pass over the token drawn last by each row: logits [rows, V] of the next. */
function decodeStep(policy: Gpt, cache: KvCache, { nextIds, positions }: SamplerState): Tensor {
  const rows = nextIds.shape[0]!;
  // Drawn on the GPU: the host never sees them.
  const onGpu = (x: Tensor): TokenIds => ({ tensor: reshape(x, [rows, 1]), host: new Uint32Array(0) });
  const hidden = hiddenStates(policy, onGpu(nextIds), {
    positions: onGpu(positions),
    cache: { kv: cache, starts: positions },
  });
  return logits(policy, hidden).value;
}

async function readState({ tokens, logProbs, progress }: SamplerState): Promise<Completion[]> {
  const [ids, probabilities, counts] = (await readAll([tokens, logProbs, progress])) as [
    Uint32Array,
    Float32Array,
    Uint32Array,
  ];
  const [rows, maxSteps] = tokens.shape as [number, number];
  return Array.from({ length: rows }, (_, row) => {
    const start = row * maxSteps;
    const length = counts[2 * row]!;
    return {
      tokens: [...ids.subarray(start, start + length)],
      logProbs: [...probabilities.subarray(start, start + length)],
      ended: counts[2 * row + 1] === 1,
    };
  });
}

/** A u32 that names a prompt's stream of random numbers: the FNV-1a hash of its ids. */
export function promptStream(ids: readonly number[]): number {
  return ids.reduce((hash, id) => Math.imul(hash ^ id, 0x01000193) >>> 0, 0x811c9dc5);
}
