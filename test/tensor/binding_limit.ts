/** Runs code as on an adapter that binds less: tensors far below 128 MiB then take the path of larger ones. */
import { gpu } from "../../src/tensor/device.ts";

/** Sets `gpu().maxBindingBytes` while `body` runs; Infinity stands for the adapter's own limit. */
export async function withBindingLimit<T>(bytes: number, body: () => Promise<T>): Promise<T> {
  const usual = gpu().maxBindingBytes;
  Object.assign(gpu(), { maxBindingBytes: Math.min(bytes, usual) });
  try {
    return await body();
  } finally {
    Object.assign(gpu(), { maxBindingBytes: usual });
  }
}
