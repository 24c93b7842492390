// The safetensors format: the rules of its header, checked strictly.
//
//   bytes 0..8    N, the header's length, little-endian u64
//   bytes 8..8+N  UTF-8 JSON: { "name": { "dtype", "shape", "data_offsets": [begin, end] }, "__metadata__": {...} }
//   the rest      the tensors' raw little-endian values; offsets count from here, and leave no gap and no overlap
//
// A weight file comes from strangers, so the header is checked completely before anything of a size it names is
// allocated. The checks run in the order of the Rust reference implementation and errors carry its names
// (SafetensorsError.code). Stricter than the reference: integers above 2^53 - 1, unknown fields in an entry, tensors
// of rank above 8 and duplicate keys at any level are refused. NaN and infinite values are legal content.

import { parseStrictJson } from "./strict_json.ts";
import type { StrictJson } from "./strict_json.ts";

/** Bits per element, in the reference's order (increasing alignment), which is also the order the writer sorts by. */
export const DTYPE_BITS = {
  BOOL: 8, F4: 4, F6_E2M3: 6, F6_E3M2: 6, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8, I16: 16, U16: 16, F16: 16, BF16: 16, I32: 32, U32: 32, F32: 32, C64: 64, F64: 64, I64: 64, U64: 64,
} as const;

export type SafetensorsDtype = keyof typeof DTYPE_BITS;

const MAX_HEADER_BYTES = 100_000_000;
const MAX_RANK = 8;
/** Root object, one entry, one of its arrays. */
const MAX_HEADER_DEPTH = 3;

export type SafetensorsErrorCode =
  | "HeaderTooSmall" //                 file shorter than the 8 length bytes
  | "HeaderTooLarge" //                 header above 100 MB
  | "InvalidHeaderLength" //            header runs past the end of the file
  | "InvalidHeader" //                  header is not UTF-8
  | "InvalidHeaderDeserialization" //   header is not the JSON that the format prescribes
  | "InvalidOffset" //                  a tensor does not begin where the one before it ends, or ends before it begins
  | "ValidationOverflow" //             a tensor's size is above 2^53 - 1
  | "MisalignedSlice" //                a sub-byte dtype whose tensor does not fill whole bytes
  | "TensorInvalidInfo" //              offsets disagree with shape and dtype
  | "MetadataIncompleteBuffer" //       the tensors do not end where the file ends
  | "TensorNotFound"
  | "UnsupportedDtype" //               a valid dtype that the reader does not decode
  | "InvalidTensorView" //              the writer was given bad names, shapes or data
  | "WeightsNotFound" //                a directory without weights, or with missing shards
  | "InvalidIndex" //                   an index of shards that is not the JSON that is prescribed
  | "IndexMismatch" //                  index and shards disagree about what is where
  | "IoError";

export class SafetensorsError extends Error {
  readonly code: SafetensorsErrorCode;

  constructor(code: SafetensorsErrorCode, message: string, options?: ErrorOptions) {
    super(`safetensors: ${message}`, options);
    this.name = "SafetensorsError";
    this.code = code;
  }
}

/** `begin` and `end` (exclusive) are byte offsets from the start of the data section. */
export interface TensorEntry {
  name: string;
  dtype: SafetensorsDtype;
  shape: number[];
  begin: number;
  end: number;
}

export interface SafetensorsHeader {
  entries: Map<string, TensorEntry>;
  metadata: Map<string, string>;
  /** Byte offset of the data section in the file, 8 + N. */
  dataStart: number;
}

/**
 * Checks the header of a file of `fileLength` bytes. `fileHead` holds the file's first 8 + N bytes or more.
 * Throws SafetensorsError with the first rule that is broken.
 */
export function parseHeader(fileHead: Uint8Array, fileLength: number): SafetensorsHeader {
  const headerLength = readHeaderLength(fileHead, fileLength);
  const dataStart = 8 + headerLength;
  if (fileHead.length < dataStart) {
    throw new SafetensorsError("InvalidHeaderLength", `got ${fileHead.length} of the header's ${dataStart} bytes`);
  }
  let text: string;
  try {
    // The default decoder would replace bad bytes and swallow a byte-order mark.
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(fileHead.subarray(8, dataStart));
  } catch (cause) {
    throw new SafetensorsError("InvalidHeader", "the header is not valid UTF-8", { cause });
  }
  const { entries, metadata } = parseHeaderJson(text);
  const dataLength = checkLayout(entries);
  if (dataStart + dataLength !== fileLength) {
    const problem = `the header describes ${dataStart + dataLength} bytes, the file has ${fileLength}`;
    throw new SafetensorsError("MetadataIncompleteBuffer", `${problem}: truncated or corrupt, download it again`);
  }
  return { entries, metadata, dataStart };
}

