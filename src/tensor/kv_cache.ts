/**
 * The key/value cache of decoding: preallocated once per generation, so that shapes never change while sequences grow.
 * Positions are data in a buffer; the same launches serve every step.
 */
import { kernel, launch } from "./kernel.ts";
import { ShapeError, show } from "./shape.ts";
import { dispose, empty, keep, type Tensor } from "./tensor.ts";

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
    const groups = Math.ceil((batch * time * width) / WORKGROUP);
    launch(append, { x, starts, cache: target }, { batch, time, width, capacity }, groups, { WORKGROUP });
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
    const groups = Math.ceil((batch * time * width) / WORKGROUP);
    const params = { batch, time, width, capacity, sourceCapacity: source.capacity };
    launch(copyPrefix, { source: from, sourceRow, cache: target }, params, groups, { WORKGROUP });
  }
}
