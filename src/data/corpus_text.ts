/**
 * Cleaning of real dialogue text: one turn at a time (cleanTurn), then cutting a conversation into short windows
 * (splitIntoWindows).
 *
 * A model of one or two million parameters that sees a few million tokens cannot afford noise, so the rules are strict:
 * a turn is either brought into one plain style (ASCII, single spaces, capital letter first, end mark last) or dropped.
 * Dropping a turn cuts the conversation there, because the turns around it no longer answer each other.
 */

/** Longer turns are dropped: about 45 tokens with a 2000 entry vocabulary. */
export const MAX_TURN_CHARACTERS = 200;

/** Windows have at most this many turns and always an even number of them, so each ends with the assistant. */
const MAX_WINDOW_TURNS = 4;

const ASCII_EQUIVALENTS: readonly (readonly [RegExp, string])[] = [
  [/[\u2018\u2019\u201a\u2032\u00b4`]/g, "'"],
  [/[\u201c\u201d\u201e\u2033]|''/g, '"'],
  [/[\u2010-\u2015\u2212]/g, "-"],
  [/\u2026/g, "..."],
  [/[\u00e8-\u00eb]/g, "e"],
  [/[\u00e0-\u00e4]/g, "a"],
  [/\u00f1/g, "n"],
];

/** Everything else (emoji, markup, other scripts, code) marks text that is not plain conversation. */
const PLAIN_TEXT = /^[A-Za-z0-9 .,!?'"$%&+=/:;()-]+$/;

/** Crude or adult words; a small model repeats whatever it has seen. Matched as whole-word beginnings. */
const UNWANTED = new RegExp(
  "\\b(fuck|shit|bitch|bastard|asshole|damn|crap|porn|rape|rapist|nazi|whore|slut|nigg|fag|retard|suicid|sex|" +
    "nude|naked|cocaine|heroin|kill|murder|stupid|idiot|racis|terroris|hitler|boob|dick\\b|penis|vagina|hell\\b)",
  "i",
);

/** Telephone numbers: personal data, and digits without meaning. */
const TELEPHONE = /\d{3}[-. )]+\d{3}[-. ]?\d{4}/;

const QUESTION_START =
  /^(who|what|where|when|why|how|which|whose|do|does|did|is|are|was|were|can|could|would|will|should|have you|has)\b/i;

/**
 * One turn in the house style, or null where it must be dropped: too long, empty, not plain text, shouted in capitals,
 * unwanted language, or a telephone number. Lower-case sources get their sentence starts and the pronoun "I"
 * capitalised, and a missing end mark is added ("?" after a question word, otherwise ".").
 */
export function cleanTurn(raw: string): string | null {
  let text = raw;
  for (const [pattern, replacement] of ASCII_EQUIVALENTS) text = text.replace(pattern, replacement);
  text = text
    .replace(/\s+/g, " ")
    .trim()
    .replace(/ +([.,!?;:])(?=[\s.,!?;:]|$)/g, "$1")
    .replace(/([!?])[!?.]+/g, "$1")
    .replace(/\.{2,}/g, "...")
    .replace(/([.!?])([A-Z][a-z])/g, "$1 $2");
  if (text.length === 0 || text.length > MAX_TURN_CHARACTERS) return null;
  if (!PLAIN_TEXT.test(text) || UNWANTED.test(text) || TELEPHONE.test(text)) return null;

  const letters = text.replace(/[^A-Za-z]/g, "");
  if (letters.length < 2) return null;
  const capitals = text.replace(/[^A-Z]/g, "").length;
  if (letters.length > 8 && capitals > 0.5 * letters.length) return null;

  text = text
    .replace(/\bi(?=$|[ ,.!?']|'m|'ve|'ll|'d)/g, (match, offset: number, whole: string) =>
      whole[offset - 1] === "." ? match : "I", // the second letter of "i.e." stays
    )
    .replace(/(^["'(]?|[.!?] ["'(]?)([a-z])/g, (_, before: string, letter: string) => before + letter.toUpperCase());
  if (!/[.!?]["')]?$/.test(text)) {
    text = text.replace(/[\s,;:-]+$/, "") + (QUESTION_START.test(text) ? "?" : ".");
  }
  return text;
}

/**
 * Cuts a conversation into windows of 2 or 4 turns. `turns` alternate user, assistant, user, ... from the first on;
 * null marks a dropped turn. Every window starts with a user turn, ends with an assistant turn, and has no gap.
 */
export function splitIntoWindows(turns: readonly (string | null)[]): string[][] {
  const windows: string[][] = [];
  let current: string[] = [];
  const close = (): void => {
    if (current.length > 0) windows.push(current);
    current = [];
  };
  for (let index = 0; index + 1 < turns.length; index += 2) {
    const user = turns[index] ?? null;
    const assistant = turns[index + 1] ?? null;
    if (user === null || assistant === null) {
      close();
      continue;
    }
    current.push(user, assistant);
    if (current.length >= MAX_WINDOW_TURNS) close();
  }
  close();
  return windows;
}
