/** Tensors that lie side by side: where they begin, when they are neighbours, and how they are freed. */
import { expect, test } from "vitest";
import { fillInto } from "../../src/tensor/elementwise.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { sizeOf, type Shape } from "../../src/tensor/shape.ts";
import {
  areNeighbours, disposeAll, empty, emptyNeighbours, joinNeighbours, keep, neighbourAllocations, read, write,
} from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

test("each begins at the next multiple of 256 bytes; joined, they are one list with the gaps", async () => {
  await scopeAsync(async () => {
    const shapes = [[3, 5], [64], [1], [65]];
    const parts = emptyNeighbours(shapes);
    expect(parts.map(({ byteOffset }) => byteOffset)).toEqual([0, 256, 512, 768]);
    expect(new Set(parts.map(({ storage }) => storage)).size).toBe(1);
    const joined = joinNeighbours(parts);
    expect(joined.shape).toEqual([3 * 64 + 65]);
    fillInto(joined, 7);
    parts.forEach((part, i) => write(part, new Float32Array(sizeOf(shapes[i]!)).fill(i)));
    const values = await read(joined);
    expect([...values]).toEqual([
      ...Array.from({ length: 64 }, (_, i) => (i < 15 ? 0 : 7)), ...new Array<number>(64).fill(1),
      2, ...new Array<number>(63).fill(7), ...new Array<number>(65).fill(3),
    ]);
    expect([...(await read(joinNeighbours(parts.slice(1, 3))))]).toEqual([...new Array<number>(64).fill(1), 2]);
  });
});

test("neighbours are told from others", async () => {
  await scopeAsync(async () => {
    const [a, b, c] = emptyNeighbours([[64], [3], [2]]) as [ReturnType<typeof empty>, ...ReturnType<typeof empty>[]];
    expect([areNeighbours(a, b!), areNeighbours(b!, c!)]).toEqual([true, true]);
    expect([areNeighbours(a, c!), areNeighbours(b!, a), areNeighbours(a, empty([3]))]).toEqual([false, false, false]);
    await Promise.resolve();
  });
});

test("allocations hold 16 MiB, larger tensors have their own, and all are freed", () => {
  const before = memoryStats().liveBuffers;
  const half: Shape = [2 ** 21]; // 8 MiB
  const shapes = [half, half, [1], [2 ** 22 + 1], [5]];
  expect(neighbourAllocations(shapes)).toEqual([2 ** 24, 256, 2 ** 24 + 256, 256]);
  const parts = emptyNeighbours(shapes).map(keep);
  expect(memoryStats().liveBuffers).toBe(before + 4);
  disposeAll(parts);
  expect(memoryStats().liveBuffers).toBe(before);
});
