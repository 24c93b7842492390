/**
 * The manifest of a checkpoint: which files belong to it, with size and sha256. It is written last, so a folder that
 * has one was complete, and whatever has happened to a file since then is found before the file is used.
 *
 * The manifest guards itself too: it holds the sha256 of its own content, and its text must be exactly what this file
 * would write. Only the number of its schema is read before that is known.
 */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join, relative, sep } from "node:path";
import { syncDirectory } from "../data/sync_directory.ts";
import { CheckpointError } from "../model/config.ts";

const MANIFEST = "manifest.json";
/** Of the folder's layout and of state.json. A change that older versions would misread counts it up. */
const SCHEMA = 2;

export interface Fingerprint {
  readonly bytes: number;
  readonly sha256: string;
}

interface Manifest {
  readonly schema: number;
  /** The version of this package that wrote the checkpoint. */
  readonly webgrpo: string;
  /** ISO 8601, UTC. */
  readonly savedAt: string;
  /** Names relative to the folder, with "/". */
  readonly files: readonly ({ readonly name: string } & Fingerprint)[];
}

/** Size and sha256 of a file, or of its first `length` bytes; of what there is where the file is shorter. */
export async function fingerprint(path: string, length = Infinity): Promise<Fingerprint> {
  const hash = createHash("sha256");
  let bytes = 0;
  if (length > 0) {
    for await (const chunk of createReadStream(path, { end: length - 1, highWaterMark: 1 << 20 })) {
      hash.update(chunk as Buffer);
      bytes += (chunk as Buffer).length;
    }
  }
  return { bytes, sha256: hash.digest("hex") };
}

/** Waits until a file is on the disk, not only in the system's cache. */
export async function makeDurable(path: string): Promise<void> {
  const file = await open(path, "r+"); // Windows syncs only what is open for writing
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes every file in `folder` durable, then the manifest that lists them, then the names of all. */
export async function writeManifest(folder: string): Promise<void> {
  const { files: names, folders } = contentOf(folder);
  const files: Manifest["files"][number][] = [];
  for (const name of names) {
    await makeDurable(join(folder, name));
    files.push({ name, ...(await fingerprint(join(folder, name))) });
  }
  const manifest: Manifest = { schema: SCHEMA, webgrpo: packageVersion(), savedAt: new Date().toISOString(), files };
  writeFileSync(join(folder, MANIFEST), encodeManifest(manifest));
  await makeDurable(join(folder, MANIFEST));
  for (const name of folders) syncDirectory(join(folder, name));
  syncDirectory(folder);
}

/**
 * Checks that `folder` holds what its manifest lists, byte for byte, and nothing else.
 * @throws CheckpointError that names the first file that is missing, damaged or unknown.
 */
export async function verifyFiles(folder: string): Promise<void> {
  const fix = "Fix: resume an older checkpoint (--resume with the folder of the run takes the newest sound one)";
  const refuse = (problem: string): never => {
    throw new CheckpointError(`${problem}. ${fix}`);
  };
  const listed = new Map(readManifest(folder, refuse).files.map((file) => [file.name, file]));
  const found = contentOf(folder).files.filter((name) => name !== MANIFEST);
  for (const name of listed.keys()) {
    if (!found.includes(name)) refuse(`${join(folder, name)} is missing`);
  }
  for (const name of found) {
    const path = join(folder, name);
    const expected = listed.get(name);
    if (expected === undefined) throw new CheckpointError(`${path} is not in ${MANIFEST}. Fix: remove it`);
    const { size } = statSync(path);
    if (size !== expected.bytes) refuse(`${path} has ${size} bytes, ${MANIFEST} says ${expected.bytes}`);
    const { sha256 } = await fingerprint(path);
    if (sha256 !== expected.sha256) refuse(`${path} is damaged: its sha256 is not the one in ${MANIFEST}`);
  }
}

/** When a checkpoint was saved, ISO 8601; by the file system where its manifest cannot be read. Verifies nothing. */
export function savedAt(folder: string): string {
  try {
    const manifest = JSON.parse(readFileSync(join(folder, MANIFEST), "utf8")) as Partial<Manifest>;
    return new Date(manifest.savedAt!).toISOString();
  } catch {
    return statSync(folder).mtime.toISOString();
  }
}

function readManifest(folder: string, refuse: (problem: string) => never): Manifest {
  const path = join(folder, MANIFEST);
  if (!existsSync(path)) return refuse(`${folder} has no ${MANIFEST}: it is not a complete checkpoint`);
  const text = readFileSync(path, "utf8");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return refuse(`${path} is damaged: it is not valid JSON`);
  }
  const { sha256, ...manifest } = (json ?? {}) as Manifest & { sha256?: unknown };
  if (manifest.schema > SCHEMA) {
    throw new CheckpointError(
      `${path} has schema ${manifest.schema}, of webgrpo ${manifest.webgrpo}; ` +
        `this is webgrpo ${packageVersion()}, which reads schema ${SCHEMA}. Fix: update webgrpo`,
    );
  }
  if (typeof sha256 !== "string" || encodeManifest(manifest) !== text) {
    return refuse(`${path} is damaged: it is not as it was written`);
  }
  return manifest;
}

function encodeManifest(manifest: Manifest): string {
  const sha256 = createHash("sha256").update(JSON.stringify(manifest)).digest("hex");
  return JSON.stringify({ ...manifest, sha256 }, null, 1) + "\n";
}

/** Names of everything below a folder. A link counts as a file: no checkpoint is saved with one. */
function contentOf(folder: string): { files: string[]; folders: string[] } {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true });
  const names = (wantFolders: boolean): string[] =>
    entries
      .filter((entry) => entry.isDirectory() === wantFolders)
      .map(({ parentPath, name }) => relative(folder, join(parentPath, name)).replaceAll(sep, "/"))
      .sort();
  return { files: names(false), folders: names(true) };
}

function packageVersion(): string {
  const text = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(text) as { version: string }).version;
}
