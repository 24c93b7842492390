/** Token log-probabilities and entropies from hidden states, in chunks, with every gradient. */
import { describe, expect, it } from "vitest";
import * as ops from "../../src/autograd/ops.ts";
import { IGNORE } from "../../src/tensor/cross_entropy.ts";
import { fill } from "../../src/tensor/elementwise.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { empty, read, type Tensor } from "../../src/tensor/tensor.ts";
import { tokenLogProb, tokenLogProbBackward, type TokenLogProbOptions } from "../../src/tensor/token_log_prob.ts";
import { checkOp } from "../support/check_op.ts";
import { expectClose, random, relativeToLargest } from "../support/gradcheck.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { add, array64, mul, mulScalar, type Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { gather } from "../support/reference_shape.ts";

interface Case {
  readonly hidden: Array64;
  readonly head: Array64;
  readonly targets: Uint32Array;
}

function randomCase(rows: number, channels: number, vocabulary: number, scale = 1, seed = 1): Case {
  const { uniform, ids } = random(seed);
  return {
    hidden: uniform([rows, channels], -scale, scale),
    head: uniform([vocabulary, channels], -scale, scale),
    targets: ids(rows, vocabulary),
  };
}

/** Log-probability and entropy of the float64 reference, 0 in rows whose target is IGNORE. */
function reference(hidden: Array64, head: Array64, targets: Uint32Array, temperature: number): [Array64, Array64] {
  const mask = array64([targets.length], Array.from(targets, (id) => (id === IGNORE ? 0 : 1)));
  const ids = targets.map((id) => (id === IGNORE ? 0 : id));
  const { logProbability, entropy } = nn.tokenLogProbability(hidden, head, ids, temperature);
  return [mul(logProbability, mask), mul(entropy, mask)];
}

/** Checks forward and both gradients of logProbs, of entropy, and of a sum of both. */
async function checkAll(example: Case, options: TokenLogProbOptions = {}, atol = 2e-6): Promise<void> {
  const { hidden, head, targets } = example;
  const { temperature = 1 } = options;
  const shared = { inputs: [hidden, head], forward: { rtol: 1e-5, atol }, gradient: { rtol: 1e-4, atol: 1e-5 } };
  await scopeAsync(async () => {
    const ids = idsToGpu(targets);
    await checkOp("logProbs", {
      ...shared,
      gpu: (x, w) => ops.tokenLogProb(x, w, ids, options).logProbs,
      reference: (x, w) => reference(x, w, targets, temperature)[0],
    });
    await checkOp("entropy", {
      ...shared,
      gpu: (x, w) => ops.tokenLogProb(x, w, ids, options).entropy,
      reference: (x, w) => reference(x, w, targets, temperature)[1],
    });
    await checkOp("logProbs + 0.3 entropy", {
      ...shared,
      gpu: (x, w) => {
        const { logProbs, entropy } = ops.tokenLogProb(x, w, ids, options);
        return ops.add(logProbs, ops.mulScalar(entropy, 0.3));
      },
      reference: (x, w) => {
        const [logProbs, entropy] = reference(x, w, targets, temperature);
        return add(logProbs, mulScalar(entropy, 0.3));
      },
    });
  });
}

