/** rmsNorm against float64: values and the gradients of x and weight. */
import { expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, read, readAll, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { random } from "../support/gradcheck.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const EPS = 1e-6;

async function check(rows: number, cols: number): Promise<void> {
  const numbers = random(rows + cols);
  await checkOp(`rmsNorm [${rows}, ${cols}]`, {
    inputs: [numbers.uniform([rows, cols], -2, 2), numbers.uniform([cols], 0.5, 1.5)],
    gpu: (x, weight) => ops.rmsNorm(x, weight, EPS),
    reference: (x, weight) => nn.rmsNorm(x, weight, EPS),
    gradient: { rtol: 1e-4, atol: 2e-5 },
    independentRows: [0],
  });
}

test.each([3, 6, 7, 63, 64, 65, 257])("%i columns", (cols) => check(5, cols));

// A workgroup holds four rows: every remainder.
test.each([1, 2, 3, 4, 8])("%i rows", (rows) => check(rows, 13));

test("more workgroups than one grid dimension holds", async () => {
  const numbers = random(8);
  const x = numbers.uniform([4 * 65_535 + 7, 2]);
  // Two columns far apart: no variance near 0.
  for (let i = 0; i < x.data.length; i += 2) x.data[i] = Math.fround(x.data[i]! + 3);
  await checkOp("rmsNorm", {
    inputs: [x, numbers.uniform([2], 0.5, 1.5)],
    gpu: (x, weight) => ops.rmsNorm(x, weight, EPS),
    reference: (x, weight) => nn.rmsNorm(x, weight, EPS),
    gradient: { rtol: 1e-4, atol: 5e-3 }, // sums over 262,147 rows round
    independentRows: [0],
  });
});

test.each([1, 128])("with %i threads to a row", (threads) => withRowThreads(threads, () => check(6, 65)));

test("one column: the result is the sign, the gradient vanishes", async () => {
  await checkOp("rmsNorm", {
    inputs: [random(1).uniform([9, 1], 0.5, 2), random(2).uniform([1])],
    gpu: (x, weight) => ops.rmsNorm(x, weight, EPS),
    reference: (x, weight) => nn.rmsNorm(x, weight, EPS),
  });
});

test("tiny values: eps decides, and zeros stay zeros", async () => {
  const x = random(3).uniform([4, 16], -1e-4, 1e-4);
  x.data.fill(0, 0, 16);
  const weight = random(4).uniform([16]);
  await checkOp("rmsNorm", {
    inputs: [x, weight],
    gpu: (a, w) => ops.rmsNorm(a, w, EPS),
    reference: (a, w) => nn.rmsNorm(a, w, EPS),
    gradient: { rtol: 1e-4, atol: 1e-3 }, // gradients of x are near 1/sqrt(eps) = 1000 here
  });
});

test("scaling a row does not change it", async () => {
  const x = random(5).uniform([3, 65], 1, 2);
  const weight = constant(toGpu(random(6).uniform([65])));
  const normed = (factor: number): Promise<Float32Array> =>
    scopeAsync(() => read(ops.rmsNorm(ops.mulScalar(constant(toGpu(x)), factor), weight, 0).value));
  expect(await normed(1024)).toEqual(await normed(1)); // a power of two: every bit
});

test("the same gradients, bit for bit, on every run", async () => {
  const numbers = random(7);
  const [x, weight, dy] = [[301, 33], [33], [301, 33]].map((shape) => numbers.uniform(shape));
  const gradients = async (): Promise<unknown> => {
    const variables = [x!, weight!].map((data) => parameter(keep(toGpu(data))));
    return scopeAsync(async () => {
      backward(ops.rmsNorm(variables[0]!, variables[1]!, EPS), toGpu(dy!));
      const result = await readAll(variables.map(({ grad }) => grad!));
      for (const { value, grad } of variables) [value, grad!].forEach(dispose);
      return result;
    });
  };
  expect(await gradients()).toEqual(await gradients());
});

test("shape errors name the operation and both shapes", () => {
  expect(() => ops.rmsNorm(constant(tensor([1, 2, 3])), constant(tensor([1, 2])), EPS)).toThrow(
    "rmsNorm: weight has shape [2], expected [3]",
  );
});
