/**
 * Readers of public dialogue corpora: compressed files in, short clean dialogues out.
 *
 * Each corpus is read where it lies, never copied. The cleaning rules are in corpus_text.ts. Two formats occur:
 *   *.jsonl.gz   one conversation a line, {"messages": [{"role", "content"}, ...]}
 *   *.tar.gz     small collections: question-answer YAML and instruction JSON
 * Departure from the textbook: no YAML or tar library. The YAML in question is a two-level list, and a tar archive is a
 * sequence of 512 byte headers, so each needs about twenty lines.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { cleanTurn, splitIntoWindows } from "./corpus_text.ts";

/** Text corpora that are missing or damaged; the message names the file. */
export class CorpusError extends Error {
  override name = "CorpusError";
}

export interface Message {
  role: "user" | "assistant" | "system";
  content: string;
}

export type Dialogue = Message[];

/** A cleaned corpus, with what a model card has to say about it. */
export interface Corpus {
  name: string;
  license: string;
  source: string;
  dialogues: Dialogue[];
}

type Conversation = readonly (string | null)[];

interface CorpusFile {
  file: string;
  name: string;
  license: string;
  source: string;
  read: (bytes: Buffer, path: string) => Conversation[];
}

const SCHEMA_GUIDED = {
  name: "Schema-Guided Dialogue (DSTC8)",
  license: "CC BY-SA 4.0",
  source: "https://github.com/google-research-datasets/dstc8-schema-guided-dialogue",
};

/** One archive of two collections that are read, each with its own format and licence. */
const SMALL_COLLECTIONS = "small_instruct.tar.gz";

/** Every file that is looked for. A directory may hold any part of them. */
const CORPUS_FILES: readonly CorpusFile[] = [
  {
    file: "self_dialogue-self_dialogue.jsonl.gz",
    name: "Self-dialogue Corpus (University of Edinburgh)",
    license: "BSD 3-Clause",
    source: "https://github.com/jfainberg/self_dialogue_corpus",
    read: readJsonLines,
  },
  { file: "sgd-train.jsonl.gz", ...SCHEMA_GUIDED, read: readJsonLines },
  { file: "sgd-dev.jsonl.gz", ...SCHEMA_GUIDED, read: readJsonLines },
  {
    file: "taskmaster4-tm4.jsonl.gz",
    name: "Taskmaster-4 (coffee orders)",
    license: "CC BY 4.0",
    source: "https://github.com/google-research-datasets/Taskmaster",
    read: readJsonLines,
  },
  {
    file: SMALL_COLLECTIONS,
    name: "chatterbot-corpus (English)",
    license: "BSD 3-Clause",
    source: "https://github.com/gunthercox/chatterbot-corpus",
    read: (bytes, path) => readMembers(bytes, path, /\/chatterbot\/.*\.yml$/, readQuestionYaml),
  },
  {
    file: SMALL_COLLECTIONS,
    name: "LLMs-from-scratch instruction data",
    license: "Apache 2.0",
    source: "https://github.com/rasbt/LLMs-from-scratch",
    read: (bytes, path) => readMembers(bytes, path, /instruction-data\.json$/, readInstructionJson),
  },
];

/**
 * Reads every known corpus file in `directory`; files of one corpus are merged. Dialogues alternate user/assistant,
 * start with the user, have 2 or 4 turns of plain ASCII, and occur once each. Their order is that of the files.
 *
 * Throws CorpusError when none of the files is there (the message lists them) and when one cannot be parsed (with its
 * line).
 */
export function readCorpora(directory: string): Corpus[] {
  const found = CORPUS_FILES.filter(({ file }) => existsSync(join(directory, file)));
  if (found.length === 0) {
    const wanted = [...new Set(CORPUS_FILES.map(({ file }) => file))].join(", ");
    throw new CorpusError(
      `no corpus found in "${directory}": looked for ${wanted}; pass the directory that holds them`,
    );
  }
  const corpora = new Map<string, Corpus>();
  const seen = new Set<string>();
  for (const { file, name, license, source, read } of found) {
    const corpus = corpora.get(name) ?? { name, license, source, dialogues: [] };
    corpora.set(name, corpus);
    const path = join(directory, file);
    for (const conversation of read(decompress(path), path)) {
      for (const window of splitIntoWindows(conversation)) {
        const key = window.join("\n");
        if (seen.has(key)) continue;
        seen.add(key);
        corpus.dialogues.push(
          window.map((content, turn) => ({ role: turn % 2 === 0 ? "user" : "assistant", content })),
        );
      }
    }
  }
  return [...corpora.values()];
}

function decompress(path: string): Buffer {
  try {
    return gunzipSync(readFileSync(path));
  } catch (error) {
    const cause = error instanceof Error ? error.message : String(error);
    throw new CorpusError(`${path}: not a readable gzip file (${cause}); fetch it again`);
  }
}

