/**
 * A tensor: a shape over a GPU allocation, or over some rows of one. Always contiguous and row-major; float32 data, u32
 * ids, or frozen weights in bfloat16.
 *
 * There are no methods that compute: operations are functions, one launcher file per shader, so that no class has to
 * know every operation.
 */
import { GpuError } from "./device.ts";
import { allocate, keepStorage, release, type Storage } from "./memory.ts";
import { download, upload } from "./recorder.ts";
import { ShapeError, show, sizeOf, type Shape } from "./shape.ts";

/**
 * bf16 (the upper half of a float32, two values to a u32) halves the memory of weights that are only read: tables of
 * embeddings and the second operand of matrix products. Kernels widen it as they load and add up in float32; nothing
 * computes a bf16 tensor, and it has no gradient.
 */
export type DType = "f32" | "u32" | "bf16";

/** What `tensor` and `write` take: the array type says which data type. A Uint16Array holds the bits of bf16 values. */
export type HostData = Float32Array | Uint32Array | Uint16Array;

export interface Tensor {
  readonly storage: Storage;
  readonly shape: Shape;
  readonly dtype: DType;
  /** Where a view (`rowRange`) or one of several neighbours begins; absent where the tensor is all of its storage. */
  readonly byteOffset?: number;
}

/** A tensor that a launcher may leave its result in, instead of allocating one. */
export interface Destination {
  readonly tensor: Tensor;
  /** Whether the result is added to what is there instead of replacing it. */
  readonly adds: boolean;
}

/** Destinations of several results; a result without one gets memory of its own. */
export type Places<Names extends string> = Readonly<Partial<Record<Names, Destination | null | undefined>>>;

/** Number of elements of a tensor. */
export function size(x: Tensor): number {
  return sizeOf(x.shape);
}

/** Bytes of a tensor's elements, rounded up to whole 32-bit words. */
export function byteLength(x: Tensor): number {
  return Math.ceil((size(x) * elementBytes(x.dtype)) / 4) * 4;
}

/** Bytes of one element. */
export function elementBytes(dtype: DType): number {
  return dtype === "bf16" ? 2 : 4;
}

/** A tensor with undefined content (pooled buffers are dirty): the caller writes every element. */
export function empty(shape: Shape, dtype: DType = "f32"): Tensor {
  return { storage: allocate(Math.ceil((sizeOf(shape) * elementBytes(dtype)) / 4) * 4), shape: [...shape], dtype };
}

/** Where neighbours begin: WebGPU's default minStorageBufferOffsetAlignment, which every device accepts. */
export const OFFSET_ALIGNMENT = 256;
/** Neighbours share allocations up to this size: a larger one would waste more by its size class. */
const MAX_SHARED_BYTES = 2 ** 24;

/**
 * float32 tensors with undefined content that lie one behind the other, each at a multiple of 256 bytes, so that one
 * launch can serve several (`joinNeighbours`). They share an allocation per 16 MiB; a larger tensor has its own. Free
 * them together, by `disposeAll`.
 */
export function emptyNeighbours(shapes: readonly Shape[]): Tensor[] {
  const { allocations, places } = layOut(shapes);
  const storages = allocations.map(allocate);
  return shapes.map((shape, i) => {
    const { allocation, byteOffset } = places[i]!;
    return { storage: storages[allocation]!, shape: [...shape], dtype: "f32", byteOffset };
  });
}

/** Bytes of each allocation that `emptyNeighbours` makes. */
export function neighbourAllocations(shapes: readonly Shape[]): readonly number[] {
  return layOut(shapes).allocations;
}

function layOut(shapes: readonly Shape[]): {
  allocations: number[];
  places: { allocation: number; byteOffset: number }[];
} {
  const allocations: number[] = [];
  const places = shapes.map((shape) => {
    const bytes = alignOffset(4 * sizeOf(shape));
    const last = allocations.length - 1;
    if (last >= 0 && allocations[last]! + bytes <= MAX_SHARED_BYTES) {
      allocations[last]! += bytes;
      return { allocation: last, byteOffset: allocations[last]! - bytes };
    }
    allocations.push(bytes);
    return { allocation: last + 1, byteOffset: 0 };
  });
  return { allocations, places };
}

/** Whether `next` begins where `x` ends, at the first multiple of 256 bytes behind it. */
export function areNeighbours(x: Tensor, next: Tensor): boolean {
  return x.storage === next.storage && x.dtype === next.dtype &&
    (x.byteOffset ?? 0) + alignOffset(byteLength(x)) === (next.byteOffset ?? 0);
}

/** The elements from the first of `neighbours` to the last, as one float32 list; gaps between them are part of it. */
export function joinNeighbours(neighbours: readonly Tensor[]): Tensor {
  const first = neighbours[0]!;
  const last = neighbours.at(-1)!;
  const bytes = (last.byteOffset ?? 0) + byteLength(last) - (first.byteOffset ?? 0);
  return { ...first, shape: [bytes / 4] };
}

