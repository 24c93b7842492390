/** Tiny models for tests: random weights that spread the logits, in memory or as a Hugging Face directory. */
import { cpSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeSafetensors } from "../../src/data/safetensors.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { configToHub } from "../../src/model/checkpoint.ts";
import { parameterShapes, type GptConfig } from "../../src/model/gpt.ts";
import { seededNormal } from "../../src/random.ts";
import { makeTokenizerDirectory } from "../data/tokenizer_fixture.ts";

/** Two layers, 16 channels, grouped heads, tied: the smallest model that has every part. */
export function tinyConfig(change: Partial<GptConfig> = {}): GptConfig {
  return {
    vocabSize: 40,
    hiddenSize: 16,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    headSize: 8,
    mlpSize: 24,
    normEps: 1e-6,
    ropeTheta: 10000,
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

/** Writes config.json and model.safetensors of a random model; without a GPU. */
export function writeRandomModel(directory: string, config: GptConfig, seed: number, std?: number): void {
  const weights = randomWeights(seed, std);
  const tensors = [...parameterShapes(config)].map(([name, shape]) => {
    return { name, shape, dtype: "F32" as const, data: weights(name, shape) };
  });
  writeSafetensors(join(directory, "model.safetensors"), tensors, { format: "pt" });
  writeFileSync(join(directory, "config.json"), JSON.stringify(configToHub(config, "F32"), null, 2));
}

/** A new directory with a random chat model: weights, tokenizer, template. Its prompts take up to 150 tokens. */
export function makeChatModelDirectory(change: Partial<GptConfig> = {}, seed = 1, std?: number): string {
  const directory = mkdtempSync(join(tmpdir(), "chat-model-"));
  cpSync(makeTokenizerDirectory(), directory, { recursive: true });
  const { vocabSize } = loadTokenizer(directory);
  writeRandomModel(directory, tinyConfig({ vocabSize, maxPositions: 256, ...change }), seed, std);
  return directory;
}
