/** The reference policy of the KL term: a copy of the weights that training starts from. It never changes. */
import { constant } from "../autograd/variable.ts";
import type { Gpt } from "../model/gpt.ts";
import { copy } from "../tensor/elementwise.ts";
import { dispose, keep } from "../tensor/tensor.ts";

/** Copies `model` on the GPU without gradients. Rotary tables are shared, so free the copy by `disposeReference`. */
export function referencePolicy(model: Gpt): Gpt {
  const parameters = [...model.parameters].map(([name, { value }]) => [name, constant(keep(copy(value)))] as const);
  return { ...model, parameters: new Map(parameters) };
}

/** Returns the copy's memory to the pool; what it shares with the policy stays. */
export function disposeReference({ parameters }: Gpt): void {
  for (const { value } of parameters.values()) dispose(value);
}
