/** The countdown task: solvable problems, an evaluator that agrees with JavaScript's, and what no trick is paid for. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Prompt } from "../../src/grpo/environment.ts";
import { countdown, drawProblem } from "../../src/grpo/environments/countdown.ts";
import { parseExpression } from "../../src/grpo/environments/expression.ts";
import { seededRandom } from "../../src/random.ts";

interface Data { readonly numbers: number[]; readonly target: number }
const dataOf = ({ data }: Prompt): Data => data as Data;
const { correct, format } = countdown.rewards;

describe("problems", () => {
  const training = countdown.prompts(0, 400, 9);
  const heldOut = countdown.heldOut();

  test("have three or four numbers and a target", () => {
    for (const prompt of [...training, ...heldOut]) {
      const { numbers, target } = dataOf(prompt);
      expect([3, 4]).toContain(numbers.length);
      expect(numbers.every((number) => Number.isInteger(number) && number >= 1 && number <= 99)).toBe(true);
      expect(target >= 10 && target <= 99).toBe(true);
      expect(prompt.messages[0]!.content).toContain(`the numbers ${numbers.join(", ")} to make ${target}.`);
    }
    expect(new Set(training.map(({ id }) => id)).size).toBeGreaterThan(395);
  });

  test("are made from a solution, of all four operations, which is paid", () => {
    const random = seededRandom(1);
    const problems = Array.from({ length: 400 }, () => drawProblem(random));
    for (const { solution, ...data } of problems) {
      expect(correct({ id: "p", messages: [], data }, `<answer>${solution}</answer>`), solution).toBe(1);
    }
    const operators = problems.flatMap(({ solution }) => solution.match(/[+\-*/]/g)!);
    for (const operator of "+-*/") expect(operators.filter((each) => each === operator).length).toBeGreaterThan(20);
  });

  test("100 are held out; the same numbers and target in another order would be too", () => {
    expect(heldOut).toHaveLength(100);
    const keyOf = (prompt: Prompt): string => {
      const { numbers, target } = dataOf(prompt);
      return `${numbers.toSorted((a, b) => a - b).join()}=${target}`;
    };
    const keys = new Set(heldOut.map(keyOf));
    expect(training.filter((prompt) => keys.has(keyOf(prompt)))).toEqual([]);
  });
});

describe("rewards, for 40 from 3, 5 and 25", () => {
  const prompt: Prompt = { id: "p", messages: [], data: { numbers: [3, 5, 25], target: 40 } };
  test.each([
    // [reply, correct, format]
    ["<answer>(3 + 5) * 5</answer>", 0, 1], // a number used twice, another not at all
    ["<answer>25 + 3 * 5</answer>", 1, 1],
    ["<answer> 3*5+25\n</answer>", 1, 1],
    ["Three times five, <think> or so. <answer>5 * 3 + 25</answer>", 1, 1],
    ["<answer>25 - -3 * 5</answer>", 1, 1],
    ["<answer>25 + 3 + 5</answer>", 0, 1],
    ["<answer>25 + 3 * 5</answer><answer>25 + 3 * 5</answer>", 0, 0], // the answer repeated
    ["<answer>25 + 3 + 5</answer><answer>25 + 3 * 5</answer>", 0, 0], // several answers
    ["<answer><answer>25 + 3 * 5</answer></answer>", 0, 0],
    ["<answer>40</answer>", 0, 1], // the target itself
    ["<answer>40 + 0 * 3 * 5 * 25</answer>", 0, 1], // a number that was not given
    ["<answer>25 + 3 * 5 = 40</answer>", 0, 0],
    ["25 + 3 * 5", 0, 0], // right, outside the tag
    ["25 + 3 * 5 <answer></answer>", 0, 0],
    ["25 + 3 * 5 <answer>see above</answer>", 0, 0],
    ["<answer>25 + 3 * 5", 0, 0],
    ["</answer>25 + 3 * 5<answer>", 0, 0],
    ["<ANSWER>25 + 3 * 5</ANSWER>", 0, 0],
    ["<answer>25 + 3 * 5 / 1</answer>", 0, 1],
    ["<answer>25 / (3 - 3) + 5</answer>", 0, 1], // division by zero
    ["<answer>25 + 3 ** 5</answer>", 0, 0],
    ["<answer>25 + 3 * 5; process.exit()</answer>", 0, 0],
    ["<answer>25 + 3 × 5</answer>", 0, 0],
    ["<answer>2５ + 3 * 5</answer>", 0, 0],
    ["<answer>2 5 + 3 * 5</answer>", 0, 0],
    ["<answer>253 5</answer>", 0, 0],
  ])("%s", (text, wantCorrect, wantFormat) => {
    expect([correct(prompt, text), format(prompt, text)]).toEqual([wantCorrect, wantFormat]);
    expect(countdown.isCorrect(prompt, text)).toBe(wantCorrect === 1);
  });
});

describe("parseExpression", () => {
  test("is exact where floats are not", () => {
    expect(parseExpression("1 / 3 * 3")!.value).toEqual([3, 3]);
    const [numerator, denominator] = parseExpression("49 * (1 / 49)")!.value; // 0.9999999999999999 in floats
    expect(numerator).toBe(denominator);
    expect(parseExpression("1 / (2 - 2) * 0")!.value[0]).toBeNaN();
    expect(parseExpression("5 / (1 / 0)")!.value[0]).toBeNaN();
  });

  test.each(["", " ", "()", "1 +", "* 1", "1 2", "(1", "1)", "+1", "1.5", "1e3", "x", "1//2", "--", "1 + (", ")1("])(
    "%j is none", (text) => {
      expect(parseExpression(text)).toBeNull();
    },
  );

  test("takes at most 200 characters", () => {
    expect(parseExpression(`${"1+".repeat(99)}10`)!.numbers).toHaveLength(100);
    expect(parseExpression(`${"1+".repeat(100)}1`)).toBeNull();
  });

  test("agrees with JavaScript on random expressions", () => {
    const { expression } = fc.letrec<{ expression: string }>((tie) => ({
      expression: fc.oneof(
        { depthSize: "small", withCrossShrink: true },
        fc.nat(20).map(String),
        fc.tuple(tie("expression"), fc.constantFrom(..."+-*/"), tie("expression")).map((parts) => parts.join(" ")),
        tie("expression").map((inner) => `(${inner})`),
        tie("expression").map((inner) => `-(${inner})`),
      ),
    }));
    fc.assert(fc.property(expression.filter((text) => text.length <= 200), (text) => {
      const want = new Function(`return ${text}`)() as number; // digits and operators of our own making
      const [numerator, denominator] = parseExpression(text)!.value;
      if (Number.isNaN(numerator)) expect(Number.isFinite(want) && !text.includes("/")).toBe(false);
      else expect(numerator / denominator).toBeCloseTo(want, 6);
    }), { numRuns: 300, seed: 1 });
  });
});
