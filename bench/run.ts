/**
 * All benchmarks for this adapter. Absolute times hold for this machine only; README.md says what the columns mean.
 *
 *   npm run bench
 *   npm run bench -- --only matmul,model --with-torch --json results.json
 */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { command, integer, runMain } from "../src/cli.ts";
import { describeGpu, openGpu } from "../src/tensor/device.ts";
import { benchAttention } from "./attention.ts";
import { benchExperiment } from "./experiment.ts";
import { benchAdamw, benchEmbedding, benchLogProb, benchNorms } from "./kernels.ts";
import { benchMatmul, benchMatmulVariants } from "./matmul.ts";
import type { Bench } from "./measure.ts";
import { benchModel } from "./model.ts";
import { someOf } from "./names.ts";
import { benchProfile } from "./profile.ts";
import { roofline, rooflineRows } from "./roofline.ts";
import { printTable, type Row } from "./table.ts";
import { openTorch } from "./torch.ts";

interface Group {
  readonly title: string;
  readonly run: (bench: Bench) => Promise<Row[]> | Row[];
}

/** In the order in which they run. */
const GROUPS = {
  roofline: { title: "Roofline of the adapter", run: (bench) => rooflineRows(bench.roofline) },
  matmul: { title: "Matrix products", run: benchMatmul },
  variants: { title: "Matrix products of the model by kernel, GFLOPS", run: benchMatmulVariants },
  attention: { title: "Attention, 6 heads of 32 over 2 key-value heads", run: benchAttention },
  norms: { title: "Norms", run: benchNorms },
  logprob: { title: "Token log-probabilities", run: benchLogProb },
  adamw: { title: "Optimiser", run: benchAdamw },
  embedding: { title: "Embedding gradient", run: benchEmbedding },
  model: { title: "Whole calls: width 192, 4 layers, 6 heads of 32, vocabulary 2048", run: benchModel },
  profile: { title: "Where their time goes", run: benchProfile },
  experiment: { title: "The reference experiment with weights/, whole process", run: benchExperiment },
} as const satisfies Record<string, Group>;

type GroupName = keyof typeof GROUPS;
const NAMES = Object.keys(GROUPS) as GroupName[];

interface Flags {
  readonly only: readonly GroupName[];
  readonly runs?: number;
  readonly quick?: true;
  readonly withTorch?: true;
  readonly json?: string;
}

function parseFlags(): Flags {
  return command("bench", "Measures this adapter: medians of repeated runs after a warm-up.")
    .option("--only <groups>", `some of ${NAMES.join(",")}`, someOf(NAMES), NAMES)
    .option("--runs <n>", "runs that a median is taken of (default: 7; with --quick 3)", integer(1))
    .option("--quick", "fewer shapes and runs")
    .option("--with-torch", "the same shapes in PyTorch, in turn with ours; PYTHON names the interpreter")
    .option("--json <file>", "writes everything that is printed to this file too")
    .parse()
    .opts<Flags>();
}

async function main(): Promise<void> {
  const flags = parseFlags();
  await openGpu();
  const runs = flags.runs ?? (flags.quick ? 3 : 7);
  const torch = flags.withTorch ? await openTorch() : null;
  const about = {
    adapter: describeGpu(),
    processor: `${cpus().length} x ${cpus()[0]?.model ?? "unknown"}`,
    node: process.version,
    torch: torch?.description ?? null,
    commit: commit(),
    date: new Date().toISOString().slice(0, 10),
    runs,
    loadBefore: loadavg()[0]!,
  };
  console.log(Object.entries(about).map(([key, value]) => `${key}: ${value ?? "no"}`).join("\n"));
  const bench: Bench = { runs, quick: flags.quick ?? false, roofline: await roofline(), torch };
  const groups: Record<string, Row[]> = {};
  for (const name of NAMES.filter((name) => flags.only.includes(name))) {
    const { title, run }: Group = GROUPS[name];
    groups[name] = await run(bench);
    printTable(title, groups[name]);
    // After each group: an interrupted run leaves what it had.
    const results = { ...about, loadAfter: loadavg()[0]!, roofline: bench.roofline, groups };
    if (flags.json) writeFileSync(flags.json, JSON.stringify(results, null, 2) + "\n");
  }
  torch?.close();
  console.log(`\nload of the machine: ${about.loadBefore.toFixed(1)} before, ${loadavg()[0]!.toFixed(1)} after`);
}

/** The commit that runs, or "unknown" outside a checkout. */
function commit(): string {
  const git = (...args: string[]): string =>
    execFileSync("git", args, { cwd: import.meta.dirname, encoding: "utf8", stdio: "pipe" }).trim();
  try {
    const changed = git("status", "--porcelain", "--untracked-files=no", "../src") !== "";
    return git("rev-parse", "--short", "HEAD") + (changed ? " with changes in src" : "");
  } catch {
    return "unknown";
  }
}

await runMain(main);
