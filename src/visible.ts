/** Text of unknown origin, such as a model's files and replies, made fit for a terminal. */

/** Control characters, which command a terminal, and marks of writing direction, which turn its lines around. */
const UNSAFE = /[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/gu;

/** Unsafe characters show as \x1b or \u{202e}. Line breaks and tabs stay. */
export function visible(text: string): string {
  return text.replace(UNSAFE, (character) => {
    if (character === "\n" || character === "\t") return character;
    const code = character.codePointAt(0)!.toString(16);
    return code.length <= 2 ? `\\x${code.padStart(2, "0")}` : `\\u{${code}}`;
  });
}

/** `visible`, on one line. */
export function visibleLine(text: string): string {
  return visible(text).replace(/[\n\t]+/g, " ");
}

/** JSON.stringify, on one line, with the same characters escaped as JSON allows: whoever parses it gets the same value. */
export function visibleJson(value: unknown): string {
  return JSON.stringify(value).replace(UNSAFE, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}
