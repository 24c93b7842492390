/** Pretraining as a user runs it, on a model of a few thousand parameters: it learns, and it resumes bit for bit. */
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadChatModel } from "../../src/model/chat_model.ts";
import { disposeGpt } from "../../src/model/gpt.ts";
import { batchAt, collectDialogues } from "../../src/model/pretrain_data.ts";
import { dot, expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { readSafetensors } from "../support/oracles.ts";
import { zip } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";
import { runEntry, type EntryOptions, type EntryResult } from "../support/run_entry.ts";

const root = mkdtempSync(join(tmpdir(), "pretrain-"));
afterAll(() => rmSync(root, { recursive: true }));

const tiny = (
  "--generated 100 --vocab 300 --hidden 16 --layers 1 --heads 2 --kv-heads 1 --head-size 8 --mlp 24 " +
  "--row-length 32 --batch 4 --warmup 2 --learning-rate 0.01"
).split(" ");

async function pretrain(args: readonly string[], options?: EntryOptions): Promise<EntryResult> {
  const result = await runEntry("model/pretrain", args, options);
  expect(result.errors).toEqual([]);
  return result;
}

interface Metrics {
  step: number;
  loss?: number;
  grad_norm?: number;
  learning_rate?: number;
  eval_loss?: number;
}

function metricsOf(out: string): Metrics[] {
  const lines = readFileSync(join(out, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line) as Metrics);
}

/** Bytes of everything that training computes. */
function resultsOf(out: string): Record<string, string> {
  const files = [
    "metrics.jsonl",
    "checkpoint/model.safetensors",
    "checkpoint/optimizer.safetensors",
    "checkpoint/state.json",
    "model/model.safetensors",
    "model/config.json",
    "tokenizer.json",
    "rows.bin",
  ];
  return Object.fromEntries(files.map((name) => [name, readFileSync(join(out, name)).toString("base64")]));
}

test("no dialogue is both trained on and validated with", () => {
  const { train, validation } = collectDialogues(
    { seed: 1, generated: 20_000, corpora: null, corporaRatio: 0 }, () => undefined,
  );
  const trained = new Set(train.map((dialogue) => JSON.stringify(dialogue)));
  expect(validation.length).toBeGreaterThan(50);
  expect(validation.filter((dialogue) => trained.has(JSON.stringify(dialogue)))).toEqual([]);
});

describe("a short run", () => {
  const out = join(root, "straight");
  const everyThree = ["--steps", "6", "--eval-every", "3"];

  test("logs every step and the validation loss, and leaves a chat model", async () => {
    const { code, stderr } = await pretrain(["--out", out, ...tiny, ...everyThree]);
    expect(code).toBe(0);
    expect(stderr).toMatch(/step 6\/6 {2}loss \d\.\d{4} {2}\d+ tokens\/s/);
    const metrics = metricsOf(out);
    expect(metrics.filter(({ loss }) => loss !== undefined).map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6]);
    expect(metrics.filter((record) => record.eval_loss !== undefined).map(({ step }) => step)).toEqual([3, 6]);
    expect(metrics[0]!.loss).toBeCloseTo(Math.log(300), 1); // an untrained model knows nothing
    const { model, encodePrompt, tokenizer } = loadChatModel(join(out, "model"));
    expect(encodePrompt([{ role: "user", content: "Hi" }]).length).toBeGreaterThan(3);
    expect(tokenizer.eosIds).toHaveLength(2);
    disposeGpt(model);
  });

  test("the learning rate rises over the warm-up steps, then falls along half a cosine", () => {
    const rates = metricsOf(out).flatMap(({ learning_rate: rate }) => rate ?? []);
    // After the warm-up 0.01 * (1 + cos a) / 2 with a = 36, 72, 108, 144 degrees; 180 would be a step after the last.
    const wanted = [0.005, 0.01, 0.00904508497, 0.00654508497, 0.00345491503, 0.000954915028];
    expectClose("learning rates", rates, wanted, { rtol: 1e-8, atol: 0 });
  });

  test("3 steps, then --resume, give the same bytes as 6 at once", async () => {
    const parts = join(root, "parts");
    const first = await pretrain(["--out", parts, ...tiny, ...everyThree, "--stop-at", "3"]);
    expect(first.code).toBe(0);
    expect(existsSync(join(parts, "model"))).toBe(false);
    expect(metricsOf(parts).at(-1)!.step).toBe(3);
    // A crash after the checkpoint leaves later records, the last of them cut off: they are run again.
    // One in the middle of putting a checkpoint in place leaves the old one under another name.
    renameSync(join(parts, "checkpoint"), join(parts, "checkpoint.old-4194305"));
    writeFileSync(join(parts, "metrics.jsonl"), '{"step":4,"loss":9}\n{"step":5,"lo', { flag: "a" });
    const again = await runEntry("model/pretrain", ["--resume", parts, "--stop-at", "3"]);
    expect(again.errors).toEqual(["error: --stop-at 3: 3 steps are done. Fix: a higher one"]);
    const second = await pretrain(["--resume", parts, "--eval-every", "3"]);
    expect(second.code).toBe(0);
    expect(resultsOf(parts)).toEqual(resultsOf(out));
    expect(readdirSync(parts).filter((name) => /\.(tmp|old)-/.test(name))).toEqual([]);
  });

  test("--init: a second stage starts where the first ended, with its tokenizer and shape; the card names both", async () => {
    const second = join(root, "second");
    const flags = ["--init", out, "--out", second, "--generated", "100", "--row-length", "32", "--batch", "4", "--seed", "3"];
    const { code } = await pretrain([...flags, "--warmup", "2", "--steps", "4", "--learning-rate", "0.001"]);
    expect(code).toBe(0);
    expect(resultsOf(second)["tokenizer.json"]).toBe(resultsOf(out)["tokenizer.json"]);
    expect(resultsOf(second)["model/config.json"]).toBe(resultsOf(out)["model/config.json"]);
    expect(metricsOf(second)[0]!.loss).toBeLessThan(metricsOf(out)[0]!.loss! - 0.1);
    const card = readFileSync(join(second, "model", "README.md"), "utf8");
    expect(card).toMatch(/--hidden 16 .*--out STAGE1\n.*--init STAGE1 (?!.*--hidden).*--out DIR\n\nStage 2: /);
    const mixed = await runEntry("model/pretrain", ["--init", out, "--out", join(root, "mixed"), "--hidden", "8"]);
    expect(mixed.code).toBe(2);
    expect(mixed.stderr).toContain("--init brings the model's shape with it: drop the flag for hidden");
  });

  test("the card of a third stage names the texts and flags of all, and needs no earlier folder at its end", async () => {
    const own = { license: "CC BY 4.0", source: "https://example.org", dialogues: 7 };
    const [first, second, third] = ["chain1", "chain2", "chain3"].map((name) => join(root, name)) as [string, string, string];
    cpSync(out, first, { recursive: true });
    const sources = JSON.parse(readFileSync(join(first, "sources.json"), "utf8")) as object[];
    writeFileSync(join(first, "sources.json"), JSON.stringify([...sources, { name: "stories", ...own }]));
    const flags = "--generated 100 --row-length 32 --batch 4 --warmup 0 --steps 2".split(" ");
    await pretrain(["--init", first, "--out", second, ...flags]);
    await pretrain(["--init", second, "--out", third, ...flags, "--seed", "9", "--stop-at", "1"]);
    expect(readFileSync(join(third, "sources.json"), "utf8")).toContain("CC BY 4.0");
    [first, second].forEach((folder) => rmSync(folder, { recursive: true }));
    await pretrain(["--resume", third]);
    const card = readFileSync(join(third, "model", "README.md"), "utf8");
    expect(card).toContain("| stories | 7 + 0 | CC BY 4.0 | https://example.org |");
    expect(card).toMatch(/\| generated dialogues \| 200 \+ 100 \| MIT \|/);
    const recipes = card.split("\n").filter((line) => line.includes("pretrain.ts"));
    expect(recipes).toEqual([
      expect.stringMatching(/--steps 6 .*--seed 1 --out STAGE1$/),
      expect.stringMatching(/--init STAGE1 .*--steps 2 .*--seed 1 --out STAGE2$/),
      expect.stringMatching(/--init STAGE2 .*--steps 2 .*--seed 9 --out DIR$/),
    ]);
  });

  test("a run that another process works on is not resumed", async () => {
    const taken = join(root, "taken");
    cpSync(out, taken, { recursive: true });
    writeFileSync(join(taken, ".lock-1-elsewhere"), "");
    const { code, errors } = await runEntry("model/pretrain", ["--resume", taken]);
    expect([code, errors]).toEqual([2, [expect.stringMatching(/in use by process 1 on elsewhere\. Fix: let it end/)]]);
    const missing = await runEntry("model/pretrain", ["--resume", join(root, "missing")]);
    expect([missing.code, missing.errors]).toEqual([3, [expect.stringMatching(/holds no checkpoint to resume/)]]);
    expect(existsSync(join(root, "missing"))).toBe(false);
  });

  test.each<[string, (folder: string) => void, RegExp]>([
    ["no model", (folder) => rmSync(join(folder, "model"), { recursive: true }),
      /--init \S+: no model\/config\.json\. Fix: name the --out folder of a finished run/],
    ["no sources", (folder) => rmSync(join(folder, "sources.json")), /--init \S+: no sources\.json\. Fix: /],
    ["damaged sources", (folder) => writeFileSync(join(folder, "sources.json"), '[{"name": 1}]'),
      /does not hold a list of text sources\. Fix: /],
    ["no settings", (folder) => rmSync(join(folder, "checkpoint"), { recursive: true }),
      /--init \S+: no checkpoint\/state\.json\. Fix: /],
    ["damaged settings", (folder) => writeFileSync(join(folder, "checkpoint", "state.json"), "{"),
      /state\.json is not valid JSON/],
    ["a vocabulary that does not fit 16 bits", (folder) => {
      const path = join(folder, "model", "config.json");
      const config = JSON.parse(readFileSync(path, "utf8")) as object;
      writeFileSync(path, JSON.stringify({ ...config, vocab_size: 65537 }));
    }, /--init \S+: a vocabulary of 65537 is above 65536, .*\. Fix: /],
  ])("--init with %s is refused before any work", async (name, damage, message) => {
    const [init, target] = [join(root, `bad ${name}`.replaceAll(" ", "-")), join(root, "never")];
    cpSync(out, init, { recursive: true });
    damage(init);
    const { code, errors, stderr } = await runEntry("model/pretrain", ["--init", init, "--out", target, "--steps", "2"]);
    expect([code, errors]).toEqual([3, [expect.stringMatching(message)]]);
    expect(stderr).not.toContain("generated:"); // no text was collected
    expect(existsSync(target)).toBe(false);
  });

  test("another seed gives other weights", async () => {
    const other = join(root, "other");
    await pretrain(["--out", other, ...tiny, ...everyThree, "--seed", "2"]);
    expect(resultsOf(other)["model/model.safetensors"]).not.toBe(resultsOf(out)["model/model.safetensors"]);
  });
});

