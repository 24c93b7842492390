/**
 * Generation: the random numbers against an independent Philox, drawn frequencies against the softmax, cached decoding
 * against the full forward pass, and that a sample depends on nothing but seed, prompt, sample number and position.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createGpt, arangePositions, disposeGpt, frozen, hiddenStates, logits, type Gpt } from "../../src/model/gpt.ts";
import {
  LengthError,
  promptStream,
  repeatsOf,
  sampleCompletions,
  type Completion,
  type SamplingOptions,
} from "../../src/model/sampler.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { sample, type SamplerState } from "../../src/tensor/sample.ts";
import { read, readAll, tensor } from "../../src/tensor/tensor.ts";
import { random } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

let model: Gpt;
beforeAll(() => {
  model = createGpt(tinyConfig(), randomWeights(7));
});
afterAll(() => disposeGpt(model));

// ---- random numbers -------------------------------------------------------------------------------------------------

/** Philox4x32-10 (Salmon et al. 2011) with 64-bit products in BigInt: the published definition, step by step. */
function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [c0, c1, c2, c3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key.map(BigInt) as [bigint, bigint];
  const low32 = 0xffffffffn;
  for (let round = 0; round < 10; round++) {
    const [product0, product1] = [0xd2511f53n * c0, 0xcd9e8d57n * c2];
    [c0, c1, c2, c3] = [(product1 >> 32n) ^ c1 ^ k0, product1 & low32, (product0 >> 32n) ^ c3 ^ k1, product0 & low32];
    k0 = (k0 + 0x9e3779b9n) & low32;
    k1 = (k1 + 0xbb67ae85n) & low32;
  }
  return [c0, c1, c2, c3].map(Number);
}

/** Draws one token per row from given logits [rows, vocab]; row r has the stream and sample number streams[r]. */
async function drawOnce(
  values: Float32Array,
  streams: readonly (readonly [number, number])[],
  { step = 0, seed = 0, temperature = 1 } = {},
): Promise<{ tokens: number[]; logProbs: number[] }> {
  const rows = streams.length;
  const columns = step + 1;
  return scopeAsync(async () => {
    const state: SamplerState = {
      streams: tensor(Uint32Array.from(streams.flat()), [rows, 2]),
      endIdList: tensor(Uint32Array.of(0)),
      endIdCount: 0,
      nextIds: tensor(new Uint32Array(rows)),
      positions: tensor(new Uint32Array(rows)),
      progress: tensor(new Uint32Array(2 * rows), [rows, 2]),
      tokens: tensor(new Uint32Array(rows * columns), [rows, columns]),
      logProbs: tensor(new Float32Array(rows * columns), [rows, columns]),
    };
    sample(tensor(values, [rows, values.length / rows]), state, step, temperature, seed);
    const [ids, probabilities] = await readAll([state.tokens, state.logProbs]);
    const lastColumn = (data: ArrayLike<number>): number[] =>
      Array.from({ length: rows }, (_, r) => data[r * columns + step]!);
    return { tokens: lastColumn(ids!), logProbs: lastColumn(probabilities!) };
  });
}

