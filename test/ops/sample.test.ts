/**
 * Top-k and top-p of the sampler against a float64 reference that sorts: which tokens are kept (seen in the recorded
 * log-probability, which knows the kept mass, and in what is drawn), ties, edges, frequencies and monotonicity. Random
 * numbers, temperature and greedy are tested in test/model/sampler.test.ts.
 */
import { describe, expect, test } from "vitest";
import * as el from "../../src/tensor/elementwise.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { sample, type KeptTokens, type SamplerState } from "../../src/tensor/sample.ts";
import { sizeOf } from "../../src/tensor/shape.ts";
import { readAll, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { seededNormal } from "../../src/random.ts";
import "../support/gpu.ts";

interface Draws {
  readonly tokens: readonly number[];
  readonly logProbs: readonly number[];
}

/** Draws one token from each row of logits; all rows have streams of their own. */
async function draw(rows: readonly Float32Array[], kept: KeptTokens, temperature = 1, seed = 3): Promise<Draws> {
  const [count, vocab] = [rows.length, rows[0]!.length];
  return scopeAsync(async () => {
    const state: SamplerState = {
      streams: tensor(Uint32Array.from({ length: 2 * count }, (_, i) => (i % 2 === 0 ? 17 : i)), [count, 2]),
      endIdList: tensor(Uint32Array.of(0)),
      endIdCount: 0,
      nextIds: tensor(new Uint32Array(count)),
      positions: tensor(new Uint32Array(count)),
      progress: tensor(new Uint32Array(2 * count), [count, 2]),
      tokens: tensor(new Uint32Array(count), [count, 1]),
      logProbs: tensor(new Float32Array(count), [count, 1]),
    };
    const logits = new Float32Array(count * vocab);
    rows.forEach((row, r) => logits.set(row, r * vocab));
    sample(tensor(logits, [count, vocab]), state, 0, temperature, seed, kept);
    const [ids, probabilities] = await readAll([state.tokens, state.logProbs]);
    return { tokens: [...ids!], logProbs: [...probabilities!] };
  });
}

interface Kept {
  /** Log-probability of each token, renormalised over the kept ones; -Infinity for the others. */
  readonly logProbs: readonly number[];
  readonly size: number;
  /**
   * How far the decision about the last token is from tipping, as a share of the probability; 1 where nothing hangs on
   * it: without top-p, or when the last token's own share is too small to be seen in float32.
   */
  readonly margin: number;
}

/** The definition, by sorting: temperature, then top-k with all equals of the k-th, then top-p. */
function reference(logits: Float32Array, { topK = 0, topP = 1 }: KeptTokens, temperature: number): Kept {
  const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]! || a - b);
  const kth = topK === 0 ? -Infinity : logits[order[Math.min(topK, order.length) - 1]!]!;
  const candidates = order.filter((v) => logits[v]! >= kth);
  const largest = logits[order[0]!]!;
  const weights = candidates.map((v) => Math.exp((logits[v]! - largest) / temperature));
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  let [size, mass, margin] = [0, 0, 1];
  while (size < candidates.length && (size === 0 || topP === 1 || mass < topP * all)) {
    mass += weights[size]!;
    size += 1;
    margin = Math.min(margin, Math.abs(mass / all - topP));
  }
  const logProbs = new Array<number>(logits.length).fill(-Infinity);
  for (const v of candidates.slice(0, size)) logProbs[v] = (logits[v]! - largest) / temperature - Math.log(mass);
  const decides = topP < 1 && weights[size - 1]! / all > 1e-5;
  return { logProbs, size, margin: decides ? margin : 1 };
}

const normal = seededNormal(11);
const randomRow = (vocab: number, spread = 2): Float32Array => {
  return Float32Array.from({ length: vocab }, () => spread * normal());
};
/** Logits of few different values. */
const tiedRow = (vocab: number): Float32Array => randomRow(vocab).map((x) => Math.round(x) / 2);

/** Every drawn token is kept, and has the log-probability of the reference. Returns how many rows were compared. */
function compare(
  rows: readonly Float32Array[],
  { tokens, logProbs }: Draws,
  kept: KeptTokens,
  temperature: number,
): number {
  let compared = 0;
  rows.forEach((row, r) => {
    const want = reference(row, kept, temperature);
    if (want.margin < 1e-5) return; // float32 sums may decide this one either way
    compared += 1;
    const expected = want.logProbs[tokens[r]!]!;
    expect(Math.abs(logProbs[r]! - expected), `row ${r}: token ${tokens[r]}, ${logProbs[r]} for ${expected}`)
      .toBeLessThan(1e-4);
  });
  return compared;
}

