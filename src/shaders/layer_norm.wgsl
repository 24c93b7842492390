// include: workgroup_reduce
// include: row_vectors
// (workgroupSum4 comes from the first, in whose place kernel.ts may put subgroup_reduce; RowPart, load, store and
// WHOLE_VECTORS from the second, in whose place it may put row_elements.)
//
// Layer normalisation over the last axis (Ba et al. 2016), forward and backward.
//
//   mean, rstd = 1 / sqrt(variance + eps)   xhat = (x - mean) rstd       y = xhat weight + bias
//   g = dy weight                           dx = rstd (g - mean(g) - xhat mean(g xhat))
//   dWeight = sum over rows of dy xhat      dBias = sum over rows of dy
//
// x, y, dy, dx: [rows, cols]. weight, bias: [cols]. mean, rstd: [rows]. dWeightTiles, dBiasTiles: [ceil(rows / 4),
// cols], sums over the four rows of each workgroup; the launcher adds the tiles up (no atomics: the order is fixed).
//
// The variance is the mean of (x - mean)^2, from a second pass over x: mean(x^2) - mean^2 would cancel. One workgroup
// holds four rows, and a thread takes every WORKGROUP-th vec4f of each (see rms_norm.wgsl). Rows past the end repeat the
// last row, but are not stored.

struct Params { rows: u32, cols: u32, eps: f32, addToDx: u32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<RowPart>;
@group(0) @binding(2) var<storage, read> weight: array<RowPart>;
@group(0) @binding(3) var<storage, read> bias: array<RowPart>;
@group(0) @binding(4) var<storage, read_write> y: array<RowPart>;
@group(0) @binding(5) var<storage, read_write> mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> savedMean: array<f32>;
@group(0) @binding(4) var<storage, read> savedRstd: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<RowPart>;
@group(0) @binding(6) var<storage, read_write> dx: array<RowPart>;
@group(0) @binding(7) var<storage, read_write> dWeightTiles: array<RowPart>;
@group(0) @binding(8) var<storage, read_write> dBiasTiles: array<RowPart>;

const WORKGROUP: u32 = 64u;
const ROWS: u32 = 4u;

// How far columns col .. col + 3 are from the row's mean; 0 past the row's end.
fn deviation(start: u32, col: u32, center: f32) -> vec4f {
  let difference = load(&x, start, col) - center;
  if (WHOLE_VECTORS == 1u) { return difference; }
  return select(vec4f(), difference, col + vec4u(0u, 1u, 2u, 3u) < vec4u(params.cols));
}

@compute @workgroup_size(WORKGROUP)
fn layerNorm(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let first = (workgroupId.x + workgroupId.y * grid.x) * ROWS;
  if (first >= params.rows) { return; }
  let cols = params.cols;
  let row = min(first + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u));
  var sum = vec4f();
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    for (var i = 0u; i < ROWS; i++) { sum[i] += dot(load(&x, row[i] * cols, col), vec4f(1.0)); }
  }
  let center = workgroupSum4(sum, thread) / f32(cols);
  var squares = vec4f();
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    for (var i = 0u; i < ROWS; i++) {
      let far = deviation(row[i] * cols, col, center[i]);
      squares[i] += dot(far, far);
    }
  }
  let scale = inverseSqrt(workgroupSum4(squares, thread) / f32(cols) + params.eps);
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    let biases = load(&bias, 0u, col);
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      let ys = deviation(start, col, center[i]) * scale[i] * weights + biases;
      if (first + i < params.rows) { store(&y, start, col, ys, 0u); }
    }
  }
  if (thread == 0u) {
    for (var i = 0u; i < ROWS; i++) {
      mean[row[i]] = center[i];
      rstd[row[i]] = scale[i];
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn layerNormBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let tile = workgroupId.x + workgroupId.y * grid.x;
  let first = tile * ROWS;
  if (first >= params.rows) { return; }
  let cols = params.cols;
  let row = min(first + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u));
  let center = vec4f(savedMean[row.x], savedMean[row.y], savedMean[row.z], savedMean[row.w]);
  let scale = vec4f(savedRstd[row.x], savedRstd[row.y], savedRstd[row.z], savedRstd[row.w]);
  var sumG = vec4f();
  var sumGX = vec4f();
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      let g = load(&dy, start, col) * weights;
      sumG[i] += dot(g, vec4f(1.0));
      sumGX[i] += dot(g, deviation(start, col, center[i]));
    }
  }
  let meanG = workgroupSum4(sumG, thread) / f32(cols);
  let meanGX = workgroupSum4(sumGX, thread) * scale / f32(cols); // mean(g xhat)
  for (var col = 4u * thread; col < cols; col += 4u * WORKGROUP) {
    let weights = load(&weight, 0u, col);
    var dWeight = vec4f();
    var dBias = vec4f();
    for (var i = 0u; i < ROWS; i++) {
      let start = row[i] * cols;
      let xhat = deviation(start, col, center[i]) * scale[i];
      let dys = load(&dy, start, col);
      if (first + i < params.rows) { // a repeated row must not count twice
        dWeight += dys * xhat;
        dBias += dys;
        store(&dx, start, col, scale[i] * (dys * weights - meanG[i] - xhat * meanGX[i]), params.addToDx);
      }
    }
    store(&dWeightTiles, tile * cols, col, dWeight, 0u);
    store(&dBiasTiles, tile * cols, col, dBias, 0u);
  }
}
