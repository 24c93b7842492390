/**
 * The newest experiences, from which each gradient step draws groups: single completions of one prompt, as the reference
 * experiment does, or groups as they were rolled out.
 *
 * Departs from the papers: a group of single completions may mix answers of several train steps (each carries the
 * log-probabilities of the policy that drew it). It never mixes prompts: an advantage compares answers to the same
 * question.
 */
import { permutation } from "../random.ts";
import { groupsOf, type Experience } from "./rollout.ts";

/** Uniform random numbers in [0, 1). */
export type RandomSource = () => number;

export class ReplayBuffer {
  readonly #capacity: number;
  #experiences: readonly Experience[];
  /** Whole groups that `drawGroups` has not drawn yet since it last went through all of them. */
  #undrawn: Experience[][] = [];

  /** `experiences` continues the buffer of an interrupted run. */
  constructor(capacity: number, experiences: readonly Experience[] = []) {
    this.#capacity = capacity;
    this.#experiences = experiences;
  }

  get size(): number {
    return this.#experiences.length;
  }

  /** All of them, oldest first. */
  get experiences(): readonly Experience[] {
    return this.#experiences;
  }

  /** Forgets what was drawn in earlier train steps than this one, counted from 0. */
  forgetBefore(trainStep: number): void {
    this.#experiences = this.#experiences.filter((experience) => experience.trainStep >= trainStep);
    this.#undrawn = [];
  }

  /** Adds experiences and forgets the oldest beyond the capacity. */
  add(experiences: readonly Experience[]): void {
    this.#experiences = [...this.#experiences, ...experiences].slice(-this.#capacity);
    this.#undrawn = [];
  }

  /**
   * Draws `size` different experiences of one prompt; the prompt is that of a uniformly drawn experience. Empty when no
   * prompt has `size` of them.
   */
  sampleGroup(size: number, random: RandomSource): Experience[] {
    const counts = new Map<string, number>();
    for (const { prompt } of this.#experiences) counts.set(prompt.id, (counts.get(prompt.id) ?? 0) + 1);
    const eligible = this.#experiences.filter(({ prompt }) => counts.get(prompt.id)! >= size);
    if (eligible.length === 0) return [];
    const chosen = eligible[Math.floor(random() * eligible.length)]!.prompt.id;
    const pool = eligible.filter(({ prompt }) => prompt.id === chosen);
    // Fisher-Yates, stopped after `size` draws: without replacement, every subset equally likely.
    for (let i = 0; i < size; i++) {
      const j = i + Math.floor(random() * (pool.length - i));
      [pool[i], pool[j]] = [pool[j]!, pool[i]!];
    }
    return pool.slice(0, size);
  }

  /**
   * Draws `count` groups as they were rolled out, or what is left of a pass: every group is drawn once before any is
   * drawn again. So drawing all of them is a full pass, drawing a part of them a minibatch of one.
   */
  drawGroups(count: number, random: RandomSource): Experience[][] {
    if (this.#undrawn.length === 0) {
      const inOrder = groupsOf(this.#experiences);
      this.#undrawn = Array.from(permutation(inOrder.length, random), (i) => inOrder[i]!);
    }
    return this.#undrawn.splice(0, count);
  }
}
