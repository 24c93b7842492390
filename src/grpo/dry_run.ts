/**
 * `--dry-run`: what a run would be, without writing anything. Memory is computed; time is measured, on one small round
 * of rollouts and one gradient step of this very model, so it is a guess for completions of that length.
 */
import { average } from "./advantage.ts";
import { savedSettings } from "./config.ts";
import { rollout, type Experience } from "./rollout.ts";
import type { Run } from "./run.ts";
import { gradientStep } from "./update.ts";

/** Prints settings, notes and the estimate; frees the run. */
export async function dryRun(run: Run): Promise<void> {
  const { config, notes } = run;
  console.log(JSON.stringify(savedSettings(config), null, 2));
  for (const note of notes) console.error(note);
  await trainStep(run); // compiles the pipelines
  const { rolloutSeconds, updateSeconds, tokens } = await trainStep(run);
  const step = rolloutSeconds + config.gradUpdatesPerStep * updateSeconds;
  console.error(
    `time: a round of rollouts ${rolloutSeconds.toFixed(2)} s, a gradient step ${updateSeconds.toFixed(2)} s ` +
      `(measured, completions of ${tokens.toFixed(1)} tokens); ${config.trainSteps} train steps about ` +
      `${Math.ceil(config.trainSteps * step)} s, without evaluations`,
  );
  await run.close();
}

/** One train step at learning rate 0: it takes its time and teaches nothing. */
async function trainStep({ config, task, codec, model, optimizer }: Run): Promise<{
  rolloutSeconds: number;
  updateSeconds: number;
  tokens: number;
}> {
  const started = performance.now();
  const prompts = await task.prompts(0, config.promptsPerStep, config.seed);
  const { experiences } = await rollout(model, codec, task, prompts, {
    samplesPerPrompt: config.rolloutCount,
    maxNewTokens: config.maxRolloutTokens,
    temperature: config.temperature,
    seed: config.seed,
    firstSample: 0,
    trainStep: 0,
    overlongBuffer: config.overlongBuffer,
  });
  const rolledOut = performance.now();
  // As many as a gradient step will have: some more than once, where it draws from several train steps.
  const rows = Array.from({ length: config.groupsPerUpdate * config.groupSize }, (_, i) => {
    return withReferenceOfItself(experiences[i % experiences.length]!);
  });
  await gradientStep(model, optimizer, rows, rows.map((_, i) => (i % 2 === 0 ? 1 : -1)), 0, config);
  return {
    rolloutSeconds: (rolledOut - started) / 1000,
    updateSeconds: (performance.now() - rolledOut) / 1000,
    tokens: average(experiences.map(({ completionIds }) => completionIds.length)),
  };
}

function withReferenceOfItself(experience: Experience): Experience {
  return { ...experience, referenceLogProbs: experience.logProbs };
}
