/**
 * The settings of a GRPO run, from flags, a configuration file and a preset, in this order of precedence. Settings that
 * do not go together are refused, and those of the objective that would change nothing.
 */
import { readFileSync } from "node:fs";
import type { Command, Option } from "commander";
import type { schedules } from "../autograd/schedule.ts";
import { nearestName, requireNewDirectory, UsageError } from "../cli.ts";
import type { AdvantageOptions } from "./advantage.ts";
import { trainCommand } from "./flags.ts";
import { checkOptions, OBJECTIVES, type ObjectiveEntry, type ObjectiveName } from "./objective.ts";
import type { KlOptions, ObjectiveOptions } from "./objective_parts.ts";
import { PRESETS } from "./presets.ts";

export interface TrainConfig {
  /** A model directory or a hub name. */
  readonly model: string;
  /** A built-in environment's name or the path of a module. */
  readonly environment: string;
  readonly out: string;
  readonly seed: number;
  /** Train steps between checkpoints; 0: only when the run is stopped. */
  readonly saveEvery: number;
  /** Checkpoints kept in addition to the best one. */
  readonly keepLast: number;
  /** Train steps between evaluations; 0: none, not even before and after. */
  readonly evalEvery: number;
  readonly evalPrompts: number;
  readonly evalSamples: number;
  readonly trainSteps: number;
  readonly promptsPerStep: number;
  /** Completions per prompt and train step. */
  readonly rolloutCount: number;
  readonly maxRolloutTokens: number;
  readonly temperature: number;
  /** Extra rounds of rollouts at most, while groups without reward spread are replaced; 0: they stay. */
  readonly dynamicSampling: number;
  /** Tokens before the limit that are punished more and more; 0: none. */
  readonly overlongBuffer: number;
  /** Seconds for a user's reward functions to judge the replies of one train step. */
  readonly rewardTimeout: number;
  readonly objective: ObjectiveName;
  readonly epsilon: number;
  readonly epsilonHigh: number;
  /** Upper bound of the ratio for negative advantages too: the two-sided clip. */
  readonly delta?: number;
  /** One ratio per token or one per completion, for objectives that offer both. */
  readonly ratioLevel?: "token" | "sequence";
  /** Weight of the KL term against the starting weights; 0: no term, and no reference policy is kept. */
  readonly beta: number;
  readonly klEstimator: NonNullable<KlOptions["estimator"]>;
  /** The estimate is multiplied by the importance ratio: right for tokens of an older policy. */
  readonly klBiasCorrection: boolean;
  /** What is taken off a reward; it comes with the objective. */
  readonly baseline: NonNullable<AdvantageOptions["baseline"]>;
  /** The standard deviation that advantages are divided by: the group's, the batch's, or none. */
  readonly scaleRewards: NonNullable<AdvantageOptions["scale"]>;
  /** Added to that deviation. */
  readonly advantageEpsilon: number;
  /** 1: n - 1 in that deviation's denominator; 0: n. */
  readonly advantageDdof: 0 | 1;
  /** Several reward functions: their weighted sum is normalised, or each of them before the sum (GDPO). */
  readonly rewardAggregation: "sum-then-normalize" | "normalize-then-sum";
  /** Completions cut at the token limit are not trained on. */
  readonly maskTruncated: boolean;
  /** Weight of the policy's mean entropy in the objective; 0: no such term. */
  readonly entropyBonus: number;
  /** The share of tokens that is trained on, the least decided ones; 1: all. */
  readonly topEntropyQuantile: number;
  /** Completions with A < 0 whose mean log-ratio has fallen by more are left out. Absent: none is. */
  readonly offPolicyThreshold?: number;
  readonly gradUpdatesPerStep: number;
  /** Whether gradient steps draw single completions of one prompt, or groups as they were rolled out. */
  readonly replay: "completions" | "groups";
  readonly groupsPerUpdate: number;
  readonly groupSize: number;
  readonly replayBufferCapacity: number;
  /** Completions that go through the model at once; a gradient step accumulates over them. */
  readonly microBatch: number;
  /** Its peak. */
  readonly learningRate: number;
  readonly lrSchedule: keyof typeof schedules;
  /** Gradient steps of linear warm-up. */
  readonly warmupSteps: number;
  readonly adamBeta1: number;
  readonly adamBeta2: number;
  /** Added to the root of the second moment. */
  readonly adamEpsilon: number;
  /** Of all parameters, norms and biases included. */
  readonly weightDecay: number;
  /** 0: no clipping. */
  readonly maxGradNorm: number;
  /** Backward computes each layer again instead of keeping what is inside: less memory, the same numbers. */
  readonly gradientCheckpointing: boolean;
  /** Names of settings that nobody gave and that follow from others: as those change, so do they. */
  readonly derived: readonly Derivable[];
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

/** Settings whose default depends on others, or that do not always apply: undefined unless given. */
const DERIVABLE = [
  "epsilon", "epsilonHigh", "scaleRewards", "advantageEpsilon", "advantageDdof", "klEstimator", "groupSize",
  "replayBufferCapacity", "microBatch",
] as const;
type Derivable = (typeof DERIVABLE)[number];
type Switch = "maskTruncated" | "gradientCheckpointing" | "klBiasCorrection";
type Settings = Omit<TrainConfig, Derivable | Switch | "out" | "baseline" | "derived"> &
  { readonly [K in Derivable | "out"]?: TrainConfig[K] } & { readonly [K in Switch]?: boolean };

/** Flags that are about this start of the program and not about the run's settings. */
interface StartFlags {
  readonly preset?: keyof typeof PRESETS;
  readonly config?: string;
  readonly out?: string;
  readonly resume?: string;
  readonly dryRun?: true;
  readonly stopAt?: number;
}
const NOT_SETTINGS = ["preset", "config", "out", "resume", "dryRun", "stopAt"];

/** What a resumed run may change: it goes on with the numbers it has. */
const MAY_CHANGE = [
  "trainSteps", "saveEvery", "keepLast", "evalEvery", "evalPrompts", "evalSamples", "rewardTimeout", "microBatch",
  "learningRate", "weightDecay", "maxGradNorm", "gradientCheckpointing",
];

export interface TrainCommand {
  readonly config: TrainConfig;
  readonly dryRun: boolean;
  /** Save and stop after this many train steps; null: go to the end. */
  readonly stopAt: number | null;
  /** "auto", or a run's or checkpoint's directory; null for a new run. */
  readonly resume: string | null;
  /** The settings that were given as flags. */
  readonly given: Readonly<Record<string, unknown>>;
}

/** Reads the command line. Prints help or a one-line error and throws (handled by `runMain`). */
export function parseCommand(argv: readonly string[] = process.argv): TrainCommand {
  const program = trainCommand().parse(argv);
  const own = program.opts<StartFlags>();
  const given = Object.fromEntries(
    Object.entries(program.opts()).filter(([key]) => {
      return program.getOptionValueSource(key) === "cli" && !NOT_SETTINGS.includes(key);
    }),
  );
  const refuse = (problem: string): never => program.error(`error: ${problem}`);
  if (own.resume !== undefined) {
    const other = (["preset", "config", "out", "dryRun"] as const).find((key) => own[key] !== undefined);
    if (other) refuse(`${flagOf(program, other)} does not go with --resume: a resumed run has its settings and its folder`);
    const fixed = Object.keys(given).find((key) => !MAY_CHANGE.includes(key));
    if (fixed) refuse(`${flagOf(program, fixed)} cannot change when a run is resumed. Fix: start a new run`);
  }
  if (own.preset !== undefined) apply(program, PRESETS[own.preset], `preset ${own.preset}`);
  if (own.config !== undefined) apply(program, pinned(readSettings(own.config)), own.config);
  const config = resolve(program.opts<Settings>(), refuse);
  if (own.resume === undefined && !own.dryRun) requireNewDirectory(config.out, "--out");
  return { config, dryRun: own.dryRun ?? false, stopAt: own.stopAt ?? null, resume: own.resume ?? null, given };
}

/** The settings of a new run. */
export function parseConfig(argv?: readonly string[]): TrainConfig {
  return parseCommand(argv).config;
}

/** The settings of a resumed run: `saved` ones (`savedSettings`), with what was given as flags in their place. */
export function resumedConfig(
  saved: Readonly<Record<string, unknown>>,
  out: string,
  given: Readonly<Record<string, unknown>> = {},
): TrainConfig {
  const program = trainCommand();
  const { derived, ...settings } = saved;
  apply(program, { ...settings, ...given }, "the checkpoint");
  const config = resolve({ ...program.opts<Settings>(), out }, (problem) => {
    throw new UsageError(problem);
  });
  const isDerived = (key: Derivable): boolean => isNamed(derived, key) && !(key in given);
  return { ...config, derived: DERIVABLE.filter((key) => isDerived(key) || config.derived.includes(key)) };
}

/**
 * What config.json holds: every setting that applies, so that the file can be given to `--config`, and which of them
 * are `derived`.
 */
export function savedSettings(config: TrainConfig): Record<string, unknown> {
  const { baseline, derived, ...settings } = config;
  const { ratio }: ObjectiveEntry = OBJECTIVES[config.objective];
  const idle = [
    "out",
    ...(ratio === "clipped" ? [] : ["epsilon"]),
    ...(ratio === "clipped" || ratio === "capped" ? [] : ["epsilonHigh"]),
    ...(config.beta === 0 ? ["klEstimator", "klBiasCorrection"] : []),
    ...(config.scaleRewards === "none" ? ["advantageEpsilon", "advantageDdof"] : []),
    ...(baseline === "none" ? ["scaleRewards"] : []),
    ...(config.replay === "groups" ? ["groupSize"] : []),
  ];
  const applies = (key: string): boolean => !idle.includes(key);
  const entries = Object.entries(settings).filter(([key]) => applies(key));
  return { ...Object.fromEntries(entries), derived: derived.filter(applies) };
}

/** Settings of a file, without those that it says are derived: they follow from the others, and from flags, again. */
function pinned({ derived, ...settings }: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(settings).filter(([key]) => !isNamed(derived, key)));
}

