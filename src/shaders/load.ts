/**
 * Reads a WGSL file and makes it a complete module: named constants replaced, shared snippets appended.
 *
 * Departs from the textbook: specialisation goes through plain module constants (`const HEAD_SIZE: u32 = 32u;`, whose
 * value is replaced here) instead of WGSL `override`s, because an `override` cannot size a private array. So a file and
 * what it includes are plain WGSL, with no template syntax.
 */
import { readFileSync } from "node:fs";

const sources = new Map<string, string>();

function readShader(name: string): string {
  let source = sources.get(name);
  if (source === undefined) {
    source = readFileSync(new URL(`./${name}.wgsl`, import.meta.url), "utf8");
    sources.set(name, source);
  }
  return source;
}

const SNIPPET = "// snippet: ";

/**
 * The text of `src/shaders/<name>.wgsl` with each constant of `constants` set to its value.
 * A line `// include: snippet` appends `snippet.wgsl`, or what `substitutes` has in its place; `enable` directives move
 * to the very front, as WGSL demands.
 * Line numbers stay those of the file; `locate` finds the file of a line in a snippet.
 * @throws Error when a constant is not declared in the file.
 */
export function loadShader(
  name: string,
  constants: Readonly<Record<string, number>> = {},
  substitutes: Readonly<Record<string, string>> = {},
): string {
  let text = readShader(name);
  for (const include of text.matchAll(/^\/\/ include: (\w+)$/gm)) {
    const snippet = substitutes[include[1]!] ?? include[1]!;
    text += `\n${SNIPPET}${snippet}\n${readShader(snippet)}`;
  }
  for (const [constant, value] of Object.entries(constants)) {
    const declaration = new RegExp(`(const ${constant}\\s*:\\s*(u32|i32|f32)\\s*=)[^;]*;`);
    if (!declaration.test(text)) throw new Error(`${name}.wgsl declares no constant ${constant}`);
    text = text.replace(declaration, (_, head: string, type: string) => {
      const suffix = type === "u32" ? "u" : type === "i32" ? "i" : "f";
      return `${head} ${value}${suffix};`;
    });
  }
  const enables = new Set([...text.matchAll(/^enable \w+;$/gm)].map((match) => match[0]));
  return [...enables, text.replace(/^enable \w+;$/gm, "")].join(" ");
}

/** The file and line that a line (from 1) of a module made by `loadShader(name)` comes from. */
export function locate(name: string, text: string, line: number): { file: string; line: number } {
  const before = text.split("\n").slice(0, line);
  const start = before.findLastIndex((source) => source.startsWith(SNIPPET));
  if (start < 0) return { file: `${name}.wgsl`, line };
  return { file: `${before[start]!.slice(SNIPPET.length)}.wgsl`, line: line - start - 1 };
}

/** A storage buffer: binding number, access, and what its elements, or the components of its vectors, are. */
export interface ShaderBuffer {
  readonly binding: number;
  readonly access: "read" | "read_write";
  readonly type: "f32" | "u32";
}

/** What a kernel may bind, read from the WGSL declarations so that layout and shader cannot disagree. */
export interface ShaderInterface {
  /** Storage buffers by name. */
  readonly buffers: ReadonlyMap<string, ShaderBuffer>;
  /** Fields of `struct Params` in order; each takes four bytes. */
  readonly params: readonly { name: string; type: "u32" | "i32" | "f32" }[];
}

/** Reads the storage bindings and the `Params` struct out of WGSL text. */
export function reflectShader(text: string): ShaderInterface {
  const buffers = new Map<string, ShaderBuffer>();
  const binding =
    /@group\(0\)\s*@binding\((\d+)\)\s*var<storage,\s*(read|read_write)>\s*(\w+)\s*:\s*array<(\w+)>/g;
  for (const [, index, access, name, element] of text.matchAll(binding)) {
    const type = scalarOf(element!, text);
    buffers.set(name!, { binding: Number(index), access: access as ShaderBuffer["access"], type });
  }
  const body = /struct Params \{([^}]*)\}/.exec(text)?.[1] ?? "";
  const params = [...body.replace(/\/\/.*$/gm, "").matchAll(/(\w+)\s*:\s*(u32|i32|f32)/g)].map((match) => ({
    name: match[1]!,
    type: match[2] as "u32" | "i32" | "f32",
  }));
  return { buffers, params };
}

/** vec4f -> f32, also by way of an alias in the text. @throws Error for elements that no tensor has. */
function scalarOf(element: string, text: string): ShaderBuffer["type"] {
  const named = new RegExp(`^alias ${element} = (\\w+);`, "m").exec(text)?.[1] ?? element;
  if (/^(f32|vec\df)$/.test(named)) return "f32";
  if (/^(u32|vec\du)$/.test(named)) return "u32";
  throw new Error(`a storage buffer has elements of type ${element}. Fix: f32, u32 or vectors of them`);
}
