/**
 * Everything a large embedding table meets, with the table cut into ranges: on small tables under a lowered limit,
 * against float64 and against the uncut result; and once on a real one, GPT-2's, above the 128 MiB that some adapters
 * bind.
 */
import { describe, expect, test } from "vitest";
import { adamw } from "../../src/autograd/adamw.ts";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { gpu, openGpu } from "../../src/tensor/device.ts";
import { embedding, embeddingBackward, tokenIds } from "../../src/tensor/embedding.ts";
import { allRows, matmul, matmulEach, matmulRows } from "../../src/tensor/matmul.ts";
import { runnableVariants } from "../../src/tensor/matmul_variants.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { rowRange, rowRanges, rowsPerRange } from "../../src/tensor/ranges.ts";
import {
  dispose, empty, emptyNeighbours, keep, read, readAll, reshape, tensor, write, type Tensor,
} from "../../src/tensor/tensor.ts";
import { tokenLogProb, tokenLogProbBackward } from "../../src/tensor/token_log_prob.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { add } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { withBindingLimit } from "../tensor/binding_limit.ts";

const [VOCABULARY, CHANNELS, TOKENS] = [300, 70, 13];
/** Cuts the table [300, 70] into ranges of 64, 64, 64, 64 and 44 rows, and into 5 chunks of AdamW and a rest. */
const LIMIT = 20_000;

const { uniform, ids } = random(1);
const tableValues = uniform([VOCABULARY, CHANNELS]);
const hiddenValues = uniform([TOKENS, CHANNELS]);
const dLogitsValues = uniform([TOKENS, VOCABULARY]);
/** Repeats, and the first and last row of the table and of its ranges. */
const IDS = Uint32Array.of(0, 63, 64, 127, 255, 256, 299, 5, 64, 5, 0, 299, 130);
const TARGETS = ids(TOKENS, VOCABULARY);

/** float32 sums of k products of numbers below 1. */
const sumsOf = (k: number): { rtol: number; atol: number } => ({ rtol: 1e-6, atol: 3e-7 * Math.sqrt(k) + 1e-7 });

/** What `compute` gives with the table bound whole and with the table in ranges. */
async function wholeAndCut(
  compute: () => readonly Tensor[],
  limit = LIMIT,
): Promise<{ whole: ArrayLike<number>[]; cut: ArrayLike<number>[] }> {
  const run = (): Promise<ArrayLike<number>[]> => scopeAsync(() => readAll(compute()));
  return { whole: await run(), cut: await withBindingLimit(limit, run) };
}

/** Fails with the first element that differs. */
function expectSameBits(cut: readonly ArrayLike<number>[], whole: readonly ArrayLike<number>[]): void {
  cut.forEach((values, i) => expectClose(`result ${i} in ranges`, values, whole[i]!, { rtol: 0, atol: 0 }));
}

test("the limit of these tests does cut the table", () =>
  withBindingLimit(LIMIT, () => scopeAsync(async () => {
    const counts = rowRanges({ table: empty([VOCABULARY, CHANNELS]) }).map(({ count }) => count);
    expect(counts).toEqual([64, 64, 64, 64, 44]);
    await Promise.resolve();
  })));

describe("embedding", () => {
  test("looks up rows of any range, exactly", async () => {
    const { whole, cut } = await wholeAndCut(() => [embedding(toGpu(tableValues), tokenIds(IDS))]);
    expectSameBits(cut, whole);
    expectClose("embedding", cut[0]!, nn.embedding(tableValues, IDS).data, { rtol: 0, atol: 0 });
  });

  test("backward adds into the right range, the same bits, and 0 elsewhere", async () => {
    const { whole, cut } = await wholeAndCut(() => [
      embeddingBackward(toGpu(hiddenValues), tokenIds(IDS), [VOCABULARY, CHANNELS]),
    ]);
    expectSameBits(cut, whole);
    const expected = new Float64Array(VOCABULARY * CHANNELS);
    IDS.forEach((id, i) => {
      for (let c = 0; c < CHANNELS; c++) expected[id * CHANNELS + c]! += hiddenValues.data[i * CHANNELS + c]!;
    });
    expectClose("embeddingBackward", cut[0]!, expected, { rtol: 1e-6, atol: 1e-7 });
  });

  test("an id drawn on the GPU beyond the vocabulary gives NaN, in whole and cut tables", async () => {
    const drawn = { tensor: idsToGpu([299, 300, 70_000]), host: new Uint32Array(0) };
    for (const [values] of Object.values(await wholeAndCut(() => [embedding(toGpu(tableValues), drawn)]))) {
      expect(Array.from(values!).map(Number.isNaN)).toEqual(
        Array.from({ length: 3 * CHANNELS }, (_, i) => i >= CHANNELS),
      );
    }
  });
});

