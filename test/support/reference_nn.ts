/**
 * A plain float64 reference on the CPU, part 3: the operations of a language model and of its training (see
 * reference.ts).
 *
 * Token ids, positions and masks are plain lists of numbers. Layouts are the library's: activations [batch, time,
 * heads, head size], weights of linear layers [out, in].
 */
import type { Array64 } from "./reference.ts";
import { add, array64, broadcastShapes, broadcastTo, fromIndex, get } from "./reference.ts";
import { map, mapLines, mul, mulScalar, sizeOf } from "./reference.ts";
import { transpose } from "./reference_shape.ts";

/**
 * a [..., m, k] times b [..., k, n] -> [..., m, n] (torch.matmul for rank >= 2). The leading axes broadcast. With a
 * flag set, the last two axes of that operand are swapped first: NT is a bᵀ, TN is aᵀ b.
 */
export function matmul(a: Array64, b: Array64, { transposeA = false, transposeB = false } = {}): Array64 {
  const left = transposeA ? transpose(a, -1, -2) : a;
  const right = transposeB ? transpose(b, -1, -2) : b;
  const [m, inner] = left.shape.slice(-2) as [number, number];
  const [innerB, n] = right.shape.slice(-2) as [number, number];
  if (inner !== innerB) throw new Error(`matmul: inner sizes differ in [${left.shape}] x [${right.shape}]`);
  const batch = broadcastShapes(left.shape.slice(0, -2), right.shape.slice(0, -2));
  const x = broadcastTo(left, [...batch, m, inner]).data;
  const y = broadcastTo(right, [...batch, inner, n]).data;
  const data = new Float64Array(sizeOf(batch) * m * n);
  for (let g = 0; g < sizeOf(batch); g++) {
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let dot = 0;
        for (let i = 0; i < inner; i++) dot += x[(g * m + row) * inner + i]! * y[(g * inner + i) * n + column]!;
        data[(g * m + row) * n + column] = dot;
      }
    }
  }
  return { shape: [...batch, m, n], data };
}

/** x [..., in] times weight [out, in] transposed, plus bias [out] (torch.nn.functional.linear). */
export function linear(x: Array64, weight: Array64, bias?: Array64): Array64 {
  const [outputs, inputs] = weight.shape as [number, number];
  if (x.shape.at(-1) !== inputs) throw new Error(`linear: inner sizes differ in [${x.shape}] x [${weight.shape}]`);
  const data = new Float64Array((x.data.length / inputs) * outputs);
  for (let i = 0; i < data.length; i++) {
    const [row, output] = [Math.floor(i / outputs), i % outputs];
    for (let c = 0; c < inputs; c++) data[i]! += x.data[row * inputs + c]! * weight.data[output * inputs + c]!;
  }
  const product = { shape: [...x.shape.slice(0, -1), outputs], data };
  return bias === undefined ? product : add(product, bias);
}

/** exp(x) / sum(exp(x)) along `axis`. */
export function softmax(x: Array64, axis = -1): Array64 {
  return map(logSoftmax(x, axis), Math.exp);
}

/**
 * log(softmax(x)); the largest value is taken out first, so that exp cannot overflow. -Infinity entries have
 * probability 0.
 */
export function logSoftmax(x: Array64, axis = -1): Array64 {
  return mapLines(x, axis, (line) => {
    const largest = line.reduce((best, value) => Math.max(best, value), -Infinity);
    const logTotal = Math.log(line.reduce((sum, value) => sum + Math.exp(value - largest), 0));
    return line.map((value) => value - largest - logTotal);
  });
}

/**
 * (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, biased variance
 * (torch.nn.functional.layer_norm).
 */
export function layerNorm(x: Array64, weight?: Array64, bias?: Array64, eps = 1e-5): Array64 {
  const normed = mapLines(x, -1, (line) => {
    const mean = line.reduce((sum, value) => sum + value, 0) / line.length;
    const variance = line.reduce((sum, value) => sum + (value - mean) ** 2, 0) / line.length;
    return line.map((value) => (value - mean) / Math.sqrt(variance + eps));
  });
  const scaled = weight === undefined ? normed : mul(normed, weight);
  return bias === undefined ? scaled : add(scaled, bias);
}

