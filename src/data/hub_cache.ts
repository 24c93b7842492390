// The model cache of Hugging Face, shared with Python: where files are, how they get there, what is complete.
//
//   models--OWNER--NAME/
//     blobs/OID                    one file of the repository, named by its sha256 (LFS) or its git blob id
//     refs/REVISION                the commit that a branch or tag pointed to when it was last asked for
//     snapshots/COMMIT/FILE        a link to ../../blobs/OID, or a copy where links are not possible
//
// A file gets one of these names only when it is whole and checked; until then it is blobs/OID.WHO.incomplete.
// Nothing is locked: processes that fetch the same blob write partial files of their own, and the last rename wins
// with the same bytes. A partial file whose writer is gone is taken over, by a rename that only one process can win.

import { randomBytes } from "node:crypto";
import { copyFile, mkdir, readdir, readFile, rename, rm, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { SHARD_NAME, shardsOfIndex } from "./safetensors_index.ts";

/** What a model directory may hold; nothing else is fetched, whatever a repository lists. No pickle, ever. */
const SMALL_FILES = [
  "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
];
const REQUIRED_FILES = ["config.json", "tokenizer.json"];
export const WEIGHTS = "model.safetensors";
export const INDEX = "model.safetensors.index.json";

export const isRequired = (name: string): boolean => REQUIRED_FILES.includes(name);
export const isShard = (name: string): boolean => SHARD_NAME.test(name);
export const isWanted = (name: string): boolean => [...SMALL_FILES, WEIGHTS, INDEX].includes(name) || isShard(name);
export const isCommit = (text: string): boolean => /^[0-9a-f]{40}$/.test(text);

/**
 * Whether `path` stays below the folder it is joined to, under POSIX and under Windows rules alike. By its text only:
 * resolving links would call the cache's own links an escape.
 */
export function isSafePath(path: string): boolean {
  const hasBadCharacter = /[\\:*?"<>|]|[^\x21-\x7e]/.test(path);
  return !hasBadCharacter && path.split("/").every((part) => part !== "" && !part.endsWith("."));
}

/** The cache of one model. */
export interface ModelCache {
  readonly blobs: string;
  readonly snapshots: string;
  readonly refs: string;
}

/** `model` is "owner/name" or "name". */
export function modelCache(cacheDirectory: string, model: string): ModelCache {
  const folder = join(cacheDirectory, ["models", ...model.split("/")].join("--"));
  return { blobs: join(folder, "blobs"), snapshots: join(folder, "snapshots"), refs: join(folder, "refs") };
}

/** Size of a file, links followed, or undefined where there is none. */
export async function sizeOf(path: string): Promise<number | undefined> {
  try {
    const found = await stat(path);
    return found.isFile() ? found.size : undefined;
  } catch {
    return undefined;
  }
}

// ---- reading ------------------------------------------------------------------------------------------------------

/** The snapshot of a commit, branch or tag from which a model can be loaded, or undefined if the cache has none. */
export async function completeSnapshot(cache: ModelCache, revision: string): Promise<string | undefined> {
  const commit = isCommit(revision) ? revision : await readRef(cache, revision);
  if (commit === undefined || !isCommit(commit)) return undefined;
  const snapshot = join(cache.snapshots, commit);
  const has = async (name: string): Promise<boolean> => (await sizeOf(join(snapshot, name))) !== undefined;
  const needed = [...REQUIRED_FILES];
  if (!(await has(WEIGHTS))) {
    const shards = shardsOf(join(snapshot, INDEX));
    if (shards === undefined) return undefined;
    needed.push(...shards);
  }
  return (await Promise.all(needed.map(has))).every(Boolean) ? snapshot : undefined;
}

/** Files that a repository must have, before anything of it is fetched. */
export function missingFiles(names: ReadonlySet<string>): string[] {
  const missing = REQUIRED_FILES.filter((name) => !names.has(name));
  return names.has(WEIGHTS) || names.has(INDEX) ? missing : [...missing, WEIGHTS];
}

/** The shards that an index names, or undefined when it is no index, or one with unacceptable names. */
export function shardsOf(indexPath: string): string[] | undefined {
  try {
    return shardsOfIndex(indexPath);
  } catch {
    return undefined;
  }
}

async function readRef(cache: ModelCache, revision: string): Promise<string | undefined> {
  const text = await readFile(join(cache.refs, revision), "utf8").catch(() => undefined);
  return text?.trim();
}

// ---- writing ------------------------------------------------------------------------------------------------------

/** Remembers the commit of a branch or tag, for the next run without a connection. */
export async function writeRef(cache: ModelCache, revision: string, commit: string): Promise<void> {
  if (isCommit(revision) || (await readRef(cache, revision)) === commit) return;
  await putInPlace(join(cache.refs, revision), (temporary) => writeFile(temporary, commit));
}

export type Link = (target: string, path: string) => Promise<void>;

/** Makes snapshots/COMMIT/NAME show blobs/OID: a relative link as Python makes it, else (Windows) a copy. */
export async function linkBlob(
  cache: ModelCache, commit: string, name: string, oid: string, link: Link = symlink,
): Promise<void> {
  await putInPlace(join(cache.snapshots, commit, name), async (temporary) => {
    try {
      await link(join("..", "..", "blobs", oid), temporary);
    } catch {
      await copyFile(join(cache.blobs, oid), temporary);
    }
  });
}

/** Creates `path` under a temporary name first, so that nobody sees half of it. */
async function putInPlace(path: string, create: (temporary: string) => Promise<void>): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const temporary = `${path}.${randomBytes(6).toString("hex")}.incomplete`;
  try {
    await create(temporary);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

// ---- partial files ------------------------------------------------------------------------------------------------

/** A live download writes more often than this, see the limits on waiting in hub_request.ts. */
const ABANDONED_AFTER_MS = 5 * 60_000;

/** Partial files that this process is writing. */
const inUse = new Set<string>();

/**
 * A partial file for a blob, for this caller alone: an abandoned one if there is any, else an empty one.
 * Hand it back with `releasePartial`.
 */
export async function claimPartial(cache: ModelCache, oid: string): Promise<string> {
  await mkdir(cache.blobs, { recursive: true });
  const own = join(cache.blobs, `${oid}.${hostname()}.${process.pid}.${randomBytes(6).toString("hex")}.incomplete`);
  inUse.add(own);
  for (const abandoned of await abandonedPartials(cache, oid)) {
    try {
      await utimes(abandoned, new Date(), new Date()); // first, or the next process takes it from us by its age
      await rename(abandoned, own);
      return own;
    } catch {
      // Another process was faster.
    }
  }
  await writeFile(own, "", { flag: "wx" });
  return own;
}

/** How many bytes of a blob `claimPartial` would find. */
export async function resumableBytes(cache: ModelCache, oid: string): Promise<number> {
  const [largest] = await abandonedPartials(cache, oid);
  return largest === undefined ? 0 : ((await sizeOf(largest)) ?? 0);
}

/** Call when done with a partial file, whether it was renamed, removed, or stays for the next attempt. */
export function releasePartial(path: string): void {
  inUse.delete(path);
}

/** Removes what earlier attempts at a blob left behind, now that the blob is there. */
export async function removeAbandoned(cache: ModelCache, oid: string): Promise<void> {
  for (const path of await abandonedPartials(cache, oid)) await rm(path, { force: true });
}

async function abandonedPartials(cache: ModelCache, oid: string): Promise<string[]> {
  const found: { path: string; size: number }[] = [];
  for (const name of await readdir(cache.blobs)) {
    // Python's own partial files have no host and process in their name; they are left alone.
    const [, host, pid] = /^[0-9a-f]+\.(.+)\.(\d+)\.[0-9a-f]{12}\.incomplete$/.exec(name) ?? [];
    if (host === undefined || !name.startsWith(`${oid}.`)) continue;
    const path = join(cache.blobs, name);
    const info = await stat(path).catch(() => undefined); // gone meanwhile
    if (info === undefined || inUse.has(path)) continue;
    const isOld = Date.now() - info.mtimeMs > ABANDONED_AFTER_MS;
    if (isOld || (host === hostname() && !isRunning(Number(pid)))) found.push({ path, size: info.size });
  }
  return found.sort((a, b) => b.size - a.size).map(({ path }) => path);
}

/** Whether a process of this machine may still write. This one does not, or the file would be in use. */
function isRunning(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // it runs, and is somebody else's
  }
}
