/** Text of unknown origin, such as a model's files and replies, made fit for a terminal. */

/**
 * What could command a terminal (control characters, escape sequences) or turn its lines around (marks of writing
 * direction) shows as \x1b or \u{202e}. Line breaks and tabs stay.
 */
export function visible(text: string): string {
  return text.replace(/(?![\n\t])[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu, (character) => {
    const code = character.codePointAt(0)!.toString(16);
    return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : `\\u{${code}}`;
  });
}

/** `visible`, on one line. */
export function visibleLine(text: string): string {
  return visible(text).replace(/[\n\t]+/g, " ");
}
