/**
 * A kernel: one entry point of one WGSL file, its pipelines and its launch.
 *
 * The declaration beside each launcher names the buffers and parameters; their binding numbers, access modes and types
 * are read from the WGSL text, so layout and shader cannot disagree. Pipelines are cached by what they are made of
 * (shader, entry point, constants); bind groups by the parts of buffers they bind, which repeat from step to step.
 */
import { loadShader, locate, reflectShader, type ShaderInterface } from "../shaders/load.ts";
import { GpuError, awaitCheck, gpu, reportFailure } from "./device.ts";
import { beforeTrim } from "./memory.ts";
import { PARAM_BYTES, paramsLayout, record } from "./recorder.ts";
import { ShapeError, show, type Shape } from "./shape.ts";
import { byteLength, type DType, type Tensor } from "./tensor.ts";

export type Constants = Readonly<Record<string, number>>;

export interface Kernel<Buffers extends string, Params extends string> {
  /** File name without `.wgsl`. */
  readonly shader: string;
  readonly entry: string;
  readonly buffers: readonly Buffers[];
  readonly params: readonly Params[];
  /**
   * Buffers of float32 or bf16 values, and the shader's constant that is 1 for bf16. The shader declares them as bits,
   * arrays of u32, for the sake of either.
   */
  readonly bf16?: Readonly<Partial<Record<Buffers, string>>>;
  /** Buffers whose elements are moved as bits: float32 and u32 alike, whatever the shader declares. */
  readonly bits?: readonly Buffers[];
}

interface Pipeline {
  readonly id: number;
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  readonly shape: ShaderInterface;
  /** What each buffer holds; those whose elements are moved as bits are left out. */
  readonly types: ReadonlyMap<string, DType>;
}

const pipelines = new Map<string, Pipeline>();
const bindGroups = new Map<string, GPUBindGroup>();
const MAX_BIND_GROUPS = 8192;
const VECTOR_BYTES = 16;
const MAX_GROUPS_PER_DIMENSION = 65535;

beforeTrim(() => bindGroups.clear());

/** Declares a kernel; nothing is compiled before its first launch. */
export function kernel<const Buffers extends string, const Params extends string = never>(declaration: {
  shader: string;
  entry: string;
  buffers: readonly Buffers[];
  params?: readonly Params[];
  bf16?: Readonly<Partial<Record<NoInfer<Buffers>, string>>>;
  bits?: readonly NoInfer<Buffers>[];
}): Kernel<Buffers, Params> {
  return { ...declaration, params: declaration.params ?? [] };
}

/**
 * Appends one dispatch of `groups` workgroups. `constants` specialise the shader (tile sizes, head size, flags).
 * @throws GpuError when a tensor was already released, or is larger than a binding may be: launchers that meet large
 * tensors launch once per range (`ranges.ts`).
 * @throws ShapeError when a tensor's elements are not what the shader reads.
 */
export function launch<Buffers extends string, Params extends string>(
  kernel: Kernel<Buffers, Params>,
  buffers: Readonly<Record<Buffers, Tensor>>,
  params: Readonly<Record<Params, number>>,
  groups: number,
  constants: Constants = {},
): void {
  if (groups === 0) return;
  const { maxBindingBytes } = gpu();
  let specialised = constants;
  let key = "";
  for (const name of kernel.buffers) {
    const { storage, shape, dtype } = buffers[name];
    const bytes = byteLength(buffers[name]);
    if (storage.released) {
      throw new GpuError(`${kernel.shader}.${kernel.entry}: ${name} was released (its scope has ended)`);
    }
    if (bytes > maxBindingBytes) {
      throw new GpuError(
        `${kernel.shader}.${kernel.entry}: ${name} ${show(shape)} has ${bytes} bytes, this adapter binds at most ` +
          `${maxBindingBytes}. Fix: a smaller batch or shorter sequences; for a weight, a smaller model`,
      );
    }
    if (dtype === "bf16") specialised = { ...specialised, [bf16Constant(kernel, name, shape)]: 1 };
    const { offset, size } = boundPart(buffers[name]);
    key += `|${storage.pooled.id}:${offset}:${size}`;
  }
  const pipeline = pipelineFor(kernel, specialised);
  for (const name of kernel.buffers) {
    const { dtype } = buffers[name];
    const wanted = pipeline.types.get(name) ?? dtype;
    if (dtype !== wanted && dtype !== "bf16") throw wrongType(kernel, name, buffers[name], wanted); // bf16: see above
  }
  key = `${pipeline.id}${key}`;
  let bindGroup = bindGroups.get(key);
  if (!bindGroup) {
    bindGroup = createBindGroup(kernel, pipeline, buffers);
    if (bindGroups.size >= MAX_BIND_GROUPS) bindGroups.clear();
    bindGroups.set(key, bindGroup);
  }
  const writeParams =
    kernel.params.length === 0
      ? null
      : (view: DataView, offset: number): void => {
          pipeline.shape.params.forEach(({ name, type }, i) => {
            const value = params[name as Params] ?? 0;
            if (type === "f32") view.setFloat32(offset + 4 * i, value, true);
            else view.setUint32(offset + 4 * i, value, true);
          });
        };
  record(
    pipeline.pipeline,
    bindGroup,
    writeParams,
    foldGrid(groups),
    kernel.buffers.map((name) => buffers[name].storage.pooled),
  );
}

/** The constant that makes a kernel read bf16 from a buffer. @throws ShapeError when it cannot. */
function bf16Constant<Buffers extends string>(kernel: Kernel<Buffers, string>, name: Buffers, shape: Shape): string {
  const constant = kernel.bf16?.[name];
  if (constant) return constant;
  throw new ShapeError(
    `${kernel.shader}.${kernel.entry}: ${name} ${show(shape)} is bf16. Such weights are frozen: they serve as ` +
      "embedding tables and as the second operand of matmul, and have no gradient. Fix: upload it as float32",
  );
}

