/** Elementwise operations: forward and every gradient element against the float64 reference, broadcasting, errors. */
import { describe, expect, test } from "vitest";
import { gradientsOf } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter, type Variable } from "../../src/autograd/variable.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { read, readAll, readIds, reshape, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as ref from "../support/reference.ts";
import { array64, type Array64 } from "../support/reference.ts";

const sizes = [1, 3, 7, 63, 65, 257];
const many = 70_001; // more than 65,535, and no multiple of the workgroup

interface UnaryCase {
  readonly gpu: (x: Variable) => Variable;
  readonly reference: (x: Array64) => Array64;
  /** Range of inputs, away from poles and kinks. */
  readonly range: readonly [number, number];
}

const unaryCases: Record<string, UnaryCase> = {
  neg: { gpu: ops.neg, reference: ref.neg, range: [-3, 3] },
  abs: { gpu: ops.abs, reference: ref.abs, range: [-3, 3] },
  exp: { gpu: ops.exp, reference: ref.exp, range: [-5, 3] },
  log: { gpu: ops.log, reference: ref.log, range: [0.1, 5] },
  sqrt: { gpu: ops.sqrt, reference: ref.sqrt, range: [0.1, 5] },
  rsqrt: { gpu: ops.rsqrt, reference: ref.rsqrt, range: [0.1, 5] },
  tanh: { gpu: ops.tanh, reference: ref.tanh, range: [-4, 4] },
  gelu: { gpu: ops.gelu, reference: ref.gelu, range: [-6, 6] },
  geluTanh: { gpu: ops.geluTanh, reference: ref.geluTanh, range: [-6, 6] },
  silu: { gpu: ops.silu, reference: ref.silu, range: [-8, 8] },
  addScalar: { gpu: (x) => ops.addScalar(x, 0.7), reference: (x) => ref.addScalar(x, 0.7), range: [-3, 3] },
  mulScalar: { gpu: (x) => ops.mulScalar(x, -1.3), reference: (x) => ref.mulScalar(x, -1.3), range: [-3, 3] },
  "powScalar 3, negative bases": {
    gpu: (x) => ops.powScalar(x, 3), reference: (x) => ref.powScalar(x, 3), range: [-2, 2],
  },
  "powScalar 2": { gpu: (x) => ops.powScalar(x, 2), reference: (x) => ref.powScalar(x, 2), range: [-2, 2] },
  "powScalar -1.5": { gpu: (x) => ops.powScalar(x, -1.5), reference: (x) => ref.powScalar(x, -1.5), range: [0.3, 3] },
  "powScalar -2, negative bases": {
    gpu: (x) => ops.powScalar(x, -2), reference: (x) => ref.powScalar(x, -2), range: [-3, -0.3],
  },
  clamp: { gpu: (x) => ops.clamp(x, -0.5, 0.8), reference: (x) => ref.clamp(x, -0.5, 0.8), range: [-2, 2] },
  "clamp from below": { gpu: (x) => ops.clamp(x, 0.1, Infinity), reference: (x) => ref.clamp(x, 0.1), range: [-2, 2] },
};

/** No value this close to a kink, where central differences would straddle it. */
function awayFromKinks(x: Array64): Array64 {
  const kinks = [0, -0.5, 0.8, Math.fround(0.1)];
  return { shape: x.shape, data: x.data.map((value) => (kinks.some((k) => Math.abs(value - k) < 1e-4) ? 0.3 : value)) };
}

describe.each(Object.entries(unaryCases))("%s", (name, { gpu, reference, range }) => {
  test("equals the reference, forward and gradient, at every size", async () => {
    for (const n of sizes) {
      await checkOp(name, { inputs: [awayFromKinks(random(n).uniform([n], ...range))], gpu, reference });
    }
  });
});

test("more elements than 65,535 workgroups of one element", async () => {
  const [x, y] = [awayFromKinks(random(1).uniform([many, 1], -3, 3)), random(2).uniform([many, 1], -3, 3)];
  await checkOp("silu", { inputs: [x], gpu: ops.silu, reference: ref.silu, independentRows: [0] });
  await checkOp("mul", { inputs: [x, y], gpu: ops.mul, reference: ref.mul, independentRows: [0, 1] });
  await checkOp("swiglu", { inputs: [x, y], gpu: ops.swiglu, reference: ref.swiglu, independentRows: [0, 1] });
});

test("a grid never exceeds 65,535 workgroups, and every element is still computed", async () => {
  expect(el.gridStrideGroups(2 ** 31)).toBe(65_535);
  await scopeAsync(async () => {
    const y = await read(el.neg(el.fill([65_535 * 64 + 1000], 3)));
    expect(y.every((value) => value === -3)).toBe(true);
  });
});

interface BinaryCase {
  readonly gpu: (a: Variable, b: Variable) => Variable;
  readonly reference: (a: Array64, b: Array64) => Array64;
  readonly low: number;
}

