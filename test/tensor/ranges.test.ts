/** Views of rows, how tensors are cut into ranges that can be bound, and what happens to those that cannot be. */
import { describe, expect, test } from "vitest";
import { GpuError, gpu, openGpu } from "../../src/tensor/device.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { elementRanges, rowRange, rowRanges, rowsPerRange } from "../../src/tensor/ranges.ts";
import { recorderStats } from "../../src/tensor/recorder.ts";
import { softmax } from "../../src/tensor/softmax.ts";
import { empty, read, readAll, reshape, tensor, write, type Tensor } from "../../src/tensor/tensor.ts";
import { toGpu } from "../support/gpu.ts";
import { random } from "../support/gradcheck.ts";
import { withBindingLimit } from "./binding_limit.ts";

await openGpu();

/** 0, 1, 2, .. as a tensor. */
const counting = (...shape: number[]): Tensor =>
  tensor(Float32Array.from({ length: shape.reduce((product, n) => product * n, 1) }, (_, i) => i), shape);

describe("a view of rows", () => {
  test("reads, writes and computes on its rows only", () =>
    scopeAsync(async () => {
      const x = counting(5, 64);
      const middle = rowRange(x, 2, 2);
      expect(middle.shape).toEqual([2, 64]);
      expect((await read(middle))[0]).toBe(128);
      el.fillInto(rowRange(x, 1, 1), -1);
      write(rowRange(x, 4, 1), new Float32Array(64).fill(-4));
      expect([...(await read(el.mulScalar(middle, 2)))].slice(63, 65)).toEqual([382, 384]);
      const rows = await read(x);
      expect([0, 63, 64, 127, 128, 255, 256, 319].map((i) => rows[i])).toEqual([0, 63, -1, -1, 128, 255, -4, -4]);
    }));

  test("of a view, and reshaped, stays in its place", () =>
    scopeAsync(async () => {
      const inner = rowRange(rowRange(counting(9, 32), 2, 6), 2, 4);
      expect((await read(inner))[0]).toBe(128);
      expect((await read(rowRange(reshape(inner, [2, 64]), 1, 1)))[0]).toBe(192);
    }));

  test("keeps the allocation alive when it leaves a scope", () =>
    scopeAsync(async () => {
      const last = await scopeAsync(async () => Promise.resolve(rowRange(counting(3, 64), 2, 1)));
      expect((await read(last))[0]).toBe(128);
    }));

  test("must begin at a multiple of 256 bytes, inside the tensor", () =>
    scopeAsync(async () => {
      const x = empty([128, 3]);
      expect(() => rowRange(x, 1, 2)).toThrow("rows 1 to 2 of [128, 3] begin at byte 12; a view must");
      expect(() => rowRange(x, 64, 65)).toThrow(GpuError);
      expect(rowRange(x, 64, 64).byteOffset).toBe(768);
      await Promise.resolve();
    }));
});

describe("ranges", () => {
  test("there is one, of the tensors themselves, where they can be bound", () =>
    scopeAsync(async () => {
      const tensors = { x: empty([1000, 3]), y: empty([1000]) };
      for (const [range] of [rowRanges(tensors), elementRanges({ x: tensors.x })]) expect(range!.start).toBe(0);
      expect(rowRanges(tensors)).toEqual([{ start: 0, count: 1000, views: tensors }]);
      expect(rowRanges(tensors)[0]!.views).toBe(tensors);
      expect(elementRanges({ x: tensors.x })[0]!.count).toBe(3000);
      expect(rowRanges({ x: empty([]) })[0]!.count).toBe(1);
      expect(rowRanges({ x: empty([0, 7]) })).toHaveLength(1);
      await Promise.resolve();
    }));

  test("cover every row once, begin where a binding may, and fit", () =>
    withBindingLimit(4000, () => scopeAsync(async () => {
      for (const [rows, cols] of [[100, 64], [1000, 3], [200, 20], [230, 7], [77, 192]] as const) {
        const x = counting(rows, cols);
        let next = 0;
        for (const { start, count, views } of rowRanges({ x })) {
          expect(start).toBe(next);
          expect(4 * count * cols).toBeLessThanOrEqual(4000);
          expect(views.x.byteOffset! % 256).toBe(0);
          expect((await read(views.x))[0]).toBe(start * cols);
          next += count;
        }
        expect(next).toBe(rows);
      }
    })));

  test("are as long as the limit allows, in multiples", () =>
    withBindingLimit(4000, async () => {
      await scopeAsync(async () => {
        const counts = (x: Tensor, multiple = 1): number[] => rowRanges({ x }, multiple).map(({ count }) => count);
        expect(counts(empty([40, 64]))).toEqual([15, 15, 10]); // 256 bytes a row: any row may come first
        expect(counts(empty([40, 64]), 4)).toEqual([12, 12, 12, 4]);
        expect(counts(empty([150, 20]))).toEqual([48, 48, 48, 6]); // 80 bytes a row: every 16th
        expect(counts(empty([700, 3]))).toEqual([320, 320, 60]); // 12 bytes a row: every 64th
        expect(rowsPerRange([empty([40, 64])])).toBe(15);
        expect(rowsPerRange([empty([4, 64])])).toBe(Infinity);
        await Promise.resolve();
      });
    }));

  test("cut several tensors at the same rows", () =>
    withBindingLimit(20_000, () => scopeAsync(async () => {
      const ranges = rowRanges({ x: counting(200, 64), sums: counting(200) });
      expect(ranges.map(({ count }) => count)).toEqual([64, 64, 64, 8]); // [200] begins at every 64th row only
      const sums = await readAll(ranges.map(({ views }) => views.sums));
      expect(sums.map(([first]) => first)).toEqual([0, 64, 128, 192]);
      expect(elementRanges({ x: empty([3, 2001]) }, 1024).map(({ count }) => count)).toEqual([4096, 1907]);
    })));

  test("add no dispatch to small tensors, and one per range to large ones", () =>
    scopeAsync(async () => {
      const dispatches = (body: () => void): number => {
        const before = recorderStats().dispatches;
        body();
        return recorderStats().dispatches - before;
      };
      const x = counting(100, 64);
      expect(dispatches(() => el.exp(x))).toBe(1);
      await withBindingLimit(6400, () => Promise.resolve(expect(dispatches(() => el.exp(x))).toBe(4)));
    }));

  test("of one buffer are bound as what they are, though kernel and buffer are the same", () =>
    withBindingLimit(256, () => scopeAsync(async () => {
      const x = counting(200);
      // The second pass finds its bind groups in the cache.
      for (let pass = 0; pass < 2; pass++) {
        expect([...(await read(el.mulScalar(x, 3)))]).toEqual(Array.from({ length: 200 }, (_, i) => 3 * i));
      }
    })));
});

