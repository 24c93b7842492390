/** The parts of a report that show what the model says. */
import type { Answer, RunData } from "./data.ts";
import { brief, count, cut, html, signed, type Content, type Html } from "./html.ts";
import { heldOutPairs, samplePairs, type Sample } from "./samples.ts";

/** Characters of a prompt and of a reply. */
const MAX_PROMPT = 500;
const MAX_REPLY = 600;

/** Replies of the first and the last step, side by side; nothing without completions. */
export function replies({ drawn }: RunData): Content {
  const pairs = samplePairs(drawn);
  if (pairs.length === 0) return null;
  const samples = pairs.flatMap(({ before, after }) => (after === null ? [before] : [before, after]));
  const meter = meterFor(samples.flatMap(({ shown }) => shown.map(({ answer }) => answer.reward)));
  return html`<section><h2>What the model says</h2>${pairs.map(({ before, after }) => {
    const isOnePrompt = after === null || after.prompt === before.prompt;
    return html`
<div class="pair">${isOnePrompt && promptBox(before.prompt)}<div class="sides">
${[before, after].map((sample) => sample && side(sample, isOnePrompt, meter))}</div></div>`;
  })}</section>`;
}

/** Held-out prompts with a reply before and one after; nothing without two evaluations. */
export function heldOut({ evaluated }: RunData): Content {
  const pairs = heldOutPairs(evaluated);
  if (pairs.length === 0) return null;
  const [first, last] = [evaluated.first!.step, evaluated.last!.step];
  const half = (step: number, answer: Answer): Html => html`
<div><p class="verdict">step ${step} ${verdict(answer)}</p>${replyBox(answer)}</div>`;
  return html`<section><h2>Held-out prompts, before and after</h2><div class="card held">${pairs.map((pair) => html`
<div class="row">${promptBox(pair.before.prompt)}${half(first, pair.before)}${half(last, pair.after)}</div>`)}</div>
</section>`;
}

function side({ step, prompt, total, different, shown }: Sample, isOnePrompt: boolean, meter: Meter): Html {
  const size = `${count(total)} ${total === 1 ? "reply" : "replies"}, ${count(different)} different`;
  const some = shown.length < different && `, ${shown.length} of them here`;
  return html`<div class="card side"><h3>Step ${step} <span>${size}${some}</span></h3>
${!isOnePrompt && promptBox(prompt)}<ol>${shown.map(({ answer, times }) => html`
<li>${rewardBox(answer.reward, meter)}<div>${replyBox(answer)}${remarks(answer, times)}</div></li>`)}</ol></div>`;
}

function promptBox(prompt: string): Html {
  return html`<p class="prompt" dir="auto">${shortened(prompt, MAX_PROMPT)}</p>`;
}

function replyBox({ text }: Answer): Html {
  return html`<p class="text" dir="auto">${text === "" ? html`<em>(no text)</em>` : shortened(text, MAX_REPLY)}</p>`;
}

function shortened(text: string, limit: number): Content {
  const { start, omitted, end } = cut(text, limit);
  return [start, omitted > 0 && html`<em> \u2026 ${count(omitted)} characters left out \u2026 </em>`, end];
}

function verdict({ correct }: Answer): Content {
  if (correct === null) return null;
  return correct ? html`<b class="right">\u2713 right</b>` : html`<b class="wrong">\u2717 wrong</b>`;
}

/** The length of a reward's bar in per cent. */
type Meter = (reward: number) => number;

/** From 0, or the smallest reward below it, to the largest. */
function meterFor(rewards: readonly (number | null)[]): Meter {
  const known = rewards.filter((reward) => reward !== null);
  const low = Math.min(0, ...known);
  const width = Math.max(...known, low) - low || 1;
  return (reward) => Math.round((100 * (reward - low)) / width);
}

function rewardBox(reward: number | null, meter: Meter): Html {
  if (reward === null) return html`<div class="reward" title="not judged">\u2013</div>`;
  const bar = html`<span class="meter"><i style="width:${meter(reward)}%"></i></span>`;
  return html`<div class="reward">${signed(reward)}${bar}</div>`;
}

/** How often it was said, what each function gave where several judge, and whether it was cut. */
function remarks({ rewards, ended }: Answer, times: number): Content {
  const parts = rewards.length < 2 ? [] : rewards.slice(0, 8);
  const notes = [
    ...(times > 1 ? [`\u00d7 ${count(times)}`] : []),
    ...parts.map(([name, value]) => `${brief(name, 40)} ${value === null ? "\u2013" : signed(value)}`),
    ...(ended ? [] : ["cut at the token limit"]),
  ];
  return notes.length > 0 && html`<p class="remarks">${notes.map((note) => html`<span>${note}</span> `)}</p>`;
}
