/** Alerts of a run: each kind fires once per episode, healthy runs are left in peace, the state survives JSON. */
import { describe, expect, test } from "vitest";
import { judgeStep, NO_ALERTS, type Alert, type AlertKind, type MetricsRecord } from "../../src/grpo/alerts.ts";

/** A train step's records: healthy but for what is given. `perUpdate` may set each gradient step's own. */
interface Step {
  readonly rollout?: MetricsRecord;
  readonly update?: MetricsRecord;
  readonly perUpdate?: (i: number) => MetricsRecord;
}

function recordsOf(step: number, { rollout = {}, update = {}, perUpdate = () => ({}) }: Step): MetricsRecord[] {
  return [
    {
      kind: "rollout", step, reward: 0.5, reward_std: 0.3, "completions/clipped_ratio": 0.1,
      "sampling/sampling_logp_difference/max": 5e-6, ...rollout,
    },
    ...Array.from({ length: 5 }, (_, i) => ({
      kind: "update", step, grad_step: i + 1, frac_reward_zero_std: 0, "group/reward": 0.5, entropy: 1,
      "importance_ratio/max": 1.2, "clip_ratio/region_mean": 0.2, "approx_kl/k3": 0.1, ...update, ...perUpdate(i),
    })),
  ];
}

/** The alerts of a run; its state goes through JSON after every step, as a checkpoint does with it. */
function alertsOf(steps: readonly Step[], recordsOfStep = recordsOf): Alert[] {
  let state = NO_ALERTS;
  return steps.flatMap((step, i) => {
    const judged = judgeStep(state, recordsOfStep(i + 1, step), { maxReward: 1 });
    state = JSON.parse(JSON.stringify(judged.state)) as typeof state;
    expect(state).toEqual(judged.state);
    return judged.alerts;
  });
}

const firings = (steps: readonly Step[]): [AlertKind, number][] => alertsOf(steps).map(({ kind, step }) => [kind, step]);

const healthy: Step = {};
const dead: Step = { update: { frac_reward_zero_std: 1, "group/reward": 0 }, rollout: { reward: 0.5 } };

describe("a kind fires once, and again after a step without it", () => {
  const exploring: Step = { rollout: { reward: 0.9 } };
  const collapsedEntropy: Step = { rollout: { reward: 0.3, reward_std: 0 }, update: { entropy: 0.05 } };
  const cases: [AlertKind, Step, Step][] = [
    ["ratio-explosion", healthy, { perUpdate: (i) => (i === 2 ? { "importance_ratio/max": 11 } : {}) }],
    ["ratio-explosion", healthy, { update: { "clip_ratio/region_mean": 0.8 } }],
    ["ratio-explosion", healthy, { update: { "approx_kl/k3": 6 } }],
    ["entropy-collapse", { rollout: { reward: 0.3 } }, collapsedEntropy],
    ["reward-collapse", exploring, { rollout: { reward: 0.2, reward_std: 0.4 } }],
    ["all-truncated", healthy, { rollout: { "completions/clipped_ratio": 1 } }],
    ["sampler-gap", healthy, { rollout: { "sampling/sampling_logp_difference/max": 0.02 } }],
  ];

  test.each(cases)("%s (%#)", (kind, good, bad) => {
    expect(firings([good, bad, bad, bad, good, good, bad, bad])).toEqual([[kind, 2], [kind, 7]]);
  });

  test("no-signal, where groups without spread were left out and there was no gradient step", () => {
    const withoutUpdates = (step: number, of: Step): MetricsRecord[] => recordsOf(step, of).slice(0, 1);
    const equal: Step = { rollout: { reward: 0.2, reward_std: 0, frac_reward_zero_std: 1 } };
    const [alert, ...others] = alertsOf(Array.from({ length: 12 }, () => equal), withoutUpdates);
    expect(alert).toMatchObject({ kind: "no-signal", step: 10, title: "no learning signal" });
    expect(others).toEqual([]);
  });

  test("no-signal, after three train steps in a row", () => {
    expect(firings([healthy, dead, dead, healthy, dead, dead, dead, dead, healthy, dead, dead, dead])).toEqual([
      ["no-signal", 7],
      ["no-signal", 12],
    ]);
    const oneLives: Step = { ...dead, perUpdate: (i) => (i === 4 ? { frac_reward_zero_std: 0 } : {}) };
    expect(firings([dead, dead, oneLives, dead, dead, oneLives])).toEqual([]);
  });

  test("several at once", () => {
    const worst: Step = {
      rollout: { "completions/clipped_ratio": 1, "sampling/sampling_logp_difference/max": 1 },
      update: { "importance_ratio/max": 1e9 },
    };
    expect(firings([worst, worst]).map(([kind]) => kind)).toEqual(["ratio-explosion", "all-truncated", "sampler-gap"]);
  });
});

