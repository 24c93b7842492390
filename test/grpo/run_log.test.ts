/** What a run writes line by line, and what a resumed one makes of the lines that are there. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, expect, test, vi } from "vitest";
import type { Task } from "../../src/grpo/environment.ts";
import { openRunLog, stepTimes } from "../../src/grpo/run_log.ts";
import { EXPERIENCE } from "../support/made_up_run.ts";

const root = mkdtempSync(join(tmpdir(), "run-log-"));
afterAll(() => rmSync(root, { recursive: true }));
let run: string;
beforeEach(() => (run = mkdtempSync(join(root, "run-"))));

const linesOf = (name: string): unknown[] =>
  readFileSync(join(run, name), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line) as unknown);
const times = (step_time: number) =>
  ({ step_time, rolloutSeconds: 1, trainingSeconds: 2, rolloutTokens: 3, liveBytes: 4, liveBuffers: 5 });

const messages = [{ role: "system", content: "Be brief." }, { role: "user", content: "Which?" }];

test("a reply: the last message it answers, each function's reward by name", () => {
  const experience = { ...EXPERIENCE, prompt: { id: "p", messages }, text: "this", trainStep: 6, completionIds: [3, 4, 5] };
  const task = { functions: [{ name: "first", weight: 1 }, { name: "second", weight: 2 }] } as unknown as Task;
  openRunLog(run).completions([experience, experience], task);
  const line = {
    kind: "rollout", step: 7, prompt: "Which?", completion: "this", reward: 1, rewards: { first: 1, second: null },
    ended: true, tokens: 3,
  };
  expect(linesOf("completions.jsonl")).toEqual([line, line]);
});

test("an evaluation: the first reply to each prompt", () => {
  const replies = ["a", "b", "c", "d"].map((text) => ({ prompt: { id: text, messages }, text, correct: text === "b" }));
  openRunLog(run).evaluation(3, { accuracy: 0.25, greedy: 1, passAtK: [], prompts: 2, samples: 2, replies });
  expect(linesOf("completions.jsonl")).toEqual([
    { kind: "eval", step: 3, prompt: "Which?", completion: "a", correct: false },
    { kind: "eval", step: 3, prompt: "Which?", completion: "b", correct: true },
  ]);
});

test("a step's times: rollouts until they were done, training after that; tokens of completions", () => {
  vi.useFakeTimers({ toFake: ["performance"] });
  const started = performance.now();
  vi.advanceTimersByTime(7000);
  const { step_time, rolloutSeconds, trainingSeconds, rolloutTokens } = stepTimes(started, started + 2000, [
    EXPERIENCE, { ...EXPERIENCE, completionIds: [1, 2, 3] },
  ]);
  vi.useRealTimers();
  expect([step_time, rolloutSeconds, trainingSeconds, rolloutTokens]).toEqual([7, 2, 5, 5]);
});

test("what came after the checkpoint is not this run's, and is cut off by the first new line", () => {
  const first = openRunLog(run);
  first.timings(1, times(10));
  first.metrics({ kind: "rollout", step: 1 });
  const lengths = first.lengths();
  const kept = Object.fromEntries(Object.entries(lengths).map(([name, bytes]) => [name, { bytes, sha256: "" }]));
  first.timings(2, times(20));
  first.metrics({ kind: "rollout", step: 2 });
  writeFileSync(join(run, "completions.jsonl"), "later\n");

  const resumed = openRunLog(run, kept);
  expect(resumed.pastTimes()).toEqual([{ step: 1, ...times(10) }]);
  expect(resumed.lengths()).toEqual(lengths);
  expect(linesOf("timings.jsonl")).toHaveLength(2); // whoever only looks loses nothing
  resumed.timings(2, times(30));
  resumed.timings(3, times(40));
  expect(resumed.pastTimes()).toEqual([10, 30, 40].map((seconds, i) => ({ step: i + 1, ...times(seconds) })));
  expect(linesOf("metrics.jsonl")).toEqual([{ kind: "rollout", step: 1 }]);
  expect(readFileSync(join(run, "completions.jsonl"), "utf8")).toBe("");
});
