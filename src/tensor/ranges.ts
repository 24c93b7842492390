/**
 * Tensors larger than one binding, by ranges of rows.
 *
 * A kernel sees at most `gpu().maxBindingBytes` of a tensor: 128 MiB on some adapters, less than GPT-2's embedding
 * table. A large tensor is still one allocation. Launchers that meet one cut it into ranges that can be bound, and run
 * once per range; kernels do not know. Nearly always there is exactly one range, the tensor itself.
 *
 *   for (const { count, views } of elementRanges({ x, y })) launch(kernel, views, { size: count }, groups(count));
 *
 * A view must begin at a multiple of 256 bytes, so ranges are whole multiples of the rows that make this true. They
 * depend on shape and limit alone: the same work in the same order on every run.
 */
import { GpuError, gpu } from "./device.ts";
import { show, sizeOf } from "./shape.ts";
import { OFFSET_ALIGNMENT, byteLength, elementBytes, reshape, size, type Tensor } from "./tensor.ts";

/** Rows start .. start + count - 1. */
export interface Range {
  readonly start: number;
  readonly count: number;
}

/** A range, and what each of several tensors shows in it, under the tensor's name. */
export interface RangeViews<Names extends string> extends Range {
  readonly views: Readonly<Record<Names, Tensor>>;
}

/**
 * Rows start .. start + count - 1 of x along its first axis, as a tensor over the same memory.
 * @throws GpuError when the first row does not begin at a multiple of 256 bytes.
 */
export function rowRange(x: Tensor, start: number, count: number): Tensor {
  const byteOffset = (x.byteOffset ?? 0) + start * rowBytes(x);
  if (byteOffset % OFFSET_ALIGNMENT !== 0 || start < 0 || start + count > x.shape[0]!) {
    throw new GpuError(
      `rowRange: rows ${start} to ${start + count - 1} of ${show(x.shape)} begin at byte ${byteOffset}; a view must ` +
        `lie inside the tensor and begin at a multiple of ${OFFSET_ALIGNMENT} bytes`,
    );
  }
  return { ...x, shape: [count, ...x.shape.slice(1)], byteOffset };
}

/**
 * Rows of the longest ranges into which these tensors can be cut alike along their first axis: a multiple of
 * `multiple`, a power of two. Infinity when each of them can be bound whole.
 * @throws GpuError when the adapter cannot bind even the fewest rows.
 */
export function rowsPerRange(tensors: readonly Tensor[], multiple = 1): number {
  if (tensors.every(fitsBinding)) return Infinity;
  const { maxBindingBytes } = gpu();
  let unit = multiple;
  let fitting = Infinity;
  for (const x of tensors) {
    const bytes = rowBytes(x);
    unit = Math.max(unit, OFFSET_ALIGNMENT / largestPowerOfTwoIn(bytes));
    fitting = Math.min(fitting, Math.floor(maxBindingBytes / bytes));
  }
  if (fitting < unit) {
    throw new GpuError(
      `${tensors.map(({ shape }) => show(shape)).join(", ")} cannot be cut: this adapter binds ${maxBindingBytes} ` +
        `bytes, which is ${fitting} rows, and ranges are multiples of ${unit} rows`,
    );
  }
  return fitting - (fitting % unit);
}

/**
 * Cuts tensors of equal first axes along it, all at the same rows: ranges in order, one at least. Every range but the
 * last holds a multiple of `multiple` rows, a power of two.
 */
export function rowRanges<Names extends string>(
  tensors: Readonly<Record<Names, Tensor>>,
  multiple = 1,
): RangeViews<Names>[] {
  const entries = Object.entries(tensors) as [Names, Tensor][];
  const all = entries.map(([, x]) => x);
  const rows = all[0]!.shape[0] ?? 1;
  const step = rowsPerRange(all, multiple);
  if (rows <= step) return [{ start: 0, count: rows, views: tensors }];
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => {
    const start = i * step;
    const count = Math.min(step, rows - start);
    const views = Object.fromEntries(entries.map(([name, x]) => [name, rowRange(x, start, count)]));
    return { start, count, views: views as Record<Names, Tensor> };
  });
}

/** `rowRanges` for tensors of equal size seen as lists of elements: what an elementwise kernel runs over. */
export function elementRanges<Names extends string>(
  tensors: Readonly<Record<Names, Tensor>>,
  multiple = 1,
): RangeViews<Names>[] {
  const entries = Object.entries(tensors) as [Names, Tensor][];
  if (entries.every(([, x]) => fitsBinding(x))) return [{ start: 0, count: size(entries[0]![1]), views: tensors }];
  const flat = Object.fromEntries(entries.map(([name, x]) => [name, reshape(x, [size(x)])]));
  return rowRanges(flat as Record<Names, Tensor>, multiple);
}

function fitsBinding(x: Tensor): boolean {
  return byteLength(x) <= gpu().maxBindingBytes;
}

function rowBytes(x: Tensor): number {
  return elementBytes(x.dtype) * sizeOf(x.shape.slice(1));
}

/** The largest power of two that divides a number of bytes, at most the alignment. */
function largestPowerOfTwoIn(bytes: number): number {
  let power = 1;
  while (power < OFFSET_ALIGNMENT && bytes % (2 * power) === 0) power *= 2;
  return power;
}
