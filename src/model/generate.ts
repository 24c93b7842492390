/**
 * Asks a model one question, or scores a given text:
 *
 *   npx tsx src/model/generate.ts --prompt "What is your name?"
 *   npx tsx src/model/generate.ts --score text.txt
 *
 * The reply goes to stdout, as it grows when that is a terminal; everything else to stderr. The same flags on the same
 * machine print the same bytes. A base model, without a chat template, continues the prompt as plain text.
 */
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";
import { command, integer, runMain, UsageError } from "../cli.ts";
import { visible, visibleJson } from "../visible.ts";
import type { ChatText } from "./chat_model.ts";
import { sampleCompletions } from "./sampler.ts";
import { parseScoreInput, scoreTokens, type ScoreInput } from "./score.ts";
import {
  addTextFlags,
  checkNumbers,
  endQuietlyOnClosedPipe,
  idsWithText,
  loadFor,
  openText,
  type TextFlags,
} from "./text_entry.ts";

interface Flags extends TextFlags {
  readonly prompt?: string;
  readonly score?: string;
  readonly raw?: true;
  readonly samples: number;
  readonly json?: true;
}

/** What --score heeds. */
const SCORING_FLAGS = ["score", "model", "bf16", "json"];

function parseFlags(): Flags {
  const generate = command("generate", "Prints a model's reply to a prompt, or the log-probabilities of a given text.")
    .option("--prompt <text>", "what the user says; - reads it from stdin")
    .option("--score <file>", "print each token's log-probability as JSON; plain text, {text} or {ids}; - is stdin")
    .option("--raw", "continue the prompt as plain text, without the chat template")
    .option("--samples <n>", "replies to draw, one after the other", integer(1, 4096), 1)
    .option("--json", "print one JSON object: texts, token ids, log-probabilities");
  const flags = addTextFlags(generate, { temperature: 0, topP: 1, maxTokens: 60 }).parse().opts<Flags>();
  if ((flags.prompt === undefined) === (flags.score === undefined)) {
    throw new UsageError("give either --prompt TEXT or --score FILE");
  }
  const ignored = generate.options.find((option) => {
    const name = option.attributeName();
    return generate.getOptionValueSource(name) === "cli" && !SCORING_FLAGS.includes(name);
  });
  if (flags.score !== undefined && ignored) {
    throw new UsageError(`${ignored.long} does not go with --score, which draws nothing. Fix: drop it`);
  }
  if (flags.raw && flags.system !== undefined) throw new UsageError("--system needs the chat template: drop --raw");
  return flags;
}

async function main(): Promise<void> {
  const flags = parseFlags();
  endQuietlyOnClosedPipe();
  // Input is read before the GPU is opened: a missing file is reported at once.
  if (flags.score !== undefined) {
    const input = parseScoreInput(flags.score === "-" ? await text(process.stdin) : readFileSync(flags.score, "utf8"));
    await score(input, flags);
  } else {
    // A shell's `echo` and most editors end the text with a line break that is not part of the prompt.
    const prompt = flags.prompt === "-" ? (await text(process.stdin)).replace(/\r?\n$/, "") : flags.prompt!;
    await generate(prompt, flags);
  }
}

async function generate(prompt: string, flags: Flags): Promise<void> {
  const { directory, text: chat } = await openText(flags);
  const { tokenizer } = chat;
  const promptIds = encode(chat, prompt, flags);
  const { samples: rows, maxTokens: newTokens } = flags;
  const model = loadFor({ prompts: 1, rows, promptLength: promptIds.length, newTokens }, directory, flags);
  if (flags.temperature === 0 && (flags.topK > 0 || flags.topP < 1)) {
    console.error("note: --top-k and --top-p change nothing at --temperature 0, which takes the most likely token");
  }
  const streams = process.stdout.isTTY && flags.samples === 1 && !flags.json;
  const decoder = tokenizer.streamDecoder({ skipSpecial: true });
  let shown = 0;
  const onTokens = (rows: readonly (readonly number[])[]): void => {
    const reply = rows[0]!;
    for (const id of idsWithText(tokenizer, reply.slice(shown))) {
      process.stdout.write(visible(decoder.push(id)));
    }
    shown = reply.length;
  };
  const { temperature, topK, topP, seed } = flags;
  const [completions] = await sampleCompletions(model, [promptIds], flags.samples, {
    maxNewTokens: flags.maxTokens,
    temperature, topK, topP, seed,
    endIds: tokenizer.eosIds,
    ...(streams ? { tokensPerReadback: 2, onTokens } : {}),
  });
  completions!.forEach(checkNumbers);
  const textOf = (ids: readonly number[]): string => {
    return tokenizer.decode(idsWithText(tokenizer, ids), { skipSpecial: true });
  };
  if (streams) process.stdout.write(decoder.flush() + "\n");
  else if (!flags.json) {
    const shownAs = process.stdout.isTTY ? visible : String;
    for (const { tokens } of completions!) console.log(shownAs(textOf(tokens)));
  } else {
    const samples = completions!.map(({ tokens, logProbs, ended }) => {
      return { text: textOf(tokens), ids: tokens, logProbs, finishReason: ended ? "stop" : "length" };
    });
    console.log(visibleJson({ prompt, promptIds, samples, seed }));
  }
}

/** The prompt's ids: a user's message in the chat template, or plain text where there is none or none is wanted. */
function encode(chat: ChatText, prompt: string, { raw, system, model }: Flags): number[] {
  if (chat.hasChatTemplate && !raw) {
    const user = { role: "user", content: prompt };
    return chat.encodePrompt(system === undefined ? [user] : [{ role: "system", content: system }, user]);
  }
  if (system !== undefined) throw new UsageError(`--system needs a chat template, and ${model} has none`);
  if (!raw) console.error(`note: ${model} has no chat template: the prompt is continued as plain text`);
  return chat.encodeText(prompt);
}

async function score(input: ScoreInput | readonly ScoreInput[], flags: Flags): Promise<void> {
  const { directory, text: chat } = await openText(flags);
  const idsOf = (item: ScoreInput): readonly number[] => ("ids" in item ? item.ids : chat.encodeText(item.text));
  const longest = [input].flat().reduce((length, item) => Math.max(length, idsOf(item).length), 1);
  const model = loadFor({ prompts: 1, rows: 1, promptLength: longest, newTokens: 0 }, directory, flags);
  const scoreOne = async (item: ScoreInput): Promise<object> => {
    const { ids, ...numbers } = await scoreTokens(model, idsOf(item));
    // Tokens that hold a part of a character show as U+FFFD; rows that the tokenizer has no token for have no text.
    const tokens = ids.map((id) => (chat.tokenizer.has(id) ? chat.tokenizer.decode([id]) : null));
    return { ids, tokens, ...numbers };
  };
  if (!Array.isArray(input)) {
    console.log(visibleJson(await scoreOne(input as ScoreInput)));
    return;
  }
  const scores: object[] = [];
  for (const item of input as readonly ScoreInput[]) scores.push(await scoreOne(item));
  console.log(visibleJson(scores));
}

await runMain(main);
