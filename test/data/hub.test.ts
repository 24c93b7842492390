// Models by name, against a hub of our own that behaves. See hub_faults.test.ts for one that does not.

import {
  lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, truncateSync, writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, test } from "vitest";
import { parseHubName } from "../../src/data/hub.ts";
import { isSafePath, isWanted } from "../../src/data/hub_cache.ts";
import { formatBytes, startProgress } from "../../src/data/hub_progress.ts";
import { readSettings } from "../../src/data/hub_request.ts";
import {
  expectError, home, hub, lines, modelFolder, partials, resolve, snapshot, TOKEN, weights,
} from "../support/hub_fixture.ts";
import { blobName, COMMIT, isLarge, sendRange, sha256 } from "../support/hub_server.ts";
import { runEntry } from "../support/run_entry.ts";

describe("names", () => {
  test("an existing folder wins, and nothing is asked", async () => {
    expect(await resolve(home)).toBe(home);
    expect(hub.seen).toEqual([]);
  });

  test.each(["./no/such", "/no/such/folder", "a/b/c", "../up", "owner/", "a--b/c", "model.git", "x y/z", "C:\\models",
    "owner/name@", "owner/name@../../x", "owner/name@a\\b", ""])("%j is neither", async (name) => {
    await expectError(resolve(name), "BadName", /^no model directory/);
    expect(hub.seen).toEqual([]);
  });

  test("a file is not a directory", async () => {
    const file = join(home, "weights.bin");
    writeFileSync(file, "x");
    await expectError(resolve(file), "BadName", /is not a directory/);
  });

  test("hub names", () => {
    expect(parseHubName("Qwen/Qwen3-0.6B")).toEqual({ model: "Qwen/Qwen3-0.6B", revision: "main" });
    expect(parseHubName("gpt2")).toEqual({ model: "gpt2", revision: "main" });
    expect(parseHubName("a/b@refs/pr/1")).toEqual({ model: "a/b", revision: "refs/pr/1" });
  });

  test.each(["../x", "a/../../x", "/etc/x", "C:\\x", "D:foo", "\\\\host\\share", "..\\x", "a\0b", "", ".", "a//b",
    "config.json\n", "sub/config.json", "model-1-of-2.safetensors", "pytorch_model.bin", "xmodel.safetensors",
  ])("%j is never a file to fetch", (name) => expect(isWanted(name)).toBe(false));

  test.each(["../x", "a/../../x", "/etc/x", "C:\\x", "D:foo", "\\\\h\\s", "..\\x", "a\0b", "", ".", "a//b", "a/"])(
    "%j leaves its folder on some system", (path) => expect(isSafePath(path)).toBe(false),
  );
});

