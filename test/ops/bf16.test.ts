/**
 * Frozen weights in bf16: products, lookups and log-probabilities equal those of the same values held in float32, bit
 * for bit, and the float64 reference of the rounded weights. What cannot take bf16 says so.
 */
import { describe, expect, test } from "vitest";
import { openGpu } from "../../src/tensor/device.ts";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { bf16ToF32, f32ToBf16 } from "../../src/data/half_floats.ts";
import { adamwUpdate } from "../../src/tensor/adamw.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { slice } from "../../src/tensor/layout.ts";
import { matmul } from "../../src/tensor/matmul.ts";
import { runnableVariants } from "../../src/tensor/matmul_variants.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { rowRange, rowRanges } from "../../src/tensor/ranges.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { dispose, empty, keep, read, readAll, tensor, write, type Tensor } from "../../src/tensor/tensor.ts";
import { tokenLogProb, tokenLogProbBackward } from "../../src/tensor/token_log_prob.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import type { Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { withBindingLimit } from "../tensor/binding_limit.ts";

/** Random weights rounded to bf16: their bits, and their values for the reference. */
function weights(shape: number[], seed = 1): { bits: Uint16Array; rounded: Array64 } {
  const bits = f32ToBf16(Float32Array.from(random(seed).uniform(shape).data));
  return { bits, rounded: { shape, data: Float64Array.from(bf16ToF32(bits)) } };
}

/** Runs `compute` with the weights in bf16 and in float32: the same bits. Returns them. */
async function sameAsFloat32(
  { bits, rounded }: ReturnType<typeof weights>,
  compute: (w: Tensor) => readonly Tensor[],
): Promise<ArrayLike<number>[]> {
  return scopeAsync(async () => {
    const packed = await readAll(compute(tensor(bits, rounded.shape)));
    const wide = await readAll(compute(toGpu(rounded)));
    packed.forEach((values, i) => expectClose(`result ${i} of bf16`, values, wide[i]!, { rtol: 0, atol: 0 }));
    return packed;
  });
}

const sumsOf = (k: number): { rtol: number; atol: number } => ({ rtol: 1e-6, atol: 3e-7 * Math.sqrt(k) + 1e-7 });

describe("storage", () => {
  test("takes two bytes a value, odd numbers too, and reads back as float32", () =>
    scopeAsync(async () => {
      const { bits, rounded } = weights([3, 5]);
      const before = memoryStats().liveBytes;
      const x = tensor(bits, [3, 5]);
      expect(x.dtype).toBe("bf16");
      expect(x.storage.bytes).toBe(32);
      expect(memoryStats().liveBytes - before).toBe(256);
      expect(await read(x)).toEqual(Float32Array.from(rounded.data));
      write(x, f32ToBf16(new Float32Array(15).fill(-2)));
      expect((await read(x))[14]).toBe(-2);
      expect(() => write(x, new Float32Array(15))).toThrow("write: f32 data into a bf16 tensor");
    }));

  test("infinities, NaN, zeros of both signs and denormals pass through a lookup", () =>
    scopeAsync(async () => {
      const bits = Uint16Array.of(0x7f80, 0xff80, 0x7fc0, 0x0000, 0x8000, 0x0001, 0x3f80, 0x4049);
      const y = ops.embedding(constant(tensor(bits, [2, 4])), tokenIds([1, 0])).value;
      const expected = bf16ToF32(bits);
      expectClose("lookup", await read(y), [...expected.subarray(4), ...expected.subarray(0, 4)], { rtol: 0, atol: 0 });
    }));

  test("is cut into ranges that begin where a binding may", () =>
    withBindingLimit(20_000, () => scopeAsync(async () => {
      const { bits, rounded } = weights([600, 35]); // 70 bytes a row: every 128th begins at a multiple of 256
      const ranges = rowRanges({ x: tensor(bits, [600, 35]) });
      expect(ranges.map(({ count }) => count)).toEqual([256, 256, 88]);
      expect((await read(ranges[2]!.views.x))[0]).toBe(rounded.data[512 * 35]);
      expect(() => rowRange(ranges[0]!.views.x, 64, 1)).toThrow("begin at byte 4480");
    })));
});

await openGpu(); // it decides which kernels there are to test
describe.each(runnableVariants())("matmul by bf16, %s kernel", (variant) => {
  test.each([[1, 3, 1], [5, 63, 65], [9, 7, 257], [33, 64, 31]])("%i x %i x %i", async (m, k, n) => {
    const x = random(m).uniform([m, k]);
    for (const transposeB of [true, false]) {
      const w = weights(transposeB ? [n, k] : [k, n]);
      const [y] = await sameAsFloat32(w, (b) => [matmul(toGpu(x), b, { transposeB, variant })]);
      expectClose(`bf16 ${variant}`, y!, nn.matmul(x, w.rounded, { transposeB }).data, sumsOf(k));
    }
  });
});

