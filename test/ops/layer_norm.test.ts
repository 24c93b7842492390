/** layerNorm against float64: values, the gradients of x, weight and bias, and where one-pass formulas break. */
import { expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, read, readAll, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const EPS = 1e-5;

async function check(rows: number, cols: number): Promise<void> {
  const numbers = random(rows + cols);
  await checkOp(`layerNorm [${rows}, ${cols}]`, {
    inputs: [numbers.uniform([rows, cols], -2, 2), numbers.uniform([cols], 0.5, 1.5), numbers.uniform([cols])],
    gpu: (x, weight, bias) => ops.layerNorm(x, weight, bias, EPS),
    reference: (x, weight, bias) => nn.layerNorm(x, weight, bias, EPS),
    gradient: { rtol: 1e-4, atol: 2e-5 },
    independentRows: [0],
  });
}

test.each([1, 3, 6, 7, 63, 64, 65, 257])("%i columns", (cols) => check(5, cols));

// A workgroup holds four rows: every remainder.
test.each([1, 2, 3, 4, 8])("%i rows", (rows) => check(rows, 13));

test("more workgroups than one grid dimension holds", async () => {
  const numbers = random(8);
  const x = numbers.uniform([4 * 65_535 + 7, 2]);
  // Two columns far apart: no variance near 0.
  for (let i = 0; i < x.data.length; i += 2) x.data[i] = Math.fround(x.data[i]! + 3);
  await checkOp("layerNorm", {
    inputs: [x, numbers.uniform([2], 0.5, 1.5), numbers.uniform([2])],
    gpu: (x, weight, bias) => ops.layerNorm(x, weight, bias, EPS),
    reference: (x, weight, bias) => nn.layerNorm(x, weight, bias, EPS),
    gradient: { rtol: 1e-4, atol: 5e-3 }, // sums over 262,147 rows round
    independentRows: [0],
  });
});

test.each([1, 128])("with %i threads to a row", (threads) => withRowThreads(threads, () => check(6, 65)));

test("three axes, the last of which is normalised", async () => {
  const numbers = random(3);
  await checkOp("layerNorm", {
    inputs: [numbers.uniform([2, 3, 5]), numbers.uniform([5]), numbers.uniform([5])],
    gpu: (x, weight, bias) => ops.layerNorm(x, weight, bias, EPS),
    reference: (x, weight, bias) => nn.layerNorm(x, weight, bias, EPS),
    gradient: { rtol: 1e-4, atol: 5e-5 },
  });
});

test("a large mean does not swallow the variance", async () => {
  const numbers = random(4);
  const x = numbers.uniform([4, 64], 4095, 4097);
  const [weight, bias] = [numbers.uniform([64]), numbers.uniform([64])];
  const y = await scopeAsync(() => read(ops.layerNorm(
    constant(toGpu(x)), constant(toGpu(weight)), constant(toGpu(bias)), EPS,
  ).value));
  // The mean itself rounds to 2^-12 or so; mean(x^2) - mean^2 would be off by 100 %.
  expectClose("layerNorm", y, nn.layerNorm(x, weight, bias, EPS).data, { rtol: 0, atol: 2e-3 });
});

test("the same gradients, bit for bit, on every run", async () => {
  const numbers = random(5);
  const [x, weight, bias, dy] = [[301, 33], [33], [33], [301, 33]].map((shape) => numbers.uniform(shape));
  const gradients = async (): Promise<unknown> => {
    const variables = [x!, weight!, bias!].map((data) => parameter(keep(toGpu(data))));
    return scopeAsync(async () => {
      backward(ops.layerNorm(variables[0]!, variables[1]!, variables[2]!, EPS), toGpu(dy!));
      const result = await readAll(variables.map(({ grad }) => grad!));
      for (const { value, grad } of variables) [value, grad!].forEach(dispose);
      return result;
    });
  };
  expect(await gradients()).toEqual(await gradients());
});

test("shape errors name the operation and both shapes", () => {
  const x = constant(tensor([1, 2, 3], [1, 3]));
  const two = constant(tensor([1, 2]));
  expect(() => ops.layerNorm(x, two, two, EPS)).toThrow("layerNorm: weight has shape [2], expected [3]");
});
