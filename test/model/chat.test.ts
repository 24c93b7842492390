/**
 * `chat` as a user runs it, with stdin from a pipe and in a terminal (a pseudo-terminal made by `script`): one reply a
 * line, commands, Ctrl-C, the history, and how it leaves.
 */
import { spawn } from "node:child_process";
import { readFileSync, existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { CHATML_TEMPLATE, type ChatMessage } from "../../src/data/chat_template.ts";
import { loadChatModel } from "../../src/model/chat_model.ts";
import { disposeGpt } from "../../src/model/gpt.ts";
import { sampleCompletions } from "../../src/model/sampler.ts";
import "../support/gpu.ts";
import { runInteractive } from "../support/run_interactive.ts";
import { makeDigitLoverDirectory, makeChatModelDirectory } from "../support/tiny_model.ts";

/** Answers in digits and ends its turn. */
const model = makeDigitLoverDirectory();
/** Goes on and on. */
const babbler = makeChatModelDirectory({ maxPositions: 4096 });
afterAll(() => [model, babbler].forEach((directory) => rmSync(directory, { recursive: true })));

const flags = ["--model", model, "--max-tokens", "8", "--temperature", "1", "--top-p", "1"];

/** What the model says to `messages`, sampled from scratch. */
async function expected(messages: readonly ChatMessage[], seed = 0): Promise<string> {
  const chat = loadChatModel(model);
  const completions = await sampleCompletions(chat.model, [chat.encodePrompt(messages)], 1, {
    maxNewTokens: 8,
    temperature: 1,
    seed,
    endIds: chat.tokenizer.eosIds,
  });
  disposeGpt(chat.model);
  return chat.tokenizer.decode(completions[0]![0]!.tokens, { skipSpecial: true });
}

const says = (role: string, content: string): ChatMessage => ({ role, content });

describe("from a pipe", () => {
  test("one reply a line, nothing else on stdout; a reply sees the whole conversation", async () => {
    const input = "Hello\n\n  Why?  \nlast, no line break";
    const { code, stdout, stderr } = await runInteractive("model/chat", flags, input);
    const messages: ChatMessage[] = [];
    let want = "";
    for (const line of ["Hello", "Why?", "last, no line break"]) {
      messages.push(says("user", line));
      const answer = await expected(messages);
      messages.push(says("assistant", answer));
      want += answer + "\n";
    }
    expect([stdout, code]).toEqual([want, 0]);
    expect(stderr).toContain("adapter: ");
  });

  test("commands: /system, /seed, /clear, /help, /exit, unknown ones", async () => {
    const input = [
      "/system Be brief.", "/seed 7", "Hello", "/clear", "/seed 1e99", "/seed", "/dance", "Hello",
      "/system", "/clear", "Hello", "/help", "/exit", "not answered",
    ].join("\n");
    const { code, stdout, stderr } = await runInteractive("model/chat", [...flags, "--system", "replaced"], input);
    const brief = await expected([says("system", "Be brief."), says("user", "Hello")], 7);
    expect([stdout, code]).toEqual([`${brief}\n${brief}\n${await expected([says("user", "Hello")], 7)}\n`, 0]);
    expect(stderr.match(/\/seed: must be an integer/g)).toHaveLength(2);
    expect(stderr).toContain("no command /dance; /help lists them");
    expect(stderr).toContain("/system TEXT    set the system message");
  });

  test("a history that no longer fits is cut with a note; a message that cannot fit is not sent", async () => {
    const long = "the answer is 7 ".repeat(7).trim(); // more than 50 tokens; the model has 128 positions
    const input = `${long}\n${long}\n${long.repeat(3)}\nHi\n`;
    const { code, stdout, stderr } = await runInteractive("model/chat", flags, input);
    expect(code).toBe(0);
    const answer = await expected([says("user", long)]); // nothing of the first turn is left in the second
    const last = [says("user", long), says("assistant", answer), says("user", "Hi")];
    expect(stdout).toBe(`${answer}\n${answer}\n${await expected(last)}\n`);
    expect(stderr).toMatch(/\(forgot the oldest 2 messages: the model reads only 128 tokens\)/);
    expect(stderr).toMatch(/not sent: \d+ tokens, and the model reads only 128/);
  });

  test("a model that was made for fewer tokens than it has positions is not given more", async () => {
    const short = makeDigitLoverDirectory();
    const path = join(short, "tokenizer_config.json");
    const config = JSON.parse(readFileSync(path, "utf8")) as object;
    writeFileSync(path, JSON.stringify({ ...config, model_max_length: 60 }));
    const long = "the answer is 7 ".repeat(3).trim();
    const { stdout, stderr } = await runInteractive("model/chat", [...flags, "--model", short], `${long}\n${long}\n`);
    rmSync(short, { recursive: true });
    const answer = await expected([says("user", long)]);
    expect(stdout).toBe(`${answer}\n${answer}\n`);
    expect(stderr).toContain("(forgot the oldest 2 messages: the model reads only 60 tokens)");
  });

  test("a message that the chat template refuses is not sent; the conversation goes on", async () => {
    const strict = makeDigitLoverDirectory();
    const noSystem = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}";
    writeFileSync(join(strict, "chat_template.jinja"), noSystem + CHATML_TEMPLATE);
    const input = "/system Be brief.\nHello\n/system\nHello\n";
    const { code, stdout, stderr } = await runInteractive("model/chat", [...flags, "--model", strict], input);
    rmSync(strict, { recursive: true });
    expect([stdout, code]).toEqual([`${await expected([says("user", "Hello")])}\n`, 0]);
    expect(stderr).toMatch(/not sent: chat template: .*no system role/);
  });

  test("an interrupt stops the reply; the next message gets one", async () => {
    let interrupted = false;
    const args = ["--model", babbler, "--max-tokens", "4000"];
    const { code, stdout, stderr } = await runInteractive("model/chat", args, "Hello\n", (text, child) => {
      if (interrupted || text.length < 20) return;
      interrupted = true;
      child.kill("SIGINT");
      child.stdin.end("/exit\n");
    });
    expect(code).toBe(0);
    expect(stderr).toContain("(stopped)");
    expect(stdout.length).toBeGreaterThanOrEqual(20);
    expect(stdout.endsWith("\n")).toBe(true);
  });

  test("an interrupt between replies leaves", async () => {
    const { code, stderr } = await runInteractive("model/chat", flags, "Hello\n", (text, child) => {
      if (text.includes("\n")) setTimeout(() => child.kill("SIGINT"), 300);
    });
    expect(code).toBe(0);
    expect(stderr).not.toContain("(stopped)");
  });

  test("a reader that goes away ends it quietly", async () => {
    const { code, stderr } = await runInteractive("model/chat", ["--model", babbler, "--max-tokens", "4000"], "Hello\n",
      (_, child) => child.stdout.destroy());
    expect(code).toBe(0);
    expect(stderr).not.toMatch(/EPIPE|error/);
  });
});

