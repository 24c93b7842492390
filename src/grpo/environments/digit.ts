/**
 * The reference experiment's task: guess a digit. The right answer is always 5, but the model is never told: it must
 * find out from rewards alone that a single digit pays, and that digits near 5 pay more.
 *
 *   reward = 1 - |answer - 5| / 9   when the whole reply is one ASCII digit, else 0
 */
import type { Environment, Prompt } from "../environment.ts";

const TARGET = 5;

const PROMPT: Prompt = {
  id: "digit",
  messages: [
    {
      role: "user",
      content: "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer.",
    },
  ],
};

/** The digit's reward; 0 for anything that is not exactly one digit. */
function closeness(_prompt: Prompt, text: string): number {
  return /^[0-9]$/.test(text) ? 1 - Math.abs(Number(text) - TARGET) / 9 : 0;
}

export const digit = {
  name: "digit",
  // There is one prompt: however many are asked for, it is one group.
  prompts: () => [PROMPT],
  rewards: { closeness },
} satisfies Environment;
