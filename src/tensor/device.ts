/**
 * The GPU: adapter choice, limits, features, and errors made loud. The one singleton of the engine.
 *
 * WebGPU reports errors asynchronously and goes on with garbage. Here the first uncaptured error, shader error or
 * device loss is remembered, and every submit and readback rethrows it (`checkHealth`), so no result that comes out of
 * the engine was computed after a failure.
 */
import { platform, totalmem } from "node:os";
import { prepareDriver } from "./driver.ts";

/** A failure of the device, the driver or a shader. The message says the cause and, where there is one, the fix. */
export class GpuError extends Error {
  override name = "GpuError";
}

export interface Gpu {
  readonly device: GPUDevice;
  readonly info: GPUAdapterInfo;
  /** Whether kernels are chosen for a software rasteriser (lavapipe, SwiftShader), see `docs/architecture.md`. */
  readonly software: boolean;
  /** Lanes that run in lockstep if the adapter guarantees one size and offers the `subgroups` feature, else 0. */
  readonly subgroupSize: number;
  /** Threads that share one row in row-wise kernels (softmax, norms): one subgroup on a CPU, several on a GPU. */
  readonly rowThreads: number;
  /** Bytes the buffer pool may hold. The software driver never reports out-of-memory, so the engine counts itself. */
  readonly byteBudget: number;
  /** The buffer pool may be so many times as large as what was ever in use at once; then free buffers are given up. */
  readonly poolRatio: number;
  /** Dispatches of one submission, at most. */
  readonly submissionLength: number;
  /** Bytes of a tensor that a kernel can see at one time; larger tensors are worked on by ranges (`ranges.ts`). */
  readonly maxBindingBytes: number;
}

export interface GpuOptions {
  /**
   * Overrides the byte budget. By default it is what WEBGRPO_GPU_GIB in the environment says, in GiB, else half of the
   * machine's memory on a software driver and on a Mac, whose GPU shares it, and 64 GiB on another GPU, whose memory
   * WebGPU does not tell.
   */
  readonly byteBudget?: number;
  /** Overrides the pool's ratio: no bound on a software driver, 1.5 on a GPU. */
  readonly poolRatio?: number;
  /** Lowers the binding limit below the adapter's own. */
  readonly maxBindingBytes?: number;
}

let current: Gpu | null = null;
let failure: GpuError | null = null;
let uncaptured: string | null = null;
const pendingChecks = new Set<Promise<void>>();

/** Remembers the first failure; everything after it is a consequence. */
export function reportFailure(message: string): void {
  failure ??= new GpuError(message);
}

/** Registers an asynchronous check (of a shader); every readback waits for it. */
export function awaitCheck(check: Promise<void>): void {
  pendingChecks.add(check);
  void check.finally(() => pendingChecks.delete(check));
}

/**
 * Waits for the pending checks, then throws the first failure. An invalid shader also makes its submit fail, and that
 * error arrives first; the shader's own message comes before it here.
 */
export async function settleChecks(): Promise<void> {
  await Promise.all(pendingChecks);
  if (uncaptured) reportFailure(uncaptured);
  checkHealth();
}

/** @throws GpuError if the device was lost or any command failed since it was opened. */
export function checkHealth(): void {
  if (failure) throw failure;
}

/** The open GPU. @throws GpuError when `openGpu` has not been awaited. */
export function gpu(): Gpu {
  if (!current) throw new GpuError("the GPU is not open: call `await openGpu()` first");
  return current;
}

/**
 * Opens the GPU once per process; later calls return the same device.
 * @throws GpuError when there is no adapter.
 */
