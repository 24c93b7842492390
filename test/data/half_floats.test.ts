// All 65,536 values of both 16-bit formats, and the rounding between every two neighbours.

import { describe, expect, test } from "vitest";
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "../../src/data/half_floats.ts";

const allHalves = Uint16Array.from({ length: 65536 }, (_, i) => i);

describe.each([
  { format: "F16", widen: f16ToF32, narrow: f32ToF16, largest: 0x7bff, infinity: 0x7c00, quietBit: 0x200 },
  { format: "BF16", widen: bf16ToF32, narrow: f32ToBf16, largest: 0x7f7f, infinity: 0x7f80, quietBit: 0x40 },
])("$format", ({ widen, narrow, largest, infinity, quietBit }) => {
  test("widening and narrowing gives every value back; a NaN becomes quiet", () => {
    const expected = allHalves.map((half) => ((half & 0x7fff) > infinity ? half | quietBit : half));
    expect(narrow(widen(allHalves))).toEqual(expected);
  });

  test("values increase with their bits, up to infinity", () => {
    const values = widen(allHalves.subarray(0, infinity + 1));
    expect(values.every((value, i) => i === 0 || value > values[i - 1]!)).toBe(true);
    expect(values[infinity]).toBe(Infinity);
    expect(widen(Uint16Array.of(0x8000))[0]).toBe(-0);
  });

  test("rounds to nearest, ties to even", () => {
    const values = widen(allHalves.subarray(0, largest + 1));
    for (let low = 0; low < largest; low++) {
      const middle = (values[low]! + values[low + 1]!) / 2; // exact in float32
      const bits = new Uint32Array(Float32Array.of(middle).buffer)[0]!;
      const around = new Float32Array(Uint32Array.of(bits - 1, bits, bits + 1).buffer);
      const even = low % 2 === 0 ? low : low + 1;
      const expected = [low, even, low + 1];
      expect([...narrow(around)]).toEqual(expected);
      expect([...narrow(around.map((x) => -x))]).toEqual(expected.map((half) => half | 0x8000));
    }
  });
});

test("known values", () => {
  expect([...f32ToF16(Float32Array.of(1, -2, 65504, 65519.996, 65520, 2 ** -24, 2 ** -25, 1e-10))])
    .toEqual([0x3c00, 0xc000, 0x7bff, 0x7bff, 0x7c00, 1, 0, 0]);
  expect([...f32ToBf16(Float32Array.of(1, -2, 3.3961776e38, 3.4028235e38, 1.00390625, 1.01171875))])
    .toEqual([0x3f80, 0xc000, 0x7f80, 0x7f80, 0x3f80, 0x3f82]);
});
