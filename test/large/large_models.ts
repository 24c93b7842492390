/**
 * Models of real size with random weights, on whatever adapter there is, against the float64 reference:
 *
 *   npm run test:large
 *
 * GPT-2 in its published shape (124 M parameters, an embedding table of 147 MiB) and Qwen3-0.6B with 2 of its 28
 * layers (187 M parameters, a table of 594 MiB) are written as Hugging Face directories, loaded, asked for
 * log-probabilities and greedy tokens, and trained for one AdamW step with checkpointed layers. Compared are every
 * log-probability, every greedy choice, and gradients and updated values of a few parameters, among them rows of the
 * table beyond what the software driver can bind at once. Prints host and GPU memory. Takes minutes and some 10 GiB,
 * which is why it is not part of `npm test`.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { adamw } from "../../src/autograd/adamw.ts";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { streamSafetensors } from "../../src/data/safetensors.ts";
import { loadGpt } from "../../src/model/checkpoint.ts";
import { configToHub, FAMILIES, type GptConfig } from "../../src/model/config.ts";
import { arangePositions, disposeGpt, headWeight, hiddenStates, type Gpt } from "../../src/model/gpt.ts";
import { estimateMemory, gib, requireMemory } from "../../src/model/memory_estimate.ts";
import { parameterCount, parameterShapes } from "../../src/model/parameters.ts";
import { sampleCompletions } from "../../src/model/sampler.ts";
import { scoreTokens } from "../../src/model/score.ts";
import { IGNORE } from "../../src/tensor/cross_entropy.ts";
import { describeGpu, openGpu } from "../../src/tensor/device.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, resetPeak, scopeAsync, trimPool } from "../../src/tensor/memory.ts";
import { read, tensor } from "../../src/tensor/tensor.ts";
import type { HubConfig } from "../support/oracles.ts";
import { array64, type Array64 } from "../support/reference.ts";
import { referenceForward } from "../support/reference_model.ts";
import { logSoftmax } from "../support/reference_nn.ts";

interface LargeModel {
  readonly title: string;
  readonly config: GptConfig;
  /** Parameter and flat index of the entries whose gradient and update are checked. */
  readonly entries: readonly (readonly [name: string, index: number])[];
}

const MODELS: readonly LargeModel[] = [
  {
    title: "GPT-2, 124 M",
    config: {
      ...FAMILIES.gpt2, vocabSize: 50257, hiddenSize: 768, layers: 12, heads: 12, kvHeads: 12, headSize: 64,
      mlpSize: 3072, normEps: 1e-5, rope: null, maxPositions: 1024, tiedEmbeddings: true,
    },
    entries: [
      ["transformer.wte.weight", 50000 * 768 + 5], // a token of the text, beyond the first range of rows
      ["transformer.wte.weight", 49999 * 768 + 700], // a token that only the head sees
      ["transformer.wpe.weight", 2 * 768 + 10],
      ["transformer.h.0.attn.c_attn.weight", 5 * 2304 + 1700],
      ["transformer.h.11.mlp.c_proj.weight", 3000 * 768 + 3],
      ["transformer.ln_f.weight", 9],
    ],
  },
  {
    title: "Qwen3-0.6B with 2 of 28 layers",
    config: {
      ...FAMILIES.qwen3, vocabSize: 151936, hiddenSize: 1024, layers: 2, heads: 16, kvHeads: 8, headSize: 128,
      mlpSize: 3072, normEps: 1e-6, rope: { theta: 1e6 }, maxPositions: 40960, tiedEmbeddings: true,
    },
    entries: [
      ["model.embed_tokens.weight", 50000 * 1024 + 5],
      ["model.embed_tokens.weight", 151000 * 1024 + 700],
      ["model.layers.0.self_attn.q_proj.weight", 100 * 1024 + 17],
      ["model.layers.1.mlp.down_proj.weight", 30 * 3072 + 2000],
      ["model.layers.1.self_attn.k_norm.weight", 64],
      ["model.norm.weight", 9],
    ],
  },
];

const TEXT = [11, 50000, 318, 257, 1332, 43700, 13];
const NEW_TOKENS = 3;
const LEARNING_RATE = 1e-3;

/** Values in [-0.1, 0.1) (norms: about 1) that follow from the name alone, so that nobody has to keep them. */
function randomValues(name: string, shape: readonly number[]): Float32Array {
  const isNorm = /norm|ln_\w+\.weight/.test(name);
  let state = [...name].reduce((hash, letter) => Math.imul(hash ^ letter.charCodeAt(0), 0x01000193), 0x811c9dc5) | 1;
  const values = new Float32Array(shape.reduce((n, m) => n * m, 1));
  for (let i = 0; i < values.length; i++) {
    state ^= state << 13; // xorshift32 (Marsaglia 2003)
    state ^= state >>> 17;
    state ^= state << 5;
    values[i] = (isNorm ? 1 : 0) + 0.1 * (state / 2 ** 31);
  }
  return values;
}

let failures = 0;

function check(what: string, error: number, limit: number): void {
  const holds = error <= limit;
  if (!holds) failures += 1;
  console.log(`  ${holds ? "ok  " : "FAIL"} ${what}: ${error.toExponential(1)} (limit ${limit.toExponential(0)})`);
}

