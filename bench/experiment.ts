/**
 * The whole reference experiment as a user runs it: a process of its own per seed, timed from outside.
 *
 *   npx tsx bench/experiment.ts            seeds 1 to 10: the table of bench/results/digit-seeds.md
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { printTable, type Row } from "./table.ts";

interface RolloutRecord {
  readonly kind: string;
  readonly reward: number;
  readonly "sampling/sampling_logp_difference/max": number;
}

/** Runs the reference experiment once. @throws Error with its output when it fails. */
export function runExperiment(seed: number): Row {
  const directory = mkdtempSync(join(tmpdir(), "webgrpo-"));
  try {
    const out = join(directory, "run");
    const start = performance.now();
    const train = spawnSync(
      process.execPath,
      ["--import", "tsx", "src/grpo/train.ts", "--seed", String(seed), "--out", out],
      {
        encoding: "utf8",
      },
    );
    const seconds = (performance.now() - start) / 1000;
    if (train.status !== 0) throw new Error(`seed ${seed} failed:\n${train.stdout}${train.stderr}`);
    const records = readFileSync(join(out, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as RolloutRecord);
    const rollouts = records.filter(({ kind }) => kind === "rollout");
    const gaps = rollouts.map((record) => record["sampling/sampling_logp_difference/max"]);
    const rewards = Object.fromEntries(rollouts.map(({ reward }, i) => [`step ${i + 1}`, reward.toFixed(3)]));
    return { seed: String(seed), ...rewards, "largest log-prob gap": Math.max(...gaps).toExponential(1), seconds };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

if (process.argv[1] === import.meta.filename) {
  const rows = Array.from({ length: 10 }, (_, i) => runExperiment(i + 1));
  printTable("Mean reward of the 25 rollouts of each train step", rows);
  const learned = rows.filter((row) => Number(row["step 5"]) >= 0.95).length;
  console.log(`\n${learned} of ${rows.length} seeds end with a mean reward of at least 0.95`);
}
