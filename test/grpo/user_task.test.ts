/**
 * A user's environment: judged as ours are, in a process that may hang, crash or lie without harm to the run. Deadlines
 * are tested with a clock that stands still until something hangs, so that a busy machine changes nothing.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import type { Reply, Task } from "../../src/grpo/environment.ts";
import { checkEnvironment, EnvironmentError } from "../../src/grpo/environment_checks.ts";
import { openTask } from "../../src/grpo/task.ts";
import { openUserTask } from "../../src/grpo/user_task.ts";

// More than a busy machine needs: only a fault takes so long.
const SECONDS = 300;
const PATIENT = { timeout: 60_000 };
vi.setConfig({ testTimeout: 120_000 });

const fromRoot = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "user-task-"));
const open: Task[] = [];

afterEach(async () => {
  await Promise.all(open.splice(0).map((task) => task.close()));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function opened(path: string, timeoutSeconds = SECONDS): Promise<Task> {
  const task = await openTask(path, { timeoutSeconds });
  open.push(task);
  return task;
}

const MISBEHAVING = fromRoot("test/fixtures/misbehaving_environment.ts");
const misbehaving = (timeoutSeconds = SECONDS): Promise<Task> => opened(MISBEHAVING, timeoutSeconds);

/** The task of a module with this text. */
function module(name: string, text: string): Promise<Task> {
  const path = join(folder, name);
  writeFileSync(path, text);
  return opened(path);
}

const replies = (...texts: string[]): Reply[] => {
  return texts.map((text) => ({ prompt: { id: "p", messages: [{ role: "user", content: "Hello." }] }, text }));
};

/** The error of a promise. */
async function failure(promise: Promise<unknown>): Promise<string> {
  const error = await promise.then(() => null, (reason: unknown) => reason);
  expect(error).toBeInstanceOf(EnvironmentError);
  const { message } = error as Error;
  expect(message.length).toBeLessThan(500);
  return message;
}

test("the example is judged as its functions say", async () => {
  const task = await opened(fromRoot("examples/brief.ts"));
  expect(task.name).toBe("brief");
  expect(task.functions).toEqual([{ name: "brief", weight: 1 }, { name: "sentence", weight: 0.5 }]);
  const [first, second] = await task.prompts(3, 2, 1);
  expect([first, second]).toEqual([...(await task.prompts(3, 1, 1)), ...(await task.prompts(4, 1, 1))]);
  expect(first!.messages[0]!.content).toBe("Who puts out fires?");
  const training = (await task.prompts(0, 20, 1)).map(({ id }) => id);
  for (const { id } of await task.heldOut()) expect(training).not.toContain(id);
  const answers = replies("Baker.", "it is a baker", "").map(({ text }) => ({ prompt: first!, text }));
  expect(await task.judge(answers)).toEqual({ rewards: [[1, 1], [0.7, 0], [0, 0]], timeouts: 0 });
  expect(await task.correct(answers)).toEqual([true, false, false]);
});

test("null, promises and output are allowed; without isCorrect a reply with all it can get is right", async () => {
  const task = await misbehaving();
  const written = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  const { rewards, timeouts } = await task.judge(replies("null", "resolves", "prints", "hello"));
  await vi.waitUntil(() => written.mock.calls.length > 0, PATIENT);
  expect(written.mock.calls[0]![0]).toBe("printed by a reward function\n");
  expect({ rewards, timeouts }).toEqual({ rewards: [[null], [0.25], [1], [5]], timeouts: 0 });
  expect(await task.correct(replies("null", "resolves", "x"))).toEqual([false, false, true]);
  expect(await task.heldOut()).toEqual([]);
  written.mockRestore();
});

test("replies are judged in order, one after the other, and rewards do not depend on the order", async () => {
  const task = await module("order.ts", `
    let calls = 0;
    export const environment = {
      name: "order",
      prompts: () => [{ id: "p", messages: [{ role: "user", content: "?" }] }],
      rewards: { call: async () => { const mine = ++calls; await null; return mine; }, size: (_, text) => text.length },
    };`);
  const texts = ["a", "bbb", "cc"];
  expect((await task.judge(replies(...texts))).rewards).toEqual([[1, 1], [2, 3], [3, 2]]);
  expect((await task.judge(replies(...texts.toReversed()))).rewards).toEqual([[4, 2], [5, 3], [6, 1]]);
  const together = await Promise.all([task.judge(replies("a")), task.judge(replies("b")), task.prompts(0, 1, 1)]);
  expect([together[0].rewards, together[1].rewards]).toEqual([[[7, 1]], [[8, 1]]]);
});

