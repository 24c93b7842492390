/**
 * Tables behind the generated dialogues about facts and words: plain data, a few hundred things that a child knows.
 * The vocabulary is kept small on purpose, and the same words come back in several tables.
 */

export const CAPITALS: readonly (readonly [country: string, capital: string])[] = [
  ["France", "Paris"], ["Germany", "Berlin"], ["Italy", "Rome"], ["Spain", "Madrid"], ["England", "London"],
  ["Japan", "Tokyo"], ["China", "Beijing"], ["Russia", "Moscow"], ["Egypt", "Cairo"], ["Greece", "Athens"],
  ["Canada", "Ottawa"], ["Austria", "Vienna"], ["Poland", "Warsaw"], ["Norway", "Oslo"], ["Sweden", "Stockholm"],
  ["Portugal", "Lisbon"], ["Ireland", "Dublin"], ["Peru", "Lima"], ["Cuba", "Havana"], ["Kenya", "Nairobi"],
  ["Finland", "Helsinki"], ["Denmark", "Copenhagen"], ["Hungary", "Budapest"], ["Belgium", "Brussels"],
];

/** Nouns that take "is"; the article or plural is part of the subject. */
export const COLORS_OF_THINGS: readonly (readonly [subject: string, color: string])[] = [
  ["the sky", "blue"], ["grass", "green"], ["snow", "white"], ["milk", "white"], ["coal", "black"],
  ["the sun", "yellow"], ["a banana", "yellow"], ["a lemon", "yellow"], ["a tomato", "red"], ["a strawberry", "red"],
  ["a fire truck", "red"], ["a carrot", "orange"], ["a pumpkin", "orange"], ["a frog", "green"], ["a leaf", "green"],
  ["the sea", "blue"], ["chocolate", "brown"], ["a crow", "black"], ["an elephant", "gray"], ["a pig", "pink"],
  ["a cloud", "white"], ["salt", "white"], ["blood", "red"], ["a cucumber", "green"], ["a mouse", "gray"],
  ["the night sky", "black"],
];

export const COLOR_NAMES = [
  "red", "blue", "green", "yellow", "black", "white", "brown", "orange", "pink", "gray", "purple",
];

export const LEGS: readonly (readonly [animal: string, legs: number])[] = [
  ["dog", 4], ["cat", 4], ["horse", 4], ["cow", 4], ["bird", 2], ["duck", 2], ["chicken", 2], ["spider", 8],
  ["ant", 6], ["bee", 6], ["fly", 6], ["snake", 0], ["fish", 0], ["sheep", 4], ["lion", 4], ["mouse", 4],
  ["frog", 4], ["person", 2],
];

export const SOUNDS: readonly (readonly [animal: string, sound: string])[] = [
  ["dog", "woof"], ["cat", "meow"], ["cow", "moo"], ["duck", "quack"], ["sheep", "baa"], ["pig", "oink"],
  ["lion", "roar"], ["bee", "buzz"], ["snake", "hiss"], ["mouse", "squeak"], ["horse", "neigh"], ["owl", "hoot"],
  ["chicken", "cluck"], ["bird", "tweet"], ["frog", "croak"],
];

export const BABIES: readonly (readonly [animal: string, baby: string])[] = [
  ["dog", "puppy"], ["cat", "kitten"], ["cow", "calf"], ["sheep", "lamb"], ["horse", "foal"], ["bear", "cub"],
  ["duck", "duckling"], ["chicken", "chick"], ["pig", "piglet"], ["lion", "cub"], ["goat", "kid"],
];

export const HOMES: readonly (readonly [animal: string, home: string])[] = [
  ["bird", "in a nest"], ["bee", "in a hive"], ["fish", "in the water"], ["spider", "in a web"],
  ["lion", "in the wild"], ["cow", "on a farm"], ["pig", "on a farm"], ["shark", "in the sea"],
  ["whale", "in the sea"], ["fox", "in the forest"], ["camel", "in the desert"], ["penguin", "on the ice"],
  ["monkey", "in the trees"], ["frog", "near a pond"],
];

/** Antonyms, used in both directions. */
export const OPPOSITES: readonly (readonly [string, string])[] = [
  ["hot", "cold"], ["big", "small"], ["up", "down"], ["day", "night"], ["fast", "slow"], ["happy", "sad"],
  ["old", "young"], ["open", "closed"], ["left", "right"], ["hard", "soft"], ["wet", "dry"], ["full", "empty"],
  ["high", "low"], ["light", "dark"], ["long", "short"], ["good", "bad"], ["early", "late"], ["loud", "quiet"],
  ["rich", "poor"], ["strong", "weak"], ["clean", "dirty"], ["easy", "difficult"], ["first", "last"], ["in", "out"],
  ["on", "off"], ["black", "white"], ["true", "false"], ["start", "stop"], ["win", "lose"], ["near", "far"],
  ["thick", "thin"], ["yes", "no"], ["hello", "goodbye"], ["push", "pull"], ["wide", "narrow"], ["heavy", "light"],
  ["awake", "asleep"], ["buy", "sell"], ["give", "take"], ["more", "less"],
];

