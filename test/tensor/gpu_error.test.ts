/** An error that nobody waits for must not pass unnoticed. In a file of its own: the process is of no use afterwards. */
import { expect, test } from "vitest";
import { gpu, GpuError, openGpu } from "../../src/tensor/device.ts";
import { fill } from "../../src/tensor/elementwise.ts";
import { read } from "../../src/tensor/tensor.ts";

test("an invalid command is thrown by a later readback", async () => {
  await openGpu();
  expect(await read(fill([2], 1))).toEqual(new Float32Array([1, 1]));
  // Buffers that can be mapped cannot be bound.
  gpu().device.createBuffer({ size: 4, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.STORAGE });
  await gpu().device.queue.onSubmittedWorkDone();
  const later = read(fill([2], 1));
  await expect(later).rejects.toThrow(GpuError);
  await expect(later).rejects.toThrow(/^GPU error: /);
});
