/** Work that is captured and replayed: it reads inputs anew, owns its temporaries, and returns all memory. */
import { expect, test } from "vitest";
import { capture, disposeCapture, replay } from "../../src/tensor/capture.ts";
import { openGpu } from "../../src/tensor/device.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { expand } from "../../src/tensor/layout.ts";
import { memoryStats, scope, scopeAsync } from "../../src/tensor/memory.ts";
import { recorderStats } from "../../src/tensor/recorder.ts";
import { max, sum } from "../../src/tensor/reduce.ts";
import { empty, read, tensor, write, type Tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

const MIB = 2 ** 20;
await openGpu({ byteBudget: 64 * MIB }); // before gpu.ts opens it: the first call decides

/** exp(x) + x, by way of a temporary. */
const expPlus = (x: Tensor): Tensor => el.add(el.exp(x), x);
const close = (values: Iterable<number>, wanted: readonly number[]): void =>
  [...values].forEach((value, i) => expect(value).toBeCloseTo(wanted[i]!, 4));

test("a replay computes from what its inputs hold by then", async () => {
  await scopeAsync(async () => {
    const x = tensor([0, 1]);
    const work = capture(() => expPlus(x));
    close(await read(work.result), [1, Math.E + 1]);
    for (const values of [[2, 3], [-1, 0.5]]) {
      write(x, Float32Array.from(values));
      const before = recorderStats().dispatches;
      replay(work);
      expect(recorderStats().dispatches - before).toBe(work.dispatches.length);
      close(await read(work.result), values.map((value) => Math.exp(value) + value));
    }
  });
});

test("what is allocated after a capture is not overwritten by its replays", async () => {
  await scopeAsync(async () => {
    const x = tensor([1, 2, 3]);
    const work = capture(() => el.mul(expPlus(x), scope(() => expPlus(x))));
    expect(work.reserved.length).toBeGreaterThan(0);
    const others = Array.from({ length: 8 }, (_, i) => el.fill([3], i));
    const before = [...(await read(work.result))];
    replay(work);
    for (const [i, other] of others.entries()) expect([...(await read(other))]).toEqual([i, i, i]);
    expect([...(await read(work.result))]).toEqual(before);
  });
});

test("a pool that fills up during a capture destroys no buffer that replays use", async () => {
  await scopeAsync(async () => {
    const x = tensor([2]);
    scope(() => { empty([32 * MIB / 4]); }); // free memory that may go
    const before = memoryStats().poolBytes;
    const work = capture(() => {
      const total = scope(() => sum(expand(x, [16 * MIB / 4])));
      return scope(() => max(expand(total, [24 * MIB / 4]))); // 32 + 16 + 24 MiB are more than the budget
    });
    expect(memoryStats().poolBytes).toBeLessThan(before + 16 * MIB);
    for (const value of [2, 3]) {
      write(x, Float32Array.of(value));
      replay(work);
      expect([...(await read(work.result))]).toEqual([value * 4 * MIB]);
    }
  });
});

test("memory returns to the pool: by disposeCapture, else with the scope", () => {
  const before = memoryStats();
  scope(() => {
    const x = empty([100]);
    const inUse = memoryStats().liveBuffers;
    const work = capture(() => expPlus(x));
    expect(memoryStats().liveBuffers).toBe(inUse + 2); // the result and exp(x)
    disposeCapture(work);
    expect(memoryStats().liveBuffers).toBe(inUse);
    capture(() => expPlus(x));
  });
  expect(memoryStats().liveBytes).toBe(before.liveBytes);
  expect(memoryStats().liveBuffers).toBe(before.liveBuffers);
});

test("an upload inside is refused, and what follows is as before", async () => {
  await scopeAsync(async () => {
    const before = memoryStats().liveBuffers;
    expect(() => capture(() => el.exp(tensor([1])))).toThrow("an upload cannot be repeated. Fix: upload before");
    expect(memoryStats().liveBuffers).toBe(before);
    close(await read(el.exp(tensor([1]))), [Math.E]);
  });
});
