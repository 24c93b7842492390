// The tokenizer: lossless, special tokens only when asked for, streaming, bounded, and clear about broken files.

import fc from "fast-check";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { BYTE_TO_CHAR } from "../../src/data/byte_level.ts";
import { LibraryTokenizer } from "../../src/data/hf_tokenizers.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { TokenizerError } from "../../src/data/tokenizer_error.ts";
import { makeTokenizerDirectory, SPECIALS } from "./tokenizer_fixture.ts";

const directories: string[] = [];
afterAll(() => directories.forEach((path) => rmSync(path, { recursive: true })));

function makeDirectory(...args: Parameters<typeof makeTokenizerDirectory>): string {
  directories.push(makeTokenizerDirectory(...args));
  return directories.at(-1)!;
}

const directory = makeDirectory();
const tokenizer = loadTokenizer(directory);
const specialIds = SPECIALS.map(tokenizer.idOf);

/** Unicode strings with what breaks tokenizers: joined emoji, right-to-left text, line ends, NUL, BOM, specials. */
const anyText = fc.array(fc.oneof(
  fc.string({ unit: "binary", maxLength: 12 }),
  fc.string({ unit: "grapheme", maxLength: 12 }),
  fc.constantFrom(...SPECIALS, "<|im_", "end|>", "👩‍👩‍👧‍👦", "שלום", "it's IT'S", "e\u0301", "007"),
  fc.constantFrom("\r\n", "\0", "\ufeff", "   ", "\n\n"),
), { maxLength: 8 }).map((parts) => parts.join(""));

describe("encode and decode", () => {
  test("decode(encode(text)) is the text, with no special token among the ids", () => {
    fc.assert(fc.property(anyText, (text) => {
      const ids = tokenizer.encode(text);
      expect(tokenizer.decode(ids)).toBe(text);
      expect(ids.some((id) => specialIds.includes(id))).toBe(false);
    }), { numRuns: 3000 });
  });

  test("remembering pieces changes nothing: ids equal the library's own for texts without special tokens", () => {
    const json = JSON.parse(readFileSync(join(directory, "tokenizer.json"), "utf8")) as Record<string, unknown>;
    const library = new LibraryTokenizer({ ...json, added_tokens: [] }, {}) as unknown as {
      encode(text: string): { ids: number[] };
    };
    fc.assert(fc.property(anyText, (text) => {
      expect(tokenizer.encode(text)).toEqual(library.encode(text).ids);
      expect(tokenizer.encode(text)).toEqual(library.encode(text).ids); // the second time from memory
    }), { numRuns: 1000 });
  });

  test("trusted text: special tokens are recognised, and decode shows or skips them", () => {
    const text = "<|im_start|>user\nhi<|im_end|>\n";
    const ids = tokenizer.encodeWithSpecials(text);
    expect(ids.filter((id) => specialIds.includes(id))).toEqual(specialIds.slice(1));
    expect(ids.length).toBeLessThan(tokenizer.encode(text).length);
    expect(tokenizer.decode(ids)).toBe(text);
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe("user\nhi\n");
    expect(tokenizer.encode("")).toEqual([]);
  });

  test("every digit is one token, alone and in numbers", () => {
    const digitIds = [..."0123456789"].map(tokenizer.idOf);
    expect(tokenizer.encode("9876543210")).toEqual(digitIds.toReversed());
    expect(tokenizer.encode("x 42").slice(-2)).toEqual([digitIds[4], digitIds[2]]);
  });

  test("every id decodes; ids outside the vocabulary and unknown tokens are errors", () => {
    for (let id = 0; id < tokenizer.vocabSize; id++) expect(tokenizer.decode([id])).not.toBe("");
    for (const id of [-1, tokenizer.vocabSize, 0.5, NaN]) expect(() => tokenizer.decode([id])).toThrow(RangeError);
    expect(() => tokenizer.idOf("constructor")).toThrow(/no token "constructor"/);
  });

  test("lone surrogates become U+FFFD, as in every UTF-8 encoder", () => {
    expect(tokenizer.decode(tokenizer.encode("a\ud800b"))).toBe("a\ufffdb");
  });

  test("50,000 times one letter: no quadratic merging, which would take minutes", { timeout: 20_000 }, () => {
    for (const letter of ["a", " ", "^", "🙂"]) {
      const text = letter.repeat(50_000);
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    }
  });

  test("a text above the cap is refused before any work", () => {
    const text = "a".repeat(2 ** 26 + 1);
    for (const work of [tokenizer.encode, tokenizer.encodeWithSpecials, tokenizer.splitSpecials]) {
      expect(() => work(text)).toThrow(TokenizerError);
      expect(() => work(text)).toThrow(/characters is above 67108864\. Fix: split it/);
    }
  });
});

