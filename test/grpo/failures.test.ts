/**
 * Runs that fail on the way, through the entry: what is lost (nothing that was done), what is said, and that they go on
 * from there as if nothing had happened. And runs whose rewards give nothing to learn from.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { openSafetensors } from "../../src/data/safetensors.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { runEntry, type EntryOptions, type EntryResult } from "../support/run_entry.ts";
import { makeDigitLoverDirectory, opinionatedWeights, tinyConfig, writeModel } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "failures-"));
const model = makeDigitLoverDirectory();
afterAll(() => [root, model].forEach((directory) => rmSync(directory, { recursive: true })));

const train = (flags: string, options?: EntryOptions): Promise<EntryResult> =>
  runEntry("grpo/train", flags.split(" "), options);

/** While this file exists, `environment` is broken. */
const broken = join(root, "broken");

/** A module whose rewards are the digits themselves; `ifBroken` are statements of its functions. */
function environment(name: string, ifBroken: { prompts?: string; reward?: string; isCorrect?: string }): string {
  const path = join(root, `${name}.mjs`);
  const when = (text = ""): string => `if (existsSync(${JSON.stringify(broken)})) { ${text} }`;
  writeFileSync(path, `
    import { existsSync } from "node:fs";
    const ask = (i, content) => ({ id: "question " + i, messages: [{ role: "user", content }] });
    export const environment = {
      name: ${JSON.stringify(name)},
      prompts: (from, count) => {
        ${when(ifBroken.prompts)}
        return Array.from({ length: count }, (_, i) => ask(from + i, "Say " + ((from + i) % 10)));
      },
      rewards: { digit: ({ id }, text) => {
        ${when(ifBroken.reward)}
        return /^[0-9]/.test(text) ? Number(text[0]) / 9 : 0;
      } },
      heldOut: () => [ask("new", "Say 3.")],
      isCorrect: (prompt, text) => {
        ${when(ifBroken.isCorrect)}
        return text === "9";
      },
    };
  `);
  return path;
}

const SMALL =
  "--train-steps 6 --prompts-per-step 2 --rollout-count 4 --group-size 4 --max-rollout-tokens 2 --learning-rate 0.01 " +
  "--grad-updates-per-step 2 --eval-every 2 --eval-samples 2";

/** Everything that must not depend on the failure. */
const outcome = (run: string): Buffer[] =>
  ["metrics.jsonl", "completions.jsonl", "model/model.safetensors"].map((name) => readFileSync(join(run, name)));

type Line = Record<string, unknown>;

const lines = (run: string, name: string): Line[] =>
  readFileSync(join(run, name), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line) as Line);

describe("a failure loses no train step that was done, and the run goes on as if it had not happened", () => {
  const failures = {
    "a reward function that throws": {
      change: { reward: 'if (id === "question 6") throw new Error("no such question");' },
      says: /reward function "digit".*no such question/, saved: 3,
    },
    "a prompt that is too long": {
      change: { prompts: 'if (from === 8) return [ask(8, "Say ".repeat(99)), ask(9, "Say 9")];' },
      says: /^error: prompt "question 8": \d+ prompt tokens and 2 new ones exceed the model's 128 positions\. Fix: /,
      saved: 4,
    },
    "an evaluation that throws": {
      // Not at the first evaluation, before training, which has three replies.
      change: { isCorrect: 'globalThis.calls ??= 0; if (++globalThis.calls > 4) throw new Error("out of ideas");' },
      says: /isCorrect.*out of ideas/, saved: 2,
    },
  };

  test.each(Object.entries(failures))("%s", async (name, { change, says, saved }) => {
    const file = environment(name.replaceAll(" ", "_"), change);
    const failed = join(root, name.replaceAll(" ", "_"));
    const straight = `${failed}_straight`;
    const flags = (out: string): string => `--model ${model} --environment ${file} --out ${out} ${SMALL}`;
    const { code, stderr } = await train(flags(straight));
    expect(code, stderr).toBe(0);

    writeFileSync(broken, "");
    const failure = await train(flags(failed));
    rmSync(broken);
    expect([2, 3]).toContain(failure.code);
    expect(failure.errors).toHaveLength(1);
    expect(failure.errors[0]).toMatch(says);
    expect(failure.stderr).toContain(
      `saved after train step ${saved}. Go on: npx tsx src/grpo/train.ts --resume ${failed}`,
    );

    const resumed = await train(`--resume ${failed}`);
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(outcome(failed)).toEqual(outcome(straight));
  }, 60_000);
});

