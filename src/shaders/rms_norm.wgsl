// include: workgroup_reduce
// RMS normalisation over the last axis (Zhang and Sennrich 2019), forward and backward.
//
//   rstd = 1 / sqrt(mean(x^2) + eps)        xhat = x rstd        y = xhat weight
//   g = dy weight                           dx = rstd (g - xhat mean(g xhat))
//   dWeight = sum over rows of dy xhat
//
// x, y, dy, dx: [rows, cols]. weight: [cols]. rstd: [rows]. dWeightTiles: [ceil(rows / 4), cols], the sum over the four
// rows of each workgroup; the launcher adds the tiles up (no atomics: the order of additions is fixed).
//
// One workgroup holds four rows, as the components of a vec4, and a thread takes every WORKGROUP-th column. Four rows
// share each load of weight, each tree reduction and, in backward, one sum for dWeight, which then costs no pass of its
// own over x and dy. Rows past the end repeat the last row: they compute and store its values once more.

struct Params { rows: u32, cols: u32, eps: f32, addToDx: u32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> rstd: array<f32>;
@group(0) @binding(3) var<storage, read> savedRstd: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;
@group(0) @binding(6) var<storage, read_write> dWeightTiles: array<f32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn rmsNorm(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let tile = workgroupId.x + workgroupId.y * grid.x;
  if (tile * 4u >= params.rows) { return; }
  let cols = params.cols;
  let row = min(tile * 4u + vec4u(0u, 1u, 2u, 3u), vec4u(params.rows - 1u));
  let start = row * cols;
  var squares = vec4f(0.0);
  for (var col = thread; col < cols; col += WORKGROUP) {
    let at = start + col;
    let xs = vec4f(x[at.x], x[at.y], x[at.z], x[at.w]);
    squares += xs * xs;
  }
  let scale = inverseSqrt(workgroupSum4(squares, thread) / f32(cols) + params.eps);
  for (var col = thread; col < cols; col += WORKGROUP) {
    let at = start + col;
    let ys = vec4f(x[at.x], x[at.y], x[at.z], x[at.w]) * scale * weight[col];
    y[at.x] = ys.x;
    y[at.y] = ys.y;
    y[at.z] = ys.z;
    y[at.w] = ys.w;
  }
  if (thread == 0u) {
    for (var i = 0u; i < 4u; i++) { rstd[row[i]] = scale[i]; }
  }
}

@compute @workgroup_size(WORKGROUP)
fn rmsNormBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let tile = workgroupId.x + workgroupId.y * grid.x;
  if (tile * 4u >= params.rows) { return; }
  let cols = params.cols;
  let wanted = tile * 4u + vec4u(0u, 1u, 2u, 3u);
  let row = min(wanted, vec4u(params.rows - 1u));
  let inRange = select(vec4f(0.0), vec4f(1.0), wanted == row); // a repeated row must not count twice in dWeight
  let start = row * cols;
  let scale = vec4f(savedRstd[row.x], savedRstd[row.y], savedRstd[row.z], savedRstd[row.w]);
  var sum = vec4f(0.0);
  for (var col = thread; col < cols; col += WORKGROUP) {
    let at = start + col;
    let xs = vec4f(x[at.x], x[at.y], x[at.z], x[at.w]);
    let dys = vec4f(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
    sum += dys * xs * weight[col];
  }
  let meanGX = workgroupSum4(sum, thread) * scale / f32(cols); // mean(g xhat)
  for (var col = thread; col < cols; col += WORKGROUP) {
    let at = start + col;
    let xhat = vec4f(x[at.x], x[at.y], x[at.z], x[at.w]) * scale;
    let dys = vec4f(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
    // What dx held is read before any row is stored: a repeated row then stores the same sum again.
    var dxs = scale * (dys * weight[col] - xhat * meanGX);
    if (params.addToDx == 1u) { dxs += vec4f(dx[at.x], dx[at.y], dx[at.z], dx[at.w]); }
    dx[at.x] = dxs.x;
    dx[at.y] = dxs.y;
    dx[at.z] = dxs.z;
    dx[at.w] = dxs.w;
    dWeightTiles[tile * cols + col] = dot(dys * xhat, inRange);
  }
}
