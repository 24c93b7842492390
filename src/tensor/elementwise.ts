/**
 * Launchers of the elementwise kernels: arithmetic with NumPy broadcasting, scalar forms, activations, fills.
 *
 * Every function returns a new contiguous tensor unless its name says otherwise (`fillInto`, `addInto`). Each launches
 * once per range of elements, which is once unless a tensor is too large to be bound (`ranges.ts`). All throw
 * ShapeError when shapes or data types do not fit. Gradient helpers (`less`, `powLog`, the `...Backward` functions)
 * stand beside the operation that needs them; the rules that use them are in `autograd/ops.ts`.
 */
import { gpu } from "./device.ts";
import { kernel, launch, type Kernel } from "./kernel.ts";
import { elementRanges, type RangeViews } from "./ranges.ts";
import { ShapeError, broadcastShapes, broadcastStrides, collapseAxes, sameShape, show, type Shape } from "./shape.ts";
import { empty, size, type DType, type Tensor } from "./tensor.ts";

const WORKGROUP = 64;
const MAX_RANK = 4;
const FLOAT32_MAX = 3.4028234663852886e38;

/** @throws ShapeError when a tensor has another data type. */
export function requireDType(op: string, x: Tensor, dtype: DType): void {
  if (x.dtype !== dtype) throw new ShapeError(`${op}: expected a ${dtype} tensor, got ${x.dtype} ${show(x.shape)}`);
}

function requireSameShape(op: string, a: Tensor, b: Tensor): void {
  for (const x of [a, b]) requireDType(op, x, "f32");
  if (sameShape(a.shape, b.shape)) return;
  throw new ShapeError(`${op}: shapes ${show(a.shape)} and ${show(b.shape)} differ`);
}

/**
 * Workgroups for a grid-stride loop over `count` elements. Starting a workgroup costs a software driver as much as
 * eight elements per thread do, while a GPU wants every thread it can get.
 */
export function gridStrideGroups(count: number): number {
  const elementsPerThread = gpu().software ? 8 : 1;
  return Math.min(Math.ceil(count / (WORKGROUP * elementsPerThread)), 65535);
}

// ---- two tensors --------------------------------------------------------------------------------------------------

type BinaryKernel = Kernel<"a" | "b" | "y", "size">;

const binaryKernel = (entry: string): BinaryKernel =>
  kernel({ shader: "binary", entry, buffers: ["a", "b", "y"], params: ["size"] });

const kernels = {
  add: binaryKernel("add"),
  sub: binaryKernel("sub"),
  mul: binaryKernel("mul"),
  div: binaryKernel("div"),
  pow: binaryKernel("powers"),
  powSlope: binaryKernel("powSlope"),
  powLog: binaryKernel("powLog"),
  minimum: binaryKernel("minimum"),
  maximum: binaryKernel("maximum"),
  less: binaryKernel("less"),
  equal: binaryKernel("equal"),
  where: kernel({ shader: "binary", entry: "choose", buffers: ["condition", "a", "b", "y"], params: ["size"] }),
};

/**
 * Merges the axes of `shape` and writes lengths and the operands' strides (a, b, condition) under the names of
 * `struct Params`; also says how many axes are left.
 */
function walk(op: string, shape: Shape, operands: readonly Shape[]): { params: Record<string, number>; rank: number } {
  const merged = collapseAxes(shape, operands.map((operand) => broadcastStrides(operand, shape)));
  if (merged.shape.length > MAX_RANK) {
    throw new ShapeError(
      `${op}: broadcasting ${operands.map(show).join(" and ")} leaves ${merged.shape.length} separate axes, at most ` +
        `${MAX_RANK} are supported. Fix: expand or reshape an operand first`,
    );
  }
  const params: Record<string, number> = {};
  merged.shape.forEach((length, axis) => {
    params[`length${axis}`] = length;
    operands.forEach((_, i) => (params[`${"abc"[i]!}${axis}`] = merged.strides[i]![axis]!));
  });
  return { params, rank: Math.max(1, merged.shape.length) };
}

/** Ranges of a broadcast: tensors of y's size are cut like y; with any other operand there is one range. */
function broadcastRanges<Names extends string>(
  operands: Readonly<Record<Names, Tensor>>,
  y: Tensor,
): readonly RangeViews<Names | "y">[] {
  const tensors = { ...operands, y } as Record<Names | "y", Tensor>;
  const cuttable = Object.values<Tensor>(tensors).every((x) => size(x) === size(y));
  return cuttable ? elementRanges(tensors) : [{ start: 0, count: size(y), views: tensors }];
}