describe("rewards that give nothing to learn from", () => {
  const run = async (name: string, reward: string, flags: string): Promise<{ out: string; result: EntryResult }> => {
    const out = join(root, name);
    writeFileSync(broken, "");
    const file = environment(`${name}_environment`, { reward });
    const result = await train(
      `--model ${model} --environment ${file} --out ${out} --train-steps 2 --rollout-count 4 ` +
        `--max-rollout-tokens 2 ${flags}`,
    );
    rmSync(broken);
    expect(result.code, result.stderr).toBe(0);
    return { out, result };
  };

  test("no reply can be judged: no mean reward, no gradient step, no best checkpoint", async () => {
    const { out, result } = await run("unjudged", "return null;", "--group-size 4 --save-every 1");
    const metrics = lines(out, "metrics.jsonl");
    expect(metrics.map(({ kind }) => kind)).toEqual(["rollout", "rollout"]);
    for (const line of metrics) expect(Object.keys(line).filter((key) => /reward(_std|s\/.*)?$/.test(key))).toEqual([]);
    expect(result.stdout).toContain("Train step 2: no reply could be judged");
    expect(result.stderr.match(/^note: no group to learn from: no gradient step$/gm)).toHaveLength(2);
    const state = readFileSync(join(out, "checkpoints", "step-000002", "state.json"), "utf8");
    expect((JSON.parse(state) as { state: object }).state).toMatchObject({ best: null, meanRewards: [null, null] });
  }, 30_000);

  test("too few can be judged for a group: the same, with a mean of those", async () => {
    const fourth = "globalThis.n ??= 0; if (++globalThis.n % 4 !== 0) return null;";
    const { out } = await run("few", fourth, "--group-size 4");
    const metrics = lines(out, "metrics.jsonl");
    expect(metrics.map(({ kind }) => kind)).toEqual(["rollout", "rollout"]);
    for (const { reward } of metrics) expect(reward).toBeTypeOf("number");
  }, 30_000);

  test("groups: what was learned from once is not taken again when nothing new comes", async () => {
    const onlyFirst = 'if (id !== "question 0") return null;';
    const { out } = await run("stale", onlyFirst, "--replay groups --grad-updates-per-step 1");
    expect(lines(out, "metrics.jsonl").map(({ kind }) => kind)).toEqual(["rollout", "update", "rollout"]);
  }, 30_000);
});

test("numbers that blow up: the last weights that gave finite ones are left, and the run ends before newer are saved", async () => {
  const out = join(root, "blown_up");
  const { code, errors } = await train(
    `--model ${model} --out ${out} --rollout-count 5 --max-rollout-tokens 2 --grad-updates-per-step 1 ` +
      "--save-every 2 " +
      "--warmup-steps 0 --learning-rate 1e39", // infinite in float32: the first gradient step ruins every weight
  );
  expect(code).toBe(5);
  expect(errors).toEqual([expect.stringMatching(
    /^error: train step 2: the policy's own log-probabilities are not finite\. .* good weights: .*last-good\. Fix: /,
  )]);
  expect(existsSync(join(out, "checkpoints"))).toBe(false);
  expect(JSON.parse(readFileSync(join(out, "nan-report.json"), "utf8"))).toMatchObject({ trainStep: 2, updates: 1 });
  const weightsOf = (directory: string): Record<string, Float32Array> => {
    const file = openSafetensors(join(directory, "model.safetensors"));
    const weights = Object.fromEntries([...file.entries.keys()].map((name) => [name, file.readF32(name)]));
    file.close();
    return weights;
  };
  expect(weightsOf(join(out, "last-good"))).toEqual(weightsOf(model));
}, 30_000);

