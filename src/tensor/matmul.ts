/**
 * Matrix products. Transposes and broadcasts are strides, so one kernel text serves A B, A Bᵀ, Aᵀ B and Aᵀ Bᵀ.
 * `matmul_variants.ts` says which kernel computes a product.
 */
import { gpu } from "./device.ts";
import { launch } from "./kernel.ts";
import { chooseSlices, chooseTilesPerGroup, chooseVariant, variants, type MatmulVariant } from "./matmul_variants.ts";
import { scope } from "./memory.ts";
import { rowRange, rowsPerRange, type Range } from "./ranges.ts";
import { sum } from "./reduce.ts";
import { ShapeError, broadcastShapes, broadcastStrides, collapseAxes, sameShape, show, sizeOf } from "./shape.ts";
import {
  OFFSET_ALIGNMENT, areNeighbours, byteLength, empty, joinNeighbours, type Destination, type Tensor,
} from "./tensor.ts";

export interface MatmulOptions {
  /** Read a [.., k, m] as [.., m, k]. */
  readonly transposeA?: boolean;
  /** Read b [.., n, k] as [.., k, n], the layout of a linear layer's weight. */
  readonly transposeB?: boolean;
}

/** What the kernel adds to the product as it writes it, which saves passes over memory. */
export interface Addends<T> {
  /** [n], added to every row. */
  readonly bias?: T | undefined;
  /** Of the result's shape, added after the bias. */
  readonly residual?: T | undefined;
}

export interface MatmulLaunchOptions extends MatmulOptions, Addends<Tensor> {
  /** A tensor of the result's shape that takes the product, and is returned. */
  readonly into?: Destination | null;
  /** Forces a kernel (tests and benchmarks). */
  readonly variant?: MatmulVariant;
  /** Forces the number of tiles that a workgroup computes (tests and benchmarks). */
  readonly tilesPerGroup?: number;
  /** Forces the number of slices of the inner axis (tests and benchmarks). */
  readonly slices?: number;
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

/** Bits of the parameter `addends`. */
const ADD = { c: 1, bias: 2, residual: 4 } as const;

/**
 * op(a) op(b) over the last two axes, [.., m, k] x [.., k, n] -> [.., m, n], where op transposes if asked to; the
 * leading axes broadcast. Equals `torch.matmul` for operands of rank 2 and more. b may be bf16; a and the result are
 * float32.
 * @throws ShapeError when the shapes do not fit.
 */
export function matmul(a: Tensor, b: Tensor, options: MatmulLaunchOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, into, bias, residual } = options;
  if (Math.min(a.shape.length, b.shape.length) < 2) {
    throw new ShapeError(`${describe(a, b, options)}: both operands need at least two axes`);
  }
  const left = operand(a, transposeA);
  const right = operand(b, transposeB);
  if (left.cols !== right.rows) throw new ShapeError(`${describe(a, b, options)}: ${innerSizes(left, right)}`);

  const [aLeading, bLeading] = [a.shape.slice(0, -2), b.shape.slice(0, -2)];
  const batchShape = sameShape(aLeading, bLeading)
    ? aLeading
    : broadcastShapes(describe(a, b, options), aLeading, bLeading);
  const batch = collapseAxes(batchShape, [
    broadcastStrides(aLeading, batchShape).map((stride) => stride * left.rows * left.cols),
    broadcastStrides(bLeading, batchShape).map((stride) => stride * right.rows * right.cols),
  ]);
  if (batch.shape.length > 3) {
    throw new ShapeError(`${describe(a, b, options)}: broadcasts over more than three separate batch axes`);
  }

  const shape = [...batchShape, left.rows, right.cols];
  if (into && !sameShape(into.tensor.shape, shape)) {
    throw new ShapeError(`${describe(a, b, options)} = ${show(shape)} does not fit into ${show(into.tensor.shape)}`);
  }
  if (bias && !sameShape(bias.shape, [right.cols])) {
    throw new ShapeError(`${describe(a, b, options)} = ${show(shape)} takes no bias ${show(bias.shape)}`);
  }
  if (residual && !sameShape(residual.shape, shape)) {
    throw new ShapeError(`${describe(a, b, options)} = ${show(shape)} takes no residual ${show(residual.shape)}`);
  }
  const isWhole = [left, right].every(({ tensor }) => rangeRows(tensor) === Infinity);
  if (!isWhole && sizeOf(batch.shape) > 1) {
    throw new ShapeError(
      `${describe(a, b, options)}: a batch of products cannot be cut, and a matrix exceeds the ` +
        `${gpu().maxBindingBytes} bytes that this adapter binds. Fix: flatten the batch axes of a into its rows, or ` +
        "multiply one matrix at a time",
    );
  }
  const { variant = chooseVariant(left.rows), tilesPerGroup } = options;
  if (tilesPerGroup !== undefined && tilesPerGroup > 1 && !variants[variant].stages) {
    throw new ShapeError(`${describe(a, b, options)}: a workgroup of ${variant} has one tile, not ${tilesPerGroup}`);
  }
  const isPlain = shape.length === 2 && !into && !bias && !residual && isWhole; // slices are a batch
  const { slices = isPlain ? chooseSlices(variant, left.rows, right.cols, left.cols) : 1 } = options;
  if (slices > 1) {
    if (!isPlain || left.cols % slices !== 0) {
      throw new ShapeError(`${describe(a, b, options)}: cannot be cut into ${slices} slices`);
    }
    return multiplySlices(left, right, slices, variant);
  }
  const c = into?.tensor ?? empty(shape);
  const accumulate = into?.adds ?? false;
  multiply(left, right, operand(c, false), { accumulate, batch, variant, bias, residual, tilesPerGroup });
  return c;
}