async function timed<T>(what: string, work: () => T | Promise<T>): Promise<T> {
  const start = performance.now();
  const result = await work();
  console.log(`  ${what}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
  return result;
}

async function writeDirectory(directory: string, config: GptConfig): Promise<void> {
  const specs = [...parameterShapes(config)].map(([name, shape]) => ({ name, shape, dtype: "F32" as const }));
  const read = ({ name, shape }: { name: string; shape: readonly number[] }): Promise<Float32Array> =>
    Promise.resolve(randomValues(name, shape));
  await streamSafetensors(join(directory, "model.safetensors"), specs, read, { format: "pt" });
  writeFileSync(join(directory, "config.json"), JSON.stringify(configToHub(config, "F32")));
}

/** The reference's forward pass and loss; one weight can be moved by a small amount, to differentiate. */
function reference(config: GptConfig) {
  const hub = configToHub(config, "F32") as unknown as HubConfig;
  const shapes = parameterShapes(config);
  const widened = new Map<string, Array64>();
  const weights = (name: string): Array64 | undefined => {
    const shape = shapes.get(name);
    if (shape && !widened.has(name)) widened.set(name, array64(shape, randomValues(name, shape)));
    return widened.get(name);
  };
  /** log p of every token of the vocabulary at every position: [T, V] */
  const logProbs = (ids: readonly number[]): Array64 => logSoftmax(referenceForward(hub, weights, { ids, batch: 1 }).logits);
  const nextTokenLogProbs = (ids: readonly number[]): number[] => {
    const all = logProbs(ids);
    return ids.slice(1).map((id, t) => all.data[t * config.vocabSize + id]!);
  };
  const loss = (ids: readonly number[]): number => {
    const values = nextTokenLogProbs(ids);
    return -values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  const derivative = (ids: readonly number[], name: string, index: number): number => {
    const { data } = weights(name)!;
    const [value, step] = [data[index]!, 1e-4];
    data[index] = value + step;
    const above = loss(ids);
    data[index] = value - step;
    const below = loss(ids);
    data[index] = value;
    return (above - below) / (2 * step);
  };
  return { logProbs, nextTokenLogProbs, derivative };
}

function lossOf(model: Gpt): ReturnType<typeof ops.mulScalar> {
  const targets = tensor(Uint32Array.from(TEXT, (_, t) => TEXT[t + 1] ?? IGNORE));
  const hidden = hiddenStates(model, tokenIds(TEXT, [1, TEXT.length]), {
    positions: arangePositions(1, TEXT.length),
    checkpointLayers: true,
  });
  return ops.mulScalar(ops.sum(ops.tokenLogProb(hidden, headWeight(model), targets).logProbs), -1 / (TEXT.length - 1));
}

async function checkModel({ title, config, entries }: LargeModel): Promise<void> {
  console.log(`${title}: ${(parameterCount(config) / 1e6).toFixed(1)} M parameters`);
  const work = { training: { tokens: TEXT.length, checkpointLayers: true } };
  requireMemory(config, work, "a machine with more memory");
  const directory = mkdtempSync(join(tmpdir(), "large-model-"));
  resetPeak();
  try {
    await timed("write", () => writeDirectory(directory, config));
    const model = await timed("load", () => loadGpt(directory));
    const host = process.memoryUsage();
    console.log(`  host arrays after loading ${gib(host.arrayBuffers)}, largest tensor ${gib(4 * config.vocabSize * config.hiddenSize)}`);
    const truth = reference(config);

    const score = await timed("score", () => scoreTokens(model, TEXT));
    const expected = truth.nextTokenLogProbs(TEXT);
    check("log-probabilities", Math.max(...expected.map((value, t) => Math.abs(value - score.logProbs[t + 1]!))), 1e-4);

    const options = { maxNewTokens: NEW_TOKENS, temperature: 0, seed: 0, endIds: [] };
    const [completions] = await timed("generate", () => sampleCompletions(model, [TEXT], 1, options));
    const { tokens } = completions![0]!;
    const all = truth.logProbs([...TEXT, ...tokens]);
    const regret = tokens.map((token, i) => {
      const row = all.data.subarray((TEXT.length - 1 + i) * config.vocabSize, (TEXT.length + i) * config.vocabSize);
      return row.reduce((best, value) => Math.max(best, value), -Infinity) - row[token]!;
    });
    check("greedy tokens, log-probability below the best", Math.max(...regret), 1e-4);

    const optimizer = adamw([...model.parameters.values()], { weightDecay: 0.01 });
    await timed("training step", () => scopeAsync(async () => {
      const loss = lossOf(model);
      backward(loss);
      optimizer.step(LEARNING_RATE);
      await read(loss.value);
    }));
    for (const [name, index] of entries) {
      const { value, grad } = model.parameters.get(name)!;
      const [gradients, updated] = [await read(grad!), await read(value)];
      const largest = gradients.reduce((most, each) => Math.max(most, Math.abs(each)), 0);
      const derivative = truth.derivative(TEXT, name, index);
      check(`gradient ${name}[${index}]`, Math.abs(gradients[index]! - derivative) / largest, 1e-3);
      const before = randomValues(name, parameterShapes(config).get(name)!)[index]!;
      // AdamW's first step: both moments hold one gradient.
      const stepped = before * (1 - LEARNING_RATE * 0.01) - LEARNING_RATE * derivative / (Math.abs(derivative) + 1e-8);
      check(`updated  ${name}[${index}]`, Math.abs(updated[index]! - stepped), 1e-5);
    }
    const { peakBytes } = memoryStats();
    console.log(`  GPU memory at most ${gib(peakBytes)}, estimated ${gib(estimateMemory(config, work).total)}`);
    optimizer.dispose();
    disposeGpt(model);
    trimPool();
  } finally {
    rmSync(directory, { recursive: true });
  }
}

await openGpu();
console.log(`adapter: ${describeGpu()}`);
for (const model of MODELS) await checkModel(model);
console.log(`host and software GPU memory at most ${gib(process.resourceUsage().maxRSS * 1024)}`);
console.log(failures === 0 ? "all checks hold" : `${failures} checks do not hold`);
process.exit(failures === 0 ? 0 : 1);
