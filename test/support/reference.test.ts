/**
 * The float64 reference against PyTorch and transformers: the yardstick is measured before it measures the GPU.
 */
import { describe, expect, it } from "vitest";
import { centralDifferences, directionalDerivative, dot, expectClose, random } from "./gradcheck.ts";
import type { OpCase } from "./oracles.ts";
import { loadModelOracle, loadNanoRl, loadOpCases, modelOracleNames } from "./oracles.ts";
import { opTable, runReference } from "./op_table.ts";
import type { Array64 } from "./reference.ts";
import { array64, erf, erfc, map, mulScalar } from "./reference.ts";
import { reshape, slice } from "./reference_shape.ts";
import type { AdamWState } from "./reference_nn.ts";
import { adamwStep, clipFactor, crossEntropy, linearSchedule } from "./reference_nn.ts";
import { logSoftmax, tokenLogProbability } from "./reference_nn.ts";
import { referenceForward } from "./reference_model.ts";

/** Inputs with more elements than this are checked along random directions instead of one by one. */
const elementwiseLimit = 200;

const cases = loadOpCases();
const operations = [...new Set(cases.map(({ op }) => op))];

/** Several outputs as one: their elements one after another. */
function flatten(outputs: readonly Array64[]): Array64 {
  const data = outputs.flatMap((output) => [...output.data]);
  return array64([data.length], data);
}

function checkGradients(opCase: OpCase): void {
  const names = Object.keys(opCase.inputs);
  const values = Object.values(opCase.inputs);
  const cotangent = flatten(opCase.cotangents);
  const f = (inputs: Array64[]): Array64 =>
    flatten(runReference(opCase.op, Object.fromEntries(names.map((name, i) => [name, inputs[i]!])), opCase.attrs));
  for (const [name, grad] of Object.entries(opCase.grads)) {
    const which = names.indexOf(name);
    const label = `${opCase.name}: gradient of ${name}`;
    if (grad.data.length <= elementwiseLimit) {
      const numerical = centralDifferences(f, values, cotangent, which);
      expectClose(label, numerical.data, grad.data, { rtol: 1e-7, atol: 2e-8 });
      continue;
    }
    const { uniform } = random(which);
    for (let repeat = 0; repeat < 2; repeat++) {
      const direction = uniform(grad.shape);
      const numerical = directionalDerivative(f, values, cotangent, which, direction);
      expectClose(label, [numerical], [dot(grad.data, direction.data)], { rtol: 1e-7, atol: 1e-7 });
    }
  }
}

describe("float64 reference against PyTorch", () => {
  it("covers every operation of the fixture, and no other", () => {
    expect(Object.keys(opTable).sort()).toEqual(operations.toSorted());
  });

  for (const op of operations) {
    const opCases = cases.filter((opCase) => opCase.op === op);
    it(`${op}: outputs of ${opCases.length} cases`, () => {
      for (const { name, inputs, attrs, outputs } of opCases) {
        const actual = runReference(op, inputs, attrs);
        expect(actual.map(({ shape }) => shape), name).toEqual(outputs.map(({ shape }) => shape));
        actual.forEach(({ data }, i) => expectClose(name, data, outputs[i]!.data, { rtol: 1e-9, atol: 1e-12 }));
      }
    });

    // At a kink the two-sided difference is the average of both slopes and torch's choice is a convention.
    const smooth = opCases.filter(({ atKink, cotangents }) => !atKink && cotangents.length > 0);
    if (smooth.length === 0) continue;
    it(`${op}: gradients of ${smooth.length} cases`, () => {
      smooth.forEach(checkGradients);
    });
  }
});

