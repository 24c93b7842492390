/**
 * For every operation of the PyTorch fixture: how this library's operations compute it. Operations that the library
 * does not have are composed where the composition is the natural one; the rest are listed with a reason.
 */
import * as ops from "../../src/autograd/ops.ts";
import { constant, detach, type Variable } from "../../src/autograd/variable.ts";
import { IGNORE } from "../../src/tensor/cross_entropy.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { rotaryTables } from "../../src/tensor/rotary.ts";
import { dispose, type Tensor } from "../../src/tensor/tensor.ts";
import { idsToGpu, toGpu } from "./gpu.ts";
import type { OpAttributes, OpCase, OpTensor } from "./oracles.ts";
import { array64 } from "./reference.ts";

/** What an entry of the table gets: floating inputs as Variables, integer inputs as they stand, the attributes. */
export interface GpuCase {
  readonly variables: Readonly<Record<string, Variable>>;
  readonly integers: Readonly<Record<string, OpTensor>>;
  readonly attrs: OpAttributes;
}

type Compute = (inputs: GpuCase) => readonly Variable[];

function variable({ variables }: GpuCase, name: string): Variable {
  const found = variables[name];
  if (!found) throw new Error(`the case has no input "${name}"`);
  return found;
}

function integers(inputs: GpuCase, name: string): OpTensor {
  const found = inputs.integers[name];
  if (!found) throw new Error(`the case has no integer input "${name}"`);
  return found;
}

function attribute<K extends keyof OpAttributes>({ attrs }: GpuCase, name: K): NonNullable<OpAttributes[K]> {
  const value = attrs[name];
  if (value === undefined || value === null) throw new Error(`the case has no attribute "${name}"`);
  return value as NonNullable<OpAttributes[K]>;
}

const u32 = (x: OpTensor): Tensor => idsToGpu(x.data, x.shape);
const scalar = (value: number): Variable => constant(toGpu(array64([], [value])));
const ones = (n: number): Variable => constant(toGpu(array64([n], new Array<number>(n).fill(1))));
const shapeOf = (x: Variable): readonly number[] => x.value.shape;

const unary = (f: (x: Variable) => Variable): Compute => (inputs) => [f(variable(inputs, "x"))];
const binary = (f: (a: Variable, b: Variable) => Variable): Compute => (inputs) => [
  f(variable(inputs, "a"), variable(inputs, "b")),
];
const alongAxis = (f: (x: Variable, axis: number) => Variable): Compute => (inputs) => [
  f(variable(inputs, "x"), attribute(inputs, "dim")),
];
const reduction = (f: (x: Variable, axes?: readonly number[], keepDims?: boolean) => Variable): Compute => (inputs) => [
  f(variable(inputs, "x"), inputs.attrs.dims ?? undefined, inputs.attrs.keepdim ?? false),
];

/** log sum exp(x), the largest value taken out; its gradient needs no path through the maximum. */
function logSumExp(x: Variable, axis: number): Variable {
  const top = detach(ops.max(x, [axis], true));
  const sum = ops.add(ops.log(ops.sum(ops.exp(ops.sub(x, top)), [axis], true)), top);
  return ops.reshape(sum, shapeOf(x).toSpliced(axis < 0 ? axis + shapeOf(x).length : axis, 1));
}

function variance(inputs: GpuCase): Variable {
  const x = variable(inputs, "x");
  const axes = attribute(inputs, "dims");
  const n = axes.reduce((product, axis) => product * shapeOf(x).at(axis)!, 1);
  const centered = ops.sub(x, ops.mean(x, axes, true));
  const total = ops.sum(ops.mul(centered, centered), axes, inputs.attrs.keepdim ?? false);
  return ops.mulScalar(total, 1 / (n - (attribute(inputs, "unbiased") ? 1 : 0)));
}

function linear(x: Variable, weight: Variable, bias: Variable | undefined, transposeB: boolean): Variable {
  const product = ops.matmul(x, weight, { transposeB });
  return bias ? ops.add(product, bias) : product;
}

function repeatInterleave(x: Variable, axis: number, repeats: number): Variable {
  const shape = shapeOf(x);
  const column = ops.reshape(x, shape.toSpliced(axis + 1, 0, 1));
  const repeated = ops.expand(column, shape.toSpliced(axis + 1, 0, repeats));
  return ops.reshape(repeated, shape.with(axis, shape[axis]! * repeats));
}

function lowerTriangle(x: Variable): Variable {
  const [rows, cols] = shapeOf(x) as [number, number];
  const mask = Array.from({ length: rows * cols }, (_, i) => (i % cols <= Math.floor(i / cols) ? 1 : 0));
  return ops.where(idsToGpu(mask, [rows, cols]), x, scalar(0));
}

