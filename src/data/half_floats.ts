// Conversions between float32 and the two 16-bit float formats of checkpoints, as whole-array functions.
//
// F16 (IEEE binary16): 1 sign, 5 exponent, 10 mantissa bits. BF16: the upper 16 bits of a float32 (1, 8, 7).
// Widening is exact. Narrowing rounds to nearest, ties to even, overflows to infinity and keeps NaN a NaN, as
// `tensor.to(torch.float16)` and `tensor.to(torch.bfloat16)` do. 16-bit values travel as raw bits in a Uint16Array.

/** The bits of `values`; a view, not a copy. */
function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length);
}

/** bfloat16 bits -> float32, exact: the missing low mantissa bits are zeros. */
export function bf16ToF32(halves: Uint16Array): Float32Array {
  const values = new Float32Array(halves.length);
  const bits = bitsOf(values);
  for (let i = 0; i < halves.length; i++) bits[i] = halves[i]! << 16;
  return values;
}

/** float32 -> bfloat16 bits, round to nearest even. */
export function f32ToBf16(values: Float32Array): Uint16Array {
  const halves = new Uint16Array(values.length);
  const bits = bitsOf(values);
  for (let i = 0; i < halves.length; i++) {
    const x = bits[i]!;
    const isNaN = (x & 0x7fffffff) > 0x7f800000;
    // Adding just under half a unit, or exactly half when the kept part is odd, carries into it precisely when
    // rounding up is right. A NaN must not go through the carry (it could become infinity): set its quiet bit.
    const roundingBias = 0x7fff + ((x >>> 16) & 1);
    halves[i] = isNaN ? (x >>> 16) | 0x40 : (x + roundingBias) >>> 16;
  }
  return halves;
}

/** float16 bits -> float32, exact. */
export function f16ToF32(halves: Uint16Array): Float32Array {
  const values = new Float32Array(halves.length);
  const bits = bitsOf(values);
  for (let i = 0; i < halves.length; i++) {
    const h = halves[i]!;
    const sign = (h & 0x8000) << 16;
    const exponent = (h >>> 10) & 0x1f;
    const mantissa = h & 0x3ff;
    if (exponent === 0) {
      values[i] = (sign === 0 ? 1 : -1) * mantissa * 2 ** -24; // zero or subnormal: mantissa counts units of 2^-24
    } else {
      const wideExponent = exponent === 0x1f ? 0xff : exponent + 127 - 15;
      bits[i] = sign | (wideExponent << 23) | (mantissa << 13);
    }
  }
  return values;
}

/** float32 -> float16 bits, round to nearest even; magnitudes of 65520 and above become infinity. */
export function f32ToF16(values: Float32Array): Uint16Array {
  const halves = new Uint16Array(values.length);
  const bits = bitsOf(values);
  for (let i = 0; i < halves.length; i++) {
    const x = bits[i]!;
    const sign = (x >>> 16) & 0x8000;
    const magnitude = x & 0x7fffffff;
    if (magnitude > 0x7f800000) {
      halves[i] = sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff); // NaN, made quiet
    } else if (magnitude >= 0x477ff000) {
      halves[i] = sign | 0x7c00; // >= 65520, halfway between the largest float16 and 2^16: infinity
    } else if (magnitude < 0x38800000) {
      halves[i] = sign | roundHalfEven(Math.abs(values[i]!) * 2 ** 24); // below 2^-14: subnormal, units of 2^-24
    } else {
      const rebased = magnitude - ((127 - 15) << 23);
      const roundingBias = 0xfff + ((rebased >>> 13) & 1);
      halves[i] = sign | ((rebased + roundingBias) >>> 13);
    }
  }
  return halves;
}

function roundHalfEven(x: number): number {
  const floor = Math.floor(x);
  const fraction = x - floor;
  const roundUp = fraction > 0.5 || (fraction === 0.5 && floor % 2 === 1);
  return roundUp ? floor + 1 : floor;
}
