/** Model directories: what is written is what is read, and what is wrong with one is said in one line. */
import { spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { bf16ToF32, f32ToBf16, openSafetensors, SafetensorsError } from "../../src/data/safetensors.ts";
import { loadGpt, replaceDirectory, saveGpt, TEXT_FILES } from "../../src/model/checkpoint.ts";
import { CheckpointError, readJsonObject } from "../../src/model/config.ts";
import { arangePositions, createGpt, disposeGpt, hiddenStates, logits, type Gpt } from "../../src/model/gpt.ts";
import { parameterCount, parameterShapes } from "../../src/model/parameters.ts";
import { tokenIds } from "../../src/tensor/embedding.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { read } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";
import { fixturePath, modelOracleNames } from "../support/oracles.ts";
import { writeSafetensors } from "../support/safetensors_fixture.ts";
import { randomWeights, tinyConfig, writeModel } from "../support/tiny_model.ts";

const root = mkdtempSync(join(tmpdir(), "checkpoint-"));
afterAll(() => rmSync(root, { recursive: true }));

let directory: string;
let made = 0;
beforeEach(() => {
  directory = join(root, `model-${made++}`);
});

/** Every parameter's bits. */
async function bitsOf(model: Gpt): Promise<Map<string, Uint32Array>> {
  const bits = new Map<string, Uint32Array>();
  for (const [name, { value }] of model.parameters) bits.set(name, new Uint32Array((await read(value)).buffer));
  return bits;
}

function weightBytes(model: Gpt): number {
  return [...model.parameters.values()].reduce((sum, { value }) => sum + value.storage.pooled.capacity, 0);
}

/** Writes a random model, then lets `change` damage it. */
function broken(change: () => void): string {
  mkdirSync(directory);
  writeModel(directory, tinyConfig(), randomWeights(1));
  change();
  return directory;
}

function editConfig(change: Record<string, unknown>): void {
  const path = join(directory, "config.json");
  writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, "utf8")) as object), ...change }));
}

