/** The two signals of a person at the keyboard; what a run makes of them is in resume.test.ts. */
import { expect, test, vi } from "vitest";
import { listenForStop } from "../../src/grpo/stop_signal.ts";

test("the first is heard, the second puts the terminal in order and then leaves", () => {
  const events: string[] = [];
  const exit = vi.spyOn(process, "exit").mockImplementation((code) => {
    events.push(`exit ${code}`);
    throw new Error("the process has ended");
  });
  const on = vi.spyOn(process, "on");
  const stop = listenForStop((signal) => events.push(signal), () => events.push("terminal"));
  const listenerOf = (signal: string) =>
    on.mock.calls.find(([name]) => name === signal)![1] as (signal: string) => void;
  expect(stop.exitCode()).toBeNull();
  listenerOf("SIGTERM")("SIGTERM");
  expect([events, stop.exitCode()]).toEqual([["SIGTERM"], 143]);
  expect(() => listenerOf("SIGINT")("SIGINT")).toThrow("the process has ended");
  expect(events).toEqual(["SIGTERM", "terminal", "exit 130"]);
  for (const [name, listener] of on.mock.calls) process.off(name as string, listener as () => void);
  exit.mockRestore();
  on.mockRestore();
});
