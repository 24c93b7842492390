/** A model directory ready to talk: weights on the GPU, tokenizer, chat template. */
import { fileURLToPath } from "node:url";
import { encodeChat, type ChatMessage } from "../data/chat_template.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { CheckpointError, loadGpt } from "./checkpoint.ts";
import type { Gpt } from "./gpt.ts";

export interface ChatModel {
  readonly model: Gpt;
  readonly tokenizer: Tokenizer;
  /** A conversation that waits for the assistant -> ids that end where its reply begins. Thinking is off (Qwen3). */
  readonly encodePrompt: (messages: readonly ChatMessage[]) => number[];
}

/** The model that comes with the project. */
export const DEFAULT_MODEL = fileURLToPath(new URL("../../weights", import.meta.url));

/**
 * Loads a Hugging Face directory with a chat template.
 * @throws CheckpointError when weights, tokenizer and template do not make a chat model.
 */
export function loadChatModel(directory: string): ChatModel {
  const model = loadGpt(directory);
  const tokenizer = loadTokenizer(directory);
  const { chatTemplate, eosToken, bosToken } = tokenizer;
  if (chatTemplate === undefined)
    throw new CheckpointError(`${directory} has no chat template: it is not a chat model`);
  if (tokenizer.vocabSize > model.config.vocabSize) {
    throw new CheckpointError(
      `${directory}: the tokenizer has ${tokenizer.vocabSize} tokens, the model only ${model.config.vocabSize}`,
    );
  }
  const encodePrompt = (messages: readonly ChatMessage[]): number[] =>
    encodeChat(tokenizer, chatTemplate, messages, {
      addGenerationPrompt: true,
      enableThinking: false,
      eosToken,
      bosToken,
    });
  return { model, tokenizer, encodePrompt };
}
