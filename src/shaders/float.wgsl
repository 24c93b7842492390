// Snippet: float32 helpers that hold on every driver. Drivers compile with fast-math: `x != x` is folded to false, so a
// NaN is recognised by its bits; and `max(NaN, 0)` drops the NaN, so kernels select instead.

fn isNan(x: f32) -> bool {
  return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

/// A NaN. WGSL rejects one that can be evaluated at compile time, so it is made from a run-time value.
fn makeNan(runtime: f32) -> f32 {
  return bitcast<f32>(bitcast<u32>(runtime) | 0x7fc00000u);
}

/// base^exponent as in C: the built-in is exp2(exponent * log2(base)), which is NaN for every negative base and at 0^0.
fn power(base: f32, exponent: f32) -> f32 {
  if (exponent == 0.0) { return 1.0; }
  if (exponent == 1.0) { return base; }
  if (exponent == 2.0) { return base * base; }
  if (exponent == -1.0) { return 1.0 / base; }
  let magnitude = pow(abs(base), exponent);
  if (base >= 0.0 || isNan(base)) { return magnitude; }
  if (floor(exponent) != exponent) { return makeNan(base); }
  let odd = fract(0.5 * exponent) != 0.0;
  return select(magnitude, -magnitude, odd);
}
