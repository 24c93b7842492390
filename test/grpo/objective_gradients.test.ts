/**
 * Every objective with every option: value against the formula in float64, gradient of every token against central
 * differences of that formula, away from kinks; and which side of a kink the gradient takes.
 */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import { OBJECTIVES, type ObjectiveName } from "../../src/grpo/objective.ts";
import { clippedSurrogate, type ObjectiveOptions } from "../../src/grpo/objective_parts.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { readAll, tensor } from "../../src/tensor/tensor.ts";
import { expectClose, random, relativeToLargest } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { evaluate, referenceObjective, stepOf, type Group } from "../support/objectives.ts";

const { uniform } = random(23);
const LENGTHS = [1, 5, 3, 7, 4];
const rows = (low: number, high: number): number[][] => LENGTHS.map((n) => [...uniform([n], low, high).data]);
const logProbs = rows(-3, -0.1);
const moved = (by: number): number[][] => {
  const drift = rows(-by, by);
  return logProbs.map((row, i) => row.map((value, t) => Math.fround(value + drift[i]![t]!)));
};
const group: Group = {
  advantages: [1.25, -0.5, 0.75, -1.5, 0.5],
  logProbs,
  oldLogProbs: moved(0.6),
  referenceLogProbs: moved(0.6),
};
/** The third completion is left out; tool tokens elsewhere. */
const masked: Group = { ...group, mask: [[1], [1, 0, 1, 1, 1], [0, 0, 0], [0, 1, 1, 1, 1, 0, 1], [1, 1, 1, 1]] };
const weighted: Group = { ...group, policyWeights: rows(0, 1.5) };

const clip = { low: 0.2, high: 0.28 };
const kl = { beta: 0.3 };

/** [what, group, options] that every objective takes. */
const common: readonly [string, Group, ObjectiveOptions][] = [
  ["plain", group, { clip }],
  ["masked", masked, { clip }],
  ["k1", group, { clip, kl: { ...kl, estimator: "k1" } }],
  ["k2", group, { clip, kl: { ...kl, estimator: "k2" } }],
  ["k3, masked", masked, { clip, kl }],
];
const withRatio: typeof common = [["bias-corrected k3", group, { clip, kl: { ...kl, biasCorrection: true } }]];
const withClip: typeof common = [["delta", group, { clip, delta: 1.35 }]];
const perToken: typeof common = [["policy weights and k3", weighted, { clip, kl }]];
const perSequence: typeof common = [
  ["sequence level", masked, { clip: { low: 0.05, high: 0.06 }, ratioLevel: "sequence" }],
  ["sequence level, weights, bias-corrected k3", weighted,
    { clip, ratioLevel: "sequence", kl: { ...kl, biasCorrection: true } }],
];

const checks = (Object.keys(OBJECTIVES) as ObjectiveName[]).flatMap((name) => {
  const { ratio, levels } = OBJECTIVES[name];
  const levelList: readonly string[] = levels;
  const all = [
    ...common,
    ...(ratio === "none" ? [] : withRatio),
    ...(ratio === "clipped" ? withClip : []),
    ...(levelList.includes("sum") ? [] : perToken),
    ...(levelList.includes("sequence") ? perSequence : []),
  ];
  return all.map(([what, given, options]) => [name, what, given, options] as const);
});

/** CISPO's upper end is a cap on the ratio itself. */
const optionsFor = (name: ObjectiveName, options: ObjectiveOptions): ObjectiveOptions =>
  name === "cispo" ? { ...options, clip: { low: 0.2, high: 1.2 } } : options;

describe.each(checks)("%s, %s", (name, _, given, common) => {
  test("value and gradient", async () => {
    const options = optionsFor(name, common);
    const step = stepOf(given);
    const { value, gradients } = await evaluate(name, given, options, step);
    const formula = (own: readonly (readonly number[])[]): number =>
      referenceObjective(name, given, options, step, own);
    expectClose("value", [value], [formula(logProbs)], { rtol: 2e-6, atol: 5e-7 });
    const eps = 1e-5;
    const numeric = logProbs.map((row, i) =>
      row.map((center, t) => {
        const at = (x: number) => formula(logProbs.with(i, row.with(t, x)));
        const [below, here, above] = [at(center - eps), at(center), at(center + eps)];
        // A kink between the two points would show as two slopes.
        expect(Math.abs(above - 2 * here + below), "a kink: choose another seed").toBeLessThan(1e-8);
        return (above - below) / (2 * eps);
      }),
    );
    expect(relativeToLargest(gradients.flat(), numeric.flat())).toBeLessThan(5e-6);
  });
});

test("the options above are seen: each changes the value of some objective", async () => {
  const value = async (given: Group, options: ObjectiveOptions) => (await evaluate("grpo", given, options)).value;
  const plain = await value(group, { clip });
  for (const [what, given, options] of [...common.slice(1), ...withRatio, ...withClip, ...perToken, ...perSequence]) {
    expect(Math.abs((await value(given, options)) - plain), what).toBeGreaterThan(1e-3);
  }
});

describe("at the edges of the clip range the gradient still flows, one float beyond it is exactly 0", () => {
  /** The next float32 away from 1. */
  const beyond = (edge: number): number => {
    const bits = new Uint32Array(Float32Array.of(edge).buffer);
    bits[0]! += edge > 1 ? 1 : -1;
    return new Float32Array(bits.buffer)[0]!;
  };
  const [low, high] = [Math.fround(0.75), Math.fround(1.25)]; // exact in float32
  test.each([
    ["above, A > 0", high, 1, 1, 0],
    ["below, A < 0", low, -1, -1, 0],
    ["above, A < 0: the pessimistic side", high, -1, -1, -1],
    ["below, A > 0: the pessimistic side", low, 1, 1, 1],
  ])("%s", async (_, edge, advantage, onEdge, past) => {
    await scopeAsync(async () => {
      const ratio = parameter(tensor([edge, beyond(edge)]));
      const advantages = constant(tensor([advantage, advantage]));
      backward(ops.sum(clippedSurrogate(ratio, advantages, { low: 0.25, high: 0.25 })));
      const [gradient] = await readAll([ratio.grad!]);
      expect([...gradient!].map((value) => value + 0)).toEqual([onEdge, past]); // + 0: -0 is 0
    });
  });

  test("with ratio 1 and no range at all, the first step is still a step", async () => {
    const onPolicy = { ...group, oldLogProbs: group.logProbs };
    const { gradients } = await evaluate("grpo", onPolicy, { clip: { low: 0, high: 0 } });
    const want = LENGTHS.flatMap((n, i) => new Array<number>(n).fill(group.advantages[i]! / (n * LENGTHS.length)));
    expectClose("gradient", gradients.flat(), want, { rtol: 1e-6, atol: 0 });
  });

  test("delta stops the pessimistic side too", async () => {
    await scopeAsync(async () => {
      const ratio = parameter(tensor([1.4, 1.5, 1.6]));
      const surrogate = clippedSurrogate(ratio, constant(tensor([-1, -1, -1])), { low: 0.2, high: 0.2 }, 1.5);
      backward(ops.sum(surrogate));
      const [value, gradient] = await readAll([surrogate.value, ratio.grad!]);
      expectClose("value", value!, [-1.4, -1.5, -1.5], { rtol: 1e-6, atol: 0 });
      expect([...gradient!].map((x) => x + 0)).toEqual([-1, -1, 0]);
    });
  });
});