/**
 * op(a) op(b) for each b of several matrices: [m, k] x [k, n] -> [m, n] each. Neighbours in memory of equal shape are
 * one batch, whose results are neighbours too: fewer launches, and more to share among threads.
 * @throws ShapeError when the shapes do not fit.
 */
export function matmulEach(a: Tensor, matrices: readonly Tensor[], options: MatmulOptions = {}): Tensor[] {
  const results: Tensor[] = [];
  while (results.length < matrices.length) {
    const rest = matrices.slice(results.length);
    const end = rest.findIndex((b, i) => i > 0 && !(sameShape(b.shape, rest[0]!.shape) && isPacked(rest[i - 1]!, b)));
    const run = end < 0 ? rest : rest.slice(0, end);
    results.push(...(canBeBatch(a, run, options) ? matmulBatch(a, run, options) : [matmul(a, rest[0]!, options)]));
  }
  return results;
}

/** Whether `b` begins where `a` ends. */
function isPacked(a: Tensor, b: Tensor): boolean {
  return areNeighbours(a, b) && byteLength(a) % OFFSET_ALIGNMENT === 0;
}

/** Whether a, all matrices and all results can be bound as a whole, and each result alone. */
function canBeBatch(a: Tensor, [b, ...more]: readonly Tensor[], { transposeB }: MatmulOptions): boolean {
  if (more.length === 0 || a.shape.length !== 2 || b!.shape.length !== 2) return false;
  const { maxBindingBytes } = gpu();
  const resultBytes = 4 * a.shape[0]! * b!.shape[transposeB ? 0 : 1]!;
  const largest = Math.max(byteLength(a), (1 + more.length) * Math.max(byteLength(b!), resultBytes));
  return resultBytes % OFFSET_ALIGNMENT === 0 && largest <= maxBindingBytes;
}

function matmulBatch(a: Tensor, matrices: readonly Tensor[], options: MatmulOptions): Tensor[] {
  const joined = { ...joinNeighbours(matrices), shape: [matrices.length, ...matrices[0]!.shape] };
  const products = matmul(a, joined, options);
  const shape = products.shape.slice(1);
  return matrices.map((_, i) => ({ ...products, shape, byteOffset: 4 * i * sizeOf(shape) }));
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
  if (left.cols !== right.rows) throw new ShapeError(`${product}: ${innerSizes(left, right)}`);
  if (result.rows !== left.rows || result.cols !== right.cols) {
    throw new ShapeError(`${product}: the result does not fit into [${result.rows}, ${result.cols}]`);
  }
  multiply(left, right, result, { accumulate });
}

/** All rows of a matrix, for `matmulRows`. */
export function allRows(matrix: Tensor): RowRange {
  return { matrix, start: 0, count: matrix.shape[0]! };
}

/** The product as messages name it. */
function describe(a: Tensor, b: Tensor, { transposeA, transposeB }: MatmulOptions): string {
  const [left, right] = [show(a.shape), show(b.shape)];
  return `matmul ${left}${transposeA ? " transposed" : ""} x ${right}${transposeB ? " transposed" : ""}`;
}

function innerSizes(a: Operand, b: Operand): string {
  return `inner sizes ${a.cols} and ${b.rows} differ`;
}

function operand(tensor: Tensor, transposed: boolean, range?: RowRange): Operand {
  const op = range ? "matmulRows" : "matmul";
  if (tensor.dtype === "u32") throw new ShapeError(`${op}: ${show(tensor.shape)} holds u32 ids, not float32 data`);
  const [total, width] = tensor.shape.slice(-2) as [number, number];
  if (range && (tensor.shape.length !== 2 || range.start < 0 || range.start + range.count > total)) {
    throw new ShapeError(
      `${op}: ${show(tensor.shape)} is no matrix with rows ${range.start} to ${range.start + range.count - 1}`,
    );
  }
  const start = range?.start ?? 0;
  const rows = range?.count ?? total;
  return transposed
    ? { tensor, start, transposed, rows: width, cols: rows, rowStride: 1, colStride: width }
    : { tensor, start, transposed, rows, cols: width, rowStride: width, colStride: 1 };
}

/**
 * A B as a batch of products over slices of the inner axis, added up in order (split-K): a small result with long sums
 * then occupies more than a few workgroups.
 */
