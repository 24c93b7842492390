/**
 * A Variable is a tensor that remembers how it was computed, so that `backward` can differentiate through it.
 *
 * There is no global gradient switch: an operation records itself exactly when one of its inputs is tracked. Rollouts
 * and reference policies run on detached parameters and therefore record nothing.
 */
import { ShapeError } from "../tensor/shape.ts";
import type { Destination, Tensor } from "../tensor/tensor.ts";

/** The operation that produced a Variable: its inputs, and the rule from the output's gradient to the inputs'. */
export interface Producer {
  readonly op: string;
  readonly inputs: readonly Variable[];
  /** Cleared once used: it holds what was saved. */
  rule: JointRule | null;
}

/**
 * dL/dOutput -> dL/dInput for each input (null where it is not tracked). `into` offers a place for the gradient of an
 * input where there is one: a rule may leave its share there and return that tensor, which saves a pass over both, or
 * ignore it.
 */
export type JointRule = (dy: Tensor, into: readonly (Destination | null)[]) => readonly (Tensor | null)[];
/** The same for one input. */
export type Rule = (dy: Tensor, into: Destination | null) => Tensor;

export interface Variable {
  readonly value: Tensor;
  /** Whether gradients flow into this Variable. */
  readonly tracked: boolean;
  /** The operation it came from; null for parameters and constants. */
  readonly producer: Producer | null;
  /** dL/dValue, set by `backward` on parameters only. Accumulates until `zeroGrad`. */
  grad: Tensor | null;
  /** Where `backward` puts `grad`; null, or absent: into memory of its own. An optimiser keeps all side by side. */
  gradPlace?: Tensor | null;
}

/** A leaf whose gradient is wanted. @throws ShapeError for a bf16 tensor, which cannot be trained. */
export function parameter(value: Tensor): Variable {
  if (value.dtype !== "f32") {
    throw new ShapeError(`parameter: a ${value.dtype} tensor cannot be trained; load it as float32`);
  }
  return { value, tracked: true, producer: null, grad: null };
}

/** A leaf without gradient: data, masks, advantages. */
export function constant(value: Tensor): Variable {
  return { value, tracked: false, producer: null, grad: null };
}

/** The same value, cut off from the graph (PyTorch's `detach`). */
export function detach(x: Variable): Variable {
  return constant(x.value);
}

/**
 * Records an operation whose inputs have independent gradient rules, each run only if its input is tracked:
 * `record("mul", y, [a, (dy) => mul(dy, b)], [b, (dy) => mul(dy, a)])`.
 */
export function record(op: string, value: Tensor, ...edges: readonly [Variable, Rule][]): Variable {
  return recordJoint(
    op,
    value,
    edges.map(([input]) => input),
    (dy, into) => edges.map(([input, rule], i) => (input.tracked ? rule(dy, into[i]!) : null)),
  );
}

/** Records an operation whose backward kernel yields the gradients of several inputs at once. */
export function recordJoint(op: string, value: Tensor, inputs: readonly Variable[], rule: JointRule): Variable {
  const tracked = inputs.some((input) => input.tracked);
  return { value, tracked, producer: tracked ? { op, inputs, rule } : null, grad: null };
}
