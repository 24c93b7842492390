/**
 * What makes one decoder a GPT-2, a Llama, a Qwen2 or a Qwen3; and config.json, read and written.
 *
 *            norm    positions                  MLP      q/k norm   biases         weights
 *   GPT-2    layer   learned table              GELU     -          all            [in, out], q, k, v in one
 *   Llama    RMS     rotary (llama3 scaling)    SwiGLU   -          by config      [out, in]
 *   Qwen2    RMS     rotary                     SwiGLU   -          on q, k, v     [out, in]
 *   Qwen3    RMS     rotary                     SwiGLU   yes        by config      [out, in]
 *
 * config.json comes in several spellings: transformers 4 writes `rope_theta` and `rope_scaling` (and `torch_dtype`),
 * transformers 5 `rope_parameters` (and `dtype`), the hub has both. All are read, absent keys take transformers'
 * defaults, and what the decoder does not compute is refused by name.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { RotaryScaling } from "../tensor/rotary.ts";

export type Family = "gpt2" | "llama" | "qwen2" | "qwen3";

export interface GptConfig {
  /** Whose parameter names and config.json the model has. */
  readonly family: Family;
  readonly vocabSize: number;
  /** C */
  readonly hiddenSize: number;
  readonly layers: number;
  /** H query heads; each K/V head serves H / K of them. */
  readonly heads: number;
  readonly kvHeads: number;
  /** D; independent of C / H. */
  readonly headSize: number;
  /** F, the width of the MLP. */
  readonly mlpSize: number;
  readonly norm: "layer" | "rms";
  readonly normEps: number;
  /** Rotary embedding of queries and keys; null: a learned table of positions is added to the embeddings. */
  readonly rope: { readonly theta: number; readonly scaling?: RotaryScaling } | null;
  readonly mlp: "swiglu" | "gelu" | "geluTanh";
  /** RMS norm on each query and key head. */
  readonly qkNorm: boolean;
  readonly qkvBias: boolean;
  /** Bias of attention's output projection. */
  readonly outBias: boolean;
  readonly mlpBias: boolean;
  /** Longest sequence, in tokens. */
  readonly maxPositions: number;
  /** Whether the output head is the embedding table. */
  readonly tiedEmbeddings: boolean;
}

/** What a family fixes whatever its size. */
type Traits = Pick<GptConfig, "family" | "norm" | "mlp" | "qkNorm" | "qkvBias" | "outBias" | "mlpBias">;

const LLAMA_LIKE = {
  norm: "rms", mlp: "swiglu", qkNorm: false, qkvBias: false, outBias: false, mlpBias: false,
} as const;

/** The four families; a config.json may still switch biases and the kind of GELU. */
export const FAMILIES = {
  gpt2: {
    family: "gpt2", norm: "layer", mlp: "geluTanh", qkNorm: false, qkvBias: true, outBias: true, mlpBias: true,
  },
  llama: { ...LLAMA_LIKE, family: "llama" },
  qwen2: { ...LLAMA_LIKE, family: "qwen2", qkvBias: true },
  qwen3: { ...LLAMA_LIKE, family: "qwen3", qkNorm: true },
} as const satisfies Record<Family, Traits>;

/** A model directory that cannot be used; the message says which file, why, and what to do. */
export class CheckpointError extends Error {
  override name = "CheckpointError";
}

type JsonObject = Record<string, unknown>;

const MAX_CONFIG_BYTES = 10 * 2 ** 20;

/**
 * Reads and checks config.json.
 * @throws CheckpointError when it is missing, is no config, or asks for something the decoder does not compute.
 */
export function readConfig(directory: string): GptConfig {
  const path = join(directory, "config.json");
  if (!existsSync(directory))
    throw new CheckpointError(`no model directory ${directory}. Fix: check the path given to --model`);
  if (!existsSync(path))
    throw new CheckpointError(`${directory} has no config.json: not a Hugging Face model directory`);
  const json = readJsonObject(path);
  const family = json["model_type"];
  if (typeof family !== "string" || !Object.hasOwn(FAMILIES, family)) {
    const known = Object.keys(FAMILIES).join(", ");
    const inner = join(directory, "model"); // of the folder of a run
    if (family === undefined && existsSync(join(inner, "config.json"))) {
      throw new CheckpointError(`${path} is no model's. Fix: --model ${inner}`);
    }
    throw new CheckpointError(`${path}: model_type ${JSON.stringify(family)} is not supported (only ${known} are)`);
  }
  const reader = configReader(path, json);
  for (const key of ["quantization_config", "num_experts", "num_local_experts"]) {
    if (json[key] !== undefined && json[key] !== null) {
      reader.refuse(key === "quantization_config" ? "a quantised checkpoint" : `a mixture of experts (${key})`);
    }
  }
  const config = family === "gpt2" ? readGpt2(reader) : readLlamaLike(family as Exclude<Family, "gpt2">, reader);
  if (config.heads % config.kvHeads !== 0) {
    reader.refuse(`${config.heads} heads over ${config.kvHeads} key/value heads`);
  }
  if (config.rope && config.headSize % 2 !== 0) reader.refuse(`an odd head_dim (${config.headSize})`);
  return config;
}

