/** Where settings come from and which of them wins; what is refused, and with which hint. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import {
  describeSettings, objectiveOptions, parseCommand, resumedConfig, savedSettings, stepsReplayed, type TrainConfig,
} from "../../src/grpo/config.ts";
import { trainCommand } from "../../src/grpo/flags.ts";
import { OBJECTIVES } from "../../src/grpo/objective.ts";
import { PRESETS } from "../../src/grpo/presets.ts";

const root = mkdtempSync(join(tmpdir(), "config-"));
const settings = join(root, "settings.json");
let printed = "";
beforeAll(() => {
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    printed += String(text);
    return true;
  });
});
afterAll(() => {
  vi.restoreAllMocks();
  rmSync(root, { recursive: true });
});

const parse = (flags: string) => {
  const out = flags.includes("--resume") ? [] : ["--out", join(root, "unused")];
  return parseCommand(["node", "train", ...out, ...flags.split(" ").filter((flag) => flag !== "")]);
};
const configOf = (flags: string): TrainConfig => parse(flags).config;

/** The message that the command line is refused with. */
function refusal(flags: string): string {
  printed = "";
  expect(() => parse(flags), flags).toThrow();
  return printed.split("\n")[0]!;
}

describe("flags, file, preset", () => {
  test("flags go before the file, the file before the preset, the preset before defaults", () => {
    writeFileSync(settings, JSON.stringify({ trainSteps: 7, rolloutCount: 12, maskTruncated: true }));
    const config = configOf(`--preset arithmetic --config ${settings} --rollout-count 4`);
    expect(config).toMatchObject({
      rolloutCount: 4,
      trainSteps: 7,
      maskTruncated: true,
      environment: "arithmetic",
      promptsPerStep: PRESETS.arithmetic.promptsPerStep,
      temperature: 1,
    });
  });

  test.each(Object.keys(PRESETS))("preset %s is made of settings that exist and go together", (name) => {
    expect(configOf(`--preset ${name}`)).toMatchObject(PRESETS[name as keyof typeof PRESETS]);
  });

  test.each([
    [{ trainStep: 3 }, 'unknown setting "trainStep". Did you mean trainSteps?'],
    [{ qwertyuiopasdf: 3 }, 'unknown setting "qwertyuiopasdf"'],
    [{ trainSteps: "many" }, 'trainSteps "many": must be an integer from 1 up.'],
    [{ trainSteps: 0 }, "trainSteps 0: must be an integer from 1 up."],
    [{ trainSteps: [3] }, "trainSteps [3]: must be a number or a text"],
    [{ maskTruncated: "yes" }, 'maskTruncated "yes": must be true or false'],
    [{ objective: "ppo" }, 'objective "ppo": Allowed choices are'],
    [{ out: "x" }, 'unknown setting "out"'],
  ])("a file with %j is refused", (content, message) => {
    writeFileSync(settings, JSON.stringify(content));
    expect(refusal(`--config ${settings}`)).toContain(message);
  });

  test("a file that is missing, no JSON, or no object says so", () => {
    expect(() => parse(`--config ${join(root, "none.json")}`)).toThrow(/none\.json: ENOENT/);
    writeFileSync(settings, "{ trainSteps: 3");
    expect(() => parse(`--config ${settings}`)).toThrow(/--config .*settings\.json: /);
    writeFileSync(settings, "[3]");
    expect(() => parse(`--config ${settings}`)).toThrow(/must hold a JSON object of settings, such as/);
  });

  test("an unknown flag names the nearest", () => {
    printed = "";
    expect(() => parse("--train-step 3")).toThrow();
    expect(printed).toContain("Did you mean --train-steps?");
  });
});

describe("what a run saves", () => {
  const everyObjective = Object.keys(OBJECTIVES).map((name) => `--objective ${name}`);
  test.each([...everyObjective, "--preset arithmetic", "--beta 0.1", "--replay groups --delta 3 --objective grpo"])(
    "can be given to --config again: %s",
    (flags) => {
      const config = configOf(flags);
      writeFileSync(settings, JSON.stringify(savedSettings(config)));
      expect(configOf(`--config ${settings}`)).toEqual(config);
      expect(resumedConfig(savedSettings(config), config.out)).toEqual(config);
    },
  );

  test("every flag that is a setting is saved or derived", () => {
    const saved = Object.keys(savedSettings(configOf("--beta 0.1 --delta 3 --objective grpo --off-policy-threshold 1")));
    const names = trainCommand().options.map((option) => option.attributeName());
    const notSettings = ["preset", "config", "out", "resume", "stopAt", "dryRun"];
    const settingNames = names.filter((name) => !notSettings.includes(name) && name !== "ratioLevel");
    expect(settingNames.filter((name) => !saved.includes(name))).toEqual([]);
  });
});

