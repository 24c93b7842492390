// include: workgroup_reduce
// (workgroupSum, workgroupMax and LOWEST come from there; kernel.ts may put subgroup_reduce in its place.)
//
// Cross-entropy of logits [rows, cols] against one target id per row.
//
//   logSumExp = max + log sum exp(logits - max)
//   loss      = logSumExp - logits[target]
//   dLogits   = (exp(logits - logSumExp) - onehot(target)) dLoss
//
// losses, logSumExp, dLosses: [rows]. targets: u32 [rows]. A row whose target is IGNORE has loss 0 and gradient 0. Any
// other target >= cols gives NaN: the ids live on the GPU, so this is the earliest place that can notice.
//
// One workgroup per row; a thread takes every WORKGROUP-th column.

struct Params { rows: u32, cols: u32, one: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;
@group(0) @binding(4) var<storage, read_write> logSumExp: array<f32>;
@group(0) @binding(3) var<storage, read> savedLogSumExp: array<f32>;
@group(0) @binding(4) var<storage, read> dLosses: array<f32>;
@group(0) @binding(5) var<storage, read_write> dLogits: array<f32>;

const WORKGROUP: u32 = 64u;
const IGNORE: u32 = 0xffffffffu;
const NAN_BITS: u32 = 0x7fc00000u;

// 0 for a valid target, NaN for one beyond the vocabulary. Added to the result.
fn nanUnlessValid(id: u32) -> f32 {
  return bitcast<f32>(select(NAN_BITS, 0u, id < params.cols));
}

@compute @workgroup_size(WORKGROUP)
fn crossEntropy(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  var largest = LOWEST;
  for (var col = thread; col < params.cols; col += WORKGROUP) { largest = max(largest, logits[start + col]); }
  largest = workgroupMax(largest, thread);
  var sum = 0.0;
  for (var col = thread; col < params.cols; col += WORKGROUP) { sum += exp(logits[start + col] - largest); }
  let logSum = log(workgroupSum(sum, thread));
  if (thread == 0u) {
    logSumExp[row] = largest + logSum;
    let id = targets[row];
    var loss = 0.0;
    // Not logSumExp - logits[id]: that would round logSum away when the logits are large. A factor that the compiler does
    // not know to be 1 keeps it from making that of this.
    if (id != IGNORE) {
      let below = (logits[start + min(id, params.cols - 1u)] - largest) * params.one;
      loss = logSum - below + nanUnlessValid(id);
    }
    losses[row] = loss;
  }
}

@compute @workgroup_size(WORKGROUP)
fn crossEntropyBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let start = row * params.cols;
  let id = targets[row];
  if (id == IGNORE) {
    for (var col = thread; col < params.cols; col += WORKGROUP) { dLogits[start + col] = 0.0; }
    return;
  }
  let rowLogSumExp = savedLogSumExp[row];
  let dLoss = dLosses[row] + nanUnlessValid(id);
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    let p = exp(logits[start + col] - rowLogSumExp);
    dLogits[start + col] = (p - select(0.0, 1.0, col == id)) * dLoss;
  }
}
