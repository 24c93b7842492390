/** Gradient checkpointing: the same bits as without, in less memory. */
import { describe, expect, test } from "vitest";
import { backward, gradientsOf } from "../../src/autograd/backward.ts";
import { checkpoint } from "../../src/autograd/checkpoint.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, detach, parameter } from "../../src/autograd/variable.ts";
import { loadGpt } from "../../src/model/checkpoint.ts";
import { arangePositions, disposeGpt, hiddenStates, logits } from "../../src/model/gpt.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, resetPeak, scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, read, tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { fixturePath } from "../support/oracles.ts";

describe("gradientsOf", () => {
  test("gives what backward gives, and leaves grad alone; null where nothing flows", async () => {
    await scopeAsync(async () => {
      const [a, b, c] = [parameter(tensor([2, 3])), parameter(tensor([5, 7])), parameter(tensor([1]))];
      const loss = ops.sum(ops.mul(ops.add(a, a), b));
      const [da, db, dc] = gradientsOf(loss, [a, b, c]);
      expect(await read(da!)).toEqual(Float32Array.of(10, 14));
      expect(await read(db!)).toEqual(Float32Array.of(4, 6));
      expect(dc).toBeNull();
      expect(a.grad).toBeNull();
      expect(() => gradientsOf(loss, [a])).toThrow(/already walked/);
    });
  });
});

describe("checkpoint", () => {
  test("inputs used twice, inputs without gradient, and an input that is the output", async () => {
    await scopeAsync(async () => {
      const [x, w] = [parameter(keep(tensor([2, 3]))), parameter(keep(tensor([5, 7])))];
      const mask = constant(tensor([1, 0]));
      const y = checkpoint([x, w, mask], ([a, b, m]) => ops.add(ops.mul(ops.mul(a!, a!), b!), ops.mul(a!, m!)));
      const same = checkpoint([x], ([a]) => a!);
      backward(ops.sum(ops.add(y, same))); // sum(x^2 w + x m + x)
      expect(await read(y.value)).toEqual(Float32Array.of(22, 63));
      expect(await read(x.grad!)).toEqual(Float32Array.of(2 * 2 * 5 + 1 + 1, 2 * 3 * 7 + 1));
      expect(await read(w.grad!)).toEqual(Float32Array.of(4, 9));
      for (const { value, grad } of [x, w]) [value, grad!].forEach(dispose);
    });
  });

  test("one Variable as two inputs, whose gradients share their memory", async () => {
    await scopeAsync(async () => {
      const x = parameter(keep(tensor([2, 3])));
      backward(ops.sum(checkpoint([x, x], ([a, b]) => ops.mulScalar(ops.add(a!, b!), 5))));
      expect(await read(x.grad!)).toEqual(Float32Array.of(10, 10));
      [x.value, x.grad!].forEach(dispose);
    });
  });

  test("refuses a block that reaches for a tracked Variable from outside, and frees what it made", async () => {
    await scopeAsync(async () => {
      const [x, w] = [parameter(tensor([2, 3])), parameter(tensor([5, 7]))];
      const before = memoryStats().liveBuffers;
      const lost = /checkpoint: the block uses a tracked Variable that is not among its inputs.* Fix: pass it as an/;
      expect(() => checkpoint([x], ([a]) => ops.exp(ops.mul(a!, w)))).toThrow(lost);
      expect(() => checkpoint([x], () => w)).toThrow(lost);
      expect(memoryStats().liveBuffers).toBe(before);
      const y = checkpoint([x], ([a]) => ops.mul(a!, detach(w)));
      expect(await read(gradientsOf(ops.sum(y), [x])[0]!)).toEqual(Float32Array.of(5, 7));
    });
  });

  test("records nothing when no input is tracked", async () => {
    await scopeAsync(async () => {
      const y = checkpoint([constant(tensor([3]))], ([a]) => ops.exp(a!));
      expect(y.tracked).toBe(false);
      await read(y.value);
    });
  });
});

describe.each(["gpt2-a1", "qwen3-a2"])("%s with checkpointed layers", (name) => {
  const model = (): ReturnType<typeof loadGpt> => loadGpt(fixturePath(`models/${name}`));
  const ids = Array.from({ length: 4 * 48 }, (_, i) => (i * 7) % 90);

  async function step(checkpointLayers: boolean) {
    const gpt = model();
    const before = memoryStats();
    resetPeak();
    const value = await scopeAsync(async () => {
      const positions = arangePositions(4, 48);
      const hidden = hiddenStates(gpt, tokenIds(ids, [4, 48]), { positions, checkpointLayers });
      const loss = ops.mean(ops.mul(logits(gpt, hidden), logits(gpt, hidden)));
      backward(loss);
      return read(loss.value);
    });
    const peak = memoryStats().peakBytes - before.liveBytes;
    const gradients = new Map<string, Float32Array>();
    for (const [parameterName, { grad }] of gpt.parameters) gradients.set(parameterName, await read(grad!));
    disposeGpt(gpt);
    const ofParameters = new Set([...gpt.parameters.values()].map((own) => own.value.storage)).size;
    expect(memoryStats().liveBuffers).toBe(before.liveBuffers - ofParameters - (gpt.rotary ? 2 : 0));
    return { value, gradients, peak };
  }

  test("loss and gradients are bit-equal, the peak of memory is lower, and nothing leaks", async () => {
    const plain = await step(false);
    const checkpointed = await step(true);
    expect(checkpointed.value).toEqual(plain.value);
    expect(checkpointed.gradients).toEqual(plain.gradients);
    expect(checkpointed.peak).toBeLessThan(0.8 * plain.peak);
  });
});
