/**
 * A run without a model: checkpoints of a few bytes that depend on the step, and a log of one line per step.
 *
 *   node --import tsx test/support/made_up_run.ts RUN     goes on with the run, saving every step, until it is killed
 */
import { appendFileSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { findRunCheckpoint, saveRunFiles, cutLogs } from "../../src/grpo/run_checkpoint.ts";
import { lockFolder } from "../../src/folder_lock.ts";
import { checkpointsOf } from "../../src/grpo/run_directory.ts";
import { START, type RunState } from "../../src/grpo/run_state.ts";
import type { Experience } from "../../src/grpo/rollout.ts";

export function madeUpState(trainStep: number, change: Partial<RunState> = {}): RunState {
  const replay = [{ ...EXPERIENCE, text: `step ${trainStep}`, trainStep }];
  return { ...START, trainStep, updates: 5 * trainStep, random: 987654321, replay, meanRewards: [1 / 7], ...change };
}

export const EXPERIENCE: Experience = {
  prompt: { id: "digit", messages: [{ role: "user", content: "?" }], data: { answer: [5] } },
  promptIds: [1, 2],
  completionIds: [3, 4],
  logProbs: [-1 / 3, -0],
  ended: true,
  text: "",
  rewards: [1, null],
  reward: 1,
  trainStep: 0,
  group: "0/0",
};

/** What stands for the weights and moments of a step. */
const tensorsOf = (step: number): Buffer => Buffer.alloc(50_000, step);

async function writeTensors(folder: string, step: number): Promise<number[]> {
  mkdirSync(join(folder, "model"));
  writeFileSync(join(folder, "model", "model.safetensors"), tensorsOf(step));
  await Promise.resolve();
  writeFileSync(join(folder, "optimizer.safetensors"), tensorsOf(step));
  return [step];
}

export function hasTensorsOf(checkpoint: string, step: number): boolean {
  const files = ["model/model.safetensors", "optimizer.safetensors"];
  return files.every((name) => readFileSync(join(checkpoint, name)).equals(tensorsOf(step)));
}

export function saveMadeUp(
  run: string,
  state: RunState,
  { keepLast = 100, saveTensors = writeTensors }: { keepLast?: number; saveTensors?: typeof writeTensors } = {},
): Promise<string> {
  const logs = { "metrics.jsonl": statSync(join(run, "metrics.jsonl")).size };
  const save = (folder: string): Promise<number[]> => saveTensors(folder, state.trainStep);
  return saveRunFiles(run, { state, config: { seed: 1 }, logs }, { keepLast }, save);
}

/** A train step's line in the log. */
export function logStep(run: string, step: number): void {
  mkdirSync(run, { recursive: true });
  appendFileSync(join(run, "metrics.jsonl"), `{"step":${step}}\n`);
}

/** Steps of the log's lines. */
export function loggedSteps(run: string): number[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").split("\n").slice(0, -1);
  return lines.map((line) => (JSON.parse(line) as { step: number }).step);
}

async function runUntilKilled(run: string): Promise<never> {
  lockFolder(run);
  let step = 0;
  if (checkpointsOf(run).length > 0) {
    const { checkpoint } = await findRunCheckpoint(run, "");
    cutLogs(run, checkpoint.logs);
    step = checkpoint.state.trainStep;
  } else {
    writeFileSync(join(run, "metrics.jsonl"), "");
  }
  for (;;) {
    step++;
    logStep(run, step);
    await saveMadeUp(run, madeUpState(step), { keepLast: 2 });
    console.log(step);
    if (step % 2 === 0) await saveMadeUp(run, madeUpState(step), { keepLast: 2 }); // replaces the one of this step
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await runUntilKilled(process.argv[2]!);
