/**
 * The decoder: token ids in, hidden states and logits out. One for four families; config.ts tells how they differ.
 *
 *   embedding (+ positions) -> layers x { norm -> attention -> +residual -> norm -> MLP -> +residual } -> norm -> head
 *
 * Departs from the textbook: the head is not part of `hiddenStates`. Training wants log-probabilities of given tokens
 * (`tokenLogProb`, which never stores all logits) and decoding wants logits of the last position only.
 *
 * Shapes: B batch, T time, C hidden size, H query heads, K key/value heads, D head size, V vocabulary, F MLP size.
 */
import { checkpoint } from "../autograd/checkpoint.ts";
import { zeroGrad } from "../autograd/backward.ts";
import * as ops from "../autograd/ops.ts";
import { constant, detach, parameter, type Variable } from "../autograd/variable.ts";
import { f32ToBf16 } from "../data/half_floats.ts";
import { writeCache, type KvCache } from "../tensor/kv_cache.ts";
import { tokenIds, type TokenIds } from "../tensor/embedding.ts";
import { scope } from "../tensor/memory.ts";
import { rotaryTables, type RotaryTables } from "../tensor/rotary.ts";
import { dispose, disposeAll, emptyNeighbours, keep, tensor, write, type Tensor } from "../tensor/tensor.ts";
import type { GptConfig } from "./config.ts";
import { HEAD, KEY_NORM, MLP_GATE, parameterShapes, partNames, QUERY_NORM, weightsAreInOut } from "./parameters.ts";

export interface Gpt {
  readonly config: GptConfig;
  readonly parameters: ReadonlyMap<string, Variable>;
  /** Null with learned positions. */
  readonly rotary: RotaryTables | null;
}

export interface CreateOptions {
  /**
   * Keeps matrices in 16 bits, rounded to nearest even (exact for what was stored as BF16): half the memory. Such a
   * model is frozen; sums are float32 as ever.
   */
  readonly bf16?: boolean;
}

/** Builds a model on the GPU; `weights` yields each parameter's values by Hugging Face name and shape. */
export function createGpt(
  config: GptConfig,
  weights: (name: string, shape: readonly number[]) => Float32Array,
  { bf16 = false }: CreateOptions = {},
): Gpt {
  const parameters = new Map<string, Variable>();
  const shapes = parameterShapes(config);
  const places = bf16 ? null : emptyNeighbours([...shapes.values()]);
  [...shapes].forEach(([name, shape], i) => {
    const values = weights(name, shape);
    if (places) {
      write(places[i]!, values);
      parameters.set(name, parameter(keep(places[i]!)));
    } else {
      parameters.set(name, constant(keep(tensor(shape.length === 2 ? f32ToBf16(values) : values, shape))));
    }
  });
  const { rope } = config;
  const rotary = rope && rotaryTables(config.maxPositions, config.headSize, rope.theta, rope.scaling);
  return { config, parameters, rotary };
}

/** The same weights, recording nothing: what rollouts and evaluation run on. Shares memory with `model`. */
export function frozen(model: Gpt): Gpt {
  return { ...model, parameters: new Map([...model.parameters].map(([name, value]) => [name, detach(value)])) };
}

/** Returns the model's memory to the pool. */
export function disposeGpt({ parameters, rotary }: Gpt): void {
  zeroGrad(parameters.values());
  disposeAll([...parameters.values()].map(({ value }) => value));
  if (rotary) [rotary.cos, rotary.sin].forEach(dispose);
}

export interface ForwardOptions {
  /** [B, T]: position of each token; their host copy may be empty where nothing is trained. */
  readonly positions: TokenIds;
  /** u32 [B, T]: 1 for real tokens, 0 for padding that no query may see. */
  readonly keyMask?: Tensor;
  /** u32 [B, T]: the first token of the row that does not see this one, where a row holds a tree (attention.ts). */
  readonly keyEnd?: Tensor;
  /**
   * Reads and extends keys and values of earlier tokens; `starts` u32 [B] is the position of each row's first token.
   */
  readonly cache?: { readonly kv: KvCache; readonly starts: Tensor };
  /** Gradient checkpointing: keep each layer's input only, and run its forward pass again in backward. */
  readonly checkpointLayers?: boolean;
}

