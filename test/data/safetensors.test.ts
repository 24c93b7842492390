// The safetensors writer against the reader, against the Python library's bytes, and the readers of each dtype.
// What the reader refuses is in hostile_safetensors.test.ts and fuzz_safetensors.test.ts.

import fc from "fast-check";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openSafetensors, SafetensorsError, streamSafetensors } from "../../src/data/safetensors.ts";
import { entry, fileOf } from "../support/hostile_safetensors.ts";
import type { TensorToWrite } from "../support/safetensors_fixture.ts";

const directory = mkdtempSync(join(tmpdir(), "safetensors-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** The real writer, for values that are there already. */
function write(path: string, tensors: TensorToWrite[], metadata?: Record<string, string>): Promise<void> {
  return streamSafetensors(path, tensors, ({ data }) => Promise.resolve(data), metadata);
}

describe("files", () => {
  const path = join(directory, "model.safetensors");
  const values = Float32Array.of(1, -0, 0.1, 65504, -1e-8, 3.4028235e38, NaN, Infinity);

  test("what is written is read back; 16-bit floats are rounded once", async () => {
    await write(path, [
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
    expect((8 + Number(readFileSync(path).readBigUInt64LE(0))) % 8).toBe(0);
  });

  test("writes byte for byte what the Python library writes", async () => {
    // safetensors.numpy.save({"b": np.float32([[1, 2]]), "a": np.float16([3])}, {"format": "pt"})
    const header = '{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},' +
      '"a":{"dtype":"F16","shape":[1],"data_offsets":[8,10]}}';
    await write(path, [
      { name: "a", shape: [1], dtype: "F16", data: Float32Array.of(3) },
      { name: "b", shape: [1, 2], dtype: "F32", data: Float32Array.of(1, 2) },
    ], { format: "pt" });
    const file = readFileSync(path);
    expect(file.subarray(8, -10).toString()).toBe(header.padEnd(Math.ceil(header.length / 8) * 8));
    expect(file.subarray(-10).toString("hex")).toBe("0000803f000000400042");
  });

  test("written, read and written again: the same bytes, whatever the values", async () => {
    const again = join(directory, "again.safetensors");
    const anyTensor = fc.record({
      dtype: fc.constantFrom("F32" as const, "F16" as const, "BF16" as const),
      bits: fc.array(fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0x7fa00001, 0x80000000, 0xff800000)), {
        maxLength: 9,
      }),
      isColumn: fc.boolean(),
    });
    const anyNames = fc.uniqueArray(fc.string({ maxLength: 6 }), { minLength: 4, maxLength: 4 });
    await fc.assert(fc.asyncProperty(fc.array(anyTensor, { maxLength: 4 }), anyNames, async (tensors, names) => {
      await write(path, tensors.map(({ dtype, bits, isColumn }, i) => {
        const data = new Float32Array(Uint32Array.from(bits).buffer);
        return { name: names[i]!, shape: isColumn ? [bits.length, 1] : [bits.length], dtype, data };
      }), { format: "pt" });
      const file = openSafetensors(path);
      await write(again, [...file.entries.values()].map(({ name, shape, dtype }) => {
        return { name, shape, dtype: dtype as "F32", data: file.readF32(name) };
      }), Object.fromEntries(file.metadata));
      file.close();
      expect(readFileSync(again).equals(readFileSync(path))).toBe(true);
    }), { numRuns: 300, seed: 1 });
  });

  test("one tensor is asked for at a time; a failure leaves the old file", async () => {
    const data = new Map([["b", Float32Array.of(1, 2)], ["a", Float32Array.of(3)]]);
    const specs = [...data].map(([name, { length }]) => ({ name, shape: [length], dtype: "F32" as const }));
    const streamed = join(directory, "streamed.safetensors");
    const asked: string[] = [];
    const read = ({ name }: { name: string }): Promise<Float32Array> => {
      asked.push(name);
      return Promise.resolve(data.get(name)!);
    };
    await streamSafetensors(streamed, specs, read, { format: "pt" });
    const bytes = readFileSync(streamed);
    expect(asked).toEqual(["a", "b"]);

    await expect(streamSafetensors(streamed, specs, () => Promise.reject(new Error("device lost")))).rejects.toThrow(
      "device lost",
    );
    await expect(streamSafetensors(streamed, specs, () => Promise.resolve(new Float32Array(7)))).rejects.toThrow(
      /shape \[1\] does not hold 7 values/,
    );
    expect(readFileSync(streamed).equals(bytes)).toBe(true);
    expect(readdirSync(directory).filter((name) => name.includes("tmp"))).toEqual([]);
  });

  test("reading holds one tensor at a time", () => {
    // 512 MiB in 32 tensors; the data is a hole in the file, so no disk is used.
    const tensorBytes = 2 ** 24;
    const entries = Array.from({ length: 32 }, (_, i) => {
      return `"${i}":${entry(`[${tensorBytes / 4}]`, `[${i * tensorBytes},${(i + 1) * tensorBytes}]`)}`;
    });
    const head = fileOf(`{${entries.join()}}`);
    const large = join(directory, "large.safetensors");
    writeFileSync(large, head);
    truncateSync(large, head.length + 32 * tensorBytes);
    const peak = (): number => process.resourceUsage().maxRSS * 1024;
    const before = peak();
    const file = openSafetensors(large);
    expect(peak() - before).toBeLessThan(tensorBytes);
    for (const name of file.entries.keys()) expect(file.readF32(name).length).toBe(tensorBytes / 4);
    file.close();
    expect(peak() - before).toBeLessThan(12 * tensorBytes); // garbage is collected with some delay
  });

  test.each(["I64", "U8", "BOOL", "F64"])("%s is checked, but not read as float32", (dtype) => {
    const bytes = dtype.endsWith("64") ? 16 : 2;
    writeFileSync(path, fileOf(`{"ids":${entry("[2]", `[0,${bytes}]`, dtype)}}`, bytes));
    const file = openSafetensors(path);
    expect(() => file.readF32("ids")).toThrow(expect.objectContaining({ code: "UnsupportedDtype" }));
    file.close();
  });

  test("errors name the file, and the tensor", async () => {
    await write(path, [{ name: "a", shape: [1], dtype: "F32", data: Float32Array.of(1) }]);
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
  ] as [string, TensorToWrite[]][])("the writer refuses: %s; no file is left", async (_, tensors) => {
    const target = join(directory, "refused.safetensors");
    await expect(write(target, tensors)).rejects.toThrow(SafetensorsError);
    expect(existsSync(target)).toBe(false);
    expect(readdirSync(directory).filter((name) => name.includes("tmp"))).toEqual([]);
  });
});
