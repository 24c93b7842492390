/** What the live view of a run shows, as lines for a terminal of any size. No drawing here, no clock, no state. */
import stringWidth from "string-width";
import { visibleLine } from "../visible.ts";
import type { Alert } from "./alerts.ts";
import type { Reward } from "./advantage.ts";
import type { Line } from "./terminal_region.ts";

export type Phase = "rollouts" | "rewards" | "reference" | "training" | "evaluating" | "saving";

export const PHASES: Readonly<Record<Phase, string>> = {
  rollouts: "generating rollouts",
  rewards: "computing rewards",
  reference: "asking the reference policy",
  training: "training",
  evaluating: "evaluating",
  saving: "saving",
};

/** Mean reward of a train step, counted from 1; null when no reply could be judged. */
export interface StepReward {
  readonly step: number;
  readonly reward: Reward;
}

/** Share of held-out prompts answered right, 0 to 1, after a train step; step 0: before training. */
export interface Evaluation {
  readonly step: number;
  readonly accuracy: number;
  /** Share of held-out prompts with a right answer among k. */
  readonly passAtK?: { readonly k: number; readonly value: number };
}

export interface RunView {
  readonly task: string;
  readonly model: string;
  readonly objective: string;
  readonly trainSteps: number;
  readonly gradUpdatesPerStep: number;
  /** Null before the first one. `seconds`: since it began. `trainStep` from 0. */
  readonly phase: { readonly name: Phase; readonly trainStep: number; readonly seconds: number } | null;
  /** Gradient steps of the current train step that are done, and the objective of the last. */
  readonly gradSteps: number;
  readonly lastObjective: string | null;
  /** Since the run began, and until it ends; null while there is nothing to judge by. */
  readonly seconds: number;
  readonly secondsLeft: number | null;
  readonly rewards: readonly StepReward[];
  readonly evaluations: readonly Evaluation[];
  readonly alert: Alert | null;
}

/** Smaller terminals get a single line. */
const MIN_COLUMNS = 40;
const MIN_ROWS = 12;

const MAX_CHART_ROWS = 5;
/** Before the chart: a reward such as "-12.345" and a space. */
const LABEL_COLUMNS = 8;
const MAX_BAR_COLUMNS = 6;

/** At most 11 lines, and never as many as there are rows. */
export function viewLines(view: RunView, columns: number, rows: number): Line[] {
  if (columns < MIN_COLUMNS || rows < MIN_ROWS) return [statusLine(view)];
  const title = visibleLine(` ${view.task} · ${view.model} · ${view.objective} `);
  const chartRows = Math.min(MAX_CHART_ROWS, rows - MIN_ROWS + 3);
  return [
    [["──"], [title, "bold"], ["─".repeat(Math.max(0, columns - 3 - stringWidth(title)))]],
    progressLine(view, columns),
    phaseLine(view),
    ...rewardLines(view, columns, chartRows),
    ...evaluationLines(view),
    ...(view.alert ? [[[alertText(view.alert), "yellow"]] as const] : []),
  ];
}

/** "no learning signal (train step 4): what it means". */
export function alertText({ title, step, text }: Alert): string {
  return visibleLine(`${title} (train step ${step}): ${text}`);
}

function statusLine({ trainSteps, phase, seconds }: RunView): Line {
  if (!phase) return [["starting"]];
  const now = `${PHASES[phase.name]} ${clock(phase.seconds)}`;
  return [[`${stepOf(phase, trainSteps)}/${trainSteps} ${now} (${clock(seconds)})`]];
}

/** From 1. What follows the last train step, such as saving, counts as part of it. */
function stepOf(phase: RunView["phase"], trainSteps: number): number {
  return Math.min((phase?.trainStep ?? 0) + 1, trainSteps);
}

function progressLine({ trainSteps, rewards, seconds, secondsLeft, phase }: RunView, columns: number): Line {
  // A run that is resumed with fewer --train-steps has done more.
  const done = Math.min(rewards.at(-1)?.step ?? 0, trainSteps);
  const size = Math.max(0, Math.min(24, columns - 60));
  const filled = Math.round((size * done) / trainSteps);
  const left = secondsLeft === null ? "" : `, about ${clock(secondsLeft)} left`;
  return [
    [`train step ${stepOf(phase, trainSteps)}/${trainSteps}  `],
    ["━".repeat(filled), "green"],
    ["─".repeat(size - filled), "dim"],
    [`  ${Math.floor((100 * done) / trainSteps)} % done  run ${clock(seconds)}${left}`],
  ];
}