describe("streamDecoder", () => {
  test("for any ids: the pieces joined are the whole, and no piece ends within a character", () => {
    const ids = fc.array(fc.nat(tokenizer.vocabSize - 1), { maxLength: 30 });
    fc.assert(fc.property(fc.oneof(ids, anyText.map(tokenizer.encode)), fc.boolean(), (all, skipSpecial) => {
      const stream = tokenizer.streamDecoder({ skipSpecial });
      const pieces = [...all.map(stream.push), stream.flush()];
      expect(pieces.join("")).toBe(tokenizer.decode(all, { skipSpecial }));
      for (const piece of pieces) expect(/\p{Surrogate}/u.test(piece)).toBe(false);
    }), { numRuns: 1000 });
  });

  test("equals decoding all bytes at once", () => {
    const anyByte = fc.oneof(fc.nat(255), fc.constantFrom(0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80, 0xef, 0xbb, 0xbf));
    fc.assert(fc.property(fc.array(anyByte, { maxLength: 20 }), (bytes) => {
      const ids = bytes.map((byte) => tokenizer.idOf(BYTE_TO_CHAR[byte]!));
      expect(tokenizer.decode(ids)).toBe(Buffer.from(bytes).toString("utf8"));
    }), { numRuns: 2000 });
  });

  test("waits for the last byte of a character", () => {
    const stream = tokenizer.streamDecoder();
    const ids = tokenizer.encode("€");
    expect(ids.length).toBe(3);
    expect(ids.map(stream.push)).toEqual(["", "", "€"]);
    expect([stream.push(ids[0]!), stream.push(tokenizer.idOf("<|im_end|>"))]).toEqual(["", "\ufffd<|im_end|>"]);
    expect([stream.push(ids[0]!), stream.flush(), stream.flush()]).toEqual(["", "\ufffd", ""]);
  });
});

