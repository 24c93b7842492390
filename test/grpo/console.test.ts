/**
 * What a run prints: the bytes without a terminal; in one, the lines and the live view as a terminal would show them;
 * and that no reply can command a terminal.
 */
import { Writable } from "node:stream";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import stringWidth from "string-width";
import type { Alert } from "../../src/grpo/alerts.ts";
import { openConsole, type RunConsole, type RunFacts } from "../../src/grpo/console.ts";
import { bars, clock, viewLines, type RunView } from "../../src/grpo/live_view.ts";
import { cut } from "../../src/grpo/terminal_region.ts";
import { visible } from "../../src/visible.ts";

class FakeStream extends Writable {
  text = "";
  isTTY = false;
  columns = 80;
  rows = 24;
  colors = false;
  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.text += chunk.toString();
    done();
  }
  hasColors(): boolean {
    return this.colors;
  }
}

/**
 * The lines that a terminal shows after this output, scrolled ones included. Knows exactly what the live view may use
 * and refuses any other control character.
 */
function screenOf(output: string): string[] {
  const lines = [""];
  let row = 0;
  for (const [part] of output.matchAll(/\x1b\[[?\d;]*[A-Za-z]|[^\x1b]|\x1b/gu)) {
    const up = /^\x1b\[(\d+)A$/.exec(part);
    if (up) row = Math.max(0, row - Number(up[1]));
    else if (part === "\x1b[0J") lines.splice(row, Infinity, "");
    else if (part === "\n") {
      row++;
      lines[row] ??= "";
    } else if (part === "\r") lines[row] ??= "";
    else if (/^\x1b\[\?2026[hl]$/.test(part) || /^\x1b\[\d+m$/.test(part)) continue;
    else if (/^\p{Cc}$/u.test(part) || part.startsWith("\x1b")) throw new Error(`control: ${JSON.stringify(part)}`);
    else lines[row] += part;
  }
  return lines;
}

const facts: RunFacts = {
  task: "digit", model: "some/model", objective: "sequence", trainSteps: 3, gradUpdatesPerStep: 2,
  notes: ["adapter: a GPU", "run: runs/1"],
};
const alert: Alert = { kind: "all-truncated", step: 1, level: "warning", title: "no answer ended", text: "raise it" };
const ABOUT = [
  "An objective near 0 is normal: ratios begin at 1 and advantages sum to 0. The gradient is not 0.",
  "The reward tells whether the model learns. More: docs/metrics.md#why-is-my-loss-0",
];

let stdout: FakeStream;
let stderr: FakeStream;
const open = (env: Record<string, string> = {}): RunConsole => openConsole({ stdout, stderr, env });

beforeEach(() => {
  vi.useFakeTimers();
  [stdout, stderr] = [new FakeStream(), new FakeStream()];
});
afterEach(() => {
  vi.useRealTimers();
});

/** One train step with all that may happen in it. */
function runStep(view: RunConsole, reply = "5"): void {
  view.phase("rollouts", 0);
  view.phase("rewards", 0);
  view.reply(2 / 3, reply);
  view.reply(null, "two\nlines");
  view.phase("training", 0);
  view.update({ trainStep: 0, gradStep: 0, objective: -1e-9, skipped: false });
  view.update({ trainStep: 0, gradStep: 1, objective: -0.25, skipped: true });
  view.stepDone({ step: 1, reward: 2 / 3 });
  view.alert(alert);
  view.phase("evaluating", 0);
  view.evaluated({ step: 1, accuracy: 0.613, passAtK: { k: 4, value: 0.8 } });
}

const STDOUT_LINES = [
  "-- Generating rollouts",
  "Reward: 0.667; Response: 5",
  "Reward: none; Response: two",
  "lines",
  "-- Training",
  "Grad step 1/2 in train step 1/3 completed. Objective: 0.000000",
  "Grad step 2/2 in train step 1/3 completed. Objective: -0.250000",
];
const STDERR_LINES = [
  "note: grad step 2/2 in train step 1/3 was not finite: skipped, the weights stay as they are",
  "warning: no answer ended (train step 1): raise it",
  "Held-out accuracy after train step 1: 61.3 %; one of 4 answers right: 80.0 %",
];

describe("without a terminal", () => {
  test("stdout has the reference's lines and the summary, stderr the rest, to the byte", () => {
    const view = open();
    view.start(facts);
    view.evaluated({ step: 0, accuracy: 0.1 });
    runStep(view);
    view.summary(["-- Summary", "Time: 1 s"]);
    view.note("saved");
    view.close();
    expect(stdout.text).toBe([...STDOUT_LINES, "-- Summary", "Time: 1 s", ""].join("\n"));
    const first = [...facts.notes, ...ABOUT, "Held-out accuracy before training: 10.0 %"];
    expect(stderr.text).toBe([...first, ...STDERR_LINES, "saved", ""].join("\n"));
  });

  test("a reply stands as the model wrote it, notes do not", () => {
    const view = open();
    view.start({ ...facts, notes: ["model: \x1b[31mred"] });
    view.reply(1, "\x1b[2J\r%s %d\u202e");
    view.close();
    expect(stdout.text).toBe("Reward: 1.000; Response: \x1b[2J\r%s %d\u202e\n");
    expect(stderr.text).toContain("model: \\x1b[31mred\n");
  });

  test("a phase of minutes says that it goes on", () => {
    const view = open();
    view.start(facts);
    view.phase("rewards", 1);
    vi.advanceTimersByTime(130_000);
    view.phase("training", 1);
    vi.advanceTimersByTime(30_000);
    view.close();
    vi.advanceTimersByTime(300_000);
    expect(stderr.text.split("\n").slice(4)).toEqual([
      "computing rewards: 1:00 so far (train step 2)",
      "computing rewards: 2:00 so far (train step 2)",
      "",
    ]);
  });

  test.each([
    ["only stdout is a terminal", { out: true, err: false, env: {} }],
    ["only stderr is a terminal", { out: false, err: true, env: {} }],
    ["NO_LIVE", { out: true, err: true, env: { NO_LIVE: "1" } }],
    ["CI", { out: true, err: true, env: { CI: "true" } }],
    ["TERM=dumb", { out: true, err: true, env: { TERM: "dumb" } }],
  ])("no live view: %s", (_, { out, err, env }) => {
    [stdout.isTTY, stderr.isTTY, stdout.colors, stderr.colors] = [out, err, true, true];
    const view = open(env);
    view.start(facts);
    runStep(view, "5\x1b[2J");
    vi.advanceTimersByTime(1000);
    view.close();
    const reply = `Reward: 0.667; Response: 5${out ? "\\x1b" : "\x1b"}[2J`;
    expect(stdout.text).toBe([...STDOUT_LINES.with(1, reply), ""].join("\n"));
    expect(stderr.text).toBe([...facts.notes, ...ABOUT, ...STDERR_LINES, ""].join("\n"));
  });
});

describe("in a terminal", () => {
  beforeEach(() => {
    stdout.isTTY = stderr.isTTY = true;
  });

  /** The screen once all that waits is drawn. */
  const screen = (): string[] => {
    vi.advanceTimersByTime(300);
    return screenOf(stdout.text);
  };

  test("lines scroll above the region; the summary takes its place", () => {
    const view = open();
    view.start(facts);
    runStep(view);
    const inOrder = [...STDOUT_LINES, ...STDERR_LINES];
    expect(screen().slice(0, inOrder.length)).toEqual(inOrder);
    expect(screen().slice(inOrder.length)).toEqual([
      `── digit · some/model · sequence ${"─".repeat(46)}`,
      `train step 1/3  ${"━".repeat(7)}${"─".repeat(13)}  33 % done  run 0:00, about 0:00 left`,
      "evaluating 0:00  last objective -0.250000",
      "mean reward 0.667  best 0.667 (step 1)",
      "held-out accuracy 61.3 % (step 1)  best 61.3 % (step 1)",
      "no answer ended (train step 1): raise it",
      "",
    ]);
    view.summary(["-- Summary"]);
    view.close();
    expect(screenOf(stdout.text)).toEqual([...inOrder, "-- Summary", ""]);
    expect(stderr.text).toBe([...facts.notes, ...ABOUT, ""].join("\n"));
  });

  test("clocks run while nothing is printed, the time left is that of the last steps", () => {
    const view = open();
    view.start({ ...facts, earlier: [{ step: 1, reward: 0.1 }] });
    view.phase("rollouts", 1);
    vi.advanceTimersByTime(90_000);
    view.stepDone({ step: 2, reward: 0.4 });
    view.phase("rollouts", 2);
    vi.advanceTimersByTime(20_000);
    const lines = screen();
    expect(lines.find((line) => line.startsWith("train step 3/3"))).toMatch(/66 % done {2}run 1:50, about 1:09 left$/);
    expect(lines).toContain("generating rollouts 0:20");
    expect(lines.filter((line) => /[▁-█]/.test(line))).toEqual([
      "  0.400       ██████", ...Array<string>(3).fill("              ██████"), "  0.100 ▁▁▁▁▁▁██████",
    ]);
    view.close();
  });

  test("the time left goes by the newest steps, and is none after the last", () => {
    const view = open();
    view.start({ ...facts, trainSteps: 20 });
    const step = (n: number, seconds: number): void => {
      view.phase("rollouts", n - 1);
      vi.advanceTimersByTime(1000 * seconds);
      view.stepDone({ step: n, reward: n / 20 });
    };
    const left = (): string => /run .*$/.exec(screen().find((line) => line.startsWith("train step "))!)![0];
    for (let n = 1; n <= 4; n++) step(n, 100);
    for (let n = 5; n <= 18; n++) step(n, 10);
    expect(left()).toBe("run 9:00, about 0:19 left"); // two of ten seconds, a part of one gone
    vi.advanceTimersByTime(30_000); // a step that takes longer than the others did
    expect(left()).toBe("run 9:30, about 0:10 left");
    for (let n = 19; n <= 20; n++) step(n, 10);
    expect(left()).toMatch(/, about 0:00 left$/);
    view.close();
  });

  test("gradient steps are counted anew in each train step", () => {
    const view = open();
    view.start(facts);
    runStep(view);
    view.phase("rollouts", 1);
    view.phase("training", 1);
    expect(screen()).toContainEqual(expect.stringContaining("gradient step 0/2"));
    view.close();
  });

  test("is drawn at most about ten times a second, however much happens, and not when nothing changes", () => {
    const view = open();
    view.start(facts);
    view.phase("training", 0);
    const draws = (): number => stdout.text.split("\x1b[?2026h").length - 1;
    for (let i = 0; i < 1000; i++) {
      view.update({ trainStep: 0, gradStep: i, objective: i, skipped: false });
      vi.advanceTimersByTime(2);
    }
    vi.advanceTimersByTime(100);
    expect(draws()).toBeGreaterThan(15);
    expect(draws()).toBeLessThan(25);
    expect(screenOf(stdout.text).filter((line) => line.startsWith("Grad step"))).toHaveLength(1000);
    const before = draws();
    vi.advanceTimersByTime(10_000);
    expect(draws() - before).toBeLessThanOrEqual(11); // the clocks show seconds
    view.close();
  });

  test("colours, unless NO_COLOR: the screen is the same", () => {
    const outputs = [true, false].map((colors) => {
      stdout = new FakeStream();
      [stdout.isTTY, stdout.colors] = [true, colors];
      const view = open();
      view.start(facts);
      runStep(view);
      vi.advanceTimersByTime(300);
      view.close();
      return stdout.text;
    });
    expect(outputs[0]).toContain("\x1b[33m");
    expect(outputs[1]).not.toMatch(/\x1b\[\d+m/);
    expect(screenOf(outputs[0]!)).toEqual(screenOf(outputs[1]!));
  });

  test("a terminal that becomes narrower has broken the lines: all of their rows are erased", () => {
    const view = open();
    view.start(facts);
    view.phase("rollouts", 0);
    screen();
    stdout.text = "";
    stdout.columns = 50; // the rule and the progress line now take two rows each, the others one
    stdout.emit("resize");
    vi.advanceTimersByTime(200);
    expect(stdout.text).toContain("\r\x1b[6A\x1b[0J");
    for (const line of screen()) expect(line.length).toBeLessThan(50);
    view.close();
    expect(stdout.listenerCount("resize")).toBe(0);
  });

  test("leaves no timer and no terminal setting behind", () => {
    const view = open();
    view.start(facts);
    runStep(view);
    view.close();
    view.close();
    expect(vi.getTimerCount()).toBe(0);
    expect(stdout.text).not.toContain("\x1b[?25"); // the cursor is never hidden
    view.note("plain again");
    expect(stderr.text).toMatch(/\nplain again\n$/);
  });

  test("what replies, names and notes hold cannot reach the terminal", () => {
    const evil = "\x1b]0;title\x07\x9b2J\r\x08\x7f\u202eabc\u2028\0";
    const shown = "\\x1b]0;title\\x07\\x9b2J\\x0d\\x08\\x7f\\u{202e}abc\\u{2028}\\x00";
    const view = open();
    view.start({ ...facts, task: `${evil}\n`, model: evil, notes: [evil] });
    view.reply(1, evil);
    view.alert({ ...alert, text: evil });
    view.note(evil);
    const lines = screen(); // refuses control characters
    expect(lines.slice(0, 3)).toEqual([
      `Reward: 1.000; Response: ${shown}`, `warning: no answer ended (train step 1): ${shown}`, shown,
    ]);
    expect(stderr.text).toContain(`${shown}\n`);
    view.close();
  });
});

describe("the view fits any terminal", () => {
  const view: RunView = {
    task: "数字 and more", model: "a/very-long-name-of-a-model", objective: "sequence", trainSteps: 400,
    gradUpdatesPerStep: 5, phase: { name: "training", trainStep: 300, seconds: 75 }, gradSteps: 3,
    lastObjective: "0.000100", seconds: 4000, secondsLeft: 999,
    rewards: Array.from({ length: 300 }, (_, i) => ({ step: i + 1, reward: i === 7 ? null : Math.sin(i / 40) })),
    evaluations: [{ step: 0, accuracy: 0.5 }, { step: 100, accuracy: 0.25 }], alert,
  };

  test.each([
    [200, 60], [80, 24], [60, 13], [40, 12], [40, 11], [39, 24], [10, 5], [1, 1],
  ])("%i columns, %i rows", (columns, rows) => {
    const lines = viewLines(view, columns, rows).map((line) => cut(line, columns - 1));
    const texts = lines.map((line) => line.map(([text]) => text).join(""));
    for (const text of texts) expect(stringWidth(text)).toBeLessThan(Math.max(2, columns));
    expect(texts.length).toBeLessThan(Math.max(2, Math.min(13, rows)));
    if (columns < 40 || rows < 12) expect(texts).toHaveLength(1);
    else expect(texts.some((text) => text.includes("█"))).toBe(true);
  });

  test("narrow: the phase and its time", () => {
    expect(viewLines(view, 39, 24)).toEqual([[["301/400 training 1:15 (1:06:40)"]]]);
    const saving = { name: "saving", trainStep: 400, seconds: 0 } as const; // after the last train step
    expect(viewLines({ ...view, phase: saving }, 39, 24)).toEqual([[["400/400 saving 0:00 (1:06:40)"]]]);
  });

  test("more steps done than there are to do", () => {
    const lines = viewLines({ ...view, trainSteps: 20, phase: null }, 120, 24);
    const texts = lines.map((line) => line.map(([text]) => text).join(""));
    expect(texts[1]).toContain(`${"━".repeat(24)}  100 % done`);
    for (const text of texts) expect(stringWidth(text)).toBeLessThan(120);
  });

  test("best, lowest and last of reward and accuracy, each with its step", () => {
    const rewards = [0.5, 0.25, null, 0.75, 0.6].map((reward, i) => ({ step: i + 1, reward }));
    const evaluations = [0.3, 0.6, 0.4].map((accuracy, i) => ({ step: 2 * i, accuracy }));
    const texts = viewLines({ ...view, trainSteps: 5, rewards, evaluations }, 80, 24)
      .map((line) => line.map(([text]) => text).join(""));
    expect(texts).toContain("mean reward 0.600  best 0.750 (step 4)");
    expect(texts).toContain("held-out accuracy 40.0 % (step 4)  best 60.0 % (step 2)");
    expect(texts.filter((text) => /^ +0\.\d+ /.test(text)).map((text) => text.trim().slice(0, 5))).toEqual(["0.750", "0.250"]);
    const unjudged = viewLines({ ...view, rewards: [{ step: 1, reward: null }] }, 80, 24);
    expect(unjudged).toContainEqual([["mean reward: after the first train step"]]);
  });

  test("a wide character is cut as a whole", () => {
    expect(cut([["ab", "bold"], ["数字"]], 6)).toEqual([["ab", "bold"], ["数字"]]);
    expect(cut([["ab", "bold"], ["数字"]], 5)).toEqual([["ab", "bold"], ["数…", undefined]]);
    expect(cut([["ab", "bold"], ["数字"]], 4)).toEqual([["ab", "bold"], ["…", undefined]]);
  });

  test("bars stand between lowest and highest; no value, no bar", () => {
    expect(bars([0, 0.5, null, 1], 2, 0, 1, 1)).toEqual([" ▁ █", "▁█ █"]);
    expect(bars([0, 1], 1, 0, 1, 2)).toEqual(["▁▁██"]);
  });

  test("clock", () => {
    expect([0, 59.9, 75, 3600, 360_061].map(clock)).toEqual(["0:00", "0:59", "1:15", "1:00:00", "100:01:01"]);
  });
});

test("visible: no control character is left but line break and tab, the rest is untouched", () => {
  const text = fc.string({ unit: "binary" });
  fc.assert(
    fc.property(text, (raw) => {
      expect(visible(raw)).not.toMatch(/(?![\n\t])[\p{Cc}\p{Bidi_Control}]/u);
      if (!/[\p{Cc}\p{Bidi_Control}\p{Zl}\p{Zp}]/u.test(raw)) expect(visible(raw)).toBe(raw);
    }),
    { numRuns: 50 },
  );
  expect(visible("ä🙂\n\t家👨‍👩‍👧")).toBe("ä🙂\n\t家👨‍👩‍👧");
});