describe("random numbers", () => {
  test("the independent Philox gives the published vectors (Random123 kat_vectors)", () => {
    const hex = (words: readonly number[]): string => words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
    const ones = 0xffffffff;
    expect(hex(philox([0, 0, 0, 0], [0, 0]))).toBe("6627e8d5 e169c58d bc57ac4c 9b00dbd8");
    expect(hex(philox([ones, ones, ones, ones], [ones, ones]))).toBe("408f276d 41c83b0e a20bc7c6 6d5451fd");
    const pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
    expect(hex(philox(pi, [0xa4093822, 0x299f31d0]))).toBe("d16cfe09 94fdcceb 5001e420 24126ea1");
  });

  test("the sampler draws with them: among 2^15 equal logits the token is the first 15 bits of u", async () => {
    const bits = 15;
    const streams: [number, number][] = [
      [0, 0],
      [0xffffffff, 0xffffffff],
      [0x243f6a88, 3],
      [1, 0],
      [0, 1],
      [12345, 678],
    ];
    const equal = new Float32Array(streams.length * 2 ** bits).fill(0.25);
    for (const [step, seed] of [
      [0, 0],
      [1, 0],
      [0, 1],
      [5, 0xffffffff],
      [9, 0xa4093822],
    ] as const) {
      const { tokens, logProbs } = await drawOnce(equal, streams, { step, seed });
      const want = streams.map(([stream, number]) => philox([stream, number, step, 0], [seed, 0])[0]! >>> (32 - bits));
      expect(tokens).toEqual(want);
      for (const value of logProbs) expect(value).toBeCloseTo(-bits * Math.LN2, 5);
    }
    expect((await drawOnce(equal, streams)).tokens[0]).toBe(0x6627e8d5 >>> (32 - bits));
  });
});

// ---- one draw -------------------------------------------------------------------------------------------------------

