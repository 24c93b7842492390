/**
 * 46 kinds of hostile safetensors files, with the error code each must be refused with, and the unusual but legal
 * ones that must be read. Numbers 1 to 46 are the corpus's own; a kind with several forms repeats its number. Where
 * the format leaves a choice (18, 21 to 24), the expected result here is our choice, and says so.
 *
 * Sources of the kinds: the checks and tests of the Rust reference implementation, the security audit that preceded
 * safetensors 0.4, published faults of other readers, and what JSON.parse and TextDecoder let through.
 */
import type { SafetensorsErrorCode } from "../../src/data/safetensors.ts";

export interface CorpusFile {
  readonly number: number;
  readonly what: string;
  readonly expected: SafetensorsErrorCode | "accepted";
  /** Built when asked for: some have several megabytes. */
  readonly bytes: () => Uint8Array;
}

/** A file whose length field is right for its header. */
export function fileOf(header: string | Uint8Array, dataLength = 0): Uint8Array {
  const json = Buffer.from(header);
  const file = Buffer.alloc(8 + json.length + dataLength);
  file.writeBigUInt64LE(BigInt(json.length), 0);
  json.copy(file, 8);
  return file;
}

/** A file whose length field says `length`, whatever follows. */
export function fileClaiming(length: bigint, rest = "{}"): Uint8Array {
  const file = Buffer.from(`........${rest}`);
  file.writeBigUInt64LE(length, 0);
  return file;
}

