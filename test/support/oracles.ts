/**
 * Typed readers of the fixtures: results of PyTorch, transformers and nano-rl (see test/fixtures/README.md).
 *
 * The safetensors reader here is a second, independent one: it trusts its files, which the library's own reader must
 * not.
 */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";
import type { Array64 } from "./reference.ts";
import { array64 } from "./reference.ts";

/** Path of a file or directory under test/fixtures. */
export function fixturePath(relative: string): string {
  return fileURLToPath(new URL(`../fixtures/${relative}`, import.meta.url));
}

function readJson(relative: string): unknown {
  const bytes = readFileSync(fixturePath(relative));
  return JSON.parse((relative.endsWith(".gz") ? gunzipSync(bytes) : bytes).toString("utf8"));
}

// ---------------------------------------------------------------------------------------------------------------------
// ops.json.gz: single operations

/** Everything that an operation takes besides tensors, under PyTorch's names. */
export interface OpAttributes {
  transpose_a?: boolean;
  transpose_b?: boolean;
  dim?: number;
  dims?: number[] | null;
  keepdim?: boolean;
  unbiased?: boolean;
  reduction?: "mean" | "sum" | "none";
  ignore_index?: number;
  eps?: number;
  exponent?: number;
  min?: number;
  max?: number;
  value?: number;
  dim0?: number;
  dim1?: number;
  shape?: number[];
  transpose_first?: [number, number];
  start?: number;
  stop?: number;
  step?: number;
  sizes?: number[];
  repeats?: number;
  scale?: number;
  query_offset?: number;
  rope_theta?: number;
  head_dim?: number;
}

/** A tensor of a case. `integer`: ids, positions and masks, which have no gradient. */
export interface OpTensor extends Array64 {
  integer: boolean;
}

export type OpInputs = Record<string, OpTensor>;

export interface OpCase {
  op: string;
  /** op/variant, unique. */
  name: string;
  attrs: OpAttributes;
  note: string;
  /** True where the case sits at a tie or kink, and so records a convention rather than a derivative. */
  atKink: boolean;
  inputs: OpInputs;
  outputs: Array64[];
  /** One for each output; none for operations without a gradient. */
  cotangents: Array64[];
  /** Gradient of sum(output * cotangent), for every floating input. */
  grads: Record<string, Array64>;
}

interface RawTensor {
  shape: number[];
  data: number[];
  dtype?: string;
}

interface RawCase {
  op: string;
  name: string;
  attrs: OpAttributes;
  note?: string;
  inputs: Record<string, RawTensor>;
  outputs: RawTensor[];
  cotangents?: RawTensor[];
  grads?: Record<string, RawTensor>;
}

const mapValues = <T, R>(record: Record<string, T>, f: (value: T) => R): Record<string, R> =>
  Object.fromEntries(Object.entries(record).map(([key, value]) => [key, f(value)]));

/** Inputs and cotangents are float32 numbers written in their shortest decimal form: rounding restores them exactly. */
const float32 = (raw: RawTensor): Array64 => array64(raw.shape, Float64Array.from(raw.data, Math.fround));
const float64 = (raw: RawTensor): Array64 => array64(raw.shape, raw.data);

/** All cases of single operations, in the order of the file. */
export function loadOpCases(): OpCase[] {
  const { cases } = readJson("ops.json.gz") as { cases: RawCase[] };
  return cases.map((raw) => ({
    op: raw.op,
    name: raw.name,
    attrs: raw.attrs,
    note: raw.note ?? "",
    atKink: raw.note?.startsWith("torch's convention") ?? false,
    inputs: mapValues(raw.inputs, (tensor) => ({ ...float32(tensor), integer: tensor.dtype === "int" })),
    outputs: raw.outputs.map(float64),
    cotangents: (raw.cotangents ?? []).map(float32),
    grads: mapValues(raw.grads ?? {}, float64),
  }));
}

// ---------------------------------------------------------------------------------------------------------------------
// safetensors

export type SafetensorsDtype = "F32" | "F16" | "BF16" | "I64";

/** A tensor of a safetensors file, widened to float64; int64 values are small here and stay exact. */
export interface StoredTensor extends Array64 {
  dtype: SafetensorsDtype;
}

/** IEEE 754 half precision: 1 sign bit, 5 exponent bits, 10 fraction bits. */
function decodeFloat16(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** bfloat16 is the upper half of a float32. */
function decodeBfloat16(bits: number): number {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits << 16);
  return view.getFloat32(0);
}