describe.runIf(process.platform === "linux" && existsSync("/usr/bin/script"))("in a terminal", () => {
  /**
   * Types each text once the screen shows what it waits for (since the last typing). Returns the screen, the state of
   * the terminal afterwards (from `stty`) included.
   */
  function inTerminal(
    args: readonly string[],
    typing: readonly (readonly [waitFor: string, text: string])[],
  ): Promise<string> {
    const command = `${process.execPath} --import tsx src/model/chat.ts ${args.join(" ")}; echo code $?; stty -a`;
    const child = spawn("/usr/bin/script", ["-qfec", command, "/dev/null"], {
      cwd: fileURLToPath(new URL("../../", import.meta.url)),
    });
    let [screen, from, next] = ["", 0, 0];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      screen += text;
      const step = typing[next];
      if (!step || !screen.slice(from).includes(step[0])) return;
      from = screen.length;
      next += 1;
      child.stdin.write(step[1]);
    });
    return new Promise((resolve) => child.on("close", () => resolve(screen)));
  }
  const leftWell = /code 0[^]* icanon [^]* echo /;

  test("Ctrl-C stops the reply, then leaves from the prompt; the terminal is as before", async () => {
    const screen = await inTerminal(["--model", babbler, "--max-tokens", "4000"], [
      ["> ", "Hello\r"],
      ["\ufffd", "\x03"], // a random model soon says what is no UTF-8
      ["> ", "\x03"],
    ]);
    expect(screen).toContain("(stopped)");
    expect(screen).toMatch(leftWell);
  });

  test("Ctrl-D leaves", async () => {
    const screen = await inTerminal(flags, [["> ", "Hello\r"], ["> ", "\x04"]]);
    expect(screen).toContain(await expected([says("user", "Hello")]));
    expect(screen).toMatch(leftWell);
  });
});

test("what a template refuses is told in one line without commands to the terminal", async () => {
  const strict = makeDigitLoverDirectory();
  writeFileSync(join(strict, "chat_template.jinja"), `{{ raise_exception("no\\n\x1b]0;owned\x07\u202eway") }}`);
  const { code, stderr } = await runInteractive("model/chat", ["--model", strict], "Hello\n");
  rmSync(strict, { recursive: true });
  expect(code).toBe(0);
  expect(stderr).toMatch(/^not sent: .*no \\x1b\]0;owned\\x07\\u\{202e\}way$/m);
});
