/**
 * The command-line entries with bad input, each in a process of its own: one line that begins with "error:", the
 * documented exit code, no stack trace, and no output left behind.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { CommanderError } from "commander";
import { afterAll, describe, expect, test, vi } from "vitest";
import { parseConfig } from "../src/grpo/config.ts";
import { readConfig } from "../src/model/config.ts";
import { parameterShapes } from "../src/model/parameters.ts";
import { runEntry, type EntryOptions, type EntryResult } from "./support/run_entry.ts";
import { writeSafetensors, type TensorToWrite } from "./support/safetensors_fixture.ts";
import { makeChatModelDirectory } from "./support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "cli-"));
const model = makeChatModelDirectory();
const narrow = makeChatModelDirectory({ hiddenSize: 8 });
afterAll(() => [root, model, narrow].forEach((directory) => rmSync(directory, { recursive: true })));

let made = 0;
/** A path that does not exist yet. */
const fresh = (): string => join(root, `new-${made++}`);

const tinyPretrain = (
  "--generated 100 --vocab 300 --hidden 16 --layers 1 --heads 2 --kv-heads 1 " +
  "--head-size 8 --mlp 24 --row-length 16"
).split(" ");

/** Runs an entry that must fail with `code` and one line that matches `message`. */
async function refuses(
  entry: string,
  args: readonly string[],
  code: number,
  message: RegExp,
  options?: EntryOptions,
): Promise<EntryResult> {
  const result = await runEntry(entry, args, options);
  expect(result.errors, result.stderr).toHaveLength(1);
  expect(result.errors[0]).toMatch(message);
  expect(result.code).toBe(code);
  expect(result.stderr).not.toMatch(/^\s+at .*\.ts/m); // no stack trace of ours
  return result;
}

/** A copy of the chat model, damaged by `change`. */
function damaged(change: (directory: string) => void): string {
  const directory = fresh();
  cpSync(model, directory, { recursive: true });
  change(directory);
  return directory;
}

describe.each([
  ["grpo/train", ["--learnin-rate", "1"], "--learning-rate"],
  ["model/generate", ["--prompt", "Hi", "--tempreature", "1"], "--temperature"],
  ["model/chat", ["--sistem", "x"], "--system"],
  ["model/pretrain", ["--step", "5"], "--steps"],
] as const)("%s", (entry, misspelt, meant) => {
  test("an unknown flag: its nearest name", async () => {
    const { stderr, stdout } = await refuses(entry, misspelt, 2, /unknown option/);
    expect(stderr).toContain(`(Did you mean ${meant}?)`);
    expect(stderr).toContain("--help lists all flags");
    expect(stdout).toBe("");
  });

  test("--help lists the flags and exits with 0", async () => {
    const { code, stdout, stderr } = await runEntry(entry, ["--help"]);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toContain(meant);
  });
});