test("a token that the tokenizer does not know has no text, and ends no run", async () => {
  const directory = makeDigitLoverDirectory();
  const { vocabSize, idOf, eosIds } = loadTokenizer(directory);
  const padded = vocabSize + 5;
  const liked = [idOf("7"), padded - 1, ...eosIds];
  const config = tinyConfig({ vocabSize: padded, layers: 1, maxPositions: 128, tiedEmbeddings: false });
  writeModel(directory, config, opinionatedWeights(1, liked));
  const out = join(root, "padded");
  const { code, stderr } = await train(`--model ${directory} --out ${out} --train-steps 1 --max-rollout-tokens 3`);
  rmSync(directory, { recursive: true });
  expect(code, stderr).toBe(0);
  const completions = lines(out, "completions.jsonl") as { completion: string; tokens: number; ended: boolean }[];
  // Such tokens count, and say nothing.
  expect(completions.some(({ completion, tokens, ended }) => completion.length < tokens - (ended ? 1 : 0))).toBe(true);
}, 30_000);

describe("resuming", () => {
  test("the best checkpoint is one that was evaluated; without evaluations the reward counts", async () => {
    const out = join(root, "best");
    const flags = `--model ${model} --environment ${environment("best_environment", {})} --out ${out} ${SMALL}`;
    const bestAt = (step: number): unknown => {
      const file = join(out, "checkpoints", `step-00000${step}`, "state.json");
      return (JSON.parse(readFileSync(file, "utf8")) as { state: { best: unknown } }).state.best;
    };
    const { code, stderr } = await train(`${flags} --save-every 1 --keep-last 9 --stop-at 4`);
    expect(code, stderr).toBe(0);
    expect(bestAt(1)).toBeNull();
    expect(bestAt(2)).toMatchObject({ step: 2, by: "accuracy" });
    expect(bestAt(3)).toEqual(bestAt(2));
    await train(`--resume ${out} --eval-every 0 --stop-at 5`);
    expect(bestAt(5)).toMatchObject({ step: 5, by: "reward" });
  }, 60_000);

  test("an older checkpoint, left before anything new was written: the newer ones are still good", async () => {
    const out = join(root, "branch");
    const flags = `--model ${model} --out ${out} --rollout-count 4 --group-size 4 --max-rollout-tokens 2`;
    const { code, stderr } = await train(`${flags} --train-steps 4 --save-every 1 --keep-last 4`);
    expect(code, stderr).toBe(0);
    const before = readFileSync(join(out, "metrics.jsonl"));
    const older = join(out, "checkpoints", "step-000002");
    await train(`--resume ${older}`, {
      onStdout: (text, child) => void (text.includes("Generating") && child.kill("SIGKILL")),
    });
    expect(readFileSync(join(out, "metrics.jsonl")).equals(before)).toBe(true);
    expect(readdirSync(join(out, "checkpoints")).at(-1)).toBe("step-000004");
    expect((await train(`--resume ${out} --train-steps 5`)).stderr).toContain("resumed: ");

    // The settings are those of the newest start; a step that is behind us stops the run at once.
    const settings = JSON.parse(readFileSync(join(out, "config.json"), "utf8")) as Record<string, unknown>;
    expect(settings["trainSteps"]).toBe(5);
    const stopped = await train(`--resume ${out} --train-steps 9 --stop-at 3`);
    expect(stopped.stderr).toContain("stopped after train step 5. Go on: ");
  }, 60_000);
});
