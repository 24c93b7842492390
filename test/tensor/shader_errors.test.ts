/**
 * A shader that does not compile stops the run with file, line, column and source. In a file of its own, because the
 * engine refuses to go on afterwards.
 */
import { expect, test } from "vitest";
import { GpuError, openGpu } from "../../src/tensor/device.ts";
import { kernel, launch } from "../../src/tensor/kernel.ts";
import { submit } from "../../src/tensor/recorder.ts";
import { empty, read, tensor } from "../../src/tensor/tensor.ts";

test("the readback after an invalid shader fails with its place in the source, and so does what follows", async () => {
  await openGpu();
  const declared = kernel({ shader: "reduce", entry: "rows", buffers: ["x", "y"], params: ["size"] });
  const y = empty([1]);
  launch(declared, { x: tensor([1]), y }, { size: 1 }, 1, { ROW_THREADS: 0 });
  const failure = await read(y).catch((error: unknown) => error as Error);
  expect(failure).toBeInstanceOf(GpuError);
  const report = /^reduce\.wgsl:\d+:\d+ error: .+\nvar<workgroup> partials: array<f32, ROW_THREADS>;\n +\^/;
  expect((failure as Error).message).toMatch(report);
  expect(() => submit()).toThrow(failure as Error);
  await expect(read(tensor([1]))).rejects.toThrow(failure as Error);
});
