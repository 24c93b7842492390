/**
 * The roofline of the adapter, measured (Williams, Waterman and Patterson 2009): what no kernel can beat. The rate of
 * arithmetic counts a fused multiply-add as two operations; the bandwidth counts bytes read and bytes written.
 */
import { kernel, launch } from "../src/tensor/kernel.ts";
import { dispose, empty, keep, read, tensor } from "../src/tensor/tensor.ts";
import { callTimer, kernelTimer, takeTurns } from "./measure.ts";
import type { Row } from "./table.ts";

export interface Roofline {
  readonly gflops: number;
  /** GB/s of the faster of the two copying kernels. */
  readonly gigabytes: number;
  readonly dispatchMicroseconds: number;
  /** Submit one dispatch, wait for it and read one number. */
  readonly readbackMs: number;
}

const SHADER = "../../bench/roofline"; // from src/shaders
const params = ["count", "rounds", "factor", "summand"] as const;
const multiplyAdd = kernel({ shader: SHADER, entry: "multiplyAdd", buffers: ["results"], params });
const nothing = kernel({ shader: SHADER, entry: "nothing", buffers: ["results"], params });
const copyValues = kernel({ shader: SHADER, entry: "copyValues", buffers: ["source", "destination"], params });
const copyVectors = kernel({
  shader: SHADER, entry: "copyVectors", buffers: ["sourceVectors", "destinationVectors"], params,
});

const WORKGROUP = 64;
const COPY_GROUP = 8 * WORKGROUP; // PER_THREAD of the shader
const CHAINS = 12;
const STEPS = 4; // as in the shader
const ROUNDS = 400;
const THREADS = 2 ** 16;
/** Values of the copied buffers, 64 MiB each: more than caches hold. */
const COPIED = 2 ** 24;
const DISPATCHES = 1000;
const RUNS = 30;

/** Measures all four, each by its best run: a bound must not depend on what else the machine did. */
export async function roofline(): Promise<Roofline> {
  const results = keep(empty([THREADS]));
  // Touched once, so that no page is new.
  const [source, destination] = [keep(tensor(new Float32Array(COPIED))), keep(tensor(new Float32Array(COPIED)))];
  const one = keep(empty([1]));
  const chains = { count: THREADS, rounds: ROUNDS, factor: 0.999, summand: 0.001 };
  const scalar = { count: COPIED, rounds: 0, factor: 0, summand: 0 };
  const timers = [
    await kernelTimer(() => launch(multiplyAdd, { results }, chains, THREADS / WORKGROUP)),
    await kernelTimer(() => launch(copyValues, { source, destination }, scalar, COPIED / COPY_GROUP)),
    await kernelTimer(() =>
      launch(
        copyVectors,
        { sourceVectors: source, destinationVectors: destination },
        { ...scalar, count: COPIED / 4 },
        COPIED / 4 / COPY_GROUP,
      )),
    await kernelTimer(() => {
      for (let i = 0; i < DISPATCHES; i++) launch(nothing, { results: one }, scalar, 1);
    }),
    await callTimer(() => {
      launch(nothing, { results: one }, scalar, 1);
      return read(one);
    }),
  ];
  const [fma, values, vectors, dispatches, readback] = (await takeTurns(timers, RUNS)).map(({ best }) => best) as
    [number, number, number, number, number];
  [results, source, destination, one].forEach(dispose);
  return {
    gflops: (2 * CHAINS * STEPS * ROUNDS * THREADS) / fma / 1e6,
    gigabytes: (2 * 4 * COPIED) / Math.min(values, vectors) / 1e6,
    dispatchMicroseconds: (1000 * dispatches) / DISPATCHES,
    readbackMs: readback,
  };
}

/** The roofline as a table of one row. */
export function rooflineRows({ gflops, gigabytes, dispatchMicroseconds, readbackMs }: Roofline): Row[] {
  return [{
    "multiply-add GFLOPS": gflops,
    "copy GB/s": gigabytes,
    "dispatch us": dispatchMicroseconds,
    "submit and read one number ms": readbackMs,
  }];
}
