/**
 * The key/value cache of decoding: preallocated once per generation, so that shapes never change while sequences grow.
 * Positions are data in a buffer; the same launches serve every step.
 */
import { kernel, launch } from "./kernel.ts";
import { rowRange } from "./ranges.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, sameShape, show } from "./shape.ts";
import { dispose, empty, keep, tensor, type Tensor } from "./tensor.ts";

export interface KvCache {
  /** Per layer [B, K, capacity, D]: rotated keys, and values; the tokens of a head lie side by side. */
  readonly keys: readonly Tensor[];
  readonly values: readonly Tensor[];
  /** Tokens a row can hold. */
  readonly capacity: number;
}

const WORKGROUP = 64;

const append = kernel({
  shader: "kv_cache",
  entry: "append",
  buffers: ["starts", "newKeys", "newValues", "keys", "values"],
  params: ["batch", "time", "heads", "capacity"],
});
const copyPrefix = kernel({
  shader: "kv_cache",
  entry: "copyPrefix",
  buffers: ["sourceRow", "newKeys", "newValues", "keys", "values"],
  params: ["batch", "time", "heads", "capacity", "sourceCapacity"],
});
const moveRows = kernel({
  shader: "kv_cache",
  entry: "moveRows",
  buffers: ["moves", "keys", "values"],
  params: ["batch", "time", "heads", "capacity"],
});

/** Allocates a cache for `batch` rows of at most `capacity` tokens. Kept until `disposeKvCache`; content undefined. */
export function createKvCache(
  layers: number,
  { batch, capacity, kvHeads, headSize }: { batch: number; capacity: number; kvHeads: number; headSize: number },
): KvCache {
  const allocateLayer = (): Tensor => keep(empty([batch, kvHeads, capacity, headSize]));
  return {
    keys: Array.from({ length: layers }, allocateLayer),
    values: Array.from({ length: layers }, allocateLayer),
    capacity,
  };
}

/** Returns the cache's memory to the pool. */
export function disposeKvCache({ keys, values }: KvCache): void {
  for (const layer of [...keys, ...values]) dispose(layer);
}

/** Stores keys and values [B, T, K, D] of new tokens at positions starts[b], starts[b] + 1, ... (starts: u32 [B]). */
export function writeCache(cache: KvCache, layer: number, newKeys: Tensor, newValues: Tensor, starts: Tensor): void {
  const [keys, values] = [cache.keys[layer]!, cache.values[layer]!];
  const [batch, time, heads, headSize] = newKeys.shape as [number, number, number, number];
  const [rows, kvHeads, capacity, size] = keys.shape as [number, number, number, number];
  const fits = batch === rows && heads === kvHeads && headSize === size && starts.shape[0] === batch && time <= capacity;
  if (!fits || !sameShape(newKeys.shape, newValues.shape)) {
    throw new ShapeError(
      `writeCache: keys ${show(newKeys.shape)}, values ${show(newValues.shape)}, starts ${show(starts.shape)} into ` +
        `cache ${show(keys.shape)}`,
    );
  }
  const buffers = { starts, newKeys, newValues, keys, values };
  launch(append, buffers, { batch, time, heads, capacity }, batch * time, { WORKGROUP, HEAD_SIZE: headSize });
}

/**
 * Copies the first `time` tokens of row sourceRow[b] of `source` into row b of `cache` (sourceRow: u32 [B]).
 * @throws ShapeError when the caches are of different models, or the tokens do not fit.
 */
export function copyCachePrefix(cache: KvCache, source: KvCache, sourceRow: Tensor, time: number): void {
  const [ofCache, ofSource] = [cache, source].map(({ keys }) => [keys.length, keys[0]!.shape[1]!, keys[0]!.shape[3]!]);
  if (!sameShape(ofCache!, ofSource!)) {
    throw new ShapeError(
      `copyCachePrefix: [layers, heads, head size] are ${show(ofSource!)} in the source and ${show(ofCache!)} in the ` +
        "cache. Fix: caches of one model",
    );
  }
  expectShape("copyCachePrefix", "sourceRow", sourceRow, cache.keys[0]!.shape.slice(0, 1));
  if (time > cache.capacity || time > source.capacity) {
    throw new ShapeError(`copyCachePrefix: ${time} tokens from capacity ${source.capacity} into ${cache.capacity}`);
  }
  cache.keys.forEach((keys, layer) => {
    const [batch, heads, capacity, headSize] = keys.shape as [number, number, number, number];
    const params = { batch, time, heads, capacity, sourceCapacity: source.capacity };
    const [newKeys, newValues] = [source.keys[layer]!, source.values[layer]!];
    const buffers = { sourceRow, newKeys, newValues, keys, values: cache.values[layer]! };
    launch(copyPrefix, buffers, params, batch * time, { WORKGROUP, HEAD_SIZE: headSize });
  });
}

/**
 * Moves the first `time` tokens of some rows onto others, in place. No row may be both moved from and moved to, nor
 * moved to twice: all moves happen at once.
 */
export function moveCacheRows(
  cache: KvCache,
  moves: readonly { readonly from: number; readonly to: number }[],
  time: number,
): void {
  const [rows] = cache.keys[0]!.shape as [number];
  const used = moves.flatMap(({ from, to }) => [from, to]);
  if (time > cache.capacity || used.some((row) => row >= rows)) {
    throw new ShapeError(`moveCacheRows: rows ${used.join(", ")}, ${time} tokens in ${show(cache.keys[0]!.shape)}`);
  }
  if (new Set(used).size !== used.length) throw new ShapeError(`moveCacheRows: rows ${used.join(", ")} repeat`);
  if (moves.length === 0 || time === 0) return;
  const list = tensor(Uint32Array.from(used), [moves.length, 2]);
  cache.keys.forEach((keys, layer) => {
    const [, heads, capacity, headSize] = keys.shape as [number, number, number, number];
    const buffers = { moves: list, keys, values: cache.values[layer]! };
    const params = { batch: moves.length, time, heads, capacity };
    launch(moveRows, buffers, params, moves.length * time, { WORKGROUP, HEAD_SIZE: headSize });
  });
}

/** The first rows of a cache, as a cache over the same memory. */
export function firstCacheRows({ keys, values, capacity }: KvCache, rows: number): KvCache {
  const first = (x: Tensor): Tensor => rowRange(x, 0, rows);
  return { keys: keys.map(first), values: values.map(first), capacity };
}
