/**
 * The decoder: token ids in, hidden states and logits out. The Qwen3 architecture, in the order of its diagram:
 *
 *   embedding -> layers x { norm -> attention -> +residual -> norm -> SwiGLU MLP -> +residual } -> norm -> head
 *
 * Attention has rotary positions, grouped key/value heads and an RMS norm on each query and key head. Parameters carry
 * their Hugging Face names, so a checkpoint is a table and not a translation.
 *
 * Departs from the textbook: the head is not part of `hiddenStates`. Training wants log-probabilities of given tokens
 * (`tokenLogProb`, which never stores all logits) and decoding wants logits of the last position only.
 *
 * Shapes: B batch, T time, C hidden size, H query heads, K key/value heads, D head size, V vocabulary, F MLP size.
 */
import * as ops from "../autograd/ops.ts";
import { constant, detach, parameter, type Variable } from "../autograd/variable.ts";
import { writeCache, type KvCache } from "../tensor/kv_cache.ts";
import type { TokenIds } from "../tensor/embedding.ts";
import { rotaryTables, type RotaryTables } from "../tensor/rotary.ts";
import { dispose, keep, tensor, type Tensor } from "../tensor/tensor.ts";

export interface GptConfig {
  readonly vocabSize: number;
  /** C */
  readonly hiddenSize: number;
  readonly layers: number;
  /** H query heads; each K/V head serves H / K of them. */
  readonly heads: number;
  readonly kvHeads: number;
  /** D; independent of C / H. */
  readonly headSize: number;
  /** F, the width of the gated MLP. */
  readonly mlpSize: number;
  readonly normEps: number;
  readonly ropeTheta: number;
  /** Longest sequence, in tokens. */
  readonly maxPositions: number;
  /** Whether the output head is the embedding table. */
  readonly tiedEmbeddings: boolean;
}

export interface Gpt {
  readonly config: GptConfig;
  readonly parameters: ReadonlyMap<string, Variable>;
  readonly rotary: RotaryTables;
}

/** Every parameter's Hugging Face name and shape, in the order of the forward pass. Weights are [out, in]. */
export function parameterShapes(config: GptConfig): Map<string, number[]> {
  const { vocabSize, hiddenSize, layers, heads, kvHeads, headSize, mlpSize } = config;
  const shapes = new Map<string, number[]>([["model.embed_tokens.weight", [vocabSize, hiddenSize]]]);
  for (let layer = 0; layer < layers; layer++) {
    const prefix = `model.layers.${layer}`;
    shapes.set(`${prefix}.input_layernorm.weight`, [hiddenSize]);
    shapes.set(`${prefix}.self_attn.q_proj.weight`, [heads * headSize, hiddenSize]);
    shapes.set(`${prefix}.self_attn.k_proj.weight`, [kvHeads * headSize, hiddenSize]);
    shapes.set(`${prefix}.self_attn.v_proj.weight`, [kvHeads * headSize, hiddenSize]);
    shapes.set(`${prefix}.self_attn.o_proj.weight`, [hiddenSize, heads * headSize]);
    shapes.set(`${prefix}.self_attn.q_norm.weight`, [headSize]);
    shapes.set(`${prefix}.self_attn.k_norm.weight`, [headSize]);
    shapes.set(`${prefix}.post_attention_layernorm.weight`, [hiddenSize]);
    shapes.set(`${prefix}.mlp.gate_proj.weight`, [mlpSize, hiddenSize]);
    shapes.set(`${prefix}.mlp.up_proj.weight`, [mlpSize, hiddenSize]);
    shapes.set(`${prefix}.mlp.down_proj.weight`, [hiddenSize, mlpSize]);
  }
  shapes.set("model.norm.weight", [hiddenSize]);
  if (!config.tiedEmbeddings) shapes.set("lm_head.weight", [vocabSize, hiddenSize]);
  return shapes;
}

/** Builds a model on the GPU; `weights` yields each parameter's values by Hugging Face name and shape. */
export function createGpt(config: GptConfig, weights: (name: string, shape: readonly number[]) => Float32Array): Gpt {
  const parameters = new Map<string, Variable>();
  for (const [name, shape] of parameterShapes(config)) {
    parameters.set(name, parameter(keep(tensor(weights(name, shape), shape))));
  }
  const rotary = rotaryTables(config.maxPositions, config.headSize, config.ropeTheta);
  keep(rotary.cos);
  keep(rotary.sin);
  return { config, parameters, rotary };
}

/** The same weights, recording nothing: what rollouts and evaluation run on. Shares memory with `model`. */
export function frozen(model: Gpt): Gpt {
  return { ...model, parameters: new Map([...model.parameters].map(([name, value]) => [name, detach(value)])) };
}

