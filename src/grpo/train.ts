/**
 * GRPO: teach a pretrained language model by reward alone.
 *
 *   npm start                                (sets the machine up first)
 *   npx tsx src/grpo/train.ts --seed 7       (--help lists all flags)
 *   npx tsx src/grpo/train.ts --preset arithmetic
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
 * several train steps (`--replay groups` keeps groups as they were rolled out). Groups without reward spread are stepped
 * through: their gradient is zero, but momentum and weight decay still move the weights (with `--replay groups`,
 * `--dynamic-sampling` replaces them). The reference policy stays what it was at the start. docs/derivations.md says
 * more, and why.
 *
 * The first objectives are zero up to rounding, and should be: with pi_theta = pi_old every ratio is 1 and advantages
 * sum to zero. The gradient is not zero. Watch the rewards.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { schedules } from "../autograd/schedule.ts";
import { NumericsError, runMain } from "../cli.ts";
import { GpuError } from "../tensor/device.ts";
import { judgeStep } from "./alerts.ts";
import { parseCommand, stepsReplayed } from "./config.ts";
import { openConsole, type RunConsole } from "./console.ts";
import { dryRun } from "./dry_run.ts";
import { evaluate } from "./evaluate.ts";
import { evaluationMetrics, rolloutMetrics, updateMetrics, type MetricsRecord } from "./metrics.ts";
import { writeReport } from "./report.ts";
import { groupsOf, hasRewardSpread, rollout, type Experience } from "./rollout.ts";
import { openRun, positionOf, rememberGood, savePolicy, saveRun, type Run } from "./run.ts";
import { stepTimes } from "./run_log.ts";
import { listenForStop } from "./stop_signal.ts";
import { summaryLines } from "./summary.ts";
import { advantagesOf, gradientStep, logProbGap, withReference } from "./update.ts";

async function main(): Promise<void> {
  const command = parseCommand();
  const run = await openRun(command);
  if (command.dryRun) return dryRun(run);
  const view = openConsole();
  const earlier = run.state.meanRewards.map((reward, i) => ({ step: i + 1, reward }));
  view.start({ ...run.config, task: run.task.name, notes: run.notes, earlier });
  const stop = listenForStop(
    (signal) => view.note(`${signal}: the run stops after this train step. Again to leave at once`),
    () => view.close(),
  );
  try {
    const { stopAt } = command;
    await train(run, view, () => stop.exitCode() !== null || (stopAt !== null && run.state.trainStep >= stopAt));
    if (run.state.trainStep < run.config.trainSteps) {
      await saveRun(run);
      view.note(`stopped after train step ${run.state.trainStep}. Go on: ${resumeCommand(run)}`);
      process.exitCode = stop.exitCode() ?? 0;
    } else {
      view.summary(summaryLines(run.state.meanRewards, run.log.pastTimes()));
      view.note(`trained model: ${await savePolicy(run, run.model, "model")}`);
    }
    view.note(`report: ${await writeReport(run.config.out)}`);
  } catch (error) {
    const isRuined = error instanceof GpuError || error instanceof NumericsError;
    if (!isRuined) await saveAfterFailure(run, view);
    throw error;
  } finally {
    view.close();
    await run.close();
  }
}

/** Saves the train steps that are done and in no checkpoint yet, where a failure has left them whole. */
async function saveAfterFailure(run: Run, view: RunConsole): Promise<void> {
  try {
    if (run.safe && run.safe.state.trainStep > run.savedStep) await saveRun(run, run.safe);
  } catch (error) {
    view.note(`the train steps since the last checkpoint could not be saved: ${(error as Error).message}`);
  }
  if (run.savedStep > 0) view.note(`saved after train step ${run.savedStep}. Go on: ${resumeCommand(run)}`);
}

