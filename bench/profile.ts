/**
 * Where the time of a call goes, kernel by kernel, on any adapter: the dispatches that the call records are recorded
 * again, those of one kernel together and nothing else, and that is timed. Departs from a profiler with timestamps:
 * caches are warmer than within the call, and every number is the best of several runs, so that the parts need not sum
 * to the whole. What is missing is the host's work and the readback.
 */
import { observe, record, type Dispatch } from "../src/tensor/recorder.ts";
import { disposeGpt } from "../src/model/gpt.ts";
import { BATCH, decode, DECODE, experimentStep, TIME, trainingStep } from "./model.ts";
import { BENCH_MODEL, randomGpt } from "./model_config.ts";
import { callTimer, kernelTimer, takeTurns, type Bench, type Timer } from "./measure.ts";
import type { Row } from "./table.ts";

/** The kernels of the whole calls in model.ts by the milliseconds they take, the slowest first. */
export async function benchProfile(bench: Bench): Promise<Row[]> {
  const model = randomGpt(BENCH_MODEL);
  const { step, dispose } = trainingStep(model);
  const rows = await profile(bench, "training step", () => step(BATCH, TIME));
  dispose();
  const { samples, prompt, tokens } = DECODE;
  rows.push(...(await profile(bench, "decode", () => decode(model, 1, samples, prompt, tokens))));
  disposeGpt(model);
  const experiment = await experimentStep();
  rows.push(...(await profile(bench, "gradient step", experiment.step)));
  experiment.dispose();
  return rows;
}

async function profile(bench: Bench, workload: string, body: () => Promise<unknown>): Promise<Row[]> {
  const whole = await callTimer(body);
  const dispatches: Dispatch[] = [];
  const stop = observe({ dispatch: (dispatch) => dispatches.push(dispatch) });
  await body();
  stop();

  const groups = new Map<string, Dispatch[]>();
  for (const dispatch of dispatches) groups.set(nameOf(dispatch), [...(groups.get(nameOf(dispatch)) ?? []), dispatch]);
  const timers: Timer[] = [whole];
  for (const group of groups.values()) timers.push(await kernelTimer(() => group.forEach((again) => record(...again))));
  const [wholeMs, ...times] = (await takeTurns(timers, bench.runs)).map(({ best }) => best);

  const rows = [...groups].map(([kernel, { length }], i) => ({ workload, kernel, dispatches: length, ms: times[i]! }));
  const sum = times.reduce((total, ms) => total + ms, 0);
  return [
    { workload, kernel: "whole call", dispatches: dispatches.length, ms: wholeMs! },
    ...rows.sort((a, b) => b.ms - a.ms).slice(0, 12),
    { workload, kernel: "all kernels, one kind at a time", dispatches: dispatches.length, ms: sum },
  ].map((row) => ({ ...row, share: row.ms / wholeMs! }));
}

/** "matmul_subgroup.matmul", and for products how many workgroups: that tells the large from the small. */
function nameOf([pipeline, , , grid]: Dispatch): string {
  const name = pipeline.label.split(" ")[0]!;
  return name.startsWith("matmul") ? `${name}, ${grid[0] * grid[1]} groups` : name;
}
