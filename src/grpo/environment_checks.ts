/**
 * Environments are written by users: what they export and what their functions return is checked here, once, so that
 * a mistake becomes one line that names the function and not a NaN in the weights.
 */
import { isDeepStrictEqual } from "node:util";
import { weightedRewards, type Reward } from "./advantage.ts";
import type { Environment, Prompt, Task } from "./environment.ts";

/** An environment that does not do what it must. */
export class EnvironmentError extends Error {
  override name = "EnvironmentError";
}

/** What calling a user's function came to; `fault` continues a sentence: "returned NaN", "threw Error: no". */
export type Outcome<T> = { readonly value: T } | { readonly fault: string };

/** JSON-quoted, at most `limit` characters of it: a reply may be long, and hold anything. */
export function quote(text: string, limit = 80): string {
  return text.length <= limit ? JSON.stringify(text) : `${JSON.stringify(text.slice(0, limit))}...`;
}

/** A value in a few words, whatever it is. */
function describe(value: unknown): string {
  if (value === null || typeof value === "number" || typeof value === "boolean") return String(value);
  if (typeof value === "string") {
    return `the string ${quote(value)}${value.length > 80 ? ` (${value.length} characters)` : ""}`;
  }
  if (value === undefined) return "nothing (undefined)";
  if (Array.isArray(value)) return `an array of ${value.length} values`;
  if (value instanceof Promise) return "a promise";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

/** What was thrown, and where in the file at `path` if its stack tells. */
export function describeThrown(error: unknown, path?: string): string {
  if (!(error instanceof Error)) return `threw ${describe(error)}`;
  const { name, message, stack } = error;
  const text = message.length > 300 ? `${message.slice(0, 300)}...` : message;
  const frame = path && String(stack).split("\n").find((line) => /^\s+at /.test(line) && line.includes(path));
  const place = frame && /:(\d+:\d+)\)?$/.exec(frame)?.[1];
  return `threw ${name}: ${text}${place ? ` (line ${place.replace(":", ", column ")})` : ""}`;
}

/** The reward functions of an environment and their weights, in a fixed order. */
export function functionsOf({ rewards, weights = {} }: Environment): Task["functions"] {
  return Object.keys(rewards).map((name) => ({ name, weight: weights[name] ?? 1 }));
}

/** Which replies got all they could: the sum of the weights. What counts as right without an `isCorrect`. */
export function haveFullMarks(rewards: readonly (readonly Reward[])[], functions: Task["functions"]): boolean[] {
  const weights = functions.map(({ weight }) => weight);
  const [full] = weightedRewards([weights.map(() => 1)], weights);
  return weightedRewards(rewards, weights).map((reward) => reward !== null && reward >= full!);
}

/** Null when the value is a reward, otherwise what is wrong with it. */
function rewardFault(value: unknown): string | null {
  if (value === null || (typeof value === "number" && Number.isFinite(value))) return null;
  if (Array.isArray(value)) {
    return `returned ${describe(value)}: a reward function judges one reply and returns one number`;
  }
  return `returned ${describe(value)}: a reward is a finite number, or null where a reply cannot be judged`;
}

/** Calls a function that may throw or promise, and checks its result. `path`: of the module it comes from. */
async function outcome<T>(
  call: () => unknown, faultOf: (value: unknown) => string | null, path?: string,
): Promise<Outcome<T>> {
  try {
    const value = await call();
    const fault = faultOf(value);
    return fault === null ? { value: value as T } : { fault };
  } catch (error) {
    return { fault: describeThrown(error, path) };
  }
}

/** One reward of one reply. */
export function callReward(
  { rewards }: Environment, name: string, prompt: Prompt, text: string, path?: string,
): Promise<Outcome<Reward>> {
  return outcome(() => rewards[name]!(prompt, text), rewardFault, path);
}

/** What `isCorrect` says of one reply. */
export function callIsCorrect(
  { isCorrect }: Environment, prompt: Prompt, text: string, path?: string,
): Promise<Outcome<boolean>> {
  const faultOf = (value: unknown): string | null =>
    typeof value === "boolean" ? null : `returned ${describe(value)}: it says true or false`;
  return outcome(() => isCorrect!(prompt, text), faultOf, path);
}

/** The functions that judge, as errors name them. */
export function functionTitle(name: string): string {
  return name === "isCorrect" ? "isCorrect" : `reward function "${name}"`;
}

/** A fault of a function that judges replies. */
export function judgingError(environment: string, name: string, sample: number, text: string, fault: string): Error {
  return new EnvironmentError(
    `environment "${environment}": ${functionTitle(name)}, sample ${sample}, reply ${quote(text)}: ${fault}`,
  );
}

