/**
 * The calculus page: every differentiable operation, its forward launch beside its gradient rule.
 *
 * Notation: y is an operation's output, dy = dL/dy, dx = dL/dx. What a rule closes over is what it saves for backward.
 * Temporaries of a rule are freed by `backward`. Shapes: B batch, T time, H heads, D head size, C channels, V
 * vocabulary.
 */
import * as attentionKernels from "../tensor/attention.ts";
import * as lossKernels from "../tensor/cross_entropy.ts";
import * as el from "../tensor/elementwise.ts";
import * as embeddingKernels from "../tensor/embedding.ts";
import * as layout from "../tensor/layout.ts";
import * as layerNormKernels from "../tensor/layer_norm.ts";
import {
  matmul as matmulKernel, matmulEach as matmulEachKernel, type Addends, type MatmulOptions,
} from "../tensor/matmul.ts";
import * as reduce from "../tensor/reduce.ts";
import * as rmsNormKernels from "../tensor/rms_norm.ts";
import { rmsNormRotary as rmsNormRotaryKernel } from "../tensor/rms_norm_rotary.ts";
import { rotary as rotaryKernel, type RotaryTables } from "../tensor/rotary.ts";
import { normalizeAxis, sizeOf, type Shape } from "../tensor/shape.ts";
import * as softmaxKernels from "../tensor/softmax.ts";
import { reshape as reshapeTensor, type Destination, type Tensor } from "../tensor/tensor.ts";
import * as logProbKernels from "../tensor/token_log_prob.ts";
import { record, recordJoint, type Rule, type Variable } from "./variable.ts";

// ---- arithmetic with broadcasting: the gradient of a broadcast is a sum -------------------------------------------

/** a + b */
export function add(a: Variable, b: Variable): Variable {
  const y = el.add(a.value, b.value);
  return record("add", y, [a, (dy) => reduce.sumTo(dy, a.value.shape)], [b, (dy) => reduce.sumTo(dy, b.value.shape)]);
}

/** a - b */
export function sub(a: Variable, b: Variable): Variable {
  const y = el.sub(a.value, b.value);
  return record(
    "sub", y,
    [a, (dy) => reduce.sumTo(dy, a.value.shape)],
    [b, (dy) => reduce.sumTo(el.neg(dy), b.value.shape)],
  );
}

/** a * b */
export function mul(a: Variable, b: Variable): Variable {
  const y = el.mul(a.value, b.value);
  return record(
    "mul", y,
    [a, (dy) => reduce.sumTo(el.mul(dy, b.value), a.value.shape)],
    [b, (dy) => reduce.sumTo(el.mul(dy, a.value), b.value.shape)],
  );
}

/** a / b; db = -dy y / b */
export function div(a: Variable, b: Variable): Variable {
  const y = el.div(a.value, b.value);
  return record(
    "div", y,
    [a, (dy) => reduce.sumTo(el.div(dy, b.value), a.value.shape)],
    [b, (dy) => reduce.sumTo(el.neg(el.mul(dy, el.div(y, b.value))), b.value.shape)],
  );
}

/** a^b for tensors; da = dy b a^(b-1) (0 where b = 0), db = dy y log(a) (0 where a = 0): as PyTorch has it */
export function pow(a: Variable, b: Variable): Variable {
  const y = el.pow(a.value, b.value);
  return record(
    "pow", y,
    [a, (dy) => reduce.sumTo(el.mul(dy, el.powSlope(a.value, b.value)), a.value.shape)],
    [b, (dy) => reduce.sumTo(el.mul(dy, el.powLog(y, a.value)), b.value.shape)],
  );
}

/** The smaller of both; at a tie each side gets half of the gradient, as in PyTorch. */
export function minimum(a: Variable, b: Variable): Variable {
  const y = el.minimum(a.value, b.value);
  return record(
    "minimum", y,
    [a, (dy) => reduce.sumTo(el.mul(dy, el.less(a.value, b.value)), a.value.shape)],
    [b, (dy) => reduce.sumTo(el.mul(dy, el.less(b.value, a.value)), b.value.shape)],
  );
}

