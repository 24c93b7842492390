/** The walk of `backward`: reuse, accumulation, aliasing, errors and memory. Gradient rules are tested in test/ops. */
import { describe, expect, test } from "vitest";
import { backward, zeroGrad } from "../../src/autograd/backward.ts";
import { checkpoint } from "../../src/autograd/checkpoint.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, detach, parameter, type Variable } from "../../src/autograd/variable.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, resetPeak, scope, scopeAsync } from "../../src/tensor/memory.ts";
import { observe } from "../../src/tensor/recorder.ts";
import { ShapeError } from "../../src/tensor/shape.ts";
import { dispose, emptyNeighbours, keep, readAll, tensor, type Tensor } from "../../src/tensor/tensor.ts";
import { checkOp } from "../support/check_op.ts";
import { toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import * as ref from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";

/** Runs `body` with one parameter for each list of values; afterwards nothing of it is left on the GPU. */
async function withParameters(
  values: readonly (readonly number[])[],
  body: (...parameters: Variable[]) => Promise<void>,
): Promise<void> {
  const before = memoryStats().liveBuffers;
  const parameters = values.map((data) => parameter(keep(tensor(data))));
  await scopeAsync(() => body(...parameters));
  zeroGrad(parameters);
  parameters.forEach(({ value }) => dispose(value));
  expect(memoryStats().liveBuffers).toBe(before);
}

/** The gradients of parameters, on the host. */
async function gradients(...parameters: readonly Variable[]): Promise<number[][]> {
  return (await readAll(parameters.map(({ grad }) => grad!))).map((data) => [...data]);
}

describe("reuse of a Variable adds its gradients", () => {
  test("an expression in which a and b appear many times (after micrograd's)", async () => {
    const f = <T>(a: T, b: T, o: Arithmetic<T>): T => {
      let c = o.add(a, b);
      let d = o.add(o.mul(a, b), o.mul(b, o.mul(b, b)));
      c = o.add(c, o.add(c, o.scale(c, 0.5)));
      d = o.add(d, o.mul(d, o.add(o.tanh(o.add(b, a)), c)));
      const e = o.sub(c, d);
      return o.add(o.mul(e, e), o.div(c, o.add(o.mul(d, d), b)));
    };
    await checkOp("micrograd", {
      inputs: [random(51).uniform([7], -1, -0.3), random(52).uniform([7], 0.5, 1)],
      gpu: (a, b) => f(a, b, { ...ops, scale: ops.mulScalar }),
      reference: (a, b) => f(a, b, { ...ref, scale: ref.mulScalar }),
      forward: { rtol: 1e-5, atol: 1e-5 },
    });
  });

  test("a diamond, deep enough that walking every path would never end", async () => {
    await withParameters([[1, 2]], async (p) => {
      let x = ops.mulScalar(p, 1);
      for (let i = 0; i < 60; i++) x = ops.mulScalar(ops.add(x, x), 0.5); // 2^60 paths
      backward(ops.sum(x));
      expect(await gradients(p)).toEqual([[1, 1]]);
    });
  });

  test("the same operation output used by three operations", async () => {
    await checkOp("shared", {
      inputs: [random(53).uniform([5], 0.5, 1)],
      gpu: (x) => { const y = ops.exp(x); return ops.add(ops.mul(y, y), ops.sub(ops.log(y), ops.sqrt(y))); },
      reference: (x) => { const y = ref.exp(x); return ref.add(ref.mul(y, y), ref.sub(ref.log(y), ref.sqrt(y))); },
    });
  });
});

interface Arithmetic<T> {
  add: (a: T, b: T) => T;
  sub: (a: T, b: T) => T;
  mul: (a: T, b: T) => T;
  div: (a: T, b: T) => T;
  scale: (a: T, c: number) => T;
  tanh: (a: T) => T;
}

test("a chain of 10,000 operations does not overflow the stack", async () => {
  await withParameters([[1]], async (p) => {
    let x = p;
    for (let i = 0; i < 10_000; i++) x = ops.addScalar(x, 0.5);
    backward(x);
    expect(await gradients(p)).toEqual([[1]]);
  });
});

describe("what receives a gradient", () => {
  test("constants and detached values do not, and nothing is recorded for them", async () => {
    await withParameters([[2, 3]], async (p) => {
      const c = constant(tensor([10, 20]));
      expect(ops.mul(c, detach(p)).producer).toBeNull();
      backward(ops.sum(ops.add(ops.mul(p, c), ops.mul(p, detach(p))))); // the detached factor counts as a number
      expect(await gradients(p)).toEqual([[12, 23]]);
      expect(c.grad).toBeNull();
    });
  });

  test("intermediate results do not keep theirs, and a parameter that the loss does not use has none", async () => {
    await withParameters([[2], [3]], async (p, unused) => {
      const y = ops.mulScalar(p!, 3);
      backward(ops.mul(y, y));
      expect(y.grad).toBeNull();
      expect(unused!.grad).toBeNull();
      expect(await gradients(p!)).toEqual([[36]]);
    });
  });

  test("a parameter that is itself the loss", async () => {
    await withParameters([[5]], async (p) => {
      backward(p);
      expect(await gradients(p)).toEqual([[1]]);
    });
  });
});

describe("accumulation", () => {
  test("two backward passes add up, zeroGrad starts again", async () => {
    await withParameters([[1, 2]], async (p) => {
      backward(ops.sum(ops.mul(p, p)));
      backward(ops.sum(ops.mulScalar(p, 10)));
      expect(await gradients(p)).toEqual([[12, 14]]);
      zeroGrad([p]);
      expect(p.grad).toBeNull();
      backward(ops.sum(p));
      expect(await gradients(p)).toEqual([[1, 1]]);
    });
  });

  test("a cotangent weights the outputs, and stays the caller's", async () => {
    await withParameters([[1, 2, 3]], async (p) => {
      const cotangent = tensor([1, 0, -2]);
      backward(ops.addScalar(p, 1), cotangent);
      backward(ops.addScalar(p, 1), cotangent);
      expect(await gradients(p)).toEqual([[2, 0, -4]]);
      expect([...(await readAll([cotangent]))[0]!]).toEqual([1, 0, -2]);
    });
  });
});

describe("gradients that share memory are never written to", () => {
  // `add` and `reshape` hand dy through unchanged, so several Variables wait for one tensor.
  test("add(p, p)", async () => {
    await withParameters([[1, 2]], async (p) => {
      backward(ops.sum(ops.add(p, p)));
      expect(await gradients(p)).toEqual([[2, 2]]);
    });
  });

  test("add(p, q), where q is used again, and again", async () => {
    await withParameters([[1, 2], [3, 4]], async (p, q) => {
      const sum = ops.add(p!, q!);
      backward(ops.sum(ops.add(ops.add(sum, q!), ops.mul(q!, q!))));
      expect(await gradients(p!, q!)).toEqual([[1, 1], [8, 10]]);
    });
  });

  test("leaf gradients have memory of their own: a second backward into one leaves the other alone", async () => {
    await withParameters([[1, 2], [3, 4]], async (p, q) => {
      backward(ops.sum(ops.add(p!, q!)));
      expect(p!.grad!.storage).not.toBe(q!.grad!.storage);
      backward(ops.sum(ops.mulScalar(p!, 5)));
      expect(await gradients(p!, q!)).toEqual([[6, 6], [1, 1]]);
    });
  });

  test("a leaf gradient does not alias the cotangent", async () => {
    await withParameters([[1, 2]], async (p) => {
      const cotangent = tensor([1, 1]);
      backward(ops.reshape(p, [2]), cotangent);
      el.fillInto(cotangent, 7);
      expect(await gradients(p)).toEqual([[1, 1]]);
    });
  });

  test("views: reshape, a sum over an axis of length 1, and a residual stream", async () => {
    await withParameters([[1, 2]], async (p) => {
      const row = ops.reshape(p, [1, 2]);
      const x = ops.add(ops.sum(row, [0]), ops.reshape(row, [2]));
      const y = ops.add(x, ops.mul(x, x));
      backward(ops.sum(ops.add(y, p)));
      expect(await gradients(p)).toEqual([[11, 19]]); // x = 2p, y = 2p + 4p^2: 2 + 8p + 1
    });
  });
});

// Rows are read by vectors where the width is a multiple of 4.
describe.each([6, 8])("products and norms add to a gradient that others have begun, width %i", (width) => {
  // Five rows: the norms work on four at a time, and repeat the last one.
  const shapes = [[5, width], [width], [width], [width], [width, width], [width, width]];
  const inputs = shapes.map((shape) => random(61).uniform(shape, -1, 1));
  // Two of each norm, since the first to leave a gradient of x has nothing to add to.
  const gpu = (x: Variable, u: Variable, v: Variable, bias: Variable, a: Variable, b: Variable): Variable => {
    const [first, second] = [ops.rmsNorm(x, u, 1e-6), ops.layerNorm(x, v, bias, 1e-5)];
    const [third, fourth] = [ops.rmsNorm(x, v, 1e-6), ops.layerNorm(x, u, bias, 1e-5)];
    let y = ops.matmul(first, a, { residual: x });
    y = ops.matmul(first, b, { residual: y });
    y = ops.matmul(second, a, { transposeB: true, residual: y });
    y = ops.matmul(third, b, { transposeB: true, residual: y });
    return ops.matmul(fourth, a, { residual: y });
  };

  test("with the right result", async () => {
    await checkOp("shared inputs", {
      inputs,
      gpu,
      reference: (x, u, v, bias, a, b) => {
        const [first, second] = [nn.rmsNorm(x, u, 1e-6), nn.layerNorm(x, v, bias, 1e-5)];
        const [third, fourth] = [nn.rmsNorm(x, v, 1e-6), nn.layerNorm(x, u, bias, 1e-5)];
        const transposed = { transposeB: true };
        return [
          nn.matmul(first, a), nn.matmul(first, b), nn.matmul(second, a, transposed), nn.matmul(third, b, transposed),
          nn.matmul(fourth, a),
        ].reduce((y, product) => ref.add(y, product), x);
      },
      forward: { rtol: 1e-5, atol: 1e-5 },
    });
  });

  test("without a pass of its own", async () => {
    await scopeAsync(async () => {
      const parameters = inputs.map((input) => parameter(keep(toGpu(input))));
      const y = gpu(...(parameters as [Variable, Variable, Variable, Variable, Variable, Variable]));
      const kernels: string[] = [];
      const stop = observe({ dispatch: ([pipeline]) => kernels.push(pipeline.label.split(" ")[0]!) });
      backward(ops.sum(y));
      stop();
      await gradients(...parameters);
      expect(kernels).toContain("rms_norm.rmsNormBackward");
      expect(kernels.filter((name) => /\.add(Into)?$/.test(name))).toEqual([]);
      zeroGrad(parameters);
      parameters.forEach(({ value }) => dispose(value));
    });
  });
});

describe("places set aside for gradients", () => {
  const { uniform } = random(71);
  const values = { table: uniform([9, 8]), weight: uniform([8]), bias: uniform([8]), matrix: uniform([8, 8]), unused: uniform([3]) };
  const names = Object.keys(values) as (keyof typeof values)[];
  const targets = [1, 8, 0, 3, 3];

  /** A tied table, both norms, products with and without a bias, a parameter used twice by one operation. */
  const lossOf = ({ table, weight, bias, matrix }: Record<keyof typeof values, Variable>): Variable => {
    let x = ops.embedding(table, tokenIds([3, 1, 3, 8, 0]));
    x = ops.matmul(ops.rmsNorm(x, weight, 1e-6), matrix, { bias, residual: x });
    x = ops.matmul(ops.layerNorm(x, weight, bias, 1e-5), ops.matmul(matrix, matrix), { residual: x });
    return ops.mean(ops.tokenLogProb(x, table, tensor(Uint32Array.from(targets))).logProbs);
  };

  async function gradientsBy(places: boolean, checkpointed: boolean): Promise<Float32Array[]> {
    const variables = names.map((name) => parameter(toGpu(values[name])));
    const room = emptyNeighbours(names.map((name) => values[name].shape));
    if (places) variables.forEach((own, i) => (own.gradPlace = room[i]!));
    const loss = (): Variable => {
      const named = (parts: readonly Variable[]) => Object.fromEntries(names.map((name, i) => [name, parts[i]!]));
      const run = (parts: readonly Variable[]): Variable => lossOf(named(parts) as Record<keyof typeof values, Variable>);
      return checkpointed ? checkpoint(variables, run) : run(variables);
    };
    for (let part = 0; part < 2; part++) backward(loss());
    const used = variables.slice(0, -1);
    if (places) used.forEach(({ grad, gradPlace }) => expect(grad).toBe(gradPlace));
    expect(variables.at(-1)!.grad).toBeNull();
    const results = (await readAll(used.map(({ grad }) => grad!))) as Float32Array[];
    zeroGrad(variables);
    expect(variables.every(({ grad }) => grad === null)).toBe(true);
    return results;
  }

  test.each([false, true])("an embedding adds to what lies there, and to nothing at first; in a place: %s", async (inPlace) => {
    await scopeAsync(async () => {
      const [value, place] = emptyNeighbours([[4, 2], [4, 2]]) as [Tensor, Tensor];
      [value, place].forEach((x) => el.fillInto(x, 9));
      const table = parameter(value);
      if (inPlace) table.gradPlace = place;
      for (let part = 0; part < 2; part++) backward(ops.sum(ops.embedding(table, tokenIds([1, 3, 1]))));
      expect(await gradients(table)).toEqual([[0, 0, 4, 4, 0, 0, 2, 2]]);
      zeroGrad([table]);
    });
  });

  test.each([false, true])("take the sums of two backward passes, checkpointed: %s", async (checkpointed) => {
    await scopeAsync(async () => {
      const before = memoryStats().liveBuffers;
      const wanted = await scopeAsync(() => gradientsBy(false, false));
      const got = await scopeAsync(() => gradientsBy(true, checkpointed));
      got.forEach((gradient, i) => expectClose(names[i]!, gradient, wanted[i]!, { rtol: 1e-6, atol: 1e-7 }));
      expect(memoryStats().liveBuffers).toBe(before);
    });
  });
});

describe("errors", () => {
  test("a graph is walked once: what it saved is freed", async () => {
    await withParameters([[1, 2]], async (p) => {
      const loss = ops.sum(ops.exp(p));
      backward(loss);
      expect(() => backward(loss)).toThrow(/the graph through ".*" was already walked .* Fix: run the forward pass/);
      const shared = ops.exp(p);
      backward(ops.sum(shared));
      expect(() => backward(ops.mean(shared))).toThrow(/the graph through "exp" was already walked/);
      await Promise.resolve();
    });
  });

  test("a loss that is no scalar, a cotangent that does not fit, a loss without parameters", async () => {
    await withParameters([[1, 2]], async (p) => {
      expect(() => backward(ops.exp(p))).toThrow(ShapeError);
      expect(() => backward(ops.exp(p))).toThrow(/the loss has shape \[2\]; reduce it to a scalar or pass a cotangent/);
      expect(() => backward(ops.exp(p), tensor([1, 2, 3]))).toThrow(/cotangent \[3\] for a value of shape \[2\]/);
      expect(() => backward(constant(tensor([1])))).toThrow(/does not depend on any parameter/);
      await Promise.resolve();
    });
  });
});

describe("memory", () => {
  test("100 steps: after zeroGrad nothing is left of a step, and the pool stops growing", async () => {
    await withParameters([Array.from({ length: 300 }, (_, i) => i / 300)], async (p) => {
      const step = (): void => {
        scope(() => {
          const h = ops.tanh(ops.mul(p, p));
          backward(ops.mean(ops.mul(h, ops.add(h, p))));
        });
        zeroGrad([p]);
      };
      const { liveBytes, liveBuffers } = memoryStats();
      for (let i = 0; i < 10; i++) step();
      const { poolBytes, peakBytes } = memoryStats();
      for (let i = 0; i < 90; i++) step();
      expect(memoryStats()).toEqual({ liveBytes, liveBuffers, poolBytes, peakBytes });
      await Promise.resolve();
    });
  });

  test("a gradient that was added to another is freed: the peak does not grow with a parameter's uses", async () => {
    await withParameters([new Array<number>(1000).fill(0.5)], async (p) => {
      const peakOf = (uses: number): number =>
        scope(() => {
          const terms = Array.from({ length: uses }, (_, i) => ops.mulScalar(p, i));
          const loss = ops.sum(terms.reduce((total, term) => ops.add(total, term)));
          const before = memoryStats().liveBytes;
          resetPeak();
          backward(loss);
          zeroGrad([p]);
          return memoryStats().peakBytes - before;
        });
      expect(peakOf(50)).toBe(peakOf(5));
      await Promise.resolve();
    });
  });

  test("backward frees gradients on the way: its peak does not grow with the depth of the graph", async () => {
    await withParameters([new Array<number>(1000).fill(0.5)], async (p) => {
      const peakOf = (depth: number): number =>
        scope(() => {
          let x = p;
          for (let i = 0; i < depth; i++) x = ops.addScalar(x, 0.1); // saves nothing that backward needs
          const loss = ops.sum(ops.mulScalar(x, 2));
          const before = memoryStats().liveBytes;
          resetPeak();
          backward(loss);
          zeroGrad([p]);
          return memoryStats().peakBytes - before;
        });
      expect(peakOf(100)).toBe(peakOf(10));
      await Promise.resolve();
    });
  });
});
