/**
 * Launchers of the reductions: sum, mean and maximum over any set of axes, and `sumTo`, which undoes a broadcast.
 *
 * Neighbouring reduced axes are merged, so a tensor is seen as [outer, n, inner] with n the axis to reduce; axes that
 * are not neighbours take one pass each. Float32 throughout; the result depends on the shape alone, never on timing.
 */
import { requireDType } from "./elementwise.ts";
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { scope } from "./memory.ts";
import { ShapeError, broadcastShapes, normalizeAxis, sameShape, show, sizeOf, type Shape } from "./shape.ts";
import { empty, reshape, size, type Destination, type Tensor } from "./tensor.ts";

const WORKGROUP = 64;

const params = ["size", "n", "inner", "chunk", "chunks", "scale", "adds"] as const;
const linesKernel = kernel({ shader: "reduce", entry: "lines", buffers: ["x", "y"], params });
const rowsKernel = kernel({ shader: "reduce", entry: "rows", buffers: ["x", "y"], params });

type Reduction = "sum" | "max";

/**
 * Sum over axes (all when omitted); reduced axes leave the shape unless `keepDims` (torch.sum). It is left in `into`, of
 * as many elements as the result, unless there was nothing to add up.
 */
export function sum(x: Tensor, axes?: readonly number[], keepDims = false, into?: Destination | null): Tensor {
  return reduce("sum", "sum", x, axes, keepDims, 1, into);
}

/** Mean over axes (all when omitted) (torch.mean). */
export function mean(x: Tensor, axes?: readonly number[], keepDims = false): Tensor {
  const reduced = reducedAxes("mean", x.shape, axes);
  return reduce("mean", "sum", x, axes, keepDims, 1 / sizeOf(x.shape.filter((_, axis) => reduced.has(axis))));
}

/** Maximum over axes (all when omitted); NaN if any element is (torch.amax). @throws ShapeError over no elements. */
export function max(x: Tensor, axes?: readonly number[], keepDims = false): Tensor {
  return reduce("max", "max", x, axes, keepDims, 1);
}

/**
 * Sums x down to `shape`, which must broadcast to x's shape: the gradient of a broadcast. Returns x itself when the
 * shapes are equal.
 */
export function sumTo(x: Tensor, shape: Shape): Tensor {
  if (sameShape(x.shape, shape)) return x;
  if (!sameShape(broadcastShapes("sumTo", x.shape, shape), x.shape)) {
    throw new ShapeError(`sumTo: shape ${show(shape)} does not broadcast to ${show(x.shape)}`);
  }
  const missing = x.shape.length - shape.length;
  const axes = x.shape.flatMap((_, axis) => (axis < missing || shape[axis - missing] === 1 ? [axis] : []));
  return reshape(sum(x, axes, true), shape);
}

function reducedAxes(op: string, shape: Shape, axes: readonly number[] | undefined): Set<number> {
  return new Set(axes ? axes.map((axis) => normalizeAxis(op, axis, shape)) : shape.keys());
}

function reduce(
  op: string, how: Reduction, x: Tensor, axes: readonly number[] | undefined, keepDims: boolean, scale: number,
  into?: Destination | null,
): Tensor {
  requireDType(op, x, "f32");
  const reduced = reducedAxes(op, x.shape, axes);
  const kept = x.shape.map((n, axis) => (reduced.has(axis) ? 1 : n));
  const shape = keepDims ? kept : kept.filter((_, axis) => !reduced.has(axis));
  if (how === "max" && size(x) === 0 && sizeOf(shape) > 0) {
    throw new ShapeError(`${op}: no elements in ${show(x.shape)}`);
  }
  const views = axisGroups(x.shape, reduced);
  if (views.length === 0) return reshape(x, shape); // only axes of length 1: nothing to add
  return scope(() => {
    const result = views.reduce((y, view, pass) => {
      const isLast = pass === views.length - 1;
      return reduceAxis(how, y, view, isLast ? scale : 1, isLast ? into : null);
    }, x);
    return reshape(result, shape);
  });
}

/** A tensor seen as [outer, n, inner], n being the axis to reduce. */
interface AxisView {
  readonly outer: number;
  readonly n: number;
  readonly inner: number;
}

/** One view for each run of neighbouring reduced axes, the last run first, so that `inner` counts kept axes only. */
function axisGroups(shape: Shape, reduced: ReadonlySet<number>): AxisView[] {
  const views: AxisView[] = [];
  let inner = 1;
  for (let end = shape.length; end > 0; ) {
    let start = end - 1;
    while (start > 0 && reduced.has(start - 1) === reduced.has(end - 1)) start--;
    const n = sizeOf(shape.slice(start, end));
    if (!reduced.has(end - 1)) inner *= n;
    else if (n !== 1) views.push({ outer: sizeOf(shape.slice(0, start)), n, inner });
    end = start;
  }
  return views;
}

/** Reduces one axis, in several passes when it is long. */
function reduceAxis(
  how: Reduction, x: Tensor, { outer, n, inner }: AxisView, scale: number, into?: Destination | null,
): Tensor {
  const byRows = inner === 1 && n > SHORT_ROW && (!gpu().software || outer < FEW_ROWS);
  const chunk = Math.max(1, byRows ? rowChunk(n) : lineChunk(n, outer * inner)); // n may be 0
  const chunks = Math.max(1, Math.ceil(n / chunk));
  const isLast = chunks === 1;
  const place = isLast ? into : null;
  const y = place?.tensor ?? empty([outer * chunks * inner]);
  const numbers = { size: size(y), n, inner, chunk, chunks, scale: isLast ? scale : 1, adds: place?.adds ? 1 : 0 };
  const constants = { MAXIMUM: how === "max" ? 1 : 0 };
  if (byRows) launch(rowsKernel, { x, y }, numbers, size(y), { ...constants, ROW_THREADS: gpu().rowThreads });
  else launch(linesKernel, { x, y }, numbers, Math.ceil(size(y) / WORKGROUP), constants);
  return isLast ? y : reduceAxis(how, y, { outer, n: chunks, inner }, scale, into);
}

/** Rows up to this length are left to one thread each: joining partial results would cost more than it saves. */
const SHORT_ROW = 32;

/**
 * On a software driver a barrier costs as much as a hundred loads, and distant loads no more than neighbouring ones.
 */
const FEW_ROWS = 16;

/** Elements of a row that one workgroup reduces: 128 per thread. */
function rowChunk(n: number): number {
  return Math.min(n, 128 * gpu().rowThreads);
}

/**
 * Elements that one thread of `lines` reduces: about the square root when there are too few lines to fill a machine.
 */
function lineChunk(n: number, lines: number): number {
  const manyLines = 8192;
  return lines >= manyLines || n <= 64 ? Math.min(n, 1024) : Math.ceil(Math.sqrt(n));
}
