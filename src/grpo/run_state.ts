/** Where a run is: with weights, moments and settings, all that it needs to go on bit for bit. Plain JSON. */
import type { Reward } from "./advantage.ts";
import { NO_ALERTS, type AlertState } from "./alerts.ts";
import type { Experience } from "./rollout.ts";

/** What checkpoints are compared by. */
export interface Score {
  readonly by: "accuracy" | "reward";
  readonly score: number;
}

export interface RunState {
  /** Train steps done. */
  trainStep: number;
  /** Gradient steps done: the position in the learning-rate schedule. */
  updates: number;
  /** Samples drawn per prompt: the position in the random numbers of sampling. */
  samplesDrawn: number;
  /** The position in the environment's prompts. */
  promptsDrawn: number;
  /** Prompt and completion tokens so far. */
  numTokens: number;
  /** The state of the host's generator, which draws groups. */
  random: number;
  /** The replay buffer, log-probabilities of the policies that drew its completions included. */
  replay: readonly Experience[];
  /** Gradient steps that were not finite and changed nothing: the last ones in a row, and all. */
  skippedInRow: number;
  skipped: number;
  /** Of each train step; null where no reply could be judged. */
  meanRewards: readonly Reward[];
  /** The checkpoint with the highest held-out accuracy or, without evaluations, mean reward of its train step. */
  best: ({ readonly step: number } & Score) | null;
  /** The last evaluation, and after how many train steps it was. */
  evaluated: { readonly step: number; readonly accuracy: number } | null;
  alerts: AlertState;
  /** sha256 of the reference policy's weights; null without a KL term. */
  referenceHash: string | null;
}

/** Before the first train step. */
export const START: Readonly<RunState> = {
  trainStep: 0,
  updates: 0,
  samplesDrawn: 0,
  promptsDrawn: 0,
  numTokens: 0,
  random: 0,
  replay: [],
  skippedInRow: 0,
  skipped: 0,
  meanRewards: [],
  best: null,
  evaluated: null,
  alerts: NO_ALERTS,
  referenceHash: null,
};