/** GPT2Config of transformers. */
function readGpt2(reader: ConfigReader): GptConfig {
  const { integer, number, flag, refuse } = reader;
  if (!flag("scale_attn_weights", true)) refuse("scale_attn_weights false");
  if (flag("scale_attn_by_inverse_layer_idx", false)) refuse("scale_attn_by_inverse_layer_idx");
  if (flag("add_cross_attention", false)) refuse("cross-attention");
  const hiddenSize = integer("n_embd", 768);
  const heads = integer("n_head", 12);
  if (hiddenSize % heads !== 0) refuse(`n_embd ${hiddenSize} over ${heads} heads`);
  return {
    ...FAMILIES.gpt2,
    mlp: reader.choice("activation_function", "gelu_new", GELUS),
    vocabSize: integer("vocab_size", 50257),
    hiddenSize,
    layers: integer("n_layer", 12),
    heads,
    kvHeads: heads,
    headSize: hiddenSize / heads,
    mlpSize: integer("n_inner", 4 * hiddenSize),
    normEps: number("layer_norm_epsilon", 1e-5),
    rope: null,
    maxPositions: integer("n_positions", 1024),
    tiedEmbeddings: flag("tie_word_embeddings", true),
  };
}

/** transformers' names of the two forms of GELU. */
const GELUS = { gelu_new: "geluTanh", gelu_pytorch_tanh: "geluTanh", gelu: "gelu" } as const;

/** Defaults of transformers' LlamaConfig, Qwen2Config and Qwen3Config where they differ. */
const LLAMA_LIKE_DEFAULTS = {
  llama: { vocabSize: 32000, mlpSize: 11008, maxPositions: 2048 },
  qwen2: { vocabSize: 151936, mlpSize: 22016, maxPositions: 32768 },
  qwen3: { vocabSize: 151936, mlpSize: 22016, maxPositions: 32768 },
};

/** LlamaConfig, Qwen2Config and Qwen3Config of transformers. */
function readLlamaLike(family: Exclude<Family, "gpt2">, reader: ConfigReader): GptConfig {
  const { json, integer, number, flag, refuse } = reader;
  reader.choice("hidden_act", "silu", { silu: "swiglu" });
  const slides = Array.isArray(json["layer_types"]) && json["layer_types"].some((type) => type !== "full_attention");
  if (slides || (family !== "llama" && flag("use_sliding_window", false))) refuse("sliding-window attention");
  const hiddenSize = integer("hidden_size", 4096);
  const heads = integer("num_attention_heads", 32);
  // An explicit null means "as many as query heads"; Qwen's classes have a default of their own for an absent key.
  const kvDefault = family === "llama" || json["num_key_value_heads"] === null ? heads : 32;
  const impliedHeadSize = hiddenSize / heads;
  const headSize = integer("head_dim", family === "qwen3" ? 128 : impliedHeadSize);
  // Qwen2's biases are not an option of its config, they are part of the family.
  const attentionBias = family !== "qwen2" && flag("attention_bias", false);
  const defaults = LLAMA_LIKE_DEFAULTS[family];
  return {
    ...FAMILIES[family],
    qkvBias: FAMILIES[family].qkvBias || attentionBias,
    outBias: attentionBias,
    mlpBias: family === "llama" && flag("mlp_bias", false),
    vocabSize: integer("vocab_size", defaults.vocabSize),
    hiddenSize,
    layers: integer("num_hidden_layers", 32),
    heads,
    kvHeads: integer("num_key_value_heads", kvDefault),
    headSize,
    mlpSize: integer("intermediate_size", defaults.mlpSize),
    normEps: number("rms_norm_eps", 1e-6),
    rope: readRope(reader),
    maxPositions: integer("max_position_embeddings", defaults.maxPositions),
    tiedEmbeddings: flag("tie_word_embeddings", false),
  };
}

/**
 * `rope_theta` and `rope_scaling` (transformers 4, the hub) or `rope_parameters` (transformers 5). As there, a scaling
 * that somebody has added to a file with parameters counts, and not they.
 */
function readRope({ path, json, number, refuse }: ConfigReader): NonNullable<GptConfig["rope"]> {
  const [scaling, parameters] = [json["rope_scaling"], json["rope_parameters"]] as (JsonObject | null | undefined)[];
  const isGiven = scaling && Object.keys(scaling).length > 0;
  const rope: JsonObject = (isGiven ? scaling : parameters) ?? {};
  const type = rope["rope_type"] ?? rope["type"] ?? "default";
  const theta = number("rope_theta", number("rope_theta", 10000), rope);
  if ((rope["partial_rotary_factor"] ?? json["partial_rotary_factor"] ?? 1) !== 1) refuse("partial rotary embedding");
  if (type === "default") return { theta };
  if (type !== "llama3") refuse(`rope type ${JSON.stringify(type)}`);
  const required = (key: string): number => {
    if (rope[key] === undefined) throw new CheckpointError(`${path}: rope type "llama3" without ${key}`);
    return number(key, 0, rope);
  };
  return {
    theta,
    scaling: {
      factor: required("factor"),
      low_freq_factor: required("low_freq_factor"),
      high_freq_factor: required("high_freq_factor"),
      original_max_position_embeddings: required("original_max_position_embeddings"),
    },
  };
}

