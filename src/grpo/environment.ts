/** What a task must provide: prompts, and a reward for each reply. Nothing about models or tokens. */
import type { ChatMessage } from "../data/chat_template.ts";

export interface Prompt {
  /** Names the prompt; groups never mix prompts with different ids. */
  readonly id: string;
  readonly messages: readonly ChatMessage[];
}

export interface Environment {
  readonly name: string;
  /** The prompts of one train step. */
  prompts(): readonly Prompt[];
  /** The reward of a reply, a finite number; higher is better. `text` is the decoded reply without special tokens. */
  reward(prompt: Prompt, text: string): number;
}
