// BPE training: merges worked out by hand, a brute-force trainer as reference, and the rules of the vocabulary.

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { tokenizerConfig, trainBpe } from "../../src/data/bpe.ts";
import { BYTE_TO_CHAR, CHAR_TO_BYTE } from "../../src/data/byte_level.ts";

const SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/** The textbook loop: recount all pairs, merge the most frequent (ties: smallest ids), repeat. */
function trainByRecounting(words: readonly string[], mergeCount: number): string[] {
  const tokens = [...BYTE_TO_CHAR].sort();
  let pieces = words.map((word) => [...Buffer.from(word)].map((byte) => tokens.indexOf(BYTE_TO_CHAR[byte]!)));
  const merges: string[] = [];
  while (merges.length < mergeCount) {
    const counts = new Map<string, { left: number; right: number; count: number }>();
    for (const ids of pieces) {
      for (let i = 1; i < ids.length; i++) {
        const [left, right] = [ids[i - 1]!, ids[i]!];
        const pair = counts.get(`${left} ${right}`) ?? { left, right, count: 0 };
        counts.set(`${left} ${right}`, { ...pair, count: pair.count + 1 });
      }
    }
    const [best] = [...counts.values()].sort((a, b) => b.count - a.count || a.left - b.left || a.right - b.right);
    if (best === undefined || best.count < 2) break;
    merges.push(`${tokens[best.left]} ${tokens[best.right]}`);
    const merged = tokens.push(tokens[best.left]! + tokens[best.right]!) - 1;
    pieces = pieces.map((ids) => {
      const result: number[] = [];
      for (const id of ids) {
        const isSecond = id === best.right && result.at(-1) === best.left;
        if (isSecond) result[result.length - 1] = merged;
        else result.push(id);
      }
      return result;
    });
  }
  return merges;
}

test("the byte alphabet is GPT-2's: 256 printable characters, a space is Ġ, a line break Ċ", () => {
  expect(new Set(BYTE_TO_CHAR).size).toBe(256);
  expect([0x20, 0x0a, 0x00, 0x41, 0xad, 0xff].map((byte) => BYTE_TO_CHAR[byte]).join("")).toBe("ĠĊĀAŃÿ");
  expect(BYTE_TO_CHAR.every((character, byte) => CHAR_TO_BYTE.get(character) === byte)).toBe(true);
});

describe("trainBpe", () => {
  test("worked example: low x5, lower x2, newest x6, widest x3 (Sennrich et al., figure 1)", () => {
    const counts = { low: 5, lower: 2, newest: 6, widest: 3 };
    const words = Object.entries(counts).flatMap(([word, count]) => Array<string>(count).fill(word));
    const { model } = trainBpe(words, { vocabSize: 256 + 6, specialTokens: [] });
    // e s and s t occur 9 times each, and the smaller ids win; then es t (9), l o and lo w (7); of the pairs that
    // occur 6 times, e w is the smallest, and of those that are left n ew.
    expect(model.merges).toEqual(["e s", "es t", "l o", "lo w", "e w", "n ew"]);
  });

  test("equals the textbook loop on random texts, ties and repeated letters included", () => {
    const word = fc.oneof(
      fc.string({ unit: fc.constantFrom("a", "b", "c", "é"), minLength: 1, maxLength: 9 }),
      fc.nat(20).map((length) => `${"a".repeat(length)}b`),
    );
    fc.assert(fc.property(fc.array(word, { minLength: 1, maxLength: 40 }), (words) => {
      // One text per word, so that a piece is a word: the splitter never joins texts.
      const { model } = trainBpe(words, { vocabSize: 256 + 12, specialTokens: [] });
      const reference = trainByRecounting(words, model.merges.length + 1);
      expect(model.merges).toEqual(reference.slice(0, model.merges.length));
      const isFull = Object.keys(model.vocab).length === 268;
      expect(isFull || reference.length === model.merges.length).toBe(true);
      expect(Object.keys(model.vocab).length).toBe(256 + model.merges.length); // no spelling was learned twice
    }), { numRuns: 300 });
  });

  test("does not depend on the order of the texts", () => {
    const texts = ["the cat sat on the mat", "a dog and the other dog", "that cat, this dog"];
    const options = { vocabSize: 280, specialTokens: SPECIALS };
    expect(trainBpe(texts, options)).toEqual(trainBpe(texts.toReversed(), options));
  });

  test("ids: bytes, merges, special tokens; no token but a byte holds a digit", () => {
    const text = "in 2024 and 2025 and 2024 the 2024 2024 cats 100 100 100".repeat(20);
    const { model, added_tokens } = trainBpe([text], { vocabSize: 290, specialTokens: SPECIALS });
    const ids = Object.values(model.vocab);
    expect(ids.toSorted((a, b) => a - b)).toEqual(ids.map((_, i) => i));
    expect(added_tokens.map(({ id, content }) => [id, content])).toEqual(SPECIALS.map((s, i) => [ids.length + i, s]));
    expect(model.vocab["!"]).toBe(0);
    expect(model.vocab[model.merges[0]!.replace(" ", "")]).toBe(256);
    expect(model.merges.some((merge) => /\d/.test(merge))).toBe(false);
  });

  test("stops early when no pair is left", () => {
    const { model, added_tokens } = trainBpe(["ab ab"], { vocabSize: 5000, specialTokens: SPECIALS });
    expect(model.merges).toEqual(["a b"]);
    expect(added_tokens[0]!.id).toBe(257);
  });

  test.each([
    ["a vocabulary below the bytes", { vocabSize: 258, specialTokens: SPECIALS }],
    ["a special token twice", { vocabSize: 300, specialTokens: ["<a>", "<a>"] }],
    ["an empty special token", { vocabSize: 300, specialTokens: [""] }],
  ])("refuses %s", (_, options) => {
    expect(() => trainBpe([""], options)).toThrow(RangeError);
  });
});

test("tokenizerConfig names tokens of the tokenizer, or throws", () => {
  const tokenizer = trainBpe([""], { vocabSize: 300, specialTokens: SPECIALS });
  const options = { eosToken: "<|im_end|>", padToken: "<|endoftext|>", chatTemplate: "x", modelMaxLength: 64 };
  expect(tokenizerConfig(tokenizer, options)).toMatchObject({
    tokenizer_class: "PreTrainedTokenizerFast",
    eos_token: "<|im_end|>",
    pad_token: "<|endoftext|>",
    added_tokens_decoder: { 256: { content: "<|endoftext|>", special: true } },
  });
  expect(() => tokenizerConfig(tokenizer, { ...options, eosToken: "</s>" })).toThrow(/<\/s> is not among/);
});