describe("the recipe", () => {
  const out = join(root, "recipe");
  const [before, after] = [join(out, "step-3"), join(out, "checkpoint")];
  const PEAK = 1e-4; // so small that the weights stay about as they were drawn

  beforeAll(async () => {
    // The gradient of so few tokens is large enough to be clipped.
    const shape = "--hidden 32 --layers 2 --row-length 8 --batch 1".split(" ");
    const flags = ["--learning-rate", String(PEAK), "--weight-decay", "0.3", "--steps", "6", "--stop-at", "3"];
    await pretrain(["--out", out, ...tiny, ...shape, ...flags]);
    cpSync(after, before, { recursive: true });
    await pretrain(["--resume", out, "--stop-at", "4"]);
  });

  test("weights start as GPT-2's: normal(0, 0.02), less by sqrt(2 layers) into the residual stream, norms 1", () => {
    for (const [name, { data }] of readSafetensors(join(before, "model.safetensors"))) {
      const wanted = name.includes("norm") ? 1 : /(o_proj|down_proj)\.weight$/.test(name) ? 0.01 : 0.02;
      expect(Math.abs(Math.sqrt(dot(data, data) / data.length) / wanted - 1), name).toBeLessThan(0.15);
    }
  });

  test("a step is one of AdamW with betas 0.9 and 0.95 and the flag's decay, on a gradient clipped to norm 1", () => {
    const learningRate = (PEAK * (1 + Math.cos((2 * Math.PI) / 5))) / 2; // step 4 of 6, after 2 of warm-up
    const options = { learningRate, step: 4, beta1: 0.9, beta2: 0.95, weightDecay: 0.3 };
    const statesIn = (folder: string): Map<string, nn.AdamWState> => {
      const moments = readSafetensors(join(folder, "optimizer.safetensors"));
      return new Map([...readSafetensors(join(folder, "model.safetensors"))].map(([name, parameter]) => {
        const [firstMoment, secondMoment] = [moments.get(`first.${name}`)!, moments.get(`second.${name}`)!];
        return [name, { parameter, firstMoment, secondMoment }];
      }));
    };
    const states = statesIn(after);
    let squares = 0;
    for (const [name, old] of statesIn(before)) {
      const { parameter, firstMoment, secondMoment } = states.get(name)!;
      const gradient = zip(firstMoment, old.firstMoment, (next, last) => (next - 0.9 * last) / 0.1);
      squares += dot(gradient.data, gradient.data);
      const wanted = nn.adamwStep(old, gradient, options);
      expectClose(name, parameter.data, wanted.parameter.data, { rtol: 1e-6, atol: 1e-8 });
      expectClose(name, secondMoment.data, wanted.secondMoment.data, { rtol: 1e-4, atol: 1e-12 });
    }
    expect(metricsOf(out).at(-1)!.grad_norm).toBeGreaterThan(1); // before clipping
    expect(Math.sqrt(squares)).toBeCloseTo(1, 4);
  });
});