/** The complaint about floats where a kernel takes ids, or the other way round. */
function wrongType(kernel: Kernel<string, string>, name: string, { dtype, shape }: Tensor, wanted: DType): ShapeError {
  return new ShapeError(
    `${kernel.shader}.${kernel.entry}: ${name} ${show(shape)} is ${dtype}, the kernel reads ${wanted}. Fix: ids come ` +
      "from a Uint32Array, numbers from a Float32Array",
  );
}

/**
 * Splits a flat number of workgroups over two dimensions: 65,536 -> [32768, 2]. Kernels rebuild the flat index as
 * `workgroupId.x + workgroupId.y * grid.x` and must ignore the surplus groups.
 */
export function foldGrid(groups: number): [number, number] {
  const rows = Math.ceil(groups / MAX_GROUPS_PER_DIMENSION);
  return [Math.ceil(groups / rows), rows];
}

function pipelineFor(kernel: Kernel<string, string>, constants: Constants): Pipeline {
  let key = `${kernel.shader}.${kernel.entry}`;
  for (const name in constants) key += ` ${name}=${constants[name]}`;
  let pipeline = pipelines.get(key);
  if (!pipeline) {
    pipeline = createPipeline(kernel, key, constants);
    pipelines.set(key, pipeline);
  }
  return pipeline;
}

function createPipeline(kernel: Kernel<string, string>, label: string, constants: Constants): Pipeline {
  const { device, software, subgroupSize } = gpu();
  const isOneSubgroup = software && constants.WORKGROUP !== undefined && constants.WORKGROUP === subgroupSize;
  const code = loadShader(kernel.shader, constants, {
    ...(isOneSubgroup ? { workgroup_reduce: "subgroup_reduce" } : {}),
    ...(constants.WHOLE_VECTORS === 0 ? { row_vectors: "row_elements" } : {}),
  });
  const shape = reflectShader(code);
  const missing = [
    ...kernel.buffers.filter((name) => !shape.buffers.has(name)),
    ...kernel.params.filter((name) => !shape.params.some((param) => param.name === name)),
  ];
  if (missing.length > 0) throw new GpuError(`${kernel.shader}.wgsl declares no ${missing.join(", ")}`);
  if (shape.params.length * 4 > PARAM_BYTES)
    throw new GpuError(`${kernel.shader}.wgsl: Params exceeds ${PARAM_BYTES} bytes`);

  const entries: GPUBindGroupLayoutEntry[] = kernel.buffers.map((name) => {
    const { binding, access } = shape.buffers.get(name)!;
    const type = access === "read" ? "read-only-storage" : "storage";
    return { binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } };
  });
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ label, code });
  const layout = device.createBindGroupLayout({ label, entries });
  const pipeline = device.createComputePipeline({
    label,
    layout: device.createPipelineLayout({
      label,
      bindGroupLayouts: kernel.params.length > 0 ? [layout, paramsLayout()] : [layout],
    }),
    compute: { module, entryPoint: kernel.entry },
  });
  awaitCheck(
    device.popErrorScope().then(async (error) => {
      if (error) reportFailure(await explainShaderError(kernel.shader, code, module, error));
    }),
  );
  const typed = kernel.buffers.filter((name) => !kernel.bits?.includes(name));
  const types = new Map(typed.map((name) => [name, kernel.bf16?.[name] ? "f32" : shape.buffers.get(name)!.type]));
  return { id: pipelines.size, pipeline, layout, shape, types };
}

/** `softmax.wgsl:12:7 error: ...` with the source line and a caret; falls back to the validation message. */
async function explainShaderError(
  shader: string,
  code: string,
  module: GPUShaderModule,
  error: GPUError,
): Promise<string> {
  const { messages } = await module.getCompilationInfo();
  const errors = messages.filter(({ type }) => type === "error");
  if (errors.length === 0) return `${shader}.wgsl: ${error.message.trim()}`;
  const lines = code.split("\n");
  return errors
    .map(({ lineNum, linePos, message }) => {
      const source = lines[lineNum - 1] ?? "";
      const { file, line } = locate(shader, code, lineNum);
      return `${file}:${line}:${linePos} error: ${message}\n${source}\n${" ".repeat(Math.max(0, linePos - 1))}^`;
    })
    .join("\n");
}

function createBindGroup<Buffers extends string>(
  kernel: Kernel<Buffers, string>,
  { layout, shape }: Pipeline,
  buffers: Readonly<Record<Buffers, Tensor>>,
): GPUBindGroup {
  const { device } = gpu();
  const entries: GPUBindGroupEntry[] = kernel.buffers.map((name) => ({
    binding: shape.buffers.get(name)!.binding,
    resource: { buffer: buffers[name].storage.pooled.buffer, ...boundPart(buffers[name]) },
  }));
  return device.createBindGroup({ layout, entries });
}

/**
 * The bytes of its buffer that are bound for a tensor: all of them, so that tensors of other sizes which come to lie
 * there share the bind group, unless it is a view or the buffer is too large. A view is rounded up to whole vectors,
 * within the buffer (see `sizeClass`): a shader may read it as vec4.
 */
function boundPart(x: Tensor): { offset: number; size: number } {
  const { capacity } = x.storage.pooled;
  if (x.byteOffset === undefined && capacity <= gpu().maxBindingBytes) return { offset: 0, size: capacity };
  return { offset: x.byteOffset ?? 0, size: Math.max(1, Math.ceil(byteLength(x) / VECTOR_BYTES)) * VECTOR_BYTES };
}
