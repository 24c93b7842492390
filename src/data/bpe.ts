// Training of a byte-level BPE tokenizer (Sennrich et al. 2016, on bytes as in GPT-2), and the files that describe it.
//
// Text is cut into pieces by a fixed regular expression, each piece starts as its UTF-8 bytes, and the most frequent
// adjacent pair of tokens is merged into a new token until the vocabulary is full. Merges never cross pieces. The
// expression is Qwen2's: it takes digits one at a time, so every digit is a token of its own and a number is spelt.
//
// Departures from the textbook loop, for speed only: equal pieces are counted once with their frequency, pair counts
// are updated for the pieces that a merge touches instead of being recounted, and the best pair comes from a heap
// whose stale entries are corrected when they surface. Ties go to the pair with the smallest ids, so the result
// depends on the piece frequencies alone, not on the order of the texts.

import { BYTE_TO_CHAR } from "./byte_level.ts";
import { SplitPreTokenizer } from "./hf_tokenizers.ts";

/** Contractions | word with one leading space or sign | one digit | punctuation run | line breaks | other space. */
const SPLIT_PATTERN = [
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
  "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
  "\\p{N}",
  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*",
  "\\s*[\\r\\n]+",
  "\\s+(?!\\S)",
  "\\s+",
].join("|");

const SPLIT = { type: "Split", pattern: { Regex: SPLIT_PATTERN }, behavior: "Isolated", invert: false } as const;

export interface BpeOptions {
  /** Base bytes + merges + special tokens; the result is smaller when the text runs out of pairs. */
  vocabSize: number;
  /** Given the last ids, in this order. They take no part in training and are recognised whole when encoding. */
  specialTokens: readonly string[];
  /** Pairs seen less often are not merged. Default 2. */
  minPairCount?: number;
}

/** The Hugging Face `tokenizer.json`, as far as a byte-level BPE tokenizer uses it. */
export interface TokenizerJson {
  version: "1.0";
  truncation: null;
  padding: null;
  added_tokens: AddedTokenJson[];
  normalizer: null;
  pre_tokenizer: object;
  post_processor: object;
  decoder: object;
  model: BpeModelJson;
}

export interface AddedTokenJson {
  id: number;
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  special: boolean;
}

export interface BpeModelJson {
  type: "BPE";
  dropout: null;
  unk_token: null;
  continuing_subword_prefix: string;
  end_of_word_suffix: string;
  fuse_unk: boolean;
  byte_fallback: boolean;
  ignore_merges: boolean;
  /** Token (in byte-level characters) -> id. */
  vocab: Record<string, number>;
  /** "left right", in the order learned, which is the order of application. */
  merges: string[];
}

/**
 * Learns a vocabulary from `texts`. Ids: the 256 bytes in the order of their characters, then the merged tokens in the
 * order learned, then the special tokens. Throws RangeError when `vocabSize` cannot hold the bytes and specials.
 */
export function trainBpe(texts: Iterable<string>, options: BpeOptions): TokenizerJson {
  const { vocabSize, specialTokens, minPairCount = 2 } = options;
  if (new Set(specialTokens).size !== specialTokens.length || specialTokens.includes("")) {
    throw new RangeError(`trainBpe: special tokens must be different and not empty, got ${specialTokens.join(", ")}`);
  }
  if (!Number.isSafeInteger(vocabSize) || vocabSize < 256 + specialTokens.length) {
    throw new RangeError(`trainBpe: vocabSize ${vocabSize} is below 256 bytes + ${specialTokens.length} specials`);
  }
  const tokens = [...BYTE_TO_CHAR].sort();
  const pieces = countPieces(texts, tokens);
  const merges = learnMerges(pieces, tokens, vocabSize - specialTokens.length, minPairCount);
  return describeTokenizer(tokens, merges, specialTokens);
}

/** One distinct piece of text: its current tokens, and how often the text contains it. */
interface Piece {
  ids: number[];
  count: number;
}

function countPieces(texts: Iterable<string>, alphabet: readonly string[]): Piece[] {
  const counts = new Map<string, number>();
  // The library's splitter, not our own expression: encoding uses it, and the two must cut alike.
  const splitter = new SplitPreTokenizer(SPLIT);
  for (const text of texts) {
    for (const piece of splitter.pre_tokenize_text(text)) counts.set(piece, (counts.get(piece) ?? 0) + 1);
  }
  const idOfByte = BYTE_TO_CHAR.map((character) => alphabet.indexOf(character));
  const encoder = new TextEncoder();
  return [...counts].map(([text, count]) => {
    return { ids: Array.from(encoder.encode(text), (byte) => idOfByte[byte]!), count };
  });
}

