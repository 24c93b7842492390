/** Tiny models for tests: random weights that spread the logits, in memory or as a Hugging Face directory. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { configToHub, FAMILIES, type GptConfig } from "../../src/model/config.ts";
import { parameterShapes } from "../../src/model/parameters.ts";
import { seededNormal } from "../../src/random.ts";
import { makeTokenizerDirectory } from "../data/tokenizer_fixture.ts";
import { writeSafetensors } from "./safetensors_fixture.ts";

/** Two layers, 16 channels, grouped heads, tied: the smallest model that has every part. */
export function tinyConfig(change: Partial<GptConfig> = {}): GptConfig {
  return {
    ...FAMILIES.qwen3,
    vocabSize: 40,
    hiddenSize: 16,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    headSize: 8,
    mlpSize: 24,
    normEps: 1e-6,
    rope: { theta: 10000 },
    maxPositions: 64,
    tiedEmbeddings: true,
    ...change,
  };
}

/** Normal weights of standard deviation `std`, norms near 1. With 0.5 the logits have a standard deviation near 2. */
export function randomWeights(seed: number, std = 0.5): (name: string, shape: readonly number[]) => Float32Array {
  const normal = seededNormal(seed);
  return (name, shape) => {
    const size = shape.reduce((n, m) => n * m, 1);
    const [mean, spread] = name.includes("norm") ? [1, 0.1] : [0, std];
    return Float32Array.from({ length: size }, () => mean + spread * normal());
  };
}

/**
 * Random weights of an untied model that likes some tokens: channel 0 of every hidden state is large, and of the head's
 * rows only those of the liked tokens answer to it positively.
 */
export function opinionatedWeights(
  seed: number,
  liked: readonly number[],
): (name: string, shape: readonly number[]) => Float32Array {
  const random = randomWeights(seed, 0.2);
  return (name, shape) => {
    const values = random(name, shape);
    const cols = shape[1] ?? 1;
    const setChannel = (value: (row: number) => number): void => {
      for (let row = 0; row < shape[0]!; row++) values[row * cols] = value(row);
    };
    if (name === "model.embed_tokens.weight") setChannel(() => 3);
    if (name === "lm_head.weight") setChannel((row) => (liked.includes(row) ? 1.5 : -1));
    return values;
  };
}

/** Writes config.json and model.safetensors; without a GPU. */
export function writeModel(directory: string, config: GptConfig, weights: ReturnType<typeof randomWeights>): void {
  const tensors = [...parameterShapes(config)].map(([name, shape]) => {
    return { name, shape, dtype: "F32" as const, data: weights(name, shape) };
  });
  writeSafetensors(join(directory, "model.safetensors"), tensors, { format: "pt" });
  writeFileSync(join(directory, "config.json"), JSON.stringify(configToHub(config, "F32"), null, 2));
}

/** A new directory with a random chat model: weights, tokenizer, template. The digit prompt takes 74 of its tokens. */
export function makeChatModelDirectory(change: Partial<GptConfig> = {}, seed = 1): string {
  const directory = makeTokenizerDirectory();
  const { vocabSize } = loadTokenizer(directory);
  writeModel(directory, tinyConfig({ vocabSize, maxPositions: 256, ...change }), randomWeights(seed));
  return directory;
}

/** The same with a model that likes to answer in digits and to end its turn, so that GRPO has something to reward. */
export function makeDigitLoverDirectory(seed = 1): string {
  const directory = makeChatModelDirectory();
  const { vocabSize, idOf, eosIds } = loadTokenizer(directory);
  const liked = [...[..."0123456789"].map(idOf), ...eosIds];
  const config = tinyConfig({ vocabSize, layers: 1, maxPositions: 128, tiedEmbeddings: false });
  writeModel(directory, config, opinionatedWeights(seed, liked));
  return directory;
}
