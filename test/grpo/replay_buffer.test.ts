/** The replay buffer: what it keeps, and which groups it draws. */
import { describe, expect, test } from "vitest";
import { ReplayBuffer } from "../../src/grpo/replay_buffer.ts";
import type { Experience } from "../../src/grpo/rollout.ts";
import { seededRandom } from "../../src/random.ts";

/** An experience that is recognised by its reward. */
function experience(reward: number, id = "only", group = id): Experience {
  return {
    prompt: { id, messages: [] },
    promptIds: [1],
    completionIds: [2],
    logProbs: [-1],
    ended: true,
    text: "",
    rewards: [reward],
    reward,
    trainStep: 0,
    group,
  };
}

const numbered = (from: number, to: number, id?: string): Experience[] =>
  Array.from({ length: to - from }, (_, i) => experience(from + i, id));
const rewards = (group: readonly Experience[]): number[] => group.map(({ reward }) => reward!);
const ascending = (values: readonly number[]): number[] => [...values].sort((a, b) => a - b);

test("keeps the newest experiences", () => {
  const buffer = new ReplayBuffer(50);
  buffer.add(numbered(0, 25));
  expect(buffer.size).toBe(25);
  buffer.add(numbered(25, 50));
  buffer.add(numbered(50, 75));
  expect(buffer.size).toBe(50);
  expect(ascending(rewards(buffer.sampleGroup(50, seededRandom(1))))).toEqual(rewards(numbered(25, 75)));
});

test("one batch larger than the capacity keeps its last part", () => {
  const buffer = new ReplayBuffer(3);
  buffer.add(numbered(0, 10));
  expect(ascending(rewards(buffer.sampleGroup(3, seededRandom(1))))).toEqual([7, 8, 9]);
});

test("a group holds different experiences; the draw depends on the random source alone and leaves the buffer as it is", () => {
  const buffer = new ReplayBuffer(50);
  buffer.add(numbered(0, 25));
  const draws = (seed: number): number[][] => {
    const random = seededRandom(seed);
    return Array.from({ length: 20 }, () => rewards(buffer.sampleGroup(5, random)));
  };
  for (const group of draws(1)) expect(new Set(group).size).toBe(5);
  expect(draws(1)).toEqual(draws(1));
  expect(draws(1)).not.toEqual(draws(2));
  expect(buffer.size).toBe(25);
});

test("every experience is drawn equally often", () => {
  const buffer = new ReplayBuffer(10);
  buffer.add(numbered(0, 10));
  const random = seededRandom(5);
  const draws = 4000;
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < draws; i++) for (const { reward } of buffer.sampleGroup(5, random)) counts[reward!]! += 1;
  const deviation = Math.sqrt(draws * 0.5 * 0.5); // drawn with probability 5 / 10
  for (const count of counts) expect(Math.abs(count - draws / 2)).toBeLessThan(4 * deviation);
});

test("a group never mixes prompts, and prompts are drawn by their share", () => {
  const buffer = new ReplayBuffer(100);
  buffer.add([...numbered(0, 30, "a"), ...numbered(30, 40, "b"), ...numbered(40, 42, "rare")]);
  const random = seededRandom(2);
  const drawn = { a: 0, b: 0, rare: 0 };
  for (let i = 0; i < 1000; i++) {
    const group = buffer.sampleGroup(5, random);
    const ids = new Set(group.map(({ prompt }) => prompt.id));
    expect(ids.size).toBe(1);
    drawn[[...ids][0] as keyof typeof drawn] += 1;
  }
  expect(drawn.rare).toBe(0); // has no 5 experiences
  expect(Math.abs(drawn.a - 750)).toBeLessThan(60);
});

test("no group large enough: none is drawn", () => {
  const buffer = new ReplayBuffer(50);
  expect(buffer.sampleGroup(2, seededRandom(1))).toEqual([]);
  buffer.add([...numbered(0, 3, "a"), ...numbered(3, 6, "b")]);
  expect(buffer.sampleGroup(4, seededRandom(1))).toEqual([]);
  expect(buffer.sampleGroup(3, seededRandom(1))).toHaveLength(3);
});

describe("whole groups", () => {
  const filled = (): ReplayBuffer => {
    const buffer = new ReplayBuffer(12);
    buffer.add([0, 1, 2, 3].flatMap((group) => [1, 2, 3].map((i) => experience(10 * group + i, "q", `${group}`))));
    return buffer;
  };
  const groupsOf = (groups: readonly (readonly Experience[])[]): string[] => groups.map(([first]) => first!.group);

  test("stay together, and all of them are one pass", () => {
    const groups = filled().drawGroups(4, seededRandom(1));
    expect(groups.map(rewards).sort()).toEqual([[1, 2, 3], [11, 12, 13], [21, 22, 23], [31, 32, 33]]);
  });

  test("every group is drawn once before any is drawn again; the end of a pass may be short", () => {
    const buffer = filled();
    const random = seededRandom(3);
    for (let pass = 0; pass < 5; pass++) {
      const parts = [buffer.drawGroups(3, random), buffer.drawGroups(3, random)];
      expect(parts.map(({ length }) => length)).toEqual([3, 1]);
      expect(groupsOf(parts.flat()).sort()).toEqual(["0", "1", "2", "3"]);
    }
    const orders = Array.from({ length: 20 }, () => groupsOf(buffer.drawGroups(4, random)).join(""));
    expect(new Set(orders).size).toBeGreaterThan(5);
  });

  test("new experiences begin a new pass, which the old groups that still fit take part in", () => {
    const buffer = filled();
    const random = seededRandom(2);
    buffer.drawGroups(3, random);
    buffer.add([41, 42, 43].map((reward) => experience(reward, "q", "4")));
    expect(groupsOf(buffer.drawGroups(9, random)).sort()).toEqual(["1", "2", "3", "4"]);
  });
});

test("forgets earlier train steps, and begins a new pass", () => {
  const buffer = new ReplayBuffer(50);
  const ofStep = (trainStep: number): Experience[] =>
    [1, 2].map((i) => ({ ...experience(10 * trainStep + i, "q", `${trainStep}`), trainStep }));
  for (const step of [0, 1, 2]) buffer.add(ofStep(step));
  buffer.drawGroups(1, seededRandom(1));
  buffer.forgetBefore(1);
  expect(buffer.drawGroups(9, seededRandom(1)).map(rewards).sort()).toEqual([[11, 12], [21, 22]]);
  buffer.forgetBefore(3);
  expect(buffer.drawGroups(9, seededRandom(1))).toEqual([]);
});

test("a buffer that is made of another's experiences goes on where that one was", () => {
  const buffer = new ReplayBuffer(5);
  buffer.add(numbered(0, 4));
  const copy = new ReplayBuffer(5, buffer.experiences);
  for (const one of [buffer, copy]) one.add(numbered(4, 6));
  expect(copy.experiences).toEqual(buffer.experiences);
  expect(copy.sampleGroup(3, seededRandom(1))).toEqual(buffer.sampleGroup(3, seededRandom(1)));
});