/** N, checked against the file's length before anyone allocates that much. */
export function readHeaderLength(fileHead: Uint8Array, fileLength: number): number {
  if (fileLength < 8 || fileHead.length < 8) {
    throw new SafetensorsError("HeaderTooSmall", `the file has ${fileLength} bytes, fewer than its 8 length bytes`);
  }
  // Compared as a BigInt: converting first could round a huge length to a harmless looking one.
  const length = new DataView(fileHead.buffer, fileHead.byteOffset, 8).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) {
    throw new SafetensorsError("HeaderTooLarge", `a header of ${length} bytes is above ${MAX_HEADER_BYTES}`);
  }
  if (8 + Number(length) > fileLength) {
    throw new SafetensorsError("InvalidHeaderLength", `a header of ${length} bytes in a file of ${fileLength}`);
  }
  return Number(length);
}

function parseHeaderJson(text: string): Pick<SafetensorsHeader, "entries" | "metadata"> {
  let root: StrictJson;
  try {
    root = parseStrictJson(text, { maxDepth: MAX_HEADER_DEPTH });
  } catch (cause) {
    throw new SafetensorsError("InvalidHeaderDeserialization", `bad header: ${(cause as Error).message}`, { cause });
  }
  if (!(root instanceof Map)) throw schemaError("the header is not an object");
  const entries = new Map<string, TensorEntry>();
  let metadata = new Map<string, string>();
  for (const [name, value] of root) {
    if (name === "__metadata__") metadata = parseMetadata(value);
    else entries.set(name, parseEntry(name, value));
  }
  return { entries, metadata };
}

function schemaError(problem: string): SafetensorsError {
  return new SafetensorsError("InvalidHeaderDeserialization", problem);
}

/** A name from the file, safe to print. */
export function quote(name: string): string {
  return JSON.stringify(name.length > 80 ? `${name.slice(0, 77)}...` : name);
}

function parseMetadata(value: StrictJson): Map<string, string> {
  if (!(value instanceof Map)) throw schemaError("__metadata__ is not an object");
  const metadata = new Map<string, string>();
  for (const [key, text] of value) {
    if (typeof text !== "string") throw schemaError(`__metadata__ value of ${quote(key)} is not a string`);
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(name: string, value: StrictJson): TensorEntry {
  if (!(value instanceof Map)) throw schemaError(`tensor ${quote(name)}: the entry is not an object`);
  const dtype = value.get("dtype");
  const shape = value.get("shape");
  const offsets = value.get("data_offsets");
  if (value.size !== 3 || dtype === undefined || shape === undefined || offsets === undefined) {
    throw schemaError(`tensor ${quote(name)}: the fields must be dtype, shape and data_offsets`);
  }
  if (!isDtype(dtype)) throw schemaError(`tensor ${quote(name)}: unknown dtype`);
  if (!isIntegerArray(shape) || shape.length > MAX_RANK) {
    throw schemaError(`tensor ${quote(name)}: shape must be at most ${MAX_RANK} integers`);
  }
  if (!isIntegerArray(offsets) || offsets.length !== 2) {
    throw schemaError(`tensor ${quote(name)}: data_offsets must be two integers`);
  }
  return { name, dtype, shape, begin: offsets[0]!, end: offsets[1]! };
}

function isDtype(value: StrictJson): value is SafetensorsDtype {
  return typeof value === "string" && Object.hasOwn(DTYPE_BITS, value);
}

function isIntegerArray(value: StrictJson): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}

/** The tensors must tile the data section: no hole, no overlap, sizes as shape and dtype say. Returns its length. */
function checkLayout(entries: Map<string, TensorEntry>): number {
  const ordered = [...entries.values()].sort((a, b) => a.begin - b.begin || a.end - b.end);
  let previousEnd = 0;
  for (const { name, dtype, shape, begin, end } of ordered) {
    if (begin !== previousEnd || end < begin) {
      const range = `[${begin}, ${end}]`;
      throw new SafetensorsError("InvalidOffset", `tensor ${quote(name)}: ${range} does not follow ${previousEnd}`);
    }
    const bits = checkedProduct([...shape, DTYPE_BITS[dtype]]);
    if (bits === undefined) {
      throw new SafetensorsError("ValidationOverflow", `tensor ${quote(name)}: size of [${shape}] overflows`);
    }
    if (bits % 8 !== 0) {
      throw new SafetensorsError("MisalignedSlice", `tensor ${quote(name)}: ${bits} bits do not fill whole bytes`);
    }
    if (end - begin !== bits / 8) {
      const sizes = `${dtype} [${shape}] needs ${bits / 8} bytes, its offsets span ${end - begin}`;
      throw new SafetensorsError("TensorInvalidInfo", `tensor ${quote(name)}: ${sizes}`);
    }
    previousEnd = end;
  }
  return previousEnd;
}

/** The product, or undefined as soon as a partial product is above 2^53 - 1 (a later zero does not excuse it). */
export function checkedProduct(factors: readonly number[]): number | undefined {
  let product = 1;
  for (const factor of factors) {
    product *= factor;
    if (!Number.isSafeInteger(product)) return undefined;
  }
  return product;
}