function binary(op: string, declared: BinaryKernel, a: Tensor, b: Tensor): Tensor {
  for (const x of [a, b]) requireDType(op, x, "f32");
  const y = empty(broadcastShapes(op, a.shape, b.shape));
  const { params, rank } = walk(op, y.shape, [a.shape, b.shape]);
  for (const { count, views } of broadcastRanges({ a, b }, y)) {
    launch(declared, views, { ...params, size: count }, gridStrideGroups(count), { RANK: rank });
  }
  return y;
}

/** a + b */
export function add(a: Tensor, b: Tensor): Tensor {
  return binary("add", kernels.add, a, b);
}

/** a - b */
export function sub(a: Tensor, b: Tensor): Tensor {
  return binary("sub", kernels.sub, a, b);
}

/** a * b */
export function mul(a: Tensor, b: Tensor): Tensor {
  return binary("mul", kernels.mul, a, b);
}

/** a / b */
export function div(a: Tensor, b: Tensor): Tensor {
  return binary("div", kernels.div, a, b);
}

/** a^b; a negative base needs an integer exponent, else NaN */
export function pow(a: Tensor, b: Tensor): Tensor {
  return binary("pow", kernels.pow, a, b);
}

/** b a^(b-1), 0 where b is 0: the derivative of a^b with respect to a */
export function powSlope(a: Tensor, b: Tensor): Tensor {
  return binary("powSlope", kernels.powSlope, a, b);
}

/** y log(a), 0 where a is 0: the derivative of y = a^b with respect to b */
export function powLog(y: Tensor, a: Tensor): Tensor {
  return binary("powLog", kernels.powLog, y, a);
}

/** The smaller of both; NaN if either is. */
export function minimum(a: Tensor, b: Tensor): Tensor {
  return binary("minimum", kernels.minimum, a, b);
}

/** The larger of both; NaN if either is. */
export function maximum(a: Tensor, b: Tensor): Tensor {
  return binary("maximum", kernels.maximum, a, b);
}

/** 1 where a < b, 0.5 where they are equal, else 0: a's share of the gradient of minimum(a, b) */
export function less(a: Tensor, b: Tensor): Tensor {
  return binary("less", kernels.less, a, b);
}

/** 1 where a equals b, else 0 */
export function equal(a: Tensor, b: Tensor): Tensor {
  return binary("equal", kernels.equal, a, b);
}

/** condition != 0 ? a : b; the u32 `condition`, a and b broadcast together (torch.where) */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  requireDType("where", condition, "u32");
  for (const x of [a, b]) requireDType("where", x, "f32");
  const y = empty(broadcastShapes("where", condition.shape, broadcastShapes("where", a.shape, b.shape)));
  const { params, rank } = walk("where", y.shape, [a.shape, b.shape, condition.shape]);
  for (const { count, views } of broadcastRanges({ condition, a, b }, y)) {
    launch(kernels.where, views, { ...params, size: count }, gridStrideGroups(count), { RANK: rank });
  }
  return y;
}

// ---- one tensor ---------------------------------------------------------------------------------------------------

type UnaryParams = "size" | "scalar" | "low" | "high";

const unaryKernel = (entry: string): Kernel<"x" | "y", UnaryParams> =>
  kernel({ shader: "unary", entry, buffers: ["x", "y"], params: ["size", "scalar", "low", "high"] });

const unaryKernels = {
  neg: unaryKernel("neg"),
  abs: unaryKernel("absolute"),
  sign: unaryKernel("signum"),
  exp: unaryKernel("exponential"),
  log: unaryKernel("logarithm"),
  sqrt: unaryKernel("squareRoot"),
  rsqrt: unaryKernel("reciprocalRoot"),
  addScalar: unaryKernel("addScalar"),
  mulScalar: unaryKernel("mulScalar"),
  powScalar: unaryKernel("powScalar"),
  clamp: unaryKernel("clampRange"),
  copy: unaryKernel("copy"),
};

type Operands = Readonly<Partial<Record<"scalar" | "low" | "high", number>>>;

