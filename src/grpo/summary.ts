/** The closing lines of a run: what was learned, and where the time went. */

export interface StepTimes {
  readonly rolloutSeconds: number;
  readonly trainingSeconds: number;
  /** Completion tokens drawn. */
  readonly rolloutTokens: number;
  readonly liveBytes: number;
  readonly liveBuffers: number;
}

/** Prints mean reward per train step, the split of the time, and tokens per second of rollouts. */
export function printSummary(meanRewards: readonly number[], times: readonly StepTimes[]): void {
  const total = (pick: (step: StepTimes) => number): number => times.reduce((sum, step) => sum + pick(step), 0);
  const rollouts = total(({ rolloutSeconds }) => rolloutSeconds);
  const training = total(({ trainingSeconds }) => trainingSeconds);
  const tokens = total(({ rolloutTokens }) => rolloutTokens);
  console.log("-- Summary");
  meanRewards.forEach((reward, step) => {
    const bar = "#".repeat(Math.round(30 * Math.min(1, Math.max(0, reward)))); // rewards may lie outside 0 to 1
    console.log(`Train step ${step + 1}: mean reward ${reward.toFixed(3)} ${bar}`);
  });
  console.log(
    `Time: rollouts ${rollouts.toFixed(1)} s (${Math.round(tokens / rollouts)} tokens/s), training ${training.toFixed(1)} s`,
  );
}
