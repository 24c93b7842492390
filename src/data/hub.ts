// A model by name: `resolveModel("Qwen/Qwen3-0.6B")` returns the directory it was fetched into, from which it loads.
//
// The hub library asks what the repository holds; requests, downloads and the cache are guarded (hub_request.ts,
// hub_download.ts, hub_cache.ts), because the library's own download trusts names, sizes and bytes as they come.
// A branch or tag is resolved to a commit first, and everything after that is asked of the commit.

import type { ListFileEntry } from "@huggingface/hub";
import { mkdir, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  completeSnapshot, INDEX, isCommit, isRequired, isSafePath, isShard, isWanted, linkBlob, missingFiles, modelCache,
  resumableBytes, shardsOf, sizeOf, WEIGHTS, writeRef,
} from "./hub_cache.ts";
import type { Link, ModelCache } from "./hub_cache.ts";
import { downloadBlob } from "./hub_download.ts";
import type { RemoteFile } from "./hub_download.ts";
import { formatBytes, startProgress } from "./hub_progress.ts";
import { apiFetch, firstSentence, HubError, isTransient, readSettings } from "./hub_request.ts";
import type { Environment, Hub } from "./hub_request.ts";

export { HubError };
export type { HubErrorCode } from "./hub_request.ts";

/** What may be replaced, for tests. */
export interface ResolveOptions {
  /** Default process.env; see `readSettings` for what counts. */
  readonly env?: Environment;
  /** Takes notes and progress, a line each. Default: stderr. */
  readonly log?: (line: string) => void;
  /** Bytes that may still be written to the disk of a directory. */
  readonly freeBytes?: (directory: string) => Promise<number>;
  readonly link?: Link;
  readonly sleep?: (milliseconds: number) => Promise<void>;
  readonly stallMs?: number;
}

/**
 * The directory to load a model from: `name` itself if there is such a folder, else the snapshot of a hub model,
 * "owner/name", "name" or "owner/name@revision" (a branch, tag or 40-digit commit; default main), fetched if needed.
 *
 * Reads HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT as Python does, and shares its cache. A
 * commit that the cache holds whole is not asked for. A branch or tag is, and where the hub cannot be reached or does
 * not show the model (any more), a complete snapshot in the cache serves. A file that is in the cache with the listed
 * size is trusted.
 * @throws HubError
 */
export async function resolveModel(name: string, options: ResolveOptions = {}): Promise<string> {
  const found = await stat(name).catch(() => undefined);
  if (found?.isDirectory()) return name;
  const parsed = found === undefined ? parseHubName(name) : undefined;
  if (parsed === undefined) {
    const cause = found ? `${name} is not a directory` : `no model directory ${name}, and that is no hub name`;
    throw new HubError("BadName", `${cause}. Fix: give --model a model directory, or a hub name like owner/name`);
  }
  const { model, revision } = parsed;
  const log = options.log ?? ((line) => console.error(line));
  const hub: Hub = { ...readSettings(options.env ?? process.env), model, log, sleep, stallMs: 30_000, ...options };
  const cache = modelCache(hub.cacheDirectory, model);
  const known = hub.isOffline || isCommit(revision) ? await completeSnapshot(cache, revision) : undefined;
  if (known !== undefined) return known;
  if (hub.isOffline) {
    const cause = `no model directory ${name}, and the cache ${hub.cacheDirectory} does not hold that model whole`;
    const fix = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to fetch it, or check the name";
    throw new HubError("Offline", `${cause}. Fix: ${fix}`);
  }
  let isFound = false;
  try {
    const listing = await listModel(hub, revision);
    isFound = true;
    return await fetchSnapshot(hub, cache, revision, listing, options);
  } catch (error) {
    const snapshot = isWithheld(error) ? await completeSnapshot(cache, revision) : undefined;
    if (snapshot === undefined) throw explain(error, hub, isFound ? "" : `no model directory ${name}, and `);
    log(`note: ${firstSentence((error as Error).message)}; using the copy of ${name} in the cache`);
    return snapshot;
  }
}

