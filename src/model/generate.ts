/**
 * Asks a chat model one question:
 *
 *   npx tsx src/model/generate.ts --prompt "What is your name?"
 *
 * The reply goes to stdout, as it grows when that is a terminal; everything else to stderr.
 */
import { command, integer, number, runMain } from "../cli.ts";
import { describeGpu, openGpu } from "../tensor/device.ts";
import { DEFAULT_MODEL, loadChatModel } from "./chat_model.ts";
import { sampleCompletions } from "./sampler.ts";

interface Flags {
  readonly prompt: string;
  readonly model: string;
  readonly temperature: number;
  readonly maxTokens: number;
  readonly seed: number;
  readonly samples: number;
}

async function main(): Promise<void> {
  const flags = command("generate", "Prints a chat model's reply to a prompt.")
    .requiredOption("--prompt <text>", "what the user says")
    .option("--model <dir>", "Hugging Face model directory", DEFAULT_MODEL)
    .option("--temperature <x>", "0 takes the most likely token; higher is more varied", number(0), 0)
    .option("--max-tokens <n>", "longest reply, in tokens", integer(1), 60)
    .option("--seed <n>", "seed of the random numbers", integer(0, 0xffffffff), 0)
    .option("--samples <n>", "replies to draw, one a line", integer(1, 4096), 1)
    .parse()
    .opts<Flags>();
  await openGpu();
  console.error(`adapter: ${describeGpu()}`);
  const { model, tokenizer, encodePrompt } = loadChatModel(flags.model);
  const promptIds = encodePrompt([{ role: "user", content: flags.prompt }]);

  const streams = process.stdout.isTTY && flags.samples === 1;
  const decoder = tokenizer.streamDecoder({ skipSpecial: true });
  let shown = 0;
  const onTokens = (rows: readonly (readonly number[])[]): void => {
    const reply = rows[0]!;
    for (const id of reply.slice(shown)) process.stdout.write(decoder.push(id));
    shown = reply.length;
  };
  const [completions] = await sampleCompletions(model, [promptIds], flags.samples, {
    maxNewTokens: flags.maxTokens,
    temperature: flags.temperature,
    seed: flags.seed,
    endIds: tokenizer.eosIds,
    tokensPerReadback: streams ? 2 : 8,
    ...(streams ? { onTokens } : {}),
  });
  if (streams) process.stdout.write(decoder.flush() + "\n");
  else for (const { tokens } of completions!) console.log(tokenizer.decode(tokens, { skipSpecial: true }));
}

await runMain(main);
