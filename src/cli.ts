/** What the command-line entries share: checked numbers, one-line errors, exit codes, a clean end of the process. */
import { existsSync, readdirSync } from "node:fs";
import { inspect } from "node:util";
import { Command, CommanderError, InvalidArgumentError } from "commander";
import { closest, distance } from "fastest-levenshtein";
import { checkHealth, GpuError } from "./tensor/device.ts";
import { visible, visibleLine } from "./visible.ts";

/** Bad usage that commander cannot see by itself. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** A loss or gradient that is not finite. */
export class NumericsError extends Error {
  override name = "NumericsError";
}

/** Raised where a model or data is read; matched by name, so that this file need not import those that raise them. */
const DATA_ERRORS = [
  "CheckpointError", "SafetensorsError", "TokenizerError", "TemplateError", "CorpusError", "HubError",
  "EnvironmentError",
];

/** What helps against errors of the file system, by their codes. */
const FILE_FIXES: Readonly<Record<string, string>> = {
  ENOSPC: "make room on the disk",
  EDQUOT: "make room on the disk",
  EROFS: "choose a folder that can be written",
  EACCES: "give yourself the right to that path, or choose another",
  EPERM: "give yourself the right to that path, or choose another",
  ENOENT: "check the path",
  EISDIR: "give a file, not a folder",
};

/** Exit codes: 0 ok, 1 bug, 2 usage, 3 model or data refused, 4 GPU, 5 numerics. */
function exitCode(error: unknown): number {
  if (error instanceof GpuError) return 4;
  if (error instanceof NumericsError) return 5;
  if (!(error instanceof Error)) return 1;
  if (error instanceof UsageError || error.name === "LengthError") return 2;
  if (DATA_ERRORS.includes(error.name)) return 3;
  const { code } = error as NodeJS.ErrnoException;
  if (typeof code === "string" && /^E[A-Z]+$/.test(code)) return 3; // file system: missing, unwritable, full
  return 1;
}

/** A command that reports unknown flags and bad values with exit code 2. */
export function command(name: string, description: string): Command {
  return new Command(name).description(description).exitOverride().showHelpAfterError("(--help lists all flags)");
}

/** Parses a flag's value as an integer within bounds. */
export function integer(low: number, high = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isSafeInteger(value) || value < low || value > high) {
      const bound = high === Number.MAX_SAFE_INTEGER ? "up" : `to ${high}`;
      throw new InvalidArgumentError(`must be an integer from ${low} ${bound}.`);
    }
    return value;
  };
}

/** Parses a flag's value as a number within bounds. */
export function number(low: number, high = Infinity): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < low || value > high) {
      throw new InvalidArgumentError(`must be a number from ${low} ${high === Infinity ? "up" : `to ${high}`}.`);
    }
    return value;
  };
}

/** The name that was probably meant: at most a third of its letters differ. Null when none is near. */
export function nearestName(name: string, names: readonly string[]): string | null {
  const nearest = closest(name, names);
  return distance(name, nearest) <= Math.ceil(nearest.length / 3) ? nearest : null;
}

/** @throws UsageError when `directory` exists and holds something: results are never overwritten. */
export function requireNewDirectory(directory: string, flag: string): void {
  if (existsSync(directory) && readdirSync(directory).length > 0) {
    throw new UsageError(`${directory} is not empty. Fix: choose another ${flag}, or remove it first`);
  }
}

/**
 * Runs an entry: a known failure becomes one line on stderr and an exit code. Where nobody reads the output any more, as
 * in `train | head`, the entry goes on in silence: its files are what it is run for.
 */
export async function runMain(main: () => Promise<void>): Promise<void> {
  const streams = [process.stdout, process.stderr];
  for (const stream of streams) {
    stream.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
    });
  }
  try {
    await main();
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? 0 : 2; // commander has printed its message
    } else {
      const cause = rootCause(error);
      process.exitCode = exitCode(cause);
      if (process.exitCode === 1) console.error(visible(inspect(cause)));
      else console.error(`error: ${oneLine(messageOf(cause as Error), process.exitCode)}`);
    }
  }
  // Dawn's event loop may keep the process alive. What a pipe has not taken yet would be lost.
  await Promise.all(streams.map((stream) => new Promise<void>((done) => stream.write("", () => done()))));
  process.exit();
}

function messageOf(error: NodeJS.ErrnoException): string {
  const fix = FILE_FIXES[error.code ?? ""];
  return fix === undefined || error.message.includes("Fix: ") ? error.message : `${error.message}. Fix: ${fix}`;
}

/**
 * Messages may quote a file from strangers, line breaks and commands to the terminal included. Those of the GPU show a
 * shader's source and keep their line breaks.
 */
function oneLine(message: string, code: number): string {
  return code === 4 ? visible(message) : visibleLine(message.replace(/\s*[\r\n]+\s*/g, " "));
}

/** A GPU failure explains whatever went wrong after it. */
function rootCause(error: unknown): unknown {
  try {
    checkHealth();
    return error;
  } catch (failure) {
    return failure;
  }
}
