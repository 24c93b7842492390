/** The key/value cache: where new tokens land, whose prefix a row gets, and that nothing else is touched. */
import { describe, expect, test } from "vitest";
import {
  copyCachePrefix,
  createKvCache,
  disposeKvCache,
  firstCacheRows,
  moveCacheRows,
  writeCache,
  type KvCache,
} from "../../src/tensor/kv_cache.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { readAll, tensor, write, type Tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

const shape = { kvHeads: 2, headSize: 3 };
const WIDTH = 6;
const UNTOUCHED = -7;

/** A cache whose every element is `UNTOUCHED`. */
function blankCache(layers: number, batch: number, capacity: number): KvCache {
  const cache = createKvCache(layers, { batch, capacity, ...shape });
  for (const x of [...cache.keys, ...cache.values])
    write(x, new Float32Array(batch * capacity * WIDTH).fill(UNTOUCHED));
  return cache;
}

/** [B, T, K, D] with values that name row, token and channel; `offset` tells keys from values. */
function labelled(
  batch: number,
  time: number,
  offset: number,
): { x: Tensor; at: (row: number, token: number) => number[] } {
  const at = (row: number, token: number): number[] =>
    Array.from({ length: WIDTH }, (_, c) => offset + 100 * row + 10 * token + c);
  const rows = Array.from({ length: batch * time }, (_, i) => at(Math.floor(i / time), i % time));
  return { x: tensor(Float32Array.from(rows.flat()), [batch, time, shape.kvHeads, shape.headSize]), at };
}

const blank = new Array<number>(WIDTH).fill(UNTOUCHED);

/** Reads [batch][token] -> channels of all heads; in the cache each head has its tokens side by side. */
async function tokensOf(x: Tensor): Promise<number[][][]> {
  const [batch, heads, capacity, size] = x.shape as [number, number, number, number];
  const [data] = await readAll([x]);
  return Array.from({ length: batch }, (_, b) =>
    Array.from({ length: capacity }, (_, t) =>
      Array.from({ length: heads }, (_, h) => {
        const start = ((b * heads + h) * capacity + t) * size;
        return [...data!.subarray(start, start + size)];
      }).flat(),
    ),
  );
}

test.each([1, 3])("%d new tokens a row land at each row's own position, in one layer only", async (time) => {
  const cache = blankCache(2, 3, 5);
  await scopeAsync(async () => {
    const starts = [2, 0, 1];
    const [keys, values] = [labelled(3, time, 1000), labelled(3, time, 5000)];
    writeCache(cache, 1, keys.x, values.x, tensor(Uint32Array.from(starts)));
    for (const [stored, source] of [
      [cache.keys[1]!, keys],
      [cache.values[1]!, values],
    ] as const) {
      const rows = await tokensOf(stored);
      rows.forEach((row, b) =>
        row.forEach((channels, t) => {
          const token = t - starts[b]!;
          expect(channels).toEqual(token >= 0 && token < time ? source.at(b, token) : blank);
        }),
      );
    }
    for (const other of [cache.keys[0]!, cache.values[0]!])
      expect((await tokensOf(other)).flat()).toEqual(Array(15).fill(blank));
  });
  disposeKvCache(cache);
});

test("a token past the capacity is dropped, never written into the next head or row", async () => {
  const cache = blankCache(1, 2, 3);
  await scopeAsync(async () => {
    const keys = labelled(2, 2, 0);
    writeCache(cache, 0, keys.x, keys.x, tensor(Uint32Array.of(2, 1)));
    const [first, second] = await tokensOf(cache.keys[0]!);
    expect(first).toEqual([blank, blank, keys.at(0, 0)]);
    expect(second).toEqual([blank, keys.at(1, 0), keys.at(1, 1)]);
  });
  disposeKvCache(cache);
});

test("rows take over the prefix of the row that sourceRow names", async () => {
  const source = blankCache(2, 2, 4);
  const cache = blankCache(2, 5, 7);
  await scopeAsync(async () => {
    const [keys, values] = [labelled(2, 4, 1000), labelled(2, 4, 5000)];
    for (const layer of [0, 1]) writeCache(source, layer, keys.x, values.x, tensor(new Uint32Array(2)));
    const sourceRow = [1, 0, 0, 1, 1];
    copyCachePrefix(cache, source, tensor(Uint32Array.from(sourceRow)), 3);
    for (const layer of [0, 1]) {
      for (const [stored, origin] of [
        [cache.keys[layer]!, keys],
        [cache.values[layer]!, values],
      ] as const) {
        const rows = await tokensOf(stored);
        rows.forEach((row, b) =>
          row.forEach((channels, t) => {
            expect(channels).toEqual(t < 3 ? origin.at(sourceRow[b]!, t) : blank);
          }),
        );
      }
    }
  });
  [source, cache].forEach(disposeKvCache);
});

