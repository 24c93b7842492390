/**
 * The test of an operation in one call: GPU forward against the float64 reference, and the GPU gradient of every
 * element of every input against central differences of the reference, for a random cotangent.
 */
import { backward } from "../../src/autograd/backward.ts";
import { parameter, type Variable } from "../../src/autograd/variable.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, readAll, type Tensor } from "../../src/tensor/tensor.ts";
import { centralDifferences, dot, expectClose, random } from "./gradcheck.ts";
import { toGpu } from "./gpu.ts";
import type { Array64 } from "./reference.ts";

export interface Tolerance {
  readonly rtol: number;
  readonly atol: number;
}

export interface OpCheck {
  readonly inputs: readonly Array64[];
  readonly gpu: (...inputs: Variable[]) => Variable;
  readonly reference: (...inputs: Array64[]) => Array64;
  /** Forward tolerance; default one float32 exponential's worth. */
  readonly forward?: Tolerance;
  readonly gradient?: Tolerance;
  /** Inputs (by position) whose gradient is not checked, because the operation has none. */
  readonly withoutGradient?: readonly number[];
  /**
   * Inputs (by position) of which output row i depends on row i alone (rows: the first axis). All rows are then
   * perturbed at once, which makes checking every element of 70,000 rows possible.
   */
  readonly independentRows?: readonly number[];
  readonly seed?: number;
}

/** Checks an operation and its gradients. Throws with operation, element, got and expected. */
export async function checkOp(name: string, check: OpCheck): Promise<void> {
  const { inputs, reference, withoutGradient = [], independentRows = [], seed = 1 } = check;
  const forwardTolerance = check.forward ?? { rtol: 5e-6, atol: 1e-6 };
  const gradientTolerance = check.gradient ?? { rtol: 1e-4, atol: 1e-5 };
  const expected = reference(...inputs);
  const cotangent = random(seed).uniform(expected.shape, -1, 1);

  const variables = inputs.map((x) => parameter(keep(toGpu(x))));
  const results = await scopeAsync(async () => {
    const y = check.gpu(...variables);
    if (y.value.shape.join() !== expected.shape.join()) {
      throw new Error(`${name}: shape [${y.value.shape.join()}], expected [${expected.shape.join()}]`);
    }
    if (withoutGradient.length < inputs.length) backward(y, toGpu(cotangent));
    const gradients = variables.map(({ grad }) => grad);
    return readAll([y.value, ...gradients.filter((grad): grad is Tensor => grad !== null)]);
  });
  expectClose(`${name} forward`, results.shift()!, expected.data, forwardTolerance);
  inputs.forEach((x, i) => {
    const { grad, value } = variables[i]!;
    const actual = grad ? results.shift()! : null;
    if (grad) dispose(grad);
    dispose(value);
    if (withoutGradient.includes(i)) return;
    if (!actual) throw new Error(`${name}: input ${i} received no gradient`);
    const f = (arrays: Array64[]): Array64 => reference(...arrays);
    const numerical = independentRows.includes(i)
      ? rowwiseDifferences(f, inputs, cotangent, i)
      : centralDifferences(f, inputs, cotangent, i);
    expectClose(`${name} gradient of input ${i} [${x.shape.join()}]`, actual, numerical.data, gradientTolerance);
  });
}

/** Central differences that move one column of all rows at once; right when rows do not influence each other. */
function rowwiseDifferences(
  f: (inputs: Array64[]) => Array64,
  inputs: readonly Array64[],
  cotangent: Array64,
  which: number,
  eps = 1e-6,
): Array64 {
  const { shape, data } = inputs[which]!;
  const rows = shape[0]!;
  const columns = data.length / rows;
  const gradient = new Float64Array(data.length);
  for (let column = 0; column < columns; column++) {
    const moved = (step: number): Float64Array => {
      const copy = data.slice();
      for (let row = 0; row < rows; row++) copy[row * columns + column]! += step;
      return f(inputs.with(which, { shape, data: copy })).data;
    };
    const [up, down] = [moved(eps), moved(-eps)];
    const width = up.length / rows;
    for (let row = 0; row < rows; row++) {
      const change = up.subarray(row * width, (row + 1) * width).map((output, j) => output - down[row * width + j]!);
      gradient[row * columns + column] =
        dot(change, cotangent.data.subarray(row * width, (row + 1) * width)) / (2 * eps);
    }
  }
  return { shape: [...shape], data: gradient };
}
