/**
 * GRPO: teach a pretrained language model by reward alone.
 *
 *   npm start                                (sets the machine up first)
 *   npx tsx src/grpo/train.ts --seed 7       (--help lists all flags)
 *
 * The objective, maximised over the policy's parameters theta (DeepSeek-R1, 2025, equation 1):
 *
 *   J(theta) = 1/G sum_i min( rho_i A_i, clip(rho_i, 1 - epsilon, 1 + epsilon) A_i )
 *   rho_i = pi_theta(o_i | q) / pi_old(o_i | q)          A_i = (r_i - mean(r)) / (std(r) + delta)
 *
 *   q        prompt               Prompt, from the environment
 *   G        group size           groupSize
 *   o_i      completion           Experience.completionIds
 *   r_i      reward               Experience.reward
 *   A_i      advantage            groupAdvantages
 *   pi_old   behaviour policy     Experience.logProbs: numbers stored when the completion was drawn
 *   pi_theta policy being trained model
 *   rho_i    importance ratio     one for the whole completion; `--objective dapo` takes one per token
 *   epsilon  clip range           epsilon, epsilonHigh
 *
 * Departures from the paper: no KL term, so no reference policy is kept. A group is drawn from a replay buffer of the
 * newest experiences and may mix completions of several train steps. Groups without reward spread are stepped through
 * (their gradient is zero, but momentum and weight decay still move the weights).
 *
 * The first objectives are zero up to rounding, and should be: with pi_theta = pi_old every ratio is 1 and advantages
 * sum to zero. The gradient is not zero. Watch the rewards.
 */
import { appendFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adamw, type AdamW } from "../autograd/adamw.ts";
import { linearSchedule } from "../autograd/schedule.ts";
import { NumericsError, runMain } from "../cli.ts";
import { loadChatModel } from "../model/chat_model.ts";
import { saveGpt } from "../model/checkpoint.ts";
import type { Gpt } from "../model/gpt.ts";
import { checkLengths } from "../model/sampler.ts";
import { seededRandom } from "../random.ts";
import { describeGpu, openGpu } from "../tensor/device.ts";
import { memoryStats } from "../tensor/memory.ts";
import { parseConfig, type TrainConfig } from "./config.ts";
import type { Environment } from "./environment.ts";
import { digit } from "./environments/digit.ts";
import { rolloutMetrics, updateMetrics } from "./metrics.ts";
import { ReplayBuffer } from "./replay_buffer.ts";
import { rollout, type Experience, type TextCodec } from "./rollout.ts";
import { printSummary, type StepTimes } from "./summary.ts";
import { gradientStep, logProbGap } from "./update.ts";

async function main(): Promise<void> {
  const config = parseConfig();
  await openGpu();
  const chat = loadChatModel(config.model);
  const codec: TextCodec = {
    encodePrompt: ({ messages }) => chat.encodePrompt(messages),
    decode: (ids) => chat.tokenizer.decode(ids, { skipSpecial: true }),
    endIds: chat.tokenizer.eosIds,
  };
  // What the model cannot be asked is refused before anything is written.
  checkLengths(chat.model, digit.prompts().map((prompt) => codec.encodePrompt(prompt)), config.maxRolloutTokens);
  mkdirSync(config.out, { recursive: true });
  writeFileSync(join(config.out, "config.json"), JSON.stringify(config, null, 2) + "\n");
  console.error(`adapter: ${describeGpu()}\nmodel: ${config.model}\nrun: ${config.out}`);
  await train(chat.model, codec, digit, config);
  await saveGpt(chat.model, join(config.out, "model"), { textFrom: config.model });
  console.error(`trained model and metrics: ${config.out}`);
}

