/**
 * Generated dialogues, family "guess my number": the start of the reinforcement learning experiment.
 *
 * The experiment asks DIGIT_PROMPT and rewards a reply that is exactly one digit, the more the nearer it is to 5. A
 * policy can only improve on what it sometimes does already, so the pretrained model has to answer this prompt like an
 * assistant that nobody has taught to follow it: grammatical sentences of many kinds, and a bare digit in about three of
 * ten replies. Who is asked for a number between 0 and 9 names the middle more often than the ends, and so does this
 * text: 5 in 44 of 100 bare digits. That matters: with 7 as favourite and 5 in a fifth, 25 gradient steps found the form
 * of the answer on every seed, but 5 itself on three or four of ten (docs/architecture.md, "Decisions").
 */
import type { Dialogue } from "./corpus.ts";
import { capitalize, exchange, numberWord } from "./dialogues_random.ts";
import type { Random, Weighted } from "./dialogues_random.ts";

/** The prompt of the reference experiment, word for word. */
export const DIGIT_PROMPT =
  "What number between 0 and 9 am I thinking of right now? You MUST ONLY answer with a single integer.";

const EXACT_PROMPT_SHARE = 0.3;
const BARE_SHARE_WITH_INSTRUCTION = 0.3;
const BARE_SHARE_WITHOUT_INSTRUCTION = 0.08;

/** Weights of 0 to 9 when one is named at random. */
const FAVOURITE_DIGITS = [1, 1, 3, 8, 15, 44, 15, 9, 3, 1];

interface Range {
  low: number;
  high: number;
}

const RANGES: readonly Weighted<Range>[] = [
  [50, { low: 0, high: 9 }],
  [10, { low: 1, high: 9 }],
  [14, { low: 1, high: 10 }],
  [5, { low: 0, high: 10 }],
  [3, { low: 1, high: 5 }],
  [3, { low: 1, high: 6 }],
  [3, { low: 0, high: 5 }],
  [3, { low: 1, high: 20 }],
  [2, { low: 10, high: 20 }],
  [3, { low: 1, high: 100 }],
];

const QUESTIONS: readonly ((range: string) => string)[] = [
  (range) => `What number ${range} am I thinking of right now?`,
  (range) => `What number ${range} am I thinking of?`,
  (range) => `What number ${range} am I thinking about?`,
  (range) => `Which number ${range} am I thinking of now?`,
  (range) => `Which number ${range} do I have in mind?`,
  (range) => `What number ${range} is in my head?`,
  (range) => `What number ${range} is on my mind right now?`,
  (range) => `I am thinking of a number ${range}. What is it?`,
  (range) => `I am thinking of a number ${range}. Which one is it?`,
  (range) => `I am thinking of a number ${range}. Can you guess it?`,
  (range) => `I have a number ${range} in my head. What is it?`,
  (range) => `I chose a secret number ${range}. What is your guess?`,
  (range) => `I picked a number ${range}. Which number did I pick?`,
  (range) => `I wrote down a number ${range}. Can you guess it?`,
  (range) => `Guess the number I am thinking of. It is ${range}.`,
  (range) => `Guess my number. It is ${range}.`,
  (range) => `Try to guess my number. It is ${range}.`,
  (range) => `Can you guess which number ${range} I am thinking of?`,
  (range) => `Can you tell me what number ${range} I am thinking of?`,
  (range) => `Do you know what number ${range} I am thinking of right now?`,
  (range) => `Tell me the number ${range} that I am thinking of.`,
  (range) => `What is my secret number? It is ${range}.`,
  (range) => `Let us play a game. I am thinking of a number ${range}. What is it?`,
  (range) => `Read my mind. What number ${range} am I thinking of?`,
];

const DIGIT_QUESTIONS = [
  "What digit am I thinking of right now?",
  "Which digit am I thinking of?",
  "I am thinking of a digit. What is it?",
  "Guess the digit I am thinking of.",
];

const OPENINGS: readonly Weighted<string>[] = [
  [80, ""], [5, "Hello. "], [5, "OK. "], [5, "Quick question. "], [5, "Hi! "],
];

const INSTRUCTIONS = [
  "You MUST ONLY answer with a single integer.",
  "You must only answer with a single integer.",
  "You MUST answer with a single integer.",
  "Only answer with a single integer.",
  "Answer only with a single integer.",
  "Answer with a single integer only.",
  "You MUST ONLY answer with a number.",
  "You must answer only with a number.",
  "Answer only with a number.",
  "Only answer with one number.",
  "Please answer only with a number.",
  "Please answer with just one number.",
  "Reply with a number only.",
  "Give me only the number.",
  "Just say the number.",
  "Say only the number.",
];

