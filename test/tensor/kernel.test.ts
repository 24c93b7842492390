/** Kernel declarations, specialisation, grid folding and the pipeline cache. Shader errors: shader_errors.test.ts. */
import { describe, expect, test, vi } from "vitest";
import { loadShader, locate, reflectShader } from "../../src/shaders/load.ts";
import { GpuError, gpu } from "../../src/tensor/device.ts";
import { exp, neg } from "../../src/tensor/elementwise.ts";
import { foldGrid, kernel, launch } from "../../src/tensor/kernel.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { empty, read, tensor } from "../../src/tensor/tensor.ts";
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
    expect(buffers.get("x")).toEqual({ binding: 1, access: "read" });
    expect(buffers.get("accumulator")).toEqual({ binding: 3, access: "read_write" });
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