function isNamed(derived: unknown, key: string): boolean {
  return Array.isArray(derived) && derived.includes(key);
}

/** One line for people: the settings that are not the default run's. */
export function describeSettings(config: TrainConfig): string {
  const defaults = savedSettings(parseCommand(["node", "train", "--dry-run"]).config);
  const changed = Object.entries(savedSettings(config)).filter(([key, value]) => {
    return key !== "derived" && defaults[key] !== value;
  });
  return changed.length === 0 ? "the defaults" : changed.map(([key, value]) => `${key} ${String(value)}`).join(", ");
}

/** Puts settings of a file or preset in place of defaults, checked as flags are; flags stay. */
function apply(program: Command, settings: Readonly<Record<string, unknown>>, source: string): void {
  const options = program.options.filter((option) => !NOT_SETTINGS.includes(option.attributeName()));
  for (const [key, value] of Object.entries(settings)) {
    const option = options.find((candidate) => candidate.attributeName() === key);
    if (!option) {
      const nearest = nearestName(key, options.map((candidate) => candidate.attributeName()));
      program.error(`error: ${source}: unknown setting "${key}"${nearest ? `. Did you mean ${nearest}?` : ""}`);
    } else if (program.getOptionValueSource(key) !== "cli") {
      program.setOptionValueWithSource(key, parseSetting(program, option, value, source), source);
    }
  }
}

