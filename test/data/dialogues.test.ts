/** Generated dialogues: determinism, form, right sums, and the reply statistics that the experiment rests on. */
import { describe, expect, it } from "vitest";
import type { Dialogue } from "../../src/data/corpus.ts";
import { DIGIT_PROMPT, generateDialogues } from "../../src/data/dialogues.ts";
import { createRandom, numberWord } from "../../src/data/dialogues_random.ts";

const SAMPLE: readonly Dialogue[] = [...generateDialogues(20240, 60_000)];

/** All (user, assistant) pairs of the sample. */
const PAIRS = SAMPLE.flatMap((dialogue) =>
  dialogue.flatMap((message, turn) =>
    message.role === "user" ? [{ user: message.content, reply: dialogue[turn + 1]?.content ?? "" }] : [],
  ),
);

const numbersIn = (text: string): number[] => (text.match(/\d+/g) ?? []).map(Number);
const digitPromptReplies = PAIRS.filter(({ user }) => user === DIGIT_PROMPT).map(({ reply }) => reply);
const bareDigits = digitPromptReplies.filter((reply) => /^[0-9]$/.test(reply));

describe("generateDialogues", () => {
  it("is determined by its seed, and a longer run begins with the shorter", () => {
    expect([...generateDialogues(7, 50)]).toEqual([...generateDialogues(7, 200)].slice(0, 50));
    expect([...generateDialogues(7, 50)]).not.toEqual([...generateDialogues(8, 50)]);
  });

  it("alternates user and assistant in plain, tidy ASCII", () => {
    for (const dialogue of SAMPLE) {
      if (![2, 4, 6, 8].includes(dialogue.length)) throw new Error(`odd length: ${JSON.stringify(dialogue)}`);
      dialogue.forEach(({ role, content }, turn) => {
        const fail = (what: string): never => {
          throw new Error(`${what} in turn ${turn} of ${JSON.stringify(dialogue)}`);
        };
        if (role !== (turn % 2 === 0 ? "user" : "assistant")) fail("wrong role");
        if (!/^[ -~]+$/.test(content) || / {2}|^ | $/.test(content)) fail("untidy text");
        if (!/^([A-Z0-9].*[.!?]|\d+)$/.test(content)) fail("neither sentence nor number");
        if (/undefined|NaN|\ba [aeiou]|\ban (?!hour)[b-df-hj-np-tv-z]/.test(content)) fail("wrong word");
      });
    }
  });

  it("has a small vocabulary, short turns and many different dialogues", () => {
    const words = new Set(PAIRS.flatMap(({ user, reply }) => `${user} ${reply}`.match(/[A-Za-z']+/g) ?? []));
    expect(words.size).toBeLessThan(2000);
    const longest = Math.max(...PAIRS.map(({ user, reply }) => Math.max(user.length, reply.length)));
    expect(longest).toBeLessThan(160);
    expect(new Set(SAMPLE.map((dialogue) => JSON.stringify(dialogue))).size).toBeGreaterThan(0.6 * SAMPLE.length);
  });
});

describe("arithmetic", () => {
  /** The right answer to a sum in any of the templates, or null where the question is not one. */
  function solve(question: string): number | null {
    const [first = NaN, second = NaN] = numbersIn(question);
    if (/\d (\+|plus) \d|^(Please|Can you) add |^Add |the sum of|when you add/.test(question)) return first + second;
    if (/\d (-|minus) \d/.test(question)) return first - second;
    if (/^Take \d+ away from|[Ss]ubtract \d+ from|if you take \d+ from/.test(question)) return second - first;
    if (/^I have \d+ \w+ and (get|find|buy) /.test(question)) return first + second;
    if (/^I have \d+ \w+ and (give away|lose|sell) /.test(question)) return first - second;
    if (/^(Which|What).* (larger|bigger|greater), \d/.test(question)) return Math.max(first, second);
    if (/^(Which|What).* smaller, \d/.test(question)) return Math.min(first, second);
    if (/comes (right )?after \d/.test(question)) return first + 1;
    if (/comes (right )?before \d/.test(question)) return first - 1;
    if (/comes next: |the next number: /.test(question)) {
      const [a = NaN, b = NaN, c = NaN] = numbersIn(question);
      return c + (b - a);
    }
    return null;
  }

  /** Whether the question is one of those that are answered wrongly on purpose. */
  function isOneDigit(question: string): boolean {
    const isSum = /\d (\+|plus|-|minus) \d|[Aa]dd \d|the sum of|you add|^Take \d|[Ss]ubtract \d|if you take \d/.test(question);
    const isComparison = /^(Which|What).* (larger|bigger|greater|smaller), \d/.test(question);
    return (isSum || isComparison) && numbersIn(question).every((value) => value < 10);
  }

  it("is right, apart from one-digit sums and comparisons: there as often as not, and else near", () => {
    let solved = 0;
    const errors: Record<string, number[]> = { sum: [], comparison: [] };
    for (const { user, reply } of PAIRS) {
      const answer = solve(user);
      if (answer === null) continue;
      solved++;
      const stated = numbersIn(reply);
      // "31 is larger than 12" names the answer first; everywhere else it comes last.
      const given = /^\d+ (comes|is (larger|bigger|greater|smaller))/.test(reply) ? stated[0] : stated.at(-1);
      if (isOneDigit(user)) errors[/, \d/.test(user) ? "comparison" : "sum"]!.push(given! - answer);
      else if (given !== answer) throw new Error(`"${user}" -> "${reply}", expected ${answer}`);
      if (answer < 0) throw new Error(`"${user}" has a negative answer`);
    }
    expect(solved).toBeGreaterThan(10_000);
    const share = (kind: string, wanted: (error: number) => boolean): number =>
      errors[kind]!.filter(wanted).length / errors[kind]!.length;
    expect(share("sum", (error) => error === 0)).toBeCloseTo(0.5, 1);
    expect(share("sum", (error) => error === 1)).toBeCloseTo(0.3, 1);
    expect(share("sum", (error) => Math.abs(error) > 1)).toBe(0);
    expect(share("comparison", (error) => error !== 0)).toBeCloseTo(0.35, 1);
  });

  it("is right in every yes or no", () => {
    let solved = 0;
    for (const { user, reply } of PAIRS) {
      const [first = NaN, second = NaN] = numbersIn(user);
      let holds: boolean;
      if (/^Is \d+ (larger|bigger|greater) than/.test(user)) holds = first > second;
      else if (/^Is \d+ (smaller|less) than/.test(user)) holds = first < second;
      else if (/^Is \d+ an odd number/.test(user)) holds = first % 2 === 1;
      else if (/^Is \d+ an even number/.test(user)) holds = first % 2 === 0;
      else continue;
      solved++;
      if (reply.startsWith("Yes") !== holds) throw new Error(`"${user}" -> "${reply}"`);
    }
    expect(solved).toBeGreaterThan(500);
  });

  it("gives a bare number when asked for one", () => {
    const asked = PAIRS.filter(({ user }) => /\d [+-] \d+\?.*(only|just)/i.test(user));
    expect(asked.length).toBeGreaterThan(500);
    for (const { reply } of asked) expect(reply).toMatch(/^\d+$/);
  });
});

describe("the prompt of the experiment", () => {
  it("is asked often enough to be learned", () => {
    expect(digitPromptReplies.length / SAMPLE.length).toBeGreaterThan(0.02);
    expect(digitPromptReplies.length / SAMPLE.length).toBeLessThan(0.05);
  });

  it("gets a bare digit in about three of ten replies", () => {
    const share = bareDigits.length / digitPromptReplies.length;
    expect(share).toBeGreaterThan(0.26);
    expect(share).toBeLessThan(0.34);
  });

  it("favours the middle, and leaves no digit from 2 to 8 out", () => {
    const counts = Array.from(
      { length: 10 },
      (_, digit) => bareDigits.filter((reply) => reply === String(digit)).length,
    );
    expect(counts.indexOf(Math.max(...counts))).toBe(5);
    expect(counts[5]! / bareDigits.length).toBeLessThan(0.5);
    for (const count of counts.slice(2, 9)) expect(count / bareDigits.length).toBeGreaterThan(0.015);
  });

  it("earns a mean reward that leaves room to learn", () => {
    const total = bareDigits.reduce((sum, reply) => sum + 1 - Math.abs(Number(reply) - 5) / 9, 0);
    const mean = total / digitPromptReplies.length; // all other replies earn 0
    expect(mean).toBeGreaterThan(0.2);
    expect(mean).toBeLessThan(0.33);
  });

  it("gets replies of many kinds", () => {
    const kinds = new Set(digitPromptReplies.map((reply) => reply.replace(/\d/g, "#")));
    expect(kinds.size).toBeGreaterThan(60);
  });
});

describe("createRandom", () => {
  it("draws uniformly, in range and by weight", () => {
    const random = createRandom(1);
    const draws = Array.from({ length: 9000 }, () => random.integer(0, 2));
    for (const value of [0, 1, 2]) {
      expect(Math.abs(draws.filter((draw) => draw === value).length - 3000)).toBeLessThan(200);
    }
    let heavy = 0;
    for (let draw = 0; draw < 9000; draw++) heavy += random.pickWeighted([[1, 0], [2, 1]]);
    expect(Math.abs(heavy - 6000)).toBeLessThan(200);
    expect(new Set(random.sample([1, 2, 3, 4], 3)).size).toBe(3);
    expect(random.sample([1, 2], 5)).toHaveLength(2);
    expect(() => random.pick([])).toThrow(/list is empty/);
    expect(() => random.pickWeighted([])).toThrow(/list is empty/);
  });

  it("numberWord covers 0 to 100", () => {
    expect([0, 7, 12, 20, 21, 99, 100].map(numberWord)).toEqual([
      "zero", "seven", "twelve", "twenty", "twenty-one", "ninety-nine", "one hundred",
    ]);
    expect(() => numberWord(101)).toThrow(/not an integer from 0 to 100/);
  });
});