/** The algorithm. */
async function train(model: Gpt, codec: TextCodec, environment: Environment, config: TrainConfig): Promise<void> {
  const optimizer = adamw([...model.parameters.values()], {
    weightDecay: config.weightDecay,
    maximize: true,
    ...(config.maxGradNorm > 0 ? { maxGradNorm: config.maxGradNorm } : {}),
  });
  const buffer = new ReplayBuffer(config.replayBufferCapacity);
  const random = seededRandom(config.seed);
  const meanRewards: number[] = [];
  const times: StepTimes[] = [];

  for (let trainStep = 0; trainStep < config.trainSteps; trainStep++) {
    const started = performance.now();
    console.log("-- Generating rollouts");
    const experiences = await rollout(model, codec, environment, {
      samplesPerPrompt: config.rolloutCount,
      maxNewTokens: config.maxRolloutTokens,
      temperature: config.temperature,
      seed: config.seed,
      firstSample: trainStep * config.rolloutCount,
    });
    for (const { reward, text } of experiences) console.log(`Reward: ${reward.toFixed(3)}; Response: ${text}`);
    buffer.add(experiences);
    const rolledOut = performance.now();

    console.log("-- Training");
    const gap = await logProbGap(model, experiences, config.temperature);
    const rolloutRecord = rolloutMetrics(trainStep, experiences, gap);
    appendMetrics(config, rolloutRecord);
    meanRewards.push(rolloutRecord.reward);
    for (let gradStep = 0; gradStep < config.gradUpdatesPerStep; gradStep++) {
      await update(model, optimizer, buffer.sampleGroup(config.groupSize, random), { trainStep, gradStep }, config);
    }
    times.push(stepTimes(started, rolledOut, experiences));
    appendFileSync(join(config.out, "timings.jsonl"), JSON.stringify({ step: trainStep + 1, ...times.at(-1) }) + "\n");
  }
  optimizer.dispose();
  printSummary(meanRewards, times);
}

/** One gradient step on one group, with its console line and its record. */
async function update(
  model: Gpt,
  optimizer: AdamW,
  group: readonly Experience[],
  { trainStep, gradStep }: { trainStep: number; gradStep: number },
  config: TrainConfig,
): Promise<void> {
  const done = trainStep * config.gradUpdatesPerStep + gradStep;
  const totalSteps = config.trainSteps * config.gradUpdatesPerStep;
  const learningRate = config.learningRate * linearSchedule(done, { warmupSteps: config.warmupSteps, totalSteps });
  const result = await gradientStep(model, optimizer, group, learningRate, config);
  if (!Number.isFinite(result.objective) || !Number.isFinite(result.gradNorm)) {
    throw new NumericsError(
      `grad step ${gradStep + 1} of train step ${trainStep + 1}: objective ${result.objective}, gradient norm ${result.gradNorm}. ` +
        "The run stops without saving a model. Fix: a lower --learning-rate",
    );
  }
  console.log(
    `Grad step ${gradStep + 1}/${config.gradUpdatesPerStep} in train step ${trainStep + 1}/${config.trainSteps} completed. ` +
      `Objective: ${sixDecimals(result.objective)}`,
  );
  const clip = { low: config.epsilon, high: config.epsilonHigh };
  appendMetrics(config, updateMetrics({ trainStep, gradStep, learningRate }, group, result, clip));
}

/** `-0.000000` is noise around zero and reads like a result: it prints as `0.000000`. */
function sixDecimals(value: number): string {
  return value.toFixed(6).replace(/^-(0\.0+)$/, "$1");
}

function appendMetrics({ out }: TrainConfig, record: object): void {
  appendFileSync(join(out, "metrics.jsonl"), JSON.stringify(record) + "\n");
}

/**
 * Wall-clock times and live GPU memory of a train step: not in metrics.jsonl, which is the same for every run of a
 * seed.
 */
function stepTimes(started: number, rolledOut: number, experiences: readonly Experience[]): StepTimes {
  const { liveBytes, liveBuffers } = memoryStats();
  return {
    rolloutSeconds: (rolledOut - started) / 1000,
    trainingSeconds: (performance.now() - rolledOut) / 1000,
    rolloutTokens: experiences.reduce((sum, { completionIds }) => sum + completionIds.length, 0),
    liveBytes,
    liveBuffers,
  };
}

await runMain(main);
