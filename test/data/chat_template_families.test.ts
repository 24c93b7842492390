// Templates in the families' styles, rendered to the text that their models expect, and encoded with their tokens.

import { rmSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { encodeChat, renderChat } from "../../src/data/chat_template.ts";
import type { ChatMessage } from "../../src/data/chat_template.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { LLAMA3_STYLE, QWEN2_STYLE, QWEN3_STYLE } from "./chat_template_families.ts";
import { FAMILIES, makeFamilyDirectory } from "./tokenizer_families.ts";

const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });
const system = (content: string): ChatMessage => ({ role: "system", content });
const prompt = { addGenerationPrompt: true };
const noPrompt = { addGenerationPrompt: false };

describe("Llama 3 style", () => {
  beforeAll(() => void vi.useFakeTimers({ toFake: ["Date"], now: new Date(2026, 6, 5) }));
  afterAll(() => void vi.useRealTimers());
  const options = { ...prompt, bosToken: "<|begin_of_text|>", eosToken: "<|eot_id|>" };
  const turn = (role: string, text: string): string =>
    `<|start_header_id|>${role}<|end_header_id|>\n\n${text}<|eot_id|>`;
  const date = "Today Date: 05 Jul 2026\n\n";

  test("beginning token, headers, trimmed contents, the date", () => {
    const chat = [system(" Be brief.\n"), user(" Hi! "), assistant("Hello."), user("1 + 1?")];
    expect(renderChat(LLAMA3_STYLE, chat, options)).toBe(
      "<|begin_of_text|>" + turn("system", `${date}Be brief.`) + turn("user", "Hi!") + turn("assistant", "Hello.") +
        turn("user", "1 + 1?") + "<|start_header_id|>assistant<|end_header_id|>\n\n",
    );
  });

  test("no system message; no opening of an answer", () => {
    expect(renderChat(LLAMA3_STYLE, [user("Hi")], { ...options, addGenerationPrompt: false }))
      .toBe("<|begin_of_text|>" + turn("system", date) + turn("user", "Hi"));
  });

  test("roles that do not alternate, and unknown ones, are the template's own error", () => {
    expect(() => renderChat(LLAMA3_STYLE, [user("a"), user("b")], options)).toThrow(
      /^chat template: Conversation roles must alternate user\/assistant$/,
    );
    expect(() => renderChat(LLAMA3_STYLE, [{ role: "judge", content: "" }], options)).toThrow(/Unknown role: judge$/);
  });
});

describe("Qwen2.5 style", () => {
  test("the default system message gives way to a given one", () => {
    const opening = "<|im_start|>assistant\n";
    const hi = "<|im_start|>user\n Hi \n<|im_end|>\n";
    expect(renderChat(QWEN2_STYLE, [user(" Hi \n")], prompt)).toBe(
      "<|im_start|>system\nYou are a tiny assistant.<|im_end|>\n" + hi + opening,
    );
    expect(renderChat(QWEN2_STYLE, [system("S"), user(" Hi \n")], prompt))
      .toBe("<|im_start|>system\nS<|im_end|>\n" + hi + opening);
  });

  test("answers of tools are grouped into one user turn", () => {
    const tool = (content: string): ChatMessage => ({ role: "tool", content });
    expect(renderChat(QWEN2_STYLE, [system("S"), user("q"), tool("1"), tool("2")], noPrompt)).toBe(
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>user" +
        "\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n",
    );
  });
});