/** x / sqrt(mean(x²) + eps) * weight over the last axis (Zhang and Sennrich 2019; torch.nn.functional.rms_norm). */
export function rmsNorm(x: Array64, weight?: Array64, eps = 1e-6): Array64 {
  const normed = mapLines(x, -1, (line) => {
    const meanSquare = line.reduce((sum, value) => sum + value * value, 0) / line.length;
    return line.map((value) => value / Math.sqrt(meanSquare + eps));
  });
  return weight === undefined ? normed : mul(normed, weight);
}

/** Row `ids[i]` of weight [vocabulary, channels] for each i; the result is [...idsShape, channels]. */
export function embedding(
  weight: Array64,
  ids: ArrayLike<number>,
  idsShape: readonly number[] = [ids.length],
): Array64 {
  const channels = weight.shape[1]!;
  return fromIndex([...idsShape, channels], (index) => {
    const token = index.slice(0, -1).reduce((flat, i, axis) => flat * idsShape[axis]! + i, 0);
    return get(weight, [ids[token]!, index.at(-1)!]);
  });
}

/** Angle tables for `rotary`: cos and sin of position * theta^(-2 i / headSize), each [positions, headSize / 2]. */
export function rotaryTables(positions: number, headSize: number, theta: number): { cos: Array64; sin: Array64 } {
  const angles = fromIndex([positions, headSize / 2], ([position, i]) => position! * theta ** ((-2 * i!) / headSize));
  return { cos: map(angles, Math.cos), sin: map(angles, Math.sin) };
}

/**
 * Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face Llama and Qwen: element i of a
 * head is paired with element i + headSize / 2, and each pair is turned by its angle. x is [batch, time, heads,
 * headSize], cos and sin are tables [positions, headSize / 2], `positions` [batch * time] default to 0, 1, 2.. in every
 * row.
 */
export function rotary(x: Array64, cos: Array64, sin: Array64, positions?: ArrayLike<number>): Array64 {
  const [, time, , headSize] = x.shape as [number, number, number, number];
  const half = headSize / 2;
  return fromIndex(x.shape, ([b, t, h, d]) => {
    const position = positions === undefined ? t! : positions[b! * time + t!]!;
    const pair = d! % half;
    const first = get(x, [b!, t!, h!, pair]);
    const second = get(x, [b!, t!, h!, pair + half]);
    const [c, s] = [get(cos, [position, pair]), get(sin, [position, pair])];
    return d! < half ? first * c - second * s : second * c + first * s;
  });
}

export interface AttentionOptions {
  /** Factor on q·k; 1 / sqrt(head size) unless given. */
  scale?: number;
  /** [batch, keys], 1 = real, 0 = padding that nobody sees. */
  keyMask?: ArrayLike<number>;
  /** [batch, keys], one past the last position that sees the key. */
  keyEnd?: ArrayLike<number>;
  /** Position of the first query among the keys: with a cache, the number of keys that were there before. Default 0. */
  queryOffset?: number;
}

/**
 * Causal scaled-dot-product attention. q is [batch, queries, heads, headSize]; k and v are [batch, keys, kvHeads,
 * headSize]; the result has the shape of q. Query i sees the keys 0..queryOffset + i that the mask allows and that have
 * not ended; query head h reads key-value head floor(h / (heads / kvHeads)). A query that sees no key at all gives 0.
 */
export function causalAttention(q: Array64, k: Array64, v: Array64, options: AttentionOptions = {}): Array64 {
  const [batch, queries, heads, headSize] = q.shape as [number, number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number];
  const { scale = 1 / Math.sqrt(headSize), keyMask, keyEnd, queryOffset = 0 } = options;
  const output = new Float64Array(q.data.length);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      const position = queryOffset + i;
      const isReal = (j: number): boolean => (keyMask?.[b * keys + j] ?? 1) !== 0;
      const isOpen = (j: number): boolean => position < (keyEnd?.[b * keys + j] ?? Infinity);
      const visible = [...Array(keys).keys()].filter((j) => j <= position && isReal(j) && isOpen(j));
      if (visible.length === 0) continue;
      for (let h = 0; h < heads; h++) {
        const kvHead = Math.floor(h / (heads / kvHeads));
        const query = ((b * queries + i) * heads + h) * headSize;
        const keyOf = (j: number): number => ((b * keys + j) * kvHeads + kvHead) * headSize;
        const scores = visible.map((j) => {
          let dot = 0;
          for (let d = 0; d < headSize; d++) dot += q.data[query + d]! * k.data[keyOf(j) + d]!;
          return dot * scale;
        });
        const probabilities = softmax(array64([scores.length], scores)).data;
        visible.forEach((j, n) => {
          for (let d = 0; d < headSize; d++) output[query + d]! += probabilities[n]! * v.data[keyOf(j) + d]!;
        });
      }
    }
  }
  return { shape: [...q.shape], data: output };
}

