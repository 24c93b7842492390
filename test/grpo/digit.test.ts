/** The digit task: its prompt, the ten rewards, and that nothing but one ASCII digit is paid. */
import { expect, test } from "vitest";
import { digit } from "../../src/grpo/environments/digit.ts";

const [prompt] = digit.prompts();

test("asks one question, the reference experiment's", () => {
  expect(digit.prompts()).toHaveLength(1);
  expect(prompt!.messages).toEqual([
    {
      role: "user",
      content: "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer.",
    },
  ]);
});

test("pays 1 for 5 and a ninth less for each step away", () => {
  const rewards = [..."0123456789"].map((text) => digit.rewards.closeness(prompt!, text));
  const want = [4, 5, 6, 7, 8, 9, 8, 7, 6, 5];
  rewards.forEach((reward, i) => expect(reward).toBeCloseTo(want[i]! / 9, 15));
  expect(digit.rewards.closeness(prompt!, "5")).toBe(1);
});

const worthless = [
  "", " ", "5 ", " 5", "5\n", "\n5", "10", "55", "05", "-5", "+5", "5.", "5.0", "five", "The number is 5.", "**5**",
  "²", "⁵", "٥", "٣", "५", "５", "𝟓", "Ⅴ", "⑤", "5\u0000", "5\u200b", "\ufeff5",
];

test.each(worthless.map((text) => [JSON.stringify(text), text] as const))("pays nothing for %s", (_, text) => {
  expect(digit.rewards.closeness(prompt!, text)).toBe(0);
});
