// A strict scanner for the JSON subset of safetensors headers: objects, arrays, strings, unsigned integers. In an index
// of shards, whose metadata may hold any value and is not used, the other scalars of JSON are taken too.
//
// Departure from JSON.parse, which is too forgiving for a file format: it keeps the last of two duplicate keys (two
// readers then see two different files), rounds integers above 2^53, accepts `1e2` and `-0` where a size belongs,
// and follows any nesting depth. All of these are refused here, numbers only where they are used. Objects come back as
// Maps, so a key "__proto__" is a key like any other.

export type StrictJson = string | number | boolean | null | StrictJson[] | Map<string, StrictJson>;

export interface StrictJsonOptions {
  /** Objects and arrays that may be nested in each other. */
  readonly maxDepth: number;
  /** Takes true, false, null and any number, rounded as JSON.parse rounds it. */
  readonly anyScalar?: boolean;
}

const WHITESPACE = new Set([0x20, 0x09, 0x0a, 0x0d]);
const ESCAPES = new Map([
  ['"', '"'], ["\\", "\\"], ["/", "/"], ["b", "\b"], ["f", "\f"], ["n", "\n"], ["r", "\r"], ["t", "\t"],
]);

/** Parses `text` whole. Throws SyntaxError with the offset of the first character that breaks a rule. */
export function parseStrictJson(text: string, { maxDepth, anyScalar = false }: StrictJsonOptions): StrictJson {
  let position = 0;

  function fail(problem: string): never {
    throw new SyntaxError(`${problem} at character ${position}`);
  }

  function skipWhitespace(): void {
    while (WHITESPACE.has(text.charCodeAt(position))) position++;
  }

  function expect(character: string): void {
    if (text[position] !== character) fail(`expected '${character}'`);
    position++;
  }

  function parseValue(depth: number): StrictJson {
    const first = text[position];
    if ((first === "{" || first === "[") && depth > maxDepth) fail(`nesting deeper than ${maxDepth}`);
    if (first === "{") return parseObject(depth);
    if (first === "[") return parseArray(depth);
    if (first === '"') return parseString();
    return anyScalar ? parseScalar() : parseUnsignedInteger();
  }

  function parseObject(depth: number): Map<string, StrictJson> {
    const object = new Map<string, StrictJson>();
    parseList("{", "}", () => {
      const key = parseString();
      if (object.has(key)) fail(`duplicate key ${JSON.stringify(key.slice(0, 80))}`);
      skipWhitespace();
      expect(":");
      skipWhitespace();
      object.set(key, parseValue(depth + 1));
    });
    return object;
  }

  function parseArray(depth: number): StrictJson[] {
    const array: StrictJson[] = [];
    parseList("[", "]", () => array.push(parseValue(depth + 1)));
    return array;
  }

  function parseList(open: string, close: string, parseItem: () => void): void {
    expect(open);
    skipWhitespace();
    if (text[position] !== close) {
      for (;;) {
        parseItem();
        skipWhitespace();
        if (text[position] !== ",") break;
        position++;
        skipWhitespace();
      }
    }
    expect(close);
  }

  function parseString(): string {
    expect('"');
    let value = "";
    let runStart = position; // a run of characters that stand for themselves is copied in one slice
    for (;;) {
      const code = text.charCodeAt(position);
      if (Number.isNaN(code)) fail("unterminated string");
      if (code < 0x20) fail("control character in a string");
      if (code === 0x22 || code === 0x5c) {
        value += text.slice(runStart, position);
        position++;
        if (code === 0x22) break;
        value += parseEscape();
        runStart = position;
      } else {
        position++;
      }
    }
    if (/\p{Surrogate}/u.test(value)) fail("lone surrogate in a string");
    return value;
  }

  function parseEscape(): string {
    const kind = text[position] ?? "";
    const simple = ESCAPES.get(kind);
    if (simple !== undefined) {
      position++;
      return simple;
    }
    const hex = text.slice(position + 1, position + 5);
    if (kind !== "u" || !/^[0-9a-fA-F]{4}$/.test(hex)) fail("bad escape");
    position += 5;
    return String.fromCharCode(parseInt(hex, 16));
  }

  /** The characters from here on that `pattern` allows. */
  function takeWhile(pattern: RegExp): string {
    const start = position;
    while (text[position] !== undefined && pattern.test(text[position]!)) position++;
    return text.slice(start, position);
  }

  function parseScalar(): number | boolean | null {
    const literal = takeWhile(/[-+.0-9a-zA-Z]/);
    if (!/^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)$/.test(literal)) fail("expected a value");
    return JSON.parse(literal) as number | boolean | null;
  }

  function parseUnsignedInteger(): number {
    const literal = takeWhile(/[-+.0-9eE]/);
    if (!/^(0|[1-9][0-9]*)$/.test(literal)) fail("expected an object, array, string or plain unsigned integer");
    const value = Number(literal);
    if (!Number.isSafeInteger(value)) fail(`integer ${literal.slice(0, 40)} is above 2^53 - 1`);
    return value;
  }

  skipWhitespace();
  const value = parseValue(1);
  skipWhitespace();
  if (position !== text.length) fail("trailing characters");
  return value;
}