function crossEntropy(inputs: GpuCase): Variable {
  const target = integers(inputs, "target").data;
  const ignored = attribute(inputs, "ignore_index");
  const ids = idsToGpu(target.map((id) => (id === ignored ? IGNORE : id)));
  const losses = ops.crossEntropy(variable(inputs, "logits"), ids);
  const reductionName = attribute(inputs, "reduction");
  if (reductionName === "none") return losses;
  const kept = target.filter((id) => id !== ignored).length;
  return ops.mulScalar(ops.sum(losses), reductionName === "sum" ? 1 : 1 / kept);
}

/** The fixture has heads before time, [B, H, T, D]; the library [B, T, H, D]. */
const swapHeadsAndTime = (x: Variable): Variable => ops.transpose(x, 1, 2);

function causalAttention(inputs: GpuCase): Variable {
  const q = swapHeadsAndTime(variable(inputs, "q"));
  const k = swapHeadsAndTime(variable(inputs, "k"));
  const v = swapHeadsAndTime(variable(inputs, "v"));
  const { key_mask: keyMask } = inputs.integers;
  const { query_offset: offset } = inputs.attrs;
  const y = ops.attention(q, k, v, {
    scale: attribute(inputs, "scale"),
    ...(keyMask ? { keyMask: u32(keyMask) } : {}),
    ...(offset === undefined ? {} : { queryStart: idsToGpu(new Array<number>(shapeOf(q)[0]!).fill(offset)) }),
  });
  return swapHeadsAndTime(y);
}

function rotary(inputs: GpuCase): Variable[] {
  const positions = integers(inputs, "position_ids");
  const count = Math.max(...positions.data) + 1;
  const tables = rotaryTables(count, attribute(inputs, "head_dim"), attribute(inputs, "rope_theta"));
  const rotated = ["q", "k"].map((name) =>
    swapHeadsAndTime(ops.rotary(swapHeadsAndTime(variable(inputs, name)), tables, u32(positions))),
  );
  releaseLater.push(tables.cos, tables.sin);
  return rotated;
}

/** Tables are kept tensors; `releaseTables` frees them when the case is done. */
const releaseLater: Tensor[] = [];

export function releaseTables(): void {
  releaseLater.splice(0).forEach(dispose);
}

