/**
 * The whole reference experiment as a user runs it: a process of its own, timed from outside.
 *
 *   npx tsx bench/experiment.ts            seeds 1 to 10: the table of bench/results/digit-seeds.md
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { command, integer, runMain } from "../src/cli.ts";
import { DEFAULT_MODEL } from "../src/model/chat_model.ts";
import { median, type Bench } from "./measure.ts";
import { printTable, type Row } from "./table.ts";
import { hasPythonModules, PYTHON, script } from "./torch.ts";

/** Seconds of a run and its parts. The rest: saving the model, the report, the end of the process. */
interface Seconds {
  readonly whole: number;
  /** From the command to the first rollout. */
  readonly "start-up": number;
  readonly rollouts: number;
  readonly training: number;
}

interface Outcome {
  readonly seconds: Seconds;
  /** Mean reward of each train step's rollouts. */
  readonly rewards: readonly number[];
}

interface Ours extends Outcome {
  /** Between sampler and trainer. */
  readonly largestGap: number;
  readonly stats: { readonly peakBytes: number; readonly dispatches: number; readonly submits: number };
}

interface MetricsRecord {
  readonly kind: string;
  readonly reward: number;
  readonly "sampling/sampling_logp_difference/max": number;
}

/** Runs a program, and says when a line that begins so appeared. @throws Error with its output when it fails. */
async function runProgram(
  program: string,
  args: readonly string[],
  mark: string,
  env: NodeJS.ProcessEnv = {},
): Promise<{ output: string; marked: number; seconds: number }> {
  const start = performance.now();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, ...env } });
  let [output, errors, marked] = ["", "", NaN];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
    if (Number.isNaN(marked) && output.includes(mark)) marked = (performance.now() - start) / 1000;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text));
  const status = await new Promise<number | null>((resolve, reject) => child.on("error", reject).on("close", resolve));
  const seconds = (performance.now() - start) / 1000;
  if (status !== 0) throw new Error(`${program} ${args.join(" ")} failed:\n${output}${errors}`);
  return { output, marked, seconds };
}

/** Runs the reference experiment once. */
async function runExperiment(seed: number): Promise<Ours> {
  const directory = mkdtempSync(join(tmpdir(), "webgrpo-"));
  try {
    const [out, statsFile] = [join(directory, "run"), join(directory, "stats.json")];
    const { marked, seconds } = await runProgram(
      process.execPath,
      [
        "--import", "tsx", "--import", script("experiment_stats.ts"),
        "src/grpo/train.ts", "--seed", String(seed), "--out", out,
      ],
      "-- Generating rollouts",
      { BENCH_STATS: statsFile },
    );
    const lines = <T>(name: string): T[] =>
      readFileSync(join(out, name), "utf8").trim().split("\n").map((line) => JSON.parse(line) as T);
    const timings = lines<{ rolloutSeconds: number; trainingSeconds: number }>("timings.jsonl");
    const rollouts = lines<MetricsRecord>("metrics.jsonl").filter(({ kind }) => kind === "rollout");
    return {
      seconds: {
        whole: seconds,
        "start-up": marked,
        rollouts: timings.reduce((sum, { rolloutSeconds }) => sum + rolloutSeconds, 0),
        training: timings.reduce((sum, { trainingSeconds }) => sum + trainingSeconds, 0),
      },
      rewards: rollouts.map(({ reward }) => reward),
      largestGap: Math.max(...rollouts.map((record) => record["sampling/sampling_logp_difference/max"])),
      stats: JSON.parse(readFileSync(statsFile, "utf8")) as Ours["stats"],
    };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** The same experiment in PyTorch eager with transformers (torch_experiment.py). */
async function runTorchExperiment(rolloutsAtOnce: number): Promise<Outcome> {
  const args = ["-B", script("torch_experiment.py"), DEFAULT_MODEL, String(rolloutsAtOnce)];
  const { output, seconds } = await runProgram(PYTHON, args, "{");
  const line = output.trim().split("\n").at(-1)!;
  const result = JSON.parse(line) as { seconds: Omit<Seconds, "whole">; rewards: number[] };
  return { seconds: { whole: seconds, ...result.seconds }, rewards: result.rewards };
}

/**
 * The experiment here and, with PyTorch, there, with rollouts one at a time as the reproduced experiment has them, and in
 * one batch as here: run in turn, median seconds.
 */
export async function benchExperiment(bench: Bench): Promise<Row[]> {
  const withTorch =
    bench.torch !== null && hasPythonModules(["torch", "transformers"], "the reference experiment in PyTorch");
  const [ours, theirs, batched]: [Ours[], Outcome[], Outcome[]] = [[], [], []];
  for (let run = 0; run < (bench.quick ? 1 : 3); run++) {
    ours.push(await runExperiment(1));
    if (!withTorch) continue;
    theirs.push(await runTorchExperiment(1));
    batched.push(await runTorchExperiment(25));
  }
  const columns = (outcomes: readonly Outcome[]): Record<string, number> => {
    const of = (part: keyof Seconds): number => median(outcomes.map(({ seconds }) => seconds[part]));
    const rest = median(outcomes.map(({ seconds: s }) => s.whole - s["start-up"] - s.rollouts - s.training));
    return {
      "whole process s": of("whole"), "start-up s": of("start-up"), "rollouts s": of("rollouts"),
      "training s": of("training"), "rest s": rest, "last mean reward": outcomes[0]!.rewards.at(-1)!,
    };
  };
  const { peakBytes, dispatches, submits } = ours[0]!.stats;
  const own = columns(ours);
  const row = { experiment: "WebGRPO", ...own, dispatches, submits, "peak MiB": peakBytes / 2 ** 20 };
  if (!withTorch) return [row];
  const names = ["whole process s", "start-up s", "rollouts s", "training s"] as const;
  const compared = (experiment: string, outcomes: readonly Outcome[]): Row[] => {
    const other = columns(outcomes);
    const ratios = Object.fromEntries(names.map((name) => [name, own[name]! / other[name]!]));
    return [{ experiment, ...other }, { experiment: "ours / theirs", ...ratios }];
  };
  return [
    row,
    ...compared("PyTorch and transformers, eager", theirs),
    ...compared("the same, rollouts in one batch", batched),
  ];
}

async function main(): Promise<void> {
  const { seeds } = command("experiment", "Runs the reference experiment with several seeds, some seconds each.")
    .option("--seeds <n>", "runs, with seeds from 1 to this", integer(1), 10)
    .parse()
    .opts<{ seeds: number }>();
  const rows: Row[] = [];
  for (let seed = 1; seed <= seeds; seed++) {
    const { rewards, largestGap, seconds } = await runExperiment(seed);
    const steps = Object.fromEntries(rewards.map((reward, i) => [`step ${i + 1}`, reward.toFixed(3)]));
    rows.push({ seed, ...steps, "largest log-prob gap": largestGap.toExponential(1), seconds: seconds.whole });
  }
  printTable("Mean reward of the 25 rollouts of each train step", rows);
  const learned = rows.filter((row) => Number(row["step 5"]) >= 0.95).length;
  console.log(`\n${learned} of ${rows.length} seeds end with a mean reward of at least 0.95`);
}

if (process.argv[1] === import.meta.filename) await runMain(main);
