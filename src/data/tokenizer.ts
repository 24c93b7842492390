// Text <-> token ids, for the byte-level BPE tokenizers of the GPT-2, Llama 3 and Qwen families (tokenizer.json).
//
// Normalising, splitting and merging are the work of @huggingface/tokenizers, with the stages of pre_tokenizer.ts and
// without the tokens of added_tokens.ts; around it this file
//   - keeps special tokens apart: `encode` never produces one, whatever the text says, so nobody can end a chat turn
//     by typing "<|im_end|>". `encodeWithSpecials` is for text that a program wrote, such as a rendered template;
//   - remembers the ids of each piece, which makes encoding a corpus about ten times faster;
//   - decodes bytes itself, so that a stream of ids can be shown as it grows without half a character.
//
// Departures from Hugging Face: no token is added around the text (a template writes its own), `single_word` and
// `normalized` of added tokens are ignored, a text that only pad_token or the like names is no token, and an id outside
// the vocabulary is an error instead of nothing.

import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { readAddedTokens, splitAtTokens, tokenText } from "./added_tokens.ts";
import type { AddedToken } from "./added_tokens.ts";
import { BYTE_TO_CHAR, CHAR_TO_BYTE } from "./byte_level.ts";
import { LibraryTokenizer } from "./hf_tokenizers.ts";
import { preTokenizerStages } from "./pre_tokenizer.ts";
import { asObject, TokenizerError } from "./tokenizer_error.ts";
import type { JsonObject } from "./tokenizer_error.ts";

const MAX_FILE_BYTES = 100 * 2 ** 20;
/** In UTF-16 units: a longer text is surely a mistake, and should be encoded document by document. */
const MAX_TEXT_LENGTH = 2 ** 26;
const MAX_REMEMBERED_PIECES = 200_000;
const MAX_REMEMBERED_LENGTH = 32;

const SUPPORTED = "only byte-level BPE tokenizers are supported (GPT-2, Llama 3, Qwen)";

export interface Tokenizer {
  /** Highest id + 1, special tokens included. A model may have more embedding rows (padding), never fewer. */
  readonly vocabSize: number;
  /** Ids that end generation, as generation_config.json, config.json or tokenizer_config.json says; may be empty. */
  readonly eosIds: readonly number[];
  readonly bosToken: string | undefined;
  readonly eosToken: string | undefined;
  /** The Jinja source of the model's chat template, if it has one. */
  readonly chatTemplate: string | undefined;
  /** The texts of the special tokens. */
  readonly specialTokens: readonly string[];
  /** Ids of plain text; the text of a special token comes out as ordinary tokens. */
  encode(text: string): number[];
  /** Ids of trusted text, in which the texts of special tokens stand for those tokens. */
  encodeWithSpecials(text: string): number[];
  /** Cuts trusted text into special tokens (ids) and the plain text between them (strings). */
  splitSpecials(text: string): (string | number)[];
  /** Bytes that are no UTF-8 become U+FFFD. Throws RangeError for an id outside the vocabulary. */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
  /** Decodes id by id: the pieces joined, with the flush, are what `decode` returns for all ids. */
  streamDecoder(options?: DecodeOptions): StreamDecoder;
  /** Whether a token has this id: there may be gaps below `vocabSize`. */
  has(id: number): boolean;
  /** The id of a token, spelt as in tokenizer.json. Throws TokenizerError when there is none. */
  idOf(token: string): number;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default false. */
  skipSpecial?: boolean;
}

export interface StreamDecoder {
  /** The text that `id` completes: never half a code point, so it may be empty. */
  push(id: number): string;
  /** The rest: U+FFFD when the ids stopped within a character, else empty. */
  flush(): string;
}

/**
 * Loads tokenizer.json from a Hugging Face model directory, with tokenizer_config.json, generation_config.json,
 * config.json and chat_template.jinja where they exist. Throws TokenizerError: the file, and what is wrong with it.
 */
