/** embedding against float64: repeated ids, rows that nobody names, ids that do not exist. */
import { expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, read, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { random } from "../support/gradcheck.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

async function check(vocabulary: number, channels: number, ids: Uint32Array, shape = [ids.length]): Promise<void> {
  await checkOp(`embedding [${vocabulary}, ${channels}] of ${ids.length} ids`, {
    inputs: [random(vocabulary + channels).uniform([vocabulary, channels])],
    gpu: (table) => ops.embedding(table, tokenIds(ids, shape)),
    reference: (table) => nn.embedding(table, ids, shape),
    forward: { rtol: 0, atol: 0 },
  });
}

/** dTable for a table of this shape. */
async function gradient(shape: [number, number], ids: Uint32Array, dy: Float32Array): Promise<Float32Array> {
  const table = parameter(keep(tensor(new Float32Array(shape[0] * shape[1]), shape)));
  return scopeAsync(async () => {
    backward(ops.embedding(table, tokenIds(ids)), tensor(dy, [ids.length, shape[1]]));
    const result = await read(table.grad!);
    [table.value, table.grad!].forEach(dispose);
    return result;
  });
}

test.each([1, 3, 6, 7, 63, 64, 65, 257])("%i channels", (channels) => check(5, channels, random(channels).ids(7, 5)));

test("ids of two axes", () => check(11, 5, random(1).ids(12, 11), [3, 4]));
test("one id over and over", () => check(3, 7, new Uint32Array(257).fill(1)));
test("the first and the last row", () => check(65, 3, Uint32Array.of(64, 0, 64, 0, 0)));
test.each([1, 128])("with %i threads to a row", (threads) =>
  withRowThreads(threads, () => check(6, 65, random(2).ids(20, 6))));

test("more ids than one grid dimension holds", async () => {
  // All ids distinct, so that backward has as many workgroups too. Integers: sums are exact.
  const count = 65_539;
  const ids = Uint32Array.from({ length: count }, (_, i) => (i * 7) % count);
  const dy = Float32Array.from({ length: 2 * count }, (_, i) => i % 1000);
  const expected = new Float32Array(2 * count);
  ids.forEach((id, i) => expected.set(dy.subarray(2 * i, 2 * i + 2), 2 * id));
  expect(await gradient([count, 2], ids, dy)).toEqual(expected);

  const table = Float32Array.from({ length: 2 * count }, (_, i) => i);
  const y = await scopeAsync(() => read(ops.embedding(constant(tensor(table, [count, 2])), tokenIds(ids)).value));
  expect(y).toEqual(Float32Array.from({ length: 2 * count }, (_, i) => 2 * ids[i >> 1]! + (i & 1)));
});

test("a row that no id names gets exactly 0", async () => {
  const dTable = await gradient([9, 4], Uint32Array.of(2, 5, 2), new Float32Array(12).fill(1));
  expect([...dTable]).toEqual([0, 0, 2, 0, 0, 1, 0, 0, 0].flatMap((n) => [n, n, n, n]));
});

test("no ids at all", async () => {
  expect([...(await gradient([3, 2], new Uint32Array(0), new Float32Array(0)))]).toEqual([0, 0, 0, 0, 0, 0]);
});

test("the same gradient, bit for bit, on every run", async () => {
  const ids = random(3).ids(500, 7);
  const dy = Float32Array.from(random(4).uniform([500, 33]).data);
  expect(await gradient([7, 33], ids, dy)).toEqual(await gradient([7, 33], ids, dy));
});

test("an id beyond the table is named", () => {
  const table = constant(toGpu(random(5).uniform([65, 2])));
  expect(() => ops.embedding(table, tokenIds([3, 70, 1]))).toThrow(
    "embedding: id 70 at position 1, but the table has only 65 rows",
  );
  expect(() => tokenIds([1, -1])).toThrow("tokenIds: -1 at position 1 is not a token id");
  expect(() => tokenIds([1.5])).toThrow("tokenIds: 1.5 at position 0 is not a token id");
});

test("ids drawn on the GPU can be looked up, but not differentiated through", async () => {
  const table = parameter(tensor([1, 2, 3, 4], [2, 2]));
  const drawn = { tensor: tensor(Uint32Array.of(1, 0)), host: new Uint32Array(0) };
  const y = ops.embedding(table, drawn);
  expect([...(await read(y.value))]).toEqual([3, 4, 1, 2]);
  expect(() => backward(y, tensor([1, 1, 1, 1], [2, 2]))).toThrow("have no host copy");
});
