/**
 * The objectives, value and gradient: against the reference experiment's code (every logit of every group), against
 * hand-worked numbers, against finite differences, and what must not matter (padding, the order of a group).
 */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter, type Variable } from "../../src/autograd/variable.ts";
import { groupAdvantages } from "../../src/grpo/advantage.ts";
import {
  clippedSurrogate,
  padRows,
  sequenceObjective,
  tokenObjective,
  type ClipRange,
  type GroupBatch,
} from "../../src/grpo/objective.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { readAll, tensor } from "../../src/tensor/tensor.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { loadNanoRl, type NanoRlCase } from "../support/oracles.ts";

type Name = "sequence" | "token";

/** A group in plain numbers: one row of log-probabilities per completion. */
interface Group {
  readonly advantages: readonly number[];
  readonly logProbs: readonly (readonly number[])[];
  readonly oldLogProbs: readonly (readonly number[])[];
}

/** Builds the batch on the GPU, rows padded to `width`. */
function batchOf({ advantages, logProbs, oldLogProbs }: Group, width: number, own: Variable): GroupBatch {
  return {
    logProbs: own,
    oldLogProbs: padRows(oldLogProbs, width),
    mask: padRows(
      logProbs.map((row) => row.map(() => 1)),
      width,
    ),
    advantages: tensor([...advantages]),
  };
}

function objectiveOf(name: Name, batch: GroupBatch, clip: ClipRange, tokens: number) {
  return name === "sequence" ? sequenceObjective(batch, clip) : tokenObjective(batch, clip, tokens);
}

const count = (rows: readonly (readonly number[])[]): number => rows.reduce((sum, row) => sum + row.length, 0);
const longestOf = (rows: readonly (readonly number[])[]): number => Math.max(...rows.map(({ length }) => length));

/** Value, ratios and the gradient with respect to every log-probability, as rows without padding. */
async function evaluate(name: Name, group: Group, clip: ClipRange, width = longestOf(group.logProbs)) {
  return scopeAsync(async () => {
    const own = parameter(padRows(group.logProbs, width));
    const { value, ratio } = objectiveOf(name, batchOf(group, width, own), clip, count(group.logProbs));
    backward(value);
    const [values, ratios, gradients] = await readAll([value.value, ratio.value, own.grad!]);
    const rows = group.logProbs.map(({ length }, i) => [...gradients!.subarray(i * width, i * width + length)]);
    const padding = [...gradients!].filter((_, i) => i % width >= group.logProbs[Math.floor(i / width)]!.length);
    return { value: values![0]!, ratios: [...ratios!], gradients: rows, padding };
  });
}

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
      const batch: GroupBatch = {
        logProbs,
        oldLogProbs: padRows(oldLogProbs(oracle, completions), longest),
        mask: padRows(
          completions.map((row) => row.map(() => 1)),
          longest,
        ),
        advantages: tensor(groupAdvantages(rewards, oracle.algorithm === "grpo" ? 1e-6 : 0)),
      };
      const clip = { low: oracle.epsilon_low, high: oracle.epsilon_high };
      const name = oracle.algorithm === "grpo" ? "sequence" : "token";
      const { value, ratio } = objectiveOf(name, batch, clip, count(completions));
      backward(value);
      const [objective, ratios, gradient] = await readAll([value.value, ratio.value, logits.grad!]);
      const tolerance = { rtol: 0, atol: 1e-5 };
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
        { rtol: 1e-5, atol: 0 },
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