await openGpu(); // it decides which kernels there are to test
describe.each(runnableVariants())("head, %s kernel", (variant) => {
  const operands = (): { x: Tensor; table: Tensor; dLogits: Tensor } =>
    ({ x: toGpu(hiddenValues), table: toGpu(tableValues), dLogits: toGpu(dLogitsValues) });

  test("logits: the same bits", async () => {
    const { whole, cut } = await wholeAndCut(() => {
      const { x, table } = operands();
      return [matmul(x, table, { transposeB: true, variant })];
    });
    expectSameBits(cut, whole);
    const expected = nn.matmul(hiddenValues, tableValues, { transposeB: true });
    expectClose("logits", cut[0]!, expected.data, sumsOf(CHANNELS));
  });

  test("a bias and a residual, cut by columns and by rows: the same bits", async () => {
    const own = random(2);
    const [bias, narrowBias] = [own.uniform([VOCABULARY]), own.uniform([20])];
    const [residual, weight] = [own.uniform([VOCABULARY, 20]), own.uniform([20, CHANNELS])];
    const { whole, cut } = await wholeAndCut(() => {
      const { x, table, dLogits } = operands();
      const rest = { bias: toGpu(narrowBias), residual: toGpu(residual) };
      return [
        matmul(x, table, { transposeB: true, variant, bias: toGpu(bias), residual: dLogits }),
        matmul(table, toGpu(weight), { transposeB: true, variant, ...rest }),
      ];
    });
    expectSameBits(cut, whole);
    const logits = nn.matmul(hiddenValues, tableValues, { transposeB: true });
    expectClose("by columns", cut[0]!, add(add(logits, bias), dLogitsValues).data, sumsOf(CHANNELS));
    const projected = nn.matmul(tableValues, weight, { transposeB: true });
    expectClose("by rows", cut[1]!, add(add(projected, narrowBias), residual).data, sumsOf(CHANNELS));
  });

  test("dW = dYᵀ X: the same bits", async () => {
    const { whole, cut } = await wholeAndCut(() => {
      const { x, dLogits } = operands();
      return [matmul(dLogits, x, { transposeA: true, variant })];
    });
    expectSameBits(cut, whole);
    const expected = nn.matmul(dLogitsValues, hiddenValues, { transposeA: true });
    expectClose("dW", cut[0]!, expected.data, sumsOf(TOKENS));
  });

  test("dX = dY W: sums over the vocabulary, so each range's sum is rounded before the next is added", async () => {
    const { whole, cut } = await wholeAndCut(() => {
      const { table, dLogits } = operands();
      return [matmul(dLogits, table, { variant })];
    });
    const expected = nn.matmul(dLogitsValues, tableValues).data;
    expectClose("dX whole", whole[0]!, expected, sumsOf(VOCABULARY));
    expectClose("dX cut", cut[0]!, expected, sumsOf(VOCABULARY));
  });

  test("adds products into a large tensor", async () => {
    const { whole, cut } = await wholeAndCut(() => {
      const { x, dLogits, table } = operands();
      return [matmul(dLogits, x, { transposeA: true, variant, into: { tensor: table, adds: true } })];
    });
    expectSameBits(cut, whole);
  });
});

