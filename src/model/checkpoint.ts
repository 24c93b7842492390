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
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { writeSafetensors } from "../data/safetensors.ts";
import { openWeights, type WeightFiles } from "../data/safetensors_index.ts";
import { read } from "../tensor/tensor.ts";
import { CheckpointError, configToHub, readConfig, readJsonObject, type GptConfig } from "./config.ts";
import { createGpt, type Gpt } from "./gpt.ts";
import { parameterOf, parameterShapes } from "./parameters.ts";

/** Files beside the weights that make a directory usable for text; copied along when a model is saved. */
export const TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/**
 * Loads a model onto the GPU.
 * @throws CheckpointError for a missing or unsupported config, and for weights that do not fit it: the first ten
 * missing, mis-shaped and unexpected tensors are listed, the others counted. @throws SafetensorsError for missing or
 * corrupt weight files.
 */
export function loadGpt(directory: string): Gpt {
  const config = readConfig(directory);
  const weights = openWeights(directory);
  try {
    const tensorNames = parameterTensors(directory, config, weights);
    return createGpt(config, (name) => weights.readF32(tensorNames.get(name)!));
  } finally {
    weights.close();
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
    const config = { ...configToHub(model.config, dtype), ...specialIds(textFrom) };
    writeFileSync(join(target, "config.json"), JSON.stringify(config, null, 2) + "\n");
    for (const name of textFrom ? TEXT_FILES : []) {
      const source = join(textFrom!, name);
      if (existsSync(source)) copyFileSync(source, join(target, name));
    }
  });
}

/** Ids that config.json names beside the architecture: where generation ends when there is no generation_config.json. */
function specialIds(directory: string | undefined): Record<string, unknown> {
  const path = join(directory ?? "", "config.json");
  if (directory === undefined || !existsSync(path)) return {};
  const keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
  return Object.fromEntries(Object.entries(readJsonObject(path)).filter(([key]) => keys.includes(key)));
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

/** The tensor that holds each parameter; lists every difference between weights and config at once. */
function parameterTensors(directory: string, config: GptConfig, weights: WeightFiles): Map<string, string> {
  const expected = parameterShapes(config);
  const tensorNames = new Map<string, string>();
  const problems: string[] = [];
  const unexpected: string[] = [];
  for (const tensorName of weights.entries.keys()) {
    const name = parameterOf(tensorName, config);
    if (name === null) continue;
    if (!expected.has(name)) unexpected.push(`unexpected ${tensorName}`);
    else if (tensorNames.has(name)) problems.push(`${tensorName} and ${tensorNames.get(name)} are the same parameter`);
    else tensorNames.set(name, tensorName);
  }
  for (const [name, shape] of expected) {
    const found = weights.entries.get(tensorNames.get(name) ?? name)?.shape;
    if (!found) problems.push(`missing ${name} [${shape.join(", ")}]`);
    else if (found.join() !== shape.join()) {
      problems.push(`${name} has shape [${found.join(", ")}], the config asks for [${shape.join(", ")}]`);
    }
  }
  problems.push(...unexpected);
  if (problems.length > 0) {
    const more = problems.length > 10 ? `; and ${problems.length - 10} more` : "";
    throw new CheckpointError(
      `${directory}: the weights do not fit config.json: ${problems.slice(0, 10).join("; ")}${more}`,
    );
  }
  return tensorNames;
}
