/**
 * Log-probabilities of completions: one row of shared prefixes must give what one padded row per completion gives,
 * values, entropies and every parameter's gradient; and prefixes must really be computed once.
 */
import { describe, expect, test } from "vitest";
import { backward, zeroGrad } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, type Variable } from "../../src/autograd/variable.ts";
import { completionLogProbs, MAX_TOKENS, readLogProbs } from "../../src/grpo/completion_log_probs.ts";
import { prefixTree, treeParts } from "../../src/grpo/prefix_tree.ts";
import { FAMILIES } from "../../src/model/config.ts";
import { arangePositions, createGpt, disposeGpt, headWeight, hiddenStates, type Gpt } from "../../src/model/gpt.ts";
import { IGNORE } from "../../src/tensor/cross_entropy.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { read, readAll, tensor } from "../../src/tensor/tensor.ts";
import { expectClose, random, relativeToLargest } from "../support/gradcheck.ts";
import { toGpu } from "../support/gpu.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

interface Completion {
  readonly promptIds: readonly number[];
  readonly completionIds: readonly number[];
}

/** Three prompts, two of which begin alike; completions of 1 to 6 tokens, two equal, one the beginning of another. */
const completions: readonly Completion[] = [
  { promptIds: [3, 1, 4, 1, 5], completionIds: [9, 2] },
  { promptIds: [7], completionIds: [8, 2, 8, 1, 8, 2] },
  { promptIds: [3, 1, 4, 1, 5], completionIds: [9, 2, 6] },
  { promptIds: [3, 1, 4, 2], completionIds: [5] },
  { promptIds: [3, 1, 4, 1, 5], completionIds: [9, 2] },
  { promptIds: [7], completionIds: [0] },
  { promptIds: [3, 1, 4, 2], completionIds: [30, 39, 1, 0] },
  { promptIds: [3, 1, 4, 1, 5], completionIds: [11, 2] },
];
const LONGEST = 6;
const TEMPERATURE = 0.8;

/** The textbook's way: a row per completion, padded on the right, and a padded head. */
function unpacked(model: Gpt): { logProbs: Variable; entropy: Variable } {
  const sequences = completions.map(({ promptIds, completionIds }) => [...promptIds, ...completionIds]);
  const time = Math.max(...sequences.map(({ length }) => length));
  const filled = (row: readonly number[], width: number, value: number): number[] =>
    Array.from({ length: width }, (_, t) => row[t] ?? value);
  const ids = sequences.flatMap((sequence) => filled(sequence, time, 0));
  const hidden = hiddenStates(model, tokenIds(ids, [completions.length, time]), {
    positions: arangePositions(completions.length, time),
  });
  const before = completions.flatMap(({ promptIds, completionIds }, i) =>
    filled(completionIds.map((_, t) => i * time + promptIds.length - 1 + t), LONGEST, 0),
  );
  const targets = completions.flatMap(({ completionIds }) => filled(completionIds, LONGEST, IGNORE));
  return ops.tokenLogProb(
    ops.embedding(hidden, tokenIds(before)), headWeight(model), tensor(Uint32Array.from(targets)),
    { temperature: TEMPERATURE },
  );
}

/** Log-probabilities, entropies, and the gradient of a random weighing of both. */
async function results(model: Gpt, compute: (model: Gpt) => { logProbs: Variable; entropy: Variable }) {
  const weights = [1, 2].map((seed) => random(seed).uniform([completions.length * LONGEST], -1, 1));
  const values = await scopeAsync(async () => {
    const { logProbs, entropy } = compute(model);
    const flat = [ops.reshape(logProbs, [-1]), entropy];
    const [a, b] = flat.map((x, i) => ops.sum(ops.mul(x, constant(toGpu(weights[i]!))))) as [Variable, Variable];
    backward(ops.add(a, b));
    return (await readAll(flat.map(({ value }) => value))) as [Float32Array, Float32Array];
  });
  const gradients = new Map<string, Float32Array>();
  for (const [name, { grad }] of model.parameters) gradients.set(name, (await read(grad!)) as Float32Array);
  zeroGrad(model.parameters.values());
  return { values, gradients };
}

const learned = {
  ...FAMILIES.gpt2, vocabSize: 40, hiddenSize: 16, layers: 2, heads: 4, kvHeads: 4, headSize: 4, mlpSize: 24,
  normEps: 1e-5, rope: null, maxPositions: 16, tiedEmbeddings: true,
};

describe.each([["rotary positions", tinyConfig()], ["learned positions", learned]] as const)("%s", (_, config) => {
  test.each([false, true])("one row of prefixes = a row per completion (checkpointing: %s)", async (checkpointing) => {
    const model = createGpt(config, randomWeights(7, 0.3));
    const expected = await results(model, unpacked);
    const actual = await results(model, (policy) =>
      completionLogProbs(policy, completions, { temperature: TEMPERATURE, gradientCheckpointing: checkpointing }),
    );
    const close = { rtol: 1e-5, atol: 1e-5 };
    expectClose("log-probabilities", actual.values[0], expected.values[0], close);
    expectClose("entropies", actual.values[1], expected.values[1], close);
    for (const [name, gradient] of expected.gradients) {
      expect(gradient.some((value) => value !== 0), name).toBe(true);
      expect(relativeToLargest(actual.gradients.get(name)!, gradient), name).toBeLessThan(1e-5);
    }
    disposeGpt(model);
  });
});

