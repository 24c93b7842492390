/**
 * The objectives, value and gradient: against the reference experiment's code (every logit of every group) and against
 * numbers worked by hand. TRL's numbers are in trl_loss.test.ts, finite differences in objective_gradients.test.ts.
 */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter } from "../../src/autograd/variable.ts";
import {
  checkOptions,
  evaluateObjective,
  OBJECTIVES,
  type ObjectiveName,
} from "../../src/grpo/objective.ts";
import {
  clippedSurrogate,
  klEstimate,
  padRows,
  wholeStep,
  type Batch,
  type ObjectiveOptions,
} from "../../src/grpo/objective_parts.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { scope, scopeAsync } from "../../src/tensor/memory.ts";
import { readAll, tensor } from "../../src/tensor/tensor.ts";
import { expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { evaluate, groupAdvantages, isObjectiveName, type Group } from "../support/objectives.ts";
import { loadNanoRl, type NanoRlCase } from "../support/oracles.ts";

const count = (rows: readonly (readonly number[])[]): number => rows.reduce((sum, row) => sum + row.length, 0);
const longestOf = (rows: readonly (readonly number[])[]): number => Math.max(...rows.map(({ length }) => length));

describe("the reference experiment's own code", () => {
  test.each(loadNanoRl().map((oracle) => [oracle.name, oracle] as const))("%s", async (_, oracle) => {
    const completions = oracle.group.map(({ tokens, prompt_length }) => tokens.slice(prompt_length));
    const longest = longestOf(completions);
    const rewards = oracle.group.map(({ reward }) => reward);
    // Logits of all tokens of all experiences, one below the other; row t of an experience predicts its token t + 1.
    const firstRow = oracle.group.map((_, i) => count(oracle.group.slice(0, i).map(({ tokens }) => tokens)));
    const nextToken = oracle.group.flatMap(({ tokens }) => tokens.map((_, t) => tokens[t + 1] ?? 0));
    const picked = completions.flatMap((completion, i) => {
      const start = firstRow[i]! + oracle.group[i]!.prompt_length - 1;
      return Array.from({ length: longest }, (_, t) => (t < completion.length ? start + t : 0));
    });
    await scopeAsync(async () => {
      const logits = parameter(
        tensor(Float32Array.from(oracle.group.flatMap((e) => e.logits.flat())), [nextToken.length, oracle.vocab]),
      );
      const index = tensor(Uint32Array.from(nextToken), [nextToken.length, 1]);
      const allLogProbs = ops.gather(ops.logSoftmax(logits), 1, index);
      const logProbs = ops.reshape(ops.embedding(allLogProbs, tokenIds(picked)), [completions.length, longest]);
      const batch: Batch = {
        logProbs,
        oldLogProbs: padRows(oldLogProbs(oracle, completions), longest),
        mask: completions.map((row) => row.map(() => 1)),
        advantages: groupAdvantages(rewards, oracle.algorithm === "grpo" ? 1e-6 : 0),
      };
      const clip = { low: oracle.epsilon_low, high: oracle.epsilon_high };
      const name = oracle.algorithm === "grpo" ? "sequence" : "dapo";
      const { value, ratio } = evaluateObjective(name, batch, { clip }, wholeStep(batch, longest));
      backward(value);
      const [objective, ratios, gradient] = await readAll([value.value, ratio, logits.grad!]);
      const tolerance = { rtol: 0, atol: 1e-6 };
      expectClose("objective", objective!, [oracle.objective], tolerance);
      expectClose(
        "gradient",
        gradient!,
        oracle.group.flatMap(({ grad_logits }) => grad_logits.flat()),
        tolerance,
      );
      const real = [...ratios!].filter(
        (_, i) => name === "sequence" || i % longest < completions[Math.floor(i / longest)]!.length,
      );
      expectClose(
        "ratios",
        real,
        oracle.group.flatMap((e) => e.ratio),
        { rtol: 5e-6, atol: 0 },
      );
    });
  });
});

/** The sequence objective needs the sum only: it is spread evenly over the completion. */
function oldLogProbs(oracle: NanoRlCase, completions: readonly (readonly number[])[]): (readonly number[])[] {
  return oracle.algorithm === "dapo"
    ? oracle.group.map((e) => e.old_log_probs)
    : oracle.group.map((e, i) => completions[i]!.map(() => e.old_log_probs_sum / completions[i]!.length));
}

describe("clipped surrogate by hand", () => {
  // [advantage, epsilon above, ratio, value, derivative with respect to the ratio]
  const rows: readonly [number, number, number, number, number][] = [
    [1, 0.2, 0.5, 0.5, 1],
    [1, 0.2, 1, 1, 1],
    [1, 0.2, 1.1, 1.1, 1],
    [1, 0.2, 1.5, 1.2, 0],
    [1, 0.2, 3, 1.2, 0],
    [-1, 0.2, 0.5, -0.8, 0],
    [-1, 0.2, 0.9, -0.9, -1],
    [-1, 0.2, 1.5, -1.5, -1],
    [-1, 0.2, 3, -3, -1],
    [1, 0.28, 1.25, 1.25, 1],
    [1, 0.28, 1.3, 1.28, 0],
    [0, 0.2, 1.5, 0, 0],
  ];
  test.each(rows)(
    "A %d, epsilon_high %d, ratio %d -> %d, derivative %d",
    async (advantage, high, rho, want, derivative) => {
      await scopeAsync(async () => {
        const ratio = parameter(tensor([rho]));
        const value = clippedSurrogate(ratio, constant(tensor([advantage])), { low: 0.2, high });
        backward(value);
        const [got, gradient] = await readAll([value.value, ratio.grad!]);
        expectClose("value", got!, [want], { rtol: 0, atol: 1e-6 });
        expectClose("derivative", gradient!, [derivative], { rtol: 0, atol: 0 });
      });
    },
  );

  test("at the edges of the range the value is continuous", async () => {
    await scopeAsync(async () => {
      const ratio = constant(tensor([0.8, 1.2, 0.8, 1.2]));
      const advantages = constant(tensor([1, 1, -1, -1]));
      const [got] = await readAll([clippedSurrogate(ratio, advantages, { low: 0.2, high: 0.2 }).value]);
      expectClose("value", got!, [0.8, 1.2, -0.8, -1.2], { rtol: 0, atol: 1e-6 });
    });
  });
});

// Two completions of 2 and 4 tokens; log pi_theta - log pi_old per token is `drift`.
const drift = [[0.1, 0.3], [-0.2, -0.3, 0.05, 0.1]];
const logProbs = [[-1, -2], [-0.5, -1.5, -2.5, -0.25]];
const byHand: Group = {
  advantages: [1, -1],
  logProbs,
  oldLogProbs: logProbs.map((row, i) => row.map((value, t) => value - drift[i]![t]!)),
};
const onPolicy: Group = { ...byHand, oldLogProbs: logProbs };
const range = (low: number, high = low): ObjectiveOptions => ({ clip: { low, high } });
const tolerance = { rtol: 0, atol: 2e-6 };
const nothing = [0, 0, 0, 0, 0, 0];

describe("a group by hand", () => {
  test.each<[ObjectiveName, string, Group, ObjectiveOptions, number, number[]]>([
    ["grpo", "on-policy", onPolicy, range(0.2), 0, [0.25, 0.25, -0.125, -0.125, -0.125, -0.125]],
    ["dapo", "on-policy", onPolicy, range(0.2), -1 / 3, [1, 1, -1, -1, -1, -1].map((sign) => sign / 6)],
    ["dr_grpo", "on-policy", onPolicy, range(0.2), -0.1, [0.05, 0.05, -0.05, -0.05, -0.05, -0.05]],
    ["sequence", "on-policy", onPolicy, range(0.2), 0, [0.5, 0.5, -0.5, -0.5, -0.5, -0.5]],
    ["grpo", "0.2", byHand, range(0.2), 0.104396, [0.276293, 0, -0.102341, 0, -0.131409, -0.138146]],
    ["dapo", "0.2", byHand, range(0.2), -0.245, [0.184195, 0, -0.136455, 0, -0.175212, -0.184195]],
    ["dapo", "0.2, 0.28", byHand, range(0.2, 0.28), -0.231667, [0.184195, 0, -0.136455, 0, -0.175212, -0.184195]],
    ["bnpo", "0.2", byHand, range(0.2), -0.245, [0.184195, 0, -0.136455, 0, -0.175212, -0.184195]],
    ["dr_grpo", "0.2", byHand, range(0.2), -0.0735, [0.055259, 0, -0.040937, 0, -0.052564, -0.055259]],
    ["sequence", "0.2: all clipped", byHand, range(0.2), 0.2, nothing],
    ["rloo", "0.2: all clipped", byHand, range(0.2), 0.2, nothing],
    ["sequence", "wide", byHand, range(0.9, 9), 0.393568,
      [0.745912, 0.745912, -0.352344, -0.352344, -0.352344, -0.352344]],
    ["gspo", "0.2", byHand, range(0.2), 0.141891, [0, 0, -0.114527, -0.114527, -0.114527, -0.114527]],
    ["gspo", "3e-4, 4e-4: all clipped", byHand, range(3e-4, 4e-4), 0.00035, nothing],
    ["cispo", "cap 5", byHand, range(0.2, 5), 0.103362,
      [0.184195, 0.224976, -0.136455, -0.12347, -0.175212, -0.184195]],
    ["cispo", "cap 1.2", byHand, range(0.2, 1.2), 0.153315, // cap 5's + (1.349859 - 1.2) * 2 / 6
      [0.184195, 0.2, -0.136455, -0.12347, -0.175212, -0.184195]],
    ["sapo", "", byHand, range(0.2), 0.19572, [0.27553, 0.327345, -0.10142, -0.090909, -0.131314, -0.137726]],
    ["reinforce", "", byHand, range(0.2), 0.875, [0.5, 0.5, -0.5, -0.5, -0.5, -0.5]],
  ])("%s %s", async (name, _, group, options, value, gradient) => {
    const got = await evaluate(name, group, options);
    expectClose("value", [got.value], [value], tolerance);
    expectClose("gradient", got.gradients.flat(), gradient, tolerance);
    const stopped = got.gradients.flat().filter((_, i) => gradient[i] === 0);
    expect(stopped.map(Math.abs)).toEqual(stopped.map(() => 0)); // clipped is exactly 0, not small
  });

  test.each<[ObjectiveName, number[]]>([
    ["sequence", [1.491825, 0.704688]],
    ["gspo", [1.221403, 0.916219]],
    ["grpo", [1.105171, 1.349859, 1, 1, 0.818731, 0.740818, 1.051271, 1.105171]],
  ])("ratios of %s", async (name, want) => {
    expectClose("ratios", (await evaluate(name, byHand, range(0.2))).ratios, want, tolerance);
  });

  test("without old log-probabilities the policy is compared with itself", async () => {
    await scopeAsync(async () => {
      const own = parameter(padRows(logProbs, 4));
      const batch: Batch = { logProbs: own, mask: logProbs.map((row) => row.map(() => 1)), advantages: [1, -1] };
      const { value } = evaluateObjective("grpo", batch, range(0.2), wholeStep(batch, 4));
      backward(value);
      const [got, gradient] = await readAll([value.value, own.grad!]);
      expectClose("value", got!, [0], tolerance);
      expectClose("gradient", gradient!, [0.25, 0.25, 0, 0, -0.125, -0.125, -0.125, -0.125], tolerance);
    });
  });

  test("one answer of 2 tokens against five of 4 in DAPO's mean over tokens", async () => {
    // The first value that the reference experiment's dapo prints is the sum of two such groups.
    const rows = [2, 4, 4, 4, 4, 4].map((length) => new Array<number>(length).fill(-1));
    const advantages = groupAdvantages([7 / 9, 0, 0, 0, 0, 0], 0);
    const { value } = await evaluate("dapo", { advantages, logProbs: rows, oldLogProbs: rows }, range(0.2, 0.28));
    expectClose("value", [value, 2 * value], [-0.185567, -0.371135], tolerance);
  });

  test.each([
    [[1, 0, 0, 0, 0], 0.143108],
    [[1, 1, 0, 0, 0], 0.175271],
  ])("the ceiling of rewards %j: epsilon mean |A|, and no gradient", async (rewards, ceiling) => {
    const advantages = groupAdvantages(rewards);
    const old = rewards.map(() => [-1]);
    const favourable = advantages.map((advantage) => [-1 + Math.sign(advantage)]);
    const group = { advantages, logProbs: favourable, oldLogProbs: old };
    const { value, gradients } = await evaluate("sequence", group, range(0.2));
    expectClose("value", [value], [ceiling], tolerance);
    expect(gradients.flat().map(Math.abs)).toEqual([0, 0, 0, 0, 0]);
  });
});

test("the surrogate's gradient with respect to logits", async () => {
  await scopeAsync(async () => {
    const logits = parameter(tensor([1, 2, 0.5], [1, 3]));
    const logProb = ops.slice(ops.logSoftmax(logits), 1, 1, 2);
    const old = constant(tensor([-0.464369 - Math.log(1.1)], [1, 1]));
    const ratio = ops.exp(ops.sub(logProb, old));
    backward(ops.sum(clippedSurrogate(ratio, constant(tensor([-0.5])), { low: 0.2, high: 0.2 })));
    const [gradient] = await readAll([logits.grad!]);
    expectClose("dz", gradient!, [0.127173, -0.204308, 0.077134], tolerance);
  });
});

describe("KL estimators", () => {
  // [log pi_theta, log pi_ref, k1, k2, k3, dk3/dlog pi_theta]
  test.each([
    [-1, -1.5, 0.5, 0.125, 0.106531, 0.393469],
    [-1.5, -1, -0.5, 0.125, 0.148721, -0.648721],
    [-0.7, -0.7, 0, 0, 0, 0],
  ])("log-probability %d, reference %d", async (own, reference, k1, k2, k3, slope) => {
    await scopeAsync(async () => {
      const results = (["k1", "k2", "k3"] as const).map((estimator) => {
        const logProb = parameter(tensor([own]));
        const kl = klEstimate(ops.sub(constant(tensor([reference])), logProb), estimator);
        backward(ops.sum(kl));
        return { kl: kl.value, gradient: logProb.grad! };
      });
      const values = await readAll(results.map(({ kl }) => kl));
      const gradients = await readAll(results.map(({ gradient }) => gradient));
      expectClose("values", values.map((x) => x[0]!), [k1, k2, k3], tolerance);
      expectClose("slopes", gradients.map((x) => x[0]!), [1, own - reference, slope], tolerance);
    });
  });

  test("k1 and k3 average to the KL divergence, k2 nearly", async () => {
    const [p, q] = [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]];
    await scopeAsync(async () => {
      const k = constant(tensor(p.map((value, i) => Math.log(q[i]!) - Math.log(value))));
      const values = await readAll((["k1", "k2", "k3"] as const).map((estimator) => klEstimate(k, estimator).value));
      const means = values.map((x) => p.reduce((sum, value, i) => sum + value * x[i]!, 0));
      expectClose("means", means, [0.0252672, 0.0248624, 0.0252672], { rtol: 0, atol: 2e-7 });
      expectClose("k3", values[2]!, [0.023144, 0.045651, 0], tolerance);
    });
  });

  test("in the sequence objective k is one number per completion", async () => {
    const referenceLogProbs = [[-1.25, -2.25], [-0.5, -1, -2.5, -0.25]]; // k = -0.5, 0.5
    const { value, kl } = await evaluate(
      "sequence", { ...onPolicy, referenceLogProbs }, { ...range(0.2), kl: { beta: 0.1 } },
    );
    expectClose("kl", kl!, [0.106531, 0.148721], tolerance);
    expectClose("value", [value], [-0.1 * (0.106531 + 0.148721) / 2], tolerance);
  });
});

