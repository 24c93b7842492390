/**
 * Ctrl-C and SIGTERM: the first asks the run to finish its train step, save and stop; the second ends the process at
 * once. The exit code is the shell's, 128 + the signal's number.
 */

export interface StopSignal {
  /** The exit code to leave with, once a signal has come; null before. */
  readonly exitCode: () => number | null;
}

const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;
type Signal = keyof typeof EXIT_CODES;

/** `onFirst` says that the signal was heard, `onSecond` puts the terminal in order before the process ends. */
export function listenForStop(onFirst: (signal: Signal) => void, onSecond: () => void): StopSignal {
  let exitCode: number | null = null;
  const listen = (signal: Signal): void => {
    if (exitCode !== null) {
      onSecond();
      process.exit(EXIT_CODES[signal]);
    }
    exitCode = EXIT_CODES[signal];
    onFirst(signal);
  };
  for (const signal of Object.keys(EXIT_CODES) as Signal[]) process.on(signal, listen);
  return { exitCode: () => exitCode };
}
