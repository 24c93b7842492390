// Models by name, against a hub of our own that breaks or attacks: each fault is one typed line
// and leaves no bad file.

import { spawnSync } from "node:child_process";
import {
  existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, utimesSync, writeFileSync,
} from "node:fs";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  expectError, home, hub, lines, modelFolder, partials, resolve, snapshot, TOKEN, waits, weights,
} from "../support/hub_fixture.ts";
import { COMMIT, sendJson, sendRange, sendThenBreak, sha256 } from "../support/hub_server.ts";
import { runEntry } from "../support/run_entry.ts";

describe("a broken connection", () => {
  const half = 50_000;
  const rangesAsked = () => hub.seen.filter(({ route }) => route === "cdn").map(({ range }) => range);

  test("at 50%: goes on from there", async () => {
    hub.intercept = ({ route, range }, response, body) => {
      if (route !== "cdn" || range !== undefined) return false;
      sendThenBreak(response, body, half);
      return true;
    };
    await resolve();
    expect(rangesAsked()).toEqual([undefined, "bytes=50000-"]);
    expect(waits).toEqual([500]);
  });

  test("for good: one line, and the next run goes on", async () => {
    hub.intercept = ({ route, range }, response, body) => {
      if (route !== "cdn") return false;
      sendThenBreak(response, body, range === undefined ? half : 0, range);
      return true;
    };
    await expectError(resolve(), "Network", /broke .*run again/);
    expect(waits).toEqual([500, 1000, 2000, 4000, 8000]);
    expect(partials()).toHaveLength(1);
    expect(existsSync(snapshot())).toBe(false);

    hub.intercept = () => false;
    hub.seen.length = 0;
    await resolve("tiny/model", {}, { freeBytes: async () => half });
    expect(rangesAsked()).toEqual(["bytes=50000-"]);
    expect(partials()).toEqual([]);
  });

  /** Leaves a partial file as a process that was killed does. */
  function leavePartial(bytes: Buffer, who: string): string {
    const blobs = join(modelFolder(), "blobs");
    mkdirSync(blobs, { recursive: true });
    const path = join(blobs, `${sha256(weights())}.${who}.0123456789ab.incomplete`);
    writeFileSync(path, bytes);
    return path;
  }

  test("partial bytes that are wrong are dropped, and the file fetched whole", async () => {
    const path = leavePartial(Buffer.alloc(half), "elsewhere.1");
    utimesSync(path, 0, 0);
    await resolve();
    expect(rangesAsked()).toEqual(["bytes=50000-", undefined]);
  });

  test("the partial file of a process that was killed is gone on with", async () => {
    const { pid } = spawnSync(process.execPath, ["--version"]);
    leavePartial(weights().subarray(0, half), `${hostname()}.${pid}`);
    await resolve();
    expect(rangesAsked()).toEqual(["bytes=50000-"]);
    expect(partials()).toEqual([]);
  });

  test.each([["another machine", "elsewhere.1"], ["a process that runs", `${hostname()}.${process.ppid}`]])(
    "a partial file that %s is writing is left alone", async (_, who) => {
      const path = leavePartial(weights().subarray(0, half), who);
      await resolve();
      expect(readFileSync(path)).toHaveLength(half);
      expect(rangesAsked()).toEqual([undefined]);
    },
  );

  test("a server that ignores Range starts over", async () => {
    utimesSync(leavePartial(weights().subarray(0, half), "elsewhere.1"), 0, 0);
    hub.intercept = ({ route }, response, body) => route === "cdn" && (sendRange(response, body), true);
    await resolve();
  });

  test("a silent server is given up", async () => {
    hub.intercept = ({ route }) => route === "cdn";
    await expectError(resolve("tiny/model", {}, { stallMs: 30 }), "Network", /silent for 0.03 s/);
  });

  test("no server at all", async () => {
    await expectError(resolve("tiny/model", { HF_ENDPOINT: "http://127.0.0.1:9" }), "Network", /^no model directory/);
    expect(waits).toEqual([500, 1000]);
  });

  test.each([["https_proxy", "NODE_USE_ENV_PROXY=1"], ["ALL_PROXY", "HTTPS_PROXY and NODE_USE_ENV_PROXY=1"]])(
    "no server, but for the proxy that %s names", async (name, settings) => {
      const env = { HF_ENDPOINT: "http://127.0.0.1:9", [name]: "http://user:topsecret@proxy:3128" };
      const message = `; the proxy in ${name} is not used. Fix: run Node 24 with ${settings}, or download the model `;
      await expectError(resolve("tiny/model", env), "Network", message);
    },
  );
});

