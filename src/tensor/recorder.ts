/**
 * Records dispatches into one open compute pass and submits them in batches.
 *
 * A submission holds at most `SLOTS` dispatches. Their parameters share one uniform buffer, a slot each, written by a
 * single upload just before the submit; a dispatch finds its slot through a dynamic offset. The same buffer serves
 * every submission, because the queue runs upload and submit in order.
 */
import { checkHealth, gpu, settleChecks } from "./device.ts";
import { beforeTrim, type PooledBuffer, type Storage } from "./memory.ts";

const SLOTS = 256;
const SLOT_BYTES = 256;

let uniforms: GPUBuffer | null = null;
const staged = new DataView(new ArrayBuffer(SLOTS * SLOT_BYTES));
let encoder: GPUCommandEncoder | null = null;
let pass: GPUComputePassEncoder | null = null;
let recorded = 0;
let serial = 0;
let dispatches = 0;

/** Counters since the process began: kernels launched and batches submitted. */
export function recorderStats(): { dispatches: number; submits: number } {
  return { dispatches, submits: serial };
}

/** The buffer that holds the parameters of all dispatches of a submission. */
export function uniformBuffer(): GPUBuffer {
  uniforms ??= gpu().device.createBuffer({
    label: "uniforms",
    size: SLOTS * SLOT_BYTES,
    usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
  });
  return uniforms;
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
  if (recorded === SLOTS) submit();
  encoder ??= gpu().device.createCommandEncoder();
  pass ??= encoder.beginComputePass();
  const offset = recorded * SLOT_BYTES;
  writeParams?.(staged, offset);
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, bindGroup, writeParams ? [offset] : []);
  pass.dispatchWorkgroups(grid[0], grid[1]);
  for (const pooled of used) pooled.lastUse = serial;
  recorded += 1;
  dispatches += 1;
}

/** Sends everything recorded so far to the GPU. Returns without waiting. @throws GpuError after a failure. */
export function submit(): void {
  checkHealth();
  if (!encoder) return;
  pass?.end();
  const { queue } = gpu().device;
  if (recorded > 0) queue.writeBuffer(uniformBuffer(), 0, staged.buffer, 0, recorded * SLOT_BYTES);
  queue.submit([encoder.finish()]);
  encoder = null;
  pass = null;
  recorded = 0;
  serial += 1;
}

/** Copies host data into an allocation, in order with the recorded commands. */
export function upload(storage: Storage, data: Float32Array | Uint32Array): void {
  // queue.writeBuffer runs before commands not yet submitted: if one of those uses this buffer, submit it first.
  if (storage.pooled.lastUse === serial) submit();
  gpu().device.queue.writeBuffer(storage.pooled.buffer, 0, data.buffer, data.byteOffset, data.byteLength);
}

const stagingBuffers = new Map<number, GPUBuffer[]>();

/** Copies allocations back to the host in one round trip; everything recorded before has run by then. */
export async function download(storages: readonly Storage[]): Promise<ArrayBuffer[]> {
  const { device } = gpu();
  const total = storages.reduce((sum, { bytes }) => sum + align(bytes), 0);
  if (total === 0) return storages.map(() => new ArrayBuffer(0));
  const capacity = 2 ** Math.ceil(Math.log2(Math.max(total, 4096)));
  const staging =
    stagingBuffers.get(capacity)?.pop() ??
    device.createBuffer({
      label: "readback",
      size: capacity,
      usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
    });
  pass?.end();
  pass = null;
  encoder ??= device.createCommandEncoder();
  let offset = 0;
  for (const { pooled, bytes } of storages) {
    if (bytes > 0) encoder.copyBufferToBuffer(pooled.buffer, 0, staging, offset, align(bytes));
    offset += align(bytes);
  }
  submit();
  try {
    await staging.mapAsync(GPUMapMode.READ, 0, align(total));
  } catch (error) {
    await settleChecks(); // a lost device or a failed submit explains the failed mapping better
    throw error;
  }
  const mapped = staging.getMappedRange(0, align(total));
  offset = 0;
  const results = storages.map(({ bytes }) => {
    const copy = mapped.slice(offset, offset + bytes);
    offset += align(bytes);
    return copy;
  });
  staging.unmap();
  const free = stagingBuffers.get(capacity);
  if (free) free.push(staging);
  else stagingBuffers.set(capacity, [staging]);
  await settleChecks();
  return results;
}

beforeTrim(() => {
  submit();
});

/** Mapping offsets and sizes are multiples of 8 bytes. */
function align(bytes: number): number {
  return Math.ceil(bytes / 8) * 8;
}
