/**
 * What the loop of train.ts does with flags that its parts, tested by themselves, do not see: where the reference's
 * log-probabilities come from, which groups are asked again, how many of them a gradient step takes, and the learning
 * rate. Short runs of the entry, judged by what they log.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { runEntry } from "../support/run_entry.ts";
import { makeDigitLoverDirectory } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "train-loop-"));
const model = makeDigitLoverDirectory();
afterAll(() => [root, model].forEach((directory) => rmSync(directory, { recursive: true })));

type Line = Record<string, number> & { readonly kind: string };
interface Reply {
  readonly step: number;
  readonly prompt: string;
  readonly reward: number;
  readonly rewards: Readonly<Record<string, number>>;
  readonly tokens: number;
}
interface Logs {
  readonly metrics: readonly Line[];
  readonly rollouts: readonly Line[];
  readonly updates: readonly Line[];
  readonly replies: readonly Reply[];
}

let runs = 0;

/** What a run logs; two replies to each prompt unless `flags` say otherwise. */
async function logsOf(flags: string): Promise<Logs> {
  const out = join(root, `run-${runs++}`);
  const fixed = `--model ${model} --out ${out} --rollout-count 2 --max-rollout-tokens 3 --warmup-steps 0`;
  const { code, stderr } = await runEntry("grpo/train", `${fixed} ${flags}`.split(" "));
  expect(code, stderr).toBe(0);
  const lines = (name: string): unknown[] =>
    readFileSync(join(out, name), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line) as unknown);
  const metrics = lines("metrics.jsonl") as Line[];
  const of = (kind: string): Line[] => metrics.filter((line) => line.kind === kind);
  return { metrics, rollouts: of("rollout"), updates: of("update"), replies: lines("completions.jsonl") as Reply[] };
}

/** A module that asks for the numbers 0, 1, 2, ...; `functions` are its reward functions, as text. */
function environment(name: string, functions: Readonly<Record<string, string>>, weights = {}): string {
  const path = join(root, `${name}.mjs`);
  const rewards = Object.entries(functions).map(([key, text]) => `${key}: ${text}`);
  writeFileSync(path, `
    let calls = 0; // of functions that take turns
    const ask = (i) => ({ id: String(i), messages: [{ role: "user", content: String(i) }] });
    export const environment = {
      name: ${JSON.stringify(name)},
      prompts: (from, count) => Array.from({ length: count }, (_, i) => ask(from + i)),
      rewards: { ${rewards.join(", ")} },
      weights: ${JSON.stringify(weights)},
    };
  `);
  return path;
}

describe("two train steps with a KL term and a penalty for length", () => {
  let logs: Logs;
  beforeAll(async () => {
    logs = await logsOf(
      "--replay groups --rollout-count 8 --objective dapo --beta 0.1 --temperature 0.7 --overlong-buffer 2 " +
        "--train-steps 2 --grad-updates-per-step 2 --learning-rate 0.01",
    );
  });

  test("new replies are compared with the weights that the run began with", () => {
    const [atStart, , later] = logs.updates;
    expect([atStart!["step"], later!["step"], later!["grad_step"]]).toEqual([1, 2, 1]);
    expect(Math.abs(atStart!["kl"]!)).toBeLessThan(1e-5); // the policy is the reference still
    expect(later!["kl"]).toBeGreaterThan(1e-3);
    expect(later!["importance_ratio/max"]).toBeCloseTo(1, 4); // though the policy has just drawn them itself
  });

  test("the last tokens before the limit cost reward", () => {
    const penalties = [NaN, 0, -0.5, -1];
    for (const { reward, rewards, tokens } of logs.replies) {
      expect(reward).toBeCloseTo(rewards["closeness"]! + penalties[tokens]!, 12);
    }
    expect(new Set(logs.replies.map(({ tokens }) => tokens))).toEqual(new Set([1, 2, 3]));
  });
});

test("--dynamic-sampling asks other prompts until every group has spread, for so many rounds at most", async () => {
  // Answers to 1 and 3 alone are now good, now bad.
  const turns = environment("turns", { turns: '({ id }) => (id === "1" || id === "3" ? calls++ % 2 : 1)' });
  const { metrics, rollouts, updates, replies } = await logsOf(
    `--environment ${turns} --replay groups --dynamic-sampling 3 --prompts-per-step 2 --groups-per-update 2 ` +
      "--train-steps 2 --grad-updates-per-step 1",
  );
  const asked = (step: number): string[] => [
    ...new Set(replies.filter((reply) => reply.step === step).map(({ prompt }) => prompt)),
  ];
  expect(asked(1)).toEqual(["0", "1", "2", "3"]); // two of them, then one, then one
  expect(asked(2)).toEqual(["4", "5", "6", "7", "8", "9", "10", "11"]); // two of them four times
  expect(rollouts.map((line) => line["sampling/rounds"])).toEqual([3, 4]);
  // Step 1 learns from both groups with spread and from no other, step 2 from nothing.
  expect(metrics.map(({ kind }) => kind)).toEqual(["rollout", "update", "rollout"]);
  expect(updates[0]).toMatchObject({ "group/reward": 0.5, frac_reward_zero_std: 0 });
});

describe("--groups-per-update, where a group's rewards tell which it is", () => {
  /** Replies to question i are worth 2^i; what else is said of them has no weight. */
  const flags = (): string => {
    const functions = { worth: "({ id }) => 2 ** id", other: "() => calls++ % 2" };
    const powers = environment("powers", functions, { other: 0 });
    return `--environment ${powers} --prompts-per-step 4 --groups-per-update 3 --train-steps 1 --grad-updates-per-step 2`;
  };
  const rewardsOf = ({ updates }: Logs): number[] => updates.map((line) => line["group/reward"]!);

  test("whole groups: three, then the one that is left; none is dropped for want of spread", async () => {
    const logs = await logsOf(`${flags()} --replay groups`);
    const [three, last] = rewardsOf(logs) as [number, number];
    expect([1, 2, 4, 8]).toContain(last);
    expect(3 * three + last).toBeCloseTo(1 + 2 + 4 + 8, 12);
    expect(logs.updates.map((line) => line["frac_reward_zero_std"])).toEqual([1, 1]);
  });

  test("single completions: three groups each time; a function without weight teaches nothing", async () => {
    const logs = await logsOf(`${flags()} --group-size 2 --reward-aggregation normalize-then-sum`);
    for (const reward of rewardsOf(logs)) expect([1, 2, 4, 8]).not.toContain(reward); // it is a mean of several
    expect(logs.updates.map((line) => line["grad_norm"])).toEqual([0, 0]);
  });
});

test.each([
  ["linear", [1, 0.75, 0.5, 0.25]],
  ["cosine", [1, 0.5 + Math.SQRT1_2 / 2, 0.5, 0.5 - Math.SQRT1_2 / 2]],
  ["constant", [1, 1, 1, 1]],
])("--lr-schedule %s", async (name, factors) => {
  const { updates } = await logsOf(
    `--lr-schedule ${name} --group-size 2 --learning-rate 0.01 --train-steps 2 --grad-updates-per-step 2`,
  );
  expect(updates).toHaveLength(4);
  factors.forEach((factor, i) => expect(updates[i]!["learning_rate"]).toBeCloseTo(0.01 * factor, 12));
});
