// The pre-tokenizer of tokenizer.json, in stages that @huggingface/tokenizers runs as the original in Rust does.
//
// Left to itself the library differs from the original: its Digits stage knows 0 to 9 only, and its ByteLevel stage has
// JavaScript's \s, with U+FEFF and without U+0085. In the expression of a Split stage it takes care of both, so the
// others are rewritten to that.

import { asObject, TokenizerError } from "./tokenizer_error.ts";
import type { JsonObject } from "./tokenizer_error.ts";

/** Contractions | word | number | punctuation run, each with a leading space | space that leaves one to the next. */
const GPT2_SPLIT = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** A space in front of a piece that begins with none. */
const PREFIX_SPACE = { type: "Replace", pattern: { Regex: "\\A(?=[^ ])" }, content: " " };

const FIX = "choose another model";

/**
 * The stages in order, sequences within sequences unfolded. Throws TokenizerError for a stage that the library would
 * run in another way than the original, or that would lose text.
 */
export function preTokenizerStages(path: string, preTokenizer: unknown): JsonObject[] {
  const stages = unfold(path, preTokenizer);
  if (!stages.some((stage) => stage["type"] === "ByteLevel")) {
    throw new TokenizerError(`tokenizer: ${path} has no ByteLevel stage in its pre_tokenizer. Fix: ${FIX}`);
  }
  return stages;
}

function unfold(path: string, value: unknown): JsonObject[] {
  if (value === null || value === undefined) return [];
  const stage = asObject(value) ?? {};
  switch (stage["type"]) {
    case "Sequence": {
      const { pretokenizers } = stage;
      return (Array.isArray(pretokenizers) ? pretokenizers : []).flatMap((item: unknown) => unfold(path, item));
    }
    case "ByteLevel": {
      const bytes = { ...stage, use_regex: false, add_prefix_space: false };
      return [
        ...(stage["add_prefix_space"] === true ? [PREFIX_SPACE] : []),
        ...(stage["use_regex"] === false ? [] : [isolate({ Regex: GPT2_SPLIT })]),
        bytes,
      ];
    }
    case "Digits": return [isolate({ Regex: stage["individual_digits"] === true ? "\\p{N}" : "\\p{N}+" })];
    case "Split": return [splitStage(path, stage)];
    default: return refuse(path, stage["type"]);
  }
}

/** Isolated: what matches and what does not are pieces alike. Removed and inverted: only what matches is a piece. */
function splitStage(path: string, { pattern, behavior, invert }: JsonObject): JsonObject {
  const { Regex: regex, String: literal } = asObject(pattern) ?? {};
  if (typeof (regex ?? literal) !== "string") return refuse(path, "Split without a pattern");
  const folded = typeof regex === "string" ? { Regex: foldLetters(regex) } : pattern;
  if (behavior === "Isolated") return isolate(folded);
  if (behavior === "Removed" && invert === true) return { type: "Split", pattern: folded, behavior, invert };
  return refuse(path, `Split, ${JSON.stringify(behavior)}`);
}

/**
 * (?i:...) in the original takes U+017F for an s and U+212A for a k, in the library it knows ASCII only. Groups and
 * escapes within are left alone.
 */
function foldLetters(regex: string): string {
  const other: Readonly<Record<string, string>> = { s: "\u017f", k: "\u212a" };
  const fold = (text: string): string => text.replace(/[sk]/gi, (letter) => letter + other[letter.toLowerCase()]!);
  return regex.replace(/\(\?i:[^()\\]*\)/g, (group) => "(?i:" + group.slice(4)
    .replace(/\[[^\]]*\]|[sk]/gi, (part) => (part.startsWith("[") ? fold(part) : `[${fold(part)}]`)));
}

function isolate(pattern: unknown): JsonObject {
  return { type: "Split", pattern, behavior: "Isolated", invert: false };
}

function refuse(path: string, stage: unknown): never {
  const name = String(stage).slice(0, 80);
  const supported = "only ByteLevel, Digits and isolating Split are supported";
  throw new TokenizerError(`tokenizer: ${path} has the pre_tokenizer stage ${name}; ${supported}. Fix: ${FIX}`);
}