test("the shape is [N, T], and padding has log-probability and entropy 0", async () => {
  const model = createGpt(tinyConfig(), randomWeights(7, 0.3));
  await scopeAsync(async () => {
    const { logProbs, entropy } = completionLogProbs(model, completions, { temperature: 1 });
    expect(logProbs.value.shape).toEqual([completions.length, LONGEST]);
    expect(entropy.value.shape).toEqual([completions.length * LONGEST]);
    for (const values of await readAll([logProbs.value, entropy.value])) {
      completions.forEach(({ completionIds }, i) => {
        const row = [...values.subarray(i * LONGEST, (i + 1) * LONGEST)];
        expect(row.map((value) => value !== 0)).toEqual(row.map((__, t) => t < completionIds.length));
      });
    }
  });
  disposeGpt(model);
});

test("the same bits in any order and from run to run", async () => {
  const model = createGpt(tinyConfig(), randomWeights(7, 0.3));
  const run = () => results(model, (policy) => completionLogProbs(policy, completions, { temperature: 1 }));
  expect(await run()).toEqual(await run());
  const straight = await readLogProbs(model, completions, 1);
  expect((await readLogProbs(model, completions.toReversed(), 1)).toReversed()).toEqual(straight);
  disposeGpt(model);
});

test("more completions than run together: as few at a time", async () => {
  const model = createGpt(tinyConfig(), randomWeights(7, 0.3));
  const { ids: draw } = random(3);
  const many = Array.from({ length: 900 }, (_, i) => {
    return { promptIds: [i % 7, 1, 2], completionIds: [...draw(1 + (i % 13), 40)] };
  });
  const parts = treeParts(many.map(({ promptIds, completionIds }) => [...promptIds, ...completionIds]), MAX_TOKENS);
  expect(parts.length).toBeGreaterThan(1);
  const all = await readLogProbs(model, many, 1);
  expect(all.map(({ length }) => length)).toEqual(many.map(({ completionIds }) => completionIds.length));
  const some = [0, 1, 449, 898, 899];
  const few = await readLogProbs(model, some.map((i) => many[i]!), 1);
  few.forEach((row, i) => expectClose(`row ${some[i]}`, all[some[i]!]!, row, { rtol: 1e-5, atol: 1e-5 }));
  disposeGpt(model);
});

describe("the tree of prefixes", () => {
  test("the example of the header", () => {
    expect(prefixTree([[5, 6, 7], [5, 6, 8, 9], [5, 6]])).toEqual({
      ids: [5, 6, 7, 8, 9],
      positions: [0, 1, 2, 2, 3],
      ends: [5, 5, 3, 5, 5],
      places: [[0, 1, 2], [0, 1, 3, 4], [0, 1]],
    });
  });

  test("a prompt with completions: its tokens are there once", () => {
    const prompt = Array.from({ length: 35 }, (_, i) => i);
    const { ids } = prefixTree([[1, 2], [1, 3], [4, 2], [5], [1, 2]].map((answer) => [...prompt, ...answer]));
    expect(ids).toHaveLength(35 + 6);
  });

  test("random sequences: every token sees those before it in its sequence, and no other", () => {
    const { ids: draw } = random(8);
    const sequences = Array.from({ length: 60 }, (_, i) => [...draw(i % 9, 3)]);
    const { ids, positions, ends, places } = prefixTree(sequences);
    sequences.forEach((sequence, i) => {
      expect(places[i]!.map((place) => ids[place])).toEqual(sequence);
      expect(places[i]!.map((place) => positions[place])).toEqual(sequence.map((_, t) => t));
      places[i]!.forEach((place, t) => {
        const seen = ids.map((_, key) => key).filter((key) => key <= place && place < ends[key]!);
        expect(seen).toEqual(places[i]!.slice(0, t + 1));
      });
    });
    const prefixes = sequences.flatMap((sequence) => sequence.map((_, t) => sequence.slice(0, t + 1).join()));
    expect(ids).toHaveLength(new Set(prefixes).size);
  });

  test("parts hold every sequence once, within the limit unless one alone is longer", () => {
    const { ids: draw } = random(9);
    const short = Array.from({ length: 80 }, (_, i) => [...draw(1 + (i % 9), 3)]);
    const sequences = [...short, new Array<number>(50).fill(1)];
    const parts = treeParts(sequences, 30);
    expect(parts.flat().sort((a, b) => a - b)).toEqual(sequences.map((_, i) => i));
    for (const part of parts) {
      const { ids } = prefixTree(part.map((i) => sequences[i]!));
      expect(ids.length <= 30 || part.length === 1).toBe(true);
    }
  });

  test("nothing", () => {
    expect(prefixTree([])).toEqual({ ids: [], positions: [], ends: [], places: [] });
    expect(treeParts([], 5)).toEqual([]);
  });
});