const decoders: Record<SafetensorsDtype, { bytes: number; decode: (view: DataView, offset: number) => number }> = {
  F32: { bytes: 4, decode: (view, offset) => view.getFloat32(offset, true) },
  F16: { bytes: 2, decode: (view, offset) => decodeFloat16(view.getUint16(offset, true)) },
  BF16: { bytes: 2, decode: (view, offset) => decodeBfloat16(view.getUint16(offset, true)) },
  I64: { bytes: 8, decode: (view, offset) => Number(view.getBigInt64(offset, true)) },
};

/** Reads a whole safetensors file: an 8-byte header length, the JSON header, then the tensors. */
export function readSafetensors(path: string): Map<string, StoredTensor> {
  const file = readFileSync(path);
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const dataStart = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(file.toString("utf8", 8, dataStart)) as Record<
    string,
    { dtype: SafetensorsDtype; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, StoredTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { bytes, decode } = decoders[entry.dtype];
    const [begin, end] = entry.data_offsets;
    const count = (end - begin) / bytes;
    const data = Float64Array.from({ length: count }, (_, i) => decode(view, dataStart + begin + i * bytes));
    tensors.set(name, { ...array64(entry.shape, data), dtype: entry.dtype });
  }
  return tensors;
}

// ---------------------------------------------------------------------------------------------------------------------
// models/NAME: whole models of four families

/** The fields of a config.json that the tests need: GPT-2's names, or Llama's and Qwen's. */
export interface HubConfig {
  model_type: "gpt2" | "llama" | "qwen2" | "qwen3";
  vocab_size: number;
  tie_word_embeddings?: boolean;
  n_embd?: number;
  n_layer?: number;
  n_head?: number;
  layer_norm_epsilon?: number;
  activation_function?: string;
  hidden_size?: number;
  num_hidden_layers?: number;
  num_attention_heads?: number;
  num_key_value_heads?: number;
  head_dim?: number;
  rms_norm_eps?: number;
  rope_theta?: number;
  rope_parameters?: { rope_theta: number };
}

export interface ModelExpectations {
  name: string;
  stored_dtype: string;
  tied_embeddings: boolean;
  parameters: number;
  parameter_shapes: Record<string, number[]>;
  main: { loss: number; perplexity: number; logits_std: number; grad_l2: number };
  padding: Record<"left" | "right" | "both", { loss: number; loss_with_position_ids?: number }>;
  greedy: { prompt: number[]; continuation: number[]; min_margin: number };
  greedy_left_padded_batch: { input_ids: number[][]; attention_mask: number[][]; continuation: number[][] };
  adamw: {
    lr_peak: number;
    betas: [number, number];
    eps: number;
    weight_decay: number;
    warmup_steps: number;
    total_steps: number;
    max_grad_norm: number;
    /** Learning rate, loss before the update and gradient norm of each step. */
    lr: number[];
    loss: number[];
    grad_norm_before_clip: number[];
    loss_after_last_step: number;
    final_param_l2: Record<string, number>;
  };
}

export interface ModelOracle {
  /** The checkpoint's directory, for the library's own loader. */
  directory: string;
  config: HubConfig;
  expected: ModelExpectations;
  /** expected.safetensors: ids, logits, hidden states, gradients. */
  tensors: Map<string, StoredTensor>;
  /** The checkpoint's weights, all shards together, under the names that transformers gives its parameters. */
  weights: Map<string, StoredTensor>;
}

export const modelOracleNames = [
  "gpt2-a1", "gpt2-a2", "llama-a1", "llama-a2", "qwen2-a1", "qwen2-a2", "qwen3-a1", "qwen3-a2",
] as const;

/** Everything about one checkpoint of test/fixtures/models. */
export function loadModelOracle(name: (typeof modelOracleNames)[number]): ModelOracle {
  const directory = fixturePath(`models/${name}`);
  const sharded = existsSync(`${directory}/model.safetensors.index.json`);
  const index = sharded
    ? (readJson(`models/${name}/model.safetensors.index.json`) as { weight_map: Record<string, string> }).weight_map
    : { all: "model.safetensors" };
  const shards = [...new Set(Object.values(index))].map((file) => readSafetensors(`${directory}/${file}`));
  const config = readJson(`models/${name}/config.json`) as HubConfig;
  const prefix = config.model_type === "gpt2" ? "transformer." : "";
  const named = (key: string): string => (key.startsWith(prefix) ? key : prefix + key);
  return {
    directory,
    config,
    expected: readJson(`models/${name}/expected.json`) as ModelExpectations,
    tensors: readSafetensors(`${directory}/expected.safetensors`),
    weights: new Map(shards.flatMap((shard) => [...shard]).map(([key, value]) => [named(key), value])),
  };
}

// ---------------------------------------------------------------------------------------------------------------------
// grpo/nano_rl.json.gz: the objective of the reference experiment