test("what an objective does not take is neither saved nor called derived", () => {
  const idleIn = (flags: string, keys: readonly string[]): string[] => {
    const saved = savedSettings(configOf(flags));
    return keys.filter((key) => key in saved || (saved["derived"] as string[]).includes(key));
  };
  expect(idleIn("--objective reinforce", ["epsilon", "epsilonHigh", "scaleRewards", "advantageDdof"])).toEqual([]);
  expect(idleIn("--objective cispo", ["epsilon", "klEstimator", "klBiasCorrection"])).toEqual([]);
  expect(idleIn("--replay groups", ["groupSize"])).toEqual([]);
});

test("defaults that depend on the objective, and of advantages", () => {
  expect(configOf("--objective cispo")).toMatchObject({ epsilonHigh: 5 });
  expect(configOf("")).toMatchObject({ advantageEpsilon: 1e-6, advantageDdof: 1, scaleRewards: "group" });
});

test("a folder that holds something is no place for a new run; a dry run and a resumed one do not mind", () => {
  const full = ["--out", root]; // settings.json lies there
  writeFileSync(settings, "{}");
  expect(() => parseCommand(["node", "train", ...full])).toThrow(/is not empty\. Fix: choose another --out/);
  expect(parseCommand(["node", "train", ...full, "--dry-run"]).dryRun).toBe(true);
  expect(parseCommand(["node", "train", "--resume", root]).resume).toBe(root);
});

describe("a saved config.json with other flags on top", () => {
  test.each([
    ["", "--objective gspo", { epsilon: 3e-4, epsilonHigh: 4e-4 }],
    ["", "--objective dr_grpo", { scaleRewards: "none" }],
    ["", "--objective sapo", { objective: "sapo" }],
    ["--objective gspo", "--objective dapo", { epsilon: 0.2, epsilonHigh: 0.2 }],
    ["--epsilon 0.3", "--epsilon 0.1", { epsilon: 0.1, epsilonHigh: 0.1 }],
    ["", "--groups-per-update 4", { microBatch: 20 }],
    ["", "--replay groups", { groupSize: 25, replayBufferCapacity: 25, microBatch: 25 }],
    ["", "--prompts-per-step 4", { replayBufferCapacity: 100 }],
  ])("what nobody gave follows from them: '%s', then '%s'", (before, flags, expected) => {
    writeFileSync(settings, JSON.stringify(savedSettings(configOf(before))));
    expect(configOf(`--config ${settings} ${flags}`)).toMatchObject(expected);
  });

  test("what was given stays", () => {
    const given = "--objective dapo --epsilon 0.1 --epsilon-high 0.2 --scale-rewards group --micro-batch 2";
    writeFileSync(settings, JSON.stringify(savedSettings(configOf(given))));
    expect(configOf(`--config ${settings} --objective dr_grpo --groups-per-update 4`)).toMatchObject({
      epsilon: 0.1, epsilonHigh: 0.2, scaleRewards: "group", microBatch: 2,
    });
  });

  test("a resumed run keeps the numbers, and still knows which of them nobody gave", () => {
    const saved = savedSettings(configOf("--objective gspo"));
    const resumed = resumedConfig({ ...saved, microBatch: 3 }, "there", { microBatch: 3 });
    expect(resumed).toMatchObject({ epsilon: 3e-4, epsilonHigh: 4e-4, microBatch: 3 });
    const derived = saved["derived"] as string[];
    expect(derived).toContain("epsilon");
    expect(savedSettings(resumed)["derived"]).toEqual(derived.filter((key) => key !== "microBatch"));
  });
});

test("the replay buffer holds what a train step draws, at the least", () => {
  expect(configOf("").replayBufferCapacity).toBe(50);
  expect(configOf("--prompts-per-step 3").replayBufferCapacity).toBe(75);
  const groups = configOf("--replay groups --prompts-per-step 3");
  expect([groups.replayBufferCapacity, stepsReplayed(groups)]).toEqual([75, 1]);
  expect(stepsReplayed({ ...groups, replayBufferCapacity: 150 })).toBe(2);
});

