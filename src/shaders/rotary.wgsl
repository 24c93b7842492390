// Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face Llama and Qwen.
//
//   pair i of a head: (a, b) = (x[i], x[i + half])      y[i] = a cos - b sin      y[i + half] = b cos + a sin
//
// with cos and sin of position * theta^(-2 i / headSize). The gradient turns by the opposite angle: direction = -1
// negates sin. x, y: [tokens, heads, 2 half]. cosines, sines: [maxPositions, half], from the host in float64.
// positions: u32 [tokens]; one >= maxPositions gives NaN, since the host cannot look at them.
//
// One workgroup per token. `lanes` = min(half, WORKGROUP) threads lie side by side on the pairs of one head, the others
// on further heads, so that a thread loads the two table entries once for all of its heads.

struct Params { tokens: u32, heads: u32, half: u32, lanes: u32, maxPositions: u32, direction: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> cosines: array<f32>;
@group(0) @binding(3) var<storage, read> sines: array<f32>;
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

const WORKGROUP: u32 = 64u;
const NAN_BITS: u32 = 0x7fc00000u;

@compute @workgroup_size(WORKGROUP)
fn rotary(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let token = workgroupId.x + workgroupId.y * grid.x;
  if (token >= params.tokens) { return; }
  let half = params.half;
  let headsAtOnce = WORKGROUP / params.lanes;
  let firstHead = thread / params.lanes;
  if (firstHead >= headsAtOnce) { return; } // WORKGROUP is no multiple of lanes: the remainder idles
  let position = positions[token];
  let invalid = bitcast<f32>(select(NAN_BITS, 0u, position < params.maxPositions));
  for (var pair = thread % params.lanes; pair < half; pair += params.lanes) {
    let c = cosines[position * half + pair] + invalid;
    let s = sines[position * half + pair] * params.direction + invalid;
    for (var head = firstHead; head < params.heads; head += headsAtOnce) {
      let at = (token * params.heads + head) * 2u * half + pair;
      let a = x[at];
      let b = x[at + half];
      y[at] = a * c - b * s;
      y[at + half] = b * c + a * s;
    }
  }
}
