/**
 * Frozen copies of a policy: the reference policy of the KL term, and the last weights that gave finite numbers, for a
 * run that fails later.
 */
import { constant } from "../autograd/variable.ts";
import type { Gpt } from "../model/gpt.ts";
import { copy } from "../tensor/elementwise.ts";
import { dispose, keep } from "../tensor/tensor.ts";

/** Copies `model` on the GPU without gradients. Rotary tables are shared, so free the copy by `disposeCopy`. */
export function copyPolicy(model: Gpt): Gpt {
  const parameters = [...model.parameters].map(([name, { value }]) => [name, constant(keep(copy(value)))] as const);
  return { ...model, parameters: new Map(parameters) };
}

/** Returns the copy's memory to the pool; what it shares with the policy stays. */
export function disposeCopy({ parameters }: Gpt): void {
  for (const { value } of parameters.values()) dispose(value);
}
