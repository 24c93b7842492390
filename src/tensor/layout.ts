/**
 * Launchers that move elements: permute, slice, concat, expand (one strided copy each) and gather.
 *
 * Tensors are always contiguous, so all of these copy; a reshape does not (`reshape` in tensor.ts). The copies take
 * float32 data and u32 ids, gather float32 alone; bf16 is refused. All throw ShapeError when shapes do not fit.
 */
import { fill, gridStrideGroups, requireDType } from "./elementwise.ts";
import { kernel, launch } from "./kernel.ts";
import {
  ShapeError, broadcastShapes, broadcastStrides, collapseAxes, normalizeAxis, sameShape, show, sizeOf, stridesOf,
  type Shape,
} from "./shape.ts";
import { empty, size, type Tensor } from "./tensor.ts";

const MAX_RANK = 4;

const stridedCopyKernel = kernel({
  shader: "layout", entry: "stridedCopy", buffers: ["x", "y"], params: ["size", "xOffset", "yOffset"],
  bits: ["x", "y"],
});
const gatherKernel = kernel({
  shader: "layout", entry: "gather", buffers: ["values", "indices", "picked"], params: ["size", "n", "m", "inner"],
});
const gatherBackwardKernel = kernel({
  shader: "layout", entry: "gatherBackward", buffers: ["dPicked", "indices", "dValues"],
  params: ["size", "n", "m", "inner"],
});

/** How a strided copy walks one of its two tensors. */
interface Walk {
  readonly tensor: Tensor;
  readonly strides: readonly number[];
  readonly offset?: number;
}

/** Copies one element for every index of `shape`. */
function stridedCopy(op: string, shape: Shape, from: Walk, to: Walk): void {
  const merged = collapseAxes(shape, [from.strides, to.strides]);
  if (merged.shape.length > MAX_RANK) {
    throw new ShapeError(
      `${op}: ${show(from.tensor.shape)} -> ${show(to.tensor.shape)} leaves ${merged.shape.length} separate axes, ` +
        `at most ${MAX_RANK} are supported. Fix: do it in two steps`,
    );
  }
  const params: Record<string, number> = {};
  merged.shape.forEach((length, axis) => {
    params[`length${axis}`] = length;
    params[`x${axis}`] = merged.strides[0]![axis]!;
    params[`y${axis}`] = merged.strides[1]![axis]!;
  });
  const count = sizeOf(shape);
  launch(
    stridedCopyKernel,
    { x: from.tensor, y: to.tensor },
    { ...params, size: count, xOffset: from.offset ?? 0, yOffset: to.offset ?? 0 },
    gridStrideGroups(count),
    { RANK: Math.max(1, merged.shape.length) },
  );
}

/** Axis i of the result is axis `order[i]` of x (torch.permute). */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  const axes = order.map((axis) => normalizeAxis("permute", axis, x.shape));
  if (axes.length !== x.shape.length || new Set(axes).size !== axes.length) {
    throw new ShapeError(`permute: order ${show(order)} is no permutation of the axes of ${show(x.shape)}`);
  }
  const strides = stridesOf(x.shape);
  const y = empty(axes.map((axis) => x.shape[axis]!), x.dtype);
  stridedCopy("permute", y.shape, { tensor: x, strides: axes.map((axis) => strides[axis]!) }, whole(y));
  return y;
}

function whole(x: Tensor): Walk {
  return { tensor: x, strides: stridesOf(x.shape) };
}

/** x[start:stop:step] along one axis; negative positions count from the end and are clipped, as in Python. */
export function slice(x: Tensor, axis: number, start: number, stop: number, step = 1): Tensor {
  const along = normalizeAxis("slice", axis, x.shape);
  const n = x.shape[along]!;
  if (!Number.isInteger(step) || step < 1) throw new ShapeError(`slice: step ${step}; it must be a positive integer`);
  const [first, last] = [clipPosition(start, n), clipPosition(stop, n)];
  const y = empty(x.shape.with(along, Math.max(0, Math.ceil((last - first) / step))), x.dtype);
  stridedCopy("slice", y.shape, sliceOf(x, along, first, step), whole(y));
  return y;
}

/** A Python slice position: negative from the end, clipped to 0..n. */
function clipPosition(position: number, n: number): number {
  return Math.min(Math.max(position < 0 ? position + n : position, 0), n);
}

