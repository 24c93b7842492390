// Draws the next token of every row, and keeps the state of generation, so that decoding needs no host between tokens.
//
//   p = softmax(logits / temperature);  token = the first v with sum_{w <= v} p[w] > u   (inverse transform sampling)
//
// temperature 0 means greedy: the largest logit, the smallest id among equals; its log-probability is that of p at
// temperature 1. u is one uniform number per (seed, stream, sample, position), from the counter-based generator
// Philox4x32-10 (Salmon et al. 2011), so a sample does not depend on the batch that it was drawn in.
//
// One workgroup per row. The vocabulary is cut into WORKGROUP contiguous pieces, one per thread: each sums its piece,
// thread 0 finds the piece in which u falls, and walks it. All sums run in a fixed order.

struct Params {
  rows: u32,
  vocab: u32,
  step: u32,          // index of the token being drawn
  maxSteps: u32,      // columns of tokens and logProbs
  temperature: f32,
  seed: u32,
  endIds: u32,        // how many end ids
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;          // [rows, vocab]
@group(0) @binding(2) var<storage, read> streams: array<u32>;         // [rows, 2] prompt stream, sample number
@group(0) @binding(3) var<storage, read> endIdList: array<u32>;
@group(0) @binding(4) var<storage, read_write> nextIds: array<u32>;   // [rows] what the embedding reads next
@group(0) @binding(5) var<storage, read_write> positions: array<u32>; // [rows] position of nextIds
@group(0) @binding(6) var<storage, read_write> progress: array<u32>;  // [rows, 2] tokens drawn, and 1 once ended
@group(0) @binding(7) var<storage, read_write> tokens: array<u32>;    // [rows, maxSteps]
@group(0) @binding(8) var<storage, read_write> logProbs: array<f32>;  // [rows, maxSteps]

const WORKGROUP: u32 = 64u;
const LOWEST: f32 = -3.4028234e38;

var<workgroup> pieceMax: array<f32, WORKGROUP>;
var<workgroup> pieceArgmax: array<u32, WORKGROUP>;
var<workgroup> pieceSum: array<f32, WORKGROUP>;

// High 32 bits of a 32 x 32 bit product; WGSL has no 64-bit integers.
fn multiplyHigh(a: u32, b: u32) -> u32 {
  let low = (a & 0xffffu) * (b & 0xffffu);
  let middle = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
  let middle2 = (a & 0xffffu) * (b >> 16u) + (middle & 0xffffu);
  return (a >> 16u) * (b >> 16u) + (middle >> 16u) + (middle2 >> 16u);
}

fn philox(start: vec4u, startKey: vec2u) -> vec4u {
  var counter = start;
  var key = startKey;
  for (var round = 0u; round < 10u; round++) {
    let high0 = multiplyHigh(0xD2511F53u, counter.x);
    let low0 = 0xD2511F53u * counter.x;
    let high1 = multiplyHigh(0xCD9E8D57u, counter.z);
    let low1 = 0xCD9E8D57u * counter.z;
    counter = vec4u(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key += vec2u(0x9E3779B9u, 0xBB67AE85u);
  }
  return counter;
}

// Uniform in [0, 1), a multiple of 2^-24.
fn uniformNumber(row: u32) -> f32 {
  let counter = vec4u(streams[2u * row], streams[2u * row + 1u], params.step, 0u);
  return f32(philox(counter, vec2u(params.seed, 0u)).x >> 8u) / 16777216.0;
}

@compute @workgroup_size(WORKGROUP)
fn sample(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }  // uniform: the whole workgroup leaves
  let base = row * params.vocab;
  let pieceLength = (params.vocab + WORKGROUP - 1u) / WORKGROUP;
  let first = min(thread * pieceLength, params.vocab);
  let last = min(first + pieceLength, params.vocab);
  let greedy = params.temperature == 0.0;
  let scale = 1.0 / select(params.temperature, 1.0, greedy);

  var largest = LOWEST;
  var argmax = first;
  for (var v = first; v < last; v++) {
    let logit = logits[base + v];
    if (logit > largest) {
      largest = logit;
      argmax = v;
    }
  }
  pieceMax[thread] = largest;
  pieceArgmax[thread] = argmax;
  workgroupBarrier();
  var rowMax = LOWEST;
  var rowArgmax = 0u;
  for (var piece = 0u; piece < WORKGROUP; piece++) {
    if (pieceMax[piece] > rowMax) {
      rowMax = pieceMax[piece];
      rowArgmax = pieceArgmax[piece];
    }
  }

  var sum = 0.0;
  for (var v = first; v < last; v++) { sum += exp((logits[base + v] - rowMax) * scale); }
  pieceSum[thread] = sum;
  workgroupBarrier();
  if (thread != 0u) { return; }

  var total = 0.0;
  for (var piece = 0u; piece < WORKGROUP; piece++) { total += pieceSum[piece]; }
  var token = rowArgmax;
  if (!greedy) { token = inverseTransform(row, base, pieceLength, total, rowMax, scale, rowArgmax); }

  if (progress[2u * row + 1u] == 0u) {
    let slot = row * params.maxSteps + params.step;
    tokens[slot] = token;
    logProbs[slot] = (logits[base + token] - rowMax) * scale - log(total);
    progress[2u * row] += 1u;
    for (var i = 0u; i < params.endIds; i++) {
      if (endIdList[i] == token) { progress[2u * row + 1u] = 1u; }
    }
  }
  // A finished row goes on computing (shapes stay fixed), but what it draws is not recorded.
  nextIds[row] = token;
  positions[row] += 1u;
}

// The token at which the running sum of probabilities passes u; `fallback` if rounding lets it pass the end.
fn inverseTransform(row: u32, base: u32, pieceLength: u32, total: f32, rowMax: f32, scale: f32, fallback: u32) -> u32 {
  let threshold = uniformNumber(row) * total;
  var below = 0.0;
  var piece = 0u;
  while (piece < WORKGROUP - 1u && below + pieceSum[piece] <= threshold) {
    below += pieceSum[piece];
    piece += 1u;
  }
  let first = min(piece * pieceLength, params.vocab);
  let last = min(first + pieceLength, params.vocab);
  for (var v = first; v < last; v++) {
    below += exp((logits[base + v] - rowMax) * scale);
    if (below > threshold) { return v; }
  }
  return fallback;
}
