/** Speed of fused attention for the shapes of training and decoding, beside a composition of single operations. */
import { attention, attentionBackward } from "../src/tensor/attention.ts";
import { mulScalar } from "../src/tensor/elementwise.ts";
import { permute } from "../src/tensor/layout.ts";
import { matmul } from "../src/tensor/matmul.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { softmax } from "../src/tensor/softmax.ts";
import { reshape, tensor, type Tensor } from "../src/tensor/tensor.ts";
import { timedKernel, type Bench, type Work } from "./measure.ts";
import type { Row } from "./table.ts";

const KV_HEADS = 2;
const HEAD_SIZE = 32;
const HEADS = 6;

const SHAPES: readonly { name: string; batch: number; queries: number; keys: number }[] = [
  { name: "training", batch: 8, queries: 64, keys: 64 },
  { name: "training", batch: 16, queries: 128, keys: 128 },
  { name: "decoding", batch: 25, queries: 1, keys: 64 },
];

function wave(shape: readonly number[]): Tensor {
  const length = shape.reduce((product, n) => product * n, 1);
  return tensor(Float32Array.from({ length }, (_, i) => Math.sin(0.37 * i)), shape);
}

/** softmax(q kᵀ scale) v with the scores in memory and without the causal mask, from which only fusion profits. */
function composed(q: Tensor, k: Tensor, v: Tensor): Tensor {
  const [batch, queries, heads] = q.shape as [number, number, number];
  const keys = k.shape[1]!;
  const grouped = permute(reshape(q, [batch, queries, KV_HEADS, heads / KV_HEADS, HEAD_SIZE]), [0, 2, 3, 1, 4]);
  const headsFirst = (x: Tensor): Tensor =>
    permute(reshape(x, [batch, keys, KV_HEADS, 1, HEAD_SIZE]), [0, 2, 3, 1, 4]);
  const scores = mulScalar(matmul(grouped, headsFirst(k), { transposeB: true }), 1 / Math.sqrt(HEAD_SIZE));
  return permute(matmul(softmax(scores), headsFirst(v)), [0, 3, 1, 2, 4]);
}

/** Three rows per shape: forward, backward, and the composed forward pass, which computes the masked half too. */
export async function benchAttention(bench: Bench): Promise<Row[]> {
  const rows: Row[] = [];
  for (const { name, batch, queries, keys } of bench.quick ? SHAPES.slice(0, 1) : SHAPES) {
    await scopeAsync(async () => {
      const q = wave([batch, queries, HEADS, HEAD_SIZE]);
      const [k, v] = [wave([batch, keys, KV_HEADS, HEAD_SIZE]), wave([batch, keys, KV_HEADS, HEAD_SIZE])];
      const options = { queryStart: tensor(new Uint32Array(batch).fill(keys - queries)) };
      const { y, logSumExp } = attention(q, k, v, options);
      const pairs = queries * (keys - (queries - 1) / 2);
      const flops = 4 * batch * HEADS * HEAD_SIZE * pairs;
      const request = { op: "attention", batch, queries, keys, heads: HEADS, kvHeads: KV_HEADS, headSize: HEAD_SIZE };
      const add = async (pass: string, body: () => void, work: Work): Promise<void> => {
        const shape = `${batch} x ${queries} x ${keys}`;
        const columns = await timedKernel(bench, body, work);
        rows.push({ attention: name, "batch x queries x keys": shape, pass, ...columns });
      };
      await add("forward", () => void attention(q, k, v, options), {
        flops, torch: { ...request, backward: false },
      });
      await add("backward", () => void attentionBackward({ q, k, v, y, logSumExp }, y, options), {
        flops: 2.5 * flops, torch: { ...request, backward: true },
      });
      await add("forward, composed", () => void composed(q, k, v), { flops });
    });
  }
  return rows;
}
