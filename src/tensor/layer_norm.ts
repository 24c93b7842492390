/** Layer normalisation over the last axis; the formulas are in `layer_norm.wgsl`. */
import { kernel, launch } from "./kernel.ts";
import { scope } from "./memory.ts";
import { sum } from "./reduce.ts";
import { expectShape, rowConstants, rowsOf } from "./rows.ts";
import { empty, type Places, type Tensor } from "./tensor.ts";

/** Rows per workgroup: ROWS in the shader. */
const TILE_ROWS = 4;

const forwardKernel = kernel({
  shader: "layer_norm",
  entry: "layerNorm",
  buffers: ["x", "weight", "bias", "y", "mean", "rstd"],
  params: ["rows", "cols", "eps"],
});
const backwardKernel = kernel({
  shader: "layer_norm",
  entry: "layerNormBackward",
  buffers: ["x", "weight", "savedMean", "savedRstd", "dy", "dx", "dWeightTiles", "dBiasTiles"],
  params: ["rows", "cols", "addToDx"],
});

/**
 * y = (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, with the biased variance
 * (torch.nn.functional.layer_norm); mean and rstd = 1 / sqrt(variance + eps) are one per row.
 */
export function layerNorm(
  x: Tensor,
  weight: Tensor,
  bias: Tensor,
  eps: number,
): { y: Tensor; mean: Tensor; rstd: Tensor } {
  const { rows, cols } = rowsOf("layerNorm", x);
  expectShape("layerNorm", "weight", weight, [cols]);
  expectShape("layerNorm", "bias", bias, [cols]);
  const y = empty(x.shape);
  const mean = empty([rows]);
  const rstd = empty([rows]);
  const tiles = Math.ceil(rows / TILE_ROWS);
  const buffers = { x, weight, bias, y, mean, rstd };
  launch(forwardKernel, buffers, { rows, cols, eps }, tiles, rowConstants(cols));
  return { y, mean, rstd };
}

/**
 * Gradients of x, weight and bias, left in `into` where that names a place, from the `mean` and `rstd` of the forward
 * pass.
 */
export function layerNormBackward(
  x: Tensor,
  weight: Tensor,
  mean: Tensor,
  rstd: Tensor,
  dy: Tensor,
  into: Places<"dx" | "dWeight" | "dBias"> = {},
): { dx: Tensor; dWeight: Tensor; dBias: Tensor } {
  const { rows, cols } = rowsOf("layerNormBackward", x);
  expectShape("layerNormBackward", "dy", dy, x.shape);
  return scope(() => {
    const dx = into.dx?.tensor ?? empty(x.shape);
    const tiles = Math.ceil(rows / TILE_ROWS);
    const dWeightTiles = empty([tiles, cols]);
    const dBiasTiles = empty([tiles, cols]);
    const buffers = { x, weight, savedMean: mean, savedRstd: rstd, dy, dx, dWeightTiles, dBiasTiles };
    const params = { rows, cols, addToDx: into.dx?.adds ? 1 : 0 };
    launch(backwardKernel, buffers, params, tiles, rowConstants(cols));
    return {
      dx,
      dWeight: sum(dWeightTiles, [0], false, into.dWeight),
      dBias: sum(dBiasTiles, [0], false, into.dBias),
    };
  });
}
