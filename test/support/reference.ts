/**
 * A plain float64 reference on the CPU, part 1: arrays, elementwise arithmetic and reductions.
 *
 * The GPU kernels are checked against this code, so it is written to be obviously right, not fast: loops and the
 * formula as it stands in a textbook. It imports nothing of the library. It is itself checked against PyTorch
 * (reference.test.ts). Part 2 is reference_shape.ts (moving elements about), part 3 reference_nn.ts (neural-network
 * operations).
 */

/** A dense row-major array of any rank; rank 0 (shape []) holds one number. */
export interface Array64 {
  shape: number[];
  data: Float64Array;
}

/** Number of elements of a shape; 1 for the empty shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, 1);
}

/** Makes an array from flat row-major data. Throws if the element count does not fit the shape. */
export function array64(shape: readonly number[], data: ArrayLike<number>): Array64 {
  if (sizeOf(shape) !== data.length) {
    throw new Error(`array64: shape [${shape}] has ${sizeOf(shape)} elements, but ${data.length} numbers were given`);
  }
  return { shape: [...shape], data: Float64Array.from(data) };
}

/** A rank-0 array. */
export function scalar(value: number): Array64 {
  return array64([], [value]);
}

/** Row-major strides in elements: how far apart two neighbours along each axis lie. */
export function stridesOf(shape: readonly number[]): number[] {
  return shape.map((_, axis) => sizeOf(shape.slice(axis + 1)));
}

/** Turns a possibly negative axis (-1 = last) into 0..rank-1. Throws if it is out of range. */
export function normalizeAxis(axis: number, rank: number): number {
  const normal = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || normal < 0 || normal >= rank) {
    throw new Error(`axis ${axis} is out of range for rank ${rank}`);
  }
  return normal;
}

/** Calls `visit(index, flat)` for every element in row-major order. `index` is one array, changed between the calls. */
export function forEachIndex(shape: readonly number[], visit: (index: readonly number[], flat: number) => void): void {
  const index = shape.map(() => 0);
  const size = sizeOf(shape);
  for (let flat = 0; flat < size; flat++) {
    visit(index, flat);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis]!++;
      if (index[axis]! < shape[axis]!) break;
      index[axis] = 0;
    }
  }
}

/** Flat position of a multi-index. */
export function flatIndex(shape: readonly number[], index: readonly number[]): number {
  let flat = 0;
  for (let axis = 0; axis < shape.length; axis++) flat = flat * shape[axis]! + index[axis]!;
  return flat;
}

/** Builds an array from a formula for the element at each multi-index. */
export function fromIndex(shape: readonly number[], element: (index: readonly number[]) => number): Array64 {
  const data = new Float64Array(sizeOf(shape));
  forEachIndex(shape, (index, flat) => {
    data[flat] = element(index);
  });
  return { shape: [...shape], data };
}

/** The element at a multi-index. */
export function get(x: Array64, index: readonly number[]): number {
  return x.data[flatIndex(x.shape, index)]!;
}

// ---------------------------------------------------------------------------------------------------------------------
// Elementwise, with NumPy broadcasting: shapes are aligned at their last axes and extents of 1 are repeated.

/** The shape two shapes broadcast to. Throws if two extents differ and neither is 1. */
export function broadcastShapes(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const extentA = a[axis - (rank - a.length)] ?? 1;
    const extentB = b[axis - (rank - b.length)] ?? 1;
    if (extentA !== extentB && extentA !== 1 && extentB !== 1) {
      throw new Error(`shapes [${a}] and [${b}] cannot be broadcast together`);
    }
    return extentA === 1 ? extentB : extentA;
  });
}

/** Repeats axes of extent 1 (and missing leading axes) up to `shape` (torch.broadcast_to, Tensor.expand). */
export function broadcastTo(x: Array64, shape: readonly number[]): Array64 {
  if (String(broadcastShapes(x.shape, shape)) !== String(shape)) {
    throw new Error(`broadcastTo: shape [${x.shape}] does not broadcast to [${shape}]`);
  }
  if (x.shape.length === shape.length && x.data.length === sizeOf(shape)) return x;
  const missing = shape.length - x.shape.length;
  const source = (index: readonly number[]): number[] =>
    x.shape.map((extent, axis) => (extent === 1 ? 0 : index[axis + missing]!));
  return fromIndex(shape, (index) => get(x, source(index)));
}