describe("too large", () => {
  test("for an operation that does not work by ranges: its name, the tensor, both sizes", () =>
    withBindingLimit(1000, () => scopeAsync(async () => {
      expect(() => softmax(empty([3, 100]))).toThrow(GpuError);
      expect(() => softmax(empty([3, 100]))).toThrow(
        "softmax.softmax: x [3, 100] has 1200 bytes, this adapter binds at most 1000. Fix: a smaller batch or shorter " +
          "sequences; for a weight, a smaller model",
      );
      await Promise.resolve();
    })));

  test("to be cut: rows longer than a binding", () =>
    withBindingLimit(1000, () => scopeAsync(async () => {
      expect(() => rowRanges({ x: empty([4, 300]) })).toThrow(
        "[4, 300] cannot be cut: this adapter binds 1000 bytes, which is 0 rows, and ranges are multiples of 16 rows",
      );
      await Promise.resolve();
    })));

  test("for any tensor: more than 2 GiB is refused before anything is allocated", () => {
    expect(() => empty([2 ** 20, 513])).toThrow(GpuError);
    expect(() => empty([2 ** 20, 513])).toThrow("a tensor of 2052.0 MiB exceeds 2048.0 MiB");
  });
});

test("the limit is the adapter's, and can only be lowered", async () => {
  const { device, maxBindingBytes } = gpu();
  expect(maxBindingBytes).toBe(device.limits.maxStorageBufferBindingSize);
  await withBindingLimit(2 ** 40, () => Promise.resolve(expect(gpu().maxBindingBytes).toBe(maxBindingBytes)));
});

test("readbacks beyond one staging buffer arrive whole and in order", () =>
  scopeAsync(async () => {
    const large = counting(17 * 2 ** 20); // 68 MiB: the tensors after it begin in the second buffer
    const [first, second, third] = await readAll([large, counting(3), tensor(Uint32Array.of(7, 8))]);
    expect(first!.length).toBe(17 * 2 ** 20);
    expect([0, 1, 2 ** 24 - 1, 2 ** 24, first!.length - 1].every((i) => first![i] === Math.fround(i))).toBe(true);
    expect([...second!, ...third!]).toEqual([0, 1, 2, 7, 8]);
  }));

test("elementwise operations give the same bits in any ranges", () =>
  scopeAsync(async () => {
    const { uniform } = random(1);
    const [a, b] = [toGpu(uniform([37, 29])), toGpu(uniform([37, 29]))];
    const [row, one] = [toGpu(uniform([29])), toGpu(uniform([1]))];
    const condition = tensor(Uint32Array.from({ length: 37 * 29 }, (_, i) => i % 3));
    const mask = reshape(condition, [37, 29]);
    const all = (): Promise<unknown> =>
      scopeAsync(async () => {
        const sum = el.copy(a);
        el.addInto(sum, b);
        const { dGate, dUp } = el.swigluBackward(a, b, sum);
        return readAll([
          sum, el.add(a, b), el.mul(a, b), el.exp(a), el.addScalar(a, 3), el.clamp(a, -0.5, 0.5), el.fill([37, 29], 7),
          el.clampBackward(a, b, -0.5, 0.5), el.where(mask, a, b), el.gelu(a), el.geluBackward(a, b), el.swiglu(a, b),
          dGate, dUp,
        ]);
      });
    const whole = await all();
    for (const limit of [256, 1000, 4000]) expect(await withBindingLimit(limit, all)).toEqual(whole);
    // A broadcast operand is not cut; the refusal is loud.
    await withBindingLimit(1000, () => Promise.resolve(expect(() => el.add(a, row)).toThrow("binary.add: a [37, 29]")));
    expect((await read(el.add(a, one))).length).toBe(37 * 29);
  }));