describe("usage, exit 2", () => {
  test.each<[string, string[], RegExp]>([
    ["a word for a number", ["--learning-rate", "fast"],
      /'--learning-rate <x>' argument 'fast' is invalid\. must be a number from 0 up/],
    ["an empty number", ["--epsilon", ""], /must be a number from 0 up/],
    ["a number that is not finite", ["--epsilon", "Infinity"], /must be a number from 0 up/],
    ["a fraction for a count", ["--train-steps", "1.5"], /must be an integer from 1 up/],
    ["a seed above 32 bits", ["--seed", "4294967296"], /must be an integer from 0 to 4294967295/],
    ["a group of one", ["--group-size", "1"], /must be an integer from 2 up/],
    ["temperature 0", ["--temperature", "0"], /must be a number from 0\.001 up/],
    ["a group above the rollouts", ["--group-size", "26"], /--group-size 26 exceeds --rollout-count 25/],
    ["a train step above the buffer", ["--replay-buffer-capacity", "4"],
      /--replay-buffer-capacity 4 holds less than the 25 completions of a train step/],
    ["an unknown objective", ["--objective", "ppo"],
      /'ppo' is invalid\. Allowed choices are sequence, rloo, reinforce,/],
    ["a clip range above 1", ["--epsilon", "2"], /objective sequence: epsilon 2 must lie between 0 and 1/],
    ["a two-sided clip below the clip range", ["--delta", "1e-6"],
      /delta 0\.000001 must be above 1 \+ epsilon_high = 1\.2/],
    ["a two-sided clip without a clip", ["--objective", "sapo", "--delta", "4"], /objective sapo: .*takes no delta/],
    ["cispo's cap as a clip range", ["--objective", "cispo", "--epsilon-high", "0.2"],
      /cispo: epsilon_high 0\.2 is the cap/],
    ["a lower bound for cispo", ["--objective", "cispo", "--epsilon", "0.2"],
      /--epsilon changes nothing for --objective cispo: give --epsilon-high/],
    ["a clip range for what does not clip", ["--objective", "reinforce", "--epsilon-high", "0.2"],
      /--epsilon-high changes nothing for --objective reinforce/],
    ["a level for one that has no choice", ["--ratio-level", "token"],
      /--ratio-level changes nothing for --objective seq/],
    ["an estimator without a KL term", ["--kl-estimator", "k1"], /--kl-estimator needs --beta above 0/],
    ["a negative KL weight", ["--beta", "-1"], /must be a number from 0 up/],
    ["a scale without a baseline", ["--objective", "reinforce", "--scale-rewards", "group"],
      /--scale-rewards group does not go with --objective reinforce/],
    ["an addend to no deviation", ["--objective", "dr_grpo", "--advantage-epsilon", "1e-4"],
      /it needs --scale-rewards group or batch/],
    ["surplus arguments", ["more"], /too many arguments/],
  ])("train, %s", (_, args, message) => {
    // In this process, for speed; that runMain makes it exit code 2 is seen above.
    const stderr = vi.spyOn(process.stderr, "write").mockReturnValue(true);
    expect(() => parseConfig(["node", "train", "--out", fresh(), ...args])).toThrow(CommanderError);
    const printed = stderr.mock.calls.map(([text]) => String(text)).join("");
    stderr.mockRestore();
    expect(printed).toMatch(message);
    expect(printed.match(/error:/g)).toHaveLength(1);
  });

  test("train, the defaults are the reference experiment's", () => {
    const config = parseConfig(["node", "train", "--epsilon", "0.1"]);
    expect(config.out).toMatch(/^runs\/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-seed1$/);
    expect(config).toMatchObject({
      seed: 1, objective: "sequence", trainSteps: 5, rolloutCount: 25, maxRolloutTokens: 10, temperature: 1,
      gradUpdatesPerStep: 5, groupSize: 5, replayBufferCapacity: 50, epsilon: 0.1, epsilonHigh: 0.1,
      baseline: "mean", scaleRewards: "group", advantageEpsilon: 1e-6, beta: 0, maskTruncated: false,
      warmupSteps: 5, weightDecay: 0.01, maxGradNorm: 0, gradientCheckpointing: false,
    });
    expect([config.delta, config.ratioLevel]).toEqual([undefined, undefined]);
  });

  test.each([
    ["cispo", "", { epsilonHigh: 5 }],
    ["gspo", "", { epsilon: 3e-4, epsilonHigh: 4e-4 }],
    ["gspo", "--epsilon 0.1", { epsilon: 0.1, epsilonHigh: 0.1 }],
    ["dapo", "--epsilon-high 0.28", { epsilon: 0.2, epsilonHigh: 0.28, scaleRewards: "group" }],
    ["dr_grpo", "", { epsilon: 0.2, baseline: "mean", scaleRewards: "none" }],
    ["dr_grpo", "--scale-rewards batch", { scaleRewards: "batch" }],
    ["rloo", "", { baseline: "leave-one-out", scaleRewards: "none" }],
    ["reinforce", "", { baseline: "none", scaleRewards: "none" }],
  ])("train, defaults of %s %s", (objective, flags, expected) => {
    const args = ["--objective", objective, ...flags.split(" ").filter((flag) => flag !== "")];
    expect(parseConfig(["node", "train", ...args])).toMatchObject(expected);
  });

  test.each<[string, string, string[], RegExp]>([
    ["no prompt", "model/generate", [], /give either --prompt TEXT or --score FILE/],
    ["prompt and score", "model/generate", ["--prompt", "Hi", "--score", "x"], /give either --prompt TEXT or --score/],
    ["a flag that scoring ignores", "model/generate", ["--score", "x", "--samples", "4"],
      /--samples does not go with --score, which draws nothing\. Fix: drop it/],
    ["next to no temperature", "model/generate", ["--prompt", "Hi", "--temperature", "1e-39"],
      /must be 0, or a number from 0\.001 to 1000/],
    ["too much of it", "model/chat", ["--temperature", "1e39"], /must be a number from 0 to 1000/],
    ["a share above 1", "model/generate", ["--prompt", "Hi", "--top-p", "1.5"], /must be a number from 0 to 1/],
    ["a negative count", "model/chat", ["--top-k", "-1"], /must be an integer from 0 to/],
    ["no tokens", "model/generate", ["--prompt", "Hi", "--max-tokens", "0"], /must be an integer from 1 up/],
    ["neither --out nor --resume", "model/pretrain", [], /either --out DIR for a new run or --resume DIR/],
    ["heads that do not divide", "model/pretrain", ["--out", "x", "--heads", "3"],
      /--heads 3 must be a multiple of --kv-heads 2/],
    ["an odd head size", "model/pretrain", ["--out", "x", "--head-size", "7"], /--head-size 7 must be even/],
  ])("%s", async (_, entry, args, message) => {
    await refuses(entry, args, 2, message);
    expect(existsSync("x")).toBe(false);
  });

  test("text that does not fill one row leaves no folder behind", async () => {
    const out = fresh();
    const args = ["--out", out, ...tinyPretrain, "--row-length", "512"];
    await refuses("model/pretrain", args, 2, /does not fill one training and one validation row of 512/);
    expect(existsSync(out)).toBe(false);
  });

  test.each([
    ["grpo/train", ["--model", model]],
    ["model/pretrain", tinyPretrain],
  ] as const)("%s: an output folder that holds something is left alone", async (entry, args) => {
    const out = fresh();
    mkdirSync(out);
    writeFileSync(join(out, "precious"), "");
    await refuses(entry, [...args, "--out", out], 2, /is not empty\. Fix: choose another --out/);
    expect(readdirSync(out)).toEqual(["precious"]);
  });

  test("a prompt that leaves no room for the reply", async () => {
    const message = /\d+ prompt tokens and 250 new ones exceed the model's 256 positions\. Fix:/;
    await refuses("model/generate", ["--prompt", "Hi", "--model", model, "--max-tokens", "250"], 2, message);
  });
});

