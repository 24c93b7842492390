/** rotary against float64: angles, positions, the inverse, and Llama 3's stretched frequencies. */
import { expect, test } from "vitest";
import * as ops from "../../src/autograd/ops.ts";
import { constant } from "../../src/autograd/variable.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { rotary, rotaryFrequencies, rotaryTables, type RotaryTables } from "../../src/tensor/rotary.ts";
import { dispose, read, tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const POSITIONS = 80;

async function withTables(
  headSize: number,
  theta: number,
  body: (tables: RotaryTables) => Promise<void>,
): Promise<void> {
  const tables = rotaryTables(POSITIONS, headSize, theta);
  await body(tables);
  [tables.cos, tables.sin].forEach(dispose);
}

async function check(shape: readonly [number, number, number, number], theta = 10_000): Promise<void> {
  const [batch, time, , headSize] = shape;
  const positions = random(2).ids(batch * time, POSITIONS);
  const reference = nn.rotaryTables(POSITIONS, headSize, theta);
  await withTables(headSize, theta, (tables) =>
    checkOp(`rotary [${shape.join(", ")}]`, {
      inputs: [random(3).uniform(shape)],
      gpu: (x) => ops.rotary(x, tables, idsToGpu(positions, [batch, time])),
      reference: (x) => nn.rotary(x, reference.cos, reference.sin, positions),
    }),
  );
}

test.each([2, 6, 14, 16, 32, 64, 130])("head size %i", (headSize) => check([2, 2, 3, headSize]));
test.each([1, 2, 5, 12])("%i heads", (heads) => check([2, 3, heads, 8], 1e6));
test.each([1, 4, 128])("with %i threads to a token", (threads) => withRowThreads(threads, () => check([2, 2, 5, 14])));

test("more tokens than one grid dimension holds", async () => {
  const time = 65_539;
  const x = random(4).uniform([1, time, 1, 2]);
  const positions = Uint32Array.from({ length: time }, (_, i) => i % POSITIONS);
  const { cos, sin } = nn.rotaryTables(POSITIONS, 2, 100);
  const tables = rotaryTables(POSITIONS, 2, 100);
  const y = await scopeAsync(() => read(rotary(toGpu(x), tables, idsToGpu(positions))));
  expectClose("rotary", y, nn.rotary(x, cos, sin, positions).data, { rtol: 1e-6, atol: 1e-6 });
  [tables.cos, tables.sin].forEach(dispose);
});

test("the inverse undoes it, and lengths stay", async () => {
  const x = random(5).uniform([1, 6, 2, 16]);
  await withTables(16, 10_000, async (tables) => {
    await scopeAsync(async () => {
      const positions = idsToGpu([0, 1, 2, 40, 41, 79]);
      const turned = rotary(toGpu(x), tables, positions);
      const back = await read(rotary(turned, tables, positions, { inverse: true }));
      expectClose("rotary back", back, x.data, { rtol: 0, atol: 1e-6 });
      const y = await read(turned);
      for (let i = 0; i < y.length; i += 16) {
        const length = (values: ArrayLike<number>): number => Math.hypot(...Array.from(values).slice(i, i + 16));
        expect(length(y)).toBeCloseTo(length(x.data), 5);
      }
    });
  });
});

test("a product of two rotated vectors depends on their distance only", async () => {
  const numbers = random(6);
  const [a, b] = [numbers.uniform([16]).data, numbers.uniform([16]).data];
  await withTables(16, 10_000, async (tables) => {
    const product = async (p: number, q: number): Promise<number> => {
      const x = tensor(Float32Array.from([...a, ...b]), [1, 2, 1, 16]);
      const y = await read(rotary(x, tables, idsToGpu([p, q])));
      return y.subarray(0, 16).reduce((sum, value, i) => sum + value * y[16 + i]!, 0);
    };
    await scopeAsync(async () => {
      expect(await product(70, 61)).toBeCloseTo(await product(9, 0), 5);
    });
  });
});

test("a position beyond the tables gives NaN for its token only", async () => {
  await withTables(4, 10_000, async (tables) => {
    const x = toGpu(random(7).uniform([1, 2, 1, 4]));
    const y = await scopeAsync(() => read(rotary(x, tables, idsToGpu([POSITIONS, POSITIONS - 1]))));
    expect(Array.from(y, Number.isNaN)).toEqual([true, true, true, true, false, false, false, false]);
    dispose(x);
  });
});

test("Llama 3 scaling: short wavelengths stay, long ones are stretched, the middle is blended", () => {
  // Llama 3.2 1B. Expected values: transformers' _compute_llama3_parameters, formula by formula.
  const scaling = { factor: 32, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };
  const plain = rotaryFrequencies(64, 500_000);
  const scaled = rotaryFrequencies(64, 500_000, scaling);
  plain.forEach((frequency, i) => {
    const wavelength = (2 * Math.PI) / frequency;
    const smooth = (8192 / wavelength - 1) / (4 - 1);
    const expected =
      wavelength > 8192 ? frequency / 32
      : wavelength < 2048 ? frequency
      : (1 - smooth) * (frequency / 32) + smooth * frequency;
    expect(scaled[i]! / expected).toBeCloseTo(1, 12);
  });
  expect(scaled[0]).toBe(1);
  expect(scaled[31]! / plain[31]!).toBeCloseTo(1 / 32, 12);
  expect(plain.some((frequency, i) => scaled[i]! < frequency && scaled[i]! > frequency / 31)).toBe(true); // blended
});

test("shape errors name the operation and both shapes", () => {
  const tables = rotaryTables(4, 8, 10_000);
  scope(() => {
    const x = constant(tensor(new Float32Array(12), [1, 2, 1, 6]));
    expect(() => ops.rotary(x, tables, idsToGpu([0, 1]))).toThrow("has shape [4, 4], expected [4, 3]");
    const y = constant(tensor(new Float32Array(16), [1, 2, 1, 8]));
    expect(() => ops.rotary(y, tables, idsToGpu([0]))).toThrow("positions are u32 [1], expected u32 [1, 2]");
    const odd = constant(tensor(new Float32Array(6), [1, 2, 1, 3]));
    const message = "rotary: head size 3 in x [1, 2, 1, 3] is odd. Fix: an even one";
    expect(() => ops.rotary(odd, tables, idsToGpu([0, 1]))).toThrow(message);
    expect(() => ops.rotary(constant(tensor([1, 2])), tables, idsToGpu([0]))).toThrow("x has shape [2]");
  });
  expect(() => rotaryTables(4, 7, 10_000)).toThrow("head size 7 is odd");
  [tables.cos, tables.sin].forEach(dispose);
});
