/**
 * Objectives of small groups: evaluated on the GPU with any padding, and the same formulas written once more in
 * float64, plainly, for finite differences.
 */
import { backward } from "../../src/autograd/backward.ts";
import { parameter } from "../../src/autograd/variable.ts";
import { advantages } from "../../src/grpo/advantage.ts";
import { evaluateObjective, OBJECTIVES, type ObjectiveName } from "../../src/grpo/objective.ts";
import {
  padRows,
  wholeStep,
  type Batch,
  type ObjectiveOptions,
  type StepTotals,
} from "../../src/grpo/objective_parts.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { readAll } from "../../src/tensor/tensor.ts";

/** The reference experiment's advantages of one group: baseline mean, scale group, ddof 1. */
export const groupAdvantages = (rewards: readonly number[], delta = 1e-6): number[] => advantages([rewards], { delta })[0]!;

export const isObjectiveName = (name: string): name is ObjectiveName => Object.hasOwn(OBJECTIVES, name);

export type Rows = readonly (readonly number[])[];

/** Completions in plain numbers, one row each, without padding. */
export interface Group {
  readonly advantages: readonly number[];
  readonly logProbs: Rows;
  readonly oldLogProbs: Rows;
  readonly referenceLogProbs?: Rows;
  readonly policyWeights?: Rows;
  /** All ones unless given. */
  readonly mask?: Rows;
}

/** L of Dr. GRPO in all tests. */
export const MAX_TOKENS = 10;

export const maskOf = ({ mask, logProbs }: Group): Rows => mask ?? logProbs.map((row) => row.map(() => 1));
export const stepOf = (group: Group): StepTotals => wholeStep({ mask: maskOf(group) }, MAX_TOKENS);

export interface Padding {
  /** T; the longest row unless given. */
  readonly width?: number;
  readonly side?: "left" | "right";
}

/** What stands behind the mask: if it mattered, it would show. */
const JUNK = -1.75;

/** Value, ratios, KL estimates, and the gradient of every log-probability (rows without padding; padding apart). */
export async function evaluate(
  name: ObjectiveName,
  group: Group,
  options: ObjectiveOptions,
  step: StepTotals = stepOf(group),
  { width = Math.max(...group.logProbs.map(({ length }) => length)), side = "right" }: Padding = {},
) {
  const pad = (rows: Rows, fill: number): number[][] =>
    rows.map((row) => {
      const padding = new Array<number>(width - row.length).fill(fill);
      return side === "left" ? [...padding, ...row] : [...row, ...padding];
    });
  const upload = (rows: Rows) => padRows(pad(rows, JUNK), width);
  return scopeAsync(async () => {
    const logProbs = parameter(upload(group.logProbs));
    const batch: Batch = {
      logProbs,
      oldLogProbs: upload(group.oldLogProbs),
      mask: pad(maskOf(group), 0),
      advantages: group.advantages,
      ...(group.referenceLogProbs ? { referenceLogProbs: upload(group.referenceLogProbs) } : {}),
      ...(group.policyWeights ? { policyWeights: upload(group.policyWeights) } : {}),
    };
    const { value, ratio, kl } = evaluateObjective(name, batch, options, step);
    backward(value);
    const [values, gradient, ratios, kls] = await readAll(
      [value.value, logProbs.grad!, ratio, ...(kl ? [kl] : [])],
    );
    const offset = (row: readonly number[]): number => (side === "left" ? width - row.length : 0);
    const gradients = group.logProbs.map((row, i) => {
      const start = i * width + offset(row);
      return [...gradient!.subarray(start, start + row.length)];
    });
    const isPadding = (i: number): boolean => {
      const row = group.logProbs[Math.floor(i / width)]!;
      const t = (i % width) - offset(row);
      return t < 0 || t >= row.length;
    };
    return {
      value: values![0]!,
      gradients,
      padding: [...gradient!].filter((_, i) => isPadding(i)),
      ratios: [...ratios!],
      kl: kls ? [...kls] : null,
    };
  });
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
const clamp = (x: number, low: number, high: number): number => Math.min(Math.max(x, low), high);

/**
 * The objective at log-probabilities `own`, in float64, after the papers' formulas. CISPO's weights come from the
 * group's own log-probabilities, which finite differences leave where they are: that is its stop-gradient.
 */
export function referenceObjective(
  name: ObjectiveName,
  group: Group,
  { clip, delta = Infinity, ratioLevel = "token", kl }: ObjectiveOptions,
  step: StepTotals,
  own: Rows,
): number {
  const mask = maskOf(group);
  const count = sum(mask.flat());
  const estimate = (k: number): number =>
    ({ k1: -k, k2: (k * k) / 2, k3: Math.exp(k) - k - 1 })[kl?.estimator ?? "k3"];
  const perSequence = name === "sequence" || name === "rloo";

  const totals = own.map((row, i) => {
    const [a, m] = [group.advantages[i]!, mask[i]!];
    const length = sum(m);
    if (length === 0) return 0;
    const difference = (from: Rows, to: Rows): number[] => m.map((on, t) => (on ? from[i]![t]! - to[i]![t]! : 0));
    const d = difference(own, group.oldLogProbs);
    const k = kl ? difference(group.referenceLogProbs!, own) : d;
    const surrogate = (rho: number): number =>
      Math.min(Math.min(rho, delta) * a, clamp(rho, 1 - clip.low, 1 + clip.high) * a);
    const correction = (rho: number): number => (kl?.biasCorrection ? rho : 1);
    if (perSequence) {
      const rho = Math.exp(sum(d));
      return (surrogate(rho) - (kl ? kl.beta * estimate(sum(k)) * correction(rho) : 0)) / step.sequences;
    }
    const perRow = name === "gspo" || ratioLevel === "sequence";
    const ratioAt = (logRatios: readonly number[], t: number): number =>
      Math.exp(perRow ? sum(logRatios) / length : logRatios[t]!);
    const fixed = difference(group.logProbs, group.oldLogProbs);
    const policy = (t: number): number => {
      const rho = ratioAt(d, t);
      if (name === "reinforce") return a * row[t]!;
      if (name === "cispo") return Math.min(ratioAt(fixed, t), clip.high) * a * row[t]!;
      if (name === "sapo") {
        const tau = a > 0 ? 1 : 1.05;
        return ((4 / tau) * a) / (1 + Math.exp(-tau * (rho - 1)));
      }
      return surrogate(rho);
    };
    const weight = {
      grpo: 1 / (step.sequences * length),
      gspo: 1 / (step.sequences * length),
      sapo: 1 / (step.sequences * length),
      dapo: 1 / step.tokens,
      cispo: 1 / step.tokens,
      bnpo: 1 / (count * step.microBatches),
      dr_grpo: 1 / (step.sequences * step.maxTokens),
      reinforce: 1 / step.sequences,
    }[name as Exclude<ObjectiveName, "sequence" | "rloo">];
    return sum(
      m.map((on, t) => {
        const omega = group.policyWeights?.[i]![t] ?? 1;
        const penalty = kl ? kl.beta * estimate(k[t]!) * correction(ratioAt(d, t)) : 0;
        return on * weight * (omega * policy(t) - penalty);
      }),
    );
  });
  return sum(totals);
}
