/**
 * Seeded random numbers on the host: initial weights, shuffles, the choice of groups. The GPU has its own
 * (sample.wgsl).
 */

/** Uniform numbers in [0, 1) that depend on the seed alone. */
export function seededRandom(seed: number): () => number {
  return resumableRandom(seed).next;
}

/**
 * The generator behind them, mulberry32. Its 32 bits of state are a seed themselves: a generator that is made of them
 * goes on with the same numbers.
 */
export function resumableRandom(seed: number): { next: () => number; state: () => number } {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
  return { next, state: () => state };
}

/** Standard normal numbers (Box-Muller; one of each pair). */
export function seededNormal(seed: number): () => number {
  const random = seededRandom(seed);
  return () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** A random order of 0..count-1 (Fisher-Yates). */
export function permutation(count: number, random: () => number): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
