// What the readers of a tokenizer's files share.

/** Tokenizer files, or a text, that cannot be used; the message names the file. */
export class TokenizerError extends Error {
  override name = "TokenizerError";
}

export type JsonObject = Record<string, unknown>;

export function asObject(value: unknown): JsonObject | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as JsonObject) : undefined;
}
