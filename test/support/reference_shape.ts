/**
 * A plain float64 reference on the CPU, part 2: operations that only move elements (see reference.ts).
 * Each is one formula: where does the element at this index of the result come from?
 */
import type { Array64 } from "./reference.ts";
import { fromIndex, get, normalizeAxis, sizeOf } from "./reference.ts";

/** The same elements in another shape; one extent may be -1 and is worked out. */
export function reshape(x: Array64, shape: readonly number[]): Array64 {
  const known = sizeOf(shape.filter((extent) => extent !== -1));
  const full = shape.map((extent) => (extent === -1 ? x.data.length / known : extent));
  if (sizeOf(full) !== x.data.length || !full.every(Number.isInteger)) {
    throw new Error(`reshape: [${x.shape}] does not fit into [${shape}]`);
  }
  return { shape: full, data: x.data.slice() };
}

/** Axis i of the result is axis `axes[i]` of x (torch.permute). */
export function permute(x: Array64, axes: readonly number[]): Array64 {
  const source = axes.map((axis) => normalizeAxis(axis, x.shape.length));
  const shape = source.map((axis) => x.shape[axis]!);
  return fromIndex(shape, (index) => {
    const from = x.shape.map(() => 0);
    source.forEach((axis, i) => {
      from[axis] = index[i]!;
    });
    return get(x, from);
  });
}

/** Swaps two axes (torch.transpose). */
export function transpose(x: Array64, axis0: number, axis1: number): Array64 {
  const rank = x.shape.length;
  const axes = [...x.shape.keys()];
  const [first, second] = [normalizeAxis(axis0, rank), normalizeAxis(axis1, rank)];
  axes[first] = second;
  axes[second] = first;
  return permute(x, axes);
}

/** x[..., start:stop:step, ...] along `axis`; a negative stop counts from the end. */
export function slice(x: Array64, axis: number, start: number, stop: number, step = 1): Array64 {
  const along = normalizeAxis(axis, x.shape.length);
  const end = stop < 0 ? stop + x.shape[along]! : stop;
  const shape = x.shape.with(along, Math.ceil((end - start) / step));
  return fromIndex(shape, (index) => get(x, index.with(along, start + index[along]! * step)));
}

/** Joins arrays that agree in every other axis. */
export function concat(parts: readonly Array64[], axis: number): Array64 {
  const first = parts[0]!;
  const along = normalizeAxis(axis, first.shape.length);
  const shape = first.shape.with(along, parts.reduce((length, part) => length + part.shape[along]!, 0));
  return fromIndex(shape, (index) => {
    let position = index[along]!;
    for (const part of parts) {
      if (position < part.shape[along]!) return get(part, index.with(along, position));
      position -= part.shape[along]!;
    }
    throw new Error("concat: parts shorter than their sum"); // unreachable
  });
}

/** Joins arrays of one shape along a new axis. */
export function stack(parts: readonly Array64[], axis: number): Array64 {
  const rank = parts[0]!.shape.length + 1;
  const along = normalizeAxis(axis, rank);
  return concat(parts.map((part) => reshape(part, part.shape.toSpliced(along, 0, 1))), along);
}

/** Cuts into pieces of the given sizes along `axis`. */
export function split(x: Array64, sizes: readonly number[], axis: number): Array64[] {
  let start = 0;
  return sizes.map((size) => {
    start += size;
    return slice(x, axis, start - size, start);
  });
}

/** Repeats each element of `axis` next to itself (torch.repeat_interleave): key-value heads for grouped queries. */
export function repeatInterleave(x: Array64, axis: number, repeats: number): Array64 {
  const along = normalizeAxis(axis, x.shape.length);
  const shape = x.shape.with(along, x.shape[along]! * repeats);
  return fromIndex(shape, (index) => get(x, index.with(along, Math.floor(index[along]! / repeats))));
}

/** Keeps the lower triangle of the last two axes, with the diagonal; 0 elsewhere. */
export function tril(x: Array64): Array64 {
  return fromIndex(x.shape, (index) => (index.at(-1)! <= index.at(-2)! ? get(x, index) : 0));
}

/** out[i][j] = x[i][ids[i][j]] for axis 1 (torch.gather); `ids` has the rank of x and its shape is the result's. */
export function gather(x: Array64, axis: number, ids: ArrayLike<number>, shape: readonly number[]): Array64 {
  const along = normalizeAxis(axis, x.shape.length);
  let flat = 0; // fromIndex visits the result, and so the ids, in row-major order
  return fromIndex(shape, (index) => get(x, index.with(along, ids[flat++]!)));
}

/** Picks rows (or columns, ..) along `axis`, in the order of `ids` (torch.index_select). */
export function indexSelect(x: Array64, axis: number, ids: ArrayLike<number>): Array64 {
  const along = normalizeAxis(axis, x.shape.length);
  return fromIndex(x.shape.with(along, ids.length), (index) => get(x, index.with(along, ids[index[along]!]!)));
}
