/** Hyper-parameters of a GRPO run: the reference experiment's values, one flag each. */
import { command, integer, number, requireNewDirectory } from "../cli.ts";
import { DEFAULT_MODEL } from "../model/chat_model.ts";

export interface TrainConfig {
  readonly model: string;
  readonly out: string;
  readonly seed: number;
  /** "sequence": one ratio per completion (DeepSeek-R1); "dapo": one per token, mean over the group's tokens. */
  readonly objective: "sequence" | "dapo";
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
  /** Added to the standard deviation that advantages are divided by. */
  readonly delta: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly weightDecay: number;
  /** 0: no clipping. */
  readonly maxGradNorm: number;
}

/** Reads the command line. Prints help or a one-line error and throws (handled by `runMain`). */
export function parseConfig(argv: readonly string[] = process.argv): TrainConfig {
  const program = command("train", "Teaches a chat model to guess a digit by reward alone (GRPO).");
  program
    .optionsGroup("Run:")
    .option("--model <dir>", "Hugging Face directory of the model to train", DEFAULT_MODEL)
    .option("--out <dir>", "new folder for metrics and the trained model (default: runs/<date and time>)")
    .option("--seed <n>", "seed of every random number", integer(0, 0xffffffff), 42)
    .option("--train-steps <n>", "rounds of rollouts and training", integer(1), 5)
    .optionsGroup("Rollouts:")
    .option("--rollout-count <n>", "completions drawn per prompt and train step", integer(1), 25)
    .option("--max-rollout-tokens <n>", "longest completion, in tokens", integer(1), 10)
    .option("--temperature <x>", "of sampling and of the trained distribution", number(1e-3), 1)
    .optionsGroup("Training:")
    .option("--grad-updates-per-step <n>", "gradient steps per train step", integer(1), 5)
    .option("--group-size <n>", "completions per gradient step, G", integer(2), 5)
    .option("--replay-buffer-capacity <n>", "newest completions to draw groups from", integer(2), 50)
    .option("--objective <name>", "sequence (one ratio per completion) or dapo (per token)", "sequence")
    .option("--epsilon <x>", "clip range below 1, and above unless --epsilon-high is given", number(0), 0.2)
    .option("--epsilon-high <x>", "clip range above 1", number(0))
    .option("--delta <x>", "added to the standard deviation of rewards", number(0), 1e-6)
    .option("--learning-rate <x>", "peak learning rate", number(0), 1e-3)
    .option("--warmup-steps <n>", "gradient steps of linear warm-up; then linear decay to 0", integer(0), 5)
    .option("--weight-decay <x>", "decoupled weight decay of AdamW", number(0), 0.01)
    .option("--max-grad-norm <x>", "clips the gradient's global norm; 0 does not", number(0), 0);
  const flags = program
    .parse(argv)
    .opts<Omit<TrainConfig, "out" | "epsilonHigh"> & { out?: string; epsilonHigh?: number }>();
  if (flags.objective !== "sequence" && flags.objective !== "dapo") {
    program.error(`error: --objective is "${String(flags.objective)}", it must be "sequence" or "dapo"`);
  }
  if (flags.groupSize > Math.min(flags.rolloutCount, flags.replayBufferCapacity)) {
    program.error(
      `error: --group-size ${flags.groupSize} exceeds --rollout-count ${flags.rolloutCount} ` +
        `or --replay-buffer-capacity ${flags.replayBufferCapacity}: no group could be drawn`,
    );
  }
  const out = flags.out ?? `runs/${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}-seed${flags.seed}`;
  requireNewDirectory(out, "--out");
  return { ...flags, out, epsilonHigh: flags.epsilonHigh ?? flags.epsilon };
}
