/**
 * Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): forget what a block computed inside, and compute it
 * again when backward needs it. A model of L blocks then stores L block inputs and the inside of one block, instead of the
 * insides of all, for one more forward pass. `torch.utils.checkpoint.checkpoint` is the same.
 *
 * The second pass runs the same kernels on the same numbers: gradients are bit-equal to those without checkpointing.
 */
import { scope } from "../tensor/memory.ts";
import { gradientsOf } from "./backward.ts";
import { detach, parameter, recordJoint, type Variable } from "./variable.ts";

/**
 * block(inputs), recorded as one operation. Everything the gradient flows to must be among `inputs`.
 * @throws Error when the block reaches for a tracked Variable from outside, whose gradient would be lost.
 */
export function checkpoint(
  inputs: readonly Variable[],
  block: (inputs: readonly Variable[]) => Variable,
): Variable {
  // Detached inputs record nothing, and what the block allocates is freed with the scope, but for its result. A result
  // that is tracked all the same can only come from outside.
  const { value } = scope(() => {
    const y = block(inputs.map(detach));
    if (!y.tracked) return y;
    throw new Error(
      "checkpoint: the block uses a tracked Variable that is not among its inputs, so its gradient would be lost. " +
        "Fix: pass it as an input, or detach it",
    );
  });
  return recordJoint("checkpoint", value, inputs, (dy, into) => {
    const leaves = inputs.map((input) => (input.tracked ? parameter(input.value) : detach(input)));
    return gradientsOf(block(leaves), leaves, dy, into);
  });
}
