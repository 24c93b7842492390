/** Runs a command-line entry as a user does: in a process of its own. */
import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";

export interface EntryResult {
  /** Exit code, or null after a signal. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Lines of stderr that report an error. */
  readonly errors: readonly string[];
}

export interface EntryOptions {
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** Called whenever stderr grows, with all of it so far. */
  readonly onStderr?: (text: string, child: ChildProcess) => void;
  /** The same for stdout. */
  readonly onStdout?: (text: string, child: ChildProcess) => void;
}

const root = fileURLToPath(new URL("../../", import.meta.url));

/** `npx tsx src/NAME.ts ARGS` without the start-up time of npx. */
export function runEntry(
  name: string,
  args: readonly string[],
  { env = {}, onStderr, onStdout }: EntryOptions = {},
): Promise<EntryResult> {
  const child = spawn(process.execPath, ["--import", "tsx", `src/${name}.ts`, ...args], {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    onStdout?.(stdout, child);
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
    onStderr?.(stderr, child);
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => {
      resolve({ code, stdout, stderr, errors: stderr.split("\n").filter((line) => line.startsWith("error:")) });
    });
  });
}
