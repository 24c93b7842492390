/** Learning-rate schedules against the values of transformers' get_linear_ and get_cosine_schedule_with_warmup. */
import { expect, test } from "vitest";
import { constantSchedule, cosineSchedule, linearSchedule } from "../../src/autograd/schedule.ts";
import * as nn from "../support/reference_nn.ts";

test("linear: the reference experiment, 5 warm-up steps of 25", () => {
  const factors = Array.from({ length: 28 }, (_, step) => linearSchedule(step, { warmupSteps: 5, totalSteps: 25 }));
  expect(factors.slice(0, 7)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1, 0.95]);
  expect(factors.slice(24)).toEqual([0.05, 0, 0, 0]);
});

test("linear: equals the reference at every step, with and without warm-up", () => {
  for (const [warmupSteps, totalSteps] of [[0, 10], [3, 10], [10, 10], [1, 1], [0, 0]] as const) {
    for (let step = 0; step <= 12; step++) {
      const factor = linearSchedule(step, { warmupSteps, totalSteps });
      expect(factor).toBe(nn.linearSchedule(step, warmupSteps, totalSteps));
    }
  }
});

test("cosine: up, half-way down, 0 at the end and after", () => {
  const factor = (step: number): number => cosineSchedule(step, { warmupSteps: 10, totalSteps: 110 });
  expect([factor(0), factor(5), factor(10)]).toEqual([0, 0.5, 1]);
  expect(factor(35)).toBeCloseTo(0.5 + Math.SQRT1_2 / 2, 12); // a quarter of the way: (1 + cos 45°) / 2
  expect(factor(60)).toBeCloseTo(0.5, 12);
  expect([factor(110), factor(1000)]).toEqual([0, 0]);
  for (let step = 11; step < 110; step++) expect(factor(step)).toBeLessThan(factor(step - 1));
});

test("constant: up, then level for ever", () => {
  const factors = [0, 1, 4, 5, 6, 1000].map((step) => constantSchedule(step, { warmupSteps: 5, totalSteps: 10 }));
  expect(factors).toEqual([0, 0.2, 0.8, 1, 1, 1]);
});

test("without warm-up the first step has the full rate", () => {
  expect(linearSchedule(0, { warmupSteps: 0, totalSteps: 5 })).toBe(1);
  expect(cosineSchedule(0, { warmupSteps: 0, totalSteps: 5 })).toBe(1);
  expect(constantSchedule(0, { warmupSteps: 0, totalSteps: 5 })).toBe(1);
});
