/** The curves of a report: which metrics share a chart, and one line on what is normal. docs/metrics.md says more. */
import { lineChart, WIDE, type ChartOptions } from "./chart.ts";
import { numberAt, type Fields, type RunData } from "./data.ts";
import { brief, figure, html, signed, type Content, type Html } from "./html.ts";
import {
  bucketSize,
  gradStepPosition,
  gradStepsOf,
  lastOf,
  pointsOf,
  thin,
  withBand,
  type Line,
  type Reduction,
  type Point,
} from "./series.ts";

interface Curves {
  readonly title: string;
  readonly note: string;
  readonly lines: readonly Line[];
  readonly options?: Partial<ChartShape>;
}

type ChartShape = Omit<ChartOptions, "lines" | "describe">;

/** Lines of one chart that colours can tell apart. */
const MAX_LINES = 6;
/** Points per curve; beyond that they are thinned. */
const MAX_POINTS = 240;

/** The reward, and accuracy on held-out prompts where both fit one axis; the largest chart. */
export function rewardCurves({ rollouts, evals }: RunData): Curves {
  const reward = pointsOf(rollouts, "reward");
  const accuracy = pointsOf(evals, "accuracy");
  const fitsOneAxis = reward.every(({ y }) => y === null || Math.abs(y) <= 1.5);
  return {
    title: "Mean reward",
    note: "The curve to watch. The band is one standard deviation of the rewards of a step.",
    lines: [
      { label: "reward", points: withBand(reward, rollouts, "reward_std") },
      ...(fitsOneAxis && accuracy.length > 0 ? [{ label: "held-out accuracy", points: accuracy }] : []),
    ],
  };
}

/** All other charts, in order of use; those without numbers have no lines. */
export function allCurves({ config, rollouts, updates, evals }: RunData): Curves[] {
  const unit = gradStepsOf(updates);
  const rollout = (key: string, label = key, reduction: Reduction = "mean"): Line => ({
    label, reduction, points: pointsOf(rollouts, key),
  });
  const update = (key: string, label = key, reduction: Reduction = "mean"): Line => ({
    label, reduction, unit, points: pointsOf(updates, key, (record) => gradStepPosition(record, unit)),
  });
  const either = (key: string, label: string): Line => {
    const line = rollout(key, label);
    return line.points.length > 0 ? line : update(key, label);
  };
  const guide = (value: number | null, label: string): { value: number; label: string }[] =>
    value === null ? [] : [{ value, label }];
  const epsilon = numberAt(config, "epsilon");
  const epsilonHigh = numberAt(config, "epsilonHigh");
  const clips = pointsOf(updates, "clip_ratio/region_mean").length > 0;
  const limit = numberAt(config, "maxRolloutTokens");
  const functions = namesBetween(rollouts, "rewards/", "/mean");
  return [
    {
      title: "Reward functions",
      note: "Mean of each function before weights: which part of the task is learned first.",
      lines: functions.length < 2 ? [] : functions.map((name) => rollout(`rewards/${name}/mean`, name)),
    },
    {
      title: "Held-out evaluation",
      note: "Share of right replies to prompts that training never sees; at 0, before training.",
      lines: ["accuracy", "greedy_accuracy", ...namesBetween(evals, "pass@", "").map((k) => `pass@${k}`)].map(
        (key) => ({ label: key.replace("_", " "), points: pointsOf(evals, key) }),
      ),
    },
    {
      title: "Objective",
      note: "Near 0 is normal: advantages sum to zero, and ratios are 1 until the policy moves. No measure of success.",
      lines: [update("objective")],
      options: { minSpan: 0.01 },
    },
    {
      title: "Gradient norm",
      note: "Before clipping. 0 where a group has no spread; jumps by orders of magnitude: lower the learning rate.",
      lines: [update("grad_norm", "gradient norm")],
      options: { canBeLog: true },
    },
    {
      title: "Entropy",
      note: "In nats per token. Falls slowly as the reward rises; near 0 with a low reward, exploration has ended.",
      lines: [update("entropy")],
      options: { minSpan: 0.1 },
    },
    {
      title: "KL divergence",
      note: "From the policy that drew the replies (k1, k3), and from the starting weights where that is penalised.",
      lines: [
        update("approx_kl/k3", "k3"),
        update("approx_kl/k1", "k1"),
        update("kl", "from the starting weights"),
      ],
      options: { minSpan: 0.001 },
    },
    {
      title: "Clipped ratios",
      note: "Share of ratios whose gradient the clip stopped. At 1 a step learns nothing.",
      lines: [
        update("clip_ratio/region_mean", "either"),
        update("clip_ratio/low_mean", "below"),
        update("clip_ratio/high_mean", "above"),
        update("cispo_clip_ratio", "above the cap"),
      ],
      options: { minSpan: 0.05 },
    },
    {
      title: "Importance ratio",
      note: "Current policy to the one that drew the reply; 1 until the first change of the weights.",
      lines: [
        update("importance_ratio/mean", "mean"),
        update("importance_ratio/min", "smallest", "min"),
        update("importance_ratio/max", "largest", "max"),
      ],
      options: {
        minSpan: 0.01,
        canBeLog: true,
        guides: clips && epsilon !== null && epsilonHigh !== null && epsilon < 1
          ? [{ value: 1 - epsilon, label: "1 \u2212 \u03b5" }, { value: 1 + epsilonHigh, label: "1 + \u03b5" }]
          : [],
      },
    },
    {
      title: "Completion length",
      note: "In tokens, the end token included.",
      lines: [
        rollout("completions/mean_length", "mean"),
        rollout("completions/min_length", "shortest", "min"),
        rollout("completions/max_length", "longest", "max"),
      ],
      options: { guides: guide(limit, "limit") },
    },
    {
      title: "Cut and idle",
      note: "Shares of replies cut at the token limit, of groups whose rewards are all equal, and of skipped steps.",
      lines: [
        rollout("completions/clipped_ratio", "cut replies"),
        either("frac_reward_zero_std", "groups without spread"),
        withZeros(update("skipped", "skipped steps")),
      ],
      options: { minSpan: 0.1 },
    },
    {
      title: "Learning rate",
      note: "Warm-up, then what --lr-schedule says.",
      lines: [update("learning_rate", "learning rate")],
    },
    {
      title: "Sampler against trainer",
      note: "Difference of their log-probabilities for the same token and weights: rounding, below 1e\u22124.",
      lines: [
        rollout("sampling/sampling_logp_difference/mean", "mean"),
        rollout("sampling/sampling_logp_difference/max", "largest", "max"),
      ],
      options: { canBeLog: true, guides: [{ value: 1e-4, label: "alarm" }] },
    },
  ];
}