test("rows move into gaps, in place; the first rows are a cache over the same memory", async () => {
  const cache = blankCache(2, 5, 4);
  await scopeAsync(async () => {
    const [keys, values] = [labelled(5, 3, 1000), labelled(5, 3, 5000)];
    for (const layer of [0, 1]) writeCache(cache, layer, keys.x, values.x, tensor(new Uint32Array(5)));
    moveCacheRows(cache, [{ from: 4, to: 0 }, { from: 3, to: 2 }], 2);
    const origins = [4, 1, 3]; // rows 3 and 4 stay as they are, but nobody looks at them any more
    for (const layer of [0, 1]) {
      const first = firstCacheRows(cache, 3);
      for (const [stored, origin, moved] of [
        [first.keys[layer]!, keys, [0, 2]],
        [first.values[layer]!, values, [0, 2]],
      ] as const) {
        const rows = await tokensOf(stored);
        expect(rows).toHaveLength(3);
        rows.forEach((row, b) => {
          const wasMoved = moved.includes(b as 0 | 2);
          row.slice(0, 2).forEach((channels, t) => expect(channels).toEqual(origin.at(origins[b]!, t)));
          expect(row[2]).toEqual(origin.at(wasMoved ? b : origins[b]!, 2)); // only two tokens moved
        });
      }
    }
    expect(() => moveCacheRows(cache, [{ from: 1, to: 5 }], 1)).toThrow(/moveCacheRows: rows 1, 5/);
    expect(() => moveCacheRows(cache, [{ from: 1, to: 2 }, { from: 2, to: 3 }], 1)).toThrow(/rows 1, 2, 2, 3 repeat/);
  });
  disposeKvCache(cache);
});

describe("limits", () => {
  test("shapes that do not fit are named", async () => {
    const cache = createKvCache(1, { batch: 2, capacity: 3, ...shape });
    await scopeAsync(async () => {
      const starts = tensor(new Uint32Array(2));
      const wrong = labelled(3, 1, 0).x;
      expect(() => writeCache(cache, 0, wrong, wrong, starts)).toThrow(
        /writeCache: keys \[3, 1, 2, 3\].*cache \[2, 2, 3, 3\]/,
      );
      const long = labelled(2, 4, 0).x;
      expect(() => writeCache(cache, 0, long, long, starts)).toThrow(/writeCache/);
      expect(() => copyCachePrefix(cache, cache, starts, 4)).toThrow(
        /copyCachePrefix: 4 tokens from capacity 3 into 3/,
      );
      await Promise.resolve();
    });
    disposeKvCache(cache);
  });

  test("a cache of another model, and rows that are not one id each, are refused", async () => {
    const cache = createKvCache(2, { batch: 2, capacity: 3, ...shape });
    const others = [
      createKvCache(1, { batch: 2, capacity: 3, ...shape }),
      createKvCache(2, { batch: 2, capacity: 3, kvHeads: 3, headSize: 2 }), // as wide
    ];
    await scopeAsync(async () => {
      const rows = tensor(new Uint32Array(2));
      expect(() => copyCachePrefix(cache, others[0]!, rows, 1)).toThrow(
        "copyCachePrefix: [layers, heads, head size] are [1, 2, 3] in the source and [2, 2, 3] in the cache",
      );
      expect(() => copyCachePrefix(cache, others[1]!, rows, 1)).toThrow(/are \[2, 3, 2\] in the source/);
      expect(() => copyCachePrefix(cache, cache, tensor(new Uint32Array(3)), 1)).toThrow(
        "copyCachePrefix: sourceRow has shape [3], expected [2]",
      );
      const source = createKvCache(2, { batch: 1, capacity: 3, ...shape });
      expect(() => copyCachePrefix(cache, source, tensor([0, 0]), 1)).toThrow("sourceRow [2] is f32, the kernel reads u32");
      const keys = labelled(2, 1, 0).x;
      expect(() => writeCache(cache, 0, keys, keys, tensor([0, 0]))).toThrow("starts [2] is f32, the kernel reads u32");
      disposeKvCache(source);
      await Promise.resolve();
    });
    [cache, ...others].forEach(disposeKvCache);
  });

  test("it is kept until it is disposed of", async () => {
    const before = memoryStats().liveBuffers;
    const cache = await scopeAsync(async () => {
      const made = createKvCache(3, { batch: 2, capacity: 3, ...shape });
      await Promise.resolve();
      return { made };
    });
    expect(memoryStats().liveBuffers).toBe(before + 6);
    disposeKvCache(cache.made);
    expect(memoryStats().liveBuffers).toBe(before);
  });
});
