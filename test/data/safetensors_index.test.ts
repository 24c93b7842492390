// The weights of a directory: one file or shards, read alike; an index that lies, leads outside or is huge is refused
// with a code and one line.

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { SafetensorsError } from "../../src/data/safetensors.ts";
import type { SafetensorsErrorCode } from "../../src/data/safetensors.ts";
import { openWeights } from "../../src/data/safetensors_index.ts";
import { writeSafetensors } from "../support/safetensors_fixture.ts";
import type { TensorToWrite } from "../support/safetensors_fixture.ts";

const INDEX = "model.safetensors.index.json";
const FIRST = "model-00001-of-00002.safetensors";
const SECOND = "model-00002-of-00002.safetensors";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "weights-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

function tensor(name: string, ...values: number[]): TensorToWrite {
  return { name, shape: [values.length], dtype: "F32", data: Float32Array.from(values) };
}

function writeIndex(index: object | string): void {
  writeFileSync(join(directory, INDEX), typeof index === "string" ? index : JSON.stringify(index));
}

/** Two shards and the index that transformers would write. */
function writeShards(): void {
  writeSafetensors(join(directory, FIRST), [tensor("a", 1), tensor("b", 2, 3)], { format: "pt" });
  writeSafetensors(join(directory, SECOND), [tensor("c", 4)], { format: "pt" });
  writeIndex(goodIndex);
}

const goodIndex = { metadata: { total_size: 16 }, weight_map: { a: FIRST, b: FIRST, c: SECOND } };

function failure(): SafetensorsError {
  try {
    openWeights(directory).close();
  } catch (error) {
    expect(error).toBeInstanceOf(SafetensorsError);
    return error as SafetensorsError;
  }
  throw new Error("nothing was thrown");
}

describe("openWeights reads", () => {
  test("shards like one file", () => {
    writeShards();
    const sharded = openWeights(directory);
    const read = (files: typeof sharded): unknown => {
      return [...files.entries.values()].map(({ name, shape, dtype }) => [name, shape, dtype, files.readF32(name)]);
    };
    const fromShards = read(sharded);
    sharded.close();
    // The single file wins, as in transformers: an index beside it is not even read.
    writeSafetensors(join(directory, "model.safetensors"), [tensor("a", 1), tensor("b", 2, 3), tensor("c", 4)]);
    writeIndex("{");
    const single = openWeights(directory);
    expect(read(single)).toEqual(fromShards);
    single.close();
  });

  test.each([
    ["no metadata", { weight_map: goodIndex.weight_map }],
    ["no total_size", { ...goodIndex, metadata: {} }],
    ["more metadata", { ...goodIndex, metadata: { total_size: 16, total_parameters: 4, tool: { name: "x" } } }],
    ["unknown fields", { ...goodIndex, version: 1.5, notes: [true, false, null, "x"] }],
    ["a wrong total_size", { ...goodIndex, metadata: { total_size: 17 } }],
    ["a total_size with a fraction", JSON.stringify(goodIndex).replace("16", "16.0")],
    ["a total_size above 2^53", JSON.stringify(goodIndex).replace("16", "9007199254740993")],
    ["a negative total_size with an exponent", JSON.stringify(goodIndex).replace("16", "-1.5E+300")],
    ["a total_size as text", { ...goodIndex, metadata: { total_size: "16" } }],
    ["a total_size that is null", { ...goodIndex, metadata: { total_size: null } }],
    ["null as metadata", { ...goodIndex, metadata: null }],
  ])("an index with %s", (_, index) => {
    writeShards();
    writeIndex(index);
    const files = openWeights(directory);
    expect([...files.entries.keys()].sort()).toEqual(["a", "b", "c"]);
    expect([...files.readF32("b")]).toEqual([2, 3]);
    expect(() => files.readF32("d")).toThrow(expect.objectContaining({ code: "TensorNotFound" }));
    files.close();
  });

  test("weights named like members of Object.prototype", () => {
    writeSafetensors(join(directory, FIRST), [tensor("__proto__", 1), tensor("constructor", 2)]);
    writeIndex(`{"weight_map":{"__proto__":"${FIRST}","constructor":"${FIRST}"}}`);
    const files = openWeights(directory);
    expect([...files.readF32("__proto__"), ...files.readF32("constructor")]).toEqual([1, 2]);
    expect(() => files.readF32("toString")).toThrow(/no tensor "toString"/);
    files.close();
  });
});

