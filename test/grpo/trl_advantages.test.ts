/** Advantages against TRL's own lines: group, batch, no scaling; several reward functions; rewards that are missing. */
import { expect, test } from "vitest";
import { advantages, decoupledAdvantages, weightedRewards } from "../../src/grpo/advantage.ts";
import { expectClose } from "../support/gradcheck.ts";
import { loadTrlAdvantages } from "../support/oracles.ts";

const cases = loadTrlAdvantages();

test("there are 16 cases", () => expect(cases).toHaveLength(16));

test.each(cases.map((oracle) => [oracle.name, oracle] as const))("%s", (_, oracle) => {
  const { rewards_per_func: rewards, reward_weights: weights, group_size: size } = oracle;
  const grouped = <T>(values: readonly T[]): T[][] =>
    Array.from({ length: values.length / size }, (_, group) => values.slice(group * size, (group + 1) * size));
  const options = { ddof: 1, delta: 1e-4 } as const;
  const got =
    oracle.aggregation === "sum_then_normalize"
      ? advantages(grouped(weightedRewards(rewards, weights)), { ...options, scale: oracle.scale_rewards })
      : decoupledAdvantages(grouped(rewards), weights, options);
  // TRL leaves rounding noise of 1e-17 where a dead group is 0.
  expectClose("advantages", got.flat(), oracle.advantages, { rtol: 1e-15, atol: 1e-15 });
});