/** A value of a JSON file, checked by its flag's own parser. */
function parseSetting(program: Command, option: Option, value: unknown, source: string): unknown {
  const refuse = (problem: string): never => {
    return program.error(`error: ${source}: ${option.attributeName()} ${JSON.stringify(value)}: ${problem}`);
  };
  if (option.isBoolean()) return typeof value === "boolean" ? value : refuse("must be true or false");
  if (typeof value !== "string" && typeof value !== "number") return refuse("must be a number or a text");
  try {
    return option.parseArg ? option.parseArg(String(value), undefined) : String(value);
  } catch (error) {
    return refuse((error as Error).message);
  }
}

/** @throws UsageError when the file is missing or does not hold a JSON object. */
function readSettings(path: string): Record<string, unknown> {
  let settings: unknown;
  try {
    settings = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new UsageError(`--config ${path}: ${(error as Error).message}`);
  }
  if (typeof settings !== "object" || settings === null || Array.isArray(settings)) {
    throw new UsageError(`--config ${path}: must hold a JSON object of settings, such as {"trainSteps": 10}`);
  }
  return settings as Record<string, unknown>;
}

function flagOf(program: Command, key: string): string {
  return program.options.find((option) => option.attributeName() === key)!.long!;
}

/** Fills in what depends on other settings, and refuses what does not go together. */
function resolve(settings: Settings, refuse: (problem: string) => never): TrainConfig {
  refuseIdle(settings, refuse);
  const defaults = { ...USUAL, ...DEFAULTS[settings.objective] };
  const { replay, rolloutCount, promptsPerStep, groupsPerUpdate } = settings;
  const groupSize = settings.groupSize ?? (replay === "groups" ? rolloutCount : 5);
  const drawn = promptsPerStep * rolloutCount;
  const own = Object.fromEntries(Object.entries(settings).filter(([key]) => !NOT_SETTINGS.includes(key)));
  const config: TrainConfig = {
    ...(own as unknown as Settings),
    out: settings.out ?? `runs/${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}-seed${settings.seed}`,
    epsilon: settings.epsilon ?? defaults.epsilon,
    epsilonHigh: settings.epsilonHigh ?? settings.epsilon ?? defaults.epsilonHigh,
    klEstimator: settings.klEstimator ?? "k3",
    baseline: defaults.baseline,
    scaleRewards: settings.scaleRewards ?? defaults.scaleRewards,
    advantageEpsilon: settings.advantageEpsilon ?? 1e-6,
    advantageDdof: settings.advantageDdof ?? 1,
    groupSize,
    replayBufferCapacity: settings.replayBufferCapacity ?? (replay === "groups" ? drawn : Math.max(50, drawn)),
    microBatch: settings.microBatch ?? groupSize * groupsPerUpdate,
    klBiasCorrection: settings.klBiasCorrection ?? false,
    maskTruncated: settings.maskTruncated ?? false,
    gradientCheckpointing: settings.gradientCheckpointing ?? false,
    derived: DERIVABLE.filter((key) => settings[key] === undefined),
  };
  refuseImpossible(config, refuse);
  return config;
}