describe("wrong bytes", () => {
  const answerWith = (bytes: () => Buffer): void => {
    hub.intercept = ({ route }, response) => route === "cdn" && (response.end(bytes()), true);
  };

  test("wrong hash", async () => {
    answerWith(() => Buffer.alloc(weights().length));
    await expectError(resolve(), "HashMismatch", /model\.safetensors are not those .* \(sha256 differs\)/);
    expect(partials()).toEqual([]);
    expect(hub.count("cdn")).toBe(1);
  });

  test("wrong hash of a small file", async () => {
    hub.intercept = ({ file }, response) => file === "config.json" && (response.end("{}".padEnd(22)), true);
    await expectError(resolve(), "HashMismatch", /config\.json .* \(git id differs\)/);
  });

  test.each([[10], [200_000]])("a body of %i bytes where 100000 are listed", async (length) => {
    answerWith(() => Buffer.alloc(length));
    await expectError(resolve(), "SizeMismatch", /has 100000 bytes, the server sends/);
    expect(partials()).toEqual([]);
  });

  test("a body without announced length that is short", async () => {
    hub.intercept = ({ route, range }, response, body) => {
      if (route !== "cdn") return false;
      if (range !== undefined) sendRange(response, body, range);
      else {
        response.write(body.subarray(0, 1000));
        response.end();
      }
      return true;
    };
    await resolve();
    expect(hub.seen.map(({ range }) => range)).toContain("bytes=1000-");
  });

  test("a body without end", async () => {
    hub.intercept = ({ route }, response) => {
      if (route !== "cdn") return false;
      const timer = setInterval(() => response.write(Buffer.alloc(65_536)), 1);
      response.on("close", () => clearInterval(timer));
      return true;
    };
    await expectError(resolve(), "SizeMismatch", /sends more/);
  });

  test("another part than asked for", async () => {
    hub.intercept = ({ route }, response, body) => {
      if (route !== "cdn") return false;
      response.writeHead(206, { "content-range": `bytes 7-${body.length - 1}/${body.length}` }).end(body.subarray(7));
      return true;
    };
    await expectError(resolve(), "BadResponse");
  });
});

