/** Speed of fused attention for the shapes of training and decoding, beside a composition of single operations. */
import { attention, attentionBackward } from "../src/tensor/attention.ts";
import { mulScalar } from "../src/tensor/elementwise.ts";
import { permute } from "../src/tensor/layout.ts";
import { matmul } from "../src/tensor/matmul.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { softmax } from "../src/tensor/softmax.ts";
import { reshape, tensor, type Tensor } from "../src/tensor/tensor.ts";
import { medianMilliseconds, type Row } from "./table.ts";

const KV_HEADS = 2;
const HEAD_SIZE = 32;

const shapes: readonly { name: string; batch: number; queries: number; keys: number; heads: number }[] = [
  { name: "training", batch: 8, queries: 64, keys: 64, heads: 4 },
  { name: "training", batch: 16, queries: 128, keys: 128, heads: 6 },
  { name: "decoding", batch: 25, queries: 1, keys: 64, heads: 6 },
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

/** One row per shape; milliseconds of forward, backward and the composed forward pass. */
export async function benchAttention(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const { name, batch, queries, keys, heads } of shapes) {
    await scopeAsync(async () => {
      const q = wave([batch, queries, heads, HEAD_SIZE]);
      const [k, v] = [wave([batch, keys, KV_HEADS, HEAD_SIZE]), wave([batch, keys, KV_HEADS, HEAD_SIZE])];
      const options = { queryStart: tensor(new Uint32Array(batch).fill(keys - queries)) };
      const { y, logSumExp } = attention(q, k, v, options);
      const forward = await medianMilliseconds(() => void attention(q, k, v, options));
      const backward = await medianMilliseconds(() => void attentionBackward({ q, k, v, y, logSumExp }, y, options));
      const unfused = await medianMilliseconds(() => void composed(q, k, v));
      rows.push({
        shape: name, batch: `${batch}`, queries: `${queries}`, keys: `${keys}`,
        heads: `${heads}/${KV_HEADS} x ${HEAD_SIZE}`,
        "forward ms": forward, "backward ms": backward,
        "composed forward ms": unfused, "composed / fused": unfused / forward,
      });
    });
  }
  return rows;
}
