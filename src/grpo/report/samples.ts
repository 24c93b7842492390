/** Which of many replies a page shows: few, different, from the best to the worst. */
import type { Answer, FirstAndLast, StepAnswers } from "./data.ts";

/** Replies of one step to one prompt. */
export interface Sample {
  readonly step: number;
  readonly prompt: string;
  readonly total: number;
  readonly different: number;
  /** By falling reward; equal replies once, with their number. */
  readonly shown: readonly { readonly answer: Answer; readonly times: number }[];
}

/** A prompt before and after training, or two prompts where no prompt was asked in both steps. */
export interface SamplePair {
  readonly before: Sample;
  /** Null: the run has one step, or fewer prompts in its last. */
  readonly after: Sample | null;
}

/** Replies per prompt and step, and prompts. */
const MAX_ANSWERS = 5;
const MAX_PROMPTS = 3;

export function samplePairs({ first, last }: Readonly<FirstAndLast>): SamplePair[] {
  if (first === null || last === null) return [];
  const before = byPrompt(first);
  if (first === last) return spread([...before.keys()], MAX_PROMPTS).map((prompt) => ({
    before: sample(first.step, prompt, before.get(prompt)!),
    after: null,
  }));
  const after = byPrompt(last);
  const shared = [...before.keys()].filter((prompt) => after.has(prompt));
  const left = spread(shared.length > 0 ? shared : [...before.keys()], MAX_PROMPTS);
  const right = shared.length > 0 ? left : spread([...after.keys()], MAX_PROMPTS);
  return left.map((prompt, i) => ({
    before: sample(first.step, prompt, before.get(prompt)!),
    after: right[i] === undefined ? null : sample(last.step, right[i], after.get(right[i])!),
  }));
}

/** One reply to a held-out prompt before, one after. */
export interface HeldOutPair {
  readonly before: Answer;
  readonly after: Answer;
}

/** Held-out prompts of both evaluations: some of those learned, lost, still wrong and still right. */
export function heldOutPairs({ first, last }: Readonly<FirstAndLast>, limit = 8): HeldOutPair[] {
  if (first === null || last === null || first === last) return [];
  const after = byPrompt(last);
  const pairs = [...byPrompt(first)].flatMap(([prompt, answers]) => {
    const later = after.get(prompt);
    return later === undefined ? [] : [{ before: answers[0]!, after: later[0]! }];
  });
  const kinds = [[false, true], [true, false], [false, false], [true, true]].map(([was, is]) =>
    pairs.filter((pair) => (pair.before.correct ?? false) === was && (pair.after.correct ?? false) === is),
  );
  const inTurn = Array.from({ length: limit }, (_, i) => kinds.flatMap((kind) => kind.slice(i, i + 1))).flat();
  const chosen = new Set(inTurn.slice(0, limit));
  return kinds.flat().filter((pair) => chosen.has(pair));
}

function byPrompt({ answers }: StepAnswers): Map<string, Answer[]> {
  const prompts = new Map<string, Answer[]>();
  for (const answer of answers) {
    const same = prompts.get(answer.prompt);
    if (same) same.push(answer);
    else prompts.set(answer.prompt, [answer]);
  }
  return prompts;
}

function sample(step: number, prompt: string, answers: readonly Answer[]): Sample {
  const groups = new Map<string, { answer: Answer; times: number }>();
  for (const answer of answers) {
    const key = JSON.stringify([answer.reward, answer.ended, answer.text]);
    groups.set(key, { answer, times: (groups.get(key)?.times ?? 0) + 1 });
  }
  const worth = ({ answer: { reward } }: { answer: Answer }): number => reward ?? -Infinity;
  const sorted = [...groups.values()].sort((a, b) => (worth(a) === worth(b) ? 0 : worth(b) - worth(a)));
  return { step, prompt, total: answers.length, different: sorted.length, shown: spread(sorted, MAX_ANSWERS) };
}

/** At most `limit` items at even distances, the first and the last among them. */
function spread<T>(items: readonly T[], limit: number): T[] {
  if (items.length <= limit) return [...items];
  return Array.from({ length: limit }, (_, i) => items[Math.round((i * (items.length - 1)) / (limit - 1))]!);
}
