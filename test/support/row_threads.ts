/**
 * Runs row-wise kernels at another workgroup size than this machine's: what a GPU would run can then be checked on the
 * software driver, and the other way round.
 */
import { gpu } from "../../src/tensor/device.ts";

/** Sets `gpu().rowThreads` while `body` runs. */
export async function withRowThreads(threads: number, body: () => Promise<void>): Promise<void> {
  const usual = gpu().rowThreads;
  Object.assign(gpu(), { rowThreads: threads });
  try {
    await body();
  } finally {
    Object.assign(gpu(), { rowThreads: usual });
  }
}
