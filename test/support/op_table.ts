/**
 * For every operation of the PyTorch fixture (ops.json.gz): the float64 reference that computes it.
 *
 * A test of the library walks `loadOpCases()`, runs its own operation of that name, and compares with the case's
 * outputs and gradients, or with `runReference` on inputs of its own.
 */
import * as ref from "./reference.ts";
import * as nn from "./reference_nn.ts";
import * as shapes from "./reference_shape.ts";
import type { Array64 } from "./reference.ts";
import type { OpAttributes } from "./oracles.ts";

/** Inputs by the fixture's names; masks and ids are arrays like the others. */
export type ReferenceInputs = Record<string, Array64>;

export interface OpReference {
  /** All outputs, in the fixture's order. */
  reference: (inputs: ReferenceInputs, attrs: OpAttributes) => Array64[];
}

function input(inputs: ReferenceInputs, name: string): Array64 {
  const found = inputs[name];
  if (found === undefined) throw new Error(`op_table: input "${name}" is missing (there: ${Object.keys(inputs)})`);
  return found;
}

function attribute<K extends keyof OpAttributes>(attrs: OpAttributes, name: K): NonNullable<OpAttributes[K]> {
  const value = attrs[name];
  if (value === undefined || value === null) throw new Error(`op_table: attribute "${name}" is missing`);
  return value as NonNullable<OpAttributes[K]>;
}

const unary = (f: (x: Array64) => Array64): OpReference => ({ reference: (inputs) => [f(input(inputs, "x"))] });

const binary = (f: (a: Array64, b: Array64) => Array64): OpReference => ({
  reference: (inputs) => [f(input(inputs, "a"), input(inputs, "b"))],
});

/** One input x and attributes. */
const withAttributes = (f: (x: Array64, attrs: OpAttributes) => Array64): OpReference => ({
  reference: (inputs, attrs) => [f(input(inputs, "x"), attrs)],
});

const alongAxis = (f: (x: Array64, axis: number) => Array64): OpReference =>
  withAttributes((x, attrs) => f(x, attribute(attrs, "dim")));

const reduction = (f: (x: Array64, axes: readonly number[] | null, keepDims: boolean) => Array64): OpReference =>
  withAttributes((x, attrs) => f(x, attrs.dims ?? null, attrs.keepdim ?? false));

const variance = (x: Array64, attrs: OpAttributes): Array64 =>
  ref.variance(x, attribute(attrs, "dims"), attribute(attrs, "unbiased"), attrs.keepdim ?? false);

/** The fixture puts heads before time, [batch, heads, time, size]; the reference has [batch, time, heads, size]. */
const swapHeadsAndTime = (x: Array64): Array64 => shapes.transpose(x, 1, 2);

