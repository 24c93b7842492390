/**
 * The task of a user's own environment, which runs in a process of its own: its functions may loop for ever on some
 * reply, throw, print, exit or use up all memory, and the training run must survive or say in one line what happened.
 *
 * Why a process, when a worker thread starts as fast: an endless loop ends either way, but a thread that reaches its
 * memory limit in one large step (an array that grows, a Map) takes the whole process with it. It is a guard against
 * mistakes, not a sandbox: the module has the user's rights.
 *
 * Time: `timeoutSeconds` bounds each call of the task. Of a call that judges, one reply may take a fifth; the process
 * is then killed, the reply gets no reward, and judging goes on in a fresh one. Starting it does not count as the
 * reply's time, but as the call's.
 */
import { fork } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { Reward } from "./advantage.ts";
import type { Prompt, Reply, Task } from "./environment.ts";
import { EnvironmentError, functionTitle, haveFullMarks, judgingError, quote } from "./environment_checks.ts";
import type { Answer, Description, Request } from "./reward_worker.ts";

/** The share of a call's time that one reply may take. */
const REPLY_SHARE = 1 / 5;
/** A larger share of replies without a reward in time stops the run. */
const MAX_TIMEOUTS = 0.2;
/** Memory of the process, in MiB: of its JavaScript heap, and in all. */
const [HEAP_LIMIT, MEMORY_LIMIT] = [512, 1024];

const ENTRY = fileURLToPath(new URL("./reward_worker.ts", import.meta.url));
/** By its place: the user's working directory need not know tsx. */
const TSX = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;

export interface UserTaskOptions {
  readonly timeoutSeconds: number;
  /** How long importing the module may take. */
  readonly startSeconds?: number;
}

type WorkerEvent = Answer | { readonly ended: string };
type Late = "late";
/** A request without the id, which the connection gives. */
type Call = Request extends infer Each ? (Each extends unknown ? Omit<Each, "id"> : never) : never;

interface WorkerProcess {
  /** What it said when the module was imported. */
  readonly started: Promise<WorkerEvent>;
  /** The answer, or that there was none within this time. One at a time. */
  readonly ask: (call: Call, milliseconds: number) => Promise<WorkerEvent | Late>;
  /** Ends it, whatever it is doing; resolves when it is gone. */
  readonly kill: () => Promise<void>;
}

/**
 * Opens the environment that the module at `path` exports. The task's calls run one after the other.
 * @throws EnvironmentError for a module that cannot be imported or is no environment; each call of the task throws it
 *   for functions that fail.
 */
export async function openUserTask(path: string, options: UserTaskOptions): Promise<Task> {
  const { timeoutSeconds, startSeconds = 60 } = options;
  let worker = startWorker(path);

  const description = await within(worker.started, startSeconds * 1000);
  if (description === "late" || !("value" in description)) {
    await worker.kill();
    const late = `importing it took longer than ${startSeconds} s. Fix: do less at its top level`;
    if (description === "late") throw new EnvironmentError(`${path}: ${late}`);
    throw new EnvironmentError("fault" in description ? description.fault : `${path}: ${description.ended}`);
  }
  const { name, functions, hasHeldOut, hasIsCorrect } = description.value as Description;

  /** Asks as soon as the process is ready. One that does not answer by `end` is killed and replaced. */
  async function ask(call: Call, end: number): Promise<WorkerEvent | Late> {
    const started = await within(worker.started, end - performance.now());
    if (started === "late" || !("value" in started)) return started;
    const left = end - performance.now();
    const event = left > 0 ? await worker.ask(call, left) : "late";
    if (event === "late" && left > 0) {
      void worker.kill();
      worker = startWorker(path);
    }
    return event;
  }

  async function promptsOf(call: Call): Promise<readonly Prompt[]> {
    const event = await ask(call, performance.now() + timeoutSeconds * 1000);
    if (event === "late") {
      throw new EnvironmentError(
        `environment "${name}": ${call.call} did not end within ${timeoutSeconds} s. ` +
          "Fix: make it faster, or raise --reward-timeout",
      );
    }
    if ("ended" in event) throw new EnvironmentError(`environment "${name}": ${call.call}: ${event.ended}`);
    if ("fault" in event) throw new EnvironmentError(event.fault);
    return event.value as readonly Prompt[];
  }

  /** What each of these functions says of each reply; null for the replies without an answer in time. */
  async function judgeAll<Value>(
    replies: readonly Reply[], names: readonly string[],
  ): Promise<{ values: (Value[] | null)[]; timeouts: number }> {
    const end = performance.now() + timeoutSeconds * 1000;
    const values: (Value[] | null)[] = [];
    let [timeouts, first] = [0, ""];
    for (const [sample, { prompt, text }] of replies.entries()) {
      await within(worker.started, end - performance.now());
      const replyEnd = Math.min(end, performance.now() + timeoutSeconds * 1000 * REPLY_SHARE);
      const row: Value[] = [];
      for (const key of names) {
        const call: Call = key === "isCorrect" ? { call: key, prompt, text } : { call: "judge", key, prompt, text };
        const event = await ask(call, replyEnd);
        if (event === "late") {
          timeouts++;
          first ||= `${functionTitle(key)}, sample ${sample}, reply ${quote(text)}`;
          break;
        }
        if (!("value" in event)) {
          throw judgingError(name, key, sample, text, "fault" in event ? event.fault : event.ended);
        }
        row.push(event.value as Value);
      }
      values.push(row.length === names.length ? row : null);
    }
    if (timeouts > MAX_TIMEOUTS * replies.length) {
      throw new EnvironmentError(
        `environment "${name}": ${timeouts} of ${replies.length} replies were not judged in time ` +
          `(${timeoutSeconds} s for all, ${timeoutSeconds * REPLY_SHARE} s for one); the first: ${first}. ` +
          "Fix: make that function faster, or raise --reward-timeout",
      );
    }
    return { values, timeouts };
  }

  async function judge(replies: readonly Reply[]): Promise<{ rewards: Reward[][]; timeouts: number }> {
    const { values, timeouts } = await judgeAll<Reward>(replies, functions.map((each) => each.name));
    return { rewards: values.map((row) => row ?? functions.map(() => null)), timeouts };
  }

  const inTurn = turns();
  return {
    name,
    functions,
    prompts: (from, count, seed) => inTurn(() => promptsOf({ call: "prompts", from, count, seed })),
    heldOut: () => inTurn(async () => (hasHeldOut ? promptsOf({ call: "heldOut" }) : [])),
    judge: (replies) => inTurn(() => judge(replies)),
    correct: (replies) => inTurn(async () => {
      if (!hasIsCorrect) return haveFullMarks((await judge(replies)).rewards, functions);
      const { values } = await judgeAll<boolean>(replies, ["isCorrect"]);
      return values.map((row) => row?.[0] ?? false);
    }),
    close: () => inTurn(() => worker.kill()),
  };
}

