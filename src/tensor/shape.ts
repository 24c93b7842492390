/** Shape arithmetic: sizes, strides, axes and NumPy-style broadcasting, with errors that print both shapes. */

export type Shape = readonly number[];

/** An operation was given shapes that do not fit; the message names the operation and every shape. */
export class ShapeError extends Error {
  override name = "ShapeError";
}

/** Number of elements: [2, 3] -> 6, [] -> 1. */
export function sizeOf(shape: Shape): number {
  return shape.reduce((product, n) => product * n, 1);
}

/** Row-major strides in elements: [2, 3, 4] -> [12, 4, 1]. */
export function stridesOf(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = stride;
    stride *= shape[axis]!;
  }
  return strides;
}

/** Whether two shapes are equal. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((n, axis) => n === b[axis]);
}

/** `[2, 3]`, for messages. */
export function show(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/** Turns an axis that may be negative into 0..rank-1. @throws ShapeError when there is no such axis. */
export function normalizeAxis(op: string, axis: number, shape: Shape): number {
  const normalized = axis < 0 ? axis + shape.length : axis;
  if (!Number.isInteger(axis) || normalized < 0 || normalized >= shape.length) {
    throw new ShapeError(`${op}: axis ${axis} does not exist in shape ${show(shape)}`);
  }
  return normalized;
}

/** The shape two operands broadcast to: [3, 1, 7] with [13, 1] -> [3, 13, 7]. @throws ShapeError when they do not. */
export function broadcastShapes(op: string, a: Shape, b: Shape): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const m = a[axis - rank + a.length] ?? 1;
    const n = b[axis - rank + b.length] ?? 1;
    if (m !== n && m !== 1 && n !== 1) throw new ShapeError(`${op}: shapes ${show(a)} and ${show(b)} do not broadcast`);
    return m === 1 ? n : m;
  });
}

/** Strides with which a tensor of shape `from` is read as if it had shape `to`: broadcast axes get stride 0. */
export function broadcastStrides(from: Shape, to: Shape): number[] {
  const strides = stridesOf(from);
  return to.map((_, axis) => {
    const own = axis - to.length + from.length;
    return own < 0 || from[own] === 1 ? 0 : strides[own]!;
  });
}

/**
 * Merges neighbouring axes that every operand walks as one, so that kernels see few dimensions.
 * Shape [2, 3, 4] with strides [[12, 4, 1]] -> shape [24], strides [[1]].
 */
export function collapseAxes(
  shape: Shape,
  strides: readonly (readonly number[])[],
): { shape: number[]; strides: number[][] } {
  const outShape: number[] = [];
  const outStrides: number[][] = strides.map(() => []);
  for (let axis = 0; axis < shape.length; axis++) {
    const n = shape[axis]!;
    if (n === 1) continue;
    const last = outShape.length - 1;
    const merges = last >= 0 && strides.every((s, i) => outStrides[i]![last] === s[axis]! * n);
    if (merges) {
      outShape[last]! *= n;
      strides.forEach((s, i) => (outStrides[i]![last] = s[axis]!));
    } else {
      outShape.push(n);
      strides.forEach((s, i) => outStrides[i]!.push(s[axis]!));
    }
  }
  return { shape: outShape, strides: outStrides };
}