describe("loadTokenizer", () => {
  test("reads end and template from the directory", () => {
    expect(tokenizer.eosIds).toEqual([specialIds[2], specialIds[0]]);
    expect(tokenizer.eosToken).toBe("<|im_end|>");
    expect(tokenizer.bosToken).toBeUndefined();
    expect(tokenizer.chatTemplate).toContain("<|im_start|>");
    expect(tokenizer.vocabSize).toBe(specialIds[2]! + 1);
  });

  test.each([
    ["generation_config.json wins", { eos_token_id: 5 }, { eos_token_id: 6 }, [5]],
    ["then config.json", undefined, { eos_token_id: [6, 7] }, [6, 7]],
    ["null counts as not named", { eos_token_id: null }, { eos_token_id: 0 }, [0]],
    ["then the token's name", undefined, undefined, [specialIds[2]]],
  ])("end ids: %s", (_, generation, config, expected) => {
    const path = makeDirectory();
    writeFileSync(join(path, "generation_config.json"), JSON.stringify(generation ?? {}));
    if (config !== undefined) writeFileSync(join(path, "config.json"), JSON.stringify(config));
    expect(loadTokenizer(path).eosIds).toEqual(expected);
  });

  test("tokens that were added but are not special are part of plain text, as in Hugging Face", () => {
    const think = { content: "<think>", special: false, lstrip: false, rstrip: true };
    const path = makeDirectory((json) => {
      const id = json.added_tokens.at(-1)!.id + 1;
      return { ...json, added_tokens: [...json.added_tokens, { ...think, id }] };
    });
    const withThink = loadTokenizer(path);
    const id = withThink.idOf("<think>");
    expect(withThink.encode("a<think>  b<|im_end|>").filter((other) => other >= specialIds[0]!)).toEqual([id]);
    expect(withThink.decode(withThink.encode("a<think>  b"))).toBe("a<think>b"); // rstrip takes the space behind it
  });

  test("a special token that the vocabulary lists as well is still never plain text (ignore_merges)", () => {
    const path = makeDirectory((json) => {
      const vocab = { ...json.model.vocab, XY: 500 };
      const added_tokens = [...json.added_tokens, { id: 500, content: "XY", special: true }];
      return { ...json, added_tokens, model: { ...json.model, vocab, ignore_merges: true } };
    });
    const listed = loadTokenizer(path);
    expect(listed.encode("XY")).toEqual([..."XY"].map(listed.idOf));
    expect(listed.encodeWithSpecials("XY")).toEqual([500]);
  });

  test("one that can also be merged stays text", () => {
    const path = makeDirectory((json) => {
      const { vocab, merges } = json.model;
      const added_tokens = [...json.added_tokens, { id: 500, content: "XY", special: true }];
      const model = { ...json.model, vocab: { ...vocab, XY: 500 }, merges: [...merges, "X Y"] };
      return { ...json, added_tokens, model };
    });
    const merged = loadTokenizer(path);
    expect(merged.encode("XY")).toEqual([..."XY"].map(merged.idOf));
  });

  test("a special token that is a letter of the byte alphabet, as a padding token may be, loses no text", () => {
    const path = makeDirectory((json) => {
      const added_tokens = [...json.added_tokens, { id: json.model.vocab["!"], content: "!", special: true }];
      return { ...json, added_tokens };
    });
    const padded = loadTokenizer(path);
    expect(padded.decode(padded.encode("a!!"), { skipSpecial: true })).toBe("a!!");
  });

  test("a padding token that no file knows refuses no model", () => {
    const path = makeDirectory();
    writeFileSync(join(path, "tokenizer_config.json"), '{"pad_token":"<pad>"}');
    expect(loadTokenizer(path).vocabSize).toBe(tokenizer.vocabSize);
  });

  test("has: there may be gaps below vocabSize", () => {
    const path = makeDirectory((json) => {
      return { ...json, added_tokens: [...json.added_tokens, { id: 500, content: "XY", special: true }] };
    });
    const { has, vocabSize } = loadTokenizer(path);
    expect(vocabSize).toBe(501);
    expect([0, specialIds[2]!, 500].map(has)).toEqual([true, true, true]);
    expect([-1, 0.5, specialIds[2]! + 1, 499, 501, NaN].map(has)).toEqual(Array(6).fill(false));
  });

  const brokenFiles: [what: string, file: string, content: string, message: RegExp][] = [
    ["no JSON", "tokenizer.json", "{", /tokenizer\.json is not valid JSON/],
    ["a list", "tokenizer.json", "[]", /does not hold a JSON object/],
    ["no model", "tokenizer.json", "{}", /tokenizer\.json has no model; only byte-level BPE/],
    ["Unigram", "tokenizer.json", '{"model":{"type":"Unigram","vocab":[]}}', /is a "Unigram" tokenizer; only byte-l/],
    ["WordPiece", "tokenizer.json", '{"model":{"type":"WordPiece","vocab":{}}}', /is a "WordPiece" tokenizer; only/],
    ["SentencePiece, by its bytes", "tokenizer.json",
      '{"model":{"type":"BPE","byte_fallback":true,"vocab":{},"merges":[]}}',
      /is a SentencePiece tokenizer, as Llama 1/],
    ["SentencePiece, by its spaces", "tokenizer.json",
      '{"normalizer":{"type":"Prepend","prepend":"\u2581"},"model":{"vocab":{},"merges":[]}}', /is a SentencePiece/],
    ["BPE over characters", "tokenizer.json",
      '{"model":{"type":"BPE","vocab":{},"merges":[]}}', /is another kind; only/],
    ["a broken config", "config.json", "{,}", /config\.json is not valid JSON/],
    ["an end id outside the vocabulary", "generation_config.json", '{"eos_token_id":99999}', /99999/],
    ["a token listed without its content", "tokenizer_config.json", '{"added_tokens_decoder":{"999":{}}}',
      /an added token lacks its id or content/],
  ];

  test.each(brokenFiles)("one clear line for %s", (_, file, content, message) => {
    const path = makeDirectory();
    writeFileSync(join(path, file), content);
    expect(() => loadTokenizer(path)).toThrow(message);
  });

  test("a directory that has SentencePiece's own file only says so", () => {
    const path = makeDirectory();
    rmSync(join(path, "tokenizer.json"));
    writeFileSync(join(path, "tokenizer.model"), "");
    expect(() => loadTokenizer(path)).toThrow(/has only tokenizer\.model, a SentencePiece tokenizer; only byte-level/);
  });

  test("a vocabulary that would lose text is refused", () => {
    const withoutB = makeDirectory(({ model, ...json }) => {
      return { ...json, model: { ...model, vocab: { ...model.vocab, b: undefined } } };
    });
    expect(() => loadTokenizer(withoutB)).toThrow(/no token for the byte 98/);
    for (const merge of ["q z", "ab", ["a"], ["a", "b", "c"], 1, null]) {
      const path = makeDirectory(({ model, ...json }) => ({ ...json, model: { ...model, merges: [merge] } }));
      expect(() => loadTokenizer(path)).toThrow(/has the merge .* which does not join two tokens to a third/);
    }
  });

  test("one clear line for a missing file, a shared id and a huge id", () => {
    expect(() => loadTokenizer(join(directory, "absent"))).toThrow(/tokenizer\.json does not exist/);
    const badIds = [[3, /share the id 3/], [2 ** 40, /must be integers/], ["1", /must be integers/]] as const;
    for (const [id, message] of badIds) {
      const path = makeDirectory(({ model, ...json }) => {
        return { ...json, model: { ...model, vocab: { ...model.vocab, qqq: id } } };
      });
      expect(() => loadTokenizer(path)).toThrow(message);
    }
  });
});

