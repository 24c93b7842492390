/** Launches the sampler: draws one token per row and advances the generation state, all on the GPU. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { ShapeError, show } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const sampleKernel = kernel({
  shader: "sample",
  entry: "sample",
  buffers: ["logits", "streams", "endIdList", "nextIds", "positions", "progress", "tokens", "logProbs"],
  params: ["rows", "vocab", "step", "maxSteps", "temperature", "seed", "endIds"],
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

/** Draws token number `step` of every row from logits [rows, V]. `seed` is a u32; temperature 0 is greedy. */
export function sample(logits: Tensor, state: SamplerState, step: number, temperature: number, seed: number): void {
  const [rows, vocab] = logits.shape as [number, number];
  const maxSteps = state.tokens.shape[1]!;
  if (state.tokens.shape[0] !== rows || step >= maxSteps) {
    throw new ShapeError(`sample: logits ${show(logits.shape)}, step ${step}, tokens ${show(state.tokens.shape)}`);
  }
  const { endIdCount, ...tensors } = state;
  const params = { rows, vocab, step, maxSteps, temperature, seed: seed >>> 0, endIds: endIdCount };
  launch(sampleKernel, { logits, ...tensors }, params, rows, { WORKGROUP: gpu().rowThreads });
}