describe("round trips", () => {
  test.each([true, false])("F32 keeps every bit; tied embeddings: %s", async (tiedEmbeddings) => {
    const model = createGpt(tinyConfig({ tiedEmbeddings }), randomWeights(1));
    await saveGpt(model, directory);
    const loaded = loadGpt(directory);
    expect(loaded.config).toEqual(model.config);
    expect(await bitsOf(loaded)).toEqual(await bitsOf(model));
    expect(readdirSync(directory).sort()).toEqual(["config.json", "model.safetensors"]);
    disposeGpt(model);
    disposeGpt(loaded);
  });

  test("BF16 rounds once: loading and saving again changes nothing, and halves the file", async () => {
    const model = createGpt(tinyConfig(), randomWeights(1));
    await saveGpt(model, directory, { dtype: "BF16" });
    const once = loadGpt(directory);
    const again = join(root, "again");
    await saveGpt(once, again, { dtype: "BF16" });
    const file = (path: string): Buffer => readFileSync(join(path, "model.safetensors"));
    expect(file(again).equals(file(directory))).toBe(true);
    const values = parameterCount(model.config);
    expect(file(directory).length).toBeGreaterThan(2 * values);
    expect(file(directory).length).toBeLessThan(2 * values + 4096);
    for (const [name, { value }] of model.parameters) {
      const [exact, rounded] = [await read(value), await read(once.parameters.get(name)!.value)];
      exact.forEach((x, i) => expect(Math.abs(rounded[i]! - x)).toBeLessThanOrEqual(2 ** -8 * Math.abs(x)));
    }
    [model, once].forEach(disposeGpt);
  });

  test.each(modelOracleNames)("%s: saved again, every bit is the same", async (name) => {
    const model = loadGpt(fixturePath(`models/${name}`));
    await saveGpt(model, directory, { textFrom: fixturePath(`models/${name}`) });
    const again = loadGpt(directory);
    expect(again.config).toEqual(model.config);
    expect(await bitsOf(again)).toEqual(await bitsOf(model));
    const specialIds = ({ bos_token_id, eos_token_id }: Record<string, unknown>): unknown[] => [bos_token_id, eos_token_id];
    expect(specialIds(readJsonObject(join(directory, "config.json")))).toEqual(
      specialIds(readJsonObject(fixturePath(`models/${name}/config.json`))),
    );
    [model, again].forEach(disposeGpt);
  });

  test.each(["model.", ""])('names may begin with "%s": a checkpoint of the bare decoder leaves it out', (prefix) => {
    const path = broken(() => {
      const file = openSafetensors(join(directory, "model.safetensors"));
      const tensors = [...parameterShapes(tinyConfig())].map(([name, shape]) => ({
        name: name.replace("model.", prefix), shape, dtype: "F32" as const, data: file.readF32(name),
      }));
      file.close();
      writeSafetensors(join(directory, "model.safetensors"), tensors);
    });
    const model = loadGpt(path);
    expect([...model.parameters.keys()]).toEqual([...parameterShapes(tinyConfig()).keys()]);
    disposeGpt(model);
  });

  test("shards load like one file", async () => {
    const sharded = loadGpt(fixturePath("models/qwen3-a2"));
    await saveGpt(sharded, directory);
    const single = loadGpt(directory);
    expect(await bitsOf(single)).toEqual(await bitsOf(sharded));
    [sharded, single].forEach(disposeGpt);
  });

  test.each(["gpt2-a1", "llama-a2", "qwen3-a1"])("%s in 16 bits: what it computes, in half the memory", async (name) => {
    const path = fixturePath(`models/${name}`);
    const full = loadGpt(path);
    const values = new Map<string, Float32Array>();
    for (const [parameterName, { value }] of full.parameters) values.set(parameterName, await read(value));
    // Matrices rounded to what 16 bits hold, but stored in 32.
    const rounded = createGpt(full.config, (parameterName, shape) => {
      const exact = values.get(parameterName)!;
      return shape.length === 2 ? bf16ToF32(f32ToBf16(exact)) : exact;
    });
    const { liveBytes } = memoryStats();
    const halved = loadGpt(path, { bf16: true });
    expect(memoryStats().liveBytes - liveBytes).toBeLessThan(0.7 * weightBytes(full));
    const ids = Array.from({ length: 24 }, (_, i) => (i * 13) % 90);
    const logitsOf = (model: Gpt): Promise<Float32Array> => scopeAsync(() =>
      read(logits(model, hiddenStates(model, tokenIds(ids, [2, 12]), { positions: arangePositions(2, 12) })).value),
    );
    expect(await logitsOf(halved)).toEqual(await logitsOf(rounded));
    expect([...halved.parameters.values()].some(({ tracked }) => tracked)).toBe(false);
    [full, rounded, halved].forEach(disposeGpt);
  });

  test("text files travel along; saving into the directory that they come from works", async () => {
    await replaceDirectory(directory, (target) => {
      writeModel(target, tinyConfig(), randomWeights(1));
      for (const name of TEXT_FILES) writeFileSync(join(target, name), `content of ${name}`);
    });
    const model = loadGpt(directory);
    await saveGpt(model, directory, { textFrom: directory });
    for (const name of TEXT_FILES) expect(readFileSync(join(directory, name), "utf8")).toBe(`content of ${name}`);
    disposeGpt(model);
  });

  /** The tied checkpoint with a head, changed by `change`, and with or without its embedding. */
  const withHead = (change: (head: Float32Array) => void, keepEmbedding = true): string =>
    broken(() => {
      const file = openSafetensors(join(directory, "model.safetensors"));
      const tensors = [...parameterShapes(tinyConfig()), ["lm_head.weight", [40, 16]] as const].map(([name, shape]) => {
        const isHead = name === "lm_head.weight";
        const data = file.readF32(isHead ? "model.embed_tokens.weight" : name);
        if (isHead) change(data);
        return { name, shape, dtype: "F32" as const, data };
      });
      file.close();
      const kept = tensors.filter(({ name }) => keepEmbedding || name !== "model.embed_tokens.weight");
      writeSafetensors(join(directory, "model.safetensors"), kept);
    });

  test.each([
    ["a copy of the embedding as its head", true],
    ["the head alone", false],
  ])("a tied checkpoint may hold %s", async (_, keepEmbedding) => {
    const models = [createGpt(tinyConfig(), randomWeights(1)), loadGpt(withHead(() => undefined, keepEmbedding))];
    const [expected, loaded] = [await bitsOf(models[0]!), await bitsOf(models[1]!)];
    expect(loaded).toEqual(expected);
    models.forEach(disposeGpt);
  });

  test("a tied checkpoint with another head is another model, and refused", () => {
    const path = withHead((head) => (head[7]! += 1));
    expect(() => loadGpt(path)).toThrow(/ties lm_head\.weight to the embedding, but .* Fix: "tie_word_embeddings": false/);
  });
});

