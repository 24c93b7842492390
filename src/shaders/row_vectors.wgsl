// Rows of `params.cols` values each, read and written by vectors of 4 columns, for row-wise kernels. For rows whose
// length is no multiple of 4 the loader puts row_elements.wgsl in the place of this file (kernel.ts).

const WHOLE_VECTORS: u32 = 1u;

alias RowPart = vec4f; // what rows are bound as arrays of

// Columns col .. col + 3 of the row that begins at `start`.
fn load(tensor: ptr<storage, array<RowPart>, read>, start: u32, col: u32) -> vec4f {
  return (*tensor)[(start + col) / 4u];
}

fn store(tensor: ptr<storage, array<RowPart>, read_write>, start: u32, col: u32, values: vec4f, adds: u32) {
  let at = (start + col) / 4u;
  if (adds == 1u) { (*tensor)[at] += values; } else { (*tensor)[at] = values; }
}
