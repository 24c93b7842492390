/** Speed of what is bound by memory: norms, AdamW, embedding gradients; and of log-probabilities by vocabulary. */
import { adamw } from "../src/autograd/adamw.ts";
import { parameter } from "../src/autograd/variable.ts";
import { parameterShapes } from "../src/model/parameters.ts";
import { copyInto } from "../src/tensor/elementwise.ts";
import { embeddingBackward, tokenIds } from "../src/tensor/embedding.ts";
import { layerNorm, layerNormBackward } from "../src/tensor/layer_norm.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { rmsNorm, rmsNormBackward } from "../src/tensor/rms_norm.ts";
import { emptyNeighbours, tensor, type Tensor } from "../src/tensor/tensor.ts";
import { tokenLogProb, tokenLogProbBackward } from "../src/tensor/token_log_prob.ts";
import { timedKernel, type Bench, type Work } from "./measure.ts";
import { BENCH_MODEL } from "./model_config.ts";
import type { Row } from "./table.ts";

const WIDTH = 192;
const TOKENS = 512;
/** Completion tokens of a group: 5 of 10. */
const GROUP_TOKENS = 50;
const EPS = 1e-6;

function wave(shape: readonly number[], scale = 1): Tensor {
  const length = shape.reduce((product, n) => product * n, 1);
  return tensor(Float32Array.from({ length }, (_, i) => scale * Math.sin(0.37 * i)), shape);
}

type Add = (operation: string, shape: string, body: () => void, work: Work) => Promise<void>;

/** A table, and what adds a row to it. */
function table(bench: Bench): { rows: Row[]; add: Add } {
  const rows: Row[] = [];
  const add: Add = async (operation, shape, body, work) => {
    rows.push({ operation, shape, ...(await timedKernel(bench, body, work)) });
  };
  return { rows, add };
}

/** RMS and layer norm. Bytes: forward reads x and writes y; backward reads x and dy and writes dx. */
export async function benchNorms(bench: Bench): Promise<Row[]> {
  const { rows, add } = table(bench);
  await scopeAsync(async () => {
    const [x, dy] = [wave([TOKENS, WIDTH]), wave([TOKENS, WIDTH])];
    const [weight, bias] = [wave([WIDTH]), wave([WIDTH])];
    const shape = `${TOKENS} x ${WIDTH}`;
    const bytes = 4 * TOKENS * WIDTH;
    const work = (kind: string, backward: boolean): Work => ({
      bytes: (backward ? 3 : 2) * bytes, torch: { op: "norm", kind, rows: TOKENS, cols: WIDTH, backward },
    });
    const { rstd } = rmsNorm(x, weight, EPS);
    await add("RMS norm", shape, () => void rmsNorm(x, weight, EPS), work("rms", false));
    await add("RMS norm, backward", shape, () => void rmsNormBackward(x, weight, rstd, dy), work("rms", true));
    const saved = layerNorm(x, weight, bias, EPS);
    await add("layer norm", shape, () => void layerNorm(x, weight, bias, EPS), work("layer", false));
    await add(
      "layer norm, backward", shape,
      () => void layerNormBackward(x, weight, saved.mean, saved.rstd, dy), work("layer", true),
    );
  });
  return rows;
}

/** Log-probabilities of a group's completion tokens; ours come with entropies, PyTorch's do not. */
export async function benchLogProb(bench: Bench): Promise<Row[]> {
  const { rows, add } = table(bench);
  for (const vocabulary of bench.quick ? [2048] : [2048, 50257, 151936]) {
    await scopeAsync(async () => {
      const [hidden, head] = [wave([GROUP_TOKENS, WIDTH]), wave([vocabulary, WIDTH], 0.02)];
      const targets = tensor(Uint32Array.from({ length: GROUP_TOKENS }, (_, i) => i));
      const dLogProbs = wave([GROUP_TOKENS]);
      const { logSumExp, entropy } = tokenLogProb(hidden, head, targets);
      const saved = { hidden, head, targets, logSumExp, entropy };
      const shape = `${GROUP_TOKENS} x ${WIDTH} x ${vocabulary}`;
      const flops = 2 * GROUP_TOKENS * WIDTH * vocabulary;
      const request = { op: "tokenLogProb", rows: GROUP_TOKENS, cols: WIDTH, vocabulary };
      const both = { hidden: true, head: true };
      await add("token log-probability", shape, () => void tokenLogProb(hidden, head, targets), {
        flops, bytes: 4 * vocabulary * WIDTH, torch: { ...request, backward: false },
      });
      // Two products at the least, though ours computes the logits again; writes the gradient of the head.
      await add(
        "token log-probability, backward", shape,
        () => void tokenLogProbBackward(saved, { dLogProbs }, {}, both),
        { flops: 2 * flops, bytes: 4 * 2 * vocabulary * WIDTH, torch: { ...request, backward: true } },
      );
    });
  }
  return rows;
}

/** One AdamW step, gradient norm included, over the parameters of the benchmarks' model, which lie side by side. */
export async function benchAdamw(bench: Bench): Promise<Row[]> {
  const { rows, add } = table(bench);
  const shapes = [...parameterShapes(BENCH_MODEL).values()];
  const count = shapes.reduce((sum, shape) => sum + shape.reduce((n, m) => n * m, 1), 0);
  await scopeAsync(async () => {
    const parameters = emptyNeighbours(shapes).map(parameter);
    const optimizer = adamw(parameters);
    for (const own of parameters) {
      copyInto(own.value, wave(own.value.shape));
      copyInto(own.gradPlace!, wave(own.value.shape));
      own.grad = own.gradPlace!;
    }
    // The norm reads a gradient; the update reads four values and writes three.
    const shape = `${count} parameters in ${shapes.length} tensors`;
    await add("AdamW with gradient norm", shape, () => void optimizer.step(1e-3), {
      bytes: 4 * 8 * count, torch: { op: "adamw", shapes },
    });
    optimizer.dispose();
  });
  return rows;
}

/** Gradient of an embedding table from that of 512 tokens, of which 256 differ. Bytes: dy read, the table written. */
export async function benchEmbedding(bench: Bench): Promise<Row[]> {
  const { rows, add } = table(bench);
  for (const vocabulary of bench.quick ? [2048] : [2048, 50257, 151936]) {
    await scopeAsync(async () => {
      const dy = wave([TOKENS, WIDTH]);
      const ids = tokenIds(Array.from({ length: TOKENS }, (_, i) => (i * 37) % 256));
      await add(
        "embedding, backward", `${TOKENS} x ${WIDTH} x ${vocabulary}`,
        () => void embeddingBackward(dy, ids, [vocabulary, WIDTH]),
        {
          bytes: 4 * WIDTH * (TOKENS + vocabulary),
          torch: { op: "embeddingBackward", rows: TOKENS, cols: WIDTH, vocabulary },
        },
      );
    });
  }
  return rows;
}
