/**
 * The newest experiences, from which each gradient step draws a group.
 *
 * Departs from the papers: a group may mix answers of several train steps (each carries the log-probabilities of the
 * policy that drew it). It never mixes prompts: an advantage compares answers to the same question.
 */
import type { Experience } from "./rollout.ts";

/** Uniform random numbers in [0, 1). */
export type RandomSource = () => number;

export class ReplayBuffer {
  readonly #capacity: number;
  #experiences: Experience[] = [];

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  get size(): number {
    return this.#experiences.length;
  }

  /** All of them, oldest first. */
  get experiences(): readonly Experience[] {
    return this.#experiences;
  }

  /** Adds experiences and forgets the oldest beyond the capacity. */
  add(experiences: readonly Experience[]): void {
    this.#experiences = [...this.#experiences, ...experiences].slice(-this.#capacity);
  }

  /**
   * Draws `size` different experiences of one prompt; the prompt is that of a uniformly drawn experience.
   * @throws RangeError when no prompt has `size` experiences.
   */
  sampleGroup(size: number, random: RandomSource): Experience[] {
    const counts = new Map<string, number>();
    for (const { prompt } of this.#experiences) counts.set(prompt.id, (counts.get(prompt.id) ?? 0) + 1);
    const eligible = this.#experiences.filter(({ prompt }) => counts.get(prompt.id)! >= size);
    if (eligible.length === 0) {
      throw new RangeError(`the replay buffer holds no ${size} experiences of one prompt (${this.size} in all)`);
    }
    const chosen = eligible[Math.floor(random() * eligible.length)]!.prompt.id;
    const pool = eligible.filter(({ prompt }) => prompt.id === chosen);
    // Fisher-Yates, stopped after `size` draws: without replacement, every subset equally likely.
    for (let i = 0; i < size; i++) {
      const j = i + Math.floor(random() * (pool.length - i));
      [pool[i], pool[j]] = [pool[j]!, pool[i]!];
    }
    return pool.slice(0, size);
  }
}