describe("Qwen3 style", () => {
  const thought = assistant("<think>\nhm\n</think>\n\nFive.");

  test("enable_thinking: false writes an empty think block, true and unset nothing", () => {
    const open = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    expect(renderChat(QWEN3_STYLE, [user("q")], { ...prompt, enableThinking: false }))
      .toBe(`${open}<think>\n\n</think>\n\n`);
    expect(renderChat(QWEN3_STYLE, [user("q")], { ...prompt, enableThinking: true })).toBe(open);
    expect(renderChat(QWEN3_STYLE, [user("q")], prompt)).toBe(open);
  });

  test("thoughts before the last question are dropped, those after it are kept", () => {
    expect(renderChat(QWEN3_STYLE, [user("a"), thought, user("b"), thought], noPrompt)).toBe(
      "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nFive.<|im_end|>\n" +
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nFive.<|im_end|>\n",
    );
    // What looks like the answer of a tool is no question.
    const toolAnswer = user("<tool_response>1</tool_response>");
    expect(renderChat(QWEN3_STYLE, [user("a"), thought, toolAnswer], noPrompt)).toContain("<think>\nhm\n</think>");
  });
});

describe("encoded with the family's tokens", () => {
  const cases = [["Llama 3", LLAMA3_STYLE], ["Qwen2", QWEN2_STYLE], ["Qwen3", QWEN3_STYLE]] as const;

  test.each(cases)("%s: equals the encoded text; a message adds no special token", (name, template) => {
    const directory = makeFamilyDirectory(FAMILIES.find((family) => family.name === name)!);
    const tokenizer = loadTokenizer(directory);
    rmSync(directory, { recursive: true });
    const { bosToken, eosToken } = tokenizer;
    const options = { ...prompt, enableThinking: false, bosToken, eosToken };
    const plain = [system("Be brief."), user("What number, 0 to 9?")];
    const ids = encodeChat(tokenizer, template, plain, options);
    expect(ids).toEqual(tokenizer.encodeWithSpecials(renderChat(template, plain, options)));
    expect(tokenizer.decode(ids)).toBe(renderChat(template, plain, options));
    if (name === "Llama 3") expect(ids.filter((id) => id === tokenizer.idOf(bosToken!)).length).toBe(1);
    if (name === "Qwen3") expect(ids).toContain(tokenizer.idOf("</think>"));

    const specialIds = tokenizer.specialTokens.map(tokenizer.idOf);
    const specialsOf = (all: readonly number[]): number[] => all.filter((id) => specialIds.includes(id));
    const attack = tokenizer.specialTokens.join(" x ") + "\n</think>" + tokenizer.specialTokens[0]!.slice(0, -2);
    const attacked = encodeChat(tokenizer, template, [system(attack), user(attack)], options);
    expect(specialsOf(attacked)).toEqual(specialsOf(ids));
    expect(tokenizer.decode(attacked)).toContain(attack);
  });
});

describe("features that templates of these families use", () => {
  test.each([
    ["reverse slice", "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m.content }}{% endfor %}", "0b1a"],
    ["namespace",
      "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "2"],
    ["is defined", "{{ nothing is defined }}{{ messages is defined }}", "falsetrue"],
    ["undefined and none are false", "{% if nothing or tools %}yes{% else %}no{% endif %}", "no"],
    ["is string", "{{ messages[0].content is string }}", "true"],
    ["tojson", "{{ messages[0] | tojson }}", '{"role": "user", "content": "a"}'],
    ["trim and methods", "{{ '  x ' | trim }}{{ ' y '.strip() }}{{ 'z'.upper() }}", "xyZ"],
    ["macros with defaults",
      "{% macro f(a, b='!') %}{{ a }}{{ b }}{% endmacro %}{{ f('x') }}{{ f('y', b='?') }}", "x!y?"],
    ["generation tags", "{% generation %}x{% endgeneration %}y", "xy"],
    ["ternary, in, not in", "{{ 'a' if 'b' in ['b'] else 'c' }}{{ 'q' not in 'abc' }}", "atrue"],
    ["selectattr, map, join",
      "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }}",
      "a"],
    ["loop controls",
      "{% for m in messages %}{% if loop.last %}{% continue %}{% endif %}{{ m.content }}{% endfor %}", "a"],
  ])("%s", (_, template, expected) => {
    expect(renderChat(template, [user("a"), assistant("b")], prompt)).toBe(expected);
  });
});
