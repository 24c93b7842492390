/** crossEntropy against float64: losses, gradients, ignored rows, large logits and ids that do not exist. */
import { expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { IGNORE } from "../../src/tensor/cross_entropy.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, read, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import type { Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const check = (name: string, logits: Array64, targets: Uint32Array): Promise<void> =>
  checkOp(name, {
    inputs: [logits],
    gpu: (x) => ops.crossEntropy(x, idsToGpu(targets)),
    reference: (x) => nn.crossEntropy(x, targets, { reduction: "none", ignoreIndex: IGNORE }),
    independentRows: [0],
  });

test.each([1, 3, 6, 7, 63, 64, 65, 257])("%i classes", async (classes) => {
  const numbers = random(classes);
  const targets = numbers.ids(9, classes);
  targets[4] = IGNORE;
  await check(`crossEntropy of ${classes}`, numbers.uniform([9, classes], -4, 4), targets);
});

test("every class as the target", async () => {
  await check("crossEntropy", random(2).uniform([65, 65], -4, 4), Uint32Array.from({ length: 65 }, (_, i) => i));
});

test("more rows than one grid dimension holds", async () => {
  const numbers = random(3);
  const targets = numbers.ids(65_539, 3).map((id, i) => (i % 5 === 0 ? IGNORE : id));
  await check("crossEntropy", numbers.uniform([65_539, 3], -4, 4), targets);
});

test.each([1, 128])("with %i threads to a row", async (threads) => {
  const numbers = random(4);
  await withRowThreads(threads, () => check("crossEntropy", numbers.uniform([5, 65]), numbers.ids(5, 65)));
});

test("large logits: the loss keeps its digits", async () => {
  const numbers = random(5);
  const logits = numbers.uniform([8, 33], 9_990, 10_000);
  const targets = numbers.ids(8, 33);
  const expected = nn.crossEntropy(logits, targets, { reduction: "none" }).data;
  const losses = await scopeAsync(() => read(ops.crossEntropy(constant(toGpu(logits)), idsToGpu(targets)).value));
  expectClose("crossEntropy", losses, expected, { rtol: 5e-6, atol: 1e-6 });
});

test("an ignored row has loss 0 and gradient 0, even when its logits are not finite", async () => {
  const logits = parameter(keep(tensor([NaN, Infinity, 1, 2], [2, 2])));
  const { losses, gradient } = await scopeAsync(async () => {
    const y = ops.crossEntropy(logits, idsToGpu([IGNORE, 1]));
    backward(y, tensor([1, 1]));
    return { losses: await read(y.value), gradient: await read(logits.grad!) };
  });
  expect(losses[0]).toBe(0);
  expect([...gradient.subarray(0, 2)]).toEqual([0, 0]);
  expect(losses[1]).toBeCloseTo(Math.log(1 + Math.exp(-1)), 6);
  dispose(logits.grad!);
  dispose(logits.value);
});

test("a target beyond the vocabulary gives NaN, in its row only", async () => {
  const logits = constant(tensor([1, 2, 3, 4], [2, 2]));
  const losses = await scopeAsync(() => read(ops.crossEntropy(logits, idsToGpu([2, 0])).value));
  expect(losses[0]).toBeNaN();
  expect(losses[1]).toBeCloseTo(Math.log(1 + Math.E), 6);
});

test("shape errors name the operation and both shapes", () => {
  const logits = constant(tensor([1, 2, 3, 4], [2, 2]));
  expect(() => ops.crossEntropy(logits, idsToGpu([1]))).toThrow("crossEntropy: targets has shape [1], expected [2]");
  expect(() => ops.crossEntropy(logits, tensor([0, 1]))).toThrow("targets are f32, expected u32");
  expect(() => ops.crossEntropy(constant(tensor([1, 2])), idsToGpu([1]))).toThrow("[rows, vocabulary]");
});
