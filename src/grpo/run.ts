/**
 * A run, opened: everything that the algorithm in train.ts works with, for a new run or for one that goes on. What is
 * wrong with model, task or memory is said before anything is written.
 */
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adamw, type AdamW } from "../autograd/adamw.ts";
import { resolveModel } from "../data/hub.ts";
import { lockFolder } from "../folder_lock.ts";
import { openChatText } from "../model/chat_model.ts";
import { loadGpt, saveGpt } from "../model/checkpoint.ts";
import { CheckpointError, readConfig } from "../model/config.ts";
import { disposeGpt, type Gpt } from "../model/gpt.ts";
import { gib } from "../model/memory_estimate.ts";
import { idsWithText } from "../model/text_entry.ts";
import { resumableRandom } from "../random.ts";
import { describeGpu, gpu, openGpu } from "../tensor/device.ts";
import { describeSettings, resumedConfig, savedSettings, type TrainCommand, type TrainConfig } from "./config.ts";
import type { Task } from "./environment.ts";
import { OBJECTIVES } from "./objective.ts";
import { disposeCopy, copyPolicy } from "./policy_copy.ts";
import { ReplayBuffer } from "./replay_buffer.ts";
import { requireRoom, type TextCodec } from "./rollout.ts";
import { findRunCheckpoint, saveRunCheckpoint, textSource, type FoundCheckpoint } from "./run_checkpoint.ts";
import { fingerprint } from "./run_manifest.ts";
import { openRunLog, type RunLog } from "./run_log.ts";
import { requireRunMemory } from "./run_memory.ts";
import { START, type RunState, type Score } from "./run_state.ts";
import { openTask } from "./task.ts";

export interface Run {
  readonly config: TrainConfig;
  readonly task: Task;
  readonly codec: TextCodec;
  readonly model: Gpt;
  readonly optimizer: AdamW;
  /** The frozen starting weights; null without a KL term. */
  readonly reference: Gpt | null;
  /** A copy of the newest weights that are known to give finite numbers; null before the first rollouts. */
  lastGood: Gpt | null;
  readonly buffer: ReplayBuffer;
  /** Draws groups. */
  readonly random: ReturnType<typeof resumableRandom>;
  readonly state: RunState;
  readonly log: RunLog;
  /** Where a failure would leave something to go on from; null while gradient steps move the weights. */
  safe: Position | null;
  /** The train step of the newest checkpoint that this process saved or began with. */
  savedStep: number;
  /** A directory with the model's tokenizer and template. */
  readonly textFrom: string;
  /** What a person should know before it starts. */
  readonly notes: readonly string[];
  /** Gives back memory, worker and folder. */
  readonly close: () => Promise<void>;
}

/** A run between two train steps, apart from weights and moments: what a checkpoint says of it. */
export interface Position {
  readonly state: RunState;
  readonly logs: Readonly<Record<string, number>>;
}