function phaseLine({ phase, gradSteps, gradUpdatesPerStep, lastObjective }: RunView): Line {
  if (!phase) return [["starting", "cyan"]];
  const gradient = phase.name === "training" ? `  gradient step ${gradSteps}/${gradUpdatesPerStep}` : "";
  const objective = lastObjective === null ? "" : `  last objective ${lastObjective}`;
  return [[PHASES[phase.name], "cyan"], [` ${clock(phase.seconds)}${gradient}`], [objective, "dim"]];
}

/** The curve with its highest and lowest value at the side, once there are two; below it the numbers. */
function rewardLines({ rewards, trainSteps }: RunView, columns: number, rows: number): Line[] {
  const judged = rewards.filter((record): record is { step: number; reward: number } => record.reward !== null);
  if (judged.length === 0) return [[["mean reward: after the first train step"]]];

  const last = judged.at(-1)!.reward;
  const best = judged.reduce((top, record) => (record.reward > top.reward ? record : top));
  const lowest = Math.min(...judged.map(({ reward }) => reward));
  const numbers = `mean reward ${last.toFixed(3)}  best ${best.reward.toFixed(3)} (step ${best.step})`;
  if (lowest === best.reward) return [[[numbers]]];

  const width = columns - LABEL_COLUMNS - 1;
  const barWidth = Math.max(1, Math.min(MAX_BAR_COLUMNS, Math.floor(width / Math.max(trainSteps, rewards.length))));
  const values = squeeze(rewards.map(({ reward }) => reward), width);
  const chart = bars(values, rows, lowest, best.reward, barWidth);
  const labels = chart.map((_, row) => {
    const label = row === 0 ? shortNumber(best.reward) : row === rows - 1 ? shortNumber(lowest) : "";
    return label.padStart(LABEL_COLUMNS - 1) + " ";
  });
  return [...chart.map((text, row): Line => [[labels[row]!, "dim"], [text, "green"]]), [[numbers]]];
}

function evaluationLines({ evaluations }: RunView): Line[] {
  const last = evaluations.at(-1);
  if (!last) return [];
  const best = evaluations.reduce((top, evaluation) => (evaluation.accuracy > top.accuracy ? evaluation : top));
  const [now, top] = [last, best].map(({ step, accuracy }) => `${percent(accuracy)} (step ${step})`);
  return [[[`held-out accuracy ${now}  best ${top}`]]];
}

/** At most `width` values: means of neighbours where there are more. */
function squeeze(values: readonly Reward[], width: number): Reward[] {
  const size = Math.ceil(values.length / width);
  return Array.from({ length: Math.ceil(values.length / size) }, (_, i) => {
    const part = values.slice(i * size, (i + 1) * size).filter((value) => value !== null);
    return part.length === 0 ? null : part.reduce((sum, value) => sum + value, 0) / part.length;
  });
}

const EIGHTHS = " ▁▂▃▄▅▆▇█";

/** A bar chart in `rows` lines of text: eighths of a line, from one at `low` to all at `high` > `low`. */
export function bars(values: readonly Reward[], rows: number, low: number, high: number, barWidth: number): string[] {
  const heights = values.map((value) => {
    if (value === null) return 0;
    return 1 + Math.round(((value - low) / (high - low)) * (8 * rows - 1));
  });
  return Array.from({ length: rows }, (_, row) => {
    const below = 8 * (rows - 1 - row);
    return heights.map((height) => EIGHTHS[Math.max(0, Math.min(8, height - below))]!.repeat(barWidth)).join("");
  });
}

/** 75 -> "1:15", 3675 -> "1:01:15". */
export function clock(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value: number): string => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return `${hours > 0 ? `${hours}:${two(minutes)}` : minutes}:${two(whole % 60)}`;
}

/** 0.613 -> "61.3 %". */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** At most 7 characters. */
function shortNumber(value: number): string {
  const text = value.toFixed(3);
  return text.length <= LABEL_COLUMNS - 1 ? text : value.toPrecision(2);
}
