/**
 * Every GPU test imports this: opens the device, fills released buffers with NaN, and fails a test after a GPU error.
 */
import { afterEach, beforeAll } from "vitest";
import { fillInto } from "../../src/tensor/elementwise.ts";
import { checkHealth, openGpu } from "../../src/tensor/device.ts";
import { scope, setPoison, type Storage } from "../../src/tensor/memory.ts";
import { tensor, type Tensor } from "../../src/tensor/tensor.ts";
import type { Array64 } from "./reference.ts";

beforeAll(async () => {
  await openGpu();
  setPoison((storage: Storage) => fillInto({ storage, shape: [storage.bytes / 4], dtype: "f32" }, NaN));
});

afterEach(() => checkHealth());

/** Uploads a reference array (its values are exact in float32). */
export function toGpu(x: Array64): Tensor {
  return tensor(Float32Array.from(x.data), x.shape);
}

/** Uploads ids. */
export function idsToGpu(ids: ArrayLike<number>, shape: readonly number[] = [ids.length]): Tensor {
  return tensor(Uint32Array.from(ids), shape);
}

export { scope };
