/**
 * Watches the records of metrics.jsonl and says when a run goes wrong in one of the known ways.
 *
 * A kind fires once per episode: again only after a whole train step without it. The state is plain JSON and part of a
 * checkpoint, so a resumed run says what the uninterrupted one would have said.
 *
 *   kind              fires when                                      why there
 *   no-signal         all groups of 3 train steps in a row, and of    where groups are equal by chance half of the
 *                     10 gradient steps, had equal rewards            time, 10 in a row are one in a thousand
 *   ratio-explosion   a ratio above 10                                clipping bounds it on one side only: with a
 *                                                                     negative advantage it outweighs all others
 *                     3/4 of a train step's ratios were clipped       little of the data still teaches; 0.7 was seen
 *                                                                     in runs that learned well
 *                     mean approx_kl/k3 of a train step above 5       policy and data have parted; 2 was seen in
 *                     nats                                            runs that learned well
 *   entropy-collapse  a train step's mean entropy below 0.1 nats and  the policy draws one answer: fine when it is
 *                     a tenth of the first, reward not near the top   the right one, else it will not find another
 *   reward-collapse   mean reward below half of the best, by more     the second condition keeps the noise of few,
 *                     than the deviation of single rewards            rarely rewarded completions from firing it
 *   all-truncated     no completion of a train step ended by itself   the model was never rewarded for an end
 *   sampler-gap       sampler and trainer differ by more than 0.01    rounding gives 1e-5; 0.01 is a percent of a
 *                     nats on some token                              probability, and of every ratio
 */

export type AlertKind =
  | "no-signal" | "ratio-explosion" | "entropy-collapse" | "reward-collapse" | "all-truncated" | "sampler-gap";

export interface Alert {
  readonly kind: AlertKind;
  /** Train step, from 1. */
  readonly step: number;
  /** "info": nothing is wrong, but there may be nothing left to do. */
  readonly level: "info" | "warning";
  readonly title: string;
  /** What it means and what to try, in a sentence or two. */
  readonly text: string;
}

/** A line of metrics.jsonl. Keys that a run does not have are simply not judged. */
export type MetricsRecord = Readonly<Record<string, number | string | null>>;

/** Plain JSON. */
export interface AlertState {
  /** Kinds that fired and have not recovered. */
  readonly active: readonly AlertKind[];
  /** Train steps, and gradient steps in them, since a group had rewards that differ. */
  readonly deadSteps: number;
  readonly deadUpdates: number;
  /** Of the run's first gradient step. */
  readonly firstEntropy: number | null;
  /** Of the mean rewards of train steps. */
  readonly bestReward: number | null;
  readonly lowestReward: number | null;
}

export const NO_ALERTS: AlertState = {
  active: [], deadSteps: 0, deadUpdates: 0, firstEntropy: null, bestReward: null, lowestReward: null,
};

const DEAD_STEPS = 3;
const DEAD_UPDATES = 10;
const RATIO_MAX = 10;
const CLIPPED_SHARE = 0.75;
const KL_MAX = 5;
const ENTROPY_MIN = 0.1;
const ENTROPY_SHARE = 0.1;
/** Of the range between the lowest mean reward and the top: closer to the top than this is near. */
const NEAR_TOP = 0.1;
const GAP_MAX = 1e-2;

type Finding = Omit<Alert, "step">;

/** What a train step showed, and the state after it. */
interface StepFacts {
  readonly rollout: MetricsRecord;
  readonly updates: readonly MetricsRecord[];
  readonly state: AlertState;
  readonly maxReward: number;
}

/**
 * Judges a finished train step by its records: the one of kind "rollout" and those of kind "update", others are passed
 * over. `maxReward` is the reward of a reply that is right in every way: the sum of the reward functions' weights.
 */
export function judgeStep(
  before: AlertState,
  records: readonly MetricsRecord[],
  { maxReward }: { maxReward: number },
): { state: AlertState; alerts: Alert[] } {
  const rollout = records.find(({ kind }) => kind === "rollout") ?? {};
  const updates = records.filter(({ kind }) => kind === "update");
  const state = nextState(before, rollout, updates);
  const facts = { rollout, updates, state, maxReward };
  const checks = [noSignal, ratioExplosion, entropyCollapse, rewardCollapse, allTruncated, samplerGap];
  const found = checks.map((check) => check(facts)).filter((finding) => finding !== null);
  const step = Number(records[0]?.["step"] ?? 0);
  return {
    state: { ...state, active: found.map(({ kind }) => kind) },
    alerts: found.filter(({ kind }) => !before.active.includes(kind)).map((finding) => ({ ...finding, step })),
  };
}

function nextState(before: AlertState, rollout: MetricsRecord, updates: readonly MetricsRecord[]): AlertState {
  // Without a gradient step: groups without spread were all left out, or there was nothing to judge.
  const judged = updates.length > 0 ? updates : [rollout];
  const isDead = judged.every((record) => record["frac_reward_zero_std"] === 1);
  const reward = rollout["reward"];
  const seen = typeof reward === "number" ? [reward] : [];
  const extreme = (pick: typeof Math.max, known: number | null): number | null =>
    known === null ? (seen[0] ?? null) : pick(known, ...seen);
  return {
    active: before.active,
    deadSteps: isDead ? before.deadSteps + 1 : 0,
    deadUpdates: isDead ? before.deadUpdates + judged.length : 0,
    firstEntropy: before.firstEntropy ?? numbersOf(updates, "entropy")[0] ?? null,
    bestReward: extreme(Math.max, before.bestReward),
    lowestReward: extreme(Math.min, before.lowestReward),
  };
}