// ---- one key at a time --------------------------------------------------------------------------------------------

interface ConfigReader {
  readonly path: string;
  readonly json: JsonObject;
  /** A positive number; an absent or null key takes the fallback. */
  number: (key: string, fallback: number, from?: JsonObject) => number;
  integer: (key: string, fallback: number) => number;
  flag: (key: string, fallback: boolean) => boolean;
  /** One of the named values, translated. */
  choice: <T>(key: string, fallback: string, values: Readonly<Record<string, T>>) => T;
  refuse: (what: string) => never;
}

function configReader(path: string, json: JsonObject): ConfigReader {
  const refuse = (what: string): never => {
    throw new CheckpointError(`${path}: ${what} is not supported`);
  };
  const number = (key: string, fallback: number, from: JsonObject = json): number => {
    const value = from[key] ?? fallback;
    if (typeof value !== "number" || !(value > 0))
      throw new CheckpointError(`${path}: ${key} must be a positive number`);
    return value;
  };
  const integer = (key: string, fallback: number): number => {
    const value = number(key, fallback);
    if (!Number.isSafeInteger(value)) throw new CheckpointError(`${path}: ${key} must be an integer, not ${value}`);
    return value;
  };
  const flag = (key: string, fallback: boolean): boolean => {
    const value = json[key] ?? fallback;
    if (typeof value !== "boolean") throw new CheckpointError(`${path}: ${key} must be true or false`);
    return value;
  };
  const choice = <T>(key: string, fallback: string, values: Readonly<Record<string, T>>): T => {
    const name = json[key] ?? fallback;
    if (typeof name !== "string" || !Object.hasOwn(values, name)) return refuse(`${key} ${JSON.stringify(name)}`);
    return values[name] as T;
  };
  return { path, json, number, integer, flag, choice, refuse };
}

/** A JSON file that holds an object. @throws CheckpointError when it does not, or is above 10 MiB. */
export function readJsonObject(path: string): JsonObject {
  let json: unknown;
  try {
    if (statSync(path).size > MAX_CONFIG_BYTES) throw new Error(`above ${MAX_CONFIG_BYTES} bytes`);
    json = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new CheckpointError(`${path} is not valid JSON: ${(error as Error).message}`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new CheckpointError(`${path} does not hold a JSON object`);
  }
  return json as JsonObject;
}

// ---- writing ------------------------------------------------------------------------------------------------------

/** config.json as transformers 4 and 5 both read it. `readConfig` gives back the same config. */
export function configToHub(config: GptConfig, dtype: "F32" | "BF16"): JsonObject {
  return {
    architectures: [{ gpt2: "GPT2LMHeadModel", llama: "LlamaForCausalLM", qwen2: "Qwen2ForCausalLM",
      qwen3: "Qwen3ForCausalLM" }[config.family]],
    model_type: config.family,
    vocab_size: config.vocabSize,
    ...(config.family === "gpt2" ? gpt2ToHub(config) : llamaLikeToHub(config)),
    tie_word_embeddings: config.tiedEmbeddings,
    torch_dtype: dtype === "BF16" ? "bfloat16" : "float32",
  };
}

function gpt2ToHub(config: GptConfig): JsonObject {
  return {
    n_embd: config.hiddenSize,
    n_layer: config.layers,
    n_head: config.heads,
    n_inner: config.mlpSize,
    activation_function: config.mlp === "gelu" ? "gelu" : "gelu_new",
    layer_norm_epsilon: config.normEps,
    n_positions: config.maxPositions,
    n_ctx: config.maxPositions,
  };
}

function llamaLikeToHub(config: GptConfig): JsonObject {
  const { theta, scaling } = config.rope!;
  const llama3 = scaling && { rope_type: "llama3", ...scaling };
  return {
    hidden_size: config.hiddenSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headSize,
    intermediate_size: config.mlpSize,
    hidden_act: "silu",
    rms_norm_eps: config.normEps,
    // The first two are transformers 4's, the third 5's.
    rope_theta: theta,
    ...(llama3 ? { rope_scaling: llama3 } : {}),
    rope_parameters: { ...(llama3 ?? { rope_type: "default" }), rope_theta: theta },
    max_position_embeddings: config.maxPositions,
    ...(config.family === "qwen2" ? {} : { attention_bias: config.outBias }),
    ...(config.family === "llama" ? { mlp_bias: config.mlpBias } : { use_sliding_window: false }),
  };
}
