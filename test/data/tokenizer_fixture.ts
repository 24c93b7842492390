// A small tokenizer directory for the tests of src/data, trained on a few sentences.

import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { tokenizerConfig, trainBpe } from "../../src/data/bpe.ts";
import type { TokenizerJson } from "../../src/data/bpe.ts";
import { CHATML_TEMPLATE } from "../../src/data/chat_template.ts";

export const SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const SENTENCES = [
  "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer.",
  "I think the number is 7, but the other number was 12. It's the user's turn to answer the assistant.",
  "user assistant system <|im_start|>user\nthe answer<|im_end|>\n naïve café 🙂🙂 日本語 日本",
];

/** Writes tokenizer.json (with what `change` makes of it), its config and generation_config.json; returns the path. */
export function makeTokenizerDirectory(change: (json: TokenizerJson) => object = (json) => json): string {
  const directory = mkdtempSync(join(tmpdir(), "tokenizer-"));
  const json = trainBpe(SENTENCES, { vocabSize: 340, specialTokens: SPECIALS });
  const config = tokenizerConfig(json, {
    eosToken: "<|im_end|>", padToken: "<|endoftext|>", chatTemplate: CHATML_TEMPLATE, modelMaxLength: 128,
  });
  const [endOfText, , turnEnd] = json.added_tokens.map((token) => token.id);
  writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(change(json)));
  writeFileSync(join(directory, "tokenizer_config.json"), JSON.stringify(config));
  writeFileSync(join(directory, "generation_config.json"), JSON.stringify({ eos_token_id: [turnEnd, endOfText] }));
  return directory;
}
