/**
 * A Hugging Face model directory <-> a Gpt. Reads config.json and one or several safetensors files (F32, F16, BF16,
 * widened to float32); writes a directory that Python transformers loads.
 *
 * Weights are read tensor by tensor: while loading, the host holds one at a time. A directory is written under a
 * temporary name and renamed when complete, so that no half-written model ever has its final name.
 */
import {
  closeSync,
  copyFileSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { openSafetensors, writeSafetensors, type SafetensorsFile } from "../data/safetensors.ts";
import { read } from "../tensor/tensor.ts";
import { createGpt, parameterShapes, type Gpt, type GptConfig } from "./gpt.ts";

/** A model directory that cannot be used; the message says which file, why, and what to do. */
export class CheckpointError extends Error {
  override name = "CheckpointError";
}

/** Files beside the weights that make a directory usable for text; copied along when a model is saved. */
export const TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/**
 * Loads a model onto the GPU.
 * @throws CheckpointError for a missing or unsupported config, and for weights that do not fit it: the first ten
 * missing, mis-shaped and unexpected tensors are listed, the others counted. @throws SafetensorsError for a corrupt
 * weight file.
 */
export function loadGpt(directory: string): Gpt {
  const config = readConfig(directory);
  const files: SafetensorsFile[] = [];
  try {
    for (const name of weightFiles(directory)) files.push(openSafetensors(join(directory, name)));
    const owner = new Map<string, SafetensorsFile>();
    for (const file of files) for (const name of file.entries.keys()) owner.set(name, file);
    checkWeights(directory, config, owner);
    return createGpt(config, (name) => owner.get(name)!.readF32(name));
  } finally {
    for (const file of files) file.close();
  }
}

/**
 * Writes `model` as `directory`, replacing it; text files are copied from `textFrom` (the directory it was loaded
 * from). BF16 halves the size and rounds to nearest even; F32 keeps every bit.
 */
export async function saveGpt(
  model: Gpt,
  directory: string,
  { dtype = "F32", textFrom }: { dtype?: "F32" | "BF16"; textFrom?: string } = {},
): Promise<void> {
  const tensors: { name: string; shape: readonly number[]; dtype: "F32" | "BF16"; data: Float32Array }[] = [];
  for (const [name, { value }] of model.parameters) {
    tensors.push({ name, shape: value.shape, dtype, data: await read(value) });
  }
  replaceDirectory(directory, (target) => {
    writeSafetensors(join(target, "model.safetensors"), tensors, { format: "pt" });
    writeFileSync(join(target, "config.json"), JSON.stringify(configToHub(model.config, dtype), null, 2) + "\n");
    for (const name of textFrom ? TEXT_FILES : []) {
      const source = join(textFrom!, name);
      if (existsSync(source)) copyFileSync(source, join(target, name));
    }
  });
}

/**
 * Lets `fill` write a new directory under a temporary name beside `directory`, then puts it in place of the old one.
 * When anything throws, the old one is as it was. A process killed between the two renames leaves the old one as
 * .old-PID.
 */
export function replaceDirectory(directory: string, fill: (temporary: string) => void): void {
  const temporary = `${directory}.tmp-${process.pid}`;
  const previous = `${directory}.old-${process.pid}`;
  try {
    rmSync(temporary, { recursive: true, force: true });
    mkdirSync(temporary, { recursive: true });
    fill(temporary);
    if (existsSync(directory)) renameSync(directory, previous);
    renameSync(temporary, directory);
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    if (!existsSync(directory) && existsSync(previous)) renameSync(previous, directory);
    throw error;
  }
  rmSync(previous, { recursive: true, force: true });
  syncDirectory(dirname(directory));
}

/** Makes the renames themselves durable. Windows cannot open a directory and does not need it. */
function syncDirectory(directory: string): void {
  if (process.platform === "win32") return;
  const handle = openSync(directory, "r");
  fsyncSync(handle);
  closeSync(handle);
}

// ---- config.json --------------------------------------------------------------------------------------------------

/** Reads and checks config.json. Absent keys take the defaults of transformers' Qwen3Config. */
export function readConfig(directory: string): GptConfig {
  const path = join(directory, "config.json");
  if (!existsSync(directory))
    throw new CheckpointError(`no model directory ${directory}. Fix: check the path given to --model`);
  if (!existsSync(path))
    throw new CheckpointError(`${directory} has no config.json: not a Hugging Face model directory`);
  const json = readJsonObject(path);
  const refuse = (what: string): never => {
    throw new CheckpointError(`${path}: ${what} is not supported`);
  };
  if (json.model_type !== "qwen3") refuse(`model_type ${JSON.stringify(json.model_type)} (only "qwen3" is)`);
  if ((json.hidden_act ?? "silu") !== "silu") refuse(`hidden_act ${JSON.stringify(json.hidden_act)}`);
  if (json.attention_bias === true) refuse("attention_bias");
  if (json.use_sliding_window === true) refuse("sliding-window attention");
  if (json.quantization_config !== undefined) refuse("a quantised checkpoint");
  const rope = { ...(json.rope_scaling as object | null), ...(json.rope_parameters as object | null) } as Record<
    string,
    unknown
  >;
  const ropeType = rope.rope_type ?? rope.type ?? "default";
  if (ropeType !== "default") refuse(`rope type ${JSON.stringify(ropeType)}`);

  const number = (key: string, fallback: number, from: Record<string, unknown> = json): number => {
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
  const config: GptConfig = {
    vocabSize: integer("vocab_size", 151936),
    hiddenSize: integer("hidden_size", 4096),
    layers: integer("num_hidden_layers", 32),
    heads: integer("num_attention_heads", 32),
    kvHeads: integer("num_key_value_heads", 32),
    headSize: integer("head_dim", 128),
    mlpSize: integer("intermediate_size", 22016),
    normEps: number("rms_norm_eps", 1e-6),
    ropeTheta: number("rope_theta", number("rope_theta", 10000), rope),
    maxPositions: integer("max_position_embeddings", 32768),
    tiedEmbeddings: json.tie_word_embeddings === true,
  };
  if (config.heads % config.kvHeads !== 0) refuse(`${config.heads} heads over ${config.kvHeads} key/value heads`);
  if (config.headSize % 2 !== 0) refuse(`an odd head_dim (${config.headSize})`);
  return config;
}

function readJsonObject(path: string): Record<string, unknown> {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new CheckpointError(`${path} is not valid JSON: ${(error as Error).message}`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json)) {
    throw new CheckpointError(`${path} does not hold a JSON object`);
  }
  return json as Record<string, unknown>;
}

/** config.json as transformers 4 and 5 both read it: rope_theta at the top level and in `rope_parameters`. */
export function configToHub(config: GptConfig, dtype: "F32" | "BF16"): Record<string, unknown> {
  return {
    architectures: ["Qwen3ForCausalLM"],
    model_type: "qwen3",
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headSize,
    intermediate_size: config.mlpSize,
    hidden_act: "silu",
    rms_norm_eps: config.normEps,
    rope_theta: config.ropeTheta,
    rope_parameters: { rope_type: "default", rope_theta: config.ropeTheta },
    max_position_embeddings: config.maxPositions,
    tie_word_embeddings: config.tiedEmbeddings,
    attention_bias: false,
    use_sliding_window: false,
    torch_dtype: dtype === "BF16" ? "bfloat16" : "float32",
  };
}

// ---- weights ------------------------------------------------------------------------------------------------------

/** The safetensors files of a directory: the shards of the index if there is one. */
function weightFiles(directory: string): string[] {
  const single = "model.safetensors";
  const indexPath = join(directory, `${single}.index.json`);
  if (existsSync(join(directory, single))) return [single];
  if (!existsSync(indexPath)) {
    throw new CheckpointError(
      `${directory} has no ${single} and no ${single}.index.json. Fix: check that the weights are there`,
    );
  }
  const shards = [
    ...new Set(Object.values((readJsonObject(indexPath)["weight_map"] ?? {}) as Record<string, unknown>)),
  ];
  // Only names of this form: an index must not lead outside its directory.
  const bad = shards.find((name) => typeof name !== "string" || !/^model-\d{5}-of-\d{5}\.safetensors$/.test(name));
  if (bad !== undefined || shards.length === 0) {
    throw new CheckpointError(
      `${indexPath}: ${bad === undefined ? "no weight_map" : `unexpected shard name ${JSON.stringify(bad)}`}`,
    );
  }
  const missing = (shards as string[]).filter((name) => !existsSync(join(directory, name)));
  if (missing.length > 0) throw new CheckpointError(`${directory}: missing shards ${missing.join(", ")}`);
  return (shards as string[]).sort();
}

/** Compares what the files hold with what the config asks for; lists every difference at once. */
function checkWeights(directory: string, config: GptConfig, owner: ReadonlyMap<string, SafetensorsFile>): void {
  const expected = parameterShapes(config);
  const problems: string[] = [];
  for (const [name, shape] of expected) {
    const entry = owner.get(name)?.entries.get(name);
    if (!entry) problems.push(`missing ${name} [${shape.join(", ")}]`);
    else if (entry.shape.join() !== shape.join()) {
      problems.push(`${name} has shape [${entry.shape.join(", ")}], the config asks for [${shape.join(", ")}]`);
    }
  }
  for (const name of owner.keys()) {
    // A tied checkpoint may carry a redundant copy of the embedding as its head, as some published ones do.
    const isRedundantHead = config.tiedEmbeddings && name === "lm_head.weight";
    if (!expected.has(name) && !isRedundantHead) problems.push(`unexpected ${name}`);
  }
  if (problems.length > 0) {
    const more = problems.length > 10 ? `; and ${problems.length - 10} more` : "";
    throw new CheckpointError(
      `${directory}: the weights do not fit config.json: ${problems.slice(0, 10).join("; ")}${more}`,
    );
  }
}
