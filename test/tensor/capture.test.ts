/** Work that is captured and replayed: it reads inputs anew, owns its temporaries, and returns all memory. */
import { expect, test } from "vitest";
import { capture, disposeCapture, replay } from "../../src/tensor/capture.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { memoryStats, scope, scopeAsync } from "../../src/tensor/memory.ts";
import { recorderStats } from "../../src/tensor/recorder.ts";
import { empty, read, tensor, write, type Tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

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
