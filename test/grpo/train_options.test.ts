/**
 * What the flags of train.ts do beyond the default run: every objective, the KL term and its reference policy, masks,
 * scales of advantages, gradient checkpointing, the memory check; by the loop's parts, and once by the entry with all.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { adamw } from "../../src/autograd/adamw.ts";
import { average } from "../../src/grpo/advantage.ts";
import { readLogProbs } from "../../src/grpo/completion_log_probs.ts";
import { parseConfig, type TrainConfig } from "../../src/grpo/config.ts";
import { digit } from "../../src/grpo/environments/digit.ts";
import { OBJECTIVES, type ObjectiveName } from "../../src/grpo/objective.ts";
import { disposeCopy, copyPolicy } from "../../src/grpo/policy_copy.ts";
import type { Experience, TextCodec } from "../../src/grpo/rollout.ts";
import { requireRunMemory } from "../../src/grpo/run_memory.ts";
import { advantagesOf, gradientStep, withReference, type UpdateResult } from "../../src/grpo/update.ts";
import { loadChatModel } from "../../src/model/chat_model.ts";
import { CheckpointError } from "../../src/model/config.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { gpu } from "../../src/tensor/device.ts";
import { memoryStats, resetPeak } from "../../src/tensor/memory.ts";
import { readAll } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { answersTo } from "../support/rollouts.ts";
import { runEntry } from "../support/run_entry.ts";
import { makeDigitLoverDirectory, randomWeights, tinyConfig } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "train-options-"));
const directory = makeDigitLoverDirectory();
afterAll(() => [root, directory].forEach((path) => rmSync(path, { recursive: true })));

const configOf = (flags: string): TrainConfig => {
  const fixed = ["node", "train", "--out", join(root, "unused"), "--max-rollout-tokens", "4"];
  return parseConfig([...fixed, ...flags.split(" ")]);
};

const weightsOf = async (policy: Gpt): Promise<ArrayLike<number>[]> => {
  return readAll([...policy.parameters.values()].map(({ value }) => value));
};

/** Gradient steps on one group, without weight decay: nothing but the objective moves the weights. */
async function steps(
  policy: Gpt, group: readonly Experience[], config: TrainConfig, count: number, rate = 0.01,
): Promise<UpdateResult[]> {
  const optimizer = adamw([...policy.parameters.values()], { maximize: true, weightDecay: 0 });
  const results: UpdateResult[] = [];
  for (let i = 0; i < count; i++) {
    results.push(await gradientStep(policy, optimizer, group, advantagesOf([group], group, config), rate, config));
  }
  optimizer.dispose();
  return results;
}

const tinyPolicy = (layers = 2): Gpt => createGpt(tinyConfig({ layers }), randomWeights(5, 0.3));

/** Six experiences of unequal rewards and lengths; the last was cut. */
async function drawGroup(policy: Gpt): Promise<Experience[]> {
  const codec: TextCodec = { encodePrompt: () => [1, 2, 3], decode: String, endIds: [] };
  const drawn = await answersTo(policy, codec, digit, { samplesPerPrompt: 6, seed: 3 });
  return drawn.map((experience, i) => {
    const length = 1 + (i % 4);
    const { completionIds, logProbs } = experience;
    const cut = { completionIds: completionIds.slice(0, length), logProbs: logProbs.slice(0, length) };
    return { ...experience, ...cut, ended: i < 5, reward: i / 5 };
  });
}

describe("every objective", () => {
  test.each(Object.keys(OBJECTIVES) as ObjectiveName[])("%s: two steps change the weights", async (objective) => {
    const { model, encodePrompt, tokenizer } = loadChatModel(directory);
    const codec: TextCodec = {
      encodePrompt: ({ messages }) => encodePrompt(messages),
      decode: (ids) => tokenizer.decode(ids, { skipSpecial: true }),
      endIds: tokenizer.eosIds,
    };
    const experiences = await answersTo(model, codec, digit, { samplesPerPrompt: 5, maxNewTokens: 2, seed: 1 });
    const group = experiences.map((experience, i) => ({ ...experience, reward: i / 4 }));
    const before = await weightsOf(model);
    const results = await steps(model, group, configOf(`--objective ${objective}`), 2);
    expect(results[0]!.gradNorm).toBeGreaterThan(0); // the second may be clipped: gspo's range is narrow
    for (const { objective: value, metrics } of results) {
      expect(Number.isFinite(value)).toBe(true);
      expect(metrics["entropy"]).toBeGreaterThan(0);
      expect(Object.values(metrics).every(Number.isFinite)).toBe(true);
    }
    expect(await weightsOf(model)).not.toEqual(before);
    disposeGpt(model);
  });
});

