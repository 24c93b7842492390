/**
 * The one owner of GPU buffers: a size-class pool, and scopes that free a step's temporaries.
 *
 * Of the free buffers of a size the oldest is taken. Steps that allocate alike then get the same buffers in the same
 * places, and the bind groups made for the first one serve all (kernel.ts).
 *
 * A released buffer may be reused at once, while commands that read it are still queued: commands run in the order they
 * were recorded, so the old reader always comes before the new writer. Only host uploads bypass that order; the
 * recorder handles them (`upload` in recorder.ts). A new buffer costs milliseconds on the software driver (page
 * faults), which is why nothing is destroyed there until the byte budget is reached. On a GPU, whose memory nobody tells,
 * free buffers are also given up when the pool has grown to `poolRatio` times what was ever in use at once.
 */
import { GpuError, gpu } from "./device.ts";

/** A GPU buffer that lives in the pool; its content is undefined after each reuse. */
export interface PooledBuffer {
  readonly id: number;
  readonly buffer: GPUBuffer;
  readonly capacity: number;
  /** Serial number of the last submission that uses this buffer. */
  lastUse: number;
}

/** One allocation: the right to use the first `bytes` bytes of a pooled buffer until it is released. */
export interface Storage {
  readonly pooled: PooledBuffer;
  readonly bytes: number;
  /** The scope that will release it, or null when it is kept. */
  owner: Set<Storage> | null;
  released: boolean;
}

export interface MemoryStats {
  /** Bytes and number of allocations in use. */
  liveBytes: number;
  liveBuffers: number;
  /** Largest `liveBytes` so far. */
  peakBytes: number;
  /** Bytes of all GPU buffers, free ones included. */
  poolBytes: number;
}

/**
 * The largest allocation, 2 GiB: element indices and byte offsets then fit into the u32 arithmetic of every kernel with
 * room to spare, and into the bindings of drivers that go wrong near 4 GiB.
 */
const MAX_BYTES = 2 ** 31;

/** Nobody minds a pool of this size, 64 MiB, whatever is in use. */
const SMALL_POOL = 2 ** 26;

/** By capacity; each list with the newest first, so that the oldest is popped. */
const freeBuffers = new Map<number, PooledBuffer[]>();
const scopes: Set<Storage>[] = [];
const stats: MemoryStats = { liveBytes: 0, liveBuffers: 0, peakBytes: 0, poolBytes: 0 };
let nextId = 0;
let poison: ((storage: Storage) => void) | null = null;

/** Bytes in use, their peak, and the size of the pool. */
export function memoryStats(): Readonly<MemoryStats> {
  return { ...stats };
}

/** Forgets the peak, so that a benchmark can measure its own. */
export function resetPeak(): void {
  stats.peakBytes = stats.liveBytes;
}

/** Debug mode: `fill` is called on every allocation just before it is released (tests fill it with NaN). */
export function setPoison(fill: ((storage: Storage) => void) | null): void {
  poison = fill;
}

/** Four size classes per power of two: at most a quarter of a buffer is wasted. 1000 -> 1024, 1100 -> 1280. */
export function sizeClass(bytes: number): number {
  const octave = 2 ** Math.max(8, Math.ceil(Math.log2(Math.max(bytes, 1))) - 1);
  return Math.ceil(bytes / (octave / 4)) * (octave / 4) || 256;
}

/**
 * A buffer of at least `bytes` bytes with undefined content, released with the innermost scope.
 * @throws GpuError when it exceeds 2 GiB, the adapter's buffer limit or the byte budget.
 */
export function allocate(bytes: number): Storage {
  if (bytes > MAX_BYTES) {
    throw new GpuError(`a tensor of ${mib(bytes)} exceeds ${mib(MAX_BYTES)}, the most that one tensor may hold`);
  }
  const capacity = Math.max(256, sizeClass(bytes));
  return own(freeBuffers.get(capacity)?.pop() ?? createBuffer(capacity), bytes);
}

/** Makes a buffer that is not in the pool any more an allocation of the innermost scope. */
function own(pooled: PooledBuffer, bytes: number): Storage {
  const { capacity } = pooled;
  const owner = scopes.at(-1) ?? null;
  const storage: Storage = { pooled, bytes, owner, released: false };
  owner?.add(storage);
  stats.liveBytes += capacity;
  stats.liveBuffers += 1;
  stats.peakBytes = Math.max(stats.peakBytes, stats.liveBytes);
  return storage;
}

/**
 * Takes those of the given buffers out of the pool that lie free in it: nobody else gets them until the returned
 * allocations are released, with the innermost scope at the latest.
 */
export function reserve(buffers: Iterable<PooledBuffer>): Storage[] {
  const reserved: Storage[] = [];
  for (const pooled of buffers) {
    const free = freeBuffers.get(pooled.capacity);
    const at = free?.indexOf(pooled) ?? -1;
    if (at < 0) continue;
    free!.splice(at, 1);
    reserved.push(own(pooled, pooled.capacity));
  }
  return reserved;
}

/** Returns an allocation to the pool. Releasing twice is an error: someone else may own the buffer by then. */
export function release(storage: Storage): void {
  if (storage.released) throw new GpuError("a tensor was released twice");
  poison?.(storage);
  storage.owner?.delete(storage);
  storage.owner = null;
  storage.released = true;
  const { pooled } = storage;
  addFree(pooled);
  stats.liveBytes -= pooled.capacity;
  stats.liveBuffers -= 1;
}

