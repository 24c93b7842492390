/**
 * The folder of a run and its checkpoints.
 *
 *   RUN/checkpoints/step-000005/              complete, always: the folder gets this name in one rename
 *   RUN/checkpoints/.tmp-step-000006-PID/     being written, or being deleted, by process PID
 *   RUN/checkpoints/.old-step-000005-PID/     being replaced by a checkpoint of the same step
 *   RUN/.lock-PID-HOST                        the process that works on the run (folder_lock.ts)
 *
 * A process that is killed leaves the last three behind. The next save, or the next search for a checkpoint, sweeps
 * them, unless the process that they belong to is alive.
 */
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { syncDirectory } from "../data/sync_directory.ts";
import { isAlive, namesIn, otherOwner } from "../folder_lock.ts";
import { writeManifest } from "./run_manifest.ts";

const CHECKPOINTS = "checkpoints";
const STEP_NAME = /^step-(\d{6,})$/;

export interface CheckpointFolder {
  readonly step: number;
  readonly path: string;
}

/** The checkpoints of a run by their number of steps, lowest first; none where there is no run. */
export function checkpointsOf(run: string): CheckpointFolder[] {
  return namesIn(join(run, CHECKPOINTS))
    .map((name) => ({ step: Number(STEP_NAME.exec(name)?.[1]), path: join(run, CHECKPOINTS, name) }))
    .filter(({ step }) => !Number.isNaN(step))
    .sort((a, b) => a.step - b.step);
}

/** The run that a path of the form RUN/checkpoints/step-000005 belongs to; null for any other path. */
export function runOfCheckpoint(path: string): string | null {
  const isCheckpoint = STEP_NAME.test(basename(path)) && basename(dirname(resolve(path))) === CHECKPOINTS;
  return isCheckpoint ? join(path, "..", "..") : null;
}

export function checkpointPath(run: string, step: number): string {
  return join(run, CHECKPOINTS, `step-${String(step).padStart(6, "0")}`);
}

/**
 * Lets `fill` write the files of a checkpoint into a temporary folder, adds the manifest, makes all of it durable and
 * gives it its final name, which is returned; a checkpoint of the same step is replaced. Those of later steps are
 * deleted: whoever resumes an earlier one has left that branch, and "the newest" must be of this one.
 *
 * When anything throws, the temporary folder is removed and the other checkpoints are as they were.
 */
export async function commitCheckpoint(
  run: string,
  step: number,
  fill: (folder: string) => Promise<void>,
): Promise<string> {
  const final = checkpointPath(run, step);
  const parent = dirname(final);
  const temporary = temporaryName("tmp", final);
  sweepLeftovers(run);
  if (mkdirSync(parent, { recursive: true }) !== undefined) syncDirectory(run);
  try {
    mkdirSync(temporary);
    await fill(temporary);
    await writeManifest(temporary);
    // Before the new one is there, not after: in between, the newest is then the one that this run was resumed from.
    for (const later of checkpointsOf(run).filter((other) => other.step > step)) removeCheckpoint(later.path);
    if (existsSync(final)) renameSync(final, temporaryName("old", final));
    renameSync(temporary, final);
    syncDirectory(parent);
  } finally {
    sweepLeftovers(run);
  }
  return final;
}

/** Deletes all checkpoints but the `keepLast` of the highest steps and the one of step `best`. */
export function rotateCheckpoints(run: string, keepLast: number, best: number | null): void {
  for (const { step, path } of checkpointsOf(run).slice(0, -keepLast)) {
    if (step !== best) removeCheckpoint(path);
  }
}

/** Renames before it deletes, so that half a checkpoint never has the name of a whole one. */
function removeCheckpoint(path: string): void {
  const doomed = temporaryName("tmp", path);
  renameSync(path, doomed);
  rmSync(doomed, { recursive: true });
}

function temporaryName(kind: "tmp" | "old", checkpoint: string): string {
  return join(dirname(checkpoint), `.${kind}-${basename(checkpoint)}-${process.pid}`);
}

/**
 * Removes what killed processes left, and what a failed save of this one did. A checkpoint that was moved away to make
 * room for another of its step, which then did not arrive, gets its name back.
 */
export function sweepLeftovers(run: string): void {
  const parent = join(run, CHECKPOINTS);
  const someoneWorksHere = otherOwner(run) !== undefined;
  for (const name of namesIn(parent)) {
    const [, kind, checkpoint, pid] = /^\.(tmp|old)-(step-\d+)-(\d+)$/.exec(name) ?? [];
    if (kind === undefined) continue;
    const isOwn = Number(pid) === process.pid;
    if (!isOwn && (someoneWorksHere || isAlive(Number(pid)))) continue;
    const final = join(parent, checkpoint!);
    if (kind === "old" && !existsSync(final)) renameSync(join(parent, name), final);
    else rmSync(join(parent, name), { recursive: true });
  }
}
