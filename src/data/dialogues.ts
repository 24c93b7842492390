/**
 * Generated training dialogues for the small chat model: simple English made from templates and tables, endless and
 * reproducible. Real corpora (corpus.ts) teach the model how people talk; these teach it to answer, to take
 * instructions about the form of an answer, and a little arithmetic.
 *
 * One file per group of families: dialogues_guess.ts (the question of the reinforcement learning experiment),
 * dialogues_numbers.ts, dialogues_facts.ts, dialogues_smalltalk.ts. Everything is plain ASCII.
 */
import type { Dialogue } from "./corpus.ts";
import { factDialogue, formDialogue } from "./dialogues_facts.ts";
import { guessDialogue } from "./dialogues_guess.ts";
import { arithmeticDialogue, numberDialogue } from "./dialogues_numbers.ts";
import { createRandom } from "./dialogues_random.ts";
import type { Random, Weighted } from "./dialogues_random.ts";
import { goodbye, greeting, smallTalkDialogue, thanks } from "./dialogues_smalltalk.ts";

export { DIGIT_PROMPT } from "./dialogues_guess.ts";

type Family = (random: Random) => Dialogue;

/** How often each is drawn, relative to the others. Three guessing dialogues in ten are the experiment's exact prompt. */
const SINGLE_FAMILIES: readonly Weighted<Family>[] = [
  [12, guessDialogue],
  [45, arithmeticDialogue],
  [11, numberDialogue],
  [14, factDialogue],
  [10, formDialogue],
  [19, smallTalkDialogue],
];

const FAMILIES: readonly Weighted<Family>[] = [...SINGLE_FAMILIES, [8, combinedDialogue]];

/**
 * Yields `count` dialogues, each alternating user and assistant from the user on, with one to four exchanges. The same
 * seed gives the same sequence, and a longer sequence begins with the shorter one.
 */
export function* generateDialogues(seed: number, count: number): Generator<Dialogue> {
  const random = createRandom(seed);
  for (let index = 0; index < count; index++) yield random.pickWeighted(FAMILIES)(random);
}

/** A greeting, a question of any family, thanks or a goodbye: a whole small visit, or two parts of it. */
function combinedDialogue(random: Random): Dialogue {
  const body = random.pickWeighted(SINGLE_FAMILIES)(random);
  return random.pickWeighted<() => Dialogue>([
    [3, () => [...greeting(random), ...body]],
    [3, () => [...body, ...thanks(random)]],
    [1, () => [...body, ...goodbye(random)]],
    [2, () => [...body, ...random.pickWeighted(SINGLE_FAMILIES)(random)]],
  ])();
}