/** Opens what the command line asks for; a dry run touches no folder. */
export async function openRun(command: TrainCommand): Promise<Run> {
  const { given } = command;
  const found = command.resume === null ? null : await findRunCheckpoint(command.resume, "runs");
  const checkpoint = found?.checkpoint;
  const config = found ? resumedConfig(found.checkpoint.config, found.run, given) : command.config;
  const unlock = found ? lockFolder(found.run) : null;
  await openGpu();
  const directory = checkpoint?.modelDirectory ?? (await resolveModel(config.model));
  const chat = openChatText(directory);
  const codec: TextCodec = {
    encodePrompt: ({ messages }) => chat.encodePrompt(messages),
    decode: (ids) => chat.tokenizer.decode(idsWithText(chat.tokenizer, ids), { skipSpecial: true }),
    endIds: chat.tokenizer.eosIds,
  };
  const task = await openTask(config.environment, { timeoutSeconds: config.rewardTimeout });
  const trained = await task.prompts(0, config.promptsPerStep, config.seed);
  const heldOut = config.evalEvery > 0 ? await task.heldOut() : [];
  const prompts = [...trained, ...heldOut].map((prompt) => codec.encodePrompt(prompt));
  // What the machine cannot hold is refused before weights are loaded.
  const bytes = requireRunMemory(readConfig(directory), prompts, config);
  const model = loadGpt(directory);
  requireRoom(model, [...trained, ...heldOut], prompts, config.maxRolloutTokens);

  const optimizer = adamw([...model.parameters.values()], {
    beta1: config.adamBeta1,
    beta2: config.adamBeta2,
    eps: config.adamEpsilon,
    weightDecay: config.weightDecay,
    maximize: true,
    ...(config.maxGradNorm > 0 ? { maxGradNorm: config.maxGradNorm } : {}),
  });
  checkpoint?.restoreOptimizer(optimizer, model);
  const state: RunState = { ...START, ...checkpoint?.state };
  const reference = config.beta > 0 ? await openReference(config, model, state) : null;
  const release = unlock ?? (command.dryRun ? (): void => undefined : lockFolder(config.out));
  if (!command.dryRun) writeSettings(config);
  const run: Run = {
    config,
    task,
    codec,
    model,
    optimizer,
    reference,
    lastGood: null,
    buffer: new ReplayBuffer(config.replayBufferCapacity, state.replay),
    random: resumableRandom(found ? state.random : config.seed),
    state,
    log: openRunLog(config.out, checkpoint?.logs),
    safe: null,
    savedStep: state.trainStep,
    textFrom: directory,
    notes: [
      `adapter: ${describeGpu()}`,
      `model: ${config.model}${directory === config.model ? "" : ` (${directory})`}`,
      `GPU memory: about ${gib(bytes)} of ${gib(gpu().byteBudget)}`,
      `objective: ${config.objective}, divided by: ${OBJECTIVES[config.objective].normaliser}`,
      ...(chat.hasChatTemplate ? [] : [`note: ${config.model} has no chat template: prompts are plain text`]),
      ...taskNotes(config, task.name, trained.length, heldOut.length),
      ...trainingNotes(config),
      `settings: ${describeSettings(config)}`,
      ...(found ? resumeNotes(found, given) : []),
      ...(command.dryRun ? [] : [`run: ${config.out}`]),
    ],
    close: async () => {
      await task.close();
      optimizer.dispose();
      for (const copy of [reference, run.lastGood]) if (copy) disposeCopy(copy);
      disposeGpt(model);
      release();
    },
  };
  return run;
}

/** Where the run is now, between two train steps. */
export function positionOf({ state, random, buffer, log }: Run): Position {
  return { state: { ...state, random: random.state(), replay: buffer.experiences }, logs: log.lengths() };
}

/** Saves where the run is, or was a moment ago with the same weights; returns the checkpoint's folder. */
export async function saveRun(run: Run, { state, logs }: Position = positionOf(run)): Promise<string> {
  const { config, model, optimizer, textFrom } = run;
  const score = scoreOf(state, config);
  // Scores of another kind are no lower and no higher: the comparison begins again.
  const isBest = score !== null && (state.best?.by !== score.by || score.score > state.best.score);
  const best = isBest ? { step: state.trainStep, ...score } : state.best;
  const content = { state: { ...state, best }, logs, config: savedSettings(config), model, optimizer, textFrom };
  const path = await saveRunCheckpoint(config.out, content, { keepLast: config.keepLast });
  run.state.best = best;
  run.savedStep = state.trainStep;
  return path;
}

/** Null for weights that nobody has evaluated while others were, and where there is no mean reward. */
function scoreOf({ trainStep, evaluated, meanRewards }: RunState, { evalEvery }: TrainConfig): Score | null {
  if (evaluated?.step === trainStep) return { by: "accuracy", score: evaluated.accuracy };
  const reward = meanRewards.at(-1) ?? null;
  return (evaluated && evalEvery > 0) || reward === null ? null : { by: "reward", score: reward };
}

