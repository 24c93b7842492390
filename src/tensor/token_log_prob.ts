/**
 * Log-probability of given tokens and entropy of their distributions, straight from the hidden states.
 *
 * Departs from the textbook (log-softmax of all logits, then a gather): logits are computed for a chunk of rows,
 * reduced to three numbers per row and dropped; backward computes them again, chunk by chunk. [N, V] never exists: for
 * 1,000 tokens and Qwen's vocabulary it would take 600 MB. The price is one more matrix product in backward.
 * The head may be larger than a binding: the products work through it by ranges of rows (`matmul.ts`), each of which
 * fills its columns of a chunk's logits.
 */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { allRows, matmulRows, type RowRange } from "./matmul.ts";
import { scope } from "./memory.ts";
import { ShapeError, show } from "./shape.ts";
import { empty, type Places, type Tensor } from "./tensor.ts";

export interface TokenLogProbOptions {
  /** Divides the logits, as the sampler does. Default 1. */
  readonly temperature?: number;
  /** Rows whose logits exist at one time. Default: as many as fit into 16 MiB, at least 32. */
  readonly chunkRows?: number;
}

/** What backward needs; every per-row tensor is [N]. */
export interface SavedForBackward {
  readonly hidden: Tensor;
  readonly head: Tensor;
  readonly targets: Tensor;
  readonly logSumExp: Tensor;
  readonly entropy: Tensor;
}

const params = ["count", "cols", "firstRow", "inverseTemperature", "hasLogProbs", "hasEntropy"] as const;
const forwardKernel = kernel({
  shader: "token_log_prob",
  entry: "forward",
  buffers: ["logits", "targets", "logProbs", "entropy", "logSumExp"],
  params,
});
const backwardKernel = kernel({
  shader: "token_log_prob",
  entry: "backward",
  buffers: ["gradients", "targets", "savedEntropy", "savedLogSumExp", "dLogProbs", "dEntropy"],
  params,
});

/**
 * hidden [N, C], head [V, C] (float32 or bf16), targets u32 [N] -> logProbs, entropy (nats) and logSumExp, all [N], of
 * the distributions softmax(hidden headᵀ / temperature). Equals
 * `F.log_softmax(hidden @ head.T / temperature, -1).gather(..)`.
 * A target of IGNORE (cross_entropy.ts) gives log-probability and entropy 0; any other target outside 0..V-1 gives the
 * log-probability NaN, and gradients of NaN through it.
 * @throws ShapeError when shapes or options do not fit.
 */
export function tokenLogProb(
  hidden: Tensor,
  head: Tensor,
  targets: Tensor,
  options: TokenLogProbOptions = {},
): { logProbs: Tensor; entropy: Tensor; logSumExp: Tensor } {
  const shape = [checkShapes(hidden, head, targets)];
  const [logProbs, entropy, logSumExp] = [empty(shape), empty(shape), empty(shape)];
  forEachChunk(hidden, head, options, (logits, rows, shared) => {
    launch(
      forwardKernel,
      { logits, targets, logProbs, entropy, logSumExp },
      { ...shared, hasLogProbs: 0, hasEntropy: 0 },
      rows.count,
      { WORKGROUP: gpu().rowThreads },
    );
  });
  return { logProbs, entropy, logSumExp };
}

/**
 * Gradients with respect to hidden [N, C] and head [V, C], each only if wanted, from those of the log-probabilities [N]
 * and of the entropies [N], left in `into` where that names a place. `options` must be those of the forward call.
 * @throws ShapeError when the gradient of a bf16 head is wanted: it is frozen.
 */