/** Refuses numbers that leave nothing to draw or to train on. */
function refuseImpossible(config: TrainConfig, refuse: (problem: string) => never): void {
  const { groupSize, rolloutCount, promptsPerStep, replayBufferCapacity, overlongBuffer, maxRolloutTokens } = config;
  const drawn = promptsPerStep * rolloutCount;
  if (rolloutCount < 2) refuse("--rollout-count must be at least 2: an advantage compares completions of one prompt");
  if (groupSize > rolloutCount) {
    refuse(`--group-size ${groupSize} exceeds --rollout-count ${rolloutCount}: no group could be drawn`);
  }
  if (replayBufferCapacity < drawn) {
    refuse(
      `--replay-buffer-capacity ${replayBufferCapacity} holds less than the ${drawn} completions of a train step: ` +
        "the others would never be drawn",
    );
  }
  if (config.replay === "groups" && replayBufferCapacity % drawn !== 0) {
    refuse(
      `--replay-buffer-capacity ${replayBufferCapacity} is no multiple of the ${drawn} completions of a train step, ` +
        "and --replay groups keeps whole train steps",
    );
  }
  if (overlongBuffer > maxRolloutTokens) {
    refuse(`--overlong-buffer ${overlongBuffer} exceeds --max-rollout-tokens ${maxRolloutTokens}`);
  }
  try {
    checkOptions(config.objective, objectiveOptions(config));
  } catch (error) {
    if (error instanceof RangeError) refuse(error.message);
    throw error;
  }
}