/** Whether the cache may serve instead: the hub is out of reach, or does not show the model to this user. */
function isWithheld(error: unknown): boolean {
  return isTransient(error) || (error instanceof HubError && ["AccessDenied", "NotFound"].includes(error.code));
}

/** The hub's naming rule. A name that breaks it is a path that does not exist. */
export function parseHubName(text: string): { model: string; revision: string } | undefined {
  const at = text.indexOf("@");
  const [model, revision] = at < 0 ? [text, "main"] : [text.slice(0, at), text.slice(at + 1)];
  const parts = model.split("/");
  const isName = parts.every((part) => /^\w([\w.-]{0,94}\w)?$/.test(part)) && !/--|\.\.|\.git$/.test(model);
  return parts.length <= 2 && isName && isSafePath(revision) ? { model, revision } : undefined;
}

/** The error to report: `before` reminds of a name that may have been meant as a path; failures to write get a type. */
function explain(error: unknown, hub: Hub, before: string): unknown {
  if (error instanceof HubError) return new HubError(error.code, before + error.message, { cause: error });
  const { code, syscall, message } = error as NodeJS.ErrnoException;
  if (syscall === undefined) return error;
  const cause = `the model cache ${hub.cacheDirectory}`;
  const options = { cause: error };
  if (code === "ENOSPC" || code === "EDQUOT") {
    const fix = "free some space, or set HF_HOME to another disk";
    return new HubError("NoSpace", `no space left for ${cause}. Fix: ${fix}`, options);
  }
  const problem = `cannot be written (${code ?? message})`;
  return new HubError("CacheUnwritable", `${cause} ${problem}. Fix: set HF_HOME to a folder that can`, options);
}

// ---- fetching -----------------------------------------------------------------------------------------------------

async function fetchSnapshot(
  hub: Hub, cache: ModelCache, revision: string, { commit, files }: Listing, options: ResolveOptions,
): Promise<string> {
  const names = new Set(files.keys());
  const missing = missingFiles(names);
  if (missing.length > 0) {
    const cause = `${hub.model} has no ${missing.join(", no ")}`;
    throw new HubError("UnsupportedModel", `${cause}. Fix: choose a model with safetensors weights and tokenizer.json`);
  }
  if (names.has(WEIGHTS)) {
    for (const name of names) if (name === INDEX || isShard(name)) files.delete(name);
  } else {
    await fetchFiles(hub, cache, commit, [files.get(INDEX)!], options);
    keepShardsOfIndex(hub, join(cache.snapshots, commit, INDEX), files);
  }
  await fetchFiles(hub, cache, commit, [...files.values()], options);
  await writeRef(cache, revision, commit); // last: until now it named a snapshot that is complete
  return join(cache.snapshots, commit);
}

interface Listing {
  readonly commit: string;
  readonly files: Map<string, RemoteFile>;
}

/** The commit that a revision stands for, and its files that we know what to do with. */
async function listModel(hub: Hub, revision: string): Promise<Listing> {
  const { listFiles, modelInfo } = await import("@huggingface/hub"); // not needed for a model on disk
  // Without the token: it would refuse tokens of other hubs. `request` adds it.
  const common = { hubUrl: baseOf(hub), fetch: apiFetch(hub) };
  const files = new Map<string, RemoteFile>();
  try {
    const commit = (await modelInfo({ ...common, name: hub.model, revision, additionalFields: ["sha"] })).sha;
    if (typeof commit !== "string" || !isCommit(commit)) throw new Error("no commit");
    for await (const entry of listFiles({ ...common, repo: hub.model, revision: commit })) {
      if (entry.type === "file" && isWanted(entry.path)) files.set(entry.path, remoteFile(entry));
    }
    return { commit, files };
  } catch (error) {
    if (error instanceof HubError) throw error;
    const cause = `${hub.endpoint.host} describes ${hub.model} in an unknown way (${firstLine(error)})`;
    throw new HubError("BadResponse", `${cause}. Fix: check HF_ENDPOINT, or try again later`, { cause: error });
  }
}

/** The endpoint as a prefix of addresses. */
const baseOf = (hub: Hub): string => hub.endpoint.href.replace(/\/$/, "");