describe("the KL term", () => {
  /** Trains on one group; how far the policy has gone from its start, by k3 on that group's tokens. */
  async function distance(flags: string): Promise<{ kl: number; results: UpdateResult[] }> {
    const policy = tinyPolicy();
    const reference = copyPolicy(policy);
    const group = await withReference(reference, await drawGroup(policy), 1);
    const results = await steps(policy, group, configOf(flags), 12);
    const now = await readLogProbs(policy, group, 1);
    const k = group.flatMap(({ referenceLogProbs }, i) => now[i]!.map((own, t) => referenceLogProbs![t]! - own));
    disposeCopy(reference);
    disposeGpt(policy);
    return { kl: average(k.map((x) => Math.exp(x) - x - 1)), results };
  }

  test.each(["k2", "k3"])("keeps the policy near its start, and is reported (%s)", async (estimator) => {
    const free = await distance("--objective dapo");
    const held = await distance(`--objective dapo --beta 3 --kl-estimator ${estimator}`);
    expect(held.kl).toBeLessThan(free.kl / 2);
    expect(free.kl).toBeGreaterThan(0.01);
    expect(free.results[0]!.metrics).not.toHaveProperty("kl");
    expect(Math.abs(held.results[0]!.metrics["kl"]!)).toBeLessThan(1e-5); // the policy is the reference still
    expect(held.results.at(-1)!.metrics["kl"]).toBeGreaterThan(0);
  });

  test("the reference stays as the policy moves, and leaves nothing behind", async () => {
    const policy = tinyPolicy();
    const { liveBytes, liveBuffers } = memoryStats();
    const reference = copyPolicy(policy);
    expect(memoryStats().liveBytes).toBeGreaterThan(liveBytes);
    const start = await weightsOf(policy);
    await steps(policy, await drawGroup(policy), configOf("--objective grpo"), 1);
    expect(await weightsOf(reference)).toEqual(start);
    expect(await weightsOf(policy)).not.toEqual(start);
    disposeCopy(reference);
    expect(memoryStats()).toMatchObject({ liveBytes, liveBuffers });
    disposeGpt(policy);
  });

  test("experiences without reference log-probabilities are an error", async () => {
    const policy = tinyPolicy();
    const group = await drawGroup(policy);
    await expect(steps(policy, group, configOf("--beta 0.1"), 1)).rejects.toThrow(/needs experiences with reference/);
    disposeGpt(policy);
  });
});

describe("--mask-truncated", () => {
  /** Weights after a step on a group whose last completion, which was cut, says `last`. */
  async function weightsWith(last: readonly number[], flags: string): Promise<ArrayLike<number>[]> {
    const policy = tinyPolicy();
    const drawn = await drawGroup(policy);
    await steps(policy, [...drawn.slice(0, 5), { ...drawn[5]!, completionIds: last }], configOf(flags), 1);
    const weights = await weightsOf(policy);
    disposeGpt(policy);
    return weights;
  }

  test.each(["sequence", "dr_grpo"])("what a cut completion says does not matter; else it does (%s)", async (name) => {
    const [flags, masked] = [`--objective ${name}`, `--objective ${name} --mask-truncated`];
    expect(await weightsWith([7, 8], masked)).toEqual(await weightsWith([30, 9], masked));
    expect(await weightsWith([7, 8], flags)).not.toEqual(await weightsWith([30, 9], flags));
  });

  test("a group of nothing but cut completions: gradient 0 and no ratios to report", async () => {
    const policy = tinyPolicy();
    const group = (await drawGroup(policy)).map((experience) => ({ ...experience, ended: false }));
    const [result] = await steps(policy, group, configOf("--objective dapo --mask-truncated"), 1);
    expect([Math.abs(result!.objective), result!.gradNorm, result!.metrics]).toEqual([0, 0, {}]);
    disposeGpt(policy);
  });
});

test("scales and baselines of advantages", () => {
  const experiences = [1, 0, 0, 0.5, 0.25].map((reward) => ({ reward }) as Experience);
  const group = experiences.slice(0, 3);
  const advantages = (flags: string): number[] => {
    return advantagesOf([group], experiences, configOf(flags)).map((value) => Number(value.toFixed(4)));
  };
  expect(advantages("--advantage-epsilon 0")).toEqual([1.1547, -0.5774, -0.5774]);
  expect(advantages("--advantage-epsilon 1")).toEqual([0.4226, -0.2113, -0.2113]);
  expect(advantages("--scale-rewards none")).toEqual([0.6667, -0.3333, -0.3333]);
  expect(advantages("--scale-rewards batch")).toEqual([1.5936, -0.7968, -0.7968]); // all five: sqrt(0.7 / 4)
  expect(advantages("--objective dr_grpo")).toEqual([0.6667, -0.3333, -0.3333]);
  expect(advantages("--objective rloo")).toEqual([1, -0.5, -0.5]);
  expect(advantages("--objective reinforce")).toEqual([1, 0, 0]);
});

test("log-probabilities of many rollouts are computed in parts", async () => {
  const policy = tinyPolicy();
  const group = await drawGroup(policy);
  const few = await readLogProbs(policy, group, 1);
  const many = await readLogProbs(policy, Array.from({ length: 150 }, () => group).flat(), 1); // 900 x 7 tokens
  expect(many).toHaveLength(900);
  many.forEach((row, i) => {
    expect(row).toHaveLength(few[i % 6]!.length);
    row.forEach((value, t) => expect(Math.abs(value - few[i % 6]![t]!)).toBeLessThan(1e-5));
  });
  disposeGpt(policy);
});

