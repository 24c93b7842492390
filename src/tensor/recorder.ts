/**
 * Records dispatches into one open compute pass and submits them in batches.
 *
 * A submission holds at most `gpu().submissionLength` dispatches. Their parameters share one uniform buffer, a slot each,
 * written by a single upload just before the submit. The same buffer serves every submission, because the queue runs upload and
 * submit in order. Each slot has a bind group of its own, which serves all kernels; a dynamic offset would need only
 * one, but the software driver then allocates and maps a descriptor set for every dispatch.
 */
import { checkHealth, gpu, settleChecks } from "./device.ts";
import { beforeTrim, type PooledBuffer, type Storage } from "./memory.ts";
import { waitForGpu } from "./wait.ts";

const SLOT_BYTES = 256;

/** The uniform buffer, and the bind groups of the slots used so far. */
interface Slots {
  readonly buffer: GPUBuffer;
  readonly layout: GPUBindGroupLayout;
  readonly bindGroups: GPUBindGroup[];
}

let slots: Slots | null = null;
let staged = new DataView(new ArrayBuffer(0));
let encoder: GPUCommandEncoder | null = null;
let pass: GPUComputePassEncoder | null = null;
/** The pipeline that is set in the open pass. */
let current: GPUComputePipeline | null = null;
let recorded = 0;
let serial = 0;
let dispatches = 0;

/** Counters since the process began: kernels launched and batches submitted. */
export function recorderStats(): { dispatches: number; submits: number } {
  return { dispatches, submits: serial };
}

/** What `record` was called with; recorded again, it is repeated. */
export type Dispatch = Parameters<typeof record>;

/** Whoever wants to know what is recorded: a profiler, a capture. */
export interface Observer {
  readonly dispatch?: (dispatch: Dispatch) => void;
  readonly upload?: () => void;
}

const observers = new Set<Observer>();

/** Tells `observer` of everything that is recorded until the returned function is called. */
export function observe(observer: Observer): () => void {
  observers.add(observer);
  return () => void observers.delete(observer);
}

function openSlots(): Slots {
  if (slots) return slots;
  const { device, submissionLength } = gpu();
  const usage = GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST;
  staged = new DataView(new ArrayBuffer(submissionLength * SLOT_BYTES));
  slots = {
    buffer: device.createBuffer({ label: "params", size: staged.byteLength, usage }),
    layout: device.createBindGroupLayout({
      label: "params",
      entries: [{ binding: 0, visibility: GPUShaderStage.COMPUTE, buffer: { type: "uniform" } }],
    }),
    bindGroups: [],
  };
  return slots;
}

/** The layout of bind group 1, a dispatch's parameters, in every pipeline that has any. */
export function paramsLayout(): GPUBindGroupLayout {
  return openSlots().layout;
}

function slotBindGroup(slot: number): GPUBindGroup {
  const { buffer, layout, bindGroups } = openSlots();
  return (bindGroups[slot] ??= gpu().device.createBindGroup({
    layout,
    entries: [{ binding: 0, resource: { buffer, offset: slot * SLOT_BYTES, size: SLOT_BYTES } }],
  }));
}

/** Bytes one dispatch's parameters may take. */
export const PARAM_BYTES = SLOT_BYTES;

/**
 * Appends one dispatch. `writeParams` fills the dispatch's parameter slot (a view at a byte offset).
 * `used` are the buffers it touches.
 */
export function record(
  pipeline: GPUComputePipeline,
  bindGroup: GPUBindGroup,
  writeParams: ((view: DataView, offset: number) => void) | null,
  grid: readonly [number, number],
  used: readonly PooledBuffer[],
): void {
  for (const { dispatch } of observers) dispatch?.([pipeline, bindGroup, writeParams, grid, used]);
  if (recorded === gpu().submissionLength) submit();
  encoder ??= gpu().device.createCommandEncoder();
  pass ??= encoder.beginComputePass();
  if (pipeline !== current) pass.setPipeline(pipeline);
  current = pipeline;
  pass.setBindGroup(0, bindGroup);
  if (writeParams) {
    writeParams(staged, recorded * SLOT_BYTES);
    pass.setBindGroup(1, slotBindGroup(recorded));
  }
  pass.dispatchWorkgroups(grid[0], grid[1]);
  for (const pooled of used) pooled.lastUse = serial;
  recorded += 1;
  dispatches += 1;
}

function endPass(): void {
  pass?.end();
  pass = null;
  current = null;
}

