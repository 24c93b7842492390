/**
 * GRPO: teach a pretrained language model by reward alone.
 *
 *   npm start                                (sets the machine up first)
 *   npx tsx src/grpo/train.ts --seed 7       (--help lists all flags)
 *
 * The objective, maximised over the policy's parameters theta (DeepSeek-R1, 2025, equation 1):
 *
 *   J(theta) = 1/G sum_i ( min( rho_i A_i, clip(rho_i, 1 - epsilon, 1 + epsilon) A_i ) - beta KL_i )
 *   rho_i = pi_theta(o_i | q) / pi_old(o_i | q)          A_i = (r_i - mean(r)) / (std(r) + 1e-6)
 *
 *   q        prompt               Prompt, from the environment
 *   G        group size           groupSize
 *   o_i      completion           Experience.completionIds
 *   r_i      reward               Experience.reward
 *   A_i      advantage            advantagesOf
 *   pi_old   behaviour policy     Experience.logProbs: numbers stored when the completion was drawn
 *   pi_theta policy being trained model
 *   rho_i    importance ratio     one for the whole completion; `--objective dapo` takes one per token
 *   epsilon  clip range           epsilon, epsilonHigh
 *   KL_i     from pi_ref, the     Experience.referenceLogProbs; k = log pi_ref(o_i | q) - log pi_theta(o_i | q),
 *            starting weights     KL_i = e^k - k - 1
 *   beta     weight of KL_i       beta, 0 unless given: then there is no term and no pi_ref
 *
 * `--objective` names the others of the family (objective.ts); they differ in where ratios are taken, how they are
 * clipped, and what the sum is divided by.
 *
 * Departures from the paper: a group is drawn from a replay buffer of the newest experiences and may mix completions of
 * several train steps. Groups without reward spread are stepped through (their gradient is zero, but momentum and
 * weight decay still move the weights). The reference policy stays what it was at the start.
 *
 * The first objectives are zero up to rounding, and should be: with pi_theta = pi_old every ratio is 1 and advantages
 * sum to zero. The gradient is not zero. Watch the rewards.
 */
import { appendFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adamw, type AdamW } from "../autograd/adamw.ts";
import { linearSchedule } from "../autograd/schedule.ts";
import { NumericsError, runMain } from "../cli.ts";
import { resolveModel } from "../data/hub.ts";
import { openChatText } from "../model/chat_model.ts";
import { loadGpt, saveGpt } from "../model/checkpoint.ts";
import { readConfig } from "../model/config.ts";
import type { Gpt } from "../model/gpt.ts";
import { gib } from "../model/memory_estimate.ts";
import { checkLengths } from "../model/sampler.ts";
import { seededRandom } from "../random.ts";
import { describeGpu, gpu, openGpu } from "../tensor/device.ts";
import { memoryStats } from "../tensor/memory.ts";
import { parseConfig, type TrainConfig } from "./config.ts";
import type { Environment } from "./environment.ts";
import { digit } from "./environments/digit.ts";
import { rolloutMetrics, updateMetrics } from "./metrics.ts";
import { OBJECTIVES } from "./objective.ts";
import { disposeReference, referencePolicy } from "./reference_policy.ts";
import { ReplayBuffer } from "./replay_buffer.ts";
import { rollout, type Experience, type TextCodec } from "./rollout.ts";
import { requireRunMemory } from "./run_memory.ts";
import { printSummary, type StepTimes } from "./summary.ts";
import { advantagesOf, gradientStep, logProbGap, withReference } from "./update.ts";

async function main(): Promise<void> {
  const config = parseConfig();
  await openGpu();
  const directory = await resolveModel(config.model);
  const chat = openChatText(directory);
  const codec: TextCodec = {
    encodePrompt: ({ messages }) => chat.encodePrompt(messages),
    decode: (ids) => chat.tokenizer.decode(ids, { skipSpecial: true }),
    endIds: chat.tokenizer.eosIds,
  };
  // What the machine cannot hold is refused before weights are loaded, what the model cannot be asked before anything
  // is written.
  const prompts = digit.prompts().map((prompt) => codec.encodePrompt(prompt));
  const bytes = requireRunMemory(readConfig(directory), prompts, config);
  const model = loadGpt(directory);
  checkLengths(model, prompts, config.maxRolloutTokens);
  mkdirSync(config.out, { recursive: true });
  writeFileSync(join(config.out, "config.json"), JSON.stringify(config, null, 2) + "\n");
  const source = directory === config.model ? "" : ` (${directory})`;
  console.error(`adapter: ${describeGpu()}\nmodel: ${config.model}${source}`);
  console.error(`GPU memory: about ${gib(bytes)} of ${gib(gpu().byteBudget)}`);
  console.error(`objective: ${config.objective}, divided by: ${OBJECTIVES[config.objective].normaliser}`);
  if (!chat.hasChatTemplate) console.error(`note: ${config.model} has no chat template: prompts are plain text`);
  console.error(`run: ${config.out}`);
  await train(model, codec, digit, config);
  await saveGpt(model, join(config.out, "model"), { textFrom: directory });
  console.error(`trained model and metrics: ${config.out}`);
}

/** The algorithm. */
async function train(model: Gpt, codec: TextCodec, environment: Environment, config: TrainConfig): Promise<void> {
  const optimizer = adamw([...model.parameters.values()], {
    weightDecay: config.weightDecay,
    maximize: true,
    ...(config.maxGradNorm > 0 ? { maxGradNorm: config.maxGradNorm } : {}),
  });
  const reference = config.beta > 0 ? referencePolicy(model) : null;
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
    buffer.add(reference ? await withReference(reference, experiences, config.temperature) : experiences);
    const rolledOut = performance.now();

    console.log("-- Training");
    const gap = await logProbGap(model, experiences, config.temperature);
    const rolloutRecord = rolloutMetrics(trainStep, experiences, gap);
    appendMetrics(config, rolloutRecord);
    meanRewards.push(rolloutRecord.reward);
    for (let gradStep = 0; gradStep < config.gradUpdatesPerStep; gradStep++) {
      const group = buffer.sampleGroup(config.groupSize, random);
      const advantages = advantagesOf(group, buffer.experiences, config);
      await update(model, optimizer, group, advantages, { trainStep, gradStep }, config);
    }
    times.push(stepTimes(started, rolledOut, experiences));
    appendFileSync(join(config.out, "timings.jsonl"), JSON.stringify({ step: trainStep + 1, ...times.at(-1) }) + "\n");
  }
  optimizer.dispose();
  if (reference) disposeReference(reference);
  printSummary(meanRewards, times);
}

/** One gradient step on one group, with its console line and its record. */
async function update(
  model: Gpt,
  optimizer: AdamW,
  group: readonly Experience[],
  advantages: readonly number[],
  { trainStep, gradStep }: { trainStep: number; gradStep: number },
  config: TrainConfig,
): Promise<void> {
  const done = trainStep * config.gradUpdatesPerStep + gradStep;
  const totalSteps = config.trainSteps * config.gradUpdatesPerStep;
  const learningRate = config.learningRate * linearSchedule(done, { warmupSteps: config.warmupSteps, totalSteps });
  const result = await gradientStep(model, optimizer, group, advantages, learningRate, config);
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
  appendMetrics(config, updateMetrics({ trainStep, gradStep, learningRate }, group, result));
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
