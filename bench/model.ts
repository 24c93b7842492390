/** Whole calls: a training step and decoding of the benchmarks' model, a gradient step of the one in weights/. */
import { adamw } from "../src/autograd/adamw.ts";
import { backward, zeroGrad } from "../src/autograd/backward.ts";
import { readLogProbs } from "../src/grpo/completion_log_probs.ts";
import { parseConfig } from "../src/grpo/config.ts";
import type { Experience } from "../src/grpo/rollout.ts";
import { advantagesOf, gradientStep, type UpdateResult } from "../src/grpo/update.ts";
import { DEFAULT_MODEL, loadChatModel } from "../src/model/chat_model.ts";
import { disposeGpt, type Gpt } from "../src/model/gpt.ts";
import { nextTokenLoss } from "../src/model/pretrain_loss.ts";
import { sampleCompletions } from "../src/model/sampler.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { readAll } from "../src/tensor/tensor.ts";
import { decodeCost, gradientStepCost, trainingCost } from "./cost.ts";
import { timedCall, type Bench, type Work } from "./measure.ts";
import { BENCH_MODEL, randomGpt, someIds } from "./model_config.ts";
import type { Row } from "./table.ts";

export const BATCH = 8;
export const TIME = 64;
/** Twenty-five completions of ten tokens, as in the reference experiment. */
export const DECODE = { samples: 25, prompt: 32, tokens: 10 };

interface Training {
  readonly step: (batch: number, time: number) => Promise<unknown>;
  readonly dispose: () => void;
}

/** Steps on [batch, time] tokens as pretraining takes them: loss, backward, AdamW with clipping, one readback. */
export function trainingStep(model: Gpt): Training {
  const parameters = [...model.parameters.values()];
  const optimizer = adamw(parameters, { maxGradNorm: 1 });
  const step = (batch: number, time: number): Promise<unknown> =>
    scopeAsync(async () => {
      const loss = nextTokenLoss(model, Uint32Array.from(someIds(batch * time)), batch, time);
      backward(loss);
      const { gradNorm } = optimizer.step(1e-5);
      zeroGrad(parameters);
      return readAll([loss.value, gradNorm]);
    });
  return { step, dispose: optimizer.dispose };
}

/** Samples completions of different prompts of one length, ten tokens to a readback. */
export function decode(model: Gpt, prompts: number, samples: number, prompt: number, tokens: number): Promise<unknown> {
  const ids = Array.from({ length: prompts }, (_, i) => someIds(prompt, i));
  return sampleCompletions(model, ids, samples, {
    maxNewTokens: tokens, temperature: 1, seed: 1, endIds: [], tokensPerReadback: 10,
  });
}

/** One row per workload: medians of whole calls (upload and readback included), dispatches, submits, peak memory. */
export async function benchModel(bench: Bench): Promise<Row[]> {
  const config = BENCH_MODEL;
  const model = randomGpt(config);
  const { step, dispose } = trainingStep(model);
  const rows: Row[] = [{
    workload: `training step, ${BATCH} x ${TIME} tokens`,
    ...(await timedCall(bench, () => step(BATCH, TIME), {
      ...trainingCost(config, BATCH, TIME), torch: { op: "trainingStep", config, batch: BATCH, time: TIME },
    })),
  }];
  dispose();
  const { samples, prompt, tokens } = DECODE;
  for (const [prompts, each, name] of [[1, samples, "one prompt"], [samples, 1, "prompts of their own"]] as const) {
    rows.push({
      workload: `decode ${tokens} tokens, ${samples} rows, ${name} of ${prompt}`,
      ...(await timedCall(bench, () => decode(model, prompts, each, prompt, tokens), {
        ...decodeCost(config, prompts, each, prompt, tokens),
        torch: { op: "decode", config, prompts, samples: each, prompt, tokens },
      })),
    });
  }
  rows.push({
    workload: `of that: prefill and first token, one prompt`,
    ...(await timedCall(bench, () => decode(model, 1, samples, prompt, 1), decodeCost(config, 1, samples, prompt, 1))),
  });
  disposeGpt(model);
  rows.push(await gradientStepRow(bench));
  return rows;
}

async function gradientStepRow(bench: Bench): Promise<Row> {
  const { step, cost, groupSize, dispose } = await experimentStep();
  const row = {
    workload: `gradient step of the experiment, ${groupSize} x ${DECODE.tokens} tokens`,
    ...(await timedCall(bench, step, cost)),
  };
  dispose();
  return row;
}

interface ExperimentStep {
  readonly step: () => Promise<unknown>;
  readonly cost: Work;
  readonly groupSize: number;
  readonly dispose: () => void;
}

/**
 * A gradient step of the reference experiment: five completions of ten tokens to one prompt, on-policy.
 * @throws Error when the gradient is 0: that would be another amount of work.
 */
export async function experimentStep(): Promise<ExperimentStep> {
  const { model } = loadChatModel(DEFAULT_MODEL);
  const config = parseConfig(["node", "bench"]);
  const { groupSize } = config;
  const optimizer = adamw([...model.parameters.values()], { maximize: true });
  const drawn = grpoGroup(groupSize);
  const logProbs = await readLogProbs(model, drawn, config.temperature);
  const group = drawn.map((experience, i) => ({ ...experience, logProbs: logProbs[i]! }));
  const advantages = advantagesOf([group], group, config);
  const step = (): Promise<UpdateResult> => gradientStep(model, optimizer, group, advantages, 0, config);
  const { gradNorm } = await step();
  if (!(gradNorm > 0)) throw new Error(`the gradient step's gradient has norm ${gradNorm}`);
  return {
    step,
    cost: gradientStepCost(model.config, DECODE.prompt, groupSize, DECODE.tokens),
    groupSize,
    dispose: () => {
      optimizer.dispose();
      disposeGpt(model);
    },
  };
}

/** Completions with unequal rewards. */
function grpoGroup(size: number): Experience[] {
  return Array.from({ length: size }, (_, i) => ({
    prompt: { id: "bench", messages: [] },
    promptIds: someIds(DECODE.prompt),
    completionIds: someIds(DECODE.tokens, i),
    logProbs: [],
    ended: false,
    text: "",
    rewards: [],
    reward: i,
    trainStep: 0,
    group: "bench",
  }));
}