/** The larger of both; at a tie each side gets half of the gradient, as in PyTorch. */
export function maximum(a: Variable, b: Variable): Variable {
  const y = el.maximum(a.value, b.value);
  return record(
    "maximum", y,
    [a, (dy) => reduce.sumTo(el.mul(dy, el.less(b.value, a.value)), a.value.shape)],
    [b, (dy) => reduce.sumTo(el.mul(dy, el.less(a.value, b.value)), b.value.shape)],
  );
}

/** condition ? a : b; `condition` is a u32 tensor (0 is false) and has no gradient. */
export function where(condition: Tensor, a: Variable, b: Variable): Variable {
  const y = el.where(condition, a.value, b.value);
  const select = (dy: Tensor, taken: boolean): Tensor => {
    const zero = el.fill([], 0);
    return taken ? el.where(condition, dy, zero) : el.where(condition, zero, dy);
  };
  return record(
    "where", y,
    [a, (dy) => reduce.sumTo(select(dy, true), a.value.shape)],
    [b, (dy) => reduce.sumTo(select(dy, false), b.value.shape)],
  );
}

// ---- scalar forms -------------------------------------------------------------------------------------------------

/** x + c */
export function addScalar(x: Variable, c: number): Variable {
  return record("addScalar", el.addScalar(x.value, c), [x, (dy) => dy]);
}

/** c x */
export function mulScalar(x: Variable, c: number): Variable {
  return record("mulScalar", el.mulScalar(x.value, c), [x, (dy) => el.mulScalar(dy, c)]);
}

/** x^c; dx = dy c x^(c-1), and 0 for c = 0, also where x^-1 is infinite */
export function powScalar(x: Variable, c: number): Variable {
  const slope = (): Tensor => c === 0 ? el.fill(x.value.shape, 0) : el.mulScalar(el.powScalar(x.value, c - 1), c);
  return record("powScalar", el.powScalar(x.value, c), [x, (dy) => el.mul(dy, slope())]);
}

/** min(max(x, low), high); no gradient outside [low, high], as PyTorch has it. */
export function clamp(x: Variable, low: number, high: number): Variable {
  return record("clamp", el.clamp(x.value, low, high), [x, (dy) => el.clampBackward(x.value, dy, low, high)]);
}

// ---- functions of one variable ------------------------------------------------------------------------------------

/** -x */
export function neg(x: Variable): Variable {
  return record("neg", el.neg(x.value), [x, (dy) => el.neg(dy)]);
}

/** |x|; the gradient at 0 is 0 */
export function abs(x: Variable): Variable {
  return record("abs", el.abs(x.value), [x, (dy) => el.mul(dy, el.sign(x.value))]);
}

/** e^x; dx = dy y */
export function exp(x: Variable): Variable {
  const y = el.exp(x.value);
  return record("exp", y, [x, (dy) => el.mul(dy, y)]);
}

/** natural logarithm; dx = dy / x */
export function log(x: Variable): Variable {
  return record("log", el.log(x.value), [x, (dy) => el.div(dy, x.value)]);
}

/** square root; dx = dy / 2y */
export function sqrt(x: Variable): Variable {
  const y = el.sqrt(x.value);
  return record("sqrt", y, [x, (dy) => el.mulScalar(el.div(dy, y), 0.5)]);
}

/** 1 / sqrt(x); dx = -dy y^3 / 2 */
export function rsqrt(x: Variable): Variable {
  const y = el.rsqrt(x.value);
  return record("rsqrt", y, [x, (dy) => el.mulScalar(el.mul(dy, el.powScalar(y, 3)), -0.5)]);
}

/** tanh; dx = dy (1 - y^2) */
export function tanh(x: Variable): Variable {
  const y = el.tanh(x.value);
  return record("tanh", y, [x, (dy) => el.tanhBackward(y, dy)]);
}

/** x Phi(x) with the exact normal distribution function (torch.nn.functional.gelu); dx = dy (Phi(x) + x phi(x)) */
export function gelu(x: Variable): Variable {
  return record("gelu", el.gelu(x.value), [x, (dy) => el.geluBackward(x.value, dy)]);
}

