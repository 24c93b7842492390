/** Held-out evaluation: pass@k by hand and by counting, accuracy of a policy whose answers are known. */
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Environment } from "../../src/grpo/environment.ts";
import { evaluate, passAtK, type EvaluationOptions } from "../../src/grpo/evaluate.ts";
import type { TextCodec } from "../../src/grpo/rollout.ts";
import { localTask } from "../../src/grpo/task.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import "../support/gpu.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

test("pass@k is the share of k-subsets of the replies that hold a right one", () => {
  const subsets = (n: number, k: number): number[][] =>
    k === 0 ? [[]] : Array.from({ length: n }, (_, i) => subsets(i, k - 1).map((rest) => [...rest, i])).flat();
  for (const n of [1, 3, 6]) {
    for (let c = 0; c <= n; c++) {
      for (let k = 1; k <= n; k++) {
        const all = subsets(n, k);
        const hits = all.filter((subset) => subset.some((i) => i < c)).length;
        expect(passAtK(n, c, k)).toBeCloseTo(hits / all.length, 12);
      }
    }
  }
});

const codec: TextCodec = { encodePrompt: ({ id }) => [1, 2, Number(id)], decode: (ids) => ids.join(" "), endIds: [] };
const prompts = Array.from({ length: 10 }, (_, i) => ({
  id: `${i + 3}`,
  messages: [{ role: "user", content: "?" }],
}));

/** A reply is right when its token is even. */
const parity: Environment = {
  name: "parity",
  prompts: () => prompts,
  heldOut: () => prompts,
  rewards: { even: (_prompt, text) => (Number(text) % 2 === 0 ? 1 : 0) },
};
const options: EvaluationOptions = {
  prompts: 10, samples: 8, rowsAtOnce: 80, maxNewTokens: 1, temperature: 1, seed: 3,
};
let policy: Gpt;
beforeAll(() => {
  policy = createGpt(tinyConfig({}), randomWeights(3, 0.5));
});
afterAll(() => disposeGpt(policy));

test("accuracy, greedy accuracy and pass@k are those of the replies", async () => {
  const result = (await evaluate(policy, codec, localTask(parity), options))!;
  const { accuracy, greedy, passAtK: pass, replies } = result;
  expect(replies).toHaveLength(80);
  expect(replies.every(({ text, correct }) => correct === (Number(text) % 2 === 0))).toBe(true);
  expect(accuracy).toBeCloseTo(replies.filter(({ correct }) => correct).length / 80, 12);
  expect(accuracy).toBeGreaterThan(0);
  expect(accuracy).toBeLessThan(1);
  expect(pass.map(({ k }) => k)).toEqual([2, 4, 8]);
  const anyRight = prompts.filter(({ id }) => replies.some(({ prompt, correct }) => prompt.id === id && correct));
  expect(pass.at(-1)!.value).toBeCloseTo(anyRight.length / 10, 12);
  const values = [accuracy, ...pass.map(({ value }) => value)];
  expect([...values].sort((a, b) => a - b)).toEqual(values);
  expect(greedy * 10).toBeCloseTo(Math.round(greedy * 10), 9);
});

test("the greedy reply is the most likely one, whatever the temperature of the others", async () => {
  const cold = await evaluate(policy, codec, localTask(parity), { ...options, temperature: 1e-3 });
  const likely = new Map(cold!.replies.map(({ prompt, text }) => [prompt.id, text]));
  const task = localTask({ ...parity, isCorrect: ({ id }, text) => text === likely.get(id) });
  const at = (temperature: number) => evaluate(policy, codec, task, { ...options, temperature });
  expect(await at(1e-3)).toMatchObject({ accuracy: 1, greedy: 1 });
  for (const temperature of [1, 5]) {
    const { accuracy, greedy } = (await at(temperature))!;
    expect(greedy).toBe(1);
    expect(accuracy).toBeLessThan(0.8);
  }
});

test("the same seed asks with the same luck, however many rows are drawn together; another seed does not", async () => {
  const task = localTask(parity);
  const whole = await evaluate(policy, codec, task, options);
  expect(await evaluate(policy, codec, task, { ...options, rowsAtOnce: 9 })).toEqual(whole);
  const other = await evaluate(policy, codec, task, { ...options, seed: 4 });
  expect(other!.replies).not.toEqual(whole!.replies);
});

test("fewer prompts are spread over the list; without held-out prompts there is nothing to say", async () => {
  const few = await evaluate(policy, codec, localTask(parity), { ...options, prompts: 5 });
  expect(few!.replies.slice(0, 5).map(({ prompt }) => prompt.id)).toEqual(["3", "5", "7", "9", "11"]);
  const { name, prompts: ask, rewards } = parity;
  expect(await evaluate(policy, codec, localTask({ name, prompts: ask, rewards }), options)).toBeNull();
});
