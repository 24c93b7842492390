/**
 * The whole chain against TRL (float64), on a GPT-2 and a Qwen3: checkpoint -> left-padded prompts, right-padded
 * completions -> log-probabilities and entropies at temperature 0.9 -> each loss with its metrics -> the gradient of
 * every parameter.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { backward, zeroGrad } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import type { Variable } from "../../src/autograd/variable.ts";
import { lossMetrics } from "../../src/grpo/loss_metrics.ts";
import { evaluateObjective, type ObjectiveName } from "../../src/grpo/objective.ts";
import { padRows, wholeStep, type ObjectiveOptions } from "../../src/grpo/objective_parts.ts";
import { loadGpt } from "../../src/model/checkpoint.ts";
import { arangePositions, disposeGpt, headWeight, hiddenStates, type Gpt } from "../../src/model/gpt.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { read, readAll, tensor } from "../../src/tensor/tensor.ts";
import { expectClose, relativeToLargest } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { fixturePath, loadEndToEnd } from "../support/oracles.ts";

describe.each(["gpt2-a1", "qwen3-a1"] as const)("%s", (name) => {
  const { temperature, cases, tensors } = loadEndToEnd(name);
  const [count, promptLength] = tensors.get("prompt_ids")!.shape as [number, number];
  const width = tensors.get("completion_ids")!.shape[1]!;
  const time = promptLength + width;

  /** A [completions, columns] tensor of the oracle as rows. */
  const rowsOf = (key: string): number[][] => {
    const { data, shape } = tensors.get(key)!;
    return Array.from({ length: count }, (_, i) => [...data.subarray(i * shape[1]!, (i + 1) * shape[1]!)]);
  };
  const joined = (left: string, right: string): number[] => {
    const tail = rowsOf(right);
    return rowsOf(left).flatMap((row, i) => [...row, ...tail[i]!]);
  };
  const mask = rowsOf("completion_mask");
  const advantages = [...tensors.get("advantages")!.data];
  const masked = (values: ArrayLike<number>): number[] => mask.flat().map((on, i) => on * values[i]!);

  let model: Gpt;
  beforeAll(() => {
    model = loadGpt(fixturePath(`models/${name}`));
  });
  afterEach(() => zeroGrad(model.parameters.values()));
  afterAll(() => disposeGpt(model));

  /** Log-probability and entropy of every completion token: [completions, width]. */
  function forward(): { logProbs: Variable; entropy: Variable } {
    const ids = tokenIds(Uint32Array.from(joined("prompt_ids", "completion_ids")), [count, time]);
    const hidden = hiddenStates(model, ids, {
      // As TRL calls models: positions count from the start of the padded row.
      positions: arangePositions(count, time),
      keyMask: tensor(Uint32Array.from(joined("prompt_mask", "completion_mask")), [count, time]),
    });
    // The hidden state before a token predicts it.
    const before = Array.from({ length: count * width }, (_, i) => {
      return Math.floor(i / width) * time + promptLength - 1 + (i % width);
    });
    const targets = tensor(Uint32Array.from(rowsOf("completion_ids").flat()));
    const { logProbs, entropy } = ops.tokenLogProb(
      ops.embedding(hidden, tokenIds(before)), headWeight(model), targets, { temperature },
    );
    return { logProbs: ops.reshape(logProbs, [count, width]), entropy };
  }

  test("log-probabilities and entropies", async () => {
    await scopeAsync(async () => {
      const { logProbs, entropy } = forward();
      const [actualLogProbs, actualEntropy] = await readAll([logProbs.value, entropy.value]);
      expectClose("log-probs", masked(actualLogProbs!), masked(tensors.get("per_token_logps")!.data), {
        rtol: 0, atol: 1.5e-5,
      });
      expectClose("entropy", masked(actualEntropy!), masked(tensors.get("entropies")!.data), { rtol: 0, atol: 3e-6 });
    });
  });

  test.each(cases.map((oracle) => [oracle.name, oracle] as const))("%s", async (_, oracle) => {
    const { config } = oracle;
    const options: ObjectiveOptions = {
      clip: { low: config.epsilon_low, high: config.epsilon_high },
      ...(config.beta === 0 ? {} : { kl: { beta: config.beta } }),
    };
    const objective = oracle.name as ObjectiveName; // the cases carry our names
    await scopeAsync(async () => {
      const { logProbs, entropy } = forward();
      const batch = {
        logProbs,
        oldLogProbs: padRows(rowsOf("old_per_token_logps"), width),
        referenceLogProbs: padRows(rowsOf("ref_per_token_logps"), width),
        mask,
        advantages,
      };
      const step = wholeStep(batch, config.max_completion_length);
      expect(step.tokens).toBe(config.num_items_in_batch);
      const { value, ratio, kl } = evaluateObjective(objective, batch, options, step);
      backward(ops.neg(value));
      const [values, ratios, entropies, kls] = await readAll([
        value.value, ratio, entropy.value, ...(kl ? [kl] : []),
      ]);
      expectClose("loss", [-values![0]!], [oracle.loss], { rtol: 0, atol: 3e-6 });
      const readback = { ratio: ratios!, kl: kls ?? null, entropies: entropies! };
      const metrics = lossMetrics(objective, readback, batch, options);
      for (const [metric, expected] of Object.entries(oracle.metrics)) {
        expectClose(metric, [metrics[metric]!], [expected], { rtol: 1e-5, atol: 1e-9 });
      }
    });
    for (const [parameter, { grad }] of model.parameters) {
      const gradient = await read(grad!);
      const norm = Math.sqrt(gradient.reduce((sum, value) => sum + value * value, 0));
      expect(Math.abs(norm / oracle.grad_l2[parameter]! - 1), `norm of ${parameter}`).toBeLessThan(4e-6);
      if (!oracle.gradients_stored) continue;
      const want = tensors.get(`${oracle.name}.grad.${parameter}`)!;
      expect(relativeToLargest(gradient, want.data), parameter).toBeLessThan(1.5e-5);
    }
    expect(Object.keys(oracle.grad_l2).sort()).toEqual([...model.parameters.keys()].sort());
  });

  test("full gradients are compared for grpo and dapo", () => {
    expect(cases.map((oracle) => oracle.name)).toEqual(["grpo", "dapo", "dr_grpo", "cispo", "gspo"]);
    expect(cases.filter((oracle) => oracle.gradients_stored).map((oracle) => oracle.name)).toEqual(["grpo", "dapo"]);
  });
});
