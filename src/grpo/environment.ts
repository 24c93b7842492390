/**
 * What a task must provide: prompts, and a reward for each reply. Nothing about models or tokens.
 *
 * Several reward functions may judge a reply; its reward is their weighted sum, and each is logged under its name. That
 * keeps "is it right" apart from "is it in the asked-for form".
 */
import type { ChatMessage } from "../data/chat_template.ts";
import type { Reward } from "./advantage.ts";

export interface Prompt {
  /** Names the prompt; groups never mix prompts with different ids. */
  readonly id: string;
  readonly messages: readonly ChatMessage[];
  /** What the reward functions need to know in addition to the messages, such as the right answer. Plain data only. */
  readonly data?: unknown;
}

/**
 * The worth of a reply, a finite number, higher is better; null when it cannot be judged: the reply then counts in no
 * mean. `text` is the decoded reply without special tokens.
 */
export type RewardFunction = (prompt: Prompt, text: string) => Reward | Promise<Reward>;

export interface Environment {
  readonly name: string;
  /**
   * `count` prompts to train on (fewer where there are not so many, but one at least), from position `from` of an
   * endless sequence that depends on these numbers and the seed alone: a resumed run goes on where it stopped.
   */
  prompts: (from: number, count: number, seed: number) => readonly Prompt[];
  /** By name. */
  readonly rewards: Readonly<Record<string, RewardFunction>>;
  /** Of the reward functions, by name; 1 where none is given. */
  readonly weights?: Readonly<Record<string, number>>;
  /** Prompts for evaluation, which `prompts` never returns. Absent: the task cannot be evaluated. */
  readonly heldOut?: () => readonly Prompt[];
  /** Whether a reply counts as right in an evaluation. Absent: a reply is right at the sum of the weights. */
  readonly isCorrect?: (prompt: Prompt, text: string) => boolean | Promise<boolean>;
}

/** A reply and what it answers. */
export interface Reply {
  readonly prompt: Prompt;
  readonly text: string;
}

/** An environment as the training loop sees it: opened, its functions checked, theirs or a user's (task.ts). */
export interface Task {
  readonly name: string;
  /** The reward functions in the order of `judge`'s columns, with their weights. */
  readonly functions: readonly { readonly name: string; readonly weight: number }[];
  readonly prompts: (from: number, count: number, seed: number) => Promise<readonly Prompt[]>;
  /** Empty when the environment has none. */
  readonly heldOut: () => Promise<readonly Prompt[]>;
  /**
   * rewards[reply][function]; null where a function could not judge or did not finish in time. `timeouts` counts the
   * replies of the latter kind.
   */
  readonly judge: (replies: readonly Reply[]) => Promise<{ rewards: Reward[][]; timeouts: number }>;
  /** Whether each reply is right. */
  readonly correct: (replies: readonly Reply[]) => Promise<boolean[]>;
  readonly close: () => Promise<void>;
}
