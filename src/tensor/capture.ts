/**
 * Work that is recorded once and then repeated: the dispatches of a piece of code, recorded again without running it.
 * A decoding step is hundreds of launches whose shapes, buffers and parameters are the same for every token; what
 * changes lies in tensors. Putting a launch together takes the host several times as long as recording it.
 *
 * As CUDA graphs do: `capture` runs the code and keeps what it dispatched, `replay` dispatches it again. The buffers of
 * its temporaries stay with the capture, or a later tensor might lie where a replay writes.
 */
import { GpuError } from "./device.ts";
import { release, reserve, scope, sparing, type PooledBuffer, type Storage } from "./memory.ts";
import { observe, record, type Dispatch } from "./recorder.ts";
import { dispose, type Tensor } from "./tensor.ts";

export interface Capture {
  /** What the code returned, written anew by every replay. */
  readonly result: Tensor;
  readonly dispatches: readonly Dispatch[];
  /** The buffers of temporaries. */
  readonly reserved: readonly Storage[];
}

/**
 * Runs `body` and remembers what it dispatches. Its result, which must be a new tensor, and the temporaries are released
 * with the innermost scope, or by `disposeCapture`. What `body` reads from outside must outlive the last replay.
 * @throws GpuError when `body` uploads something: that would not be repeated.
 */
export function capture(body: () => Tensor): Capture {
  const dispatches: Dispatch[] = [];
  const used = new Set<PooledBuffer>();
  const stop = observe({
    dispatch: (dispatch) => {
      dispatches.push(dispatch);
      for (const pooled of dispatch[4]) used.add(pooled);
    },
    upload: () => {
      throw new GpuError("an upload cannot be repeated. Fix: upload before the work that is captured");
    },
  });
  try {
    // A temporary is free again before the body ends. A full pool must not destroy it: replays use it.
    const result = sparing(used, () => scope(body));
    return { result, dispatches, reserved: reserve(used) };
  } finally {
    stop();
  }
}

/** Dispatches everything again, in the same order. */
export function replay({ dispatches }: Capture): void {
  for (const dispatch of dispatches) record(...dispatch);
}

/** Returns the memory of result and temporaries to the pool. */
export function disposeCapture({ result, reserved }: Capture): void {
  dispose(result);
  reserved.forEach(release);
}
