/**
 * Saving and resuming GRPO runs. A checkpoint holds everything that decides how a run goes on, so that a resumed run
 * computes what the uninterrupted one would have, bit for bit:
 *
 *   RUN/checkpoints/step-000005/model/                   the policy, a Hugging Face directory in float32
 *                               optimizer.safetensors    AdamW's moments
 *                               state.json               positions, random state, replay buffer; the settings
 *                               manifest.json            sizes and sha256 of the others (run_manifest.ts)
 *
 * Saving is atomic (run_directory.ts). Logs stay outside and grow between checkpoints: a checkpoint knows how long each
 * was and what it held, and resuming cuts off what came later.
 *
 * Departs from trainers that keep the sampled prompts but not the answers: the replay buffer is saved with the
 * log-probabilities that its answers were drawn with, which cannot be computed again once the policy has moved.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { AdamW } from "../autograd/adamw.ts";
import { SafetensorsError } from "../data/safetensors.ts";
import { writeModelFiles } from "../model/checkpoint.ts";
import { CheckpointError } from "../model/config.ts";
import type { Gpt } from "../model/gpt.ts";
import { restoreMoments, saveMoments } from "../model/training_state.ts";
import {
  checkpointPath, checkpointsOf, commitCheckpoint, rotateCheckpoints, runOfCheckpoint, sweepLeftovers,
} from "./run_directory.ts";
import { fingerprint, makeDurable, savedAt, verifyFiles, type Fingerprint } from "./run_manifest.ts";
import type { RunState } from "./run_state.ts";

/** What the logs of a run held when a checkpoint was saved, by file name. */
export type SavedLogs = Readonly<Record<string, Fingerprint>>;

export interface RunFiles {
  readonly state: Readonly<RunState>;
  /** The settings of the run. Plain data. */
  readonly config: object;
  /** Bytes that belong to this state of each file that the run appends to, by name in the run's folder. */
  readonly logs: Readonly<Record<string, number>>;
}

export interface RunContent extends RunFiles {
  readonly model: Gpt;
  /** It trains all parameters of `model`, in their order. */
  readonly optimizer: AdamW;
  /** The directory that the model's text files come from. May be a checkpoint of this run. */
  readonly textFrom: string;
}

export interface RunCheckpoint {
  readonly directory: string;
  readonly state: Readonly<RunState>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly logs: SavedLogs;
  /** For `loadGpt` and `openChatText`. */
  readonly modelDirectory: string;
  /** Gives the moments to an optimiser of all parameters of the model that was loaded from `modelDirectory`. */
  readonly restoreOptimizer: (optimizer: AdamW, model: Gpt) => void;
}

interface StateFile {
  readonly state: Readonly<RunState>;
  readonly config: Readonly<Record<string, unknown>>;
  readonly logs: SavedLogs;
  /** AdamW's count of updates, of each parameter. */
  readonly adamUpdates: readonly number[];
}

// ---- saving -------------------------------------------------------------------------------------------------------

/**
 * Saves a run and returns the path of the checkpoint. Afterwards there are the `keepLast` (at least 1) of the highest
 * steps and that of `state.best`, and none of a step above `state.trainStep`: such are left when an older checkpoint
 * than the newest was resumed, and belong to what has been given up.
 *
 * @throws CheckpointError when the disk is full or cannot be written, and for a state that JSON cannot hold exactly;
 * the checkpoints that were there are then as they were. @throws RangeError for a `keepLast` below 1.
 */
export function saveRunCheckpoint(
  run: string,
  { model, optimizer, textFrom, ...files }: RunContent,
  options: { readonly keepLast: number },
): Promise<string> {
  return saveRunFiles(run, files, options, async (folder) => {
    mkdirSync(join(folder, "model"));
    await writeModelFiles(model, join(folder, "model"), { textFrom: textSource(run, textFrom) });
    return saveMoments(join(folder, "optimizer.safetensors"), model, optimizer);
  });
}

/**
 * Where a run's text files are now. A resumed run has them from the checkpoint that it was loaded from, until that one
 * makes room for newer ones, which hold copies.
 */
export function textSource(run: string, textFrom: string): string {
  const newest = checkpointsOf(run).at(-1);
  return existsSync(textFrom) || newest === undefined ? textFrom : join(newest.path, "model");
}

/**
 * The same as `saveRunCheckpoint` for any tensors: `saveTensors` writes them into a folder and returns AdamW's counts
 * of updates.
 */
