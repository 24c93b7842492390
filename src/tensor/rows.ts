/**
 * What row-wise launchers share: a tensor seen as rows of its last axis, the constants of kernels that read rows by
 * vectors, and the checks of the operands beside it.
 */
import { gpu } from "./device.ts";
import type { Constants } from "./kernel.ts";
import { ShapeError, sameShape, show, sizeOf, type Shape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

/** A tensor as a matrix: all leading axes are rows, the last axis is columns. @throws ShapeError for a scalar. */
export function rowsOf(op: string, x: Tensor): { rows: number; cols: number } {
  const cols = x.shape.at(-1);
  if (cols === undefined) throw new ShapeError(`${op}: a scalar has no last axis`);
  return { rows: sizeOf(x.shape.slice(0, -1)), cols };
}

/** The constants of a kernel that includes row_vectors.wgsl. */
export function rowConstants(cols: number): Constants {
  return { WORKGROUP: gpu().rowThreads, WHOLE_VECTORS: cols % 4 === 0 ? 1 : 0 };
}

/** @throws ShapeError unless the operand has exactly this shape; the message names the operation and both shapes. */
export function expectShape(op: string, name: string, x: Tensor, wanted: Shape): void {
  if (!sameShape(x.shape, wanted)) {
    throw new ShapeError(`${op}: ${name} has shape ${show(x.shape)}, expected ${show(wanted)}`);
  }
}
