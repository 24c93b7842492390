/** Softmax and log-softmax over the last axis; the formulas are in `softmax.wgsl`. */
import { gpu } from "./device.ts";
import { kernel, launch } from "./kernel.ts";
import { expectShape, rowsOf } from "./rows.ts";
import { empty, type Tensor } from "./tensor.ts";

const params = ["rows", "cols"] as const;
const kernels = {
  softmax: kernel({ shader: "softmax", entry: "softmax", buffers: ["x", "y"], params: [...params, "one"] }),
  logSoftmax: kernel({ shader: "softmax", entry: "logSoftmax", buffers: ["x", "y"], params: [...params, "one"] }),
};
const backwardKernels = {
  softmax: kernel({ shader: "softmax", entry: "softmaxBackward", buffers: ["savedY", "dy", "dx"], params }),
  logSoftmax: kernel({ shader: "softmax", entry: "logSoftmaxBackward", buffers: ["savedY", "dy", "dx"], params }),
};

function forward(op: keyof typeof kernels, x: Tensor): Tensor {
  const { rows, cols } = rowsOf(op, x);
  const y = empty(x.shape);
  launch(kernels[op], { x, y }, { rows, cols, one: 1 }, rows, { WORKGROUP: gpu().rowThreads });
  return y;
}

function backward(op: keyof typeof kernels, y: Tensor, dy: Tensor): Tensor {
  const { rows, cols } = rowsOf(op, y);
  expectShape(`${op}Backward`, "dy", dy, y.shape);
  const dx = empty(y.shape);
  launch(backwardKernels[op], { savedY: y, dy, dx }, { rows, cols }, rows, { WORKGROUP: gpu().rowThreads });
  return dx;
}

/** exp(x) / sum exp(x) over the last axis (torch.softmax with dim=-1). */
export function softmax(x: Tensor): Tensor {
  return forward("softmax", x);
}

/** dx = y (dy - sum dy y), from the result y of `softmax`. */
export function softmaxBackward(y: Tensor, dy: Tensor): Tensor {
  return backward("softmax", y, dy);
}

/** x - log sum exp(x) over the last axis (torch.log_softmax with dim=-1). */
export function logSoftmax(x: Tensor): Tensor {
  return forward("logSoftmax", x);
}

/** dx = dy - exp(y) sum dy, from the result y of `logSoftmax`. */
export function logSoftmaxBackward(y: Tensor, dy: Tensor): Tensor {
  return backward("logSoftmax", y, dy);
}
