// The part of @huggingface/tokenizers that this project uses, with types.
//
// The package's own declarations import each other without file extensions, which TypeScript's nodenext resolution
// cannot follow: every export would silently be `any`. These are its real shapes (version 0.2.0), narrowed.

import * as untyped from "@huggingface/tokenizers";

/** Cuts one text into pieces; the stages of a pre-tokenizer are such splitters, applied to each piece in turn. */
export interface PreTokenizer {
  pre_tokenize_text(text: string, options?: object): string[];
  /** The stages of a pre-tokenizer of type "Sequence". */
  tokenizers?: PreTokenizer[];
}

export interface LibraryTokenizer {
  normalizer: ((text: string) => string) | null;
  pre_tokenizer: PreTokenizer | null;
  model: {
    /** Merges each piece by itself and returns the tokens of all, in order. */
    encode(pieces: string[]): string[];
    tokens_to_ids: ReadonlyMap<string, number>;
  };
}

interface Library {
  Tokenizer: new (tokenizerJson: object, config: object) => LibraryTokenizer;
  SplitPreTokenizer: new (config: object) => PreTokenizer;
}

export const { Tokenizer: LibraryTokenizer, SplitPreTokenizer } = untyped as unknown as Library;