describe("fetching", () => {
  test("everything wanted, in Python's layout", async () => {
    expect(await resolve()).toBe(snapshot());
    const wanted = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"];
    expect(readdirSync(snapshot()).sort()).toEqual(wanted);
    for (const name of wanted) {
      expect(readlinkSync(join(snapshot(), name))).toBe(join("..", "..", "blobs", blobName(name, hub.files[name]!)));
    }
    expect(readdirSync(join(modelFolder(), "blobs"))).toHaveLength(wanted.length);
    expect(readFileSync(join(modelFolder(), "refs/main"), "utf8")).toBe(COMMIT);
    expect(partials()).toEqual([]);
    expect(lines[0]).toBe(`fetching tiny/model from ${new URL(hub.url).host}: 4 files, 100 kB`);
    expect(lines.at(-1)).toMatch(/^100 kB of 100 kB {2}.*\/s, 0 s left {2}model.safetensors$/);
  });

  test("once: the second run asks only what there is", async () => {
    await resolve();
    hub.seen.length = 0;
    expect(await resolve()).toBe(snapshot());
    expect(hub.seen.map(({ route }) => route)).toEqual(["info", "tree"]);
    expect(hub.seen.every(({ range }) => range === undefined)).toBe(true);
  });

  test("a commit: once, and then nothing is asked", async () => {
    const name = `tiny/model@${COMMIT}`;
    expect(await resolve(name)).toBe(snapshot());
    expect(hub.count("cdn")).toBe(1);
    hub.seen.length = lines.length = 0;
    expect(await resolve(name)).toBe(snapshot());
    expect([...hub.seen, ...lines]).toEqual([]);
    rmSync(join(snapshot(), "tokenizer.json"));
    expect(await resolve(name)).toBe(snapshot());
    expect(hub.count("info")).toBe(1);
    expect(readdirSync(snapshot())).toContain("tokenizer.json");
  });

  test("what makes a snapshot complete is linked last", async () => {
    const linked: string[] = [];
    const link = async (_: string, path: string): Promise<void> => {
      linked.push(/^[a-z_]+\.[a-z]+/.exec(basename(path))![0]);
      throw new Error("EPERM");
    };
    hub.files["tokenizer_config.json"] = Buffer.from("{}");
    await resolve("tiny/model", {}, { link });
    expect(linked).toHaveLength(5);
    expect(linked.slice(3)).toEqual(["config.json", "tokenizer.json"]);
  });

  test("what Python has fetched is used", async () => {
    const blobs = join(modelFolder(), "blobs");
    mkdirSync(blobs, { recursive: true });
    writeFileSync(join(blobs, sha256(weights())), weights());
    await resolve();
    expect(hub.count("cdn")).toBe(0);
    expect(readFileSync(join(snapshot(), "model.safetensors")).equals(weights())).toBe(true);
  });

  test("a blob that lost bytes is fetched again", async () => {
    await resolve();
    truncateSync(join(modelFolder(), "blobs", sha256(weights())), 10);
    await resolve();
    expect(hub.count("cdn")).toBe(2);
  });

  test("copies where links are not possible", async () => {
    await resolve("tiny/model", {}, { link: () => Promise.reject(new Error("EPERM")) });
    expect(lstatSync(join(snapshot(), "model.safetensors")).isFile()).toBe(true);
    hub.seen.length = 0;
    await resolve();
    expect(hub.count("resolve")).toBe(0);
  });

  test("shards of the index, and no others", async () => {
    const shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    const index = { metadata: {}, weight_map: { a: shards[0], b: shards[1], c: shards[0] } };
    delete hub.files["model.safetensors"];
    for (const name of [...shards, "model-00001-of-00009.safetensors"]) hub.files[name] = Buffer.from(name);
    hub.files["model.safetensors.index.json"] = Buffer.from(JSON.stringify(index));
    await resolve();
    expect(readdirSync(snapshot()).filter(isLarge).sort()).toEqual(shards);
    expect(await resolve("tiny/model", { HF_HUB_OFFLINE: "1" })).toBe(snapshot());
    rmSync(join(snapshot(), shards[1]!));
    await expectError(resolve("tiny/model", { HF_HUB_OFFLINE: "1" }), "Offline");
  });

  test("the single file wins over shards", async () => {
    hub.files["model-00001-of-00001.safetensors"] = Buffer.from("shard");
    hub.files["model.safetensors.index.json"] = Buffer.from("{}");
    await resolve();
    expect(readdirSync(snapshot()).filter((name) => name.startsWith("model"))).toEqual(["model.safetensors"]);
  });

  const shard = "model-00001-of-00002.safetensors";
  test.each([["../../evil.safetensors"], [`${shard}/../x`], [7], [shard]])("an index that names %j", async (name) => {
    delete hub.files["model.safetensors"];
    hub.files["model.safetensors.index.json"] = Buffer.from(JSON.stringify({ weight_map: { a: name } }));
    await expectError(resolve(), "UnsupportedModel", /index\.json names/);
  });

  test("the token goes to the hub and to no other host", async () => {
    await resolve("tiny/model", { HF_TOKEN: TOKEN });
    for (const { route, authorization } of hub.seen) {
      expect(authorization).toBe(route === "cdn" ? undefined : `Bearer ${TOKEN}`);
    }
    expect(hub.count("cdn")).toBe(1);
    expect(lines.join()).not.toContain(TOKEN);
  });

  /** Answers nobody until two have asked for the weights, so that neither can profit from the other's blob. */
  function answerBothAtOnce(): void {
    const waiting: (() => void)[] = [];
    hub.intercept = ({ route, range }, response, body) => {
      if (route !== "cdn") return false;
      waiting.push(() => sendRange(response, body, range));
      if (waiting.length < 2) return true;
      expect(partials()).toHaveLength(2);
      waiting.forEach((answer) => answer());
      return true;
    };
  }

  test("two callers at once both succeed", async () => {
    answerBothAtOnce();
    expect(await Promise.all([resolve(), resolve()])).toEqual([snapshot(), snapshot()]);
    expect(partials()).toEqual([]);
  });

  test("two processes at once both succeed", async () => {
    hub.files["model.safetensors"] = Buffer.alloc(3_000_000, "weights");
    answerBothAtOnce();
    const env = { HF_HOME: home, HF_ENDPOINT: hub.url, HF_HUB_OFFLINE: "0" };
    const run = () => runEntry("../test/support/hub_client", ["tiny/model"], { env });
    const results = await Promise.all([run(), run()]);
    expect(results.map(({ code, stdout, errors }) => ({ code, stdout, errors }))).toEqual(
      [1, 2].map(() => ({ code: 0, stdout: `${snapshot()}\n`, errors: [] })),
    );
    expect(partials()).toEqual([]);
  });
});

