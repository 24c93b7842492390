/**
 * Reverse-mode differentiation: walk the recorded operations from the loss to the parameters, each once, accumulating.
 *
 * A rule is dropped as soon as it has run, and with it what it saved: a graph can be walked once. Gradients return to
 * the pool when their last reader is done, so the walk adds little to the memory of the forward pass, whose values stay
 * readable (a loss, a ratio for the log) until the scope of the step ends.
 *
 * Departs from the textbook: a rule is told where a gradient of its input is wanted (`Destination`), the sum that other
 * operations have begun or the place that an optimiser has set aside, so that most gradients are never copied or added
 * by a pass of their own.
 */
import { addInto, add, copy, copyInto, fill } from "../tensor/elementwise.ts";
import { currentScope, release, scope, type Storage } from "../tensor/memory.ts";
import { ShapeError, sameShape, show, sizeOf } from "../tensor/shape.ts";
import { dispose, keep, type Destination, type Tensor } from "../tensor/tensor.ts";
import type { Variable } from "./variable.ts";

/**
 * Adds dLoss/dParameter to `grad` of every tracked leaf that `loss` depends on. `cotangent` is dL/dLoss, 1 for a
 * scalar. Equals `loss.backward(cotangent)` in PyTorch without `retain_graph`.
 * @throws ShapeError when `loss` is not a scalar and no cotangent is given, or the shapes differ.
 * @throws Error when the graph was already walked.
 */
export function backward(loss: Variable, cotangent?: Tensor): void {
  scope(() => walk(loss, cotangent, parameterGradients));
}

/**
 * dLoss/dLeaf for the given leaves (null where the loss does not depend on one), leaving every `grad` alone:
 * `torch.autograd.grad`. Gradients are left in `into` where that names a place. Throws as `backward` does.
 */
export function gradientsOf(
  loss: Variable,
  leaves: readonly Variable[],
  cotangent?: Tensor,
  into: readonly (Destination | null)[] = [],
): (Tensor | null)[] {
  return scope(() => {
    const found = new Map<Variable, Tensor>();
    const places = new Map<Variable, Tensor>();
    leaves.forEach((leaf, i) => {
      const destination = into[i];
      if (destination) (destination.adds ? found : places).set(leaf, destination.tensor);
    });
    walk(loss, cotangent, {
      get: (leaf) => found.get(leaf) ?? null,
      set: (leaf, gradient) => found.set(leaf, gradient),
      placeOf: (leaf) => places.get(leaf) ?? null,
    });
    return leaves.map((leaf) => found.get(leaf) ?? null);
  });
}

/** Where the gradients of leaves add up. */
interface LeafGradients {
  readonly get: (leaf: Variable) => Tensor | null;
  /** Takes a tensor that nobody else uses, once per leaf. */
  readonly set: (leaf: Variable, gradient: Tensor) => void;
  /** Memory that is set aside for a leaf's gradient. */
  readonly placeOf: (leaf: Variable) => Tensor | null;
}

const parameterGradients: LeafGradients = {
  get: ({ grad }) => grad,
  set: (leaf, gradient) => (leaf.grad = gradient === leaf.gradPlace ? gradient : keep(gradient)),
  placeOf: ({ gradPlace = null }) => gradPlace,
};

/** Differentiates every recorded operation once, outputs before inputs. */
function walk(loss: Variable, cotangent: Tensor | undefined, leaves: LeafGradients): void {
  const { shape } = loss.value;
  if (!cotangent && sizeOf(shape) !== 1) {
    throw new ShapeError(`backward: the loss has shape ${show(shape)}; reduce it to a scalar or pass a cotangent`);
  }
  if (cotangent && !sameShape(cotangent.shape, shape)) {
    throw new ShapeError(`backward: cotangent ${show(cotangent.shape)} for a value of shape ${show(shape)}`);
  }
  if (!loss.tracked) throw new Error("backward: the loss does not depend on any parameter");
  const order = topologicalOrder(loss);
  for (const { producer } of order) {
    if (producer && !producer.rule) {
      throw new Error(
        `backward: the graph through "${producer.op}" was already walked and what it saved is freed. ` +
          "Fix: run the forward pass again, or add the losses and call backward once",
      );
    }
  }
  const gradients = new PendingGradients(leaves);
  gradients.addShares([loss], [cotangent ?? fill(shape, 1)], [null]);
  for (const variable of order.reverse()) {
    const dy = gradients.take(variable);
    if (!dy || !variable.producer) continue;
    const { op, inputs, rule } = variable.producer;
    const into = gradients.destinations(inputs);
    const shares = scope(() => rule!(dy, into));
    variable.producer.rule = null;
    inputs.forEach(({ value }, i) => {
      const share = shares[i];
      if (share && !sameShape(share.shape, value.shape)) {
        throw new ShapeError(`${op}: gradient ${show(share.shape)} for input ${show(value.shape)}`);
      }
    });
    gradients.addShares(inputs, shares, into);
    gradients.done(dy.storage);
  }
}

