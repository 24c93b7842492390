/**
 * GRPO end to end: the real entry on a tiny model that likes digits (it learns to answer 5), the same seed twice to the
 * byte, the reference's console lines, steady memory; and the loop's parts on a task of letters. Flags that the default
 * run does not use are tried in train_options.test.ts.
 */
import { readdirSync, readFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { adamw, type AdamW } from "../../src/autograd/adamw.ts";
import { average } from "../../src/grpo/advantage.ts";
import { parseConfig, type TrainConfig } from "../../src/grpo/config.ts";
import type { Environment } from "../../src/grpo/environment.ts";
import { digit } from "../../src/grpo/environments/digit.ts";
import { ReplayBuffer } from "../../src/grpo/replay_buffer.ts";
import type { Experience, TextCodec } from "../../src/grpo/rollout.ts";
import { advantagesOf, gradientStep, logProbGap, type UpdateResult } from "../../src/grpo/update.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { loadChatModel } from "../../src/model/chat_model.ts";
import { seededRandom } from "../../src/random.ts";
import { memoryStats } from "../../src/tensor/memory.ts";
import "../support/gpu.ts";
import { answersTo } from "../support/rollouts.ts";
import { runEntry, type EntryResult } from "../support/run_entry.ts";
import { makeDigitLoverDirectory, randomWeights, tinyConfig } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "train-"));
const model = makeDigitLoverDirectory();
afterAll(() => [root, model].forEach((directory) => rmSync(directory, { recursive: true })));

const [prompt] = digit.prompts();

type Line = Record<string, number> & { kind: string };

function readLines(out: string, name: string): Line[] {
  return readFileSync(join(out, name), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Line);
}

async function train(out: string, flags: string): Promise<EntryResult> {
  const result = await runEntry("grpo/train", ["--model", model, "--out", out, ...flags.split(" ")]);
  expect(result.errors, result.stderr).toEqual([]);
  expect(result.code).toBe(0);
  return result;
}

describe("the entry, 6 train steps of 25 rollouts", () => {
  const flags =
    "--train-steps 6 --max-rollout-tokens 2 --group-size 10 --grad-updates-per-step 20 --learning-rate 0.03 --max-grad-norm 1 --seed 1";
  const [first, second] = [join(root, "first"), join(root, "second")];
  let stdout: string;
  beforeAll(async () => {
    ({ stdout } = await train(first, flags));
  }, 60_000);

  test("the policy was bad before and is good after", () => {
    const rewards = readLines(first, "metrics.jsonl")
      .filter(({ kind }) => kind === "rollout")
      .map(({ reward }) => reward!);
    expect(rewards).toHaveLength(6);
    expect(rewards[0]).toBeLessThan(0.35);
    expect(rewards.at(-1)).toBeGreaterThan(0.8);
  });

  test("the console has the reference's lines, in its order, and nothing else before the summary", () => {
    const lines = stdout.split("\n");
    const number = /^Reward: [01]\.\d{3}; Response: /;
    const objective = /^Grad step (\d+)\/20 in train step (\d+)\/6 completed\. Objective: -?\d+\.\d{6}$/;
    let at = 0;
    for (let trainStep = 1; trainStep <= 6; trainStep++) {
      expect(lines[at++]).toBe("-- Generating rollouts");
      let rollouts = 0;
      // A response may hold a line break: its rest does not begin with "Reward".
      while (lines[at] !== "-- Training") rollouts += number.test(lines[at++]!) ? 1 : 0;
      expect(rollouts).toBe(25);
      at++;
      for (let gradStep = 1; gradStep <= 20; gradStep++) {
        expect(objective.exec(lines[at++]!)?.slice(1)).toEqual([`${gradStep}`, `${trainStep}`]);
      }
    }
    expect(lines[at]).toBe("-- Summary");
    expect(lines[at + 1]).toMatch(/^Train step 1: mean reward 0\.\d{3}/);
  });

  test("a response and its reward belong together", () => {
    const answers = [...stdout.matchAll(/^Reward: (\d\.\d{3}); Response: (\d)$/gm)];
    expect(answers.length).toBeGreaterThan(50);
    const closeness = (text: string): number => digit.rewards["closeness"]!(prompt!, text) as number;
    for (const [, reward, answer] of answers)
      expect(reward).toBe(closeness(answer!).toFixed(3));
  });

  test("the learning rate warms up, then falls to 0 at the end of the run", () => {
    const rates = readLines(first, "metrics.jsonl")
      .filter(({ kind }) => kind === "update")
      .map((update) => update["learning_rate"]!);
    expect(rates).toHaveLength(120);
    for (const [i, rate] of rates.entries()) {
      expect(rate).toBeCloseTo(0.03 * (i < 5 ? i / 5 : (120 - i) / 115), 12);
    }
  });

  test("the first objective is 0 and its ratios 1: the policy has not moved yet", () => {
    const [update] = readLines(first, "metrics.jsonl").filter(({ kind }) => kind === "update");
    expect(Math.abs(update!["objective"]!)).toBeLessThan(1e-5);
    expect(update!["learning_rate"]).toBe(0); // the warm-up begins at 0
    for (const which of ["min", "max"]) {
      expect(update![`importance_ratio/${which}`]).toBeCloseTo(1, 4);
    }
  });

  test("sampler and trainer agree on every step", () => {
    const rollouts = readLines(first, "metrics.jsonl").filter(({ kind }) => kind === "rollout");
    for (const line of rollouts) {
      expect(line["sampling/sampling_logp_difference/max"]).toBeLessThan(1e-4);
      expect(line["sampling/sampling_logp_difference/mean"]).toBeLessThanOrEqual(
        line["sampling/sampling_logp_difference/max"]!,
      );
    }
  });

  test("the same seed twice: the same metrics and the same weights, to the byte", async () => {
    await train(second, flags);
    for (const name of ["metrics.jsonl", "model/model.safetensors"]) {
      expect(readFileSync(join(second, name)).equals(readFileSync(join(first, name))), name).toBe(true);
    }
    expect(
      readFileSync(join(model, "model.safetensors")).equals(readFileSync(join(first, "model", "model.safetensors"))),
    ).toBe(false);
  });

  test("leaves metrics, timings, settings and a chat model, nothing unfinished", () => {
    const files = ["completions.jsonl", "config.json", "metrics.jsonl", "model", "report.html", "timings.jsonl"];
    expect(readdirSync(first).sort()).toEqual(files);
    const trained = loadChatModel(join(first, "model"));
    expect(trained.encodePrompt(prompt!.messages).length).toBeGreaterThan(10);
    disposeGpt(trained.model);
  });
});

