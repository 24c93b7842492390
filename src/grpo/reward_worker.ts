/**
 * The process in which a user's environment runs (user_task.ts starts it): imports the module named on the command
 * line, says what it found there, then answers one request after the other.
 *
 * Nothing here limits time: whoever waits for an answer kills this process when it takes too long.
 *
 * Arguments: the module's path, and the memory in bytes that the process may use in all.
 */
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { Worker } from "node:worker_threads";
import type { Reward } from "./advantage.ts";
import type { Environment, Prompt, Task } from "./environment.ts";
import {
  callIsCorrect, callReward, checkEnvironment, checkPrompts, describeThrown, EnvironmentError, functionsOf,
  type Outcome,
} from "./environment_checks.ts";

/** What the environment has, sent once, as the answer to request 0. */
export interface Description {
  readonly name: string;
  readonly functions: Task["functions"];
  readonly hasHeldOut: boolean;
  readonly hasIsCorrect: boolean;
}

export type Request = { readonly id: number } & (
  | { readonly call: "prompts"; readonly from: number; readonly count: number; readonly seed: number }
  | { readonly call: "heldOut" }
  | { readonly call: "judge"; readonly key: string; readonly prompt: Prompt; readonly text: string }
  | { readonly call: "isCorrect"; readonly prompt: Prompt; readonly text: string }
);

export type Answer = { readonly id: number } & Outcome<Description | readonly Prompt[] | Reward | boolean>;

const [, , module, memoryLimit] = process.argv as [string, string, string, string];
const path = resolve(module);

function send(answer: Answer): void {
  process.send!(answer);
}

/** Ends this process, even in the middle of an endless loop, when nobody is left to do so or memory runs away. */
function startWatchdog(): void {
  const code = `setInterval(() => {
    const isAlone = process.ppid !== ${process.ppid};
    if (isAlone || process.memoryUsage.rss() > ${Number(memoryLimit)}) process.kill(process.pid, "SIGKILL");
  }, 200);`;
  new Worker(code, { eval: true, execArgv: [] }).unref();
}

async function load(): Promise<Environment> {
  let exports: Readonly<Record<string, unknown>>;
  try {
    exports = (await import(pathToFileURL(path).href)) as Readonly<Record<string, unknown>>;
  } catch (error) {
    throw new EnvironmentError(`${module} cannot be imported: it ${describeThrown(error, path)}`);
  }
  return checkEnvironment(exports, module);
}

function describeEnvironment(environment: Environment): Description {
  const { name, heldOut, isCorrect } = environment;
  const functions = functionsOf(environment);
  return { name, functions, hasHeldOut: heldOut !== undefined, hasIsCorrect: isCorrect !== undefined };
}

async function answer(environment: Environment, request: Request): Promise<Answer> {
  const { id, call } = request;
  if (call === "judge") {
    return { id, ...(await callReward(environment, request.key, request.prompt, request.text, path)) };
  }
  if (call === "isCorrect") return { id, ...(await callIsCorrect(environment, request.prompt, request.text, path)) };
  const source = `environment "${environment.name}": ${call}`;
  try {
    if (call === "heldOut") return { id, value: checkPrompts(environment.heldOut!(), source) };
    const { from, count, seed } = request;
    return { id, value: checkPrompts(environment.prompts(from, count, seed), source, count) };
  } catch (error) {
    const fault = error instanceof EnvironmentError ? error.message : `${source} ${describeThrown(error, path)}`;
    return { id, fault };
  }
}

// Ctrl-C reaches every process of a terminal: the training run decides what becomes of it, and of this one.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => {});
process.on("disconnect", () => process.exit());
startWatchdog();
try {
  const environment = await load();
  process.on("message", (request: Request) => void answer(environment, request).then(send));
  send({ id: 0, value: describeEnvironment(environment) });
} catch (error) {
  send({ id: 0, fault: (error as Error).message });
}