test.each([[200, 70, 90, 12_000], [192, 160, 224, 16_000], [130, 90, 70, 17_000]])(
  "products %i x %i x %i of which every operand is cut, in every layout",
  async (m, k, n, limit) => {
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        const a = uniform(transposeA ? [k, m] : [m, k]);
        const b = uniform(transposeB ? [n, k] : [k, n]);
        const { cut } = await wholeAndCut(() => [matmul(toGpu(a), toGpu(b), { transposeA, transposeB })], limit);
        const expected = nn.matmul(a, b, { transposeA, transposeB });
        expectClose(`A${transposeA ? "ᵀ" : ""} B${transposeB ? "ᵀ" : ""}`, cut[0]!, expected.data, sumsOf(k));
      }
    }
  },
);

describe("a matrix beyond the limit beside a batch", () => {
  const BATCH_LIMIT = 4096;
  const [long, wide] = [uniform([100, 16]), uniform([128, 16])]; // 6,400 and 8,192 bytes

  test("is refused with the remedy, and the remedy works", () =>
    withBindingLimit(BATCH_LIMIT, () => scopeAsync(async () => {
      const [x, xs] = [uniform([2, 3, 16]), uniform([2, 16, 4])];
      const advice = /cannot be cut, and a matrix exceeds the 4096 bytes that this adapter binds\. Fix: flatten/;
      expect(() => matmul(toGpu(x), toGpu(long), { transposeB: true })).toThrow(advice);
      expect(() => matmul(toGpu(long), toGpu(xs))).toThrow(/^matmul \[100, 16\] x \[2, 16, 4\]: a batch/);
      const flat = matmul(reshape(toGpu(x), [6, 16]), toGpu(long), { transposeB: true });
      expectClose("flattened", await read(flat), nn.matmul(x, long, { transposeB: true }).data, sumsOf(16));
      const layer = ops.matmul(constant(toGpu(x)), constant(toGpu(long)), { transposeB: true });
      expectClose("ops.matmul", await read(layer.value), nn.matmul(x, long, { transposeB: true }).data, sumsOf(16));
      const batchOfOne = matmul(reshape(toGpu(x), [1, 6, 16]), toGpu(long), { transposeB: true });
      expect(batchOfOne.shape).toEqual([1, 6, 100]);
      expect(await read(batchOfOne)).toEqual(await read(flat));
    })));

  test("is multiplied with one neighbour at a time", () =>
    withBindingLimit(BATCH_LIMIT, () => scopeAsync(async () => {
      const matrices = [uniform([4, 16]), uniform([4, 16])];
      const places = emptyNeighbours([[4, 16], [4, 16]]);
      places.forEach((place, i) => write(place, Float32Array.from(matrices[i]!.data)));
      for (const [i, c] of matmulEach(toGpu(wide), places, { transposeB: true }).entries()) {
        const expected = nn.matmul(wide, matrices[i]!, { transposeB: true });
        expectClose(`neighbour ${i}`, await read(c), expected.data, sumsOf(16));
      }
    })));

  test("has no slices of the inner axis", async () => {
    const { software } = gpu();
    const [a, b] = [uniform([4, 512]), uniform([512, 16])];
    try {
      Object.assign(gpu(), { software: false }); // which would take two slices of this product
      const run = (options = {}): Promise<Float32Array> =>
        scopeAsync(() => read(matmul(toGpu(a), toGpu(b), { variant: "tile64x64", ...options })));
      const cut = await withBindingLimit(2 * BATCH_LIMIT, run);
      expectClose("cut", cut, nn.matmul(a, b).data, sumsOf(512));
      const forced = withBindingLimit(2 * BATCH_LIMIT, () => run({ slices: 2 }));
      await expect(forced).rejects.toThrow("matmul [4, 512] x [512, 16]: cannot be cut into 2 slices");
    } finally {
      Object.assign(gpu(), { software });
    }
  });
});