export const DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

export const MONTHS = [
  "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
  "December",
];

export const CATEGORIES: readonly (readonly [singular: string, plural: string, members: readonly string[]])[] = [
  ["animal", "animals", ["dog", "cat", "horse", "cow", "lion", "bear", "mouse", "sheep", "pig", "rabbit", "fox"]],
  ["color", "colors", COLOR_NAMES],
  ["fruit", "fruits", ["apple", "banana", "orange", "pear", "lemon", "peach", "plum", "cherry", "grape", "melon"]],
  ["vegetable", "vegetables", ["carrot", "potato", "onion", "cabbage", "pea", "bean", "pumpkin", "cucumber"]],
  ["drink", "drinks", ["water", "milk", "tea", "coffee", "juice", "lemonade"]],
  ["sport", "sports", ["football", "tennis", "baseball", "basketball", "swimming", "running", "hockey", "golf"]],
  ["day", "days", DAYS],
  ["month", "months", MONTHS],
  ["country", "countries", ["France", "Italy", "Japan", "Spain", "China", "Canada", "Egypt", "Greece", "Peru"]],
  ["bird", "birds", ["duck", "crow", "owl", "eagle", "chicken", "goose", "swan", "parrot"]],
  ["tool", "tools", ["hammer", "saw", "drill", "shovel", "rake", "wrench"]],
  ["body part", "body parts", ["arm", "leg", "hand", "foot", "head", "nose", "ear", "eye", "knee"]],
  ["season", "seasons", ["spring", "summer", "fall", "winter"]],
  ["shape", "shapes", ["circle", "square", "triangle", "star", "oval"]],
  ["piece of clothing", "pieces of clothing", ["shirt", "coat", "hat", "dress", "sock", "shoe", "scarf", "jacket"]],
  ["instrument", "instruments", ["piano", "guitar", "drum", "violin", "flute", "trumpet"]],
];

/** Those of the categories above whose members are countable nouns. */
export const COUNTABLE_CATEGORIES = [
  "animal", "fruit", "vegetable", "bird", "tool", "shape", "instrument", "body part",
];

export const YES_NO_FACTS: readonly (readonly [question: string, yes: boolean, sentence: string])[] = [
  ["Can a bird fly?", true, "a bird can fly"], ["Can a fish swim?", true, "a fish can swim"],
  ["Can a dog fly?", false, "a dog cannot fly"], ["Can a cow read?", false, "a cow cannot read"],
  ["Can a horse run fast?", true, "a horse can run fast"], ["Can a stone talk?", false, "a stone cannot talk"],
  ["Is fire hot?", true, "fire is hot"], ["Is fire cold?", false, "fire is hot"],
  ["Is ice cold?", true, "ice is cold"], ["Is ice hot?", false, "ice is cold"],
  ["Is water wet?", true, "water is wet"], ["Is sugar sweet?", true, "sugar is sweet"],
  ["Is a lemon sweet?", false, "a lemon is sour"], ["Is an elephant small?", false, "an elephant is big"],
  ["Is a mouse small?", true, "a mouse is small"], ["Is the sun a star?", true, "the sun is a star"],
  ["Is the moon made of cheese?", false, "the moon is made of rock"],
  ["Is the earth round?", true, "the earth is round"], ["Is the earth flat?", false, "the earth is round"],
  ["Is a whale a fish?", false, "a whale is a mammal"], ["Do cats like milk?", true, "many cats like milk"],
  ["Do fish live in water?", true, "fish live in water"], ["Do trees have leaves?", true, "most trees have leaves"],
  ["Do cars have wings?", false, "cars have wheels"], ["Do dogs bark?", true, "dogs bark"],
  ["Do cats bark?", false, "cats meow"], ["Do bees make honey?", true, "bees make honey"],
  ["Does the sun shine at night?", false, "the sun shines in the day"],
  ["Does rain make things wet?", true, "rain makes things wet"],
  ["Is Monday a day?", true, "Monday is a day of the week"], ["Is July a month?", true, "July is a month"],
  ["Is winter warm?", false, "winter is cold"], ["Is summer warm?", true, "summer is warm"],
];