describe("time", () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "performance"] }));
  afterEach(() => {
    vi.useRealTimers();
    vi.restoreAllMocks();
  });

  /** Waits until the process says that it hangs. */
  function hang(): Promise<void> {
    return new Promise((resolve) => {
      vi.spyOn(process.stderr, "write").mockImplementation((chunk) => {
        if (chunk === "hangs\n") resolve();
        return true;
      });
    });
  }

  test.each(["loop", "never resolves"])("one hang among 25 replies costs only itself: %s", async (reply) => {
    const task = await misbehaving(2);
    const texts = Array.from({ length: 25 }, (_, i) => (i === 7 ? reply : "x".repeat(i)));
    const [[pid]] = (await task.judge(replies("tells its process"))).rewards as [[number]];
    const judged = task.judge(replies(...texts));
    await hang();
    await vi.advanceTimersToNextTimerAsync();
    const { rewards, timeouts } = await judged;
    expect(performance.now()).toBe(400);
    expect(timeouts).toBe(1);
    expect(rewards).toEqual(texts.map((_, i) => [i === 7 ? null : i]));
    // The process is really gone, and the next call finds a working one.
    await vi.waitFor(() => expect(() => process.kill(pid, 0)).toThrow("ESRCH"), PATIENT);
    expect(await task.judge(replies("abc"))).toEqual({ rewards: [[3]], timeouts: 0 });
  });

  test("hang after hang stops the run, at the deadline", async () => {
    const task = await misbehaving(1);
    const judged = failure(task.judge(replies("fine", ...Array.from({ length: 19 }, () => "regex"))));
    await hang();
    await vi.advanceTimersToNextTimerAsync();
    await hang();
    await vi.runAllTimersAsync(); // to the end of this reply's time, then of the call's: while the next process starts
    expect(await judged).toBe(
      'environment "misbehaving": 19 of 20 replies were not judged in time (1 s for all, 0.2 s for one); the first: ' +
        'reward function "does", sample 1, reply "regex". Fix: make that function faster, or raise --reward-timeout',
    );
    expect(performance.now()).toBe(1000);
    const correct = failure(task.correct(replies("loop")));
    await hang();
    await vi.advanceTimersToNextTimerAsync();
    expect(await correct).toMatch(/1 of 1 replies .* sample 0, reply "loop"/);
    expect(performance.now()).toBe(1200);
    expect((await task.judge(replies("abc"))).rewards).toEqual([[3]]);
  });

  test("a process may take longer to start than one reply may take", async () => {
    const task = await misbehaving(1);
    const judged = task.judge(replies("loop", "a", "bb", "ccc", "dddd"));
    await hang();
    await vi.advanceTimersByTimeAsync(900); // 200 ms until the reply is given up, then 700 while a process starts
    expect(await judged).toEqual({ rewards: [[null], [1], [2], [3], [4]], timeouts: 1 });
  });

  test("prompts that never come", async () => {
    const task = await misbehaving(1);
    const prompts = failure(task.prompts(1, 2, 3));
    await hang();
    await vi.advanceTimersToNextTimerAsync();
    expect(await prompts).toBe(
      'environment "misbehaving": prompts did not end within 1 s. Fix: make it faster, or raise --reward-timeout',
    );
    expect(performance.now()).toBe(1000);
    expect(await task.prompts(0, 2, 3)).toHaveLength(2);
  });

  test("a module that is never imported", async () => {
    const path = join(folder, "endless.ts");
    writeFileSync(path, 'import { writeSync } from "node:fs"; writeSync(2, "hangs\\n"); for (;;);');
    const opening = failure(openUserTask(path, { timeoutSeconds: 1, startSeconds: 0.5 }));
    await hang();
    await vi.advanceTimersToNextTimerAsync();
    expect(await opening).toBe(`${path}: importing it took longer than 0.5 s. Fix: do less at its top level`);
    expect(performance.now()).toBe(500);
  });
});

