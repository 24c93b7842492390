/**
 * A Hugging Face model directory <-> a Gpt. Reads config.json and one or several safetensors files (F32, F16, BF16,
 * widened to float32); writes a directory that Python transformers loads.
 *
 * Weights are read and written tensor by tensor: the host holds one at a time. A directory is written under a
 * temporary name and renamed when complete, so that no half-written model ever has its final name.
 */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { streamSafetensors } from "../data/safetensors.ts";
import { quote } from "../data/safetensors_header.ts";
import { openWeights, type WeightFiles } from "../data/safetensors_index.ts";
import { syncDirectory } from "../data/sync_directory.ts";
import { isAlive, namesIn } from "../folder_lock.ts";
import { read } from "../tensor/tensor.ts";
import { CheckpointError, configToHub, readConfig, readJsonObject, type GptConfig } from "./config.ts";
import { createGpt, type CreateOptions, type Gpt } from "./gpt.ts";
import { HEAD, parameterOf, parameterShapes, partNames } from "./parameters.ts";

/** Files beside the weights that make a directory usable for text; copied along when a model is saved. */
export const TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/**
 * Loads a model onto the GPU.
 * @throws CheckpointError for a missing or unsupported config, and for weights that do not fit it: the first ten
 * missing, mis-shaped and unexpected tensors are listed, the others counted. @throws SafetensorsError for missing or
 * corrupt weight files.
 */
export function loadGpt(directory: string, options: CreateOptions = {}): Gpt {
  const config = readConfig(directory);
  const weights = openWeights(directory);
  try {
    const tensorNames = parameterTensors(directory, config, weights);
    requireTiedHead(directory, config, weights, tensorNames);
    return createGpt(config, (name) => weights.readF32(tensorNames.get(name)!), options);
  } finally {
    weights.close();
  }
}

export interface SaveOptions {
  /** BF16 halves the size and rounds to nearest even; F32, the default, keeps every bit. */
  readonly dtype?: "F32" | "BF16";
  /** The directory that text files are copied from, usually the one that the model was loaded from. */
  readonly textFrom?: string;
}

/** Writes `model` as `directory`, replacing it. */
export async function saveGpt(model: Gpt, directory: string, options: SaveOptions = {}): Promise<void> {
  await replaceDirectory(directory, (target) => writeModelFiles(model, target, options));
}

/** The files of a model directory, written into one that exists. Not atomic: see `saveGpt`. */
export async function writeModelFiles(
  model: Gpt,
  directory: string,
  { dtype = "F32", textFrom }: SaveOptions = {},
): Promise<void> {
  const tensors = [...model.parameters].map(([name, { value }]) => ({ name, shape: value.shape, dtype, value }));
  await streamSafetensors(join(directory, "model.safetensors"), tensors, ({ value }) => read(value), { format: "pt" });
  const config = { ...configToHub(model.config, dtype), ...specialIds(textFrom) };
  writeFileSync(join(directory, "config.json"), JSON.stringify(config, null, 2) + "\n");
  if (textFrom !== undefined) copyTextFiles(textFrom, directory);
}

/** Copies what makes a directory usable for text, as far as it is there. */
export function copyTextFiles(from: string, to: string): void {
  for (const name of TEXT_FILES) {
    if (existsSync(join(from, name))) copyFileSync(join(from, name), join(to, name));
  }
}

/** Ids that config.json names beside the architecture: they say where generation ends if no other file does. */
function specialIds(directory: string | undefined): Record<string, unknown> {
  const path = join(directory ?? "", "config.json");
  if (directory === undefined || !existsSync(path)) return {};
  const keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
  return Object.fromEntries(Object.entries(readJsonObject(path)).filter(([key]) => keys.includes(key)));
}

/**
 * Lets `fill` write a new directory under a temporary name beside `directory`, then puts it in place of the old one.
 * When anything throws, the old one is as it was.
 */
export async function replaceDirectory(
  directory: string,
  fill: (temporary: string) => Promise<void> | void,
): Promise<void> {
  const staged = stageDirectory(directory);
  try {
    await fill(staged.temporary);
    staged.commit();
  } catch (error) {
    staged.discard();
    throw error;
  }
}

/**
 * An empty directory under a temporary name: `commit` puts it in place of the old one, `discard` leaves the old one as
 * it was. A process killed between the two renames leaves the old one as .old-PID: see `restoreDirectory`. What killed
 * processes left is removed by the next `commit`.
 */
function stageDirectory(directory: string): { temporary: string; commit: () => void; discard: () => void } {
  const temporary = `${directory}.tmp-${process.pid}`;
  const previous = `${directory}.old-${process.pid}`;
  rmSync(temporary, { recursive: true, force: true });
  mkdirSync(temporary, { recursive: true });
  return {
    temporary,
    commit: () => {
      if (existsSync(directory)) renameSync(directory, previous);
      renameSync(temporary, directory);
      rmSync(previous, { recursive: true, force: true });
      for (const { path, pid } of leftoversOf(directory)) {
        if (!isAlive(pid)) rmSync(path, { recursive: true, force: true });
      }
      syncDirectory(dirname(directory));
    },
    discard: () => {
      rmSync(temporary, { recursive: true, force: true });
      if (!existsSync(directory) && existsSync(previous)) renameSync(previous, directory);
    },
  };
}

/** Where a directory is missing because its replacement was killed halfway, the old one gets its name back. */
export function restoreDirectory(directory: string): void {
  if (existsSync(directory)) return;
  const age = (path: string): number => statSync(path).mtimeMs;
  const left = leftoversOf(directory).filter(({ kind }) => kind === "old").map(({ path }) => path);
  const newest = left.sort((a, b) => age(b) - age(a))[0];
  if (newest !== undefined) renameSync(newest, directory);
}

/** What processes that replace, or replaced, a directory have beside it. */
function leftoversOf(directory: string): { path: string; kind: string; pid: number }[] {
  const [parent, name] = [dirname(directory), basename(directory)];
  return namesIn(parent).flatMap((other) => {
    const [, of, kind, pid] = /^(.+)\.(tmp|old)-(\d+)$/.exec(other) ?? [];
    return of === name ? [{ path: join(parent, other), kind: kind!, pid: Number(pid) }] : [];
  });
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
    if (!expected.has(name)) unexpected.push(`unexpected ${quote(tensorName)}`);
    else if (tensorNames.has(name)) {
      problems.push(`${quote(tensorName)} and ${quote(tensorNames.get(name)!)} are the same parameter`);
    } else tensorNames.set(name, tensorName);
  }
  const embedding = `${partNames(config).embedding}.weight`;
  if (config.tiedEmbeddings && !tensorNames.has(embedding) && weights.entries.has(`${HEAD}.weight`)) {
    tensorNames.set(embedding, `${HEAD}.weight`); // either name may stand for the one parameter
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

/**
 * A tied checkpoint may hold a copy of the embedding as its head, and nothing else: with another head it would be
 * another model.
 */
function requireTiedHead(
  directory: string, config: GptConfig, weights: WeightFiles, tensorNames: ReadonlyMap<string, string>,
): void {
  const head = `${HEAD}.weight`;
  const embedding = tensorNames.get(`${partNames(config).embedding}.weight`)!;
  if (!config.tiedEmbeddings || embedding === head || !weights.entries.has(head)) return;
  const [own, copy] = [weights.readF32(embedding), weights.readF32(head)];
  if (own.length === copy.length && own.every((value, i) => value === copy[i])) return;
  throw new CheckpointError(
    `${directory}: config.json ties ${head} to the embedding, but the weights hold another one. ` +
      'Fix: "tie_word_embeddings": false in config.json',
  );
}
