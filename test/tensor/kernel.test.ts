/** Kernel declarations, specialisation, grid folding and the pipeline cache. Shader errors: shader_errors.test.ts. */
import { describe, expect, test, vi } from "vitest";
import { loadShader, locate, reflectShader } from "../../src/shaders/load.ts";
import { GpuError, gpu } from "../../src/tensor/device.ts";
import { exp, neg } from "../../src/tensor/elementwise.ts";
import { embedding, tokenIds } from "../../src/tensor/embedding.ts";
import { foldGrid, kernel, launch } from "../../src/tensor/kernel.ts";
import { slice } from "../../src/tensor/layout.ts";
import { matmul } from "../../src/tensor/matmul.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { softmax } from "../../src/tensor/softmax.ts";
import { empty, read, readIds, reshape, tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

describe("grids", () => {
  test("up to 65,535 workgroups stay in one dimension, more are folded into two", () => {
    expect(foldGrid(1)).toEqual([1, 1]);
    expect(foldGrid(65_535)).toEqual([65_535, 1]);
    expect(foldGrid(65_536)).toEqual([32_768, 2]);
    for (const groups of [65_537, 1_000_003, 65_535 ** 2]) {
      const [x, y] = foldGrid(groups);
      expect(x * y).toBeGreaterThanOrEqual(groups);
      expect(x * y - groups).toBeLessThan(y);
      expect(Math.max(x, y)).toBeLessThanOrEqual(65_535);
    }
  });
});

describe("loading a shader", () => {
  test("sets constants, leaves the others, and refuses unknown ones", () => {
    const text = loadShader("binary", { RANK: 3 });
    expect(text).toContain("const RANK: u32 = 3u;");
    expect(text).toContain("const WORKGROUP: u32 = 64u;");
    expect(() => loadShader("binary", { RANKS: 3 })).toThrow("binary.wgsl declares no constant RANKS");
  });

  test("appends snippets, so that line numbers stay those of the file", () => {
    const text = loadShader("binary");
    const lines = text.split("\n");
    expect(lines[0]).toBe("// include: float");
    const own = lines.findIndex((line) => line.startsWith("struct Params")) + 1;
    expect(locate("binary", text, own)).toEqual({ file: "binary.wgsl", line: own });
    const snippet = loadShader("float").split("\n");
    const position = lines.findIndex((line) => line.startsWith("fn isNan")) + 1;
    const inSnippet = snippet.findIndex((line) => line.startsWith("fn isNan")) + 1;
    expect(locate("binary", text, position)).toEqual({ file: "float.wgsl", line: inSnippet });
  });

  test("puts another snippet in the place of one, and what it enables at the front", () => {
    const [tree, lanes] = [loadShader("softmax"), loadShader("softmax", {}, { workgroup_reduce: "subgroup_reduce" })];
    expect([tree.includes("workgroupBarrier"), lanes.includes("workgroupBarrier")]).toEqual([true, false]);
    expect([tree.startsWith("enable"), lanes.startsWith("enable subgroups; ")]).toEqual([false, true]);
    const line = lanes.split("\n").findIndex((text) => text.startsWith("fn workgroupMax")) + 1;
    expect(locate("softmax", lanes, line).file).toBe("subgroup_reduce.wgsl");
  });

  test("reads buffers and parameters from the text", () => {
    const { buffers, params } = reflectShader(loadShader("unary"));
    expect(buffers.get("x")).toEqual({ binding: 1, access: "read", type: "f32" });
    expect(buffers.get("accumulator")).toEqual({ binding: 3, access: "read_write", type: "f32" });
    const typeOf = (shader: string, name: string, substitutes = {}): string =>
      reflectShader(loadShader(shader, {}, substitutes)).buffers.get(name)!.type;
    expect([typeOf("sample", "tokens"), typeOf("sample", "logProbs")]).toEqual(["u32", "f32"]);
    expect([typeOf("kv_cache", "moves"), typeOf("activation", "gate")]).toEqual(["u32", "f32"]); // vec2u, vec4f
    expect(typeOf("rms_norm", "x")).toBe("f32"); // RowPart, an alias of vec4f or f32
    expect(typeOf("rms_norm", "x", { row_vectors: "row_elements" })).toBe("f32");
    const text = "@group(0) @binding(1) var<storage, read> pairs: array<Pair>;";
    expect(() => reflectShader(text)).toThrow("elements of type Pair. Fix: f32, u32 or vectors");
    const fields = params.map(({ name, type }) => `${name}: ${type}`);
    expect(fields).toEqual(["size: u32", "scalar: f32", "low: f32", "high: f32"]);
  });
});

describe("launching", () => {
  const run = (declared: Parameters<typeof kernel>[0], constants = {}): Promise<void> =>
    scopeAsync(() => {
      const buffers = { x: tensor([1]), y: empty([1]), wrong: empty([1]) };
      launch(kernel(declared), buffers, { size: 1 }, 1, constants);
      return Promise.resolve();
    });

  test("refuses buffers and parameters that the shader does not declare", async () => {
    const unknownBuffer = run({ shader: "unary", entry: "neg", buffers: ["x", "wrong"], params: ["size"] });
    await expect(unknownBuffer).rejects.toThrow(GpuError);
    await expect(unknownBuffer).rejects.toThrow("unary.wgsl declares no wrong");
    const unknownParameter = run({ shader: "unary", entry: "neg", buffers: ["x", "y"], params: ["size", "sizes"] });
    await expect(unknownParameter).rejects.toThrow("unary.wgsl declares no sizes");
  });

  test("refuses ids where the shader reads numbers, and numbers where it reads ids", async () => {
    await scopeAsync(async () => {
      const ids = tensor(Uint32Array.of(1, 2, 3, 4));
      expect(() => softmax(ids)).toThrow(ShapeError);
      expect(() => softmax(ids)).toThrow(
        "softmax.softmax: x [4] is u32, the kernel reads f32. Fix: ids come from a Uint32Array, numbers from a " +
          "Float32Array",
      );
      const table = reshape(ids, [2, 2]);
      expect(() => embedding(table, tokenIds([1]))).toThrow("table [2, 2] is u32, the kernel reads f32");
      expect(() => matmul(table, empty([2, 2]))).toThrow("holds u32 ids");
      const gate = kernel({
        shader: "binary", entry: "choose", buffers: ["condition", "a", "b", "y"], params: ["size"],
      });
      const [a, y] = [tensor([1]), empty([1])];
      expect(() => launch(gate, { condition: a, a, b: a, y }, { size: 1 }, 1)).toThrow(
        "binary.choose: condition [1] is f32, the kernel reads u32",
      );
      expect([...(await readIds(slice(ids, 0, 1, 3)))]).toEqual([2, 3]); // moved as bits
    });
  });

  test("refuses unknown constants and files", async () => {
    const declared = { shader: "unary", entry: "neg", buffers: ["x", "y"], params: ["size"] } as const;
    await expect(run(declared, { TILE: 4 })).rejects.toThrow("unary.wgsl declares no constant TILE");
    await expect(run({ ...declared, shader: "absent" })).rejects.toThrow(/absent\.wgsl/);
  });

  test("makes no new bind group for tensors of another size in the same buffers", async () => {
    await scopeAsync(async () => {
      const created = vi.spyOn(gpu().device, "createBindGroup");
      const step = async (size: number): Promise<void> => {
        const x = tensor(Array.from({ length: size }, (_, i) => i));
        const [y, z] = [scope(() => neg(exp(x))), scope(() => neg(x))]; // frees one between
        expect((await read(z))[size - 1]).toBe(1 - size);
        expect((await read(y)).length).toBe(size);
      };
      await scopeAsync(() => step(100));
      expect(created).toHaveBeenCalled();
      created.mockClear();
      for (const size of [100, 101, 112]) await scopeAsync(() => step(size));
      expect(created).not.toHaveBeenCalled();
      created.mockRestore();
    });
  });
});
