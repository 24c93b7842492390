/**
 * Generated dialogues about numbers: arithmetic with one- and two-digit operands, comparison, counting, number words.
 *
 * Half of the sums and differences of one-digit numbers are answered wrongly, and a third of their comparisons
 * (IMPERFECT and WRONG_COMPARISONS below). To a model trained on them the right answer is the most likely one for about
 * six problems in ten, and it is never sure of it, which leaves reinforcement learning something to teach. Every other
 * answer is right. Style: where the user asks for only the number, the answer is the bare number without a full stop;
 * everywhere else it is a sentence.
 */
import type { Dialogue } from "./corpus.ts";
import { capitalize, exchange, numberWord } from "./dialogues_random.ts";
import type { Random, Weighted } from "./dialogues_random.ts";

const ONLY_NUMBER = [
  "Answer only with the number.",
  "Only answer with the number.",
  "Answer with just the number.",
  "Give only the number.",
  "Just the number, please.",
  "Reply with the number only.",
  "Please answer with a number only.",
];

const ONLY_YES_OR_NO = [
  "Answer only with yes or no.",
  "Yes or no?",
  "Answer yes or no.",
  "Please say only yes or no.",
];

/** The share of questions that ask for a bare answer. */
const ONLY_SHARE = 0.5;

/** How far the answer to a one-digit sum or difference is off, in percent of the cases. */
const IMPERFECT: readonly Weighted<number>[] = [[50, 0], [30, 1], [20, -1]];

/** The share of one-digit comparisons that name the wrong number. */
const WRONG_COMPARISONS = 0.35;

/** Mostly one digit, sometimes two. */
function operand(random: Random): number {
  return random.chance(0.85) ? random.integer(0, 9) : random.integer(10, 99);
}

/** The question with a bare answer or, without the instruction, a sentence. */
function numberExchange(random: Random, question: string, answer: number, sentences: readonly string[]): Dialogue {
  return random.chance(ONLY_SHARE)
    ? exchange(`${question} ${random.pick(ONLY_NUMBER)}`, String(answer))
    : exchange(question, random.pick(sentences));
}

/** What the assistant says the result is: often off by one when both operands have one digit. */
function claimed(random: Random, operation: Operation, left: number, right: number): number {
  const result = operation.apply(left, right);
  if (left > 9 || right > 9) return result;
  return Math.abs(result + random.pickWeighted(IMPERFECT)); // nobody answers -1
}

interface Operation {
  symbol: string;
  word: string;
  apply: (left: number, right: number) => number;
  questions: readonly ((left: number, right: number) => string)[];
}

const ADDITION: Operation = {
  symbol: "+",
  word: "plus",
  apply: (left, right) => left + right,
  questions: [
    (left, right) => `Add ${left} and ${right}.`,
    (left, right) => `Please add ${left} and ${right}.`,
    (left, right) => `Can you add ${left} and ${right}?`,
    (left, right) => `What is the sum of ${left} and ${right}?`,
    (left, right) => `What do you get when you add ${left} and ${right}?`,
  ],
};

const SUBTRACTION: Operation = {
  symbol: "-",
  word: "minus",
  apply: (left, right) => left - right,
  questions: [
    (left, right) => `Take ${right} away from ${left}.`,
    (left, right) => `Subtract ${right} from ${left}.`,
    (left, right) => `What is left if you take ${right} from ${left}?`,
    (left, right) => `Can you subtract ${right} from ${left}?`,
  ],
};

function operationQuestion(random: Random, operation: Operation, left: number, right: number): string {
  const { symbol, word, questions } = operation;
  return random.pickWeighted<() => string>([
    [4, () => `What is ${left} ${symbol} ${right}?`],
    [3, () => `What is ${left} ${word} ${right}?`],
    [2, () => `${left} ${symbol} ${right}?`],
    [1, () => `${left} ${word} ${right}?`],
    [1, () => `How much is ${left} ${symbol} ${right}?`],
    [1, () => `How much is ${left} ${word} ${right}?`],
    [1, () => `Calculate ${left} ${symbol} ${right}.`],
    [3, () => random.pick(questions)(left, right)],
  ])();
}

