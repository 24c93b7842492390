// The functions of row_vectors.wgsl for rows whose length is no multiple of 4, element by element. They are bound as
// arrays of f32: a vec4f would hold the end of one row and the beginning of the next, and a device may write all of a
// vector where one component is stored, over what another workgroup stores there.

const WHOLE_VECTORS: u32 = 0u;

alias RowPart = f32;

// What lies past the row's end is 0.
fn load(tensor: ptr<storage, array<RowPart>, read>, start: u32, col: u32) -> vec4f {
  var values = vec4f();
  for (var i = 0u; i < min(4u, params.cols - col); i++) { values[i] = (*tensor)[start + col + i]; }
  return values;
}

fn store(tensor: ptr<storage, array<RowPart>, read_write>, start: u32, col: u32, values: vec4f, adds: u32) {
  for (var i = 0u; i < min(4u, params.cols - col); i++) {
    let at = start + col + i;
    if (adds == 1u) { (*tensor)[at] += values[i]; } else { (*tensor)[at] = values[i]; }
  }
}
