// Fetches one file of a repository into the cache, and lets it have its name only when its bytes are the right ones.
//
// Departure from the hub library's own download, which trusts what arrives: size and hash are checked against the
// repository's listing, a broken download goes on where it stopped (also in a later process), and no more bytes are
// accepted than were announced. The hash is taken from the file on disk, so it also covers bytes of an earlier run.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { join } from "node:path";
import { claimPartial, releasePartial, removeAbandoned, sizeOf } from "./hub_cache.ts";
import type { ModelCache } from "./hub_cache.ts";
import { HubError, request, withRetries } from "./hub_request.ts";
import type { Hub } from "./hub_request.ts";

/** A file as the repository lists it. */
export interface RemoteFile {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Hex digest that also names the blob: sha256 of the bytes for LFS files, else sha1 of git's blob. */
  readonly oid: string;
  readonly isLfs: boolean;
}

/** Connections per file and run. */
const DOWNLOAD_ATTEMPTS = 6;

/** These say that the partial file is of no use; after all others it is kept, to go on from. */
const SPOILED = ["BadResponse", "SizeMismatch", "HashMismatch"];

/**
 * Makes blobs/OID hold `file`, fetched from `url`. `onBytes` learns how many bytes of it are there.
 * @throws HubError, and the file system's own errors
 */
export async function downloadBlob(
  hub: Hub, cache: ModelCache, url: URL, file: RemoteFile, onBytes: (done: number) => void,
): Promise<void> {
  const blob = join(cache.blobs, file.oid);
  const partial = await claimPartial(cache, file.oid);
  const isResumed = (await sizeOf(partial)) !== 0;
  try {
    onBytes((await sizeOf(partial)) ?? 0);
    await withRetries(hub, DOWNLOAD_ATTEMPTS, () => fetchRest(hub, url, file, partial, onBytes));
    await checkHash(hub, file, partial);
    await rename(partial, blob);
  } catch (error) {
    if (!(error instanceof HubError)) {
      // Another process may have taken the partial file for abandoned, or Windows may keep a blob that is in use.
      if ((await sizeOf(blob)) !== file.size) throw error;
      return await rm(partial, { force: true });
    }
    if (SPOILED.includes(error.code)) await rm(partial, { force: true });
    // The wrong bytes may be those of an earlier run, for instance one that ended with a power cut.
    if (error.code === "HashMismatch" && isResumed) return await downloadBlob(hub, cache, url, file, onBytes);
    throw error;
  } finally {
    releasePartial(partial);
  }
  await removeAbandoned(cache, file.oid);
}

/** Asks for the bytes that `path` lacks, and writes them to it. */
async function fetchRest(
  hub: Hub, url: URL, file: RemoteFile, path: string, onBytes: (done: number) => void,
): Promise<void> {
  const handle = await open(path, "r+");
  try {
    let done = (await handle.stat()).size;
    if (done > file.size) await handle.truncate((done = 0));
    if (done === file.size) return;
    const headers: Record<string, string> = { "accept-encoding": "identity" };
    if (done > 0) headers["range"] = `bytes=${done}-`;
    await request(hub, url, headers, async (response, body) => {
      const start = startOf(hub, file, response);
      if (start !== 0 && start !== done) {
        throw new HubError(
          "BadResponse", `${hub.model}: the server sends another part of ${file.name}. Fix: try again later`,
        );
      }
      if (start === 0 && done > 0) await handle.truncate((done = 0)); // a server that ignores Range
      for await (const chunk of body) {
        if (done + chunk.length > file.size) throw wrongSize(hub, file, "more");
        await writeAll(handle, chunk, done);
        onBytes((done += chunk.length));
      }
    });
    if (done < file.size) {
      const missing = `${file.name} ended after ${done} of ${file.size} bytes`;
      throw new HubError("Network", `${hub.model}: ${missing}. Fix: run again, it goes on where it stopped`);
    }
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** At which byte of the file the body begins. Throws when its announced size is not the listed one. */
function startOf(hub: Hub, file: RemoteFile, { status, headers }: Response): number {
  const range = status === 206 ? /^bytes (\d+)-\d+\/(\d+)$/.exec(headers.get("content-range") ?? "") : undefined;
  if (range === null) {
    throw new HubError(
      "BadResponse", `${hub.model}: the server sends unknown parts of ${file.name}. Fix: try again later`,
    );
  }
  const total = range === undefined ? headers.get("content-length") : range[2]!;
  if (total !== null && Number(total) !== file.size) throw wrongSize(hub, file, total);
  return range === undefined ? 0 : Number(range[1]);
}

function wrongSize(hub: Hub, file: RemoteFile, sent: string): HubError {
  return new HubError(
    "SizeMismatch",
    `${hub.model}: ${file.name} has ${file.size} bytes, the server sends ${sent}. Fix: try again later`,
  );
}

/** At `position` and not at the end: should two processes ever share a file, they write the same bytes there. */
async function writeAll(handle: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let written = 0; written < bytes.length; ) {
    written += (await handle.write(bytes, written, bytes.length - written, position + written)).bytesWritten;
  }
}

async function checkHash(hub: Hub, file: RemoteFile, path: string): Promise<void> {
  const hash = createHash(file.isLfs ? "sha256" : "sha1");
  if (!file.isLfs) hash.update(`blob ${file.size}\0`);
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  if (hash.digest("hex") === file.oid) return;
  throw new HubError(
    "HashMismatch",
    `${hub.model}: the bytes of ${file.name} are not those of the repository (${file.isLfs ? "sha256" : "git id"} ` +
      `differs). Fix: try again; if it stays, something between here and ${hub.endpoint.host} changes them`,
  );
}
