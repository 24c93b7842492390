/** Advantages against numbers worked by hand, their invariances, and what is refused. */
import { describe, expect, test } from "vitest";
import { average, groupAdvantages, standardDeviation } from "../../src/grpo/advantage.ts";
import { expectClose, random } from "../support/gradcheck.ts";

const sixDigits = { rtol: 0, atol: 6e-7 };
const third = 2 / 3;

describe("by hand", () => {
  test.each<[string, number[], number, number[]]>([
    ["one of four, delta 1e-6", [1, 0, 0, 0], 1e-6, [1.499997, -0.499999, -0.499999, -0.499999]],
    ["one of four, delta 1e-4", [1, 0, 0, 0], 1e-4, [1.4997, -0.4999, -0.4999, -0.4999]],
    ["one of five", [0, 0, third, 0, 0], 1e-6, [-0.447212, -0.447212, 1.788848, -0.447212, -0.447212]],
    ["small spread, delta 1e-6", [1, 1, 8 / 9, 8 / 9, 1], 1e-6, [0.730285, 0.730285, -1.095427, -1.095427, 0.730285]],
    ["small spread, delta 1e-4", [1, 1, 8 / 9, 8 / 9, 1], 1e-4, [0.729099, 0.729099, -1.093648, -1.093648, 0.729099]],
    ["four digits", [4 / 9, third, 1, 8 / 9], 1e-6, [-1.240211, -0.338239, 1.014718, 0.563732]],
    ["one of six, delta 0", [7 / 9, 0, 0, 0, 0, 0], 0,
      [2.041241, -0.408248, -0.408248, -0.408248, -0.408248, -0.408248]],
  ])("%s", (_, rewards, delta, want) => {
    expectClose("advantages", groupAdvantages(rewards, delta), want, sixDigits);
  });

  test("delta is 1e-6 unless given", () => {
    expect(groupAdvantages([1, 0, 0])).toEqual(groupAdvantages([1, 0, 0], 1e-6));
  });

  test("mean and standard deviation (ddof 1)", () => {
    expect(average([1, 0, 0, 0])).toBe(0.25);
    expect(standardDeviation([1, 0, 0, 0])).toBe(0.5);
    expectClose("std", [standardDeviation([4 / 9, third, 1, 8 / 9])], [0.246373], sixDigits);
  });
});

test.each([0, 1, 0.1, -3.7, 1e30])("equal rewards %d give exactly 0, with any delta", (reward) => {
  for (const delta of [0, 1e-6]) expect(groupAdvantages([reward, reward, reward], delta)).toEqual([0, 0, 0]);
});

test("they sum to 0, and neither scale nor shift of the rewards matters", () => {
  const { next } = random(3);
  for (let trial = 0; trial < 50; trial++) {
    const rewards = Array.from({ length: 2 + Math.floor(next() * 9) }, () => next());
    const advantages = groupAdvantages(rewards, 0);
    expect(Math.abs(advantages.reduce((sum, value) => sum + value, 0))).toBeLessThan(1e-12);
    expectClose("moved", groupAdvantages(rewards.map((r) => 7 * r - 3), 0), advantages, { rtol: 1e-9, atol: 1e-9 });
  }
});

test("a group of one and rewards that are no numbers are refused", () => {
  expect(() => groupAdvantages([])).toThrow(RangeError);
  expect(() => groupAdvantages([1])).toThrow(/at least two completions, not 1/);
  for (const bad of [NaN, Infinity, -Infinity]) expect(() => groupAdvantages([0, bad])).toThrow(/finite/);
});