export function tokenLogProbBackward(
  saved: SavedForBackward,
  { dLogProbs, dEntropy }: { dLogProbs?: Tensor; dEntropy?: Tensor },
  options: TokenLogProbOptions,
  wanted: { hidden: boolean; head: boolean },
  into: Places<"dHidden" | "dHead"> = {},
): { dHidden: Tensor | null; dHead: Tensor | null } {
  const { hidden, head, targets, logSumExp, entropy } = saved;
  if (wanted.head && head.dtype === "bf16") {
    throw new ShapeError(`tokenLogProb: the head ${show(head.shape)} is bf16, thus frozen; it has no gradient`);
  }
  const dHidden = wanted.hidden ? (into.dHidden?.tensor ?? empty(hidden.shape)) : null;
  const dHead = wanted.head ? (into.dHead?.tensor ?? empty(head.shape)) : null;
  const [addsToHidden, addsToHead] = [into.dHidden?.adds ?? false, into.dHead?.adds ?? false];
  forEachChunk(hidden, head, options, (logits, rows, shared) => {
    launch(
      backwardKernel,
      {
        gradients: logits, targets, savedEntropy: entropy, savedLogSumExp: logSumExp,
        dLogProbs: dLogProbs ?? entropy, dEntropy: dEntropy ?? entropy,
      },
      { ...shared, hasLogProbs: dLogProbs ? 1 : 0, hasEntropy: dEntropy ? 1 : 0 },
      rows.count,
      { WORKGROUP: gpu().rowThreads },
    );
    const dLogits = allRows(logits);
    if (dHidden) matmulRows(dLogits, allRows(head), { ...rows, matrix: dHidden }, { accumulate: addsToHidden });
    if (dHead) {
      matmulRows(dLogits, rows, allRows(dHead), { transposeA: true, accumulate: addsToHead || rows.start > 0 });
    }
  });
  return { dHidden, dHead };
}

interface ChunkParams {
  readonly count: number;
  readonly cols: number;
  readonly firstRow: number;
  readonly inverseTemperature: number;
}

/** Computes the logits [count, V] of each chunk of rows of hidden, in order, and hands them to `use`. */
function forEachChunk(
  hidden: Tensor,
  head: Tensor,
  { temperature = 1, chunkRows: wantedRows }: TokenLogProbOptions,
  use: (logits: Tensor, rows: RowRange, params: ChunkParams) => void,
): void {
  if (!(temperature > 0)) throw new ShapeError(`tokenLogProb: temperature ${temperature} must be above 0`);
  if (wantedRows !== undefined && (!Number.isInteger(wantedRows) || wantedRows < 1)) {
    throw new ShapeError(`tokenLogProb: chunkRows ${wantedRows} must be a positive integer`);
  }
  const [total, cols] = [hidden.shape[0]!, head.shape[0]!];
  const chunkRows = rowsOfLogits(cols, wantedRows);
  let start = 0;
  do {
    const rows = { matrix: hidden, start, count: Math.min(chunkRows, total - start) };
    scope(() => {
      const logits = empty([rows.count, cols]);
      matmulRows(rows, allRows(head), allRows(logits), { transposeB: true });
      use(logits, rows, { count: rows.count, cols, firstRow: start, inverseTemperature: 1 / temperature });
    });
    start += chunkRows;
  } while (start < total); // an empty batch still runs once: it makes the head's gradient zero
}

/** The wanted rows, or as many as fit into 16 MiB as whole tiles of the product; no more than can be bound. */
function rowsOfLogits(vocabulary: number, wantedRows?: number): number {
  const bytesPerRow = 4 * Math.max(1, vocabulary);
  const rows = wantedRows ?? Math.max(32, Math.floor(2 ** 24 / bytesPerRow / 32) * 32);
  return Math.max(1, Math.min(rows, Math.floor(gpu().maxBindingBytes / bytesPerRow)));
}

/** The number of rows. @throws ShapeError */
function checkShapes(hidden: Tensor, head: Tensor, targets: Tensor): number {
  const [rows, channels] = hidden.shape;
  const fits = hidden.shape.length === 2 && head.shape.length === 2 && head.shape[1] === channels;
  if (!fits || targets.shape.length !== 1 || targets.shape[0] !== rows || targets.dtype !== "u32") {
    throw new ShapeError(
      `tokenLogProb: expected hidden [N, C], head [V, C] and u32 targets [N], got ${show(hidden.shape)}, ` +
        `${show(head.shape)} and ${targets.dtype} ${show(targets.shape)}`,
    );
  }
  return rows!;
}