export const gpuOps: Readonly<Record<string, Compute>> = {
  // matrix products
  matmul: (inputs) => [
    ops.matmul(variable(inputs, "a"), variable(inputs, "b"), {
      transposeA: attribute(inputs, "transpose_a"),
      transposeB: attribute(inputs, "transpose_b"),
    }),
  ],
  linear: (inputs) => [linear(variable(inputs, "x"), variable(inputs, "weight"), inputs.variables["bias"], true)],
  conv1d_gpt2: (inputs) => [linear(variable(inputs, "x"), variable(inputs, "weight"), variable(inputs, "bias"), false)],

  // probabilities and losses
  softmax: alongAxis(ops.softmax),
  log_softmax: alongAxis(ops.logSoftmax),
  logsumexp: alongAxis(logSumExp),
  masked_softmax: (inputs) => {
    const scores = ops.where(u32(integers(inputs, "mask")), scalar(-1e38), variable(inputs, "x"));
    return [ops.softmax(scores, attribute(inputs, "dim"))];
  },
  cross_entropy: (inputs) => [crossEntropy(inputs)],

  // normalisation; a missing weight is 1, a missing bias 0
  layer_norm: (inputs) => {
    const x = variable(inputs, "x");
    const { weight = ones(shapeOf(x).at(-1)!), bias = ops.mulScalar(weight, 0) } = inputs.variables;
    return [ops.layerNorm(x, weight, bias, attribute(inputs, "eps"))];
  },
  rms_norm: (inputs) => {
    const x = variable(inputs, "x");
    return [ops.rmsNorm(x, inputs.variables["weight"] ?? ones(shapeOf(x).at(-1)!), attribute(inputs, "eps"))];
  },

  // elementwise, one input
  gelu_tanh: unary(ops.geluTanh),
  gelu_erf: unary(ops.gelu),
  silu: unary(ops.silu),
  sigmoid: unary((x) => ops.powScalar(ops.addScalar(ops.exp(ops.neg(x)), 1), -1)),
  relu: unary((x) => ops.maximum(x, scalar(0))),
  tanh: unary(ops.tanh),
  abs: unary(ops.abs),
  neg: unary(ops.neg),
  exp: unary(ops.exp),
  log: unary(ops.log),
  sqrt: unary(ops.sqrt),
  rsqrt: unary(ops.rsqrt),
  reciprocal: unary((x) => ops.powScalar(x, -1)),
  clamp: (inputs) => [
    ops.clamp(variable(inputs, "x"), inputs.attrs.min ?? -Infinity, inputs.attrs.max ?? Infinity),
  ],

  // elementwise, several inputs
  pow: (inputs) => {
    const exponent = inputs.variables["y"];
    const x = variable(inputs, "x");
    return [exponent ? ops.pow(x, exponent) : ops.powScalar(x, attribute(inputs, "exponent"))];
  },
  add: binary(ops.add),
  sub: binary(ops.sub),
  mul: binary(ops.mul),
  div: binary(ops.div),
  minimum: binary(ops.minimum),
  maximum: binary(ops.maximum),
  where: (inputs) => [ops.where(u32(integers(inputs, "cond")), variable(inputs, "a"), variable(inputs, "b"))],
  masked_fill: (inputs) => [
    ops.where(u32(integers(inputs, "mask")), scalar(attribute(inputs, "value")), variable(inputs, "x")),
  ],

  // reductions
  max_over_axis: reduction(ops.max),
  min_over_axis: reduction((x, axes, keepDims) => ops.neg(ops.max(ops.neg(x), axes, keepDims))),
  sum: reduction(ops.sum),
  mean: reduction(ops.mean),
  var: (inputs) => [variance(inputs)],
  std: (inputs) => [ops.sqrt(variance(inputs))],

  // moving elements
  transpose: (inputs) => [ops.transpose(variable(inputs, "x"), attribute(inputs, "dim0"), attribute(inputs, "dim1"))],
  permute: (inputs) => [ops.permute(variable(inputs, "x"), attribute(inputs, "dims"))],
  reshape: (inputs) => {
    const swap = inputs.attrs.transpose_first;
    const x = variable(inputs, "x");
    return [ops.reshape(swap ? ops.transpose(x, ...swap) : x, attribute(inputs, "shape"))];
  },
  slice: (inputs) => [
    ops.slice(
      variable(inputs, "x"), attribute(inputs, "dim"), attribute(inputs, "start"), attribute(inputs, "stop"),
      inputs.attrs.step ?? 1,
    ),
  ],
  concat: (inputs) => [ops.concat(Object.values(inputs.variables), attribute(inputs, "dim"))],
  stack: (inputs) => {
    const axis = attribute(inputs, "dim");
    const parts = Object.values(inputs.variables);
    return [ops.concat(parts.map((x) => ops.reshape(x, shapeOf(x).toSpliced(axis, 0, 1))), axis)];
  },
  expand: (inputs) => [ops.expand(variable(inputs, "x"), attribute(inputs, "shape"))],
  split: (inputs) => {
    let start = 0;
    return attribute(inputs, "sizes").map((length) => {
      start += length;
      return ops.slice(variable(inputs, "x"), attribute(inputs, "dim"), start - length, start);
    });
  },
  repeat_interleave: (inputs) => [
    repeatInterleave(variable(inputs, "x"), attribute(inputs, "dim"), attribute(inputs, "repeats")),
  ],
  tril: unary(lowerTriangle),
  gather: (inputs) => [ops.gather(variable(inputs, "x"), attribute(inputs, "dim"), u32(integers(inputs, "index")))],
  index_select: (inputs) => {
    const ids = tokenIds(Uint32Array.from(integers(inputs, "index").data));
    return [ops.embedding(variable(inputs, "x"), ids)];
  },
  embedding: (inputs) => {
    const ids = integers(inputs, "ids");
    return [ops.embedding(variable(inputs, "weight"), tokenIds(Uint32Array.from(ids.data), ids.shape))];
  },

  // attention
  causal_attention: (inputs) => [causalAttention(inputs)],
  rotary,
};

/** Operations of the fixture that the library does not offer, and why. */
export const notOffered: Readonly<Record<string, string>> = {
  sin: "rotary angles come from host tables: drivers' sines are off by up to 2e-4",
  cos: "see sin",
  cumsum: "no model or objective here needs a running sum",
  argmax: "greedy choice is part of the sampling kernel and has no gradient",
};

/** Cases at a tie, where PyTorch has another convention for a composed operation or two conventions of its own. */
export const otherConvention: Readonly<Record<string, string>> = {
  "relu/at-zero": "maximum(x, 0) shares the gradient at a tie, as torch.maximum does; torch.relu gives 0",
  "max_over_axis/ties-to-index": "the gradient is shared as in torch.amax; torch.max(dim) gives it to one index",
};

/** Outputs of a case, computed on the GPU. */
export function runOnGpu(oracle: OpCase, variables: Readonly<Record<string, Variable>>): readonly Variable[] {
  const { op, attrs, inputs } = oracle;
  const compute = gpuOps[op];
  if (!compute) throw new Error(`gpuOps has no "${op}"`);
  const integerInputs = Object.fromEntries(Object.entries(inputs).filter(([, x]) => x.integer));
  return compute({ variables, integers: integerInputs, attrs });
}
