/** Fused attention: values and gradients against float64, and what causality, padding and a KV cache promise. */
import { beforeEach, describe, expect, test } from "vitest";
import { attention as attentionOp } from "../../src/autograd/ops.ts";
import { attention, attentionBackward, type AttentionOptions, type Sharing } from "../../src/tensor/attention.ts";
import { gpu } from "../../src/tensor/device.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { read, readAll, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { directionalDerivative, dot, expectClose, random } from "../support/gradcheck.ts";
import { array64, map, sizeOf, type Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { concat, slice, transpose } from "../support/reference_shape.ts";

interface Size {
  batch: number;
  queries: number;
  keys?: number;
  heads: number;
  kvHeads: number;
  headSize: number;
}

interface Visibility {
  scale?: number;
  keyMask?: number[];
  keyEnd?: number[];
  queryStart?: number[];
}

function randomInputs({ batch, queries, keys = queries, heads, kvHeads, headSize }: Size, seed = 1): Array64[] {
  const { uniform } = random(seed);
  const keyShape = [batch, keys, kvHeads, headSize];
  return [uniform([batch, queries, heads, headSize], -2, 2), uniform(keyShape, -2, 2), uniform(keyShape, -2, 2)];
}

/**
 * keyEnd of a tree of tokens in depth-first order: a number stands for so many tokens that follow each other, a list
 * for what comes next to each other after them. [3, [1, 2]] is a prompt of 3 tokens with answers of 1 and of 2.
 */
type Tree = readonly (number | Tree)[];
function endsOf(tree: Tree, start = 0): number[] {
  const ends: number[] = [];
  let tokens = 0;
  for (const part of tree) {
    if (typeof part === "number") tokens += part;
    else part.forEach((branch) => ends.push(...endsOf([branch].flat() as Tree, start + tokens + ends.length)));
  }
  return [...new Array<number>(tokens).fill(start + tokens + ends.length), ...ends];
}

/** The reference, row by row: each has its own mask and its own position among the keys. */
function reference([q, k, v]: readonly Array64[], { scale, keyMask, keyEnd, queryStart }: Visibility = {}): Array64 {
  const keys = k!.shape[1]!;
  const rows = Array.from({ length: q!.shape[0]! }, (_, b) => {
    const [rowQ, rowK, rowV] = [q!, k!, v!].map((x) => slice(x, 0, b, b + 1)) as [Array64, Array64, Array64];
    return nn.causalAttention(rowQ, rowK, rowV, {
      ...(scale !== undefined && { scale }),
      ...(keyMask && { keyMask: keyMask.slice(b * keys, (b + 1) * keys) }),
      ...(keyEnd && { keyEnd: keyEnd.slice(b * keys, (b + 1) * keys) }),
      queryOffset: queryStart?.[b] ?? 0,
    });
  });
  return concat(rows, 0);
}

const SHARINGS: readonly Sharing[] = ["subgroup", "workgroup"];

describe.each(SHARINGS)("attention, rows shared by %s", (sharing) => {
  beforeEach((context) => {
    if (sharing === "subgroup" && gpu().subgroupSize === 0) context.skip();
  });

  const optionsOf = ({ scale, keyMask, keyEnd, queryStart }: Visibility, batch: number): AttentionOptions => ({
    sharing,
    ...(scale !== undefined && { scale }),
    ...(keyMask && { keyMask: idsToGpu(keyMask, [batch, keyMask.length / batch]) }),
    ...(keyEnd && { keyEnd: idsToGpu(keyEnd, [batch, keyEnd.length / batch]) }),
    ...(queryStart && { queryStart: idsToGpu(queryStart) }),
  });

  async function check(name: string, size: Size, visibility: Visibility = {}): Promise<void> {
    await checkOp(`attention ${name}`, {
      inputs: randomInputs(size),
      gpu: (q, k, v) => attentionOp(q, k, v, optionsOf(visibility, size.batch)),
      reference: (...inputs) => reference(inputs, visibility),
    });
  }

  /** y, logSumExp, dq, dk, dv of one forward and backward pass. */
  function run(
    inputs: readonly Array64[], visibility: Visibility = {}, more: AttentionOptions = {},
  ): Promise<Float32Array[]> {
    return scopeAsync(async () => {
      const [q, k, v] = inputs.map(toGpu) as [Tensor, Tensor, Tensor];
      const options = { ...optionsOf(visibility, q.shape[0]!), ...more };
      const { y, logSumExp } = attention(q, k, v, options);
      const dy = toGpu(random(99).uniform(q.shape));
      const { dq, dk, dv } = attentionBackward({ q, k, v, y, logSumExp }, dy, options);
      return (await readAll([y, logSumExp, dq, dk, dv])) as Float32Array[];
    });
  }

  // Compiling the barriers of "workgroup" for larger heads takes the software driver long.
  const maxHeadSize = sharing === "workgroup" ? 24 : 64;

  const sizes: Size[] = [
    { batch: 2, queries: 1, heads: 4, kvHeads: 2, headSize: 8 },
    { batch: 2, queries: 3, heads: 4, kvHeads: 1, headSize: 7 },
    { batch: 1, queries: 7, heads: 2, kvHeads: 2, headSize: 1 },
    { batch: 2, queries: 8, heads: 6, kvHeads: 2, headSize: 8 },
    { batch: 1, queries: 9, heads: 2, kvHeads: 1, headSize: 24 },
    { batch: 1, queries: 3, heads: 2, kvHeads: 1, headSize: 32 },
    { batch: 1, queries: 63, heads: 2, kvHeads: 1, headSize: 1 },
    { batch: 1, queries: 65, heads: 1, kvHeads: 1, headSize: 1 },
  ];
  const fits = ({ headSize }: Size): boolean => headSize <= maxHeadSize;

  test.each(sizes.filter(fits))("every element of y, dq, dk, dv: %o", async (size) => {
    await check(JSON.stringify(size), size);
  });

  // Too large for a difference per element: three directions per input instead.
  const largeSizes: Size[] = [
    { batch: 1, queries: 257, heads: 2, kvHeads: 1, headSize: 8 },
    { batch: 1, queries: 65, heads: 4, kvHeads: 2, headSize: 24 },
    { batch: 1, queries: 65, heads: 4, kvHeads: 2, headSize: 32 },
    { batch: 1, queries: 9, heads: 2, kvHeads: 1, headSize: 64 },
  ];
  test.each(largeSizes.filter(fits))("directional derivatives: %o", async (size) => {
    const inputs = randomInputs(size);
    const results = await run(inputs);
    expectClose("attention", results[0]!, reference(inputs).data, { rtol: 5e-6, atol: 2e-6 });
    const cotangent = random(99).uniform(inputs[0]!.shape);
    for (const [i, name] of ["dq", "dk", "dv"].entries()) {
      for (const seed of [1, 2, 3]) {
        const direction = random(seed).uniform(inputs[i]!.shape);
        const expected = directionalDerivative((x) => reference(x), inputs, cotangent, i, direction);
        const actual = dot(results[2 + i]!, direction.data);
        expectClose(`${name} of ${size.queries} queries`, [actual], [expected], { rtol: 1e-4, atol: 1e-4 });
      }
    }
  });

  // Forward only, which compiles soon; all kernels fetch rows alike.
  test("a head so large that a tile in workgroup memory holds fewer rows than there are lanes", async () => {
    const inputs = randomInputs({ batch: 1, queries: 65, heads: 2, kvHeads: 1, headSize: 68 });
    const y = await scopeAsync(async () => {
      const [q, k, v] = inputs.map(toGpu) as [Tensor, Tensor, Tensor];
      return read(attention(q, k, v, { sharing }).y);
    });
    expectClose("attention", y, reference(inputs).data, { rtol: 5e-6, atol: 2e-6 });
  });

  const masks: Record<string, number[][]> = {
    "left padding": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]],
    "right padding": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0]],
    "padding on both sides and inside": [[0, 1, 1, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0, 0]],
    "a row of padding only": [[0, 0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 1]],
  };
  test.each(Object.entries(masks))("%s", async (name, rows) => {
    await check(name, { batch: 2, queries: 9, heads: 4, kvHeads: 2, headSize: 4 }, { keyMask: rows.flat() });
  });

  const nothing = [0, 0, 0];
  const trees: Record<string, number[][]> = {
    "answers to a prompt, of one token and more": [endsOf([3, [1, 2, 1, 4]]), endsOf([6, [2, 1, 1, 1]])],
    "no prompt, and padding": [[...endsOf([0, [2, 1, 3, 2]]), ...nothing], [...endsOf([0, [1, 1, 1, 5]]), ...nothing]],
    "branches of branches, and padding": [
      [...endsOf([2, [[1, [1, [2, [1, 2]]]], 1, [1, [1, 1]]]]), ...nothing],
      [...nothing, ...endsOf([4, [5, 1, 3]], 3)],
    ],
    "padding between": [[3, 0, 3, 0, 0, 7, 7], [7, 7, 7, 0, 0, 5, 7]],
  };
  test.each(Object.entries(trees))("a tree: %s", async (name, rows) => {
    const queries = rows[0]!.length;
    await check(name, { batch: 2, queries, heads: 6, kvHeads: 2, headSize: 4 }, { keyEnd: rows.flat() });
  });

  test("a tree over many blocks: whole blocks see nothing of each other", async () => {
    const ends = endsOf([0, [[9, [1, 20, 3]], 41, [1, [[2, [17, 1]], 30, 5]]]]);
    await check("large tree", { batch: 1, queries: 130, heads: 2, kvHeads: 1, headSize: 1 }, { keyEnd: ends });
  });

  test("a tree behind a cache", async () => {
    const keyEnd = [...endsOf([5, [3, 2, 4]]), 0, 0, 0, ...endsOf([1, [1, 6, 8, 1]])];
    const size = { batch: 2, queries: 3, keys: 17, heads: 4, kvHeads: 2, headSize: 4 };
    await check("tree with a cache", size, { keyEnd, queryStart: [6, 10] });
  });

  test("a tree equals its sequences one by one", async () => {
    const [prompt, answers, heads, headSize] = [37, [1, 9, 2, 30], 2, 8];
    const total = prompt + answers.reduce((sum, length) => sum + length, 0);
    const inputs = randomInputs({ batch: 1, queries: total, heads, kvHeads: 1, headSize });
    const packed = await run(inputs, { keyEnd: endsOf([prompt, answers]) });
    let start = prompt;
    for (const length of answers) {
      const [begin, end] = [start, start + length];
      const alone = await run(inputs.map((x) => concat([slice(x, 1, 0, prompt), slice(x, 1, begin, end)], 1)));
      const width = heads * headSize;
      expectClose("y", packed[0]!.subarray(begin * width, end * width), alone[0]!.subarray(prompt * width), {
        rtol: 1e-6, atol: 1e-6,
      });
      start = end;
    }
  });

  test("queries that see nothing give 0, a finite logSumExp and no gradient", async () => {
    const inputs = randomInputs({ batch: 1, queries: 9, heads: 2, kvHeads: 1, headSize: 8 });
    const [y, logSumExp, ...gradients] = await run(inputs, { keyMask: new Array<number>(9).fill(0) });
    expect(y!.every((value) => value === 0)).toBe(true);
    expect(logSumExp!.every(Number.isFinite)).toBe(true);
    for (const gradient of gradients) expect(gradient.every((value) => value === 0)).toBe(true);
  });

  test("a query start per row and a cache longer than its filled part", async () => {
    await check(
      "with a cache",
      { batch: 3, queries: 3, keys: 21, heads: 4, kvHeads: 2, headSize: 4 },
      { queryStart: [0, 7, 18], keyMask: Array.from({ length: 63 }, (_, i) => (i % 21 === 1 ? 0 : 1)) },
    );
  });

  test("decoding: one query behind a cache", async () => {
    const size = { batch: 3, queries: 1, keys: 18, heads: 6, kvHeads: 2, headSize: 4 };
    await check("decoding", size, { queryStart: [0, 7, 17] });
  });

  // A kernel of its own, with a part of a row in each lane: head sizes around 8 lanes of 4.
  const oneQuery: Size[] = [[1, 1, 4], [3, 1, 12], [2, 2, 36], [8, 1, 8], [9, 1, 8], [4, 2, 64], [5, 5, 7]].map(
    ([heads, kvHeads, headSize]) => ({
      batch: 3, queries: 1, keys: 21, heads: heads!, kvHeads: kvHeads!, headSize: headSize!,
    }),
  );
  test.each(oneQuery.filter(fits))("one query behind caches of many lengths, with padding: %o", async (size) => {
    const inputs = randomInputs(size);
    const keyMask = Array.from({ length: 63 }, (_, i) => (i % 21 === 9 ? 0 : 1));
    for (const visibility of [{ queryStart: [0, 7, 20] }, { queryStart: [8, 15, 16], keyMask }]) {
      const [y, logSumExp] = await run(inputs, visibility);
      expectClose("one query", y!, reference(inputs, visibility).data, { rtol: 1e-5, atol: 1e-5 });
      expect(logSumExp!.every(Number.isFinite)).toBe(true);
      // Behind the query, and in the padding.
      const spoilt = inputs.map(({ shape, data }, which) => {
        const width = shape[2]! * shape[3]!;
        const isHidden = (i: number): boolean => {
          const [b, key] = [Math.floor(i / width / 21), Math.floor(i / width) % 21];
          return key > visibility.queryStart[b]! || ("keyMask" in visibility && key === 9);
        };
        return which === 0 ? inputs[0]! : { shape, data: data.map((value, i) => (isHidden(i) ? NaN : value)) };
      });
      expect((await run(spoilt, visibility))[0]).toEqual(y);
    }
  });

  test.each([
    { queries: 1, visibility: { queryStart: [0, 7, 19] } },
    { queries: 3, visibility: { queryStart: [0, 7, 17] } },
    { queries: 20, visibility: {} },
  ])("keys with heads first: the same bits, $queries queries", async ({ queries, visibility }) => {
    const [q, k, v] = randomInputs({ batch: 3, queries, keys: 20, heads: 6, kvHeads: 3, headSize: 8 });
    const expected = await run([q!, k!, v!], visibility);
    const [swappedK, swappedV] = [transpose(k!, 1, 2), transpose(v!, 1, 2)];
    const [y, logSumExp, dq, ...swapped] = await run([q!, swappedK, swappedV], visibility, { headsFirst: true });
    const back = swapped.map((data) =>
      Float32Array.from(transpose(array64(swappedK.shape, data), 1, 2).data));
    expect([y, logSumExp, dq, ...back]).toEqual(expected);
  });

  test.each([24, 100])("one query behind %i keys and more, in all heads", async (start) => {
    const inputs = randomInputs({ batch: 2, queries: 1, keys: 200, heads: 4, kvHeads: 2, headSize: 12 });
    const keyMask = Array.from({ length: 400 }, (_, i) => (i % 7 === 3 ? 0 : 1));
    const visibility = { queryStart: [start, 199], keyMask };
    const [y, logSumExp] = await run(inputs, visibility);
    expectClose("one query", y!, reference(inputs, visibility).data, { rtol: 1e-5, atol: 1e-5 });
    // The same number from the kernel for several queries, of which the last is this one.
    const [q, k, v] = inputs;
    const twice = await run([concat([q!, q!], 1), k!, v!], { queryStart: [start - 1, 198], keyMask });
    const last = [...twice[1]!].filter((_, i) => i % 2 === 1);
    expectClose("logSumExp", logSumExp!, last, { rtol: 2e-6, atol: 2e-6 });
  });

  test("a given scale", async () => {
    await check("scale", { batch: 1, queries: 7, heads: 2, kvHeads: 1, headSize: 8 }, { scale: 0.7 });
  });

  test("NaN in the unused cache and in padding reaches nobody", async () => {
    const size = { batch: 2, queries: 3, keys: 21, heads: 4, kvHeads: 2, headSize: 8 };
    const visibility = { queryStart: [4, 9], keyMask: Array.from({ length: 42 }, (_, i) => (i % 21 < 2 ? 0 : 1)) };
    const [q, ...cache] = randomInputs(size);
    const isUnused = (position: number): boolean => {
      const [b, j] = [Math.floor(position / 21), position % 21];
      return j < 2 || j > visibility.queryStart[b]! + 2;
    };
    const withUnused = (value: number): Array64[] => [
      q!, ...cache.map((x) => ({ ...x, data: x.data.map((old, i) => (isUnused(Math.floor(i / 16)) ? value : old)) })),
    ];
    expect(await run(withUnused(NaN), visibility)).toEqual(await run(withUnused(0), visibility));
  });

  test("a later key changes nothing before it", async () => {
    const [queries, heads, headSize, changed] = [20, 2, 8, 13];
    const inputs = randomInputs({ batch: 1, queries, heads, kvHeads: 1, headSize });
    const later = inputs.map((x, which) => {
      return which === 0 ? x : { ...x, data: x.data.map((value, i) => (i >= changed * headSize ? value + 1 : value)) };
    });
    const [before, after] = [await run(inputs), await run(later)];
    const earlier = changed * heads * headSize;
    for (const result of [0, 2]) { // y and dq
      expect(after[result]!.subarray(0, earlier)).toEqual(before[result]!.subarray(0, earlier));
      expect(after[result]!.subarray(earlier)).not.toEqual(before[result]!.subarray(earlier));
    }
  });

  test("scores of 1e4 overflow nothing", async () => {
    const inputs = randomInputs({ batch: 1, queries: 9, heads: 2, kvHeads: 1, headSize: 8 });
    const large = [map(inputs[0]!, (x) => x * 100), map(inputs[1]!, (x) => x * 100), inputs[2]!];
    const [y, ...rest] = await run(large);
    expectClose("attention", y!, reference(large).data, { rtol: 1e-3, atol: 1e-3 });
    for (const result of rest) expect(result.every(Number.isFinite)).toBe(true);
  });

  test("more workgroups than one grid dimension holds", async () => {
    await checkOp("attention", {
      inputs: randomInputs({ batch: 33_000, queries: 2, heads: 2, kvHeads: 2, headSize: 1 }),
      gpu: (q, k, v) => attentionOp(q, k, v, { sharing }),
      reference: (q, k, v) => nn.causalAttention(q, k, v),
      independentRows: [0, 1, 2],
    });
  });

  test("twice the same bits", async () => {
    const inputs = randomInputs({ batch: 3, queries: 65, heads: 4, kvHeads: 2, headSize: 8 });
    expect(await run(inputs)).toEqual(await run(inputs));
    const tree = { keyEnd: [1, 2, 3].flatMap((n) => endsOf([20 * n, [2, 63 - 20 * n]])) };
    expect(await run(inputs, tree)).toEqual(await run(inputs, tree));
  });
});

