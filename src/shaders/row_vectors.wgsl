// Rows of `params.cols` values each, read and written by vectors of 4 columns, for row-wise kernels. Where cols is no
// multiple of 4 a vector does not lie as one in memory: it is put together element by element.

const WHOLE_VECTORS: u32 = 0u; // 1: cols is a multiple of 4

// Columns col .. col + 3 of the row that begins at `start`; those past its end are 0.
fn load(tensor: ptr<storage, array<vec4f>, read>, start: u32, col: u32) -> vec4f {
  let at = start + col;
  if (WHOLE_VECTORS == 1u) { return (*tensor)[at / 4u]; }
  var values = vec4f();
  for (var i = 0u; i < min(4u, params.cols - col); i++) { values[i] = (*tensor)[(at + i) / 4u][(at + i) % 4u]; }
  return values;
}

fn store(tensor: ptr<storage, array<vec4f>, read_write>, start: u32, col: u32, values: vec4f, adds: u32) {
  let at = start + col;
  if (WHOLE_VECTORS == 1u) {
    if (adds == 1u) { (*tensor)[at / 4u] += values; } else { (*tensor)[at / 4u] = values; }
    return;
  }
  for (var i = 0u; i < min(4u, params.cols - col); i++) {
    let held = select(0.0, (*tensor)[(at + i) / 4u][(at + i) % 4u], adds == 1u);
    (*tensor)[(at + i) / 4u][(at + i) % 4u] = held + values[i];
  }
}