test("a policy that does not move draws other answers in the next train step", async () => {
  const out = join(root, "still");
  await train(out, "--train-steps 2 --grad-updates-per-step 1 --max-rollout-tokens 2 --learning-rate 0");
  const answers = readLines(out, "completions.jsonl") as unknown as { step: number; completion: string }[];
  const [first, second] = [1, 2].map((step) =>
    answers.filter((answer) => answer.step === step).map(({ completion }) => completion));
  expect(first).toHaveLength(25);
  expect(second).toHaveLength(25);
  expect(second).not.toEqual(first);
});

test("another seed draws other answers", async () => {
  const answers = async (seed: number): Promise<string[]> => {
    const { stdout } = await train(
      join(root, `seed-${seed}`),
      `--train-steps 1 --grad-updates-per-step 1 --seed ${seed}`,
    );
    return stdout.split("\n").filter((line) => line.startsWith("Reward"));
  };
  expect(await answers(2)).not.toEqual(await answers(3));
});

test("live bytes and buffers are equal after train step 2, 10 and 100", async () => {
  const out = join(root, "long");
  await train(
    out,
    "--train-steps 100 --rollout-count 3 --group-size 2 --grad-updates-per-step 1 --max-rollout-tokens 3 --objective dapo",
  );
  const steps = readLines(out, "timings.jsonl");
  expect(steps).toHaveLength(100);
  const live = [2, 10, 100].map((step) => ({
    bytes: steps[step - 1]!["liveBytes"],
    buffers: steps[step - 1]!["liveBuffers"],
  }));
  expect(live[0]!.buffers).toBeGreaterThan(10);
  expect(live[1]).toEqual(live[0]);
  expect(live[2]).toEqual(live[0]);
});

// ---- the parts of the loop, without text ----------------------------------------------------------------------------

const LETTERS = "abcdefghijkl";
const END = 11;

/** Two prompts; each pays the share of its own letter in the answer. */
const letters: Environment = {
  name: "letters",
  prompts: () => ["a", "b"].map((id) => ({ id, messages: [{ role: "user", content: id }] })),
  rewards: {
    share: ({ id }, text) => (text === "" ? 0 : [...text].filter((letter) => letter === id).length / text.length),
  },
};

const codec: TextCodec = {
  encodePrompt: ({ id }) => (id === "a" ? [0, 5] : [1, 6, 7]),
  decode: (ids) =>
    ids
      .filter((id) => id !== END)
      .map((id) => LETTERS[id])
      .join(""),
  endIds: [END],
};

/** The run's settings by flags, as the command line gives them. */
const configOf = (flags: string): TrainConfig => {
  const fixed = ["node", "train", "--out", join(root, "unused"), "--max-rollout-tokens", "4"];
  return parseConfig([...fixed, ...flags.split(" ")]);
};

function step(
  policy: Gpt, optimizer: AdamW, group: readonly Experience[], rate: number, config: TrainConfig,
): Promise<UpdateResult> {
  return gradientStep(policy, optimizer, group, advantagesOf([group], group, config), rate, config);
}

