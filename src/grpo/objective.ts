/**
 * The switch: an objective by its name. The names of the token objectives mean what TRL's `loss_type` means.
 *
 * Where things are: objective_token.ts and objective_sequence.ts hold one function per published equation,
 * objective_parts.ts what they are made of, objective_masks.ts masks and the entropy bonus, loss_metrics.ts what is
 * reported about a step.
 */
import type { Batch, Objective, ObjectiveFunction, ObjectiveOptions, StepTotals } from "./objective_parts.ts";
import { reinforceObjective, rlooObjective, sequenceObjective } from "./objective_sequence.ts";
import {
  bnpoObjective,
  cispoObjective,
  dapoObjective,
  drGrpoObjective,
  grpoObjective,
  gspoObjective,
  sapoObjective,
} from "./objective_token.ts";

export interface ObjectiveEntry {
  readonly evaluate: ObjectiveFunction;
  /** For people: what the sum over tokens or completions is divided by. */
  readonly normaliser: string;
  /** How the ratio enters: clipped to [1 - low, 1 + high], capped at `high`, softly, or not at all. */
  readonly ratio: "clipped" | "capped" | "soft" | "none";
  /** The levels of ratios on offer; "sum" is exp of the summed log-ratio. */
  readonly levels: readonly ("token" | "sequence" | "sum")[];
}

const BOTH = ["token", "sequence"] as const;
const PER_COMPLETION = "completions of the step";
const MEAN_OF_MEANS = "tokens of each completion, then completions of the step";
const ALL_TOKENS = "completion tokens of the step";

/** All objectives. */
export const OBJECTIVES = {
  sequence: { evaluate: sequenceObjective, normaliser: PER_COMPLETION, ratio: "clipped", levels: ["sum"] },
  rloo: { evaluate: rlooObjective, normaliser: PER_COMPLETION, ratio: "clipped", levels: ["sum"] },
  reinforce: { evaluate: reinforceObjective, normaliser: PER_COMPLETION, ratio: "none", levels: ["token"] },
  grpo: { evaluate: grpoObjective, normaliser: MEAN_OF_MEANS, ratio: "clipped", levels: BOTH },
  bnpo: { evaluate: bnpoObjective, normaliser: "tokens of each micro-batch", ratio: "clipped", levels: BOTH },
  dapo: { evaluate: dapoObjective, normaliser: ALL_TOKENS, ratio: "clipped", levels: BOTH },
  dr_grpo: {
    evaluate: drGrpoObjective,
    normaliser: "completions of the step x longest completion allowed",
    ratio: "clipped",
    levels: BOTH,
  },
  gspo: { evaluate: gspoObjective, normaliser: PER_COMPLETION, ratio: "clipped", levels: ["sequence"] },
  cispo: { evaluate: cispoObjective, normaliser: ALL_TOKENS, ratio: "capped", levels: BOTH },
  sapo: { evaluate: sapoObjective, normaliser: MEAN_OF_MEANS, ratio: "soft", levels: BOTH },
} as const satisfies Record<string, ObjectiveEntry>;

export type ObjectiveName = keyof typeof OBJECTIVES;

/**
 * The objective of a batch, to be maximised, with what metrics need of it. Summed over the micro-batches of a step it
 * is the objective of the step (bnpo aside).
 * @throws RangeError for options that do not go with the objective, or a batch whose parts do not fit together.
 */
export function evaluateObjective(
  name: ObjectiveName,
  batch: Batch,
  options: ObjectiveOptions,
  step: StepTotals,
): Objective {
  checkOptions(name, options);
  checkBatch(name, batch);
  return OBJECTIVES[name].evaluate(batch, options, step);
}

/**
 * Refuses options that the objective would ignore or that make no sense for it. Host only: worth calling before a run.
 * @throws RangeError naming objective, option and fix.
 */
export function checkOptions(name: ObjectiveName, { clip, delta, ratioLevel, kl }: ObjectiveOptions): void {
  const entry: ObjectiveEntry = OBJECTIVES[name];
  const refuse = (problem: string): never => {
    throw new RangeError(`objective ${name}: ${problem}`);
  };
  if (entry.ratio === "clipped") {
    if (!(clip.low >= 0 && clip.low <= 1)) refuse(`epsilon ${clip.low} must lie between 0 and 1`);
    if (!(clip.high >= 0)) refuse(`epsilon_high ${clip.high} must not be negative`);
    if (delta !== undefined && !(delta > 1 + clip.high)) {
      refuse(`delta ${delta} must be above 1 + epsilon_high = ${1 + clip.high}`);
    }
  } else if (delta !== undefined) {
    refuse("it does not clip, so it takes no delta");
  }
  // TRL takes 0.2 here without a word, and every step is five times too short.
  if (entry.ratio === "capped" && !(clip.high >= 1)) {
    refuse(`epsilon_high ${clip.high} is the cap of the ratio itself and must be at least 1 (5 is usual)`);
  }
  if (ratioLevel && !entry.levels.includes(ratioLevel)) {
    refuse(`its ratio level is ${entry.levels.join(" or ")}, not ${ratioLevel}`);
  }
  if (kl && !(kl.beta >= 0)) refuse(`beta ${kl.beta} must not be negative`);
  if (kl?.biasCorrection && entry.ratio === "none") refuse("it has no ratio to correct the KL estimate with");
}

function checkBatch(name: ObjectiveName, { logProbs, mask, advantages, ...others }: Batch): void {
  const shape = logProbs.value.shape;
  const [rows, width] = shape;
  if (shape.length !== 2) throw new RangeError(`objective ${name}: logProbs [${shape.join(", ")}] must be [N, T]`);
  if (mask.length !== rows || mask.some((row) => row.length > width!)) {
    const longest = Math.max(...mask.map(({ length }) => length));
    throw new RangeError(`objective ${name}: a mask of ${mask.length} rows up to ${longest} for [${shape.join(", ")}]`);
  }
  if (advantages.length !== rows) {
    throw new RangeError(`objective ${name}: ${advantages.length} advantages for ${rows} completions`);
  }
  for (const key of ["oldLogProbs", "referenceLogProbs", "policyWeights"] as const) {
    const other = others[key]?.shape;
    if (other && other.join() !== shape.join()) {
      throw new RangeError(`objective ${name}: ${key} [${other.join(", ")}] beside logProbs [${shape.join(", ")}]`);
    }
  }
  if (others.policyWeights && (OBJECTIVES[name].levels as readonly string[]).includes("sum")) {
    throw new RangeError(`objective ${name}: it has one term per completion, so policyWeights cannot weigh its tokens`);
  }
}
