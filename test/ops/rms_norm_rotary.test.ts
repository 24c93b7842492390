/** rmsNormRotary against the norm and the rotation in float64: head sizes, positions, workgroups, errors. */
import { expect, test } from "vitest";
import * as ops from "../../src/autograd/ops.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { observe } from "../../src/tensor/recorder.ts";
import { rmsNormRotary } from "../../src/tensor/rms_norm_rotary.ts";
import { rotaryTables, type RotaryTables } from "../../src/tensor/rotary.ts";
import { disposeAll, read } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { idsToGpu, toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as nn from "../support/reference_nn.ts";
import { withRowThreads } from "../support/row_threads.ts";

const POSITIONS = 80;
const EPS = 1e-6;

async function withTables(headSize: number, body: (tables: RotaryTables) => Promise<void>): Promise<void> {
  const tables = rotaryTables(POSITIONS, headSize, 10_000);
  await body(tables);
  disposeAll([tables.cos, tables.sin]);
}

async function check(shape: readonly [number, number, number, number]): Promise<void> {
  const [batch, time, , headSize] = shape;
  const positions = random(2).ids(batch * time, POSITIONS);
  const { cos, sin } = nn.rotaryTables(POSITIONS, headSize, 10_000);
  await withTables(headSize, (tables) =>
    checkOp(`rmsNormRotary [${shape.join(", ")}]`, {
      inputs: [random(3).uniform(shape), random(4).uniform([headSize], 0.5, 1.5)],
      gpu: (x, weight) => ops.rmsNormRotary(x, weight, EPS, tables, idsToGpu(positions, [batch, time])),
      reference: (x, weight) => nn.rotary(nn.rmsNorm(x, weight, EPS), cos, sin, positions),
      forward: { rtol: 1e-5, atol: 2e-6 },
    }),
  );
}

test.each([2, 6, 14, 16, 32, 64, 130])("head size %i", (headSize) => check([2, 2, 3, headSize]));
test.each([1, 2, 5, 12])("%i heads", (heads) => check([2, 3, heads, 8]));
test.each([1, 4, 128])("with %i threads to a token", (threads) => withRowThreads(threads, () => check([2, 2, 5, 14])));

test("one launch, and more tokens than one grid dimension holds", async () => {
  const time = 65_539;
  const [x, weight] = [random(4).uniform([1, time, 1, 2]), random(5).uniform([2], 0.5, 1.5)];
  const positions = Uint32Array.from({ length: time }, (_, i) => i % POSITIONS);
  const { cos, sin } = nn.rotaryTables(POSITIONS, 2, 10_000);
  await withTables(2, async (tables) => {
    let launches = 0;
    const y = await scopeAsync(() => {
      const operands = [toGpu(x), toGpu(weight), EPS, tables, idsToGpu(positions)] as const;
      const stop = observe({ dispatch: () => launches++ });
      const result = rmsNormRotary(...operands).y;
      stop();
      return read(result);
    });
    expect(launches).toBe(1);
    const wanted = nn.rotary(nn.rmsNorm(x, weight, EPS), cos, sin, positions);
    expectClose("rmsNormRotary", y, wanted.data, { rtol: 1e-5, atol: 2e-6 });
  });
});

test("a position beyond the tables gives NaN, in its token alone", async () => {
  await withTables(4, async (tables) => {
    await scopeAsync(async () => {
      const x = toGpu(random(6).uniform([1, 3, 2, 4]));
      const y = await read(rmsNormRotary(x, toGpu(random(7).uniform([4])), EPS, tables, idsToGpu([0, POSITIONS, 5])).y);
      expect([...y].map(Number.isNaN)).toEqual(Array.from({ length: 24 }, (_, i) => i >= 8 && i < 16));
    });
  });
});

test("shapes that do not fit are refused", async () => {
  await withTables(4, async (tables) => {
    scope(() => {
      const [x, weight, positions] = [toGpu(random(8).uniform([1, 3, 2, 4])), toGpu(random(8).uniform([4])), idsToGpu([0, 1, 2])];
      const flat = toGpu(random(8).uniform([3, 4]));
      expect(() => rmsNormRotary(flat, weight, EPS, tables, positions)).toThrow("rmsNormRotary: x has shape [3, 4]");
      expect(() => rmsNormRotary(x, flat, EPS, tables, positions)).toThrow("rmsNormRotary: weight has shape [3, 4]");
      expect(() => rmsNormRotary(x, weight, EPS, tables, idsToGpu([0, 1]))).toThrow("rmsNormRotary: positions are u32 [2]");
    });
    await Promise.resolve();
  });
});
