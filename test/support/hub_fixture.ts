/**
 * What the tests of models by name share: a hub, a fresh cache for each test, and a look at every file of that cache
 * after it. Each file with a final name must hold the right bytes, whatever went wrong. Importing this sets it up.
 */
import { existsSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { afterAll, afterEach, beforeEach, expect } from "vitest";
import { HubError, resolveModel } from "../../src/data/hub.ts";
import type { HubErrorCode, ResolveOptions } from "../../src/data/hub.ts";
import { COMMIT, gitOid, sampleRepository, sha256, startHub } from "./hub_server.ts";
import type { TestHub } from "./hub_server.ts";

export const TOKEN = "hf_topsecret";
export const hub: TestHub = await startHub();
/** HF_HOME of the test that runs. */
export let home = "";
/** What the user was told, and how long the code wanted to sleep, milliseconds. */
export const lines: string[] = [];
export const waits: number[] = [];

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), "hub-"));
  lines.length = waits.length = hub.seen.length = 0;
  Object.assign(hub, { files: sampleRepository(), intercept: () => false, editListing: (entries: unknown) => entries });
});
afterEach(() => {
  try {
    assertOnlyGoodFiles();
  } finally {
    rmSync(home, { recursive: true });
  }
});
afterAll(() => hub.close());

export const modelFolder = (): string => join(home, "hub", "models--tiny--model");
export const snapshot = (): string => join(modelFolder(), "snapshots", COMMIT);
export const weights = (): Buffer => hub.files["model.safetensors"]!;

/** Resolves against the test's hub and cache. */
export function resolve(
  name = "tiny/model", env: Record<string, string> = {}, options: ResolveOptions = {},
): Promise<string> {
  return resolveModel(name, {
    env: { HF_HOME: home, HF_ENDPOINT: hub.url, ...env },
    log: (line) => lines.push(line),
    sleep: async (milliseconds) => void waits.push(milliseconds),
    ...options,
  });
}

/** The error must be typed, one line with a cause and a fix, and must not tell the token or a signed address. */
export async function expectError(
  promise: Promise<string>, code: HubErrorCode, message: string | RegExp = "",
): Promise<void> {
  const error: unknown = await promise.then((value) => `resolved to ${value}`, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(HubError);
  const { code: actual, message: text } = error as HubError;
  expect({ code: actual, text }).toEqual({ code, text: expect.stringMatching(/^[^\n]+\. Fix: [^\n]+$/) as string });
  expect(text).toMatch(message);
  expect(text + lines.join()).not.toMatch(/topsecret|signature/);
}

/** Files below a folder, as paths from it. */
function walk(folder: string): string[] {
  if (!existsSync(folder) || !lstatSync(folder).isDirectory()) return [];
  return readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((path) => {
    return !lstatSync(join(folder, path)).isDirectory();
  });
}

/** Partial files in the cache. */
export const partials = (): string[] => walk(modelFolder()).filter((path) => path.endsWith(".incomplete"));

/** Names in blobs/ are hashes of the bytes; names in snapshots/ lead to a file of the repository, whole. */
function assertOnlyGoodFiles(): void {
  for (const path of walk(home).filter((name) => !name.endsWith(".incomplete"))) {
    const [name, folder] = [basename(path), basename(dirname(path))];
    const bytes = readFileSync(join(home, path)); // throws for a link to nowhere
    if (folder === "blobs") expect([sha256(bytes), gitOid(bytes)], path).toContain(name);
    if (folder === COMMIT) expect(bytes.equals(hub.files[name]!), path).toBe(true);
  }
  expect(walk(home).filter((path) => path.includes("snapshots") && path.endsWith(".incomplete"))).toEqual([]);
}
