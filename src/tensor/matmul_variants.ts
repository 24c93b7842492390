/**
 * Which kernel computes a matrix product, and what it is specialised for. The choice is a small table of measurements,
 * never a timing at run time: the same product on the same machine always adds up in the same order.
 */
import { availableParallelism } from "node:os";
import { gpu } from "./device.ts";
import { kernel, type Constants } from "./kernel.ts";

const declaration = {
  entry: "matmul",
  buffers: ["a", "b", "c", "bias", "residual"],
  params: [
    "rows", "cols", "inner", "aOffset", "aRow", "aInner", "bOffset", "bInner", "bCol", "cOffset", "cRow", "addends",
    "biasOffset", "batches", "batchSize1", "batchSize2", "aBatch0", "aBatch1", "aBatch2", "bBatch0", "bBatch1",
    "bBatch2", "tilesPerGroup",
  ],
  bf16: { b: "B_BF16" },
} as const;
const subgroupKernel = kernel({ shader: "matmul_subgroup", ...declaration });
const tileKernel = kernel({ shader: "matmul_tile", ...declaration });

interface Variant {
  readonly kernel: typeof subgroupKernel;
  /** The tile of the result that a workgroup computes, or each of its tiles. */
  readonly tileRows: number;
  readonly tileCols: number;
  /** Whether a workgroup can compute several tiles side by side, with its rows of a staged for all of them. */
  readonly stages: boolean;
  readonly constants: (product: ProductLayout, tilesPerGroup: number) => Constants;
}

/** A tile of matmul_subgroup.wgsl, of which each of `rowLanes` lanes owns so many rows. */
function subgroupTile(rowsPerLane: number, rowLanes: number): Variant {
  return {
    kernel: subgroupKernel,
    tileRows: rowsPerLane * rowLanes,
    tileCols: 32,
    stages: true,
    constants: (product, tilesPerGroup) => ({
      ROWS_PER_LANE: rowsPerLane,
      ROW_LANES: rowLanes,
      ...vectorConstants(rowsPerLane, product),
      STAGED: tilesPerGroup > 1 ? 1 : 0,
    }),
  };
}

/** The kernels by the tile of the result that one workgroup computes at a time. */
export const variants = {
  subgroup8x32: subgroupTile(1, 8),
  subgroup24x32: subgroupTile(4, 6),
  subgroup32x32: subgroupTile(4, 8),
  tile64x64: { kernel: tileKernel, tileRows: 64, tileCols: 64, stages: false, constants: () => ({}) },
} satisfies Record<string, Variant>;

export type MatmulVariant = keyof typeof variants;

/** Sizes of a product, and where the elements of a, b and c lie. */
export interface ProductLayout {
  readonly rows: number;
  readonly cols: number;
  readonly inner: number;
  readonly a: BlockLayout;
  readonly b: BlockLayout;
  readonly c: BlockLayout;
}

/** Element (i, j) of a block lies at i * rowStride + j * colStride, plus multiples of the starts. */
export interface BlockLayout {
  readonly starts: readonly number[];
  readonly rowStride: number;
  readonly colStride: number;
}

const VECTOR = 4;
/** How matmul_subgroup.wgsl loads blocks of a and b: by vectors along k, along the other axis, or by elements. */
const ALONG = { none: 0, inner: 1, outer: 2 } as const;

/** Vectors wherever every address that one may have is a multiple of 4. */
function vectorConstants(rowsPerLane: number, { rows, cols, inner, a, b, c }: ProductLayout): Constants {
  const aAlong = along(a.starts, [inner, a.colStride], [rows, a.rowStride]);
  return {
    A_ALONG: aAlong === ALONG.outer && rowsPerLane < VECTOR ? ALONG.none : aAlong,
    B_ALONG: along(b.starts, [inner, b.rowStride], [cols, b.colStride]),
    C_VECTORS: areMultiples(cols, c.rowStride, ...c.starts) ? 1 : 0,
  };
}

/** Which axis of an operand has vectors; the axes as length and stride. */
function along(starts: readonly number[], inner: readonly [number, number], outer: readonly [number, number]): number {
  if (inner[1] === 1 && areMultiples(inner[0], outer[1], ...starts)) return ALONG.inner;
  if (outer[1] === 1 && areMultiples(outer[0], inner[1], ...starts)) return ALONG.outer;
  return ALONG.none;
}

function areMultiples(...numbers: readonly number[]): boolean {
  return numbers.every((n) => n % VECTOR === 0);
}