/** Starts the process. It does not keep ours alive, and ends with it. */
function startWorker(path: string): WorkerProcess {
  const child = fork(ENTRY, [path, String(MEMORY_LIMIT * 2 ** 20)], {
    execArgv: ["--import", TSX, `--max-old-space-size=${HEAP_LIMIT}`],
    serialization: "advanced",
    stdio: ["ignore", "pipe", "pipe", "ipc"],
  });
  let expected = 0;
  let deliver: (event: WorkerEvent) => void;
  let ended: string | null = null;
  const started = new Promise<WorkerEvent>((resolve) => (deliver = resolve));
  const gone = new Promise<void>((resolve) => {
    const end = (reason: string): void => {
      ended = reason;
      deliver({ ended });
      resolve();
    };
    child.on("exit", (code, signal) => end(reasonOf(code, signal)));
    child.on("error", (error) => end(`its process could not be started: ${error.message}`));
  });
  // The module may send messages of its own.
  child.on("message", (message: Partial<Answer> | null) => {
    if (message?.id === expected) deliver(message as Answer);
  });
  for (const stream of [child.stdout!, child.stderr!]) forwardOutput(stream);
  child.unref();
  child.channel?.unref();

  return {
    started,
    ask: (call, milliseconds) => {
      const id = ++expected;
      const answer = new Promise<WorkerEvent>((resolve) => {
        deliver = resolve;
        if (ended !== null) resolve({ ended });
        else child.send({ ...call, id }, () => {}); // not delivered: the process has ended, and says so itself
      });
      return within(answer, milliseconds);
    },
    kill: () => {
      child.ref(); // whoever waits for its end is not to end before
      child.kill("SIGKILL");
      return gone;
    },
  };
}

/** Passes on what the process prints, to stderr: stdout is the run's. Drops the page that V8 prints on a full heap. */
function forwardOutput(stream: NodeJS.ReadableStream): void {
  let isHeapReport = false;
  stream.setEncoding("utf8").on("data", (text: string) => {
    if (isHeapReport) return;
    const start = text.indexOf("\n<--- Last few GCs --->");
    isHeapReport = start >= 0;
    process.stderr.write(isHeapReport ? text.slice(0, start) : text);
  });
  (stream as NodeJS.ReadableStream & { unref: () => void }).unref(); // a socket
}

/** Why the process ended although nobody here ended it. V8 aborts on a full heap (134 on Windows), others kill. */
function reasonOf(code: number | null, signal: string | null): string {
  if (signal === "SIGABRT" || signal === "SIGKILL" || code === 134) {
    return `its process ran out of memory (limits: ${HEAP_LIMIT} MiB of heap, ${MEMORY_LIMIT} MiB in all)`;
  }
  return signal === null
    ? `its process ended with exit code ${code}: it called process.exit, or an error in it was never caught`
    : `its process was ended by ${signal}`;
}

/** The promise's value, or "late" after so many milliseconds. */
async function within<T>(promise: Promise<T>, milliseconds: number): Promise<T | Late> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Late>((resolve) => {
    timer = setTimeout(() => resolve("late"), Math.max(0, milliseconds));
  });
  const first = await Promise.race([promise, late]);
  clearTimeout(timer);
  return first;
}

/** Runs what it is given one after the other, in the order given. */
function turns(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (work) => {
    const result = last.then(work);
    last = result.catch(() => {});
    return result;
  };
}
