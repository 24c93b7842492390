// include: workgroup_reduce
// (workgroupSum comes from there; kernel.ts may put subgroup_reduce in its place.)
//
// RMS normalisation of every head, then rotary position embedding, as Qwen3 does to queries and keys (rms_norm.wgsl and
// rotary.wgsl have the formulas). One dispatch for two, and no pass over memory between them.
//
//   n = x rstd weight, rstd = 1 / sqrt(mean(x^2) + eps) over the head        y = n with its pairs turned
//
// x, y: [tokens, heads, 2 HALF]. weight: [2 HALF]. rstd: [tokens, heads], for backward, which is made of the two
// kernels' own. cosines, sines: [maxPositions, HALF]. positions: u32 [tokens]; one >= maxPositions gives NaN.
//
// One workgroup per token: a thread takes every WORKGROUP-th pair of a head and does so for all heads, so it loads
// weights and angles once. All threads meet in the reduction of each head, those beyond the last pair too.

struct Params { tokens: u32, heads: u32, maxPositions: u32, eps: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> cosines: array<f32>;
@group(0) @binding(4) var<storage, read> sines: array<f32>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<storage, read_write> rstd: array<f32>;

const WORKGROUP: u32 = 64u;
const HALF: u32 = 16u;  // pairs of a head
const NAN_BITS: u32 = 0x7fc00000u;
const OWN: u32 = (HALF + WORKGROUP - 1u) / WORKGROUP;  // pairs of a thread

alias Pairs = array<vec2f, OWN>;  // elements i and i + HALF of each

@compute @workgroup_size(WORKGROUP)
fn rmsNormRotary(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let token = workgroupId.x + workgroupId.y * grid.x;
  if (token >= params.tokens) { return; }
  let position = positions[token];
  let invalid = bitcast<f32>(select(NAN_BITS, 0u, position < params.maxPositions));
  var weights: Pairs;
  var angles: Pairs;
  for (var i = 0u; i < OWN; i++) {
    let pair = min(thread + i * WORKGROUP, HALF - 1u);
    weights[i] = vec2f(weight[pair], weight[pair + HALF]);
    angles[i] = vec2f(cosines[position * HALF + pair], sines[position * HALF + pair]) + invalid;
  }
  for (var head = 0u; head < params.heads; head++) {
    let row = token * params.heads + head;
    let start = row * 2u * HALF;
    var own = Pairs();
    var squares = 0.0;
    for (var i = 0u; i < OWN; i++) {
      let pair = thread + i * WORKGROUP;
      if (pair < HALF) { own[i] = vec2f(x[start + pair], x[start + pair + HALF]); }
      squares += dot(own[i], own[i]);
    }
    let scale = inverseSqrt(workgroupSum(squares, thread) / f32(2u * HALF) + params.eps);
    for (var i = 0u; i < OWN; i++) {
      let pair = thread + i * WORKGROUP;
      let n = own[i] * scale * weights[i];
      let turn = angles[i];
      if (pair < HALF) {
        y[start + pair] = n.x * turn.x - n.y * turn.y;
        y[start + pair + HALF] = n.y * turn.x + n.x * turn.y;
      }
    }
    if (thread == 0u) { rstd[row] = scale; }
  }
}
