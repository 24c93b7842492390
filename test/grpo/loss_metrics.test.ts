/** Metrics of a step by hand. TRL's own are compared in trl_loss.test.ts and e2e.test.ts. */
import { expect, test } from "vitest";
import { lossMetrics } from "../../src/grpo/loss_metrics.ts";
import { expectClose } from "../support/gradcheck.ts";

const mask = [[1, 1], [1, 1, 1, 1]];
const batch = { mask, advantages: [1, -1] };
const ratio = [0.1, 0.3, 5, 5, -0.2, -0.3, 0.05, 0.1].map((logRatio) => Math.exp(logRatio)); // 5: padding
const entropies = [1, 2, 99, 99, 3, 4, 5, 6];
const clip = { low: 0.2, high: 0.2 };

function expectMetrics(got: Record<string, number>, want: Record<string, number>): void {
  for (const [name, value] of Object.entries(want)) expectClose(name, [got[name]!], [value], { rtol: 0, atol: 1e-6 });
}

test("per token", () => {
  const got = lossMetrics("grpo", { ratio, kl: [1, 2, 99, 99, 0, 0, 0, 0], entropies }, batch, { clip });
  expectMetrics(got, {
    entropy: 3.5, kl: 0.5,
    "clip_ratio/low_mean": 1 / 6, "clip_ratio/high_mean": 1 / 6, "clip_ratio/region_mean": 2 / 6,
    "clip_ratio/low_min": 0, "clip_ratio/high_max": 0.5,
    "importance_ratio/min": 0.740818, "importance_ratio/mean": 1.028503, "importance_ratio/max": 1.349859,
    "approx_kl/k1": -0.008333, "approx_kl/k3": 0.02017,
  });
  expect(Object.keys(got)).not.toContain("cispo_clip_ratio");
});

test("per completion: both clipped", () => {
  const got = lossMetrics("sequence", { ratio: [1.491825, 0.704688], kl: [0.1, 0.3], entropies }, batch, { clip });
  expectMetrics(got, {
    entropy: 3.5, kl: 0.2,
    "clip_ratio/low_mean": 0.5, "clip_ratio/high_mean": 0.5, "clip_ratio/region_mean": 1,
    "clip_ratio/low_min": 0, "clip_ratio/high_max": 1,
  });
});

test("a cap counts where it holds back, and what does not clip reports no clipping", () => {
  const capped = lossMetrics("cispo", { ratio, kl: null, entropies }, batch, { clip: { low: 0.2, high: 1.2 } });
  expectMetrics(capped, { cispo_clip_ratio: 1 / 6 });
  for (const got of [capped, lossMetrics("sapo", { ratio, kl: null, entropies }, batch, { clip })]) {
    expect(Object.keys(got).filter((name) => name.startsWith("clip_ratio") || name === "kl")).toEqual([]);
  }
});

test("a completion without tokens is in no mean", () => {
  const withEmpty = { mask: [[], ...mask], advantages: [-3, 1, -1] };
  const pad = [7, 7, 7, 7];
  const got = lossMetrics(
    "dapo", { ratio: [...pad, ...ratio], kl: null, entropies: [...pad, ...entropies] }, withEmpty, { clip },
  );
  expect(got).toEqual(lossMetrics("dapo", { ratio, kl: null, entropies }, batch, { clip }));
});

test("more tokens than a call takes arguments", () => {
  const tokens = 200_000;
  const many = Array.from({ length: tokens }, (_, i) => (i === 7 ? 2 : 1));
  const batchOfOne = { mask: [new Array<number>(tokens).fill(1)], advantages: [1] };
  const got = lossMetrics("dapo", { ratio: many, kl: null, entropies: many }, batchOfOne, { clip });
  expectMetrics(got, { "importance_ratio/min": 1, "importance_ratio/max": 2 });
});

test("a completion that is left out is in no mean", () => {
  const left = { mask: [[1, 1], [0, 0]], advantages: [1, -1] };
  const got = lossMetrics("sequence", { ratio: [1.1, 1], kl: [0.2, 0], entropies: [1, 1, 9, 9] }, left, { clip });
  expectMetrics(got, { kl: 0.2, entropy: 1, "importance_ratio/mean": 1.1, "importance_ratio/min": 1.1 });
});

test("a ratio beyond the range counts as clipped only where its gradient stops", () => {
  const out = [0.5, 0.5, 1.5, 1.5]; // each with A > 0 and with A < 0
  const four = { mask: [[1], [1], [1], [1]], advantages: [1, -1, 1, -1] };
  const got = lossMetrics("grpo", { ratio: out, kl: null, entropies: out }, four, { clip });
  expectMetrics(got, { "clip_ratio/low_mean": 1 / 4, "clip_ratio/high_mean": 1 / 4, "clip_ratio/region_mean": 1 / 2 });
});

test("gspo: ratios per completion, KL estimates per token", () => {
  const kl = [1, 2, 99, 99, 0, 0, 0, 0];
  expectMetrics(lossMetrics("gspo", { ratio: [1, 1], kl, entropies }, batch, { clip }), { kl: 0.5, "clip_ratio/low_mean": 0 });
});

test("with all completions left out there is nothing to average", () => {
  const none = { mask: [[0, 0], [0, 0]], advantages: [1, -1] };
  const got = lossMetrics("grpo", { ratio: [1, 1, 1, 1], kl: null, entropies: [9, 9, 9, 9] }, none, { clip });
  expect(got).toMatchObject({ entropy: 0, "clip_ratio/region_mean": 0 });
});