function multiplySlices(a: Operand, b: Operand, slices: number, variant: MatmulVariant): Tensor {
  const inner = a.cols / slices;
  const batch = { shape: [slices], strides: [[inner * a.colStride], [inner * b.rowStride]] };
  return scope(() => {
    const partial = empty([slices, a.rows, b.cols]);
    const [left, right] = [{ ...a, cols: inner }, { ...b, rows: inner }];
    multiply(left, right, operand(partial, false), { accumulate: false, batch, variant });
    return sum(partial, [0]);
  });
}

interface MultiplyOptions extends Addends<Tensor> {
  /** Adds to c instead of overwriting it. */
  readonly accumulate: boolean;
  /** The merged batch axes with the strides of a and b, each of which can be bound as a whole. */
  readonly batch?: { readonly shape: number[]; readonly strides: number[][] };
  readonly variant?: MatmulVariant;
  readonly tilesPerGroup?: number | undefined;
}

/**
 * Launches one product: one dispatch, unless a matrix is too large to be bound. Then each axis is cut where a matrix
 * stored along it passes from one of its ranges to the next. Pieces of rows and columns of c are computed one by one;
 * pieces of the inner axis are added up in c, the only case in which the cut shows in the rounding of the result.
 */
function multiply(a: Operand, b: Operand, c: Operand, options: MultiplyOptions): void {
  const { accumulate, batch = { shape: [], strides: [[], []] }, variant = chooseVariant(a.rows), bias } = options;
  const residual = options.residual && operand(options.residual, false);
  const [, batchSize1, batchSize2] = leftPad(batch.shape, 1);
  const aBatch = leftPad(batch.strides[0]!, 0);
  const bBatch = leftPad(batch.strides[1]!, 0);
  const batches = sizeOf(batch.shape);
  const { kernel, tileRows, tileCols, constants } = variants[variant];
  const addends = (accumulate ? ADD.c : 0) | (bias ? ADD.bias : 0) | (residual ? ADD.residual : 0);
  for (const [rows, cols, inner] of cutProduct(a, b, c)) {
    const [ofA, ofB, ofC] = [bindBlock(a, rows, inner), bindBlock(b, inner, cols), bindBlock(c, rows, cols)];
    const layout = {
      rows: rows.count, cols: cols.count, inner: inner.count,
      a: { ...a, starts: [ofA.offset, ...aBatch] },
      b: { ...b, starts: [ofB.offset, ...bBatch] },
      c: { ...c, starts: [ofC.offset, cols.start] }, // the bias of a column lies at its number
    };
    const [rowTiles, colTiles] = [Math.ceil(rows.count / tileRows), Math.ceil(cols.count / tileCols)];
    const { tilesPerGroup = chooseTilesPerGroup(variant, batches * rowTiles, colTiles) } = options;
    launch(
      kernel,
      {
        a: ofA.tensor, b: ofB.tensor, c: ofC.tensor,
        bias: bias ?? ofA.tensor, residual: residual ? bindBlock(residual, rows, cols).tensor : ofA.tensor,
      },
      {
        rows: rows.count, cols: cols.count, inner: inner.count,
        aOffset: ofA.offset, aRow: a.rowStride, aInner: a.colStride,
        bOffset: ofB.offset, bInner: b.rowStride, bCol: b.colStride,
        cOffset: ofC.offset, cRow: c.rowStride, addends: inner.start === 0 ? addends : ADD.c, biasOffset: cols.start,
        batches, batchSize1, batchSize2,
        aBatch0: aBatch[0], aBatch1: aBatch[1], aBatch2: aBatch[2],
        bBatch0: bBatch[0], bBatch1: bBatch[1], bBatch2: bBatch[2], tilesPerGroup,
      },
      batches * rowTiles * Math.ceil(colTiles / tilesPerGroup),
      constants(layout, tilesPerGroup),
    );
  }
}

/** The pieces of rows, columns and inner axis that are launched one after the other. */
function cutProduct(a: Operand, b: Operand, c: Operand): [rows: Range, cols: Range, inner: Range][] {
  const rowPieces = cutAxis(a.rows, a.transposed ? [c] : [a, c]);
  const colPieces = cutAxis(b.cols, b.transposed ? [b] : []);
  const innerPieces = cutAxis(a.cols, [...(a.transposed ? [a] : []), ...(b.transposed ? [] : [b])]);
  return rowPieces.flatMap((rows) =>
    colPieces.flatMap((cols) => innerPieces.map((inner): [Range, Range, Range] => [rows, cols, inner])));
}

/** Pieces of an axis, each within one range of every matrix whose stored rows follow that axis: normally one piece. */
function cutAxis(length: number, along: readonly Operand[]): Range[] {
  if (along.every(({ tensor }) => rangeRows(tensor) === Infinity)) return [{ start: 0, count: length }];
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

/** Rows of the ranges that a matrix is bound by; several matrices in one tensor are bound whole or not at all. */
function rangeRows(tensor: Tensor): number {
  return tensor.shape.length === 2 ? rowsPerRange([tensor]) : Infinity;
}

/** Three numbers, the last ones being `values`: [5] -> [1, 1, 5]. */
function leftPad(values: readonly number[], padding: number): [number, number, number] {
  return [padding, padding, padding, ...values].slice(-3) as [number, number, number];
}
