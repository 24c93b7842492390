/**
 * Sums, differences and comparisons of the numbers 0 to 9, to be answered with the bare number: a task with right and
 * wrong answers, small enough to see that what is learned carries over to problems never trained on.
 *
 *   exact   1 when the whole reply is the answer             format  1 when it is one integer, right or not
 *
 * **Held out** for evaluation are the pairs of operands, low <= high, with (2 low + high) mod 5 = 3:
 *
 *   pair   0,3  0,8  1,1  1,6  2,4  2,9  3,7  4,5  5,8  6,6  7,9     11 of 55
 *   sum     3    8    2    7    6   11   10    9   13   12   16     all different, small and large
 *
 * In all kinds and both orders: neither 4 + 5 nor 5 + 4 nor 5 - 4 nor a comparison of the two is ever trained on.
 *
 * **Equal shares.** There are more sums than differences (a - b needs a >= b), yet every kind is asked equally often:
 * positions go round the kinds, and each kind has an endless sequence of shuffles of its own.
 */
import type { Environment, Prompt } from "../environment.ts";
import { mixedSeed, shuffledItem } from "./sequence.ts";

interface Kind {
  readonly name: string;
  readonly question: (left: number, right: number) => string;
  readonly answer: (left: number, right: number) => number;
  /** Whether the operands may be asked about in this order. */
  readonly fits: (left: number, right: number) => boolean;
}

const KINDS: readonly Kind[] = [
  {
    name: "add",
    question: (left, right) => `What is ${left} + ${right}?`,
    answer: (left, right) => left + right,
    fits: () => true,
  },
  {
    name: "subtract",
    question: (left, right) => `What is ${left} - ${right}?`,
    answer: (left, right) => left - right,
    fits: (left, right) => left >= right,
  },
  {
    name: "larger",
    question: (left, right) => `Which is larger, ${left} or ${right}?`,
    answer: Math.max,
    fits: (left, right) => left !== right,
  },
  {
    name: "smaller",
    question: (left, right) => `Which is smaller, ${left} or ${right}?`,
    answer: Math.min,
    fits: (left, right) => left !== right,
  },
];

const DIGITS = Array.from({ length: 10 }, (_, digit) => digit);
const PAIRS = DIGITS.flatMap((low) => DIGITS.slice(low).map((high) => [low, high] as const));

function isHeldOut([low, high]: readonly [number, number]): boolean {
  return (2 * low + high) % 5 === 3;
}

/** All problems of a kind about these pairs: each pair once, the larger number now first, now second; then reversed. */
function problems(kind: Kind, pairs: readonly (readonly [number, number])[]): Prompt[] {
  const oneWay = pairs.map(([low, high], i) => (i % 2 === 0 ? [low, high] : [high, low]) as [number, number]);
  const otherWay = oneWay.filter(([left, right]) => left !== right).map(([left, right]) => [right, left] as const);
  return [...oneWay, ...otherWay]
    .filter(([left, right]) => kind.fits(left, right))
    .map(([left, right]) => ({
      id: `arithmetic/${kind.name}/${left}/${right}`,
      messages: [{ role: "user", content: `${kind.question(left, right)} Answer only with the number.` }],
      data: { answer: String(kind.answer(left, right)), kind: kind.name },
    }));
}

const TRAINING = KINDS.map((kind) => problems(kind, PAIRS.filter((pair) => !isHeldOut(pair))));
const HELD_OUT = KINDS.map((kind) => problems(kind, PAIRS.filter(isHeldOut)));

function problemAt(position: number, seed: number): Prompt {
  const kind = position % KINDS.length;
  return shuffledItem(TRAINING[kind]!, Math.floor(position / KINDS.length), mixedSeed(seed, kind));
}

function isExact({ data }: Prompt, text: string): boolean {
  return text === (data as { answer: string }).answer;
}

export const arithmetic = {
  name: "arithmetic",
  prompts: (from, count, seed) => Array.from({ length: count }, (_, i) => problemAt(from + i, seed)),
  heldOut: () => {
    const perKind = Math.min(...HELD_OUT.map(({ length }) => length));
    return HELD_OUT.flatMap((prompts) => prompts.slice(0, perKind));
  },
  rewards: {
    exact: (prompt, text) => Number(isExact(prompt, text)),
    format: (_prompt, text) => Number(/^[0-9]+$/.test(text)),
  },
  weights: { exact: 1, format: 0.1 },
  isCorrect: isExact,
} satisfies Environment;