function noSignal({ rollout, updates, state, maxReward }: StepFacts): Finding | null {
  if (state.deadSteps < DEAD_STEPS || state.deadUpdates < DEAD_UPDATES) return null;
  const rewards = updates.length > 0 ? numbersOf(updates, "group/reward") : numbersOf([rollout], "reward");
  const isSolved = rewards.length > 0 && rewards.every((reward) => reward >= maxReward - 1e-6);
  const since = `In the last ${state.deadSteps} train steps all rewards of every group were`;
  return isSolved
    ? {
        kind: "no-signal",
        level: "info",
        title: "nothing left to learn",
        text:
          `${since} the highest that functions give which return at most 1: then the task is solved. Stop here, or ` +
          "train on harder prompts",
      }
    : {
        kind: "no-signal",
        level: "warning",
        title: "no learning signal",
        text:
          `${since} equal, and not the highest possible: every advantage is 0, so nothing is learned. Try easier ` +
          "prompts, larger groups (--group-size, --rollout-count), a higher --temperature, or a reward that also pays " +
          "for partly right answers",
      };
}

function ratioExplosion({ updates }: StepFacts): Finding | null {
  const largest = Math.max(-Infinity, ...numbersOf(updates, "importance_ratio/max"));
  const clipped = meanOf(numbersOf(updates, "clip_ratio/region_mean"));
  const kl = meanOf(numbersOf(updates, "approx_kl/k3"));
  const signs = [
    ...(largest > RATIO_MAX ? [`an importance ratio of ${largest.toPrecision(3)}`] : []),
    ...(clipped > CLIPPED_SHARE ? [`${(100 * clipped).toFixed(0)} % of ratios clipped`] : []),
    ...(kl > KL_MAX ? [`${kl.toPrecision(3)} nats between the policy and the one that drew the answers`] : []),
  ];
  if (signs.length === 0) return null;
  return {
    kind: "ratio-explosion",
    level: "warning",
    title: "the policy left the data that it learns from",
    text:
      `${signs.join(", ")}. Try a lower --learning-rate, fewer --grad-updates-per-step, a smaller ` +
      "--replay-buffer-capacity, or --max-grad-norm 1",
  };
}

function entropyCollapse({ rollout, updates, state, maxReward }: StepFacts): Finding | null {
  const { firstEntropy, bestReward, lowestReward } = state;
  const reward = rollout["reward"];
  const entropies = numbersOf(updates, "entropy");
  if (firstEntropy === null || entropies.length === 0 || typeof reward !== "number") return null;
  const entropy = meanOf(entropies);
  const top = Math.max(maxReward, bestReward!);
  if (entropy >= ENTROPY_MIN || entropy >= ENTROPY_SHARE * firstEntropy) return null;
  if (reward >= top - NEAR_TOP * (top - lowestReward!)) return null;
  return {
    kind: "entropy-collapse",
    level: "warning",
    title: "the policy stopped exploring",
    text:
      `entropy fell from ${firstEntropy.toPrecision(2)} to ${entropy.toPrecision(2)} nats at a mean reward of ` +
      `${reward.toFixed(3)}: it is sure of answers that are not the best. Try a lower --learning-rate, a higher ` +
      "--temperature, --epsilon-high 0.28, or --beta above 0",
  };
}

function rewardCollapse({ rollout, state: { bestReward } }: StepFacts): Finding | null {
  const { reward, reward_std: deviation } = rollout;
  if (typeof reward !== "number" || typeof deviation !== "number") return null;
  const drop = bestReward! - reward;
  if (drop <= Math.abs(bestReward!) / 2 || drop <= deviation) return null;
  return {
    kind: "reward-collapse",
    level: "warning",
    title: "the reward collapsed",
    text:
      `the mean reward fell to ${reward.toFixed(3)}, from ${bestReward!.toFixed(3)} at best. Read the last replies, ` +
      "then go back to an earlier model; try a lower --learning-rate, --max-grad-norm 1, or --beta above 0",
  };
}

function allTruncated({ rollout }: StepFacts): Finding | null {
  if (rollout["completions/clipped_ratio"] !== 1) return null;
  return {
    kind: "all-truncated",
    level: "warning",
    title: "no answer came to its end",
    text:
      "every completion was cut at the token limit. Raise --max-rollout-tokens, ask for shorter answers in the " +
      "prompt, or check that the model's end token is among its end ids",
  };
}

function samplerGap({ rollout }: StepFacts): Finding | null {
  const gap = rollout["sampling/sampling_logp_difference/max"];
  if (typeof gap !== "number" || gap <= GAP_MAX) return null;
  return {
    kind: "sampler-gap",
    level: "warning",
    title: "sampler and trainer disagree",
    text:
      `their log-probabilities of the same token differ by up to ${gap.toPrecision(2)} nats, so every importance ` +
      "ratio is wrong by as much. That is no setting of yours but a bug, or a GPU driver's numerics: please report it",
  };
}

/** The values of a key, where there are any. */
function numbersOf(records: readonly MetricsRecord[], key: string): number[] {
  return records.map((record) => record[key]).filter((value) => typeof value === "number");
}

/** NaN of nothing: below and above no threshold. */
function meanOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