describe("a group by hand", () => {
  const drift = [
    [0.1, 0.3],
    [-0.2, -0.3, 0.05, 0.1],
  ];
  const logProbs = [
    [-1, -2],
    [-0.5, -1.5, -2.5, -0.25],
  ];
  const group: Group = {
    advantages: [1, -1],
    logProbs,
    oldLogProbs: logProbs.map((row, i) => row.map((value, t) => value - drift[i]![t]!)),
  };
  const onPolicy: Group = { ...group, oldLogProbs: logProbs };
  const epsilon = { low: 0.2, high: 0.2 };
  const tolerance = { rtol: 0, atol: 2e-6 };

  test("token: 2 of 6 tokens are clipped, their gradient is exactly 0", async () => {
    const { value, gradients } = await evaluate("token", group, epsilon);
    expectClose("value", [value], [-0.245], tolerance);
    expectClose("gradient", gradients.flat(), [0.184195, 0, -0.136455, 0, -0.175212, -0.184195], tolerance);
    expect([gradients[0]![1], gradients[1]![1]]).toEqual([0, 0]);
  });

  test("token, clip-higher: another value, the same gradient", async () => {
    const { value, gradients } = await evaluate("token", group, { low: 0.2, high: 0.28 });
    expectClose("value", [value], [-0.231667], tolerance);
    expect(gradients).toEqual((await evaluate("token", group, epsilon)).gradients);
  });

  test("sequence: both completions are clipped, every gradient is exactly 0", async () => {
    const { value, gradients, ratios } = await evaluate("sequence", group, epsilon);
    expectClose("ratios", ratios, [1.491825, 0.704688], tolerance);
    expectClose("value", [value], [0.2], tolerance);
    expect(gradients.flat().map(Math.abs)).toEqual([0, 0, 0, 0, 0, 0]);
  });

  test("sequence, wide range: the gradient of every token is ratio A / G", async () => {
    const { value, gradients } = await evaluate("sequence", group, { low: 0.9, high: 9 });
    expectClose("value", [value], [(1.491825 - 0.704688) / 2], tolerance);
    expectClose(
      "gradient",
      gradients.flat(),
      [0.745912, 0.745912, -0.352344, -0.352344, -0.352344, -0.352344],
      tolerance,
    );
  });

  test("on-policy: ratios are 1, the value is mean A, the gradient is not 0", async () => {
    const sequence = await evaluate("sequence", onPolicy, epsilon);
    expect([sequence.value, ...sequence.ratios]).toEqual([0, 1, 1]);
    expectClose("gradient", sequence.gradients.flat(), [0.5, 0.5, -0.5, -0.5, -0.5, -0.5], tolerance);
    const token = await evaluate("token", onPolicy, epsilon);
    expectClose("value", [token.value], [-1 / 3], tolerance);
    expectClose(
      "gradient",
      token.gradients.flat(),
      [1, 1, -1, -1, -1, -1].map((sign) => sign / 6),
      tolerance,
    );
  });

  test("one answer of 2 tokens against five of 4 in DAPO's mean over tokens", async () => {
    const lengths = [2, 4, 4, 4, 4, 4];
    const rows = lengths.map((length) => new Array<number>(length).fill(-1));
    const advantages = groupAdvantages([7 / 9, 0, 0, 0, 0, 0], 0);
    const { value } = await evaluate(
      "token",
      { advantages, logProbs: rows, oldLogProbs: rows },
      { low: 0.2, high: 0.28 },
    );
    expectClose("value", [value], [-0.185567], tolerance);
  });
});

describe.each(["sequence", "token"] as const)("%s objective", (name) => {
  const { uniform, next } = random(11);
  const lengths = [1, 5, 3, 7];
  const rows = (low: number, high: number): number[][] => lengths.map((n) => [...uniform([n], low, high).data]);
  const logProbs = rows(-3, -0.1);
  const group: Group = {
    advantages: groupAdvantages(lengths.map(() => next())),
    logProbs,
    oldLogProbs: logProbs.map((row) => row.map((value) => value + 0.3 * (next() - 0.5))),
  };
  const clip = { low: 0.2, high: 0.28 };

  /** The formula in float64. */
  function reference(own: readonly (readonly number[])[]): number {
    const surrogate = (ratio: number, a: number): number =>
      Math.min(ratio * a, Math.min(Math.max(ratio, 1 - clip.low), 1 + clip.high) * a);
    const logRatios = own.map((row, i) => row.map((value, t) => value - group.oldLogProbs[i]![t]!));
    const terms = logRatios.flatMap((row, i) => {
      const a = group.advantages[i]!;
      if (name === "token") return row.map((value) => surrogate(Math.exp(value), a));
      return [surrogate(Math.exp(row.reduce((sum, value) => sum + value, 0)), a)];
    });
    return terms.reduce((sum, term) => sum + term, 0) / terms.length;
  }

  test("value and gradient equal central differences of the formula", async () => {
    const { value, gradients } = await evaluate(name, group, clip);
    const step = 1e-5;
    const numeric = logProbs.map((row, i) =>
      row.map((_, t) => {
        const moved = (by: number) => logProbs.map((r, j) => (j === i ? r.with(t, r[t]! + by) : r));
        return (reference(moved(step)) - reference(moved(-step))) / (2 * step);
      }),
    );
    expectClose("value", [value], [reference(logProbs)], { rtol: 0, atol: 1e-6 });
    expectClose("gradient", gradients.flat(), numeric.flat(), { rtol: 0, atol: 2e-6 });
  });

  test("padding does not matter and receives no gradient", async () => {
    const tight = await evaluate(name, group, clip);
    const wide = await evaluate(name, group, clip, 12);
    expectClose("value", [wide.value], [tight.value], { rtol: 0, atol: 1e-7 });
    expectClose("gradient", wide.gradients.flat(), tight.gradients.flat(), { rtol: 0, atol: 1e-7 });
    expect(wide.padding.every((value) => value === 0)).toBe(true);
  });

  test("the order of the group does not matter", async () => {
    const order = [2, 0, 3, 1];
    const permuted: Group = {
      advantages: order.map((i) => group.advantages[i]!),
      logProbs: order.map((i) => group.logProbs[i]!),
      oldLogProbs: order.map((i) => group.oldLogProbs[i]!),
    };
    const [straight, other] = [await evaluate(name, group, clip), await evaluate(name, permuted, clip)];
    expectClose("value", [other.value], [straight.value], { rtol: 0, atol: 1e-6 });
    expectClose(
      "gradient",
      other.gradients.flat(),
      order.flatMap((i) => straight.gradients[i]!),
      { rtol: 0, atol: 1e-6 },
    );
  });
});
