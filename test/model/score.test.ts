/** Scoring: log-probabilities against transformers (float64), edges, and what a file to score may hold. */
import { describe, expect, it, test } from "vitest";
import { UsageError } from "../../src/cli.ts";
import { loadGpt } from "../../src/model/checkpoint.ts";
import { createGpt, disposeGpt } from "../../src/model/gpt.ts";
import { LengthError } from "../../src/model/sampler.ts";
import { parseScoreInput, scoreTokens } from "../../src/model/score.ts";
import { memoryStats } from "../../src/tensor/memory.ts";
import "../support/gpu.ts";
import { loadModelOracle, modelOracleNames } from "../support/oracles.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

describe.each(modelOracleNames)("%s", (name) => {
  it("every token's log-probability, their sum and the perplexity", async () => {
    const { directory, tensors } = loadModelOracle(name);
    const [ids, logProbs] = [tensors.get("input_ids")!, tensors.get("logps")!];
    const [batch, time] = ids.shape as [number, number];
    const model = loadGpt(directory);
    for (let row = 0; row < batch; row++) {
      const rowIds = [...ids.data.slice(row * time, (row + 1) * time)];
      const want = [...logProbs.data.slice(row * (time - 1), (row + 1) * (time - 1))];
      const score = await scoreTokens(model, rowIds);
      expect(score.ids).toEqual(rowIds);
      expect(score.logProbs[0]).toBeNull();
      score.logProbs.slice(1).forEach((value, t) => expect(Math.abs(value! - want[t]!)).toBeLessThan(1.5e-5));
      const total = want.reduce((sum, value) => sum + value, 0);
      expect(Math.abs(score.total - total)).toBeLessThan(3e-5);
      expect(Math.abs(score.perplexity! / Math.exp(-total / want.length) - 1)).toBeLessThan(3e-6);
    }
    disposeGpt(model);
  });
});

test("a single token, too many, none, unknown ones; no memory is left behind", async () => {
  const model = createGpt(tinyConfig(), randomWeights(3));
  const before = memoryStats().liveBytes;
  expect(await scoreTokens(model, [5])).toEqual({ ids: [5], logProbs: [null], total: 0, perplexity: null });
  const full = await scoreTokens(model, new Array<number>(64).fill(1));
  expect(full.logProbs).toHaveLength(64);
  const tooLong = scoreTokens(model, new Array<number>(65).fill(1));
  await expect(tooLong).rejects.toThrow("65 tokens exceed the model's 64 positions. Fix: ");
  await expect(tooLong).rejects.toThrow(LengthError);
  await expect(scoreTokens(model, [])).rejects.toThrow(LengthError);
  for (const id of [40, -1, 1.5, NaN]) {
    await expect(scoreTokens(model, [1, id])).rejects.toThrow(`id ${id} is not in the model's vocabulary of 40`);
  }
  expect(memoryStats().liveBytes).toBe(before);
  disposeGpt(model);
});

describe("a file to score", () => {
  test.each<[string, unknown]>([
    ["plain text\n", { text: "plain text\n" }],
    ["", { text: "" }],
    ["123", { text: "123" }],
    ['"quoted"', { text: '"quoted"' }],
    ["[draft] not JSON", { text: "[draft] not JSON" }],
    ['{"text": "a"}\n', { text: "a" }],
    ['{"ids": [1, 2]}', { ids: [1, 2] }],
    ['[{"text": "a"}, {"ids": []}]', [{ text: "a" }, { ids: [] }]],
    ["[]", []],
  ])("%j", (content, want) => {
    expect(parseScoreInput(content)).toEqual(want);
  });

  test.each([
    ["{}", "the object"],
    ['{"text": 1}', "the object"],
    ['{"text": "a", "ids": [1]}', "the object"],
    ['{"ids": ["1"]}', "the object"],
    ['{"ids": [1.5]}', "the object"],
    ['[{"text": "a"}, null]', "item 1"],
    ["[3]", "item 0"],
  ])("refuses %s", (content, name) => {
    expect(() => parseScoreInput(content)).toThrow(UsageError);
    expect(() => parseScoreInput(content)).toThrow(`${name} to score must have either "text"`);
  });
});
