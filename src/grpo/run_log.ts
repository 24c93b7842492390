/**
 * The files that a run writes line by line, one JSON object a line: metrics.jsonl and completions.jsonl, the same bytes
 * for the same seed, and timings.jsonl. Every line is on disk when the call returns.
 */
import { appendFileSync, existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { memoryStats } from "../tensor/memory.ts";
import type { Prompt, Task } from "./environment.ts";
import type { Evaluation } from "./evaluate.ts";
import type { MetricsRecord } from "./metrics.ts";
import type { Experience } from "./rollout.ts";
import { cutLogs, type SavedLogs } from "./run_checkpoint.ts";
import type { StepTimes } from "./summary.ts";

const METRICS = "metrics.jsonl";
const COMPLETIONS = "completions.jsonl";
const TIMINGS = "timings.jsonl";

/** A record that is written cuts off first what a resumed run has given up. */
export interface RunLog {
  readonly metrics: (record: MetricsRecord) => void;
  readonly completions: (experiences: readonly Experience[], task: Task) => void;
  /** One reply per held-out prompt: samples of what the policy says there. */
  readonly evaluation: (step: number, evaluation: Evaluation) => void;
  readonly timings: (step: number, times: StepTimes) => void;
  /** Bytes of each file that are this run's. */
  readonly lengths: () => Record<string, number>;
  /** What timings.jsonl holds so far. */
  readonly pastTimes: () => StepTimes[];
}

/**
 * The logs of a new run, or of one that goes on from a checkpoint that was saved with `kept`. What came after that
 * stays until there is something new to write: whoever only looks at an older checkpoint loses nothing.
 */
export function openRunLog(run: string, kept?: SavedLogs): RunLog {
  let uncut = kept;
  const append = (name: string, records: readonly object[]): void => {
    if (uncut) cutLogs(run, uncut);
    uncut = undefined;
    appendFileSync(join(run, name), records.map((record) => JSON.stringify(record) + "\n").join(""));
  };
  return {
    metrics: (record) => append(METRICS, [record]),
    completions: (experiences, { functions }) =>
      append(
        COMPLETIONS,
        experiences.map(({ trainStep, prompt, text, reward, rewards, ended, completionIds }) => ({
          kind: "rollout",
          step: trainStep + 1,
          prompt: lastMessage(prompt),
          completion: text,
          reward,
          rewards: Object.fromEntries(functions.map(({ name }, k) => [name, rewards[k]!])),
          ended,
          tokens: completionIds.length,
        })),
      ),
    evaluation: (step, { replies, prompts }) =>
      append(
        COMPLETIONS,
        replies.slice(0, prompts).map(({ prompt, text, correct }) => ({
          kind: "eval", step, prompt: lastMessage(prompt), completion: text, correct,
        })),
      ),
    timings: (step, times) => append(TIMINGS, [{ step, ...times }]),
    lengths: () =>
      Object.fromEntries(
        [METRICS, COMPLETIONS, TIMINGS].map((name) => {
          return [name, uncut?.[name]?.bytes ?? statSync(join(run, name), { throwIfNoEntry: false })?.size ?? 0];
        }),
      ),
    pastTimes: () => {
      const path = join(run, TIMINGS);
      const own = existsSync(path) ? readFileSync(path).subarray(0, uncut?.[TIMINGS]?.bytes) : "";
      const lines = own.toString("utf8").split("\n").slice(0, -1);
      return lines.map((line) => JSON.parse(line) as StepTimes);
    },
  };
}

function lastMessage({ messages }: Prompt): string {
  return messages.at(-1)?.content ?? "";
}

/**
 * Wall-clock times and live GPU memory of a train step: not in metrics.jsonl, which is the same for every run of a
 * seed.
 */
export function stepTimes(started: number, rolledOut: number, experiences: readonly Experience[]): StepTimes {
  const { liveBytes, liveBuffers } = memoryStats();
  const now = performance.now();
  return {
    step_time: (now - started) / 1000,
    rolloutSeconds: (rolledOut - started) / 1000,
    trainingSeconds: (now - rolledOut) / 1000,
    rolloutTokens: experiences.reduce((sum, { completionIds }) => sum + completionIds.length, 0),
    liveBytes,
    liveBuffers,
  };
}
