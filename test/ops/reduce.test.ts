/** Reductions: forward and gradient against the float64 reference, all sets of axes, long axes, determinism, errors. */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter, type Variable } from "../../src/autograd/variable.ts";
import { gpu } from "../../src/tensor/device.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import * as reduce from "../../src/tensor/reduce.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { dispose, keep, read, readAll, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as ref from "../support/reference.ts";
import type { Array64 } from "../support/reference.ts";
import { withRowThreads } from "../support/row_threads.ts";

type Reduction = (x: Variable, axes?: readonly number[], keepDims?: boolean) => Variable;

const reductions: Record<string, { gpu: Reduction; reference: typeof ref.sum }> = {
  sum: { gpu: ops.sum, reference: ref.sum },
  mean: { gpu: ops.mean, reference: ref.mean },
  max: { gpu: ops.max, reference: ref.max },
};

/** All values apart by far more than the step of the central differences, in random order: no ties for the maximum. */
function distinct(shape: readonly number[], seed: number): Array64 {
  const n = ref.sizeOf(shape);
  const keys = random(seed).uniform([n]).data;
  const order = [...keys.keys()].sort((i, j) => keys[i]! - keys[j]!);
  return ref.array64(shape, order.map((rank) => Math.fround((2 * rank) / n - 1)));
}

const axisSets: [number[], number[] | undefined][] = [
  ...[1, 3, 7, 63, 65, 257].map((n): [number[], undefined] => [[n], undefined]),
  [[], undefined], [[5, 7], [0]], [[5, 7], [1]], [[7, 65], [0]], [[65, 7], [0]], [[3, 65], [-1]], [[1, 7], [0]],
  [[7, 1], [1]],
  [[2, 3, 5], [1]], [[2, 3, 5], [0, 2]], [[2, 3, 5], [2, 1]], [[2, 3, 4, 5], [0, 2]], [[2, 3, 4, 5], [1, 3]],
  [[2, 3, 4, 5], [1, 2]], [[2, 1, 3], [0, 1]], [[2, 3], []],
];

describe.each(Object.entries(reductions))("%s", (name, { gpu, reference }) => {
  test.each(axisSets)("of %j over %j, forward and gradient", async (shape, axes) => {
    for (const keepDims of [false, true]) {
      await checkOp(name, {
        inputs: [distinct(shape, 21)],
        gpu: (x) => gpu(x, axes, keepDims),
        reference: (x) => reference(x, axes ?? null, keepDims),
      });
    }
  });

  test("of more than 65,535 rows", async () => {
    await checkOp(name, {
      inputs: [random(22).uniform([70_001, 3])],
      gpu: (x) => gpu(x, [1]),
      reference: (x) => reference(x, [1]),
      independentRows: [0],
      withoutGradient: name === "max" ? [0] : [], // random float32 numbers do tie in 70,001 rows
    });
  });

  // Every kernel and number of passes: long columns, long rows, few and many of them, and a length just past a chunk.
  test.each([
    [[2000, 192], [0]], [[9001, 3], [0]], [[1, 70_001], [1]], [[3, 5000], [1]], [[200, 300], [1]], [[40, 129, 60], [1]],
    [[1025, 9000], [0]], [[3, 1025], [1]], [[1_000_003], [0]],
  ])("of a long axis: %j over %j", async (shape, axes) => {
    const x = random(23).uniform(shape, -1, 2);
    await scopeAsync(async () => {
      const expected = longReference(x, axes[0]!, name);
      const y = await read(gpu(constant(toGpu(x)), axes).value);
      expectClose(`${name} ${JSON.stringify(shape)}`, y, expected, { rtol: 3e-6, atol: name === "sum" ? 1e-3 : 1e-6 });
    });
  });
});

test.each([[128, 3001], [8, 70_001]])("as on a GPU: %i threads to a row, %i rows, long rows", async (threads, rows) => {
  const { software } = gpu();
  Object.assign(gpu(), { software: false });
  try {
    await withRowThreads(threads, async () => {
      for (const shape of [[rows, 33], [5, 20_000], [1, 40_003]]) {
        const x = random(28).uniform(shape, -1, 2);
        await scopeAsync(async () => {
          const [sum, max] = await readAll([reduce.sum(toGpu(x), [1]), reduce.max(toGpu(x), [1])]);
          expectClose(`sum [${shape.join()}]`, sum!, longReference(x, 1, "sum"), { rtol: 3e-6, atol: 1e-4 });
          expectClose(`max [${shape.join()}]`, max!, longReference(x, 1, "max"), { rtol: 0, atol: 0 });
        });
      }
    });
  } finally {
    Object.assign(gpu(), { software });
  }
});

/** A reduction over one axis in plain loops: the reference is too slow for millions of elements. */
function longReference(x: Array64, axis: number, how: string): Float64Array {
  const inner = ref.sizeOf(x.shape.slice(axis + 1));
  const n = x.shape[axis]!;
  return Float64Array.from({ length: x.data.length / n }, (_, i) => {
    const start = Math.floor(i / inner) * n * inner + (i % inner);
    let result = how === "max" ? -Infinity : 0;
    for (let k = 0; k < n; k++) {
      const value = x.data[start + k * inner]!;
      result = how === "max" ? Math.max(result, value) : result + value;
    }
    return how === "mean" ? result / n : result;
  });
}

test("sumTo undoes every broadcast and returns its argument when there is none", async () => {
  const x = random(24).uniform([2, 3, 4]);
  await scopeAsync(async () => {
    const value = toGpu(x);
    expect(reduce.sumTo(value, [2, 3, 4])).toBe(value);
    const targets = [[[4], [0, 1]], [[3, 1], [0, 2]], [[], null], [[2, 1, 4], [1]], [[1, 1, 1], null]] as const;
    for (const [shape, axes] of targets) {
      const y = reduce.sumTo(value, shape);
      expect(y.shape).toEqual(shape);
      expectClose(`sumTo [${shape.join()}]`, await read(y), ref.sum(x, axes).data, { rtol: 1e-6, atol: 1e-6 });
    }
  });
});

test("equal maxima share the gradient evenly", async () => {
  const p = parameter(keep(tensor([1, 5, 5, 2, 2, 2], [2, 3])));
  await scopeAsync(async () => {
    backward(ops.max(p, [1]), tensor([4, 3]));
    expectClose("max at ties", await read(p.grad!), [0, 2, 2, 1, 1, 1], { rtol: 1e-6, atol: 0 });
  });
  [p.grad!, p.value].forEach(dispose);
});

test("a maximum of negative infinities is -infinity, and a NaN anywhere is the maximum", async () => {
  await scopeAsync(async () => {
    const long = new Float32Array(5000).fill(1);
    long[4321] = NaN;
    const [infinite, short, far] = await readAll([
      reduce.max(tensor([-Infinity, -Infinity])), reduce.max(tensor([1, NaN, 2, 3], [2, 2]), [1]),
      reduce.max(tensor(long)),
    ]);
    expect([...infinite!]).toEqual([-Infinity]);
    expect([...short!]).toEqual([NaN, 3]);
    expect([...far!]).toEqual([NaN]);
  });
});

test("the sum of nothing is 0", async () => {
  await scopeAsync(async () => {
    expect([...(await read(reduce.sum(tensor([], [2, 0]), [1])))]).toEqual([0, 0]);
    expect([...(await read(reduce.sum(tensor([], [0, 2]), [0])))]).toEqual([0, 0]);
  });
});

test("the same sum twice gives the same bits", async () => {
  await scopeAsync(async () => {
    const x = toGpu(random(25).uniform([300_007], -1e3, 1e3));
    const [first, second] = await readAll([reduce.sum(x), reduce.sum(x)]);
    expect(first).toEqual(second);
  });
});

test("properties: a sum is linear, and max(x + c) = max(x) + c", async () => {
  await scopeAsync(async () => {
    const [x, y] = [toGpu(random(26).uniform([65, 33])), toGpu(random(27).uniform([65, 33]))];
    const [joint, split, shifted, max] = await readAll([
      reduce.sum(el.add(el.mulScalar(x, 2), y), [0]), el.add(el.mulScalar(reduce.sum(x, [0]), 2), reduce.sum(y, [0])),
      reduce.max(el.addScalar(x, 2), [1]), el.addScalar(reduce.max(x, [1]), 2),
    ]);
    expectClose("linear", joint!, split!, { rtol: 1e-5, atol: 1e-5 });
    expect(shifted).toEqual(max);
  });
});

test.each<[string, () => Tensor, RegExp]>([
  ["no such axis", () => reduce.sum(tensor([1, 2]), [1]), /sum: axis 1 does not exist in shape \[2\]/],
  ["nothing to take a maximum of", () => reduce.max(tensor([], [2, 0]), [1]), /max: no elements in \[2, 0\]/],
  ["ids", () => reduce.mean(tensor(Uint32Array.of(1))), /mean: expected a f32 tensor, got u32 \[1\]/],
  ["sumTo", () => reduce.sumTo(tensor([1, 2, 3]), [2]), /sumTo: shapes \[3\] and \[2\] do not broadcast/],
  ["sumTo upwards", () => reduce.sumTo(tensor([1, 2, 3]), [2, 3]), /sumTo: shape \[2, 3\] does not broadcast to \[3\]/],
])("error: %s", async (_, run, message) => {
  await scopeAsync(() => {
    expect(run).toThrow(ShapeError);
    expect(run).toThrow(message);
    return Promise.resolve();
  });
});
