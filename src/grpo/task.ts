/** Opens an environment, by its name or a path to a user's module, as the task that the training loop works on. */
import { existsSync, statSync } from "node:fs";
import { nearestName, UsageError } from "../cli.ts";
import type { Reward } from "./advantage.ts";
import type { Environment, Reply, Task } from "./environment.ts";
import {
  callIsCorrect, callReward, checkPrompts, functionsOf, haveFullMarks, judgingError, type Outcome,
} from "./environment_checks.ts";
import { arithmetic } from "./environments/arithmetic.ts";
import { countdown } from "./environments/countdown.ts";
import { digit } from "./environments/digit.ts";
import { openUserTask } from "./user_task.ts";

const BUILT_IN: Readonly<Record<string, Environment>> = { digit, arithmetic, countdown };

/** Names that `openTask` knows. */
export const ENVIRONMENTS: readonly string[] = Object.keys(BUILT_IN);

export interface TaskOptions {
  /** For a user's module: how long one call of the task's functions may take (user_task.ts). */
  readonly timeoutSeconds: number;
}

/**
 * Our own environments run in this process: each judges a reply in time linear in its length. A user's module, anything
 * that looks like a path, runs in a process of its own.
 * @throws UsageError for an unknown name or a file that does not exist.
 * @throws EnvironmentError for a module that is no environment.
 */
export async function openTask(nameOrPath: string, options: TaskOptions): Promise<Task> {
  if (Object.hasOwn(BUILT_IN, nameOrPath)) return localTask(BUILT_IN[nameOrPath]!);
  const isPath = /[/\\]|\.[cm]?[jt]s$/.test(nameOrPath);
  if (!isPath) {
    const near = nearestName(nameOrPath, ENVIRONMENTS);
    throw new UsageError(
      `unknown environment "${nameOrPath}"${near ? `; did you mean ${near}?` : "."} ` +
        `Known: ${ENVIRONMENTS.join(", ")}, or the path of a module of your own, such as ./my_environment.ts`,
    );
  }
  if (!existsSync(nameOrPath) || !statSync(nameOrPath).isFile()) {
    const problem = existsSync(nameOrPath) ? "is not a file" : "does not exist";
    throw new UsageError(
      `environment ${nameOrPath} ${problem}. Fix: the path of a module, or one of ${ENVIRONMENTS.join(", ")}`,
    );
  }
  return openUserTask(nameOrPath, options);
}

/** The task of an environment whose functions may run in this process. */
export function localTask(environment: Environment): Task {
  const { name, isCorrect } = environment;
  const functions = functionsOf(environment);

  const judgeOne = (prompt: Reply["prompt"], text: string, sample: number): Promise<Reward[]> =>
    Promise.all(functions.map(async ({ name: key }) => {
      return valueOf(await callReward(environment, key, prompt, text), name, key, sample, text);
    }));
  const judge = async (replies: readonly Reply[]): Promise<Reward[][]> =>
    Promise.all(replies.map(({ prompt, text }, i) => judgeOne(prompt, text, i)));

  return {
    name,
    functions,
    prompts: async (from, count, seed) => {
      return checkPrompts(environment.prompts(from, count, seed), `environment "${name}": prompts`, count);
    },
    heldOut: async () => environment.heldOut?.() ?? [],
    judge: async (replies) => ({ rewards: await judge(replies), timeouts: 0 }),
    correct: async (replies) => {
      if (!isCorrect) return haveFullMarks(await judge(replies), functions);
      return Promise.all(replies.map(async ({ prompt, text }, i) => {
        return valueOf(await callIsCorrect(environment, prompt, text), name, "isCorrect", i, text);
      }));
    },
    close: async () => {},
  };
}

/** @throws EnvironmentError for a fault. */
function valueOf<T>(outcome: Outcome<T>, environment: string, name: string, sample: number, text: string): T {
  if ("fault" in outcome) throw judgingError(environment, name, sample, text, outcome.fault);
  return outcome.value;
}
