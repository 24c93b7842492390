/** Checkpoints of a run: every bit comes back, every damage is named, and the folder is always in order. */
import { spawnSync } from "node:child_process";
import {
  appendFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync,
  symlinkSync, truncateSync, writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { adamw } from "../../src/autograd/adamw.ts";
import {
  exactJson, findRunCheckpoint, openRunCheckpoint, saveRunCheckpoint, cutLogs,
} from "../../src/grpo/run_checkpoint.ts";
import { lockFolder } from "../../src/folder_lock.ts";
import { checkpointsOf } from "../../src/grpo/run_directory.ts";
import { loadGpt } from "../../src/model/checkpoint.ts";
import { CheckpointError } from "../../src/model/config.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { seededNormal } from "../../src/random.ts";
import { read, size } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { EXPERIENCE, loggedSteps, logStep, madeUpState, saveMadeUp } from "../support/made_up_run.ts";
import { makeChatModelDirectory, randomWeights, tinyConfig } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "run-checkpoint-"));
afterAll(() => rmSync(root, { recursive: true }));

/** A process that has ended. */
const deadPid = spawnSync(process.execPath, ["--version"]).pid;

/** A folder that holds runs, new for each test, and the first of them. */
let runs: string;
let run: string;
let made = 0;
beforeEach(() => {
  runs = join(root, `runs-${made++}`);
  run = join(runs, "first");
});

/** Logs and saves train steps, from a made-up run. */
async function saveSteps(steps: readonly number[], keepLast = 100, of = run): Promise<void> {
  for (const step of steps) {
    logStep(of, step);
    await saveMadeUp(of, madeUpState(step), { keepLast });
  }
}

const pathOf = (step: number): string => join(run, "checkpoints", `step-${String(step).padStart(6, "0")}`);
const stepsOf = (of = run): number[] => checkpointsOf(of).map(({ step }) => step);
const hiddenIn = (folder: string): string[] => readdirSync(folder).filter((name) => name.startsWith("."));

/** Flips one bit of a file. */
function damage(path: string, at?: number): void {
  const bytes = readFileSync(path);
  const offset = at ?? Math.floor(bytes.length / 2);
  bytes[offset] = bytes[offset]! ^ 1;
  writeFileSync(path, bytes);
}

