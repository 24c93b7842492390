/**
 * Rotary position embedding (Su et al. 2021, arXiv 2104.09864); the rotation itself is in `rotary.wgsl`.
 *
 * The angle tables are computed on the host in float64: at position 2000 a float32 angle is already off by 1e-4, and
 * the sine of a GPU driver may be no better.
 */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, show, sizeOf } from "./shape.ts";
import { empty, keep, tensor, type Tensor } from "./tensor.ts";

/** cos and sin of position * frequency, each [positions, headSize / 2]. */
export interface RotaryTables {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** Llama 3's stretch of the context, under the names of its `rope_scaling` in config.json. */
export interface RotaryScaling {
  readonly factor: number;
  readonly low_freq_factor: number;
  readonly high_freq_factor: number;
  readonly original_max_position_embeddings: number;
}

export interface RotaryOptions {
  /** Rotates back: the gradient, and the inverse. */
  readonly inverse?: boolean;
}

const rotaryKernel = kernel({
  shader: "rotary",
  entry: "rotary",
  buffers: ["x", "cosines", "sines", "positions", "y"],
  params: ["tokens", "heads", "half", "lanes", "maxPositions", "direction"],
});

/** theta^(-2 i / headSize) for each pair i, stretched as `scaling` says. Radians per position. */
export function rotaryFrequencies(headSize: number, theta: number, scaling?: RotaryScaling): Float64Array {
  const frequencies = Float64Array.from({ length: headSize / 2 }, (_, i) => theta ** ((-2 * i) / headSize));
  return scaling ? frequencies.map((frequency) => stretch(frequency, scaling)) : frequencies;
}

/**
 * Llama 3's rule (`_compute_llama3_parameters` of transformers): wavelengths beyond the original context are stretched
 * by `factor`, short ones stay, and those between are blended.
 */
function stretch(frequency: number, scaling: RotaryScaling): number {
  const { factor, low_freq_factor: low, high_freq_factor: high, original_max_position_embeddings: context } = scaling;
  const turns = (context * frequency) / (2 * Math.PI); // rotations within the original context
  if (turns < low) return frequency / factor;
  if (turns > high) return frequency;
  const blend = (turns - low) / (high - low);
  return (1 - blend) * (frequency / factor) + blend * frequency;
}

/**
 * Tables for positions 0..maxPositions-1. They are kept: dispose of both when the model goes.
 * @throws ShapeError when the head size is odd.
 */
export function rotaryTables(
  maxPositions: number,
  headSize: number,
  theta: number,
  scaling?: RotaryScaling,
): RotaryTables {
  if (headSize % 2 !== 0) throw new ShapeError(`rotaryTables: head size ${headSize} is odd, pairs need an even one`);
  const frequencies = rotaryFrequencies(headSize, theta, scaling);
  const half = frequencies.length;
  const table = (f: (angle: number) => number): Tensor => {
    const values = new Float32Array(maxPositions * half);
    for (let i = 0; i < values.length; i++) values[i] = f(Math.floor(i / half) * frequencies[i % half]!);
    return keep(tensor(values, [maxPositions, half]));
  };
  return { cos: table(Math.cos), sin: table(Math.sin) };
}

/**
 * Turns the pairs (x[i], x[i + D/2]) of every head by position * frequency[i]: x [B, T, H, D], positions u32 [B, T] or
 * [B * T] -> [B, T, H, D]. A position beyond the tables gives NaN.
 */
export function rotary(
  x: Tensor,
  tables: RotaryTables,
  positions: Tensor,
  { inverse = false }: RotaryOptions = {},
): Tensor {
  const { tokens, heads, half, maxPositions } = requireRotary("rotary", x, tables, positions);
  const y = empty(x.shape);
  const WORKGROUP = gpu().rowThreads;
  const lanes = Math.min(half, WORKGROUP);
  const buffers = { x, cosines: tables.cos, sines: tables.sin, positions, y };
  const params = { tokens, heads, half, lanes, maxPositions, direction: inverse ? -1 : 1 };
  launch(rotaryKernel, buffers, params, tokens, { WORKGROUP });
  return y;
}

/** The sizes of what is to be turned. @throws ShapeError when x [B, T, H, D], tables and positions do not fit. */
export function requireRotary(
  op: string,
  x: Tensor,
  tables: RotaryTables,
  positions: Tensor,
): { tokens: number; heads: number; half: number; maxPositions: number } {
  const [batch, time, heads, headSize] = x.shape;
  if (x.shape.length !== 4 || batch === undefined || time === undefined || heads === undefined || !headSize) {
    throw new ShapeError(`${op}: x has shape ${show(x.shape)}, expected [batch, time, heads, head size]`);
  }
  if (headSize % 2 !== 0) {
    throw new ShapeError(`${op}: head size ${headSize} in x ${show(x.shape)} is odd. Fix: an even one, for pairs`);
  }
  const half = headSize / 2;
  const maxPositions = tables.cos.shape[0]!;
  expectShape(op, "tables.cos", tables.cos, [maxPositions, half]);
  expectShape(op, "tables.sin", tables.sin, [maxPositions, half]);
  const tokens = batch * time;
  if (sizeOf(positions.shape) !== tokens || positions.dtype !== "u32") {
    throw new ShapeError(
      `${op}: positions are ${positions.dtype} ${show(positions.shape)}, expected u32 [${batch}, ${time}] for ` +
        `x ${show(x.shape)}`,
    );
  }
  return { tokens, heads, half, maxPositions };
}
