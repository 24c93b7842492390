/**
 * Matrix products. Transposes and broadcasts are strides, so one kernel text serves A B, A Bᵀ, Aᵀ B and Aᵀ Bᵀ.
 *
 * Which kernel runs is a small table of measurements (`chooseVariant`), never a timing at run time: the same product on
 * the same machine always adds up in the same order.
 */
import { gpu } from "./device.ts";
import { kernel, launch, type Constants } from "./kernel.ts";
import { rowRange, rowsPerRange, type Range } from "./ranges.ts";
import { ShapeError, broadcastShapes, broadcastStrides, collapseAxes, show, sizeOf } from "./shape.ts";
import { empty, type Tensor } from "./tensor.ts";

export interface MatmulOptions {
  /** Read a [.., k, m] as [.., m, k]. */
  readonly transposeA?: boolean;
  /** Read b [.., n, k] as [.., k, n], the layout of a linear layer's weight. */
  readonly transposeB?: boolean;
}

export interface MatmulLaunchOptions extends MatmulOptions {
  /** Adds the product to this tensor of the result's shape, and returns it. */
  readonly accumulateInto?: Tensor;
  /** Forces a kernel (tests and benchmarks). */
  readonly variant?: MatmulVariant;
}

/** Rows start .. start + count - 1 of a matrix [rows, cols]; unlike those of a view, they may start anywhere. */
export interface RowRange extends Range {
  readonly matrix: Tensor;
}

export interface RowsOptions extends MatmulOptions {
  /** Adds to c instead of overwriting it. */
  readonly accumulate?: boolean;
}

/** A matrix in a buffer, by strides in elements. */
interface Operand {
  readonly tensor: Tensor;
  /** First row that is used, as stored. */
  readonly start: number;
  readonly transposed: boolean;
  /** Rows and columns after transposing. */
  readonly rows: number;
  readonly cols: number;
  readonly rowStride: number;
  readonly colStride: number;
}

const buffers = ["a", "b", "c"] as const;
const params = [
  "rows", "cols", "inner", "aOffset", "aRow", "aInner", "bOffset", "bInner", "bCol", "cOffset", "cRow", "accumulate",
  "batches", "batchSize1", "batchSize2", "aBatch0", "aBatch1", "aBatch2", "bBatch0", "bBatch1", "bBatch2",
] as const;
const bf16 = { b: "B_BF16" } as const;
const subgroupKernel = kernel({ shader: "matmul_subgroup", entry: "matmul", buffers, params, bf16 });
const sharedKernel = kernel({ shader: "matmul_tile", entry: "matmul", buffers, params, bf16 });

interface Variant {
  readonly kernel: typeof subgroupKernel;
  readonly tileRows: number;
  readonly tileCols: number;
  readonly constants: Constants;
}

/** The kernels by the tile of the result that one workgroup computes. */
const variants = {
  subgroup8x64: { kernel: subgroupKernel, tileRows: 8, tileCols: 64, constants: { ROW_BLOCKS: 1, COL_BLOCKS: 2 } },
  subgroup32x32: { kernel: subgroupKernel, tileRows: 32, tileCols: 32, constants: { ROW_BLOCKS: 4, COL_BLOCKS: 1 } },
  shared64x64: { kernel: sharedKernel, tileRows: 64, tileCols: 64, constants: {} },
} satisfies Record<string, Variant>;

export type MatmulVariant = keyof typeof variants;

/**
 * Which kernel computes a product with so many rows. Measured on lavapipe (two threads of 256 bits), A Bᵀ, m x n x k:
 * GFLOPS by processor time, best of 4 interleaved runs, and milliseconds of the first compilation. The machine was
 * shared and cells varied by up to 1.6 times from run to run; the order of the first and third column did not.
 * `benchMatmulVariants` measures the variants kept.
 *
 *                   subgroup tiles                             shared
 *                    8 x 64   16 x 32   32 x 32   32 x 64     64 x 64
 *   512 x 512 x 512      14        15        21        27         3.5
 *   1024 x 128 x 512     17        16        37        29         4.1
 *   25 x 512 x 128       13        14        16        17         1.6
 *   5 x 512 x 128       6.7       4.8       3.4       3.7         0.4
 *   compilation         500       320       560      1140         610
 *
 * So 32 x 32, except for a handful of rows (decoding), of which 8 x 64 wastes fewer; 32 x 64 compiles too long for what
 * it gains. Everything but the software driver with its subgroups of 8 gets the shared-memory tile, as the textbook has
 * it: its size was not tuned on a GPU. Splitting k was not tried.
 */