describe("without a connection", () => {
  const offline = { HF_HUB_OFFLINE: "1" };
  const unreachable = { HF_ENDPOINT: "http://127.0.0.1:9" };

  test("offline: the cache, silently, and no request", async () => {
    await resolve();
    lines.length = hub.seen.length = 0;
    expect(await resolve("tiny/model", offline)).toBe(snapshot());
    expect(await resolve(`tiny/model@${COMMIT}`, offline)).toBe(snapshot());
    expect(hub.seen).toEqual([]);
    expect(lines).toEqual([]);
  });

  test("offline without the model, or with half of it", async () => {
    await expectError(resolve("tiny/model", offline), "Offline", /^no model directory tiny\/model, and the cache /);
    await resolve();
    rmSync(join(snapshot(), "tokenizer.json"));
    await expectError(resolve("tiny/model", offline), "Offline");
    rmSync(join(modelFolder(), "refs"), { recursive: true });
    await expectError(resolve("tiny/model", offline), "Offline");
  });

  test("unreachable: the cache, with a note", async () => {
    await resolve();
    lines.length = 0;
    expect(await resolve("tiny/model", unreachable)).toBe(snapshot());
    expect(lines).toEqual([
      "note: cannot reach 127.0.0.1:9 (bad port); using the copy of tiny/model in the cache",
    ]);
  });

  test("a ref that was tampered with leads nowhere", async () => {
    await resolve();
    writeFileSync(join(modelFolder(), "refs/main"), "../../..");
    await expectError(resolve("tiny/model", offline), "Offline");
  });
});

describe("settings", () => {
  test("places, as Python has them", () => {
    const cacheOf = (env: Record<string, string>): string => readSettings(env).cacheDirectory;
    expect(cacheOf({ HF_HOME: "/h" })).toBe(join("/h", "hub"));
    expect(cacheOf({ HF_HOME: "/h", HF_HUB_CACHE: "/c" })).toBe("/c");
    expect(cacheOf({ XDG_CACHE_HOME: "/x" })).toBe(join("/x", "huggingface", "hub"));
    expect(cacheOf({ HF_HOME: "~/h" })).not.toContain("~");
    for (const yes of ["1", "true", "YES", "on"]) expect(readSettings({ HF_HUB_OFFLINE: yes }).isOffline).toBe(true);
    expect(readSettings({ HF_HUB_OFFLINE: "0" }).isOffline).toBe(false);
    expect(readSettings({ TRANSFORMERS_OFFLINE: "1" }).isOffline).toBe(true);
    expect(readSettings({ HF_HUB_OFFLINE: "", TRANSFORMERS_OFFLINE: "1" }).isOffline).toBe(true);
    expect(readSettings({ HF_HUB_OFFLINE: "0", TRANSFORMERS_OFFLINE: "1" }).isOffline).toBe(false);
  });

  test("a proxy that is not used", () => {
    const proxyOf = (env: Record<string, string>): string | undefined => readSettings(env).unusedProxy;
    expect(proxyOf({})).toBeUndefined();
    expect(proxyOf({ HTTP_PROXY: "http://p:1", HTTPS_PROXY: "" })).toBeUndefined(); // Python asks neither
    for (const name of ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]) {
      expect(proxyOf({ [name]: "http://p:1" })).toBe(name);
    }
    const isNew = parseInt(process.versions.node) >= 24; // or a late 22
    const canUse = isNew || process.allowedNodeEnvironmentFlags.has("--use-env-proxy");
    for (const asked of [{ NODE_USE_ENV_PROXY: "1" }, { NODE_OPTIONS: "--use-env-proxy" }]) {
      expect(proxyOf({ https_proxy: "http://p:1", ...asked })).toBe(canUse ? undefined : "https_proxy");
      expect(proxyOf({ ALL_PROXY: "http://p:1", ...asked })).toBe("ALL_PROXY");
    }
    expect(proxyOf({ HTTPS_PROXY: "http://p:1", NODE_USE_ENV_PROXY: "true" })).toBe("HTTPS_PROXY"); // means nothing
  });

  test("the token from the variable, else from the file that logging in leaves", () => {
    writeFileSync(join(home, "token"), `${TOKEN}\n`);
    expect(readSettings({ HF_HOME: home }).token).toBe(TOKEN);
    expect(readSettings({ HF_HOME: home, HF_TOKEN: "hf_other" }).token).toBe("hf_other");
    expect(readSettings({}).endpoint.href).toBe("https://huggingface.co/");
  });

  test.each([{ HF_TOKEN: `${TOKEN}\nx` }, { HF_ENDPOINT: "http://example.org" }, { HF_ENDPOINT: "example.org" },
    { HF_ENDPOINT: `https://u:${TOKEN}@example.org` }])("%j is refused, unprinted", async (env) => {
    await expectError(resolve("tiny/model", env as Record<string, string>), "BadEnvironment");
  });
});

test("progress counts what was there before, but not into the speed", () => {
  const shown: string[] = [];
  const progress = startProgress(1000, (line) => shown.push(line));
  progress.report("a", 900);
  progress.report("a", 900);
  progress.report("b", 0);
  progress.report("b", 100);
  progress.stop();
  expect(shown).toHaveLength(1);
  expect(shown[0]).toMatch(/^1\.0 kB of 1\.0 kB {2}.*\/s, 0 s left {2}b$/);
  expect([0, 999, 1000, 123_456, 15e8].map(formatBytes)).toEqual(["0 B", "999 B", "1.0 kB", "123 kB", "1.5 GB"]);
});