function unary(op: keyof typeof unaryKernels, x: Tensor, { scalar = 0, low = 0, high = 0 }: Operands = {}): Tensor {
  requireDType(op, x, "f32");
  const y = empty(x.shape);
  for (const { count, views } of elementRanges({ x, y })) {
    launch(unaryKernels[op], views, { size: count, scalar, low, high }, gridStrideGroups(count));
  }
  return y;
}

/** -x */
export function neg(x: Tensor): Tensor {
  return unary("neg", x);
}

/** |x| */
export function abs(x: Tensor): Tensor {
  return unary("abs", x);
}

/** -1, 0 or 1 */
export function sign(x: Tensor): Tensor {
  return unary("sign", x);
}

/** e^x */
export function exp(x: Tensor): Tensor {
  return unary("exp", x);
}

/** Natural logarithm; what it gives for x <= 0 depends on the driver. */
export function log(x: Tensor): Tensor {
  return unary("log", x);
}

/** Square root. */
export function sqrt(x: Tensor): Tensor {
  return unary("sqrt", x);
}

/** 1 / sqrt(x) */
export function rsqrt(x: Tensor): Tensor {
  return unary("rsqrt", x);
}

/** x + c */
export function addScalar(x: Tensor, c: number): Tensor {
  return unary("addScalar", x, { scalar: c });
}

/** c x */
export function mulScalar(x: Tensor, c: number): Tensor {
  return unary("mulScalar", x, { scalar: c });
}

/** x^c; a negative base needs an integer exponent, else NaN */
export function powScalar(x: Tensor, c: number): Tensor {
  return unary("powScalar", x, { scalar: c });
}

/** Infinite bounds become the largest float32: WGSL does not promise to carry an infinity in a uniform. */
function finiteRange(low: number, high: number): { low: number; high: number } {
  return { low: Math.max(low, -FLOAT32_MAX), high: Math.min(high, FLOAT32_MAX) };
}

/** min(max(x, low), high); leave a bound out with -Infinity or Infinity. */
export function clamp(x: Tensor, low: number, high: number): Tensor {
  return unary("clamp", x, finiteRange(low, high));
}

/** dy where low <= x <= high, else 0 */
export function clampBackward(x: Tensor, dy: Tensor, low: number, high: number): Tensor {
  requireSameShape("clampBackward", x, dy);
  const dx = empty(x.shape);
  for (const { count, views } of elementRanges({ x, dy, dx })) {
    launch(clampBackwardKernel, views, { size: count, ...finiteRange(low, high) }, gridStrideGroups(count));
  }
  return dx;
}

const clampBackwardKernel = kernel({
  shader: "unary", entry: "clampBackward", buffers: ["x", "dy", "dx"], params: ["size", "low", "high"],
});

// ---- memory -------------------------------------------------------------------------------------------------------

const fillKernel = kernel({ shader: "unary", entry: "fill", buffers: ["y"], params: ["size", "scalar"] });
const addIntoKernel = kernel({ shader: "unary", entry: "addInto", buffers: ["x", "accumulator"], params: ["size"] });

/** A tensor of one value. */
export function fill(shape: Shape, value: number): Tensor {
  const y = empty(shape);
  fillInto(y, value);
  return y;
}

/** Overwrites every element. */
export function fillInto(x: Tensor, value: number): void {
  requireDType("fillInto", x, "f32");
  for (const { count, views } of elementRanges({ y: x })) {
    launch(fillKernel, views, { size: count, scalar: value }, gridStrideGroups(count));
  }
}

/** target = x, in place. `x` must not share memory with `target`. */
export function copyInto(target: Tensor, x: Tensor): void {
  requireSameShape("copyInto", target, x);
  for (const { count, views } of elementRanges({ y: target, x })) {
    launch(unaryKernels.copy, views, { size: count, scalar: 0, low: 0, high: 0 }, gridStrideGroups(count));
  }
}

/** The same values in memory of their own. */
export function copy(x: Tensor): Tensor {
  return unary("copy", x);
}

/** target += x, in place. `x` must not share memory with `target`: WebGPU forbids a buffer that is read and written. */
export function addInto(target: Tensor, x: Tensor): void {
  requireSameShape("addInto", target, x);
  for (const { count, views } of elementRanges({ accumulator: target, x })) {
    launch(addIntoKernel, views, { size: count }, gridStrideGroups(count));
  }
}

// ---- activations --------------------------------------------------------------------------------------------------