/** Token ids [B, T] -> hidden states after the final norm [B * T, C]. */
export function hiddenStates(model: Gpt, ids: TokenIds, options: ForwardOptions): Variable {
  const { config, parameters } = model;
  const names = partNames(config);
  const table = (name: string): Variable => parameters.get(`${name}.weight`)!;

  let x = ops.reshape(ops.embedding(table(names.embedding), ids), [-1, config.hiddenSize]);
  if (!config.rope) {
    const positions = ops.embedding(table(names.positionEmbedding), options.positions);
    x = ops.add(x, ops.reshape(positions, [-1, config.hiddenSize]));
  }
  const isTrained = [...parameters.values()].some(({ tracked }) => tracked);
  for (let layer = 0; layer < config.layers; layer++) {
    const input = x;
    // Without gradients nobody will ask for what a layer computed inside: it is freed at once.
    if (!isTrained) x = scope(() => transformerLayer(model, layer, input, ids, options));
    else if (options.checkpointLayers) x = checkpointedLayer(model, layer, x, ids, options);
    else x = transformerLayer(model, layer, x, ids, options);
  }
  return norm(model, names.finalNorm, x);
}

/** [B * T, C] -> [B * T, C] */
function transformerLayer(model: Gpt, layer: number, x: Variable, ids: TokenIds, options: ForwardOptions): Variable {
  const { layers, attentionNorm, mlpNorm } = partNames(model.config);
  const normed = (name: string, input: Variable): Variable => norm(model, `${layers}.${layer}.${name}`, input);
  const attended = attentionBlock(model, layer, normed(attentionNorm, x), x, ids, options);
  return mlpBlock(model, layer, normed(mlpNorm, attended), attended);
}

/** The same, forgetting what happens inside: its parameters become inputs, so that their gradients are not lost. */
function checkpointedLayer(model: Gpt, layer: number, x: Variable, ids: TokenIds, options: ForwardOptions): Variable {
  const prefix = `${partNames(model.config).layers}.${layer}.`;
  const own = [...model.parameters].filter(([name]) => name.startsWith(prefix));
  return checkpoint([x, ...own.map(([, weight]) => weight)], ([input, ...weights]) => {
    const parameters = new Map(own.map(([name], i) => [name, weights[i]!]));
    return transformerLayer({ ...model, parameters }, layer, input!, ids, options);
  });
}

/** residual + attention(x): [B * T, C] -> [B * T, C] */
function attentionBlock(
  model: Gpt, layer: number, x: Variable, residual: Variable, ids: TokenIds, options: ForwardOptions,
): Variable {
  const { config, parameters, rotary } = model;
  const { heads, kvHeads, headSize, normEps } = config;
  const [batch, time] = ids.tensor.shape as [number, number];
  const names = partNames(config);
  const part = (name: string): string => `${names.layers}.${layer}.${name}`;
  const split = (joined: Variable, n: number): Variable => ops.reshape(joined, [batch, time, n, headSize]);

  const [joinedQ, joinedK, joinedV] = queryKeyValue(model, layer, x);
  let q = split(joinedQ, heads);
  let k = split(joinedK, kvHeads);
  const v = split(joinedV, kvHeads);
  const positions = options.positions.tensor;
  if (rotary && config.qkNorm) {
    q = ops.rmsNormRotary(q, parameters.get(`${part(QUERY_NORM)}.weight`)!, normEps, rotary, positions);
    k = ops.rmsNormRotary(k, parameters.get(`${part(KEY_NORM)}.weight`)!, normEps, rotary, positions);
  } else if (rotary) {
    q = ops.rotary(q, rotary, positions);
    k = ops.rotary(k, rotary, positions);
  }

  const { keyMask, keyEnd } = options;
  const visible = { ...(keyMask && { keyMask }), ...(keyEnd && { keyEnd }) };
  let y: Variable;
  if (options.cache) {
    const { kv, starts } = options.cache;
    writeCache(kv, layer, k.value, v.value, starts);
    const [keys, values] = [constant(kv.keys[layer]!), constant(kv.values[layer]!)];
    y = ops.attention(q, keys, values, { ...visible, queryStart: starts, headsFirst: true });
  } else {
    y = ops.attention(q, k, v, visible);
  }
  return linear(model, part(names.attentionOut), ops.reshape(y, [-1, heads * headSize]), residual);
}