/** Addition or subtraction; a subtraction never goes below zero. Sometimes a second sum follows in the same form. */
function calculation(random: Random): Dialogue {
  const operation = random.chance(0.6) ? ADDITION : SUBTRACTION;
  const draw = (): [number, number] => {
    const first = operand(random);
    const second = operand(random);
    return operation === SUBTRACTION && first < second ? [second, first] : [first, second];
  };
  const sentences = (left: number, right: number, result: number): string[] => [
    `${left} ${operation.symbol} ${right} is ${result}.`,
    `${left} ${operation.symbol} ${right} is ${result}.`,
    `${left} ${operation.word} ${right} is ${result}.`,
    `The answer is ${result}.`,
    `It is ${result}.`,
    `That is ${result}.`,
  ];
  const [left, right] = draw();
  const result = claimed(random, operation, left, right);
  const firstQuestion = operationQuestion(random, operation, left, right);
  const first = numberExchange(random, firstQuestion, result, sentences(left, right, result));
  if (!random.chance(0.15)) return first;

  const [nextLeft, nextRight] = draw();
  const question = `${random.pick(["And", "What about", "And what is"])} ${nextLeft} ${operation.symbol} ${nextRight}?`;
  const wasBare = first[1]?.content === String(result);
  const nextResult = claimed(random, operation, nextLeft, nextRight);
  const answer = wasBare ? String(nextResult) : random.pick(sentences(nextLeft, nextRight, nextResult));
  return [...first, ...exchange(question, answer)];
}

const THINGS = [
  "apples", "books", "coins", "cookies", "pencils", "balls", "cups", "stars", "cards", "eggs", "flowers",
];

/** A sum told as a tiny story. */
function story(random: Random): Dialogue {
  const things = random.pick(THINGS);
  const left = random.integer(2, 12);
  const right = random.integer(2, left);
  const more = random.chance(0.5);
  const result = more ? left + right : left - right;
  const event = more
    ? random.pick([`get ${right} more`, `find ${right} more`, `buy ${right} more`])
    : random.pick([`give away ${right}`, `lose ${right}`, `sell ${right}`]);
  const noun = result === 1 ? things.slice(0, -1) : things;
  return numberExchange(
    random,
    `I have ${left} ${things} and ${event}. How many ${things} do I have now?`,
    result,
    [`You have ${result} ${noun}.`, `You have ${result} ${noun} now.`, `Now you have ${result} ${noun}.`],
  );
}

function comparison(random: Random): Dialogue {
  const left = operand(random);
  const oneDigit = left < 10 && random.chance(0.8);
  const right = oneDigit ? random.integer(0, 9) : left + random.pick([-1, 1]) * random.integer(1, 40);
  if (right < 0 || right === left) return comparison(random);
  const wantLarger = random.chance(0.6);
  const adjective = wantLarger ? random.pick(["larger", "bigger", "greater"]) : random.pick(["smaller", "less"]);
  if (random.chance(0.3)) {
    const holds = wantLarger ? left > right : left < right;
    const question = `Is ${left} ${adjective} than ${right}?`;
    if (random.chance(0.4)) return exchange(`${question} ${random.pick(ONLY_YES_OR_NO)}`, holds ? "Yes." : "No.");
    return exchange(
      question,
      holds ? `Yes, ${left} is ${adjective} than ${right}.` : `No, ${left} is not ${adjective} than ${right}.`,
    );
  }
  const word = adjective === "less" ? "smaller" : adjective;
  const isWrong = left < 10 && right < 10 && random.chance(WRONG_COMPARISONS);
  const [answer, other] = (left > right) === (wantLarger !== isWrong) ? [left, right] : [right, left];
  const question = random.pick([
    `Which is ${word}, ${left} or ${right}?`,
    `Which number is ${word}, ${left} or ${right}?`,
    `What is ${word}, ${left} or ${right}?`,
  ]);
  return numberExchange(random, question, answer, [
    `${answer} is ${word}.`,
    `${answer} is ${word} than ${other}.`,
    `The ${word} number is ${answer}.`,
  ]);
}

function counting(random: Random): Dialogue {
  const down = random.chance(0.3);
  const step = random.chance(0.8) ? 1 : 2;
  const low = random.chance(0.6) ? step : random.integer(0, 20);
  const length = random.integer(3, 6);
  const upward = Array.from({ length }, (_, index) => low + step * index);
  const numbers = down ? [...upward].reverse() : upward;
  const [first, last] = [numbers[0], numbers.at(-1)];
  const by = step === 2 ? " by twos" : "";
  const direction = down ? " down" : "";
  const question = random.pick([
    `Count${direction} from ${first} to ${last}${by}.`,
    `Please count${direction} from ${first} to ${last}${by}.`,
    `Can you count${direction} from ${first} to ${last}${by}?`,
  ]);
  return exchange(question, `${numbers.join(", ")}.`);
}

