/**
 * Generated small talk: single exchanges from the topic tables, exchanges with a slot (names, likes, plans), and short
 * conversations in which the answer depends on an earlier turn.
 */
import type { Dialogue } from "./corpus.ts";
import { exchange, withArticle } from "./dialogues_random.ts";
import type { Random, Weighted } from "./dialogues_random.ts";
import {
  ACTIVITIES, FIRST_NAMES, GOODBYES, GREETINGS, LIKES, PETS, PET_NAMES, THANKS, TOPICS, UNKNOWABLE,
} from "./dialogues_smalltalk_tables.ts";
import type { Topic } from "./dialogues_smalltalk_tables.ts";

function topicExchange(random: Random, { questions, answers }: Topic): Dialogue {
  return exchange(random.pick(questions), random.pick(answers));
}

export function greeting(random: Random): Dialogue {
  return topicExchange(random, GREETINGS);
}

export function goodbye(random: Random): Dialogue {
  return topicExchange(random, GOODBYES);
}

export function thanks(random: Random): Dialogue {
  return topicExchange(random, THANKS);
}

/** One exchange on an everyday topic, sometimes with a greeting in front of the question. */
function topic(random: Random): Dialogue {
  const chosen = random.pick(TOPICS);
  const opening = random.pickWeighted([[6, ""], [1, "Hello. "], [1, "Hi! "], [1, "Excuse me. "]] as const);
  const question = random.pick(chosen.questions);
  const isQuestion = question.endsWith("?"); // "Hi! Good morning." would sound odd
  return exchange((isQuestion ? opening : "") + question, random.pick(chosen.answers));
}

/** The user gives a name; in a longer version the assistant is asked for it later. */
function introduction(random: Random): Dialogue {
  const name = random.pick(FIRST_NAMES);
  const first = exchange(
    random.pick([
      `My name is ${name}.`, `I am ${name}.`, `Hello, I am ${name}.`, `Hi, my name is ${name}.`, `Call me ${name}.`,
    ]),
    random.pick([
      `Nice to meet you, ${name}.`, `Hello, ${name}!`, `Hi ${name}! I am Grape.`, `It is nice to meet you, ${name}.`,
      `Hello ${name}! How are you?`,
    ]),
  );
  if (random.chance(0.5)) return first;
  return [
    ...first,
    ...exchange(
      random.pick(["What is my name?", "Do you remember my name?", "Who am I?", "Can you say my name?"]),
      random.pick([`Your name is ${name}.`, `You are ${name}.`, `You told me it is ${name}.`]),
    ),
  ];
}

function liking(random: Random): Dialogue {
  const [thing, remark] = random.pick(LIKES);
  return random.pickWeighted<() => Dialogue>([
    [3, () => exchange(
      random.pick([`I like ${thing}.`, `I love ${thing}.`, `I really like ${thing}.`]),
      random.pick([remark, `That is nice. ${remark}`, `I see. ${remark}`]),
    )],
    [2, () => exchange(
      random.pick([`Do you like ${thing}?`, `What do you think of ${thing}?`, `Tell me about ${thing}.`]),
      random.pick([remark, `Many people like ${thing}.`]),
    )],
    [1, () => [
      ...exchange(`I like ${thing}.`, remark),
      ...exchange(random.pick(["What do I like?", "What did I say I like?"]), `You like ${thing}.`),
    ]],
    [1, () => exchange(
      `I do not like ${thing}.`,
      random.pick([
        "That is fine.", "I see. What do you like?", "Everyone is different.", `Not everyone likes ${thing}.`,
      ]),
    )],
  ])();
}

function pet(random: Random): Dialogue {
  const animal = random.pick(PETS);
  const name = random.pick(PET_NAMES);
  const first = exchange(
    random.pick([`I have ${withArticle(animal)}.`, `I got ${withArticle(animal)}.`]),
    random.pick([
      "That is nice. What is its name?", "How nice! What is its name?",
      `A ${animal} is a good pet. What is its name?`,
    ]),
  );
  const second = exchange(
    random.pick([`Its name is ${name}.`, `It is called ${name}.`, `${name}.`]),
    random.pick([
      `${name} is a good name.`, `I like the name ${name}.`, `That is a nice name for ${withArticle(animal)}.`,
    ]),
  );
  return random.chance(0.3) ? first : [...first, ...second];
}

function plan(random: Random): Dialogue {
  const activity = random.pick(ACTIVITIES);
  const time = random.pick(["today", "tomorrow", "tonight", "this weekend", "after work", "on Sunday"]);
  return exchange(
    random.pick([
      `I want to ${activity} ${time}.`, `I will ${activity} ${time}.`, `I am going to ${activity} ${time}.`,
    ]),
    random.pick([
      "That sounds like fun.", "That is a good plan.", "Have fun!", "I hope you enjoy it.", "Good idea!",
      "That sounds good.", "Great! Are you going alone?",
    ]),
  );
}

/** "How are you?" both ways round. */
function wellBeing(random: Random): Dialogue {
  const isWell = random.chance(0.65);
  const users = isWell
    ? ["I am fine.", "I am good, thanks.", "I am well.", "Very well, thank you.", "I feel great."]
    : ["Not so good.", "I am a bit tired.", "I feel a bit sad.", "I had a long day."];
  const answers = isWell
    ? ["I am glad to hear that.", "That is good.", "Great! What can I do for you?", "That is nice to hear."]
    : [
      "I am sorry to hear that.", "I hope it gets better.", "Do you want to talk about it?",
      "You should rest a little.",
    ];
  const first = exchange(
    random.pick(["Hello.", "Hi!", "Hello Grape.", "How are you?", "Hi, how are you?"]),
    random.pick(["Hello! How are you?", "Hi! How are you today?", "I am fine. How are you?"]),
  );
  return [...first, ...exchange(random.pick(users), random.pick(answers))];
}

/** The user takes note of an answer, and the assistant keeps the conversation going. */
function reaction(random: Random): Dialogue {
  const first = topic(random);
  return [
    ...first,
    ...exchange(
      random.pick(["OK.", "I see.", "Good idea.", "That is nice.", "Thank you.", "Interesting."]),
      random.pick([
        "Can I help you with anything else?", "I am happy to help.", "Do you want to talk more?",
        "What else is on your mind?",
      ]),
    ),
  ];
}

const SMALL_TALK: readonly Weighted<(random: Random) => Dialogue>[] = [
  [12, topic],
  [2, greeting],
  [1, goodbye],
  [1, thanks],
  [3, (random) => topicExchange(random, UNKNOWABLE)],
  [3, introduction],
  [3, liking],
  [2, pet],
  [2, plan],
  [2, wellBeing],
  [1, reaction],
];

/** One everyday conversation of one to two exchanges. */
export function smallTalkDialogue(random: Random): Dialogue {
  return random.pickWeighted(SMALL_TALK)(random);
}
