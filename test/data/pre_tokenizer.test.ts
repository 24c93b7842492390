// The stages of pre-tokenizers: the pieces are those of Hugging Face's tokenizers 0.23.2 (pre_tokenize_str).

import { describe, expect, test } from "vitest";
import { LibraryTokenizer } from "../../src/data/hf_tokenizers.ts";
import { preTokenizerStages } from "../../src/data/pre_tokenizer.ts";

const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
const prefixed = { ...byteLevel, add_prefix_space: true };
const bytesOnly = { ...byteLevel, use_regex: false };
const digits = { type: "Digits", individual_digits: true };
const runs = { type: "Digits", individual_digits: false };
const expression = { Regex: "(?i:'s|'t)|\\p{L}+|\\s+|[^\\s\\p{L}]+" };
const split = (behavior: string, invert: boolean): object => ({ type: "Split", pattern: expression, behavior, invert });
const sequence = (...pretokenizers: object[]): object => ({ type: "Sequence", pretokenizers });

function pieces(preTokenizer: object, text: string): string[] {
  const library = new LibraryTokenizer({
    normalizer: null, post_processor: null, decoder: null, added_tokens: [],
    pre_tokenizer: { type: "Sequence", pretokenizers: preTokenizerStages("tokenizer.json", preTokenizer) },
    model: { type: "BPE", vocab: {}, merges: [] },
  }, {});
  return library.pre_tokenizer!.pre_tokenize_text(text);
}

describe("pieces equal the original's", () => {
  test.each<[what: string, preTokenizer: object, text: string, expected: string[]]>([
    ["every Unicode number by itself (SmolLM)", sequence(digits, byteLevel), "x²½٣ 12",
      ["x", "Â²", "Â½", "Ù£", "Ġ", "1", "2"]],
    ["runs of Unicode numbers", sequence(runs, byteLevel), "x²½ 12", ["x", "Â²Â½", "Ġ", "12"]],
    ["U+FEFF is no space, in a nested stage either", sequence(sequence(digits, sequence(byteLevel))), "!\ufeff",
      ["!ï»¿"]],
    ["U+0085 is one", sequence(digits, byteLevel), "\v\u0085", ["ċÂħ"]],
    ["a space is put in front", prefixed, "a", ["Ġa"]],
    ["but not in front of another", prefixed, " a", ["Ġa"]],
    ["a tab is not another", prefixed, "\ta", ["Ġ", "ĉ", "a"]],
    ["a space in front, U+FEFF", prefixed, "!\ufeff", ["Ġ!ï»¿"]],
    ["a space is there, U+FEFF", prefixed, " \ufeffa", ["Ġï»¿", "a"]],
    ["a space in front of a text in one piece", { ...prefixed, use_regex: false }, "a b", ["ĠaĠb"]],
    ["a space in front of every piece of an earlier stage", sequence(digits, prefixed), "a1", ["Ġa", "Ġ1"]],
    ["the same, with spaces", sequence(digits, prefixed), "  ²", ["ĠĠ", "ĠÂ²"]],
    ["Split", sequence(split("Isolated", false), bytesOnly), "a'Sb 1", ["a", "'S", "b", "Ġ", "1"]],
    ["(?i:s) takes the long s", sequence(split("Isolated", false), bytesOnly), "a'ſb", ["a", "'Å¿", "b"]],
    ["Split, inverted", sequence(split("Isolated", true), bytesOnly), "a'ſb 1", ["a", "'Å¿", "b", "Ġ", "1"]],
    ["Split, removed and inverted", sequence(split("Removed", true), bytesOnly), "a'ſb 1",
      ["a", "'Å¿", "b", "Ġ", "1"]],
  ])("%s", (_, preTokenizer, text, expected) => {
    expect(pieces(preTokenizer, text)).toEqual(expected);
  });
});

test.each<[name: string, stage: object]>([
  ["Punctuation", { type: "Punctuation", behavior: "Contiguous" }],
  ["WhitespaceSplit", { type: "WhitespaceSplit" }],
  ["Replace", { type: "Replace", pattern: { String: "a" }, content: "b" }],
  ['Split, "MergedWithNext"', split("MergedWithNext", false)],
  ['Split, "Contiguous"', split("Contiguous", false)],
  ['Split, "Removed"', split("Removed", false)],
  ["Split without a pattern", { ...split("Isolated", false), pattern: null }],
  ["undefined", {}],
])("refused by name: %s", (name, stage) => {
  const message = `tokenizer: tokenizer.json has the pre_tokenizer stage ${name}; ` +
    "only ByteLevel, Digits and isolating Split are supported. Fix: choose another model";
  expect(() => preTokenizerStages("tokenizer.json", sequence(sequence(stage), byteLevel))).toThrow(message);
});

test("without a ByteLevel stage text would be lost", () => {
  for (const preTokenizer of [null, undefined, digits, sequence()]) {
    expect(() => preTokenizerStages("tokenizer.json", preTokenizer)).toThrow(/has no ByteLevel stage/);
  }
});
