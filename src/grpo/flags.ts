/**
 * The command line of train.ts: one flag for every hyper-parameter, with its default. The names in a configuration file
 * are these flags' in camel case, as in the config.json that a run saves.
 */
import { Option, type Command } from "commander";
import { schedules } from "../autograd/schedule.ts";
import { command, integer, number } from "../cli.ts";
import { DEFAULT_MODEL } from "../model/chat_model.ts";
import { OBJECTIVES } from "./objective.ts";
import { PRESETS } from "./presets.ts";

const MAX_SEED = 0xffffffff;
/** At 1 a moment would never move, and its bias correction divides by 0. */
const MAX_BETA = 0.999999;

/** The command, ready to parse. */
export function trainCommand(): Command {
  const choice = (flags: string, description: string, choices: readonly string[]): Option =>
    new Option(flags, description).choices(choices);
  const program = command("train", "Teaches a chat model by reward alone (GRPO).");
  program
    .optionsGroup("Run:")
    .addOption(choice("--preset <name>", "settings that go together", Object.keys(PRESETS)))
    .option("--config <file>", "settings from a JSON file; flags go before it, and it before a preset")
    .option("--model <dir|name>", "model directory in Hugging Face layout, or a hub name", DEFAULT_MODEL)
    .option("--environment <name|file>", "digit, arithmetic, countdown, or a module of your own (docs/grpo.md)", "digit")
    .option("--out <dir>", "new folder for metrics, report and model (default: runs/TIME-seedSEED)")
    .option("--seed <n>", "of sampling, of prompts and of the choice of groups", integer(0, MAX_SEED), 1)
    .option("--resume <dir|auto>", "goes on with a run, or with the newest one under runs/")
    .option("--stop-at <n>", "saves and stops after this many train steps; the schedule still ends at --train-steps",
      integer(1))
    .option("--dry-run", "prints settings, memory and time, and writes nothing")
    .optionsGroup("Saving and evaluation:")
    .option("--save-every <n>", "train steps between checkpoints; 0: only when it stops or fails", integer(0), 0)
    .option("--keep-last <n>", "checkpoints to keep, in addition to the best one", integer(1), 2)
    .option("--eval-every <n>", "train steps between evaluations on held-out prompts; 0: none at all", integer(0), 0)
    .option("--eval-prompts <n>", "held-out prompts to ask, at most", integer(1), 100)
    .option("--eval-samples <n>", "replies to each: accuracy is their mean, pass@2, 4, 8.. whether one is right", integer(1), 4)
    .optionsGroup("Rollouts:")
    .option("--train-steps <n>", "rounds of rollouts", integer(1), 5)
    .option("--prompts-per-step <n>", "prompts of a train step, where the environment has several", integer(1), 1)
    .option("--rollout-count <n>", "completions drawn per prompt and train step", integer(1), 25)
    .option("--max-rollout-tokens <n>", "longest completion, in tokens", integer(1), 10)
    .option("--temperature <x>", "of sampling and of the trained distribution", number(1e-3), 1)
    .option("--dynamic-sampling <n>", "rounds of other prompts in place of those without reward spread",
      integer(0), 0)
    .option("--overlong-buffer <n>", "punishes the last n tokens before the limit more and more; 0: none",
      integer(0), 0)
    .option("--reward-timeout <seconds>", "for a user's functions to judge one train step's replies", number(0.1), 10)
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
    .option("--kl-bias-correction", "multiplies the estimate by the importance ratio (DeepSeek-V3.2)")
    .addOption(choice(
      "--scale-rewards <by>",
      "divide advantages by the deviation of the group, the batch, or nothing " +
        "(default: group; dr_grpo, rloo and reinforce none)",
      ["group", "batch", "none"],
    ))
    .option("--advantage-epsilon <x>", "added to that deviation (default: 1e-6)", number(0))
    .option("--advantage-ddof <n>", "1: sample deviation; 0: population deviation (default: 1)", integer(0, 1))
    .addOption(choice(
      "--reward-aggregation <order>",
      "several reward functions: weighted sum first, or each normalised in its group first (GDPO)",
      ["sum-then-normalize", "normalize-then-sum"],
    ).default("sum-then-normalize"))
    .option("--mask-truncated", "do not train on completions cut at --max-rollout-tokens")
    .option("--entropy-bonus <x>", "weight of the policy's mean entropy in the objective", number(0), 0)
    .option("--top-entropy-quantile <x>", "train only on this share of tokens, the least decided", number(0.01, 1), 1)
    .option("--off-policy-threshold <x>", "leave out completions with A < 0 whose mean log-ratio is below -x (nats)",
      number(0))
    .optionsGroup("Training:")
    .option("--grad-updates-per-step <n>", "gradient steps per train step", integer(1), 5)
    .addOption(choice(
      "--replay <unit>",
      "what gradient steps draw from the replay buffer: single completions of one prompt, " +
        "or the groups as they were rolled out",
      ["completions", "groups"],
    ).default("completions"))
    .option("--groups-per-update <n>", "groups in one gradient step", integer(1), 1)
    .option("--group-size <n>", "completions of a group, G (default: 5; --rollout-count with --replay groups)",
      integer(2))
    .option("--replay-buffer-capacity <n>",
      "newest completions to draw from (default: 50, or one train step's if that is more or with --replay groups)",
      integer(2))
    .option("--micro-batch <n>", "completions that go through the model at once (default: all of a gradient step)",
      integer(1))
    .option("--learning-rate <x>", "peak learning rate", number(0), 7e-4)
    .addOption(choice("--lr-schedule <name>", "from the peak to the end of the run", Object.keys(schedules))
      .default("linear"))
    .option("--warmup-steps <n>", "gradient steps of linear warm-up, from 0", integer(0), 5)
    .option("--adam-beta1 <x>", "decay of AdamW's first moment", number(0, MAX_BETA), 0.9)
    .option("--adam-beta2 <x>", "decay of AdamW's second moment", number(0, MAX_BETA), 0.999)
    .option("--adam-epsilon <x>", "added to the root of the second moment", number(0), 1e-8)
    .option("--weight-decay <x>", "decoupled weight decay of AdamW, of norms and biases too", number(0), 0.01)
    .option("--max-grad-norm <x>", "clips the gradient's global norm; 0 does not", number(0), 0)
    .option("--gradient-checkpointing", "less memory for more time: backward computes layers again");
  return program;
}
