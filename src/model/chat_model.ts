/**
 * A model directory ready to read and write text: weights on the GPU, tokenizer and, where there is one, chat template.
 * Every entry loads its model here; the text side can be had first, for those that want prompts before weights.
 */
import { existsSync, readFileSync } from "node:fs";
import { isAbsolute, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { encodeChat, type ChatMessage } from "../data/chat_template.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { loadGpt } from "./checkpoint.ts";
import { CheckpointError, readConfig } from "./config.ts";
import type { Gpt } from "./gpt.ts";

/** How a model reads and writes text. */
export interface ChatText {
  readonly tokenizer: Tokenizer;
  /** False for a base model, such as GPT-2, that only continues text. */
  readonly hasChatTemplate: boolean;
  /**
   * A conversation that waits for the assistant -> ids that end where its reply begins. Thinking is off (Qwen3).
   * Without a chat template: the messages as plain text, one a line, for the model to go on.
   */
  readonly encodePrompt: (messages: readonly ChatMessage[]) => number[];
  /**
   * Text of the user's own as the tokenizer's own call encodes it (`tokenizer(text).input_ids`): the texts of special
   * tokens stand for those tokens, and the token that begins a text comes first where the model was trained with one
   * (`add_bos_token` counts, as in transformers 4; transformers 5 asks tokenizer.json alone).
   */
  readonly encodeText: (text: string) => number[];
  /**
   * Tokens that the model was made to read at once (`model_max_length` of tokenizer_config.json), which may be fewer than
   * it has positions; Infinity where the file does not say.
   */
  readonly maxLength: number;
}

export interface ChatModel extends ChatText {
  readonly model: Gpt;
}

const WEIGHTS = fileURLToPath(new URL("../../weights", import.meta.url));
const FROM_HERE = relative(process.cwd(), WEIGHTS);

/**
 * The model that comes with the project, as seen from the working directory if it lies below it: the settings that a
 * run saves are then those of any machine.
 */
export const DEFAULT_MODEL = FROM_HERE.startsWith("..") || isAbsolute(FROM_HERE) ? WEIGHTS : FROM_HERE;

/**
 * Loads a Hugging Face directory.
 * @throws CheckpointError when weights and tokenizer do not fit each other, or one of them cannot be used.
 */
export function loadChatModel(directory: string): ChatModel {
  return { model: loadGpt(directory), ...openChatText(directory) };
}

/**
 * The text side of a Hugging Face directory: reads no weights and needs no GPU.
 * @throws CheckpointError when tokenizer and config.json do not fit each other, or one of them cannot be used.
 */
export function openChatText(directory: string): ChatText {
  const { vocabSize } = readConfig(directory);
  const tokenizer = loadTokenizer(directory);
  const { chatTemplate, eosToken, bosToken } = tokenizer;
  if (tokenizer.vocabSize > vocabSize) {
    throw new CheckpointError(
      `${directory}: the tokenizer has ${tokenizer.vocabSize} tokens, the model only ${vocabSize}`,
    );
  }
  const config = tokenizerConfig(directory);
  const begin = beginIds(directory, config, tokenizer);
  const encodePrompt = (messages: readonly ChatMessage[]): number[] => {
    if (chatTemplate === undefined) {
      return [...begin, ...tokenizer.encode(messages.map(({ content }) => content).join("\n"))];
    }
    const options = { addGenerationPrompt: true, enableThinking: false, eosToken, bosToken };
    return encodeChat(tokenizer, chatTemplate, messages, options);
  };
  const encodeText = (text: string): number[] => [...begin, ...tokenizer.encodeWithSpecials(text)];
  const length = config.model_max_length;
  const maxLength = typeof length === "number" && length >= 1 ? length : Infinity;
  return { tokenizer, hasChatTemplate: chatTemplate !== undefined, encodePrompt, encodeText, maxLength };
}

/** What is read here of a file that the tokenizer has read before. */
interface TokenizerConfig {
  readonly add_bos_token?: unknown;
  readonly model_max_length?: unknown;
}

function tokenizerConfig(directory: string): TokenizerConfig {
  const path = join(directory, "tokenizer_config.json");
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as TokenizerConfig) : {};
}

/**
 * Ids that the model's own tokenizer puts in front of a text: those before "A" in the template of tokenizer.json's
 * post-processor (Llama 3: <|begin_of_text|>), or the begin token that tokenizer_config.json asks for; often none.
 */
function beginIds(directory: string, config: TokenizerConfig, tokenizer: Tokenizer): number[] {
  if (config.add_bos_token === true && tokenizer.bosToken !== undefined) return [tokenizer.idOf(tokenizer.bosToken)];
  const tokenizerJson = JSON.parse(readFileSync(join(directory, "tokenizer.json"), "utf8")) as TokenizerJson;
  const root = tokenizerJson.post_processor;
  const template = [root, ...list(root?.processors)].find((stage) => stage?.type === "TemplateProcessing");
  const parts = list(template?.single);
  const textAt = parts.findIndex((part) => part?.SpecialToken === undefined);
  return parts.slice(0, Math.max(textAt, 0)).map((part) => tokenizer.idOf(part!.SpecialToken!.id));
}

interface TokenizerJson {
  readonly post_processor?: PostProcessor | null;
}

/** The part of tokenizer.json's post-processor that is read here; nobody has checked it before. */
interface PostProcessor {
  readonly type?: string;
  readonly processors?: readonly (PostProcessor | null)[];
  readonly single?: readonly ({ readonly SpecialToken?: { readonly id: string } } | null)[];
}

function list<T>(value: readonly T[] | undefined): readonly T[] {
  return Array.isArray(value) ? (value as readonly T[]) : [];
}
