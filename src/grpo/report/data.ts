/**
 * What a report is made of: the files of a run's folder, read so that an interrupted run reads like a finished one. A
 * missing file, a line that is no JSON or a last line cut in half becomes a sentence in `problems`.
 */
import { createReadStream, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** A record of a file. Nothing is known about its values until they are looked at. */
export type Fields = Readonly<Record<string, unknown>>;

/** One reply, from completions.jsonl. */
export interface Answer {
  readonly prompt: string;
  readonly text: string;
  /** Null: not judged. */
  readonly reward: number | null;
  /** By reward function. */
  readonly rewards: readonly (readonly [name: string, reward: number | null])[];
  /** False when cut at the token limit. */
  readonly ended: boolean;
  readonly tokens: number | null;
  /** In evaluations. */
  readonly correct: boolean | null;
}

export interface StepAnswers {
  readonly step: number;
  readonly answers: Answer[];
}

/** The first and the last step that has answers; the same object when there is one step. */
export interface FirstAndLast {
  first: StepAnswers | null;
  last: StepAnswers | null;
}

export interface RunData {
  /** Empty when missing or unreadable. */
  readonly config: Fields;
  /** Records of metrics.jsonl by kind, in order of steps. */
  readonly rollouts: readonly Fields[];
  readonly updates: readonly Fields[];
  readonly evals: readonly Fields[];
  readonly alerts: readonly Fields[];
  readonly timings: readonly Fields[];
  readonly drawn: Readonly<FirstAndLast>;
  readonly evaluated: Readonly<FirstAndLast>;
  /** Completions of all train steps. */
  readonly completionCount: number;
  readonly problems: readonly string[];
}

/** Reads what there is. @throws only where the file system fails. */
export async function readRun(run: string): Promise<RunData> {
  const problems: string[] = [];
  const kinds: Record<"rollout" | "update" | "eval" | "alert", Fields[]> = {
    rollout: [], update: [], eval: [], alert: [],
  };
  const timings: Fields[] = [];
  const drawn: FirstAndLast = { first: null, last: null };
  const evaluated: FirstAndLast = { first: null, last: null };
  let completionCount = 0;

  const config = readConfigFile(run, problems);
  await eachRecord(run, "metrics.jsonl", problems, (record) => {
    if (record["kind"] === "alert") kinds.alert.push(record);
    else if (record["kind"] === "rollout") appendStep(kinds.rollout, record);
    else if (record["kind"] === "update") appendStep(kinds.update, record);
    else if (record["kind"] === "eval") appendStep(kinds.eval, record);
  });
  await eachRecord(run, "timings.jsonl", problems, (record) => appendStep(timings, record));
  await eachRecord(run, "completions.jsonl", problems, (record) => {
    const isEvaluation = record["kind"] === "eval";
    if (!isEvaluation) completionCount += 1;
    collect(isEvaluation ? evaluated : drawn, stepOf(record), answerOf(record));
  });
  const { rollout: rollouts, update: updates, eval: evals, alert: alerts } = kinds;
  return { config, rollouts, updates, evals, alerts, timings, drawn, evaluated, completionCount, problems };
}

/** The number under a key; null when there is none that can be drawn. */
export function numberAt(record: Fields | undefined, key: string): number | null {
  const value = record?.[key];
  return typeof value === "number" && Math.abs(value) < 1e100 ? value : null; // also refuses NaN
}

export function stepOf(record: Fields): number {
  return numberAt(record, "step") ?? 0;
}

/** Train steps done. The record of times ends a step; that of its rollouts is written before its gradient steps. */
export function stepsDone({ timings }: Pick<RunData, "timings">): number {
  return timings.length === 0 ? 0 : stepOf(timings.at(-1)!);
}

/** Whether all planned train steps are done. */
export function isComplete(data: Pick<RunData, "config" | "timings">): boolean {
  const planned = numberAt(data.config, "trainSteps");
  return planned !== null && stepsDone(data) >= planned;
}

function readConfigFile(run: string, problems: string[]): Fields {
  const path = join(run, "config.json");
  if (!existsSync(path)) {
    problems.push("config.json is missing");
    return {};
  }
  const config = parseObject(readFileSync(path, "utf8"));
  if (config === null) problems.push("config.json is not readable as JSON");
  return config ?? {};
}

/** Calls `visit` for each record of a file of JSON lines, which may be larger than a string can be. */
async function eachRecord(
  run: string,
  name: string,
  problems: string[],
  visit: (record: Fields) => void,
): Promise<void> {
  const path = join(run, name);
  if (!existsSync(path)) {
    problems.push(`${name} is missing`);
    return;
  }
  let [records, unreadable, rest] = [0, 0, ""];
  const take = (line: string): boolean => {
    const record = parseObject(line);
    if (record) visit(record);
    records += record ? 1 : 0;
    return record !== null;
  };
  // Not node:readline: it also splits at U+2028, which JSON strings may contain as it is.
  for await (const chunk of createReadStream(path, "utf8")) {
    const lines = (rest + (chunk as string)).split("\n");
    rest = lines.pop()!;
    for (const line of lines) if (line.trim() !== "" && !take(line)) unreadable += 1;
  }
  const isCut = rest.trim() !== "" && !take(rest);
  if (isCut) problems.push(`${name} ends in half a line, which is left out: the run stopped while writing it`);
  if (unreadable > 0) problems.push(`${name}: unreadable lines left out: ${unreadable}`);
  if (records === 0 && !isCut && unreadable === 0) problems.push(`${name} is empty`);
}

function parseObject(text: string): Fields | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Fields) : null;
  } catch {
    return null;
  }
}

/** A run that went on from an earlier checkpoint writes some steps again: the later record counts. */
function appendStep(records: Fields[], record: Fields): void {
  const position = (one: Fields): number => stepOf(one) + 1e-6 * (numberAt(one, "grad_step") ?? 0);
  while (records.length > 0 && position(records.at(-1)!) >= position(record)) records.pop();
  records.push(record);
}

function collect(steps: FirstAndLast, step: number, answer: Answer): void {
  if (steps.first === null || step < steps.first.step) steps.first = steps.last = { step, answers: [] };
  if (step !== steps.last?.step) steps.last = step === steps.first.step ? steps.first : { step, answers: [] };
  steps.last.answers.push(answer);
}

function answerOf(record: Fields): Answer {
  const text = (key: string): string => (typeof record[key] === "string" ? record[key] : "");
  const rewards = record["rewards"];
  const byName = typeof rewards === "object" && rewards !== null && !Array.isArray(rewards) ? (rewards as Fields) : {};
  return {
    prompt: text("prompt"),
    text: text("completion"),
    reward: numberAt(record, "reward"),
    rewards: Object.keys(byName).map((name) => [name, numberAt(byName, name)]),
    ended: record["ended"] !== false,
    tokens: numberAt(record, "tokens"),
    correct: typeof record["correct"] === "boolean" ? record["correct"] : null,
  };
}
