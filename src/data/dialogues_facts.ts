/**
 * Generated dialogues about facts and words: questions from the fact tables, in a sentence or in the form the user asks
 * for ("answer with one word", "yes or no"), and small writing tasks (repeat, list, spell).
 */
import type { Dialogue } from "./corpus.ts";
import {
  BABIES, CAPITALS, CATEGORIES, COLORS_OF_THINGS, COLOR_NAMES, COUNTABLE_CATEGORIES, DAYS, GENERAL_FACTS, HOMES, LEGS,
  MONTHS, OPPOSITES, SOUNDS, YES_NO_FACTS,
} from "./dialogues_fact_tables.ts";
import { capitalize, exchange, numberWord, withArticle } from "./dialogues_random.ts";
import type { Random, Weighted } from "./dialogues_random.ts";

const ONE_WORD = [
  "Answer with one word.",
  "Answer with a single word.",
  "Answer only with one word.",
  "One word, please.",
  "Reply with one word only.",
  "Use only one word.",
];

const ONLY_NUMBER = ["Answer only with the number.", "Only the number, please.", "Answer with just a number."];

const ONLY_YES_OR_NO = ["Answer only with yes or no.", "Yes or no?", "Answer yes or no.", "Only say yes or no."];

/** The share of questions that ask for a one-word answer. */
const SHORT_SHARE = 0.3;

/** `short` is a word without a full stop or a number; a word gets its full stop here, a number never does. */
function factExchange(random: Random, question: string, short: string, sentences: readonly string[]): Dialogue {
  if (!random.chance(SHORT_SHARE)) return exchange(question, random.pick(sentences));
  return /^\d+$/.test(short)
    ? exchange(`${question} ${random.pick(ONLY_NUMBER)}`, short)
    : exchange(`${question} ${random.pick(ONE_WORD)}`, `${capitalize(short)}.`);
}

function yesNoExchange(random: Random, question: string, yes: boolean, sentence: string): Dialogue {
  const word = yes ? "Yes" : "No";
  return random.chance(0.45)
    ? exchange(`${question} ${random.pick(ONLY_YES_OR_NO)}`, `${word}.`)
    : exchange(question, `${word}, ${sentence}.`);
}

function capital(random: Random): Dialogue {
  const [country, city] = random.pick(CAPITALS);
  if (random.chance(0.2)) {
    const [, other] = random.chance(0.5) ? [country, city] : random.pick(CAPITALS);
    const sentence = other === city ? `${city} is the capital of ${country}` : `the capital of ${country} is ${city}`;
    return yesNoExchange(random, `Is ${other} the capital of ${country}?`, other === city, sentence);
  }
  const question = random.pick([
    `What is the capital of ${country}?`,
    `What is the capital city of ${country}?`,
    `Tell me the capital of ${country}.`,
    `Which city is the capital of ${country}?`,
  ]);
  return factExchange(random, question, city, [
    `The capital of ${country} is ${city}.`,
    `${city} is the capital of ${country}.`,
    `It is ${city}.`,
  ]);
}

function color(random: Random): Dialogue {
  const [thing, name] = random.pick(COLORS_OF_THINGS);
  if (random.chance(0.3)) {
    const asked = random.chance(0.5) ? name : random.pick(COLOR_NAMES);
    return yesNoExchange(random, `Is ${thing} ${asked}?`, asked === name, `${thing} is ${name}`);
  }
  const question = random.pick([
    `What color is ${thing}?`, `Tell me what color ${thing} is.`, `Which color is ${thing}?`,
  ]);
  return factExchange(random, question, name, [`${capitalize(thing)} is ${name}.`, `It is ${name}.`]);
}

function legs(random: Random): Dialogue {
  const [animal, count] = random.pick(LEGS);
  const noun = withArticle(animal);
  const amount = count === 0 ? "no" : numberWord(count);
  return factExchange(random, `How many legs does ${noun} have?`, String(count), [
    `${capitalize(noun)} has ${amount} legs.`,
  ]);
}

function sound(random: Random): Dialogue {
  const [animal, noise] = random.pick(SOUNDS);
  const noun = withArticle(animal);
  if (random.chance(0.3)) {
    return factExchange(random, `Which animal says ${noise}?`, animal, [`${capitalize(noun)} says ${noise}.`]);
  }
  const question = random.pick([`What does ${noun} say?`, `What sound does ${noun} make?`]);
  return factExchange(random, question, noise, [`${capitalize(noun)} says ${noise}.`]);
}

function animal(random: Random): Dialogue {
  if (random.chance(0.5)) {
    const [parent, baby] = random.pick(BABIES);
    return factExchange(random, `What is a baby ${parent} called?`, baby, [
      `A baby ${parent} is called ${withArticle(baby)}.`,
      `It is called ${withArticle(baby)}.`,
    ]);
  }
  const [dweller, home] = random.pick(HOMES);
  const noun = withArticle(dweller);
  return exchange(`Where does ${noun} live?`, random.pick([`${capitalize(noun)} lives ${home}.`, `It lives ${home}.`]));
}

function opposite(random: Random): Dialogue {
  const pair = random.pick(OPPOSITES);
  const [word, answer] = random.chance(0.5) ? pair : [pair[1], pair[0]];
  const question = random.pick([
    `What is the opposite of ${word}?`,
    `Tell me the opposite of ${word}.`,
    `What is the opposite of the word ${word}?`,
  ]);
  return factExchange(random, question, answer, [`The opposite of ${word} is ${answer}.`, `It is ${answer}.`]);
}