const activationKernel = (entry: string): Kernel<"x" | "y", "vectors"> =>
  kernel({ shader: "activation", entry, buffers: ["x", "y"], params: ["vectors"] });
const activationBackwardKernel = (entry: string): Kernel<"x" | "dy" | "dx", "vectors"> =>
  kernel({ shader: "activation", entry, buffers: ["x", "dy", "dx"], params: ["vectors"] });

const activations = {
  tanh: { forward: activationKernel("tanhForward"), backward: activationBackwardKernel("tanhBackward") },
  gelu: { forward: activationKernel("geluForward"), backward: activationBackwardKernel("geluBackward") },
  geluTanh: { forward: activationKernel("geluTanhForward"), backward: activationBackwardKernel("geluTanhBackward") },
  silu: { forward: activationKernel("siluForward"), backward: activationBackwardKernel("siluBackward") },
};

function activate(op: keyof typeof activations, x: Tensor): Tensor {
  requireDType(op, x, "f32");
  const y = empty(x.shape);
  for (const { count, views } of elementRanges({ x, y })) {
    const vectors = Math.ceil(count / 4);
    launch(activations[op].forward, views, { vectors }, gridStrideGroups(vectors));
  }
  return y;
}

function activateBackward(op: keyof typeof activations, x: Tensor, dy: Tensor): Tensor {
  requireSameShape(`${op}Backward`, x, dy);
  const dx = empty(x.shape);
  for (const { count, views } of elementRanges({ x, dy, dx })) {
    const vectors = Math.ceil(count / 4);
    launch(activations[op].backward, views, { vectors }, gridStrideGroups(vectors));
  }
  return dx;
}

/** Hyperbolic tangent. */
export function tanh(x: Tensor): Tensor {
  return activate("tanh", x);
}

/** dx = dy (1 - y^2), from the forward's output y */
export function tanhBackward(y: Tensor, dy: Tensor): Tensor {
  return activateBackward("tanh", y, dy);
}

/** x Phi(x) (torch.nn.functional.gelu) */
export function gelu(x: Tensor): Tensor {
  return activate("gelu", x);
}

/** dx of `gelu`, from its input */
export function geluBackward(x: Tensor, dy: Tensor): Tensor {
  return activateBackward("gelu", x, dy);
}

/** GELU by the tanh formula (torch gelu with approximate="tanh", GPT-2's gelu_new) */
export function geluTanh(x: Tensor): Tensor {
  return activate("geluTanh", x);
}

/** dx of `geluTanh`, from its input */
export function geluTanhBackward(x: Tensor, dy: Tensor): Tensor {
  return activateBackward("geluTanh", x, dy);
}

/** x sigmoid(x) (torch.nn.functional.silu) */
export function silu(x: Tensor): Tensor {
  return activate("silu", x);
}

/** dx of `silu`, from its input */
export function siluBackward(x: Tensor, dy: Tensor): Tensor {
  return activateBackward("silu", x, dy);
}

const swigluKernel = kernel({
  shader: "activation", entry: "swigluForward", buffers: ["gate", "up", "y"], params: ["vectors"],
});
const swigluBackwardKernel = kernel({
  shader: "activation", entry: "swigluBackward", buffers: ["gate", "up", "dy", "dGate", "dUp"], params: ["vectors"],
});

/** silu(gate) * up; equal shapes */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  requireSameShape("swiglu", gate, up);
  const y = empty(gate.shape);
  for (const { count, views } of elementRanges({ gate, up, y })) {
    const vectors = Math.ceil(count / 4);
    launch(swigluKernel, views, { vectors }, gridStrideGroups(vectors));
  }
  return y;
}

/** Both gradients of `swiglu` in one dispatch; the sigmoid is computed again. */
export function swigluBackward(gate: Tensor, up: Tensor, dy: Tensor): { dGate: Tensor; dUp: Tensor } {
  requireSameShape("swigluBackward", gate, up);
  requireSameShape("swigluBackward", gate, dy);
  const dGate = empty(gate.shape);
  const dUp = empty(gate.shape);
  for (const { count, views } of elementRanges({ gate, up, dy, dGate, dUp })) {
    const vectors = Math.ceil(count / 4);
    launch(swigluBackwardKernel, views, { vectors }, gridStrideGroups(vectors));
  }
  return { dGate, dUp };
}