describe("shape errors name the operation and the shapes", () => {
  const zeros = (shape: readonly number[]): Tensor => tensor(new Float32Array(sizeOf(shape)), shape);

  test.each([
    { shapes: [[1, 3, 4, 8], [1, 3, 3, 8], [1, 3, 3, 8]], message: /\[1, 3, 4, 8\].*\[1, 3, 3, 8\].*multiple of Hkv/ },
    { shapes: [[1, 3, 4, 8], [2, 3, 2, 8], [2, 3, 2, 8]], message: /\[1, 3, 4, 8\].*\[2, 3, 2, 8\]/ },
    { shapes: [[1, 3, 4, 8], [1, 3, 2, 8], [1, 4, 2, 8]], message: /\[1, 3, 2, 8\].*\[1, 4, 2, 8\]/ },
    { shapes: [[1, 3, 1, 512], [1, 3, 1, 512], [1, 3, 1, 512]], message: /head size 512/ },
  ])("$message", async ({ shapes, message }) => {
    await scopeAsync(async () => {
      expect(() => attention(zeros(shapes[0]!), zeros(shapes[1]!), zeros(shapes[2]!))).toThrow(message);
    });
  });

  test("what backward gets", async () => {
    await scopeAsync(async () => {
      const x = zeros([2, 3, 2, 4]);
      const saved = { q: x, k: x, v: x, y: x, logSumExp: zeros([2, 2, 3]) };
      attentionBackward(saved, x);
      const short = zeros([2, 3, 1, 4]);
      expect(() => attentionBackward(saved, short)).toThrow(
        "attentionBackward: dy has shape [2, 3, 1, 4], expected [2, 3, 2, 4]",
      );
      expect(() => attentionBackward({ ...saved, y: short }, x)).toThrow("attentionBackward: y has shape [2, 3, 1, 4]");
      expect(() => attentionBackward({ ...saved, logSumExp: zeros([2, 3, 2]) }, x)).toThrow(
        "attentionBackward: logSumExp has shape [2, 3, 2], expected [2, 2, 3]",
      );
    });
  });

  test("mask, ends and query start", async () => {
    await scopeAsync(async () => {
      const x = zeros([2, 3, 1, 4]);
      const keyMask = idsToGpu([1, 1, 1]);
      expect(() => attention(x, x, x, { keyMask })).toThrow(/keyMask is u32 \[3\]; expected u32 \[2, 3\]/);
      expect(() => attention(x, x, x, { queryStart: tensor([0, 0]) })).toThrow(/queryStart is f32/);
      expect(() => attention(x, x, x, { keyEnd: keyMask })).toThrow(/keyEnd is u32 \[3\]; expected u32 \[2, 3\]/);
      const both = idsToGpu([3, 3, 3, 3, 3, 3], [2, 3]);
      expect(() => attention(x, x, x, { keyMask: both, keyEnd: both })).toThrow(/keyMask and keyEnd exclude/);
    });
  });
});
