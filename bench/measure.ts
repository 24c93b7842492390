/**
 * The one way in which the benchmarks measure: warm up, run several times, report the median and the best; and where
 * two things are compared, run them in turn, so that a slow spell of a shared machine hits both.
 */
import { gpu } from "../src/tensor/device.ts";
import { memoryStats, resetPeak, scope } from "../src/tensor/memory.ts";
import { recorderStats, submit } from "../src/tensor/recorder.ts";
import { waitForGpu } from "../src/tensor/wait.ts";
import type { Roofline } from "./roofline.ts";
import type { Row } from "./table.ts";
import type { Torch, TorchRequest } from "./torch.ts";

/** Milliseconds of one run. */
export type Timer = () => Promise<number>;

/** What all benchmarks of a session share. */
export interface Bench {
  /** Runs of whole calls that a median is taken of; kernels are run three times as often. */
  readonly runs: number;
  /** Fewer shapes. */
  readonly quick: boolean;
  readonly roofline: Roofline;
  /** PyTorch in a process of its own, where it was asked for and is there. */
  readonly torch: Torch | null;
}

/** The middle value. @throws RangeError for no values. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("median: no values");
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/** Several runs of one thing, in milliseconds. */
export interface Times {
  readonly median: number;
  /** The fastest run: the least disturbed by whatever else the machine does. */
  readonly best: number;
}

/** Runs all timers in turn, `runs` times. */
export async function takeTurns(timers: readonly Timer[], runs: number): Promise<Times[]> {
  const all = timers.map((): number[] => []);
  for (let run = 0; run < runs; run++) {
    for (const [i, timer] of timers.entries()) all[i]!.push(await timer());
  }
  return all.map((times) => ({ median: median(times), best: Math.min(...times) }));
}

/** What a run of short kernels takes at least, so that submitting and waiting hardly count. */
const KERNEL_RUN_MS = 20;

/**
 * Times what the GPU does for the operations that `body` records, compiled by the time this returns, and the host's
 * work to record them. Each run repeats them for about 20 ms.
 */
export async function kernelTimer(body: () => void): Promise<Timer> {
  const run = async (repeats: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < repeats; i++) scope(body);
    submit();
    await waitForGpu(gpu().device.queue.onSubmittedWorkDone());
    return (performance.now() - start) / repeats;
  };
  await run(1); // compiles
  let repeats = 1;
  // A short run is mostly waiting, and would ask for too few repeats.
  for (let ms = await run(1); repeats * ms < KERNEL_RUN_MS; ms = await run(repeats)) {
    repeats = Math.ceil(Math.min(KERNEL_RUN_MS / ms, 8 * repeats));
  }
  return () => run(repeats);
}

/** Times whole calls, upload and readback included, after two warm-up calls. */
export async function callTimer(body: () => Promise<unknown>): Promise<Timer> {
  await body(); // compiles
  await body();
  return async () => {
    const start = performance.now();
    await body();
    return performance.now() - start;
  };
}

/** What something must do at the least, and its counterpart in PyTorch. */
export interface Work {
  /** Floating-point operations; a fused multiply-add is two. */
  readonly flops?: number;
  /** Bytes that must pass between the processor and memory. */
  readonly bytes?: number;
  readonly torch?: TorchRequest;
}

/**
 * Milliseconds that the measured roofline allows: arithmetic and memory traffic can overlap. All traffic counts as
 * reading from caches, wherever it goes.
 */
export function rooflineMs(
  { flops = 0, bytes = 0 }: Work, { gflops, gigabytes }: Pick<Roofline, "gflops" | "gigabytes">,
): number {
  return Math.max(flops / gflops, bytes / gigabytes) / 1e6;
}

/**
 * The columns of a timing: milliseconds, rate, share of the roofline, and PyTorch beside it where there is one. Rates
 * and shares are those of the best run, as the roofline's are.
 */
export async function timed(bench: Bench, timer: Timer, work: Work, runs = bench.runs): Promise<Row> {
  const theirs = bench.torch && work.torch ? await bench.torch.timer(work.torch) : null;
  const [own, other] = (await takeTurns(theirs ? [timer, theirs] : [timer], runs)) as [Times, Times | undefined];
  return {
    ms: own.median,
    "best ms": own.best,
    ...(work.flops === undefined ? {} : { GFLOPS: work.flops / own.best / 1e6 }),
    ...(work.bytes === undefined ? {} : { "GB/s": work.bytes / own.best / 1e6 }),
    "of roofline": rooflineMs(work, bench.roofline) / own.best,
    ...(other && {
      "PyTorch ms": other.median,
      "PyTorch best": other.best,
      "ms / PyTorch": own.median / other.median,
      "best / PyTorch": own.best / other.best,
    }),
  };
}

/** `timed` for operations that only record: short, so of three times as many runs. */
export async function timedKernel(bench: Bench, body: () => void, work: Work): Promise<Row> {
  return timed(bench, await kernelTimer(body), work, 3 * bench.runs);
}

/** `timed` for whole calls, with the dispatches and submits of one, and the largest number of bytes in use. */
export async function timedCall(bench: Bench, body: () => Promise<unknown>, work: Work): Promise<Row> {
  const timer = await callTimer(body);
  resetPeak();
  const before = recorderStats();
  await timer();
  const after = recorderStats();
  return {
    ...(await timed(bench, timer, work)),
    dispatches: after.dispatches - before.dispatches,
    submits: after.submits - before.submits,
    "peak MiB": memoryStats().peakBytes / 2 ** 20,
  };
}
