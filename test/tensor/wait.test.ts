/** waitForGpu: settles as its promise does, lets timers and other promises run meanwhile, and polls rarely. */
import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { waitForGpu } from "../../src/tensor/wait.ts";

test("gives the value, or throws the error", async () => {
  await expect(waitForGpu(Promise.resolve(5))).resolves.toBe(5);
  await expect(waitForGpu(setTimeout(20, "late"))).resolves.toBe("late");
  await expect(waitForGpu(Promise.reject(new RangeError("lost")))).rejects.toThrow("lost");
  await expect(waitForGpu(setTimeout(20).then(() => { throw new RangeError("lost later"); }))).rejects.toThrow("lost later");
});

test("sleeps between polls, and serves timers", async () => {
  let turns = 0;
  let ticks = 0;
  const count = (): void => {
    turns += 1;
    if (ticks >= 0) setImmediate(count);
  };
  setImmediate(count);
  const timer = setInterval(() => (ticks += 1), 10);
  await waitForGpu(setTimeout(300));
  clearInterval(timer);
  const served = ticks;
  ticks = -1;
  // Without sleep the event loop turns many thousand times in 300 ms; asleep for at most 1 ms at a time, some hundred.
  expect(turns).toBeLessThan(1500);
  expect(served).toBeGreaterThan(5);
});
