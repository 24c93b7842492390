/**
 * Seeded randomness and the smallest building blocks for the generated dialogues. Host-side only and independent of the
 * GPU's random numbers: the same seed gives the same text on every machine.
 */
import type { Dialogue } from "./corpus.ts";

/** An item and its relative weight. */
export type Weighted<T> = readonly [weight: number, item: T];

export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
  /** Uniform integer in [low, high], both included. */
  integer(low: number, high: number): number;
  /** True with the given probability. */
  chance(probability: number): boolean;
  /** One item, uniformly. Throws on an empty list. */
  pick<T>(items: readonly T[]): T;
  /** One item, with probability proportional to its weight. Throws on an empty list. */
  pickWeighted<T>(items: readonly Weighted<T>[]): T;
  /** `count` different items in random order (all of them if there are fewer). */
  sample<T>(items: readonly T[], count: number): T[];
}

/** Mulberry32, a 32-bit generator with a state of one word: ample for choosing templates. */
export function createRandom(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const integer = (low: number, high: number): number => low + Math.floor(next() * (high - low + 1));
  const pick = <T>(items: readonly T[]): T => {
    if (items.length === 0) throw new Error("pick: the list is empty; give it at least one item");
    return items[integer(0, items.length - 1)] as T;
  };
  return {
    next,
    integer,
    chance: (probability) => next() < probability,
    pick,
    pickWeighted: <T>(items: readonly Weighted<T>[]): T => {
      const last = items.at(-1);
      if (last === undefined) throw new Error("pickWeighted: the list is empty; give it at least one item");
      let remaining = next() * items.reduce((sum, [weight]) => sum + weight, 0);
      for (const [weight, item] of items) {
        remaining -= weight;
        if (remaining < 0) return item;
      }
      return last[1]; // rounding may leave remaining at exactly 0
    },
    sample: <T>(items: readonly T[], count: number): T[] => {
      const rest = [...items];
      const chosen: T[] = [];
      while (chosen.length < count && rest.length > 0) {
        chosen.push(rest.splice(integer(0, rest.length - 1), 1)[0] as T);
      }
      return chosen;
    },
  };
}

/** One user turn and its answer. */
export function exchange(user: string, assistant: string): Dialogue {
  return [
    { role: "user", content: user },
    { role: "assistant", content: assistant },
  ];
}

/** "apple" -> "Apple". */
export function capitalize(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** "apple" -> "an apple"; goes by the first letter, so keep words like "hour" or "uniform" out of the tables. */
export function withArticle(noun: string): string {
  return `${/^[aeiou]/i.test(noun) ? "an" : "a"} ${noun}`;
}

const SMALL_NUMBERS = [
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
  "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
];
const TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/** The number in words, "twenty-one". Throws outside 0 to 100. */
export function numberWord(value: number): string {
  if (!Number.isInteger(value) || value < 0 || value > 100) {
    throw new Error(`numberWord: ${value} is not an integer from 0 to 100`);
  }
  if (value === 100) return "one hundred";
  if (value < 20) return SMALL_NUMBERS[value] as string;
  const ones = value % 10;
  return `${TENS[Math.floor(value / 10)] as string}${ones === 0 ? "" : `-${SMALL_NUMBERS[ones] as string}`}`;
}
