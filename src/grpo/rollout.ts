/** Rollouts: the current policy answers the prompts, and the environment says what each answer is worth. */
import type { Gpt } from "../model/gpt.ts";
import { sampleCompletions } from "../model/sampler.ts";
import type { Environment, Prompt } from "./environment.ts";

/** One answer, with everything training needs to know about how it came about. */
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
  readonly reward: number;
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
  /** Samples already drawn per prompt: the random numbers go on from there. */
  readonly firstSample: number;
}

/**
 * Draws `samplesPerPrompt` answers to every prompt and rewards them; in order of prompts.
 * @throws Error naming environment and answer when a reward is not a finite number.
 */
export async function rollout(
  policy: Gpt,
  codec: TextCodec,
  environment: Environment,
  options: RolloutOptions,
): Promise<Experience[]> {
  const prompts = environment.prompts();
  const promptIds = prompts.map((prompt) => codec.encodePrompt(prompt));
  const completions = await sampleCompletions(policy, promptIds, options.samplesPerPrompt, {
    ...options,
    endIds: codec.endIds,
  });
  return prompts.flatMap((prompt, i) =>
    completions[i]!.map(({ tokens, logProbs, ended }) => {
      const text = codec.decode(tokens);
      const reward = environment.reward(prompt, text);
      if (!Number.isFinite(reward)) {
        throw new Error(`environment ${environment.name}: reward ${reward} for the answer ${JSON.stringify(text)}`);
      }
      return { prompt, promptIds: promptIds[i]!, completionIds: tokens, logProbs, ended, text, reward };
    }),
  );
}
