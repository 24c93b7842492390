// tokenizer.json in the form of each family that the project reads: the published layouts and splitting expressions,
// around one tiny vocabulary. No published vocabulary is needed to see whether a form is understood.

import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { trainBpe } from "../../src/data/bpe.ts";

const TEXT = [
  "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer. It's the one.",
  "user assistant system tool answer the answer naïve café 🙂🙂 日本語 日本 שלום שלום aaaa aaaa    \n\n\n    \r\n\r\n",
];

/** Learned by no merge: only a tokenizer that looks whole pieces up first (ignore_merges) can produce it. */
export const WHOLE_PIECE = "qzxj";

export interface Family {
  readonly name: string;
  /** The splitting expression, as JavaScript writes it. */
  readonly pattern: RegExp;
  readonly normalizes: boolean;
  readonly ignoresMerges: boolean;
  readonly specials: readonly string[];
  /** Added tokens that count as text. */
  readonly ordinary: readonly string[];
  readonly bos: string | null;
  readonly eos: string;
  /** The parts of tokenizer.json that set the family apart. */
  readonly layout: Record<string, unknown>;
  /** Newer files list each merge as a pair, older ones as one string. */
  readonly pairsAsLists: boolean;
}

const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };

function splitBy(regex: string): object {
  const split = { type: "Split", pattern: { Regex: regex }, behavior: "Isolated", invert: false };
  return { type: "Sequence", pretokenizers: [split, byteLevel] };
}

/** Llama 3 takes up to three digits at a time, Qwen one. */
function splitRegex(digits: string): string {
  return "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" + digits +
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
}

/**
 * The published expressions are of the Rust library, whose \s is Unicode's White_Space: JavaScript's own also has
 * U+FEFF and lacks U+0085. JavaScript before 2025 has no (?i:...); nothing else in them depends on the case.
 */
function asJavaScript(regex: string): RegExp {
  const source = regex.replaceAll("\\s", "\\p{White_Space}").replaceAll("\\S", "\\P{White_Space}");
  return source.includes("(?i:") ? new RegExp(source.replace("(?i:", "(?:"), "giu") : new RegExp(source, "gu");
}

const llama3Regex = splitRegex("\\p{N}{1,3}");
const qwenRegex = splitRegex("\\p{N}");
const chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

function bosTemplate(bos: string): object {
  const sequence = (id: string): object => ({ Sequence: { id, type_id: 0 } });
  const special = { SpecialToken: { id: bos, type_id: 0 } };
  return {
    type: "Sequence",
    processors: [byteLevel, {
      type: "TemplateProcessing",
      single: [special, sequence("A")],
      pair: [special, sequence("A"), special, sequence("B")],
      special_tokens: { [bos]: { id: bos, ids: [0], tokens: [bos] } },
    }],
  };
}

export const FAMILIES: readonly Family[] = [
  {
    name: "GPT-2",
    pattern: asJavaScript("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"),
    normalizes: false, ignoresMerges: false, pairsAsLists: false,
    specials: ["<|endoftext|>"], ordinary: [], bos: "<|endoftext|>", eos: "<|endoftext|>",
    // The oldest form: one stage with the expression built in, no model type, the end token within the vocabulary.
    layout: {
      normalizer: null,
      pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true },
      post_processor: { type: "ByteLevel", add_prefix_space: true, trim_offsets: false },
      decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true },
    },
  },
  {
    name: "Llama 3",
    pattern: asJavaScript(llama3Regex),
    normalizes: false, ignoresMerges: true, pairsAsLists: false,
    specials: ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ordinary: [], bos: "<|begin_of_text|>", eos: "<|eot_id|>",
    layout: {
      normalizer: null,
      pre_tokenizer: splitBy(llama3Regex),
      post_processor: bosTemplate("<|begin_of_text|>"),
      decoder: { ...byteLevel, add_prefix_space: true, use_regex: true },
    },
  },
  {
    name: "Qwen2",
    pattern: asJavaScript(qwenRegex),
    normalizes: true, ignoresMerges: false, pairsAsLists: false,
    specials: chatml, ordinary: [], bos: null, eos: "<|im_end|>",
    layout: {
      normalizer: { type: "NFC" }, pre_tokenizer: splitBy(qwenRegex), post_processor: byteLevel, decoder: byteLevel,
    },
  },
  {
    name: "Qwen3",
    pattern: asJavaScript(qwenRegex),
    normalizes: true, ignoresMerges: false, pairsAsLists: true,
    specials: chatml, ordinary: ["<tool_call>", "</tool_call>", "<think>", "</think>"], bos: null, eos: "<|im_end|>",
    layout: {
      normalizer: { type: "NFC" }, pre_tokenizer: splitBy(qwenRegex), post_processor: byteLevel, decoder: byteLevel,
    },
  },
];

/** The vocabulary and merges that all forms share; merges of digits show how many a splitter keeps together. */
export function sharedVocabulary(): { vocab: Record<string, number>; merges: string[] } {
  const { vocab, merges } = trainBpe(TEXT, { vocabSize: 320, specialTokens: [] }).model;
  const tokens = [...Object.keys(vocab), "12", "123", "1234", WHOLE_PIECE];
  return {
    vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    merges: [...merges, "1 2", "12 3", "123 4"],
  };
}

/** Writes the files of a model directory of this family; returns its path. */
export function makeFamilyDirectory(family: Family): string {
  const { vocab, merges } = sharedVocabulary();
  const first = Object.keys(vocab).length;
  const added = [...family.specials, ...family.ordinary].map((content, i) => ({
    id: first + i, content, single_word: false, lstrip: false, rstrip: false, normalized: false,
    special: family.specials.includes(content),
  }));
  const isOldest = family.name === "GPT-2";
  const json = {
    version: "1.0", truncation: null, padding: null, added_tokens: added, ...family.layout,
    model: {
      ...(isOldest ? {} : { type: "BPE", byte_fallback: false, ignore_merges: family.ignoresMerges }),
      dropout: null, unk_token: null, continuing_subword_prefix: isOldest ? "" : null,
      end_of_word_suffix: isOldest ? "" : null, fuse_unk: false,
      vocab: isOldest ? { ...vocab, "<|endoftext|>": first } : vocab,
      merges: family.pairsAsLists ? merges.map((pair) => pair.split(" ")) : merges,
    },
  };
  const directory = mkdtempSync(join(tmpdir(), "family-"));
  const config = { bos_token: family.bos, eos_token: { __type: "AddedToken", content: family.eos }, pad_token: null };
  writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(json));
  writeFileSync(join(directory, "tokenizer_config.json"), JSON.stringify(config));
  return directory;
}
