/** Endless sequences of problems that depend on seed and position alone, so that a resumed run continues them. */
import { permutation, seededRandom } from "../../random.ts";

/** One seed made of several whole numbers (the FNV-1a hash over 32-bit words): neighbours give unrelated sequences. */
export function mixedSeed(...numbers: readonly number[]): number {
  return numbers.reduce((hash, number) => Math.imul(hash ^ number, 0x01000193) >>> 0, 0x811c9dc5);
}

/** Item `position` of shuffle after shuffle of `items`: every run of `items.length` from a multiple of it holds all. */
export function shuffledItem<Item>(items: readonly Item[], position: number, seed: number): Item {
  const epoch = Math.floor(position / items.length);
  const order = permutation(items.length, seededRandom(mixedSeed(seed, epoch)));
  return items[order[position % items.length]!]!;
}