test("dead groups: a solved task is told from one without signal", () => {
  const solved: Step = { rollout: { reward: 1 }, update: { frac_reward_zero_std: 1, "group/reward": 1 } };
  const [info] = alertsOf([solved, solved, solved]);
  expect(info).toMatchObject({ kind: "no-signal", level: "info", title: "nothing left to learn" });
  const [warning] = alertsOf([dead, dead, dead]);
  expect(warning).toMatchObject({ kind: "no-signal", level: "warning", title: "no learning signal" });
});

test("dead groups: solved means all of them, and is seen without a gradient step too", () => {
  const some: Step = {
    update: { frac_reward_zero_std: 1 }, perUpdate: (i) => ({ "group/reward": i === 0 ? 0 : 1 }),
  };
  expect(alertsOf([some, some, some])).toMatchObject([{ title: "no learning signal" }]);
  const leftOut: Step = { rollout: { reward: 1, reward_std: 0, frac_reward_zero_std: 1 } };
  const alerts = alertsOf(Array.from({ length: 10 }, () => leftOut), (step, of) => recordsOf(step, of).slice(0, 1));
  expect(alerts).toMatchObject([{ step: 10, title: "nothing left to learn" }]);
});

describe("a low entropy", () => {
  /** Alerts of a run that begins with a reward of `lowest` and an entropy of `first`. */
  const after = ({ lowest = 0.3, first = 1 }, ...steps: Step[]): AlertKind[] =>
    firings([{ rollout: { reward: lowest }, update: { entropy: first } }, ...steps]).map(([kind]) => kind);
  const at = (entropy: number, reward = 0.3): Step => ({ rollout: { reward }, update: { entropy } });

  test("is a collapse below 0.1 nats and below a tenth of the first", () => {
    expect(after({}, at(0.09))).toEqual(["entropy-collapse"]);
    expect(after({ first: 0.5 }, at(0.08))).toEqual([]); // it was low from the start
    expect(after({ first: 5 }, at(0.3))).toEqual([]); // there is enough left
  });

  test("counts on the average of a train step", () => {
    expect(after({}, { rollout: { reward: 0.3 }, perUpdate: (i) => ({ entropy: i === 0 ? 0.01 : 0.5 }) })).toEqual([]);
  });

  test("is none near the best reward, a tenth of the way from the lowest", () => {
    expect(after({ lowest: -1 }, at(0.05, 0.85))).toEqual([]);
    expect(after({ lowest: -1 }, at(0.05, 0.75))).toEqual(["entropy-collapse"]);
    const best = { rollout: { reward: 3 }, update: { entropy: 1 } }; // a function may pay more than 1
    expect(after({}, best, at(0.05, 2.9))).toEqual([]);
    expect(after({}, best, at(0.05, 1.5))).toContain("entropy-collapse");
  });
});

test("one gradient step per train step: three dead groups by chance say nothing, ten do", () => {
  let state = NO_ALERTS;
  const fired = Array.from({ length: 12 }, (_, i) => {
    const judged = judgeStep(state, recordsOf(i + 1, dead).slice(0, 2), { maxReward: 1 });
    state = judged.state;
    return judged.alerts.length;
  });
  expect(fired.indexOf(1)).toBe(9);
});

