/**
 * The key/value cache of decoding: preallocated once per generation, so that shapes never change while sequences grow.
 * Positions are data in a buffer; the same launches serve every step.
 */
import { kernel, launch } from "./kernel.ts";
import { rowRange } from "./ranges.ts";
import { ShapeError, show } from "./shape.ts";
import { dispose, empty, keep, tensor, type Tensor } from "./tensor.ts";

export interface KvCache {
  /** Per layer [B, capacity, K, D]: rotated keys, and values. */
  readonly keys: readonly Tensor[];
  readonly values: readonly Tensor[];
  /** Tokens a row can hold. */
  readonly capacity: number;
}

const WORKGROUP = 64;

const append = kernel({
  shader: "kv_cache",
  entry: "append",
  buffers: ["x", "starts", "cache"],
  params: ["batch", "time", "width", "capacity"],
});
const copyPrefix = kernel({
  shader: "kv_cache",
  entry: "copyPrefix",
  buffers: ["source", "sourceRow", "cache"],
  params: ["batch", "time", "width", "capacity", "sourceCapacity"],
});

const moveRows = kernel({
  shader: "kv_cache",
  entry: "moveRows",
  buffers: ["moves", "cache"],
  params: ["batch", "time", "width", "capacity"],
});

/** Allocates a cache for `batch` rows of at most `capacity` tokens. Kept until `disposeKvCache`; content undefined. */
export function createKvCache(
  layers: number,
  { batch, capacity, kvHeads, headSize }: { batch: number; capacity: number; kvHeads: number; headSize: number },
): KvCache {
  const allocateLayer = (): Tensor => keep(empty([batch, capacity, kvHeads, headSize]));
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
export function writeCache(cache: KvCache, layer: number, keys: Tensor, values: Tensor, starts: Tensor): void {
  for (const [target, x] of [
    [cache.keys[layer]!, keys],
    [cache.values[layer]!, values],
  ] as const) {
    const [batch, time, heads, headSize] = x.shape as [number, number, number, number];
    const [rows, capacity, kvHeads, size] = target.shape as [number, number, number, number];
    if (batch !== rows || heads !== kvHeads || headSize !== size || starts.shape[0] !== batch || time > capacity) {
      throw new ShapeError(
        `writeCache: keys ${show(x.shape)}, starts ${show(starts.shape)} into cache ${show(target.shape)}`,
      );
    }
    const width = heads * headSize;
    launch(append, { x, starts, cache: target }, { batch, time, width, capacity }, batch * time, { WORKGROUP });
  }
}

/** Copies the first `time` tokens of row sourceRow[b] of `source` into row b of `cache` (sourceRow: u32 [B]). */
export function copyCachePrefix(cache: KvCache, source: KvCache, sourceRow: Tensor, time: number): void {
  if (time > cache.capacity || time > source.capacity) {
    throw new ShapeError(`copyCachePrefix: ${time} tokens from capacity ${source.capacity} into ${cache.capacity}`);
  }
  const pairs = [
    ...cache.keys.map((x, i) => [x, source.keys[i]!]),
    ...cache.values.map((x, i) => [x, source.values[i]!]),
  ];
  for (const [target, from] of pairs as [Tensor, Tensor][]) {
    const [batch, capacity, kvHeads, headSize] = target.shape as [number, number, number, number];
    const width = kvHeads * headSize;
    const params = { batch, time, width, capacity, sourceCapacity: source.capacity };
    launch(copyPrefix, { source: from, sourceRow, cache: target }, params, batch * time, { WORKGROUP });
  }
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
  for (const target of [...cache.keys, ...cache.values]) {
    const [, capacity, kvHeads, headSize] = target.shape as [number, number, number, number];
    const params = { batch: moves.length, time, width: kvHeads * headSize, capacity };
    launch(moveRows, { moves: list, cache: target }, params, moves.length * time, { WORKGROUP });
  }
}

/** The first rows of a cache, as a cache over the same memory. */
export function firstCacheRows({ keys, values, capacity }: KvCache, rows: number): KvCache {
  const first = (x: Tensor): Tensor => rowRange(x, 0, rows);
  return { keys: keys.map(first), values: values.map(first), capacity };
}
