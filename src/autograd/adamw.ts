/**
 * AdamW over a model's parameters (Loshchilov and Hutter 2019; torch.optim.AdamW with torch.nn.utils.clip_grad_norm_).
 *
 * Departs from PyTorch: the gradient norm is computed on every step and nothing is read back, neither to clip nor to
 * notice a bad gradient. If the norm is not finite (a NaN or an infinity anywhere, or sums of squares beyond float32),
 * the step leaves every parameter and moment as it was, as a GradScaler would; it still counts for bias correction.
 *
 * Moments lie side by side in memory, and the optimiser sets places side by side aside for the gradients too
 * (`gradPlace`). Parameters that are neighbours as well, as those of a Gpt are, are then updated by one launch.
 */
import * as kernels from "../tensor/adamw.ts";
import { fillInto } from "../tensor/elementwise.ts";
import { ShapeError, show } from "../tensor/shape.ts";
import {
  areNeighbours, disposeAll, empty, emptyNeighbours, joinNeighbours, keep, readAll, size, write, type Tensor,
} from "../tensor/tensor.ts";
import type { Variable } from "./variable.ts";

export interface AdamWOptions {
  readonly beta1?: number;
  readonly beta2?: number;
  readonly eps?: number;
  /** Decoupled: each step takes learningRate * weightDecay of the parameter away. */
  readonly weightDecay?: number;
  /** Ascends: for an objective instead of a loss. */
  readonly maximize?: boolean;
  /** Gradients of all parameters together are scaled down to this norm; no clipping when absent. */
  readonly maxGradNorm?: number;
}

/** Moments of one parameter; `step` counts its updates. */
export interface ParameterState {
  readonly firstMoment: Tensor;
  readonly secondMoment: Tensor;
  step: number;
}

/** The same on the host, for checkpoints. */
export interface SavedParameterState {
  readonly firstMoment: Float32Array;
  readonly secondMoment: Float32Array;
  readonly step: number;
}

export interface AdamW {
  /** One per parameter, in the order given to `adamw`. */
  readonly state: readonly ParameterState[];
  /**
   * Updates, in place, every parameter whose `grad` is set. `gradNorm` [1] is the norm before clipping; the next step
   * overwrites it. A gradNorm that is not finite says that this step changed nothing.
   */
  step: (learningRate: number) => { gradNorm: Tensor };
  /** Copies the state to the host. */
  exportState: () => Promise<SavedParameterState[]>;
  /** Restores what `exportState` gave: training goes on bit for bit. @throws ShapeError when it does not fit. */
  importState: (saved: readonly SavedParameterState[]) => void;
  /** Frees the moments, and the gradients that lie in places of this optimiser. */
  dispose: () => void;
}

