/** Runs a command-line entry that reads stdin, in a process of its own. */
import { spawn, type ChildProcessWithoutNullStreams } from "node:child_process";
import { fileURLToPath } from "node:url";

export interface InteractiveResult {
  /** Exit code, or null after a signal. */
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const root = fileURLToPath(new URL("../../", import.meta.url));

/**
 * `npx tsx src/NAME.ts ARGS` with `input` on stdin. Stdin ends after it, unless `onStdout` is given: that is called
 * whenever stdout grows, with all of it so far, and may write, signal and end stdin itself.
 */
export function runInteractive(
  name: string,
  args: readonly string[],
  input: string,
  onStdout?: (text: string, child: ChildProcessWithoutNullStreams) => void,
): Promise<InteractiveResult> {
  const child = spawn(process.execPath, ["--import", "tsx", `src/${name}.ts`, ...args], { cwd: root });
  let [stdout, stderr] = ["", ""];
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    onStdout?.(stdout, child);
  });
  child.stdin.on("error", () => undefined); // the entry may leave before it has read everything
  child.stdin.write(input);
  if (!onStdout) child.stdin.end();
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}
