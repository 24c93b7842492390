/**
 * Reverse-mode differentiation: walk the recorded operations from the loss to the parameters, each once, accumulating.
 *
 * A rule is dropped as soon as it has run, and with it what it saved: a graph can be walked once. Gradients return to
 * the pool when their last reader is done, so the walk adds little to the memory of the forward pass, whose values stay
 * readable (a loss, a ratio for the log) until the scope of the step ends.
 */
import { addInto, add, copy, fill } from "../tensor/elementwise.ts";
import { currentScope, release, scope, type Storage } from "../tensor/memory.ts";
import { ShapeError, sameShape, show, sizeOf } from "../tensor/shape.ts";
import { dispose, keep, type Tensor } from "../tensor/tensor.ts";
import type { Variable } from "./variable.ts";

/**
 * Adds dLoss/dParameter to `grad` of every tracked leaf that `loss` depends on. `cotangent` is dL/dLoss, 1 for a
 * scalar. Equals `loss.backward(cotangent)` in PyTorch without `retain_graph`.
 * @throws ShapeError when `loss` is not a scalar and no cotangent is given, or the shapes differ.
 * @throws Error when the graph was already walked.
 */
export function backward(loss: Variable, cotangent?: Tensor): void {
  scope(() => walk(loss, cotangent, accumulateLeaf));
}

/**
 * dLoss/dLeaf for the given leaves (null where the loss does not depend on one), leaving every `grad` alone:
 * `torch.autograd.grad`. Throws as `backward` does.
 */
export function gradientsOf(loss: Variable, leaves: readonly Variable[], cotangent?: Tensor): (Tensor | null)[] {
  return scope(() => {
    const found = new Map<Variable, Tensor>();
    walk(loss, cotangent, (leaf, dy) => found.set(leaf, dy));
    return leaves.map((leaf) => found.get(leaf) ?? null);
  });
}

/** Differentiates every recorded operation once, outputs before inputs; a leaf's complete gradient goes to `onLeaf`. */
function walk(
  loss: Variable,
  cotangent: Tensor | undefined,
  onLeaf: (leaf: Variable, dy: Tensor, gradients: PendingGradients) => void,
): void {
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
  const gradients = new PendingGradients();
  gradients.add(loss, cotangent ?? fill(shape, 1));
  for (const variable of order.reverse()) {
    const dy = gradients.take(variable);
    if (!dy) continue;
    if (!variable.producer) {
      onLeaf(variable, dy, gradients);
      continue;
    }
    const { inputs, rule } = variable.producer;
    const into = inputs.map((input) => gradients.growing(input));
    const results = scope(() => rule!(dy, into));
    variable.producer.rule = null;
    inputs.forEach((input, i) => {
      const dx = results[i];
      if (!dx || !input.tracked || dx === into[i]) return;
      if (!sameShape(dx.shape, input.value.shape)) {
        throw new ShapeError(
          `${variable.producer!.op}: gradient ${show(dx.shape)} for input ${show(input.value.shape)}`,
        );
      }
      gradients.add(input, dx);
    });
    gradients.done(dy.storage);
  }
}

/** Drops the gradients of parameters, so that the next `backward` starts from zero. */
export function zeroGrad(parameters: Iterable<Variable>): void {
  for (const parameter of parameters) {
    if (parameter.grad) dispose(parameter.grad);
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
 * Gradients that wait for their operation's turn. Several Variables may share one storage (`add` passes dy through
 * to both inputs), so readers are counted: a shared gradient is never added into, an unread one is freed.
 */
class PendingGradients {
  readonly #pending = new Map<Variable, Tensor>();
  readonly #readers = new Map<Storage, number>();
  readonly #scope = currentScope();

  /** Whether backward allocated this storage and nobody reads it any more. */
  isUnread(storage: Storage): boolean {
    return storage.owner === this.#scope && (this.#readers.get(storage) ?? 0) === 0;
  }

  /** Whether backward allocated this storage and one reader is left. */
  isLastReader(storage: Storage): boolean {
    return storage.owner === this.#scope && this.#readers.get(storage) === 1;
  }

  /** What has been left for a Variable so far, if more can be added to it in place. */
  growing(variable: Variable): Tensor | null {
    const gradient = this.#pending.get(variable);
    return gradient && this.isLastReader(gradient.storage) ? gradient : null;
  }

  #hold(storage: Storage): void {
    this.#readers.set(storage, (this.#readers.get(storage) ?? 0) + 1);
  }

  add(variable: Variable, gradient: Tensor): void {
    const existing = this.#pending.get(variable);
    if (existing && existing.storage !== gradient.storage && this.isLastReader(existing.storage)) {
      addInto(existing, gradient);
      if (this.isUnread(gradient.storage)) release(gradient.storage);
      return;
    }
    const sum = existing ? add(existing, gradient) : gradient;
    this.#pending.set(variable, sum);
    this.#hold(sum.storage);
    if (!existing) return;
    this.done(existing.storage);
    if (this.isUnread(gradient.storage)) release(gradient.storage);
  }

  /** The accumulated gradient of a Variable whose turn has come; undefined when nothing flowed into it. */
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
}

/** A parameter's gradient outlives the walk: take the tensor over if nobody else reads it, else copy it. */
function accumulateLeaf(leaf: Variable, dy: Tensor, gradients: PendingGradients): void {
  if (leaf.grad) {
    addInto(leaf.grad, dy);
    gradients.done(dy.storage);
    return;
  }
  if (gradients.isLastReader(dy.storage)) {
    leaf.grad = keep(dy);
  } else {
    leaf.grad = keep(copy(dy));
    gradients.done(dy.storage);
  }
}