/**
 * The environment that a module exports as `environment` or by default.
 * @throws EnvironmentError for one that lacks something or has something of the wrong kind.
 */
export function checkEnvironment(exports: Readonly<Record<string, unknown>>, source: string): Environment {
  const fail = (problem: string): never => {
    throw new EnvironmentError(`${source}: ${problem}`);
  };
  const found = exports["environment"] ?? exports["default"];
  if (found === undefined) {
    fail("no environment. Fix: export const environment: Environment = { name, prompts, rewards } (see examples/)");
  }
  if (!isObject(found)) fail(`\`environment\` must be an object, not ${describe(found)}`);
  const { name, prompts, rewards, weights = {}, heldOut, isCorrect } = found as Readonly<Record<string, unknown>>;
  if (typeof name !== "string" || !/^.{1,100}$/.test(name)) {
    fail(`environment.name must be a text of 1 to 100 characters, not ${describe(name)}`);
  }
  if (typeof prompts !== "function") {
    fail(`environment.prompts must be a function (from, count, seed) => Prompt[], not ${describe(prompts)}`);
  }
  if (!isObject(rewards) || Object.keys(rewards).length === 0) {
    const kind = isObject(rewards) ? "an empty one" : describe(rewards);
    fail(`environment.rewards must be an object of functions, { name: (prompt, text) => number }, not ${kind}`);
  }
  for (const [key, value] of Object.entries(rewards as object)) {
    if (typeof value !== "function") fail(`environment.rewards.${key} must be a function, not ${describe(value)}`);
  }
  if (!isObject(weights)) fail(`environment.weights must be an object of numbers by name, not ${describe(weights)}`);
  const names = Object.keys(rewards as object);
  for (const [key, value] of Object.entries(weights as object)) {
    if (!names.includes(key)) fail(`environment.weights names "${key}"; the reward functions are ${names.join(", ")}`);
    if (typeof value !== "number" || !Number.isFinite(value)) {
      fail(`environment.weights.${key} must be a finite number, not ${describe(value)}`);
    }
  }
  for (const [key, value] of Object.entries({ heldOut, isCorrect })) {
    if (value !== undefined && typeof value !== "function") {
      fail(`environment.${key} must be a function or absent, not ${describe(value)}`);
    }
  }
  return found as Environment;
}

/**
 * The prompts that `prompts` or `heldOut` returned, as plain data, which a checkpoint can hold and restore.
 * @throws EnvironmentError for anything else, for more than `limit` prompts, or for none.
 */
export function checkPrompts(value: unknown, source: string, limit = Infinity): Prompt[] {
  const fail = (problem: string): never => {
    throw new EnvironmentError(`${source} ${problem}`);
  };
  if (!Array.isArray(value)) return fail(`must return an array of prompts, not ${describe(value)}`);
  if (value.length === 0) return fail("returned no prompts");
  if (value.length > limit) return fail(`returned ${value.length} prompts where at most ${limit} were asked for`);
  return value.map((prompt: unknown, i): Prompt => {
    if (!isObject(prompt)) return fail(`returned a prompt (number ${i}) that is ${describe(prompt)}`);
    const { id, messages, data } = prompt;
    if (typeof id !== "string" || id === "") {
      return fail(`returned a prompt (number ${i}) whose id is ${describe(id)}: a text must name each prompt`);
    }
    if (!Array.isArray(messages) || messages.length === 0 || !messages.every(isMessage)) {
      return fail(`returned prompt ${quote(id)} whose messages are not an array of { role, content }, both texts`);
    }
    const plain = { id, messages: messages.map(({ role, content }) => ({ role, content })) };
    if (data === undefined) return plain;
    if (!isPlain(data)) {
      return fail(
        `returned prompt ${quote(id)} whose data is not plain: only null, booleans, finite numbers, texts, and ` +
          "arrays and objects of these survive a checkpoint",
      );
    }
    return { ...plain, data };
  });
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isMessage(value: unknown): value is { role: string; content: string } {
  if (!isObject(value)) return false;
  const { role, content } = value;
  return typeof role === "string" && /^\w+$/.test(role) && typeof content === "string";
}

/** Whether a value is the same after a way through JSON. */
function isPlain(value: unknown): boolean {
  try {
    return isDeepStrictEqual(JSON.parse(JSON.stringify(value)), value);
  } catch {
    return false; // a cycle, a function or a BigInt
  }
}
