/** Readbacks that one staging buffer, 64 MiB, does not hold. */
import { expect, test } from "vitest";
import { scopeAsync } from "../../src/tensor/memory.ts";
import { fill } from "../../src/tensor/elementwise.ts";
import { readAll, tensor } from "../../src/tensor/tensor.ts";
import "../support/gpu.ts";

const MIB = 2 ** 20;

test("regions are spread over several, in whole", () =>
  scopeAsync(async () => {
    const small = Float32Array.of(1, 2, 3); // 12 bytes: what follows is aligned
    const read = await readAll([tensor(small), fill([40 * MIB / 4], 7), tensor(small), fill([70 * MIB / 4 + 1], 9)]);
    expect(read.map(({ length }) => length)).toEqual([3, 40 * MIB / 4, 3, 70 * MIB / 4 + 1]);
    expect([read[0], read[2]]).toEqual([small, small]);
    for (const [i, value] of [[1, 7], [3, 9]] as const) expect(read[i]!.every((x) => x === value)).toBe(true);
  }));
