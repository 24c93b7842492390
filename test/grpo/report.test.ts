/** The report: what is on it, that no text breaks out of it, and that a run need not be whole. No GPU. */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readRun } from "../../src/grpo/report/data.ts";
import { cut, duration, escapeHtml, figure, html, percent, textOf, type Content } from "../../src/grpo/report/html.ts";
import { heldOutPairs, samplePairs } from "../../src/grpo/report/samples.ts";
import { bucketSize, gradStepPosition, lastOf, thin, withBand } from "../../src/grpo/report/series.ts";
import { writeReport } from "../../src/grpo/report.ts";
import { runEntry } from "../support/run_entry.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "report-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

type Row = Record<string, unknown>;

/** Files of a run; undefined leaves a file out. Text is written as it is. */
interface RunFiles {
  config?: Row | undefined;
  metrics?: readonly Row[] | string | undefined;
  completions?: readonly Row[] | string | undefined;
  timings?: readonly Row[] | string | undefined;
}

let runs = 0;
function makeRun(files: RunFiles): string {
  const run = join(folder, `run${runs++}`);
  mkdirSync(run);
  if (files.config) writeFileSync(join(run, "config.json"), JSON.stringify(files.config));
  for (const name of ["metrics", "completions", "timings"] as const) {
    const records = files[name];
    if (records === undefined) continue;
    const lines = typeof records === "string" ? [records] : records.map((record) => JSON.stringify(record) + "\n");
    writeFileSync(join(run, `${name}.jsonl`), lines.join(""));
  }
  return run;
}

async function pageOf(files: RunFiles): Promise<string> {
  return readFileSync(await writeReport(makeRun(files)), "utf8");
}

const rollout = (step: number, more: Row = {}): Row => ({
  kind: "rollout", step, reward: step / 10, reward_std: 0.1, frac_reward_zero_std: 0,
  "rewards/right/mean": 0.5, "rewards/form/mean": 0.25,
  "completions/mean_length": 5, "completions/min_length": 2, "completions/max_length": 9,
  "completions/clipped_ratio": 0.25, num_tokens: 100 * step,
  "sampling/sampling_logp_difference/mean": 1e-7, "sampling/sampling_logp_difference/max": 1e-6, ...more,
});
const update = (step: number, gradStep: number, more: Row = {}): Row => ({
  kind: "update", step, grad_step: gradStep, objective: 1e-8, grad_norm: 2, learning_rate: 1e-4, entropy: 1,
  "clip_ratio/region_mean": 0, "importance_ratio/min": 1, "importance_ratio/mean": 1, "importance_ratio/max": 1,
  "approx_kl/k1": 0, "approx_kl/k3": 0, ...more,
});
const reply = (step: number, completion: string, more: Row = {}): Row => ({
  kind: "rollout", step, prompt: "What is 1 + 1?", completion, reward: 0.5, rewards: { right: 1, form: null },
  ended: true, tokens: 3, ...more,
});

/** A run of three steps that has everything. */
function wholeRun(): { config: Row; metrics: Row[]; completions: Row[]; timings: Row[] } {
  const steps = [1, 2, 3];
  return {
    config: {
      environment: "tasks/sums.ts", model: "./weights/", objective: "dapo", seed: 7, trainSteps: 3,
      epsilon: 0.2, epsilonHigh: 0.28, maxRolloutTokens: 10,
    },
    metrics: [
      { kind: "eval", step: 0, accuracy: 0.125, greedy_accuracy: 0, "pass@2": 0.25, prompts: 8, samples: 2 },
      ...steps.flatMap((step) => [rollout(step), update(step, 1), update(step, 2)]),
      { kind: "alert", step: 2, level: "warning", title: "No signal", text: "All groups are equal." },
      { kind: "alert", step: 3, level: "info", title: "Solved", text: "Nothing is left to learn." },
      { kind: "eval", step: 3, accuracy: 0.875, greedy_accuracy: 1, "pass@2": 1, prompts: 8, samples: 2 },
    ],
    completions: [
      { kind: "eval", step: 0, prompt: "What is 2 + 2?", completion: "5", correct: false },
      ...steps.flatMap((step) => [reply(step, `answer ${step}`), reply(step, "two", { reward: 1 })]),
      { kind: "eval", step: 3, prompt: "What is 2 + 2?", completion: "4", correct: true },
    ],
    timings: steps.map((step) => ({
      step, rolloutSeconds: 1, trainingSeconds: 3, rolloutTokens: 50, liveBytes: 2 ** 20, step_time: 4,
    })),
  };
}

