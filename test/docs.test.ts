/**
 * The documentation against the program: the glossary has every key that a run writes and no other, the guide every
 * flag with its default; commands parse; quoted code, files, names, anchors and thresholds exist as they stand there.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test, vi } from "vitest";
import { judgeStep, NO_ALERTS } from "../src/grpo/alerts.ts";
import { parseCommand } from "../src/grpo/config.ts";
import { trainCommand } from "../src/grpo/flags.ts";
import { lossMetrics } from "../src/grpo/loss_metrics.ts";
import { evaluationMetrics, rolloutMetrics, updateMetrics } from "../src/grpo/metrics.ts";
import { OBJECTIVES, type ObjectiveName } from "../src/grpo/objective.ts";
import type { Experience } from "../src/grpo/rollout.ts";
import { openRunLog, stepTimes } from "../src/grpo/run_log.ts";
import { localTask } from "../src/grpo/task.ts";

const root = fileURLToPath(new URL("../", import.meta.url));
const readText = (path: string): string => readFileSync(join(root, path), "utf8");

const inDocs = readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md"));
const pages = ["README.md", ...inDocs.map((name) => `docs/${name}`)].map((path) => ({ path, text: readText(path) }));
const pageOf = (path: string): string => pages.find((page) => page.path === path)!.text;

const FOLDERS = ["src", "test", "docs", "bench", "scripts", "examples"];
const allFiles = FOLDERS.flatMap((folder) =>
  readdirSync(join(root, folder), { recursive: true, encoding: "utf8" }).map((name) => join(folder, name)),
);
const baseNames = new Set([...allFiles.map((path) => path.split("/").at(-1)!), ...readdirSync(root)]);

/** Without blocks of code. */
const proseOf = (text: string): string => text.replace(/^```.*?^```/gms, "");

/** What stands below the heading that begins so, up to the next one of its level or above. */
function sectionOf(page: string, heading: string): string {
  const text = pageOf(page);
  const start = text.indexOf(`\n${heading}`);
  expect(start, `${page} has no heading ${heading}`).toBeGreaterThan(0);
  const level = /^#+/.exec(heading)![0].length;
  const rest = text.slice(start + 1 + heading.length);
  const end = rest.search(new RegExp(`^#{1,${level}} `, "m"));
  return end < 0 ? rest : rest.slice(0, end);
}

/** The cells of a section's table rows whose first cell begins with a name in backticks. */
function rowsOf(section: string): string[][] {
  const cells = section.split("\n").map((line) => line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim()));
  return cells.filter(([first]) => first?.startsWith("`"));
}
const codesOf = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(([, code]) => code!);
const namesOf = (section: string): string[] => rowsOf(section).flatMap(([first]) => codesOf(first!));

// ---- the glossary ---------------------------------------------------------------------------------------------------

/** Two answers to one prompt, one of them cut: made so that no key is left out. */
const experiences: readonly Experience[] = [0, 1].map((reward) => ({
  prompt: { id: "p", messages: [{ role: "user", content: "?" }] }, promptIds: [1], completionIds: [2], logProbs: [-1],
  ended: reward === 1, text: "!", rewards: [reward], reward, trainStep: 0, group: "0/0",
}));
const environment = { name: "made up", prompts: () => [], rewards: { NAME: () => 0 } };

/** Keys of an evaluation with 4 samples are pass@2 and pass@4; the page says pass@K. */
const generalKey = (key: string): string => key.replace(/^pass@\d+$/, "pass@K");
const keysOf = (records: readonly object[]): string[] => {
  return [...new Set(records.flatMap((record) => Object.keys(record)).map(generalKey))].sort();
};

function recordsOf(kind: string): object[] {
  const at = { trainStep: 0, gradStep: 0, learningRate: 1, skipped: 1 };
  switch (kind) {
    case "rollout": {
      const facts = { trainStep: 0, numTokens: 4, rounds: 2, timeouts: 1 };
      return [rolloutMetrics(facts, experiences, [{ name: "NAME" }], { mean: 0, max: 0 })];
    }
    case "update": {
      const readback = { ratio: [1, 1], kl: [0, 0], entropies: [1, 1] };
      const batch = { mask: [[1], [1]], advantages: [1, -1] };
      const finite = (Object.keys(OBJECTIVES) as ObjectiveName[]).map((name) => {
        const metrics = lossMetrics(name, readback, batch, { clip: { low: 0.2, high: 0.2 } });
        return updateMetrics(at, [experiences], { objective: 0, gradNorm: 0, metrics });
      });
      return [...finite, updateMetrics(at, [experiences], { objective: NaN, gradNorm: 0, metrics: {} })];
    }
    case "eval": {
      const passAtK = [{ k: 2, value: 0 }, { k: 4, value: 0 }];
      return [evaluationMetrics(0, { accuracy: 0, greedy: 0, passAtK, prompts: 1, samples: 4, replies: [] })];
    }
    default: {
      const { alerts } = judgeStep(NO_ALERTS, [{ kind: "rollout", step: 1, "completions/clipped_ratio": 1 }], {
        maxReward: 1,
      });
      return alerts.map((alert) => ({ ...alert, alert: alert.kind })); // as train.ts writes it
    }
  }
}