export async function saveRunFiles(
  run: string,
  { state, config, logs }: RunFiles,
  { keepLast }: { readonly keepLast: number },
  saveTensors: (folder: string) => Promise<readonly number[]>,
): Promise<string> {
  if (!(Number.isInteger(keepLast) && keepLast >= 1)) {
    throw new RangeError(`keepLast is ${keepLast}; at least 1 checkpoint must be kept`);
  }
  try {
    const path = await commitCheckpoint(run, state.trainStep, async (folder) => {
      const adamUpdates = await saveTensors(folder);
      const content = { state, config, logs: await fingerprintLogs(run, logs), adamUpdates };
      writeFileSync(join(folder, "state.json"), exactJson(content, "the run") + "\n");
    });
    rotateCheckpoints(run, keepLast, state.best?.step ?? null);
    return path;
  } catch (error) {
    if (!isFileError(error)) throw error;
    throw new CheckpointError(
      `cannot save ${checkpointPath(run, state.trainStep)}: ${error.message}. The checkpoints before it are intact. ` +
        `Fix: make room on the disk, or make it writable, then --resume ${run}`,
      { cause: error },
    );
  }
}

/** Logs must be on the disk before a checkpoint says that they are. */
async function fingerprintLogs(run: string, lengths: Readonly<Record<string, number>>): Promise<SavedLogs> {
  const logs: Record<string, Fingerprint> = {};
  for (const [name, length] of Object.entries(lengths)) {
    const path = join(run, name);
    if (length > 0) await makeDurable(path);
    logs[name] = await fingerprint(path, length);
    if (logs[name].bytes !== length) throw new RangeError(`${path} has ${logs[name].bytes} bytes, not ${length}`);
  }
  return logs;
}

/**
 * JSON text from which JSON.parse makes the same value again, every number bit for bit. Differs from JSON.stringify,
 * which turns -0 into 0, NaN and the infinities into null, and a Map or a typed array into something else: -0 is
 * written as it is, the others are refused. A property that is undefined is left out, as there.
 * @throws CheckpointError that names the place, `name` being the whole.
 */
export function exactJson(value: unknown, name: string): string {
  const refuse = (what: string): never => {
    throw new CheckpointError(`${name} is ${what}, which a checkpoint cannot hold. Fix: plain data and finite numbers`);
  };
  if (value === null || typeof value === "boolean" || typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") {
    if (!Number.isFinite(value)) return refuse(String(value));
    return Object.is(value, -0) ? "-0" : String(value); // the shortest text that reads as this float64
  }
  if (Array.isArray(value)) {
    return `[${Array.from(value as unknown[], (item, i) => exactJson(item, `${name}[${i}]`)).join(",")}]`;
  }
  if (typeof value !== "object") return refuse(`of type ${typeof value}`);
  const prototype = Object.getPrototypeOf(value) as object | null;
  if (prototype !== null && prototype !== Object.prototype) return refuse(`a ${prototype.constructor.name}`);
  const fields = Object.entries(value)
    .filter(([, item]) => item !== undefined)
    .map(([key, item]) => `${JSON.stringify(key)}:${exactJson(item, `${name}.${key}`)}`);
  return `{${fields.join(",")}}`;
}

// ---- resuming -----------------------------------------------------------------------------------------------------

/**
 * Opens one checkpoint, all of its files verified.
 * @throws CheckpointError that says which file is missing, damaged, unknown, or of a newer version.
 */
export async function openRunCheckpoint(directory: string): Promise<RunCheckpoint> {
  if (!existsSync(directory)) throw noCheckpoint(`at ${directory}`);
  try {
    await verifyFiles(directory);
    const text = readFileSync(join(directory, "state.json"), "utf8");
    const { state, config, logs, adamUpdates } = JSON.parse(text) as StateFile;
    const restoreOptimizer = (optimizer: AdamW, model: Gpt): void =>
      restoreMoments(join(directory, "optimizer.safetensors"), model, optimizer, adamUpdates);
    return { directory, state, config, logs, modelDirectory: join(directory, "model"), restoreOptimizer };
  } catch (error) {
    if (!isFileError(error)) throw error;
    throw new CheckpointError(`${directory} cannot be read: ${error.message}`, { cause: error });
  }
}

export interface FoundCheckpoint {
  /** The folder of the run, as given or found. */
  readonly run: string;
  readonly checkpoint: RunCheckpoint;
  /** Newer checkpoints that cannot be resumed, and why; newest first. For the user to see. */
  readonly skipped: readonly string[];
}