describe("tokenLogProb", () => {
  it.each([[1, 1, 1], [1, 3, 2], [7, 5, 13], [13, 3, 63], [2, 3, 257]])("%i rows, %i channels, %i tokens", (n, c, v) =>
    checkAll(randomCase(n, c, v)));

  it.each([0.25, 0.7, 3])("temperature %f", (temperature) => checkAll(randomCase(5, 4, 33), { temperature }, 1e-5));

  it.each([1, 2, 5, 8])("chunks of %i rows", (chunkRows) => checkAll(randomCase(7, 3, 11), { chunkRows }));

  it("ignores rows without a target", async () => {
    const example = randomCase(6, 4, 9);
    example.targets[1] = IGNORE;
    example.targets[5] = IGNORE;
    await checkAll(example);
    await checkAll({ ...example, targets: example.targets.fill(IGNORE) });
  });

  it("stands logits of +-100", async () => {
    const example = randomCase(5, 2, 17, 8);
    const largest = Math.max(...nn.matmul(example.hidden, example.head, { transposeB: true }).data.map(Math.abs));
    expect(largest).toBeGreaterThan(60);
    await checkAll(example, {}, 5e-5);
    const extreme = { ...example, head: array64([2, 2], [100, 0, -100, 0]), hidden: array64([2, 2], [1, 0, -1, 0]) };
    await checkAll({ ...extreme, targets: Uint32Array.of(0, 0) });
  });

  it("equals log-softmax and gather", async () => {
    const { hidden, head, targets } = randomCase(9, 16, 300, 1, 4);
    const logits = nn.matmul(hidden, head, { transposeB: true });
    const expected = gather(nn.logSoftmax(logits), 1, targets, [9, 1]);
    await scopeAsync(async () => {
      const { logProbs } = tokenLogProb(toGpu(hidden), toGpu(head), idsToGpu(targets));
      expectClose("logProbs", await read(logProbs), expected.data, { rtol: 1e-5, atol: 1e-6 });
    });
  });

  it("handles 70,000 rows", async () => {
    const { hidden, head, targets } = randomCase(70_000, 2, 3);
    const [logProbs, entropy] = reference(hidden, head, targets, 1);
    await scopeAsync(async () => {
      const result = tokenLogProb(toGpu(hidden), toGpu(head), idsToGpu(targets), { chunkRows: 70_000 });
      expectClose("logProbs", await read(result.logProbs), logProbs.data, { rtol: 5e-6, atol: 1e-6 });
      expectClose("entropy", await read(result.entropy), entropy.data, { rtol: 5e-6, atol: 1e-6 });
    });
  });

  it("gives the same bits twice, the same numbers in any chunks, and never holds all logits", async () => {
    const { hidden, head, targets } = randomCase(200, 16, 2048);
    await scopeAsync(async () => {
      const saved = { hidden: toGpu(hidden), head: toGpu(head), targets: idsToGpu(targets) };
      const dLogProbs = toGpu(random(2).uniform([200]));
      const dEntropy = toGpu(random(3).uniform([200]));
      const run = (chunkRows: number): Promise<Float32Array[]> => scopeAsync(async () => {
        const { logProbs, entropy, logSumExp } = tokenLogProb(saved.hidden, saved.head, saved.targets, { chunkRows });
        const { dHidden, dHead } = tokenLogProbBackward(
          { ...saved, entropy, logSumExp }, { dLogProbs, dEntropy }, { chunkRows }, { hidden: true, head: true },
        );
        return Promise.all([logProbs, entropy, dHidden!, dHead!].map(read));
      });
      const before = memoryStats().liveBytes;
      const whole = await run(200);
      expect(await run(200)).toEqual(whole);
      for (const chunkRows of [64, 33]) {
        const chunked = await run(chunkRows);
        chunked.forEach((values, i) => expect(relativeToLargest(values, whole[i]!)).toBeLessThan(1e-6));
      }
      expect(memoryStats().liveBytes).toBe(before);
    });
  });

  it("computes only the gradients that are wanted, and zero for no rows", async () => {
    await scopeAsync(async () => {
      const saved = {
        hidden: empty([0, 3]), head: empty([5, 3]), targets: empty([0], "u32"),
        logSumExp: empty([0]), entropy: empty([0]),
      };
      const none = tokenLogProbBackward(saved, { dLogProbs: empty([0]) }, {}, { hidden: false, head: false });
      expect(none).toEqual({ dHidden: null, dHead: null });
      const { dHead } = tokenLogProbBackward(saved, { dLogProbs: empty([0]) }, {}, { hidden: true, head: true });
      expect([...(await read(dHead!))]).toEqual(new Array(15).fill(0));
    });
  });

  it("gives NaN for a target beyond the vocabulary", async () => {
    const { hidden, head } = randomCase(2, 3, 5);
    await scopeAsync(async () => {
      const { logProbs } = tokenLogProb(toGpu(hidden), toGpu(head), idsToGpu([4, 5]));
      const [valid, beyond] = await read(logProbs);
      expect(valid).toBeLessThan(0);
      expect(beyond).toBeNaN();
    });
  });

  it("gives NaN as the gradient of such a row, and of no other; not through the entropy", async () => {
    const { hidden, head } = randomCase(3, 3, 5);
    await scopeAsync(async () => {
      const saved = { hidden: toGpu(hidden), head: toGpu(head), targets: idsToGpu([4, 5, IGNORE]) };
      const { logSumExp, entropy } = tokenLogProb(saved.hidden, saved.head, saved.targets);
      const isNan = async (gradients: { dLogProbs?: Tensor; dEntropy?: Tensor }): Promise<boolean[]> => {
        const all = { ...saved, logSumExp, entropy };
        const { dHidden } = tokenLogProbBackward(all, gradients, {}, { hidden: true, head: false });
        return Array.from(await read(dHidden!), Number.isNaN);
      };
      const second = Array.from({ length: 9 }, (_, i) => i >= 3 && i < 6);
      expect(await isNan({ dLogProbs: fill([3], 1) })).toEqual(second);
      expect(await isNan({ dLogProbs: fill([3], 0), dEntropy: fill([3], 1) })).toEqual(second);
      expect(await isNan({ dEntropy: fill([3], 1) })).not.toContain(true);
    });
  });

  it("explains wrong shapes and options", () => {
    const call = (hidden: number[], head: number[], options = {}): unknown =>
      tokenLogProb(empty(hidden), empty(head), idsToGpu([1, 2]), options);
    expect(() => call([2, 3], [5, 4])).toThrow("got [2, 3], [5, 4] and u32 [2]");
    expect(() => call([3, 3], [5, 3])).toThrow("expected hidden [N, C], head [V, C] and u32 targets [N]");
    expect(() => call([2, 3], [5, 3], { temperature: 0 })).toThrow("temperature 0 must be above 0");
    expect(() => call([2, 3], [5, 3], { chunkRows: 0 })).toThrow("chunkRows 0 must be a positive integer");
  });
});