async function messageOf(failing: Promise<unknown>): Promise<string> {
  const error = await failing.then(() => null, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(CheckpointError);
  const { message } = error as CheckpointError;
  expect(message).not.toContain("\n");
  return message;
}

describe("a run with a model", () => {
  const textFrom = makeChatModelDirectory();
  afterAll(() => rmSync(textFrom, { recursive: true }));
  const normal = seededNormal(7);

  /** An optimiser with random moments, parameter i having been updated i times. */
  function busyOptimizer(model: Gpt): ReturnType<typeof adamw> {
    const optimizer = adamw([...model.parameters.values()]);
    optimizer.importState(
      [...model.parameters.values()].map(({ value }, step) => ({
        firstMoment: Float32Array.from({ length: size(value) }, normal),
        secondMoment: Float32Array.from({ length: size(value) }, () => normal() ** 2),
        step,
      })),
    );
    return optimizer;
  }

  async function bitsOf(model: Gpt): Promise<Uint32Array[]> {
    const values: Float32Array[] = [];
    for (const { value } of model.parameters.values()) values.push(await read(value));
    return values.map(({ buffer }) => new Uint32Array(buffer));
  }

  test("weights, moments, state and settings come back bit for bit; text files come along", async () => {
    const model = createGpt(tinyConfig(), randomWeights(1));
    const optimizer = busyOptimizer(model);
    const state = madeUpState(3, {
      replay: [{ ...EXPERIENCE, logProbs: [0.1 + 0.2, -0, 5e-324, 1e21, -(2 ** 53), 1 / 3], text: "\ud800 é \"\n" }],
      best: { step: 2, score: -0, by: "accuracy" },
    });
    const config = { seed: 1, nested: { list: [null, true, "x"] } };
    logStep(run, 1);
    const content = { state, config, model, optimizer, textFrom, logs: { "metrics.jsonl": 11, "timings.jsonl": 0 } };
    expect(await saveRunCheckpoint(run, content, { keepLast: 1 })).toBe(pathOf(3));

    const opened = await openRunCheckpoint(pathOf(3));
    expect(opened.state).toStrictEqual(state); // tells -0 from 0
    expect(opened.config).toStrictEqual(config);
    expect(Object.entries(opened.logs).map(([name, { bytes }]) => [name, bytes])).toEqual(Object.entries(content.logs));
    const loaded = loadGpt(opened.modelDirectory);
    const restored = adamw([...loaded.parameters.values()]);
    opened.restoreOptimizer(restored, loaded);
    expect(await bitsOf(loaded)).toEqual(await bitsOf(model));
    expect(await restored.exportState()).toEqual(await optimizer.exportState());
    expect(readFileSync(join(opened.modelDirectory, "tokenizer.json"))).toEqual(
      readFileSync(join(textFrom, "tokenizer.json")),
    );
    [optimizer, restored].forEach((each) => each.dispose());
    [model, loaded].forEach(disposeGpt);
  });

  test("the text of a resumed run outlives the checkpoint that it came from", async () => {
    const model = createGpt(tinyConfig(), randomWeights(1));
    const optimizer = adamw([...model.parameters.values()]);
    const save = (step: number, from: string): Promise<string> => {
      const content = { state: madeUpState(step), config: {}, model, optimizer, textFrom: from, logs: {} };
      return saveRunCheckpoint(run, content, { keepLast: 1 });
    };
    const first = join(await save(1, textFrom), "model");
    await save(2, first);
    expect(existsSync(first)).toBe(false);
    const third = await save(3, first);
    expect(readdirSync(join(third, "model"))).toContain("tokenizer.json");
    optimizer.dispose();
    disposeGpt(model);
  });
});

describe("what JSON cannot hold is refused by its place", () => {
  test.each([
    [{ list: [1, NaN] }, "run.list[1] is NaN"],
    [{ a: { b: -Infinity } }, "run.a.b is -Infinity"],
    [{ values: new Float32Array(2) }, "run.values is a Float32Array"],
    [{ when: new Date(0) }, "run.when is a Date"],
    [{ of: () => 1 }, "run.of is of type function"],
    [[undefined], "run[0] is of type undefined"],
    [[, 1], "run[0] is of type undefined"],
  ])("%o", (value, message) => {
    expect(() => exactJson(value, "run")).toThrow(message);
  });

  test("a property that is undefined is left out, a missing prototype is none", () => {
    const bare = Object.assign(Object.create(null) as object, { x: -0 });
    expect(exactJson({ gone: undefined, bare }, "run")).toBe('{"bare":{"x":-0}}');
  });

  test("by a save, which leaves nothing behind", async () => {
    logStep(run, 1);
    const message = await messageOf(saveMadeUp(run, madeUpState(1, { random: NaN })));
    expect(message).toContain("the run.state.random is NaN");
    expect(readdirSync(join(run, "checkpoints"))).toEqual([]);
  });
});

describe("a damaged checkpoint is refused by the name of the file", () => {
  const files = ["state.json", "optimizer.safetensors", "model/model.safetensors"];
  beforeEach(() => saveSteps([1]));

  test.each([...files, "manifest.json"])("%s one byte shorter", async (name) => {
    const path = join(pathOf(1), name);
    truncateSync(path, readFileSync(path).length - 1);
    const message = await messageOf(openRunCheckpoint(pathOf(1)));
    expect(message).toMatch(name === "manifest.json" ? / is damaged: / : / has (\d+) bytes, manifest.json says (\d+)/);
    expect(message.startsWith(path)).toBe(true);
    expect(message).toContain("Fix: resume an older checkpoint");
  });

  test.each([...files, "manifest.json"])("%s with one bit flipped", async (name) => {
    damage(join(pathOf(1), name));
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toContain(`${join(pathOf(1), name)} is damaged: `);
  });

  test("any bit of the manifest", async () => {
    const path = join(pathOf(1), "manifest.json");
    const { length } = readFileSync(path);
    for (let at = 0; at < length; at++) {
      damage(path, at);
      expect(await messageOf(openRunCheckpoint(pathOf(1)))).toContain("manifest.json");
      damage(path, at); // back
    }
    await openRunCheckpoint(pathOf(1));
  });

  test.each(files)("%s missing, or a link to nothing", async (name) => {
    rmSync(join(pathOf(1), name));
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toContain(`${join(pathOf(1), name)} is missing. Fix:`);
    symlinkSync("nowhere", join(pathOf(1), name));
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toContain(`${pathOf(1)} cannot be read: ENOENT`);
  });

  test("manifest missing", async () => {
    rmSync(join(pathOf(1), "manifest.json"));
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toContain(
      `${pathOf(1)} has no manifest.json: it is not a complete checkpoint. Fix:`,
    );
  });

  test("a file that the manifest does not list", async () => {
    writeFileSync(join(pathOf(1), "model", "notes.txt"), "");
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toBe(
      `${join(pathOf(1), "model/notes.txt")} is not in manifest.json. Fix: remove it`,
    );
  });

  test("a newer schema: both versions are named", async () => {
    const { version } = JSON.parse(readFileSync("package.json", "utf8")) as { version: string };
    const path = join(pathOf(1), "manifest.json");
    writeFileSync(path, JSON.stringify({ schema: 3, webgrpo: "9.0.0", unheardOf: true }));
    expect(await messageOf(openRunCheckpoint(pathOf(1)))).toBe(
      `${path} has schema 3, of webgrpo 9.0.0; this is webgrpo ${version}, which reads schema 2. Fix: update webgrpo`,
    );
  });
});

describe("what is kept", () => {
  test("the last by number, not by name", async () => {
    await saveSteps([999_998, 999_999, 1_000_000, 1_000_001], 3);
    expect(stepsOf()).toEqual([999_999, 1_000_000, 1_000_001]);
  });

  test("and the best", async () => {
    await saveSteps([8, 9, 10]);
    logStep(run, 11);
    await saveMadeUp(run, madeUpState(11, { best: { step: 8, score: 1, by: "reward" } }), { keepLast: 2 });
    expect(stepsOf()).toEqual([8, 10, 11]);
    await saveMadeUp(run, madeUpState(12, { best: { step: 12, score: 2, by: "reward" } }), { keepLast: 1 });
    expect(stepsOf()).toEqual([12]);
  });

  test("at least one", async () => {
    logStep(run, 1);
    await expect(saveMadeUp(run, madeUpState(1), { keepLast: 0 })).rejects.toThrow("keepLast is 0; at least 1");
  });

  test("the same step saved twice: the second", async () => {
    await saveSteps([1, 2]);
    await saveMadeUp(run, madeUpState(2, { random: 5 }));
    expect((await openRunCheckpoint(pathOf(2))).state.random).toBe(5);
    expect(readdirSync(join(run, "checkpoints"))).toEqual(["step-000001", "step-000002"]);
  });

  test("an older one resumed: the later ones go when it is saved, and not before", async () => {
    await saveSteps([1, 2, 5, 6]);
    const { checkpoint } = await findRunCheckpoint(pathOf(2), runs);
    cutLogs(run, checkpoint.logs);
    expect(stepsOf()).toEqual([1, 2, 5, 6]);
    await saveSteps([3]);
    expect(stepsOf()).toEqual([1, 2, 3]);
  });
});

describe("a save that fails", () => {
  test.runIf(existsSync("/dev/full"))("on a full disk: one line, and everything as it was", async () => {
    await saveSteps([1, 2]);
    const before = readFileSync(join(pathOf(2), "manifest.json"), "utf8");
    const saveTensors = async (folder: string): Promise<number[]> => {
      writeFileSync(join(folder, "optimizer.safetensors"), "half of it");
      await Promise.resolve();
      writeFileSync("/dev/full", "the rest");
      return [];
    };
    for (const step of [2, 3]) {
      expect(await messageOf(saveMadeUp(run, madeUpState(step), { keepLast: 1, saveTensors }))).toBe(
        `cannot save ${pathOf(step)}: ENOSPC: no space left on device, write. The checkpoints before it are intact. ` +
          `Fix: make room on the disk, or make it writable, then --resume ${run}`,
      );
    }
    expect(readdirSync(join(run, "checkpoints"))).toEqual(["step-000001", "step-000002"]);
    expect(readFileSync(join(pathOf(2), "manifest.json"), "utf8")).toBe(before);
    await openRunCheckpoint(pathOf(2));
  });

  test("below a regular file", async () => {
    mkdirSync(run, { recursive: true });
    writeFileSync(join(run, "metrics.jsonl"), "");
    writeFileSync(join(run, "checkpoints"), "");
    expect(await messageOf(saveMadeUp(run, madeUpState(1)))).toMatch(/^cannot save .*: (EEXIST|ENOTDIR)/);
  });

  test("other errors are passed on", async () => {
    await saveSteps([1]);
    const saveTensors = (): Promise<never> => Promise.reject(new TypeError("a bug"));
    await expect(saveMadeUp(run, madeUpState(2), { saveTensors })).rejects.toThrow(new TypeError("a bug"));
    expect(readdirSync(join(run, "checkpoints"))).toEqual(["step-000001"]);
  });
});

describe("leftovers of killed processes", () => {
  const folder = (name: string): string => join(run, "checkpoints", name);

  test("are swept by a save and by a search; those of a process that is alive stay", async () => {
    await saveSteps([1]);
    for (const sweep of [() => saveSteps([1]), () => findRunCheckpoint(run, runs)]) {
      for (const pid of [deadPid, process.pid, process.ppid]) {
        cpSync(pathOf(1), folder(`.tmp-step-000003-${pid}`), { recursive: true });
      }
      await sweep();
      expect(hiddenIn(join(run, "checkpoints"))).toEqual([`.tmp-step-000003-${process.ppid}`]);
    }
  });

  test("a checkpoint that was moved away for one that never came gets its name back", async () => {
    await saveSteps([1, 2]);
    renameSync(pathOf(2), folder(`.old-step-000002-${deadPid}`));
    const { checkpoint } = await findRunCheckpoint(run, runs);
    expect(checkpoint.state.trainStep).toBe(2);
    cpSync(pathOf(2), folder(`.old-step-000002-${deadPid}`), { recursive: true });
    await findRunCheckpoint(run, runs);
    expect(hiddenIn(join(run, "checkpoints"))).toEqual([]);
  });
});

describe("--resume", () => {
  /** Three runs; the one that sorts in the middle was saved last. */
  async function threeRuns(): Promise<void> {
    await saveSteps([1], 100, join(runs, "a"));
    await saveSteps([1], 100, join(runs, "c"));
    await saveSteps([1, 2, 3], 100, (run = join(runs, "b")));
    mkdirSync(join(runs, "d"));
    writeFileSync(join(runs, "notes.txt"), "");
  }

  test("auto: the run that was saved last", async () => {
    await threeRuns();
    const found = await findRunCheckpoint("auto", runs);
    expect([found.run, found.checkpoint.directory, found.skipped]).toEqual([run, pathOf(3), []]);
  });

  test("auto and a run's folder fall back over what is damaged, and say so", async () => {
    await threeRuns();
    damage(join(pathOf(3), "state.json"));
    rmSync(join(pathOf(2), "optimizer.safetensors"));
    for (const resume of ["auto", run, `${run}/`]) {
      const { checkpoint, skipped } = await findRunCheckpoint(resume, runs);
      expect(checkpoint.state.trainStep).toBe(1);
      expect(skipped).toEqual([
        `${join(pathOf(3), "state.json")} is damaged: its sha256 is not the one in manifest.json`,
        `${join(pathOf(2), "optimizer.safetensors")} is missing`,
      ]);
    }
  });

  test("auto takes the run before when nothing of the last is sound; a run's folder does not", async () => {
    await threeRuns();
    for (const step of [1, 2, 3]) damage(join(pathOf(step), "manifest.json"));
    const found = await findRunCheckpoint("auto", runs);
    expect(found.run).toBe(join(runs, "c"));
    expect(found.skipped).toHaveLength(3);
    expect(await messageOf(findRunCheckpoint(run, runs))).toMatch(
      /^no valid checkpoint at .*b \(.*3\/manifest.json is damaged: .*; .*000002.*; .*1.*\)\. Fix: give the folder/,
    );
  });

  test("one checkpoint: that one or none", async () => {
    await saveSteps([1, 2, 3]);
    const found = await findRunCheckpoint(`${pathOf(2)}/`, runs);
    expect([found.run, found.checkpoint.state.trainStep]).toEqual([run, 2]);
    damage(join(pathOf(2), "state.json"));
    expect(await messageOf(findRunCheckpoint(pathOf(2), runs))).toContain("step-000002/state.json is damaged");
  });

  const wrongPaths = ["nowhere", "first/checkpoints/step-000009", "first/checkpoints"];
  test.each(wrongPaths)("no valid checkpoint at %s", async (name) => {
    await saveSteps([1]);
    const path = join(runs, name);
    expect(await messageOf(findRunCheckpoint(path, runs))).toBe(
      `no valid checkpoint at ${path}. Fix: give the folder of a run, or of one checkpoint as ` +
        "RUN/checkpoints/step-000005, or start a new run",
    );
  });

  test("auto without any run", async () => {
    expect(await messageOf(findRunCheckpoint("auto", runs))).toContain(`no valid checkpoint in ${runs}. Fix:`);
  });
});

describe("logs", () => {
  const log = (): string => join(run, "metrics.jsonl");

  test("are cut to what they held; one that was not there is emptied", async () => {
    logStep(run, 1);
    const state = madeUpState(1);
    await saveMadeUp(run, state);
    appendFileSync(log(), '{"step":2}\n{"st');
    writeFileSync(join(run, "new.jsonl"), "later");
    const { checkpoint } = await findRunCheckpoint(run, runs);
    const empty = { bytes: 0, sha256: "" };
    cutLogs(run, { ...checkpoint.logs, "new.jsonl": empty, "never.jsonl": empty });
    expect(loggedSteps(run)).toEqual([1]);
    expect(readFileSync(join(run, "new.jsonl"), "utf8")).toBe("");
    expect(existsSync(join(run, "never.jsonl"))).toBe(false);
  });

  test("shorter than they were, missing, or changed: refused, nothing is cut", async () => {
    await saveSteps([1, 2]);
    truncateSync(log(), 21);
    const fix = "Fix: put the file of that time back, or resume an older checkpoint";
    const refusal = (): Promise<string> => messageOf(findRunCheckpoint(pathOf(2), runs));
    expect(await refusal()).toBe(`${log()} has 21 bytes; step-000002 was saved with 22 bytes of it. ${fix}`);
    writeFileSync(log(), '{"step":1}\n{"step":3}\n{"step":4}\n');
    expect(await refusal()).toContain("has changed in the 22 bytes that step-000002 was");
    expect(readFileSync(log()).length).toBe(33);
    rmSync(log());
    expect(await refusal()).toContain("metrics.jsonl is missing");
  });

  test("an older checkpoint resumed, killed before a save: newer ones no longer fit and are passed over", async () => {
    await saveSteps([1, 2, 3]);
    cutLogs(run, (await openRunCheckpoint(pathOf(1))).logs);
    for (const step of [20, 30, 40]) logStep(run, step);
    const { checkpoint, skipped } = await findRunCheckpoint(run, runs);
    expect(checkpoint.state.trainStep).toBe(1);
    expect(skipped[0]).toContain("metrics.jsonl has changed in the 33 bytes that step-000003 was saved with");
    expect(await messageOf(findRunCheckpoint(pathOf(3), runs))).toContain("metrics.jsonl has changed");
  });
});

describe("the lock", () => {
  /** The name of the lock that a process of this machine would leave. */
  let lockOf: (pid: number) => string;
  beforeEach(() => {
    const release = lockFolder(run);
    const [own] = hiddenIn(run);
    release();
    lockOf = (pid) => own!.replace(`-${process.pid}-`, `-${pid}-`);
  });

  test("keeps this process and others out, and goes when it is released", () => {
    const release = lockFolder(run);
    expect(() => lockFolder(run)).toThrow(`${run} is in use by this process already`);
    release();
    expect(hiddenIn(run)).toEqual([]);
    lockFolder(run)();
  });

  test("of a process that is alive, or on another machine", () => {
    for (const other of [lockOf(process.ppid), ".lock-1-elsewhere"]) {
      writeFileSync(join(run, other), "");
      expect(() => lockFolder(run)).toThrow(/is in use by process \d+ on .*\. Fix: let it end, or .* remove .*\.lock-/);
      expect(hiddenIn(run)).toEqual([other]);
      rmSync(join(run, other));
    }
  });

  test("of a dead process is taken over, also when its number is now this process's", () => {
    writeFileSync(join(run, lockOf(deadPid)), "");
    writeFileSync(join(run, lockOf(process.pid)), "");
    const release = lockFolder(run);
    expect(hiddenIn(run)).toEqual([lockOf(process.pid)]);
    release();
    expect(hiddenIn(run)).toEqual([]);
  });

  test("of another keeps leftovers from being swept", async () => {
    await saveSteps([1]);
    cpSync(pathOf(1), join(run, "checkpoints", `.tmp-step-000002-${deadPid}`), { recursive: true });
    writeFileSync(join(run, ".lock-1-elsewhere"), "");
    await findRunCheckpoint(run, runs);
    expect(hiddenIn(join(run, "checkpoints"))).toHaveLength(1);
  });

  test("goes when the process exits", () => {
    const module = new URL("../../src/folder_lock.ts", import.meta.url).href;
    const [from, folder] = [module, run].map((text) => JSON.stringify(text));
    const script = `import { lockFolder } from ${from}; lockFolder(${folder}); process.exit(7);`;
    const { status } = spawnSync(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script]);
    expect(status).toBe(7);
    expect(readdirSync(run)).toEqual([]);
  });
});
