// The safetensors reader against hostile files (each must fail with the code of the rule it breaks, none may crash or
// allocate), against valid but unusual ones, and the writer against the reader.

import fc from "fast-check";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openSafetensors, parseHeader, SafetensorsError, writeSafetensors } from "../../src/data/safetensors.ts";
import type { SafetensorsErrorCode } from "../../src/data/safetensors.ts";

const directory = mkdtempSync(join(tmpdir(), "safetensors-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** A file whose length field is right for its header. */
function fileOf(header: string | Uint8Array, dataLength = 0): Uint8Array {
  const json = Buffer.from(header);
  const file = Buffer.alloc(8 + json.length + dataLength);
  file.writeBigUInt64LE(BigInt(json.length), 0);
  json.copy(file, 8);
  return file;
}

/** A file whose length field says `length`, whatever follows. */
function fileClaiming(length: bigint, rest = "{}"): Uint8Array {
  const file = Buffer.from(`........${rest}`);
  file.writeBigUInt64LE(length, 0);
  return file;
}

function entry(shape: string, offsets: string, dtype = "F32"): string {
  return `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
}

function parse(file: Uint8Array): ReturnType<typeof parseHeader> {
  return parseHeader(file, file.length);
}

const four = entry("[1]", "[0,4]");
const json = "InvalidHeaderDeserialization";

const hostile: [name: string, code: SafetensorsErrorCode, file: Uint8Array][] = [
  ["empty file", "HeaderTooSmall", new Uint8Array(0)],
  ["7 bytes", "HeaderTooSmall", new Uint8Array(7)],
  ["N = 0", json, fileClaiming(0n, "")],
  ["N = 1, '{'", json, fileOf("{")],
  ["N = 2^64 - 1", "HeaderTooLarge", fileClaiming(2n ** 64n - 1n)],
  ["N = 2^53 + 1", "HeaderTooLarge", fileClaiming(2n ** 53n + 1n)],
  ["N = 100,000,001", "HeaderTooLarge", fileClaiming(100_000_001n)],
  ["N one byte past the file", "InvalidHeaderLength", fileClaiming(3n)],
  ["N = 1000 in a small file", "InvalidHeaderLength", fileClaiming(1000n)],

  ["byte 0xFF", "InvalidHeader", fileOf(Uint8Array.of(0x7b, 0xff, 0x7d))],
  ["byte-order mark", json, fileOf("\ufeff{}")],
  ["not JSON", json, fileOf("hello")],
  ["array", json, fileOf("[]")],
  ["string", json, fileOf('"{}"')],
  ["garbage after }", json, fileOf("{} x")],
  ["NUL padding", json, fileOf("{}\0\0")],
  ["nesting 100,000 deep", json, fileOf(`{"a":${"[".repeat(100_000)}`)],
  ["lone surrogate in a name", json, fileOf(`{"\\ud800":${four}}`, 4)],
  ["raw line break in a name", json, fileOf(`{"a\n":${four}}`, 4)],
  ["trailing comma", json, fileOf(`{"a":${four},}`, 4)],

  ["duplicate name, other range", json, fileOf(`{"a":${four},"a":${entry("[1]", "[4,8]")}}`, 8)],
  ["duplicate name, same range, other shape", json,
    fileOf(`{"a":${entry("[2,3]", "[0,24]")},"a":${entry("[3,2]", "[0,24]")}}`, 24)],
  ["duplicate name spelt with an escape", json, fileOf(`{"a":${four},"\\u0061":${four}}`, 4)],
  ["duplicate field", json, fileOf('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4)],
  ["metadata value is a number", json, fileOf('{"__metadata__":{"a":1}}')],
  ["metadata value is an object", json, fileOf('{"__metadata__":{"a":{}}}')],
  ["metadata is a list", json, fileOf('{"__metadata__":[]}')],
  ["unknown field", json, fileOf('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"y"}}', 4)],
  ["no dtype", json, fileOf('{"a":{"shape":[1],"data_offsets":[0,4]}}', 4)],
  ["no shape", json, fileOf('{"a":{"dtype":"F32","data_offsets":[0,4]}}', 4)],
  ["no offsets", json, fileOf('{"a":{"dtype":"F32","shape":[1]}}', 4)],
  ["one offset", json, fileOf(`{"a":${entry("[1]", "[0]")}}`, 4)],
  ["entry is null", json, fileOf('{"a":null}')],

  ["negative dimension", json, fileOf(`{"a":${entry("[-1]", "[0,4]")}}`, 4)],
  ["fractional dimension", json, fileOf(`{"a":${entry("[1.0]", "[0,4]")}}`, 4)],
  ["exponent form", json, fileOf(`{"a":${entry("[1e0]", "[0,4]")}}`, 4)],
  ["minus zero", json, fileOf(`{"a":${entry("[-0]", "[0,0]")}}`)],
  ["leading zero", json, fileOf(`{"a":${entry("[01]", "[0,4]")}}`, 4)],
  ["dimension 2^53 + 1", json, fileOf(`{"a":${entry("[9007199254740993]", "[0,4]")}}`, 4)],
  ["dimension 2^64 - 2", json, fileOf(`{"a":${entry("[18446744073709551614]", "[0,4]")}}`, 4)],
  ["product of dimensions overflows", "ValidationOverflow",
    fileOf(`{"a":${entry("[9007199254740991,2]", "[0,4]")}}`, 4)],
  ["dimensions x element size overflows", "ValidationOverflow",
    fileOf(`{"a":${entry("[9007199254740991]", "[0,4]")}}`, 4)],
  ["product that wraps to 4 in 64 bits", "ValidationOverflow",
    fileOf(`{"a":${entry("[4194305,4194305,211106198978564]", "[0,16]")}}`, 16)],
  ["overflow before a zero", "ValidationOverflow",
    fileOf(`{"a":${entry("[9007199254740991,9007199254740991,0]", "[0,0]")}}`)],
  ["rank 9", json, fileOf(`{"a":${entry("[1,1,1,1,1,1,1,1,1]", "[0,4]")}}`, 4)],
  ["begin after end", "InvalidOffset", fileOf(`{"a":${entry("[0]", "[0,0]")},"b":${entry("[1]", "[4,0]")}}`, 4)],
  ["end past the file", "MetadataIncompleteBuffer", fileOf(`{"a":${entry("[2]", "[0,8]")}}`, 4)],
  ["first tensor not at 0", "InvalidOffset", fileOf(`{"a":${entry("[1]", "[4,8]")}}`, 8)],
  ["hole", "InvalidOffset", fileOf(`{"a":${four},"b":${entry("[1]", "[8,12]")}}`, 12)],
  ["overlap", "InvalidOffset", fileOf(`{${range(10).map((i) => `"${i}":${entry("[4]", "[0,16]")}`)}}`, 16)],
  ["size is not dtype x shape", "TensorInvalidInfo", fileOf(`{"a":${entry("[2]", "[0,4]")}}`, 4)],
  ["bytes after the last tensor", "MetadataIncompleteBuffer", fileOf(`{"a":${four}}`, 5)],
  ["2 bytes short", "MetadataIncompleteBuffer", fileOf(`{"a":${four}}`, 2)],
  ["unknown dtype", json, fileOf(`{"a":${entry("[1]", "[0,4]", "F33")}}`, 4)],
  ["dtype from Object.prototype", json, fileOf(`{"a":${entry("[1]", "[0,4]", "constructor")}}`, 4)],
  ["F4 that fills half a byte", "MisalignedSlice", fileOf(`{"a":${entry("[3]", "[0,1]", "F4")}}`, 1)],
  ["100,000 tensors in one range", "InvalidOffset",
    fileOf(`{${range(100_000).map((i) => `"${i}":${four}`)}}`, 4)],
];

function range(length: number): number[] {
  return Array.from({ length }, (_, i) => i);
}

describe("parseHeader", () => {
  test.each(hostile)("refuses: %s -> %s", (_, code, file) => {
    expect(() => parse(file)).toThrow(expect.objectContaining({ name: "SafetensorsError", code }));
  });

  const valid: [name: string, file: Uint8Array, tensors: number][] = [
    ["no tensors", fileOf("{}"), 0],
    ["whitespace around", fileOf(" \n{ } \t\r"), 0],
    ["empty metadata", fileOf('{"__metadata__":{}}'), 0],
    ["rank 0", fileOf(`{"a":${entry("[]", "[0,4]")}}`, 4), 1],
    ["a dimension of 0, sharing its offset", fileOf(`{"z":${entry("[0,7]", "[4,4]")},"a":${four}}`, 4), 2],
    ["names in another order than the data", fileOf(`{"a":${entry("[1]", "[4,8]")},"b":${four}}`, 8), 2],
    ["F4 that fills bytes", fileOf(`{"a":${entry("[4]", "[0,2]", "F4")}}`, 2), 1],
    ["a name of 100 kB", fileOf(`{"${"n".repeat(100_000)}":${four}}`, 4), 1],
    ["an empty name", fileOf(`{"":${four}}`, 4), 1],
    ["names of Object.prototype", fileOf(`{"__proto__":${four},"constructor":${entry("[1]", "[4,8]")}}`, 8), 2],
  ];

  test.each(valid)("accepts: %s", (_, file, tensors) => {
    expect(parse(file).entries.size).toBe(tensors);
  });

  test("returns names, shapes, metadata and where the data starts", () => {
    const header = `{"__metadata__":{"k\\u00e9y":"v\\n"},"__proto__":${entry("[2,1]", "[0,4]", "BF16")}}`;
    const { entries, metadata, dataStart } = parse(fileOf(header, 4));
    expect([...entries.values()]).toEqual([{ name: "__proto__", dtype: "BF16", shape: [2, 1], begin: 0, end: 4 }]);
    expect([...metadata]).toEqual([["kéy", "v\n"]]);
    expect(dataStart).toBe(8 + header.length);
  });

  test("throws nothing but SafetensorsError on mutated files", () => {
    const original = fileOf(`{"__metadata__":{"a":"b"},"x":${entry("[2,2]", "[0,16]")}}`, 16);
    const edit = fc.record({
      at: fc.nat(original.length - 1),
      remove: fc.nat(3),
      insert: fc.oneof(
        fc.constantFrom(...['"', "{", "}", "[", "]", ",", ":", "9", "-", "e", "\\", "\\u", "\0", " "]).map(Buffer.from),
        fc.uint8Array({ maxLength: 3 }),
      ),
    });
    let refused = 0;
    fc.assert(fc.property(fc.array(edit, { minLength: 1, maxLength: 3 }), (edits) => {
      let file = original;
      for (const { at, remove, insert } of edits) {
        file = Buffer.concat([file.subarray(0, at), insert, file.subarray(at + remove)]);
      }
      // Half of the mutants keep a right length field, so that they reach the checks behind it.
      if (edits[0]!.at % 2 === 0) file = fileOf(file.subarray(8, -16), 16);
      try {
        parse(file);
      } catch (error) {
        if (!(error instanceof SafetensorsError)) throw error;
        refused++;
      }
    }), { numRuns: 5000 });
    expect(refused).toBeGreaterThan(4000);
  });
});

describe("files", () => {
  const path = join(directory, "model.safetensors");
  const values = Float32Array.of(1, -0, 0.1, 65504, -1e-8, 3.4028235e38, NaN, Infinity);

  test("what is written is read back; 16-bit floats are rounded once", () => {
    writeSafetensors(path, [
      { name: "half", shape: [3], dtype: "F16", data: Float32Array.of(0.1, 65504, -2) },
      { name: "brain", shape: [3], dtype: "BF16", data: Float32Array.of(0.1, 1e38, -2) },
      { name: "full", shape: [2, 4], dtype: "F32", data: values },
      { name: "none", shape: [0, 5], dtype: "F32", data: new Float32Array(0) },
      { name: "scalar", shape: [], dtype: "F32", data: Float32Array.of(7) },
    ], { format: "pt" });
    const file = openSafetensors(path);
    expect([...file.entries.keys()]).toEqual(["full", "none", "scalar", "brain", "half"]); // as Python orders them
    expect(file.entries.get("full")!.shape).toEqual([2, 4]);
    expect(file.metadata.get("format")).toBe("pt");
    expect(file.readF32("full")).toEqual(values);
    expect(file.readF32("scalar")).toEqual(Float32Array.of(7));
    expect(file.readF32("none").length).toBe(0);
    expect(file.readF32("half")).toEqual(Float32Array.of(0.0999755859375, 65504, -2));
    expect(file.readF32("brain")).toEqual(Float32Array.of(0.10009765625, 9.969209968386869e37, -2));
    file.close();
    expect(parse(readFileSync(path)).dataStart % 8).toBe(0);
  });

  test("writes byte for byte what the Python library writes", () => {
    // safetensors.numpy.save({"b": np.float32([[1, 2]]), "a": np.float16([3])}, {"format": "pt"})
    const header = '{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},' +
      '"a":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}';
    writeSafetensors(path, [
      { name: "a", shape: [1], dtype: "F16", data: Float32Array.of(3) },
      { name: "b", shape: [1, 2], dtype: "F32", data: Float32Array.of(1, 2) },
    ], { format: "pt" });
    const file = readFileSync(path);
    expect(file.subarray(8, -10).toString()).toBe(header.padEnd(Math.ceil(header.length / 8) * 8));
    expect(file.subarray(-10).toString("hex")).toBe("0000803f000000400042");
  });

  test.each([
    ["I64", Buffer.from(BigInt64Array.of(0n, 4294967295n).buffer), [0, 4294967295]],
    ["U64", Buffer.from(BigUint64Array.of(5n, 4294967296n).buffer), "ValueOutOfRange"],
    ["I32", Buffer.from(Int32Array.of(5, -1).buffer), "ValueOutOfRange"],
    ["U32", Buffer.from(Uint32Array.of(5, 4294967295).buffer), [5, 4294967295]],
    ["I16", Buffer.from(Int16Array.of(5, 300).buffer), [5, 300]],
    ["U8", Buffer.from([5, 255]), [5, 255]],
    ["BOOL", Buffer.from([0, 1]), "UnsupportedDtype"],
    ["F32", Buffer.alloc(8), "UnsupportedDtype"],
  ] as const)("readU32 of %s", (dtype, bytes, expected) => {
    const header = fileOf(`{"ids":${entry("[2]", `[0,${bytes.length}]`, dtype)}}`);
    writeFileSync(path, Buffer.concat([header, bytes]));
    const file = openSafetensors(path);
    if (typeof expected === "string") {
      expect(() => file.readU32("ids")).toThrow(expect.objectContaining({ code: expected }));
    } else {
      expect([...file.readU32("ids")]).toEqual(expected);
    }
    file.close();
  });

  test("errors name the file, and the tensor", () => {
    writeSafetensors(path, [{ name: "a", shape: [1], dtype: "F32", data: Float32Array.of(1) }]);
    const file = openSafetensors(path);
    expect(() => file.readF32("b")).toThrow(/model\.safetensors: no tensor "b"/);
    file.close();
    const missing = join(directory, "absent.safetensors");
    expect(() => openSafetensors(missing)).toThrow(expect.objectContaining({ code: "IoError" }));
    writeFileSync(path, readFileSync(path).subarray(0, -1));
    expect(() => openSafetensors(path)).toThrow(/model\.safetensors: .*truncated or corrupt/);
  });

  test.each([
    ["reserved name", [{ name: "__metadata__", shape: [1], dtype: "F32", data: new Float32Array(1) }]],
    ["rank 9", [{ name: "a", shape: Array<number>(9).fill(1), dtype: "F32", data: new Float32Array(1) }]],
    ["wrong shape", [{ name: "a", shape: [2], dtype: "F32", data: new Float32Array(1) }]],
    ["fractional shape", [{ name: "a", shape: [0.5, 2], dtype: "F32", data: new Float32Array(1) }]],
    ["same name twice", ["F32", "F16"].map((dtype) => ({ name: "a", shape: [1], dtype, data: new Float32Array(1) }))],
  ] as [string, Parameters<typeof writeSafetensors>[1]][])("the writer refuses: %s; no file is left", (_, tensors) => {
    const target = join(directory, "refused.safetensors");
    expect(() => writeSafetensors(target, tensors)).toThrow(SafetensorsError);
    expect(existsSync(target)).toBe(false);
    expect(readdirSync(directory).filter((name) => name.includes("tmp"))).toEqual([]);
  });
});
