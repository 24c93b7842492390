/** What a GPU gets and a software driver does not: a pool that is kept small, and short submissions. */
import { afterAll, expect, test } from "vitest";
import { gpu, openGpu } from "../../src/tensor/device.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { memoryStats, scope } from "../../src/tensor/memory.ts";
import { recorderStats } from "../../src/tensor/recorder.ts";
import { dispose, empty, keep, read, tensor } from "../../src/tensor/tensor.ts";

process.env["WEBGRPO_KERNELS"] = "gpu";
await openGpu();
afterAll(() => delete process.env["WEBGRPO_KERNELS"]);

test("free buffers are given up before a pool is half as large again as what was ever in use", async () => {
  const MIB = 2 ** 20;
  const kept = keep(tensor([1, 2, 3]));
  for (let size = 1; size <= 200; size += 5) {
    scope(() => { el.exp(empty([40_000 * size])); });
    const { poolBytes, peakBytes } = memoryStats();
    expect(poolBytes).toBeLessThanOrEqual(Math.max(64 * MIB, 1.5 * peakBytes));
  }
  expect(memoryStats().poolBytes).toBeGreaterThan(memoryStats().liveBytes); // but not at once: they serve again
  expect(await read(kept)).toEqual(Float32Array.of(1, 2, 3));
  dispose(kept);
});

test("a submission holds 64 dispatches at most", async () => {
  expect(gpu().submissionLength).toBe(64);
  const before = recorderStats();
  const y = scope(() => {
    let x = tensor([0]);
    for (let i = 0; i < 200; i++) x = el.addScalar(x, 1);
    return x;
  });
  expect(await read(y)).toEqual(Float32Array.of(200));
  const { dispatches, submits } = recorderStats();
  expect([dispatches - before.dispatches, submits - before.submits]).toEqual([200, 4]);
  dispose(y);
});