describe("docs/metrics.md has every key that is written, and no other", () => {
  test.each(["rollout", "update", "eval", "alert"])("metrics.jsonl, %s", (kind) => {
    expect(namesOf(sectionOf("docs/metrics.md", `### \`${kind}\``)).sort()).toEqual(keysOf(recordsOf(kind)));
  });

  test("completions.jsonl and timings.jsonl", () => {
    const run = mkdtempSync(join(tmpdir(), "docs-"));
    const log = openRunLog(run);
    log.completions(experiences, localTask(environment));
    const reply = { prompt: experiences[0]!.prompt, text: "!", correct: true };
    log.evaluation(0, { accuracy: 0, greedy: 0, passAtK: [], prompts: 1, samples: 1, replies: [reply] });
    log.timings(1, stepTimes(0, 0, experiences));
    for (const name of ["completions.jsonl", "timings.jsonl"]) {
      const lines = readFileSync(join(run, name), "utf8").trimEnd().split("\n");
      const written = keysOf(lines.map((line) => JSON.parse(line) as object));
      expect(namesOf(sectionOf("docs/metrics.md", `## ${name}`)).sort()).toEqual(written);
    }
    rmSync(run, { recursive: true });
  });

  test("alerts and their thresholds", () => {
    const source = readText("src/grpo/alerts.ts");
    const section = sectionOf("docs/metrics.md", "## Alerts");
    const kinds = /type AlertKind =([^;]+);/.exec(source)![1]!;
    expect(namesOf(section)).toEqual([...kinds.matchAll(/"([\w-]+)"/g)].map(([, kind]) => kind));
    const written = [...source.matchAll(/^const ([A-Z_]+ = [\d.e-]+);/gm)].map(([, constant]) => constant);
    const thresholds = rowsOf(section).flatMap((cells) => codesOf(cells[2]!));
    expect(thresholds.sort()).toEqual(written.sort());
  });
});

// ---- flags and objectives -------------------------------------------------------------------------------------------

describe("docs/grpo.md", () => {
  test("has every flag with its default, and no other", () => {
    const rows = rowsOf(sectionOf("docs/grpo.md", "## All flags"));
    const documented = rows.map(([flag, value]) => [codesOf(flag!)[0], codesOf(value!)[0] ?? ""]);
    const actual = trainCommand().options.map(({ long, defaultValue }) => {
      return [long, long === "--model" ? "weights" : String(defaultValue ?? "")];
    });
    expect(documented).toEqual(actual);
  });

  test("has every objective with what it is divided by", () => {
    const rows = rowsOf(sectionOf("docs/grpo.md", "## Objectives"));
    expect(rows.map((cells) => [codesOf(cells[0]!)[0], cells[3]])).toEqual(
      Object.entries(OBJECTIVES).map(([name, { normaliser }]) => [name, normaliser]),
    );
  });

  test("names the flags that may change on resume", () => {
    const [, list] = /May change on resume: ([^.]+)\./.exec(pageOf("docs/grpo.md"))!;
    const print = vi.spyOn(process.stderr, "write").mockImplementation(() => true);
    const settings = trainCommand().options.filter(({ long }) => {
      return !["--preset", "--config", "--out", "--resume", "--dry-run", "--stop-at"].includes(long!);
    });
    /** Several numbers, because no number is a valid value of every flag. */
    const valuesFor = ({ argChoices, required }: (typeof settings)[number]): string[][] => {
      return required ? [[argChoices?.[0] ?? "1"], ["2"], ["0.5"]] : [[]];
    };
    const refuses = (flags: readonly string[]): boolean => {
      let printed = "";
      print.mockImplementation((text) => (printed += String(text)) !== "");
      try {
        parseCommand(["node", "train", "--resume", "auto", ...flags]);
      } catch {
        // refused: for this reason or for another
      }
      return printed.includes("cannot change when a run is resumed");
    };
    const mayChange = settings
      .filter((option) => !valuesFor(option).some((values) => refuses([option.long!, ...values])))
      .map(({ long }) => long!);
    print.mockRestore();
    expect(codesOf(list!).sort()).toEqual(mayChange.sort());
    expect(mayChange.length).toBeLessThan(settings.length);
  });
});

