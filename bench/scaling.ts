/**
 * Time against size: does a training step or decoding grow faster than its operation count anywhere?
 *
 *   npx tsx bench/scaling.ts            table on the console, plots in bench/results/scaling-*.svg
 *
 * One quantity varies at a time, the others stay those of bench/model.ts. All sizes run in turn. Growth is that of the
 * best runs from the smallest size to the largest; a ratio of at most 1 says that nothing grew faster than its
 * operations. Where the bytes that must move grow faster than those (decoding, whose cache is read for every token),
 * time may follow them.
 */
import { writeFileSync } from "node:fs";
import { command, integer, runMain } from "../src/cli.ts";
import { disposeGpt } from "../src/model/gpt.ts";
import type { GptConfig } from "../src/model/config.ts";
import { parameterCount } from "../src/model/parameters.ts";
import { describeGpu, openGpu } from "../src/tensor/device.ts";
import { decodeCost, trainingCost, type Cost } from "./cost.ts";
import { callTimer, takeTurns, type Timer } from "./measure.ts";
import { someOf } from "./names.ts";
import { BATCH, decode, DECODE, TIME, trainingStep } from "./model.ts";
import { BENCH_MODEL, randomGpt } from "./model_config.ts";
import { scalingPlot, type Series } from "./plot.ts";
import { printTable, type Row } from "./table.ts";
import { script } from "./torch.ts";

/** One measurement to make: where it stands on the axis, its work, and how to run it. */
interface Point {
  readonly x: number;
  readonly cost: Cost;
  readonly open: () => Promise<{ timer: Timer; close: () => void }>;
}

interface Sweep {
  readonly name: string;
  readonly title: string;
  readonly quantity: string;
  readonly points: readonly Point[];
}

function training(x: number, batch: number, time: number, config: GptConfig): Point {
  return {
    x,
    cost: trainingCost(config, batch, time),
    open: async () => {
      const model = randomGpt(config);
      const { step, dispose } = trainingStep(model);
      return {
        timer: await callTimer(() => step(batch, time)),
        close: () => {
          dispose();
          disposeGpt(model);
        },
      };
    },
  };
}

function decoding(x: number, samples: number, tokens: number): Point {
  return {
    x,
    cost: decodeCost(BENCH_MODEL, 1, samples, DECODE.prompt, tokens),
    open: async () => {
      const model = randomGpt(BENCH_MODEL);
      const timer = await callTimer(() => decode(model, 1, samples, DECODE.prompt, tokens));
      return { timer, close: () => disposeGpt(model) };
    },
  };
}

const widths = [64, 128, 192, 256, 384].map((hiddenSize): GptConfig => {
  const heads = hiddenSize / BENCH_MODEL.headSize;
  return { ...BENCH_MODEL, hiddenSize, heads, kvHeads: heads, mlpSize: 64 * Math.round((hiddenSize * 8) / 3 / 64) };
});

const SWEEPS: readonly Sweep[] = [
  {
    name: "training-batch", title: "training step", quantity: "batch",
    points: [1, 2, 4, 8, 16, 32].map((batch) => training(batch, batch, TIME, BENCH_MODEL)),
  },
  {
    name: "training-length", title: "training step", quantity: "tokens per row",
    points: [16, 32, 64, 128, 256].map((time) => training(time, BATCH, time, BENCH_MODEL)),
  },
  {
    name: "training-vocabulary", title: "training step", quantity: "vocabulary",
    points: [512, 2048, 8192, 32768].map((vocabSize) =>
      training(vocabSize, BATCH, TIME, { ...BENCH_MODEL, vocabSize })),
  },
  {
    name: "training-parameters", title: "training step", quantity: "parameters",
    points: widths.map((config) => training(parameterCount(config), BATCH, TIME, config)),
  },
  {
    name: "decode-rows", title: "decode", quantity: "rows",
    points: [5, 25, 50, 100, 200].map((samples) => decoding(samples, samples, DECODE.tokens)),
  },
  {
    name: "decode-tokens", title: "decode", quantity: "new tokens",
    points: [10, 20, 40, 80, 160].map((tokens) => decoding(tokens, DECODE.samples, tokens)),
  },
];

/** Measures the points of a sweep in turn. */
async function measure({ quantity, points }: Sweep, runs: number): Promise<Series> {
  const opened = [];
  for (const { open } of points) opened.push(await open());
  const times = await takeTurns(opened.map(({ timer }) => timer), runs);
  for (const { close } of opened) close();
  return { quantity, points: points.map(({ x, cost }, i) => ({ x, ...cost, ms: times[i]!.best })) };
}

/** Slope of log ms over log flops by least squares: 1 where time is proportional to the work. */
function exponent({ points }: Series): number {
  const [xs, ys] = [points.map(({ flops }) => Math.log(flops)), points.map(({ ms }) => Math.log(ms))];
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanX, meanY] = [mean(xs), mean(ys)];
  const covariance = xs.reduce((sum, x, i) => sum + (x - meanX) * (ys[i]! - meanY), 0);
  return covariance / xs.reduce((sum, x) => sum + (x - meanX) ** 2, 0);
}

function summarise(title: string, series: Series): Row {
  const [first, last] = [series.points[0]!, series.points.at(-1)!];
  const [time, work] = [last.ms / first.ms, last.flops / first.flops];
  return {
    call: title,
    varied: series.quantity,
    from: first.x,
    to: last.x,
    "ms, each size": series.points.map(({ ms }) => ms.toFixed(0)).join(" "),
    "GFLOPS, each size": series.points.map(({ ms, flops }) => (flops / ms / 1e6).toFixed(1)).join(" "),
    "operations grow": work,
    "bytes grow": last.bytes / first.bytes,
    "time grows": time,
    ratio: time / work,
    exponent: exponent(series),
  };
}

async function main(): Promise<void> {
  const names = SWEEPS.map(({ name }) => name);
  const { runs, only } = command("scaling", "Measures how time grows with size, and plots it.")
    .option("--runs <n>", "runs of each size, of which the best counts", integer(1), 5)
    .option("--only <names>", `some of ${names.join(",")}`, someOf(names), names)
    .parse()
    .opts<{ runs: number; only: string[] }>();
  await openGpu();
  console.log(`${describeGpu()}, Node ${process.version}, ${new Date().toISOString().slice(0, 10)}`);
  const rows: Row[] = [];
  for (const sweep of SWEEPS.filter(({ name }) => only.includes(name))) {
    const series = await measure(sweep, runs);
    rows.push(summarise(sweep.title, series));
    writeFileSync(script(`results/scaling-${sweep.name}.svg`), scalingPlot(series, sweep.title));
  }
  printTable("Growth of time against growth of operations", rows);
}

await runMain(main);