/** GELU by the tanh formula (GPT-2's `gelu_new`); dx is in activation.wgsl */
export function geluTanh(x: Variable): Variable {
  return record("geluTanh", el.geluTanh(x.value), [x, (dy) => el.geluTanhBackward(x.value, dy)]);
}

/** x s with s = sigmoid(x); dx = dy s (1 + x (1 - s)) */
export function silu(x: Variable): Variable {
  return record("silu", el.silu(x.value), [x, (dy) => el.siluBackward(x.value, dy)]);
}

/** silu(gate) up, the MLP of Llama and Qwen; dGate = dy up silu'(gate), dUp = dy silu(gate), sigmoid computed again */
export function swiglu(gate: Variable, up: Variable): Variable {
  return recordJoint("swiglu", el.swiglu(gate.value, up.value), [gate, up], (dy) => {
    const { dGate, dUp } = el.swigluBackward(gate.value, up.value, dy);
    return [dGate, dUp];
  });
}

// ---- reductions ---------------------------------------------------------------------------------------------------

/** Sum over axes (all when omitted). */
export function sum(x: Variable, axes?: readonly number[], keepDims = false): Variable {
  const y = reduce.sum(x.value, axes, keepDims);
  return record("sum", y, [x, (dy) => layout.expand(unreduced(dy, x.value.shape, axes), x.value.shape)]);
}

/** Mean over axes (all when omitted). */
export function mean(x: Variable, axes?: readonly number[], keepDims = false): Variable {
  const y = reduce.mean(x.value, axes, keepDims);
  const scale = sizeOf(y.shape) / sizeOf(x.value.shape);
  return record("mean", y, [
    x, (dy) => layout.expand(unreduced(el.mulScalar(dy, scale), x.value.shape, axes), x.value.shape),
  ]);
}

/** Maximum over axes (all when omitted); equal maxima share the gradient evenly, as torch.amax does. */
export function max(x: Variable, axes?: readonly number[], keepDims = false): Variable {
  const y = reduce.max(x.value, axes, keepDims);
  return record("max", y, [
    x, (dy) => {
      const isMaximum = el.equal(x.value, unreduced(y, x.value.shape, axes));
      const share = el.div(unreduced(dy, x.value.shape, axes), reduce.sum(isMaximum, axes, true));
      return el.mul(isMaximum, share);
    },
  ]);
}

/** Gives a reduced tensor its reduced axes back, with length 1. */
function unreduced(y: Tensor, shape: Shape, axes?: readonly number[]): Tensor {
  const reduced = new Set((axes ?? shape.map((_, axis) => axis)).map((axis) => normalizeAxis("reduce", axis, shape)));
  return reshapeTensor(y, shape.map((n, axis) => (reduced.has(axis) ? 1 : n)));
}

// ---- layout -------------------------------------------------------------------------------------------------------

/** The same elements in another shape; one dimension may be -1. Shares memory. */
export function reshape(x: Variable, shape: Shape): Variable {
  return record("reshape", reshapeTensor(x.value, shape), [x, (dy) => reshapeTensor(dy, x.value.shape)]);
}

/** Reorders axes: result axis i is x's axis order[i] (torch.permute). */
export function permute(x: Variable, order: readonly number[]): Variable {
  const axes = order.map((axis) => normalizeAxis("permute", axis, x.value.shape));
  const inverse = axes.map((_, axis) => axes.indexOf(axis));
  return record("permute", layout.permute(x.value, axes), [x, (dy) => layout.permute(dy, inverse)]);
}

/** Swaps two axes. */
export function transpose(x: Variable, first = -2, second = -1): Variable {
  const order = x.value.shape.map((_, axis) => axis);
  const a = normalizeAxis("transpose", first, x.value.shape);
  const b = normalizeAxis("transpose", second, x.value.shape);
  order[a] = b;
  order[b] = a;
  return permute(x, order);
}