describe("what functions may not do", () => {
  const source = readFileSync(MISBEHAVING, "utf8").split("\n");
  /** "line L, column C" of a text in the fixture. */
  const placeOf = (text: string): string => {
    const line = source.findIndex((each) => each.includes(text));
    return `line ${line + 1}, column ${source[line]!.indexOf(text) + 1}`;
  };
  const REWARD = "a reward is a finite number, or null where a reply cannot be judged";
  test("faults name function, sample, reply and what it was", async () => {
    const task = await misbehaving();
    const faults: readonly (readonly [string, string])[] = [
      ["throws", `threw TypeError: no such thing (${placeOf("new TypeError")})`],
      ["rejects", `threw Error: later (${placeOf('new Error("later")')})`],
      ["throws text", 'threw the string "just a text"'],
      ["NaN", `returned NaN: ${REWARD}`],
      ["infinity", `returned -Infinity: ${REWARD}`],
      ["text", `returned the string "${"x".repeat(80)}"... (1048576 characters): ${REWARD}`],
      ["array", "returned an array of 3 values: a reward function judges one reply and returns one number"],
      ["object", `returned an object: ${REWARD}`],
      ["boolean", `returned true: ${REWARD}`],
      ["nothing", `returned nothing (undefined): ${REWARD}`],
      ["function", `returned a function: ${REWARD}`],
    ];
    for (const [reply, fault] of faults) {
      expect(await failure(task.judge(replies("fine", reply)))).toBe(
        `environment "misbehaving": reward function "does", sample 1, reply "${reply}": ${fault}`,
      );
    }
    expect(await failure(task.prompts(2, 1, 1))).toBe(
      `environment "misbehaving": prompts threw Error: no more prompts (${placeOf('new Error("no more')})`,
    );
  });

  test.each([
    ["exits", "its process ended with exit code 0: it called process.exit, or an error in it was never caught"],
    ["fails later", "its process ended with exit code 1: it called process.exit, or an error in it was never caught"],
    ["fills the heap", "its process ran out of memory (limits: 512 MiB of heap, 1024 MiB in all)"],
    ["fills buffers", "its process ran out of memory (limits: 512 MiB of heap, 1024 MiB in all)"],
  ])("%s: the run goes on to say so", async (reply, fault) => {
    const task = await misbehaving();
    const written = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    const promise = task.judge(replies("fine", reply));
    await expect(promise).rejects.toThrow(new EnvironmentError(
      `environment "misbehaving": reward function "does", sample 1, reply "${reply}": ${fault}`,
    ));
    await expect(task.judge(replies("fine"))).rejects.toThrow("its process"); // it does not come back in silence
    const printed = (): string => written.mock.calls.map(([chunk]) => String(chunk)).join("");
    if (reply === "fails later") await vi.waitUntil(() => printed().includes("nobody catches this"), PATIENT);
    else await new Promise((resolve) => setTimeout(resolve, 50)); // for what must not be printed
    const text = printed();
    written.mockRestore();
    expect(text.includes("nobody catches this")).toBe(reply === "fails later");
    expect(text).not.toContain("heap"); // V8's own page about it
  });
});