describe("kept tokens equal the sorting reference", () => {
  const settings = [0, 1, 2, 5, 64, 1000].flatMap((topK) => {
    return [0, 1e-30, 0.1, 0.5, 0.9, 0.999, 1].map((topP) => ({ topK, topP }));
  });

  test.each([1, 2, 9, 65, 257])("%d tokens, random and tied logits", async (vocab) => {
    const rows = Array.from({ length: 12 }, (_, r) => (r % 2 === 0 ? randomRow(vocab) : tiedRow(vocab)));
    let compared = 0;
    for (const [i, kept] of settings.entries()) {
      const temperature = [1, 0.7, 1.5][i % 3]!;
      compared += compare(rows, await draw(rows, kept, temperature, i), kept, temperature);
    }
    expect(compared).toBeGreaterThan(0.9 * settings.length * rows.length);
  });

  test.each([50257, 151936])("%d tokens", async (vocab) => {
    const rows = [randomRow(vocab, 3), tiedRow(vocab), randomRow(vocab, 0.1)];
    let compared = 0;
    for (const kept of [{ topK: 50 }, { topP: 0.9 }, { topK: 20000, topP: 0.5 }]) {
      compared += compare(rows, await draw(rows, kept), kept, 1);
    }
    expect(compared).toBeGreaterThan(4); // of 9
  });
});

describe("ties and edges", () => {
  const copies = (row: readonly number[], count = 300): Float32Array[] => {
    return Array.from({ length: count }, () => Float32Array.from(row));
  };
  const drawn = async (row: readonly number[], kept: KeptTokens): Promise<number[]> => {
    return [...new Set((await draw(copies(row), kept)).tokens)].sort((a, b) => a - b);
  };

  test("top-k keeps everything that equals the k-th logit, and 0 equals -0", async () => {
    expect(await drawn([1, 3, 2, 2, 0, 2], { topK: 2 })).toEqual([1, 2, 3, 5]);
    expect(await drawn([-1, -0, 0, -2], { topK: 1 })).toEqual([1, 2]);
    expect(await drawn([-1, 0, -0, -2], { topK: 1 })).toEqual([1, 2]);
  });

  test("top-p takes no more equals than it needs, the smallest ids first", async () => {
    const equal = new Array<number>(64).fill(-2.5);
    for (const [topP, size] of [[0.5, 32], [0.515625, 33], [0.51, 33], [1 / 64, 1], [0, 1]] as const) {
      const { tokens, logProbs } = await draw(copies(equal), { topP });
      expect(Math.max(...tokens)).toBe(size - 1);
      for (const value of logProbs) expect(value).toBeCloseTo(-Math.log(size), 5);
    }
    // 3 of weight 1 and 4 of weight e^-1: 0.7 of the whole needs one of the four, the one of smallest id.
    expect(await drawn([0, 1, 0, 1, 0, 1, 0], { topP: 0.7 })).toEqual([0, 1, 3, 5]);
  });

  test("top-p is a share of what top-k has left", async () => {
    const row = [0, 1, 2, 3].map((x) => Math.log(10 - x)); // 10, 9, 8, 7
    expect(await drawn(row, { topP: 0.6 })).toEqual([0, 1, 2]); // 19 / 34 < 0.6
    expect(await drawn(row, { topK: 3, topP: 0.6 })).toEqual([0, 1]); // 19 / 27 > 0.6
  });

  test.each([{ topK: 1 }, { topP: 0 }, { topP: 1e-38 }])("%j is greedy, with log-probability 0", async (kept) => {
    const rows = Array.from({ length: 20 }, () => randomRow(97));
    const { tokens, logProbs } = await draw(rows, kept);
    expect(tokens).toEqual(rows.map((row) => row.indexOf(Math.max(...row))));
    for (const value of logProbs) expect(Math.abs(value)).toBe(0);
  });

  test("top-p 0 among equal largest logits takes the smallest id, wherever they stand", async () => {
    expect(await drawn([1, 5, 2, 5, 5], { topP: 0 })).toEqual([1]);
  });

  test("what keeps all tokens changes no bit", async () => {
    const rows = Array.from({ length: 50 }, () => randomRow(613));
    const plain = await draw(rows, {}, 0.8);
    expect(await draw(rows, { topK: 613 }, 0.8)).toEqual(plain);
    expect(await draw(rows, { topK: 0xffffffff, topP: 1 }, 0.8)).toEqual(plain);
  });

  test("temperature 0 ignores both", async () => {
    const rows = Array.from({ length: 20 }, () => randomRow(97));
    expect(await draw(rows, { topK: 3, topP: 0.2 }, 0)).toEqual(await draw(rows, {}, 0));
  });

  test("a NaN among the logits is not filtered away", async () => {
    for (const nan of [NaN, -NaN]) {
      const row = Float32Array.of(1, 2, nan, 3);
      for (const kept of [{}, { topK: 1 }, { topP: 0.5 }, { topK: 2, topP: 0.5 }]) {
        expect((await draw([row], kept)).logProbs).toEqual([NaN]);
      }
    }
  });

  test("options out of range are refused by name", async () => {
    const row = [Float32Array.of(0, 1)];
    await expect(draw(row, { topK: -1 })).rejects.toThrow(/sample: topK -1 must be an integer from 0 up/);
    await expect(draw(row, { topK: 1.5 })).rejects.toThrow(/topK 1\.5/);
    await expect(draw(row, { topP: 1.1 })).rejects.toThrow(/sample: topP 1\.1 must be a number from 0 to 1/);
    await expect(draw(row, { topP: NaN })).rejects.toThrow(/topP NaN/);
    for (const temperature of [-1, NaN, Infinity, 1e39, 1e-40]) {
      await expect(draw(row, {}, temperature)).rejects.toThrow(`sample: temperature ${temperature} must be 0 (greedy)`);
    }
    expect((await draw(row, {}, 2 ** -126)).logProbs).toEqual([0]);
  });

  test("a state that does not fit the logits is refused by name", async () => {
    await scopeAsync(async () => {
      const ids = (...shape: number[]): Tensor => tensor(new Uint32Array(sizeOf(shape)), shape);
      const state: SamplerState = {
        streams: ids(2, 2), endIdList: ids(1), endIdCount: 0, nextIds: ids(2), positions: ids(2), progress: ids(2, 2),
        tokens: ids(2, 3), logProbs: el.fill([2, 3], 0),
      };
      const run = (changed: Partial<SamplerState>, logits = el.fill([2, 5], 0)): void =>
        sample(logits, { ...state, ...changed }, 0, 1, 0);
      run({});
      expect(() => run({}, el.fill([2, 1, 5], 0))).toThrow("sample: logits [2, 1, 5], step 0, tokens [2, 3]");
      expect(() => run({ streams: ids(2) })).toThrow("sample: streams has shape [2], expected [2, 2]");
      expect(() => run({ progress: ids(3, 2) })).toThrow("sample: progress has shape [3, 2], expected [2, 2]");
      expect(() => run({ positions: ids(1) })).toThrow("sample: positions has shape [1], expected [2]");
      expect(() => run({ nextIds: ids(3) })).toThrow("sample: nextIds has shape [3], expected [2]");
      expect(() => run({ logProbs: el.fill([2, 2], 0) })).toThrow("sample: logProbs has shape [2, 2], expected [2, 3]");
      expect(() => run({ nextIds: el.fill([2], 0) })).toThrow("sample.sample: nextIds [2] is f32, the kernel reads u32");
      await Promise.resolve();
    });
  });
});