/** Appends merged tokens to `tokens` until it holds `targetSize`; returns the merges as "left right". */
function learnMerges(pieces: Piece[], tokens: string[], targetSize: number, minPairCount: number): string[] {
  const pairKey = (left: number, right: number): number => left * targetSize + right;
  const pairCounts = new Map<number, number>();
  /** Pieces that contain a pair, or did once: a merge looks again before it changes one. */
  const piecesWithPair = new Map<number, Set<Piece>>();
  const heap: Candidate[] = [];

  function countPairs(piece: Piece, sign: 1 | -1): void {
    for (let i = 1; i < piece.ids.length; i++) {
      const key = pairKey(piece.ids[i - 1]!, piece.ids[i]!);
      pairCounts.set(key, (pairCounts.get(key) ?? 0) + sign * piece.count);
      if (sign < 0) continue;
      const holders = piecesWithPair.get(key);
      if (holders === undefined) piecesWithPair.set(key, new Set([piece]));
      else holders.add(piece);
    }
  }

  /** The most frequent pair, or undefined when none is frequent enough. */
  function popBestPair(): number | undefined {
    for (let best = popHeap(heap); best !== undefined; best = popHeap(heap)) {
      const count = pairCounts.get(best.key) ?? 0;
      if (count === best.count) return best.key;
      if (count >= minPairCount && count < best.count) pushHeap(heap, { key: best.key, count });
    }
    return undefined;
  }

  for (const piece of pieces) countPairs(piece, 1);
  for (const [key, count] of pairCounts) if (count >= minPairCount) pushHeap(heap, { key, count });

  const merges: string[] = [];
  while (tokens.length < targetSize) {
    const best = popBestPair();
    if (best === undefined) break;
    const left = Math.floor(best / targetSize);
    const right = best % targetSize;
    merges.push(`${tokens[left]} ${tokens[right]}`);
    // The spelling is new: merges apply to all text and from the left, so a stretch that became one token was cut the
    // same way wherever it stands, and only one pair can ever have completed it.
    const merged = tokens.push(tokens[left]! + tokens[right]!) - 1;

    const grown = new Set<number>();
    for (const piece of piecesWithPair.get(best) ?? []) {
      countPairs(piece, -1);
      piece.ids = mergePair(piece.ids, left, right, merged);
      countPairs(piece, 1);
      for (let i = 1; i < piece.ids.length; i++) {
        const [a, b] = [piece.ids[i - 1]!, piece.ids[i]!];
        if (a === merged || b === merged) grown.add(pairKey(a, b));
      }
    }
    piecesWithPair.delete(best);
    for (const key of grown) {
      const count = pairCounts.get(key)!;
      if (count >= minPairCount) pushHeap(heap, { key, count });
    }
  }
  return merges;
}

/** Replaces every `left, right` in `ids`, from left to right, by `merged`. */
function mergePair(ids: readonly number[], left: number, right: number, merged: number): number[] {
  const result: number[] = [];
  for (let i = 0; i < ids.length; i++) {
    if (ids[i] === left && ids[i + 1] === right) {
      result.push(merged);
      i++;
    } else {
      result.push(ids[i]!);
    }
  }
  return result;
}

/** A pair and its count when it was put on the heap; the count in the table may have changed since. */
interface Candidate {
  key: number;
  count: number;
}

function comesBefore(a: Candidate, b: Candidate): boolean {
  return a.count > b.count || (a.count === b.count && a.key < b.key);
}

function pushHeap(heap: Candidate[], item: Candidate): void {
  let child = heap.push(item) - 1;
  while (child > 0) {
    const parent = (child - 1) >> 1;
    if (!comesBefore(item, heap[parent]!)) break;
    heap[child] = heap[parent]!;
    child = parent;
  }
  heap[child] = item;
}

function popHeap(heap: Candidate[]): Candidate | undefined {
  const best = heap[0];
  const item = heap.pop();
  if (item === undefined || heap.length === 0) return best;
  let parent = 0;
  for (;;) {
    let child = 2 * parent + 1;
    if (child + 1 < heap.length && comesBefore(heap[child + 1]!, heap[child]!)) child++;
    if (child >= heap.length || !comesBefore(heap[child]!, item)) break;
    heap[parent] = heap[child]!;
    parent = child;
  }
  heap[parent] = item;
  return best;
}

function describeTokenizer(tokens: string[], merges: string[], specialTokens: readonly string[]): TokenizerJson {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specialTokens.map((content, index) => ({
      id: tokens.length + index,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    // Qwen2 normalises to NFC; without it decode(encode(text)) is the text itself.
    normalizer: null,
    pre_tokenizer: { type: "Sequence", pretokenizers: [SPLIT, byteLevel] },
    post_processor: byteLevel,
    decoder: byteLevel,
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: "",
      end_of_word_suffix: "",
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges,
    },
  };
}

export interface TokenizerConfigOptions {
  /** Ends a turn, and generation. */
  eosToken: string;
  padToken: string;
  chatTemplate: string;
  /** In tokens: the model's context length. */
  modelMaxLength: number;
}

/**
 * The content of `tokenizer_config.json` that goes with `tokenizer`. The class is the generic one, which takes
 * tokenizer.json as it is; the model-specific class would put Qwen2's own normaliser in. Throws RangeError when the
 * end or padding token is not one of the special tokens.
 */
export function tokenizerConfig(tokenizer: TokenizerJson, options: TokenizerConfigOptions): Record<string, unknown> {
  const { eosToken, padToken, chatTemplate, modelMaxLength } = options;
  const specials = tokenizer.added_tokens.map((token) => token.content);
  for (const token of [eosToken, padToken]) {
    if (!specials.includes(token)) throw new RangeError(`tokenizerConfig: ${token} is not among ${specials}`);
  }
  return {
    add_bos_token: false,
    add_prefix_space: false,
    added_tokens_decoder: Object.fromEntries(tokenizer.added_tokens.map(({ id, ...token }) => [id, token])),
    additional_special_tokens: specials,
    bos_token: null,
    chat_template: chatTemplate,
    clean_up_tokenization_spaces: false,
    eos_token: eosToken,
    errors: "replace",
    model_max_length: modelMaxLength,
    pad_token: padToken,
    split_special_tokens: false,
    tokenizer_class: "PreTrainedTokenizerFast",
    unk_token: null,
  };
}
