/**
 * The parameters of a model: their Hugging Face names and shapes, so that a checkpoint is a table and not a
 * translation. GPT-2 has its own names; Qwen2 and Qwen3 took over Llama's.
 */
import type { GptConfig } from "./config.ts";

/** Names of a model's parts; a layer's follow `${layers}.${number}.`. Weights and biases end in .weight and .bias. */
interface PartNames {
  /** What all names begin with, except the head's; published checkpoints of the bare decoder leave it out. */
  readonly prefix: string;
  readonly embedding: string;
  /** Only with learned positions. */
  readonly positionEmbedding: string;
  readonly layers: string;
  readonly attentionNorm: string;
  /** One projection for all three, or one each. */
  readonly qkv: string | { readonly q: string; readonly k: string; readonly v: string };
  readonly attentionOut: string;
  readonly mlpNorm: string;
  readonly mlpUp: string;
  readonly mlpDown: string;
  readonly finalNorm: string;
}

const GPT2_NAMES: PartNames = {
  prefix: "transformer.",
  embedding: "transformer.wte",
  positionEmbedding: "transformer.wpe",
  layers: "transformer.h",
  attentionNorm: "ln_1",
  qkv: "attn.c_attn",
  attentionOut: "attn.c_proj",
  mlpNorm: "ln_2",
  mlpUp: "mlp.c_fc",
  mlpDown: "mlp.c_proj",
  finalNorm: "transformer.ln_f",
};

const LLAMA_NAMES: PartNames = {
  prefix: "model.",
  embedding: "model.embed_tokens",
  positionEmbedding: "",
  layers: "model.layers",
  attentionNorm: "input_layernorm",
  qkv: { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" },
  attentionOut: "self_attn.o_proj",
  mlpNorm: "post_attention_layernorm",
  mlpUp: "mlp.up_proj",
  mlpDown: "mlp.down_proj",
  finalNorm: "model.norm",
};

/** Only gated MLPs, heads that are not tied and query/key norms have these; no family calls them otherwise. */
export const MLP_GATE = "mlp.gate_proj";
export const QUERY_NORM = "self_attn.q_norm";
export const KEY_NORM = "self_attn.k_norm";
export const HEAD = "lm_head";

export function partNames({ family }: GptConfig): PartNames {
  return family === "gpt2" ? GPT2_NAMES : LLAMA_NAMES;
}

/** Whether linear layers store [in, out] (GPT-2's "Conv1D") and not, like torch.nn.Linear, [out, in]. */
export function weightsAreInOut({ family }: GptConfig): boolean {
  return family === "gpt2";
}

/** Every parameter's Hugging Face name and shape, in the order of the forward pass. */
export function parameterShapes(config: GptConfig): Map<string, number[]> {
  const { vocabSize, hiddenSize, heads, kvHeads, headSize, mlpSize } = config;
  const names = partNames(config);
  const shapes = new Map<string, number[]>();
  const linear = (name: string, inputs: number, outputs: number, bias: boolean): void => {
    shapes.set(`${name}.weight`, weightsAreInOut(config) ? [inputs, outputs] : [outputs, inputs]);
    if (bias) shapes.set(`${name}.bias`, [outputs]);
  };
  const norm = (name: string): void => {
    shapes.set(`${name}.weight`, [hiddenSize]);
    if (config.norm === "layer") shapes.set(`${name}.bias`, [hiddenSize]);
  };

  shapes.set(`${names.embedding}.weight`, [vocabSize, hiddenSize]);
  if (!config.rope) shapes.set(`${names.positionEmbedding}.weight`, [config.maxPositions, hiddenSize]);
  for (let layer = 0; layer < config.layers; layer++) {
    const part = (name: string): string => `${names.layers}.${layer}.${name}`;
    const [q, kv] = [heads * headSize, kvHeads * headSize];
    norm(part(names.attentionNorm));
    if (typeof names.qkv === "string") linear(part(names.qkv), hiddenSize, q + 2 * kv, config.qkvBias);
    else {
      linear(part(names.qkv.q), hiddenSize, q, config.qkvBias);
      linear(part(names.qkv.k), hiddenSize, kv, config.qkvBias);
      linear(part(names.qkv.v), hiddenSize, kv, config.qkvBias);
    }
    linear(part(names.attentionOut), q, hiddenSize, config.outBias);
    if (config.qkNorm) for (const name of [QUERY_NORM, KEY_NORM]) shapes.set(`${part(name)}.weight`, [headSize]);
    norm(part(names.mlpNorm));
    if (config.mlp === "swiglu") linear(part(MLP_GATE), hiddenSize, mlpSize, config.mlpBias);
    linear(part(names.mlpUp), hiddenSize, mlpSize, config.mlpBias);
    linear(part(names.mlpDown), mlpSize, hiddenSize, config.mlpBias);
  }
  norm(names.finalNorm);
  if (!config.tiedEmbeddings) shapes.set(`${HEAD}.weight`, [vocabSize, hiddenSize]);
  return shapes;
}

/** Number of trainable values. */
export function parameterCount(config: GptConfig): number {
  return [...parameterShapes(config).values()].reduce((sum, shape) => sum + shape.reduce((n, m) => n * m, 1), 0);
}

/**
 * The parameter that a tensor of a checkpoint is, or null for what is no parameter: causal masks that old GPT-2
 * checkpoints carry ("attn.bias" is one, "attn.c_attn.bias" is not), rotary tables of old Llama ones, and the copy of
 * the embedding that some tied checkpoints have as their head.
 */
export function parameterOf(tensorName: string, config: GptConfig): string | null {
  if (/\.attn\.(masked_)?bias$/.test(tensorName) || tensorName.endsWith(".rotary_emb.inv_freq")) return null;
  if (tensorName === `${HEAD}.weight`) return config.tiedEmbeddings ? null : tensorName;
  const { prefix } = partNames(config);
  return tensorName.startsWith(prefix) ? tensorName : prefix + tensorName;
}