/** Applies a function of one number to every element. */
export function map(x: Array64, f: (value: number) => number): Array64 {
  return { shape: [...x.shape], data: x.data.map(f) };
}

/** Applies a function of two numbers to every pair of elements, after broadcasting. */
export function zip(a: Array64, b: Array64, f: (a: number, b: number) => number): Array64 {
  const shape = broadcastShapes(a.shape, b.shape);
  const left = broadcastTo(a, shape);
  const right = broadcastTo(b, shape);
  return { shape, data: left.data.map((value, i) => f(value, right.data[i]!)) };
}

export const add = (a: Array64, b: Array64): Array64 => zip(a, b, (x, y) => x + y);
export const sub = (a: Array64, b: Array64): Array64 => zip(a, b, (x, y) => x - y);
export const mul = (a: Array64, b: Array64): Array64 => zip(a, b, (x, y) => x * y);
export const div = (a: Array64, b: Array64): Array64 => zip(a, b, (x, y) => x / y);
export const minimum = (a: Array64, b: Array64): Array64 => zip(a, b, Math.min);
export const maximum = (a: Array64, b: Array64): Array64 => zip(a, b, Math.max);
/** base ** exponent, elementwise. */
export const pow = (base: Array64, exponent: Array64): Array64 => zip(base, exponent, Math.pow);

/** condition ? a : b, elementwise (torch.where); any nonzero condition is true. All three broadcast. */
export function where(condition: Array64, a: Array64, b: Array64): Array64 {
  const shape = broadcastShapes(condition.shape, broadcastShapes(a.shape, b.shape));
  const [test, left, right] = [broadcastTo(condition, shape), broadcastTo(a, shape), broadcastTo(b, shape)];
  return { shape, data: test.data.map((value, i) => (value !== 0 ? left.data[i]! : right.data[i]!)) };
}

export const addScalar = (x: Array64, value: number): Array64 => map(x, (element) => element + value);
export const mulScalar = (x: Array64, value: number): Array64 => map(x, (element) => element * value);
export const powScalar = (x: Array64, exponent: number): Array64 => map(x, (element) => element ** exponent);
/** min(max(x, low), high); leave a bound out with -Infinity or Infinity. */
export const clamp = (x: Array64, low = -Infinity, high = Infinity): Array64 =>
  map(x, (element) => Math.min(Math.max(element, low), high));

export const neg = (x: Array64): Array64 => map(x, (element) => -element);
export const abs = (x: Array64): Array64 => map(x, Math.abs);
export const exp = (x: Array64): Array64 => map(x, Math.exp);
export const log = (x: Array64): Array64 => map(x, Math.log);
export const sqrt = (x: Array64): Array64 => map(x, Math.sqrt);
export const rsqrt = (x: Array64): Array64 => map(x, (element) => 1 / Math.sqrt(element));
export const reciprocal = (x: Array64): Array64 => map(x, (element) => 1 / element);
export const sin = (x: Array64): Array64 => map(x, Math.sin);
export const cos = (x: Array64): Array64 => map(x, Math.cos);
export const tanh = (x: Array64): Array64 => map(x, Math.tanh);
export const relu = (x: Array64): Array64 => map(x, (element) => Math.max(element, 0));
export const sigmoid = (x: Array64): Array64 => map(x, (element) => 1 / (1 + Math.exp(-element)));

/** x * sigmoid(x), also called swish (torch.nn.functional.silu). */
export const silu = (x: Array64): Array64 => map(x, (element) => element / (1 + Math.exp(-element)));

/** silu(gate) * up: the gated activation of Llama and Qwen (Shazeer 2020, "GLU Variants Improve Transformer"). */
export const swiglu = (gate: Array64, up: Array64): Array64 => mul(silu(gate), up);

/** Exact GELU, x * Phi(x) with Phi the normal distribution function (torch.nn.functional.gelu). */
export const gelu = (x: Array64): Array64 => map(x, (element) => element * 0.5 * erfc(-element / Math.SQRT2));

/** GELU's tanh approximation, as GPT-2 uses it (torch gelu with approximate="tanh"). */
export const geluTanh = (x: Array64): Array64 =>
  map(x, (element) => 0.5 * element * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (element + 0.044715 * element ** 3))));