const firstLine = (error: unknown): string => (error as Error).message.split("\n")[0]!.slice(0, 100);

function remoteFile({ path: name, size, oid, lfs }: ListFileEntry): RemoteFile {
  const isLfs = lfs !== undefined;
  const digest = isLfs ? lfs.oid : oid;
  const isDigest = typeof digest === "string" && (isLfs ? /^[0-9a-f]{64}$/ : /^[0-9a-f]{40}$/).test(digest);
  if (!isDigest || !Number.isSafeInteger(size) || size < 0) throw new Error(`size or hash of ${name}`);
  return { name, size, oid: digest, isLfs };
}

function keepShardsOfIndex(hub: Hub, path: string, files: Map<string, RemoteFile>): void {
  const shards = shardsOf(path);
  const absent = shards?.filter((name) => !files.has(name));
  if (shards === undefined || absent!.length > 0) {
    const problem = shards === undefined ? "names no shards, or strange ones" : `names absent ${absent!.join(", ")}`;
    throw new HubError("UnsupportedModel", `${hub.model}: ${INDEX} ${problem}. Fix: choose another model or revision`);
  }
  for (const name of files.keys()) if (isShard(name) && !shards.includes(name)) files.delete(name);
}

/** Brings files into the cache and, once all of them are there, into the snapshot. */
async function fetchFiles(
  hub: Hub, cache: ModelCache, commit: string, files: readonly RemoteFile[], options: ResolveOptions,
): Promise<void> {
  const isInSnapshot = await Promise.all(
    files.map(async ({ name, size }) => (await sizeOf(join(cache.snapshots, commit, name))) === size),
  );
  const toLink = files.filter((_, i) => !isInSnapshot[i]);
  const isBlob = await Promise.all(toLink.map((file) => hasBlob(cache, file)));
  const toFetch = toLink.filter((_, i) => !isBlob[i]);
  if (toFetch.length > 0) {
    await checkSpace(hub, cache, toFetch, options.freeBytes ?? freeBytesOf);
    await downloadAll(hub, cache, commit, toFetch);
  }
  // Last what makes a snapshot complete, should the process be killed between two links.
  toLink.sort((a, b) => Number(isRequired(a.name)) - Number(isRequired(b.name)));
  for (const { name, oid } of toLink) await linkBlob(cache, commit, name, oid, options.link);
}

async function hasBlob(cache: ModelCache, { oid, size }: RemoteFile): Promise<boolean> {
  return (await sizeOf(join(cache.blobs, oid))) === size;
}

/** Before the first byte, not after the last that fits. */
async function checkSpace(
  hub: Hub, cache: ModelCache, files: readonly RemoteFile[], freeBytes: (directory: string) => Promise<number>,
): Promise<void> {
  await mkdir(cache.blobs, { recursive: true });
  let needed = 0;
  for (const { size, oid } of files) needed += Math.max(0, size - (await resumableBytes(cache, oid)));
  const free = await freeBytes(cache.blobs);
  if (needed <= free) return;
  const has = `the disk of ${hub.cacheDirectory} has ${formatBytes(free)} left`;
  const fix = "free some space, or set HF_HOME to another disk";
  throw new HubError("NoSpace", `${hub.model} needs ${formatBytes(needed)}, ${has}. Fix: ${fix}`);
}

async function downloadAll(hub: Hub, cache: ModelCache, commit: string, files: readonly RemoteFile[]): Promise<void> {
  const total = files.reduce((sum, { size }) => sum + size, 0);
  const count = files.length === 1 ? files[0]!.name : `${files.length} files`;
  hub.log(`fetching ${hub.model} from ${hub.endpoint.host}: ${count}, ${formatBytes(total)}`);
  const progress = startProgress(total, hub.log);
  try {
    for (const file of files) {
      if (await hasBlob(cache, file)) continue; // another process has fetched it meanwhile
      const url = new URL(`${baseOf(hub)}/${hub.model}/resolve/${commit}/${file.name}`);
      await downloadBlob(hub, cache, url, file, (done) => progress.report(file.name, done));
    }
  } finally {
    progress.stop();
  }
}

async function freeBytesOf(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}