/** [B * T, C] -> queries [B * T, H D], keys and values [B * T, K D] */
function queryKeyValue(model: Gpt, layer: number, x: Variable): [Variable, Variable, Variable] {
  const { heads, kvHeads, headSize } = model.config;
  const { layers, qkv } = partNames(model.config);
  const part = (name: string): string => `${layers}.${layer}.${name}`;
  if (typeof qkv !== "string") {
    const [q, k, v] = linears(model, [part(qkv.q), part(qkv.k), part(qkv.v)], x);
    return [q!, k!, v!];
  }
  const all = linear(model, part(qkv), x);
  const [q, kv] = [heads * headSize, kvHeads * headSize];
  return [ops.slice(all, -1, 0, q), ops.slice(all, -1, q, q + kv), ops.slice(all, -1, q + kv, q + 2 * kv)];
}

/** residual + down(silu(gate(x)) * up(x)), or residual + down(gelu(up(x))): [B * T, C] -> [B * T, C] */
function mlpBlock(model: Gpt, layer: number, x: Variable, residual: Variable): Variable {
  const { layers, mlpUp, mlpDown } = partNames(model.config);
  const part = (name: string): string => `${layers}.${layer}.${name}`;
  const down = (hidden: Variable): Variable => linear(model, part(mlpDown), hidden, residual);
  switch (model.config.mlp) {
    case "swiglu": {
      const [gate, up] = linears(model, [part(MLP_GATE), part(mlpUp)], x);
      return down(ops.swiglu(gate!, up!));
    }
    case "gelu": return down(ops.gelu(linear(model, part(mlpUp), x)));
    case "geluTanh": return down(ops.geluTanh(linear(model, part(mlpUp), x)));
  }
}

/** RMS norm, or layer norm, over the channels. */
function norm({ config, parameters }: Gpt, name: string, x: Variable): Variable {
  const weight = parameters.get(`${name}.weight`)!;
  if (config.norm === "rms") return ops.rmsNorm(x, weight, config.normEps);
  return ops.layerNorm(x, weight, parameters.get(`${name}.bias`)!, config.normEps);
}

/** x W^T + b + residual, [N, in] -> [N, out], in one kernel; the bias only where the model has one. */
function linear({ config, parameters }: Gpt, name: string, x: Variable, residual?: Variable): Variable {
  const weight = parameters.get(`${name}.weight`)!;
  const bias = parameters.get(`${name}.bias`);
  return ops.matmul(x, weight, { transposeB: !weightsAreInOut(config), bias, residual });
}

/** Several `linear`s of one input. Those without bias share launches where their weights allow it. */
function linears(model: Gpt, names: readonly string[], x: Variable): Variable[] {
  const { config, parameters } = model;
  if (names.some((name) => parameters.has(`${name}.bias`))) return names.map((name) => linear(model, name, x));
  const weights = names.map((name) => parameters.get(`${name}.weight`)!);
  return ops.matmulEach(x, weights, { transposeB: !weightsAreInOut(config) });
}

/** The output head's weight [V, C]: the embedding table when they are tied. */
export function headWeight({ config, parameters }: Gpt): Variable {
  return parameters.get(`${config.tiedEmbeddings ? partNames(config).embedding : HEAD}.weight`)!;
}

/** Hidden states [N, C] -> logits [N, V]. For few rows: decoding, tests. */
export function logits(model: Gpt, hidden: Variable): Variable {
  return ops.matmul(hidden, headWeight(model), { transposeB: true });
}

/** Positions 0, 1, 2, ... for each of B rows of T tokens: [B, T]. */
export function arangePositions(batch: number, time: number): TokenIds {
  return tokenIds(
    Uint32Array.from({ length: batch * time }, (_, i) => i % time),
    [batch, time],
  );
}
