/**
 * Advantages against numbers worked by hand, their invariances, and what is refused. TRL's own are in
 * trl_advantages.test.ts.
 */
import { describe, expect, test } from "vitest";
import {
  advantages,
  average,
  decoupledAdvantages,
  standardDeviation,
  weightedRewards,
  type AdvantageOptions,
  type Reward,
} from "../../src/grpo/advantage.ts";
import { groupAdvantages } from "../support/objectives.ts";
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

  test.each<[string, AdvantageOptions, Reward[][], number[][]]>([
    ["ddof 0", { ddof: 0, delta: 1e-4 }, [[1, 0, 0, 0]], [[1.731651, -0.577217, -0.577217, -0.577217]]],
    ["Dr. GRPO", { scale: "none" }, [[1, 0, 0, 0]], [[0.75, -0.25, -0.25, -0.25]]],
    ["Dr. GRPO, small spread", { scale: "none" }, [[1, 1, 8 / 9, 8 / 9, 1]],
      [[0.044444, 0.044444, -0.066667, -0.066667, 0.044444]]],
    ["RLOO", { baseline: "leave-one-out", scale: "none" }, [[1, 0, 0, 0]], [[1, -1 / 3, -1 / 3, -1 / 3]]],
    ["REINFORCE", { baseline: "none", scale: "none" }, [[1, 0.5, null]], [[1, 0.5, 0]]],
    ["batch: means of groups, one deviation", { scale: "batch", delta: 0 }, [[1, 0], [3, 3]],
      // The deviation of 1, 0, 3, 3 is 1.5.
      [[1 / 3, -1 / 3], [0, 0]]],
    ["a reward nobody gave is in no mean", {}, [[1, null, 0, 0, 0]],
      [[1.499997, 0, -0.499999, -0.499999, -0.499999]]],
    ["... nor among the others", { baseline: "leave-one-out", scale: "none" }, [[1, null, 0, 0, 0]],
      [[1, 0, -1 / 3, -1 / 3, -1 / 3]]],
    ["one reward, or none, says nothing", {}, [[1, null], [null, null], [2]], [[0, 0], [0, 0], [0]]],
  ])("%s", (_, options, groups, want) => {
    const got = advantages(groups, options);
    expect(got.map(({ length }) => length)).toEqual(want.map(({ length }) => length));
    expectClose("advantages", got.flat(), want.flat(), sixDigits);
  });

  test("several reward functions", () => {
    expect(weightedRewards([[1, 2], [null, 2], [null, null]], [10, 1])).toEqual([12, 2, null]);
    // Each function z-scored, [1, -1] / sqrt 2; the sums, 0 and 0, have no spread although neither function was dead.
    expect(decoupledAdvantages([[[1, 0], [0, 100]]], [1, 1], { delta: 0 })).toEqual([[0, 0]]);
    // With weights 2 and 1 the first decides; a z-score of two is +-1 / sqrt 2.
    const [got] = decoupledAdvantages([[[1, 0], [0, 100]]], [2, 1], { delta: 0 });
    expectClose("decoupled", got!, [Math.SQRT1_2, -Math.SQRT1_2], sixDigits);
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

test("a dead group is exactly 0 under every baseline but none, and rounding is no spread", () => {
  for (const scale of ["group", "batch", "none"] as const) {
    for (const baseline of ["mean", "leave-one-out"] as const) {
      const options = { scale, baseline, delta: 0 };
      expect(advantages([[0.1, 0.1, 0.1], [1, 0, 0]], options)[0]).toEqual([0, 0, 0]);
      expect(advantages([[0.1 + 0.2, 0.3, 0.3]], options)).toEqual([[0, 0, 0]]);
    }
  }
  expect(advantages([[0.3 + 1e-12, 0.3]], { delta: 0 })[0]![0]).toBeGreaterThan(0.7);
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

test("a group of one has advantage 0; rewards that are no numbers are refused", () => {
  expect(groupAdvantages([1])).toEqual([0]);
  for (const bad of [NaN, Infinity, -Infinity]) expect(() => groupAdvantages([0, bad])).toThrow(/finite/);
  expect(() => advantages([[0, NaN, null]])).toThrow(RangeError);
  expect(() => advantages([[0, 1]], { baseline: "none" })).toThrow('scale "group" needs a baseline');
});
