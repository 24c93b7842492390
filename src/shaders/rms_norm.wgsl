// include: workgroup_reduce
// include: row_vectors
// (workgroupSum4 comes from the first, in whose place kernel.ts may put subgroup_reduce; RowPart, load and store from
// the second, in whose place it may put row_elements.)
//
// RMS normalisation over the last axis (Zhang and Sennrich 2019), forward and backward.
//
//   rstd = 1 / sqrt(mean(x^2) + eps)        xhat = x rstd        y = xhat weight
//   g = dy weight                           dx = rstd (g - xhat mean(g xhat))
//   dWeight = sum over rows of dy xhat
//
// x, y, dy, dx: [rows, cols]. weight: [cols]. rstd: [rows]. dWeightTiles: [ceil(rows / 4), cols], the sum over the four
// rows of each workgroup; the launcher adds the tiles up (no atomics: the order of additions is fixed).
//
// One workgroup holds four rows, and a thread takes every WORKGROUP-th vec4f of each. Four rows share each load of
// weight, each tree reduction and, in backward, one sum for dWeight, which then costs no pass of its own over x and dy.
// Rows past the end repeat the last row, but are not stored.

struct Params { rows: u32, cols: u32, eps: f32, addToDx: u32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<RowPart>;
@group(0) @binding(2) var<storage, read> weight: array<RowPart>;
@group(0) @binding(3) var<storage, read_write> y: array<RowPart>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> savedRstd: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<RowPart>;
@group(0) @binding(5) var<storage, read_write> dx: array<RowPart>;
@group(0) @binding(6) var<storage, read_write> dWeightTiles: array<RowPart>;

const WORKGROUP: u32 = 64u;
const ROWS: u32 = 4u;

@compute @workgroup_size(WORKGROUP)
fn rmsNorm(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let first = (workgroupId.x + workgroupId.y * grid.x) * ROWS;
  if (first >= params.rows) { return; }
  let cols = params.cols;
  let row = min(first + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u));
  var squares = vec4f();
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    for (var i = 0u; i < ROWS; i++) {
      let xs = load(&x, row[i] * cols, col);
      squares[i] += dot(xs, xs);
    }
  }
  let scale = inverseSqrt(workgroupSum4(squares, thread) / f32(cols) + params.eps);
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      if (first + i < params.rows) { store(&y, start, col, load(&x, start, col) * scale[i] * weights, 0u); }
    }
  }
  if (thread == 0u) {
    for (var i = 0u; i < ROWS; i++) { rstd[row[i]] = scale[i]; }
  }
}

@compute @workgroup_size(WORKGROUP)
fn rmsNormBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let tile = workgroupId.x + workgroupId.y * grid.x;
  let first = tile * ROWS;
  if (first >= params.rows) { return; }
  let cols = params.cols;
  let row = min(first + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u));
  let scale = vec4f(savedRstd[row.x], savedRstd[row.y], savedRstd[row.z], savedRstd[row.w]);
  var sum = vec4f();
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      sum[i] += dot(load(&dy, start, col) * load(&x, start, col), weights);
    }
  }
  let meanGX = workgroupSum4(sum, thread) * scale / f32(cols); // mean(g xhat)
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    var dWeight = vec4f();
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      let xhat = load(&x, start, col) * scale[i];
      let dys = load(&dy, start, col);
      if (first + i < params.rows) { // a repeated row must not count twice
        dWeight += dys * xhat;
        store(&dx, start, col, scale[i] * (dys * weights - xhat * meanGX[i]), params.addToDx);
      }
    }
    store(&dWeightTiles, tile * cols, col, dWeight, 0u);
  }
}