export function loadTokenizer(dir: string): Tokenizer {
  const path = join(dir, "tokenizer.json");
  const json = readJson(path);
  if (json === undefined) {
    const absent = existsSync(join(dir, "tokenizer.model"))
      ? `${dir} has only tokenizer.model, a SentencePiece tokenizer; ${SUPPORTED}`
      : `${path} does not exist; name a directory that holds a model`;
    throw new TokenizerError(`tokenizer: ${absent}`);
  }
  const tokenizerConfig = readJson(join(dir, "tokenizer_config.json")) ?? {};
  const configs = [readJson(join(dir, "generation_config.json")), readJson(join(dir, "config.json"))];

  const { model, vocab, merges } = byteLevelModel(path, json);
  const added = readAddedTokens(path, json, vocab, tokenizerConfig);
  const specials = added.filter((token) => token.special);
  const ordinary = added.filter((token) => !token.special);
  const bytesOfId = byteTable(path, vocab, added);

  // Some models list special tokens in the vocabulary as well; plain text must not become one, whole (ignore_merges)
  // or by merging.
  const specialTexts = new Set(specials.map((token) => token.content));
  const plainVocab = Object.fromEntries(Object.entries(vocab).filter(([token]) => !specialTexts.has(token)));
  const plainMerges = merges.filter((merge) => !specialTexts.has(mergeParts(merge).join("")));
  const plain = {
    ...json,
    added_tokens: [],
    pre_tokenizer: { type: "Sequence", pretokenizers: preTokenizerStages(path, json["pre_tokenizer"]) },
    model: { ...model, type: "BPE", vocab: plainVocab, merges: plainMerges },
  };
  const encodePlain = pieceEncoder(buildLibraryTokenizer(path, plain));

  function encode(text: string): number[] {
    checkText(text);
    return splitAtTokens(text, ordinary).flatMap((part) => (typeof part === "number" ? [part] : encodePlain(part)));
  }

  function splitSpecials(text: string): (string | number)[] {
    checkText(text);
    return splitAtTokens(text, specials);
  }

  function encodeWithSpecials(text: string): number[] {
    return splitSpecials(text).flatMap((part) => (typeof part === "number" ? [part] : encode(part)));
  }

  const textOfAdded = new Map(added.map((token) => [token.id, token]));

  function streamDecoder({ skipSpecial = false }: DecodeOptions = {}): StreamDecoder {
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true }); // a byte-order mark is text like any other
    return {
      push(id) {
        const token = textOfAdded.get(id);
        if (token?.special === true && skipSpecial) return "";
        if (token !== undefined) return utf8.decode() + token.content;
        const bytes = bytesOfId[id];
        if (bytes === undefined) {
          throw new RangeError(`tokenizer: id ${id} is not in the vocabulary of ${bytesOfId.length} tokens`);
        }
        return utf8.decode(bytes, { stream: true });
      },
      flush: () => utf8.decode(),
    };
  }

  function decode(ids: Iterable<number>, options?: DecodeOptions): string {
    const decoder = streamDecoder(options);
    let text = "";
    for (const id of ids) text += decoder.push(id);
    return text + decoder.flush();
  }

  const idOfAdded = new Map(added.map((token) => [token.content, token.id]));

  function idOf(token: string): number {
    const id = idOfAdded.get(token) ?? (Object.hasOwn(vocab, token) ? (vocab[token] as number) : undefined);
    if (id === undefined) throw new TokenizerError(`tokenizer: no token ${JSON.stringify(token)} in ${path}`);
    return id;
  }

  const has = (id: number): boolean => bytesOfId[id] !== undefined || textOfAdded.has(id);
  const eosToken = tokenText(tokenizerConfig["eos_token"]);
  const eosIds = configs.map((config) => [config?.["eos_token_id"] ?? []].flat() as number[])
    .find((ids) => ids.length > 0) ?? (eosToken === undefined ? [] : [idOf(eosToken)]);
  const unknown = eosIds.find((id) => !has(id));
  if (unknown !== undefined) {
    throw new TokenizerError(`tokenizer: eos_token_id ${unknown} in ${dir} is not in the vocabulary`);
  }
  return {
    vocabSize: bytesOfId.length,
    eosIds,
    bosToken: tokenText(tokenizerConfig["bos_token"]),
    eosToken,
    chatTemplate: readChatTemplate(dir, tokenizerConfig),
    specialTokens: [...specialTexts],
    encode,
    encodeWithSpecials,
    splitSpecials,
    decode,
    streamDecoder,
    has,
    idOf,
  };
}

/** The model part of tokenizer.json, found to be a byte-level BPE that can encode any text. */
function byteLevelModel(
  path: string, json: JsonObject,
): { model: JsonObject; vocab: JsonObject; merges: (string | string[])[] } {
  const refuse = (what: string): never => {
    throw new TokenizerError(`tokenizer: ${path} ${what}`);
  };
  const model = asObject(json["model"]) ?? refuse(`has no model; ${SUPPORTED}`);
  const type = model["type"] ?? "BPE"; // the oldest files do not name it
  if (type !== "BPE") refuse(`is a ${JSON.stringify(type)} tokenizer; ${SUPPORTED}`);
  // SentencePiece writes a space as U+2581, and bytes as "<0x0A>".
  const isSentencePiece = model["byte_fallback"] === true || JSON.stringify(
    [json["normalizer"], json["pre_tokenizer"], json["decoder"]]).includes("\u2581");
  if (isSentencePiece) refuse(`is a SentencePiece tokenizer, as Llama 1 and 2 have; ${SUPPORTED}`);
  const [vocab, merges] = [asObject(model["vocab"]), model["merges"]];
  const isByteLevel = JSON.stringify(json["decoder"] ?? null).includes('"ByteLevel"');
  if (vocab === undefined || !Array.isArray(merges) || !isByteLevel) return refuse(`is another kind; ${SUPPORTED}`);

  // The library drops what it finds no token for, without a word.
  const absent = BYTE_TO_CHAR.findIndex((character) => !Object.hasOwn(vocab, character));
  if (absent >= 0) refuse(`has no token for the byte ${absent}, so it cannot encode every text`);
  for (const merge of merges as unknown[]) {
    const pair = mergeParts(merge);
    if (!Array.isArray(pair) || pair.length !== 2 || ![...pair, pair.join("")].every((t) => Object.hasOwn(vocab, t))) {
      refuse(`has the merge ${JSON.stringify(merge)?.slice(0, 80)}, which does not join two tokens to a third`);
    }
  }
  return { model, vocab, merges: merges as (string | string[])[] };
}

