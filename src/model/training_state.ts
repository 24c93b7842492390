/**
 * A training run on disk: weights, moments, step and settings, so that a resumed run continues bit for bit.
 * The directory is replaced as a whole (written under another name, then renamed): an interrupted save costs nothing.
 */
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { AdamW } from "../autograd/adamw.ts";
import { openSafetensors, streamSafetensors } from "../data/safetensors.ts";
import { read } from "../tensor/tensor.ts";
import { loadGpt, replaceDirectory, restoreDirectory, writeModelFiles } from "./checkpoint.ts";
import { CheckpointError, readJsonObject } from "./config.ts";
import type { Gpt } from "./gpt.ts";
import type { PretrainSettings } from "./pretrain.ts";

interface TrainingState {
  readonly settings: PretrainSettings;
  /** Steps done. */
  readonly step: number;
  readonly model: Gpt;
  readonly optimizer: AdamW;
}

/** Writes the state to `directory`; the tokenizer's files are copied from `textFrom`. */
export async function saveTrainingState(directory: string, textFrom: string, state: TrainingState): Promise<void> {
  const { settings, step, model, optimizer } = state;
  await replaceDirectory(directory, async (target) => {
    await writeModelFiles(model, target, { textFrom });
    const updates = await saveMoments(join(target, "optimizer.safetensors"), model, optimizer);
    writeFileSync(join(target, "state.json"), JSON.stringify({ step, settings, updates }, null, 1) + "\n");
  });
}

/**
 * Writes the moments of `optimizer`, which trains all parameters of `model` in their order, as first.NAME and
 * second.NAME. Returns what else `restoreMoments` needs: the number of updates of each parameter.
 */
export async function saveMoments(path: string, model: Gpt, optimizer: AdamW): Promise<number[]> {
  const names = [...model.parameters.keys()];
  const tensors = optimizer.state.flatMap(({ firstMoment, secondMoment }, i) => [
    { name: `first.${names[i]}`, shape: firstMoment.shape, dtype: "F32" as const, value: firstMoment },
    { name: `second.${names[i]}`, shape: secondMoment.shape, dtype: "F32" as const, value: secondMoment },
  ]);
  await streamSafetensors(path, tensors, ({ value }) => read(value));
  return optimizer.state.map(({ step }) => step);
}

/** Gives `optimizer` what `saveMoments` wrote. @throws SafetensorsError, ShapeError when it is of another model. */
export function restoreMoments(path: string, model: Gpt, optimizer: AdamW, updates: readonly number[]): void {
  const file = openSafetensors(path);
  try {
    optimizer.importState(
      [...model.parameters.keys()].map((name, i) => ({
        firstMoment: file.readF32(`first.${name}`),
        secondMoment: file.readF32(`second.${name}`),
        step: updates[i]!,
      })),
    );
  } finally {
    file.close();
  }
}

interface State {
  readonly step: number;
  readonly settings: PretrainSettings;
  /** Updates of each parameter. */
  readonly updates: readonly number[];
}

function readState(directory: string): State {
  const path = join(directory, "state.json");
  if (!existsSync(path)) {
    const fix = "give the --out folder of a run that has saved one";
    throw new CheckpointError(`${directory} holds no checkpoint to resume (no state.json). Fix: ${fix}`);
  }
  return readJsonObject(path) as unknown as State;
}

/** The settings of the run that wrote a checkpoint. @throws CheckpointError when there is no checkpoint. */
export function loadSettings(directory: string): PretrainSettings {
  return readState(directory).settings;
}

/**
 * Loads what `saveTrainingState` wrote, also where it was killed while it put a newer checkpoint in place.
 * @throws CheckpointError when there is no checkpoint.
 */
export function loadTrainingState(directory: string): {
  settings: PretrainSettings;
  step: number;
  model: Gpt;
  restoreOptimizer: (optimizer: AdamW) => void;
} {
  restoreDirectory(directory);
  const { step, settings, updates } = readState(directory);
  const model = loadGpt(directory);
  const restoreOptimizer = (optimizer: AdamW): void =>
    restoreMoments(join(directory, "optimizer.safetensors"), model, optimizer, updates);
  return { settings, step, model, restoreOptimizer };
}