describe("float64 reference against transformers", () => {
  for (const name of modelOracleNames) {
    const { config, expected, tensors, weights } = loadModelOracle(name);
    const tensor = (key: string): Array64 => tensors.get(key)!;
    const ids = tensor("input_ids").data;
    const byName = (key: string): Array64 | undefined => weights.get(key);
    const [batch, time] = tensor("input_ids").shape as [number, number];
    const float32Storage = { rtol: 2e-7, atol: 2e-7 }; // expected.safetensors holds rounded float64 results

    /** Mean next-token cross-entropy over the rows. */
    const nextTokenLoss = (logits: Array64): number => {
      const predicting = slice(logits, 1, 0, time - 1);
      const targets = slice(tensor("input_ids"), 1, 1, time).data;
      return crossEntropy(reshape(predicting, [-1, config.vocab_size]), targets).data[0]!;
    };

    it(`${name}: hidden states, logits, log-probabilities and loss`, () => {
      const { logits, hidden } = referenceForward(config, byName, { ids, batch });
      hidden.forEach(({ data }, layer) => {
        expectClose(`hidden.${layer}`, data, tensor(`hidden.${layer}`).data, float32Storage);
      });
      expectClose("logits", logits.data, tensor("logits").data, float32Storage);
      expectClose("loss", [nextTokenLoss(logits)], [expected.main.loss], { rtol: 1e-12, atol: 0 });

      const table = config.model_type === "gpt2" ? "transformer.wte.weight" : "model.embed_tokens.weight";
      const head = weights.get(expected.tied_embeddings ? table : "lm_head.weight")!;
      const last = reshape(slice(hidden.at(-1)!, 1, 0, time - 1), [-1, head.shape[1]!]);
      const { logProbability } = tokenLogProbability(last, head, slice(tensor("input_ids"), 1, 1, time).data);
      expectClose("logps", logProbability.data, tensor("logps").data, float32Storage);
    });

    it(`${name}: padded batches`, () => {
      for (const side of ["left", "right", "both"]) {
        const attentionMask = tensor(`${side}.attention_mask`).data;
        const padded = tensor(`${side}.input_ids`).data;
        const real = (logits: Array64): Float64Array =>
          logits.data.filter((_, i) => attentionMask[Math.floor(i / config.vocab_size)] === 1);
        const { logits } = referenceForward(config, byName, { ids: padded, batch, attentionMask });
        expectClose(`${side}.logits`, real(logits), real(tensor(`${side}.logits`)), float32Storage);
        if (side === "right") continue;
        const positions = tensor(`${side}.position_ids`).data;
        const shifted = referenceForward(config, byName, { ids: padded, batch, attentionMask, positions }).logits;
        const key = `${side}.logits_with_position_ids`;
        expectClose(key, real(shifted), real(tensor(key)), float32Storage);
      }
    });

    it(`${name}: learning rates, clipping and the first AdamW steps`, () => {
      const { adamw } = expected;
      const { lr_peak: peak, warmup_steps: warmup, total_steps: steps } = adamw;
      const rates = adamw.lr.map((_, step) => peak * linearSchedule(step, warmup, steps));
      expectClose("lr", rates, adamw.lr, { rtol: 1e-14, atol: 0 });

      // The rate of step 0 is 0, so steps 0 and 1 see the same gradients, which the fixture holds.
      const names = Object.keys(expected.parameter_shapes);
      const gradients = names.map((parameter) => tensor(`grad.${parameter}`));
      const factor = clipFactor(gradients, adamw.max_grad_norm);
      const norm = adamw.grad_norm_before_clip[0]!;
      expectClose("clip factor", [factor], [Math.min(1, 1 / (norm + 1e-6))], { rtol: 1e-7, atol: 0 });

      const updated = new Map<string, Array64>(weights);
      names.forEach((parameter, i) => {
        const zeros = mulScalar(gradients[i]!, 0);
        let state: AdamWState = { parameter: weights.get(parameter)!, firstMoment: zeros, secondMoment: zeros };
        for (const step of [1, 2]) {
          const learningRate = adamw.lr[step - 1]!;
          const options = { learningRate, step, weightDecay: adamw.weight_decay, eps: adamw.eps };
          state = adamwStep(state, mulScalar(gradients[i]!, factor), options);
        }
        updated.set(parameter, state.parameter);
      });
      const loss = nextTokenLoss(referenceForward(config, (key) => updated.get(key), { ids, batch }).logits);
      expectClose("loss at step 2", [loss], [adamw.loss[2]!], { rtol: 1e-7, atol: 0 });
    });
  }
});

