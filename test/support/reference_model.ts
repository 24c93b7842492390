/**
 * A Qwen3 model in plain float64, put together from the reference operations: the layer diagram of the architecture
 * with nothing left out. Weights go by their Hugging Face names.
 */
import type { Array64 } from "./reference.ts";
import { add, swiglu } from "./reference.ts";
import { reshape } from "./reference_shape.ts";
import { causalAttention, embedding, linear, rmsNorm, rotary, rotaryTables } from "./reference_nn.ts";
import type { Qwen3Config } from "./oracles.ts";

export interface ReferenceForward {
  /** [batch, time, vocabulary] */
  logits: Array64;
  /** As transformers' output_hidden_states: the embeddings, each layer's output, the last one after the final norm. */
  hidden: Array64[];
}

/**
 * Logits for ids [batch, time], row-major. `attentionMask` [batch, time] is 1 for real tokens; positions count from the
 * start of the row, padding included, unless given.
 */
export function qwen3Forward(
  config: Qwen3Config,
  weights: ReadonlyMap<string, Array64>,
  ids: ArrayLike<number>,
  batch: number,
  { attentionMask, positions }: { attentionMask?: ArrayLike<number>; positions?: ArrayLike<number> } = {},
): ReferenceForward {
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim: headSize, rms_norm_eps: eps } = config;
  const theta = config.rope_parameters?.rope_theta ?? config.rope_theta ?? 10000;
  const time = ids.length / batch;
  const { cos, sin } = rotaryTables(time, headSize, theta);
  const weight = (name: string): Array64 => {
    const found = weights.get(name);
    if (found === undefined) throw new Error(`qwen3Forward: no weight "${name}"`);
    return found;
  };
  const splitHeads = (x: Array64, count: number): Array64 => reshape(x, [batch, time, count, headSize]);

  let x = embedding(weight("model.embed_tokens.weight"), ids, [batch, time]);
  const hidden = [x];
  for (let layer = 0; layer < config.num_hidden_layers; layer++) {
    const layerWeight = (name: string): Array64 => weight(`model.layers.${layer}.${name}.weight`);

    const attentionInput = rmsNorm(x, layerWeight("input_layernorm"), eps);
    const query = splitHeads(linear(attentionInput, layerWeight("self_attn.q_proj")), heads);
    const key = splitHeads(linear(attentionInput, layerWeight("self_attn.k_proj")), kvHeads);
    const value = splitHeads(linear(attentionInput, layerWeight("self_attn.v_proj")), kvHeads);
    const attended = causalAttention(
      rotary(rmsNorm(query, layerWeight("self_attn.q_norm"), eps), cos, sin, positions),
      rotary(rmsNorm(key, layerWeight("self_attn.k_norm"), eps), cos, sin, positions),
      value,
      attentionMask === undefined ? {} : { keyMask: attentionMask },
    );
    const joined = reshape(attended, [batch, time, heads * headSize]);
    x = add(x, linear(joined, layerWeight("self_attn.o_proj")));

    const mlpInput = rmsNorm(x, layerWeight("post_attention_layernorm"), eps);
    const gate = linear(mlpInput, layerWeight("mlp.gate_proj"));
    const up = linear(mlpInput, layerWeight("mlp.up_proj"));
    x = add(x, linear(swiglu(gate, up), layerWeight("mlp.down_proj")));
    hidden.push(x);
  }
  x = rmsNorm(x, weight("model.norm.weight"), eps);
  hidden[hidden.length - 1] = x;
  const head = weight(config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  return { logits: linear(x, head), hidden };
}