/** The two tokens of a merge: newer files list them, older ones write them as one string. */
function mergeParts<T>(merge: T): string[] | Exclude<T, string> {
  return typeof merge === "string" ? merge.split(" ") : (merge as Exclude<T, string>);
}

/**
 * Text to ids. Remembering a piece's ids changes nothing but the time: the last stage, mostly the one that writes bytes
 * as characters, and the merging treat every piece by itself.
 */
function pieceEncoder({ normalizer, pre_tokenizer: root, model }: LibraryTokenizer): (text: string) => number[] {
  const splitters = root!.tokenizers!.slice(0, -1);
  const lastStage = root!.tokenizers!.at(-1)!;
  const remembered = new Map<string, number[]>();

  function encodePiece(piece: string): number[] {
    return model.encode(lastStage.pre_tokenize_text(piece)).map((token) => model.tokens_to_ids.get(token)!);
  }

  return function encode(text) {
    let pieces = [normalizer === null ? text : normalizer(text)];
    for (const stage of splitters) pieces = pieces.flatMap((piece) => stage.pre_tokenize_text(piece));
    const ids: number[] = [];
    for (const piece of pieces) {
      let pieceIds = remembered.get(piece);
      if (pieceIds === undefined) {
        pieceIds = encodePiece(piece);
        if (remembered.size >= MAX_REMEMBERED_PIECES) remembered.clear();
        if (piece.length <= MAX_REMEMBERED_LENGTH) remembered.set(piece, pieceIds);
      }
      for (const id of pieceIds) ids.push(id);
    }
    return ids;
  };
}

function checkText(text: string): void {
  if (text.length > MAX_TEXT_LENGTH) {
    const cause = `a text of ${text.length} characters is above ${MAX_TEXT_LENGTH}`;
    throw new TokenizerError(`tokenizer: ${cause}. Fix: split it into documents`);
  }
}

/** Id -> the bytes it stands for; undefined where the ids leave a gap. */
function byteTable(path: string, vocab: JsonObject, added: readonly AddedToken[]): (Uint8Array | undefined)[] {
  const encoder = new TextEncoder();
  const ids = [...Object.values(vocab), ...added.map((token) => token.id)];
  const largest = 2 ** 24;
  if (!ids.every((id) => typeof id === "number" && Number.isInteger(id) && id >= 0 && id < largest)) {
    throw new TokenizerError(`tokenizer: ${path}: token ids must be integers from 0 to ${largest - 1}`);
  }
  const table = new Array<Uint8Array | undefined>((ids as number[]).reduce((a, b) => Math.max(a, b), -1) + 1);
  for (const [token, id] of Object.entries(vocab) as [string, number][]) {
    if (table[id] !== undefined) throw new TokenizerError(`tokenizer: ${path}: two tokens share the id ${id}`);
    const bytes = Array.from(token, (character) => CHAR_TO_BYTE.get(character));
    // A token outside the byte alphabet was put into the vocabulary by hand, as itself.
    table[id] = bytes.includes(undefined) ? encoder.encode(token) : Uint8Array.from(bytes as number[]);
  }
  return table;
}

function buildLibraryTokenizer(path: string, json: object): LibraryTokenizer {
  try {
    return new LibraryTokenizer(json, {});
  } catch (cause) {
    throw new TokenizerError(`tokenizer: ${path} is not a valid tokenizer: ${(cause as Error).message}`, { cause });
  }
}

/** Templates come in a file of their own, as a string, or as a list of named ones. */
function readChatTemplate(dir: string, tokenizerConfig: JsonObject): string | undefined {
  const file = join(dir, "chat_template.jinja");
  if (existsSync(file)) return readText(file);
  const value = tokenizerConfig["chat_template"];
  const named = Array.isArray(value) ? value.map(asObject).find((item) => item?.["name"] === "default") : undefined;
  const template = named?.["template"] ?? value;
  return typeof template === "string" ? template : undefined;
}

/** Undefined when the file does not exist. */
function readJson(path: string): JsonObject | undefined {
  if (!existsSync(path)) return undefined;
  const text = readText(path);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new TokenizerError(`tokenizer: ${path} is not valid JSON (${(cause as Error).message})`, { cause });
  }
  const object = asObject(value);
  if (object === undefined) throw new TokenizerError(`tokenizer: ${path} does not hold a JSON object`);
  return object;
}

function readText(path: string): string {
  if (statSync(path).size > MAX_FILE_BYTES) {
    throw new TokenizerError(`tokenizer: ${path} is above ${MAX_FILE_BYTES} bytes`);
  }
  return readFileSync(path, "utf8");
}
