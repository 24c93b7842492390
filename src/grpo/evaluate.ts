/**
 * Held-out evaluation: what the policy can do on prompts that it is never trained on.
 *
 * Replies are drawn as in training (same temperature), so that accuracy is what a user who samples once can expect.
 * Random numbers depend on the seed alone: every evaluation of a run asks the same questions with the same luck.
 */
import type { Gpt } from "../model/gpt.ts";
import { sampleCompletions } from "../model/sampler.ts";
import type { Prompt, Task } from "./environment.ts";
import type { TextCodec } from "./rollout.ts";

export interface EvaluationOptions {
  /** Prompts asked, at most. */
  readonly prompts: number;
  /** Replies to each. */
  readonly samples: number;
  /** Replies drawn together, at most: they must fit into memory. */
  readonly rowsAtOnce: number;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly seed: number;
}

export interface Evaluation {
  /** The share of sampled replies that are right: pass@1. */
  readonly accuracy: number;
  /** The share of prompts whose most likely reply (temperature 0) is right. */
  readonly greedy: number;
  /** For k = 2, 4, 8, ... up to the number of samples. */
  readonly passAtK: readonly { readonly k: number; readonly value: number }[];
  readonly prompts: number;
  readonly samples: number;
  /** The sampled replies, first samples first. */
  readonly replies: readonly { readonly prompt: Prompt; readonly text: string; readonly correct: boolean }[];
}

/** Not the seed of training: an evaluation must not repeat its draws. */
const SEED_OFFSET = 0x5eed;

/** Asks the task's held-out prompts; null when it has none. */
export async function evaluate(
  policy: Gpt,
  codec: TextCodec,
  task: Task,
  options: EvaluationOptions,
): Promise<Evaluation | null> {
  const prompts = evenly(await task.heldOut(), options.prompts);
  if (prompts.length === 0) return null;
  const { samples, temperature } = options;
  const greedy = await ask(policy, codec, task, prompts, { ...options, samples: 1, temperature: 0 });
  const replies = await ask(policy, codec, task, prompts, { ...options, temperature });
  const successes = prompts.map((_, i) => replies.filter((reply, at) => at % prompts.length === i && reply.correct).length);
  const mean = (k: number): number =>
    successes.reduce((sum, correct) => sum + passAtK(samples, correct, k), 0) / prompts.length;
  return {
    accuracy: mean(1),
    greedy: greedy.filter(({ correct }) => correct).length / prompts.length,
    passAtK: powersOfTwo(samples).map((k) => ({ k, value: mean(k) })),
    prompts: prompts.length,
    samples,
    replies,
  };
}

/**
 * Replies to the prompts, first samples first. What is drawn does not depend on how many are drawn together, unless a
 * prompt is among them twice.
 */
async function ask(
  policy: Gpt,
  codec: TextCodec,
  task: Task,
  prompts: readonly Prompt[],
  { samples, rowsAtOnce, seed, ...options }: EvaluationOptions,
): Promise<Reply[]> {
  const texts: string[][] = [];
  const promptsAtOnce = Math.max(1, Math.floor(rowsAtOnce / samples));
  for (let start = 0; start < prompts.length; start += promptsAtOnce) {
    const ids = prompts.slice(start, start + promptsAtOnce).map((prompt) => codec.encodePrompt(prompt));
    const completions = await sampleCompletions(policy, ids, samples, {
      maxNewTokens: options.maxNewTokens,
      temperature: options.temperature,
      endIds: codec.endIds,
      seed: (seed + SEED_OFFSET) >>> 0,
    });
    texts.push(...completions.map((own) => own.map(({ tokens }) => codec.decode(tokens))));
  }
  const replies = Array.from({ length: samples }, (_, sample) =>
    prompts.map((prompt, i) => ({ prompt, text: texts[i]![sample]! })),
  ).flat();
  const correct: boolean[] = [];
  // In portions, as in training: a user's functions have so much time for each.
  for (let start = 0; start < replies.length; start += rowsAtOnce) {
    correct.push(...(await task.correct(replies.slice(start, start + rowsAtOnce))));
  }
  return replies.map((reply, i) => ({ ...reply, correct: correct[i]! }));
}

type Reply = Evaluation["replies"][number];

/**
 * The probability that at least one of k replies is right, estimated from n replies of which c are: 1 - C(n - c, k) /
 * C(n, k), unbiased ("Evaluating large language models trained on code", Chen et al. 2021, equation 1).
 */
export function passAtK(n: number, c: number, k: number): number {
  if (n - c < k) return 1;
  let allWrong = 1;
  for (let i = 0; i < k; i++) allWrong *= (n - c - i) / (n - i);
  return 1 - allWrong;
}

/** 2, 4, 8, ... up to `most`. */
function powersOfTwo(most: number): number[] {
  return Array.from({ length: Math.floor(Math.log2(most)) }, (_, i) => 2 ** (i + 1));
}

/** At most `most` of the items, spread evenly over the list. */
function evenly<T>(items: readonly T[], most: number): T[] {
  const count = Math.min(most, items.length);
  return Array.from({ length: count }, (_, i) => items[Math.floor((i * items.length) / count)]!);
}
