/**
 * Token sequences as one row in which every distinct prefix appears once: a prefix tree in depth-first order.
 *
 *   [5, 6, 7]  [5, 6, 8, 9]  [5, 6]   ->   ids 5 6 7 8 9     positions 0 1 2 2 3     ends 5 5 3 5 5
 *
 * A causal model gives a token the same hidden state wherever the tokens before it are the same, so one forward and
 * backward pass over the row serves all sequences: attention (attention.ts) hides a token from those behind its end.
 */

export interface PrefixTree {
  /** All tokens: a token comes before its descendants, and they before its next sibling. */
  readonly ids: readonly number[];
  /** How many tokens come before each one in its sequences. */
  readonly positions: readonly number[];
  /** One past each token's last descendant: attention's `keyEnd`. */
  readonly ends: readonly number[];
  /** For each sequence, where its tokens are among `ids`. */
  readonly places: readonly (readonly number[])[];
}

/** The tree of these sequences, whose order does not matter to it. */
export function prefixTree(sequences: readonly (readonly number[])[]): PrefixTree {
  const [ids, positions, ends]: [number[], number[], number[]] = [[], [], []];
  const places: number[][] = [];
  let previous: readonly number[] = [];
  let path: number[] = []; // where the tokens of the previous sequence are
  for (const i of sortedOrder(sequences)) {
    const sequence = sequences[i]!;
    const shared = commonPrefix(previous, sequence);
    for (const place of path.slice(shared)) ends[place] = ids.length;
    path = path.slice(0, shared);
    for (const id of sequence.slice(shared)) {
      positions.push(path.length);
      path.push(ids.length);
      ids.push(id);
    }
    places[i] = path;
    previous = sequence;
  }
  for (const place of path) ends[place] = ids.length;
  return { ids, positions, ends, places };
}

/**
 * Splits sequences, by number, into parts whose trees have at most `maxTokens` tokens. A sequence that alone has more
 * is a part of its own.
 */
export function treeParts(sequences: readonly (readonly number[])[], maxTokens: number): number[][] {
  const parts: number[][] = [];
  let tokens = Infinity;
  let previous: readonly number[] = [];
  for (const i of sortedOrder(sequences)) {
    const sequence = sequences[i]!;
    tokens += sequence.length - commonPrefix(previous, sequence);
    if (tokens > maxTokens) {
      parts.push([]);
      tokens = sequence.length;
    }
    parts.at(-1)!.push(i);
    previous = sequence;
  }
  return parts;
}

/** Numbers of the sequences in lexicographic order: those with a common prefix are neighbours. */
function sortedOrder(sequences: readonly (readonly number[])[]): number[] {
  return sequences
    .map((_, i) => i)
    .sort((i, j) => {
      const [a, b] = [sequences[i]!, sequences[j]!];
      const shared = commonPrefix(a, b);
      return (a[shared] ?? -1) - (b[shared] ?? -1); // the end of a sequence comes before any token
    });
}

/** How many tokens two sequences have in common at their beginnings. */
function commonPrefix(a: readonly number[], b: readonly number[]): number {
  const difference = a.findIndex((id, t) => id !== b[t]);
  return difference < 0 ? a.length : difference;
}
