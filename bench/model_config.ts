/** The model that the benchmarks train and decode: Qwen3 with random weights, of any size. */
import { FAMILIES, type GptConfig } from "../src/model/config.ts";
import { createGpt, type Gpt } from "../src/model/gpt.ts";
import { seededNormal } from "../src/random.ts";

/** Width 192, 4 layers, 6 heads of 32, each with its own keys and values, vocabulary 2048: 2.16 M parameters. */
export const BENCH_MODEL: GptConfig = {
  ...FAMILIES.qwen3,
  vocabSize: 2048,
  hiddenSize: 192,
  layers: 4,
  heads: 6,
  kvHeads: 6,
  headSize: 32,
  mlpSize: 512,
  normEps: 1e-6,
  rope: { theta: 10000 },
  maxPositions: 512,
  tiedEmbeddings: true,
};

/** Norms 1, matrices normal(0, 0.02). */
export function randomGpt(config: GptConfig): Gpt {
  const normal = seededNormal(1);
  return createGpt(config, (name, shape) => {
    const size = shape.reduce((n, m) => n * m, 1);
    if (name.includes("norm")) return new Float32Array(size).fill(1);
    return Float32Array.from({ length: size }, () => 0.02 * normal());
  });
}

/** Token ids without meaning, below 256. */
export function someIds(count: number, first = 0): number[] {
  return Array.from({ length: count }, (_, i) => (i * 37 + first) % 256);
}