/** The walk over x[start::step] along one axis. */
function sliceOf(x: Tensor, axis: number, start: number, step: number): Walk {
  const strides = stridesOf(x.shape);
  const stride = strides[axis]!;
  return { tensor: x, strides: strides.with(axis, stride * step), offset: start * stride };
}

/** dx of `slice`: dy at the positions that were taken from a tensor of this shape, 0 elsewhere. */
export function sliceBackward(dy: Tensor, shape: Shape, axis: number, start: number, step = 1): Tensor {
  requireDType("sliceBackward", dy, "f32");
  const along = normalizeAxis("sliceBackward", axis, shape);
  const dx = fill(shape, 0);
  const first = clipPosition(start, shape[along]!);
  stridedCopy("sliceBackward", dy.shape, whole(dy), sliceOf(dx, along, first, step));
  return dx;
}

/** Joins tensors that agree in every other axis and in their data type (torch.cat). */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  const first = tensors[0];
  if (!first) throw new ShapeError("concat: no tensors");
  const along = normalizeAxis("concat", axis, first.shape);
  for (const x of tensors) {
    requireDType("concat", x, first.dtype);
    const fits = x.shape.length === first.shape.length && x.shape.every((n, i) => i === along || n === first.shape[i]);
    if (fits) continue;
    throw new ShapeError(`concat: shapes ${show(first.shape)} and ${show(x.shape)} differ outside axis ${along}`);
  }
  const y = empty(first.shape.with(along, tensors.reduce((total, x) => total + x.shape[along]!, 0)), first.dtype);
  let start = 0;
  for (const x of tensors) {
    stridedCopy("concat", x.shape, whole(x), sliceOf(y, along, start, 1));
    start += x.shape[along]!;
  }
  return y;
}

/** Repeats axes of length 1, and missing leading axes, up to `shape` (torch.broadcast_to). */
export function expand(x: Tensor, shape: Shape): Tensor {
  if (!sameShape(broadcastShapes("expand", x.shape, shape), shape)) {
    throw new ShapeError(`expand: shape ${show(x.shape)} does not broadcast to ${show(shape)}`);
  }
  const y = empty(shape, x.dtype);
  stridedCopy("expand", shape, { tensor: x, strides: broadcastStrides(x.shape, shape) }, whole(y));
  return y;
}

/** Checks the shapes of a gather and returns them as [outer, n, inner] and [outer, m, inner]. */
function gatherShapes(op: string, shape: Shape, axis: number, index: Tensor): { n: number; m: number; inner: number } {
  requireDType(op, index, "u32");
  const along = normalizeAxis(op, axis, shape);
  const m = index.shape[along] ?? 0;
  if (!sameShape(index.shape, shape.with(along, m))) {
    throw new ShapeError(`${op}: index ${show(index.shape)} and ${show(shape)} must agree in every axis but ${along}`);
  }
  return { n: shape[along]!, m, inner: sizeOf(shape.slice(along + 1)) };
}

/**
 * y[.., k, ..] = x[.., index[.., k, ..], ..] along `axis` (torch.gather); the u32 `index` has y's shape. An index out
 * of range gives NaN.
 */
export function gather(x: Tensor, axis: number, index: Tensor): Tensor {
  requireDType("gather", x, "f32");
  const numbers = gatherShapes("gather", x.shape, axis, index);
  const y = empty(index.shape);
  const buffers = { values: x, indices: index, picked: y };
  launch(gatherKernel, buffers, { ...numbers, size: size(y) }, gridStrideGroups(size(y)));
  return y;
}

/** dx of `gather` for x of this shape; repeated indices add up, in the order of the index. */
export function gatherBackward(dy: Tensor, shape: Shape, axis: number, index: Tensor): Tensor {
  requireDType("gatherBackward", dy, "f32");
  const numbers = gatherShapes("gatherBackward", shape, axis, index);
  if (!sameShape(dy.shape, index.shape)) {
    throw new ShapeError(`gatherBackward: dy ${show(dy.shape)} and index ${show(index.shape)} differ`);
  }
  const dx = empty(shape);
  const buffers = { dPicked: dy, indices: index, dValues: dx };
  launch(gatherBackwardKernel, buffers, { ...numbers, size: size(dx) }, gridStrideGroups(size(dx)));
  return dx;
}
