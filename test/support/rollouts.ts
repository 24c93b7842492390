/** Answers of a policy to an environment's prompts, for tests of the training loop's parts. */
import type { Environment } from "../../src/grpo/environment.ts";
import { rollout, type Experience, type RolloutOptions, type TextCodec } from "../../src/grpo/rollout.ts";
import { localTask } from "../../src/grpo/task.ts";
import type { Gpt } from "../../src/model/gpt.ts";

/** An experience whose reward is known. */
export type Rewarded = Experience & { readonly reward: number };

/** Draws answers to all prompts of the environment (up to 9) and rewards them. */
export async function answersTo(
  policy: Gpt,
  codec: TextCodec,
  environment: Environment,
  options: Partial<RolloutOptions> = {},
): Promise<Rewarded[]> {
  const task = localTask(environment);
  const { experiences } = await rollout(policy, codec, task, await task.prompts(0, 9, 1), {
    samplesPerPrompt: 8,
    maxNewTokens: 4,
    temperature: 1,
    seed: 4,
    firstSample: 0,
    trainStep: 0,
    overlongBuffer: 0,
    ...options,
  });
  return experiences as Rewarded[];
}
