/**
 * Conversations: a reply with a kept KV cache is the reply that sampling from scratch gives, whatever was said, cut,
 * rewritten or stopped before; and what is forgotten when the history no longer fits.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ChatMessage } from "../../src/data/chat_template.ts";
import { endConversation, fitHistory, reply, startConversation } from "../../src/model/conversation.ts";
import { createGpt, disposeGpt, type Gpt } from "../../src/model/gpt.ts";
import { LengthError, sampleCompletions, type Completion, type SamplingOptions } from "../../src/model/sampler.ts";
import { memoryStats } from "../../src/tensor/memory.ts";
import { random } from "../support/gradcheck.ts";
import "../support/gpu.ts";
import { randomWeights, tinyConfig } from "../support/tiny_model.ts";

let model: Gpt;
beforeAll(() => {
  model = createGpt(tinyConfig(), randomWeights(7));
});
afterAll(() => disposeGpt(model));

const options: SamplingOptions = { maxNewTokens: 6, temperature: 1, seed: 9, endIds: [], topK: 12, topP: 0.95 };

describe("a reply", () => {
  test("equals sampling from scratch: growing, repeated, shortened and rewritten histories", async () => {
    const conversation = startConversation(model);
    const { ids } = random(5);
    const first = [...ids(7, 40)];
    const one = await reply(conversation, first, options);
    const second = [...first, ...one.tokens, ...ids(5, 40)];
    const histories = [
      first, // the same again: only the last id is run
      second,
      [...second, ...ids(20, 40)], // the cache must grow
      second.slice(0, 9), // a beginning
      [...second.slice(0, 4), 39, ...second.slice(5)], // another word in the middle
      [3], // forgotten
    ];
    for (const history of histories) {
      const got = await reply(conversation, history, options);
      const [[want]] = (await sampleCompletions(model, [history], 1, options)) as [[typeof got]];
      expect(got.tokens).toEqual(want.tokens);
      got.logProbs.forEach((value, t) => expect(Math.abs(value - want.logProbs[t]!)).toBeLessThan(1e-4));
    }
    endConversation(conversation);
  });

  test("runs only what is new: the cached ids are a beginning of the next turn", async () => {
    const conversation = startConversation(model);
    const { tokens } = await reply(conversation, [1, 2, 3], options);
    expect(conversation.cachedIds).toEqual([1, 2, 3, ...tokens.slice(0, -1)]);
    endConversation(conversation);
  });

  test("stopped by a signal: what was read back until then, and the conversation goes on", async () => {
    const conversation = startConversation(model);
    const controller = new AbortController();
    let readbacks = 0;
    const stopped = await reply(conversation, [1, 2, 3], {
      ...options,
      maxNewTokens: 40,
      tokensPerReadback: 2,
      signal: controller.signal,
      onTokens: () => {
        if (++readbacks === 3) controller.abort();
      },
    });
    const [[all]] = (await sampleCompletions(model, [[1, 2, 3]], 1, { ...options, maxNewTokens: 40 })) as [
      [typeof stopped],
    ];
    expect(stopped).toMatchObject({ tokens: all.tokens.slice(0, 6), ended: false });
    expect(stopped.logProbs).toHaveLength(6);

    const history = [1, 2, 3, ...stopped.tokens, 4];
    const next = await reply(conversation, history, options);
    expect(next.tokens).toEqual((await sampleCompletions(model, [history], 1, options))[0]![0]!.tokens);

    const nothing = await reply(conversation, [7, 8], { ...options, signal: AbortSignal.abort() });
    expect(nothing).toEqual({ tokens: [], logProbs: [], ended: false });
    const after = await reply(conversation, [7, 8, 9], options);
    expect(after.tokens).toEqual((await sampleCompletions(model, [[7, 8, 9]], 1, options))[0]![0]!.tokens);
    endConversation(conversation);
  });

  test("too long, empty, unknown ids: refused; all memory is returned in the end", async () => {
    const before = memoryStats().liveBytes;
    const conversation = startConversation(model);
    await reply(conversation, [1], options);
    await expect(reply(conversation, new Array<number>(59).fill(1), options)).rejects.toThrow(LengthError);
    await expect(reply(conversation, [], options)).rejects.toThrow(LengthError);
    await expect(reply(conversation, [1, 40], options)).rejects.toThrow(/id 40/);
    const [[want]] = (await sampleCompletions(model, [[1, 5]], 1, options)) as [[Completion]];
    expect((await reply(conversation, [1, 5], options)).tokens).toEqual(want.tokens);
    endConversation(conversation);
    expect(memoryStats().liveBytes).toBe(before);
  });
});

describe("a history that must fit", () => {
  /** One id for each character, and one for each message. */
  const encode = (messages: readonly ChatMessage[]): number[] => {
    return messages.flatMap(({ content }) => new Array<number>(content.length + 1).fill(0));
  };
  const system = { role: "system", content: "sss" }; // 4
  const [a, b, c, d, e] = ["aaaa", "bb", "ccc", "dddd", "ee"].map((content, i) => {
    return { role: i % 2 === 0 ? "user" : "assistant", content };
  }) as [ChatMessage, ChatMessage, ChatMessage, ChatMessage, ChatMessage]; // 5, 3, 4, 5, 3
  const talk = [system, a, b, c, d, e]; // 24

  test.each<[string, ChatMessage[], number, number, ChatMessage[]]>([
    ["all of it", talk, 30, 6, talk],
    ["one too long: the oldest question goes with its answer", talk, 29, 6, [system, c, d, e]],
    ["two turns", talk, 20, 6, [system, e]],
    ["the newest message stays, even if it does not fit", talk, 5, 2, [system, e]],
    ["without a system message", talk.slice(1), 18, 6, [c, d, e]],
    ["a first message", [a], 3, 1, [a]],
  ])("%s", (_, messages, positions, room, want) => {
    const { messages: kept, ids, dropped } = fitHistory(messages, encode, positions, room);
    expect(kept).toEqual(want);
    expect(ids).toEqual(encode(want));
    expect(dropped).toBe(messages.length - want.length);
  });
});
