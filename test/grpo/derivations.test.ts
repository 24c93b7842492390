/**
 * What docs/derivations.md derives and no other test holds: expectations over all actions of a small policy, computed
 * exactly. The policy gradient and its baseline, on and off policy; which divergence's gradient each KL estimator has;
 * and the soft overlong punishment.
 */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter, type Variable } from "../../src/autograd/variable.ts";
import { evaluateObjective, type ObjectiveName } from "../../src/grpo/objective.ts";
import { klEstimate, wholeStep, type Batch, type ObjectiveOptions } from "../../src/grpo/objective_parts.ts";
import { overlongPenalty } from "../../src/grpo/rollout.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { read, tensor } from "../../src/tensor/tensor.ts";
import { expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";

/** A policy over three actions, the one that it is to stay near, and what the actions are worth. */
const P = [0.5, 0.3, 0.2];
const REFERENCE = [0.4, 0.4, 0.2];
const REWARDS = [1, 0, 0.25];

const dot = (a: readonly number[], b: readonly number[]): number => a.reduce((sum, x, i) => sum + x * b[i]!, 0);
const tolerance = { rtol: 0, atol: 1e-6 };

/** The gradient, with respect to the policy's logits, of what `build` makes of its log-probabilities [3, 1]. */
async function gradientOf(build: (logProbs: Variable) => Variable): Promise<ArrayLike<number>> {
  return scopeAsync(async () => {
    const logits = parameter(tensor(P.map(Math.log), [1, 3]));
    backward(build(ops.reshape(ops.logSoftmax(logits), [3, 1])));
    return read(logits.grad!);
  });
}

/** Every action once, as a completion of one token: the mean over them is an expectation under a uniform policy. */
function objectiveOf(
  name: ObjectiveName,
  advantages: readonly number[],
  { old, kl }: { readonly old: readonly number[] } & Pick<ObjectiveOptions, "kl">,
): (logProbs: Variable) => Variable {
  return (logProbs) => {
    const column = (values: readonly number[]) => tensor(values.map(Math.log), [3, 1]);
    const batch: Batch = {
      logProbs, oldLogProbs: column(old), referenceLogProbs: column(REFERENCE), mask: [[1], [1], [1]], advantages,
    };
    const options = { clip: { low: 1, high: 100 }, ...(kl ? { kl } : {}) };
    return evaluateObjective(name, batch, options, wholeStep(batch, 1)).value;
  };
}

const UNIFORM = [1 / 3, 1 / 3, 1 / 3];

describe("the gradient of the mean reward, p_j (r_j - mean)", () => {
  const mean = dot(P, REWARDS);
  const want = P.map((p, j) => p * (REWARDS[j]! - mean));

  test.each([0, mean, -3])("whatever the baseline: %d", async (baseline) => {
    const better = REWARDS.map((reward) => reward - baseline);
    // Actions as often as the policy draws them: three of them, weighed by 3 p.
    const weighed = better.map((value, i) => 3 * P[i]! * value);
    for (const name of ["reinforce", "sequence", "grpo", "gspo", "cispo", "sapo"] as const) {
      const got = await gradientOf(objectiveOf(name, weighed, { old: P }));
      expectClose(`${name}, on-policy`, got, want, { rtol: 0, atol: 3e-6 });
    }
    for (const name of ["sequence", "grpo"] as const) {
      const got = await gradientOf(objectiveOf(name, better, { old: UNIFORM }));
      expectClose(`${name}, drawn by another policy`, got, want, { rtol: 0, atol: 3e-6 });
    }
  });

  test("without the ratio it is another gradient: the check above can fail", async () => {
    const got = await gradientOf(objectiveOf("reinforce", REWARDS, { old: UNIFORM }));
    expect(Math.abs(got[0]! - want[0]!)).toBeGreaterThan(0.01);
  });
});

describe("KL estimators: whose gradient they have", () => {
  const divergence = dot(P, P.map((p, j) => Math.log(p / REFERENCE[j]!)));
  /** Of KL(p || ref), what is to be held down; and of KL(ref || p). */
  const forward = P.map((p, j) => p * (Math.log(p / REFERENCE[j]!) - divergence));
  const reverse = P.map((p, j) => p - REFERENCE[j]!);

  test("the numbers of the page", () => {
    expectClose("KL(p || ref)", forward, [0.098938, -0.093885, -0.005053], tolerance);
    expectClose("KL(ref || p)", reverse, [0.1, -0.1, 0], tolerance);
  });

  test.each([["k1", [0, 0, 0]], ["k2", forward], ["k3", reverse]] as const)("%s", async (estimator, want) => {
    const got = await gradientOf((logProbs) => {
      const k = ops.sub(constant(tensor(REFERENCE.map(Math.log), [3, 1])), logProbs);
      return ops.sum(ops.mul(klEstimate(k, estimator), constant(tensor(P, [3, 1]))));
    });
    expectClose("gradient", got, want, tolerance);
  });

  test.each(["sequence", "dapo"] as const)("bias-corrected k3, drawn by another policy (%s)", async (name) => {
    const kl = { beta: 1, biasCorrection: true };
    const got = await gradientOf(objectiveOf(name, [0, 0, 0], { old: UNIFORM, kl }));
    expectClose("gradient", got, forward.map((value) => -value), tolerance);
  });
});

test("soft overlong punishment: limit 100, buffer 20", () => {
  const lengths = [1, 80, 81, 90, 100];
  expectClose("penalties", lengths.map((n) => overlongPenalty(n, 100, 20)), [0, 0, -0.05, -0.5, -1], tolerance);
  expect(overlongPenalty(100, 100, 0)).toBe(0);
});
