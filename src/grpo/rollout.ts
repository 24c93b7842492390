/** Rollouts: the current policy answers the prompts, and the task says what each answer is worth. */
import type { Gpt } from "../model/gpt.ts";
import { checkLengths, LengthError, repeatsOf, sampleCompletions } from "../model/sampler.ts";
import { hasSpread, weightedRewards, type Reward } from "./advantage.ts";
import type { Prompt, Task } from "./environment.ts";

/** One answer, with everything training needs to know about how it came about. Plain data: checkpoints hold it. */
export interface Experience {
  readonly prompt: Prompt;
  readonly promptIds: readonly number[];
  /** Drawn tokens, the end token included: exactly these are trained on. */
  readonly completionIds: readonly number[];
  /** log pi_old of each drawn token under the distribution it was drawn from. */
  readonly logProbs: readonly number[];
  /** log pi_ref of each drawn token; with a KL term only. */
  readonly referenceLogProbs?: readonly number[];
  /** False when the answer was cut at the token limit. */
  readonly ended: boolean;
  readonly text: string;
  /** By each reward function, in the task's order. */
  readonly rewards: readonly Reward[];
  /** Their weighted sum, with the penalty for length; null when no function could judge the answer. */
  readonly reward: Reward;
  /** The train step it was drawn in, counted from 0. */
  readonly trainStep: number;
  /** The same for answers to one prompt that were drawn together. */
  readonly group: string;
}

/** The part of a tokenizer that rollouts need. */
export interface TextCodec {
  /** The prompt's ids, ready for the answer to begin. */
  encodePrompt(prompt: Prompt): number[];
  /** Text without special tokens. */
  decode(ids: readonly number[]): string;
  readonly endIds: readonly number[];
}

export interface RolloutOptions {
  readonly samplesPerPrompt: number;
  readonly maxNewTokens: number;
  readonly temperature: number;
  readonly seed: number;
  /** Samples already drawn: the random numbers go on from there. */
  readonly firstSample: number;
  readonly trainStep: number;
  /** Tokens before the limit in which an answer is punished more and more; 0: none is. */
  readonly overlongBuffer: number;
}

/**
 * Draws `samplesPerPrompt` answers to every prompt and rewards them; in order of prompts. `samples` is how far that went
 * in the prompts' random numbers: further where a prompt is asked twice.
 */
export async function rollout(
  policy: Gpt,
  codec: TextCodec,
  task: Task,
  prompts: readonly Prompt[],
  options: RolloutOptions,
): Promise<{ experiences: Experience[]; samples: number; timeouts: number }> {
  const { samplesPerPrompt, maxNewTokens, firstSample, trainStep, overlongBuffer } = options;
  const promptIds = prompts.map((prompt) => codec.encodePrompt(prompt));
  requireRoom(policy, prompts, promptIds, maxNewTokens);
  const completions = await sampleCompletions(policy, promptIds, samplesPerPrompt, { ...options, endIds: codec.endIds });
  const answers = prompts.flatMap((prompt, i) =>
    completions[i]!.map(({ tokens, logProbs, ended }) => ({
      prompt,
      promptIds: promptIds[i]!,
      completionIds: tokens,
      logProbs,
      ended,
      text: codec.decode(tokens),
      trainStep,
      group: `${firstSample}/${i}`,
    })),
  );
  const { rewards, timeouts } = await task.judge(answers);
  const sums = weightedRewards(rewards, task.functions.map(({ weight }) => weight));
  const experiences = answers.map((answer, i) => {
    const penalty = overlongPenalty(answer.completionIds.length, maxNewTokens, overlongBuffer);
    return { ...answer, rewards: rewards[i]!, reward: sums[i] === null ? null : sums[i]! + penalty };
  });
  return { experiences, samples: samplesPerPrompt * (1 + Math.max(...repeatsOf(promptIds))), timeouts };
}

/** @throws LengthError that names the first prompt which is empty, or leaves no room for an answer. */
export function requireRoom(
  model: Pick<Gpt, "config">,
  prompts: readonly Prompt[],
  promptIds: readonly (readonly number[])[],
  maxNewTokens: number,
): void {
  for (const [i, { id }] of prompts.entries()) {
    try {
      checkLengths(model, [promptIds[i]!], maxNewTokens);
    } catch (error) {
      if (!(error instanceof LengthError)) throw error;
      throw new LengthError(`prompt ${JSON.stringify(id)}: ${error.message}`);
    }
  }
}

/**
 * DAPO's soft overlong punishment (Yu et al. 2025, equation 13; TRL's `get_soft_overlong_punishment`): 0 up to
 * limit - buffer tokens, then down by 1/buffer a token to -1 at the limit, where answers are cut. The paper calls
 * the limit L_max and the buffer L_cache.
 */
export function overlongPenalty(length: number, limit: number, buffer: number): number {
  return buffer === 0 ? 0 : Math.min(0, (limit - buffer - length) / buffer);
}

/** The experiences by groups: those to one prompt that were drawn together. */
export function groupsOf(experiences: readonly Experience[]): Experience[][] {
  const groups = new Map<string, Experience[]>();
  for (const experience of experiences) {
    const group = groups.get(experience.group);
    if (group) group.push(experience);
    else groups.set(experience.group, [experience]);
  }
  return [...groups.values()];
}

/** Whether the rewards of a group differ: without that it teaches nothing. */
export function hasRewardSpread(group: readonly Experience[]): boolean {
  return hasSpread(group.map(({ reward }) => reward).filter((reward) => reward !== null));
}
