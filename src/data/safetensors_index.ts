// The weights of a model directory: model.safetensors, or the shards that model.safetensors.index.json lists.
//
//   { "metadata": { "total_size": bytes }, "weight_map": { "tensor name": "model-00001-of-00002.safetensors" } }
//
// The index is as untrusted as the shards. It may name only files of the directory, by an allow-list of names; it must
// place every weight in the one shard that holds it, and every weight of every shard must be in it. Its metadata is
// not used, as in transformers: converters write sizes there that are wrong, fractions or null. Duplicate keys are
// refused: other readers would keep the last one, and see another model than a reader that keeps the first.

import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors } from "./safetensors.ts";
import type { SafetensorsFile } from "./safetensors.ts";
import { quote, SafetensorsError } from "./safetensors_header.ts";
import type { TensorEntry } from "./safetensors_header.ts";
import { parseStrictJson } from "./strict_json.ts";
import type { StrictJson } from "./strict_json.ts";

const SINGLE_FILE = "model.safetensors";
const INDEX_FILE = "model.safetensors.index.json";
export const SHARD_NAME = /^model-\d{5}-of-\d{5}\.safetensors$/;

/** The largest published index has some 10 MB. */
const MAX_INDEX_BYTES = 32 * 2 ** 20;
/** Root object, weight_map or metadata, and room for what a converter may note in its metadata. */
const MAX_INDEX_DEPTH = 4;
/** Each shard stays open while the weights are read. */
const MAX_SHARDS = 1000;

export interface WeightFiles {
  /** Every tensor of the directory, by name. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** Values of an F32, F16 or BF16 tensor, C order. Nothing is kept: memory holds what the caller holds. */
  readF32(name: string): Float32Array;
  close(): void;
}

/**
 * Opens and checks all weight files of a Hugging Face directory; model.safetensors wins over an index, as in
 * transformers. Only headers are read. Throws SafetensorsError: "WeightsNotFound" for a missing file, "InvalidIndex"
 * for a bad index, "IndexMismatch" when index and shards disagree, or what openSafetensors throws.
 */
export function openWeights(directory: string): WeightFiles {
  if (existsSync(join(directory, SINGLE_FILE))) return openSafetensors(join(directory, SINGLE_FILE));
  const indexPath = join(directory, INDEX_FILE);
  if (!existsSync(indexPath)) {
    const absent = `${directory} has no ${SINGLE_FILE} and no ${INDEX_FILE}`;
    throw new SafetensorsError("WeightsNotFound", `${absent}. Fix: check that the weights are there`);
  }
  const shardOf = readIndex(indexPath);
  const shardNames = shardsIn(shardOf);
  const missing = shardNames.filter((name) => !existsSync(join(directory, name)));
  if (missing.length > 0) {
    const names = missing.slice(0, 10).join(", ") + (missing.length > 10 ? `, and ${missing.length - 10} more` : "");
    throw new SafetensorsError("WeightsNotFound", `${directory}: missing shards ${names}. Fix: download them`);
  }

  const shards = new Map<string, SafetensorsFile>();
  const close = (): void => shards.forEach((shard) => shard.close());
  try {
    for (const name of shardNames) shards.set(name, openSafetensors(join(directory, name)));
    checkAgreement(indexPath, shardOf, shards);
  } catch (error) {
    close();
    throw error;
  }
  const entries = new Map([...shards.values()].flatMap((shard) => [...shard.entries]));
  return {
    entries,
    readF32(name) {
      const shardName = shardOf.get(name);
      if (shardName === undefined) {
        throw new SafetensorsError("TensorNotFound", `${indexPath}: no tensor ${quote(name)}`);
      }
      return shards.get(shardName)!.readF32(name);
    },
    close,
  };
}

/** The files that an index names, in order. Throws SafetensorsError "InvalidIndex" for a bad index. */
export function shardsOfIndex(path: string): string[] {
  return shardsIn(readIndex(path));
}

function shardsIn(shardOf: ReadonlyMap<string, string>): string[] {
  return [...new Set(shardOf.values())].sort();
}

/** Tensor name -> file name of its shard. */
function readIndex(path: string): Map<string, string> {
  const invalid = (problem: string, cause?: unknown): SafetensorsError => {
    return new SafetensorsError("InvalidIndex", `${path}: ${problem}`, { cause });
  };
  let root: StrictJson;
  try {
    const { size } = statSync(path);
    if (size > MAX_INDEX_BYTES) throw new RangeError(`${size} bytes are above ${MAX_INDEX_BYTES}`);
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(readFileSync(path));
    root = parseStrictJson(text, { maxDepth: MAX_INDEX_DEPTH, anyScalar: true });
  } catch (cause) {
    throw invalid((cause as Error).message, cause);
  }
  const weightMap = root instanceof Map ? root.get("weight_map") : undefined;
  if (!(weightMap instanceof Map) || weightMap.size === 0) throw invalid("no weight_map, or an empty one");
  const shardOf = new Map<string, string>();
  for (const [tensor, shard] of weightMap) {
    if (typeof shard !== "string" || !SHARD_NAME.test(shard)) {
      const found = typeof shard === "string" ? quote(shard) : "that is no text";
      throw invalid(`unexpected shard name ${found} for ${quote(tensor)}; it must be model-NNNNN-of-NNNNN.safetensors`);
    }
    shardOf.set(tensor, shard);
  }
  const shards = new Set(shardOf.values()).size;
  if (shards > MAX_SHARDS) throw invalid(`${shards} shards are above ${MAX_SHARDS}`);
  return shardOf;
}

/** Every tensor in exactly the shard that the index names. */
function checkAgreement(
  path: string, shardOf: ReadonlyMap<string, string>, shards: ReadonlyMap<string, SafetensorsFile>,
): void {
  const mismatch = (problem: string): SafetensorsError => new SafetensorsError("IndexMismatch", `${path}: ${problem}`);
  for (const [shardName, { entries }] of shards) {
    for (const name of entries.keys()) {
      const named = shardOf.get(name);
      if (named !== shardName) {
        const place = named === undefined ? "in no shard" : `in ${named}`;
        throw mismatch(`${shardName} holds ${quote(name)}, which the index places ${place}`);
      }
    }
  }
  for (const [name, shardName] of shardOf) {
    if (!shards.get(shardName)!.entries.has(name)) {
      throw mismatch(`the index places ${quote(name)} in ${shardName}, which does not hold it`);
    }
  }
}
