// Snippet: bfloat16, the upper half of a float32, two values to a u32; the element with the even index is the low half.
//
// A buffer that may hold either type is an array of u32: reading float32 as bits is exact, and so is the way back,
// while packed halves read as floats could pass for denormals or NaNs and be changed.

// Element `index` of a tensor, from the word that holds it.
fn bf16Element(word: u32, index: u32) -> f32 {
  return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (index & 1u) == 1u));
}
