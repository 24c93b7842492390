/** Operations that move elements: forward and gradient against the float64 reference, ids, inverses, errors. */
import { describe, expect, test } from "vitest";
import * as ops from "../../src/autograd/ops.ts";
import { constant } from "../../src/autograd/variable.ts";
import * as layout from "../../src/tensor/layout.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { ShapeError, sizeOf } from "../../src/tensor/shape.ts";
import { empty, read, readIds, reshape, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { random } from "../support/gradcheck.ts";
import * as ref from "../support/reference.ts";
import * as shapes from "../support/reference_shape.ts";

test.each([
  [[7], [0]], [[3, 7], [1, 0]], [[65, 63], [1, 0]], [[257, 1], [1, 0]], [[2, 3, 5], [2, 0, 1]], [[2, 3, 5], [0, -1, 1]],
  [[2, 3, 4, 5], [0, 2, 1, 3]], [[2, 3, 4, 5], [3, 1, 2, 0]], [[2, 3, 1, 2, 2], [3, 4, 0, 2, 1]],
])("permute %j by %j", async (shape, order) => {
  await checkOp("permute", {
    inputs: [random(31).uniform(shape)], gpu: (x) => ops.permute(x, order), reference: (x) => shapes.permute(x, order),
  });
});

test("transpose swaps two axes", async () => {
  await checkOp("transpose", {
    inputs: [random(32).uniform([2, 3, 5])],
    gpu: (x) => ops.transpose(x, 0, -1),
    reference: (x) => shapes.transpose(x, 0, -1),
  });
});

test("reshape shares memory forward and backward", async () => {
  await checkOp("reshape", {
    inputs: [random(33).uniform([6, 7])],
    gpu: (x) => ops.reshape(x, [3, -1]),
    reference: (x) => shapes.reshape(x, [3, -1]),
  });
});

test.each([
  [[4], [-2, -2]], [[4], [-1, -1]], [[1], [-1, -1]], [[0], [-2, 0]], [[6], [4, -1]], [[0], [-1, 0]], [[4], [-4]],
])("reshape of %j to %j is refused", (from, to) => {
  scope(() => { expect(() => reshape(empty(from), to)).toThrow(ShapeError); });
});

test.each<[number[], number, number, number, number]>([
  [[7], 0, 2, 5, 1], [[65], 0, 1, 64, 3], [[5, 7], 0, 1, 4, 1], [[5, 7], 1, 0, 7, 2], [[5, 7], -1, 3, -1, 1],
  [[2, 257, 3], 1, 100, 257, 50], [[3, 1], 1, 0, 1, 1], [[3, 4, 2, 3], 2, 1, 2, 1],
])("slice of %j: axis %i, %i to %i by %i", async (shape, axis, start, stop, step) => {
  await checkOp("slice", {
    inputs: [random(34).uniform(shape)],
    gpu: (x) => ops.slice(x, axis, start, stop, step),
    reference: (x) => shapes.slice(x, axis, start, stop, step),
  });
});

test("slice positions are those of Python", async () => {
  const numbers = Float32Array.from({ length: 6 }, (_, i) => i);
  const cut = (start: number, stop: number, step = 1): Promise<number[]> =>
    scopeAsync(async () => [...(await read(layout.slice(tensor(numbers), 0, start, stop, step)))]);
  expect(await cut(-2, 6)).toEqual([4, 5]);
  expect(await cut(-99, 2)).toEqual([0, 1]);
  expect(await cut(4, 99)).toEqual([4, 5]);
  expect(await cut(-4, -1, 2)).toEqual([2, 4]);
  expect(await cut(3, 3)).toEqual([]);
  expect(await cut(5, 2)).toEqual([]);
});

test("the gradient of a slice from the end", async () => {
  await checkOp("slice", {
    inputs: [random(35).uniform([5, 3])],
    gpu: (x) => ops.slice(x, 0, -2, 5),
    reference: (x) => shapes.slice(x, 0, 3, 5),
  });
});

test.each<[number[][], number]>([
  [[[3], [1], [7]], 0], [[[2, 3], [5, 3]], 0], [[[2, 3], [2, 63], [2, 1]], -1], [[[2, 3, 5], [2, 1, 5]], 1],
  [[[0, 3], [2, 3]], 0], [[[65, 7]], 1],
])("concat of %j along %i", async (parts, axis) => {
  await checkOp("concat", {
    inputs: parts.map((shape, i) => random(36 + i).uniform(shape)),
    gpu: (...xs) => ops.concat(xs, axis),
    reference: (...xs) => shapes.concat(xs, axis),
  });
});

test.each([
  [[1], [7]], [[], [3, 5]], [[7, 1], [7, 65]], [[1, 7], [13, 7]], [[3, 1, 5], [2, 3, 4, 5]], [[63], [63]],
  [[2, 1, 3, 1], [2, 4, 3, 5]],
])("expand %j to %j", async (from, to) => {
  await checkOp("expand", {
    inputs: [random(40).uniform(from)], gpu: (x) => ops.expand(x, to), reference: (x) => ref.broadcastTo(x, to),
  });
});

test.each<[number[], number, number[]]>([
  [[7], 0, [3]], [[5, 65], 1, [5, 1]], [[3, 4], -1, [3, 13]], [[7, 3], 0, [2, 3]], [[2, 5, 3], 1, [2, 9, 3]],
  [[257, 2], 1, [257, 1]],
])("gather from %j along %i with an index of %j", async (shape, axis, indexShape) => {
  const index = random(41).ids(sizeOf(indexShape), shape.at(axis)!);
  await checkOp("gather", {
    inputs: [random(42).uniform(shape)],
    gpu: (x) => ops.gather(x, axis, idsToGpu(index, indexShape)),
    reference: (x) => shapes.gather(x, axis, index, indexShape),
  });
});

test("more than 65,535 rows", async () => {
  const x = random(43).uniform([70_001, 3]);
  const index = random(44).ids(70_001, 3);
  const common = { inputs: [x], independentRows: [0] };
  await checkOp("slice", { ...common, gpu: (v) => ops.slice(v, 1, 1, 3), reference: (v) => shapes.slice(v, 1, 1, 3) });
  await checkOp("gather", {
    ...common,
    gpu: (v) => ops.gather(v, 1, idsToGpu(index, [70_001, 1])),
    reference: (v) => shapes.gather(v, 1, index, [70_001, 1]),
  });
});

test("an index out of range gives NaN instead of a neighbour's value", async () => {
  await scopeAsync(async () => {
    const y = layout.gather(tensor([1, 2, 3, 4], [2, 2]), 1, idsToGpu([1, 2, 0xffffffff, 0], [2, 2]));
    expect([...(await read(y))]).toEqual([2, NaN, NaN, 3]);
  });
});

test("ids pass through permute, slice, concat and expand unchanged", async () => {
  await scopeAsync(async () => {
    const ids = idsToGpu([0, 1, 0xffffffff, 3, 0x7fc00001, 5], [2, 3]); // bit patterns that would be NaNs as floats
    expect([...(await readIds(layout.permute(ids, [1, 0])))]).toEqual([0, 3, 1, 0x7fc00001, 0xffffffff, 5]);
    expect([...(await readIds(layout.slice(ids, 1, 1, 3)))]).toEqual([1, 0xffffffff, 0x7fc00001, 5]);
    expect([...(await readIds(layout.concat([ids, ids], 0)))]).toHaveLength(12);
    expect([...(await readIds(layout.expand(idsToGpu([7, 8]), [2, 2])))]).toEqual([7, 8, 7, 8]);
  });
});

test("properties: a permutation and its inverse cancel, slices put together again give the tensor", async () => {
  await scopeAsync(async () => {
    const x = toGpu(random(45).uniform([7, 5, 3]));
    const original = await read(x);
    expect(await read(layout.permute(layout.permute(x, [2, 0, 1]), [1, 2, 0]))).toEqual(original);
    expect(await read(layout.concat([layout.slice(x, 1, 0, 2), layout.slice(x, 1, 2, 5)], 1))).toEqual(original);
  });
});

describe("errors name the operation and the shapes", () => {
  const x = (): Tensor => tensor([1, 2, 3, 4, 5, 6], [2, 3]);
  test.each<[string, () => unknown, RegExp]>([
    [
      "permute, an axis twice", () => layout.permute(x(), [0, 0]),
      /permute: order \[0, 0\] is no permutation of .* \[2, 3\]/,
    ],
    ["permute, an axis missing", () => layout.permute(x(), [0]), /permute: order \[0\] is no permutation/],
    ["permute, no such axis", () => layout.permute(x(), [0, 2]), /permute: axis 2 does not exist in shape \[2, 3\]/],
    [
      "permute, too many axes",
      () => layout.permute(tensor(new Float32Array(32), [2, 2, 2, 2, 2]), [4, 3, 2, 1, 0]),
      /permute: .* leaves 5 separate axes, at most 4/,
    ],
    ["slice backwards", () => layout.slice(x(), 0, 1, 0, -1), /slice: step -1; it must be a positive integer/],
    ["concat of nothing", () => layout.concat([], 0), /concat: no tensors/],
    [
      "concat", () => layout.concat([x(), tensor([1, 2], [1, 2])], 0),
      /concat: shapes \[2, 3\] and \[1, 2\] differ outside axis 0/,
    ],
    ["concat of types", () => layout.concat([x(), idsToGpu([1])], 0), /concat: expected a f32 tensor, got u32 \[1\]/],
    ["expand", () => layout.expand(x(), [2, 4]), /expand: shapes \[2, 3\] and \[2, 4\] do not broadcast/],
    ["expand downwards", () => layout.expand(x(), [3]), /expand: shape \[2, 3\] does not broadcast to \[3\]/],
    [
      "gather", () => layout.gather(x(), 1, idsToGpu([1, 2, 3], [3, 1])),
      /gather: index \[3, 1\] and \[2, 3\] must agree/,
    ],
    ["gather by numbers", () => layout.gather(x(), 1, x()), /gather: expected a u32 tensor, got f32 \[2, 3\]/],
    ["reshape", () => ops.reshape(constant(x()), [4, -1]), /reshape: \[2, 3\] has 6/],
  ])("%s", async (_, run, message) => {
    await scopeAsync(() => {
      expect(run).toThrow(ShapeError);
      expect(run).toThrow(message);
      return Promise.resolve();
    });
  });
});