test("the objective takes its options from their flags", () => {
  const of = (flags: string) => objectiveOptions(configOf(`--objective grpo ${flags}`));
  const clip = { low: 0.2, high: 0.2 };
  expect(of("")).toEqual({ clip });
  expect(of("--epsilon 0.1 --epsilon-high 0.3 --delta 3")).toEqual({ clip: { low: 0.1, high: 0.3 }, delta: 3 });
  for (const level of ["token", "sequence"]) expect(of(`--ratio-level ${level}`)).toEqual({ clip, ratioLevel: level });
  expect(of("--beta 0.5")).toEqual({ clip, kl: { beta: 0.5, estimator: "k3", biasCorrection: false } });
  for (const estimator of ["k1", "k2", "k3"]) {
    const kl = { beta: 0.5, estimator, biasCorrection: false };
    expect(of(`--beta 0.5 --kl-estimator ${estimator}`)).toEqual({ clip, kl });
    if (estimator === "k2") continue;
    expect(of(`--beta 0.5 --kl-estimator ${estimator} --kl-bias-correction`)).toEqual({
      clip, kl: { ...kl, biasCorrection: true },
    });
  }
});

test("a line says what is not the default", () => {
  expect(describeSettings(configOf(""))).toBe("the defaults");
  expect(describeSettings(configOf("--objective dapo --seed 3"))).toBe("seed 3, objective dapo");
});

describe("resuming", () => {
  test("takes the settings of the run, but for those that may change", () => {
    const config = configOf("--objective dapo --train-steps 9");
    const resumed = resumedConfig(savedSettings(config), "there", { trainSteps: 20, learningRate: 0.5 });
    expect(resumed).toEqual({ ...config, out: "there", trainSteps: 20, learningRate: 0.5 });
  });

  test("knows what was given", () => {
    expect(parse("--resume runs/x --train-steps 20 --stop-at 3")).toMatchObject({
      resume: "runs/x", stopAt: 3, given: { trainSteps: 20 },
    });
  });

  test.each([
    ["--resume auto --objective dapo", "--objective cannot change when a run is resumed. Fix: start a new run"],
    ["--resume auto --seed 3", "--seed cannot change when a run is resumed"],
    ["--resume auto --preset arithmetic", "--preset does not go with --resume"],
    ["--resume auto --config x.json", "--config does not go with --resume"],
    ["--resume auto --out runs/x", "--out does not go with --resume"],
    ["--resume auto --dry-run", "--dry-run does not go with --resume"],
  ])("%s is refused", (flags, message) => {
    expect(refusal(flags)).toContain(message);
  });
});

test.each([
  ["--group-size 30", "no group could be drawn"],
  ["--rollout-count 1", "--rollout-count must be at least 2"],
  ["--prompts-per-step 3 --replay-buffer-capacity 74", "--replay-buffer-capacity 74 holds less than the 75 completions"],
  ["--replay groups --replay-buffer-capacity 60", "--replay-buffer-capacity 60 is no multiple of the 25 completions"],
  ["--overlong-buffer 11", "--overlong-buffer 11 exceeds --max-rollout-tokens 10"],
  ["--replay groups --group-size 5", "--group-size changes nothing with --replay groups"],
  ["--objective sequence --top-entropy-quantile 0.2", "--top-entropy-quantile weighs tokens"],
  ["--objective rloo --off-policy-threshold 1", "--off-policy-threshold weighs tokens"],
  ["--objective rloo --advantage-ddof 0", "--advantage-ddof needs --scale-rewards group or batch"],
  ["--objective rloo --scale-rewards group --reward-aggregation normalize-then-sum", "needs group means"],
  ["--overlong-buffer 2 --reward-aggregation normalize-then-sum", "--overlong-buffer changes nothing with"],
  ["--keep-last 0", "must be an integer from 1 up"],
  ["--micro-batch 0", "must be an integer from 1 up"],
  ["--top-entropy-quantile 0", "must be a number from 0.01 to 1"],
  ["--top-entropy-quantile 1.5", "must be a number from 0.01 to 1"],
  ["--adam-beta2 1", "must be a number from 0 to 0.999999"],
  ["--reward-timeout 0", "must be a number from 0.1 up"],
  ["--kl-bias-correction", "--kl-bias-correction needs --beta above 0"],
  ["--beta 0.1 --kl-estimator k2 --kl-bias-correction", "does not go with --kl-estimator k2"],
  ["--objective dr_grpo --reward-aggregation normalize-then-sum", "needs group means and --scale-rewards group"],
])("%s is refused", (flags, message) => {
  expect(refusal(flags)).toContain(message);
});
