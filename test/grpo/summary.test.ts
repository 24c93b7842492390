/** The closing lines of a run. */
import { expect, test } from "vitest";
import { summaryLines, type StepTimes } from "../../src/grpo/summary.ts";

const times: readonly StepTimes[] = [1, 2].map((seconds) => ({
  step_time: 3 * seconds, rolloutSeconds: seconds, trainingSeconds: 2 * seconds, rolloutTokens: 150, liveBytes: 0,
  liveBuffers: 0,
}));
const bars = (rewards: readonly (number | null)[]): number[] =>
  summaryLines(rewards, times).slice(1, -1).map((line) => line.replace(/[^#]/g, "").length);

test("a line for each train step, and where the time went", () => {
  expect(summaryLines([0.1, null], times)).toEqual([
    "-- Summary",
    "Train step 1: mean reward 0.100 ###",
    "Train step 2: no reply could be judged",
    "Time: rollouts 3.0 s (100 tokens/s), training 6.0 s",
  ]);
});

test("a reward of 0 is a reward", () => {
  expect(summaryLines([0], times)[1]).toBe("Train step 1: mean reward 0.000 ");
});

test("bars are as long as the reward, and become shorter where rewards above 1 ask for room", () => {
  expect(bars([-0.5, 0, 0.5, 1])).toEqual([0, 0, 15, 30]);
  expect(bars([-1, 1, 2, null, 3])).toEqual([0, 10, 20, 0, 30]);
});

test("of a long run some steps, the first and the last among them", () => {
  const shown = summaryLines(new Array<number>(101).fill(0), times).slice(1, -1);
  expect(shown).toHaveLength(22);
  expect([shown[0], shown[1], shown.at(-1)].map((line) => /\d+/.exec(line!)![0])).toEqual(["1", "5", "101"]);
});