describe("healthy runs", () => {
  test("the reference experiment's numbers, as a run of seed 1 had them", () => {
    const run = [
      [0.173, 0.354, 0.99, [0, 0, 0, 0, 0], [0, 0, 0.11, 0.07, 0.45], [0, 0, 1, 1, 1]],
      [0.831, 0.321, 1.06, [0.4, 0.8, 1, 0.4, 0.4], [0.77, 2.4, 3.06, 2.23, 1.11], [0, 0, 0, 0, 0]],
      [0.973, 0.048, 0.6, [0, 0, 0.4, 1, 1], [0.01, 0.03, 0.05, 0.05, 0.16], [1, 0, 0, 0, 0]],
      [0.964, 0.062, 0.35, [0.6, 0.8, 0.4, 0.6, 0.4], [0.05, 0.08, 0.22, 0.25, 0.15], [0, 0, 0, 0, 0]],
      [0.991, 0.031, 0.14, [0.2, 0.4, 0.2, 0.2, 0.2], [0.1, 0.23, 0.13, 0.14, 0.15], [0, 0, 0, 0, 0]],
    ] as const;
    const steps = run.map(([reward, deviation, entropy, clipped, k3, zero]): Step => ({
      rollout: { reward, reward_std: deviation },
      perUpdate: (i) => ({
        entropy, "clip_ratio/region_mean": clipped[i]!, "approx_kl/k3": k3[i]!, frac_reward_zero_std: zero[i]!,
      }),
    }));
    expect(firings(steps)).toEqual([]);
  });

  test("a policy that is sure of the right answer", () => {
    const sure: Step = { rollout: { reward: 0.99, reward_std: 0.02 }, update: { entropy: 0.003 } };
    expect(firings([{ rollout: { reward: 0.2 } }, healthy, sure, sure])).toEqual([]);
  });

  test("the noise of rare rewards is no collapse", () => {
    const rewards = [0.04, 0, 0.08, 0.02, 0];
    expect(firings(rewards.map((reward) => ({ rollout: { reward, reward_std: 0.2 } })))).toEqual([]);
  });

  test("negative rewards that rise, and fall a little", () => {
    const rewards = [-1, -0.8, -0.5, -0.55, -0.4, -0.5];
    expect(firings(rewards.map((reward) => ({ rollout: { reward, reward_std: 0.05 } })))).toEqual([]);
  });

  test("records without the keys, without a judged reply, of other kinds, none at all", () => {
    let state = NO_ALERTS;
    for (const records of [
      [{ kind: "rollout", step: 1, reward: null }, { kind: "update", step: 1, grad_step: 1 }],
      [{ kind: "rollout", step: 2 }],
      [{ kind: "evaluation", step: 2, accuracy: 0 }],
      [],
    ] as MetricsRecord[][]) {
      const judged = judgeStep(state, records, { maxReward: 1 });
      expect(judged.alerts).toEqual([]);
      state = judged.state;
    }
    expect(state).toEqual(NO_ALERTS);
  });
});

test("every alert is one line that says what to do", () => {
  const all: Step = {
    rollout: { "completions/clipped_ratio": 1, "sampling/sampling_logp_difference/max": 1, reward: 0, reward_std: 0 },
    update: { "importance_ratio/max": 11, entropy: 0, frac_reward_zero_std: 1, "group/reward": 0 },
  };
  const alerts = alertsOf([{ rollout: { reward: 0.9 } }, all, all, all]);
  expect(new Set(alerts.map(({ kind }) => kind)).size).toBe(6);
  for (const { text, title } of alerts) {
    expect(text).toMatch(/Try |Raise |try |report it/);
    expect(`${title}${text}`).not.toMatch(/\n|NaN|undefined|\.$/);
  }
});