const binaryCases: Record<string, BinaryCase> = {
  add: { gpu: ops.add, reference: ref.add, low: -2 },
  sub: { gpu: ops.sub, reference: ref.sub, low: -2 },
  mul: { gpu: ops.mul, reference: ref.mul, low: -2 },
  div: { gpu: ops.div, reference: ref.div, low: 0.4 },
  pow: { gpu: ops.pow, reference: ref.pow, low: 0.4 },
  minimum: { gpu: ops.minimum, reference: ref.minimum, low: -2 },
  maximum: { gpu: ops.maximum, reference: ref.maximum, low: -2 },
};

/** Pairs of shapes: equal, scalar, bias, column, outer product, both broadcast, three and four separate axes. */
const broadcasts: [number[], number[]][] = [
  [[1], [1]], [[7], [7]], [[3, 63], [3, 63]], [[65], []], [[], [65]], [[257], [1]], [[5, 13], [13]], [[5, 13], [5, 1]],
  [[7, 1], [1, 3]], [[3, 1, 7], [13, 1]], [[2, 3, 5], [3, 1]], [[2, 1, 3, 1], [3, 1, 5]], [[1, 3, 1, 5], [2, 1, 4, 1]],
];

describe.each(Object.entries(binaryCases))("%s", (name, { gpu, reference, low }) => {
  test.each(broadcasts)("of %j and %j equals the reference, forward and gradients", async (a, b) => {
    const inputs = [random(11).uniform(a, low, 2), random(12).uniform(b, low, 2)];
    await checkOp(name, { inputs, gpu, reference });
  });
});

test.each([[[3, 7], [3, 7], [7]], [[3, 7], [], [3, 1]], [[5, 1], [1, 3], [4, 1, 1]], [[1], [65], [65]]])(
  "where of %j, %j and %j",
  async (conditionShape, a, b) => {
    const condition = array64(conditionShape, random(3).ids(ref.sizeOf(conditionShape), 3));
    await checkOp("where", {
      inputs: [random(4).uniform(a), random(5).uniform(b)],
      gpu: (x, y) => ops.where(idsToGpu(condition.data, conditionShape), x, y),
      reference: (x, y) => ref.where(condition, x, y),
    });
  },
);

test("swiglu and its two gradients", async () => {
  for (const n of sizes) {
    const inputs = [random(n).uniform([n], -8, 8), random(n + 1).uniform([n], -3, 3)];
    await checkOp("swiglu", { inputs, gpu: ops.swiglu, reference: ref.swiglu });
  }
});

const onHost = (f: () => Tensor): Promise<number[]> => scopeAsync(async () => [...(await read(f()))]);

test("gradient helpers at ties, zeros and bounds", async () => {
  const [a, b] = [[1, 2, 2, 5], [2, 2, 1, 5]];
  expect(await onHost(() => el.less(tensor(a), tensor(b)))).toEqual([1, 0.5, 0, 0.5]);
  expect(await onHost(() => el.equal(tensor(a), tensor(b)))).toEqual([0, 1, 0, 1]);
  expect(await onHost(() => el.powLog(tensor([0, 1]), tensor([0, Math.E])))).toEqual([0, expect.closeTo(1, 6)]);
  expect(await onHost(() => el.sign(tensor([-3, 0, 2])))).toEqual([-1, 0, 1]);
  const x = tensor([-2, -1, 0, 1, 2]);
  expect(await onHost(() => el.clampBackward(x, el.fill([5], 7), -1, 1))).toEqual([0, 7, 7, 7, 0]);
});

test("powers of zero, of negative numbers, and with fractional exponents of them", async () => {
  const x = tensor([-2, 0, 2]);
  expect(await onHost(() => el.powScalar(x, 0))).toEqual([1, 1, 1]);
  expect(await onHost(() => el.powScalar(x, 1))).toEqual([-2, 0, 2]);
  expect(await onHost(() => el.powScalar(x, 2))).toEqual([4, 0, 4]);
  expect((await onHost(() => el.powScalar(x, 5))).map(Math.round)).toEqual([-32, 0, 32]);
  expect(await onHost(() => el.powScalar(x, 0.5))).toEqual([NaN, 0, expect.closeTo(Math.SQRT2, 6)]);
  expect((await onHost(() => el.pow(x, tensor([3, 3, 3])))).map(Math.round)).toEqual([-8, 0, 8]);
});

test("the gradient of x^0 is 0 everywhere, at 0 too, as PyTorch has it", async () => {
  const x = [0, -0, 2, -3];
  await scopeAsync(async () => {
    const base = parameter(tensor(x));
    const [ofScalar] = gradientsOf(ops.powScalar(base, 0), [base], el.fill([4], 1));
    expect((await read(ofScalar!)).map(Math.abs)).toEqual(new Float32Array(4));
    const exponents = constant(tensor([0, 2, 0, 1]));
    const [ofTensor] = gradientsOf(ops.pow(base, exponents), [base], el.fill([4], 1));
    expect((await read(ofTensor!)).map(Math.abs)).toEqual(Float32Array.of(0, 0, 0, 1));
  });
});

