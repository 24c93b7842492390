/** `generate` as a user runs it: replies, plain continuation, JSON, scores; and how a model directory is read. */
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, describe, expect, test } from "vitest";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { loadChatModel } from "../../src/model/chat_model.ts";
import { disposeGpt } from "../../src/model/gpt.ts";
import { sampleCompletions } from "../../src/model/sampler.ts";
import { idsWithText } from "../../src/model/text_entry.ts";
import { visible } from "../../src/visible.ts";
import "../support/gpu.ts";
import { runEntry } from "../support/run_entry.ts";
import { runInteractive } from "../support/run_interactive.ts";
import { makeChatModelDirectory, tinyConfig, writeModel } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "generate-"));
const chatModel = makeChatModelDirectory();
/** The same model without a chat template. */
const baseModel = join(root, "base");
cpSync(chatModel, baseModel, { recursive: true });
editJson(join(baseModel, "tokenizer_config.json"), (json) => delete json["chat_template"]);
afterAll(() => [root, chatModel].forEach((directory) => rmSync(directory, { recursive: true })));

function editJson(path: string, edit: (json: Record<string, unknown>) => void): void {
  const json = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>;
  edit(json);
  writeFileSync(path, JSON.stringify(json));
}

interface Generated {
  prompt: string;
  promptIds: number[];
  samples: { text: string; ids: number[]; logProbs: number[]; finishReason: string }[];
  seed: number;
}

describe("generate --json", () => {
  const flags = "--temperature 0.9 --top-k 20 --top-p 0.9 --max-tokens 12 --samples 3 --seed 5 --json".split(" ");

  test("prints what the sampler draws, and the same bytes each time", async () => {
    const args = ["--model", chatModel, "--prompt", "the answer", "--system", "user", ...flags];
    const { code, stdout, stderr } = await runEntry("model/generate", args);
    expect([code, stderr]).toEqual([0, expect.stringContaining("adapter: ")]);
    const result = JSON.parse(stdout) as Generated;
    expect(Object.keys(result)).toEqual(["prompt", "promptIds", "samples", "seed"]);
    expect(result).toMatchObject({ prompt: "the answer", seed: 5 });

    const { model, tokenizer, encodePrompt } = loadChatModel(chatModel);
    const promptIds = encodePrompt([{ role: "system", content: "user" }, { role: "user", content: "the answer" }]);
    expect(result.promptIds).toEqual(promptIds);
    const [want] = await sampleCompletions(model, [promptIds], 3, {
      maxNewTokens: 12, temperature: 0.9, topK: 20, topP: 0.9, seed: 5, endIds: tokenizer.eosIds,
    });
    expect(result.samples).toEqual(want!.map(({ tokens, logProbs, ended }) => ({
      text: tokenizer.decode(tokens, { skipSpecial: true }), ids: tokens, logProbs,
      finishReason: ended ? "stop" : "length",
    })));
    disposeGpt(model);
    expect((await runEntry("model/generate", args)).stdout).toBe(stdout);
  });

  test("the prompt from stdin is the prompt from the flag, less its last line break", async () => {
    const args = ["--model", chatModel, ...flags, "--prompt"];
    const fromFlag = await runEntry("model/generate", [...args, "naïve\ncafé"]);
    const fromStdin = await runInteractive("model/generate", [...args, "-"], "naïve\ncafé\n");
    expect(fromStdin.stdout).toBe(fromFlag.stdout);
    expect(fromStdin.code).toBe(0);
  });
});

test.skipIf(!existsSync("/usr/bin/script"))("several replies in a terminal cannot command it", async () => {
  const flags = "--prompt Hi --samples 8 --temperature 1 --max-tokens 60".split(" ");
  const args = ["src/model/generate.ts", "--model", chatModel, ...flags];
  const { stdout: piped } = await runEntry("model/generate", args.slice(1));
  expect(piped).toMatch(/(?![\n\t])\p{Cc}/u); // a random model says anything
  const command = `${process.execPath} --import tsx ${args.join(" ")} 2>/dev/null`;
  const child = spawn("/usr/bin/script", ["-qfec", command, "/dev/null"], { stdio: ["ignore", "pipe", "ignore"] });
  const screen = (await text(child.stdout)).replaceAll("\r\n", "\n");
  expect(screen).toBe(visible(piped));
});

