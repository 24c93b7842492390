/** The page of a run: one file, no script, no network, nothing in it but what the run's files say. */
import { readFileSync } from "node:fs";
import { allCurves, curveCard, rewardCurves, thinningNote } from "./curves.ts";
import { isComplete, numberAt, stepOf, stepsDone, type Fields, type RunData } from "./data.ts";
import { brief, count, duration, html, percent, signed, trusted, type Content, type Html } from "./html.ts";
import { heldOut, replies } from "./replies.ts";
import { commands, settings, stepTable, sum, timeParts, timing } from "./tables.ts";

/** Kinds of warnings shown. */
const MAX_ALERTS = 20;

/** `run` is its folder, as the commands on the page name it. The policy in the head forbids whatever might slip in. */
export function reportPage(run: string, data: RunData): Html {
  const title = brief(titleOf(data.config), 120);
  const hero = curveCard(rewardCurves(data), true);
  const style = readFileSync(new URL("report.css", import.meta.url), "utf8");
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title}</title>
<style>${trusted(style)}</style>
</head>
<body>
<header><p class="kicker">GRPO run</p><h1>${title}</h1>${subtitle(data)}</header>
<main>
${tiles(data)}
${alerts(data, "warning")}
${alerts(data, "info")}
${problems(data)}
<div class="top">${hero ?? html`<p class="card empty">No train step was finished.</p>`}${howToRead()}</div>
${curves(data)}
${replies(data)}
${heldOut(data)}
${timing(data)}
${stepTable(data)}
${settings(data)}
${commands(run, data)}
</main>
<footer>Made from config.json, metrics.jsonl, completions.jsonl and timings.jsonl of this folder. No script, no
network.</footer>
</body>
</html>
`;
}

/** Task, model, objective. */
function titleOf(config: Fields): string {
  const text = (key: string): string => (typeof config[key] === "string" ? config[key] : "");
  const model = text("model");
  // A folder goes by its last name, a model of the hub by its whole one.
  const modelName = /^[./~]|^[A-Za-z]:|\\/.test(model) ? lastName(model) : model;
  const parts = [lastName(text("environment") || text("task")), modelName, text("objective")];
  return parts.filter((part) => part !== "").join(" \u00b7 ") || "GRPO run";
}

/** "digit" for "tasks/digit.ts". */
function lastName(path: string): string {
  return path.split(/[\\/]/).findLast((part) => part !== "")?.replace(/\.[cm]?[jt]s$/, "") ?? "";
}

function subtitle(data: RunData): Html {
  const planned = numberAt(data.config, "trainSteps");
  const seed = numberAt(data.config, "seed");
  const progress = isComplete(data)
    ? html`<span class="badge done">complete</span>`
    : html`<span class="badge partial">${count(stepsDone(data))}${planned !== null && ` of ${count(planned)}`} steps</span>`;
  return html`<p class="subtitle">${seed !== null && html`<span>seed ${seed}</span>`}${progress}</p>`;
}

/** The headline numbers; those the run does not have are left out. */
function tiles(data: RunData): Html {
  const { rollouts, evals, timings, config, completionCount } = data;
  const known = (records: readonly Fields[], key: string): number[] =>
    records.map((record) => numberAt(record, key)).filter((value) => value !== null);
  const change = (values: readonly number[], format: (value: number) => string): Content =>
    [values.length > 1 && html`<span class="from">${format(values[0]!)} <i>\u2192</i></span> `, format(values.at(-1)!)];
  const tile = (label: string, value: Content, detail: Content): Html => html`