/** Drops the gradients of parameters, so that the next `backward` starts from zero. */
export function zeroGrad(parameters: Iterable<Variable>): void {
  for (const parameter of parameters) {
    if (parameter.grad && parameter.grad !== parameter.gradPlace) dispose(parameter.grad);
    parameter.grad = null;
  }
}

/** Inputs before outputs. Iterative: a recursion would overflow the stack on deep graphs. */
function topologicalOrder(root: Variable): Variable[] {
  const order: Variable[] = [];
  const visited = new Set<Variable>([root]);
  const stack: { variable: Variable; next: number }[] = [{ variable: root, next: 0 }];
  for (let top = stack.at(-1); top; top = stack.at(-1)) {
    const input = top.variable.producer?.inputs[top.next++];
    if (!input) {
      order.push(stack.pop()!.variable);
    } else if (input.tracked && !visited.has(input)) {
      visited.add(input);
      stack.push({ variable: input, next: 0 });
    }
  }
  return order;
}

/**
 * Gradients on their way: those of leaves, which add up where `LeafGradients` says, and those that wait for their
 * operation's turn. Several Variables may share one storage (`add` passes dy through to both inputs), so readers are
 * counted: a shared gradient is never added into, an unread one is freed.
 */
class PendingGradients {
  readonly #leaves: LeafGradients;
  readonly #pending = new Map<Variable, Tensor>();
  readonly #readers = new Map<Storage, number>();
  readonly #scope = currentScope();

  constructor(leaves: LeafGradients) {
    this.#leaves = leaves;
  }

  /** Where a rule may leave its share of the gradient of each input. */
  destinations(inputs: readonly Variable[]): (Destination | null)[] {
    return inputs.map((input, i) => {
      if (!input.tracked) return null;
      if (input.producer) {
        const begun = this.#pending.get(input);
        return begun && this.#isOnlyReader(begun.storage) ? { tensor: begun, adds: true } : null;
      }
      const begun = this.#leaves.get(input);
      if (begun) return { tensor: begun, adds: true };
      const place = inputs.indexOf(input) === i ? this.#leaves.placeOf(input) : null; // twice would overwrite itself
      return place && { tensor: place, adds: false };
    });
  }

  /** Adds what a rule returned for its inputs; `into` are the destinations that it was offered. */
  addShares(
    inputs: readonly Variable[], shares: readonly (Tensor | null)[], into: readonly (Destination | null)[],
  ): void {
    for (const share of shares) if (share) this.#hold(share.storage); // one tensor may be several inputs' share
    inputs.forEach((input, i) => {
      const share = shares[i];
      const destination = into[i];
      if (!share || !input.tracked) return;
      const isLeft = destination && isSameMemory(share, destination.tensor);
      if (isLeft && destination.adds) return;
      if (input.producer) this.#addPending(input, share);
      else if (isLeft) this.#leaves.set(input, destination.tensor);
      else this.#addToLeaf(input, share);
    });
    for (const share of shares) if (share) this.done(share.storage);
  }

  /** The complete gradient of an operation's output, whose turn has come; undefined when nothing flowed into it. */
  take(variable: Variable): Tensor | undefined {
    const gradient = this.#pending.get(variable);
    this.#pending.delete(variable);
    return gradient;
  }

  /** One reader of this storage has finished. */
  done(storage: Storage): void {
    const readers = (this.#readers.get(storage) ?? 1) - 1;
    this.#readers.set(storage, readers);
    if (readers === 0 && storage.owner === this.#scope) release(storage);
  }

  #hold(storage: Storage): void {
    this.#readers.set(storage, (this.#readers.get(storage) ?? 0) + 1);
  }

  /** Whether backward allocated this storage and one reader is left. */
  #isOnlyReader(storage: Storage): boolean {
    return storage.owner === this.#scope && this.#readers.get(storage) === 1;
  }

  #addPending(variable: Variable, share: Tensor): void {
    const begun = this.#pending.get(variable);
    if (begun && begun.storage !== share.storage && this.#isOnlyReader(begun.storage)) {
      addInto(begun, share);
      return;
    }
    const sum = begun ? add(begun, share) : share;
    this.#pending.set(variable, sum);
    this.#hold(sum.storage);
    if (begun) this.done(begun.storage);
  }

  /** A leaf's gradient outlives the walk: take the tensor over if nobody else reads it, else copy it. */
  #addToLeaf(leaf: Variable, share: Tensor): void {
    const begun = this.#leaves.get(leaf);
    if (begun) {
      addInto(begun, share);
      return;
    }
    const place = this.#leaves.placeOf(leaf);
    if (place) copyInto(place, share);
    const own = place ?? (this.#isOnlyReader(share.storage) ? share : copy(share));
    this.#hold(own.storage); // for good
    this.#leaves.set(leaf, own);
  }
}

function isSameMemory(a: Tensor, b: Tensor): boolean {
  return a.storage === b.storage && (a.byteOffset ?? 0) === (b.byteOffset ?? 0);
}
