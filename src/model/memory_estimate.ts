/**
 * How much GPU memory a model and its work need, before anything is loaded: the sizes of the tensors that gpt.ts makes,
 * counted as the pool counts them. What does not fit is refused with the numbers and what can be done about it.
 *
 * The estimate is checked against the pool's own count in test/model/memory_estimate.test.ts.
 */
import { gpu } from "../tensor/device.ts";
import { sizeClass } from "../tensor/memory.ts";
import { sizeOf, type Shape } from "../tensor/shape.ts";
import { neighbourAllocations } from "../tensor/tensor.ts";
import { CheckpointError, type GptConfig } from "./config.ts";
import { parameterShapes } from "./parameters.ts";

/** Decoding `rows` completions of `prompts` prompts. */
export interface GenerationWork {
  readonly prompts: number;
  readonly rows: number;
  /** Tokens of the longest prompt, and of the longest completion. */
  readonly promptLength: number;
  readonly newTokens: number;
}

/** Gradient steps. */
export interface TrainingWork {
  /** That go through the layers at once, padding included. */
  readonly tokens: number;
  /** Hidden states picked from theirs for the output head; all of them, without a copy, unless given. */
  readonly predictions?: number;
  readonly checkpointLayers?: boolean;
}

/** Log-probabilities without gradients. */
export type ScoringWork = Required<Omit<TrainingWork, "checkpointLayers">>;

export interface Work {
  readonly generation?: GenerationWork;
  readonly scoring?: ScoringWork;
  readonly training?: TrainingWork;
  /** Matrices are kept in 16 bits; not together with training. */
  readonly bf16?: boolean;
  /** Copies of the weights beside those at work. */
  readonly copies?: number;
}

export interface MemoryEstimate {
  readonly weights: number;
  /** Gradients and AdamW's two moments. */
  readonly optimizer: number;
  /** Values of the forward pass that backward needs, and the gradients on their way. */
  readonly activations: number;
  /** Keys and values of the tokens so far, and one decoding step; or scoring, when that needs more. */
  readonly generation: number;
  /** Bytes at the worst moment: generation, scoring and training take turns. */
  readonly total: number;
}

/** Bytes that a float32 tensor of so many values takes in the pool. */
const bytes = (values: number): number => Math.max(256, sizeClass(4 * values));
const neighbours = (shapes: readonly Shape[]): number => sum(neighbourAllocations(shapes).map((n) => bytes(n / 4)));
const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** Bytes of GPU memory at the worst moment, within about a tenth for models that are not tiny. */
export function estimateMemory(
  config: GptConfig,
  { generation, scoring, training, bf16 = false, copies = 0 }: Work,
): MemoryEstimate {
  const { hiddenSize, layers, vocabSize, headSize, maxPositions } = config;
  const shapes = [...parameterShapes(config).values()];
  const apart = sum(shapes.map((shape) => bytes(bf16 && shape.length === 2 ? sizeOf(shape) / 2 : sizeOf(shape))));
  const together = neighbours(shapes);
  const rotary = config.rope ? 2 * bytes((maxPositions * headSize) / 2) : 0;
  const weights = (bf16 ? apart : together) + copies * apart + rotary;
  const layerOf = (tokens: number): number => sum(layerValues(config, tokens).map(bytes));
  const states = (tokens: number): number => bytes(tokens * hiddenSize);
  // Hidden states, and ten numbers for each: ids and places before, results after.
  const pickedOf = (predictions: number): number => states(predictions) + 10 * bytes(predictions);
  // One chunk of logits (token_log_prob.ts).
  const logitsOf = (tokens: number): number => bytes(Math.min(tokens * vocabSize, Math.max(2 ** 22, 32 * vocabSize)));

  // The embedding, a learned position and their sum, and the final norm, are outside the layers.
  const outsideLayers = config.rope ? 2 : 4;

  let optimizer = 0;
  let activations = 0;
  if (training) {
    const { tokens, predictions = tokens, checkpointLayers } = training;
    const layer = layerOf(tokens);
    const stream = states(tokens);
    optimizer = 3 * together; // gradients have their places even before they are computed
    const picked = training.predictions === undefined ? 0 : pickedOf(predictions);
    const saved = outsideLayers * stream + picked + layers * (checkpointLayers ? stream : layer);
    const atTheHead = 2 * states(predictions) + logitsOf(predictions);
    const inTheLayers = (checkpointLayers ? layer : 0) + 4 * stream + largestGradients(config, tokens);
    activations = saved + Math.max(atTheHead, inTheLayers);
  }
  let decoding = 0;
  if (generation) {
    const { prompts, rows, promptLength, newTokens } = generation;
    const cache = (batch: number, length: number): number =>
      2 * layers * bytes(batch * length * config.kvHeads * headSize);
    const layer = layerOf(Math.max(prompts * promptLength, rows));
    decoding =
      cache(rows, promptLength + newTokens) + cache(prompts, promptLength) + layer + bytes(rows * vocabSize);
  }
  let passing = 0;
  if (scoring) {
    const { tokens, predictions } = scoring;
    // What a layer computed inside is freed with it, its result with the pass.
    const streams = (layers + outsideLayers) * states(tokens);
    passing = streams + Math.max(layerOf(tokens), pickedOf(predictions) + logitsOf(predictions));
  }
  const withoutGradients = Math.max(decoding, passing);
  const total = weights + optimizer + Math.max(activations, withoutGradients);
  return { weights, optimizer, activations, generation: withoutGradients, total };
}