test("activations stay finite and right at large inputs", async () => {
  const x = array64([8], [-1000, -90, -30, -1e-4, 1e-4, 30, 90, 1000]);
  for (const op of ["tanh", "gelu", "geluTanh", "silu"] as const) {
    await scopeAsync(async () => {
      const [y, dx] = await readAll([el[op](toGpu(x)), el[`${op}Backward`](toGpu(x), el.fill([8], 1))]);
      expectClose(op, y!, ref[op](x).data, { rtol: 2e-6, atol: 1e-12 });
      // tanhBackward takes tanh's output, so it is left out here.
      if (op !== "tanh") expectClose(`${op} gradient`, dx!, [0, 0, 0, 0.5, 0.5, 1, 1, 1], { rtol: 1e-3, atol: 1e-10 });
    });
  }
});

test("a NaN is never hidden", async () => {
  const [x, y] = [tensor([NaN, 1, NaN]), tensor([1, NaN, NaN])];
  expect(await onHost(() => el.minimum(x, y))).toEqual([NaN, NaN, NaN]);
  expect(await onHost(() => el.maximum(x, y))).toEqual([NaN, NaN, NaN]);
  expect(await onHost(() => el.clamp(x, -1, 1))).toEqual([NaN, 1, NaN]);
  expect(await onHost(() => el.mulScalar(x, 0))).toEqual([NaN, 0, NaN]);
});

test("properties: a + b = b + a, (a - b) + b = a nearly, min + max = a + b, exp(log a) = a", async () => {
  await scopeAsync(async () => {
    const [a, b] = [toGpu(random(8).uniform([257], 0.5, 2)), toGpu(random(9).uniform([257], 0.5, 2))];
    const [ab, ba, back, minMax, expLog, values] = await readAll([
      el.add(a, b), el.add(b, a), el.add(el.sub(a, b), b), el.add(el.minimum(a, b), el.maximum(a, b)),
      el.exp(el.log(a)), a,
    ]);
    expect(ab).toEqual(ba);
    expect(minMax).toEqual(ab);
    expectClose("(a - b) + b", back!, values!, { rtol: 1e-6, atol: 0 });
    expectClose("exp(log a)", expLog!, values!, { rtol: 2e-6, atol: 0 });
  });
});

test("fill, copy and addInto", async () => {
  expect(await onHost(() => el.fill([3], 2.5))).toEqual([2.5, 2.5, 2.5]);
  expect(await onHost(() => el.fill([2], NaN))).toEqual([NaN, NaN]);
  await scopeAsync(async () => {
    const x = tensor([1, 2, 3]);
    const y = el.copy(x);
    el.addInto(y, x);
    el.fillInto(x, 0);
    expect([...(await read(y))]).toEqual([2, 4, 6]);
    expect([...(await read(x))]).toEqual([0, 0, 0]);
  });
});

test("a kernel writes its own elements only", async () => {
  await scopeAsync(async () => {
    const whole = el.fill([128], 1);
    el.fillInto({ ...whole, shape: [65] }, 2);
    const values = await read(whole);
    expect([...values.subarray(0, 65)]).toEqual(new Array(65).fill(2));
    expect([...values.subarray(65)]).toEqual(new Array(63).fill(1));
  });
});

test("an empty tensor is no error", async () => {
  expect(await onHost(() => el.add(el.neg(tensor([], [0, 3])), tensor([1, 2, 3])))).toEqual([]);
});

describe("errors name the operation and the shapes", () => {
  const a = (): Tensor => tensor([1, 2, 3]);
  const b = (): Tensor => tensor([1, 2]);
  const ids = (): Tensor => tensor(Uint32Array.of(1, 2, 3));
  test.each<[string, () => unknown, RegExp]>([
    ["shapes that do not broadcast", () => el.add(a(), b()), /add: shapes \[3\] and \[2\] do not broadcast/],
    ["where", () => el.where(ids(), a(), b()), /where: shapes \[3\] and \[2\] do not broadcast/],
    ["no broadcasting in place", () => el.addInto(a(), b()), /addInto: shapes \[3\] and \[2\] differ/],
    ["swiglu", () => el.swiglu(a(), b()), /swiglu: shapes \[3\] and \[2\] differ/],
    ["clampBackward", () => el.clampBackward(a(), b(), 0, 1), /clampBackward: shapes \[3\] and \[2\] differ/],
    ["ids where numbers belong", () => el.exp(ids()), /exp: expected a f32 tensor, got u32 \[3\]/],
    ["numbers where a condition belongs", () => el.where(a(), a(), a()), /where: expected a u32 tensor, got f32 \[3\]/],
    [
      "too many separate axes",
      () => el.add(el.fill([2, 1, 2, 1, 2], 0), el.fill([1, 2, 1, 2, 1], 0)),
      /add: broadcasting \[2, 1, 2, 1, 2\] and \[1, 2, 1, 2, 1\] leaves 5 separate axes, at most 4/,
    ],
  ])("%s", async (_, run, message) => {
    await scopeAsync(async () => {
      expect(run).toThrow(ShapeError);
      expect(run).toThrow(message);
      await Promise.resolve();
    });
  });
  test("reading ids as numbers", async () => {
    await expect(scopeAsync(() => read(ids()))).rejects.toThrow(/use readIds/);
    await expect(scopeAsync(() => readIds(reshape(a(), [3, 1])))).rejects.toThrow(/use read/);
  });
});
