/**
 * Countdown (after TinyZero, Pan et al. 2025): make a target from three or four numbers, using each exactly once.
 *
 *   correct  1 when the answer is an expression of exactly these numbers that equals the target
 *   format   1 when there is exactly one <answer>...</answer>, and an expression in it, right or not
 *
 * Departs from TinyZero: of several answers none counts (there the last one does), and problems are made here, each
 * from a solution. A tenth of all problems, by a hash of numbers and target, is held out for evaluation.
 */
import { seededRandom } from "../../random.ts";
import type { Environment, Prompt } from "../environment.ts";
import { parseExpression, type Expression } from "./expression.ts";
import { mixedSeed } from "./sequence.ts";

const MAX_NUMBER = 99;
const [MIN_TARGET, MAX_TARGET] = [10, 99];
const HELD_OUT_COUNT = 100;
/** The evaluation set is the same for every seed of a run. */
const HELD_OUT_SEED = 0;

interface Problem {
  readonly numbers: readonly number[];
  readonly target: number;
}

/** Combines random numbers by random operations until the result is a target; the combination is a solution. */
export function drawProblem(random: () => number): Problem & { readonly solution: string } {
  const below = (limit: number): number => Math.floor(random() * limit);
  for (;;) {
    const numbers = Array.from({ length: 3 + below(2) }, () => 1 + below(MAX_NUMBER));
    const terms = numbers.map((value) => ({ value, text: String(value) }));
    const take = (): { value: number; text: string } => terms.splice(below(terms.length), 1)[0]!;
    while (terms.length > 1) {
      const [left, right] = [take(), take()];
      const operator = "+-*/"[below(4)]!;
      const value = apply(operator, left.value, right.value);
      terms.push({ value, text: `(${left.text} ${operator} ${right.text})` });
    }
    const { value: target, text } = terms[0]!;
    if (Number.isInteger(target) && target >= MIN_TARGET && target <= MAX_TARGET) {
      return { numbers, target, solution: text.slice(1, -1) };
    }
  }
}

/** NaN, which is no target, where the result would not be a positive integer. */
function apply(operator: string, left: number, right: number): number {
  if (operator === "+") return left + right;
  if (operator === "-") return left > right ? left - right : NaN;
  if (operator === "*") return left * right;
  return left % right === 0 ? left / right : NaN;
}

function isHeldOut({ numbers, target }: Problem): boolean {
  return mixedSeed(...numbers.toSorted((a, b) => a - b), target) % 10 === 0;
}

function problemAt(position: number, seed: number, heldOut: boolean): Problem {
  const random = seededRandom(mixedSeed(seed, Number(heldOut), position));
  for (;;) {
    const { numbers, target } = drawProblem(random);
    const problem = { numbers, target };
    if (isHeldOut(problem) === heldOut) return problem;
  }
}

function promptOf(problem: Problem): Prompt {
  const { numbers, target } = problem;
  const content =
    `Use the numbers ${numbers.join(", ")} to make ${target}. Use each number exactly once. You may add (+), ` +
    "subtract (-), multiply (*) and divide (/), and use parentheses. Think first if you like. Then write one " +
    "expression, and nothing else, between <answer> and </answer>, for example <answer>(1 + 2) * 3</answer>.";
  return { id: `countdown/${numbers.join(",")}=${target}`, messages: [{ role: "user", content }], data: problem };
}

/** What stands between the only <answer> of a reply and the only </answer>. Linear in the reply's length. */
function answerOf(text: string): Expression | null {
  const [opening, closing] = [text.split("<answer>", 3), text.split("</answer>", 3)];
  if (opening.length !== 2 || closing.length !== 2) return null;
  const end = opening[1]!.indexOf("</answer>");
  return end < 0 ? null : parseExpression(opening[1]!.slice(0, end));
}

function isSolved({ data }: Prompt, text: string): boolean {
  const { numbers, target } = data as Problem;
  const answer = answerOf(text);
  if (answer === null) return false;
  const inOrder = (values: readonly number[]): string => values.toSorted((a, b) => a - b).join();
  return inOrder(answer.numbers) === inOrder(numbers) && answer.value[0] === target * answer.value[1];
}

export const countdown = {
  name: "countdown",
  prompts: (from, count, seed) => {
    return Array.from({ length: count }, (_, i) => promptOf(problemAt(from + i, seed, false)));
  },
  heldOut: () => {
    return Array.from({ length: HELD_OUT_COUNT }, (_, i) => promptOf(problemAt(i, HELD_OUT_SEED, true)));
  },
  rewards: {
    correct: (prompt, text) => Number(isSolved(prompt, text)),
    format: (_prompt, text) => Number(answerOf(text) !== null),
  },
  weights: { correct: 1, format: 0.1 },
  isCorrect: isSolved,
} satisfies Environment;