function alignOffset(bytes: number): number {
  return Math.ceil(bytes / OFFSET_ALIGNMENT) * OFFSET_ALIGNMENT;
}

/**
 * Uploads host data. A Uint32Array becomes a u32 tensor, a Uint16Array (of bits) a bf16 tensor, anything else float32.
 * @throws ShapeError on a wrong length.
 */
export function tensor(data: HostData | readonly number[], shape: Shape = [data.length]): Tensor {
  if (data.length !== sizeOf(shape)) {
    throw new ShapeError(`tensor: ${data.length} values do not fill shape ${show(shape)} (${sizeOf(shape)})`);
  }
  const host = ArrayBuffer.isView(data) ? data : new Float32Array(data);
  const result = empty(shape, dtypeOf(host));
  write(result, host);
  return result;
}

/** @throws GpuError for a tensor whose memory may hold another one by now. */
function requireLive(op: string, x: Tensor): void {
  if (x.storage.released) throw new GpuError(`${op}: ${show(x.shape)} was released (its scope has ended)`);
}

/** Overwrites a tensor with host data of its length and type, in order with the operations recorded before. */
export function write(x: Tensor, data: HostData): void {
  requireLive("write", x);
  if (data.length !== size(x)) throw new ShapeError(`write: ${data.length} values into shape ${show(x.shape)}`);
  if (dtypeOf(data) !== x.dtype) throw new ShapeError(`write: ${dtypeOf(data)} data into a ${x.dtype} tensor`);
  if (data.length > 0) upload(x.storage, x.byteOffset ?? 0, data.byteLength % 4 === 0 ? data : wholeWords(data));
}

/** An odd number of bf16 values with one more: uploads are multiples of four bytes. */
function wholeWords(halves: HostData): Uint16Array {
  const padded = new Uint16Array(halves.length + 1);
  padded.set(halves);
  return padded;
}

function dtypeOf(data: HostData): DType {
  if (data instanceof Uint16Array) return "bf16";
  return data instanceof Uint32Array ? "u32" : "f32";
}

/** Another shape over the same memory; one dimension may be -1. @throws ShapeError when the sizes differ. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  if (shape.filter((n) => n < 0).length > 1) {
    throw new ShapeError(`reshape: ${show(x.shape)} to ${show(shape)}: at most one size may be left open, as -1`);
  }
  const known = shape.reduce((product, n) => (n === -1 ? product : product * n), 1);
  const resolved = shape.map((n) => (n === -1 ? size(x) / known : n));
  if (sizeOf(resolved) !== size(x) || !resolved.every((n) => Number.isInteger(n) && n >= 0)) {
    throw new ShapeError(`reshape: ${show(x.shape)} has ${size(x)} elements, ${show(shape)} does not`);
  }
  return { ...x, shape: resolved };
}

/** Reads tensors back in one round trip, bf16 as float32; waits until everything recorded before has run. */
export function readAll(tensors: readonly Tensor[]): Promise<(Float32Array | Uint32Array)[]> {
  return readBack("readAll", tensors);
}

async function readBack(op: string, tensors: readonly Tensor[]): Promise<(Float32Array | Uint32Array)[]> {
  for (const x of tensors) requireLive(op, x);
  const buffers = await download(
    tensors.map((x) => ({ storage: x.storage, byteOffset: x.byteOffset ?? 0, bytes: byteLength(x) })),
  );
  return buffers.map((buffer, i) => {
    const { dtype } = tensors[i]!;
    if (dtype === "bf16") return widen(new Uint16Array(buffer, 0, size(tensors[i]!)));
    return dtype === "u32" ? new Uint32Array(buffer) : new Float32Array(buffer);
  });
}

/** bf16 bits -> float32: they are its upper half. */
function widen(bits: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(bits, (half) => half << 16).buffer);
}

/** Reads a float32 or bf16 tensor back to the host. */
export async function read(x: Tensor): Promise<Float32Array> {
  if (x.dtype === "u32") throw new ShapeError("read: the tensor holds u32 ids, use readIds");
  return (await readBack("read", [x]))[0] as Float32Array;
}

/** Reads a u32 tensor back to the host. */
export async function readIds(x: Tensor): Promise<Uint32Array> {
  if (x.dtype !== "u32") throw new ShapeError(`readIds: the tensor holds ${x.dtype} data, use read`);
  return (await readBack("readIds", [x]))[0] as Uint32Array;
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

/** `dispose` for tensors of which several may share an allocation. */
export function disposeAll(tensors: Iterable<Tensor>): void {
  for (const storage of new Set([...tensors].map((x) => x.storage))) release(storage);
}