test("row ranges of cut matrices, beginning anywhere", async () => {
  const [x, w] = [uniform([210, CHANNELS]), uniform([50, CHANNELS])];
  const { whole, cut } = await wholeAndCut(() => {
    const [hidden, y] = [toGpu(x), tensor(new Float32Array(190 * 50), [190, 50])];
    const rows = { matrix: hidden, start: 17, count: 131 };
    matmulRows(rows, allRows(toGpu(w)), { matrix: y, start: 3, count: 131 }, { transposeB: true });
    const dw = empty([50, CHANNELS]);
    matmulRows({ matrix: y, start: 3, count: 131 }, rows, allRows(dw), { transposeA: true });
    return [y, dw];
  });
  expectSameBits([cut[0]!], [whole[0]!]);
  expectClose("dw", cut[1]!, whole[1]!, { rtol: 1e-5, atol: 1e-4 }); // sums 131 rows in three pieces
});

describe("tokenLogProb", () => {
  const run = (chunkRows?: number): Tensor[] => {
    const options = { temperature: 0.7, ...(chunkRows ? { chunkRows } : {}) };
    const inputs = { hidden: toGpu(hiddenValues), head: toGpu(tableValues), targets: idsToGpu(TARGETS) };
    const { logProbs, entropy, logSumExp } = tokenLogProb(inputs.hidden, inputs.head, inputs.targets, options);
    const [dLogProbs, dEntropy] = [toGpu(random(2).uniform([TOKENS])), toGpu(random(3).uniform([TOKENS]))];
    const { dHidden, dHead } = tokenLogProbBackward(
      { ...inputs, logSumExp, entropy }, { dLogProbs, dEntropy }, options, { hidden: true, head: true },
    );
    return [logProbs, entropy, logSumExp, dHead!, dHidden!];
  };

  test("forward and the head's gradient: the same bits; dHidden, a sum over the vocabulary, as close", async () => {
    const { whole, cut } = await wholeAndCut(() => run());
    expectSameBits(cut.slice(0, 4), whole.slice(0, 4));
    expectClose("dHidden", cut[4]!, whole[4]!, { rtol: 1e-5, atol: 2e-6 });
    const { logProbability, entropy } = nn.tokenLogProbability(hiddenValues, tableValues, TARGETS, 0.7);
    expectClose("logProbs", cut[0]!, logProbability.data, { rtol: 1e-5, atol: 2e-6 });
    expectClose("entropy", cut[1]!, entropy.data, { rtol: 1e-5, atol: 2e-6 });
  });

  test("in chunks of rows as well", async () => {
    const { whole, cut } = await wholeAndCut(() => run(4));
    expectSameBits(cut.slice(0, 4), whole.slice(0, 4));
    expectClose("dHidden", cut[4]!, whole[4]!, { rtol: 1e-5, atol: 2e-6 });
  });

  test("takes fewer rows at a time when the logits of a chunk could not be bound", async () => {
    const { whole, cut } = await wholeAndCut(() => run(13), 10_000); // 13 rows of logits have 15,600 bytes
    for (const [i, values] of cut.entries()) expectClose(`result ${i}`, values, whole[i]!, { rtol: 1e-5, atol: 2e-6 });
  });
});

/** A tied embedding: two uses of one table, their gradients added, one clipped step of AdamW. */
async function tiedStep(): Promise<Float32Array[]> {
  const table = parameter(keep(toGpu(tableValues)));
  const optimizer = adamw([table], { weightDecay: 0.1, maxGradNorm: 1 });
  const results = await scopeAsync(async () => {
    const { logProbs } = ops.tokenLogProb(ops.embedding(table, tokenIds(IDS)), table, idsToGpu(TARGETS));
    backward(ops.sum(logProbs));
    const { gradNorm } = optimizer.step(0.01);
    const { firstMoment, secondMoment } = optimizer.state[0]!;
    return readAll([gradNorm, table.grad!, table.value, firstMoment, secondMoment]);
  });
  optimizer.dispose();
  dispose(table.value);
  return results as Float32Array[];
}