/** To be called when the policy has just given finite numbers. */
export function rememberGood(run: Run): void {
  if (run.lastGood) disposeCopy(run.lastGood);
  run.lastGood = copyPolicy(run.model);
}

/** Saves a policy as a model directory of its own, `name` in the run's folder. */
export async function savePolicy({ config, textFrom }: Run, policy: Gpt, name: string): Promise<string> {
  const directory = join(config.out, name);
  await saveGpt(policy, directory, { textFrom: textSource(config.out, textFrom) });
  return directory;
}

function taskNotes({ evalEvery, promptsPerStep }: TrainConfig, name: string, trained: number, heldOut: number): string[] {
  return [
    ...(trained < promptsPerStep
      ? [`note: environment ${name} gave ${trained} of the ${promptsPerStep} prompts of --prompts-per-step`]
      : []),
    ...(evalEvery > 0 && heldOut === 0
      ? [`note: environment ${name} has no held-out prompts: --eval-every does nothing`]
      : []),
  ];
}

function trainingNotes({ objective, ...config }: TrainConfig): string[] {
  const drawn = config.promptsPerStep * config.rolloutCount;
  const isOnPolicy = config.gradUpdatesPerStep === 1 && config.replayBufferCapacity === drawn;
  const updates = config.trainSteps * config.gradUpdatesPerStep;
  return [
    ...(OBJECTIVES[objective].ratio === "none" && !isOnPolicy
      ? [`note: ${objective} has no ratio, so it is biased for completions of an older policy, as most are here. ` +
          `Only new ones: --grad-updates-per-step 1 --replay-buffer-capacity ${drawn}`]
      : []),
    ...(config.warmupSteps >= updates
      ? [`note: the run's ${updates} gradient steps end within --warmup-steps ${config.warmupSteps}: no step has the peak rate`]
      : []),
  ];
}

function resumeNotes(
  { checkpoint, skipped }: FoundCheckpoint,
  given: Readonly<Record<string, unknown>>,
): string[] {
  const changes = Object.entries(given).map(([key, value]) => `${key} ${checkpoint.config[key]} -> ${value}`);
  return [
    ...skipped.map((path) => `warning: checkpoint skipped: ${path}`),
    `resumed: ${checkpoint.directory}, after train step ${checkpoint.state.trainStep}`,
    ...(changes.length > 0 ? [`changed on resume: ${changes.join(", ")}`] : []),
  ];
}

/**
 * The KL term's reference policy is the model that the run began with, also when the run goes on later: then it is
 * loaded again.
 * @throws CheckpointError when that model is not what it was.
 */
async function openReference(config: TrainConfig, policy: Gpt, state: RunState): Promise<Gpt> {
  const directory = await resolveModel(config.model);
  const hash = await weightsHash(directory);
  if (state.referenceHash === null) {
    state.referenceHash = hash;
    return copyPolicy(policy);
  }
  if (hash !== state.referenceHash) {
    throw new CheckpointError(
      `${config.model} has changed since the run began, which needs it as its reference policy (--beta). ` +
        "Fix: put the weights of that time back, or start a new run",
    );
  }
  const start = loadGpt(directory);
  const reference = { ...copyPolicy(start), rotary: policy.rotary };
  disposeGpt(start);
  return reference;
}

/** sha256 of a model's weight files, in the order of their names. */
async function weightsHash(directory: string): Promise<string> {
  const files = readdirSync(directory).filter((name) => name.endsWith(".safetensors")).sort();
  const prints = await Promise.all(files.map((name) => fingerprint(join(directory, name))));
  return prints.map(({ sha256 }) => sha256).join(" ");
}

/** The settings of the newest start, for people, the report and `--config`. */
function writeSettings(config: TrainConfig): void {
  writeFileSync(join(config.out, "config.json"), JSON.stringify(savedSettings(config), null, 2) + "\n");
}
