// Tokens that were added to a vocabulary: special ones, which only a template may write, and ordinary words.

import { CHAR_TO_BYTE } from "./byte_level.ts";
import { asObject, TokenizerError } from "./tokenizer_error.ts";
import type { JsonObject } from "./tokenizer_error.ts";

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  lstrip: boolean;
  rstrip: boolean;
}

/** Entries of tokenizer_config.json that name special tokens; the last two are lists. */
const NAMES = [
  "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
  "additional_special_tokens", "extra_special_tokens",
];

/**
 * The added tokens of tokenizer.json with those of tokenizer_config.json, as Hugging Face merges them:
 *   - what `added_tokens_decoder` lists keeps the id that it has in tokenizer.json, if any, and takes the flags listed;
 *   - a new token gets the next free id. Where the file says another one it is refused: one of the two must be wrong;
 *   - a token of the vocabulary becomes special where the file names it as end token and the like. One that is in no
 *     list and no vocabulary is left out: it has no id, and Hugging Face would invent one.
 */
export function readAddedTokens(path: string, json: JsonObject, vocab: JsonObject, config: JsonObject): AddedToken[] {
  const items = Array.isArray(json["added_tokens"]) ? (json["added_tokens"] as unknown[]) : [];
  const tokens = new Map<string, AddedToken>();
  let nextId = Object.keys(vocab).length;
  const put = (token: AddedToken): void => {
    tokens.set(token.content, token);
    nextId = Math.max(nextId, token.id + 1);
  };
  items.forEach((item) => put(readToken(path, item)));
  const idOf = (content: string): number | undefined => {
    return tokens.get(content)?.id ?? (Object.hasOwn(vocab, content) ? (vocab[content] as number) : undefined);
  };

  const listed = Object.entries(asObject(config["added_tokens_decoder"]) ?? {})
    .map(([id, item]) => readToken(path, { ...asObject(item), id: Number(id) }));
  for (const token of listed.sort((a, b) => a.id - b.id)) {
    const id = idOf(token.content) ?? nextId;
    if (idOf(token.content) === undefined && id !== token.id) {
      const what = `${JSON.stringify(token.content)} as ${token.id}, and the next free id is ${id}`;
      throw new TokenizerError(`tokenizer: tokenizer_config.json beside ${path} lists ${what}. Fix: correct the id`);
    }
    put({ ...token, id });
  }

  for (const item of NAMES.flatMap((name) => config[name] ?? [])) {
    const content = tokenText(item);
    const id = content === undefined ? undefined : idOf(content);
    if (id === undefined || tokens.has(content!)) continue;
    put(readToken(path, { ...asObject(item), content, id, special: true }));
  }
  return [...tokens.values()];
}

/** A token in tokenizer_config.json: its text, or an object that holds it. */
export function tokenText(value: unknown): string | undefined {
  const text = asObject(value)?.["content"] ?? value;
  return typeof text === "string" ? text : undefined;
}

function readToken(path: string, item: unknown): AddedToken {
  const token = asObject(item) ?? {};
  const { id, content } = token;
  if (typeof id !== "number" || typeof content !== "string" || content === "") {
    throw new TokenizerError(`tokenizer: ${path}: an added token lacks its id or content`);
  }
  const isSet = (flag: string): boolean => token[flag] === true;
  // A model may be padded with "!". That is still what people write, and the only token for its byte.
  const special = isSet("special") && !CHAR_TO_BYTE.has(content);
  return { id, content, special, lstrip: isSet("lstrip"), rstrip: isSet("rstrip") };
}

/** Cuts `text` at every occurrence of a token: ids for the tokens (longest match first), strings for the rest. */
export function splitAtTokens(text: string, tokens: readonly AddedToken[]): (string | number)[] {
  if (tokens.length === 0) return text === "" ? [] : [text];
  const byContent = new Map(tokens.map((token) => [token.content, token]));
  const longestFirst = [...byContent.keys()].sort((a, b) => b.length - a.length);
  const pattern = longestFirst.map((content) => content.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")).join("|");
  const parts = text.split(new RegExp(`(${pattern})`)); // text, token, text, ..., token, text
  for (let i = 1; i < parts.length; i += 2) {
    const { lstrip, rstrip } = byContent.get(parts[i]!)!;
    // Not trimEnd and trimStart: they take U+FEFF for a space, and U+0085 for none.
    if (lstrip) parts[i - 1] = parts[i - 1]!.replace(/(?<!\p{White_Space})\p{White_Space}+$/u, "");
    if (rstrip) parts[i + 1] = parts[i + 1]!.replace(/^\p{White_Space}+/u, "");
  }
  return parts.map((part, i) => (i % 2 === 1 ? byContent.get(part)!.id : part)).filter((part) => part !== "");
}
