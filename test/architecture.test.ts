/** The rules of the layout that no compiler checks: who imports whom, what belongs together, how long a file may be. */
import { readdirSync, readFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../", import.meta.url));

/** All files below a folder of the project, as paths from its root, with their text. */
function filesIn(folder: string, pattern: RegExp): { path: string; text: string }[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .map((name) => join(folder, name))
    .filter((path) => pattern.test(path))
    .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
}

const sources = filesIn("src", /\.ts$/);
const shaders = filesIn("src/shaders", /\.wgsl$/);
const tests = filesIn("test", /\.ts$/);

/** Files of the project that a file imports, static or dynamic, types included. */
function importsOf({ path, text }: { path: string; text: string }): string[] {
  const specifiers = [...text.matchAll(/(?:from|import)\s*\(?\s*"(\.[^"]+)"/g)].map(([, specifier]) => specifier!);
  return specifiers.map((specifier) => relative(root, resolve(root, dirname(path), specifier)));
}

/** "src/model/gpt.ts" -> "model"; a file directly in src is its own layer. */
const layerOf = (path: string): string => path.split("/")[1]!;

/** Each layer may import itself and these. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  shaders: [],
  tensor: ["shaders"],
  autograd: ["tensor"],
  model: ["autograd", "tensor", "data", "cli.ts", "folder_lock.ts", "random.ts", "visible.ts"],
  grpo: ["model", "autograd", "tensor", "data", "cli.ts", "folder_lock.ts", "random.ts", "visible.ts"],
  data: [],
  "cli.ts": ["tensor", "visible.ts"],
  "folder_lock.ts": ["cli.ts"],
  "random.ts": [],
  "visible.ts": [],
};

describe("imports run one way", () => {
  test.each(sources.map((file) => [file.path, file] as const))("%s", (path, file) => {
    const layer = layerOf(path);
    const allowed = MAY_IMPORT[layer];
    expect(allowed, `${layer} is a new layer: say above what it may import`).toBeDefined();
    const forbidden = importsOf(file).filter((target) => {
      return !target.startsWith("src/") || (layerOf(target) !== layer && !allowed!.includes(layerOf(target)));
    });
    expect(forbidden).toEqual([]);
  });

  test("the check sees imports", () => {
    const found = new Set(sources.flatMap(importsOf));
    for (const path of ["src/tensor/tensor.ts", "src/autograd/ops.ts", "src/model/gpt.ts", "src/shaders/load.ts"]) {
      expect(found).toContain(path);
    }
  });
});

describe("shader, launcher and test belong together", () => {
  const launchers = sources.filter(({ path, text }) => layerOf(path) === "tensor" && /\bkernel\(\{/.test(text));

  test.each(shaders.map(({ path }) => basename(path, ".wgsl")))("%s.wgsl is launched or included, or stands in for one that is", (name) => {
    const isLaunched = launchers.some(({ text }) => text.includes(`"${name}"`));
    const isIncluded = shaders.some(({ text }) => text.includes(`// include: ${name}\n`));
    const isSubstitute = sources.some(({ path, text }) => path.endsWith("kernel.ts") && text.includes(`: "${name}" }`));
    expect(isLaunched || isIncluded || isSubstitute).toBe(true);
  });

  test("every launcher has a test: one of its name, or one that imports it", () => {
    const imported = new Set(tests.flatMap(importsOf));
    const names = new Set(tests.map(({ path }) => basename(path, ".test.ts")));
    expect(launchers.length).toBeGreaterThan(10);
    expect(
      launchers.map(({ path }) => path).filter((path) => !imported.has(path) && !names.has(basename(path, ".ts"))),
    ).toEqual([]);
  });

  test("every operation of ops.ts is called in a test", () => {
    const names = [
      ...sources.find(({ path }) => path === "src/autograd/ops.ts")!.text.matchAll(/^export function (\w+)/gm),
    ];
    const allTests = tests.map(({ text }) => text).join("\n");
    expect(names.length).toBeGreaterThan(30);
    expect(names.map(([, name]) => name!).filter((name) => !new RegExp(`ops\\.${name}\\b`).test(allTests))).toEqual([]);
  });
});

describe("every source file", () => {
  test("has at most 420 lines", () => {
    // The calculus page holds all gradient rules, and grows with the operations.
    const limit = (path: string): number => (path === "src/autograd/ops.ts" ? 480 : 420);
    const long = [...sources, ...shaders].filter(({ path, text }) => text.trimEnd().split("\n").length > limit(path));
    expect(long.map(({ path }) => path)).toEqual([]);
  });

  test("opens with a comment that says what it is", () => {
    const silent = [...sources, ...shaders, ...tests].filter(({ text }) => !/^(\/\*\*|\/\/)/.test(text));
    expect(silent.map(({ path }) => path)).toEqual([]);
  });

  test("exports no function that only tests use", () => {
    const forTests = ["setPoison"]; // fills memory with NaN
    const others = ["scripts", "bench", "examples"].flatMap((folder) => filesIn(folder, /\.(ts|mjs)$/));
    const words = [...sources, ...others].flatMap(({ text }) => text.match(/\w+/g) ?? []);
    const uses = new Map<string, number>();
    for (const word of words) uses.set(word, (uses.get(word) ?? 0) + 1);
    const exported = sources.flatMap(({ text }) => [...text.matchAll(/^export (?:async )?function\*? (\w+)/gm)]);
    expect(exported.length).toBeGreaterThan(100);
    const names = exported.map(([, name]) => name!);
    expect(names.filter((name) => uses.get(name)! < 2 && !forTests.includes(name))).toEqual([]);
  });

  test("has named exports only", () => {
    expect(sources.filter(({ text }) => /^export default/m.test(text)).map(({ path }) => path)).toEqual([]);
  });
});

test("no shader declares a variable in a block without a value", () => {
  // WGSL would make it zero; Dawn's compiler for Vulkan leaves in it what the last round of a loop did.
  const declared = shaders.flatMap(({ path, text }) =>
    [...text.matchAll(/^ {4,}var \w+\s*:[^=]*;/gm)].map(([line]) => `${path}: ${line.trim()}`));
  expect(declared).toEqual([]);
});