/** One JSON object a line. Turns out of order (two of one role in a row) are marked as gaps. */
function readJsonLines(bytes: Buffer, path: string): Conversation[] {
  const conversations: Conversation[] = [];
  bytes.toString("utf8").split("\n").forEach((line, index) => {
    if (line.trim() === "") return;
    const messages = parseMessages(line);
    if (messages === null) {
      throw new CorpusError(
        `${path}:${index + 1}: expected {"messages": [{"role", "content"}, ...]}; the file is damaged`,
      );
    }
    conversations.push(alternate(messages));
  });
  return conversations;
}

function parseMessages(line: string): Message[] | null {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return null;
  }
  if (!isRecord(value) || !Array.isArray(value["messages"])) return null;
  const messages: Message[] = [];
  for (const entry of value["messages"] as unknown[]) {
    if (!isRecord(entry)) return null;
    const { role, content } = entry;
    if ((role !== "user" && role !== "assistant" && role !== "system") || typeof content !== "string") return null;
    messages.push({ role, content });
  }
  return messages;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Cleaned turns placed so that even positions are the user's; null fills a place that the source skips. */
function alternate(messages: readonly Message[]): Conversation {
  const turns: (string | null)[] = [];
  for (const { role, content } of messages) {
    if (role === "system") continue;
    const isUsersPlace = turns.length % 2 === 0;
    if (isUsersPlace !== (role === "user")) turns.push(null);
    turns.push(cleanTurn(content));
  }
  return turns;
}

/** The conversations of all members of a tar archive whose name matches. */
function readMembers(
  bytes: Buffer,
  path: string,
  wanted: RegExp,
  read: (name: string, content: string) => Conversation[],
): Conversation[] {
  return readTar(bytes, path).flatMap(({ name, content }) => (wanted.test(name) ? read(name, content) : []));
}

/**
 * Regular files of an uncompressed tar archive (POSIX ustar): a 512 byte header with the name at 0 and the size in
 * octal at 124, then the content padded to 512; an all-zero block ends it. Throws when the last file is cut off.
 */
export function readTar(archive: Buffer, path: string): { name: string; content: string }[] {
  const BLOCK = 512;
  const files: { name: string; content: string }[] = [];
  let offset = 0;
  while (offset + BLOCK <= archive.length && archive[offset] !== 0) {
    const field = (start: number, length: number): string =>
      (archive.toString("latin1", offset + start, offset + start + length).split("\0")[0] ?? "").trim();
    const name = field(0, 100);
    const size = parseInt(field(124, 12), 8);
    const type = field(156, 1);
    const start = offset + BLOCK;
    if (!Number.isInteger(size) || start + size > archive.length) {
      throw new CorpusError(`${path}: tar member "${name}" is cut off or damaged; fetch the archive again`);
    }
    const isRegularFile = type === "" || type === "0";
    if (isRegularFile) files.push({ name, content: archive.toString("utf8", start, start + size) });
    offset = start + Math.ceil(size / BLOCK) * BLOCK;
  }
  return files;
}

/** Programming, hard trivia, opinions about real people, crude jokes: not the small talk wanted here. */
const SKIPPED_TOPICS = /\/(coding|tech_support|politics|gossip|psychology|humor|trivia|literature|history)\.yml$/;

/**
 * "- - question" opens an entry and "  - reply" continues it; more deeply indented lines carry on the line above.
 * In conversations.yml the replies are successive turns, in all other topics alternative answers to the first line.
 */
function readQuestionYaml(name: string, content: string): Conversation[] {
  if (SKIPPED_TOPICS.test(name)) return [];
  const entries: string[][] = [];
  for (const line of content.split("\n")) {
    const opening = /^- - (.*)$/.exec(line);
    const reply = /^ {2}- (.*)$/.exec(line);
    const continuation = /^ {4,}(\S.*)$/.exec(line);
    const entry = entries.at(-1);
    if (opening) entries.push([opening[1] ?? ""]);
    else if (reply && entry) entry.push(reply[1] ?? "");
    else if (continuation && entry) entry[entry.length - 1] += ` ${continuation[1] ?? ""}`;
  }
  return entries.flatMap((lines) => {
    const turns = lines.map((line) => cleanTurn(line.replace(/^(['"])(.*)\1$/, "$2").replace(/''/g, "'")));
    if (name.endsWith("/conversations.yml")) return [turns];
    return turns.slice(1).map((reply) => [turns[0] ?? null, reply]);
  });
}

/** [{"instruction", "input", "output"}]: the input, where there is one, follows the instruction. */
function readInstructionJson(name: string, content: string): Conversation[] {
  let entries: unknown;
  try {
    entries = JSON.parse(content);
  } catch {
    entries = null;
  }
  if (!Array.isArray(entries)) {
    throw new CorpusError(`tar member "${name}": expected a JSON list; fetch the archive again`);
  }
  return (entries as unknown[]).flatMap((entry) => {
    if (!isRecord(entry)) return [];
    const { instruction, input, output } = entry;
    if (typeof instruction !== "string" || typeof output !== "string") return [];
    const question = typeof input === "string" && input !== "" ? `${instruction} ${input}` : instruction;
    return [[cleanTurn(question), cleanTurn(output)]];
  });
}
