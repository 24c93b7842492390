/**
 * A mutation fuzzer for the safetensors reader: damaged copies of valid files and of the hostile corpus are opened and
 * every tensor is read. Each must be read or refused with a SafetensorsError; and a file that is accepted must mean
 * the same to us as to JSON.parse, since two readers that disagree about a file are a security fault by themselves.
 *
 * Mutants depend on the seed and their number alone, so `--seed S --first N --count 1` repeats one. All are checked in
 * memory; every accepted one, and one in 16 of the others, also goes through a file on disk.
 *
 *   npx tsx test/data/fuzz_safetensors.ts --count 1000000
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { openSafetensors, parseHeader, SafetensorsError } from "../../src/data/safetensors.ts";
import type { SafetensorsHeader } from "../../src/data/safetensors.ts";
import { seededRandom } from "../../src/random.ts";
import { entry, fileOf, HOSTILE_FILES, LEGAL_FILES } from "../support/hostile_safetensors.ts";
import { writeSafetensors } from "../support/safetensors_fixture.ts";

/** Left out of the seeds: they are large to test a limit, and their mutants would test the same limit again. */
const LARGE_KINDS = [17, 24, 36, 46];
/** Mutants run before memory is measured. */
const WARM_UP = 5000;
/** What the process may grow by, above the largest mutant. Bytes. */
const MEMORY_LIMIT = 64 * 2 ** 20;
const FLOATS = ["F32", "F16", "BF16"];
const INTEGERS = ["I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8"];

export interface FuzzReport {
  /** Mutants per result: "accepted" or an error code. */
  readonly results: ReadonlyMap<string, number>;
  /** What was thrown that is no SafetensorsError, and accepted files that were read wrongly; the first few. */
  readonly faults: readonly string[];
  readonly faultCount: number;
  /** Mutants that also went through a file. */
  readonly onDisk: number;
  readonly largestFile: number;
  /** Highest resident memory while fuzzing, above what the process had after warming up. Bytes. */
  readonly peakMemory: number;
  readonly seconds: number;
}

interface FuzzRange {
  readonly count: number;
  readonly first?: number;
  readonly seed?: number;
}

