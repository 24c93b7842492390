/** RMS normalisation of heads and rotary position embedding in one launch; why, and how, is in `rms_norm_rotary.wgsl`. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { requireRotary, type RotaryTables } from "./rotary.ts";
import { expectShape } from "./rows.ts";
import { empty, type Tensor } from "./tensor.ts";

const normRotaryKernel = kernel({
  shader: "rms_norm_rotary",
  entry: "rmsNormRotary",
  buffers: ["x", "weight", "cosines", "sines", "positions", "y", "rstd"],
  params: ["tokens", "heads", "maxPositions", "eps"],
});

/**
 * rotary(rmsNorm(x, weight, eps), tables, positions): x [B, T, H, D], weight [D], positions u32 [B, T] or [B * T] ->
 * y [B, T, H, D], and rstd, one per head, for `rmsNormBackward`. A position beyond the tables gives NaN.
 * @throws ShapeError when the shapes do not fit.
 */
export function rmsNormRotary(
  x: Tensor,
  weight: Tensor,
  eps: number,
  tables: RotaryTables,
  positions: Tensor,
): { y: Tensor; rstd: Tensor } {
  const { tokens, heads, half, maxPositions } = requireRotary("rmsNormRotary", x, tables, positions);
  expectShape("rmsNormRotary", "weight", weight, [2 * half]);
  const y = empty(x.shape);
  const rstd = empty(x.shape.slice(0, -1));
  const buffers = { x, weight, cosines: tables.cos, sines: tables.sin, positions, y, rstd };
  // No more threads than pairs, but for a power of two, which reductions want.
  const constants = { WORKGROUP: Math.min(gpu().rowThreads, 2 ** Math.ceil(Math.log2(half))), HALF: half };
  launch(normRotaryKernel, buffers, { tokens, heads, maxPositions, eps }, tokens, constants);
  return { y, rstd };
}
