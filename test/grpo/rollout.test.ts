/** What a rollout's reward is made of: reward functions by their weights, and the penalty for length. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Environment } from "../../src/grpo/environment.ts";
import type { TextCodec } from "../../src/grpo/rollout.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { expectClose } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { answersTo } from "../support/rollouts.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

const codec: TextCodec = { encodePrompt: () => [1, 2, 3], decode: (ids) => ids.join(" "), endIds: [4, 5, 6, 7] };
const prompts: Environment["prompts"] = () => [{ id: "only", messages: [{ role: "user", content: "?" }] }];

let policy: Gpt;
beforeAll(() => {
  policy = createGpt(tinyConfig({ layers: 1 }), randomWeights(3, 0.3));
});
afterAll(() => disposeGpt(policy));

test("a reward is the weighted sum of the functions, less what the last tokens before the limit cost", async () => {
  const rewards: Environment["rewards"] = {
    first: (_, text) => Number(text.split(" ")[0]),
    "even tokens": (_, text) => (text.split(" ").length % 2 === 0 ? 1 : null),
  };
  const environment = { name: "two functions", prompts, rewards, weights: { first: 0.5, "even tokens": -3 } };
  const experiences = await answersTo(policy, codec, environment, {
    samplesPerPrompt: 48, maxNewTokens: 6, overlongBuffer: 4,
  });
  const penalties = [NaN, 0, 0, -0.25, -0.5, -0.75, -1];
  const want = experiences.map(({ completionIds: ids }) => {
    return 0.5 * ids[0]! + (ids.length % 2 === 0 ? -3 : 0) + penalties[ids.length]!;
  });
  expectClose("rewards", experiences.map(({ reward }) => reward), want, { rtol: 1e-12, atol: 0 });
  expect(new Set(experiences.map(({ completionIds }) => completionIds.length)).size).toBe(6); // every length occurs
});

test("a reply that no function can judge has no reward, however long it is", async () => {
  const environment = { name: "unjudged", prompts, rewards: { none: () => null } };
  const experiences = await answersTo(policy, codec, environment, { overlongBuffer: 4 });
  expect(experiences.map(({ reward }) => reward)).toEqual(experiences.map(() => null));
});