test("every command for train.ts parses", () => {
  const commands = pages.flatMap(({ text }) => {
    const oneLine = text.replace(/\\\n\s*/g, "");
    return [...oneLine.matchAll(/npx tsx src\/grpo\/train\.ts([^\n#`]*)/g)].map(([, flags]) => flags!.trim());
  });
  expect(commands.length).toBeGreaterThan(8);
  for (const command of commands.filter((flags) => !/--help|--config/.test(flags))) {
    const flags = command.split(/\s+/).filter((word) => word !== "");
    const out = flags.indexOf("--out");
    if (out >= 0) flags[out + 1] = join(tmpdir(), "no-such-run");
    expect(() => parseCommand(["node", "train", ...flags]), command).not.toThrow();
  }
});

// ---- links, files, names --------------------------------------------------------------------------------------------

/** A heading's anchor, as GitHub makes it. */
function anchorOf(heading: string): string {
  return heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").trim().replace(/\s/g, "-");
}

const anchorsIn = (path: string): string[] => {
  return [...proseOf(readText(path)).matchAll(/^#+ (.+)$/gm)].map(([, heading]) => anchorOf(heading!));
};

test("anchors are made as GitHub makes them", () => {
  expect(["Why is my loss 0?", "9. Departures from each paper", "`a`: b.c"].map(anchorOf)).toEqual([
    "why-is-my-loss-0", "9-departures-from-each-paper", "a-bc",
  ]);
});

test.each(pages)("$path: links lead somewhere", ({ path, text }) => {
  const targets = [...proseOf(text).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target!);
  const broken = targets.filter((target) => {
    if (/^https?:/.test(target)) return false;
    const [file, anchor] = target.split("#") as [string, string?];
    const linked = file === "" ? path : normalize(join(dirname(path), file));
    if (!existsSync(join(root, linked))) return true;
    return anchor !== undefined && !anchorsIn(linked).includes(anchor);
  });
  expect(broken).toEqual([]);
});

test("pages and anchors that the source mentions exist", () => {
  const sources = allFiles.filter((name) => /^src.*\.(ts|wgsl)$/.test(name));
  const mentions = sources.flatMap((name) => {
    return [...readText(name).matchAll(/docs\/(\w+\.md)(?:#([\w-]+))?/g)].map(([all, file, anchor]) => {
      return { all, file: `docs/${file}`, anchor };
    });
  });
  expect(mentions.map(({ all }) => all)).toContain("docs/metrics.md#why-is-my-loss-0");
  const broken = mentions.filter(({ file, anchor }) => {
    return !existsSync(join(root, file)) || (anchor !== undefined && !anchorsIn(file).includes(anchor));
  });
  expect(broken).toEqual([]);
});

test.each(pages)("$path: files that it mentions exist", ({ text }) => {
  const paths = [...text.matchAll(/(?<![\w./-])(?:src|test|docs|bench|scripts|examples)\/[\w./-]*\w(?![\w*])/g)];
  expect(paths.map(([path]) => path).filter((path) => !existsSync(join(root, path)))).toEqual([]);
  // Names without a folder, as in a list of files of one folder.
  const names = codesOf(proseOf(text)).filter((code) => /^\w[\w.]*\.(ts|wgsl|mjs)$/.test(code));
  expect(names.filter((name) => !baseNames.has(name))).toEqual([]);
});

test.each(pages)("$path: what it says is in a file is there", ({ text }) => {
  const pairs = [...text.replaceAll("\n", " ").matchAll(/`(\w+)` in\s+`((?:src|test)\/[\w./]+)`/g)];
  const missing = pairs.filter(([, name, file]) => !new RegExp(`\\b${name}\\b`).test(readText(file!)));
  expect(missing.map(([all]) => all)).toEqual([]);
});

test("the page of derivations names code: the check above sees it", () => {
  expect([...pageOf("docs/derivations.md").matchAll(/`\w+` in\s+`src\//g)].length).toBeGreaterThan(20);
});

test.each(["README.md", "docs/derivations.md"])("%s: code that it quotes is the program's", (path) => {
  const lines = new Set(allFiles.filter((file) => /^(src|test|examples).*\.(ts|wgsl)$/.test(file)).flatMap((file) => {
    return readText(file).split("\n").map((line) => line.trim());
  }));
  const quoted = [...pageOf(path).matchAll(/^```(?:ts|wgsl)\n(.*?)^```/gms)].flatMap(([, block]) => block!.split("\n"));
  expect(quoted.length).toBeGreaterThan(10);
  expect(quoted.filter((line) => !lines.has(line.trim()))).toEqual([]);
});
