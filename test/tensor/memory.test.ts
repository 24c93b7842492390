/** The buffer pool: scopes, keep and dispose, poison, uploads in order with commands, the byte budget. */
import { describe, expect, test } from "vitest";
import { GpuError, openGpu } from "../../src/tensor/device.ts";
import * as el from "../../src/tensor/elementwise.ts";
import { memoryStats, resetPeak, scope, scopeAsync, sizeClass, trimPool } from "../../src/tensor/memory.ts";
import { recorderStats } from "../../src/tensor/recorder.ts";
import {
  dispose, empty, keep, read, readAll, readIds, reshape, tensor, write, type Tensor,
} from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { random } from "../support/gradcheck.ts";

const MIB = 2 ** 20;
await openGpu({ byteBudget: 64 * MIB }); // before gpu.ts opens it: the first call decides

/** Runs `body` and checks that it leaves nothing behind. */
async function balanced(body: () => Promise<void> | void): Promise<void> {
  const before = memoryStats().liveBytes;
  await body();
  expect(memoryStats().liveBytes).toBe(before);
}

test("size classes waste at most a quarter, and grow with the size", () => {
  let previous = 0;
  for (const bytes of [0, 1, 4, 255, 256, 257, 1000, 1100, 4097, 65_535, 65_537, 3_000_000, 2 ** 30 + 1]) {
    const capacity = Math.max(256, sizeClass(bytes));
    expect(capacity).toBeGreaterThanOrEqual(bytes);
    expect(capacity).toBeGreaterThanOrEqual(previous);
    expect(capacity % 4).toBe(0);
    if (bytes > 1024) expect(capacity).toBeLessThanOrEqual(1.26 * bytes);
    previous = capacity;
  }
  expect(sizeClass(1000)).toBe(1024);
  expect(sizeClass(1100)).toBe(1280);
});

describe("scopes", () => {
  test("free what was allocated in them, except their result", () =>
    balanced(async () => {
      let inner: Tensor | undefined;
      const y = scope(() => {
        inner = tensor([1, 2]);
        return el.exp(inner);
      });
      expect(inner!.storage.released).toBe(true);
      expect(y.storage.released).toBe(false);
      expect((await read(y))[0]).toBeCloseTo(Math.E, 5);
      dispose(y);
    }));

  test("hand results in objects, arrays and views to the scope outside", () =>
    balanced(() => {
      scope(() => {
        const { list, view } = scope(() => {
          const list = [tensor([1]), tensor([2])];
          return { list, view: reshape(tensor([3, 4]), [2, 1]) };
        });
        expect([...list, view].every(({ storage }) => !storage.released)).toBe(true);
      });
    }));

  test("hand on what maps, by key or value, and sets hold", () =>
    balanced(() => {
      scope(() => {
        const result = scope(() => ({
          named: new Map([["x", { list: [tensor([1])] }]]),
          keyed: new Map([[tensor([2]), 2]]),
          some: new Set([tensor([3])]),
        }));
        const held = [...result.named.get("x")!.list, ...result.keyed.keys(), ...result.some];
        expect(held.map(({ storage }) => storage.released)).toEqual([false, false, false]);
      });
    }));

  test("free everything when the body throws", () =>
    balanced(async () => {
      expect(() => scope(() => { tensor([1]); throw new Error("as planned"); })).toThrow("as planned");
      const failing = scopeAsync(async () => { await read(tensor([1])); throw new Error("as planned"); });
      await expect(failing).rejects.toThrow("as planned");
    }));

  test("leave kept tensors alone", () =>
    balanced(() => {
      const kept = scope(() => {
        const x = keep(tensor([1]));
        return { hidden: (): Tensor => x };
      }).hidden();
      expect(kept.storage.released).toBe(false);
      dispose(kept);
      expect(() => dispose(kept)).toThrow(/released twice/);
    }));

  test("may return a value that holds a large shared graph", () => {
    let node: Record<string, unknown> = {};
    for (let i = 0; i < 50_000; i++) node = { left: node, right: node };
    expect(scope(() => node)).toBe(node);
  });
});

test("a released buffer is filled with NaN in tests, and is used again", () =>
  balanced(() => scopeAsync(async () => {
    const first = tensor([1, 2, 3]);
    const { pooled } = first.storage;
    dispose(first);
    const second = empty([3]);
    expect(second.storage.pooled).toBe(pooled);
    expect([...(await read(second))]).toEqual([NaN, NaN, NaN]);
  })));

test("using a released tensor is an error that names the operation and the operand", async () => {
  await scopeAsync(() => {
    const gone = scope(() => { const x = tensor([1]); return { x: (): Tensor => x }; }).x();
    expect(() => el.exp(gone)).toThrow(GpuError);
    expect(() => el.exp(gone)).toThrow(/unary\.exponential: x was released \(its scope has ended\)/);
    return Promise.resolve();
  });
});