export function chooseVariant(rows: number): MatmulVariant {
  const { software, subgroupSize } = gpu();
  if (!software || subgroupSize !== 8) return "shared64x64";
  return rows <= 8 ? "subgroup8x64" : "subgroup32x32";
}

/**
 * op(a) op(b) over the last two axes, [.., m, k] x [.., k, n] -> [.., m, n], where op transposes if asked to; the
 * leading axes broadcast. Equals `torch.matmul` for operands of rank 2 and more. b may be bf16; a and the result are
 * float32.
 * @throws ShapeError when the shapes do not fit.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulLaunchOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, accumulateInto } = options;
  const product = `matmul ${describe(a, transposeA)} x ${describe(b, transposeB)}`;
  if (Math.min(a.shape.length, b.shape.length) < 2) {
    throw new ShapeError(`${product}: both operands need at least two axes`);
  }
  const left = operand(a, transposeA);
  const right = operand(b, transposeB);
  checkInner(product, left, right);

  const [aLeading, bLeading] = [a.shape.slice(0, -2), b.shape.slice(0, -2)];
  const batchShape = broadcastShapes(product, aLeading, bLeading);
  const batch = collapseAxes(batchShape, [
    broadcastStrides(aLeading, batchShape).map((stride) => stride * left.rows * left.cols),
    broadcastStrides(bLeading, batchShape).map((stride) => stride * right.rows * right.cols),
  ]);
  if (batch.shape.length > 3) throw new ShapeError(`${product}: broadcasts over more than three separate batch axes`);

  const shape = [...batchShape, left.rows, right.cols];
  if (accumulateInto && show(accumulateInto.shape) !== show(shape)) {
    throw new ShapeError(`${product} = ${show(shape)} cannot be added into ${show(accumulateInto.shape)}`);
  }
  const c = accumulateInto ?? empty(shape);
  multiply(left, right, operand(c, false), accumulateInto !== undefined, batch, options.variant);
  return c;
}

/**
 * c = op(a) op(b) for row ranges of three matrices, in place: how a large product is computed in chunks of rows without
 * copying them. The ranges of c must not be in a's or b's tensor.
 * @throws ShapeError when the shapes do not fit.
 */
export function matmulRows(a: RowRange, b: RowRange, c: RowRange, options: RowsOptions = {}): void {
  const { transposeA = false, transposeB = false, accumulate = false } = options;
  const left = operand(a.matrix, transposeA, a);
  const right = operand(b.matrix, transposeB, b);
  const result = operand(c.matrix, false, c);
  const product = `matmulRows [${left.rows}, ${left.cols}] x [${right.rows}, ${right.cols}]`;
  checkInner(product, left, right);
  if (result.rows !== left.rows || result.cols !== right.cols) {
    throw new ShapeError(`${product}: the result does not fit into [${result.rows}, ${result.cols}]`);
  }
  multiply(left, right, result, accumulate);
}

/** All rows of a matrix, for `matmulRows`. */
export function allRows(matrix: Tensor): RowRange {
  return { matrix, start: 0, count: matrix.shape[0]! };
}

function describe({ shape }: Tensor, transposed: boolean): string {
  return `${show(shape)}${transposed ? " transposed" : ""}`;
}

function operand(tensor: Tensor, transposed: boolean, range?: RowRange): Operand {
  if (tensor.dtype === "u32") throw new ShapeError(`matmul: ${show(tensor.shape)} holds u32 ids, not float32 data`);
  const [total, width] = tensor.shape.slice(-2) as [number, number];
  if (range && (tensor.shape.length !== 2 || range.start < 0 || range.start + range.count > total)) {
    throw new ShapeError(
      `matmulRows: ${show(tensor.shape)} is no matrix with rows ${range.start} to ${range.start + range.count - 1}`,
    );
  }
  const start = range?.start ?? 0;
  const rows = range?.count ?? total;
  return transposed
    ? { tensor, start, transposed, rows: width, cols: rows, rowStride: 1, colStride: width }
    : { tensor, start, transposed, rows, cols: width, rowStride: width, colStride: 1 };
}

