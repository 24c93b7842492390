/** The README.md of a pretrained model: data and licences, recipe, losses, and what it says to twenty prompts. */
import type { ChatModel } from "./chat_model.ts";
import { sampleCompletions } from "./sampler.ts";

/** Where the training text came from. */
export interface TextSource {
  readonly name: string;
  readonly license: string;
  readonly source: string;
  /** Dialogues used for training and validation. */
  readonly dialogues: number;
  /** Those of the stages before this one, if there were any. */
  readonly earlier?: number;
}

/** The settings of a run of pretrain.ts. */
export type StageSettings = Readonly<Record<string, unknown>>;

export interface CardFacts {
  /** Of the runs that led to the model: each continued the one before it. */
  readonly stages: readonly StageSettings[];
  readonly parameters: number;
  /** Tokens trained on, and tokens of text there were: less than once through, or more. */
  readonly trainTokens: number;
  readonly textTokens: number;
  /** Of this run and those that it continued. */
  readonly sources: readonly TextSource[];
  /** Mean next-token loss (nats) on held-out text, by training step. */
  readonly validation: readonly { readonly step: number; readonly loss: number }[];
  /** Tokens that each validation loss is the mean of. */
  readonly validationTokens: number;
}

/** What every model is asked; the last but one is the prompt of the GRPO experiment. */
const PROMPTS = [
  "Hello!",
  "How are you today?",
  "What is your name?",
  "What can you do?",
  "Tell me a joke.",
  "What is the capital of France?",
  "What color is the sky?",
  "What sound does a cow make?",
  "How many legs does a spider have?",
  "What is the opposite of hot?",
  "Name three animals.",
  "Say the word apple.",
  "What is 3 + 4?",
  "What is 17 + 25?",
  "What is 9 minus 4? Answer only with the number.",
  "Which is larger, 12 or 31?",
  "What number comes after 7?",
  "Is water wet? Answer only with yes or no.",
  "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer.",
  "Thank you. Goodbye!",
];

/** Writes the card; asks the model all prompts at temperature 0. */
export async function modelCard(chat: ChatModel, facts: CardFacts): Promise<string> {
  const prompts = PROMPTS.map((content) => chat.encodePrompt([{ role: "user", content }]));
  const replies = await sampleCompletions(chat.model, prompts, 1, {
    maxNewTokens: 40,
    temperature: 0,
    seed: 0,
    endIds: chat.tokenizer.eosIds,
  });
  const reply = (i: number): string => chat.tokenizer.decode(replies[i]![0]!.tokens, { skipSpecial: true });
  const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");
  const { stages, validation } = facts;
  // "1000 + 200": of the stages before and of this one.
  const dialoguesOf = ({ dialogues, earlier }: TextSource): string =>
    earlier === undefined ? String(dialogues) : `${earlier} + ${dialogues}`;
  const last = validation.at(-1);
  return `# A small chat model

A ${(facts.parameters / 1e6).toFixed(2)} million parameter language model in the Qwen3 architecture, pretrained from scratch by
WebGRPO on WebGPU. It exists to be the start of a reinforcement learning experiment. It was trained on texts of
${stages.at(-1)!.rowLength} tokens and knows no longer ones. It knows next to nothing and must not be relied on for anything.

Files: \`config.json\`, \`model.safetensors\` (bfloat16), \`tokenizer.json\`, \`tokenizer_config.json\` (with the chat template),
\`generation_config.json\`. Python transformers loads the folder as \`Qwen3ForCausalLM\`.

## Data and licences

| text | dialogues | licence | source |
|---|---:|---|---|
${facts.sources.map((text) => `| ${text.name} | ${dialoguesOf(text)} | ${text.license} | ${text.source} |`).join("\n")}

The generated dialogues (small talk, facts, numbers, arithmetic, "answer only with ...", guessing games, refusals) come from
\`src/data/dialogues.ts\`. One dialogue in a hundred is held out; those that do not occur in the training text of this
stage are for validation.

## Recipe

${stages.map((settings, i) => `    npx tsx src/model/pretrain.ts ${flags(settings, i)} --out ${folderOf(i, stages.length)}`).join("\n")}

${stages.length > 1 ? `Stage ${stages.length}: ` : ""}${count(facts.trainTokens)} training tokens from ${count(facts.textTokens)} tokens of text. AdamW (0.9, 0.95), global-norm clip 1, linear
warm-up, cosine decay to 0.

## Loss

Mean next-token cross-entropy in nats over ${count(facts.validationTokens)} tokens of held-out dialogues (users' turns
included)${last ? `: **${last.loss.toFixed(4)}** at the end` : ""}.

| step | validation loss |
|---:|---:|
${validation.map(({ step, loss }) => `| ${step} | ${loss.toFixed(4)} |`).join("\n")}

## What it says

Temperature 0; \`npx tsx src/model/generate.ts --prompt "..."\` prints the same.

| prompt | reply |
|---|---|
${PROMPTS.map((prompt, i) => `| ${cell(prompt)} | ${cell(reply(i))} |`).join("\n")}
`;
}

/** Settings that a stage takes over from the one before. */
const SHAPE_SETTINGS = ["vocab", "hidden", "layers", "heads", "kvHeads", "headSize", "mlp"];

/** What the card calls the --out of stage `i`, counted from 0. */
const folderOf = (i: number, stages: number): string => (i === stages - 1 ? "DIR" : `STAGE${i + 1}`);

/** Settings of stage `i` as the flags of pretrain.ts: { rowLength: 128 } -> "--row-length 128". */
function flags(settings: StageSettings, i: number): string {
  return Object.entries(settings)
    .filter(([key, value]) => value !== null && !(i > 0 && SHAPE_SETTINGS.includes(key)))
    .map(([key, value]) => {
      const flag = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
      return `--${flag} ${key === "corpora" ? "CORPORA" : key === "init" ? `STAGE${i}` : String(value)}`;
    })
    .join(" ");
}

function count(n: number): string {
  return n.toLocaleString("en");
}
