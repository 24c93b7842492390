/** A model by its hub name, through the command lines: downloaded once, then read, trained and saved like a folder. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startHub, type TestHub } from "../support/hub_server.ts";
import { runEntry, type EntryResult } from "../support/run_entry.ts";
import { makeDigitLoverDirectory } from "../support/tiny_model.ts";

const home = mkdtempSync(join(tmpdir(), "hub-model-"));
let hub: TestHub;
let source: string;

beforeAll(async () => {
  hub = await startHub();
  source = makeDigitLoverDirectory();
  hub.files = Object.fromEntries(readdirSync(source).map((name) => [name, readFileSync(join(source, name))]));
});
afterAll(async () => {
  await hub.close();
  [home, source].forEach((directory) => rmSync(directory, { recursive: true }));
});

async function run(entry: string, ...args: string[]): Promise<EntryResult> {
  const result = await runEntry(entry, ["--model", "tiny/model", ...args], {
    env: { HF_HOME: home, HF_ENDPOINT: hub.url, HF_HUB_OFFLINE: "0", HF_HUB_CACHE: "" },
  });
  expect(result).toMatchObject({ code: 0, errors: [] });
  return result;
}

test("generate and train download a model once and treat it like a folder", async () => {
  const ask = ["--prompt", "A digit?", "--max-tokens", "8"];
  const byName = await run("model/generate", ...ask);
  const downloads = hub.seen.filter(({ path }) => path.includes("model.safetensors")).length;
  expect(downloads).toBeGreaterThan(0);
  const folder = await runEntry("model/generate", ["--model", source, ...ask]);
  expect(byName.stdout).toBe(folder.stdout);

  const out = join(home, "run");
  const { stdout } = await run("grpo/train", "--out", out, "--train-steps", "1", "--grad-updates-per-step", "2");
  expect(stdout).toContain("Grad step 2/2 in train step 1/1 completed.");
  expect(hub.seen.filter(({ path }) => path.includes("model.safetensors")).length).toBe(downloads);
  expect(readdirSync(join(out, "model")).sort()).toEqual(readdirSync(source).sort());
  expect(existsSync(join(home, "hub", "models--tiny--model", "snapshots"))).toBe(true);

  const halved = await run("model/generate", ...ask, "--bf16");
  expect(halved.stdout).not.toBe("");
});