/** One question (with a paraphrase), its one-word or number answer and its sentence. */
export const GENERAL_FACTS: readonly (readonly [questions: readonly string[], short: string, sentence: string])[] = [
  [["How many days are in a week?", "How many days does a week have?"], "7", "There are 7 days in a week."],
  [["How many months are in a year?", "How many months does a year have?"], "12", "There are 12 months in a year."],
  [["How many hours are in a day?", "How many hours does a day have?"], "24", "There are 24 hours in a day."],
  [["How many minutes are in an hour?"], "60", "There are 60 minutes in an hour."],
  [["How many seconds are in a minute?"], "60", "There are 60 seconds in a minute."],
  [["How many fingers are on one hand?", "How many fingers does a hand have?"], "5", "A hand has 5 fingers."],
  [["How many sides does a triangle have?"], "3", "A triangle has 3 sides."],
  [["How many sides does a square have?"], "4", "A square has 4 sides."],
  [["How many wheels does a car have?"], "4", "A car has 4 wheels."],
  [["How many wheels does a bike have?"], "2", "A bike has 2 wheels."],
  [["How many eyes does a person have?"], "2", "A person has 2 eyes."],
  [["How many seasons are there?", "How many seasons are in a year?"], "4", "There are 4 seasons."],
  [["How many letters are in the alphabet?"], "26", "There are 26 letters in the alphabet."],
  [["How many weeks are in a year?"], "52", "There are 52 weeks in a year."],
  [["How many eggs are in a dozen?"], "12", "There are 12 eggs in a dozen."],
  [["How many planets are there?"], "8", "There are 8 planets."],
  [["What do bees make?"], "Honey.", "Bees make honey."],
  [["What do cows give us?", "What do we get from cows?"], "Milk.", "Cows give us milk."],
  [["What do hens lay?"], "Eggs.", "Hens lay eggs."],
  [["What is frozen water called?", "What is frozen water?"], "Ice.", "Frozen water is called ice."],
  [["What falls from the clouds?"], "Rain.", "Rain falls from the clouds."],
  [["What is the largest animal?", "Which animal is the biggest?"], "Whale.", "The blue whale is the largest animal."],
  [["Which animal is the fastest on land?"], "Cheetah.", "The cheetah is the fastest animal on land."],
  [["Which animal has a long neck?"], "Giraffe.", "The giraffe has a long neck."],
  [["Which animal has a trunk?"], "Elephant.", "The elephant has a trunk."],
  [["Which planet do we live on?", "What planet do we live on?"], "Earth.", "We live on the planet Earth."],
  [["What is the tallest mountain?"], "Everest.", "The tallest mountain is Mount Everest."],
  [["What do we see with?", "What do you see with?"], "Eyes.", "We see with our eyes."],
  [["What do we hear with?", "What do you hear with?"], "Ears.", "We hear with our ears."],
  [["What do we smell with?"], "Nose.", "We smell with our nose."],
  [["What is the season after winter?", "Which season comes after winter?"], "Spring.", "Spring comes after winter."],
  [["What is the season after summer?", "Which season comes after summer?"], "Fall.", "Fall comes after summer."],
  [["What is the first month of the year?"], "January.", "January is the first month of the year."],
  [["What is the last month of the year?"], "December.", "December is the last month of the year."],
  [["What is the first letter of the alphabet?"], "A.", "The first letter of the alphabet is A."],
  [["What is the last letter of the alphabet?"], "Z.", "The last letter of the alphabet is Z."],
  [["Where does the sun rise?"], "East.", "The sun rises in the east."],
  [["Where does the sun set?"], "West.", "The sun sets in the west."],
  [["What do plants need to grow?"], "Water.", "Plants need water and light to grow."],
  [["What do you wear on your feet?"], "Shoes.", "You wear shoes on your feet."],
  [["What do you wear on your head?"], "Hat.", "You wear a hat on your head."],
  [["What do you read?"], "Books.", "You can read books."],
  [["Who teaches at a school?"], "Teacher.", "A teacher teaches at a school."],
  [["Who helps sick people?"], "Doctor.", "A doctor helps sick people."],
  [["Who puts out fires?"], "Firefighter.", "A firefighter puts out fires."],
  [["Who flies a plane?"], "Pilot.", "A pilot flies a plane."],
  [["Who bakes bread?"], "Baker.", "A baker bakes bread."],
  [["What color do you get from red and yellow?"], "Orange.", "Red and yellow make orange."],
  [["What color do you get from blue and yellow?"], "Green.", "Blue and yellow make green."],
  [["What color do you get from red and white?"], "Pink.", "Red and white make pink."],
  [["What language do people speak in France?"], "French.", "People in France speak French."],
  [["What language do people speak in Spain?"], "Spanish.", "People in Spain speak Spanish."],
  [["What do you use to cut paper?"], "Scissors.", "You use scissors to cut paper."],
  [["What do you use to write?"], "Pen.", "You use a pen to write."],
  [["What tells us the time?"], "Clock.", "A clock tells us the time."],
  [["Where do you sleep?", "Where do people sleep?"], "Bed.", "People sleep in a bed."],
  [["Where can you buy food?"], "Store.", "You can buy food in a store."],
  [["Where do children learn?"], "School.", "Children learn at school."],
  [["What shines at night?"], "Moon.", "The moon shines at night."],
];
