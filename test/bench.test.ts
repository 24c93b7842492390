/** The arithmetic of the benchmarks: what they count, and how they sum up runs. */
import { expect, test } from "vitest";
import { decodeCost, gradientStepCost, trainingCost } from "../bench/cost.ts";
import { median, rooflineMs } from "../bench/measure.ts";
import { BENCH_MODEL } from "../bench/model_config.ts";
import { formatTable } from "../bench/table.ts";

/** Weights of its linear layers: 2 * 2 * 4 in attention, 3 * 2 * 3 in the MLP, together 34; its head has 10. */
const tiny = { ...BENCH_MODEL, vocabSize: 5, hiddenSize: 2, layers: 1, heads: 1, kvHeads: 1, headSize: 2, mlpSize: 3 };

test("the operations of a training step, by hand", () => {
  const forward = 2 * 2 * (34 + 10); // two tokens
  const attention = 4 * 2 * 3; // three pairs of a query and a key, two multiply-adds of two values each
  expect(trainingCost(tiny, 1, 2).flops).toBe(3 * forward + 3.5 * attention);
  expect(trainingCost(tiny, 4, 2).flops).toBe(4 * trainingCost(tiny, 1, 2).flops);
});

test("the operations of a gradient step on completions, by hand", () => {
  // A prompt of two tokens and three completions of two, of which the first token is run: 5 tokens, 6 predictions. The
  // prompt has 3 pairs of a query and a key, and each completion's token sees 3 keys.
  const forward = 2 * (5 * 34 + 6 * 10);
  const attention = 4 * 2 * (3 + 3 * 3);
  expect(gradientStepCost(tiny, 2, 3, 2).flops).toBe(3 * forward + 3.5 * attention);
});

test("the operations of decoding, by hand", () => {
  // Two prompt tokens, then one pass for the second token of three samples, which sees three keys.
  const prefill = 2 * 2 * 34 + 4 * 2 * 3;
  const pass = 3 * (2 * 34 + 4 * 2 * 3);
  const heads = 2 * (1 + 3) * 10; // the first tokens have one distribution
  expect(decodeCost(tiny, 1, 3, 2, 2).flops).toBe(prefill + pass + heads);
});

test("the roofline is the slower of arithmetic and memory", () => {
  const adapter = { gflops: 10, gigabytes: 2 };
  expect(rooflineMs({ flops: 1e7, bytes: 1e6 }, adapter)).toBe(1);
  expect(rooflineMs({ flops: 1e6, bytes: 4e6 }, adapter)).toBe(2);
});

test("median", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 2, 3])).toBe(2.5);
  expect(() => median([])).toThrow(RangeError);
});

test("a table has every column that occurs", () => {
  const text = formatTable("t", [{ a: "x", ms: 12.34 }, { a: "y", ms: 0.5, more: 3 }]);
  expect(text).toBe(["t", "a     ms  more", "x   12.3", "y  0.500     3"].join("\n"));
});