describe("refused, with one line", () => {
  const write = (name: string, content: string): void => writeFileSync(join(directory, name), content);
  const cases: [string, () => void, RegExp, (typeof CheckpointError | typeof SafetensorsError)?][] = [
    ["missing directory", () => rmSync(directory, { recursive: true }), /no model directory .* Fix: check the path/],
    ["no weights", () => rmSync(join(directory, "model.safetensors")),
      /no model\.safetensors .* Fix: check that the weights/, SafetensorsError],
    ["truncated weights", () => truncateSync(join(directory, "model.safetensors"), 3000),
      /truncated|corrupt/, SafetensorsError],
    ["weights that are text", () => write("model.safetensors", "version https://git-lfs"),
      /model\.safetensors/, SafetensorsError],
    ["empty weights", () => write("model.safetensors", ""), /fewer than its 8 length bytes/, SafetensorsError],
  ];
  test.each(cases)("%s", (_, change, message, type = CheckpointError) => {
    const { liveBytes } = memoryStats();
    let caught: unknown;
    try {
      loadGpt(broken(change));
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(type);
    expect((caught as Error).message).toMatch(message);
    expect((caught as Error).message).not.toContain("\n");
    expect((caught as Error).message).toContain(basename(directory));
    expect(memoryStats().liveBytes).toBe(liveBytes);
  });

  test("missing, mis-shaped and unexpected weights are named together", () => {
    broken(() => {
      const zeros = (name: string, shape: readonly number[]) => {
        return { name, shape, dtype: "F32" as const, data: new Float32Array(shape.reduce((n, m) => n * m, 1)) };
      };
      const tensors = [...parameterShapes(tinyConfig())]
        .filter(([name]) => name !== "model.norm.weight")
        .map(([name, shape]) => zeros(name, name.endsWith("layers.1.self_attn.q_norm.weight") ? [9] : shape));
      writeSafetensors(join(directory, "model.safetensors"), [...tensors, zeros("model.layers.2.extra", [1])]);
    });
    expect(() => loadGpt(directory)).toThrow(CheckpointError);
    for (const part of [
      /do not fit config\.json/,
      /missing model\.norm\.weight \[16\]/,
      /model\.layers\.1\.self_attn\.q_norm\.weight has shape \[9\], the config asks for \[8\]/,
      /unexpected "model\.layers\.2\.extra"/,
    ]) {
      expect(() => loadGpt(directory)).toThrow(part);
    }
  });

  test("of many differences ten are named and the rest counted", () => {
    broken(() => editConfig({ num_hidden_layers: 4 })); // 2 more layers of 11 tensors
    expect(() => loadGpt(directory)).toThrow(/missing model\.layers\.2\..*; and 12 more$/);
  });
});

describe("a save that fails", () => {
  const siblings = (): string[] => {
    return readdirSync(dirname(directory)).filter((name) => name.startsWith(basename(directory)));
  };

  test("leaves the old directory as it was, and nothing beside it", async () => {
    broken(() => undefined);
    const before = readFileSync(join(directory, "model.safetensors"));
    const failing = replaceDirectory(directory, (target) => {
      writeFileSync(join(target, "model.safetensors"), "half");
      throw new Error("disk full");
    });
    await expect(failing).rejects.toThrow("disk full");
    expect(readFileSync(join(directory, "model.safetensors")).equals(before)).toBe(true);
    expect(siblings()).toEqual([basename(directory)]);
  });

  test("leaves nothing where there was nothing", async () => {
    const failing = replaceDirectory(directory, () => { throw new Error("disk full"); });
    await expect(failing).rejects.toThrow("disk full");
    expect(siblings()).toEqual([]);
  });

  test("below a regular file: an error of the file system, and the file stays", async () => {
    writeFileSync(directory, "a file");
    const model = createGpt(tinyConfig(), randomWeights(1));
    await expect(saveGpt(model, join(directory, "model"))).rejects.toThrow(/ENOTDIR/);
    expect(readFileSync(directory, "utf8")).toBe("a file");
    disposeGpt(model);
  });

  test("what a killed process left under the temporary name does not get into the next save", async () => {
    const stale = `${directory}.tmp-${process.pid}`;
    cpSync(fixturePath("models/qwen3-a1"), stale, { recursive: true });
    await replaceDirectory(directory, (target) => writeFileSync(join(target, "only"), ""));
    expect(readdirSync(directory)).toEqual(["only"]);
    expect(existsSync(stale)).toBe(false);
  });

  test("the next save removes what killed processes left, and nothing of those that are alive or of others", async () => {
    const deadPid = spawnSync(process.execPath, ["--version"]).pid;
    const left = ["tmp", "old"].map((kind) => `${directory}.${kind}-${deadPid}`);
    const kept = [`${directory}.tmp-${process.ppid}`, `${directory}2.tmp-${deadPid}`, `${directory}.tmp-${deadPid}x`];
    for (const path of [...left, ...kept]) mkdirSync(path);
    await replaceDirectory(directory, (target) => writeFileSync(join(target, "only"), ""));
    expect([...left, ...kept].filter(existsSync)).toEqual(kept);
    kept.forEach((path) => rmSync(path, { recursive: true }));
  });
});