describe("refusals", () => {
  const answer = (status: number, headers = {}): void => {
    hub.intercept = (_, response) => (sendJson(response, { error: "no" }, status, headers), true);
  };

  test("401 without a token", async () => {
    answer(401);
    await expectError(resolve(), "AccessDenied", /^no model directory tiny\/model, and .* HF_TOKEN/);
    expect(waits).toEqual([]);
  });

  test.each([401, 403])("%i with a token", async (status) => {
    answer(status);
    await expectError(resolve("tiny/model", { HF_TOKEN: TOKEN }), "AccessDenied", /private or gated/);
  });

  test("404: no such model, no such revision", async () => {
    await expectError(resolve("gpt0@nonesuch"), "NotFound", /^no model directory gpt0@nonesuch, and .* no model gpt0/);
    answer(404, { "x-error-code": "RevisionNotFound" });
    await expectError(resolve(), "NotFound", /no such revision of tiny\/model/);
  });

  test.each([
    [401, {}, "shows no model tiny/model without a login: misspelt, private or gated"],
    [401, { HF_TOKEN: TOKEN }, "refuses access to tiny/model: it is private or gated, or the token is not valid"],
    [403, { HF_TOKEN: TOKEN }, "refuses access to tiny/model: it is private or gated, or the token is not valid"],
    [404, {}, "has no model tiny/model"],
  ])("%i with %j, and the model is in the cache: the copy, with a note", async (status, env: object, problem) => {
    await resolve();
    lines.length = 0;
    answer(status);
    expect(await resolve("tiny/model", { ...env })).toBe(snapshot());
    const { host } = new URL(hub.url);
    expect(lines).toEqual([`note: ${host} ${problem}; using the copy of tiny/model in the cache`]);
    rmSync(join(snapshot(), "config.json"));
    await expectError(resolve("tiny/model", { ...env }), status === 404 ? "NotFound" : "AccessDenied");
  });

  test("403 for the files of a listing that is public, and an older commit is in the cache", async () => {
    const older = "f".repeat(40);
    await resolve();
    renameSync(snapshot(), join(dirname(snapshot()), older));
    writeFileSync(join(modelFolder(), "refs/main"), older);
    hub.files["config.json"] = Buffer.from("{}");
    hub.intercept = ({ route }, response) => route === "resolve" && (sendJson(response, {}, 403), true);
    expect(await resolve()).toBe(join(dirname(snapshot()), older));
    expect(lines.at(-1)).toMatch(/^note: .* refuses access to .*; using the copy of tiny\/model in the cache$/);
  });

  test("429: waits as long as asked, within reason, then gives up", async () => {
    let asked = 0;
    hub.intercept = ({ route }, response) => {
      if (route !== "info" || asked++ > 0) return false;
      sendJson(response, {}, 429, { "retry-after": "7" });
      return true;
    };
    await resolve();
    expect(waits).toEqual([7000]);
    expect(lines[0]).toMatch(/^note: .* "too many requests"; trying again in 7 s$/);
    answer(429, { "retry-after": "86400" });
    waits.length = 0;
    rmSync(modelFolder(), { recursive: true });
    await expectError(resolve(), "RateLimited", /set HF_TOKEN/);
    expect(waits).toEqual([60_000, 60_000]);
  });

  test("503 passes", async () => {
    let asked = 0;
    hub.intercept = ({ route }, response) => route === "cdn" && asked++ === 0 && (response.writeHead(503).end(), true);
    await resolve();
    expect(waits).toEqual([500]);
  });

  test.each([
    ["http on another host", "http://example.org/x"],
    ["a file", "file:///etc/passwd"],
    ["a login", "https://user:topsecret@example.org/x"],
    ["itself", ""],
  ])("a redirect to %s", async (_, location) => {
    hub.intercept = ({ route }, response) => route === "cdn" && (response.writeHead(302, { location }).end(), true);
    await expectError(resolve(), "UnsafeRedirect");
  });

  test("a repository without safetensors", async () => {
    delete hub.files["model.safetensors"];
    await expectError(resolve(), "UnsupportedModel", /has no model\.safetensors/);
    expect(hub.count("resolve")).toBe(0);
  });

  test("hostile listings", async () => {
    const paths = ["../config.json", "/etc/config.json", "C:\\config.json", "..\\config.json", "", "."];
    const odd = paths.map((path) => ({ path, type: "file", size: 1, oid: "0".repeat(40) }));
    hub.editListing = (entries) => [...odd, ...entries];
    await resolve();
    expect(readdirSync(snapshot())).toHaveLength(4);
    const path = "../../x";
    for (const change of [{ size: -1 }, { size: 2 ** 60 }, { oid: path }, { lfs: { oid: path } }, { oid: undefined }]) {
      hub.editListing = (entries) => entries.map((entry) => ({ ...entry, ...change }));
      await expectError(resolve(), "BadResponse", /size or hash of/);
    }
    hub.editListing = () => ({ not: "a list" });
    await expectError(resolve(), "BadResponse");
  });

  test("a listing that goes on at another host, or for ever", async () => {
    for (const next of [`${hub.cdnUrl}/x`, `${hub.url}/api/models/tiny/model/tree/${COMMIT}?again`]) {
      hub.intercept = ({ route }, response) => {
        return route === "tree" && (sendJson(response, [], 200, { link: `<${next}>; rel="next"` }), true);
      };
      await expectError(resolve(), "BadResponse", /on another host, or without end/);
    }
    expect(hub.count("cdn")).toBe(0);
  });

  test("a commit that is a path", async () => {
    hub.intercept = ({ route }, response) => route === "info" && (sendJson(response, { sha: "../../../x" }), true);
    await expectError(resolve(), "BadResponse");
  });
});

describe("the disk", () => {
  test("is checked before the first byte", async () => {
    const options = { freeBytes: async () => 60_000 };
    await expectError(resolve("tiny/model", {}, options), "NoSpace", /needs 100 kB, the disk of .* has 60\.0 kB left/);
    expect(hub.count("resolve")).toBe(0);
  });

  test("no space, by the word of the file system", async () => {
    const full = Object.assign(new Error("ENOSPC"), { code: "ENOSPC", syscall: "write" });
    const options = { freeBytes: () => Promise.reject(full) };
    await expectError(resolve("tiny/model", {}, options), "NoSpace", /no space left for the model cache/);
  });

  // A folder without write permission would not stop root, as whom tests may run; a file in its place stops everybody.
  test("cannot be written", async () => {
    writeFileSync(join(home, "hub"), "");
    await expectError(resolve(), "CacheUnwritable", /cannot be written \(E(NOTDIR|EXIST)\)/);
  });

  test("the entry ends with exit code 3 and one line", async () => {
    const env = { HF_HOME: home, HF_ENDPOINT: hub.url, HF_HUB_OFFLINE: "0" };
    const { code, stdout, stderr } = await runEntry("../test/support/hub_client", ["no/model"], { env });
    expect({ code, stdout }).toEqual({ code: 3, stdout: "" });
    expect(stderr).toMatch(/^error: no model directory no\/model, and [^\n]+\n$/);
  });
});