test("--gradient-checkpointing: the same bits, less memory", async () => {
  const run = async (flags: string) => {
    const policy = tinyPolicy(6);
    const group = await drawGroup(policy);
    resetPeak();
    const results = await steps(policy, group, configOf(flags), 3);
    const { peakBytes, liveBytes } = memoryStats();
    const optimizer = adamw([...policy.parameters.values()]);
    const withOptimizer = memoryStats().liveBytes; // which checkpointing does not touch
    optimizer.dispose();
    const weights = await weightsOf(policy);
    disposeGpt(policy);
    expect(withOptimizer).toBeGreaterThan(liveBytes);
    return { weights, results, activations: peakBytes - withOptimizer };
  };
  const [kept, forgotten] = [await run("--objective dapo"), await run("--objective dapo --gradient-checkpointing")];
  expect(forgotten.results).toEqual(kept.results);
  expect(forgotten.weights).toEqual(kept.weights);
  expect(forgotten.activations).toBeLessThan(0.7 * kept.activations);
});

describe("memory is checked before weights are loaded", () => {
  const prompts = [Array.from({ length: 50 }, () => 1)];

  test("a model that is too large: the numbers and the knobs", () => {
    const huge = tinyConfig({ hiddenSize: 100_000, mlpSize: 300_000, layers: 40 });
    const attempt = (): number => requireRunMemory(huge, prompts, configOf("--beta 0"));
    expect(attempt).toThrow(CheckpointError);
    expect(attempt).toThrow(
      /^this needs about .* GiB may be used\. Fix: --gradient-checkpointing, a smaller --micro-batch, --rollout/,
    );
  });

  test("checkpointing needs less, the reference policy more, and may be what is too much", () => {
    const sized = (layers: number) => tinyConfig({ hiddenSize: 1024, mlpSize: 3072, vocabSize: 50_000, layers });
    const bytes = (layers: number, flags: string): number => requireRunMemory(sized(layers), prompts, configOf(flags));
    const plain = bytes(4, "--group-size 25");
    expect(bytes(4, "--group-size 25 --gradient-checkpointing")).toBeLessThan(plain);
    const perLayer = (bytes(8, "--beta 0") - bytes(4, "--beta 0")) / 4;
    let fits = 4;
    while (bytes(fits, "--beta 0") + perLayer < gpu().byteBudget) fits++;
    expect(() => bytes(fits, "--beta 0.1")).toThrow(/weights .* with 2 copies.* Fix: --beta 0, --gradient/);
    const copy = bytes(4, "--beta 0.1") - bytes(4, "--beta 0");
    expect(copy / (4 * (50_000 * 1024 + 4 * 3 * 1024 * 3072))).toBeCloseTo(1, 0);
  });
});

test("the entry with other flags, a model without chat template among them", async () => {
  const [out, base] = [join(root, "all"), join(root, "base")];
  cpSync(directory, base, { recursive: true });
  const file = join(base, "tokenizer_config.json");
  const { eos_token, pad_token } = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
  writeFileSync(file, JSON.stringify({ eos_token, pad_token }));
  const flags =
    "--objective cispo --epsilon-high 4 --ratio-level sequence --beta 0.1 --kl-estimator k2 --scale-rewards batch " +
    "--advantage-epsilon 1e-4 --mask-truncated --gradient-checkpointing --train-steps 2 --rollout-count 10 " +
    "--max-rollout-tokens 3 --grad-updates-per-step 2 --learning-rate 0.01";
  const { code, stderr } = await runEntry("grpo/train", ["--model", base, "--out", out, ...flags.split(" ")]);
  expect(code, stderr).toBe(0);
  expect(stderr).toMatch(/^GPU memory: about \d+\.\d\d GiB of \d+\.\d\d GiB$/m);
  expect(stderr).toMatch(/^objective: cispo, divided by: completion tokens of the step$/m);
  expect(stderr.match(/^note: .* has no chat template: prompts are plain text$/gm)).toHaveLength(1);
  const lines = (name: string): Record<string, number | string>[] =>
    readFileSync(join(out, name), "utf8").trimEnd().split("\n")
      .map((line) => JSON.parse(line) as Record<string, number | string>);
  const updates = lines("metrics.jsonl").filter(({ kind }) => kind === "update");
  expect(updates).toHaveLength(4);
  for (const update of updates.filter((record) => "entropy" in record)) {
    expect(update).toHaveProperty("kl");
    expect(update).toHaveProperty("cispo_clip_ratio");
    expect(update).not.toHaveProperty("clip_ratio/low_mean");
  }
  const [first, second] = lines("timings.jsonl");
  expect(second!["liveBytes"]).toBe(first!["liveBytes"]);
  expect(JSON.parse(readFileSync(join(out, "config.json"), "utf8"))).toMatchObject({
    objective: "cispo", epsilonHigh: 4, ratioLevel: "sequence", beta: 0.1, klEstimator: "k2",
    scaleRewards: "batch", advantageEpsilon: 1e-4, maskTruncated: true, gradientCheckpointing: true,
  });
}, 30_000);