/** x[start:stop:step] along one axis; the gradient is zero outside. */
export function slice(x: Variable, axis: number, start: number, stop: number, step = 1): Variable {
  const y = layout.slice(x.value, axis, start, stop, step);
  return record("slice", y, [x, (dy) => layout.sliceBackward(dy, x.value.shape, axis, start, step)]);
}

/** Joins tensors along an axis (torch.cat); the gradient is cut at the seams. */
export function concat(inputs: readonly Variable[], axis: number): Variable {
  const y = layout.concat(inputs.map(({ value }) => value), axis);
  return recordJoint("concat", y, inputs, (dy) => {
    let start = 0;
    return inputs.map(({ value, tracked }) => {
      const length = value.shape[normalizeAxis("concat", axis, value.shape)]!;
      start += length;
      return tracked ? layout.slice(dy, axis, start - length, start) : null;
    });
  });
}

/** Broadcasts to a larger shape, as a copy. */
export function expand(x: Variable, shape: Shape): Variable {
  return record("expand", layout.expand(x.value, shape), [x, (dy) => reduce.sumTo(dy, x.value.shape)]);
}

/** torch.gather: y[..., i, ...] = x[..., index[..., i, ...], ...] along `axis`; repeated indices add up in backward. */
export function gather(x: Variable, axis: number, index: Tensor): Variable {
  const y = layout.gather(x.value, axis, index);
  return record("gather", y, [x, (dy) => layout.gatherBackward(dy, x.value.shape, axis, index)]);
}

// ---- matrix product -----------------------------------------------------------------------------------------------

/**
 * op(a) op(b) over the last two axes, op being a transpose or nothing; leading axes broadcast (torch.matmul). Optional
 * addends are written with it: + bias [n] + residual, of the result's shape.
 * With Y = A B + bias + residual: dA = dY B^T, dB = A^T dY, dBias = column sums of dY, dResidual = dY; no transpose is
 * ever stored.
 */
export function matmul(a: Variable, b: Variable, options: MatmulOptions & Addends<Variable> = {}): Variable {
  const { transposeA = false, transposeB = false, bias, residual } = options;
  if (b.value.shape.length === 2 && a.value.shape.length > 2 && !transposeA) {
    // One large product instead of a batch: [B, T, C] x [C, V] is [B T, C] x [C, V].
    const leading = (x: Variable): Shape => x.value.shape.slice(0, -1);
    const rows = (x: Variable): Variable => reshape(x, [sizeOf(leading(x)), x.value.shape.at(-1)!]);
    const y = matmul(rows(a), b, { transposeB, bias, residual: residual && rows(residual) });
    return reshape(y, [...leading(a), y.value.shape[1]!]);
  }
  const y = matmulKernel(a.value, b.value, {
    transposeA, transposeB, bias: bias?.value, residual: residual?.value,
  });
  const edges = productEdges(a, b, { transposeA, transposeB });
  if (bias) edges.push([bias, (dy) => reduce.sumTo(dy, bias.value.shape)]);
  if (residual) edges.push([residual, (dy) => dy]);
  return record("matmul", y, ...edges);
}

/**
 * a op(b) for each b of several matrices, as so many `matmul`s; neighbours in memory of equal shape, such as a layer's
 * projections of one input, are multiplied by one launch.
 */
export function matmulEach(a: Variable, matrices: readonly Variable[], options: MatmulOptions = {}): Variable[] {
  const products = matmulEachKernel(a.value, matrices.map(({ value }) => value), options);
  return products.map((y, i) => record("matmul", y, ...productEdges(a, matrices[i]!, options)));
}

/** The rules of Y = op(A) op(B) for A and B. */
function productEdges(a: Variable, b: Variable, options: MatmulOptions): [Variable, Rule][] {
  const { transposeA = false, transposeB = false } = options;
  // The product goes straight to its destination, unless it is to be summed over broadcast axes first.
  const isPlain = a.value.shape.length === 2 && b.value.shape.length === 2;
  return [
    [a, (dy, into) => {
      const dA = transposeA
        ? matmulKernel(b.value, dy, { transposeA: transposeB, transposeB: true, into: isPlain ? into : null })
        : matmulKernel(dy, b.value, { transposeB: !transposeB, into: isPlain ? into : null });
      return reduce.sumTo(dA, a.value.shape);
    }],
    [b, (dy, into) => {
      const dB = transposeB
        ? matmulKernel(dy, a.value, { transposeA: true, transposeB: transposeA, into: isPlain ? into : null })
        : matmulKernel(a.value, dy, { transposeA: !transposeA, into: isPlain ? into : null });
      return reduce.sumTo(dB, b.value.shape);
    }],
  ];
}