describe("a model or data that cannot be used, exit 3", () => {
  test.each<[string, (directory: string) => void, RegExp, "and train"?]>([
    ["no such directory", (path) => rmSync(path, { recursive: true }),
      /no model directory .* Fix: .*--model/, "and train"],
    ["no weights", (path) => rmSync(join(path, "model.safetensors")), /has no model\.safetensors/],
    ["truncated weights", (path) => truncateSync(join(path, "model.safetensors"), 9000),
      /model\.safetensors: .*truncated or corrupt/, "and train"],
    ["config.json with a break in it", (path) => writeFileSync(join(path, "config.json"), '{\n"a":\n\n'),
      /config\.json is not valid JSON/],
    ["no tokenizer", (path) => rmSync(join(path, "tokenizer.json")), /tokenizer\.json does not exist/],
    ["a broken tokenizer", (path) => writeFileSync(join(path, "tokenizer.json"), '{\n  "model": {\n x'),
      /tokenizer\.json is not valid JSON/],
    ["a broken template", (path) => writeFileSync(join(path, "chat_template.jinja"), "{% for %}"), /chat template: /],
    ["wrong shapes", (path) => cpSync(join(narrow, "config.json"), join(path, "config.json")),
      /do not fit config\.json/],
  ])("%s", async (_, change, message, alsoTrain) => {
    const [directory, out] = [damaged(change), fresh()];
    await refuses("model/generate", ["--prompt", "Hi", "--model", directory], 3, message);
    if (!alsoTrain) return;
    await refuses("grpo/train", ["--model", directory, "--out", out], 3, message);
    expect(existsSync(out)).toBe(false);
  });

  test.each<[string, (directory: string) => void, RegExp]>([
    ["a template", (path) => {
      writeFileSync(join(path, "chat_template.jinja"), `{{ raise_exception("no\x1b]0;owned\x07\u009b2J\u202eway") }}`);
    }, /no\\x1b\]0;owned\\x07\\x9b2J\\u\{202e\}way$/],
    ["the name of a tensor", (path) => {
      const zeros = (name: string, shape: readonly number[]): TensorToWrite => {
        return { name, shape, dtype: "F32", data: new Float32Array(shape.reduce((n, m) => n * m, 1)) };
      };
      const tensors = [...parameterShapes(readConfig(path))].map(([name, shape]) => zeros(name, shape));
      writeSafetensors(join(path, "model.safetensors"), [...tensors, zeros("model.\x1b[2J\nname", [1])]);
    }, /unexpected "model\.\\u001b\[2J\\nname"/],
  ])("%s cannot command the terminal", async (_, change, message) => {
    const { stderr } = await refuses("model/generate", ["--prompt", "Hi", "--model", damaged(change)], 3, message);
    expect(stderr).not.toMatch(/(?!\n)[\p{Cc}\p{Bidi_Control}]/u);
  });

  test("train, a hub name without a connection", async () => {
    const out = fresh();
    const env = { HF_HUB_OFFLINE: "1", HF_HOME: fresh() };
    const message = /no model directory nobody\/nothing, and the cache .* does not hold that model whole\. Fix: unset/;
    await refuses("grpo/train", ["--model", "nobody/nothing", "--out", out], 3, message, { env });
    expect(existsSync(out)).toBe(false);
  });

  test("train, more than the GPU may hold", async () => {
    const out = fresh();
    const args = ["--model", model, "--out", out, "--max-rollout-tokens", "9999999999"];
    await refuses("grpo/train", args, 3, /this needs about .* GiB may be used\. Fix: --gradient-checkpointing, a/);
    expect(existsSync(out)).toBe(false);
  });

  test("a file to score that does not exist", async () => {
    await refuses("model/generate", ["--score", fresh(), "--model", model], 3, /ENOENT/);
    await refuses("model/generate", ["--score", model, "--model", model], 3, /EISDIR.*Fix: give a file, not a folder/);
  });

  test("a run's folder in place of its model's", async () => {
    const run = fresh();
    mkdirSync(run);
    cpSync(model, join(run, "model"), { recursive: true });
    writeFileSync(join(run, "config.json"), '{"seed": 1}');
    await refuses("model/generate", ["--prompt", "Hi", "--model", run], 3, /config\.json is no model's\. Fix: --model .*model$/);
  });

  test("no corpora, damaged corpora, no checkpoint to resume", async () => {
    const [out, empty, broken] = [fresh(), fresh(), fresh()];
    mkdirSync(empty);
    mkdirSync(broken);
    writeFileSync(join(broken, "sgd-dev.jsonl.gz"), "no gzip");
    await refuses("model/pretrain", ["--out", out, "--corpora", empty, ...tinyPretrain], 3, /no corpus found/);
    const damage = /sgd-dev\.jsonl\.gz: not a readable gzip/;
    await refuses("model/pretrain", ["--out", out, "--corpora", broken, ...tinyPretrain], 3, damage);
    await refuses("model/pretrain", ["--resume", empty], 3, /no checkpoint to resume/);
    expect(existsSync(out)).toBe(false);
  });

  test.each([
    ["grpo/train", ["--model", model]],
    ["model/pretrain", tinyPretrain],
  ] as const)("%s: an output folder that cannot be made", async (entry, args) => {
    const file = fresh();
    writeFileSync(file, "a file"); // works for root too, whom no permission stops
    await refuses(entry, [...args, "--out", join(file, "run")], 3, /ENOTDIR/);
  });
});