describe("draws", () => {
  test.each([{ topK: 4 }, { topP: 0.8 }, { topK: 7, topP: 0.9 }])("%j: frequencies", async (kept) => {
    const [count, temperature] = [4000, 1.3];
    const row = Float32Array.from({ length: 13 }, (_, v) => 2 * Math.sin(1 + 5 * v));
    const { tokens } = await draw(new Array<Float32Array>(count).fill(row), kept, temperature);
    const want = reference(row, kept, temperature);
    expect(want.size).toBeLessThan(13);
    let chiSquare = 0;
    want.logProbs.forEach((logProb, v) => {
      const n = tokens.filter((token) => token === v).length;
      const expected = count * Math.exp(logProb);
      if (expected === 0) expect(n).toBe(0);
      else chiSquare += (n - expected) ** 2 / expected;
    });
    const freedom = want.size - 1;
    // Wilson and Hilferty 1931: (chi^2 / k)^(1/3) is close to normal; 3.3 deviations are one in a thousand.
    expect(chiSquare).toBeLessThan(freedom * (1 - 2 / (9 * freedom) + 3.3 * Math.sqrt(2 / (9 * freedom))) ** 3);
  });

  test("the kept share of the probability grows with k and with p, and is at least p", async () => {
    const rows = Array.from({ length: 16 }, () => randomRow(300));
    /** Each row's kept share: p(token) / p(token | kept). */
    const shares = async (kept: KeptTokens): Promise<number[]> => {
      const { tokens, logProbs } = await draw(rows, kept);
      return rows.map((row, r) => Math.exp(reference(row, {}, 1).logProbs[tokens[r]!]! - logProbs[r]!));
    };
    const grows = (smaller: number[], larger: number[]): void => {
      smaller.forEach((share, r) => expect(share).toBeLessThan(larger[r]! + 1e-5));
    };
    let [before, byK] = [new Array<number>(16).fill(0), new Array<number>(16).fill(0)];
    for (const topP of [0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99]) {
      const now = await shares({ topP });
      grows(before, now);
      now.forEach((share) => expect(share).toBeGreaterThan(topP - 1e-5));
      before = now;
    }
    for (const topK of [1, 2, 4, 8, 50, 299]) {
      const now = await shares({ topK });
      grows(byK, now);
      byK = now;
    }
  });
});
