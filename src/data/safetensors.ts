// Safetensors weight files: a reader that loads one tensor at a time, and an atomic writer.
//
// The format and its checks are in safetensors_header.ts; this file moves the bytes. They are copied without swapping:
// the host is little-endian, as every WebGPU platform is.

import {
  closeSync, fstatSync, fsyncSync, openSync, readSync, renameSync, rmSync, writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "./half_floats.ts";
import {
  checkedProduct, DTYPE_BITS, parseHeader, quote, readHeaderLength, SafetensorsError,
} from "./safetensors_header.ts";
import type { SafetensorsDtype, TensorEntry } from "./safetensors_header.ts";
import { syncDirectory } from "./sync_directory.ts";

export { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16, parseHeader, SafetensorsError };
export type { SafetensorsDtype, TensorEntry };
export type { SafetensorsErrorCode, SafetensorsHeader } from "./safetensors_header.ts";

/** readSync and writeSync take at most 2^31 - 1 bytes at a time. */
const IO_CHUNK_BYTES = 1 << 30;

const DTYPE_ORDER = Object.keys(DTYPE_BITS);

export interface SafetensorsFile {
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly metadata: ReadonlyMap<string, string>;
  /** Values of an F32, F16 or BF16 tensor, C order; 16-bit floats are widened exactly. */
  readF32(name: string): Float32Array;
  close(): void;
}

/**
 * Opens and checks a file. Tensors are read one at a time when asked for, so host memory peaks at the largest tensor,
 * not the file. Throws SafetensorsError; its message names the file.
 */
export function openSafetensors(path: string): SafetensorsFile {
  return inFile(path, () => {
    const file = openSync(path, "r");
    try {
      return readerOf(path, file);
    } catch (error) {
      closeSync(file);
      throw error;
    }
  });
}

/** Runs `action`; whatever it throws leaves as a SafetensorsError that names the file. */
function inFile<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (cause) {
    const code = cause instanceof SafetensorsError ? cause.code : "IoError";
    const problem = (cause as Error).message.replace("safetensors: ", "");
    throw new SafetensorsError(code, `${path}: ${problem}`, { cause });
  }
}

function readerOf(path: string, file: number): SafetensorsFile {
  const fileLength = fstatSync(file).size;
  const lengthBytes = readBytes(file, 0, Math.min(8, fileLength));
  const head = readBytes(file, 0, 8 + readHeaderLength(lengthBytes, fileLength));
  const { entries, metadata, dataStart } = parseHeader(head, fileLength);

  return {
    entries,
    metadata,
    readF32: (name) => inFile(path, () => {
      const entry = entries.get(name);
      if (entry === undefined) throw new SafetensorsError("TensorNotFound", `no tensor ${quote(name)}`);
      return decodeF32(entry, readBytes(file, dataStart + entry.begin, entry.end - entry.begin));
    }),
    close: () => closeSync(file),
  };
}

/** A fresh array, so it is aligned for every typed array whatever the file's offsets are. */
function readBytes(file: number, start: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const count = readSync(file, bytes, done, Math.min(length - done, IO_CHUNK_BYTES), start + done);
    if (count === 0) throw new SafetensorsError("IoError", "the file became shorter while it was read");
    done += count;
  }
  return bytes;
}

function decodeF32({ name, dtype }: TensorEntry, { buffer }: Uint8Array): Float32Array {
  if (dtype === "F32") return new Float32Array(buffer);
  if (dtype === "F16") return f16ToF32(new Uint16Array(buffer));
  if (dtype === "BF16") return bf16ToF32(new Uint16Array(buffer));
  throw new SafetensorsError("UnsupportedDtype", `tensor ${quote(name)} is ${dtype}; readF32 takes F32, F16 or BF16`);
}

/** A tensor of a file to be written; values are stored as they are or rounded to 16 bits (nearest, ties to even). */
export interface TensorSpec {
  name: string;
  shape: readonly number[];
  dtype: "F32" | "BF16" | "F16";
}

/**
 * Writes a file that every safetensors reader accepts, laid out as the Python library lays it out: tensors by dtype
 * (widest first), then name; header padded with spaces so that the data is 8-byte aligned. `read` fetches the values of
 * one tensor at a time, so that host memory holds the largest tensor and not the file.
 *
 * Atomic: the bytes go to a temporary file beside `path`, are synced and their header read back, and only then take
 * the name, so a crash leaves the old file or the new one. Throws SafetensorsError, and what `read` throws.
 */
