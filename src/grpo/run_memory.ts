/** Whether a GRPO run fits into GPU memory, asked before its weights are loaded. */
import { CheckpointError, type GptConfig } from "../model/config.ts";
import { estimateMemory, gib, requireMemory } from "../model/memory_estimate.ts";
import { gpu } from "../tensor/device.ts";
import type { TrainConfig } from "./config.ts";

const KNOBS =
  "--gradient-checkpointing, a smaller --group-size, --rollout-count or --max-rollout-tokens, or a smaller model";

/**
 * Bytes of GPU memory that a run on these prompts needs at its worst moment, the reference policy of the KL term
 * included.
 * @throws CheckpointError with numbers and flags to change when it may not use that much.
 */
export function requireRunMemory(
  model: GptConfig,
  prompts: readonly (readonly number[])[],
  config: Pick<TrainConfig, "rolloutCount" | "maxRolloutTokens" | "groupSize" | "gradientCheckpointing" | "beta">,
): number {
  const { rolloutCount, maxRolloutTokens, groupSize, gradientCheckpointing, beta } = config;
  const promptLength = Math.max(...prompts.map(({ length }) => length));
  const rows = prompts.length * rolloutCount;
  const work = {
    generation: { prompts: prompts.length, rows, promptLength, newTokens: maxRolloutTokens },
    training: { rows: groupSize, length: promptLength + maxRolloutTokens, checkpointLayers: gradientCheckpointing },
  };
  requireMemory(model, work, KNOBS);
  const { weights, total } = estimateMemory(model, work);
  if (beta === 0) return total;
  const { byteBudget } = gpu();
  if (total + weights > byteBudget) {
    throw new CheckpointError(
      `this needs about ${gib(total + weights)} of GPU memory, ${gib(weights)} of it for the reference policy, ` +
        `but ${gib(byteBudget)} may be used. Fix: --beta 0, ${KNOBS}`,
    );
  }
  return total + weights;
}
