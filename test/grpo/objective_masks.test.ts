/** Which tokens count: masks by hand, and the entropy bonus. */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import { parameter } from "../../src/autograd/variable.ts";
import {
  completionMask,
  entropyBonus,
  highEntropyMask,
  offPolicyMask,
  policyWeightRows,
} from "../../src/grpo/objective_masks.ts";
import { padRows } from "../../src/grpo/objective_parts.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { readAll } from "../../src/tensor/tensor.ts";
import { expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";

test("completions cut at the limit are left out on request only", () => {
  const completions = [{ length: 2, ended: true }, { length: 3, ended: false }];
  expect(completionMask(completions)).toEqual([[1, 1], [1, 1, 1]]);
  expect(completionMask(completions, { maskTruncated: true })).toEqual([[1, 1], [0, 0, 0]]);
});

describe("high-entropy tokens", () => {
  const mask = [[1, 1, 1], [1, 0, 1]];
  const entropies = [0.1, 0.5, 0.2, 0.4, 9, 0.3]; // 9 stands behind the mask

  test.each([
    [1, [[1, 1, 1], [1, 0, 1]]],
    [0.5, [[0, 1, 0], [1, 0, 1]]], // the median, 0.3, is kept
    [0.4, [[0, 1, 0], [1, 0, 0]]], // threshold 0.34, between 0.3 and 0.4
    [0, [[0, 1, 0], [0, 0, 0]]],
  ])("the upper %d", (quantile, want) => {
    expect(highEntropyMask(entropies, mask, quantile)).toEqual(want);
  });

  test("no tokens at all", () => {
    expect(highEntropyMask([1, 2], [[0, 0]], 0.5)).toEqual([[0, 0]]);
  });
});

test("completions that are off-policy and bad are dropped", () => {
  // Mean drift log pi_sampler - log pi_theta: 0.5, 0.5, -0.5, and none; padding is junk.
  const mask = [[1, 1], [1, 0], [1, 1], []];
  const sampler = [[-1, -1], [-1, 7], [-1, -1], []];
  const current = [-1.5, -1.5, -1.5, 5, -0.5, -0.5, 3, 3];
  expect(offPolicyMask([-1, -1, -1, -1], current, sampler, mask, 0.4)).toEqual([0, 0, 1, 1]);
  expect(offPolicyMask([1, 0, -1, -1], current, sampler, mask, 0.4)).toEqual([1, 1, 1, 1]);
  expect(offPolicyMask([-1, -1, -1, -1], current, sampler, mask, 0.6)).toEqual([1, 1, 1, 1]);
});

test("weights multiply", () => {
  const mask = [[1, 1], [1]];
  expect(policyWeightRows(mask, {})).toEqual([[1, 1], [1]]);
  const factors = { offPolicy: [0.5, 0], highEntropy: [[1, 0], [1]], samplerRatio: [[1.5, 1], [2]] };
  expect(policyWeightRows(mask, factors)).toEqual([[0.75, 0], [0]]);
});

test("entropy bonus: the mean over the step's tokens, and its gradient", async () => {
  await scopeAsync(async () => {
    const entropies = parameter(padRows([[1, 2, 7], [3, 7, 7]], 3));
    const bonus = entropyBonus(entropies, [[1, 1], [1]], 3);
    backward(bonus);
    const [value, gradient] = await readAll([bonus.value, entropies.grad!]);
    expectClose("value", value!, [2], { rtol: 1e-6, atol: 0 });
    expectClose("gradient", gradient!, [1 / 3, 1 / 3, 0, 1 / 3, 0, 0], { rtol: 1e-6, atol: 0 });
  });
});