/** Sends everything recorded so far to the GPU. Returns without waiting. @throws GpuError after a failure. */
export function submit(): void {
  checkHealth();
  if (!encoder) return;
  endPass();
  const { queue } = gpu().device;
  if (recorded > 0) queue.writeBuffer(openSlots().buffer, 0, staged.buffer, 0, recorded * SLOT_BYTES);
  queue.submit([encoder.finish()]);
  encoder = null;
  recorded = 0;
  serial += 1;
}

/** Copies host data into an allocation from a byte offset on, in order with the recorded commands. */
export function upload({ pooled }: Storage, byteOffset: number, data: Float32Array | Uint32Array | Uint16Array): void {
  for (const observer of observers) observer.upload?.();
  // queue.writeBuffer runs before commands not yet submitted: if one of those uses this buffer, submit it first.
  if (pooled.lastUse === serial) submit();
  gpu().device.queue.writeBuffer(pooled.buffer, byteOffset, data.buffer, data.byteOffset, data.byteLength);
}

/** A part of an allocation, in bytes. */
export interface Region {
  readonly storage: Storage;
  readonly byteOffset: number;
  readonly bytes: number;
}

/** Staging buffers grow to this size; a larger readback is spread over several. */
const MAX_STAGING_BYTES = 2 ** 26;

const stagingBuffers = new Map<number, GPUBuffer[]>();

/** Copies regions back to the host in one round trip; everything recorded before has run by then. */
export async function download(regions: readonly Region[]): Promise<ArrayBuffer[]> {
  const results = regions.map(({ bytes }) => new ArrayBuffer(bytes));
  const batches = planReadback(regions).map((batch) => ({ ...batch, staging: takeStaging(batch.bytes) }));
  if (batches.length === 0) return results;
  endPass();
  encoder ??= gpu().device.createCommandEncoder();
  for (const { staging, copies } of batches) {
    for (const { region, from, to, bytes } of copies) {
      const { storage, byteOffset } = regions[region]!;
      encoder.copyBufferToBuffer(storage.pooled.buffer, byteOffset + from, staging, to, align(bytes));
    }
  }
  submit();
  try {
    await waitForGpu(Promise.all(batches.map(({ staging, bytes }) => staging.mapAsync(GPUMapMode.READ, 0, bytes))));
  } catch (error) {
    await settleChecks(); // a lost device or a failed submit explains the failed mapping better
    throw error;
  }
  for (const { staging, copies, bytes: total } of batches) {
    const mapped = staging.getMappedRange(0, total);
    for (const { region, from, to, bytes } of copies) {
      new Uint8Array(results[region]!, from, bytes).set(new Uint8Array(mapped, to, bytes));
    }
    staging.unmap();
    returnStaging(staging);
  }
  await settleChecks();
  return results;
}

/** What one staging buffer takes: bytes `from` .. of a region (by number) go to byte `to` of the buffer. */
interface ReadbackBatch {
  bytes: number;
  readonly copies: { region: number; from: number; to: number; bytes: number }[];
}

/** Packs regions into staging buffers one after the other; a large region continues in the next buffer. */
function planReadback(regions: readonly Region[]): ReadbackBatch[] {
  const batches: ReadbackBatch[] = [];
  regions.forEach((region, i) => {
    for (let from = 0; from < region.bytes; ) {
      let batch = batches.at(-1);
      if (!batch || batch.bytes === MAX_STAGING_BYTES) {
        batch = { bytes: 0, copies: [] };
        batches.push(batch);
      }
      const bytes = Math.min(region.bytes - from, MAX_STAGING_BYTES - batch.bytes);
      batch.copies.push({ region: i, from, to: batch.bytes, bytes });
      batch.bytes += align(bytes);
      from += bytes;
    }
  });
  return batches;
}

/** A staging buffer of at least `bytes` bytes: sizes are powers of two, so that few of them serve every readback. */
function takeStaging(bytes: number): GPUBuffer {
  const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 4096)));
  const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
  return stagingBuffers.get(size)?.pop() ?? gpu().device.createBuffer({ label: "readback", size, usage });
}

/** Keeps a staging buffer for the next readback, unless it is one of the largest. */
function returnStaging(staging: GPUBuffer): void {
  if (staging.size === MAX_STAGING_BYTES) return staging.destroy();
  const free = stagingBuffers.get(staging.size);
  if (free) free.push(staging);
  else stagingBuffers.set(staging.size, [staging]);
}

beforeTrim(() => {
  submit();
});

/** Mapping offsets and sizes are multiples of 8 bytes. */
function align(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}