/** With `--replay groups`: of how many train steps, the newest ones, gradient steps draw groups. */
export function stepsReplayed(
  config: Pick<TrainConfig, "replayBufferCapacity" | "promptsPerStep" | "rolloutCount">,
): number {
  return config.replayBufferCapacity / (config.promptsPerStep * config.rolloutCount);
}

/** The settings that the objective itself takes. */
export function objectiveOptions(
  config: Pick<TrainConfig, "epsilon" | "epsilonHigh" | "delta" | "ratioLevel" | "beta" | "klEstimator" | "klBiasCorrection">,
): ObjectiveOptions {
  const { epsilon, epsilonHigh, delta, ratioLevel, beta, klEstimator, klBiasCorrection } = config;
  return {
    clip: { low: epsilon, high: epsilonHigh },
    ...(delta === undefined ? {} : { delta }),
    ...(ratioLevel === undefined ? {} : { ratioLevel }),
    ...(beta > 0 ? { kl: { beta, estimator: klEstimator, biasCorrection: klBiasCorrection } } : {}),
  };
}

/** Refuses settings of the objective that would change nothing: whoever gives one expects something of it. */
function refuseIdle(settings: Settings, refuse: (problem: string) => never): void {
  const { objective } = settings;
  const { ratio, levels }: ObjectiveEntry = OBJECTIVES[objective];
  const baseline = DEFAULTS[objective]?.baseline ?? USUAL.baseline;
  const scale = settings.scaleRewards ?? DEFAULTS[objective]?.scaleRewards ?? USUAL.scaleRewards;
  if (settings.epsilon !== undefined && ratio !== "clipped") {
    const fix = ratio === "capped" ? ": give --epsilon-high" : "";
    refuse(`--epsilon changes nothing for --objective ${objective}${fix}`);
  }
  if (settings.epsilonHigh !== undefined && ratio !== "clipped" && ratio !== "capped") {
    refuse(`--epsilon-high changes nothing for --objective ${objective}`);
  }
  if (settings.ratioLevel !== undefined && levels.length === 1) {
    refuse(`--ratio-level changes nothing for --objective ${objective}, which has one way to take ratios`);
  }
  const perToken = settings.topEntropyQuantile < 1 ? "--top-entropy-quantile"
    : settings.offPolicyThreshold !== undefined ? "--off-policy-threshold" : null;
  if (perToken && levels.includes("sum")) {
    refuse(`${perToken} weighs tokens, and --objective ${objective} has one term per completion`);
  }
  if (settings.beta === 0) {
    if (settings.klEstimator !== undefined) refuse("--kl-estimator needs --beta above 0");
    if (settings.klBiasCorrection) refuse("--kl-bias-correction needs --beta above 0");
  }
  if (settings.klBiasCorrection && settings.klEstimator === "k2") {
    refuse("--kl-bias-correction does not go with --kl-estimator k2: the ratio's own gradient would spoil the square's");
  }
  if (baseline === "none" && scale !== "none") {
    refuse(`--scale-rewards ${scale} does not go with --objective ${objective}, which takes rewards as they are`);
  }
  if (scale === "none") {
    if (settings.advantageEpsilon !== undefined) {
      refuse("--advantage-epsilon is added to a deviation: it needs --scale-rewards group or batch");
    }
    if (settings.advantageDdof !== undefined) refuse("--advantage-ddof needs --scale-rewards group or batch");
  }
  if (settings.rewardAggregation === "normalize-then-sum" && (baseline !== "mean" || scale !== "group")) {
    refuse("--reward-aggregation normalize-then-sum needs group means and --scale-rewards group");
  }
  if (settings.rewardAggregation === "normalize-then-sum" && settings.overlongBuffer > 0) {
    refuse("--overlong-buffer changes nothing with --reward-aggregation normalize-then-sum: it is added to the sum");
  }
  if (settings.replay === "groups" && settings.groupSize !== undefined) {
    refuse("--group-size changes nothing with --replay groups: a group has --rollout-count completions");
  }
}
