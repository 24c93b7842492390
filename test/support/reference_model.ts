/**
 * GPT-2, Llama, Qwen2 and Qwen3 in plain float64, put together from the reference operations: the layer diagram of each
 * architecture with nothing left out. Weights go by their Hugging Face names, sizes by the keys of config.json.
 */
import type { Array64 } from "./reference.ts";
import { add, gelu, geluTanh, swiglu } from "./reference.ts";
import { reshape, split } from "./reference_shape.ts";
import { causalAttention, embedding, layerNorm, linear, matmul, rmsNorm, rotary, rotaryTables } from "./reference_nn.ts";
import type { HubConfig } from "./oracles.ts";

export interface ReferenceForward {
  /** [batch, time, vocabulary] */
  logits: Array64;
  /** As transformers' output_hidden_states: the embeddings, each layer's output, the last one after the final norm. */
  hidden: Array64[];
}

export interface ReferenceInput {
  ids: ArrayLike<number>;
  batch: number;
  /** [batch, time], 1 for real tokens. */
  attentionMask?: ArrayLike<number>;
  /** Counted from the start of the row, padding included, unless given. */
  positions?: ArrayLike<number>;
}

/** A weight by name, or undefined where the model has none; may widen it only now, for models that are large. */
export type Weights = (name: string) => Array64 | undefined;

/** Logits for ids [batch, time], row-major. */
export function referenceForward(config: HubConfig, weights: Weights, input: ReferenceInput): ReferenceForward {
  return config.model_type === "gpt2" ? gpt2(config, weights, input) : llamaLike(config, weights, input);
}

function required(weights: Weights, name: string): Array64 {
  const found = weights(name);
  if (found === undefined) throw new Error(`referenceForward: no weight "${name}"`);
  return found;
}

function gpt2(config: HubConfig, weights: Weights, { ids, batch, attentionMask, positions }: ReferenceInput) {
  const { n_embd: channels = 0, n_head: heads = 0, n_layer: layers = 0, layer_norm_epsilon: eps = 1e-5 } = config;
  const time = ids.length / batch;
  const weight = (name: string): Array64 => required(weights, `transformer.${name}`);
  const conv1d = (x: Array64, name: string): Array64 => add(matmul(x, weight(`${name}.weight`)), weight(`${name}.bias`));
  const norm = (x: Array64, name: string): Array64 => layerNorm(x, weight(`${name}.weight`), weight(`${name}.bias`), eps);
  const activation = config.activation_function === "gelu" ? gelu : geluTanh;
  const places = positions ?? Array.from({ length: batch * time }, (_, i) => i % time);

  let x = add(embedding(weight("wte.weight"), ids, [batch, time]), embedding(weight("wpe.weight"), places, [batch, time]));
  const hidden = [x];
  for (let layer = 0; layer < layers; layer++) {
    const part = (name: string): string => `h.${layer}.${name}`;
    const joined = conv1d(norm(x, part("ln_1")), part("attn.c_attn"));
    const [query, key, value] = split(joined, [channels, channels, channels], 2).map((each) =>
      reshape(each, [batch, time, heads, channels / heads]),
    ) as [Array64, Array64, Array64];
    const attended = causalAttention(query, key, value, attentionMask === undefined ? {} : { keyMask: attentionMask });
    x = add(x, conv1d(reshape(attended, [batch, time, channels]), part("attn.c_proj")));
    x = add(x, conv1d(activation(conv1d(norm(x, part("ln_2")), part("mlp.c_fc"))), part("mlp.c_proj")));
    hidden.push(x);
  }
  x = norm(x, "ln_f");
  hidden[hidden.length - 1] = x;
  const head = config.tie_word_embeddings === false ? required(weights, "lm_head.weight") : weight("wte.weight");
  return { logits: linear(x, head), hidden };
}

function llamaLike(config: HubConfig, weights: Weights, { ids, batch, attentionMask, positions }: ReferenceInput) {
  const { hidden_size: channels = 0, num_hidden_layers: layers = 0, rms_norm_eps: eps = 1e-6 } = config;
  const { num_attention_heads: heads = 0, num_key_value_heads: kvHeads = heads } = config;
  const headSize = config.head_dim ?? channels / heads;
  const theta = config.rope_parameters?.rope_theta ?? config.rope_theta ?? 10000;
  const time = ids.length / batch;
  const { cos, sin } = rotaryTables(time, headSize, theta);
  const weight = (name: string): Array64 => required(weights, name);
  const splitHeads = (x: Array64, count: number): Array64 => reshape(x, [batch, time, count, headSize]);
  /** Qwen3 only. */
  const headNorm = (x: Array64, name: string): Array64 => {
    const scale = weights(name);
    return scale ? rmsNorm(x, scale, eps) : x;
  };

  let x = embedding(weight("model.embed_tokens.weight"), ids, [batch, time]);
  const hidden = [x];
  for (let layer = 0; layer < layers; layer++) {
    const part = (name: string): string => `model.layers.${layer}.${name}`;
    const project = (input: Array64, name: string): Array64 =>
      linear(input, weight(`${part(name)}.weight`), weights(`${part(name)}.bias`));

    const attentionInput = rmsNorm(x, weight(part("input_layernorm.weight")), eps);
    const query = headNorm(splitHeads(project(attentionInput, "self_attn.q_proj"), heads), part("self_attn.q_norm.weight"));
    const key = headNorm(splitHeads(project(attentionInput, "self_attn.k_proj"), kvHeads), part("self_attn.k_norm.weight"));
    const attended = causalAttention(
      rotary(query, cos, sin, positions),
      rotary(key, cos, sin, positions),
      splitHeads(project(attentionInput, "self_attn.v_proj"), kvHeads),
      attentionMask === undefined ? {} : { keyMask: attentionMask },
    );
    x = add(x, project(reshape(attended, [batch, time, heads * headSize]), "self_attn.o_proj"));

    const mlpInput = rmsNorm(x, weight(part("post_attention_layernorm.weight")), eps);
    const gated = swiglu(project(mlpInput, "mlp.gate_proj"), project(mlpInput, "mlp.up_proj"));
    x = add(x, project(gated, "mlp.down_proj"));
    hidden.push(x);
  }
  x = rmsNorm(x, weight("model.norm.weight"), eps);
  hidden[hidden.length - 1] = x;
  const head = config.tie_word_embeddings === true ? weight("model.embed_tokens.weight") : weight("lm_head.weight");
  return { logits: linear(x, head), hidden };
}
