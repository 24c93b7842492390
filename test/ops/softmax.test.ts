/** softmax and logSoftmax: values and gradients against float64, and what must hold for any input. */
import { describe, expect, test } from "vitest";
import * as ops from "../../src/autograd/ops.ts";
import { constant, type Variable } from "../../src/autograd/variable.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { softmaxBackward } from "../../src/tensor/softmax.ts";
import { read, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import { array64, map, type Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const WIDTHS = [1, 3, 6, 7, 63, 64, 65, 257];

const cases: { name: string; gpu: (x: Variable, axis?: number) => Variable; reference: typeof nn.softmax }[] = [
  { name: "softmax", gpu: ops.softmax, reference: nn.softmax },
  { name: "logSoftmax", gpu: ops.logSoftmax, reference: nn.logSoftmax },
];

const run = (f: (x: Variable) => Variable, x: Array64): Promise<Float32Array> =>
  scopeAsync(() => read(f(constant(toGpu(x))).value));

describe.each(cases)("$name", ({ name, gpu, reference }) => {
  test.each(WIDTHS)("%i columns", async (cols) => {
    await checkOp(`${name} of ${cols} columns`, {
      inputs: [random(cols).uniform([5, cols], -4, 4)],
      gpu: (x) => gpu(x),
      reference: (x) => reference(x),
      independentRows: [0],
    });
  });

  test("more rows than one grid dimension holds", async () => {
    await checkOp(name, {
      inputs: [random(7).uniform([65_539, 3], -4, 4)],
      gpu: (x) => gpu(x),
      reference: (x) => reference(x),
      independentRows: [0],
    });
  });

  test.each([0, 1, -2])("along axis %i of three", async (axis) => {
    await checkOp(name, {
      inputs: [random(8).uniform([3, 5, 4], -4, 4)],
      gpu: (x) => gpu(x, axis),
      reference: (x) => reference(x, axis),
    });
  });

  test("a spike of 1e4 in each column in turn", async () => {
    for (const cols of [7, 65]) {
      const x = random(9).uniform([cols, cols]);
      for (let row = 0; row < cols; row++) x.data[row * cols + row] = 1e4;
      expectClose(name, await run(gpu, x), reference(x).data, { rtol: 1e-6, atol: 1e-6 });
    }
  });

  test("a constant added to a row changes nothing", async () => {
    // Multiples of 1/64 stay exact in float32 when 1000 is added: the two results must agree in every bit.
    const x = map(random(10).uniform([6, 65], -4, 4), (value) => Math.round(value * 64) / 64);
    for (const shift of [1000, -1000]) {
      expect(await run(gpu, map(x, (value) => value + shift))).toEqual(await run(gpu, x));
    }
  });

  test.each([1, 2, 4, 16, 32, 64, 128, 256])("with %i threads to a row", async (threads) => {
    await withRowThreads(threads, () =>
      checkOp(`${name} with ${threads} threads`, {
        inputs: [random(11).uniform([4, 65], -4, 4)],
        gpu: (x) => gpu(x),
        reference: (x) => reference(x),
        independentRows: [0],
      }),
    );
  });

  test("a NaN fills its own row and no other", async () => {
    const x = random(12).uniform([3, 9]);
    x.data[9 + 4] = NaN;
    const y = await run(gpu, x);
    const nans = Array.from(y, (value) => Number.isNaN(value));
    expect(nans).toEqual(Array.from({ length: 27 }, (_, i) => i >= 9 && i < 18));
  });
});

test("rows of softmax sum to 1, and -infinity has probability 0", async () => {
  const x = random(13).uniform([50, 257], -30, 30);
  for (let row = 0; row < 50; row++) x.data[row * 257 + row] = -Infinity;
  const y = await run(ops.softmax, x);
  for (let row = 0; row < 50; row++) {
    const sum = y.subarray(row * 257, (row + 1) * 257).reduce((total, p) => total + p, 0);
    expect(Math.abs(sum - 1)).toBeLessThan(1e-6);
    expect(y[row * 257 + row]).toBe(0);
  }
});

test("shape errors name the operation and both shapes", () => {
  expect(() => ops.softmax(constant(toGpu(array64([], [1]))))).toThrow(/softmax/);
  const x = constant(toGpu(array64([2], [1, 2])));
  expect(() => ops.softmax(x, 7)).toThrow("softmax: axis 7 does not exist in shape [2]");
  expect(() => ops.logSoftmax(x, 7)).toThrow("logSoftmax: axis 7 does not exist in shape [2]");
  expect(() => softmaxBackward(tensor([1, 2]), tensor([1, 2, 3]))).toThrow(
    "softmaxBackward: dy has shape [3], expected [2]",
  );
});
