/**
 * The roofline of the adapter, measured (Williams, Waterman and Patterson 2009): what single kernels reach. The rate of
 * arithmetic counts a fused multiply-add as two operations; bandwidths count bytes read and bytes written.
 */
import { kernel, launch } from "../src/tensor/kernel.ts";
import { dispose, empty, keep, read, tensor } from "../src/tensor/tensor.ts";
import { callTimer, kernelTimer, takeTurns, type Timer } from "./measure.ts";
import type { Row } from "./table.ts";

export interface Roofline {
  readonly gflops: number;
  /** GB/s of reading what caches hold, by one kernel. */
  readonly gigabytes: number;
  /** GB/s of copying what no cache holds, by the faster of two kernels. */
  readonly copyGigabytes: number;
  readonly dispatchMicroseconds: number;
  /** Submit one dispatch, wait for it and read one number. */
  readonly readbackMs: number;
}

const SHADER = "../../bench/roofline"; // from src/shaders
const params = ["count", "rounds", "factor", "summand"] as const;
const multiplyAdd = kernel({ shader: SHADER, entry: "multiplyAdd", buffers: ["results"], params });
const nothing = kernel({ shader: SHADER, entry: "nothing", buffers: ["results"], params });
const copyValues = kernel({ shader: SHADER, entry: "copyValues", buffers: ["source", "destination"], params });
const readVectors = kernel({ shader: SHADER, entry: "readVectors", buffers: ["sourceVectors", "results"], params });
const copyVectors = kernel({
  shader: SHADER, entry: "copyVectors", buffers: ["sourceVectors", "destinationVectors"], params,
});

const WORKGROUP = 64;
const COPY_GROUP = 8 * WORKGROUP; // PER_THREAD of the shader
const CHAINS = 12;
const STEPS = 4; // as in the shader
const ROUNDS = 400;
const THREADS = 2 ** 16;
/** Values of the copied buffers, 64 MiB each: more than caches hold; and those that are read again and again, 4 MiB. */
const COPIED = 2 ** 24;
const READ = 2 ** 20;
const DISPATCHES = 1000;
const RUNS = 30;

/** Measures all of it, each by its best run: a bound must not depend on what else the machine did. */
export async function roofline(): Promise<Roofline> {
  const results = keep(empty([THREADS]));
  // Touched once, so that no page is new.
  const [source, destination] = [keep(tensor(new Float32Array(COPIED))), keep(tensor(new Float32Array(COPIED)))];
  const one = keep(empty([1]));
  const chains = { count: THREADS, rounds: ROUNDS, factor: 0.999, summand: 0.001 };
  const unused = { rounds: 0, factor: 0, summand: 0 };
  const sourceVectors = source;
  const vectors = { sourceVectors, destinationVectors: destination };
  const launchNothing = (): void => launch(nothing, { results: one }, { ...unused, count: 0 }, 1);
  const timers: Timer[] = [];
  for (const body of [
    () => launch(multiplyAdd, { results }, chains, THREADS / WORKGROUP),
    () => launch(readVectors, { sourceVectors, results }, { ...unused, count: READ / 4 }, READ / 4 / COPY_GROUP),
    () => launch(copyValues, { source, destination }, { ...unused, count: COPIED }, COPIED / COPY_GROUP),
    () => launch(copyVectors, vectors, { ...unused, count: COPIED / 4 }, COPIED / 4 / COPY_GROUP),
    () => {
      for (let i = 0; i < DISPATCHES; i++) launchNothing();
    },
  ]) timers.push(await kernelTimer(body));
  timers.push(await callTimer(() => {
    launchNothing();
    return read(one);
  }));
  const best = (await takeTurns(timers, RUNS)).map((times) => times.best);
  const [fma, reading, byValues, byVectors, dispatches, readback] = best as
    [number, number, number, number, number, number];
  [results, source, destination, one].forEach(dispose);
  return {
    gflops: (2 * CHAINS * STEPS * ROUNDS * THREADS) / fma / 1e6,
    gigabytes: (4 * READ) / reading / 1e6,
    copyGigabytes: (2 * 4 * COPIED) / Math.min(byValues, byVectors) / 1e6,
    dispatchMicroseconds: (1000 * dispatches) / DISPATCHES,
    readbackMs: readback,
  };
}

/** The roofline as a table of one row. */
export function rooflineRows(measured: Roofline): Row[] {
  return [{
    "multiply-add GFLOPS": measured.gflops,
    "read in cache GB/s": measured.gigabytes,
    "copy GB/s": measured.copyGigabytes,
    "dispatch us": measured.dispatchMicroseconds,
    "submit and read one number ms": measured.readbackMs,
  }];
}
