/**
 * Markup from text that may hold anything. Whatever goes into an `html` template is escaped unless it came out of one,
 * so that nothing a model writes can become part of the page.
 */

/** A key that no JSON file can bring along: an object read from a file never passes for markup. */
const MARKUP = Symbol("markup");

export interface Html {
  readonly [MARKUP]: string;
}

/** Null, undefined and false leave nothing, so that `condition && html...` works. */
export type Content = Html | string | number | null | undefined | false | readonly Content[];

/** A template whose values are escaped. Attribute values must stand in quotes. */
export function html(strings: TemplateStringsArray, ...values: readonly Content[]): Html {
  return { [MARKUP]: strings.reduce((all, part, i) => all + markupOf(values[i - 1]) + part) };
}

/** Text that is already markup: the style sheet. Never anything from a run. */
export function trusted(markup: string): Html {
  return { [MARKUP]: markup };
}

/** The finished markup. */
export function textOf(content: Html): string {
  return content[MARKUP];
}

function markupOf(content: Content): string {
  if (content === null || content === undefined || content === false) return "";
  if (typeof content === "string") return escapeHtml(content);
  if (typeof content === "number") return String(content);
  if (MARKUP in content) return content[MARKUP];
  return content.map(markupOf).join("");
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "`": "&#96;",
};

/**
 * Control characters but for line feed and tab; format characters, among them those that turn the direction of text,
 * but for the two that join letters and emoji; halves of surrogate pairs; separators that some readers take for line
 * ends.
 */
const INVISIBLE = /[^\P{Cc}\n\t]|[^\P{Cf}\u200c\u200d]|[\p{Cs}\u2028\u2029]/gu;

/** Safe in text and in quoted attributes. What could not be seen is shown as an escape, such as \u202e. */
export function escapeHtml(text: string): string {
  return text
    .replace(/[&<>"'`]/g, (character) => ENTITIES[character]!)
    .replace(INVISIBLE, (character) => {
      const code = character.codePointAt(0)!.toString(16);
      return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
    });
}

/**
 * The text, or its beginning and end with the number of characters (UTF-16 units) left out between them. The end is
 * kept because that is where many tasks want the answer.
 */
export function cut(text: string, limit: number): { start: string; omitted: number; end: string } {
  if (text.length <= limit) return { start: text, omitted: 0, end: "" };
  const start = text.slice(0, Math.ceil(0.75 * limit)).replace(/[\ud800-\udbff]$/, ""); // no half of a pair
  const end = text.slice(-Math.floor(0.25 * limit)).replace(/^[\udc00-\udfff]/, "");
  return { start, omitted: text.length - start.length - end.length, end };
}

/** `cut` on one line. */
export function brief(text: string, limit: number): string {
  const { start, omitted, end } = cut(text, limit);
  return omitted === 0 ? text : `${start} … (${count(omitted)} characters) … ${end}`;
}

/** "12,345"; the same everywhere, whatever the machine's language. */
export function count(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** "0.991", "12.9", "1,234", "1.2e-7". */
export function figure(value: number): string {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e7) return value.toExponential(1).replace("e+", "e");
  if (size >= 100) return count(value);
  return value.toFixed(size >= 10 ? 1 : 3);
}

/** `figure` with a minus sign as wide as a digit. */
export function signed(value: number): string {
  return figure(value).replaceAll("-", "\u2212");
}

/** "98.4%" of 0.984. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1).replace(".0", "")}%`;
}

/** "9.3 s", "12 min 5 s", "3 h 20 min". */
export function duration(seconds: number): string {
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${count(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}