/**
 * Refuses work that does not fit. `knobs` says what the user can change, most effective first.
 * @throws CheckpointError with the numbers.
 */
export function requireMemory(
  config: GptConfig,
  work: Work,
  knobs: string,
): void {
  const estimate = estimateMemory(config, work);
  const { byteBudget } = gpu();
  if (estimate.total <= byteBudget) return;
  const parts = [
    `weights ${gib(estimate.weights)}${work.copies ? ` with ${work.copies} copies` : ""}`,
    ...(work.training ? [`gradients and optimiser ${gib(estimate.optimizer)}`] : []),
    ...(work.training ? [`activations ${gib(estimate.activations)}`] : []),
    ...(work.generation || work.scoring ? [`generation ${gib(estimate.generation)}`] : []),
  ];
  throw new CheckpointError(
    `this needs about ${gib(estimate.total)} of GPU memory (${parts.join(", ")}), but ${gib(byteBudget)} may be ` +
      `used. Fix: ${knobs}`,
  );
}

/** 1.23 GiB */
export function gib(byteCount: number): string {
  return `${(byteCount / 2 ** 30).toFixed(2)} GiB`;
}

/** Number of values of every tensor that the forward pass of one layer makes, in its order. */
function layerValues(config: GptConfig, tokens: number): number[] {
  const { hiddenSize, heads, kvHeads, headSize, mlpSize } = config;
  const [channels, q, kv] = [tokens * hiddenSize, tokens * heads * headSize, tokens * kvHeads * headSize];
  const inner = tokens * mlpSize;
  const isFused = config.family === "gpt2";
  const norm = [channels, tokens, ...(config.norm === "layer" ? [tokens] : [])];
  return [
    ...norm,
    ...(isFused ? [q + 2 * kv] : []),
    q, kv, kv,
    ...(config.rope ? [q, kv] : []), // turned, and before that normalised, in one
    ...(config.qkNorm ? [tokens * heads, tokens * kvHeads] : []),
    q, tokens * heads, // attention, and its log-sum-exp
    channels, // its projection and the residual, in one
    ...norm,
    inner,
    ...(config.mlp === "swiglu" ? [inner] : []),
    inner,
    channels,
  ];
}

/** Bytes of the gradients that are alive together inside one layer: its MLP's, or its attention's. */
function largestGradients({ heads, kvHeads, headSize, mlpSize }: GptConfig, tokens: number): number {
  const [query, key] = [bytes(tokens * heads * headSize), bytes(tokens * kvHeads * headSize)];
  return 3 * Math.max(bytes(tokens * mlpSize), query + 2 * key);
}
