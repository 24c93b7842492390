// The reader against the hostile corpus: each file fails with the code of the rule it breaks, from memory and from
// disk, before anything of a size that the header names is allocated. Legal oddities are read.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openSafetensors, parseHeader, SafetensorsError } from "../../src/data/safetensors.ts";
import { entry, fileOf, HOSTILE_FILES, LEGAL_FILES } from "../support/hostile_safetensors.ts";

const directory = mkdtempSync(join(tmpdir(), "hostile-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** Opens the bytes as a file and reads every tensor; returns their number. */
function readAll(bytes: Uint8Array): number {
  const path = join(directory, "model.safetensors");
  writeFileSync(path, bytes);
  const file = openSafetensors(path);
  try {
    for (const { name, dtype, shape } of file.entries.values()) {
      if (dtype !== "F32" && dtype !== "BF16") continue;
      expect(file.readF32(name).length).toBe(shape.reduce((product, size) => product * size, 1));
    }
    return file.entries.size;
  } finally {
    file.close();
  }
}

function resultOf(action: () => unknown): string {
  try {
    action();
    return "accepted";
  } catch (error) {
    if (!(error instanceof SafetensorsError)) throw error;
    expect(error.message).not.toMatch(/[\n\0]/);
    expect(error.message.length).toBeLessThan(400);
    return error.code;
  }
}

describe("hostile files", () => {
  test("the corpus is complete: 46 kinds", () => {
    const numbers = new Set(HOSTILE_FILES.map(({ number }) => number));
    expect([...numbers].sort((a, b) => a - b)).toEqual(Array.from({ length: 46 }, (_, i) => i + 1));
  });

  test.each(HOSTILE_FILES.map((file) => [file.number, file.what, file.expected, file.bytes] as const))(
    "%i: %s -> %s",
    (_number, _what, expected, makeBytes) => {
      const bytes = makeBytes();
      expect(resultOf(() => parseHeader(bytes, bytes.length))).toBe(expected);
      const before = process.memoryUsage().arrayBuffers;
      expect(resultOf(() => readAll(bytes))).toBe(expected);
      expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(bytes.length + 2 ** 20);
    },
  );

  test("100,000 tensors in one range are refused within a second of processor time", () => {
    const bytes = HOSTILE_FILES.find(({ number }) => number === 46)!.bytes();
    const start = process.cpuUsage();
    expect(() => parseHeader(bytes, bytes.length)).toThrow(SafetensorsError);
    const { user, system } = process.cpuUsage(start);
    expect((user + system) / 1e6).toBeLessThan(1);
  });
});

describe("legal files", () => {
  test.each(LEGAL_FILES.map(({ what, tensors, bytes }) => [what, tensors, bytes] as const))(
    "%s",
    (_, tensors, makeBytes) => {
      const bytes = makeBytes();
      expect(parseHeader(bytes, bytes.length).entries.size).toBe(tensors);
      expect(readAll(bytes)).toBe(tensors);
    },
  );

  test("names, shapes, metadata and where the data starts", () => {
    const header = `{"__metadata__":{"k\\u00e9y":"v\\n"},"__proto__":${entry("[2,1]", "[0,4]", "BF16")}}`;
    const bytes = fileOf(header, 4);
    const { entries, metadata, dataStart } = parseHeader(bytes, bytes.length);
    expect([...entries.values()]).toEqual([{ name: "__proto__", dtype: "BF16", shape: [2, 1], begin: 0, end: 4 }]);
    expect([...metadata]).toEqual([["kéy", "v\n"]]);
    expect(dataStart).toBe(8 + header.length);
  });

  test("NaN and infinity are values like others", () => {
    const values = Buffer.from(Float32Array.of(NaN, Infinity).buffer);
    const bytes = Buffer.concat([fileOf(`{"a":${entry("[2]", "[0,8]")}}`), values]);
    const path = join(directory, "nan.safetensors");
    writeFileSync(path, bytes);
    const file = openSafetensors(path);
    expect(file.readF32("a")).toEqual(Float32Array.of(NaN, Infinity));
    file.close();
  });
});