/** The error function in double precision. */
export const erf = (x: number): number => 1 - erfc(x);

/**
 * The complementary error function 1 - erf(x) in double precision: a series of positive terms near zero (Abramowitz and
 * Stegun 7.1.6) and a continued fraction in the tail (7.1.14), where 1 - erf(x) would cancel.
 */
export function erfc(x: number): number {
  if (x < 0) return 2 - erfc(-x);
  if (x < 2.5) {
    let term = x;
    let sum = x;
    for (let n = 1; term > 1e-18 * sum; n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return 1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }
  let fraction = x;
  for (let n = 100; n >= 1; n--) fraction = x + n / 2 / fraction;
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / fraction;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reductions. `axes` are the axes to reduce, null = all; keepDims leaves them in the shape with extent 1.

/** Reduces `axes` with a function of the list of values that fall together. */
export function reduce(
  x: Array64,
  axes: readonly number[] | null,
  keepDims: boolean,
  f: (values: number[]) => number,
): Array64 {
  const rank = x.shape.length;
  const reduced = new Set(axes === null ? x.shape.keys() : axes.map((axis) => normalizeAxis(axis, rank)));
  const keptShape = x.shape.map((extent, axis) => (reduced.has(axis) ? 1 : extent));
  const groups: number[][] = Array.from({ length: sizeOf(keptShape) }, () => []);
  const keptIndex = keptShape.map(() => 0);
  forEachIndex(x.shape, (index, flat) => {
    for (let axis = 0; axis < rank; axis++) keptIndex[axis] = reduced.has(axis) ? 0 : index[axis]!;
    groups[flatIndex(keptShape, keptIndex)]!.push(x.data[flat]!);
  });
  return array64(keepDims ? keptShape : keptShape.filter((_, axis) => !reduced.has(axis)), groups.map(f));
}

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);
const average = (values: readonly number[]): number => total(values) / values.length;
const largest = (values: readonly number[]): number => values.reduce((best, value) => Math.max(best, value), -Infinity);
const smallest = (values: readonly number[]): number => values.reduce((best, value) => Math.min(best, value), Infinity);

export const sum = (x: Array64, axes: readonly number[] | null = null, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, total);
export const mean = (x: Array64, axes: readonly number[] | null = null, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, average);
export const max = (x: Array64, axes: readonly number[] | null = null, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, largest);
export const min = (x: Array64, axes: readonly number[] | null = null, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, smallest);

/** log(sum(exp(x))), with the largest value taken out so that exp cannot overflow. */
export const logSumExp = (x: Array64, axes: readonly number[] | null = null, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, (values) => {
    const top = largest(values);
    return top + Math.log(total(values.map((value) => Math.exp(value - top))));
  });

/** Mean squared distance from the mean; `unbiased` divides by n - 1 instead of n (Bessel's correction). */
export const variance = (x: Array64, axes: readonly number[] | null, unbiased: boolean, keepDims = false): Array64 =>
  reduce(x, axes, keepDims, (values) => {
    const center = average(values);
    return total(values.map((value) => (value - center) ** 2)) / (values.length - (unbiased ? 1 : 0));
  });

/** Position of the largest value along `axis`, the first one at a tie; `axis` leaves the shape. */
export const argmax = (x: Array64, axis: number): Array64 =>
  reduce(x, [axis], false, (values) => values.indexOf(largest(values)));

/** Replaces every line along `axis` by a function of that line, of the same length (softmax, cumsum, layer norm). */
export function mapLines(x: Array64, axis: number, f: (line: number[]) => number[]): Array64 {
  const along = normalizeAxis(axis, x.shape.length);
  const length = x.shape[along]!;
  const stride = stridesOf(x.shape)[along]!;
  const data = new Float64Array(x.data.length);
  forEachIndex(x.shape, (index, flat) => {
    if (index[along] !== 0) return; // a line starts where its index along the axis is 0
    const line = Array.from({ length }, (_, i) => x.data[flat + i * stride]!);
    f(line).forEach((value, i) => {
      data[flat + i * stride] = value;
    });
  });
  return { shape: [...x.shape], data };
}

/** Running sums along `axis`. */
export const cumsum = (x: Array64, axis: number): Array64 =>
  mapLines(x, axis, (line) => {
    let running = 0;
    return line.map((value) => (running += value));
  });