describe("training a tied table", () => {
  test("gradients of both uses are added, and AdamW moves every range", async () => {
    const whole = await tiedStep();
    const cut = await withBindingLimit(LIMIT, tiedStep);
    const names = ["norm", "gradient", "parameter", "first moment", "second moment"];
    names.forEach((name, i) => expectClose(name, cut[i]!, whole[i]!, { rtol: 2e-5, atol: 2e-6 }));
    const [norm, gradient, moved] = cut;
    expectClose("norm", norm!, [Math.hypot(...gradient!)], { rtol: 1e-5, atol: 0 });
    const data = Float64Array.from(gradient!, (g) => g * Math.min(1, 1 / (norm![0]! + 1e-6)));
    const zero = { shape: tableValues.shape, data: new Float64Array(data.length) };
    const state = { parameter: tableValues, firstMoment: zero, secondMoment: zero };
    const options = { learningRate: 0.01, step: 1, weightDecay: 0.1 };
    const expected = nn.adamwStep(state, { shape: tableValues.shape, data }, options);
    expectClose("AdamW", moved!, expected.parameter.data, { rtol: 2e-5, atol: 2e-6 });
  });

  test("AdamW and the gradient norm give the same bits in ranges", async () => {
    const gradient = uniform([VOCABULARY, CHANNELS]);
    const run = async (): Promise<ArrayLike<number>[]> => {
      const table = parameter(keep(toGpu(tableValues)));
      table.grad = keep(toGpu(gradient));
      const optimizer = adamw([table], { maxGradNorm: 1 });
      optimizer.step(0.01);
      const { gradNorm } = optimizer.step(0.01);
      const { firstMoment, secondMoment } = optimizer.state[0]!;
      const results = await readAll([gradNorm, table.value, firstMoment, secondMoment]);
      optimizer.dispose();
      [table.value, table.grad].forEach(dispose);
      return results;
    };
    expectSameBits(await withBindingLimit(LIMIT, run), await run());
  });
});

