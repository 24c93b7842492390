/**
 * A tensor: a shape over a GPU allocation. Always contiguous and row-major; float32 data or u32 ids.
 *
 * There are no methods that compute: operations are functions, one launcher file per shader, so that no class has to
 * know every operation.
 */
import { allocate, keepStorage, release, type Storage } from "./memory.ts";
import { download, upload } from "./recorder.ts";
import { ShapeError, show, sizeOf, type Shape } from "./shape.ts";

export type DType = "f32" | "u32";

export interface Tensor {
  readonly storage: Storage;
  readonly shape: Shape;
  readonly dtype: DType;
}

/** Number of elements of a tensor. */
export function size(x: Tensor): number {
  return sizeOf(x.shape);
}

/** A tensor with undefined content (pooled buffers are dirty): the caller writes every element. */
export function empty(shape: Shape, dtype: DType = "f32"): Tensor {
  return { storage: allocate(4 * sizeOf(shape)), shape: [...shape], dtype };
}

/**
 * Uploads host data. A Uint32Array becomes a u32 tensor, anything else float32. @throws ShapeError on a wrong length.
 */
export function tensor(data: Float32Array | Uint32Array | readonly number[], shape: Shape = [data.length]): Tensor {
  if (data.length !== sizeOf(shape)) {
    throw new ShapeError(`tensor: ${data.length} values do not fill shape ${show(shape)} (${sizeOf(shape)})`);
  }
  const host = data instanceof Float32Array || data instanceof Uint32Array ? data : new Float32Array(data);
  const result = empty(shape, host instanceof Uint32Array ? "u32" : "f32");
  write(result, host);
  return result;
}

/** Overwrites a tensor with host data of the same length, in order with the operations recorded before. */
export function write(x: Tensor, data: Float32Array | Uint32Array): void {
  if (data.length !== size(x)) throw new ShapeError(`write: ${data.length} values into shape ${show(x.shape)}`);
  if (data.length > 0) upload(x.storage, data);
}

/** Another shape over the same memory; one dimension may be -1. @throws ShapeError when the sizes differ. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const known = shape.reduce((product, n) => (n === -1 ? product : product * n), 1);
  const resolved = shape.map((n) => (n === -1 ? size(x) / known : n));
  if (sizeOf(resolved) !== size(x) || !resolved.every(Number.isInteger)) {
    throw new ShapeError(`reshape: ${show(x.shape)} has ${size(x)} elements, ${show(shape)} does not`);
  }
  return { storage: x.storage, shape: resolved, dtype: x.dtype };
}

/** Reads tensors back in one round trip; waits until everything recorded before has run. */
export async function readAll(tensors: readonly Tensor[]): Promise<(Float32Array | Uint32Array)[]> {
  const buffers = await download(tensors.map(({ storage }) => storage));
  return buffers.map((buffer, i) => (tensors[i]!.dtype === "u32" ? new Uint32Array(buffer) : new Float32Array(buffer)));
}

/** Reads a float32 tensor back to the host. */
export async function read(x: Tensor): Promise<Float32Array> {
  if (x.dtype !== "f32") throw new ShapeError("read: the tensor holds u32 ids, use readIds");
  return (await readAll([x]))[0] as Float32Array;
}

/** Reads a u32 tensor back to the host. */
export async function readIds(x: Tensor): Promise<Uint32Array> {
  if (x.dtype !== "u32") throw new ShapeError("readIds: the tensor holds float32 data, use read");
  return (await readAll([x]))[0] as Uint32Array;
}

/** Takes a tensor out of its scope: it lives until `dispose`. Returns it. */
export function keep(x: Tensor): Tensor {
  keepStorage(x.storage);
  return x;
}

/** Returns a kept tensor's memory to the pool. */
export function dispose(x: Tensor): void {
  release(x.storage);
}
