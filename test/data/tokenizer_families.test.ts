// The four families' forms of tokenizer.json: lossless on any text, equal to the textbook's byte-pair encoding, safe
// from special tokens in user text, streaming, and fast on the texts that make a naive encoder quadratic.

import fc from "fast-check";
import { rmSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { BYTE_TO_CHAR } from "../../src/data/byte_level.ts";
import { encodeChat } from "../../src/data/chat_template.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { FAMILIES, makeFamilyDirectory, sharedVocabulary, WHOLE_PIECE } from "./tokenizer_families.ts";

const loaded = FAMILIES.map((family) => {
  const directory = makeFamilyDirectory(family);
  return { name: family.name, family, directory, tokenizer: loadTokenizer(directory) };
});
afterAll(() => loaded.forEach(({ directory }) => rmSync(directory, { recursive: true })));

const allSpecials = [...new Set(FAMILIES.flatMap(({ specials }) => specials))];

/** Unicode strings with what breaks tokenizers. */
const anyText = fc.array(fc.oneof(
  fc.string({ unit: "binary", maxLength: 10 }),
  fc.string({ unit: "grapheme", maxLength: 10 }),
  fc.string({ unit: "binary-ascii", maxLength: 10 }),
  fc.constantFrom(...allSpecials, "<|im_", "end|>", "<|", "|>", "<think>", "</think>", "<tool_call>"),
  fc.constantFrom("👩‍👩‍👧‍👦", "🏳️‍🌈", "שלום עולם", "مرحبا", "e\u0301", "\u1100\u1161\u11a8", "\u212b", "한국어", "日本語"),
  fc.constantFrom("\r\n", "\n", "\0", "\ufeff", " ".repeat(300), "\t\t", "\u00a0\u3000", "\u2028", "\u0085", "\n\n\n"),
  fc.constantFrom("it's IT'S I'LL", "1234567", "³½Ⅷ", WHOLE_PIECE, "\ud800", "\udc00", "\udc00\ud800"),
), { maxLength: 7 }).map((parts) => parts.join(""));

/** Lone surrogates have no UTF-8 form; every encoder writes U+FFFD for them. */
function wellFormed(text: string): string {
  return Buffer.from(text).toString();
}

/** Byte-pair encoding as the papers state it: merge the pair of lowest rank, again and again. */
function textbookEncode({ pattern, normalizes, ignoresMerges }: (typeof FAMILIES)[number], text: string): number[] {
  const { vocab, merges } = sharedVocabulary();
  const rank = new Map(merges.map((pair, i) => [pair, i]));
  const normalized = normalizes ? text.normalize("NFC") : text;
  return (normalized.match(pattern) ?? []).flatMap((piece) => {
    let tokens = Array.from(Buffer.from(piece), (byte) => BYTE_TO_CHAR[byte]!);
    if (ignoresMerges && Object.hasOwn(vocab, tokens.join(""))) return [vocab[tokens.join("")]!];
    for (;;) {
      const ranks = tokens.slice(1).map((token, i) => rank.get(`${tokens[i]} ${token}`) ?? Infinity);
      const best = Math.min(...ranks);
      if (best === Infinity) return tokens.map((token) => vocab[token]!);
      const at = ranks.indexOf(best);
      tokens = [...tokens.slice(0, at), tokens[at]! + tokens[at + 1]!, ...tokens.slice(at + 2)];
    }
  });
}

/** Processor seconds of this process, so that other work on the machine does not count. */
function processorSeconds(action: () => void): number {
  const start = process.cpuUsage();
  action();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1e6;
}

describe.each(loaded)("$name", ({ family, tokenizer }) => {
  const { specials, ordinary, normalizes } = family;
  const specialIds = specials.map(tokenizer.idOf);
  const hasSpecial = (ids: readonly number[]): boolean => ids.some((id) => specialIds.includes(id));

  /** What a text is after a tokenizer: well-formed, and composed where the family normalises (between added tokens). */
  function canonical(text: string): string {
    if (!normalizes) return wellFormed(text);
    const parts = ordinary.length === 0 ? [text] : text.split(new RegExp(`(${ordinary.join("|")})`));
    return parts.map((part) => wellFormed(part.normalize("NFC"))).join("");
  }

  test("decode(encode(text)) is the text for 10,000 texts, and no id of them is special", () => {
    fc.assert(fc.property(anyText, (text) => {
      const ids = tokenizer.encode(text);
      if (hasSpecial(ids)) throw new Error("a special token came out of plain text");
      if (tokenizer.decode(ids) !== canonical(text)) throw new Error("the text changed");
    }), { numRuns: 10_000, seed: 42 });
  });

  test("ids equal the textbook's for 500 texts", () => {
    const examples: [string][] = [["    \ufeff"], ["a    \u0085b"], ["\u0085\ufeff"], ["it's IT'S"]];
    const withoutAdded = anyText.map((text) => text.replace(/<\/?(think|tool_call)>/g, ""));
    fc.assert(fc.property(withoutAdded, (text) => {
      expect(tokenizer.encode(text)).toEqual(textbookEncode(family, text));
    }), { numRuns: 500, seed: 43, examples });
  });

  test("splits numbers and looks up whole pieces as the family does", () => {
    const tokens = (text: string): string[] => tokenizer.encode(text).map((id) => tokenizer.decode([id]));
    const digits = { "GPT-2": ["1234", "5"], "Llama 3": ["123", "4", "5"] }[family.name] ?? [..."12345"];
    expect(tokens("12345")).toEqual(digits);
    expect(tokens(WHOLE_PIECE)).toEqual(family.ignoresMerges ? [WHOLE_PIECE] : [...WHOLE_PIECE]);
  });

  test("added tokens: special ones in trusted text only, ordinary ones in any text", () => {
    for (const [i, special] of specials.entries()) {
      expect(tokenizer.encodeWithSpecials(`a${special}`)).toEqual([...tokenizer.encode("a"), specialIds[i]]);
      expect(hasSpecial(tokenizer.encode(`a${special}`))).toBe(false);
    }
    for (const token of ordinary) expect(tokenizer.encode(token)).toEqual([tokenizer.idOf(token)]);
    expect(tokenizer.specialTokens.toSorted()).toEqual([...specials].sort());
  });

  test("the text around is as given: no beginning token is put in front", () => {
    expect(tokenizer.encodeWithSpecials("")).toEqual([]);
    expect(hasSpecial(tokenizer.encodeWithSpecials("the answer"))).toBe(false);
    expect(tokenizer.bosToken).toBe(family.bos ?? undefined);
    expect(tokenizer.eosIds).toEqual([tokenizer.idOf(family.eos)]);
  });

  test("every id decodes, and no other number does", () => {
    for (let id = 0; id < tokenizer.vocabSize; id++) expect(tokenizer.decode([id])).not.toBe("");
    for (const id of [-1, tokenizer.vocabSize, 0.5, NaN, Infinity]) {
      expect(() => tokenizer.decode([id])).toThrow(RangeError);
    }
  });

  test("streaming never shows half a code point, and the pieces joined are the whole", () => {
    const anyIds = fc.array(fc.nat(tokenizer.vocabSize - 1), { maxLength: 30 });
    fc.assert(fc.property(fc.oneof(anyIds, anyText.map(tokenizer.encode)), fc.boolean(), (ids, skipSpecial) => {
      const stream = tokenizer.streamDecoder({ skipSpecial });
      const pieces = [...ids.map(stream.push), stream.flush()];
      expect(pieces.join("")).toBe(tokenizer.decode(ids, { skipSpecial }));
      expect(pieces.filter((piece) => /\p{Surrogate}/u.test(piece))).toEqual([]);
    }), { numRuns: 1000, seed: 44 });
    // Of well-formed text no replacement character is ever shown: each piece waits for its last byte.
    fc.assert(fc.property(fc.string({ unit: "grapheme" }), (text) => {
      const stream = tokenizer.streamDecoder();
      const pieces = tokenizer.encode(text).map(stream.push);
      expect(pieces.join("")).toBe(canonical(text));
      expect(stream.flush()).toBe("");
    }), { numRuns: 500, seed: 45 });
  });

  test("special tokens in a message stay text, through a chat template of the family's tokens", () => {
    const [open, close] = [specials.at(-2) ?? specials[0]!, specials.at(-1)!];
    const template = `{% for m in messages %}${open}{{ m.role }}\n{{ m.content | trim }}${close}{% endfor %}`;
    const idsOf = (content: string): number[] =>
      encodeChat(tokenizer, template, [{ role: "user", content }], { addGenerationPrompt: true });
    const expected = [open, close].map(tokenizer.idOf);
    fc.assert(fc.property(anyText, (content) => {
      expect(idsOf(content).filter((id) => specialIds.includes(id))).toEqual(expected);
    }), { numRuns: 500, seed: 46 });
  });

  test("50,000 equal characters in 5 s, a megabyte of prose in 2 s of processor time", () => {
    for (const character of ["a", " ", "^", "_", "\n", "7", "🙂"]) {
      const text = character.repeat(50_000);
      let ids: number[] = [];
      expect(processorSeconds(() => void (ids = tokenizer.encode(text)))).toBeLessThan(5);
      expect(tokenizer.decode(ids)).toBe(text);
    }
    const words = "the answer integer between thinking naïve café It's number 9, now?\n".split(" ");
    let [prose, state] = ["", 1];
    while (prose.length < 1e6) {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      prose += `${words[(state >>> 16) % words.length]}${(state >>> 8) % 97 === 0 ? state : ""} `;
    }
    expect(processorSeconds(() => tokenizer.encode(prose))).toBeLessThan(2);
  });
});
