/**
 * A training run on disk: weights, moments, step and settings, so that a resumed run continues bit for bit.
 * The directory is replaced as a whole (written under another name, then renamed): an interrupted save costs nothing.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { AdamW } from "../autograd/adamw.ts";
import { openSafetensors, writeSafetensors } from "../data/safetensors.ts";
import { read } from "../tensor/tensor.ts";
import { copyTextFiles, loadGpt, replaceDirectory } from "./checkpoint.ts";
import { CheckpointError, configToHub } from "./config.ts";
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
  const names = [...model.parameters.keys()];
  const moments = await optimizer.exportState();
  const weights: Float32Array[] = [];
  for (const { value } of model.parameters.values()) weights.push(await read(value));
  const shape = (i: number): readonly number[] => model.parameters.get(names[i]!)!.value.shape;
  replaceDirectory(directory, (target) => {
    writeSafetensors(
      join(target, "model.safetensors"),
      names.map((name, i) => ({ name, shape: shape(i), dtype: "F32", data: weights[i]! })),
      { format: "pt" },
    );
    writeSafetensors(
      join(target, "optimizer.safetensors"),
      moments.flatMap(({ firstMoment, secondMoment }, i) => [
        { name: `first.${names[i]}`, shape: shape(i), dtype: "F32" as const, data: firstMoment },
        { name: `second.${names[i]}`, shape: shape(i), dtype: "F32" as const, data: secondMoment },
      ]),
    );
    writeFileSync(join(target, "config.json"), JSON.stringify(configToHub(model.config, "F32"), null, 2) + "\n");
    writeFileSync(
      join(target, "state.json"),
      JSON.stringify({ step, settings, updates: moments.map((m) => m.step) }, null, 1) + "\n",
    );
    copyTextFiles(textFrom, target);
  });
}

interface State {
  readonly step: number;
  readonly settings: PretrainSettings;
  /** Updates of each parameter. */
  readonly updates: readonly number[];
}

function readState(directory: string): State {
  const path = join(directory, "state.json");
  if (!existsSync(path)) throw new CheckpointError(`${directory} holds no checkpoint to resume (no state.json)`);
  return JSON.parse(readFileSync(path, "utf8")) as State;
}

/** The settings of the run that wrote a checkpoint. @throws CheckpointError when there is no checkpoint. */
export function loadSettings(directory: string): PretrainSettings {
  return readState(directory).settings;
}

/** Loads what `saveTrainingState` wrote. @throws CheckpointError when there is no checkpoint. */
export function loadTrainingState(directory: string): {
  settings: PretrainSettings;
  step: number;
  model: Gpt;
  restoreOptimizer: (optimizer: AdamW) => void;
} {
  const { step, settings, updates } = readState(directory);
  const model = loadGpt(directory);
  const restoreOptimizer = (optimizer: AdamW): void => {
    const file = openSafetensors(join(directory, "optimizer.safetensors"));
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
  };
  return { settings, step, model, restoreOptimizer };
}
