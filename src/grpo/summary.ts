/** The closing lines of a run: what was learned, and where the time went. */
import type { Reward } from "./advantage.ts";

export interface StepTimes {
  /** Seconds, TRL's name. */
  readonly step_time: number;
  readonly rolloutSeconds: number;
  readonly trainingSeconds: number;
  /** Completion tokens drawn. */
  readonly rolloutTokens: number;
  readonly liveBytes: number;
  readonly liveBuffers: number;
}

const MOST_LINES = 25;

/** Mean reward per train step (some of them, of a long run), the split of the time, tokens per second of rollouts. */
export function summaryLines(meanRewards: readonly Reward[], times: readonly StepTimes[]): string[] {
  const total = (pick: (step: StepTimes) => number): number => times.reduce((sum, step) => sum + pick(step), 0);
  const rollouts = total(({ rolloutSeconds }) => rolloutSeconds);
  const training = total(({ trainingSeconds }) => trainingSeconds);
  const tokens = total(({ rolloutTokens }) => rolloutTokens);
  const every = Math.ceil(meanRewards.length / MOST_LINES);
  // A full bar is the highest reward, but at least 1; rewards below 0 have none.
  const full = meanRewards.reduce<number>((most, reward) => Math.max(most, reward ?? 0), 1);
  const shown = meanRewards.map((reward, i) => ({ reward, step: i + 1 }));
  return [
    "-- Summary",
    ...shown.filter(({ step }) => step === 1 || step % every === 0 || step === shown.length).map(({ reward, step }) => {
      if (reward === null) return `Train step ${step}: no reply could be judged`;
      const bar = "#".repeat(Math.round((30 * Math.max(0, reward)) / full));
      return `Train step ${step}: mean reward ${reward.toFixed(3)} ${bar}`;
    }),
    `Time: rollouts ${rollouts.toFixed(1)} s (${Math.round(tokens / rollouts)} tokens/s), training ${training.toFixed(1)} s`,
  ];
}