test("a linear layer on a batch, and the gradient of its input", async () => {
  const w = weights([11, 7]);
  const [x, dy] = [random(2).uniform([2, 3, 7]), random(3).uniform([2, 3, 11])];
  const [y, dx] = await sameAsFloat32(w, (b) => {
    const input = parameter(keep(toGpu(x)));
    const output = ops.matmul(input, constant(b), { transposeB: true });
    backward(output, toGpu(dy));
    const dx = el.copy(input.grad!);
    [input.value, input.grad!].forEach(dispose);
    return [output.value, dx];
  });
  expectClose("y", y!, nn.matmul(x, w.rounded, { transposeB: true }).data, sumsOf(7));
  expectClose("dx", dx!, nn.matmul(dy, w.rounded).data, sumsOf(11));
});

describe("a tied table [300, 70]", () => {
  const w = weights([300, 70]);
  const hidden = random(4).uniform([13, 70]);
  const targets = random(5).ids(13, 300);
  const use = (table: Tensor): Tensor[] => {
    const saved = { hidden: toGpu(hidden), head: table, targets: idsToGpu(targets) };
    const { logProbs, entropy, logSumExp } = tokenLogProb(saved.hidden, table, saved.targets);
    const gradients = { dLogProbs: toGpu(random(6).uniform([13])) };
    const wanted = { hidden: true, head: false };
    const { dHidden } = tokenLogProbBackward({ ...saved, logSumExp, entropy }, gradients, {}, wanted);
    return [ops.embedding(constant(table), tokenIds(targets)).value, logProbs, entropy, dHidden!];
  };

  test("lookup, log-probabilities, entropies, gradient of the hidden states", async () => {
    const [rows, logProbs, entropy, dHidden] = await sameAsFloat32(w, use);
    expectClose("rows", rows!, nn.embedding(w.rounded, targets).data, { rtol: 0, atol: 0 });
    const exact = nn.tokenLogProbability(hidden, w.rounded, targets);
    expectClose("logProbs", logProbs!, exact.logProbability.data, { rtol: 1e-5, atol: 2e-6 });
    expectClose("entropy", entropy!, exact.entropy.data, { rtol: 1e-5, atol: 2e-6 });
    expect(dHidden!.length).toBe(13 * 70);
  });

  test("the same in ranges", async () => {
    const run = (): Promise<ArrayLike<number>[]> => scopeAsync(() => readAll(use(tensor(w.bits, [300, 70]))));
    const whole = await run();
    const cut = await withBindingLimit(20_000, run); // the table has 42,000 bytes
    for (const [i, values] of cut.entries()) {
      expectClose(`result ${i}`, values, whole[i]!, i === 3 ? { rtol: 1e-5, atol: 2e-6 } : { rtol: 0, atol: 0 });
    }
  });
});

test("everything else refuses bf16, by name and with a fix", () =>
  scopeAsync(async () => {
    const w = tensor(weights([4, 4]).bits, [4, 4]);
    const x = empty([4, 4]);
    expect(() => el.exp(w)).toThrow("exp: expected a f32 tensor, got bf16 [4, 4]");
    expect(() => matmul(w, x)).toThrow(ShapeError);
    expect(() => matmul(w, x)).toThrow("a [4, 4] is bf16. Such weights are frozen: they serve as embedding tables");
    expect(() => slice(w, 0, 1, 2)).toThrow("layout.stridedCopy: x [4, 4] is bf16");
    const hyper = { learningRate: 1, step: 1, beta1: 0.9, beta2: 0.9, eps: 1, weightDecay: 0, maximize: false };
    const moments = { firstMoment: empty([4, 4]), secondMoment: empty([4, 4]) };
    expect(() => adamwUpdate({ grad: x, gradScale: empty([1]), parameter: w, ...moments }, hyper))
      .toThrow("adamw.update: parameter [4, 4] is bf16");
    const saved = { hidden: x, head: w, targets: idsToGpu([0, 1, 2, 3]), logSumExp: empty([4]), entropy: empty([4]) };
    expect(() => tokenLogProbBackward(saved, { dLogProbs: empty([4]) }, {}, { hidden: true, head: true }))
      .toThrow("tokenLogProb: the head [4, 4] is bf16, thus frozen; it has no gradient");
    await Promise.resolve();
  }));