// What transformers 5.18 does with the same files.
describe("added tokens of tokenizer_config.json", () => {
  const next = tokenizer.vocabSize;
  const load = (config: object): ReturnType<typeof loadTokenizer> => {
    const path = makeDirectory();
    writeFileSync(join(path, "tokenizer_config.json"), JSON.stringify(config));
    return loadTokenizer(path);
  };
  const flags = { special: true, lstrip: false, rstrip: false, single_word: false, normalized: false };
  const listed = (tokens: Record<number, object>): ReturnType<typeof load> => load({ added_tokens_decoder: tokens });

  test("tokens listed only there are tokens, in the order of their ids", () => {
    const both = listed({ [next + 1]: { ...flags, content: "<y>" }, [next]: { ...flags, content: "<x>" } });
    expect(both.encodeWithSpecials("<y><x>")).toEqual([next + 1, next]);
    expect(both.encode("<x>")).not.toContain(next);
    expect(both.vocabSize).toBe(next + 2);
    expect(both.specialTokens).toEqual([...SPECIALS, "<x>", "<y>"]);
  });

  test("their flags hold: ordinary tokens are text, and take the spaces beside them", () => {
    const word = listed({ [next]: { content: "<x>", special: false, lstrip: true, rstrip: true } });
    expect(word.decode(word.encode("a \ufeff \u0085<x> \ufeff b"))).toBe("a \ufeff<x>\ufeff b");
    expect(word.encode("<x>")).toEqual([next]);
  });

  test("a token of tokenizer.json keeps its id, and takes the flags", () => {
    const [, start] = specialIds;
    const changed = listed({ 5: { ...flags, content: "<|im_start|>", special: false } });
    expect(changed.encode("<|im_start|>")).toEqual([start]);
    expect(changed.vocabSize).toBe(next);
    expect(changed.specialTokens).not.toContain("<|im_start|>");
  });

  test("a word of the vocabulary becomes special when it is named, with its own id", () => {
    const word = "umber";
    const id = tokenizer.idOf(word);
    const configs = [{ eos_token: word }, { additional_special_tokens: [word] }, { bos_token: { content: word } }];
    for (const named of configs.map(load)) {
      expect(named.encodeWithSpecials(word)).toEqual([id]);
      expect(named.encode(word)).not.toContain(id);
      expect(named.decode(named.encode(word))).toBe(word);
    }
  });

  test.each([3, 2000])("a new token whose id %i is not the next free one is refused", (id) => {
    const message = `lists "<x>" as ${id}, and the next free id is ${next}. Fix: correct the id`;
    expect(() => listed({ [id]: { ...flags, content: "<x>" } })).toThrow(message);
  });
});
