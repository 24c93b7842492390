/**
 * A run that dies while it saves: whatever it was doing, its newest checkpoint opens, its log can be cut to it, and the
 * next save leaves no trace. First with a file system that fails from its n-th change on, for every n; then with
 * processes that are killed at random moments.
 *
 *   RUN_KILLS=100 npx vitest run test/grpo/run_kill.test.ts      more of these
 */
import { spawn } from "node:child_process";
import fs, { cpSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, expect, test } from "vitest";
import { findRunCheckpoint, cutLogs } from "../../src/grpo/run_checkpoint.ts";
import { lockFolder } from "../../src/folder_lock.ts";
import { checkpointsOf } from "../../src/grpo/run_directory.ts";
import { hasTensorsOf, loggedSteps, logStep, madeUpState, saveMadeUp } from "../support/made_up_run.ts";

const KILLS = Number(process.env["RUN_KILLS"] ?? 10);
const root = mkdtempSync(join(tmpdir(), "run-kill-"));
afterAll(() => rmSync(root, { recursive: true }));

const hiddenIn = (run: string): string[] => {
  return readdirSync(join(run, "checkpoints")).filter((name) => name.startsWith("."));
};

// ---- every change of the file system ------------------------------------------------------------------------------

/**
 * Runs `action` on a file system that fails from its n-th change on: what a dead process did not do. Deleting a folder
 * is as many changes as it has files, and a file may be written by half. Returns whether it came so far.
 */
async function dyingAt(n: number, action: () => Promise<unknown>): Promise<boolean> {
  const { mkdirSync, renameSync, writeFileSync, rmSync: remove } = fs;
  let changes = 0;
  const count = (): void => {
    if (++changes >= n) throw new Error("dead");
  };
  Object.assign(fs, {
    mkdirSync: (...args: Parameters<typeof mkdirSync>) => (count(), mkdirSync(...args)),
    renameSync: (...args: Parameters<typeof renameSync>) => (count(), renameSync(...args)),
    writeFileSync: (path: string, data: string | Uint8Array) => {
      if (changes + 1 === n) writeFileSync(path, data.slice(0, data.length / 2));
      count();
      writeFileSync(path, data);
    },
    rmSync: (path: string, options: fs.RmOptions) => {
      for (const entry of readdirSync(path, { recursive: true, withFileTypes: true })) {
        if (!entry.isFile()) continue;
        count();
        remove(join(entry.parentPath, entry.name));
      }
      count();
      remove(path, options);
    },
  });
  syncBuiltinESMExports();
  try {
    await action();
  } catch (error) {
    if ((error as Error).message !== "dead") throw error;
  } finally {
    Object.assign(fs, { mkdirSync, renameSync, writeFileSync, rmSync: remove });
    syncBuiltinESMExports();
  }
  return changes >= n;
}

/** What a save finds and what it saves. Afterwards the newest checkpoint must be of one step of these. */
const SAVES = [
  { name: "the next step", before: [1, 2], step: 3, newest: [2, 3] },
  { name: "the only checkpoint again", before: [1], step: 1, newest: [1] },
  { name: "after an older one was resumed", before: [1, 2, 4, 5], resume: 2, step: 3, newest: [2, 3] },
];

test.each(SAVES)("dying at every change while it saves $name", async ({ name, before, resume, step, newest }) => {
  const template = join(root, name);
  for (const earlier of before) {
    logStep(template, earlier);
    await saveMadeUp(template, madeUpState(earlier));
  }
  if (resume !== undefined) {
    const { checkpoint } = await findRunCheckpoint(join(template, `checkpoints/step-00000${resume}`), "");
    cutLogs(template, checkpoint.logs);
  }
  if (step > newest[0]!) logStep(template, step);

  const run = join(root, `${name}, dying`);
  const outcomes = new Set<number>();
  for (let n = 1, died = true; died; n++) {
    cpSync(template, run, { recursive: true });
    died = await dyingAt(n, () => saveMadeUp(run, madeUpState(step, { random: 1 }), { keepLast: 2 }));
    const { checkpoint, skipped } = await findRunCheckpoint(run, "");
    const { trainStep } = checkpoint.state;
    outcomes.add(checkpoint.state.random);
    expect(newest).toContain(trainStep);
    expect(hasTensorsOf(checkpoint.directory, trainStep)).toBe(true);
    // Later steps may still be there, though not in the way: the log has gone on without them.
    expect(skipped.filter((reason) => !/metrics.jsonl (has changed|has \d+ bytes;)/.test(reason))).toEqual([]);
    cutLogs(run, checkpoint.logs);
    await saveMadeUp(run, checkpoint.state, { keepLast: 2 });
    expect(hiddenIn(run)).toEqual([]);
    rmSync(run, { recursive: true });
  }
  expect(outcomes).toEqual(new Set([madeUpState(1).random, 1])); // it died both before and after it had saved
});

// ---- processes ----------------------------------------------------------------------------------------------------

/** Lets a process work on the run and kills it. Returns the last step that it reported as saved, 0 for none. */
async function workAndKill(run: string, milliseconds: number): Promise<number> {
  const script = fileURLToPath(new URL("../support/made_up_run.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", script, run], { stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  const closed = new Promise<NodeJS.Signals | null>((resolve) => {
    child.on("close", (_, signal) => resolve(signal));
  });
  await new Promise<void>((resolve) => {
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      resolve();
    });
    child.on("close", () => resolve());
  });
  await delay(milliseconds);
  child.kill("SIGKILL");
  expect(await closed).toBe("SIGKILL");
  return Number(output.split("\n").slice(0, -1).at(-1) ?? 0);
}

test(`killed ${KILLS} times`, { timeout: 20_000 + 4_000 * KILLS }, async () => {
  const run = join(root, "run");
  let killsInsideSaves = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const reported = await workAndKill(run, 120 * Math.random());
    if (hiddenIn(run).length > 0) killsInsideSaves++;

    const { checkpoint, skipped } = await findRunCheckpoint(run, "");
    const { trainStep } = checkpoint.state;
    expect(skipped).toEqual([]);
    expect(trainStep).toBeGreaterThanOrEqual(reported);
    expect(trainStep).toBeLessThanOrEqual(reported + 1);
    expect(checkpoint.state).toEqual(madeUpState(trainStep));
    expect(hasTensorsOf(checkpoint.directory, trainStep)).toBe(true);

    const release = lockFolder(run); // the dead process's does not count
    cutLogs(run, checkpoint.logs);
    expect(loggedSteps(run)).toEqual(Array.from({ length: trainStep }, (_, i) => i + 1));
    await saveMadeUp(run, checkpoint.state, { keepLast: 2 });
    release();
    expect(hiddenIn(run)).toEqual([]);
    expect(checkpointsOf(run).at(-1)!.step).toBe(trainStep);
    expect(readdirSync(run).sort()).toEqual(["checkpoints", "metrics.jsonl"]);
  }
  expect(killsInsideSaves).toBeGreaterThan(0); // else the test has tested nothing
});
