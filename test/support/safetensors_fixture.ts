/** Safetensors files for tests: written in one go, in the order given, and without the checks of the real writer. */
import { writeFileSync } from "node:fs";
import { encodeTensor } from "../../src/data/safetensors.ts";
import type { TensorSpec } from "../../src/data/safetensors.ts";
import { entry, fileOf } from "./hostile_safetensors.ts";

export interface TensorToWrite extends TensorSpec {
  data: Float32Array;
}

export function writeSafetensors(
  path: string, tensors: readonly TensorToWrite[], metadata: Record<string, string> = {},
): void {
  const values = tensors.map(({ dtype, data }) => encodeTensor(dtype, data));
  let end = 0;
  const entries = tensors.map(({ name, shape, dtype }, i) => {
    const begin = end;
    end += values[i]!.length;
    return `${JSON.stringify(name)}:${entry(JSON.stringify(shape), `[${begin},${end}]`, dtype)}`;
  });
  const header = [`"__metadata__":${JSON.stringify(metadata)}`, ...entries].join();
  writeFileSync(path, Buffer.concat([fileOf(`{${header}}`), ...values]));
}
