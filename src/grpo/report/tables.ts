/** The parts of a report that are mostly numbers: time, steps, configuration; and the commands to go on with. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { barChart, HALF, type Bar } from "./chart.ts";
import { isComplete, numberAt, stepOf, type Fields, type RunData } from "./data.ts";
import { brief, count, duration, figure, html, percent, signed, type Content, type Html } from "./html.ts";

const MAX_BARS = 60;
const MAX_ROWS = 40;
const MAX_SETTINGS = 100;

/** The parts of a train step's time: every number whose name ends in "Seconds"; parts do not overlap. */
export function timeParts(record: Fields): [name: string, seconds: number][] {
  return Object.keys(record).filter((key) => key.endsWith("Seconds")).map((key) => {
    return [key.slice(0, -"Seconds".length), Math.max(0, numberAt(record, key) ?? 0)];
  });
}

/** Where the time went, per step and in all; nothing without timings. */
export function timing({ timings }: RunData): Content {
  const names = [...new Set(timings.flatMap((record) => timeParts(record).map(([name]) => name)))].slice(0, 6);
  if (names.length === 0) return null;
  const total = (key: string, records = timings): number => sum(records.map((record) => numberAt(record, key) ?? 0));
  const size = Math.ceil(timings.length / MAX_BARS);
  const bars = Array.from({ length: Math.ceil(timings.length / size) }, (_, i): Bar => {
    const some = timings.slice(i * size, (i + 1) * size);
    return {
      x: sum(some.map(stepOf)) / some.length,
      parts: names.map((name) => Math.max(0, total(`${name}Seconds`, some)) / some.length),
    };
  });
  const seconds = names.map((name) => total(`${name}Seconds`));
  const speed = total("rolloutTokens") / total("rolloutSeconds");
  const bytes = timings.reduce((most, record) => Math.max(most, numberAt(record, "liveBytes") ?? 0), 0);
  const row = (label: Content, value: Content): Html => html`
<tr><th>${label}</th><td>${value}</td></tr>`;
  const inAll = names.map((name, i) => `${name} ${duration(seconds[i]!)}`);
  const describe = `Seconds per train step; in all ${inAll.join(", ")}`;
  return html`<section><h2>Time and memory</h2><div class="sides time"><figure class="card">
<figcaption><h3>Seconds per train step</h3></figcaption>
${barChart(bars, describe, HALF)}${size > 1 && html`<p class="note">A bar is the mean of ${size} steps.</p>`}</figure>
<div class="card"><table class="totals"><tbody>${names.map((name, i) => row(
    html`<i class="swatch s${i}"></i>${brief(name, 40)}`,
    html`${duration(seconds[i]!)} <span>${percent(seconds[i]! / (sum(seconds) || 1))}</span>`,
  ))}
${row("all steps", html`${duration(sum(seconds))} <span></span>`)}
${speed > 0 && Number.isFinite(speed) && row("drawn in rollouts", html`${count(speed)} tokens/s <span></span>`)}
${bytes > 0 && row("GPU memory after a step", html`${figure(bytes / 2 ** 20)} MiB <span></span>`)}
</tbody></table></div></div></section>`;
}

/** The main numbers of every step, or of every n-th in a long run; nothing without rollouts. */
export function stepTable({ rollouts, updates, evals }: RunData): Content {
  if (rollouts.length === 0) return null;
  const every = Math.ceil(rollouts.length / MAX_ROWS);
  const steps = rollouts.filter((_, i) => i % every === 0 || i === rollouts.length - 1).map(stepOf);
  const byStep = (records: readonly Fields[]): Map<number, Fields> =>
    new Map(records.map((record) => [stepOf(record), record]));
  const [rollout, update, evaluation] = [byStep(rollouts), byStep(updates), byStep(evals)];
  const columns: [title: string, records: Map<number, Fields>, key: string][] = [
    ["reward", rollout, "reward"],
    ["std", rollout, "reward_std"],
    ["accuracy", evaluation, "accuracy"],
    ["length", rollout, "completions/mean_length"],
    ["entropy", update, "entropy"],
    ["approx. KL", update, "approx_kl/k3"],
    ["clipped", update, "clip_ratio/region_mean"],
    ["grad norm", update, "grad_norm"],
    ["objective", update, "objective"],
  ];
  const columnsWithNumbers = columns
    .map(([title, records, key]) => ({ title, values: steps.map((step) => numberAt(records.get(step), key)) }))
    .filter(({ values }) => values.some((value) => value !== null));
  const which = every === 1 ? "Every train step" : `One train step in ${every}`;
  return html`<section><h2>Numbers</h2><details><summary>${which}; from entropy on, its last gradient step</summary>
<div class="scroll"><table class="steps">
<thead><tr><th>step</th>${columnsWithNumbers.map(({ title }) => html`<th>${title}</th>`)}</tr></thead>
<tbody>${steps.map((step, i) => html`
<tr><th>${step}</th>${columnsWithNumbers.map(({ values }) => html`<td>${cell(values[i]!)}</td>`)}</tr>`)}
</tbody></table></div></details></section>`;
}

/** config.json as it is. */
export function settings({ config }: RunData): Content {
  const entries = Object.entries(config);
  if (entries.length === 0) return null;
  const shown = (value: unknown): string => brief(typeof value === "string" ? value : JSON.stringify(value), 300);
  const left = entries.length - MAX_SETTINGS;
  return html`<section><h2>Configuration</h2><dl class="card settings">${entries.slice(0, MAX_SETTINGS).map(
    ([key, value]) => html`
<div><dt>${brief(key, 60)}</dt><dd>${shown(value)}</dd></div>`,
  )}${left > 0 && html`<div><dt>and ${count(left)} more</dt><dd>in config.json</dd></div>`}</dl></section>`;
}

/** What to type next. */
export function commands(run: string, data: RunData): Html {
  const folder = shellWord(run.length > 1 ? run.replace(/\/+$/, "") : run);
  const base = data.config["model"];
  const line = (what: string, text: string): Html => html`
<dt>${what}</dt><dd><code>${brief(text, 500)}</code></dd>`;
  const chat = "npx tsx src/model/chat.ts --model";
  const stopped = !isComplete(data);
  return html`<section><h2>Go on</h2><dl class="card commands">${[
    stopped && line("Go on where the run stopped", `npx tsx src/grpo/train.ts --resume ${folder}`),
    existsSync(join(run, "model")) && line("Talk with the trained model", `${chat} ${folder}/model`),
    typeof base === "string" && line("Talk with the model it started from", `${chat} ${shellWord(base)}`),
    line("Write this page again", `npx tsx src/grpo/write_report.ts ${folder}`),
  ]}</dl></section>`;
}

function shellWord(text: string): string {
  return /^[\w./@:=+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function cell(value: number | null): string {
  return value === null ? "" : signed(value);
}

export function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