/** Runs mutants number `first` to `first + count - 1`. */
export function fuzzSafetensors({ count, first = 0, seed = 1 }: FuzzRange): FuzzReport {
  const directory = mkdtempSync(join(tmpdir(), "fuzz-"));
  const path = join(directory, "model.safetensors");
  const results = new Map<string, number>();
  const faults: string[] = [];
  let [faultCount, onDisk, largestFile] = [0, 0, 0];

  function run(number: number): string {
    const bytes = mutant(seeds, seed, number);
    largestFile = Math.max(largestFile, bytes.length);
    const inMemory = resultOf(() => checkAccepted(bytes, parseHeader(bytes, bytes.length)));
    if (inMemory !== "accepted" && number % 16 !== 0) return inMemory;
    onDisk++;
    writeFileSync(path, bytes);
    const fromDisk = resultOf(() => readTensors(path));
    if (inMemory !== fromDisk) throw new Error(`${inMemory} in memory, ${fromDisk} on disk`);
    return fromDisk;
  }

  function runAndCount(number: number): void {
    try {
      const result = run(number);
      results.set(result, (results.get(result) ?? 0) + 1);
    } catch (fault) {
      faultCount++;
      if (faults.length < 10) faults.push(`mutant ${number}: ${String(fault)}`);
    }
  }

  const seeds = seedFiles(path);
  try {
    // Compiled code and the collector's first generation are there from the first thousands of mutants on, and are no
    // property of the reader.
    for (let number = 0; number < Math.min(count, WARM_UP); number++) runAndCount(number);
    results.clear();
    faults.length = faultCount = onDisk = 0;
    const memoryBefore = process.memoryUsage().rss;
    const peakBefore = process.resourceUsage().maxRSS * 1024;
    const start = performance.now();
    for (let number = first; number < first + count; number++) runAndCount(number);
    const seconds = (performance.now() - start) / 1000;
    // The process may have been larger before than it is now; growth is seen only above the higher of the two.
    const peak = process.resourceUsage().maxRSS * 1024;
    const peakMemory = peak > peakBefore ? peak - memoryBefore : 0;
    return { results, faults, faultCount, onDisk, largestFile, peakMemory, seconds };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** "accepted", or the code of the SafetensorsError that `action` throws; whatever else it throws passes through. */
function resultOf(action: () => void): string {
  try {
    action();
    return "accepted";
  } catch (error) {
    if (error instanceof SafetensorsError && typeof error.code === "string") return error.code;
    throw error;
  }
}

/** What must hold for every accepted file, found out without our own scanner. */
function checkAccepted(bytes: Uint8Array, { entries, metadata, dataStart }: SafetensorsHeader): void {
  const text = Buffer.from(bytes.subarray(8, dataStart)).toString();
  const json = JSON.parse(text) as Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>;
  const named = new Map(Object.entries(json));
  const otherMetadata = named.get("__metadata__") ?? {};
  named.delete("__metadata__");
  let total = 0;
  for (const { name, dtype, shape, begin, end } of entries.values()) {
    const other = named.get(name);
    const ours = JSON.stringify([dtype, shape, [begin, end]]);
    if (JSON.stringify([other?.dtype, other?.shape, other?.data_offsets]) !== ours) {
      throw new Error(`JSON.parse reads ${name} differently`);
    }
    total += end - begin;
  }
  if (named.size !== entries.size || Object.keys(otherMetadata).length !== metadata.size) {
    throw new Error("JSON.parse sees other names");
  }
  if (dataStart + total !== bytes.length) throw new Error("the tensors do not fill the file");
}

/** Opens a file and reads every tensor of a type that is read. */
function readTensors(path: string): void {
  const file = openSafetensors(path);
  try {
    for (const { name, dtype, shape } of file.entries.values()) {
      if (!FLOATS.includes(dtype)) continue;
      const { length } = file.readF32(name);
      const expected = shape.reduce((product, size) => product * size, 1);
      if (length !== expected) throw new Error(`${name} has ${length} values, not ${expected}`);
    }
  } finally {
    file.close();
  }
}

// ---- mutants --------------------------------------------------------------------------------------------------------

/** A file in parts, the header as one character per byte. */
interface Parts {
  length: bigint;
  header: string;
  data: string;
}

/** A file of all kinds of floats, one of integers, and the corpus. The legal ones count as often as the hostile. */
function seedFiles(path: string): Parts[] {
  const data = Float32Array.from({ length: 24 }, (_, i) => Math.sin(i));
  const floats = (["F32", "BF16", "F16"] as const).map((dtype, i) => {
    return { name: `model.layers.${i}.weight`, shape: [2, 3, 4], dtype, data };
  });
  writeSafetensors(path, floats, { format: "pt", note: "fuzz" });
  let offset = 0;
  const integers = INTEGERS.map((dtype) => {
    const size = (2 * Number(dtype.slice(1))) / 8;
    offset += size;
    return `"ids.${dtype}":${entry("[2]", `[${offset - size},${offset}]`, dtype)}`;
  });
  const hostile = HOSTILE_FILES.filter(({ number }) => !LARGE_KINDS.includes(number)).map((file) => file.bytes());
  const own = [readFileSync(path), fileOf(`{${integers.join()}}`, offset)];
  const legal = [...own, ...LEGAL_FILES.map((file) => file.bytes())];
  return hostile.flatMap((bytes, i) => [bytes, legal[i % legal.length]!])
    .filter(({ length }) => length >= 8)
    .map((bytes) => {
      const text = Buffer.from(bytes).toString("latin1");
      const length = Buffer.from(bytes).readBigUInt64LE(0);
      const end = 8 + Number(length < text.length - 8 ? length : text.length - 8);
      return { length, header: text.slice(8, end), data: text.slice(end) };
    });
}

const TOKENS = [
  ..."{}[]:,\"\\\0 \n-+.eE0", "null", "true",
  "\\u0061", "\\ud800", '"a"', '"dtype":"F32"', '"__metadata__":{}', "[0,0]", "{}",
  "\xef\xbb\xbf", "\xff", "\xc3\xa9", "F4", "U64", "BF16", '"__proto__":',
];
const NUMBERS = [
  "0", "1", "-1", "1.0", "1e2", "00", "8", "2147483648", "4294967296", "9007199254740991", "9007199254740993",
  "18446744073709551615", "1e999", "",
];

type Choose = (below: number) => number;

/** Each takes a file and returns it changed in one place. */
const MUTATIONS: readonly ((file: Parts, choose: Choose, seeds: readonly Parts[]) => Parts)[] = [
  function flipHeaderBit({ header, ...rest }, choose) {
    const at = choose(header.length);
    const flipped = String.fromCharCode((header.charCodeAt(at) || 0) ^ (1 << choose(8)));
    return { ...rest, header: replaced(header, at, 1, flipped) };
  },
  function insertToken({ header, ...rest }, choose) {
    return { ...rest, header: replaced(header, choose(header.length + 1), 0, TOKENS[choose(TOKENS.length)]!) };
  },
  function overwriteWithToken({ header, ...rest }, choose) {
    return { ...rest, header: replaced(header, choose(header.length), 1 + choose(4), TOKENS[choose(TOKENS.length)]!) };
  },
  function insertBytes({ header, ...rest }, choose) {
    const bytes = String.fromCharCode(...Array.from({ length: 1 + choose(4) }, () => choose(256)));
    return { ...rest, header: replaced(header, choose(header.length + 1), 0, bytes) };
  },
  function deleteBytes({ header, ...rest }, choose) {
    return { ...rest, header: replaced(header, choose(header.length), 1 + choose(16), "") };
  },
  function tweakNumber({ header, ...rest }, choose) {
    const numbers = [...header.matchAll(/\d+/g)];
    if (numbers.length === 0) return { ...rest, header };
    const { 0: old, index } = numbers[choose(numbers.length)]!;
    const near = String(Number(old) + choose(9) - 4);
    return { ...rest, header: replaced(header, index, old.length, choose(2) === 0 ? near : pick(NUMBERS, choose)) };
  },
  function duplicateKey({ header, ...rest }, choose) {
    const entries = [...header.matchAll(/"[^"]*":(\{[^{}]*\}|\[[^[\]]*\]|"[^"]*")/g)];
    if (entries.length === 0) return { ...rest, header };
    const { 0: text, index } = entries[choose(entries.length)]!;
    return { ...rest, header: replaced(header, index, 0, `${text},`) };
  },
  function copySlice({ header, ...rest }, choose) {
    const from = choose(header.length);
    const slice = header.slice(from, from + 1 + choose(80));
    return { ...rest, header: replaced(header, choose(header.length + 1), 0, slice) };
  },
  function spliceWithAnother({ header, length }, choose, seeds) {
    const other = pick(seeds, choose);
    const tail = other.header.slice(choose(other.header.length + 1));
    return { length, header: header.slice(0, choose(header.length + 1)) + tail, data: other.data };
  },
  function editLength({ length, ...rest }, choose) {
    const edited = choose(2) === 0 ? length + BigInt(choose(33) - 16) : length ^ (1n << BigInt(choose(64)));
    return { ...rest, length: BigInt.asUintN(64, edited) };
  },
  function flipDataBit({ data, ...rest }, choose) {
    const at = choose(data.length);
    return { ...rest, data: replaced(data, at, 1, String.fromCharCode((data.charCodeAt(at) || 0) ^ (1 << choose(8)))) };
  },
  function resizeData({ data, ...rest }, choose) {
    const grown = data.padEnd(data.length + choose(9), "\0");
    return { ...rest, data: choose(2) === 0 ? grown : data.slice(0, choose(data.length + 1)) };
  },
];

/** `removed` characters of `text` from `at` on, replaced. */
function replaced(text: string, at: number, removed: number, inserted: string): string {
  return text.slice(0, at) + inserted + text.slice(at + removed);
}

function pick<T>(items: readonly T[], choose: Choose): T {
  return items[choose(items.length)]!;
}

function mutant(seeds: readonly Parts[], seed: number, number: number): Buffer {
  const random = seededRandom(Math.imul(seed, 0x9e3779b1) + number);
  const choose: Choose = (below) => Math.floor(random() * below);
  const original = pick(seeds, choose);
  let file = original;
  for (let edits = 1 + choose(1 + choose(4)); edits > 0; edits--) file = pick(MUTATIONS, choose)(file, choose, seeds);
  // Most mutants get a right length field, so that they reach the checks behind it.
  const isRepaired = file.length === original.length && choose(8) > 0;
  const bytes = Buffer.from(`........${file.header}${file.data}`, "latin1");
  bytes.writeBigUInt64LE(isRepaired ? BigInt(file.header.length) : file.length, 0);
  return bytes;
}

// ---- command line ---------------------------------------------------------------------------------------------------

if (process.argv[1] === import.meta.filename) {
  const option = (fallback: string) => ({ type: "string", default: fallback }) as const;
  const { values } = parseArgs({ options: { count: option("100000"), first: option("0"), seed: option("1") } });
  const count = Number(values.count);
  const report = fuzzSafetensors({ count, first: Number(values.first), seed: Number(values.seed) });
  const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  const isWithinMemory = report.peakMemory <= report.largestFile + MEMORY_LIMIT;
  console.log(`${count} mutants, ${report.onDisk} of them through a file, in ${report.seconds.toFixed(1)} s`);
  for (const [result, times] of [...report.results].sort((a, b) => b[1] - a[1])) {
    console.log(`  ${result.padEnd(30)}${String(times).padStart(9)}`);
  }
  console.log(`untyped errors and misread files: ${report.faultCount}`);
  for (const fault of report.faults) console.log(`  ${fault}`);
  console.log("crashes: 0 (a crash would have ended this process)");
  console.log(
    `peak memory: ${mebibytes(report.peakMemory)} above the warmed-up process; limit ${mebibytes(MEMORY_LIMIT)} + ` +
      `the largest file (${report.largestFile} bytes): ${isWithinMemory ? "held" : "BROKEN"}`,
  );
  process.exitCode = report.faultCount === 0 && isWithinMemory ? 0 : 1;
}