function checkInner(product: string, a: Operand, b: Operand): void {
  if (a.cols !== b.rows) throw new ShapeError(`${product}: inner sizes ${a.cols} and ${b.rows} differ`);
}

/**
 * Launches one product: one dispatch, unless a matrix is too large to be bound. Then each axis is cut where a matrix
 * stored along it passes from one of its ranges to the next. Pieces of rows and columns of c are computed one by one;
 * pieces of the inner axis are added up in c, the only case in which the cut shows in the rounding of the result.
 * `batch` holds the merged batch axes with the strides of a and b; batched matrices are not cut.
 */
function multiply(
  a: Operand,
  b: Operand,
  c: Operand,
  accumulate: boolean,
  batch: { shape: number[]; strides: number[][] } = { shape: [], strides: [[], []] },
  variant: MatmulVariant = chooseVariant(a.rows),
): void {
  const [, batchSize1, batchSize2] = leftPad(batch.shape, 1);
  const [aBatch0, aBatch1, aBatch2] = leftPad(batch.strides[0]!, 0);
  const [bBatch0, bBatch1, bBatch2] = leftPad(batch.strides[1]!, 0);
  const batches = sizeOf(batch.shape);
  const { kernel, tileRows, tileCols, constants } = variants[variant];
  const launchPiece = (rows: Range, cols: Range, inner: Range): void => {
    const [ofA, ofB, ofC] = [bindBlock(a, rows, inner), bindBlock(b, inner, cols), bindBlock(c, rows, cols)];
    launch(
      kernel,
      { a: ofA.tensor, b: ofB.tensor, c: ofC.tensor },
      {
        rows: rows.count, cols: cols.count, inner: inner.count,
        aOffset: ofA.offset, aRow: a.rowStride, aInner: a.colStride,
        bOffset: ofB.offset, bInner: b.rowStride, bCol: b.colStride,
        cOffset: ofC.offset, cRow: c.rowStride, accumulate: accumulate || inner.start > 0 ? 1 : 0,
        batches, batchSize1, batchSize2, aBatch0, aBatch1, aBatch2, bBatch0, bBatch1, bBatch2,
      },
      batches * Math.ceil(rows.count / tileRows) * Math.ceil(cols.count / tileCols),
      constants,
    );
  };
  const colPieces = cutAxis(b.cols, b.transposed ? [b] : []);
  const innerPieces = cutAxis(a.cols, [...(a.transposed ? [a] : []), ...(b.transposed ? [] : [b])]);
  for (const rows of cutAxis(a.rows, a.transposed ? [c] : [a, c])) {
    for (const cols of colPieces) for (const inner of innerPieces) launchPiece(rows, cols, inner);
  }
}

/** Pieces of an axis, each within one range of every matrix whose stored rows follow that axis: normally one piece. */
function cutAxis(length: number, along: readonly Operand[]): Range[] {
  const cuts = new Set([0]);
  for (const { tensor, start } of along) {
    const step = rangeRows(tensor);
    for (let at = step - (start % step); at < length; at += step) cuts.add(at);
  }
  const starts = [...cuts].sort((left, right) => left - right);
  return starts.map((start, i) => ({ start, count: (starts[i + 1] ?? length) - start }));
}

/** What to bind for a block of an operand, the matrix or the range of it that holds the block, and its offset. */
function bindBlock(of: Operand, rows: Range, cols: Range): { tensor: Tensor; offset: number } {
  const { tensor, transposed } = of;
  const [down, across] = transposed ? [cols.start, rows.start] : [rows.start, cols.start];
  const row = of.start + down;
  const width = tensor.shape.at(-1)!;
  const step = rangeRows(tensor);
  if (step === Infinity) return { tensor, offset: row * width + across };
  const first = row - (row % step);
  const view = rowRange(tensor, first, Math.min(step, tensor.shape[0]! - first));
  return { tensor: view, offset: (row - first) * width + across };
}

/** Rows of the ranges that a matrix is bound by; a batch of matrices is not cut. */
function rangeRows(tensor: Tensor): number {
  return tensor.shape.length === 2 ? rowsPerRange([tensor]) : Infinity;
}

/** Three numbers, the last ones being `values`: [5] -> [1, 1, 5]. */
function leftPad(values: readonly number[], padding: number): [number, number, number] {
  return [padding, padding, padding, ...values].slice(-3) as [number, number, number];
}
