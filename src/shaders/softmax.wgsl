// include: workgroup_reduce
// (workgroupSum, workgroupMax and LOWEST come from there; kernel.ts may put subgroup_reduce in its place.)
//
// Softmax and log-softmax over the last axis, forward and backward.
//
//   softmax:     y = exp(x - max) / sum exp(x - max)        dx = y (dy - sum dy y)
//   logSoftmax:  y = x - max - log sum exp(x - max)         dx = dy - exp(y) sum dy
//
// All buffers are [rows, cols]. One workgroup per row; a thread takes every WORKGROUP-th column. With the maximum taken
// out no exponential exceeds 1 and their sum is at least 1, so neither overflow nor log(0) can happen.

struct Params { rows: u32, cols: u32, one: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> savedY: array<f32>; // the forward result, as backward reads it
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

const WORKGROUP: u32 = 64u;

fn rowMax(start: u32, thread: u32) -> f32 {
  var largest = LOWEST;
  for (var col = thread; col < params.cols; col += WORKGROUP) { largest = max(largest, x[start + col]); }
  return workgroupMax(largest, thread);
}

@compute @workgroup_size(WORKGROUP)
fn softmax(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  let largest = rowMax(start, thread);
  var sum = 0.0;
  for (var col = thread; col < params.cols; col += WORKGROUP) { sum += exp(x[start + col] - largest); }
  let scale = 1.0 / workgroupSum(sum, thread);
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    y[start + col] = exp(x[start + col] - largest) * scale;
  }
}

@compute @workgroup_size(WORKGROUP)
fn softmaxBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  var sum = 0.0;
  for (var col = thread; col < params.cols; col += WORKGROUP) { sum += dy[start + col] * savedY[start + col]; }
  let mean = workgroupSum(sum, thread); // of dy under the distribution y
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    dx[start + col] = savedY[start + col] * (dy[start + col] - mean);
  }
}

@compute @workgroup_size(WORKGROUP)
fn logSoftmax(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  let largest = rowMax(start, thread);
  var sum = 0.0;
  for (var col = thread; col < params.cols; col += WORKGROUP) { sum += exp(x[start + col] - largest); }
  let logSum = log(workgroupSum(sum, thread));
  // (x - max) first: max + logSum would round logSum away when the logits are large. A factor that the compiler does not
  // know to be 1 keeps it from adding the two all the same.
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    y[start + col] = (x[start + col] - largest) * params.one - logSum;
  }
}

@compute @workgroup_size(WORKGROUP)
fn logSoftmaxBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  var sum = 0.0;
  for (var col = thread; col < params.cols; col += WORKGROUP) { sum += dy[start + col]; }
  let total = workgroupSum(sum, thread);
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    dx[start + col] = dy[start + col] - exp(savedY[start + col]) * total;
  }
}
