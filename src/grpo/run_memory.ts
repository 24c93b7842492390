/** Whether a GRPO run fits into GPU memory, asked before its weights are loaded. */
import type { GptConfig } from "../model/config.ts";
import { estimateMemory, requireMemory } from "../model/memory_estimate.ts";
import { MAX_TOKENS } from "./completion_log_probs.ts";
import type { TrainConfig } from "./config.ts";

const KNOBS =
  "--gradient-checkpointing, a smaller --micro-batch, --rollout-count or --max-rollout-tokens, or a smaller model";

type MemoryConfig = Pick<
  TrainConfig,
  | "promptsPerStep" | "rolloutCount" | "maxRolloutTokens" | "groupSize" | "groupsPerUpdate" | "microBatch"
  | "evalEvery" | "evalSamples" | "gradientCheckpointing" | "beta"
>;

/**
 * Bytes of GPU memory that a run on these prompts needs at its worst moment, with its copies of the weights: the last
 * good ones, and the reference policy of the KL term.
 * @throws CheckpointError with numbers and flags to change when it may not use that much.
 */
export function requireRunMemory(
  model: GptConfig,
  prompts: readonly (readonly number[])[],
  config: MemoryConfig,
): number {
  const { promptsPerStep, rolloutCount, maxRolloutTokens, groupSize, groupsPerUpdate } = config;
  const { evalEvery, evalSamples, gradientCheckpointing, beta } = config;
  const promptLength = Math.max(...prompts.map(({ length }) => length));
  const rows = promptsPerStep * rolloutCount;
  // An evaluation asks as many different prompts at once, and one prompt's samples all together.
  const promptsAtOnce = evalEvery > 0 ? rows : promptsPerStep;
  const rowsAtOnce = evalEvery > 0 ? Math.max(rows, evalSamples) : rows;
  const trained = Math.min(config.microBatch, groupSize * groupsPerUpdate);
  // Of each completion all tokens are predicted, and all but the last one run behind their prompt; a prompt runs once
  // for all its completions. What completions have in common would make it less: nobody knows before they are drawn.
  const scored = { tokens: promptsPerStep * promptLength + rows * (maxRolloutTokens - 1) };
  const work = {
    generation: { prompts: promptsAtOnce, rows: rowsAtOnce, promptLength, newTokens: maxRolloutTokens },
    scoring: {
      tokens: Math.min(scored.tokens, Math.max(MAX_TOKENS, promptLength + maxRolloutTokens)),
      predictions: rows * maxRolloutTokens,
    },
    training: {
      tokens: Math.min(trained, groupsPerUpdate) * promptLength + trained * (maxRolloutTokens - 1),
      predictions: trained * maxRolloutTokens + 1,
      checkpointLayers: gradientCheckpointing,
    },
    copies: beta > 0 ? 2 : 1, // the last good weights, and the reference policy
  };
  requireMemory(model, work, beta > 0 ? `--beta 0, ${KNOBS}` : KNOBS);
  return estimateMemory(model, work).total;
}