function softmax(values: readonly number[], temperature: number): number[] {
  const largest = Math.max(...values);
  const weights = values.map((value) => Math.exp((value - largest) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

describe("a draw", () => {
  const rows = 4000;
  test.each([
    [1, 9],
    [0.6, 9],
    [2, 13],
    [1, 3],
    [1, 257],
  ])("at temperature %d from %d tokens: frequencies follow the softmax", async (temperature, vocab) => {
    const row = Float32Array.from({ length: vocab }, (_, v) => 2 * Math.sin(1 + 5 * v));
    const all = new Float32Array(rows * vocab);
    for (let r = 0; r < rows; r++) all.set(row, r * vocab);
    const streams = Array.from({ length: rows }, (_, r) => [99, r] as const);
    const { tokens, logProbs } = await drawOnce(all, streams, { seed: 5, temperature });
    const p = softmax([...row], temperature);
    const counts = new Array<number>(vocab).fill(0);
    tokens.forEach((token, r) => {
      counts[token]! += 1;
      expect(Math.abs(logProbs[r]! - Math.log(p[token]!))).toBeLessThan(1e-5);
    });
    const chiSquare = counts.reduce((sum, n, v) => sum + (n - rows * p[v]!) ** 2 / (rows * p[v]!), 0);
    const freedom = vocab - 1;
    // Wilson and Hilferty 1931: (chi^2 / k)^(1/3) is close to normal; 3.3 deviations are one in a thousand.
    const limit = freedom * (1 - 2 / (9 * freedom) + 3.3 * Math.sqrt(2 / (9 * freedom))) ** 3;
    expect(chiSquare).toBeLessThan(limit);
  });

  test("at temperature 0 takes the largest logit, the smallest id among equals; its log-probability is that at 1", async () => {
    const row = [0.5, 3, -1, 3, 2.999];
    const { tokens, logProbs } = await drawOnce(
      Float32Array.from([...row, ...row.toReversed()]),
      [
        [1, 0],
        [1, 1],
      ],
      { temperature: 0 },
    );
    expect(tokens).toEqual([1, 1]);
    for (const value of logProbs) expect(value).toBeCloseTo(Math.log(softmax(row, 1)[1]!), 5);
  });

  test("logits far apart: never a token without probability, never a NaN", async () => {
    const row = [-1e30, 80, -3.4028234e38, 79, -100];
    const streams = Array.from({ length: 200 }, (_, r) => [4, r] as const);
    const { tokens, logProbs } = await drawOnce(Float32Array.from(streams.flatMap(() => row)), streams);
    expect(new Set(tokens)).toEqual(new Set([1, 3]));
    expect(logProbs.every((value) => Number.isFinite(value) && value <= 0)).toBe(true);
  });
});

// ---- completions ----------------------------------------------------------------------------------------------------

const prompts = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]];
const options: SamplingOptions = { maxNewTokens: 12, temperature: 1, seed: 42, endIds: [] };
const tokensOf = (completions: readonly Completion[]): (readonly number[])[] => completions.map(({ tokens }) => tokens);

/** log p of each completion token by a full forward pass without a cache. */
async function recompute(prompt: readonly number[], { tokens }: Completion, temperature: number): Promise<number[]> {
  const ids = [...prompt, ...tokens];
  const values = await scopeAsync(async () => {
    const hidden = hiddenStates(frozen(model), tokenIds(ids, [1, ids.length]), {
      positions: arangePositions(1, ids.length),
    });
    return read(logits(model, hidden).value);
  });
  const { vocabSize } = model.config;
  return tokens.map((token, i) => {
    const row = (prompt.length - 1 + i) * vocabSize;
    return Math.log(softmax([...values.subarray(row, row + vocabSize)], temperature)[token]!);
  });
}

describe("cached generation", () => {
  test.each([1, 0.7])(
    "equals full recomputation, prompts of unequal length in one batch, temperature %d",
    async (temperature) => {
      const result = await sampleCompletions(model, prompts, 3, { ...options, temperature });
      let gap = 0;
      for (const [i, prompt] of prompts.entries()) {
        for (const completion of result[i]!) {
          expect(completion.tokens).toHaveLength(12);
          const want = await recompute(prompt, completion, temperature);
          want.forEach((value, t) => (gap = Math.max(gap, Math.abs(value - completion.logProbs[t]!))));
        }
      }
      expect(gap).toBeLessThan(1e-4);
    },
  );

  test("greedy takes the most likely token at every position", async () => {
    const [[completion]] = (await sampleCompletions(model, [prompts[0]!], 1, { ...options, temperature: 0 })) as [
      [Completion],
    ];
    const ids = [...prompts[0]!];
    for (const token of completion.tokens) {
      const values = await scopeAsync(async () => {
        const hidden = hiddenStates(frozen(model), tokenIds(ids, [1, ids.length]), {
          positions: arangePositions(1, ids.length),
        });
        return [...(await read(logits(model, hidden).value)).slice(-model.config.vocabSize)];
      });
      expect(token).toBe(values.indexOf(Math.max(...values)));
      ids.push(token);
    }
  });

  test("leaves no memory behind", async () => {
    const before = memoryStats();
    await sampleCompletions(model, prompts, 2, options);
    await expect(sampleCompletions(model, [[3, 40]], 2, options)).rejects.toThrow(/id 40/);
    const { liveBytes, liveBuffers } = memoryStats();
    expect({ liveBytes, liveBuffers }).toEqual({ liveBytes: before.liveBytes, liveBuffers: before.liveBuffers });
  });
});

describe("a sample depends on seed, prompt, number and position only", () => {
  test("200 samples drawn 25 at a time and one at a time are the same tokens", async () => {
    const small = createGpt(tinyConfig({ layers: 1 }), randomWeights(8)); // 200 runs: keep each one short
    const few: SamplingOptions = { ...options, maxNewTokens: 4 };
    const draw = async (batch: number): Promise<(readonly number[])[]> => {
      const all: (readonly number[])[] = [];
      for (let first = 0; first < 200; first += batch) {
        all.push(
          ...tokensOf((await sampleCompletions(small, [prompts[0]!], batch, { ...few, firstSample: first }))[0]!),
        );
      }
      return all;
    };
    const [alone, together] = [await draw(1), await draw(25)];
    const different = alone.filter((tokens, i) => tokens.join() !== together[i]!.join()).length;
    expect(different).toBeLessThanOrEqual(2); // logits rounded differently may tip a draw on the edge between two tokens
    expect(new Set(alone.map(String)).size).toBeGreaterThan(150);
    disposeGpt(small);
  });

  test("prompts of different lengths in one batch give what each gives alone, in any order", async () => {
    const together = await sampleCompletions(model, prompts, 4, options);
    for (const [i, prompt] of prompts.entries()) {
      const [alone] = await sampleCompletions(model, [prompt], 4, options);
      expect(tokensOf(together[i]!)).toEqual(tokensOf(alone!));
    }
    const reversed = await sampleCompletions(model, prompts.toReversed(), 4, options);
    expect(reversed.toReversed().map(tokensOf)).toEqual(together.map(tokensOf));
  });

  test("the same seed gives the same bits, another seed other tokens, and readbacks change nothing", async () => {
    const first = await sampleCompletions(model, prompts, 3, options);
    expect(await sampleCompletions(model, prompts, 3, options)).toEqual(first);
    expect(await sampleCompletions(model, prompts, 3, { ...options, tokensPerReadback: 1 })).toEqual(first);
    expect(await sampleCompletions(model, prompts, 3, { ...options, tokensPerReadback: 5 })).toEqual(first);
    expect((await sampleCompletions(model, prompts, 3, { ...options, seed: 43 })).map(tokensOf)).not.toEqual(
      first.map(tokensOf),
    );
  });

  test("samples of one prompt differ, and firstSample continues their numbering", async () => {
    const [eight] = await sampleCompletions(model, [prompts[1]!], 8, options);
    expect(new Set(tokensOf(eight!).map(String)).size).toBe(8);
    const [rest] = await sampleCompletions(model, [prompts[1]!], 5, { ...options, firstSample: 3 });
    expect(tokensOf(rest!)).toEqual(tokensOf(eight!).slice(3));
  });

  test("a prompt that stands in a batch twice draws other samples the second time", async () => {
    const [all] = await sampleCompletions(model, [prompts[1]!], 6, options);
    const twice = await sampleCompletions(model, [prompts[1]!, prompts[0]!, prompts[1]!], 3, options);
    expect([...tokensOf(twice[0]!), ...tokensOf(twice[2]!)]).toEqual(tokensOf(all!));
    expect(repeatsOf([[1], [2], [1], [1, 2], [1]])).toEqual([0, 0, 1, 0, 2]);
  });

  test("prompts have streams of their own", () => {
    const { ids } = random(1);
    const streams = Array.from({ length: 500 }, (_, i) => promptStream([...ids(1 + (i % 7), 40), i]));
    expect(new Set(streams).size).toBe(500);
    expect(promptStream([1, 2])).not.toBe(promptStream([2, 1]));
    expect(promptStream([])).toBe(0x811c9dc5); // the offset basis of FNV-1a
  });
});

describe("ends", () => {
  /** What must come out when `endIds` end a row whose unbounded tokens are known. */
  function cut(tokens: readonly number[], endIds: readonly number[]): { tokens: readonly number[]; ended: boolean } {
    const end = tokens.findIndex((token) => endIds.includes(token));
    return end < 0 ? { tokens, ended: false } : { tokens: tokens.slice(0, end + 1), ended: true };
  }

  test("any of several end ids ends its own row; the end token is part of it", async () => {
    const free = await sampleCompletions(model, prompts, 6, options);
    const endIds = [free[0]![0]!.tokens[2]!, free[1]![1]!.tokens[5]!];
    const result = await sampleCompletions(model, prompts, 6, { ...options, endIds });
    const want = free.map((row) => row.map(({ tokens }) => cut(tokens, endIds)));
    expect(result.map((row) => row.map(({ tokens, ended }) => ({ tokens, ended })))).toEqual(want);
    const all = want.flat();
    expect(all.some(({ ended }) => ended) && all.some(({ ended }) => !ended)).toBe(true); // the case is not trivial
    result.forEach((row, i) =>
      row.forEach(({ logProbs, tokens }, j) => {
        expect(logProbs).toEqual(free[i]![j]!.logProbs.slice(0, tokens.length));
      }),
    );
  });

  test("rows that have ended are dropped from the batch, and the others draw what they would have drawn", async () => {
    const endIds = Array.from({ length: model.config.vocabSize }, (_, id) => id).filter((id) => id % 3 === 0);
    const draw = (tokensPerReadback: number) =>
      sampleCompletions(model, prompts, 20, { ...options, maxNewTokens: 12, endIds, tokensPerReadback });
    const kept = await draw(12); // one readback, at the end: nobody is dropped before
    const lengths = kept.flat().map(({ tokens }) => tokens.length);
    const going = (step: number): number => lengths.filter((length) => length > step).length;
    expect(going(2)).toBeGreaterThan(3);
    expect(going(6)).toBeLessThan(going(2) / 2); // it halves, and halves again
    for (const tokensPerReadback of [1, 2, 5]) {
      const dropped = await draw(tokensPerReadback);
      expect(dropped.map(tokensOf)).toEqual(kept.map(tokensOf));
      dropped.flat().forEach(({ logProbs, ended }, row) => {
        expect(ended).toBe(kept.flat()[row]!.ended);
        logProbs.forEach((value, i) => expect(value).toBeCloseTo(kept.flat()[row]!.logProbs[i]!, 5));
      });
    }
  });

  test("stops early when every row has ended", async () => {
    let readbacks = 0;
    const everything = Array.from({ length: model.config.vocabSize }, (_, id) => id);
    const result = await sampleCompletions(model, prompts, 2, {
      ...options,
      endIds: everything,
      tokensPerReadback: 2,
      onTokens: () => (readbacks += 1),
    });
    expect(result.flat().every(({ tokens, ended }) => tokens.length === 1 && ended)).toBe(true);
    expect(readbacks).toBe(1);
  });

  test("one new token: the limit counts the end token", async () => {
    const free = (await sampleCompletions(model, prompts, 3, { ...options, maxNewTokens: 1 })).flat();
    expect(free.every(({ tokens, ended }) => tokens.length === 1 && !ended)).toBe(true);
    const endIds = [free[0]!.tokens[0]!];
    const again = (await sampleCompletions(model, prompts, 3, { ...options, maxNewTokens: 1, endIds })).flat();
    expect(again.map(({ ended }) => ended)).toEqual(free.map(({ tokens }) => tokens[0] === endIds[0]));
  });

  test("streaming shows each row growing", async () => {
    const seen: (readonly number[])[] = [];
    const [[completion]] = (await sampleCompletions(model, [prompts[0]!], 1, {
      ...options,
      tokensPerReadback: 5,
      onTokens: ([row]) => seen.push(row!),
    })) as [[Completion]];
    expect(seen.map(({ length }) => length)).toEqual([5, 10, 12]);
    for (const tokens of seen) expect(completion.tokens.slice(0, tokens.length)).toEqual(tokens);
  });
});

describe("limits", () => {
  test("prompt and completion may fill the model's positions, not exceed them", async () => {
    const long = Array.from({ length: 60 }, (_, i) => i % 40);
    const [[full]] = (await sampleCompletions(model, [long], 1, { ...options, maxNewTokens: 4 })) as [[Completion]];
    const want = await recompute(long, full, 1);
    want.forEach((value, t) => expect(Math.abs(value - full.logProbs[t]!)).toBeLessThan(1e-4));
    const tooLong = sampleCompletions(model, [prompts[0]!, long], 1, { ...options, maxNewTokens: 5 });
    await expect(tooLong).rejects.toThrow(/60 prompt tokens and 5 new ones exceed the model's 64 positions/);
    await expect(tooLong).rejects.toThrow(LengthError);
  });

  test("an empty prompt, or none, is an error", async () => {
    await expect(sampleCompletions(model, [[1], []], 1, options)).rejects.toThrow(LengthError);
    await expect(sampleCompletions(model, [], 1, options)).rejects.toThrow(LengthError);
  });
});
