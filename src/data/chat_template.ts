// Chat templates: messages -> the prompt text, or its token ids, that a chat model was trained on.
//
// A template is a Jinja program that comes with a model, that is, from strangers. @huggingface/jinja interprets it
// without eval and shows it plain data only, but knows no limits: `{% for i in range(1000000000) %}` would hang us. So
// it runs under the watchdog of node:vm, the one tool in Node that interrupts running code without a second thread or
// process: a timeout ends whatever JavaScript the script called, the interpreter included. Memory
// is bounded by what a second can allocate, about 1 GB. (A worker with a memory limit is no better: reaching that limit
// in one large step ends the whole process. And the vm context is not there to contain anything.)

import vm from "node:vm";
import { parseTemplate } from "./jinja_loops.ts";
import type { Tokenizer } from "./tokenizer.ts";

const MAX_TEMPLATE_LENGTH = 256 * 2 ** 10;
const MAX_OUTPUT_LENGTH = 2 ** 20;
const MAX_RENDER_MS = 1000;

/** A chat template, or messages, that give no prompt. */
export class TemplateError extends Error {
  override name = "TemplateError";
}

export interface ChatMessage {
  /** "system", "user", "assistant" or "tool"; any word of letters, digits and underscores is let through. */
  role: string;
  content: string;
}

export interface ChatOptions {
  /** End with the opening of an assistant turn, for the model to continue. */
  addGenerationPrompt: boolean;
  /** Shown to the template as `enable_thinking` (Qwen3). Not set: the template's own default. */
  enableThinking?: boolean;
  eosToken?: string | undefined;
  bosToken?: string | undefined;
}

/** ChatML: every turn is <|im_start|>role, a line break, the content, <|im_end|> and a line break. */
export const CHATML_TEMPLATE = [
  "{%- for message in messages -%}",
  "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}",
  "{%- endfor -%}",
  "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
].join("\n");

/**
 * Renders a template, as `tokenizer.apply_chat_template(messages, tokenize=False)` does. Throws TemplateError
 * when the template is too long, fails, takes more than a second or writes more than 1 MB.
 */
export function renderChat(template: string, messages: readonly ChatMessage[], options: ChatOptions): string {
  if (template.length > MAX_TEMPLATE_LENGTH) {
    throw new TemplateError(`chat template: ${template.length} characters are above ${MAX_TEMPLATE_LENGTH}`);
  }
  for (const { role } of messages) {
    if (!/^\w+$/.test(role)) throw new TemplateError(`chat template: role ${JSON.stringify(role)} is not a word`);
  }
  const context: Record<string, unknown> = { // as Hugging Face: none where nothing is given, undefined tokens left out
    messages: messages.map(({ role, content }) => ({ role, content })),
    tools: null,
    documents: null,
    add_generation_prompt: options.addGenerationPrompt,
  };
  if (options.eosToken !== undefined) context["eos_token"] = options.eosToken;
  if (options.bosToken !== undefined) context["bos_token"] = options.bosToken;
  if (options.enableThinking !== undefined) context["enable_thinking"] = options.enableThinking;
  let text: string;
  try {
    text = runUnderWatchdog(() => parseTemplate(template).render(context));
  } catch (cause) {
    throw new TemplateError(`chat template: ${(cause as Error).message}`, { cause });
  }
  if (text.length > MAX_OUTPUT_LENGTH) {
    throw new TemplateError(`chat template: it wrote ${text.length} characters, above ${MAX_OUTPUT_LENGTH}`);
  }
  return text;
}

const watchdog: { action: () => string } = vm.createContext({ action: () => "" }) as { action: () => string };
const callAction = new vm.Script("action()");

function runUnderWatchdog(action: () => string): string {
  watchdog.action = action;
  return callAction.runInContext(watchdog, { timeout: MAX_RENDER_MS }) as string;
}

/**
 * Renders `messages` and encodes the result. Special tokens in the template's own text are recognised; the text of
 * one within a message is not, so a message cannot end its turn or open another.
 *
 * How: before rendering, a marker (a Unicode noncharacter that occurs nowhere in the input) is put after the first
 * character of whatever in a message is a special token, or could become one together with the text behind the
 * message. The marked text no longer matches when the rendered text is cut at the special tokens, and the markers are
 * taken out before the parts in between are encoded. Messages that hold no special token reach the template as they are
 * and give exactly `encodeWithSpecials(renderChat(...))`, merges across message borders included.
 */
export function encodeChat(
  tokenizer: Pick<Tokenizer, "encode" | "splitSpecials" | "specialTokens">,
  template: string, messages: readonly ChatMessage[], options: ChatOptions,
): number[] {
  const marker = unusedNoncharacter([template, ...messages.map((message) => message.content)]);
  const marked = messages.map(({ role, content }) => ({
    role, content: markSpecials(content, tokenizer.specialTokens, marker),
  }));
  return tokenizer.splitSpecials(renderChat(template, marked, options))
    .flatMap((part) => (typeof part === "number" ? [part] : tokenizer.encode(part.replaceAll(marker, ""))));
}

/** U+FDD0 to U+FDEF are reserved for internal use: no text may contain them, and no template reacts to them. */
function unusedNoncharacter(texts: readonly string[]): string {
  for (let code = 0xfdd0; code <= 0xfdef; code++) {
    const candidate = String.fromCharCode(code);
    if (!texts.some((text) => text.includes(candidate))) return candidate;
  }
  throw new TemplateError("chat template: the messages contain all 32 noncharacters U+FDD0 to U+FDEF; remove one");
}

function markSpecials(content: string, specialTokens: readonly string[], marker: string): string {
  // Templates trim: "<|im_end " could lose its space and meet a "|>" of the template.
  const trimmed = content.trimEnd();
  let marked = "";
  for (let i = 0; i < content.length; i++) {
    const isRisky = specialTokens.some((special) => {
      return special[0] === content[i] && special.startsWith(trimmed.slice(i, i + special.length));
    });
    marked += isRisky ? content[i] + marker : content[i];
  }
  return marked;
}