/**
 * The checkpoint that `--resume` asks for, open and verified; its run's logs hold what they must. `resume` is
 *  - "auto": of the run in `runsRoot` that was saved last, the newest checkpoint that is sound; then of the run before;
 *  - the folder of a run: its newest checkpoint that is sound;
 *  - RUN/checkpoints/step-000005: that one and no other.
 * Leftovers of killed processes are swept on the way.
 * @throws CheckpointError when there is none.
 */
export async function findRunCheckpoint(resume: string, runsRoot: string): Promise<FoundCheckpoint> {
  if (resume === "auto") return newestSound(runsByAge(runsRoot), `in ${runsRoot}`);
  const run = runOfCheckpoint(resume);
  if (run === null) return newestSound([resume], `at ${resume}`);
  sweepLeftovers(run);
  return { run, checkpoint: await openWithLogs(run, resume), skipped: [] };
}

async function newestSound(runs: readonly string[], where: string): Promise<FoundCheckpoint> {
  const skipped: string[] = [];
  for (const run of runs) {
    sweepLeftovers(run);
    for (const { path } of checkpointsOf(run).reverse()) {
      try {
        return { run, checkpoint: await openWithLogs(run, path), skipped };
      } catch (error) {
        if (!(error instanceof CheckpointError)) throw error;
        skipped.push(error.message.replace(/\. Fix: .*$/, ""));
      }
    }
  }
  throw noCheckpoint(where, skipped);
}

async function openWithLogs(run: string, path: string): Promise<RunCheckpoint> {
  const checkpoint = await openRunCheckpoint(path);
  await checkLogs(run, checkpoint.logs, basename(path));
  return checkpoint;
}

/** Folders of runs that have a checkpoint, the one that was saved last first. */
function runsByAge(runsRoot: string): string[] {
  const runs = existsSync(runsRoot) ? readdirSync(runsRoot).map((name) => join(runsRoot, name)) : [];
  const dated = runs.flatMap((run) => {
    sweepLeftovers(run);
    const times = checkpointsOf(run).map(({ path }) => savedAt(path)).sort();
    return times.length === 0 ? [] : [{ run, age: `${times.at(-1)} ${run}` }];
  });
  return dated.sort((a, b) => (a.age < b.age ? 1 : -1)).map(({ run }) => run);
}

function noCheckpoint(where: string, skipped: readonly string[] = []): CheckpointError {
  const reasons = skipped.length === 0 ? "" : ` (${skipped.join("; ")})`;
  return new CheckpointError(
    `no valid checkpoint ${where}${reasons}. ` +
      "Fix: give the folder of a run, or of one checkpoint as RUN/checkpoints/step-000005, or start a new run",
  );
}

/** Cuts the logs of a run to what they held when a checkpoint was saved; later records are written again. */
export function cutLogs(run: string, logs: SavedLogs): void {
  for (const [name, { bytes }] of Object.entries(logs)) {
    if (existsSync(join(run, name))) truncateSync(join(run, name), bytes);
  }
}

/**
 * Length alone would not do: after a run has been resumed from an older checkpoint, its logs may be as long as those of
 * a newer one, but tell another story.
 */
async function checkLogs(run: string, logs: SavedLogs, checkpoint: string): Promise<void> {
  const refuse = (problem: string): never => {
    throw new CheckpointError(`${problem}. Fix: put the file of that time back, or resume an older checkpoint`);
  };
  for (const [name, saved] of Object.entries(logs)) {
    const path = join(run, name);
    if (saved.bytes === 0) continue;
    if (!existsSync(path)) refuse(`${path} is missing; ${checkpoint} was saved with ${saved.bytes} bytes of it`);
    const now = await fingerprint(path, saved.bytes);
    if (now.bytes < saved.bytes) {
      refuse(`${path} has ${now.bytes} bytes; ${checkpoint} was saved with ${saved.bytes} bytes of it`);
    }
    if (now.sha256 !== saved.sha256) {
      refuse(`${path} has changed in the ${saved.bytes} bytes that ${checkpoint} was saved with`);
    }
  }
}

/** Whether the file system caused an error: a disk that is full, unwritable, unreadable. */
function isFileError(error: unknown): error is Error {
  if (error instanceof SafetensorsError) return error.code === "IoError";
  return error instanceof Error && /^E[A-Z0-9]+$/.test(String((error as NodeJS.ErrnoException).code));
}
