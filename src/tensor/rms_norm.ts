/** RMS normalisation over the last axis; the formulas are in `rms_norm.wgsl`. */
import { kernel, launch } from "./kernel.ts";
import { scope } from "./memory.ts";
import { sum } from "./reduce.ts";
import { expectShape, rowConstants, rowsOf } from "./rows.ts";
import { empty, type Places, type Tensor } from "./tensor.ts";

/** Rows per workgroup: ROWS in the shader. */
const TILE_ROWS = 4;

const forwardKernel = kernel({
  shader: "rms_norm",
  entry: "rmsNorm",
  buffers: ["x", "weight", "y", "rstd"],
  params: ["rows", "cols", "eps"],
});
const backwardKernel = kernel({
  shader: "rms_norm",
  entry: "rmsNormBackward",
  buffers: ["x", "weight", "savedRstd", "dy", "dx", "dWeightTiles"],
  params: ["rows", "cols", "addToDx"],
});

/** y = x / sqrt(mean(x^2) + eps) * weight over the last axis (torch.nn.functional.rms_norm); rstd is one per row. */
export function rmsNorm(x: Tensor, weight: Tensor, eps: number): { y: Tensor; rstd: Tensor } {
  const { rows, cols } = rowsOf("rmsNorm", x);
  expectShape("rmsNorm", "weight", weight, [cols]);
  const y = empty(x.shape);
  const rstd = empty([rows]);
  const tiles = Math.ceil(rows / TILE_ROWS);
  launch(forwardKernel, { x, weight, y, rstd }, { rows, cols, eps }, tiles, rowConstants(cols));
  return { y, rstd };
}

/** Gradients of x and weight, left in `into` where that names a place, from the `rstd` of the forward pass. */
export function rmsNormBackward(
  x: Tensor,
  weight: Tensor,
  rstd: Tensor,
  dy: Tensor,
  into: Places<"dx" | "dWeight"> = {},
): { dx: Tensor; dWeight: Tensor } {
  const { rows, cols } = rowsOf("rmsNormBackward", x);
  expectShape("rmsNormBackward", "dy", dy, x.shape);
  return scope(() => {
    const dx = into.dx?.tensor ?? empty(x.shape);
    const tiles = Math.ceil(rows / TILE_ROWS);
    const dWeightTiles = empty([tiles, cols]);
    const buffers = { x, weight, savedRstd: rstd, dy, dx, dWeightTiles };
    const params = { rows, cols, addToDx: into.dx?.adds ? 1 : 0 };
    launch(backwardKernel, buffers, params, tiles, rowConstants(cols));
    return { dx, dWeight: sum(dWeightTiles, [0], false, into.dWeight) };
  });
}
