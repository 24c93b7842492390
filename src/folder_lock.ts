/** One process to a folder: .lock-PID-HOST in it names the process that works there. */
import { existsSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join, resolve } from "node:path";
import { UsageError } from "./cli.ts";

const THIS_HOST = hostname().replaceAll(/[^\w.]/g, "_");

/** Lock files that this process holds. One that has its number and is not here is of an earlier process. */
const held = new Set<string>();

/**
 * Keeps other processes out of a folder, which is made if need be, until the function that it returns is called, or the
 * process exits. The lock of a process that is no longer alive does not count.
 *
 * Every process first leaves a lock of its own name and only then looks for others. So two can never both get in,
 * though two that start at the same moment may both be refused.
 *
 * @throws UsageError when another process, or this one, works in the folder.
 */
export function lockFolder(folder: string): () => void {
  const own = resolve(folder, `.lock-${process.pid}-${THIS_HOST}`);
  if (held.has(own)) throw new UsageError(`${folder} is in use by this process already`);
  mkdirSync(folder, { recursive: true });
  writeFileSync(own, "");
  const release = (): void => {
    held.delete(own);
    process.removeListener("exit", release);
    rmSync(own, { force: true });
  };
  held.add(own);
  process.once("exit", release);
  const other = otherOwner(folder);
  if (other !== undefined) {
    release();
    throw new UsageError(
      `${folder} is in use by process ${other.pid} on ${other.host}. Fix: let it end, or choose another folder; ` +
        `if it is no training run, remove ${join(folder, other.name)}`,
    );
  }
  for (const { name } of locksOf(folder)) {
    if (resolve(folder, name) !== own) rmSync(join(folder, name), { force: true });
  }
  return release;
}

/** A process that has locked the folder and may be alive: on another machine nobody can tell. */
export function otherOwner(folder: string): { name: string; pid: number; host: string } | undefined {
  return locksOf(folder).find(({ pid, host }) => host !== THIS_HOST || (pid !== process.pid && isAlive(pid)));
}

function locksOf(folder: string): { name: string; pid: number; host: string }[] {
  return namesIn(folder).flatMap((name) => {
    const [, pid, host] = /^\.lock-(\d+)-(.+)$/.exec(name) ?? [];
    return host === undefined ? [] : [{ name, pid: Number(pid), host }];
  });
}

/** Whether a process of this machine exists: signal 0 asks and sends nothing. EPERM: it does, and is another user's. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Empty where there is no folder. */
export function namesIn(folder: string): string[] {
  return existsSync(folder) && statSync(folder).isDirectory() ? readdirSync(folder) : [];
}
