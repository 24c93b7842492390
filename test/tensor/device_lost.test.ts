/** A device that goes away ends the work with a message. In a file of its own: the process is of no use afterwards. */
import { expect, test } from "vitest";
import { gpu, GpuError, openGpu } from "../../src/tensor/device.ts";
import { fill } from "../../src/tensor/elementwise.ts";
import { submit } from "../../src/tensor/recorder.ts";

test("a lost device is thrown by the next submit, with what to do", async () => {
  await openGpu();
  const { device } = gpu();
  device.destroy();
  await device.lost;
  const useIt = (): void => {
    fill([2], 1);
    submit();
  };
  expect(useIt).toThrow(GpuError);
  expect(useIt).toThrow(/GPU device lost \(destroyed\).*Fix: restart from the last checkpoint/);
});
