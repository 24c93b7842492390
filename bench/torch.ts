/**
 * PyTorch beside our own numbers: torch_reference.py in a process of its own, asked for one run at a time, so that both
 * sides can take turns. `PYTHON` names the interpreter (default python3).
 */
import { spawn, spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { createInterface } from "node:readline";
import { setTimeout as wait } from "node:timers/promises";
import type { Timer } from "./measure.ts";

/** An operation of torch_reference.py with its shapes. */
export type TorchRequest = Readonly<Record<string, unknown>> & { readonly op: string };

export interface Torch {
  /** Version and threads, for the results. */
  readonly description: string;
  /** Prepares the operation and warms it up; each call of the timer is one run. */
  readonly timer: (request: TorchRequest) => Promise<Timer>;
  readonly close: () => void;
}

interface Reply {
  readonly ms?: number;
  readonly error?: string;
}

export const PYTHON = process.env["PYTHON"] ?? "python3";

/** PyTorch's threads spin for a while after their work; our run must not share the processor with that. */
const SETTLE_MS = 30;

/** The path of a script beside this file. */
export function script(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

/** Whether the interpreter has these modules; if not, says so in one line. */
export function hasPythonModules(modules: readonly string[], purpose: string): boolean {
  const check = spawnSync(PYTHON, ["-c", modules.map((name) => `import ${name}`).join("; ")], { encoding: "utf8" });
  if (check.status === 0) return true;
  const cause = check.error?.message ?? check.stderr.trim().split("\n").at(-1);
  const fix = `set PYTHON to an interpreter with ${modules.join(" and ")}`;
  console.log(`${purpose} is left out: ${PYTHON}: ${cause}. Fix: ${fix}`);
  return false;
}

/** Starts PyTorch. Null, and one line that says why, where there is none. */
export async function openTorch(): Promise<Torch | null> {
  if (!hasPythonModules(["torch"], "the comparison with PyTorch")) return null;
  const child = spawn(PYTHON, ["-B", script("torch_reference.py")], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const nextLine = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error("torch_reference.py ended: see its message above");
    return value;
  };
  const ask = async (request: TorchRequest): Promise<number> => {
    child.stdin.write(JSON.stringify(request) + "\n");
    const reply = JSON.parse(await nextLine()) as Reply;
    if (reply.ms === undefined) throw new Error(`torch_reference.py, ${request.op}: ${reply.error}`);
    await wait(SETTLE_MS);
    return reply.ms;
  };
  return {
    description: await nextLine(),
    timer: async (request) => {
      await ask(request);
      return () => ask(request);
    },
    close: () => child.stdin.end(),
  };
}