describe("openWeights refuses", () => {
  const { weight_map: map } = goodIndex;
  const cases: [what: string, code: SafetensorsErrorCode, message: RegExp, index: object | string][] = [
    ["no JSON", "InvalidIndex", /expected/, "{"],
    ["null", "InvalidIndex", /no weight_map/, "null"],
    ["a word", "InvalidIndex", /expected a value at character/, "nil"],
    ["a number that JSON does not have", "InvalidIndex", /expected a value/, `{"metadata":{"total_size":NaN}}`],
    ["a number with a leading zero", "InvalidIndex", /expected a value/, `{"metadata":{"total_size":016}}`],
    ["twice the same metadata", "InvalidIndex", /duplicate key "total_size"/,
      `{"metadata":{"total_size":16,"total_size":17}}`],
    ["a list", "InvalidIndex", /no weight_map/, "[]"],
    ["no weight_map", "InvalidIndex", /no weight_map/, {}],
    ["an empty weight_map", "InvalidIndex", /no weight_map, or an empty one/, { weight_map: {} }],
    ["a list as weight_map", "InvalidIndex", /no weight_map/, { weight_map: ["a"] }],
    ["bad UTF-8", "InvalidIndex", /not valid/, "\xff"],
    ["a duplicate weight", "InvalidIndex", /duplicate key "a"/, `{"weight_map":{"a":"${FIRST}","a":"${SECOND}"}}`],
    ["two weight_maps", "InvalidIndex", /duplicate key "weight_map"/,
      `{"weight_map":{"a":"${FIRST}"},"weight_map":{"a":"${SECOND}"}}`],
    ["deep nesting", "InvalidIndex", /nesting deeper than 4/, `{"metadata":${"[".repeat(100_000)}`],
    ["a shard name that is a number", "InvalidIndex", /unexpected shard name that is no text/,
      { weight_map: { a: 1 } }],
    ["null as a shard name", "InvalidIndex", /unexpected shard name that is no text/, { weight_map: { a: null } }],
    ["a missing shard", "WeightsNotFound", /missing shards model-00003-of-00003\.safetensors\. Fix/,
      { weight_map: { ...map, d: "model-00003-of-00003.safetensors" } }],
    ["a weight in no shard", "IndexMismatch", /places "d" in model-00002.*does not hold it/,
      { weight_map: { ...map, d: SECOND } }],
    ["a weight in another shard", "IndexMismatch", /model-00001.* holds "b", which the index places in model-00002/,
      { weight_map: { ...map, b: SECOND } }],
    ["a weight that the index leaves out", "IndexMismatch", /holds "b", which the index places in no shard/,
      { weight_map: { a: FIRST, c: SECOND } }],
  ];

  test.each(cases)("%s", (_, code, message, index) => {
    writeShards();
    if (index === "\xff") writeFileSync(join(directory, INDEX), Buffer.of(0x7b, 0xff, 0x7d));
    else writeIndex(index);
    const error = failure();
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(directory);
    expect(error.message).not.toContain("\n");
  });

  test.each([
    "../secret.safetensors", "/etc/model-00001-of-00002.safetensors", "model.safetensors", "", "..", "model-1-of-2.bin",
    "sub/model-00001-of-00002.safetensors", `${FIRST}\0`, `${FIRST}\n`, `x${FIRST}`, "model-00001-of-00002.bin",
    "file://model-00001-of-00002.safetensors", "model-\u0661\u0661\u0661\u0661\u0661-of-00002.safetensors",
  ])("the shard name %j", (name) => {
    writeShards();
    writeIndex({ weight_map: { a: name } });
    expect(failure()).toMatchObject({ code: "InvalidIndex", message: expect.stringMatching(/unexpected shard name/) });
  });

  test("the same weight in two shards", () => {
    writeShards();
    writeSafetensors(join(directory, SECOND), [tensor("c", 4), tensor("a", 9)]);
    expect(failure()).toMatchObject({ code: "IndexMismatch", message: expect.stringMatching(/00002.* holds "a"/) });
  });

  test("a damaged shard, naming it", () => {
    writeShards();
    truncateSync(join(directory, SECOND), 80);
    expect(failure().message).toMatch(/model-00002-of-00002\.safetensors: /);
  });

  test("an index above 32 MiB, unread, and one of too many shards", () => {
    writeShards();
    truncateSync(join(directory, INDEX), 2 ** 40);
    expect(failure()).toMatchObject({ code: "InvalidIndex", message: expect.stringMatching(/above 33554432/) });
    const shards = Array.from({ length: 1001 }, (_, i) => `model-${String(i).padStart(5, "0")}-of-99999.safetensors`);
    writeIndex({ weight_map: Object.fromEntries(shards.map((shard, i) => [`weight${i}`, shard])) });
    expect(failure()).toMatchObject({ code: "InvalidIndex", message: expect.stringMatching(/1001 shards are above/) });
  });

  test("a directory without weights", () => {
    expect(failure()).toMatchObject({ code: "WeightsNotFound", message: expect.stringMatching(/Fix: check that/) });
  });
});
