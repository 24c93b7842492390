/**
 * What must not matter to an objective: how much padding there is and on which side, the order of a group, how a step
 * is split into micro-batches, completions that are left out; and, through the advantages, shift and scale of rewards.
 */
import { describe, expect, test } from "vitest";
import { advantages } from "../../src/grpo/advantage.ts";
import { OBJECTIVES, type ObjectiveName } from "../../src/grpo/objective.ts";
import type { ObjectiveOptions } from "../../src/grpo/objective_parts.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { evaluate, stepOf, type Group, type Rows } from "../support/objectives.ts";

const { uniform } = random(5);
const LENGTHS = [1, 5, 3, 7, 2, 4];
const rows = (low: number, high: number): number[][] => LENGTHS.map((n) => [...uniform([n], low, high).data]);
const REWARDS = [0.2, 0.9, 0, 0.4, 1, 0.1];
const group: Group = {
  advantages: advantages([REWARDS], { delta: 0 })[0]!,
  logProbs: rows(-1.4, -1),
  oldLogProbs: rows(-1.4, -1),
  referenceLogProbs: rows(-1.4, -1),
};
const names = Object.keys(OBJECTIVES) as ObjectiveName[];
const tolerance = { rtol: 0, atol: 2e-7 };

function optionsOf(name: ObjectiveName): ObjectiveOptions {
  return { clip: { low: 0.2, high: name === "cispo" ? 1.2 : 0.28 }, kl: { beta: 0.1 } };
}

/** The same completions in another order, or some of them. */
function pick(from: Group, order: readonly number[]): Group {
  const take = (all: Rows): Rows => order.map((i) => all[i]!);
  return {
    advantages: order.map((i) => from.advantages[i]!),
    logProbs: take(from.logProbs),
    oldLogProbs: take(from.oldLogProbs),
    referenceLogProbs: take(from.referenceLogProbs!),
    ...(from.mask ? { mask: take(from.mask) } : {}),
  };
}

describe.each(names)("%s", (name) => {
  const options = optionsOf(name);

  test.each([
    ["more", { width: 12 }],
    ["on the left", { width: 9, side: "left" as const }],
  ])("padding: %s", async (_, padding) => {
    const tight = await evaluate(name, group, options);
    const padded = await evaluate(name, group, options, stepOf(group), padding);
    expectClose("value", [padded.value], [tight.value], tolerance);
    expectClose("gradient", padded.gradients.flat(), tight.gradients.flat(), tolerance);
    expect(padded.padding.length).toBeGreaterThan(tight.padding.length);
    expect(padded.padding.every((value) => value === 0)).toBe(true);
  });

  test("the order of the group", async () => {
    const order = [2, 5, 0, 3, 1, 4];
    const straight = await evaluate(name, group, options);
    const permuted = await evaluate(name, pick(group, order), options);
    expectClose("value", [permuted.value], [straight.value], tolerance);
    expectClose("gradient", permuted.gradients.flat(), order.flatMap((i) => straight.gradients[i]!), tolerance);
  });

  test("micro-batches of 1, 3 and 2 completions", async () => {
    const parts = [[3], [0, 2, 4], [1, 5]];
    const whole = await evaluate(name, group, options);
    const step = { ...stepOf(group), microBatches: parts.length };
    const results: Awaited<ReturnType<typeof evaluate>>[] = [];
    for (const part of parts) results.push(await evaluate(name, pick(group, part), options, step));
    const value = results.reduce((sum, result) => sum + result.value, 0);
    const gradients = LENGTHS.map((_, i) => {
      const part = parts.findIndex((members) => members.includes(i));
      return results[part]!.gradients[parts[part]!.indexOf(i)]!;
    });
    if (name === "bnpo") {
      // Its divisor is the micro-batch's own: the one objective that gradient accumulation changes.
      expect(Math.abs(value - whole.value)).toBeGreaterThan(1e-3);
      return;
    }
    expectClose("value", [value], [whole.value], tolerance);
    expectClose("gradient", gradients.flat(), whole.gradients.flat(), tolerance);
  });

  test("a completion that is left out adds nothing and gets no gradient, whatever it says", async () => {
    const others = [0, 1, 3, 5];
    const mask = LENGTHS.map((n, i) => new Array<number>(n).fill(others.includes(i) ? 1 : 0));
    const masked = await evaluate(name, { ...group, mask }, options);
    // It still counts among the completions of the step, and in nothing else.
    const without = await evaluate(name, pick(group, others), options, stepOf({ ...group, mask }));
    expectClose("value", [masked.value], [without.value], tolerance);
    expectClose("gradient", others.flatMap((i) => masked.gradients[i]!), without.gradients.flat(), tolerance);
    expect([...masked.gradients[2]!, ...masked.gradients[4]!].every((value) => value === 0)).toBe(true);
  });

  test("a batch of nothing but left-out completions is 0, not NaN", async () => {
    const nothing = await evaluate(name, { ...group, mask: LENGTHS.map((n) => new Array<number>(n).fill(0)) }, options);
    expect(Math.abs(nothing.value)).toBe(0);
    expect(nothing.gradients.flat().every((value) => value === 0)).toBe(true);
  });

  test("rewards r and 3 r + 7", async () => {
    const [moved] = advantages([REWARDS.map((reward) => 3 * reward + 7)], { delta: 0 });
    const straight = await evaluate(name, group, options);
    const other = await evaluate(name, { ...group, advantages: moved! }, options);
    expectClose("value", [other.value], [straight.value], tolerance);
    expectClose("gradient", other.gradients.flat(), straight.gradients.flat(), tolerance);
  });
});
