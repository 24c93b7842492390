/** Opening environments by name, and what every one of ours must do: prompts by position, results checked, no hangs. */
import { describe, expect, test } from "vitest";
import { UsageError } from "../../src/cli.ts";
import type { Environment, Prompt, Task } from "../../src/grpo/environment.ts";
import { EnvironmentError } from "../../src/grpo/environment_checks.ts";
import { ENVIRONMENTS, localTask, openTask } from "../../src/grpo/task.ts";
import { ADVERSARIAL_TEXTS } from "../support/adversarial_texts.ts";

const options = { timeoutSeconds: 1 };

describe("names and paths", () => {
  test("the known ones", async () => {
    expect(ENVIRONMENTS).toEqual(["digit", "arithmetic", "countdown"]);
    for (const name of ENVIRONMENTS) expect((await openTask(name, options)).name).toBe(name);
  });

  test.each([
    ["digits", 'unknown environment "digits"; did you mean digit? Known: digit, arithmetic, countdown, or the path of'],
    ["Countdwn", 'unknown environment "Countdwn"; did you mean countdown? Known: '],
    ["chess", 'unknown environment "chess". Known: digit, arithmetic, countdown, or the path of a module of your own'],
    ["", 'unknown environment "". Known: '],
    ["toString", 'unknown environment "toString". Known: '],
    ["./missing.ts", "environment ./missing.ts does not exist. Fix: the path of a module, or one of digit, arithmetic"],
    ["missing.mjs", "environment missing.mjs does not exist. Fix: "],
    ["./src", "environment ./src is not a file. Fix: "],
  ])("%s", async (name, message) => {
    const error: unknown = await openTask(name, options).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(UsageError);
    expect((error as Error).message).toContain(message);
  });
});

describe.each(ENVIRONMENTS)("%s", (name) => {
  test("prompts depend on position and seed alone", async () => {
    const task = await openTask(name, options);
    const all = await task.prompts(0, 40, 7);
    expect(await task.prompts(0, 40, 7)).toEqual(all);
    if (name === "digit") return expect(all).toHaveLength(1);
    const pieces = [await task.prompts(0, 3, 7), await task.prompts(3, 1, 7), await task.prompts(4, 36, 7)];
    expect(pieces.flat()).toEqual(all);
    expect(await task.prompts(0, 40, 8)).not.toEqual(all);
    expect(await task.prompts(1e9, 2, 7)).toHaveLength(2);
  });

  test("prompts of one id are the same prompt, and none is held out", async () => {
    const task = await openTask(name, options);
    const byId = new Map<string, Prompt>();
    for (const prompt of await task.prompts(0, 2000, 3)) {
      expect(byId.get(prompt.id) ?? prompt).toEqual(prompt);
      byId.set(prompt.id, prompt);
    }
    const questions = new Set([...byId.values()].map(({ messages }) => messages[0]!.content));
    expect(questions.size).toBe(byId.size);
    const heldOut = await task.heldOut();
    expect(await task.heldOut()).toEqual(heldOut);
    expect(new Set(heldOut.map(({ id }) => id)).size).toBe(heldOut.length);
    for (const { id, messages } of heldOut) {
      expect(byId.has(id)).toBe(false);
      expect(questions.has(messages[0]!.content)).toBe(false);
    }
  });

  test.each(ADVERSARIAL_TEXTS)("judges at once: %s", async (_, text) => {
    const task = await openTask(name, options);
    const [prompt] = await task.prompts(0, 1, 1);
    const start = performance.now();
    const { rewards, timeouts } = await task.judge([{ prompt: prompt!, text }]);
    const correct = await task.correct([{ prompt: prompt!, text }]);
    expect(performance.now() - start).toBeLessThan(500); // milliseconds are usual, hours what a careless regex takes
    expect(timeouts).toBe(0);
    expect(rewards[0]![0]).toBe(0);
    expect(correct).toEqual([false]);
  });
});

describe("an environment in this process", () => {
  const prompt: Prompt = { id: "p", messages: [{ role: "user", content: "Hello." }] };
  const task = (environment: Partial<Environment>): Task => {
    const length = (_: Prompt, text: string): number => text.length;
    return localTask({ name: "mine", prompts: () => [prompt], rewards: { length }, ...environment });
  };
  const reply = (text: string): { prompt: Prompt; text: string } => ({ prompt, text });

  test("weights default to 1; columns are in the order of the functions", async () => {
    const { functions, judge } = task({ rewards: { b: () => 2, a: async () => null }, weights: { a: 0.5 } });
    expect(functions).toEqual([{ name: "b", weight: 1 }, { name: "a", weight: 0.5 }]);
    expect(await judge([reply("x"), reply("y")])).toEqual({ rewards: [[2, null], [2, null]], timeouts: 0 });
  });

  test("without isCorrect a reply with the sum of the weights is right", async () => {
    const replies = ["a", "b", "c"].map(reply);
    const reaches = (least: string) => (_: Prompt, text: string) => Number(text >= least);
    const rewards = { first: reaches("b"), second: reaches("c") };
    const weights = { first: 0.1, second: 0.2 };
    expect(await task({ rewards, weights }).correct(replies)).toEqual([false, false, true]);
    expect(await task({ rewards: { none: () => null } }).correct(replies)).toEqual([false, false, false]);
    expect(await task({ isCorrect: (_, text) => text === "a" }).correct(replies)).toEqual([true, false, false]);
  });

  test.each([
    [() => NaN, "returned NaN: a reward is a finite number, or null where a reply cannot be judged"],
    [() => [1], "returned an array of 1 values: a reward function judges one reply and returns one number"],
    [() => Promise.reject(new RangeError("no")), "threw RangeError: no"],
  ])("results are checked: %s", async (length, fault) => {
    const judged = task({ rewards: { length: length as () => number } }).judge([reply("Hello \"you\"")]);
    await expect(judged).rejects.toThrow(new EnvironmentError(
      `environment "mine": reward function "length", sample 0, reply "Hello \\"you\\"": ${fault}`,
    ));
  });
});