/** Tags with their attributes' names, in order. @throws where they do not nest. */
function structureOf(page: string): string[] {
  const open: string[] = [];
  const tags = [...page.slice(page.indexOf("<html")).replace(/<style>[^]*?<\/style>/, "")
    .matchAll(/<(\/?)([a-z0-9]+)((?:\s+[a-zA-Z-]+(?:="[^"]*")?)*)\s*(\/?)>/g)];
  for (const [text, closes, name, , isEmpty] of tags) {
    if (isEmpty || name === "meta" || name === "br") continue;
    if (!closes) open.push(name!);
    else if (open.pop() !== name) throw new Error(`${text} closes something else`);
  }
  expect(open).toEqual([]);
  return tags.map(([, closes, name, attributes]) => {
    return closes! + name! + [...attributes!.matchAll(/([a-zA-Z-]+)="/g)].map(([, key]) => ` ${key}`).join("");
  });
}

/** What a reader sees, without tags. */
const visible = (page: string): string =>
  page.replace(/^[^]*<body>/, "").replace(/<[^>]*>/g, " ").replace(/\s+/g, " ");
const headings = (page: string): string[] => [...page.matchAll(/<h[123]>([^<]*)/g)].map(([, text]) => text!.trim());

describe("the page of a whole run", () => {
  test("has its parts in order", async () => {
    const page = await pageOf(wholeRun());
    structureOf(page);
    expect(headings(page)).toEqual([
      "sums · weights · dapo", "Warnings", "Notes", "Mean reward", "How to read this page",
      "Curves", "Reward functions", "Held-out evaluation", "Objective", "Gradient norm", "Entropy", "KL divergence",
      "Clipped ratios", "Importance ratio", "Completion length", "Cut and idle", "Learning rate",
      "Sampler against trainer", "What the model says", "Step 1", "Step 3", "Held-out prompts, before and after",
      "Time and memory", "Seconds per train step", "Numbers", "Configuration", "Go on",
    ]);
  });

  test("has the headline numbers, the warnings and the settings", async () => {
    const text = visible(await pageOf(wholeRun()));
    for (const part of [
      "seed 7 complete", "Mean reward 0.100 → 0.300", "Held-out accuracy 12.5% → 87.5%", "Train steps 3 of 3 planned",
      "Completions 6 25% cut", "Tokens 300", "Time 12.0 s", "No signal step 2 All groups are equal.",
      "Solved step 3 Nothing", "rollout 3.0 s 25%", "training 9.0 s 75%", "50 tokens/s", "maxRolloutTokens 10",
      "step 0 ✗ wrong", "step 3 ✓ right", "--model ./weights/",
    ]) expect(text).toContain(part);
    expect(text).not.toContain("--resume");
  });

  test("every chart has a text for those who cannot see it, and tooltips", async () => {
    const page = await pageOf(wholeRun());
    const charts = [...page.matchAll(/<svg [^>]*role="img" aria-label="([^"]+)"/g)].map(([, label]) => label);
    expect(charts).toHaveLength(15); // the large one twice, wide and narrow, and the bars
    expect(charts[0]).toBe("Mean reward: reward from 0.100 to 0.300; held-out accuracy from 0.125 to 0.875");
    expect(page).toContain("<title>reward, step 2: 0.200</title>");
    expect(page).not.toMatch(/NaN|Infinity|undefined|null|\[object/);
  });

  test("loads and runs nothing", async () => {
    const page = await pageOf(wholeRun());
    expect(page).not.toMatch(/<script|<link|<img|<iframe|\ssrc=|\shref=|https?:|url\(|@import|\son[a-z]+=/i);
    expect(page).toContain(`content="default-src 'none'; style-src 'unsafe-inline'"`);
  });

  test("the same files give the same bytes", async () => {
    const run = makeRun(wholeRun());
    const first = readFileSync(await writeReport(run));
    expect(readFileSync(await writeReport(run)).equals(first)).toBe(true);
  });

  test("accuracy gets no place on the axis of large rewards", async () => {
    const run = wholeRun();
    const page = await pageOf({ ...run, metrics: [...run.metrics, rollout(4, { reward: 50 })] });
    expect(page).toContain('aria-label="Mean reward: reward from 0.100 to 50.0"');
  });
});

describe("numbers", () => {
  /** A run whose first, last, best and worst steps are all different ones. */
  const uneven = (): Required<RunFiles> => {
    const run = wholeRun();
    const rewards = [0.3, -0.2, 0.9, 0.4];
    return {
      config: { ...run.config, trainSteps: 4, model: "owner/name" },
      metrics: [
        { kind: "eval", step: 0, accuracy: 0.25, greedy_accuracy: 0.5 },
        ...rewards.flatMap((reward, i) => [
          rollout(i + 1, { reward, "completions/clipped_ratio": (4 - i) / 8 }),
          update(i + 1, 1, { "clip_ratio/region_mean": 0.3, "clip_ratio/low_mean": 0.1, grad_norm: i + 1 }),
        ]),
        ...[1, 3].map((step) => ({ kind: "alert", step, level: "warning", title: "Again", text: "Twice." })),
        { kind: "eval", step: 4, accuracy: 0.75, greedy_accuracy: 0.5 },
      ],
      completions: [
        reply(1, "worst", { reward: -1, rewards: { right: 1 } }), reply(1, "unjudged", { reward: null, rewards: {} }),
        ...[1, 2, 3].map(() => reply(1, "often", { reward: 0.5, rewards: { right: 1 } })),
        reply(1, "often", { reward: 0.5, rewards: { right: 1 }, ended: false }),
        reply(2, "between"), reply(4, "late", { rewards: { right: 1 } }),
      ],
      timings: [1, 2, 3, 4].map((step) => ({
        step, rolloutSeconds: 1, trainingSeconds: step === 2 ? 9 : 3, rolloutTokens: 50,
        liveBytes: step === 3 ? 2 ** 22 : 2 ** 20, step_time: 4,
      })),
    };
  };

  test("of the headline are those of the first, the best and the last step", async () => {
    const text = visible(await pageOf(uneven()));
    for (const part of [
      "sums · owner/name · dapo", "seed 7 complete", "Mean reward 0.300 → 0.400 best step 0.900",
      "Held-out accuracy 25% → 75% first to last", "Train steps 4 of 4 planned", "12.5% cut in the last step",
      "Again 2 times, steps 1 to 3 Twice.", "training 18.0 s", "all steps 22.0 s", "GPU memory after a step 4.000 MiB",
    ]) expect(text).toContain(part);
  });

  test("of the best step may be negative, and a run may have done more than is planned", async () => {
    const { config, timings } = uneven();
    const metrics = [rollout(1, { reward: -3 }), rollout(2, { reward: -2 })];
    const text = visible(await pageOf({ config: { ...config, trainSteps: 1 }, metrics, timings }));
    expect(text).toContain("seed 7 complete");
    expect(text).toContain("best step \u22122.000");
  });

  test("in the table of steps stand in their columns", async () => {
    const page = await pageOf(uneven());
    const rows = [...page.matchAll(/<tr>(.*?)<\/tr>/gs)].map(([, row]) => visible(`<body>${row}`).trim());
    const head = rows.find((row) => row.startsWith("step "))!;
    expect(head).toBe("step reward std accuracy length entropy approx. KL clipped grad norm objective");
    expect(rows.find((row) => row.startsWith("4 "))).toMatch(/^4 0\.4\d* 0\.1\d* 0\.75\d* 5\S* 1\S* 0\S* 0\.3\d* 4/);
  });

  test("replies: from the best to the worst, equal ones once with their number, cut ones apart", async () => {
    const text = visible(await pageOf(uneven()));
    const step1 = text.slice(text.indexOf("Step 1 6 replies, 4 different"), text.indexOf("Step 4 1 reply"));
    expect(step1).toMatch(/0\.500 often × 3 .*0\.500 often cut at the token limit .*\u22121\.000 worst .*– unjudged/);
    expect(text).not.toContain("between");
  });

  test("gradient steps lie between train steps, and the last number of a curve is the last there is", () => {
    expect([1, 2, 4].map((step) => gradStepPosition({ step: 3, grad_step: step }, 4))).toEqual([2.25, 2.5, 3]);
    expect(gradStepPosition({ step: 3 }, 4)).toBe(3);
    expect(lastOf([{ x: 1, y: 5 }, { x: 2, y: 7 }, { x: 3, y: null }])).toBe(7);
    expect(withBand([{ x: 1, y: 5 }], [{ std: 2 }], "std")).toEqual([{ x: 1, y: 5, low: 3, high: 7 }]);
    const bands = [[1, 9], [3, 5]].map(([low, high], i) => ({ x: i, y: 4, low: low!, high: high! }));
    expect(thin({ label: "reward", points: bands }, 1)).toEqual([{ x: 1, y: 4, low: 2, high: 7 }]);
  });

  test("commands can be pasted, whatever the folder and the model are called", async () => {
    const parent = mkdtempSync(join(folder, "it's "));
    const run = makeRun({ ...uneven(), config: { trainSteps: 9, model: "a b" } });
    renameSync(run, join(parent, "run"));
    const text = visible(readFileSync(await writeReport(`${join(parent, "run")}/`), "utf8")).replaceAll("&#39;", "'");
    const quoted = `'${join(parent, "run").replaceAll("'", "'\\''")}'`;
    expect(text).toContain(`--resume ${quoted} `);
    expect(text).toContain("chat.ts --model 'a b'");
    expect(text).not.toContain("Talk with the trained model");
    mkdirSync(join(parent, "run", "model"));
    expect(visible(readFileSync(await writeReport(join(parent, "run")), "utf8"))).toContain("Talk with the trained model");
  });
});

const HOSTILE = [
  "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</p></div></body></html><h1>x",
  "\" onmouseover=\"alert(1)", "' onfocus='alert(1)", "`x`", "<!--", "]]>", "&lt;&amp;&#60;", "</title><svg onload=x>",
  "\u0000\u0007\u001b[31m", "\u202etxt.exe\u2066", "\ud800", "a\u2028b\u2029c", "line\nline\ttab\r",
  "{{x}} ${x} <%= x %>",
];

describe("hostile text", () => {
  test.each(HOSTILE.map((text) => [JSON.stringify(text), text]))("%s changes no tag anywhere", async (_, text) => {
    const files = (word: string): RunFiles => {
      const run = wholeRun();
      return {
        config: { ...run.config, environment: undefined, model: word, objective: word, [`x${word}`]: word },
        metrics: [
          ...run.metrics.map((record) => ({ ...record, title: word, text: word })),
          rollout(4, { [`rewards/x${word}/mean`]: 1 }),
        ],
        completions: run.completions.map((record) => ({
          ...record, prompt: word, completion: word, rewards: { [`x${word}`]: 1, y: null },
        })),
        timings: run.timings.map((record) => ({ ...record, [`x${word}Seconds`]: 1 })),
      };
    };
    // Slashes would shorten the model's name, which changes its text alone.
    expect(structureOf(await pageOf(files(text)))).toEqual(structureOf(await pageOf(files("plain"))));
  });

  test("escaped text has no markup, nothing invisible, and loses nothing", () => {
    const back: Record<string, string> = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", "#96": "`" };
    fc.assert(
      fc.property(fc.oneof(fc.string({ unit: "binary" }), fc.constantFrom(...HOSTILE)), (text) => {
        const escaped = escapeHtml(text);
        expect(escaped).not.toMatch(/[<>"'`]|&(?!(amp|lt|gt|quot|#39|#96);)/);
        expect(escaped).not.toMatch(/[^\P{Cc}\n\t]|[^\P{Cf}\u200c\u200d]|\p{Cs}|[\u2028\u2029]/u);
        if (text.includes("\\")) return; // an escape that was there before
        const restored = escaped
          .replace(/&([a-z0-9#]+);/g, (_, name: string) => back[name]!)
          .replace(/\\u(?:([0-9a-f]{4})|\{([0-9a-f]+)\})/g, (_, short?: string, long?: string) =>
            String.fromCodePoint(parseInt(short ?? long!, 16)));
        expect(restored).toBe(text);
      }),
    );
  });

  test("shows what cannot be seen", () => {
    expect(escapeHtml("\u202e\u0000\ud800\u{e0067}")).toBe("\\u202e\\u0000\\ud800\\u{e0067}");
    expect(escapeHtml("a\nb\tc 👩‍👩‍👧 é שלום")).toBe("a\nb\tc 👩‍👩‍👧 é שלום");
  });

  test("an object from a file never passes for markup", () => {
    const forged = JSON.parse('{"html":"<b>","Symbol(markup)":"<b>"}') as Content;
    expect(() => textOf(html`<p>${forged}</p>`)).toThrow();
    expect(textOf(html`<p>${["<", html`<i>${">"}</i>`, null, false, 0]}</p>`)).toBe("<p>&lt;<i>&gt;</i>0</p>");
  });

  test("long text is cut between characters, with its length", async () => {
    const { start, omitted, end } = cut("😀".repeat(500_000), 600);
    expect([start.length + omitted + end.length, omitted > 999_000]).toEqual([1_000_000, true]);
    expect(start + end).not.toMatch(/\p{Cs}/u);
    const page = await pageOf({ ...wholeRun(), completions: [reply(1, `begin${"x".repeat(1e6)}end`)] });
    expect(page.length).toBeLessThan(200_000);
    expect(visible(page)).toMatch(/beginx{445} … 999,408 characters left out … x{147}end/);
  });

  test("numbers that are none, or too large to draw, become gaps", async () => {
    const values = [null, "1", 1e308, -1e308, {}, [], true];
    const odd = values.map((reward, i) => rollout(i + 4, { reward, reward_std: reward }));
    const run = wholeRun();
    const page = await pageOf({ ...run, metrics: [...run.metrics, ...odd, update(4, 1, { objective: null })] });
    expect(page).not.toMatch(/NaN|Infinity|e\+?30/);
    expect(visible(page)).toContain("Mean reward 0.100 → 0.300");
  });
});

describe("a run that is not whole", () => {
  test.each(["config", "metrics", "completions", "timings"] as const)("without %s", async (name) => {
    const page = await pageOf({ ...wholeRun(), [name]: undefined });
    structureOf(page);
    expect(visible(page)).toContain(`${name}${name === "config" ? ".json" : ".jsonl"} is missing`);
    expect(page).not.toMatch(/NaN|Infinity|undefined/);
  });

  test("with empty files", async () => {
    const text = visible(await pageOf({ config: {}, metrics: "", completions: "", timings: "\n" }));
    expect(text).toContain("metrics.jsonl is empty");
    expect(text).toContain("No train step was finished.");
  });

  test("that was interrupted in the middle of a line", async () => {
    const { config, metrics, timings } = wholeRun();
    const lines = metrics.slice(0, 6).map((record) => JSON.stringify(record)).join("\n");
    const text = visible(await pageOf({ config, metrics: lines.slice(0, -20), timings: timings.slice(0, 1) }));
    expect(text).toContain("metrics.jsonl ends in half a line");
    expect(text).toContain("1 of 3 steps");
    expect(text).toMatch(/npx tsx src\/grpo\/train\.ts --resume \S+run\d+ /);
    const whole = visible(await pageOf({ config, metrics: lines }));
    expect(whole).not.toContain("half a line"); // all but the line feed was written
  });

  test("that stopped in the gradient steps of its last train step", async () => {
    const { config, metrics, timings } = wholeRun();
    const died = metrics.slice(0, metrics.findIndex(({ kind, step }) => kind === "rollout" && step === 3) + 2);
    const text = visible(await pageOf({ config, metrics: died, timings: timings.slice(0, 2) }));
    for (const part of ["2 of 3 steps", "Train steps 2 of 3 planned", "--resume"]) expect(text).toContain(part);
    expect(text).not.toContain("complete ");
  });

  test("with lines that are no records", async () => {
    const text = visible(await pageOf({ metrics: `7\nnull\n[1]\n{"kind":\n${JSON.stringify(rollout(1))}\n` }));
    expect(text).toContain("metrics.jsonl: unreadable lines left out: 4");
    expect(text).toContain("Mean reward 0.100");
  });

  test("that went on from a checkpoint: the later records count", async () => {
    const records = [rollout(1), update(1, 1), rollout(2), update(2, 1), rollout(3), rollout(2, { reward: 0.9 })];
    const { rollouts, updates } = await readRun(makeRun({ metrics: records }));
    expect(rollouts.map(({ step, reward }) => [step, reward])).toEqual([[1, 0.1], [2, 0.9]]);
    expect(updates).toHaveLength(2);
  });

  test("is refused where there is none", async () => {
    await expect(writeReport(join(folder, "nowhere"))).rejects.toThrow(/holds no run .* Fix: /);
  });
});

describe("thinning", () => {
  const points = Array.from({ length: 10_000 }, (_, i) => ({ x: i, y: i === 4321 ? 100 : i % 2 }));

  test("averages neighbours and keeps every spike in the band", () => {
    const thinned = thin({ label: "", points }, 240, true);
    expect(thinned.length).toBeLessThanOrEqual(240);
    expect(Math.max(...thinned.map(({ high }) => high!))).toBe(100);
    expect(thinned[0]).toEqual({ x: 41, y: 0.5, low: 0, high: 1 });
    expect(Math.max(...thin({ label: "", points, reduction: "max" }, 240).map(({ y }) => y!))).toBe(100);
  });

  test("keeps the gradient steps of a train step together", () => {
    expect([bucketSize(240, 240, 4), bucketSize(241, 240, 4), bucketSize(2000, 240, 4)]).toEqual([1, 4, 12]);
    expect(bucketSize(1000, 240, 500)).toBe(5); // two train steps are no curve
  });

  test("keeps gaps", () => {
    const gap = points.slice(0, 20).map((point, i) => (i < 10 ? { ...point, y: null } : point));
    expect(thin({ label: "", points: gap }, 2).map(({ y }) => y)).toEqual([null, 0.5]);
  });

  test("a run of 10,000 steps is a small page that says so", async () => {
    const steps = Array.from({ length: 10_000 }, (_, i) => i + 1);
    const page = await pageOf({
      config: { trainSteps: 10_000 },
      metrics: steps.flatMap((step) => [rollout(step, { reward: Math.sin(step) }), update(step, 1), update(step, 2)]),
      completions: steps.map((step) => reply(step, "x".repeat(100))),
      timings: steps.map((step) => ({ step, rolloutSeconds: 1, trainingSeconds: 1 })),
    });
    expect(page.length).toBeLessThan(500_000);
    expect(visible(page)).toContain("Thinned: a point is the mean of 42 train steps or 84 gradient steps");
    expect(visible(page)).toContain("One train step in 250");
    expect(visible(page)).toContain("A bar is the mean of 167 steps.");
    expect(visible(await pageOf(wholeRun()))).not.toContain("Thinned");
  });
});

describe("replies", () => {
  const read = async (completions: readonly Row[]) => readRun(makeRun({ config: {}, completions }));

  test("are few, different, from the best to the worst", async () => {
    const { drawn } = await read([
      ...Array.from({ length: 9 }, (_, i) => reply(1, `text ${i}`, { reward: i })),
      reply(1, "text 8", { reward: 8 }),
      reply(1, "unjudged", { reward: null }),
      reply(2, "later"),
    ]);
    const [{ before, after }] = samplePairs(drawn) as [ReturnType<typeof samplePairs>[number]];
    expect([before.total, before.different, after?.step]).toEqual([11, 10, 2]);
    expect(before.shown.map(({ answer, times }) => [answer.reward, times])).toEqual([
      [8, 2], [6, 1], [3, 1], [1, 1], [null, 1],
    ]);
  });

  test("of one prompt stand side by side; other prompts only where none is shared", async () => {
    const pairs = async (first: string[], last: string[]): Promise<(string | undefined)[][]> => {
      const { drawn } = await read([
        ...first.map((prompt) => reply(1, "a", { prompt })),
        ...last.map((prompt) => reply(5, "b", { prompt })),
      ]);
      return samplePairs(drawn).map(({ before, after }) => [before.prompt, after?.prompt]);
    };
    expect(await pairs(["p", "q"], ["r", "q"])).toEqual([["q", "q"]]);
    expect(await pairs(["p", "q"], ["r"])).toEqual([["p", "r"], ["q", undefined]]);
  });

  test("of evaluations: some learned, lost, still wrong and still right", async () => {
    const kinds = [[true, true], [false, false], [false, true], [true, false]] as const;
    const replies = (step: number, i: 0 | 1): Row[] =>
      [...kinds, ...kinds, ...kinds, ...kinds].map((kind, n) => ({
        kind: "eval", step, prompt: `p${n}`, completion: "x", correct: kind[i],
      }));
    const { evaluated } = await read([...replies(0, 0), ...replies(9, 1)]);
    expect(heldOutPairs(evaluated, 5).map(({ before, after }) => [before.correct, after.correct])).toEqual([
      [false, true], [false, true], [true, false], [false, false], [true, true],
    ]);
  });

  test("with a separator that some readers take for a line end", async () => {
    const { drawn, problems } = await read([reply(1, "a\u2028b")]);
    expect(drawn.first!.answers[0]!.text).toBe("a\u2028b");
    expect(problems.filter((problem) => problem.startsWith("completions"))).toEqual([]);
  });
});

test("numbers read as people write them", () => {
  expect([0, 1, 0.9914, 12.94, 1234.5, 1.23e-7, -0.5, 2e7].map(figure)).toEqual([
    "0", "1.000", "0.991", "12.9", "1,235", "1.2e-7", "-0.500", "2.0e7",
  ]);
  expect([percent(0.984), percent(1), duration(9.25), duration(3599), duration(12_000)]).toEqual([
    "98.4%", "100%", "9.3 s", "59 min 59 s", "3 h 20 min",
  ]);
});

describe("the command", () => {
  test("writes the page of a run and says where", async () => {
    const run = makeRun(wholeRun());
    const { code, stdout } = await runEntry("grpo/write_report", [run]);
    expect([code, stdout.trim()]).toEqual([0, join(run, "report.html")]);
    expect(existsSync(join(run, "report.html"))).toBe(true);
  });

  test("refuses a folder without a run in one line", async () => {
    const { code, errors } = await runEntry("grpo/write_report", [join(folder, "nowhere")]);
    expect([code, errors.length]).toEqual([2, 1]);
  });
});
