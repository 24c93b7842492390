/** config.json of four families in all spellings: read, written, and refused in one line where it asks for too much. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { CheckpointError, configToHub, FAMILIES, readConfig, type GptConfig } from "../../src/model/config.ts";
import { parameterOf, parameterShapes } from "../../src/model/parameters.ts";
import { fixturePath, modelOracleNames, loadModelOracle } from "../support/oracles.ts";
import { tinyConfig } from "../support/tiny_model.ts";

const directory = mkdtempSync(join(tmpdir(), "config-"));
afterAll(() => rmSync(directory, { recursive: true }));

function readText(text: string): GptConfig {
  writeFileSync(join(directory, "config.json"), text);
  return readConfig(directory);
}
const readBack = (json: object): GptConfig => readText(JSON.stringify(json));

const llama3 = {
  factor: 32, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192,
};
const gpt2Config: GptConfig = {
  ...FAMILIES.gpt2, vocabSize: 40, hiddenSize: 16, layers: 2, heads: 4, kvHeads: 4, headSize: 4, mlpSize: 64,
  normEps: 1e-5, rope: null, maxPositions: 64, tiedEmbeddings: true,
};

describe("written and read back", () => {
  const configs: [string, GptConfig][] = [
    ["gpt2", gpt2Config],
    ["gpt2 with the exact GELU, untied", { ...gpt2Config, mlp: "gelu", tiedEmbeddings: false }],
    ["llama", tinyConfig({ ...FAMILIES.llama, normEps: 1e-5 })],
    ["llama with biases", tinyConfig({ ...FAMILIES.llama, qkvBias: true, outBias: true, mlpBias: true })],
    ["llama 3", tinyConfig({ ...FAMILIES.llama, rope: { theta: 5e5, scaling: llama3 } })],
    ["qwen2", tinyConfig({ ...FAMILIES.qwen2 })],
    ["qwen3, untied", tinyConfig({ rope: { theta: 54321 }, tiedEmbeddings: false })],
    ["qwen3 with biases", tinyConfig({ qkvBias: true, outBias: true })],
  ];
  test.each(configs)("%s", (_, config) => {
    const hub = configToHub(config, "F32");
    expect(readBack(hub)).toEqual(config);
    if (!config.rope) return;
    // As transformers 5 writes it, and as transformers 4 does.
    expect(readBack({ ...hub, rope_theta: undefined, rope_scaling: undefined })).toEqual(config);
    expect(readBack({ ...hub, rope_parameters: undefined })).toEqual(config);
  });
});

describe("absent keys take the defaults of transformers", () => {
  const llamaLike = {
    hiddenSize: 4096, layers: 32, heads: 32, kvHeads: 32, headSize: 128, mlpSize: 22016, normEps: 1e-6,
    rope: { theta: 10000 }, maxPositions: 32768, tiedEmbeddings: false,
  };
  const defaults: Record<string, object> = {
    gpt2: {
      ...FAMILIES.gpt2, vocabSize: 50257, hiddenSize: 768, layers: 12, heads: 12, kvHeads: 12, headSize: 64,
      mlpSize: 3072, normEps: 1e-5, rope: null, maxPositions: 1024, tiedEmbeddings: true,
    },
    llama: { ...FAMILIES.llama, ...llamaLike, vocabSize: 32000, mlpSize: 11008, maxPositions: 2048 },
    qwen2: { ...FAMILIES.qwen2, ...llamaLike, vocabSize: 151936 },
    qwen3: { ...FAMILIES.qwen3, ...llamaLike, vocabSize: 151936 },
  };
  test.each(Object.keys(defaults))("%s", (family) => {
    expect(readBack({ model_type: family })).toEqual(defaults[family]);
  });

  test("the head size of Llama and Qwen2 follows from the hidden size; null is like absent", () => {
    const json = { hidden_size: 96, num_attention_heads: 6, num_key_value_heads: null, head_dim: null };
    for (const model_type of ["llama", "qwen2"]) {
      expect(readBack({ model_type, ...json })).toMatchObject({ headSize: 16, kvHeads: 6 });
    }
  });

  test("the old name of the rope type", () => {
    const rope_scaling = { type: "llama3", ...llama3 };
    expect(readBack({ model_type: "llama", rope_theta: 5e5, rope_scaling }).rope).toEqual({
      theta: 5e5, scaling: llama3,
    });
  });
});

test.each(modelOracleNames)("%s: parameters are named and shaped as in transformers", (name) => {
  const { expected } = loadModelOracle(name);
  const shapes = parameterShapes(readConfig(fixturePath(`models/${name}`)));
  expect(Object.fromEntries(shapes)).toEqual(expected.parameter_shapes);
});

test("tensors of a checkpoint that are no parameters, and names without their prefix", () => {
  expect(parameterOf("h.0.attn.bias", gpt2Config)).toBeNull();
  expect(parameterOf("transformer.h.1.attn.masked_bias", gpt2Config)).toBeNull();
  expect(parameterOf("lm_head.weight", gpt2Config)).toBeNull();
  expect(parameterOf("h.0.attn.c_attn.bias", gpt2Config)).toBe("transformer.h.0.attn.c_attn.bias");
  expect(parameterOf("wte.weight", gpt2Config)).toBe("transformer.wte.weight");
  const untied = tinyConfig({ tiedEmbeddings: false });
  expect(parameterOf("lm_head.weight", untied)).toBe("lm_head.weight");
  expect(parameterOf("model.layers.0.self_attn.rotary_emb.inv_freq", untied)).toBeNull();
  expect(parameterOf("norm.weight", untied)).toBe("model.norm.weight");
});

describe("refused, with one line", () => {
  const llama = { model_type: "llama" };
  const cases: [string, string | object, RegExp][] = [
    ["no JSON", '{"model_type":', /config\.json is not valid JSON/],
    ["a list", "[1]", /does not hold a JSON object/],
    ["null", "null", /does not hold a JSON object/],
    ["a huge file", `{"a":"${"x".repeat(11 * 2 ** 20)}"}`, /above 10485760 bytes/],
    ["another architecture", { model_type: "mamba" },
      /model_type "mamba" is not supported \(only gpt2, llama, qwen2, qwen3 are\)/],
    ["a mixture of experts by type", { model_type: "qwen3_moe" }, /model_type "qwen3_moe" is not supported/],
    ["a mixture of experts by key", { model_type: "qwen3", num_experts: 8 }, /mixture of experts \(num_experts\)/],
    ["no architecture", {}, /model_type undefined/],
    ["a name of Object.prototype", { model_type: "constructor" }, /model_type "constructor" is not supported/],
    ["scaled rope", { ...llama, rope_scaling: { type: "linear", factor: 2 } }, /rope type "linear" is not supported/],
    ["scaled rope, new style", { ...llama, rope_parameters: { rope_type: "yarn" } }, /rope type "yarn"/],
    ["a scaling added to a file with parameters",
      { ...llama, rope_parameters: { rope_type: "default", rope_theta: 1e6 }, rope_scaling: { type: "yarn", factor: 4 } },
      /rope type "yarn" is not supported/],
    ["half of llama3's scaling", { ...llama, rope_scaling: { rope_type: "llama3", factor: 8 } },
      /rope type "llama3" without low_freq_factor/],
    ["partial rotary embedding", { ...llama, partial_rotary_factor: 0.5 }, /partial rotary/],
    ["sliding window by flag", { model_type: "qwen2", use_sliding_window: true }, /sliding-window/],
    ["sliding window by layer", { model_type: "qwen3", layer_types: ["full_attention", "sliding_attention"] },
      /sliding-window/],
    ["another activation", { ...llama, hidden_act: "relu" }, /hidden_act "relu" is not supported/],
    ["another activation of GPT-2", { model_type: "gpt2", activation_function: "relu" }, /activation_function "relu"/],
    ["unscaled attention", { model_type: "gpt2", scale_attn_weights: false }, /scale_attn_weights false/],
    ["attention scaled by layer", { model_type: "gpt2", scale_attn_by_inverse_layer_idx: true }, /inverse_layer_idx/],
    ["cross-attention", { model_type: "gpt2", add_cross_attention: true }, /cross-attention/],
    ["quantised", { ...llama, quantization_config: { bits: 4 } }, /a quantised checkpoint/],
    ["negative size", { ...llama, hidden_size: -16 }, /hidden_size must be a positive number/],
    ["size as text", { ...llama, hidden_size: "16" }, /hidden_size must be a positive number/],
    ["half a layer", { ...llama, num_hidden_layers: 1.5 }, /num_hidden_layers must be an integer, not 1\.5/],
    ["a flag as text", { ...llama, tie_word_embeddings: "yes" }, /tie_word_embeddings must be true or false/],
    ["heads that do not divide", { ...llama, num_key_value_heads: 3 }, /32 heads over 3 key\/value heads/],
    ["GPT-2 heads that do not divide", { model_type: "gpt2", n_head: 7 }, /n_embd 768 over 7 heads/],
    ["a fractional head size", { ...llama, hidden_size: 100, num_attention_heads: 32 }, /head_dim must be an integer/],
    ["odd head size", { ...llama, head_dim: 7 }, /odd head_dim \(7\)/],
  ];
  test.each(cases)("%s", (_, json, message) => {
    const read = (): GptConfig => (typeof json === "string" ? readText(json) : readBack(json));
    expect(read).toThrow(CheckpointError);
    expect(read).toThrow(message);
    expect(read).not.toThrow(/\n/);
  });

  test("a directory or config.json that is not there", () => {
    expect(() => readConfig(join(directory, "nowhere"))).toThrow(/no model directory .* Fix: check the path/);
    rmSync(join(directory, "config.json"));
    expect(() => readConfig(directory)).toThrow(/no config\.json/);
  });
});