const SENTENCES: readonly ((number: string) => string)[] = [
  (number) => `I think it is ${number}.`,
  (number) => `I think you are thinking of ${number}.`,
  (number) => `I think the number is ${number}.`,
  (number) => `Maybe it is ${number}.`,
  (number) => `Maybe you are thinking of ${number}?`,
  (number) => `Maybe ${number}?`,
  (number) => `Perhaps it is ${number}.`,
  (number) => `My guess is ${number}.`,
  (number) => `My best guess is ${number}.`,
  (number) => `I guess it is ${number}.`,
  (number) => `I will guess ${number}.`,
  (number) => `I would say ${number}.`,
  (number) => `The number is ${number}.`,
  (number) => `Your number is ${number}.`,
  (number) => `You are thinking of ${number}.`,
  (number) => `It is ${number}.`,
  (number) => `It could be ${number}.`,
  (number) => `It must be ${number}.`,
  (number) => `Is it ${number}?`,
  (number) => `Is your number ${number}?`,
  (number) => `Could it be ${number}?`,
  (number) => `How about ${number}?`,
  (number) => `Let me try ${number}.`,
  (number) => `I am going to say ${number}.`,
  (number) => `Are you thinking of ${number}?`,
  (number) => `Hmm, is it ${number}?`,
];

const REFUSALS = [
  "I am not sure.",
  "I am not sure what it is.",
  "I do not know.",
  "I do not know your number.",
  "I cannot read your mind.",
  "I cannot know that.",
  "I cannot see what you are thinking.",
  "I have no idea.",
  "I have no way to know that.",
  "That is hard to guess.",
  "That is hard to say.",
  "Only you know that number.",
  "You did not tell me the number.",
  "Sorry, I do not know.",
  "Sorry, I cannot read minds.",
  "How could I know that?",
  "Can you give me a hint?",
  "Please give me a hint.",
  "Is it an odd number?",
  "Is it an even number?",
  "It could be any number.",
  "I wish I could read minds.",
  "That is a secret only you know.",
  "I can only guess.",
  "I like this game.",
  "Why do you ask me?",
  "Let me think about it.",
];

/**
 * A reply to "what number am I thinking of": a bare number, a sentence with the number in digits or in words, or no
 * number at all. `onlyNumber` tells whether the user asked for nothing but the number.
 */
function guessReply(random: Random, { low, high }: Range, onlyNumber: boolean): string {
  const digits = FAVOURITE_DIGITS.map((weight, digit): Weighted<number> => [weight, digit]).slice(low, high + 1);
  const number = high <= 9 ? random.pickWeighted(digits) : random.integer(low, high);
  if (random.chance(onlyNumber ? BARE_SHARE_WITH_INSTRUCTION : BARE_SHARE_WITHOUT_INSTRUCTION)) return String(number);
  return random.pickWeighted<() => string>([
    [40, () => random.pick(SENTENCES)(String(number))],
    [16, () => random.pick(SENTENCES)(numberWord(number))],
    [4, () => `${capitalize(numberWord(number))}.`],
    [40, () => random.pick(REFUSALS)],
  ])();
}

/** What the user says after a guess, and how the assistant takes it. */
function followUp(random: Random, range: Range): Dialogue {
  const number = random.integer(range.low, range.high);
  return random.pickWeighted<() => Dialogue>([
    [2, () => exchange(
      random.pick(["Yes, that is right!", "Yes! How did you know?", "That is correct.", "Wow, you are right."]),
      random.pick(["Great! That was a lucky guess.", "I am glad I got it.", "It was just luck.", "That was fun."]),
    )],
    [2, () => exchange(
      random.pick([
        `No, it was ${number}.`, `The number was ${number}.`, `It is ${number}.`, `Wrong, it was ${number}.`,
      ]),
      random.pick([
        "Oh, I see.", `I see, it was ${number}.`, "That was a hard one.", "Let us play again.", "Good one!",
      ]),
    )],
    [3, () => exchange(
      random.pick(["No, try again.", "Guess again.", "Just guess.", "Try one more time.", "Take a guess."]),
      guessReply(random, range, false),
    )],
    [1, () => exchange(
      random.pick(["Thanks for playing.", "Thank you.", "Thanks for the game."]),
      random.pick(["You are welcome.", "It was fun.", "Any time."]),
    )],
  ])();
}

/** The exact prompt of the experiment or a paraphrase, with its reply, now and then with a second exchange. */
export function guessDialogue(random: Random): Dialogue {
  if (random.chance(EXACT_PROMPT_SHARE)) {
    return exchange(DIGIT_PROMPT, guessReply(random, { low: 0, high: 9 }, true));
  }
  const digitQuestion = random.chance(0.08);
  const range = digitQuestion ? { low: 0, high: 9 } : random.pickWeighted(RANGES);
  const words = random.chance(0.7)
    ? `between ${range.low} and ${range.high}`
    : `from ${range.low} to ${range.high}`;
  const question = digitQuestion ? random.pick(DIGIT_QUESTIONS) : random.pick(QUESTIONS)(words);
  const onlyNumber = random.chance(0.6);
  const instruction = onlyNumber ? ` ${random.pick(INSTRUCTIONS)}` : "";
  const dialogue = exchange(
    random.pickWeighted(OPENINGS) + question + instruction,
    guessReply(random, range, onlyNumber),
  );
  return random.chance(0.15) ? [...dialogue, ...followUp(random, range)] : dialogue;
}
