/**
 * Hyper-parameters of a GRPO run: the reference experiment's values, one flag each. Flags that do not go together, or
 * that would change nothing, are refused.
 */
import { Option, type Command } from "commander";
import { command, integer, number, requireNewDirectory } from "../cli.ts";
import { DEFAULT_MODEL } from "../model/chat_model.ts";
import type { AdvantageOptions } from "./advantage.ts";
import { checkOptions, OBJECTIVES, type ObjectiveEntry, type ObjectiveName } from "./objective.ts";
import type { KlOptions, ObjectiveOptions } from "./objective_parts.ts";

export interface TrainConfig {
  /** A model directory or a hub name. */
  readonly model: string;
  readonly out: string;
  readonly seed: number;
  readonly objective: ObjectiveName;
  readonly trainSteps: number;
  /** Completions per prompt and train step. */
  readonly rolloutCount: number;
  readonly maxRolloutTokens: number;
  readonly temperature: number;
  readonly gradUpdatesPerStep: number;
  readonly groupSize: number;
  readonly replayBufferCapacity: number;
  readonly epsilon: number;
  readonly epsilonHigh: number;
  /** Upper bound of the ratio for negative advantages too: the two-sided clip. */
  readonly delta?: number;
  /** One ratio per token or one per completion, for objectives that offer both. */
  readonly ratioLevel?: "token" | "sequence";
  /** Weight of the KL term against the starting weights; 0: no term, and no reference policy is kept. */
  readonly beta: number;
  readonly klEstimator: NonNullable<KlOptions["estimator"]>;
  /** What is taken off a reward; it comes with the objective. */
  readonly baseline: NonNullable<AdvantageOptions["baseline"]>;
  /** The standard deviation that advantages are divided by: the group's, the replay buffer's, or none. */
  readonly scaleRewards: NonNullable<AdvantageOptions["scale"]>;
  /** Added to that deviation. */
  readonly advantageEpsilon: number;
  /** Completions cut at the token limit are not trained on. */
  readonly maskTruncated: boolean;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly weightDecay: number;
  /** 0: no clipping. */
  readonly maxGradNorm: number;
  /** Backward computes each layer again instead of keeping what is inside: less memory, the same numbers. */
  readonly gradientCheckpointing: boolean;
}

type ByObjective = Pick<TrainConfig, "epsilon" | "epsilonHigh" | "baseline" | "scaleRewards">;

const USUAL: ByObjective = { epsilon: 0.2, epsilonHigh: 0.2, baseline: "mean", scaleRewards: "group" };

/** What the objectives' papers use, where that is not the usual. */
const DEFAULTS: Readonly<Partial<Record<ObjectiveName, Partial<ByObjective>>>> = {
  cispo: { epsilonHigh: 5 },
  gspo: { epsilon: 3e-4, epsilonHigh: 4e-4 },
  dr_grpo: { scaleRewards: "none" },
  rloo: { baseline: "leave-one-out", scaleRewards: "none" },
  reinforce: { baseline: "none", scaleRewards: "none" },
};

/** Flags whose default depends on other flags, or that not every objective takes: undefined unless given. */
type Dependent = "out" | "epsilon" | "epsilonHigh" | "scaleRewards" | "advantageEpsilon" | "klEstimator";
type Switch = "maskTruncated" | "gradientCheckpointing";
type Flags = Omit<TrainConfig, Dependent | Switch | "baseline"> &
  { readonly [K in Dependent]?: TrainConfig[K] } & { readonly [K in Switch]?: true };

/** Reads the command line. Prints help or a one-line error and throws (handled by `runMain`). */
export function parseConfig(argv: readonly string[] = process.argv): TrainConfig {
  const program = trainCommand();
  const flags = program.parse(argv).opts<Flags>();
  const refuse = (problem: string): never => program.error(`error: ${problem}`);
  refuseIdleFlags(flags, refuse);
  if (flags.groupSize > Math.min(flags.rolloutCount, flags.replayBufferCapacity)) {
    refuse(
      `--group-size ${flags.groupSize} exceeds --rollout-count ${flags.rolloutCount} ` +
        `or --replay-buffer-capacity ${flags.replayBufferCapacity}: no group could be drawn`,
    );
  }
  const out = flags.out ?? `runs/${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}-seed${flags.seed}`;
  requireNewDirectory(out, "--out");
  const defaults = { ...USUAL, ...DEFAULTS[flags.objective] };
  const config: TrainConfig = {
    ...flags,
    out,
    epsilon: flags.epsilon ?? defaults.epsilon,
    epsilonHigh: flags.epsilonHigh ?? flags.epsilon ?? defaults.epsilonHigh,
    klEstimator: flags.klEstimator ?? "k3",
    baseline: defaults.baseline,
    scaleRewards: flags.scaleRewards ?? defaults.scaleRewards,
    advantageEpsilon: flags.advantageEpsilon ?? 1e-6,
    maskTruncated: flags.maskTruncated ?? false,
    gradientCheckpointing: flags.gradientCheckpointing ?? false,
  };
  try {
    checkOptions(config.objective, objectiveOptions(config));
  } catch (error) {
    if (error instanceof RangeError) refuse(error.message);
    throw error;
  }
  return config;
}