test("a model whose logits are not finite: exit 5, and nothing on stdout", async () => {
  const directory = join(root, "nan");
  cpSync(chatModel, directory, { recursive: true });
  const { vocabSize } = loadTokenizer(directory);
  writeModel(directory, tinyConfig({ vocabSize, maxPositions: 256 }), (_, shape) => {
    return new Float32Array(shape.reduce((n, m) => n * m, 1)).fill(NaN);
  });
  writeFileSync(join(directory, "text"), "the answer");
  for (const args of [["--prompt", "Hi", "--json"], ["--score", join(directory, "text")]]) {
    const { code, stdout, errors } = await runEntry("model/generate", ["--model", directory, ...args]);
    expect([code, stdout]).toEqual([5, ""]);
    expect(errors[0]).toMatch(/the model's logits are not finite\. Fix: check the weights/);
  }
});

describe("plain continuation", () => {
  const flags = ["--max-tokens", "8", "--json", "--prompt", "the <|im_end|> 日本"];

  test("--raw, and by itself without a template, with a note", async () => {
    const raw = await runEntry("model/generate", ["--model", chatModel, "--raw", ...flags]);
    const base = await runEntry("model/generate", ["--model", baseModel, ...flags]);
    expect([raw.code, base.code]).toEqual([0, 0]);
    expect(raw.stderr).not.toContain("note:");
    expect(base.stderr).toMatch(/note: .* has no chat template: the prompt is continued as plain text/);
    expect(base.stdout).toBe(raw.stdout);
    const { encodeWithSpecials } = loadTokenizer(chatModel);
    expect((JSON.parse(raw.stdout) as Generated).promptIds).toEqual(encodeWithSpecials("the <|im_end|> 日本"));
  });

  test("--system without a template is refused", async () => {
    const both = await runEntry("model/generate", ["--model", chatModel, "--raw", "--system", "x", ...flags]);
    const none = await runEntry("model/generate", ["--model", baseModel, "--system", "x", ...flags]);
    expect([both.code, both.errors[0]]).toEqual([2, expect.stringContaining("--system needs the chat template")]);
    expect(none.code).toBe(2);
    expect(none.errors[0]).toMatch(/--system needs a chat template, and .* has none/);
  });
});

describe("loadChatModel", () => {
  /** A copy of the base model, its tokenizer changed. */
  function changed(name: string, tokenizer: object, config: object = {}): string {
    const directory = join(root, name);
    cpSync(baseModel, directory, { recursive: true });
    editJson(join(directory, "tokenizer.json"), (json) => Object.assign(json, tokenizer));
    editJson(join(directory, "tokenizer_config.json"), (json) => Object.assign(json, config));
    return directory;
  }
  const begin = (single: object[]): object => ({ type: "TemplateProcessing", single, special_tokens: {} });
  const special = { SpecialToken: { id: "<|endoftext|>", type_id: 0 } };
  const text = { Sequence: { id: "A", type_id: 0 } };

  test.each<[string, object, object, boolean]>([
    ["none", {}, {}, false],
    ["a template, as Llama 3 has", { post_processor: begin([special, text]) }, {}, true],
    ["a template in a sequence",
      { post_processor: { type: "Sequence", processors: [{ type: "ByteLevel" }, begin([special, text])] } }, {}, true],
    ["a template that ends the text", { post_processor: begin([text, special]) }, {}, false],
    ["add_bos_token", {}, { add_bos_token: true, bos_token: "<|endoftext|>" }, true],
    ["a begin token that is not asked for", {}, { add_bos_token: false, bos_token: "<|endoftext|>" }, false],
  ])("the token that begins a text: %s", (name, tokenizerJson, config, begins) => {
    const { model, tokenizer, encodeText, encodePrompt, hasChatTemplate } =
      loadChatModel(changed(name, tokenizerJson, config));
    const ids = [...(begins ? [tokenizer.idOf("<|endoftext|>")] : []), ...tokenizer.encode("the answer\nnow")];
    expect(encodeText("the answer\nnow")).toEqual(ids);
    const messages = ["the answer", "now"].map((content) => ({ role: "user", content }));
    expect([hasChatTemplate, encodePrompt(messages)]).toEqual([false, ids]);
    disposeGpt(model);
  });
});

describe("generate --score", () => {
  const scoreFile = async (content: string): Promise<unknown> => {
    const file = join(root, "to-score");
    writeFileSync(file, content);
    const { code, stdout, stderr } = await runEntry("model/generate", ["--model", chatModel, "--score", file]);
    expect(code, stderr).toBe(0);
    return JSON.parse(stdout);
  };

  test("plain text: ids, tokens, log-probabilities, total and perplexity; as JSON and as ids the same", async () => {
    const plain = (await scoreFile("the answer 日")) as Record<"ids" | "tokens" | "logProbs", unknown[]>;
    const tokenizer = loadTokenizer(chatModel);
    expect(Object.keys(plain)).toEqual(["ids", "tokens", "logProbs", "total", "perplexity"]);
    expect(plain.ids).toEqual(tokenizer.encode("the answer 日"));
    expect(plain.tokens).toEqual((plain.ids as number[]).map((id) => tokenizer.decode([id])));
    expect(plain.logProbs[0]).toBeNull();
    const both = await scoreFile(JSON.stringify([{ text: "the answer 日" }, { ids: plain.ids }]));
    expect(both).toEqual([plain, plain]);
  });

  test("an id in a gap of the tokenizer's vocabulary has a score and no text", async () => {
    const gapped = join(root, "gapped");
    cpSync(chatModel, gapped, { recursive: true });
    editJson(join(gapped, "tokenizer.json"), (json) => {
      json["added_tokens"] = (json["added_tokens"] as { content: string }[])
        .filter(({ content }) => content !== "<|im_start|>");
    });
    editJson(join(gapped, "tokenizer_config.json"), (json) => delete json["added_tokens_decoder"]);
    const gap = loadTokenizer(chatModel).idOf("<|im_start|>");
    const tokenizer = loadTokenizer(gapped);
    expect(gap).toBeLessThan(tokenizer.vocabSize);
    expect(idsWithText(tokenizer, [5, gap, tokenizer.vocabSize])).toEqual([5]);
    const ids = JSON.stringify({ ids: [5, gap] });
    const { code, stdout } = await runInteractive("model/generate", ["--model", gapped, "--score", "-"], ids);
    expect([code, JSON.parse(stdout)]).toMatchObject([0, { ids: [5, gap], tokens: [expect.any(String), null] }]);
  });

  test("is consistent with sampling: scored after its prompt, a sample has its own log-probabilities", async () => {
    const args = ["--model", chatModel, "--prompt", "the", "--temperature", "1", "--max-tokens", "9", "--json"];
    const { promptIds, samples } = JSON.parse((await runEntry("model/generate", args)).stdout) as Generated;
    const ids = [...promptIds, ...samples[0]!.ids];
    const { logProbs } = (await scoreFile(JSON.stringify({ ids }))) as { logProbs: number[] };
    logProbs.slice(promptIds.length).forEach((value, t) => {
      expect(Math.abs(value - samples[0]!.logProbs[t]!)).toBeLessThan(1e-4);
    });
  });

  test.each<[string, string, RegExp]>([
    ["an unknown id", '{"ids": [1, 99999]}', /id 99999 is not in the model's vocabulary/],
    ["an item without text", '[{"words": 3}]', /item 0 to score must have either "text"/],
    ["nothing", "", /nothing to score/],
    ["too much", "a ".repeat(400), /tokens exceed the model's 256 positions. Fix:/],
  ])("refuses %s", async (_, content, message) => {
    const result = await runInteractive("model/generate", ["--model", chatModel, "--score", "-"], content);
    expect([result.code, result.stdout]).toEqual([2, ""]);
    expect(result.stderr).toMatch(message);
  });
});