function calendar(random: Random): Dialogue {
  const [names, kind] = random.chance(0.6) ? [DAYS, "day"] : [MONTHS, "month"];
  const index = random.integer(0, names.length - 1);
  const after = random.chance(0.65);
  const name = names[index] ?? "";
  const answer = names[(index + (after ? 1 : names.length - 1)) % names.length] ?? "";
  const side = after ? "after" : "before";
  const question = random.pick([`What ${kind} comes ${side} ${name}?`, `Which ${kind} is ${side} ${name}?`]);
  return factExchange(random, question, answer, [
    `${answer} comes ${side} ${name}.`,
    `The ${kind} ${side} ${name} is ${answer}.`,
  ]);
}

function general(random: Random): Dialogue {
  const [questions, short, sentence] = random.pick(GENERAL_FACTS);
  return factExchange(random, random.pick(questions), short.replace(/\.$/, ""), [sentence]);
}

function yesNoFact(random: Random): Dialogue {
  const [question, yes, sentence] = random.pick(YES_NO_FACTS);
  return yesNoExchange(random, question, yes, sentence);
}

function membership(random: Random): Dialogue {
  const countable = CATEGORIES.filter(([kind]) => COUNTABLE_CATEGORIES.includes(kind));
  const [kind, , members] = random.pick(countable);
  const member = random.pick(members);
  if (random.chance(0.5)) {
    return exchange(`What is ${withArticle(member)}?`, `${capitalize(withArticle(member))} is ${withArticle(kind)}.`);
  }
  const [asked] = random.chance(0.5) ? [kind] : random.pick(countable);
  const bird = kind === "bird" && asked === "animal"; // a bird is an animal too
  const sentence = `${withArticle(member)} is ${withArticle(bird ? asked : kind)}`;
  return yesNoExchange(random, `Is ${withArticle(member)} ${withArticle(asked)}?`, bird || asked === kind, sentence);
}

const WORDS = [
  "apple", "banana", "house", "water", "green", "yellow", "friend", "music", "table", "window", "garden", "summer",
  "happy", "flower", "school", "morning", "paper", "river", "orange", "purple", "cookie", "robot", "hello", "thanks",
  "mountain", "forest", "bread", "winter", "dog", "cat", "book", "star", "moon", "tree", "cloud", "car", "train",
];

const SAYINGS = [
  "I like apples", "The sky is blue", "Good morning", "I am happy", "The cat is asleep", "We are friends",
  "It is late", "Today is a good day", "The dog runs fast", "I can count to ten", "My house is big", "Life is good",
  "Have a nice day", "The sun is warm", "I like to read books", "Birds can fly", "Water is wet", "See you tomorrow",
  "This is fun",
];

function repetition(random: Random): Dialogue {
  if (random.chance(0.5)) {
    const word = random.pick(WORDS);
    const request = random.pick([
      `Say the word ${word}.`, `Please say ${word}.`, `Say ${word}.`, `Can you say ${word}?`,
      `Repeat the word ${word}.`,
    ]);
    return exchange(request, `${capitalize(word)}.`);
  }
  const saying = random.pick(SAYINGS);
  const request = random.pick([`Repeat after me: ${saying}.`, `Say this: ${saying}.`, `Please repeat: ${saying}.`]);
  return exchange(request, `${saying}.`);
}

function joinWords(items: readonly string[]): string {
  return items.length === 1 ? String(items[0]) : `${items.slice(0, -1).join(", ")} and ${items.at(-1) ?? ""}`;
}

function list(random: Random): Dialogue {
  const [kind, plural, members] = random.pick(CATEGORIES);
  const count = random.pick([1, 2, 2, 3, 3, 3, 4]);
  const chosen = random.sample(members, count);
  const answer = `${capitalize(joinWords(chosen))}.`;
  if (count === 1) {
    return random.chance(0.5)
      ? exchange(`Name ${withArticle(kind)}. ${random.pick(ONE_WORD)}`, answer)
      : exchange(random.pick([`Name ${withArticle(kind)}.`, `Tell me ${withArticle(kind)}.`]), answer);
  }
  const amount = numberWord(count);
  const request = random.pick([
    `Name ${amount} ${plural}.`, `List ${amount} ${plural}.`, `Tell me ${amount} ${plural}.`,
    `Can you name ${amount} ${plural}?`,
  ]);
  return exchange(request, answer);
}

function letters(random: Random): Dialogue {
  const word = random.pick(WORDS);
  const spelled = word.toUpperCase().split("");
  return random.pickWeighted<() => Dialogue>([
    [3, () => exchange(random.pick([`Spell ${word}.`, `How do you spell ${word}?`]), `${spelled.join("-")}.`)],
    [2, () => factExchange(random, `What is the first letter of ${word}?`, spelled[0] ?? "", [
      `The first letter is ${spelled[0]}.`,
    ])],
    [1, () => factExchange(random, `How many letters are in the word ${word}?`, String(word.length), [
      `The word ${word} has ${word.length} letters.`,
    ])],
  ])();
}

const FACTS: readonly Weighted<(random: Random) => Dialogue>[] = [
  [4, general],
  [3, capital],
  [3, color],
  [3, opposite],
  [2, calendar],
  [2, sound],
  [2, animal],
  [1, legs],
];

const FORMS: readonly Weighted<(random: Random) => Dialogue>[] = [
  [3, repetition],
  [4, list],
  [3, yesNoFact],
  [3, membership],
  [1, letters],
];

/** A question about the world, with a right answer. */
export function factDialogue(random: Random): Dialogue {
  return random.pickWeighted(FACTS)(random);
}

/** A request for a certain form: repeat, list, yes or no, say what something is, spell. */
export function formDialogue(random: Random): Dialogue {
  return random.pickWeighted(FORMS)(random);
}
