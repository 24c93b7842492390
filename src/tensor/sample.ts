/** Launches the sampler: draws one token per row and advances the generation state, all on the GPU. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, show } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

/** The smallest temperature above 0: below it, float32 is denormal, and its inverse may be infinite. */
const MIN_TEMPERATURE = 2 ** -126;

const sampleKernel = kernel({
  shader: "sample",
  entry: "sample",
  buffers: ["logits", "streams", "endIdList", "nextIds", "positions", "progress", "tokens", "logProbs"],
  params: ["rows", "vocab", "step", "maxSteps", "temperature", "seed", "endIds", "topK", "topP"],
});

/** The state of a batched generation; every tensor is u32 unless said otherwise. */
export interface SamplerState {
  /** [rows, 2]: stream of the row's prompt and number of the sample within it: the counter of its random numbers. */
  readonly streams: Tensor;
  /** Ids that end a row, at least one element (unused when `endIdCount` is 0). */
  readonly endIdList: Tensor;
  readonly endIdCount: number;
  /** [rows]: the token drawn last, input of the next forward pass, and its position. */
  readonly nextIds: Tensor;
  readonly positions: Tensor;
  /** [rows, 2]: tokens drawn so far (end token included), and 1 once the row has ended. */
  readonly progress: Tensor;
  /** [rows, maxSteps]: tokens drawn, and float32 log-probabilities under the distribution they were drawn from. */
  readonly tokens: Tensor;
  readonly logProbs: Tensor;
}

/** Which tokens may be drawn: the warpers of Hugging Face transformers, top-k before top-p. Greedy ignores them. */
export interface KeptTokens {
  /** The k largest logits, and all that equal the k-th; 0 (default), or k >= V, keeps all. */
  readonly topK?: number;
  /**
   * The most likely tokens, as few as reach this share of the probability that top-k left, at least one; among equals
   * the smallest ids. 1 (default) keeps all.
   */
  readonly topP?: number;
}

/**
 * Draws token number `step` of every row from logits [rows, V]. `seed` is a u32; temperature 0 is greedy. Recorded
 * log-probabilities are those of the distribution drawn from: divided by the temperature, restricted to the kept
 * tokens, renormalised. @throws ShapeError when shapes or options do not fit.
 */
export function sample(
  logits: Tensor,
  state: SamplerState,
  step: number,
  temperature: number,
  seed: number,
  { topK = 0, topP = 1 }: KeptTokens = {},
): void {
  const [rows, vocab] = logits.shape as [number, number];
  const [tokenRows, maxSteps] = state.tokens.shape as [number, number];
  if (logits.shape.length !== 2 || state.tokens.shape.length !== 2 || tokenRows !== rows || !(step < maxSteps)) {
    throw new ShapeError(`sample: logits ${show(logits.shape)}, step ${step}, tokens ${show(state.tokens.shape)}`);
  }
  for (const name of ["nextIds", "positions"] as const) expectShape("sample", name, state[name], [rows]);
  for (const name of ["streams", "progress"] as const) expectShape("sample", name, state[name], [rows, 2]);
  expectShape("sample", "logProbs", state.logProbs, state.tokens.shape);
  if (temperature !== 0 && !(temperature >= MIN_TEMPERATURE && Number.isFinite(Math.fround(temperature)))) {
    throw new ShapeError(`sample: temperature ${temperature} must be 0 (greedy), or a float32 from 2^-126 up`);
  }
  if (!Number.isInteger(topK) || topK < 0) throw new ShapeError(`sample: topK ${topK} must be an integer from 0 up`);
  if (!(topP >= 0 && topP <= 1)) throw new ShapeError(`sample: topP ${topP} must be a number from 0 to 1`);
  const { endIdCount, ...tensors } = state;
  const params = {
    rows, vocab, step, maxSteps, temperature, seed: seed >>> 0, endIds: endIdCount, topK: Math.min(topK, vocab), topP,
  };
  const constants = { WORKGROUP: gpu().rowThreads, LIMITED: topK > 0 || topP < 1 ? 1 : 0 };
  launch(sampleKernel, { logits, ...tensors }, params, rows, constants);
}
