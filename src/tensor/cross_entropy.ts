/** Cross-entropy of logits against target ids, one loss per row; the formulas are in `cross_entropy.wgsl`. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, show } from "./shape.ts";
import { empty, type Tensor } from "./tensor.ts";

/** The target of a row that does not count: loss 0, gradient 0 (PyTorch's ignore_index, as a u32). */
export const IGNORE = 0xffffffff;

const params = ["rows", "cols"] as const;
const forwardKernel = kernel({
  shader: "cross_entropy",
  entry: "crossEntropy",
  buffers: ["logits", "targets", "losses", "logSumExp"],
  params: [...params, "one"],
});
const backwardKernel = kernel({
  shader: "cross_entropy",
  entry: "crossEntropyBackward",
  buffers: ["logits", "targets", "savedLogSumExp", "dLosses", "dLogits"],
  params,
});

/**
 * Logits [N, V], targets u32 [N] -> losses -log softmax(logits)[target] and log-sum-exp, both [N]
 * (torch.nn.functional.cross_entropy with reduction="none"). A target outside 0..V-1 other than IGNORE gives NaN.
 */
export function crossEntropy(logits: Tensor, targets: Tensor): { losses: Tensor; logSumExp: Tensor } {
  const [rows, cols] = matrixShape("crossEntropy", logits, targets);
  const losses = empty([rows]);
  const logSumExp = empty([rows]);
  const buffers = { logits, targets, losses, logSumExp };
  launch(forwardKernel, buffers, { rows, cols, one: 1 }, rows, { WORKGROUP: gpu().rowThreads });
  return { losses, logSumExp };
}

/** dLogits [N, V] = (softmax(logits) - onehot(target)) dLosses, from the log-sum-exp that the forward pass returned. */
export function crossEntropyBackward(logits: Tensor, logSumExp: Tensor, targets: Tensor, dLosses: Tensor): Tensor {
  const [rows, cols] = matrixShape("crossEntropyBackward", logits, targets);
  expectShape("crossEntropyBackward", "logSumExp", logSumExp, [rows]);
  expectShape("crossEntropyBackward", "dLosses", dLosses, [rows]);
  const dLogits = empty(logits.shape);
  const buffers = { logits, targets, savedLogSumExp: logSumExp, dLosses, dLogits };
  launch(backwardKernel, buffers, { rows, cols }, rows, { WORKGROUP: gpu().rowThreads });
  return dLogits;
}

function matrixShape(op: string, logits: Tensor, targets: Tensor): [number, number] {
  const [rows, cols] = logits.shape;
  if (logits.shape.length !== 2 || rows === undefined || cols === undefined) {
    throw new ShapeError(`${op}: logits have shape ${show(logits.shape)}, expected [rows, vocabulary]`);
  }
  expectShape(op, "targets", targets, [rows]);
  if (targets.dtype !== "u32") throw new ShapeError(`${op}: targets are ${targets.dtype}, expected u32 ids`);
  return [rows, cols];
}
