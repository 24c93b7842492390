/**
 * All console output of a GRPO run.
 *
 * stdout gets the lines of the reference experiment, verbatim, and the summary; stderr gets everything else. Where both
 * are a terminal, a live view stands below them (live_view.ts); NO_LIVE, CI or TERM=dumb in the environment turn it
 * off, NO_COLOR its colours.
 *
 * Replies are text that nobody vouches for. On a terminal their control characters are shown instead of obeyed; in a
 * file or a pipe they stand as they are, so that it holds exactly what the model wrote.
 */
import { Console } from "node:console";
import { visible } from "../visible.ts";
import type { Reward } from "./advantage.ts";
import type { Alert } from "./alerts.ts";
import {
  alertText, clock, PHASES, percent, viewLines, type Evaluation, type Phase, type RunView, type StepReward,
} from "./live_view.ts";
import { openRegion, type Region, type Style, type TerminalStream } from "./terminal_region.ts";

export interface RunFacts {
  readonly task: string;
  readonly model: string;
  readonly objective: string;
  readonly trainSteps: number;
  readonly gradUpdatesPerStep: number;
  /** Lines for stderr: adapter, memory, where the run is written. */
  readonly notes: readonly string[];
  /** Of a resumed run: the train steps done before, for the curve. */
  readonly earlier?: readonly StepReward[];
}

/** `trainStep` and `gradStep` count from 0, as the loop does; `step` counts from 1, as records do. */
export interface RunConsole {
  start(facts: RunFacts): void;
  phase(name: Phase, trainStep: number): void;
  reply(reward: Reward, text: string): void;
  /** A gradient step is done; `skipped`: it was not finite and left the weights alone. */
  update(at: { trainStep: number; gradStep: number; objective: number; skipped: boolean }): void;
  stepDone(record: StepReward): void;
  evaluated(evaluation: Evaluation): void;
  alert(alert: Alert): void;
  note(line: string): void;
  /** The closing lines: they take the place of the live view. */
  summary(lines: readonly string[]): void;
  /**
   * Ends the live view; what is printed later is printed plainly. To be called before anybody else writes to the
   * terminal, such as an error message: put it into a `finally`. May be called again.
   */
  close(): void;
}

export interface ConsoleStreams {
  readonly stdout: TerminalStream;
  readonly stderr: TerminalStream;
  readonly env: Readonly<Record<string, string | undefined>>;
}

const ABOUT_THE_OBJECTIVE = [
  "An objective near 0 is normal: ratios begin at 1 and advantages sum to 0. The gradient is not 0.",
  "The reward tells whether the model learns. More: docs/metrics.md#why-is-my-loss-0",
];

/** How often the live view's clocks are looked at. */
const TICK_MS = 250;
/** Without a live view: a phase that takes longer says so, this often. */
const STILL_MS = 60_000;

/** The time left is judged by this many train steps. */
const RECENT_STEPS = 5;

