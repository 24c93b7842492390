/** Corpus readers on small archives made here: formats, cleaning rules, windows, and the errors a user can meet. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readCorpora, readTar } from "../../src/data/corpus.ts";
import { cleanTurn, MAX_TURN_CHARACTERS, splitIntoWindows } from "../../src/data/corpus_text.ts";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "corpus-"));
});
afterEach(() => {
  rmSync(directory, { recursive: true });
});

function writeJsonLines(file: string, conversations: readonly (readonly [role: string, content: string])[][]): void {
  const lines = conversations.map((turns) =>
    JSON.stringify({ id: "x", messages: turns.map(([role, content]) => ({ role, content })) }),
  );
  writeFileSync(join(directory, file), gzipSync(`${lines.join("\n")}\n`));
}

/** A minimal ustar archive: header with name, octal size and type, then padded content. */
function makeTar(files: Readonly<Record<string, string>>): Buffer {
  const blocks = Object.entries(files).flatMap(([name, text]) => {
    const content = Buffer.from(text, "utf8");
    const header = Buffer.alloc(512);
    header.write(name, 0);
    header.write(content.length.toString(8).padStart(11, "0"), 124);
    header.write("0", 156);
    return [header, content, Buffer.alloc((512 - (content.length % 512)) % 512)];
  });
  return Buffer.concat([...blocks, Buffer.alloc(1024)]);
}

const texts = (dialogues: readonly (readonly { content: string }[])[]): string[][] =>
  dialogues.map((dialogue) => dialogue.map(({ content }) => content));

describe("readCorpora", () => {
  it("reads conversations line by line, cleans them and names their source", () => {
    writeJsonLines("taskmaster4-tm4.jsonl.gz", [
      [["user", "can i get  a latte"], ["assistant", "sure, it\u2019s coming"]],
      [["user", "can i get a latte"], ["assistant", "Sure, it's coming."]],
    ]);
    const corpora = readCorpora(directory);
    expect(corpora).toHaveLength(1);
    expect(corpora[0]?.license).toBe("CC BY 4.0");
    expect(corpora[0]?.source).toMatch(/^https:/);
    // The second conversation is the same after cleaning and is kept once.
    expect(corpora[0]?.dialogues).toEqual([[
      { role: "user", content: "Can I get a latte?" },
      { role: "assistant", content: "Sure, it's coming." },
    ]]);
  });

  it("merges the files of one corpus and keeps the user first", () => {
    writeJsonLines("sgd-train.jsonl.gz", [[["assistant", "Hello."], ["user", "Hi there."], ["assistant", "Welcome."]]]);
    writeJsonLines("sgd-dev.jsonl.gz", [[["user", "One."], ["user", "Two."], ["assistant", "Three."]]]);
    const corpora = readCorpora(directory);
    expect(corpora).toHaveLength(1);
    expect(texts(corpora[0]?.dialogues ?? [])).toEqual([["Hi there.", "Welcome."], ["Two.", "Three."]]);
  });

  it("reads the two formats inside the archive", () => {
    const archive = makeTar({
      "small/chatterbot/conversations.yml":
        "categories:\n- talk\nconversations:\n- - Hello\n  - Hi\n  - How are\n    you?\n  - Fine\n",
      "small/chatterbot/food.yml": "conversations:\n- - do you eat\n  - No.\n  - 'I don''t.'\n",
      "small/chatterbot/coding.yml": "conversations:\n- - Sort\n  - Quickly.\n",
      "small/instruction-data.json": JSON.stringify([{ instruction: "Name a color.", input: "", output: "Blue." }]),
    });
    writeFileSync(join(directory, "small_instruct.tar.gz"), gzipSync(archive));
    const [chatterbot, instructions] = readCorpora(directory);
    expect(texts(chatterbot?.dialogues ?? [])).toEqual([
      ["Hello.", "Hi.", "How are you?", "Fine."],
      ["Do you eat?", "No."],
      ["Do you eat?", "I don't."],
    ]);
    expect(texts(instructions?.dialogues ?? [])).toEqual([["Name a color.", "Blue."]]);
  });

  it("lists what it looked for when nothing is there", () => {
    const message = /no corpus found in .*looked for self_dialogue.*sgd-train.*small_instruct/;
    expect(() => readCorpora(directory)).toThrow(message);
  });

  it("names the file and line of a damaged entry", () => {
    writeFileSync(join(directory, "sgd-dev.jsonl.gz"), gzipSync('{"messages": []}\n{"messages": [{"role": 1}]}\n'));
    expect(() => readCorpora(directory)).toThrow(/sgd-dev\.jsonl\.gz:2: expected/);
    writeFileSync(join(directory, "sgd-dev.jsonl.gz"), "plain text");
    expect(() => readCorpora(directory)).toThrow(/not a readable gzip file/);
  });
});

describe("readTar", () => {
  it("returns empty, exact-block and odd-sized members", () => {
    const files = { "a/empty": "", "a/block": "x".repeat(512), "a/odd": "\u00e4bc" };
    expect(readTar(makeTar(files), "t.tar")).toEqual(
      Object.entries(files).map(([name, content]) => ({ name, content })),
    );
  });

  it("refuses a cut-off archive", () => {
    const archive = makeTar({ long: "x".repeat(600) }).subarray(0, 900);
    expect(() => readTar(archive, "t.tar")).toThrow(/t\.tar: tar member "long" is cut off/);
  });
});

describe("cleanTurn", () => {
  it.each([
    ["i think i'm   ok", "I think I'm ok."],
    ["what is it", "What is it?"],
    ["wow!!! so good...", "Wow! So good..."],
    ["really?? yes .", "Really? Yes."],
    ["\u201cyes\u201d \u2013 he said,", '"Yes" - he said.'],
    ["one.Two", "One. Two."],
  ])("%j becomes %j", (raw, clean) => {
    expect(cleanTurn(raw)).toBe(clean);
  });

  it.each([
    ["too long", "word ".repeat(MAX_TURN_CHARACTERS / 5 + 1)],
    ["empty", "  "],
    ["another script", "\u041f\u0440\u0438\u0432\u0435\u0442"],
    ["markup", "<b>bold</b>"],
    ["shouting", "WHY ARE YOU SHOUTING"],
    ["a telephone number", "Call 408-555-0100 now."],
    ["crude", "Oh shit."],
  ])("drops a turn that is %s", (_, raw) => {
    expect(cleanTurn(raw)).toBeNull();
  });
});

it("splitIntoWindows cuts at gaps and after four turns, always in pairs", () => {
  expect(splitIntoWindows(["a", "b", "c", "d", "e", "f", "g"])).toEqual([["a", "b", "c", "d"], ["e", "f"]]);
  expect(splitIntoWindows(["a", "b", "c", null, "e", "f"])).toEqual([["a", "b"], ["e", "f"]]);
  expect(splitIntoWindows([null, "b"])).toEqual([]);
});

