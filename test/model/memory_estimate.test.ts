/** The memory estimate against the pool's own count, for every family; and the refusal of what does not fit. */
import { afterEach, describe, expect, test } from "vitest";
import { adamw } from "../../src/autograd/adamw.ts";
import { backward, zeroGrad } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { completionLogProbs, readLogProbs } from "../../src/grpo/completion_log_probs.ts";
import { CheckpointError, FAMILIES, type GptConfig } from "../../src/model/config.ts";
import { arangePositions, createGpt, disposeGpt, headWeight, hiddenStates } from "../../src/model/gpt.ts";
import { estimateMemory, requireMemory } from "../../src/model/memory_estimate.ts";
import { sampleCompletions } from "../../src/model/sampler.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, resetPeak, scopeAsync } from "../../src/tensor/memory.ts";
import { read, tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { randomWeights } from "../support/tiny_model.ts";

const size = { vocabSize: 3001, hiddenSize: 96, layers: 3, heads: 6, kvHeads: 2, headSize: 16, mlpSize: 256 };
const llamaLike = { ...size, normEps: 1e-6, rope: { theta: 10000 }, maxPositions: 128, tiedEmbeddings: true };
const configs: [string, GptConfig][] = [
  ["gpt2", { ...FAMILIES.gpt2, ...size, kvHeads: 6, normEps: 1e-5, rope: null, maxPositions: 128, tiedEmbeddings: true }],
  ["llama, untied", { ...FAMILIES.llama, ...llamaLike, tiedEmbeddings: false }],
  ["qwen2", { ...FAMILIES.qwen2, ...llamaLike }],
  ["qwen3", { ...FAMILIES.qwen3, ...llamaLike }],
];

let models: ReturnType<typeof createGpt>[] = [];
afterEach(() => {
  models.forEach(disposeGpt);
  models = [];
});

/** Live bytes at the worst moment of `work`, with a fresh model. */
async function measure(config: GptConfig, work: (model: ReturnType<typeof createGpt>) => Promise<void>): Promise<number> {
  const before = memoryStats().liveBytes;
  resetPeak();
  const model = createGpt(config, randomWeights(1, 0.05));
  models.push(model);
  await work(model);
  return memoryStats().peakBytes - before;
}

/** Never below what was measured, and at most a seventh above. */
function expectNear(estimate: number, measured: number): void {
  expect(estimate / measured).toBeGreaterThanOrEqual(1);
  expect(estimate / measured).toBeLessThan(1.15);
}

describe.each(configs)("%s", (_, config) => {
  test.each([false, true])("one training step, layers checkpointed: %s", async (checkpointLayers) => {
    const [rows, length] = [4, 96];
    const measured = await measure(config, async (model) => {
      const parameters = [...model.parameters.values()];
      const optimizer = adamw(parameters);
      const ids = Array.from({ length: rows * length }, (__, i) => (i * 31) % 3000);
      await scopeAsync(async () => {
        const hidden = hiddenStates(model, tokenIds(ids, [rows, length]), {
          positions: arangePositions(rows, length),
          checkpointLayers,
        });
        const { logProbs } = ops.tokenLogProb(hidden, headWeight(model), tensor(Uint32Array.from(ids)));
        backward(ops.mean(logProbs));
        optimizer.step(1e-3);
        await read(logProbs.value);
      });
      zeroGrad(parameters);
      optimizer.dispose();
    });
    expectNear(estimateMemory(config, { training: { tokens: rows * length, checkpointLayers } }).total, measured);
  });

  test.each([false, true])("one GRPO step, layers checkpointed: %s", async (checkpointLayers) => {
    const prompts = [1, 2].map((first) => Array.from({ length: 50 }, (__, i) => first + i));
    const completions = Array.from({ length: 24 }, (_, row) => {
      return { promptIds: prompts[row % 2]!, completionIds: Array.from({ length: 12 }, (__, t) => 100 * row + t) };
    });
    const measured = await measure(config, async (model) => {
      const parameters = [...model.parameters.values()];
      const optimizer = adamw(parameters);
      await scopeAsync(async () => {
        const options = { temperature: 1, gradientCheckpointing: checkpointLayers };
        const { logProbs } = completionLogProbs(model, completions, options);
        backward(ops.mean(logProbs));
        optimizer.step(1e-3);
        await read(logProbs.value);
      });
      zeroGrad(parameters);
      optimizer.dispose();
    });
    const training = { tokens: 2 * 50 + 24 * 11, predictions: 24 * 12 + 1, checkpointLayers };
    expectNear(estimateMemory(config, { training }).total, measured);
  });

  test("log-probabilities without gradients", async () => {
    const completions = Array.from({ length: 60 }, (_, row) => {
      return { promptIds: [1, 2, 3, 4], completionIds: Array.from({ length: 12 }, (__, t) => 40 * row + t) };
    });
    const measured = await measure(config, async (model) => {
      await readLogProbs(model, completions, 1);
    });
    expectNear(estimateMemory(config, { scoring: { tokens: 4 + 60 * 11, predictions: 60 * 12 } }).total, measured);
  });

  test("decoding", async () => {
    const work = { prompts: 2, rows: 50, promptLength: 50, newTokens: 10 };
    const prompts = [1, 2].map((first) => Array.from({ length: 50 }, (__, i) => first + i));
    const options = { maxNewTokens: 10, temperature: 1, seed: 1, endIds: [] };
    const measured = await measure(config, async (model) => {
      await sampleCompletions(model, prompts, 25, options);
    });
    expectNear(estimateMemory(config, { generation: work }).total, measured);
  });
});

test("Qwen3-0.6B: 0.6 billion weights, and 16 bytes for each in training", () => {
  const config: GptConfig = {
    ...FAMILIES.qwen3, vocabSize: 151936, hiddenSize: 1024, layers: 28, heads: 16, kvHeads: 8, headSize: 128, mlpSize: 3072,
    normEps: 1e-6, rope: { theta: 1e6 }, maxPositions: 40960, tiedEmbeddings: true,
  };
  const { weights, optimizer } = estimateMemory(config, { training: { tokens: 300 } });
  expect(weights / 2 ** 30).toBeGreaterThan(2.2);
  expect(weights / 2 ** 30).toBeLessThan(2.8);
  expect(optimizer / weights).toBeCloseTo(3, 1);
});

test("what does not fit is refused with the numbers and the knobs", () => {
  const [, config] = configs[3]!;
  requireMemory(config, { training: { tokens: 768 } }, "nothing to fix");
  const attempt = (): void =>
    requireMemory({ ...config, hiddenSize: 1e6, mlpSize: 1e6 }, { training: { tokens: 768 } }, "a smaller --group-size");
  expect(attempt).toThrow(CheckpointError);
  expect(attempt).toThrow(
    /^this needs about \d+\.\d\d GiB of GPU memory \(weights .* GiB, gradients and optimiser .* GiB, activations .* GiB\), but \d+\.\d\d GiB may be used\. Fix: a smaller --group-size$/,
  );
});
