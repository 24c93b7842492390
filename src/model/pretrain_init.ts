/** What a second stage of pretraining (--init) takes from the run before it, read before any work is done. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "../data/tokenizer.ts";
import { CheckpointError, readConfig, type GptConfig } from "./config.ts";
import type { StageSettings, TextSource } from "./model_card.ts";
import { loadSettings } from "./training_state.ts";

/** Ids of the packed text have 16 bits. */
const MAX_VOCABULARY = 65536;

export interface EarlierStage {
  readonly config: GptConfig;
  /** The settings of all stages so far, the first one first. */
  readonly stages: readonly StageSettings[];
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
  const settings = loadSettings(join(folder, "checkpoint"));
  const before = settings.init === null ? [] : readStages(folder);
  return { config, stages: [...before, { ...settings }], sources: readSources(folder) };
}

/** The init.json of a run that continues others: their settings. @throws CheckpointError when it is not such a list. */
export function readStages(folder: string): StageSettings[] {
  return readList(folder, "init.json", "settings of earlier stages", isRecord);
}

/** The sources.json of a run. @throws CheckpointError when it is not such a list. */
export function readSources(folder: string): TextSource[] {
  return readList(folder, "sources.json", "text sources", isSource);
}

function readList<T>(folder: string, name: string, what: string, isItem: (value: unknown) => value is T): T[] {
  const path = join(folder, name);
  let list: unknown;
  try {
    list = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new CheckpointError(`${path} cannot be read: ${(error as Error).message}`);
  }
  if (!Array.isArray(list) || !list.every(isItem)) {
    throw new CheckpointError(`${path} does not hold a list of ${what}. Fix: restore it`);
  }
  return list;
}

function isRecord(value: unknown): value is StageSettings {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSource(value: unknown): value is TextSource {
  if (!isRecord(value)) return false;
  const isText = ["name", "license", "source"].every((key) => typeof value[key] === "string");
  return isText && typeof value["dialogues"] === "number";
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