export const opTable: Record<string, OpReference> = {
  // matrix products
  matmul: {
    reference: (inputs, attrs) => [
      nn.matmul(input(inputs, "a"), input(inputs, "b"), {
        transposeA: attribute(attrs, "transpose_a"),
        transposeB: attribute(attrs, "transpose_b"),
      }),
    ],
  },
  linear: { reference: (inputs) => [nn.linear(input(inputs, "x"), input(inputs, "weight"), inputs["bias"])] },
  conv1d_gpt2: {
    reference: (inputs) => [ref.add(nn.matmul(input(inputs, "x"), input(inputs, "weight")), input(inputs, "bias"))],
  },

  // probabilities and losses
  softmax: alongAxis(nn.softmax),
  log_softmax: alongAxis(nn.logSoftmax),
  logsumexp: alongAxis((x, axis) => ref.logSumExp(x, [axis])),
  masked_softmax: {
    reference: (inputs, attrs) => {
      const scores = ref.where(input(inputs, "mask"), ref.scalar(-Infinity), input(inputs, "x"));
      return [nn.softmax(scores, attribute(attrs, "dim"))];
    },
  },
  cross_entropy: {
    reference: (inputs, attrs) => [
      nn.crossEntropy(input(inputs, "logits"), input(inputs, "target").data, {
        reduction: attribute(attrs, "reduction"),
        ignoreIndex: attribute(attrs, "ignore_index"),
      }),
    ],
  },

  // normalisation
  layer_norm: {
    reference: (inputs, attrs) => [
      nn.layerNorm(input(inputs, "x"), inputs["weight"], inputs["bias"], attribute(attrs, "eps")),
    ],
  },
  rms_norm: {
    reference: (inputs, attrs) => [nn.rmsNorm(input(inputs, "x"), inputs["weight"], attribute(attrs, "eps"))],
  },

  // elementwise, one input
  gelu_tanh: unary(ref.geluTanh),
  gelu_erf: unary(ref.gelu),
  silu: unary(ref.silu),
  sigmoid: unary(ref.sigmoid),
  relu: unary(ref.relu),
  tanh: unary(ref.tanh),
  abs: unary(ref.abs),
  neg: unary(ref.neg),
  exp: unary(ref.exp),
  log: unary(ref.log),
  sqrt: unary(ref.sqrt),
  rsqrt: unary(ref.rsqrt),
  reciprocal: unary(ref.reciprocal),
  sin: unary(ref.sin),
  cos: unary(ref.cos),
  clamp: withAttributes((x, attrs) => ref.clamp(x, attrs.min, attrs.max)),

  // elementwise, several inputs
  pow: {
    reference: (inputs, attrs) => [
      inputs["y"] === undefined
        ? ref.powScalar(input(inputs, "x"), attribute(attrs, "exponent"))
        : ref.pow(input(inputs, "x"), inputs["y"]),
    ],
  },
  add: binary(ref.add),
  sub: binary(ref.sub),
  mul: binary(ref.mul),
  div: binary(ref.div),
  minimum: binary(ref.minimum),
  maximum: binary(ref.maximum),
  where: { reference: (inputs) => [ref.where(input(inputs, "cond"), input(inputs, "a"), input(inputs, "b"))] },
  masked_fill: {
    reference: (inputs, attrs) => [
      ref.where(input(inputs, "mask"), ref.scalar(attribute(attrs, "value")), input(inputs, "x")),
    ],
  },

  // reductions
  max_over_axis: reduction(ref.max),
  min_over_axis: reduction(ref.min),
  sum: reduction(ref.sum),
  mean: reduction(ref.mean),
  var: withAttributes(variance),
  std: withAttributes((x, attrs) => ref.sqrt(variance(x, attrs))),
  cumsum: alongAxis(ref.cumsum),
  argmax: alongAxis(ref.argmax),

  // moving elements
  transpose: withAttributes((x, attrs) => shapes.transpose(x, attribute(attrs, "dim0"), attribute(attrs, "dim1"))),
  permute: withAttributes((x, attrs) => shapes.permute(x, attribute(attrs, "dims"))),
  reshape: withAttributes((x, attrs) => {
    const swap = attrs.transpose_first;
    return shapes.reshape(swap === undefined ? x : shapes.transpose(x, ...swap), attribute(attrs, "shape"));
  }),
  slice: withAttributes((x, attrs) =>
    shapes.slice(x, attribute(attrs, "dim"), attribute(attrs, "start"), attribute(attrs, "stop"), attrs.step),
  ),
  concat: { reference: (inputs, attrs) => [shapes.concat(Object.values(inputs), attribute(attrs, "dim"))] },
  stack: { reference: (inputs, attrs) => [shapes.stack(Object.values(inputs), attribute(attrs, "dim"))] },
  expand: withAttributes((x, attrs) => ref.broadcastTo(x, attribute(attrs, "shape"))),
  split: {
    reference: (inputs, attrs) => shapes.split(input(inputs, "x"), attribute(attrs, "sizes"), attribute(attrs, "dim")),
  },
  repeat_interleave: withAttributes((x, attrs) =>
    shapes.repeatInterleave(x, attribute(attrs, "dim"), attribute(attrs, "repeats")),
  ),
  tril: unary(shapes.tril),
  gather: {
    reference: (inputs, attrs) => {
      const { data: ids, shape } = input(inputs, "index");
      return [shapes.gather(input(inputs, "x"), attribute(attrs, "dim"), ids, shape)];
    },
  },
  index_select: {
    reference: (inputs, attrs) => [
      shapes.indexSelect(input(inputs, "x"), attribute(attrs, "dim"), input(inputs, "index").data),
    ],
  },
  embedding: {
    reference: (inputs) => {
      const { data: ids, shape } = input(inputs, "ids");
      return [nn.embedding(input(inputs, "weight"), ids, shape)];
    },
  },

  // attention
  causal_attention: {
    reference: (inputs, attrs) => {
      const operand = (name: string): Array64 => swapHeadsAndTime(input(inputs, name));
      const mask = inputs["key_mask"];
      const output = nn.causalAttention(operand("q"), operand("k"), operand("v"), {
        scale: attribute(attrs, "scale"),
        queryOffset: attrs.query_offset ?? 0,
        ...(mask === undefined ? {} : { keyMask: mask.data }),
      });
      return [swapHeadsAndTime(output)];
    },
  },
  rotary: {
    reference: (inputs, attrs) => {
      const positions = input(inputs, "position_ids").data;
      const theta = attribute(attrs, "rope_theta");
      const tables = nn.rotaryTables(Math.max(...positions) + 1, attribute(attrs, "head_dim"), theta);
      return ["q", "k"].map((name) => {
        const x = swapHeadsAndTime(input(inputs, name));
        return swapHeadsAndTime(nn.rotary(x, tables.cos, tables.sin, positions));
      });
    },
  },
};

/** All outputs of an operation of the fixture. Throws if the table does not know it. */
export function runReference(op: string, inputs: ReferenceInputs, attrs: OpAttributes): Array64[] {
  const entry = opTable[op];
  if (entry === undefined) throw new Error(`op_table: unknown operation "${op}"`);
  return entry.reference(inputs, attrs);
}
