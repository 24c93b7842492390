// include: workgroup_reduce
// (workgroupSum, workgroupMax and LOWEST come from there; kernel.ts may put subgroup_reduce in its place.)
//
// Log-probability of one token per row and entropy of the row's distribution, from logits; and the gradient of both.
//
//   z = logits / temperature,  d = z - max z,  S = sum exp(d),  p = exp(z - logSumExp)
//   logSumExp = max z + log S          logProb = z[target] - logSumExp
//   entropy   = -sum p log p = log S - (sum exp(d) d) / S
//   dlogits   = (dLogProb (onehot - p) - dEntropy p (log p + entropy)) / temperature
//
// logits [count, cols] is a chunk of rows: its row r is row `firstRow + r` of targets, logProbs, entropy and logSumExp,
// all [rows]. One workgroup per row; a thread takes every WORKGROUP-th column.
//
// Safe because d <= 0 everywhere and 0 somewhere: exp cannot overflow, 1 <= S <= cols, and the entropy is formed from
// d rather than z, so logits near +-100 do not cancel. exp is by far the dearest instruction on a CPU: one per element
// and direction.
//
// A target of IGNORE gives logProb 0, entropy 0 and no gradient. Any other target beyond the last column gives the
// logProb NaN, and gradients of NaN through it; entropy and its gradient do not depend on the target.

struct Params {
  count: u32,
  cols: u32,
  firstRow: u32,
  inverseTemperature: f32,
  hasLogProbs: u32,  // backward: whether dLogProbs and dEntropy are bound (else any tensor stands in)
  hasEntropy: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> targets: array<u32>;
@group(0) @binding(3) var<storage, read_write> logProbs: array<f32>;
@group(0) @binding(4) var<storage, read_write> entropy: array<f32>;
@group(0) @binding(5) var<storage, read_write> logSumExp: array<f32>;

@group(0) @binding(1) var<storage, read_write> gradients: array<f32>;  // logits in, dlogits out
@group(0) @binding(3) var<storage, read> savedEntropy: array<f32>;
@group(0) @binding(4) var<storage, read> savedLogSumExp: array<f32>;
@group(0) @binding(5) var<storage, read> dLogProbs: array<f32>;
@group(0) @binding(6) var<storage, read> dEntropy: array<f32>;

const WORKGROUP: u32 = 64u;
const IGNORE: u32 = 0xffffffffu;
const NAN_BITS: u32 = 0x7fc00000u;

// 0 for a valid target, NaN for one beyond the vocabulary. Added to the result.
fn nanUnlessValid(id: u32) -> f32 {
  return bitcast<f32>(select(NAN_BITS, 0u, id < params.cols));
}

@compute @workgroup_size(WORKGROUP)
fn forward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let chunkRow = workgroupId.x + workgroupId.y * grid.x;
  if (chunkRow >= params.count) { return; }  // the same for the whole workgroup
  let start = chunkRow * params.cols;
  let row = params.firstRow + chunkRow;

  var largest = LOWEST;
  for (var col = thread; col < params.cols; col += WORKGROUP) { largest = max(largest, logits[start + col]); }
  largest = workgroupMax(largest, thread);

  var weights = 0.0;          // sum exp(d)
  var weightedLogits = 0.0;   // sum exp(d) d
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    let d = (logits[start + col] - largest) * params.inverseTemperature;
    let weight = exp(d);
    weights += weight;
    weightedLogits += weight * d;
  }
  weights = workgroupSum(weights, thread);
  weightedLogits = workgroupSum(weightedLogits, thread);

  if (thread == 0u) {
    let logSum = log(weights);
    let id = targets[row];
    logSumExp[row] = largest * params.inverseTemperature + logSum;
    if (id == IGNORE) {
      logProbs[row] = 0.0;
      entropy[row] = 0.0;
    } else {
      let picked = (logits[start + min(id, params.cols - 1u)] - largest) * params.inverseTemperature;
      logProbs[row] = picked - logSum + nanUnlessValid(id);
      entropy[row] = logSum - weightedLogits / weights;
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn backward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let chunkRow = workgroupId.x + workgroupId.y * grid.x;
  if (chunkRow >= params.count) { return; }
  let start = chunkRow * params.cols;
  let row = params.firstRow + chunkRow;
  let id = targets[row];

  var byLogProb = 0.0;
  var byEntropy = 0.0;
  if (id != IGNORE) {
    if (params.hasLogProbs == 1u) { byLogProb = dLogProbs[row] * params.inverseTemperature + nanUnlessValid(id); }
    if (params.hasEntropy == 1u) { byEntropy = dEntropy[row] * params.inverseTemperature; }
  }
  // -p (dLogProb + dEntropy (log p + entropy)) = -p (atLogP0 + dEntropy log p)
  let atLogP0 = byLogProb + byEntropy * savedEntropy[row];
  let logTotal = savedLogSumExp[row];
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    let logP = gradients[start + col] * params.inverseTemperature - logTotal;
    let gradient = -exp(logP) * (atLogP0 + byEntropy * logP);
    gradients[start + col] = gradient + select(0.0, byLogProb, col == id);
  }
}