export function openConsole({ stdout, stderr, env }: ConsoleStreams = process): RunConsole {
  const plain = new Console({ stdout, stderr });
  const isLive = stdout.isTTY && stderr.isTTY && !env["NO_LIVE"] && !env["CI"] && env["TERM"] !== "dumb";
  let region: Region | null = null;
  let timer: NodeJS.Timeout | undefined;
  let facts: RunFacts | null = null;
  let [startedAt, phaseAt, stepAt] = [0, 0, 0];
  const stepSeconds: number[] = [];
  let phase: { readonly name: Phase; readonly trainStep: number } | null = null;
  let gradSteps = 0;
  let lastObjective: string | null = null;
  const rewards: StepReward[] = [];
  const evaluations: Evaluation[] = [];
  let lastAlert: Alert | null = null;

  function toStdout(line: string): void {
    if (region) region.print(visible(line));
    else plain.log(stdout.isTTY ? visible(line) : line);
  }

  /** In the live view to stdout as well: both are the same terminal, and one stream keeps the order. */
  function toStderr(line: string, style?: Style): void {
    if (region) region.print(visible(line), style);
    else plain.error(visible(line));
  }

  function secondsLeft(): number | null {
    const recent = stepSeconds.slice(-RECENT_STEPS);
    if (recent.length === 0) return null;
    const mean = recent.reduce((sum, seconds) => sum + seconds, 0) / recent.length;
    const stepsLeft = facts!.trainSteps - (rewards.at(-1)?.step ?? 0);
    return stepsLeft === 0 ? 0 : (stepsLeft - 1) * mean + Math.max(0, mean - secondsSince(stepAt));
  }

  const view = (): RunView => ({
    ...facts!,
    phase: phase && { ...phase, seconds: secondsSince(phaseAt) },
    gradSteps,
    lastObjective,
    seconds: secondsSince(startedAt),
    secondsLeft: secondsLeft(),
    rewards,
    evaluations,
    alert: lastAlert,
  });

  function tick(): void {
    if (region) region.refresh("soon");
    else if (phase && secondsSince(phaseAt) >= STILL_MS / 1000) {
      toStderr(`${PHASES[phase.name]}: ${clock(secondsSince(phaseAt))} so far (train step ${phase.trainStep + 1})`);
    }
  }

  function close(): void {
    clearInterval(timer);
    region?.close();
    region = null;
  }

  return {
    start(runFacts) {
      facts = runFacts;
      startedAt = phaseAt = stepAt = performance.now();
      rewards.push(...(runFacts.earlier ?? []));
      for (const line of [...runFacts.notes, ...ABOUT_THE_OBJECTIVE]) toStderr(line);
      if (isLive) region = openRegion(stdout, (columns, rows) => viewLines(view(), columns, rows));
      timer = setInterval(tick, isLive ? TICK_MS : STILL_MS).unref();
    },
    phase(name, trainStep) {
      phase = { name, trainStep };
      phaseAt = performance.now();
      if (name === "rollouts") gradSteps = 0;
      if (name === "rollouts") toStdout("-- Generating rollouts");
      if (name === "training") toStdout("-- Training");
      region?.refresh("now"); // what follows may keep the process from drawing for a while
    },
    reply: (reward, text) => toStdout(`Reward: ${reward === null ? "none" : reward.toFixed(3)}; Response: ${text}`),
    update({ trainStep, gradStep, objective, skipped }) {
      gradSteps = gradStep + 1;
      lastObjective = sixDecimals(objective);
      const at = `${gradSteps}/${facts!.gradUpdatesPerStep} in train step ${trainStep + 1}/${facts!.trainSteps}`;
      toStdout(`Grad step ${at} completed. Objective: ${lastObjective}`);
      if (skipped) toStderr(`note: grad step ${at} was not finite: skipped, the weights stay as they are`);
    },
    stepDone(record) {
      rewards.push(record);
      stepSeconds.push(secondsSince(stepAt));
      stepAt = performance.now();
      region?.refresh("soon");
    },
    evaluated(evaluation) {
      evaluations.push(evaluation);
      const { step, accuracy, passAtK } = evaluation;
      const when = step === 0 ? "before training" : `after train step ${step}`;
      const several = passAtK === undefined ? "" : `; one of ${passAtK.k} answers right: ${percent(passAtK.value)}`;
      toStderr(`Held-out accuracy ${when}: ${percent(accuracy)}${several}`, "cyan");
    },
    alert(alert) {
      lastAlert = alert;
      toStderr(`${alert.level === "info" ? "note" : "warning"}: ${alertText(alert)}`, "yellow");
    },
    note: (line) => toStderr(line),
    summary(lines) {
      close();
      lines.forEach(toStdout);
    },
    close,
  };
}

function secondsSince(time: number): number {
  return (performance.now() - time) / 1000;
}

/** `-0.000000` is noise around zero and reads like a result: it prints as `0.000000`. */
function sixDecimals(value: number): string {
  return value.toFixed(6).replace(/^-(0\.0+)$/, "$1");
}