/**
 * Which kernel computes a product with so many rows. Measured on lavapipe (256-bit vectors, two virtual cores of a
 * Xeon), m x k x n: GFLOPS, medians of 25 interleaved runs; and milliseconds of a first compilation. "Elements" is the
 * 32 x 32 tile as it was before it loaded vectors, "staged" has four tiles to a workgroup. `benchMatmulVariants`
 * measures the variants kept.
 *
 *                            elements          vectors          vectors, staged     shared
 *                             32 x 32     8 x 32   32 x 32          32 x 32        64 x 64
 *   512 x 512 x 512, A Bᵀ        12.5       10.4      17.1             18.1            2.3
 *   512 x 192 x 512, A Bᵀ        12.6       10.8      16.3             20.0            2.5
 *   512 x 512 x 192, Aᵀ B        13.4       11.1      18.2             19.4            2.8
 *   200 x 192 x 512, A Bᵀ        10.6       10.5      14.9             18.2            2.0
 *   25 x 192 x 512, A Bᵀ          7.2        6.7      10.3             10.2            0.9
 *   5 x 192 x 512, A Bᵀ           1.6        4.6       2.3              2.6            0.2
 *   compilation                   700        400       900             1000           1300
 *
 * Since then, sums whose rows are not staged are cut into chunks as well, which costs products of more than 256 steps 5
 * to 10%.
 *
 * So 32 x 32, except where its rows would not be filled. Microseconds of m x 192 x 512, A Bᵀ, on two virtual cores of
 * an EPYC:
 *
 *             16 rows   24 rows   32 rows   48 rows   64 rows
 *   8 x 32        560       811       923      1112      1314
 *   24 x 32       585       608       972       854      1255
 *   32 x 32       862       695       661      1000      1030
 *
 * Wider and taller tiles gained at most 5% and took three times as long to compile. Everything but the software driver
 * with its subgroups of 8 gets the shared-memory tile, as the textbook has it: its size was not tuned on a GPU.
 */
export function chooseVariant(rows: number): MatmulVariant {
  const { software, subgroupSize } = gpu();
  if (!software || subgroupSize !== 8) return "tile64x64";
  if (rows <= 16) return "subgroup8x32";
  return FLAT_TILE_COST * Math.ceil(rows / 24) < Math.ceil(rows / 32) ? "subgroup24x32" : "subgroup32x32";
}

/** What a 24 x 32 tile takes of the time of a 32 x 32 one: it loads as many columns for fewer rows. */
const FLAT_TILE_COST = 0.85;
/** Workgroups that each of the software driver's threads has at least, so that they finish together. */
const GROUPS_PER_THREAD = 2;
const THREADS = availableParallelism();

/**
 * How many tiles side by side a workgroup computes from staged rows, of `down` x `across` tiles in all; 1: nothing is
 * staged. Two tiles are enough to gain by it. It depends on the number of CPUs, and changes no bit of a result.
 */
export function chooseTilesPerGroup(variant: MatmulVariant, down: number, across: number): number {
  const most = Math.floor((down * across) / (GROUPS_PER_THREAD * THREADS));
  if (!variants[variant].stages || Math.min(most, across) < 2) return 1;
  return Math.ceil(across / Math.ceil(across / most));
}

/** All kernels that this adapter can run. */
export function runnableVariants(): MatmulVariant[] {
  const all = Object.keys(variants) as MatmulVariant[];
  return gpu().software && gpu().subgroupSize === 8 ? all : all.filter((name) => variants[name].kernel !== subgroupKernel);
}

/**
 * Into how many slices of equal length the inner axis is cut (1: not at all). A GPU needs many workgroups, so the long
 * sums of a small result are cut, at most until there are 64, and not into slices shorter than 256: figures from other
 * engines, not measured. The software driver has two threads, and lost by it: 25 x 4096 x 32, a single tile, took 0.58
 * ms in two slices and 0.52 in one.
 */
export function chooseSlices(variant: MatmulVariant, rows: number, cols: number, inner: number): number {
  if (gpu().software) return 1;
  const { tileRows, tileCols } = variants[variant];
  const tiles = Math.ceil(rows / tileRows) * Math.ceil(cols / tileCols);
  let slices = Math.max(1, Math.min(Math.floor(64 / tiles), Math.floor(inner / 256)));
  while (inner % slices !== 0) slices -= 1;
  return slices;
}