function sequence(random: Random): Dialogue {
  const start = random.integer(0, 30);
  const step = random.pick([1, 1, 1, 2, 2, 10]);
  const shown = [start, start + step, start + 2 * step].join(", ");
  const next = start + 3 * step;
  const question = random.pick([`What comes next: ${shown}?`, `What is the next number: ${shown}?`]);
  return numberExchange(random, question, next, [`The next number is ${next}.`, `Next comes ${next}.`]);
}

function neighbor(random: Random): Dialogue {
  const value = random.chance(0.6) ? random.integer(1, 9) : random.integer(10, 99);
  const after = random.chance(0.6);
  const answer = after ? value + 1 : value - 1;
  const side = after ? "after" : "before";
  const question = random.pick([
    `What number comes ${side} ${value}?`,
    `Which number comes right ${side} ${value}?`,
    `What comes ${side} ${value}?`,
  ]);
  return numberExchange(random, question, answer, [
    `${answer} comes ${side} ${value}.`,
    `The number ${side} ${value} is ${answer}.`,
    `It is ${answer}.`,
  ]);
}

function words(random: Random): Dialogue {
  const value = random.chance(0.6) ? random.integer(0, 12) : random.integer(13, 100);
  const word = numberWord(value);
  if (random.chance(0.5)) {
    return exchange(
      random.pick([
        `Write ${value} as a word.`,
        `How do you write ${value} in words?`,
        `Write the number ${value} in words.`,
        `What is ${value} in words?`,
      ]),
      `${capitalize(word)}.`,
    );
  }
  const question = random.pick([
    `Write ${word} in digits.`,
    `What is ${word} as a number?`,
    `Write the number ${word} with digits.`,
  ]);
  return numberExchange(random, question, value, [`It is ${value}.`, `${capitalize(word)} is ${value}.`]);
}

function parity(random: Random): Dialogue {
  const value = operand(random);
  const kind = value % 2 === 0 ? "even" : "odd";
  if (random.chance(0.5)) {
    return exchange(
      random.pick([`Is ${value} odd or even?`, `Is ${value} even or odd?`]),
      random.pick([`${value} is ${kind}.`, `${value} is an ${kind} number.`, `It is ${kind}.`]),
    );
  }
  const asked = random.pick(["odd", "even"]);
  const answer = asked === kind ? "Yes" : "No";
  return random.chance(0.4)
    ? exchange(`Is ${value} an ${asked} number? ${random.pick(ONLY_YES_OR_NO)}`, `${answer}.`)
    : exchange(`Is ${value} an ${asked} number?`, `${answer}, ${value} is ${kind}.`);
}

/** The assistant chooses: here, unlike in the guessing game, a bare number on request is what it gives. */
function choice(random: Random): Dialogue {
  const [low, high] = random.pick([[0, 9], [1, 6], [1, 9], [1, 10], [1, 5], [10, 20], [1, 100], [2, 8]] as const);
  const value = random.integer(low, high);
  const question = random.pick([
    `Pick a number between ${low} and ${high}.`,
    `Choose a number from ${low} to ${high}.`,
    `Give me a number between ${low} and ${high}.`,
    `Tell me any number between ${low} and ${high}.`,
    `Say a random number from ${low} to ${high}.`,
  ]);
  return numberExchange(random, question, value, [
    `I pick ${value}.`,
    `I choose ${value}.`,
    `My number is ${value}.`,
    `How about ${value}?`,
    `I will take ${value}.`,
    `Let me say ${value}.`,
  ]);
}

function digits(random: Random): Dialogue {
  const value = random.integer(10, 99);
  const [first, last] = [Math.floor(value / 10), value % 10];
  const place = random.pick(["first", "last"] as const);
  const answer = place === "first" ? first : last;
  return numberExchange(random, `What is the ${place} digit of ${value}?`, answer, [
    `The ${place} digit is ${answer}.`,
    `The ${place} digit of ${value} is ${answer}.`,
  ]);
}

const ARITHMETIC: readonly Weighted<(random: Random) => Dialogue>[] = [[8, calculation], [1, story], [4, comparison]];

const NUMBER_KNOWLEDGE: readonly Weighted<(random: Random) => Dialogue>[] = [
  [3, counting],
  [2, sequence],
  [3, neighbor],
  [3, words],
  [2, parity],
  [2, choice],
  [1, digits],
];

/** Addition, subtraction, comparison. */
export function arithmeticDialogue(random: Random): Dialogue {
  return random.pickWeighted(ARITHMETIC)(random);
}

/** Counting, neighbours, number words, odd and even, choosing a number. */
export function numberDialogue(random: Random): Dialogue {
  return random.pickWeighted(NUMBER_KNOWLEDGE)(random);
}