test("so is reading or writing one, whose memory may hold another tensor by now", async () => {
  await scopeAsync(async () => {
    const made: Tensor[] = [];
    scope(() => { made.push(el.fill([4], 1), tensor(Uint32Array.of(1, 2))); });
    const [gone, ids] = made as [Tensor, Tensor];
    el.fill([4], 2);
    await expect(read(gone)).rejects.toThrow(GpuError);
    await expect(read(reshape(gone, [2, 2]))).rejects.toThrow("read: [2, 2] was released (its scope has ended)");
    await expect(readAll([tensor([1]), gone])).rejects.toThrow("readAll: [4] was released");
    await expect(readIds(ids)).rejects.toThrow("readIds: [2] was released");
    expect(() => write(gone, new Float32Array(4))).toThrow("write: [4] was released (its scope has ended)");
  });
});

describe("uploads keep their place among the commands", () => {
  test("overwriting a tensor does not reach back to operations recorded before", () =>
    scopeAsync(async () => {
      const x = tensor([1, 2]);
      const before = el.mulScalar(x, 10);
      write(x, Float32Array.of(5, 6));
      const after = el.mulScalar(x, 10);
      expect([...(await read(before))]).toEqual([10, 20]);
      expect([...(await read(after))]).toEqual([50, 60]);
    }));

  test("neither does a new tensor in a buffer whose old content is still to be read", () =>
    scopeAsync(async () => {
      const old = tensor([1, 2]);
      const y = el.neg(old);
      dispose(old); // its commands are recorded, not run
      const fresh = tensor([7, 8]);
      expect(fresh.storage.pooled).toBe(old.storage.pooled);
      expect([...(await read(y))]).toEqual([-1, -2]);
      expect([...(await read(fresh))]).toEqual([7, 8]);
    }));

  test("and a buffer that no recorded command uses needs no submit", () =>
    scopeAsync(async () => {
      el.exp(tensor([1]));
      const { submits } = recorderStats();
      const large = tensor(new Float32Array(100_000)); // a size class of its own
      expect(recorderStats().submits).toBe(submits);
      expect((await read(large)).length).toBe(100_000);
    }));

  test("more dispatches than one submission holds", () =>
    scopeAsync(async () => {
      let x = tensor([0]);
      for (let i = 0; i < 1000; i++) x = scope(() => el.addScalar(x, i));
      expect([...(await read(x))]).toEqual([499_500]);
    }));
});

test("100 steps of changing shapes: live bytes return, the pool stops growing", async () => {
  const rng = random(1);
  const step = (rows: number): number =>
    scope(() => {
      el.exp(el.add(empty([rows, 17]), empty([17])));
      return memoryStats().liveBytes;
    });
  const sizes = Array.from({ length: 20 }, () => 1 + Math.floor(500 * rng.next()));
  const { liveBytes } = memoryStats();
  sizes.forEach(step);
  const { poolBytes } = memoryStats();
  for (let i = 0; i < 100; i++) step(sizes[i % sizes.length]!);
  expect(memoryStats()).toMatchObject({ liveBytes, poolBytes });
  await Promise.resolve();
});

test("the peak counts what was alive at the same time", () =>
  balanced(() => {
    resetPeak();
    const { liveBytes } = memoryStats();
    scope(() => { scope(() => { empty([MIB / 4]); }); empty([MIB / 4]); });
    expect(memoryStats().peakBytes - liveBytes).toBe(MIB);
  }));

test("a scope that outlives an await of the one around it is refused", async () => {
  let finish = (): void => undefined;
  const waiting = new Promise<void>((resolve) => (finish = resolve));
  const outer = scopeAsync(() => waiting);
  const inner = scopeAsync(() => new Promise<void>((resolve) => setTimeout(resolve, 20)));
  finish();
  await expect(outer).rejects.toThrow(/scopes were closed out of order/);
  await expect(inner).rejects.toThrow(/scopes were closed out of order/);
});

describe("the byte budget", () => {
  test("is enforced with the numbers and a fix", () =>
    balanced(() => scopeAsync(async () => {
      const large = empty([48 * MIB / 4]);
      expect(() => empty([48 * MIB / 4])).toThrow(GpuError);
      expect(() => empty([48 * MIB / 4])).toThrow(
        /out of GPU memory: 48\.0 MiB more would exceed the budget of 64\.0 MiB \(4\d\.\d MiB in use\)\. Fix: a/,
      );
      el.fillInto(large, 1);
      expect((await read(large))[0]).toBe(1);
    })));

  test("what exceeds 2 GiB is refused, whatever the budget is", () => {
    expect(() => empty([2 ** 29 + 1])).toThrow(/a tensor of 2048\.0 MiB exceeds 2048\.0 MiB, the most that one tensor/);
  });

  test("free buffers of other sizes make room first", () =>
    balanced(async () => {
      scope(() => { empty([40 * MIB / 4]); });
      expect(memoryStats().poolBytes).toBeGreaterThanOrEqual(40 * MIB);
      const y = scope(() => el.fill([50 * MIB / 4], 2));
      expect((await read(y)).at(-1)).toBe(2);
      dispose(y);
    }));

  test("trimPool destroys free buffers only", async () => {
    const x = keep(tensor([1, 2]));
    const y = keep(el.exp(x));
    trimPool();
    expect(memoryStats().poolBytes).toBe(memoryStats().liveBytes);
    expect((await read(y))[0]).toBeCloseTo(Math.E, 5);
    [x, y].forEach(dispose);
  });
});