export interface CrossEntropyOptions {
  reduction?: "mean" | "sum" | "none";
  /** Rows with this target do not count. */
  ignoreIndex?: number;
  /** [rows], 0 = the row does not count. */
  mask?: ArrayLike<number>;
}

/**
 * -log softmax(logits)[target] for logits [rows, classes] (torch.nn.functional.cross_entropy). "mean" divides by the
 * number of rows that count; "none" gives [rows] with 0 for those that do not.
 */
export function crossEntropy(logits: Array64, targets: ArrayLike<number>, options: CrossEntropyOptions = {}): Array64 {
  const { reduction = "mean", ignoreIndex = -100, mask } = options;
  const logProbabilities = logSoftmax(logits);
  const counts = Array.from(targets, (target, row) => target !== ignoreIndex && (mask?.[row] ?? 1) !== 0);
  const losses = Array.from(targets, (target, row) => (counts[row]! ? -get(logProbabilities, [row, target]) : 0));
  if (reduction === "none") return array64([losses.length], losses);
  const sum = losses.reduce((total, loss) => total + loss, 0);
  return array64([], [reduction === "sum" ? sum : sum / counts.filter(Boolean).length]);
}

/**
 * The output head on hidden states [rows, channels] with weight [vocabulary, channels]: with p = softmax(hidden weightᵀ
 * / temperature), log p[target] and the entropy -sum(p log p) of every row, both [rows].
 */
export function tokenLogProbability(
  hidden: Array64,
  weight: Array64,
  targets: ArrayLike<number>,
  temperature = 1,
): { logProbability: Array64; entropy: Array64 } {
  const logits = mulScalar(matmul(hidden, weight, { transposeB: true }), 1 / temperature);
  const logProbabilities = logSoftmax(logits);
  const [rows, vocabulary] = logits.shape as [number, number];
  const entropy = fromIndex([rows], ([row]) => {
    let sum = 0;
    for (let id = 0; id < vocabulary; id++) {
      const logP = get(logProbabilities, [row!, id]);
      sum -= Math.exp(logP) * logP;
    }
    return sum;
  });
  return { logProbability: fromIndex([rows], ([row]) => get(logProbabilities, [row!, targets[row!]!])), entropy };
}

export interface AdamWState {
  parameter: Array64;
  firstMoment: Array64;
  secondMoment: Array64;
}

export interface AdamWOptions {
  learningRate: number;
  /** Counts from 1. */
  step: number;
  beta1?: number;
  beta2?: number;
  eps?: number;
  weightDecay?: number;
}

/** One step of AdamW with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2, as torch.optim.AdamW). */
export function adamwStep(state: AdamWState, gradient: Array64, options: AdamWOptions): AdamWState {
  const { learningRate, step, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01 } = options;
  const { shape } = state.parameter;
  const m = state.firstMoment.data.map((value, i) => beta1 * value + (1 - beta1) * gradient.data[i]!);
  const v = state.secondMoment.data.map((value, i) => beta2 * value + (1 - beta2) * gradient.data[i]! ** 2);
  const parameter = state.parameter.data.map((value, i) => {
    const mHat = m[i]! / (1 - beta1 ** step);
    const vHat = v[i]! / (1 - beta2 ** step);
    return value * (1 - learningRate * weightDecay) - (learningRate * mHat) / (Math.sqrt(vHat) + eps);
  });
  return {
    parameter: { shape, data: parameter },
    firstMoment: { shape, data: m },
    secondMoment: { shape, data: v },
  };
}

/**
 * Factor on all gradients that brings their joint norm down to maxNorm (torch.nn.utils.clip_grad_norm_), never above 1.
 */
export function clipFactor(gradients: readonly Array64[], maxNorm: number): number {
  let squares = 0;
  for (const { data } of gradients) for (const value of data) squares += value * value;
  return Math.min(1, maxNorm / (Math.sqrt(squares) + 1e-6));
}

/**
 * Factor on the peak learning rate at `step` (from 0): up linearly from 0 in the first warmupSteps, then down linearly
 * to 0 at totalSteps (transformers.get_linear_schedule_with_warmup).
 */
export function linearSchedule(step: number, warmupSteps: number, totalSteps: number): number {
  if (step < warmupSteps) return step / Math.max(1, warmupSteps);
  return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmupSteps));
}