function addFree(pooled: PooledBuffer): void {
  const free = freeBuffers.get(pooled.capacity);
  if (!free) {
    freeBuffers.set(pooled.capacity, [pooled]);
    return;
  }
  let at = free.length; // most often a young buffer comes back to older ones, or the list is short
  while (at > 0 && free[at - 1]!.id < pooled.id) at -= 1;
  free.splice(at, 0, pooled);
}

/** Takes an allocation out of its scope: it lives until `release`. For parameters, optimiser state and KV caches. */
export function keepStorage(storage: Storage): void {
  storage.owner?.delete(storage);
  storage.owner = null;
}

/** The innermost scope: the owner of what is allocated now. */
export function currentScope(): Set<Storage> | null {
  return scopes.at(-1) ?? null;
}

/** What a result may hold tensors in: arrays, sets, maps (by their [key, value] pairs) and records. */
function partsOf(holder: object): Iterable<unknown> {
  return holder instanceof Map || holder instanceof Set ? holder : Object.values(holder);
}

/** Every allocation that can be reached from `value`, without recursion: a result may hold a long graph. */
function storagesOf(value: unknown): Set<Storage> {
  const found = new Set<Storage>();
  const seen = new Set<unknown>();
  const open: unknown[] = [value];
  while (open.length > 0) {
    const item = open.pop();
    if (item === null || typeof item !== "object" || ArrayBuffer.isView(item) || seen.has(item)) continue;
    seen.add(item);
    const { storage } = item as { storage?: Storage };
    if (storage?.pooled) found.add(storage);
    else for (const part of partsOf(item)) open.push(part);
  }
  return found;
}

function closeScope(scope: Set<Storage>, result: unknown): void {
  const popped = scopes.pop();
  if (popped !== scope)
    throw new GpuError("scopes were closed out of order: a scope must not outlive an await outside");
  const outer = scopes.at(-1) ?? null;
  const survivors = storagesOf(result);
  for (const storage of [...scope]) {
    if (!survivors.has(storage)) release(storage);
    else {
      storage.owner = outer;
      outer?.add(storage);
    }
  }
}

/**
 * Runs `body` and releases every tensor allocated in it, except those in its result, which pass to the outer scope.
 * `scope(() => add(exp(x), y))` frees the buffer of `exp(x)`.
 */
export function scope<T>(body: () => T): T {
  const own = new Set<Storage>();
  scopes.push(own);
  let result: T | undefined;
  try {
    result = body();
    return result;
  } finally {
    closeScope(own, result);
  }
}

/** `scope` for a body that awaits a readback. Bodies must not run concurrently: there is one stack of scopes. */
export async function scopeAsync<T>(body: () => Promise<T>): Promise<T> {
  const own = new Set<Storage>();
  scopes.push(own);
  let result: T | undefined;
  try {
    result = await body();
    return result;
  } finally {
    closeScope(own, result);
  }
}

function createBuffer(capacity: number): PooledBuffer {
  const { device, byteBudget, poolRatio } = gpu();
  if (capacity > device.limits.maxBufferSize) {
    throw new GpuError(
      `a buffer of ${mib(capacity)} exceeds this adapter's limit of ${mib(device.limits.maxBufferSize)}`,
    );
  }
  const peakBytes = Math.max(stats.peakBytes, stats.liveBytes + capacity);
  const comfortable = Math.max(SMALL_POOL, poolRatio * peakBytes);
  if (stats.poolBytes + capacity > Math.min(byteBudget, comfortable)) trimPool();
  if (stats.poolBytes + capacity > byteBudget) {
    throw new GpuError(
      `out of GPU memory: ${mib(capacity)} more would exceed the budget of ${mib(byteBudget)} ` +
        `(${mib(stats.liveBytes)} in use). Fix: a smaller batch, shorter sequences or a smaller model`,
    );
  }
  stats.poolBytes += capacity;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  return { id: nextId++, buffer: device.createBuffer({ size: capacity, usage }), capacity, lastUse: -1 };
}

const trimListeners: (() => void)[] = [];

/**
 * Registers a function that runs before free buffers are destroyed (the recorder submits and drops its bind groups).
 */
export function beforeTrim(listener: () => void): void {
  trimListeners.push(listener);
}

const spared = new Set<ReadonlySet<PooledBuffer>>();

/**
 * Runs `body`, during which free buffers of this set, which may grow, are reused but not destroyed: recorded work that
 * names them is to be dispatched again.
 */
export function sparing<T>(buffers: ReadonlySet<PooledBuffer>, body: () => T): T {
  spared.add(buffers);
  try {
    return body();
  } finally {
    spared.delete(buffers);
  }
}

/** Destroys all free buffers but those that are spared. */
export function trimPool(): void {
  for (const listener of trimListeners) listener();
  const isSpared = (pooled: PooledBuffer): boolean => [...spared].some((buffers) => buffers.has(pooled));
  for (const [capacity, buffers] of freeBuffers) {
    const unused = buffers.filter((pooled) => !isSpared(pooled));
    for (const { buffer } of unused) buffer.destroy();
    stats.poolBytes -= capacity * unused.length;
    freeBuffers.set(capacity, buffers.filter(isSpared));
  }
}

function mib(bytes: number): string {
  return `${(bytes / 2 ** 20).toFixed(1)} MiB`;
}