describe.each(["sequence", "dapo"] as const)("%s objective on a task of letters", (objective) => {
  test("two prompts are learned at once, with a replay buffer", async () => {
    const policy = createGpt(
      tinyConfig({ vocabSize: LETTERS.length, layers: 1, maxPositions: 16 }),
      randomWeights(7, 0.3),
    );
    const optimizer = adamw([...policy.parameters.values()], { maximize: true, maxGradNorm: 1, weightDecay: 0 });
    const buffer = new ReplayBuffer(32);
    const random = seededRandom(4);
    const config = configOf(`--objective ${objective} --epsilon-high 0.28`);
    const rewards: number[] = [];
    for (let trainStep = 0; trainStep < 18; trainStep++) {
      const experiences = await answersTo(policy, codec, letters, { firstSample: 8 * trainStep });
      rewards.push(average(experiences.map(({ reward }) => reward)));
      expect((await logProbGap(policy, experiences, 1)).max).toBeLessThan(1e-4);
      buffer.add(experiences);
      for (let i = 0; i < 5; i++) {
        await step(policy, optimizer, buffer.sampleGroup(8, random), 0.01, config);
      }
    }
    expect(rewards[0]).toBeLessThan(0.3);
    expect(average(rewards.slice(-3))).toBeGreaterThan(0.8);
    optimizer.dispose();
    disposeGpt(policy);
  });
});

describe("one gradient step", () => {
  const config = configOf("--objective sequence");

  test("takes what was drawn: the end token is trained on, prompts and padding are not", async () => {
    const policy = createGpt(tinyConfig({ vocabSize: LETTERS.length }), randomWeights(9));
    const experiences = await answersTo(policy, codec, letters, { samplesPerPrompt: 20 });
    for (const { completionIds, logProbs, ended, text } of experiences) {
      expect(logProbs).toHaveLength(completionIds.length);
      expect(completionIds.includes(END)).toBe(ended);
      if (ended) expect(completionIds.indexOf(END)).toBe(completionIds.length - 1);
      expect(text).toBe(codec.decode(completionIds));
    }
    expect(new Set(experiences.map(({ ended }) => ended)).size).toBe(2); // both kinds occur
    // Only an ended completion is better: its tokens, the end among them, become likelier as a whole.
    const [short, long] = [experiences.find(({ ended }) => ended)!, experiences.find(({ ended }) => !ended)!];
    const group: Experience[] = [
      { ...short, reward: 1 },
      { ...long, reward: 0 },
    ];
    const optimizer = adamw([...policy.parameters.values()], { maximize: true, weightDecay: 0 });
    const before = await step(policy, optimizer, group, 1e-3, config);
    for (const which of ["min", "max"]) expect(before.metrics[`importance_ratio/${which}`]).toBeCloseTo(1, 4);
    const after = await step(policy, optimizer, group, 0, config);
    expect(after.metrics["importance_ratio/max"]).toBeGreaterThan(1.001);
    expect(after.metrics["importance_ratio/min"]).toBeLessThan(0.999);
    expect(after.objective).toBeGreaterThan(before.objective);
    optimizer.dispose();
    disposeGpt(policy);
  });

  test("equal rewards give gradient 0; nothing is left in memory", async () => {
    const policy = createGpt(tinyConfig({ vocabSize: LETTERS.length }), randomWeights(9));
    const experiences = await answersTo(policy, codec, letters, { samplesPerPrompt: 6 });
    const group = experiences.slice(0, 6);
    const optimizer = adamw([...policy.parameters.values()], { maximize: true, weightDecay: 0 });
    const { liveBytes, liveBuffers } = memoryStats();
    const flat = group.map((experience) => ({ ...experience, reward: 0.5 }));
    const { objective, gradNorm, metrics } = await step(policy, optimizer, flat, 1e-3, configOf("--objective dapo"));
    expect([objective, gradNorm]).toEqual([0, 0]);
    expect(metrics["entropy"]).toBeGreaterThan(0);
    expect(metrics["entropy"]).toBeLessThan(Math.log(LETTERS.length));
    expect(memoryStats()).toMatchObject({ liveBytes, liveBuffers });
    optimizer.dispose();
    disposeGpt(policy);
  });

  test("temperature is the same in sampler and trainer; another one shows as a gap", async () => {
    const policy = createGpt(tinyConfig({ vocabSize: LETTERS.length }), randomWeights(9));
    const experiences = await answersTo(policy, codec, letters, { temperature: 0.6 });
    expect((await logProbGap(policy, experiences, 0.6)).max).toBeLessThan(1e-4);
    expect((await logProbGap(policy, experiences, 1)).mean).toBeGreaterThan(0.05);

    // A gradient step takes it too: on-policy its ratios are 1, and at another temperature they are not.
    const optimizer = adamw([...policy.parameters.values()], { maximize: true });
    const ratiosAt = async (temperature: number): Promise<number[]> => {
      const config = configOf(`--objective dapo --temperature ${temperature}`);
      const { metrics } = await step(policy, optimizer, experiences, 0, config);
      return [metrics["importance_ratio/min"]!, metrics["importance_ratio/max"]!];
    };
    for (const ratio of await ratiosAt(0.6)) expect(Math.abs(ratio - 1)).toBeLessThan(1e-4);
    expect((await ratiosAt(1))[0]).toBeLessThan(0.9);
    optimizer.dispose();
    disposeGpt(policy);
  });
});
