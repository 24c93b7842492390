/** The three kernels of AdamW; the formulas and what happens to a bad gradient are in `adamw.wgsl`. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { elementRanges } from "./ranges.ts";
import { expectShape } from "./rows.ts";
import { size, type Tensor } from "./tensor.ts";

/**
 * Elements per workgroup, CHUNK in the shader. A tensor too large to be bound is cut into ranges of whole chunks, so
 * its partial sums are those of an uncut one.
 */
const CHUNK = 4096;

const sumOfSquaresKernel = kernel({
  shader: "adamw",
  entry: "sumOfSquares",
  buffers: ["grad", "partials"],
  params: ["size", "firstPartial"],
});
const gradNormKernel = kernel({
  shader: "adamw",
  entry: "gradNorm",
  buffers: ["allPartials", "norm", "scale"],
  params: ["partialCount", "maxNorm"],
});
const updateKernel = kernel({
  shader: "adamw",
  entry: "update",
  buffers: ["grad", "gradScale", "parameter", "firstMoment", "secondMoment"],
  params: ["size", "sign", "decay", "stepSize", "sqrtCorrection2", "oneMinusBeta1", "beta2", "oneMinusBeta2", "eps"],
});

/** Partial sums that `sumOfSquares` writes for a tensor. */
export function partialCount(x: Tensor): number {
  return Math.ceil(size(x) / CHUNK);
}

/** Writes the partial sums of grad^2 to partials[firstPartial ..]. */
export function sumOfSquares(grad: Tensor, partials: Tensor, firstPartial: number): void {
  for (const { start, count, views } of elementRanges({ grad }, CHUNK)) {
    const params = { size: count, firstPartial: firstPartial + start / CHUNK };
    launch(sumOfSquaresKernel, { ...views, partials }, params, partialCount(views.grad), rowConstants());
  }
}

/**
 * The first `count` partial sums -> norm [1] and scale [1] = min(1, maxNorm / (norm + 1e-6)), the factor of
 * torch.nn.utils.clip_grad_norm_; NaN if the norm is not finite.
 */
export function gradNorm(partials: Tensor, count: number, maxNorm: number, norm: Tensor, scale: Tensor): void {
  const buffers = { allPartials: partials, norm, scale };
  launch(gradNormKernel, buffers, { partialCount: count, maxNorm }, 1, rowConstants());
}

export interface AdamWUpdate {
  readonly learningRate: number;
  /** Updates of this parameter including this one: 1, 2, .. */
  readonly step: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly weightDecay: number;
  readonly maximize: boolean;
}

/** One AdamW step of one parameter, in place; nothing changes when `gradScale` is NaN. All tensors have one shape. */
export function adamwUpdate(
  buffers: { grad: Tensor; gradScale: Tensor; parameter: Tensor; firstMoment: Tensor; secondMoment: Tensor },
  { learningRate, step, beta1, beta2, eps, weightDecay, maximize }: AdamWUpdate,
): void {
  const { gradScale, ...perElement } = buffers;
  const { grad, parameter, firstMoment, secondMoment } = perElement;
  expectShape("adamwUpdate", "grad", grad, parameter.shape);
  expectShape("adamwUpdate", "firstMoment", firstMoment, parameter.shape);
  expectShape("adamwUpdate", "secondMoment", secondMoment, parameter.shape);
  // Differences such as 1 - beta2 = 0.001 are taken in float64: in float32 they keep four digits only.
  const params = {
    sign: maximize ? -1 : 1,
    decay: learningRate * weightDecay,
    stepSize: learningRate / (1 - beta1 ** step),
    sqrtCorrection2: Math.sqrt(1 - beta2 ** step),
    oneMinusBeta1: 1 - beta1,
    beta2,
    oneMinusBeta2: 1 - beta2,
    eps,
  };
  for (const { count, views } of elementRanges(perElement, CHUNK)) {
    const groups = partialCount(views.parameter);
    launch(updateKernel, { ...views, gradScale }, { ...params, size: count }, groups, rowConstants());
  }
}

function rowConstants(): Record<string, number> {
  return { WORKGROUP: gpu().rowThreads, CHUNK };
}