describe("reference operations that no fixture covers", () => {
  it("erf and erfc agree with published values (Abramowitz and Stegun table 7.1; erfc(5): C library)", () => {
    const [at, published] = [[0, 0.5, 1, 2, -1], [0, 0.5204998778, 0.8427007929, 0.995322265, -0.8427007929]];
    expectClose("erf", at.map(erf), published, { rtol: 1e-9, atol: 0 });
    expectClose("erfc(5)", [erfc(5)], [1.5374597944280349e-12], { rtol: 1e-12, atol: 0 });
    expectClose("erfc is smooth where the formula changes", [erfc(2.5 - 1e-15)], [erfc(2.5)], { rtol: 1e-11, atol: 0 });
  });

  it("a hand-worked AdamW step: 1 * (1 - 0.1 * 0.01) - 0.1 * 0.5 / (0.5 + 1e-8)", () => {
    const zero = array64([1], [0]);
    const state = { parameter: array64([1], [1]), firstMoment: zero, secondMoment: zero };
    const { parameter } = adamwStep(state, array64([1], [0.5]), { learningRate: 0.1, step: 1 });
    expectClose("parameter", parameter.data, [0.899000002], { rtol: 1e-14, atol: 0 });
  });

  it("token log-probability: a uniform distribution has entropy log V, and temperature divides the logits", () => {
    const hidden = array64([2, 2], [0, 0, 1, 2]);
    const weight = array64([3, 2], [1, 0, 0, 1, 1, 1]); // logits of row 1: 1, 2, 3
    const { logProbability, entropy } = tokenLogProbability(hidden, weight, [2, 0], 2);
    const z = Math.exp(0.5) + Math.exp(1) + Math.exp(1.5);
    const p = [0.5, 1, 1.5].map((logit) => Math.exp(logit) / z);
    expectClose("logp", logProbability.data, [-Math.log(3), Math.log(p[0]!)], { rtol: 1e-14, atol: 0 });
    const h = -p.reduce((sum, value) => sum + value * Math.log(value), 0);
    expectClose("entropy", entropy.data, [Math.log(3), h], { rtol: 1e-14, atol: 0 });
  });

  it("cross entropy: a masked row counts no more than one with the ignored target", () => {
    const logits = random(3).uniform([3, 5]);
    const ignored = crossEntropy(logits, [1, -100, 4]).data;
    expect(crossEntropy(logits, [1, 2, 4], { mask: [1, 0, 1] }).data).toEqual(ignored);
    expect(crossEntropy(logits, [1, 2, 4]).data).not.toEqual(ignored);
  });

  it("nano-rl: the stored ratios follow from the logits and the old log-probabilities", () => {
    const groups = loadNanoRl();
    expect(groups.map(({ algorithm }) => algorithm)).toEqual(["grpo", "grpo", "grpo", "grpo", "dapo", "dapo", "dapo"]);
    for (const nano of groups) {
      for (const experience of nano.group) {
        const { tokens, prompt_length: start, logits } = experience;
        const logProbabilities = logSoftmax(array64([tokens.length, nano.vocab], logits.flat())).data;
        const response = tokens.slice(start).map((token, i) => logProbabilities[(start + i - 1) * nano.vocab + token]!);
        const [ratio, expectedRatio] =
          "old_log_probs_sum" in experience
            ? [[Math.exp(response.reduce((a, b) => a + b, 0) - experience.old_log_probs_sum)], [experience.ratio]]
            : [response.map((logP, i) => Math.exp(logP - experience.old_log_probs[i]!)), experience.ratio];
        expectClose(nano.name, ratio, expectedRatio, { rtol: 1e-9, atol: 0 });
      }
    }
  });
});

describe("the checking tools themselves", () => {
  const tolerance = { rtol: 1e-3, atol: 1e-3 };

  it("expectClose names the operation, the element and the largest error", () => {
    expect(() => expectClose("softmax", [1, 2.5, 9], [1, 2, 3], tolerance)).toThrow(
      /softmax: 2 of 3 values differ.*First at index 1: got 2.5, expected 2.*6\.00e\+0 at index 2: got 9, expected 3/,
    );
    expect(() => expectClose("sum", [1], [1, 2], tolerance)).toThrow("sum: got 1 numbers, expected 2");
  });

  it("expectClose takes NaN and infinities for close only when identical", () => {
    expectClose("same", [NaN, Infinity, -Infinity, 0], [NaN, Infinity, -Infinity, -0], tolerance);
    const values = [NaN, Infinity, -Infinity, 1];
    for (const got of values) {
      for (const want of values.filter((value) => !Object.is(value, got))) {
        expect(() => expectClose("x", [got], [want], tolerance)).toThrow(/not finite/);
      }
    }
  });

  it("central differences of x³ are 3x² times the cotangent, and see a wrong gradient", () => {
    const x = array64([3], [0.5, -1, 2]);
    const cotangent = array64([3], [1, 2, -3]);
    const cube = ([input]: Array64[]): Array64 => map(input!, (value) => value ** 3);
    const gradient = centralDifferences(cube, [x], cotangent, 0).data;
    expectClose("x³", gradient, [0.75, 6, -36], { rtol: 1e-8, atol: 0 });
    expect(() => expectClose("x³", gradient, [0.75, 6 * 1.01, -36], { rtol: 1e-3, atol: 1e-5 })).toThrow(/1 of 3/);
  });

  it("random inputs repeat for a seed, differ between seeds and are float32 numbers", () => {
    const draw = random(7).uniform([1000], -2, 2).data;
    expect(random(7).uniform([1000], -2, 2).data).toEqual(draw);
    expect(random(8).uniform([1000], -2, 2).data).not.toEqual(draw);
    expect(draw).toEqual(draw.map(Math.fround));
    expect(Math.min(...draw)).toBeGreaterThanOrEqual(-2);
    expect(Math.max(...draw)).toBeGreaterThan(1.9);
    expect(new Set(random(1).ids(1000, 5))).toEqual(new Set([0, 1, 2, 3, 4]));
  });
});
