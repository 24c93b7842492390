/** What a second stage of pretraining (--init) takes from the run before it, read before any work is done. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "../data/tokenizer.ts";
import { CheckpointError, readConfig, type GptConfig } from "./config.ts";
import type { TextSource } from "./model_card.ts";
import type { PretrainSettings } from "./pretrain.ts";
import { loadSettings } from "./training_state.ts";

/** Ids of the packed text have 16 bits. */
const MAX_VOCABULARY = 65536;

export interface EarlierStage {
  readonly config: GptConfig;
  readonly settings: PretrainSettings;
  readonly sources: readonly TextSource[];
}

/**
 * Reads the --out folder of a finished run.
 * @throws CheckpointError when something is missing or damaged, or the vocabulary is too large to be packed.
 */
export function readEarlierStage(folder: string): EarlierStage {
  for (const name of ["model/config.json", "model/tokenizer.json", "checkpoint/state.json", "sources.json"]) {
    if (existsSync(join(folder, name))) continue;
    throw new CheckpointError(`--init ${folder}: no ${name}. Fix: name the --out folder of a finished run`);
  }
  const model = join(folder, "model");
  const config = readConfig(model);
  const vocabulary = Math.max(config.vocabSize, loadTokenizer(model).vocabSize);
  if (vocabulary > MAX_VOCABULARY) {
    throw new CheckpointError(
      `--init ${folder}: a vocabulary of ${vocabulary} is above ${MAX_VOCABULARY}, and ids are packed in 16 bits. ` +
        "Fix: start from a model with a smaller one",
    );
  }
  return { config, settings: loadSettings(join(folder, "checkpoint")), sources: readSources(folder) };
}

/** The sources.json of a run. @throws CheckpointError when it is not such a list. */
export function readSources(folder: string): TextSource[] {
  const path = join(folder, "sources.json");
  let list: unknown;
  try {
    list = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new CheckpointError(`${path} cannot be read: ${(error as Error).message}`);
  }
  if (!Array.isArray(list) || !list.every(isSource)) {
    throw new CheckpointError(`${path} does not hold a list of text sources. Fix: restore it`);
  }
  return list;
}

function isSource(value: unknown): value is TextSource {
  const fields = (value ?? {}) as Record<string, unknown>;
  const isText = ["name", "license", "source"].every((key) => typeof fields[key] === "string");
  return isText && typeof fields["dialogues"] === "number";
}

/** The sources of this stage and of all before it: what a model was made from stays named. */
export function mergeSources(earlier: readonly TextSource[], own: readonly TextSource[]): TextSource[] {
  const isSame = (a: TextSource) => (b: TextSource) =>
    a.name === b.name && a.license === b.license && a.source === b.source;
  const total = ({ dialogues, earlier = 0 }: TextSource): number => dialogues + earlier;
  const before = (source: TextSource): number =>
    earlier.filter(isSame(source)).reduce((sum, same) => sum + total(same), 0);
  return [
    ...own.map((source) => (earlier.some(isSame(source)) ? { ...source, earlier: before(source) } : source)),
    ...earlier
      .filter((source) => !own.some(isSame(source)))
      .map((source) => ({ ...source, dialogues: 0, earlier: total(source) })),
  ];
}