/** Returns the model's memory to the pool. */
export function disposeGpt({ parameters, rotary }: Gpt): void {
  for (const { value, grad } of parameters.values()) {
    dispose(value);
    if (grad) dispose(grad);
  }
  dispose(rotary.cos);
  dispose(rotary.sin);
}

/** Number of trainable values. */
export function parameterCount(config: GptConfig): number {
  return [...parameterShapes(config).values()].reduce((sum, shape) => sum + shape.reduce((n, m) => n * m, 1), 0);
}

export interface ForwardOptions {
  /** u32 [B, T]: position of each token for the rotary embedding. */
  readonly positions: Tensor;
  /** u32 [B, T]: 1 for real tokens, 0 for padding that no query may see. */
  readonly keyMask?: Tensor;
  /**
   * Reads and extends keys and values of earlier tokens; `starts` u32 [B] is the position of each row's first token.
   */
  readonly cache?: { readonly kv: KvCache; readonly starts: Tensor };
}

/** Token ids [B, T] -> hidden states after the final norm [B * T, C]. */
export function hiddenStates(model: Gpt, ids: TokenIds, options: ForwardOptions): Variable {
  const { config, parameters } = model;
  const eps = config.normEps;
  const weight = (name: string): Variable => parameters.get(name)!;

  let x = ops.reshape(ops.embedding(weight("model.embed_tokens.weight"), ids), [-1, config.hiddenSize]);
  for (let layer = 0; layer < config.layers; layer++) {
    const prefix = `model.layers.${layer}`;
    const attended = attentionBlock(
      model,
      layer,
      ops.rmsNorm(x, weight(`${prefix}.input_layernorm.weight`), eps),
      ids,
      options,
    );
    x = ops.add(x, attended);
    const mlp = mlpBlock(model, layer, ops.rmsNorm(x, weight(`${prefix}.post_attention_layernorm.weight`), eps));
    x = ops.add(x, mlp);
  }
  return ops.rmsNorm(x, weight("model.norm.weight"), eps);
}

/** [B * T, C] -> [B * T, C] */
function attentionBlock(model: Gpt, layer: number, x: Variable, ids: TokenIds, options: ForwardOptions): Variable {
  const { config, parameters, rotary } = model;
  const { heads, kvHeads, headSize, normEps } = config;
  const [batch, time] = ids.tensor.shape as [number, number];
  const weight = (name: string): Variable => parameters.get(`model.layers.${layer}.self_attn.${name}.weight`)!;
  const project = (name: string, n: number): Variable =>
    ops.reshape(linear(x, weight(name)), [batch, time, n, headSize]); // [B T, n D] -> [B, T, n, D]

  const q = ops.rotary(ops.rmsNorm(project("q_proj", heads), weight("q_norm"), normEps), rotary, options.positions);
  const k = ops.rotary(ops.rmsNorm(project("k_proj", kvHeads), weight("k_norm"), normEps), rotary, options.positions);
  const v = project("v_proj", kvHeads);

  const mask = options.keyMask ? { keyMask: options.keyMask } : {};
  let y: Variable;
  if (options.cache) {
    const { kv, starts } = options.cache;
    writeCache(kv, layer, k.value, v.value, starts);
    y = ops.attention(q, constant(kv.keys[layer]!), constant(kv.values[layer]!), { ...mask, queryStart: starts });
  } else {
    y = ops.attention(q, k, v, mask);
  }
  return linear(ops.reshape(y, [-1, heads * headSize]), weight("o_proj"));
}

/** down(silu(gate(x)) * up(x)): [B * T, C] -> [B * T, C] */
function mlpBlock({ parameters }: Gpt, layer: number, x: Variable): Variable {
  const weight = (name: string): Variable => parameters.get(`model.layers.${layer}.mlp.${name}.weight`)!;
  return linear(ops.swiglu(linear(x, weight("gate_proj")), linear(x, weight("up_proj"))), weight("down_proj"));
}

/** x W^T: [N, in] with weight [out, in] -> [N, out] */
function linear(x: Variable, weight: Variable): Variable {
  return ops.matmul(x, weight, { transposeB: true });
}

/** The output head's weight [V, C]: the embedding table when they are tied. */
export function headWeight({ config, parameters }: Gpt): Variable {
  return parameters.get(config.tiedEmbeddings ? "model.embed_tokens.weight" : "lm_head.weight")!;
}

/** Hidden states [N, C] -> logits [N, V]. For few rows: decoding, tests. */
export function logits(model: Gpt, hidden: Variable): Variable {
  return linear(hidden, headWeight(model));
}

/** Positions 0, 1, 2, ... for each of B rows of T tokens: u32 [B, T]. */
export function arangePositions(batch: number, time: number): Tensor {
  return tensor(
    Uint32Array.from({ length: batch * time }, (_, i) => i % time),
    [batch, time],
  );
}