interface NanoRlExperience {
  tokens: number[];
  prompt_length: number;
  reward: number;
  /** [tokens, vocabulary] of the current policy. */
  logits: number[][];
  /** [tokens, vocabulary] of the objective. */
  grad_logits: number[][];
}

interface NanoRlCommon {
  name: string;
  vocab: number;
  epsilon_low: number;
  epsilon_high: number;
  /** To be maximised. */
  objective: number;
}

/** grpo has one ratio per sequence, from summed log-probabilities; dapo has one per response token. */
export type NanoRlCase = NanoRlCommon &
  (
    | { algorithm: "grpo"; group: (NanoRlExperience & { old_log_probs_sum: number; ratio: number })[] }
    | { algorithm: "dapo"; group: (NanoRlExperience & { old_log_probs: number[]; ratio: number[] })[] }
  );

/** Objectives and their gradients with respect to the logits, from the reference experiment's code. */
export function loadNanoRl(): NanoRlCase[] {
  return (readJson("grpo/nano_rl.json.gz") as { cases: NanoRlCase[] }).cases;
}

// ---------------------------------------------------------------------------------------------------------------------
// grpo/trl_*.json.gz: TRL's losses and advantages

/** TRL's options, under its names. Its `grpo` at sequence level is GSPO. */
export interface TrlConfig {
  loss_type: "grpo" | "bnpo" | "dr_grpo" | "dapo" | "cispo" | "sapo" | "luspo" | "vespo";
  importance_sampling_level: "token" | "sequence";
  epsilon_low: number;
  epsilon_high: number;
  delta: number | null;
  beta: number;
  use_bias_correction_kl: boolean;
  top_entropy_quantile: number;
  off_policy_mask_threshold: number | null;
  entropy_coef: number;
  use_old_logps: boolean;
  use_tool_mask: boolean;
  use_importance_sampling_ratio: boolean;
  gradient_accumulation_steps: number;
  max_completion_length: number;
  num_items_in_batch: number;
}

/** Two groups of completions; every array of arrays is [completion][token]. */
export interface TrlInput {
  rewards: number[];
  advantages: number[];
  completion_mask: number[][];
  tool_mask: number[][];
  per_token_logps: number[][];
  old_per_token_logps: number[][];
  ref_per_token_logps: number[][];
  entropies: number[][];
  sampling_per_token_logps: number[][];
  importance_sampling_ratio: number[][];
}

/** A loss is to be minimised: minus our objectives. */
export interface TrlResult {
  loss: number;
  grad_per_token_logps: number[][];
  /** Only with an entropy bonus. */
  grad_entropies?: number[][];
  metrics: Record<string, number>;
}

export interface TrlLossCase extends TrlResult {
  name: string;
  config: TrlConfig;
  input: TrlInput;
  /** Where the release differs from the commit that all other figures are from. */
  "in_trl_1.13.0"?: TrlResult;
}

/** The 83 losses of TRL's GRPOTrainer._compute_loss. */
export function loadTrlLosses(): TrlLossCase[] {
  const { inputs, cases } = readJson("grpo/trl_loss.json.gz") as {
    inputs: Record<string, TrlInput>;
    cases: (TrlResult & { name: string; config: TrlConfig; input: string })[];
  };
  return cases.map((raw) => ({ ...raw, input: inputs[raw.input]! }));
}

export interface TrlAdvantageCase {
  name: string;
  group_size: number;
  aggregation: "sum_then_normalize" | "normalize_then_sum";
  scale_rewards: "group" | "batch" | "none";
  reward_weights: number[];
  /** [completion][reward function]; null where the function gave none. */
  rewards_per_func: (number | null)[][];
  advantages: number[];
}

/** The 16 results of TRL's advantage lines. */
export function loadTrlAdvantages(): TrlAdvantageCase[] {
  return (readJson("grpo/trl_advantages.json.gz") as { cases: TrlAdvantageCase[] }).cases;
}

export interface EndToEnd {
  temperature: number;
  /** `grad_l2`: L2 norm of each parameter's gradient of the loss. */
  cases: { name: string; config: TrlConfig; loss: number; metrics: Record<string, number>;
    grad_l2: Record<string, number>; gradients_stored: boolean }[];
  /** Prompts, completions, log-probabilities, entropies, and `CASE.grad.<parameter>`. */
  tensors: Map<string, StoredTensor>;
}

/** The chain from a checkpoint of test/fixtures/models to the gradient of a TRL loss. */
export function loadEndToEnd(name: "gpt2-a1" | "qwen3-a1"): EndToEnd {
  const { temperature, cases } = readJson(`grpo/e2e-${name}.json`) as Omit<EndToEnd, "tensors">;
  return { temperature, cases, tensors: readSafetensors(fixturePath(`grpo/e2e-${name}.safetensors`)) };
}