describe("what is refused", () => {
  const refused: [ObjectiveName, ObjectiveOptions, RegExp][] = [
    ["cispo", range(0.2), /cispo: epsilon_high 0.2 is the cap of the ratio itself/],
    ["grpo", range(1.5), /epsilon 1.5 must lie between 0 and 1/],
    ["dapo", range(0.2, -0.1), /epsilon_high -0.1/],
    ["grpo", { ...range(0.2), delta: 1.1 }, /delta 1.1 must be above 1 \+ epsilon_high = 1.2/],
    ["sapo", { ...range(0.2), delta: 4 }, /takes no delta/],
    ["sequence", { ...range(0.2), ratioLevel: "token" }, /ratio level is sum, not token/],
    ["gspo", { ...range(0.2), ratioLevel: "token" }, /ratio level is sequence, not token/],
    ["grpo", { ...range(0.2), kl: { beta: -1 } }, /beta -1/],
    ["reinforce", { ...range(0.2), kl: { beta: 1, biasCorrection: true } }, /no ratio/],
  ];
  test.each(refused)("%s %j", (name, options, message) => {
    expect(() => checkOptions(name, options)).toThrow(message);
    expect(() => checkOptions(name, options)).toThrow(RangeError);
  });

  test("names that are no objectives", () => {
    for (const name of ["luspo", "vespo", "toString", ""]) expect(isObjectiveName(name)).toBe(false);
    for (const name of Object.keys(OBJECTIVES)) expect(isObjectiveName(name)).toBe(true);
  });

  test("batches whose parts do not fit together", () => {
    scope(() => {
      const mask = [[1, 1], [1, 1, 1, 1]];
      const batch: Batch = { logProbs: constant(padRows(logProbs, 4)), mask, advantages: [1, -1] };
      const run = (part: Partial<Batch>, name: ObjectiveName = "grpo", options = range(0.2)) => (): unknown =>
        evaluateObjective(name, { ...batch, ...part }, options, wholeStep(batch, 4));
      expect(run({})).not.toThrow();
      expect(run({ mask: [[1, 1]] })).toThrow("a mask of 1 rows up to 2 for [2, 4]");
      expect(run({ mask: [[1], [1, 1, 1, 1, 1]] })).toThrow("a mask of 2 rows up to 5 for [2, 4]");
      expect(run({ advantages: [1] })).toThrow("1 advantages for 2 completions");
      expect(run({ oldLogProbs: padRows(logProbs, 5) })).toThrow("oldLogProbs [2, 5] beside logProbs [2, 4]");
      expect(run({ logProbs: constant(tensor([1, 2])) })).toThrow("logProbs [2] must be [N, T]");
      expect(run({ policyWeights: padRows(logProbs, 4) }, "sequence")).toThrow("one term per completion");
      expect(run({}, "grpo", { ...range(0.2), kl: { beta: 0.1 } })).toThrow("needs referenceLogProbs");
    });
  });
});
