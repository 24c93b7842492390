/**
 * What GRPO teaches on problems that are never trained on: the arithmetic preset with several seeds, each a process of
 * its own, timed from outside.
 *
 *   npx tsx bench/arithmetic.ts            seeds 1 to 5: the table of bench/results/arithmetic.md
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { command, integer, runMain } from "../src/cli.ts";
import { average } from "../src/grpo/advantage.ts";
import { printTable, type Row } from "./table.ts";

interface EvaluationRecord {
  readonly kind: string;
  readonly step: number;
  readonly accuracy: number;
  readonly greedy_accuracy: number;
  readonly "pass@4": number;
}

interface Outcome {
  readonly row: Row;
  /** Points of held-out accuracy. */
  readonly gain: number;
}

/** Trains once. @throws Error with its output when it fails. */
function trainArithmetic(seed: number): Outcome {
  const directory = mkdtempSync(join(tmpdir(), "webgrpo-"));
  try {
    const out = join(directory, "run");
    const start = performance.now();
    const flags = ["--preset", "arithmetic", "--seed", `${seed}`, "--out", out];
    const train = spawnSync(process.execPath, ["--import", "tsx", "src/grpo/train.ts", ...flags], {
      encoding: "utf8",
      maxBuffer: 2 ** 28,
    });
    const seconds = (performance.now() - start) / 1000;
    if (train.status !== 0) throw new Error(`seed ${seed} failed:\n${train.stdout}${train.stderr}`);
    const records = readFileSync(join(out, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as EvaluationRecord)
      .filter(({ kind }) => kind === "eval");
    const percent = (value: number): string => (100 * value).toFixed(1);
    const accuracies = records.map(({ step, accuracy }) => [step === 0 ? "before" : `step ${step}`, percent(accuracy)]);
    const [first, last] = [records[0]!, records.at(-1)!];
    const gain = 100 * (last.accuracy - first.accuracy);
    const row: Row = {
      seed: String(seed),
      ...(Object.fromEntries(accuracies) as Record<string, string>),
      gain: gain.toFixed(1),
      greedy: `${percent(first.greedy_accuracy)} -> ${percent(last.greedy_accuracy)}`,
      "pass@4": `${percent(first["pass@4"])} -> ${percent(last["pass@4"])}`,
      seconds,
    };
    return { row, gain };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

async function main(): Promise<void> {
  const { seeds } = command("arithmetic", "Trains the arithmetic preset with several seeds, about a minute each.")
    .option("--seeds <n>", "runs, with seeds from 1 to this", integer(1), 5)
    .parse()
    .opts<{ seeds: number }>();
  const outcomes = Array.from({ length: seeds }, (_, i) => trainArithmetic(i + 1));
  printTable("Held-out accuracy in percent, replies sampled at temperature 1", outcomes.map(({ row }) => row));
  console.log(`\nmean gain: ${average(outcomes.map(({ gain }) => gain)).toFixed(1)} points`);
}

await runMain(main);
