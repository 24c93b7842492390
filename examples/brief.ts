/**
 * An environment of your own: teaches the model to answer in one short sentence.
 *
 *   npx tsx src/grpo/train.ts --environment examples/brief.ts --max-rollout-tokens 24 --train-steps 20 \
 *     --objective dapo --learning-rate 1e-4
 *
 * Sentences are longer than digits: a ratio for each token and a smaller learning rate keep the steps small.
 *
 * It runs in a process of its own: what it prints goes to stderr, and a reply that hangs it costs only that reply.
 */
import type { Environment, Prompt } from "../src/grpo/environment.ts";

const QUESTIONS = ["Who bakes bread?", "Where do you sleep?", "What tells us the time?", "Who puts out fires?"];
const NEW_QUESTIONS = ["Who flies a plane?", "Where can you buy food?"];

const ask = (question: string): Prompt => ({ id: question, messages: [{ role: "user", content: question }] });

/** 1 for one word, less for each word more, 0 for none and from eleven on. */
function brief(_prompt: Prompt, text: string): number {
  const words = text.split(/\s+/).filter((word) => word !== "").length;
  return words === 0 ? 0 : Math.max(0, 1 - (words - 1) / 10);
}

/** Whether it is a sentence: a capital letter first, a full stop last, none between. */
function sentence(_prompt: Prompt, text: string): number {
  return /^[A-Z][^.]*\.$/.test(text) ? 1 : 0;
}

export const environment: Environment = {
  name: "brief",
  // Round and round: position `from` alone says where to go on, so that a run can be resumed.
  prompts: (from, count) => Array.from({ length: count }, (_, i) => ask(QUESTIONS[(from + i) % QUESTIONS.length]!)),
  rewards: { brief, sentence },
  weights: { brief: 1, sentence: 0.5 },
  heldOut: () => NEW_QUESTIONS.map(ask),
  isCorrect: (prompt, text) => brief(prompt, text) >= 0.5 && sentence(prompt, text) === 1,
};