/** An optimiser for `parameters`, with all moments 0. Defaults are those of torch.optim.AdamW. */
export function adamw(parameters: readonly Variable[], options: AdamWOptions = {}): AdamW {
  const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weightDecay = 0.01, maximize = false, maxGradNorm } = options;
  const firstMoments = zerosFor(parameters);
  const secondMoments = zerosFor(parameters);
  // A place is never exchanged, since a gradient may lie there: those of another optimiser serve this one too.
  const placed = parameters.filter(({ gradPlace }) => !gradPlace);
  const places = zerosFor(placed);
  placed.forEach((parameter, i) => (parameter.gradPlace = places[i]!));
  const state: ParameterState[] = parameters.map((_, i) => {
    return { firstMoment: firstMoments[i]!, secondMoment: secondMoments[i]!, step: 0 };
  });
  const partialSums = parameters.reduce((count, { value }) => count + kernels.partialCount(value), 0);
  const partials = keep(empty([partialSums]));
  const gradNorm = keep(empty([1]));
  const gradScale = keep(empty([1]));

  const step = (learningRate: number): { gradNorm: Tensor } => {
    const runs = runsOf(parameters, state).map(joinRun);
    let count = 0;
    for (const { grad } of runs) {
      kernels.sumOfSquares(grad, partials, count);
      count += kernels.partialCount(grad);
    }
    // Without a bound the largest float: the quotient exceeds 1, and the factor is 1.
    kernels.gradNorm(partials, count, maxGradNorm ?? 3.4028234e38, gradNorm, gradScale);
    parameters.forEach(({ grad }, i) => {
      if (grad) state[i]!.step += 1;
    });
    for (const { steps, ...buffers } of runs) {
      const hyperparameters = { learningRate, step: steps + 1, beta1, beta2, eps, weightDecay, maximize };
      kernels.adamwUpdate({ gradScale, ...buffers }, hyperparameters);
    }
    return { gradNorm };
  };

  const exportState = async (): Promise<SavedParameterState[]> => {
    const steps = state.map((own) => own.step);
    const moments = await readAll(state.flatMap(({ firstMoment, secondMoment }) => [firstMoment, secondMoment]));
    return steps.map((count, i) => ({
      firstMoment: moments[2 * i] as Float32Array,
      secondMoment: moments[2 * i + 1] as Float32Array,
      step: count,
    }));
  };

  const importState = (saved: readonly SavedParameterState[]): void => {
    if (saved.length !== parameters.length) {
      throw new ShapeError(`adamw: ${saved.length} saved states for ${parameters.length} parameters`);
    }
    saved.forEach(({ firstMoment, secondMoment }, i) => {
      const { value } = parameters[i]!;
      if (firstMoment.length !== size(value) || secondMoment.length !== size(value)) {
        throw new ShapeError(
          `adamw: saved moments ${i} have ${firstMoment.length} and ${secondMoment.length} values, ` +
            `the parameter has shape ${show(value.shape)}`,
        );
      }
    });
    saved.forEach(({ firstMoment, secondMoment, step: count }, i) => {
      const own = state[i]!;
      write(own.firstMoment, firstMoment);
      write(own.secondMoment, secondMoment);
      own.step = count;
    });
  };

  return {
    state,
    step,
    exportState,
    importState,
    dispose: () => {
      placed.forEach((parameter, i) => {
        if (parameter.grad === places[i]) parameter.grad = null;
        parameter.gradPlace = null;
      });
      disposeAll([...firstMoments, ...secondMoments, ...places, partials, gradNorm, gradScale]);
    },
  };
}

/** Zeros of the parameters' shapes, side by side, gaps included. */
function zerosFor(parameters: readonly Variable[]): Tensor[] {
  const tensors = emptyNeighbours(parameters.map(({ value }) => value.shape));
  const whole = new Map(tensors.map((x) => [x.storage, tensors.filter(({ storage }) => storage === x.storage)]));
  for (const neighbours of whole.values()) fillInto(joinNeighbours(neighbours), 0);
  return tensors.map(keep);
}

/** What AdamW reads and writes for one parameter, or for neighbours seen as one. */
interface Updated {
  readonly parameter: Tensor;
  readonly grad: Tensor;
  readonly firstMoment: Tensor;
  readonly secondMoment: Tensor;
  /** Updates so far. */
  readonly steps: number;
}

/** Parameters with a gradient, in runs that one launch can update: neighbours in every buffer, as often updated. */
function runsOf(parameters: readonly Variable[], state: readonly ParameterState[]): Updated[][] {
  const runs: Updated[][] = [];
  parameters.forEach(({ value: parameter, grad }, i) => {
    if (!grad) return;
    const { firstMoment, secondMoment, step: steps } = state[i]!;
    const next: Updated = { parameter, grad, firstMoment, secondMoment, steps };
    const run = runs.at(-1);
    if (run && follows(run.at(-1)!, next)) run.push(next);
    else runs.push([next]);
  });
  return runs;
}

function follows(last: Updated, next: Updated): boolean {
  return last.steps === next.steps && areNeighbours(last.parameter, next.parameter) &&
    areNeighbours(last.grad, next.grad) && areNeighbours(last.firstMoment, next.firstMoment) &&
    areNeighbours(last.secondMoment, next.secondMoment);
}

/** Gaps are updated with the rest: their gradient is 0 for ever, and nobody reads what the other buffers hold there. */
function joinRun(run: readonly Updated[]): Updated {
  if (run.length === 1) return run[0]!;
  return {
    parameter: joinNeighbours(run.map(({ parameter }) => parameter)),
    grad: joinNeighbours(run.map(({ grad }) => grad)),
    firstMoment: joinNeighbours(run.map(({ firstMoment }) => firstMoment)),
    secondMoment: joinNeighbours(run.map(({ secondMoment }) => secondMoment)),
    steps: run[0]!.steps,
  };
}