export async function openGpu(options: GpuOptions = {}): Promise<Gpu> {
  if (current) return current;
  loadDriver();
  const { create, globals } = await import("webgpu");
  Object.assign(globalThis, globals);
  const instance = create([]);
  // Dawn aborts the process when this object is garbage-collected while its device lives.
  Object.assign(globalThis, { webgrpoInstance: instance });

  const adapter = await instance.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) {
    throw new GpuError(
      "no WebGPU adapter found. Fix: run `node scripts/setup.mjs` (installs a software driver on Debian and Ubuntu), " +
        "or install your GPU's Vulkan driver; `npm run doctor` explains",
    );
  }
  const features = (["subgroups"] as const).filter((feature) => adapter.features.has(feature));
  const device = await adapter.requestDevice({
    requiredFeatures: [...features],
    requiredLimits: wantedLimits(adapter),
  });
  const info = adapter.info;
  const software = info.isFallbackAdapter && !wantsGpuKernels();
  const uniformSize = info.subgroupMinSize === info.subgroupMaxSize ? (info.subgroupMinSize ?? 0) : 0;
  device.addEventListener("uncapturederror", (event) => {
    const isMemory = event.error instanceof GPUOutOfMemoryError;
    uncaptured ??= `GPU error: ${event.error.message.trim()}${isMemory ? OUT_OF_MEMORY_FIX : ""}`;
    if (pendingChecks.size === 0) reportFailure(uncaptured);
  });
  void device.lost.then((lost) => {
    if (current?.device === device) {
      reportFailure(`GPU device lost (${lost.reason}): ${lost.message}. Fix: restart from the last checkpoint`);
    }
  });
  const maxBinding = device.limits.maxStorageBufferBindingSize;
  current = {
    device,
    info,
    software,
    subgroupSize: features.includes("subgroups") ? uniformSize : 0,
    rowThreads: software ? 8 : 128,
    byteBudget: options.byteBudget ?? budgetOfUser() ?? (sharesMemory(info) ? Math.floor(totalmem() / 2) : 64 * GIB),
    poolRatio: options.poolRatio ?? (software ? Infinity : 1.5),
    // Each submission wakes the software driver's threads. A GPU starts earlier with shorter ones, and no watchdog takes
    // a long one for a hang.
    submissionLength: software ? 256 : 64,
    // Whole vectors: some adapters report 2 GiB - 4.
    maxBindingBytes: Math.floor(Math.min(options.maxBindingBytes ?? Infinity, maxBinding) / 16) * 16,
  };
  return current;
}

const GIB = 2 ** 30;
const OUT_OF_MEMORY_FIX =
  ". Fix: set WEBGRPO_GPU_GIB to the GiB of memory that may be used, so that free buffers are given up in time; or a " +
  "smaller batch or model";

/** Whether the adapter's memory is the machine's. An integrated GPU's is too, but WebGPU does not tell those apart. */
function sharesMemory({ isFallbackAdapter }: GPUAdapterInfo): boolean {
  return isFallbackAdapter || platform() === "darwin";
}

/** Bytes; null where the user has not set any. @throws GpuError for a setting that is no positive number. */
function budgetOfUser(): number | null {
  const setting = process.env["WEBGRPO_GPU_GIB"];
  if (setting === undefined || setting === "") return null;
  const gib = Number(setting);
  if (gib > 0 && Number.isFinite(gib)) return Math.floor(gib * GIB);
  throw new GpuError(`WEBGRPO_GPU_GIB is "${setting}". Fix: a number of GiB above 0, such as 8, or leave it unset`);
}

/**
 * Whether a software driver gets the kernels of a GPU, so that those can be tested without one: WEBGRPO_KERNELS=gpu.
 * @throws GpuError for another setting.
 */
function wantsGpuKernels(): boolean {
  const setting = process.env["WEBGRPO_KERNELS"] ?? "";
  if (setting === "" || setting === "gpu") return setting === "gpu";
  throw new GpuError(`WEBGRPO_KERNELS is "${setting}". Fix: gpu, or leave it unset`);
}

function loadDriver(): void {
  try {
    prepareDriver();
  } catch (error) {
    throw new GpuError((error as Error).message);
  }
}

/** One line for the console: which adapter runs the kernels. */
export function describeGpu(): string {
  const { info, software } = gpu();
  const kernels = software ? "" : ", with the kernels of a GPU";
  const note = info.isFallbackAdapter ? ` (software: runs on the CPU${kernels})` : "";
  return `${info.description || info.device || info.vendor}${note}`;
}

/**
 * Asks for bindings as large as the adapter has them: the default is 128 MiB. Otherwise the default limits are enough (8
 * buffers, 256 threads, 16 KiB of workgroup memory), which every adapter has: a kernel that exceeds them fails on any
 * machine, and not first on somebody's GPU. Only products on the software driver stage rows in more workgroup memory.
 */
function wantedLimits({ limits, info }: GPUAdapter): Record<string, number> {
  const { maxBufferSize, maxStorageBufferBindingSize, maxComputeWorkgroupStorageSize } = limits;
  return {
    maxBufferSize,
    maxStorageBufferBindingSize,
    ...(info.isFallbackAdapter ? { maxComputeWorkgroupStorageSize } : {}),
  };
}