// ---- softmax and losses -------------------------------------------------------------------------------------------

/** Runs an operation of the last axis, called `name`, along another one. */
function alongAxis(name: string, x: Variable, axis: number, op: (x: Variable) => Variable): Variable {
  const last = x.value.shape.length - 1;
  return normalizeAxis(name, axis, x.value.shape) === last ? op(x) : transpose(op(transpose(x, axis, -1)), axis, -1);
}

/** exp(x) / sum exp(x); dx = y (dy - sum dy y) */
export function softmax(x: Variable, axis = -1): Variable {
  return alongAxis("softmax", x, axis, (z) => {
    const y = softmaxKernels.softmax(z.value);
    return record("softmax", y, [z, (dy) => softmaxKernels.softmaxBackward(y, dy)]);
  });
}

/** x - log sum exp(x); dx = dy - exp(y) sum dy */
export function logSoftmax(x: Variable, axis = -1): Variable {
  return alongAxis("logSoftmax", x, axis, (z) => {
    const y = softmaxKernels.logSoftmax(z.value);
    return record("logSoftmax", y, [z, (dy) => softmaxKernels.logSoftmaxBackward(y, dy)]);
  });
}

/**
 * -log softmax(logits)[target] for each row: [N, V] -> [N]; a row whose target is IGNORE gives 0 and no gradient.
 * dlogits = (softmax - onehot) dy, from the saved log-sum-exp.
 */
export function crossEntropy(logits: Variable, targets: Tensor): Variable {
  const { losses, logSumExp } = lossKernels.crossEntropy(logits.value, targets);
  return record("crossEntropy", losses, [
    logits, (dy) => lossKernels.crossEntropyBackward(logits.value, logSumExp, targets, dy),
  ]);
}

/**
 * The RL primitive: log-probability of each target token and entropy of its distribution, from the hidden states.
 * hidden [N, C], head [V, C], targets u32 [N] -> logProbs [N], entropy [N] (nats). The logits z = hidden head^T /
 * temperature are computed in chunks of rows, forward and again in backward, so that [N, V] never exists.
 * dz = dLogProb (onehot - p) - dEntropy p (log p + entropy).
 */
export function tokenLogProb(
  hidden: Variable,
  head: Variable,
  targets: Tensor,
  options: logProbKernels.TokenLogProbOptions = {},
): { logProbs: Variable; entropy: Variable } {
  const { logProbs, entropy, logSumExp } = logProbKernels.tokenLogProb(hidden.value, head.value, targets, options);
  const saved = { hidden: hidden.value, head: head.value, targets, logSumExp, entropy };
  const rule = (gradients: { dLogProbs?: Tensor; dEntropy?: Tensor }, into: readonly (Destination | null)[]) => {
    const wanted = { hidden: hidden.tracked, head: head.tracked };
    const { dHidden, dHead } = logProbKernels.tokenLogProbBackward(saved, gradients, options, wanted, {
      dHidden: into[0], dHead: into[1],
    });
    return [dHidden, dHead];
  };
  // Two outputs, two producers: each walks the chunks on its own, so the entropy costs nothing unless it is in the
  // loss.
  return {
    logProbs: recordJoint("tokenLogProb", logProbs, [hidden, head], (dLogProbs, into) => rule({ dLogProbs }, into)),
    entropy: recordJoint("tokenEntropy", entropy, [hidden, head], (dEntropy, into) => rule({ dEntropy }, into)),
  };
}

// ---- the layers of a transformer ----------------------------------------------------------------------------------