test("the loss falls", async () => {
  const out = join(root, "learns");
  await pretrain(["--out", out, ...tiny, "--steps", "80", "--eval-every", "80", "--learning-rate", "0.02"]);
  const losses = metricsOf(out).flatMap(({ loss }) => loss ?? []);
  const meanOf = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  expect(meanOf(losses.slice(0, 5))).toBeGreaterThan(5);
  expect(meanOf(losses.slice(-10))).toBeLessThan(3.7);
  expect(metricsOf(out).at(-1)!.eval_loss).toBeLessThan(4.5);
});

test("Ctrl-C saves the step it is at, says how to go on, and exits with 130", async () => {
  const out = join(root, "interrupted");
  let sent = false;
  const { code, stderr } = await pretrain(["--out", out, ...tiny, "--steps", "100000"], {
    onStderr: (text, child) => {
      if (sent || !text.includes("step 20/")) return;
      sent = true;
      child.kill("SIGINT");
    },
  });
  expect(code).toBe(130);
  expect(stderr).toContain(`--resume ${out}`);
  const state = JSON.parse(readFileSync(join(out, "checkpoint", "state.json"), "utf8")) as { step: number };
  expect(state.step).toBeGreaterThanOrEqual(20);
  expect(metricsOf(out).at(-1)!.step).toBe(state.step);
});

describe("the order of the rows", () => {
  const [count, rowLength, batch] = [10, 3, 4];
  const rows = Uint16Array.from({ length: count * rowLength }, (_, i) => Math.floor(i / rowLength));
  const rowsOf = (step: number, seed = 1): number[] =>
    [...batchAt(rows, { step, batch, rowLength, seed })].filter((_, i) => i % rowLength === 0);
  const inOrder = (steps: number, seed?: number): number[] =>
    Array.from({ length: steps }, (_, step) => rowsOf(step, seed)).flat();

  test("every epoch has each row once, in another order; a batch may span two epochs", () => {
    const drawn = inOrder(5); // 20 rows: two epochs
    const epochs = [drawn.slice(0, 10), drawn.slice(10)];
    for (const epoch of epochs) expect([...epoch].sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(epochs[0]).not.toEqual(epochs[1]);
  });

  test("depends on step and seed alone, not on the steps before", () => {
    const straight = inOrder(6);
    expect(rowsOf(5)).toEqual(straight.slice(20));
    expect(rowsOf(0)).toEqual(straight.slice(0, 4));
    expect(inOrder(6, 2)).not.toEqual(straight);
  });
});
