/**
 * Waiting for the GPU without burning a processor.
 *
 * While a promise of Dawn's is pending, its Node binding asks for news in every turn of the event loop, as fast as the
 * loop turns. On a software driver that polling takes a core from the very threads that compute: on two cores it took
 * nearly half of the processor. So between two turns this thread sleeps.
 */

/** Sleeps at most this long, so that signals and timers are still served. */
const LONGEST_SLEEP_MS = 1;
/** The share of the time waited so far that the next sleep takes: what waking up late may cost. */
const PATIENCE = 1 / 8;

const neverNotified = new Int32Array(new SharedArrayBuffer(4));

/**
 * Awaits a promise of the GPU's, polling ever more rarely: short waits end promptly, long ones cost nothing. Settles as
 * `pending` does, at most an eighth later.
 */
export async function waitForGpu<T>(pending: Promise<T>): Promise<T> {
  let settled = false;
  const settle = (): void => void (settled = true);
  pending.then(settle, settle);
  const start = performance.now();
  for (;;) {
    await new Promise((resume) => setImmediate(resume)); // one turn of the event loop: Dawn polls, others run
    if (settled) return pending;
    Atomics.wait(neverNotified, 0, 0, Math.min(LONGEST_SLEEP_MS, PATIENCE * (performance.now() - start)));
  }
}
