/** Matrix products: every transpose, edge and broadcast, in both kernels, against the float64 reference. */
import { availableParallelism } from "node:os";
import { describe, expect, it } from "vitest";
import { backward, gradientsOf } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { parameter, type Variable } from "../../src/autograd/variable.ts";
import { gpu, openGpu } from "../../src/tensor/device.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { allRows, matmul, matmulRows } from "../../src/tensor/matmul.ts";
import type { Addends, MatmulOptions, RowRange } from "../../src/tensor/matmul.ts";
import {
  chooseSlices, chooseTilesPerGroup, chooseVariant, runnableVariants,
} from "../../src/tensor/matmul_variants.ts";
import { observe } from "../../src/tensor/recorder.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { dispose, empty, emptyNeighbours, keep, read, tensor, write } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { directionalDerivative, dot, expectClose, random } from "../support/gradcheck.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { add, type Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";

const layouts: MatmulOptions[] = [
  {},
  { transposeB: true },
  { transposeA: true },
  { transposeA: true, transposeB: true },
];
await openGpu(); // it decides which kernels there are to test
const variants = runnableVariants();
const subgroupVariants = variants.filter((name) => name !== "tile64x64");

/** NN, NT, TN or TT. */
function nameOf({ transposeA, transposeB }: MatmulOptions): string {
  return (transposeA ? "T" : "N") + (transposeB ? "T" : "N");
}

/** Random operands of a product m x k x n in the given layout. */
function operands(m: number, k: number, n: number, layout: MatmulOptions, seed = 1): [Array64, Array64] {
  const { uniform } = random(seed);
  return [uniform(layout.transposeA ? [k, m] : [m, k]), uniform(layout.transposeB ? [n, k] : [k, n])];
}

/** float32 sums of k products of numbers below 1. */
function tolerance(k: number): { rtol: number; atol: number } {
  return { rtol: 1e-6, atol: 3e-7 * Math.sqrt(k) + 1e-7 };
}

describe.each(layouts.map((layout) => [nameOf(layout), layout] as const))("matmul %s", (_, layout) => {
  it.each([[1, 1, 1], [3, 5, 7], [13, 1, 5], [1, 7, 65], [7, 3, 1], [9, 17, 35], [8, 8, 32], [33, 4, 9]])(
    "%i x %i x %i: product and every gradient",
    async (m, k, n) => {
      const [a, b] = operands(m, k, n, layout);
      await checkOp(`matmul ${nameOf(layout)}`, {
        inputs: [a, b],
        gpu: (x, y) => ops.matmul(x, y, layout),
        reference: (x, y) => nn.matmul(x, y, layout),
        forward: tolerance(k),
      });
    },
  );

  it.each(variants)("%s kernel: edges of the tiles", async (variant) => {
    const sizes = [
      [1, 13, 1], [5, 63, 65], [8, 7, 64], [9, 3, 257], [63, 65, 63], [65, 16, 257], [257, 17, 31], [32, 1, 32],
      [33, 2, 34], [36, 20, 44], [68, 8, 36],
    ] as const;
    for (const [m, k, n] of sizes) {
      const [a, b] = operands(m, k, n, layout, m);
      await scopeAsync(async () => {
        const c = await read(matmul(toGpu(a), toGpu(b), { ...layout, variant }));
        expectClose(`${variant} ${nameOf(layout)} ${m} x ${k} x ${n}`, c, nn.matmul(a, b, layout).data, tolerance(k));
      });
    }
  });

  it.each(variants)("%s kernel: broadcasts batches on both sides", async (variant) => {
    const { uniform } = random(3);
    const lastTwo = (rows: number, cols: number, swap = false): number[] => (swap ? [cols, rows] : [rows, cols]);
    const a = uniform([2, 1, 3, 1, ...lastTwo(5, 7, layout.transposeA)]);
    const b = uniform([3, 5, ...lastTwo(7, 9, layout.transposeB)]);
    await scopeAsync(async () => {
      const c = matmul(toGpu(a), toGpu(b), { ...layout, variant });
      expect(c.shape).toEqual([2, 1, 3, 5, 5, 9]);
      expectClose(`${variant} broadcast`, await read(c), nn.matmul(a, b, layout).data, tolerance(7));
    });
  });

  it.each(variants)("%s kernel: adds a bias and a residual, to a batch too", async (variant) => {
    const { uniform } = random(11);
    const [m, k, n] = [35, 6, 67];
    const [a, b] = operands(m, k, n, layout);
    const [bias, residual] = [uniform([n]), uniform([m, n])];
    const batch = uniform(layout.transposeA ? [3, k, m] : [3, m, k]);
    const residuals = uniform([3, m, n]);
    const product = nn.matmul(a, b, layout);
    await scopeAsync(async () => {
      const run = async (x: Array64, addends: Addends<Array64>): Promise<ArrayLike<number>> =>
        read(matmul(toGpu(x), toGpu(b), {
          ...layout, variant, bias: addends.bias && toGpu(addends.bias),
          residual: addends.residual && toGpu(addends.residual),
        }));
      const check = (what: string, got: ArrayLike<number>, expected: Array64): void =>
        expectClose(`${variant} ${what}`, got, expected.data, tolerance(k));
      check("bias", await run(a, { bias }), add(product, bias));
      check("residual", await run(a, { residual }), add(product, residual));
      check("bias and residual", await run(a, { bias, residual }), add(add(product, bias), residual));
      check(
        "batch", await run(batch, { bias, residual: residuals }),
        add(add(nn.matmul(batch, b, layout), bias), residuals),
      );
    });
  });

  it.each(variants)("%s kernel: slices of the inner axis add up", async (variant) => {
    for (const [m, k, n, slices] of [[5, 6, 7, 2], [9, 63, 65, 3], [33, 65, 34, 5], [1, 257, 3, 257]] as const) {
      const [a, b] = operands(m, k, n, layout, m);
      await scopeAsync(async () => {
        const product = (): Promise<ArrayLike<number>> =>
          read(matmul(toGpu(a), toGpu(b), { ...layout, variant, slices }));
        const c = await product();
        expectClose(`${variant}, ${slices} slices`, c, nn.matmul(a, b, layout).data, tolerance(k));
        expect(await product()).toEqual(c);
      });
    }
  });

  it.each(subgroupVariants)("%s kernel: stages its rows for several tiles", async (variant) => {
    // Sizes that vectors of four fit and do not fit, of one chunk of k, of two and of three.
    for (const [m, k, n] of [[36, 256, 100], [33, 47, 131], [64, 260, 132], [37, 259, 65], [9, 521, 40]] as const) {
      const [a, b] = operands(m, k, n, layout);
      const { uniform } = random(5);
      const [bias, residual, before] = [uniform([n]), uniform([m, n]), uniform([m, n])];
      const product = nn.matmul(a, b, layout);
      await scopeAsync(async () => {
        const [x, y] = [toGpu(a), toGpu(b)];
        const addends = { bias: toGpu(bias), residual: toGpu(residual) };
        const run = (tilesPerGroup: number, into?: Array64): Promise<ArrayLike<number>> =>
          read(matmul(x, y, {
            ...layout, variant, tilesPerGroup, ...(into ? { into: { tensor: toGpu(into), adds: true } } : addends),
          }));
        for (const tilesPerGroup of [2, 3, 8]) {
          const what = `${tilesPerGroup} tiles, ${m} x ${k} x ${n}`;
          const [staged, accumulated] = [await run(tilesPerGroup), await run(tilesPerGroup, before)];
          // Of thousands of long sums the worst is off by more than the sums of the other tests.
          expectClose(what, staged, add(add(product, bias), residual).data, tolerance(4 * k));
          expectClose(`${what}, accumulated`, accumulated, add(before, product).data, tolerance(4 * k));
          // Whether rows are staged depends on the number of CPUs: it must not show in the bits.
          expect(staged).toEqual(await run(1));
          expect(accumulated).toEqual(await run(1, before));
        }
      });
    }
  });

  it("adds into an existing tensor", async () => {
    for (const variant of variants) {
      const [a, b] = operands(35, 6, 67, layout);
      const before = random(9).uniform([35, 67]);
      await scopeAsync(async () => {
        const c = toGpu(before);
        expect(matmul(toGpu(a), toGpu(b), { ...layout, into: { tensor: c, adds: true }, variant })).toBe(c);
        expectClose(`accumulate ${variant}`, await read(c), add(before, nn.matmul(a, b, layout)).data, tolerance(6));
      });
    }
  });

  it("multiplies row ranges and leaves the other rows alone", async () => {
    const { uniform } = random(4);
    const [m, k, n] = [6, 5, 11];
    const a = uniform(layout.transposeA ? [k, m] : [m, k]);
    const b = uniform(layout.transposeB ? [n, k] : [k, n]);
    const padded = (x: Array64): Array64 => {
      const cols = x.shape[1]!;
      const outside = (rows: number): number[] => new Array<number>(rows * cols).fill(NaN);
      return { shape: [x.shape[0]! + 5, cols], data: Float64Array.from([...outside(3), ...x.data, ...outside(2)]) };
    };
    await scopeAsync(async () => {
      const c = toGpu({ shape: [m + 5, n], data: new Float64Array((m + 5) * n).fill(7) });
      const range = (x: Array64): RowRange => ({ matrix: toGpu(padded(x)), start: 3, count: x.shape[0]! });
      matmulRows(range(a), range(b), { matrix: c, start: 2, count: m }, layout);
      matmulRows(range(a), range(b), { matrix: c, start: 2, count: m }, { ...layout, accumulate: true });
      const result = await read(c);
      const expected = nn.matmul(a, b, layout).data.map((value) => 2 * value);
      expectClose("row range", result.subarray(2 * n, (2 + m) * n), expected, tolerance(2 * k));
      expect([...result.subarray(0, 2 * n), ...result.subarray((2 + m) * n)].every((value) => value === 7)).toBe(true);
    });
  });
});

describe("matmul", () => {
  it("differentiates through a bias and a residual", async () => {
    const { uniform } = random(12);
    await checkOp("linear layer with a residual", {
      inputs: [uniform([9, 5]), uniform([7, 5]), uniform([7]), uniform([9, 7])],
      gpu: (x, w, bias, residual) => ops.matmul(x!, w!, { transposeB: true, bias, residual }),
      reference: (x, w, bias, residual) => add(add(nn.matmul(x!, w!, { transposeB: true }), bias!), residual!),
    });
    await checkOp("on a batch, with the input as its own residual", {
      inputs: [uniform([2, 3, 5]), uniform([5, 5]), uniform([5])],
      gpu: (x, w, bias) => ops.matmul(x!, w!, { bias, residual: x! }),
      reference: (x, w, bias) => add(add(nn.matmul(x!, w!), bias!), x!),
    });
  });

  it("differentiates through broadcast batches", async () => {
    const { uniform } = random(5);
    await checkOp("broadcast b", {
      inputs: [uniform([2, 3, 4, 5]), uniform([3, 5, 2])],
      gpu: (a, b) => ops.matmul(a, b),
      reference: (a, b) => nn.matmul(a, b),
    });
    await checkOp("broadcast a", {
      inputs: [uniform([1, 4, 3]), uniform([5, 2, 3])],
      gpu: (a, b) => ops.matmul(a, b, { transposeA: false, transposeB: true }),
      reference: (a, b) => nn.matmul(a, b, { transposeB: true }),
    });
    await checkOp("linear layer on a batch", {
      inputs: [uniform([3, 5, 7]), uniform([4, 7])],
      gpu: (a, b) => ops.matmul(a, b, { transposeB: true }),
      reference: (a, b) => nn.matmul(a, b, { transposeB: true }),
    });
  });

  it("folds more than 65,535 matrices, and takes as many rows", async () => {
    const { uniform } = random(6);
    await checkOp("70,000 matrices", {
      inputs: [uniform([70_000, 2, 3]), uniform([70_000, 3, 1])],
      gpu: (a, b) => ops.matmul(a, b),
      reference: (a, b) => nn.matmul(a, b),
      independentRows: [0, 1],
    });
    await checkOp("70,000 rows", {
      inputs: [uniform([70_000, 3]), uniform([2, 3])],
      gpu: (a, b) => ops.matmul(a, b, { transposeB: true }),
      reference: (a, b) => nn.matmul(a, b, { transposeB: true }),
      gradient: { rtol: 1e-4, atol: 1e-3 }, // db sums 70,000 terms
      independentRows: [0],
    });
  });

  it.each(variants)("%s kernel folds more than 65,535 workgroups, and takes 70,000 rows", async (variant) => {
    const { uniform } = random(8);
    const matrices = [uniform([70_000, 2, 3]), uniform([70_000, 3, 1])];
    for (const [a, b] of [matrices, [uniform([70_000, 3]), uniform([3, 2])]]) {
      await scopeAsync(async () => {
        const c = await read(matmul(toGpu(a!), toGpu(b!), { variant }));
        expectClose(`${variant}, 70,000`, c, nn.matmul(a!, b!).data, tolerance(3));
      });
    }
  });

  it("has the right gradient at 63 x 257 x 65", async () => {
    const { uniform } = random(7);
    const inputs = [uniform([63, 257]), uniform([257, 65])];
    const cotangent = uniform([63, 65]);
    const [a, b] = inputs.map((x) => parameter(keep(toGpu(x))));
    await scopeAsync(async () => backward(ops.matmul(a!, b!), toGpu(cotangent)));
    for (const [which, { grad, value }] of [a!, b!].entries()) {
      const direction = uniform(inputs[which]!.shape);
      const numerical = directionalDerivative(([x, y]) => nn.matmul(x!, y!), inputs, cotangent, which, direction);
      expect(dot(await read(grad!), direction.data)).toBeCloseTo(numerical, 3);
      dispose(grad!);
      dispose(value);
    }
  });

  it("gives the same bits twice and frees its memory", async () => {
    const before = memoryStats().liveBytes;
    await scopeAsync(async () => {
      const [a, b] = operands(65, 257, 63, {}).map(toGpu);
      for (const variant of variants) {
        expect(await read(matmul(a!, b!, { variant }))).toEqual(await read(matmul(a!, b!, { variant })));
      }
      const bySize = await Promise.all(subgroupVariants.map((variant) => read(matmul(a!, b!, { variant }))));
      expect(bySize[0]).toEqual(bySize[1]);
    });
    expect(memoryStats().liveBytes).toBe(before);
  });

  it("hands on NaN and infinity", async () => {
    for (const variant of variants) {
      await scopeAsync(async () => {
        const a = tensor([1, NaN, 2, Infinity, 3, 4], [3, 2]);
        const c = await read(matmul(a, tensor([1, 0, 0, 1], [2, 2]), { variant }));
        expect([...c]).toEqual([NaN, NaN, NaN, Infinity, 3, 4]);
        // An odd inner size leaves nothing behind its end that could turn infinity into NaN.
        const three = await read(matmul(tensor([1, 2, 1, 1, 2, Infinity], [2, 3]), tensor([1, 1, Infinity], [3, 1])));
        expect([...three]).toEqual([Infinity, Infinity]);
      });
    }
  });

  it("reads nothing beyond its matrix", async () => {
    for (const variant of variants) {
      await scopeAsync(async () => {
        const ones = Array.from({ length: 15 }, () => 1);
        const nans = Array.from({ length: 15 }, () => NaN);
        const clean = toGpu({ shape: [3, 5], data: Float64Array.from(ones) });
        const beforeNan = toGpu({ shape: [2, 3, 5], data: Float64Array.from([...ones, ...nans]) });
        for (const [a, b] of [[beforeNan, clean], [clean, beforeNan]] as const) {
          const c = await read(matmul(a, b, { transposeB: true, variant }));
          expect([...c]).toEqual([...Array.from({ length: 9 }, () => 5), ...Array.from({ length: 9 }, () => NaN)]);
        }
      });
    }
  });

  it("each of several matrices: neighbours of equal shape by one launch, with the gradients of single products", async () => {
    // Three of a kind and a fourth of another; then results, and matrices, that do not fill multiples of 256 bytes.
    for (const [rows, inner, cols, launches] of [[16, 8, 16, 2], [16, 4, 16, 2], [3, 8, 16, 4], [16, 6, 16, 4]] as const) {
      const { uniform } = random(7);
      const shapes = [[cols, inner], [cols, inner], [cols, inner], [2 * cols, inner]];
      const [x, ...weights] = [[rows, inner], ...shapes].map((shape) => uniform(shape)) as [Array64, ...Array64[]];
      await scopeAsync(async () => {
        const places = emptyNeighbours(shapes);
        places.forEach((place, i) => write(place, Float32Array.from(weights[i]!.data)));
        const a = parameter(toGpu(x));
        const matrices = places.map(parameter);
        let count = 0;
        const stop = observe({ dispatch: () => count++ });
        const products = ops.matmulEach(a, matrices, { transposeB: true });
        stop();
        expect(count).toBe(launches);
        const single = weights.map((weight) => nn.matmul(x, weight, { transposeB: true }));
        for (const [i, { value }] of products.entries()) {
          expect(value.shape).toEqual(single[i]!.shape);
          expectClose(`product ${i} of ${rows} rows`, await read(value), single[i]!.data, tolerance(inner));
        }
        const total = (parts: readonly Variable[]): Variable =>
          parts.map((y) => ops.sum(ops.mul(y, y))).reduce((sum, part) => ops.add(sum, part));
        const alone = [a, ...matrices].map(({ value }) => parameter(value));
        const [ours, theirs] = [
          gradientsOf(total(products), [a, ...matrices]),
          gradientsOf(total(alone.slice(1).map((b) => ops.matmul(alone[0]!, b, { transposeB: true }))), alone),
        ];
        for (const [i, gradient] of ours.entries()) expect(await read(gradient!)).toEqual(await read(theirs[i]!));
      });
    }
  });

  it("takes the kernel that was measured to be the fastest here", () => {
    const { software, subgroupSize } = gpu();
    const lavapipe = software && subgroupSize === 8;
    const chosen = (rows: readonly number[]): Set<string> => new Set(rows.map(chooseVariant));
    expect(chosen([1, 8, 16])).toEqual(new Set([lavapipe ? "subgroup8x32" : "tile64x64"]));
    expect(chosen([17, 24, 33, 48])).toEqual(new Set([lavapipe ? "subgroup24x32" : "tile64x64"]));
    expect(chosen([25, 32, 49, 64, 512])).toEqual(new Set([lavapipe ? "subgroup32x32" : "tile64x64"]));
    expect(runnableVariants()).toContain(chooseVariant(1));
  });

  it("stages rows if enough workgroups are left for all threads, in shares of equal size", () => {
    const groups = 2 * availableParallelism();
    expect(chooseTilesPerGroup("tile64x64", 100, 100)).toBe(1);
    expect(chooseTilesPerGroup("subgroup32x32", groups, 1)).toBe(1);
    expect(chooseTilesPerGroup("subgroup32x32", 1, groups)).toBe(1);
    expect(chooseTilesPerGroup("subgroup32x32", 1, 3 * groups)).toBe(3);
    expect(chooseTilesPerGroup("subgroup32x32", groups, 16)).toBe(16);
    expect(chooseTilesPerGroup("subgroup32x32", groups / 2, 7)).toBe(3);
  });

  it("cuts the inner axis of small results on GPUs, into equal slices that are long enough", async () => {
    const { software } = gpu();
    try {
      Object.assign(gpu(), { software: true });
      expect(chooseSlices("tile64x64", 64, 64, 2 ** 20)).toBe(1);
      Object.assign(gpu(), { software: false });
      expect(chooseSlices("tile64x64", 64, 64, 512)).toBe(2);
      expect(chooseSlices("tile64x64", 64, 64, 511)).toBe(1);
      expect(chooseSlices("tile64x64", 64, 64, 513)).toBe(1);
      expect(chooseSlices("tile64x64", 192, 192, 1024)).toBe(4);
      expect(chooseSlices("tile64x64", 64, 64, 2 ** 20)).toBe(64);
      expect(chooseSlices("tile64x64", 64, 64 * 64, 2 ** 20)).toBe(1);
      const [a, b] = operands(33, 512, 65, { transposeA: true });
      const variant = "tile64x64";
      await scopeAsync(async () => {
        const c = await read(matmul(toGpu(a), toGpu(b), { transposeA: true, variant }));
        expect(c).toEqual(await read(matmul(toGpu(a), toGpu(b), { transposeA: true, variant, slices: 2 })));
        expect(c).not.toEqual(await read(matmul(toGpu(a), toGpu(b), { transposeA: true, variant, slices: 1 })));
        expectClose("2 slices", c, nn.matmul(a, b, { transposeA: true }).data, tolerance(512));
      });
    } finally {
      Object.assign(gpu(), { software });
    }
  });

  it("treats an empty inner axis as a sum of nothing", async () => {
    await scopeAsync(async () => {
      const [a, b] = [parameter(empty([2, 3, 0])), parameter(empty([0, 5]))];
      const y = ops.matmul(a, b);
      expect(y.value.shape).toEqual([2, 3, 5]);
      expect(await read(y.value)).toEqual(new Float32Array(30));
      const gradients = gradientsOf(y, [a, b], toGpu(random(1).uniform([2, 3, 5])));
      expect(gradients.map((gradient) => gradient!.shape)).toEqual([[2, 3, 0], [0, 5]]);
      expect([...(await read(matmul(empty([2, 0]), empty([0, 3]))))]).toEqual([0, 0, 0, 0, 0, 0]);
      expect((await read(matmul(empty([0, 2]), tensor([1, 2], [2, 1])))).length).toBe(0);
    });
  });

  it("explains shapes that do not fit", () => {
    const f = (shape: number[]): ReturnType<typeof toGpu> => empty(shape);
    expect(() => matmul(f([2, 3]), f([4, 5]))).toThrow("matmul [2, 3] x [4, 5]: inner sizes 3 and 4 differ");
    expect(() => matmul(f([2, 3]), f([3, 5]), { transposeB: true })).toThrow("[3, 5] transposed: inner sizes 3 and 5");
    expect(() => matmul(f([3]), f([3, 5]))).toThrow("matmul [3] x [3, 5]: both operands need at least two axes");
    expect(() => matmul(f([2, 2, 3]), f([4, 3, 5]))).toThrow("shapes [2] and [4] do not broadcast");
    expect(() => matmul(f([2, 3]), f([3, 5]), { into: { tensor: f([2, 4]), adds: false } })).toThrow("does not fit into [2, 4]");
    expect(() => matmul(f([2, 3]), f([3, 5]), { bias: f([2]) })).toThrow("= [2, 5] takes no bias [2]");
    expect(() => matmul(f([2, 3]), f([3, 5]), { residual: f([5]) })).toThrow("= [2, 5] takes no residual [5]");
    expect(() => matmul(f([2, 3]), f([3, 5]), { residual: idsToGpu([0, 1], [2, 1]) })).toThrow(ShapeError);
    expect(() => matmul(f([2, 3]), f([3, 5]), { variant: "tile64x64", tilesPerGroup: 2 })).toThrow(
      "matmul [2, 3] x [3, 5]: a workgroup of tile64x64 has one tile, not 2",
    );
    expect(() => matmul(f([2, 3]), f([3, 5]), { slices: 2 })).toThrow("cannot be cut into 2 slices");
    expect(() => matmul(idsToGpu([1], [1, 1]), f([1, 1]))).toThrow("holds u32 ids");
    expect(() => matmulRows(allRows(idsToGpu([1], [1, 1])), allRows(f([1, 1])), allRows(f([1, 1]))))
      .toThrow("matmulRows: [1, 1] holds u32 ids");
    expect(() => matmulRows({ matrix: f([4, 3]), start: 2, count: 3 }, allRows(f([3, 5])), allRows(f([3, 5]))))
      .toThrow(ShapeError);
    expect(() => matmulRows(allRows(f([4, 3])), allRows(f([3, 5])), allRows(f([4, 6]))))
      .toThrow("does not fit into [4, 6]");
  });
});