/** The algorithm. */
async function train(run: Run, view: RunConsole, isStopped: () => boolean): Promise<void> {
  const { config, task, model, buffer, log, state } = run;
  run.safe = positionOf(run);
  await evaluatePolicy(run, view);

  while (state.trainStep < config.trainSteps && !isStopped()) {
    const { trainStep } = state;
    run.safe = positionOf(run);
    const started = performance.now();
    view.phase("rollouts", trainStep);
    const { experiences, kept, timeouts, rounds } = await collect(run, view);
    if (config.replay === "groups") buffer.forgetBefore(trainStep + 1 - stepsReplayed(config));
    buffer.add(run.reference ? await withReference(run.reference, kept, config.temperature) : kept);
    const rolledOut = performance.now();

    view.phase("training", trainStep);
    const gap = await logProbGap(model, experiences, config.temperature);
    const isSound = Number.isFinite(gap.max);
    if (isSound) rememberGood(run);
    const facts = { trainStep, numTokens: state.numTokens, timeouts, rounds };
    const rolloutRecord = rolloutMetrics(facts, experiences, task.functions, gap);
    log.metrics(rolloutRecord);
    log.completions(experiences, task);
    if (!isSound) await giveUp(run, "the policy's own log-probabilities are not finite", {});
    const updates: MetricsRecord[] = [];
    for (let gradStep = 0; gradStep < config.gradUpdatesPerStep; gradStep++) {
      const groups = drawGroups(run);
      if (groups.length === 0) break;
      run.safe = null;
      updates.push(await update(run, view, gradStep, groups));
    }
    if (updates.length === 0) view.note("note: no group to learn from: no gradient step");

    const reward = typeof rolloutRecord["reward"] === "number" ? rolloutRecord["reward"] : null;
    state.trainStep += 1;
    state.meanRewards = [...state.meanRewards, reward];
    warn(run, view, [rolloutRecord, ...updates]);
    log.timings(state.trainStep, stepTimes(started, rolledOut, experiences));
    view.stepDone({ step: state.trainStep, reward });
    run.safe = positionOf(run);
    await evaluatePolicy(run, view);
    await saveIfDue(run, view);
  }
}

/**
 * The completions of a train step. With dynamic sampling (DAPO, Yu et al. 2025, section 3.2) groups without reward
 * spread, which would teach nothing, are not `kept`: other prompts are asked in their place, for some rounds at most.
 */
async function collect(
  { config, task, codec, model, state }: Run,
  view: RunConsole,
): Promise<{ experiences: Experience[]; kept: Experience[]; timeouts: number; rounds: number }> {
  const experiences: Experience[] = [];
  const kept: Experience[] = [];
  let [timeouts, rounds] = [0, 0];
  let missing = config.promptsPerStep;
  do {
    const prompts = await task.prompts(state.promptsDrawn, missing, config.seed);
    const drawn = await rollout(model, codec, task, prompts, {
      samplesPerPrompt: config.rolloutCount,
      maxNewTokens: config.maxRolloutTokens,
      temperature: config.temperature,
      seed: config.seed,
      firstSample: state.samplesDrawn,
      trainStep: state.trainStep,
      overlongBuffer: config.overlongBuffer,
    });
    state.promptsDrawn += prompts.length;
    state.samplesDrawn += drawn.samples;
    rounds += 1;
    timeouts += drawn.timeouts;
    for (const experience of drawn.experiences) {
      view.reply(experience.reward, experience.text);
      state.numTokens += experience.promptIds.length + experience.completionIds.length;
    }
    experiences.push(...drawn.experiences);
    const judged = drawn.experiences.filter(({ reward }) => reward !== null);
    const useful = config.dynamicSampling > 0 ? groupsOf(judged).filter(hasRewardSpread).flat() : judged;
    kept.push(...useful);
    missing = prompts.length - groupsOf(useful).length;
  } while (missing > 0 && rounds <= config.dynamicSampling);
  return { experiences, kept, timeouts, rounds };
}

/** One gradient step on drawn groups, with its console line and its record. */
async function update(
  run: Run, view: RunConsole, gradStep: number, groups: readonly Experience[][],
): Promise<MetricsRecord> {
  const { config, task, model, optimizer, buffer, state, log } = run;
  const { trainStep } = state;
  const weights = task.functions.map(({ weight }) => weight);
  const advantages = advantagesOf(groups, buffer.experiences, config, weights);
  const totalSteps = config.trainSteps * config.gradUpdatesPerStep;
  const factor = schedules[config.lrSchedule](state.updates, { warmupSteps: config.warmupSteps, totalSteps });
  const learningRate = config.learningRate * factor;
  const result = await gradientStep(model, optimizer, groups.flat(), advantages, learningRate, config);

  const skipped = !Number.isFinite(result.objective) || !Number.isFinite(result.gradNorm);
  state.updates += 1;
  state.skipped += skipped ? 1 : 0;
  state.skippedInRow = skipped ? state.skippedInRow + 1 : 0;
  view.update({ trainStep, gradStep, objective: result.objective, skipped });
  const record = updateMetrics({ trainStep, gradStep, learningRate, skipped: state.skipped }, groups, result);
  log.metrics(record);
  if (state.skippedInRow === MOST_SKIPPED) {
    const numbers = { objective: result.objective, "gradient norm": result.gradNorm };
    await giveUp(run, `${MOST_SKIPPED} gradient steps in a row were not finite`, numbers);
  }
  return record;
}

