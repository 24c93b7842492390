// 20,000 damaged files: each is read or refused with a code, agrees with JSON.parse when read, and costs little memory.

import { expect, test } from "vitest";
import { fuzzSafetensors } from "./fuzz_safetensors.ts";

test("20,000 mutants: nothing but SafetensorsError, no misreading, bounded memory", () => {
  const report = fuzzSafetensors({ count: 20_000 });
  expect(report.faults).toEqual([]);
  expect(report.peakMemory).toBeLessThan(report.largestFile + 64 * 2 ** 20);
  // The mutations are no use unless they reach every check.
  for (const result of [
    "accepted", "HeaderTooLarge", "InvalidHeaderLength", "InvalidHeader", "InvalidHeaderDeserialization",
    "InvalidOffset", "ValidationOverflow", "MisalignedSlice", "TensorInvalidInfo", "MetadataIncompleteBuffer",
  ]) {
    expect(report.results.get(result), result).toBeGreaterThan(0);
  }
  expect(report.results.get("accepted")).toBeGreaterThan(500);
  expect(report.onDisk).toBeGreaterThan(1000);
});

test("a mutant depends on the seed and its number alone", () => {
  const all = fuzzSafetensors({ count: 60, seed: 7 });
  const halves = [0, 30].map((first) => fuzzSafetensors({ count: 30, first, seed: 7 }));
  const sum = new Map(all.results);
  for (const { results } of halves) for (const [result, times] of results) sum.set(result, sum.get(result)! - times);
  expect([...sum.values()].every((times) => times === 0)).toBe(true);
});