<div><dt>${label}</dt><dd>${value}</dd><dd class="detail">${detail}</dd></div>`;

  const rewards = known(rollouts, "reward");
  const accuracy = known(evals, "accuracy");
  const planned = numberAt(config, "trainSteps");
  const tokens = known(rollouts, "num_tokens").at(-1) ?? 0; // a running total
  const cutShares = known(rollouts, "completions/clipped_ratio");
  const best = rewards.reduce((most, value) => Math.max(most, value), -Infinity);
  const seconds = sum(timings.flatMap((record) => timeParts(record).map(([, part]) => part)));
  const plannedText = planned !== null && `of ${count(planned)} planned`;
  const evalText = accuracy.length > 1 && "first to last evaluation";
  const cutText = cutShares.length > 0 && `${percent(cutShares.at(-1)!)} cut in the last step`;
  return html`<dl class="tiles">${[
    rewards.length > 0 && tile("Mean reward", change(rewards, signed), `best step ${signed(best)}`),
    accuracy.length > 0 && tile("Held-out accuracy", change(accuracy, percent), evalText),
    rollouts.length > 0 && tile("Train steps", count(stepsDone(data)), plannedText),
    completionCount > 0 && tile("Completions", count(completionCount), cutText),
    tokens > 0 && tile("Tokens", count(tokens), "prompts and completions"),
    seconds > 0 && tile("Time", duration(seconds), "all train steps"),
  ]}
</dl>`;
}

/** What the run warned of, or found worth saying; one entry per kind. */
function alerts({ alerts }: RunData, level: "warning" | "info"): Content {
  const title = level === "info" ? "Notes" : "Warnings";
  const own = alerts.filter((alert) => (alert["level"] === "info") === (level === "info"));
  const text = (alert: Fields, key: string): string => (typeof alert[key] === "string" ? alert[key] : "");
  const byTitle = new Map<string, Fields[]>();
  for (const alert of own) byTitle.set(text(alert, "title"), [...(byTitle.get(text(alert, "title")) ?? []), alert]);
  if (own.length === 0) return null;
  const kinds = [...byTitle];
  const entries = kinds.slice(0, MAX_ALERTS).map(([what, same]) => {
    const [from, to] = [stepOf(same[0]!), stepOf(same.at(-1)!)];
    const where = same.length === 1 ? `step ${from}` : `${count(same.length)} times, steps ${from} to ${to}`;
    return html`
<li><b>${brief(what, 120)}</b> <span class="where">${where}</span><br>
${brief(text(same[0]!, "text"), 400)}</li>`;
  });
  const left = kinds.length - entries.length;
  return html`<section class="notice ${level}"><h2>${title}</h2><ul>${entries}
${left > 0 && html`<li>and ${count(left)} more kinds, in metrics.jsonl</li>`}</ul></section>`;
}

/** What is missing. */
function problems({ problems }: RunData): Content {
  return problems.length > 0 && html`<section class="notice"><h2>Not everything could be read</h2><ul>
${problems.map((problem) => html`<li>${problem}</li>`)}</ul></section>`;
}

function howToRead(): Html {
  return html`<aside class="card"><h3>How to read this page</h3>
<p>The model answers prompts, a reward says how good each answer is, and answers better than the mean of their group are
made more likely: so the <b>reward</b> should rise.</p>
<p>An <b>objective</b> near 0 is no fault: advantages sum to zero, and while the policy is still the one that drew the
answers every ratio is 1; its gradient is not zero.</p>
<p>Be wary when the reward falls for several steps, when the <b>entropy</b> reaches 0 early, or when nearly all groups
are <b>without spread</b>, which teach nothing.</p></aside>`;
}

function curves(data: RunData): Content {
  const charts = allCurves(data);
  const cards = charts.map((chart) => ({ title: chart.title, card: curveCard(chart) }));
  const shown = cards.filter(({ card }) => card !== null);
  if (shown.length === 0) return null;
  const missing = cards.filter(({ card }) => card === null).map(({ title }) => title.toLowerCase());
  return html`<section><h2>Curves</h2>${thinned(data)}<div class="grid">${shown.map(({ card }) => card)}</div>
${missing.length > 0 && html`<p class="note">Not in this run: ${missing.join(", ")}.</p>`}</section>`;
}

function thinned(data: RunData): Content {
  const note = thinningNote(data);
  return note !== null && html`<p class="note lead">${note}</p>`;
}