describe("GPT-2's table, [50257, 768], 147 MiB", () => {
  const [V, C] = [50_257, 768];
  /** A fixed pseudo-random number in [-0.5, 0.5) for every element. */
  const element = (i: number): number => (Math.imul(i ^ (i >>> 13), 0x9e3779b1) >>> 8) / 2 ** 24 - 0.5;
  const tableIds = [0, 43_690, 43_691, V - 1, 17, V - 1];
  const targets = [3, 50_000, V - 1, 43_691, 8, 0];
  /** Elements where ranges meet, ends, and a few between. */
  const samples = [0, 17, 43_690, 43_691, 43_692, 50_000, V - 1];

  test("looked up, multiplied, differentiated through and trained, in two ranges", () =>
    withBindingLimit(2 ** 27, () => scopeAsync(async () => {
      const host = new Float32Array(V * C);
      for (let i = 0; i < host.length; i++) host[i] = element(i);
      const table = parameter(keep(tensor(host, [V, C])));
      expect(rowsPerRange([table.value])).toBe(43_690);
      const row = (id: number): Float32Array => host.subarray(id * C, (id + 1) * C);

      // Lookup, and the hidden states that the rest uses: a few rows of the table, scaled.
      const looked = embedding(table.value, tokenIds(tableIds));
      expect(await read(looked)).toEqual(Float32Array.from(tableIds.flatMap((id) => [...row(id)])));
      const hiddenHost = Float32Array.from({ length: tableIds.length * C }, (_, i) => element(5 * i + 1) / 8);
      const hidden = parameter(keep(tensor(hiddenHost, [tableIds.length, C])));

      // Log-probabilities, entropies and both gradients in float64, from the logits of every token.
      const { logProbs, entropy } = ops.tokenLogProb(hidden, table, idsToGpu(targets));
      const dLogProbs = [1, -0.5, 0.25, 1, 2, -1];
      backward(ops.sum(ops.mul(logProbs, constant(tensor(dLogProbs)))));
      const logits = await read(matmul(hidden.value, table.value, { transposeB: true }));
      const exact = float64LogProbs(hiddenHost, host, targets);
      for (const id of samples) {
        const got = tableIds.map((_, t) => logits[t * V + id]!);
        expectClose(`logits of ${id}`, got, exact.logits.map((line) => line[id]!), { rtol: 1e-5, atol: 1e-5 });
      }
      expectClose("logProbs", await read(logProbs.value), exact.logProbs, { rtol: 1e-5, atol: 1e-5 });
      expectClose("entropy", await read(entropy.value), exact.entropy, { rtol: 1e-5, atol: 1e-5 });

      const dLogits = exact.logits.map((line, t) =>
        line.map((z, id) => dLogProbs[t]! * ((id === targets[t] ? 1 : 0) - Math.exp(z - exact.logSumExp[t]!))));
      const dHead = (id: number): Float64Array =>
        Float64Array.from({ length: C }, (_, c) =>
          dLogits.reduce((sum, line, t) => sum + line[id]! * hiddenHost[t * C + c]!, 0));
      const gradients = await readAll(samples.map((id) => rowRange(table.grad!, id, 1)));
      samples.forEach((id, i) => expectClose(`dHead of ${id}`, gradients[i]!, dHead(id), { rtol: 1e-4, atol: 1e-7 }));
      const dHidden = Float64Array.from({ length: 2 * C }, (_, i) => {
        let sum = 0;
        for (let id = 0; id < V; id++) sum += dLogits[Math.floor(i / C)]![id]! * host[id * C + (i % C)]!;
        return sum;
      });
      expectClose("dHidden", (await read(hidden.grad!)).subarray(0, 2 * C), dHidden, { rtol: 1e-4, atol: 1e-5 });

      // The second use of a tied table adds into the same gradient; then one step of AdamW.
      backward(ops.sum(ops.embedding(table, tokenIds(tableIds))));
      const optimizer = adamw([table], { weightDecay: 0.1 });
      optimizer.step(0.01);
      const moved = await readAll(samples.map((id) => rowRange(table.value, id, 1)));
      samples.forEach((id, i) => {
        const uses = tableIds.filter((used) => used === id).length;
        const parameterRow = { shape: [C], data: Float64Array.from(row(id)) };
        const zero = { shape: [C], data: new Float64Array(C) };
        const state = { parameter: parameterRow, firstMoment: zero, secondMoment: zero };
        const gradient = { shape: [C], data: dHead(id).map((g) => g + uses) };
        const options = { learningRate: 0.01, step: 1, weightDecay: 0.1 };
        const expected = nn.adamwStep(state, gradient, options).parameter.data;
        // The first step is the gradient's sign, so an element whose gradient rounding can turn over would be unfair:
        // compare those that are clearly not 0.
        const clear = [...gradient.data].flatMap((g, c) => (Math.abs(g) > 1e-6 ? [c] : []));
        const pick = (values: ArrayLike<number>): number[] => clear.map((c) => values[c]!);
        expect(clear.length).toBeGreaterThan(C / 2);
        expectClose(`AdamW of ${id}`, pick(moved[i]!), pick(expected), { rtol: 1e-4, atol: 1e-5 });
      });
      optimizer.dispose();
      [table.value, table.grad!, hidden.value, hidden.grad!].forEach(dispose);
    })));
});

/** Logits of every token, log-probabilities of the targets, entropies and log-sum-exps, all in float64. */
function float64LogProbs(
  hidden: Float32Array,
  table: Float32Array,
  targets: readonly number[],
): { logits: Float64Array[]; logProbs: number[]; entropy: number[]; logSumExp: number[] } {
  const channels = hidden.length / targets.length;
  const vocabulary = table.length / channels;
  const logits = targets.map((_, t) =>
    Float64Array.from({ length: vocabulary }, (_, id) => {
      let sum = 0;
      for (let c = 0; c < channels; c++) sum += hidden[t * channels + c]! * table[id * channels + c]!;
      return sum;
    }));
  const logSumExp = logits.map((line) => Math.log(line.reduce((sum, z) => sum + Math.exp(z), 0)));
  const logProbs = targets.map((id, t) => logits[t]![id]! - logSumExp[t]!);
  const entropy = logits.map((line, t) =>
    line.reduce((sum, z) => sum - Math.exp(z - logSumExp[t]!) * (z - logSumExp[t]!), 0));
  return { logits, logProbs, entropy, logSumExp };
}