/** The flags that the objective itself takes. */
export function objectiveOptions(
  config: Pick<TrainConfig, "epsilon" | "epsilonHigh" | "delta" | "ratioLevel" | "beta" | "klEstimator">,
): ObjectiveOptions {
  const { epsilon, epsilonHigh, delta, ratioLevel, beta, klEstimator } = config;
  return {
    clip: { low: epsilon, high: epsilonHigh },
    ...(delta === undefined ? {} : { delta }),
    ...(ratioLevel === undefined ? {} : { ratioLevel }),
    ...(beta > 0 ? { kl: { beta, estimator: klEstimator } } : {}),
  };
}

function trainCommand(): Command {
  const choice = (flags: string, description: string, choices: readonly string[]): Option =>
    new Option(flags, description).choices(choices);
  const program = command("train", "Teaches a chat model to guess a digit by reward alone (GRPO).");
  program
    .optionsGroup("Run:")
    .option("--model <dir>", "model to train: a Hugging Face directory or hub name", DEFAULT_MODEL)
    .option("--out <dir>", "new folder for metrics and the trained model (default: runs/<date and time>)")
    .option("--seed <n>", "seed of every random number", integer(0, 0xffffffff), 1)
    .option("--train-steps <n>", "rounds of rollouts and training", integer(1), 5)
    .optionsGroup("Rollouts:")
    .option("--rollout-count <n>", "completions drawn per prompt and train step", integer(1), 25)
    .option("--max-rollout-tokens <n>", "longest completion, in tokens", integer(1), 10)
    .option("--temperature <x>", "of sampling and of the trained distribution", number(1e-3), 1)
    .optionsGroup("Objective:")
    .addOption(
      choice("--objective <name>", "what is maximised", Object.keys(OBJECTIVES)).default("sequence"),
    )
    .option("--epsilon <x>", "clip range below 1, and above unless --epsilon-high is given (default: 0.2; gspo 3e-4)",
      number(0))
    .option("--epsilon-high <x>", "clip range above 1, or cispo's cap (default: --epsilon; gspo 4e-4, cispo 5)",
      number(0))
    .option("--delta <x>", "bounds the ratio for negative advantages too (two-sided clip)", number(0))
    .addOption(choice("--ratio-level <level>", "one ratio per token or per completion", ["token", "sequence"]))
    .option("--beta <x>", "weight of the KL term against the starting weights; 0 keeps no reference", number(0), 0)
    .addOption(choice("--kl-estimator <name>", "of that term (default: k3)", ["k1", "k2", "k3"]))
    .addOption(choice(
      "--scale-rewards <by>",
      "divide advantages by the deviation of the group, the replay buffer (batch), or nothing " +
        "(default: group; dr_grpo, rloo and reinforce none)",
      ["group", "batch", "none"],
    ))
    .option("--advantage-epsilon <x>", "added to that deviation (default: 1e-6)", number(0))
    .option("--mask-truncated", "do not train on completions cut at --max-rollout-tokens")
    .optionsGroup("Training:")
    .option("--grad-updates-per-step <n>", "gradient steps per train step", integer(1), 5)
    .option("--group-size <n>", "completions per gradient step, G", integer(2), 5)
    .option("--replay-buffer-capacity <n>", "newest completions to draw groups from", integer(2), 50)
    .option("--learning-rate <x>", "peak learning rate", number(0), 7e-4)
    .option("--warmup-steps <n>", "gradient steps of linear warm-up; then linear decay to 0", integer(0), 5)
    .option("--weight-decay <x>", "decoupled weight decay of AdamW", number(0), 0.01)
    .option("--max-grad-norm <x>", "clips the gradient's global norm; 0 does not", number(0), 0)
    .option("--gradient-checkpointing", "less memory for more time: backward computes layers again");
  return program;
}

/** Refuses flags that would change nothing: whoever gives one expects something of it. */
function refuseIdleFlags(flags: Flags, refuse: (problem: string) => never): void {
  const { objective } = flags;
  const { ratio, levels }: ObjectiveEntry = OBJECTIVES[objective];
  const baseline = DEFAULTS[objective]?.baseline ?? USUAL.baseline;
  const scale = flags.scaleRewards ?? DEFAULTS[objective]?.scaleRewards ?? USUAL.scaleRewards;
  if (flags.epsilon !== undefined && ratio !== "clipped") {
    const fix = ratio === "capped" ? ": give --epsilon-high" : "";
    refuse(`--epsilon changes nothing for --objective ${objective}${fix}`);
  }
  if (flags.epsilonHigh !== undefined && ratio !== "clipped" && ratio !== "capped") {
    refuse(`--epsilon-high changes nothing for --objective ${objective}`);
  }
  if (flags.ratioLevel !== undefined && levels.length === 1) {
    refuse(`--ratio-level changes nothing for --objective ${objective}, which has one way to take ratios`);
  }
  if (flags.klEstimator !== undefined && flags.beta === 0) refuse("--kl-estimator needs --beta above 0");
  if (baseline === "none" && scale !== "none") {
    refuse(`--scale-rewards ${scale} does not go with --objective ${objective}, which takes rewards as they are`);
  }
  if (flags.advantageEpsilon !== undefined && scale === "none") {
    refuse("--advantage-epsilon is added to a deviation: it needs --scale-rewards group or batch");
  }
}