/** None where the buffer holds none: no reply could be judged, or no group had spread. */
function drawGroups({ config, buffer, random }: Run): Experience[][] {
  if (config.replay === "groups") return buffer.drawGroups(config.groupsPerUpdate, random.next);
  const drawn = Array.from({ length: config.groupsPerUpdate }, () => buffer.sampleGroup(config.groupSize, random.next));
  return drawn.filter((group) => group.length > 0);
}

/** A gradient step that is not finite changes nothing (adamw.ts). After so many in a row nothing ever will. */
const MOST_SKIPPED = 3;

/** Leaves the last good weights and what is known about the failure. @throws NumericsError always. */
async function giveUp(run: Run, cause: string, numbers: Readonly<Record<string, number>>): Promise<never> {
  const { config, state } = run;
  const known = Object.entries(numbers).map(([name, value]) => [name, `${value}`]); // JSON has no NaN
  const report = { trainStep: state.trainStep + 1, updates: state.updates, cause, ...Object.fromEntries(known) as object };
  writeFileSync(join(config.out, "nan-report.json"), JSON.stringify(report, null, 2) + "\n");
  const policy = run.lastGood ? await savePolicy(run, run.lastGood, "last-good") : config.model;
  throw new NumericsError(
    `train step ${state.trainStep + 1}: ${[cause, ...known.map((pair) => pair.join(" "))].join(", ")}. ` +
      `The run stops; the last good weights: ${policy}. Fix: a lower --learning-rate, or --max-grad-norm 1`,
  );
}

/** Held-out accuracy before the first train step, every so many, and after the last; once for the same weights. */
async function evaluatePolicy(run: Run, view: RunConsole): Promise<void> {
  const { config, state, log } = run;
  const { trainStep } = state;
  const isDue = trainStep % config.evalEvery === 0 || trainStep === config.trainSteps;
  if (config.evalEvery === 0 || !isDue || state.evaluated?.step === trainStep) return;
  view.phase("evaluating", trainStep);
  const evaluation = await evaluate(run.model, run.codec, run.task, {
    prompts: config.evalPrompts,
    samples: config.evalSamples,
    rowsAtOnce: config.promptsPerStep * config.rolloutCount,
    maxNewTokens: config.maxRolloutTokens,
    temperature: config.temperature,
    seed: config.seed,
  });
  if (evaluation === null) return;
  log.metrics(evaluationMetrics(trainStep, evaluation));
  log.evaluation(trainStep, evaluation);
  state.evaluated = { step: trainStep, accuracy: evaluation.accuracy };
  const { accuracy, passAtK } = evaluation;
  const best = passAtK.at(-1);
  view.evaluated({ step: trainStep, accuracy, ...(best ? { passAtK: best } : {}) });
}

async function saveIfDue(run: Run, view: RunConsole): Promise<void> {
  const { config, state } = run;
  const isDue = state.trainStep % config.saveEvery === 0 || state.trainStep === config.trainSteps;
  if (config.saveEvery === 0 || !isDue) return;
  view.phase("saving", state.trainStep);
  view.note(`checkpoint: ${await saveRun(run)}`);
}

/** Says, and writes down, what looks wrong about a train step. */
function warn({ task, state, log }: Run, view: RunConsole, records: readonly MetricsRecord[]): void {
  const maxReward = task.functions.reduce((sum, { weight }) => sum + Math.max(0, weight), 0);
  const judged = judgeStep(state.alerts, records, { maxReward });
  state.alerts = judged.state;
  for (const alert of judged.alerts) {
    view.alert(alert);
    log.metrics({ ...alert, kind: "alert", alert: alert.kind });
  }
}

function resumeCommand({ config }: Run): string {
  return `npx tsx src/grpo/train.ts --resume ${config.out}`;
}

await runMain(main);
