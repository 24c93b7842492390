/** Milliseconds of the model in `weights/`: a training step of each kind, and batched decoding. */
import { adamw } from "../src/autograd/adamw.ts";
import { backward, zeroGrad } from "../src/autograd/backward.ts";
import { parseConfig } from "../src/grpo/config.ts";
import { advantagesOf, gradientStep } from "../src/grpo/update.ts";
import type { Experience } from "../src/grpo/rollout.ts";
import { loadChatModel } from "../src/model/chat_model.ts";
import type { Gpt } from "../src/model/gpt.ts";
import { nextTokenLoss } from "../src/model/pretrain_loss.ts";
import { sampleCompletions } from "../src/model/sampler.ts";
import { memoryStats, resetPeak, scopeAsync } from "../src/tensor/memory.ts";
import { recorderStats } from "../src/tensor/recorder.ts";
import { readAll } from "../src/tensor/tensor.ts";
import { median, type Row } from "./table.ts";

const RUNS = 5;
const DECODE = { sequences: 25, prompt: 32, tokens: 10 };

/** One row per workload: median milliseconds of whole calls (upload and readback included), dispatches, peak memory. */
export async function benchModel(directory: string): Promise<Row[]> {
  const { model } = loadChatModel(directory);
  const parameters = [...model.parameters.values()];
  const ids = (count: number): number[] => Array.from({ length: count }, (_, i) => (i * 37) % 256);

  const pretrainOptimizer = adamw(parameters, { maxGradNorm: 1 });
  const pretrainStep = (): Promise<unknown> =>
    scopeAsync(async () => {
      const loss = nextTokenLoss(model, Uint32Array.from(ids(8 * 64)), 8, 64);
      backward(loss);
      const { gradNorm } = pretrainOptimizer.step(0);
      zeroGrad(parameters);
      return readAll([loss.value, gradNorm]);
    });

  const group = grpoGroup(ids);
  const grpoOptimizer = adamw(parameters, { maximize: true });
  const config = parseConfig(["node", "bench"]);
  const advantages = advantagesOf([group], group, config);
  const grpoStep = (): Promise<unknown> => gradientStep(model, grpoOptimizer, group, advantages, 0, config);

  const rows = [
    await measure("pretraining step, 8 x 64 tokens", pretrainStep),
    await measure("GRPO gradient step, 5 x (32 + 10) tokens", grpoStep),
    ...(await decodeRows(model, ids)),
  ];
  pretrainOptimizer.dispose();
  grpoOptimizer.dispose();
  return rows;
}

/** Five completions of ten tokens with unequal rewards, so that the gradient is not zero. */
function grpoGroup(ids: (count: number) => number[]): Experience[] {
  return Array.from({ length: 5 }, (_, i) => ({
    prompt: { id: "bench", messages: [] },
    promptIds: ids(DECODE.prompt),
    completionIds: ids(DECODE.tokens),
    logProbs: new Array<number>(DECODE.tokens).fill(-1),
    ended: false,
    text: "",
    rewards: [],
    reward: i,
    trainStep: 0,
    group: "bench",
  }));
}

/** Decoding of all tokens, and of one step: the difference between ten tokens and one, divided by nine. */
async function decodeRows(model: Gpt, ids: (count: number) => number[]): Promise<Row[]> {
  const decode = (tokens: number) => (): Promise<unknown> =>
    sampleCompletions(model, [ids(DECODE.prompt)], DECODE.sequences, {
      maxNewTokens: tokens,
      temperature: 1,
      seed: 1,
      endIds: [],
      tokensPerReadback: tokens,
    });
  const name = `${DECODE.sequences} sequences, prompt ${DECODE.prompt}`;
  const all = await measure(`decode ${DECODE.tokens} tokens, ${name}`, decode(DECODE.tokens));
  const first = await measure(`decode 1 token (prefill), ${name}`, decode(1));
  const step = (Number(all.ms) - Number(first.ms)) / (DECODE.tokens - 1);
  const dispatches = (Number(all.dispatches) - Number(first.dispatches)) / (DECODE.tokens - 1);
  return [
    all,
    first,
    { ...first, workload: `one batched decode step, ${DECODE.sequences} sequences`, ms: step, dispatches, submits: 0 },
  ];
}

async function measure(workload: string, body: () => Promise<unknown>): Promise<Row> {
  await body(); // compiles
  await body();
  resetPeak();
  const before = recorderStats();
  const times: number[] = [];
  for (let run = 0; run < RUNS; run++) {
    const start = performance.now();
    await body();
    times.push(performance.now() - start);
  }
  const after = recorderStats();
  return {
    workload,
    ms: median(times),
    dispatches: (after.dispatches - before.dispatches) / RUNS,
    submits: (after.submits - before.submits) / RUNS,
    "peak MiB": memoryStats().peakBytes / 2 ** 20,
  };
}
