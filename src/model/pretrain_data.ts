/**
 * From dialogues to training rows: learn a tokenizer, encode every dialogue as a chat, pack them into rows of equal
 * length.
 *
 * A row begins with the beginning of a dialogue, as a prompt does at inference, and is filled with further ones; the
 * last is cut where the row ends. Attention may look across dialogues within a row; nothing is padded.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { tokenizerConfig, trainBpe } from "../data/bpe.ts";
import { CHATML_TEMPLATE, encodeChat } from "../data/chat_template.ts";
import { readCorpora, type Dialogue } from "../data/corpus.ts";
import { generateDialogues } from "../data/dialogues.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { permutation, seededRandom } from "../random.ts";
import type { TextSource } from "./model_card.ts";

const END_OF_TEXT = "<|endoftext|>";
const END_OF_TURN = "<|im_end|>";
const SPECIAL_TOKENS = [END_OF_TEXT, "<|im_start|>", END_OF_TURN];

/** One dialogue in this many is held out for the validation loss. */
const VALIDATION_EVERY = 100;
/** Characters of text that the tokenizer learns from; more does not change the merges noticeably. */
const TOKENIZER_SAMPLE = 8_000_000;

export interface TextOptions {
  /** Folder with the text corpora, or null for generated dialogues only. */
  readonly corpora: string | null;
  /** Number of generated dialogues. */
  readonly generated: number;
  /** Characters taken from the corpora, as a multiple of the generated characters. */
  readonly corporaRatio: number;
  readonly seed: number;
}

export interface DialogueSets {
  readonly train: Dialogue[];
  readonly validation: Dialogue[];
  /** Where they came from, for the model card. */
  readonly sources: TextSource[];
}

/**
 * Generates dialogues and draws others from the corpora, shuffles both together, and holds some out. Dialogues repeat:
 * of those held out only the ones that are not trained on as well are for validation.
 */
export function collectDialogues(options: TextOptions, log: (line: string) => void): DialogueSets {
  const all: Dialogue[] = [...generateDialogues(options.seed, options.generated)];
  const generatedCharacters = characters(all);
  log(`generated: ${all.length} dialogues, ${generatedCharacters} characters`);
  const generator = { license: "MIT", source: "`src/data/dialogues.ts`" };
  const sources: TextSource[] = [{ name: "generated dialogues", ...generator, dialogues: all.length }];
  const random = seededRandom(options.seed);
  if (options.corpora !== null) {
    const corpora = readCorpora(options.corpora);
    const pool = corpora.flatMap(({ dialogues }, corpus) => dialogues.map((dialogue) => ({ corpus, dialogue })));
    const drawn = corpora.map(() => 0);
    let budget = Math.round(generatedCharacters * options.corporaRatio);
    for (const i of permutation(pool.length, random)) {
      if (budget <= 0) break;
      const { corpus, dialogue } = pool[i]!;
      all.push(dialogue);
      drawn[corpus]! += 1;
      budget -= characters([dialogue]);
    }
    corpora.forEach(({ name, license, source }, i) => sources.push({ name, license, source, dialogues: drawn[i]! }));
    log(
      `corpora: ${corpora.map(({ name, dialogues }) => `${name} (${dialogues.length})`).join(", ")}; ${all.length - options.generated} dialogues drawn`,
    );
  }
  const order = permutation(all.length, random);
  const train: Dialogue[] = [];
  const validation: Dialogue[] = [];
  order.forEach((i, rank) => (rank % VALIDATION_EVERY === 0 ? validation : train).push(all[i]!));
  const trained = new Set(train.map((dialogue) => JSON.stringify(dialogue)));
  return { train, validation: validation.filter((dialogue) => !trained.has(JSON.stringify(dialogue))), sources };
}

function characters(dialogues: readonly Dialogue[]): number {
  return dialogues.reduce((sum, dialogue) => sum + dialogue.reduce((n, { content }) => n + content.length, 0), 0);
}

/** Learns a byte-level BPE vocabulary from the dialogues and writes the tokenizer's files into `directory`. */
export function writeTokenizer(
  directory: string,
  dialogues: readonly Dialogue[],
  vocabSize: number,
  maxPositions: number,
): void {
  const sample: string[] = [];
  let budget = TOKENIZER_SAMPLE;
  for (const { content } of dialogues.flat()) {
    if (budget <= 0) break;
    sample.push(content);
    budget -= content.length;
  }
  const tokenizer = trainBpe([...sample, "user\n", "assistant\n"], { vocabSize, specialTokens: SPECIAL_TOKENS });
  const config = tokenizerConfig(tokenizer, {
    eosToken: END_OF_TURN,
    padToken: END_OF_TEXT,
    chatTemplate: CHATML_TEMPLATE,
    modelMaxLength: maxPositions,
  });
  const idOf = (token: string): number => tokenizer.added_tokens.find(({ content }) => content === token)!.id;
  const generation = {
    eos_token_id: [idOf(END_OF_TURN), idOf(END_OF_TEXT)],
    pad_token_id: idOf(END_OF_TEXT),
    do_sample: true,
  };
  mkdirSync(directory, { recursive: true });
  const write = (name: string, content: object): void =>
    writeFileSync(join(directory, name), JSON.stringify(content, null, 1) + "\n");
  write("tokenizer.json", tokenizer);
  write("tokenizer_config.json", config);
  write("generation_config.json", generation);
}

/** Encodes dialogues and packs them: rows * rowLength ids, one row after the other. */
export function packRows(directory: string, dialogues: readonly Dialogue[], rowLength: number): Uint16Array {
  const tokenizer = loadTokenizer(directory);
  const endOfText = tokenizer.idOf(END_OF_TEXT);
  const rows: number[][] = [];
  let row: number[] = [];
  for (const dialogue of dialogues) {
    row.push(...encodeChat(tokenizer, CHATML_TEMPLATE, dialogue, { addGenerationPrompt: false }), endOfText);
    if (row.length >= rowLength) {
      rows.push(row.slice(0, rowLength));
      row = [];
    }
  }
  const packed = new Uint16Array(rows.length * rowLength);
  rows.forEach((ids, i) => packed.set(ids, i * rowLength));
  return packed;
}

/** The batch of a step: `batch` rows, each epoch in another order that depends on seed and epoch alone. */
export function batchAt(
  rows: Uint16Array,
  { step, batch, rowLength, seed }: { step: number; batch: number; rowLength: number; seed: number },
): Uint32Array {
  const count = rows.length / rowLength;
  const ids = new Uint32Array(batch * rowLength);
  for (let i = 0; i < batch; i++) {
    const position = step * batch + i;
    const epoch = Math.floor(position / count);
    const index = epochOrder(count, seed, epoch)[position % count]!;
    ids.set(rows.subarray(index * rowLength, (index + 1) * rowLength), i * rowLength);
  }
  return ids;
}

let remembered: { key: string; order: Uint32Array } | null = null;

function epochOrder(count: number, seed: number, epoch: number): Uint32Array {
  const key = `${count} ${seed} ${epoch}`;
  if (remembered?.key !== key) remembered = { key, order: permutation(count, seededRandom(seed * 1009 + epoch)) };
  return remembered.order;
}
