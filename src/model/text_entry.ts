/** What the entries that print a model's text (generate.ts, chat.ts) share: flags, loading, and a quiet end. */
import { InvalidArgumentError, type Command } from "commander";
import { integer, number, NumericsError } from "../cli.ts";
import { resolveModel } from "../data/hub.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { describeGpu, openGpu } from "../tensor/device.ts";
import { DEFAULT_MODEL, openChatText, type ChatText } from "./chat_model.ts";
import { loadGpt } from "./checkpoint.ts";
import { readConfig } from "./config.ts";
import type { Gpt } from "./gpt.ts";
import { requireMemory, type GenerationWork } from "./memory_estimate.ts";
import { NOT_FINITE, type Completion } from "./sampler.ts";

/** Values of the flags that say which model speaks, and how its tokens are drawn. */
export interface TextFlags {
  readonly model: string;
  readonly bf16?: boolean;
  readonly system?: string;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly maxTokens: number;
  readonly seed: number;
}

/** Adds them to a command. */
export function addTextFlags(
  command: Command,
  defaults: { temperature: number; topP: number; maxTokens: number },
): Command {
  return command
    .option("--model <name>", "Hugging Face model directory, or name on the hub: owner/name[@revision]", DEFAULT_MODEL)
    .option("--bf16", "keep the weights in 16 bits: half the memory; exact for models that are published in bfloat16")
    .option("--system <text>", "system message in front of the conversation")
    .option("--temperature <x>", "0 takes the most likely token; higher is more varied", temperature, defaults.temperature)
    .option("--top-k <n>", "draw only from the n most likely tokens; 0: from all", integer(0, 0xffffffff), 0)
    .option(
      "--top-p <p>",
      "then only from the fewest most likely ones of probability p together",
      number(0, 1),
      defaults.topP,
    )
    .option("--max-tokens <n>", "longest reply, in tokens", integer(1), defaults.maxTokens)
    .option("--seed <n>", "seed of the random numbers", integer(0, 0xffffffff), 0)
    .addHelpText("after", "\nSampling settings in a model's generation_config.json are not read: these flags are all.");
}

/** The parser of --temperature: below a thousandth nothing but the most likely token is ever drawn. */
function temperature(text: string): number {
  const value = number(0, 1000)(text);
  if (value > 0 && value < 1e-3) throw new InvalidArgumentError("must be 0, or a number from 0.001 to 1000.");
  return value;
}

/** The model's directory, brought from the hub if need be, and its text side. Opens the GPU; loads no weights yet. */
export async function openText({ model }: TextFlags): Promise<{ directory: string; text: ChatText }> {
  const directory = await resolveModel(model);
  await openGpu();
  console.error(`adapter: ${describeGpu()}`);
  return { directory, text: openChatText(directory) };
}

/** Loads the weights. @throws CheckpointError when they and the work do not fit into memory. */
export function loadFor(work: GenerationWork, directory: string, { bf16 = false }: Pick<TextFlags, "bf16">): Gpt {
  const knobs = `${bf16 ? "" : "--bf16, "}fewer --max-tokens, or a smaller model`;
  requireMemory(readConfig(directory), { generation: work, bf16 }, knobs);
  return loadGpt(directory, { bf16 });
}

/** The ids that have a text: a model may have rows that its tokenizer has no token for (padding), and draw one. */
export function idsWithText(tokenizer: Tokenizer, ids: readonly number[]): readonly number[] {
  return ids.filter(tokenizer.has);
}

/** @throws NumericsError when the model's logits were not finite. */
export function checkNumbers({ logProbs }: Completion): void {
  if (!logProbs.every(Number.isFinite)) throw new NumericsError(NOT_FINITE);
}

/** `generate | head` closes the pipe early: that is no error, and an entry that only prints has nothing left to do. */
export function endQuietlyOnClosedPipe(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(0);
  });
}