export async function streamSafetensors<Tensor extends TensorSpec>(
  path: string, tensors: Iterable<Tensor>, read: (tensor: Tensor) => Promise<Float32Array>,
  metadata: Record<string, string> = {},
): Promise<void> {
  const sorted = [...tensors].sort(byDtypeThenName);
  const file = stageFile(path, sorted, metadata);
  for (const tensor of sorted) {
    let data: Float32Array;
    try {
      data = await read(tensor);
    } catch (error) {
      file.discard();
      throw error;
    }
    file.append(tensor, data);
  }
  file.commit();
}

interface StagedFile {
  /** The next tensor's values, in the order of the header. */
  append(tensor: TensorSpec, data: Float32Array): void;
  /** Syncs and checks what was written, and gives it its name. */
  commit(): void;
  discard(): void;
}

/** A file under a temporary name, its header written. Whatever fails discards it and leaves as a SafetensorsError. */
function stageFile(path: string, tensors: readonly TensorSpec[], metadata: Record<string, string>): StagedFile {
  const temporary = `${path}.tmp-${process.pid}`;
  let file: number | undefined;
  const discard = (): void => {
    if (file !== undefined) closeSync(file);
    file = undefined;
    rmSync(temporary, { force: true });
  };
  const guarded = <T>(action: () => T): T => {
    return inFile(path, () => {
      try {
        return action();
      } catch (error) {
        discard();
        throw error;
      }
    });
  };
  const head = guarded(() => {
    const bytes = encodeHead(tensors, metadata);
    file = openSync(temporary, "w+");
    writeBytes(file, bytes);
    return bytes;
  });
  return {
    append: (tensor, data) => guarded(() => {
      if (checkedProduct(tensor.shape) !== data.length) {
        const problem = `shape [${tensor.shape}] does not hold ${data.length} values`;
        throw new SafetensorsError("InvalidTensorView", `tensor ${quote(tensor.name)}: ${problem}`);
      }
      writeBytes(file!, encodeTensor(tensor.dtype, data));
    }),
    commit: () => guarded(() => {
      fsyncSync(file!);
      parseHeader(readBytes(file!, 0, head.length), fstatSync(file!).size);
      closeSync(file!);
      file = undefined;
      renameSync(temporary, path);
      syncDirectory(dirname(path));
    }),
    discard,
  };
}

function byDtypeThenName(a: TensorSpec, b: TensorSpec): number {
  const dtypeOrder = DTYPE_ORDER.indexOf(b.dtype) - DTYPE_ORDER.indexOf(a.dtype);
  return dtypeOrder || Buffer.compare(Buffer.from(a.name), Buffer.from(b.name));
}

/** The length bytes and the padded header. */
function encodeHead(tensors: readonly TensorSpec[], metadata: Record<string, string>): Uint8Array {
  const fields: string[] = [];
  if (Object.keys(metadata).length > 0) fields.push(`"__metadata__":${JSON.stringify(metadata)}`);
  const names = new Set<string>();
  let begin = 0;
  for (const { name, dtype, shape } of tensors) {
    const values = checkedProduct(shape);
    const problem = names.has(name) ? "written twice"
      : name === "__metadata__" ? "the name is reserved"
      : values === undefined ? `shape [${shape}] is too large`
      : undefined;
    if (problem !== undefined || values === undefined) {
      throw new SafetensorsError("InvalidTensorView", `tensor ${quote(name)}: ${problem}`);
    }
    names.add(name);
    const end = begin + values * DTYPE_BITS[dtype] / 8;
    fields.push(`${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [begin, end] })}`);
    begin = end;
  }
  const json = Buffer.from(`{${fields.join(",")}}`);
  const headerLength = Math.ceil(json.length / 8) * 8;
  const head = Buffer.alloc(8 + headerLength, " ");
  head.writeBigUInt64LE(BigInt(headerLength), 0);
  json.copy(head, 8);
  return head;
}

/** A tensor's bytes in a file. */
export function encodeTensor(dtype: TensorSpec["dtype"], data: Float32Array): Uint8Array {
  const values = dtype === "F32" ? data : dtype === "BF16" ? f32ToBf16(data) : f32ToF16(data);
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

function writeBytes(file: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(file, bytes, done, Math.min(bytes.length - done, IO_CHUNK_BYTES));
  }
}