describe("modules that are no environments", () => {
  const good = { name: "a", prompts: () => [], rewards: { b: () => 1 } };
  const exported: readonly (readonly [Record<string, unknown>, string])[] = [
    [{ other: 1 }, "no environment. Fix: export const environment: Environment = { name, prompts, rewards }"],
    [{ environment: null, default: null }, "`environment` must be an object, not null"],
    [{ default: 5 }, "`environment` must be an object, not 5"],
    [{ environment: [good] }, "`environment` must be an object, not an array of 1 values"],
    [{ environment: { ...good, name: undefined } }, "environment.name must be a text of 1 to 100 "],
    [{ environment: { ...good, name: "" } }, '1 to 100 characters, not the string ""'],
    [{ environment: { ...good, prompts: [] } }, "environment.prompts must be a function (from, count, seed) => Prompt"],
    [{ environment: { ...good, rewards: undefined } }, "environment.rewards must be an object of functions, "],
    [{ environment: { ...good, rewards: {} } }, "{ name: (prompt, text) => number }, not an empty one"],
    [{ environment: { ...good, rewards: [() => 1] } }, "{ name: (prompt, text) => number }, not an array of 1 values"],
    [{ environment: { ...good, rewards: { b: 1 } } }, "environment.rewards.b must be a function, not 1"],
    [{ environment: { ...good, weights: 2 } }, "environment.weights must be an object of numbers by name, not 2"],
    [{ environment: { ...good, weights: { c: 1 } } }, 'environment.weights names "c"; the reward functions are b'],
    [{ environment: { ...good, weights: { b: NaN } } }, "environment.weights.b must be a finite number, not NaN"],
    [{ environment: { ...good, isCorrect: 1 } }, "environment.isCorrect must be a function or absent, not 1"],
    [{ environment: { ...good, heldOut: [] } }, "environment.heldOut must be a function or absent, not an array of 0"],
  ];
  test.each(exported)("%o", (exports, message) => {
    expect(() => checkEnvironment(exports, "my.ts")).toThrow(message);
    expect(() => checkEnvironment(exports, "my.ts")).toThrow(/^my\.ts: /);
  });

  test("`environment` goes before the default export", () => {
    expect(checkEnvironment({ environment: good }, "my.ts")).toBe(good);
    expect(checkEnvironment({ default: good }, "my.ts")).toBe(good);
    expect(checkEnvironment({ default: 5, environment: good }, "my.ts")).toBe(good);
  });

  test("and modules that cannot be imported", async () => {
    const cases: readonly (readonly [string, RegExp])[] = [
      ["export const other = 1;", /module0\.ts: no environment\. Fix: /],
      ["export const = 5;", /module1\.ts cannot be imported: it threw TransformError: .*:1:13: ERROR: Expected/s],
      ["\nnull.x;", /cannot be imported: it threw TypeError: .* \(line 2, column 6\)$/],
      ["process.exit(3);", /module3\.ts: its process ended with exit code 3/],
    ];
    for (const [i, [text, wanted]] of cases.entries()) {
      await expect(module(`module${i}.ts`, text), text).rejects.toThrow(wanted);
    }
  });

  const prompts: readonly (readonly [string, RegExp])[] = [
    ["5", /: prompts must return an array of prompts, not 5$/],
    ["Promise.resolve([])", /: prompts must return an array of prompts, not a promise$/],
    ["[]", /: prompts returned no prompts$/],
    ["[1, 2, 3]", /: prompts returned 3 prompts where at most 2 were asked for$/],
    ["[null]", /returned a prompt \(number 0\) that is null$/],
    ["[{ id: 7, messages: [] }]", /\(number 0\) whose id is 7: a text must name each prompt$/],
    ['[{ id: "p", messages: "Hello." }]', /prompt "p" whose messages are not an array of \{ role, content \}/],
    ['[{ id: "p", messages: [{ role: "user", content: 5 }] }]', /prompt "p" whose messages are not/],
    ['[{ id: "p", messages: [{ role: "<user>", content: "?" }] }]', /prompt "p" whose messages are not/],
    ["[{ ...good, data: { check: () => 1 } }]", /prompt "p" whose data is not plain/],
    ["[{ ...good, data: new Map([[1, 2]]) }]", /prompt "p" whose data is not plain/],
    ["[{ ...good, data: { value: NaN } }]", /prompt "p" whose data is not plain/],
  ];
  test("prompts that are none", async () => {
    const task = await module("prompts.ts", `
      const good = { id: "p", messages: [{ role: "user", content: "?" }] };
      const all = [${prompts.map(([text]) => `() => ${text.startsWith("{") ? `(${text})` : text}`).join(", ")}];
      export const environment = {
        name: "prompts", prompts: (from) => all[from](), heldOut: () => 1, rewards: { a: () => 1 }, isCorrect: () => 1,
      };`);
    for (const [i, [text, wanted]] of prompts.entries()) {
      expect(await failure(task.prompts(i, 2, 1)), text).toMatch(wanted);
    }
    expect(await failure(task.heldOut())).toMatch(/: heldOut must return an array of prompts, not 1$/);
    expect(await failure(task.correct(replies("x")))).toMatch(/: isCorrect, sample 0, reply "x": returned 1: it says/);
  });
});

test("an idle process does not keep ours alive, nor outlive it; what it prints is not on our stdout", async () => {
  const code = `
    import { openUserTask } from ${JSON.stringify(fromRoot("src/grpo/user_task.ts"))};
    const task = await openUserTask(${JSON.stringify(MISBEHAVING)}, { timeoutSeconds: 10 });
    const [prompt] = await task.prompts(0, 1, 1);
    await task.judge([{ prompt, text: "prints" }]);
    console.log("end");`;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "--eval", code]);
  onTestFinished(() => void child.kill());
  let [stdout, stderr] = ["", ""];
  child.stdout.on("data", (chunk) => (stdout += String(chunk)));
  child.stderr.on("data", (chunk) => (stderr += String(chunk)));
  // Not before the last one that holds these streams has ended: that includes the environment's process.
  expect(await new Promise((resolve) => child.on("close", resolve))).toBe(0);
  expect([stdout, stderr]).toEqual(["end\n", "printed by a reward function\n"]);
});