/** The JSON of one header entry. */
export function entry(shape: string, offsets: string, dtype = "F32"): string {
  return `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
}

const four = entry("[1]", "[0,4]");

/** A file with one F32 tensor "a" of this shape and these offsets. */
function oneTensor(shape: string, offsets = "[0,4]", dataLength = 4): Uint8Array {
  return fileOf(`{"a":${entry(shape, offsets)}}`, dataLength);
}

/** `count` tensors that all claim the same bytes. */
function sharingOneRange(count: number, shape: string, end: number): string {
  const entries = Array.from({ length: count }, (_, i) => `"${i}":${entry(shape, `[0,${end}]`)}`);
  return `{${entries.join(",")}}`;
}

const JSON_ERROR = "InvalidHeaderDeserialization";
const BAD_METADATA = ["[]", '"text"', '{"a":1}', '{"a":{}}', '{"a":["b"]}', '{"a":null}'];
const REPEATED_FIELD = '{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}';

type Row = readonly [number: number, what: string, expected: CorpusFile["expected"], bytes: () => Uint8Array];

const rows: readonly Row[] = [
  // The length field.
  [1, "empty file", "HeaderTooSmall", () => new Uint8Array(0)],
  [2, "7 bytes", "HeaderTooSmall", () => new Uint8Array(7)],
  [3, "N = 0", JSON_ERROR, () => fileClaiming(0n, "")],
  [4, "N = 1, '{'", JSON_ERROR, () => fileOf("{")],
  [5, "N = 2^64 - 1", "HeaderTooLarge", () => fileClaiming(2n ** 64n - 1n)],
  [6, "N = 100,000,001", "HeaderTooLarge", () => fileClaiming(100_000_001n)],
  [7, "N one byte past the file", "InvalidHeaderLength", () => fileClaiming(3n)],
  [8, "N = 2^53 + 1", "HeaderTooLarge", () => fileClaiming(2n ** 53n + 1n)],
  [9, "N = 1000 in a small file", "InvalidHeaderLength", () => fileClaiming(1000n)],
  [9, "N = 100,000,000 in a small file", "InvalidHeaderLength", () => fileClaiming(100_000_000n)],

  // The text.
  [10, "byte 0xFF", "InvalidHeader", () => fileOf(Uint8Array.of(0x7b, 0xff, 0x7d))],
  [10, "a surrogate encoded in three bytes", "InvalidHeader",
    () => fileOf(Buffer.concat([Buffer.from('{"'), Buffer.of(0xed, 0xa0, 0x80), Buffer.from(`":${four}}`)]), 4)],
  [11, "byte-order mark", JSON_ERROR, () => fileOf("\ufeff{}")],
  [12, "not JSON", JSON_ERROR, () => fileOf("hello")],
  [12, "trailing comma", JSON_ERROR, () => fileOf(`{"a":${four},}`, 4)],
  [12, "raw line break in a name", JSON_ERROR, () => fileOf(`{"a\n":${four}}`, 4)],
  [12, "a comment", JSON_ERROR, () => fileOf("{/**/}")],
  [13, "JSON array", JSON_ERROR, () => fileOf("[]")],
  [14, "JSON string", JSON_ERROR, () => fileOf('"{}"')],
  [15, "garbage after }", JSON_ERROR, () => fileOf("{} x")],
  [15, "a second object after }", JSON_ERROR, () => fileOf("{}{}")],
  [16, "NUL padding", JSON_ERROR, () => fileOf("{}\0\0")],
  [17, "nesting 100,000 deep", JSON_ERROR, () => fileOf(`{"a":${"[".repeat(100_000)}`)],
  [17, "nesting 100,000 deep, closed again", JSON_ERROR,
    () => fileOf(`{"a":${"[".repeat(100_000)}${"]".repeat(100_000)}}`)],
  // Our choice: refused, as serde does; such a name has no UTF-8 form.
  [18, "lone surrogate escape in a name", JSON_ERROR, () => fileOf(`{"\\ud800":${four}}`, 4)],

  // The keys.
  [19, "duplicate name, other range", JSON_ERROR, () => fileOf(`{"a":${four},"a":${entry("[1]", "[4,8]")}}`, 8)],
  [20, "duplicate name, same range, other shape", JSON_ERROR,
    () => fileOf(`{"a":${entry("[2,3]", "[0,24]")},"a":${entry("[3,2]", "[0,24]")}}`, 24)],
  [20, "duplicate name spelt with an escape", JSON_ERROR, () => fileOf(`{"a":${four},"\\u0061":${four}}`, 4)],
  [20, "duplicate field", JSON_ERROR, () => fileOf(REPEATED_FIELD, 4)],
  [20, "duplicate __metadata__", JSON_ERROR, () => fileOf('{"__metadata__":{},"__metadata__":{}}')],
  // Our choice: names like any other, because nothing is ever looked up in a plain object.
  [21, "a tensor named __proto__", "accepted", () => fileOf(`{"__proto__":${four}}`, 4)],
  [22, "a tensor named constructor", "accepted", () => fileOf(`{"constructor":${four}}`, 4)],
  // Our choice: legal JSON; a model that has no parameter of that name refuses it as unexpected.
  [23, "an empty name", "accepted", () => fileOf(`{"":${four}}`, 4)],
  [24, "a name of 100 kB", "accepted", () => fileOf(`{"${"n".repeat(100_000)}":${four}}`, 4)],
  ...BAD_METADATA.map((metadata): Row => {
    return [25, `__metadata__ is ${metadata}`, JSON_ERROR, () => fileOf(`{"__metadata__":${metadata}}`)];
  }),
  [26, "empty __metadata__", "accepted", () => fileOf('{"__metadata__":{}}')],
  [27, "unknown field", JSON_ERROR,
    () => fileOf('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"y"}}', 4)],
  [28, "no dtype", JSON_ERROR, () => fileOf('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4)],
  [28, "no shape", JSON_ERROR, () => fileOf('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4)],
  [28, "no offsets", JSON_ERROR, () => fileOf('{"a":{"dtype":"F32","shape":[1]}}', 4)],
  [28, "one offset", JSON_ERROR, () => oneTensor("[1]", "[0]")],
  [28, "three offsets", JSON_ERROR, () => oneTensor("[1]", "[0,4,4]")],
  [28, "the entry is null", JSON_ERROR, () => fileOf('{"a":null}')],
  [28, "the entry is a list", JSON_ERROR, () => fileOf('{"a":["F32",[1],[0,4]]}', 4)],

  // The numbers.
  [29, "negative dimension", JSON_ERROR, () => oneTensor("[-1]")],
  [29, "minus zero", JSON_ERROR, () => oneTensor("[-0]", "[0,0]", 0)],
  [30, "fractional dimension", JSON_ERROR, () => oneTensor("[0.5]")],
  [30, "an integer with a fraction of 0", JSON_ERROR, () => oneTensor("[1.0]")],
  [31, "exponent form", JSON_ERROR, () => oneTensor("[1e2]", "[0,400]", 400)],
  [31, "leading zero", JSON_ERROR, () => oneTensor("[01]")],
  [31, "a number as text", JSON_ERROR, () => oneTensor('["1"]')],
  [32, "dimension 2^53 + 1", JSON_ERROR, () => oneTensor("[9007199254740993]")],
  [32, "offset 2^53 + 1", JSON_ERROR, () => oneTensor("[1]", "[0,9007199254740993]")],
  [33, "dimension 2^64 - 1", JSON_ERROR, () => oneTensor("[18446744073709551615]")],
  [33, "dimension 2^64 - 2", JSON_ERROR, () => oneTensor("[18446744073709551614]")],
  [33, "product 2^64 - 1", "ValidationOverflow", () => oneTensor("[4294967295,4294967297]")],
  [34, "dimensions x element size above 2^53", "ValidationOverflow", () => oneTensor("[9007199254740991]")],
  [34, "product of dimensions above 2^53", "ValidationOverflow", () => oneTensor("[9007199254740991,2]")],
  [34, "overflow before a zero", "ValidationOverflow",
    () => oneTensor("[9007199254740991,9007199254740991,0]", "[0,0]", 0)],
  [35, "product that wraps to 4 in 64 bits", "ValidationOverflow",
    () => oneTensor("[4194305,4194305,211106198978564]", "[0,16]", 16)],
  [36, "rank 9", JSON_ERROR, () => oneTensor("[1,1,1,1,1,1,1,1,1]")],
  [36, "rank 100,000", JSON_ERROR, () => oneTensor(`[${"1,".repeat(99_999)}1]`)],
  [37, "begin after end", "InvalidOffset",
    () => fileOf(`{"a":${entry("[0]", "[0,0]")},"b":${entry("[1]", "[4,0]")}}`, 4)],
  [38, "end past the file", "MetadataIncompleteBuffer", () => oneTensor("[2]", "[0,8]")],
  [38, "a terabyte that is not there", "MetadataIncompleteBuffer",
    () => oneTensor("[262144,1048576]", `[0,${2 ** 40}]`)],
  [39, "first tensor not at 0", "InvalidOffset", () => oneTensor("[1]", "[4,8]", 8)],
  [40, "hole", "InvalidOffset", () => fileOf(`{"a":${four},"b":${entry("[1]", "[8,12]")}}`, 12)],
  [41, "10 tensors in one range", "InvalidOffset", () => fileOf(sharingOneRange(10, "[4]", 16), 16)],
  [41, "partial overlap", "InvalidOffset",
    () => fileOf(`{"a":${entry("[2]", "[0,8]")},"b":${entry("[2]", "[4,12]")}}`, 12)],
  [42, "size is not dtype x shape", "TensorInvalidInfo", () => oneTensor("[2]")],
  [43, "bytes after the last tensor", "MetadataIncompleteBuffer", () => fileOf(`{"a":${four}}`, 5)],
  [43, "bytes behind a file of no tensors", "MetadataIncompleteBuffer", () => fileOf("{}", 1)],
  [44, "2 bytes short", "MetadataIncompleteBuffer", () => fileOf(`{"a":${four}}`, 2)],

  // The dtype, and a bomb.
  [45, "unknown dtype", JSON_ERROR, () => fileOf(`{"a":${entry("[1]", "[0,4]", "F33")}}`, 4)],
  [45, "dtype in lower case", JSON_ERROR, () => fileOf(`{"a":${entry("[1]", "[0,4]", "f32")}}`, 4)],
  [45, "dtype from Object.prototype", JSON_ERROR, () => fileOf(`{"a":${entry("[1]", "[0,4]", "constructor")}}`, 4)],
  [45, "F4 that fills half a byte", "MisalignedSlice", () => fileOf(`{"a":${entry("[3]", "[0,1]", "F4")}}`, 1)],
  [46, "100,000 tensors in one range", "InvalidOffset",
    () => fileOf(sharingOneRange(100_000, "[1048576]", 2 ** 22), 4)],
];

export const HOSTILE_FILES: readonly CorpusFile[] = rows.map(([number, what, expected, bytes]) => {
  return { number, what, expected, bytes };
});

/** Unusual files that the format allows: how many tensors they hold. */
export const LEGAL_FILES: readonly { what: string; tensors: number; bytes: () => Uint8Array }[] = [
  { what: "no tensors", tensors: 0, bytes: () => fileOf("{}") },
  { what: "padded with spaces", tensors: 1, bytes: () => fileOf(`{"a":${four}}${" ".repeat(57)}`, 4) },
  { what: "other whitespace around", tensors: 0, bytes: () => fileOf(" \n{ } \t\r") },
  { what: "metadata", tensors: 0, bytes: () => fileOf('{"__metadata__":{"k\\u00e9y":"v\\n"}}') },
  { what: "rank 0", tensors: 1, bytes: () => oneTensor("[]") },
  { what: "rank 8", tensors: 1, bytes: () => oneTensor("[1,1,1,1,1,1,1,1]") },
  { what: "a dimension of 0, sharing its offset", tensors: 2,
    bytes: () => fileOf(`{"z":${entry("[0,7]", "[4,4]")},"a":${four}}`, 4) },
  { what: "BF16", tensors: 1, bytes: () => fileOf(`{"a":${entry("[2,3]", "[0,12]", "BF16")}}`, 12) },
  { what: "names in another order than the data", tensors: 2,
    bytes: () => fileOf(`{"a":${entry("[1]", "[4,8]")},"b":${four}}`, 8) },
  { what: "fields in another order", tensors: 1,
    bytes: () => fileOf('{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"}}', 4) },
  { what: "data that starts at an odd byte", tensors: 1,
    bytes: () => fileOf(`{"a":${four}}${" ".repeat(8 - (`{"a":${four}}`.length % 8) + 3)}`, 4) },
  { what: "a tensor at an odd byte", tensors: 2,
    bytes: () => fileOf(`{"a":${entry("[1]", "[0,1]", "U8")},"b":${entry("[1]", "[1,5]")}}`, 5) },
  { what: "F4 that fills bytes", tensors: 1, bytes: () => fileOf(`{"a":${entry("[4]", "[0,2]", "F4")}}`, 2) },
  { what: "names outside ASCII", tensors: 1, bytes: () => fileOf(`{"\\ud83d\\ude42 é":${four}}`, 4) },
];