describe("output through a pipe", () => {
  test("all of it arrives, however slowly it is read", async () => {
    const code = 'import { runMain } from "./src/cli.ts"; await runMain(async () => console.log("x".repeat(3e6)));';
    const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    await once(child.stdout, "readable");
    await setTimeout(300); // nothing is read meanwhile
    let length = 0;
    for await (const chunk of child.stdout) length += (chunk as Buffer).length;
    expect(length).toBe(3e6 + 1);
  });

  test("a run outlives whoever read its output", async () => {
    const out = fresh();
    const args = ["--model", model, "--out", out, "--rollout-count", "5", "--train-steps", "2"];
    const { code, stderr } = await runEntry("grpo/train", args, { onStdout: (_, child) => child.stdout!.destroy() });
    expect([code, stderr]).toEqual([0, expect.stringContaining("trained model: ")]);
    expect(readdirSync(out)).toContain("model");
  });
});

describe("the machine and the numbers", () => {
  test.runIf(process.platform === "linux").each([
    ["grpo/train", ["--model", model]],
    ["model/generate", ["--prompt", "Hi", "--model", model]],
    ["model/pretrain", tinyPretrain],
  ] as const)("%s without an adapter: exit 4 and the fix", async (entry, args) => {
    const out = fresh();
    const outFlag = entry === "model/generate" ? [] : ["--out", out];
    const env = { VK_DRIVER_FILES: join(root, "no-driver.json") };
    const message = /no WebGPU adapter found\. Fix: run `node scripts\/setup\.mjs`/;
    await refuses(entry, [...args, ...outFlag], 4, message, { env });
    expect(existsSync(out)).toBe(false);
  });

  test.each([
    ["nine", 4, /WEBGRPO_GPU_GIB is "nine"\. Fix: a number of GiB above 0/],
    ["0.0002", 3, /this needs about .* of GPU memory .*, but 0\.00 GiB may be used\. Fix: /],
  ] as const)("GPU memory by the environment: WEBGRPO_GPU_GIB=%s", async (setting, code, message) => {
    const args = ["--model", model, "--out", fresh()];
    await refuses("grpo/train", args, code, message, { env: { WEBGRPO_GPU_GIB: setting } });
  });

  test("kernels by the environment: WEBGRPO_KERNELS", async () => {
    const args = ["--model", model, "--out", fresh()];
    await refuses("grpo/train", args, 4, /WEBGRPO_KERNELS is "cpu"\. Fix: gpu/, { env: { WEBGRPO_KERNELS: "cpu" } });
  });

  test.each([
    ["grpo/train", ["--model", model, "--rollout-count", "5", "--warmup-steps", "0"],
      /train step 1: 3 gradient steps in a row .*NaN.*good weights: .*last-good\. Fix: a lower --learning-rate/],
    ["model/pretrain", [...tinyPretrain, "--steps", "5"],
      /step \d: .*NaN.*Fix: a new run with a lower --learning-rate/],
  ] as const)("%s: numbers that blow up: exit 5, and no model is written", async (entry, args, message) => {
    const out = fresh();
    await refuses(entry, [...args, "--out", out, "--learning-rate", "1e30"], 5, message);
    expect(readdirSync(out).filter((name) => /^(model|checkpoint)/.test(name))).toEqual([]);
  });
});
