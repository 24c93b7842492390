/**
 * What a model's work costs at the least, counted from its shape: floating-point operations of matrix products and
 * attention, and bytes that must pass to and from memory.
 *
 * A product of [m, k] and [k, n] is 2 m k n operations; its backward pass is two such products. Causal attention
 * computes half of q kᵀ and of p v, backward 2.5 times that (it computes the scores again). Norms, activations and the
 * optimiser's arithmetic are not counted: they are bound by memory.
 */
import type { GptConfig } from "../src/model/config.ts";
import { parameterCount } from "../src/model/parameters.ts";

export interface Cost {
  readonly flops: number;
  readonly bytes: number;
}

/** Multiply-adds of a token in all linear layers: the number of their weights. */
function linearWeights({ hiddenSize, heads, kvHeads, headSize, mlpSize, layers }: GptConfig): number {
  return layers * (hiddenSize * headSize * (2 * heads + 2 * kvHeads) + 3 * hiddenSize * mlpSize);
}

/** Operations of attention for one query against `keys` keys, over all layers. */
function attentionFlops({ layers, heads, headSize }: GptConfig, keys: number): number {
  return 4 * layers * heads * headSize * keys;
}

/** Pairs of a query and a key that it sees. */
function causalPairs(time: number): number {
  return (time * (time + 1)) / 2;
}

/** A training step on [batch, time] tokens, of which each predicts another. */
export function trainingCost(config: GptConfig, batch: number, time: number): Cost {
  return stepCost(config, batch * time, batch * time, batch * causalPairs(time));
}

/**
 * A gradient step on `samples` completions of `tokens` tokens to one prompt, which is run once. The last token of a
 * completion predicts nothing and is not run; the head is needed where completion tokens are predicted.
 */
export function gradientStepCost(config: GptConfig, prompt: number, samples: number, tokens: number): Cost {
  const run = tokens - 1;
  const pairs = causalPairs(prompt) + samples * (run * prompt + causalPairs(run));
  return stepCost(config, prompt + samples * run, samples * tokens, pairs);
}

/**
 * Forward, backward, AdamW with a gradient norm: of tokens that run through the layers, of predictions by the head, of
 * pairs of a query and a key.
 *
 * Bytes of a weight: read forward and backward, gradient written; read for the norm; AdamW reads 4 and writes 3 values.
 * Bytes of an activation that a product, attention or a norm leaves behind: written, read by the next operation and by
 * backward; its gradient written and read. Everything between those is taken to be fused away.
 */
function stepCost(config: GptConfig, tokens: number, predictions: number, pairs: number): Cost {
  const { hiddenSize, heads, kvHeads, headSize, mlpSize, layers, vocabSize } = config;
  const forward = 2 * (tokens * linearWeights(config) + predictions * hiddenSize * vocabSize);
  const attention = attentionFlops(config, pairs);
  const perLayer = 4 * hiddenSize + headSize * (2 * heads + 2 * kvHeads) + 3 * mlpSize;
  const activations = tokens * (layers * perLayer + 2 * hiddenSize) + predictions * vocabSize;
  return {
    flops: 3 * forward + 3.5 * attention,
    bytes: 4 * (11 * parameterCount(config) + 5 * activations),
  };
}

/**
 * `samples` completions of `tokens` tokens for each of `prompts` prompts. A prompt is run once; the first tokens of all
 * its completions come from one distribution, and a completion takes tokens - 1 further passes. Bytes: each pass reads all weights and each row's cache.
 */
export function decodeCost(config: GptConfig, prompts: number, samples: number, prompt: number, tokens: number): Cost {
  const { layers, kvHeads, headSize, hiddenSize, vocabSize } = config;
  const rows = prompts * samples;
  const passes = tokens - 1;
  const head = hiddenSize * vocabSize;
  const keys = Array.from({ length: passes }, (_, i) => prompt + i + 1).reduce((sum, n) => sum + n, 0);
  const prefill = prompts * (2 * prompt * linearWeights(config) + attentionFlops(config, causalPairs(prompt)));
  const steps = rows * (2 * passes * linearWeights(config) + attentionFlops(config, keys));
  const cacheBytes = 4 * 2 * layers * kvHeads * headSize * rows * keys;
  return {
    flops: prefill + steps + 2 * (prompts + rows * passes) * head,
    bytes: 4 * tokens * parameterCount(config) + cacheBytes,
  };
}