/** A chart with its title, legend and latest numbers; null without numbers. */
export function curveCard({ title, note, lines, options }: Curves, isWide = false): Html | null {
  const present = lines.filter(({ points }) => points.length > 0);
  if (present.length === 0) return null;
  const visible = present.slice(0, MAX_LINES);
  const isEnvelope = present.length === 1 && !isWide;
  const shown = visible.map((line): Line => {
    return { label: brief(line.label, 40), points: thin(line, MAX_POINTS, isEnvelope) };
  });
  const chart = { lines: shown, ...options, isEnvelope, describe: `${title}: ${visible.map(describe).join("; ")}` };
  const latest = visible.map(({ points }) => lastOf(points));
  const more = present.length > shown.length && html` <span>and ${present.length - shown.length} more</span>`;
  const legend = latest.length > 1 && html`<p class="legend">${shown.map(({ label }, i) => html`
<span><i class="s${i}"></i>${label} <b>${shownValue(latest[i]!)}</b></span>`)}${more}</p>`;
  const zeros = visible.every(({ points }) => points.every(({ y }) => y === 0 || y === null)) && " All 0 here.";
  return html`<figure class="card${isWide && " wide"}">
<figcaption><h3>${title}</h3>${latest.length === 1 && html`<b class="value">${shownValue(latest[0]!)}</b>`}
${isWide && legend}</figcaption>
${isWide ? [lineChart(chart, WIDE), lineChart(chart)] : [lineChart(chart), legend]}
<p class="note">${note}${zeros}</p>
</figure>`;
}

/** What became of curves with many points, in words; null when nothing was thinned. */
export function thinningNote({ rollouts, updates }: RunData): string | null {
  const steps = bucketSize(rollouts.length, MAX_POINTS);
  const gradSteps = bucketSize(updates.length, MAX_POINTS, gradStepsOf(updates));
  if (steps <= 1 && gradSteps <= 1) return null;
  const sizes = [
    ...(steps > 1 ? [`${steps} train steps`] : []),
    ...(gradSteps > 1 ? [`${gradSteps} gradient steps`] : []),
  ];
  return `Thinned: a point is the mean of ${sizes.join(" or ")}, and a shaded band spans their smallest to ` +
    "largest; curves of smallest or largest values stay so. The latest numbers are as logged.";
}

/** A key that is only there when it is 1. */
function withZeros(line: Line): Line {
  return { ...line, points: line.points.map(({ x, y }) => ({ x, y: y ?? 0 })) };
}

function shownValue(value: number | null): Content {
  return value === null ? "\u2013" : signed(value);
}

/** For those who cannot see the curve. */
function describe({ label, points }: Line): string {
  const known = points.filter((point): point is Point & { y: number } => point.y !== null);
  return `${label} from ${figure(known[0]!.y)} to ${figure(known.at(-1)!.y)}`;
}

/** "format" for "rewards/format/mean"; in order of first appearance. */
function namesBetween(records: readonly Fields[], prefix: string, suffix: string): string[] {
  const names = new Set<string>();
  for (const key of records.flatMap((record) => Object.keys(record))) {
    if (key.startsWith(prefix) && key.endsWith(suffix)) names.add(key.slice(prefix.length, key.length - suffix.length));
  }
  return [...names];
}
