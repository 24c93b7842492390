/**
 * A conversation with a model: the KV cache is kept from one turn to the next, so that a turn costs what is new in it.
 *
 * The whole history is rendered and encoded again for every turn, because a chat template may change earlier text
 * (Qwen3 drops old thoughts) and a reply may be encoded otherwise than it was drawn. Only the ids behind the longest
 * beginning in common with those in the cache are run. Departs from sampler.ts in nothing else: a reply has the tokens
 * that `sampleCompletions` draws for the same ids, up to the rounding of logits.
 */
import { constant } from "../autograd/variable.ts";
import type { ChatMessage } from "../data/chat_template.ts";
import { embedding, tokenIds } from "../tensor/embedding.ts";
import { copyCachePrefix, createKvCache, disposeKvCache, type KvCache } from "../tensor/kv_cache.ts";
import { scope } from "../tensor/memory.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { frozen, hiddenStates, logits, type Gpt } from "./gpt.ts";
import { checkLengths, drawTokens, type Completion, type SamplingOptions } from "./sampler.ts";

export interface Conversation {
  readonly model: Gpt;
  /** The ids whose keys and values the cache holds. */
  cachedIds: readonly number[];
  cache: KvCache | null;
}

export function startConversation(model: Gpt): Conversation {
  return { model, cachedIds: [], cache: null };
}

/** Returns the cache's memory to the pool. */
export function endConversation(conversation: Conversation): void {
  if (conversation.cache) disposeKvCache(conversation.cache);
  conversation.cache = null;
  conversation.cachedIds = [];
}

/**
 * Draws one completion of `ids`, all of the conversation so far.
 * @throws LengthError when `ids` is empty or exceeds, with maxNewTokens, the model's positions.
 */
export async function reply(
  conversation: Conversation,
  ids: readonly number[],
  options: SamplingOptions,
): Promise<Completion> {
  const { model, cachedIds } = conversation;
  checkLengths(model, [ids], options.maxNewTokens);
  const different = ids.findIndex((id, i) => id !== cachedIds[i]);
  const known = Math.min(different < 0 ? ids.length : different, ids.length - 1); // the last id's logits are needed
  const cache = makeRoom(conversation, ids.length + options.maxNewTokens, known);
  conversation.cachedIds = ids.slice(0, known); // what is certain should the run fail
  const row = { prompt: ids, sample: options.firstSample ?? 0 };
  const policy = frozen(model);
  const [completion] = await drawTokens(policy, cache, [row], () => extend(policy, cache, ids, known), options);
  const { tokens } = completion!;
  // The token drawn last was not run: its keys and values are not there.
  if (tokens.length > 0) conversation.cachedIds = [...ids, ...tokens.slice(0, -1)];
  return completion!;
}

/** Runs ids[known..] behind the `known` first ones, which the cache holds: logits [1, V] of the next token. */
function extend(policy: Gpt, cache: KvCache, ids: readonly number[], known: number): Tensor {
  return scope(() => {
    const time = ids.length - known;
    const hidden = hiddenStates(policy, tokenIds(ids.slice(known), [1, time]), {
      positions: tokenIds(Uint32Array.from({ length: time }, (_, i) => known + i), [1, time]),
      cache: { kv: cache, starts: tensor(Uint32Array.of(known)) },
    });
    return logits(policy, constant(embedding(hidden.value, tokenIds([time - 1])))).value;
  });
}

/** The conversation's cache, made larger (at least doubled) if it must be; its first `known` tokens survive. */
function makeRoom(conversation: Conversation, capacity: number, known: number): KvCache {
  const { model, cache: old } = conversation;
  if (old && old.capacity >= capacity) return old;
  const { layers, maxPositions } = model.config;
  const larger = Math.min(maxPositions, Math.max(capacity, 2 * (old?.capacity ?? 0)));
  const cache = createKvCache(layers, { ...model.config, batch: 1, capacity: larger });
  if (old) {
    if (known > 0) scope(() => copyCachePrefix(cache, old, tensor(new Uint32Array(1)), known));
    disposeKvCache(old);
  }
  conversation.cache = cache;
  return cache;
}

/** A history that fits, and how many of its messages had to go. */
export interface FittedHistory {
  readonly messages: readonly ChatMessage[];
  readonly ids: readonly number[];
  readonly dropped: number;
}

/**
 * Leaves out the oldest messages until `room` positions are free behind the prompt. A user's message goes together with
 * its answer, so that the roles still alternate; a system message in front, and the newest message, stay.
 * The result may still be too long: then the newest message alone is.
 */
export function fitHistory(
  messages: readonly ChatMessage[],
  encode: (messages: readonly ChatMessage[]) => number[],
  positions: number,
  room: number,
): FittedHistory {
  const system = messages[0]?.role === "system" ? messages.slice(0, 1) : [];
  let turns = messages.slice(system.length);
  let ids = encode(messages);
  while (ids.length + room > positions && turns.length > 2) {
    turns = turns.slice(2);
    ids = encode([...system, ...turns]);
  }
  const kept = [...system, ...turns];
  return { messages: kept, ids, dropped: messages.length - kept.length };
}