/** Rows of `table` [V, C] by id -> [...ids.shape, C]; the gradient adds the rows of repeated ids in a fixed order. */
export function embedding(table: Variable, ids: embeddingKernels.TokenIds): Variable {
  const y = embeddingKernels.embedding(table.value, ids);
  return record("embedding", y, [
    table, (dy, into) => embeddingKernels.embeddingBackward(dy, ids, table.value.shape, into),
  ]);
}

// Both norms: over the last axis; with g = dy weight, dWeight = sum over rows of dy xhat, dBias = sum over rows of dy.

/**
 * xhat weight + bias, xhat = (x - mean) rstd, rstd = 1 / sqrt(var + eps) (torch.nn.functional.layer_norm);
 * dx = rstd (g - mean(g) - xhat mean(g xhat))
 */
export function layerNorm(x: Variable, weight: Variable, bias: Variable, eps: number): Variable {
  const { y, mean, rstd } = layerNormKernels.layerNorm(x.value, weight.value, bias.value, eps);
  return recordJoint("layerNorm", y, [x, weight, bias], (dy, [dx, dWeight, dBias]) => {
    const into = { dx, dWeight, dBias };
    const own = layerNormKernels.layerNormBackward(x.value, weight.value, mean, rstd, dy, into);
    return [own.dx, own.dWeight, own.dBias];
  });
}

/**
 * xhat weight, xhat = x rstd, rstd = 1 / sqrt(mean(x^2) + eps) (torch.nn.functional.rms_norm);
 * dx = rstd (g - xhat mean(g xhat))
 */
export function rmsNorm(x: Variable, weight: Variable, eps: number): Variable {
  const { y, rstd } = rmsNormKernels.rmsNorm(x.value, weight.value, eps);
  return recordJoint("rmsNorm", y, [x, weight], (dy, [dx, dWeight]) => {
    const own = rmsNormKernels.rmsNormBackward(x.value, weight.value, rstd, dy, { dx, dWeight });
    return [own.dx, own.dWeight];
  });
}

/** Rotates pairs (x[i], x[i + D/2]) of each head by position-dependent angles; the gradient rotates back. */
export function rotary(x: Variable, tables: RotaryTables, positions: Tensor): Variable {
  return record("rotary", rotaryKernel(x.value, tables, positions), [
    x, (dy) => rotaryKernel(dy, tables, positions, { inverse: true }),
  ]);
}

/**
 * rotary(rmsNorm(x, weight, eps), tables, positions) in one launch: queries and keys of Qwen3. Backward turns the
 * gradient back, then goes through the norm.
 */
export function rmsNormRotary(
  x: Variable, weight: Variable, eps: number, tables: RotaryTables, positions: Tensor,
): Variable {
  const { y, rstd } = rmsNormRotaryKernel(x.value, weight.value, eps, tables, positions);
  return recordJoint("rmsNormRotary", y, [x, weight], (dy, [dx, dWeight]) => {
    const dNormed = rotaryKernel(dy, tables, positions, { inverse: true });
    const own = rmsNormKernels.rmsNormBackward(x.value, weight.value, rstd, dNormed, { dx, dWeight });
    return [own.dx, own.dWeight];
  });
}

/**
 * Y = P V, P = softmax(scale Q K^T), causal, P not stored: q [B, Tq, H, D], k and v [B, Tk, Hkv, D], H a multiple of
 * Hkv. Saves the output and one log-sum-exp per query (FlashAttention, Dao 2022). With dS = P (dY V^T - rowsum(dY Y)):
 * dQ = scale dS K, dK = scale dS^T Q, dV = P^T dY.
 */
export function attention(
  q: Variable, k: Variable, v: Variable, options: attentionKernels.AttentionOptions = {},
): Variable {
  const { y, logSumExp } = attentionKernels.attention(q.value, k.value, v.value, options);
  return recordJoint("attention", y, [q, k, v], (dy) => {
    const saved = { q: q.value, k: k.value, v: v.value, y, logSumExp };
    const { dq, dk, dv } = attentionKernels.attentionBackward(saved, dy, options);
    return [dq, dk, dv];
  });
}
