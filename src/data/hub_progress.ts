// What a download shows on stderr: a bar on a terminal, else a line every few seconds.

import { SingleBar } from "cli-progress";

export interface Progress {
  /** `done` bytes of the file `name` are there. Bytes of a file's first report come from an earlier run. */
  report(name: string, done: number): void;
  stop(): void;
}

const LINE_EVERY_MS = 5000;

/** Characters. */
const BAR_SIZE = 16;

/** Starts to show a download of `total` bytes; `log` takes the lines when stderr is not a terminal. */
export function startProgress(total: number, log: (line: string) => void): Progress {
  // Ctrl-C may end the process at any time, so the bar must not change the terminal's settings: lines are cut here.
  const bar = process.stderr.isTTY
    ? new SingleBar({ stream: process.stderr, format: "{bar} {text}", barsize: BAR_SIZE, linewrap: true })
    : undefined;
  const room = (process.stderr.columns || 80) - BAR_SIZE - 2;
  const startTime = Date.now();
  const doneOf = new Map<string, number>();
  let received = 0;
  let lastLine = startTime;

  function text(name: string, done: number): string {
    const speed = received / Math.max(0.001, (Date.now() - startTime) / 1000);
    const left = speed > 0 ? `, ${formatSeconds((total - done) / speed)} left` : "";
    return `${formatBytes(done)} of ${formatBytes(total)}  ${formatBytes(speed)}/s${left}  ${name}`;
  }

  bar?.start(total, 0, { text: "" });
  return {
    report(name, doneInFile) {
      received += Math.max(0, doneInFile - (doneOf.get(name) ?? doneInFile));
      doneOf.set(name, doneInFile);
      const done = [...doneOf.values()].reduce((sum, bytes) => sum + bytes, 0);
      bar?.update(done, { text: text(name, done).slice(0, room) });
      if (bar === undefined && (done === total || Date.now() - lastLine > LINE_EVERY_MS)) {
        lastLine = Date.now();
        log(text(name, done));
      }
    },
    stop: () => bar?.stop(),
  };
}

/** 1234567 -> "1.2 MB", decimal units as the hub shows them. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; bytes >= 999.5 && unit < units.length - 1; unit++) bytes /= 1000;
  return `${bytes >= 99.95 || unit === 0 ? bytes.toFixed(0) : bytes.toFixed(1)} ${units[unit]!}`;
}

function formatSeconds(seconds: number): string {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.ceil(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
