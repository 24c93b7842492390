/**
 * Numerical gradients, comparisons that explain themselves, and seeded random inputs for the tests.
 */
import type { Array64 } from "./reference.ts";
import { array64, sizeOf } from "./reference.ts";

type ReferenceFunction = (inputs: Array64[]) => Array64;

/** sum(a * b): how two arrays of one size are contracted to a number. */
export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`dot: ${a.length} numbers against ${b.length}`);
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/**
 * Gradient of sum(f(inputs) * cotangent) with respect to every element of inputs[which], by central differences (f(x +
 * eps) - f(x - eps)) / 2 eps. The outputs are subtracted before they are summed, so that those which do not depend on
 * an element cancel exactly. With the default eps the error is near 1e-9 of f's size. `inputs` is left unchanged.
 */
export function centralDifferences(
  f: ReferenceFunction,
  inputs: readonly Array64[],
  cotangent: Array64,
  which: number,
  eps = 1e-6,
): Array64 {
  const { shape, data } = inputs[which]!;
  const gradient = data.map((value, i) => {
    const [above, below] = [value + eps, value - eps];
    const up = f(inputs.with(which, { shape, data: data.with(i, above) })).data;
    const down = f(inputs.with(which, { shape, data: data.with(i, below) })).data;
    const change = up.map((output, j) => output - down[j]!);
    return dot(change, cotangent.data) / (above - below); // above - below: the step that rounding really made
  });
  return { shape: [...shape], data: gradient };
}

/**
 * Derivative of sum(f(inputs) * cotangent) when inputs[which] moves along `direction`, by one central difference: it
 * must equal dot(gradient, direction). Two calls of f check a gradient of any size, less sharply than
 * centralDifferences.
 */
export function directionalDerivative(
  f: ReferenceFunction,
  inputs: readonly Array64[],
  cotangent: Array64,
  which: number,
  direction: Array64,
  eps = 1e-6,
): number {
  const { shape, data } = inputs[which]!;
  const moved = (step: number): Array64 => ({ shape, data: data.map((value, i) => value + step * direction.data[i]!) });
  const up = f(inputs.with(which, moved(eps))).data;
  const down = f(inputs.with(which, moved(-eps))).data;
  return dot(up.map((output, j) => output - down[j]!), cotangent.data) / (2 * eps);
}

/**
 * Throws unless |actual - expected| <= atol + rtol * |expected| everywhere. NaN and infinities are close only to
 * themselves. The message names the operation, the first bad element, the worst one, and how many there are.
 */
export function expectClose(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { rtol, atol }: { rtol: number; atol: number },
): void {
  if (actual.length !== expected.length) {
    throw new Error(`${name}: got ${actual.length} numbers, expected ${expected.length}`);
  }
  let bad = 0;
  let first = -1;
  let worst = -1;
  let worstError = -1;
  for (let i = 0; i < expected.length; i++) {
    const [got, want] = [actual[i]!, expected[i]!];
    if (Object.is(got, want)) continue;
    const difference = Math.abs(got - want);
    const error = Number.isFinite(difference) ? difference : Infinity; // infinite or NaN on one side
    if (Number.isFinite(error) && error <= atol + rtol * Math.abs(want)) continue;
    bad++;
    if (first < 0) first = i;
    if (error > worstError) [worst, worstError] = [i, error];
  }
  if (bad === 0) return;
  const describe = (i: number): string => `index ${i}: got ${actual[i]}, expected ${expected[i]}`;
  throw new Error(
    `${name}: ${bad} of ${expected.length} values differ (rtol ${rtol}, atol ${atol}). First at ${describe(first)}. ` +
      `Largest error ${worstError === Infinity ? "not finite" : worstError.toExponential(2)} at ${describe(worst)}.`,
  );
}

/**
 * Largest |actual - expected| divided by the largest |expected|: one figure for a whole tensor. NaN if any value is
 * NaN.
 */
export function relativeToLargest(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) {
    throw new Error(`relativeToLargest: got ${actual.length} numbers, expected ${expected.length}`);
  }
  let largestError = 0;
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    largestError = Math.max(largestError, Math.abs(actual[i]! - expected[i]!)); // Math.max hands NaN on
    largest = Math.max(largest, Math.abs(expected[i]!));
  }
  return largestError === 0 ? 0 : largestError / largest;
}

export interface Random {
  /** Uniform in [0, 1). */
  next: () => number;
  /** Uniform in [low, high], every value exactly a float32, so that the GPU and the reference see the same numbers. */
  uniform: (shape: readonly number[], low?: number, high?: number) => Array64;
  /** Token ids 0..vocabulary-1. */
  ids: (count: number, vocabulary: number) => Uint32Array;
}

/** Random numbers that depend on the seed alone (the mulberry32 generator). */
export function random(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    next,
    uniform: (shape, low = -1, high = 1) =>
      array64(shape, Float64Array.from({ length: sizeOf(shape) }, () => Math.fround(low + (high - low) * next()))),
    ids: (count, vocabulary) => Uint32Array.from({ length: count }, () => Math.floor(next() * vocabulary)),
  };
}
