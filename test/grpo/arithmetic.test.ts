/** The arithmetic task: right answers, equal shares of the kinds, and a held-out set that nothing leaks from. */
import { expect, test } from "vitest";
import type { Prompt } from "../../src/grpo/environment.ts";
import { arithmetic } from "../../src/grpo/environments/arithmetic.ts";

const { exact, format } = arithmetic.rewards;
const SIZES = { add: 80, subtract: 44, larger: 72, smaller: 72 }; // with all pairs: 100, 55, 90, 90

interface Data { readonly answer: string; readonly kind: keyof typeof SIZES }
const dataOf = (prompt: Prompt): Data => prompt.data as Data;
const textOf = (prompt: Prompt): string => prompt.messages[0]!.content;
const countBy = (values: readonly string[]): Record<string, number> => {
  const countOf = (value: string): number => values.filter((other) => other === value).length;
  return Object.fromEntries(values.map((value) => [value, countOf(value)]));
};
/** The pair of operands, the lower one first. */
const pairOf = (prompt: Prompt): string => textOf(prompt).match(/\d/g)!.toSorted().join();

// Two shuffles of the largest kind: every training problem occurs.
const training = arithmetic.prompts(0, 4 * 160, 5);
const heldOut = arithmetic.heldOut();

test("asks in these words, and knows the right answer", () => {
  const words = /^(?:What is (\d) ([+-]) (\d)\?|Which is (larger|smaller), (\d) or (\d)\?)(.*)$/;
  for (const prompt of [...training, ...heldOut]) {
    const [, a, sign, b, which, c, d, instruction] = words.exec(textOf(prompt))!;
    expect(instruction).toBe(" Answer only with the number.");
    const answer = which === undefined
      ? Number(a) + Number(b) * (sign === "+" ? 1 : -1)
      : Math[which === "larger" ? "max" : "min"](Number(c), Number(d));
    expect(dataOf(prompt).answer).toBe(String(answer));
    expect(answer).toBeGreaterThanOrEqual(0);
    expect(c === undefined || c !== d).toBe(true);
  }
});

test("kinds come in equal shares, and within a kind every problem before any comes again", () => {
  expect(countBy(training.map((prompt) => dataOf(prompt).kind))).toEqual(
    { add: 160, subtract: 160, larger: 160, smaller: 160 },
  );
  expect(countBy(arithmetic.prompts(10, 8, 5).map((prompt) => dataOf(prompt).kind))).toEqual(
    { add: 2, subtract: 2, larger: 2, smaller: 2 },
  );
  for (const [kind, size] of Object.entries(SIZES)) {
    const ids = training.filter((prompt) => dataOf(prompt).kind === kind).map(({ id }) => id);
    for (let start = 0; start + size <= ids.length; start += size) {
      expect(new Set(ids.slice(start, start + size)).size).toBe(size);
    }
    expect(new Set(ids).size).toBe(size);
    expect(ids.slice(0, size)).not.toEqual(ids.slice(size, 2 * size)); // a new order in every round
  }
  const pairsOf = (kind: string): string[] => training.filter((prompt) => dataOf(prompt).kind === kind).map(pairOf);
  expect(pairsOf("larger")).not.toEqual(pairsOf("smaller"));
});

test("a fifth of the operand pairs is held out, in every kind and order", () => {
  const pairs = new Set(heldOut.map(pairOf));
  expect([...pairs].toSorted()).toEqual(
    ["0,3", "0,8", "1,1", "1,6", "2,4", "2,9", "3,7", "4,5", "5,8", "6,6", "7,9"],
  );
  const trained = new Set(training.map(pairOf));
  expect(trained.size).toBe(55 - 11);
  expect([...trained].filter((pair) => pairs.has(pair))).toEqual([]);
});

test("the held-out prompts: as many of each kind, and the right answer stands first as often as last", () => {
  expect(countBy(heldOut.map((prompt) => dataOf(prompt).kind))).toEqual(
    { add: 11, subtract: 11, larger: 11, smaller: 11 },
  );
  for (const kind of ["larger", "smaller"]) {
    const comparisons = heldOut.filter((prompt) => dataOf(prompt).kind === kind);
    const isFirst = comparisons.filter((prompt) => textOf(prompt).includes(` ${dataOf(prompt).answer} or`));
    expect([5, 6]).toContain(isFirst.length);
  }
});

const prompt: Prompt = { id: "p", messages: [], data: { answer: "12", kind: "add" } };

test.each([
  // [reply, exact, format]
  ["12", 1, 1],
  ["13", 0, 1],
  ["012", 0, 1],
  ["12 12", 0, 0], // the answer repeated
  ["1212", 0, 1],
  ["11 12 13", 0, 0], // several answers
  ["What is 5 + 7? 12", 0, 0], // the right number quoted
  ["The answer is 12.", 0, 0],
  ["12.", 0, 0],
  ["12.0", 0, 0],
  ["12\n", 0, 0],
  [" 12", 0, 0],
  ["+12", 0, 0],
  ["-12", 0, 0],
  ["1,2", 0, 0],
  ["twelve", 0, 0],
  ["0xc", 0, 0],
  ["1.2e1", 0, 0],
  ["１２", 0, 0],
  ["١٢", 0, 0],
  ["", 0, 0],
])("%j is paid %d and %d", (text, wantExact, wantFormat) => {
  expect([exact(prompt, text), format(prompt, text)]).toEqual([wantExact, wantFormat]);
  expect(arithmetic.isCorrect(prompt, text)).toBe(wantExact === 1);
});
