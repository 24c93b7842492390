// include: workgroup_reduce
// (workgroupSum and LOWEST come from there; kernel.ts may put subgroup_reduce in its place.)
//
// Draws the next token of every row, and keeps the state of generation, so that decoding needs no host between tokens.
//
//   p = softmax(logits / temperature), restricted to the kept tokens and renormalised
//   token = the first v with sum_{w <= v} p[w] > u                                     (inverse transform sampling)
//
// temperature 0 means greedy: the largest logit, the smallest id among equals; its log-probability is that of p at
// temperature 1, all tokens kept. u is one uniform number per (seed, stream, sample, step), the step being the token's
// index within its completion, from the counter-based generator Philox4x32-10 (Salmon et al. 2011). So a sample does
// not depend on the batch that it was drawn in.
//
// Kept tokens: those of the warpers of Hugging Face transformers, in their order (temperature, top-k, top-p).
//   top-k  the k largest logits; all that equal the k-th are kept (as TopKLogitsWarper does).
//   top-p  the shortest head of the tokens, sorted by (probability falling, id rising), whose share of the tokens that
//          top-k left reaches p; at least one token. (TopPLogitsWarper leaves the order of equals open.)
// Departs from the textbook: nothing is sorted. Both sets are a threshold in the order (logit falling, id rising), and
// bisection finds it bit by bit: 32 passes over the order-preserving integers of the logits for each of top-k (counts)
// and top-p (sums of weights), then one pass per bit of an id to cut between tokens of equal logits. This is exact:
// float32 sums of non-negative terms in a fixed order never fall when a term is added, so the sums are monotonic.
//
// One workgroup per row. The vocabulary is cut into WORKGROUP contiguous pieces, one per thread: each sums its piece,
// thread 0 finds the piece in which u falls, and walks it. All sums run in a fixed order. A NaN among the logits makes
// the log-probability NaN.

struct Params {
  rows: u32,
  vocab: u32,
  step: u32,          // index of the token being drawn
  maxSteps: u32,      // columns of tokens and logProbs
  temperature: f32,
  seed: u32,
  endIds: u32,        // how many end ids
  topK: u32,          // 0 keeps all
  topP: f32,          // 1 keeps all
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;          // [rows, vocab]
@group(0) @binding(2) var<storage, read> streams: array<u32>;         // [rows, 2] prompt stream, sample number
@group(0) @binding(3) var<storage, read> endIdList: array<u32>;
@group(0) @binding(4) var<storage, read_write> nextIds: array<u32>;   // [rows] what the embedding reads next
@group(0) @binding(5) var<storage, read_write> positions: array<u32>; // [rows] position of nextIds
@group(0) @binding(6) var<storage, read_write> progress: array<u32>;  // [rows, 2] tokens drawn, and 1 once ended
@group(0) @binding(7) var<storage, read_write> tokens: array<u32>;    // [rows, maxSteps]
@group(0) @binding(8) var<storage, read_write> logProbs: array<f32>;  // [rows, maxSteps]

const WORKGROUP: u32 = 64u;
// Whether top-k or top-p may leave tokens out. A constant, because the search for their thresholds takes a second to
// compile, and training never asks for it.
const LIMITED: u32 = 0u;

var<workgroup> pieceMax: array<f32, WORKGROUP>;
var<workgroup> pieceArgmax: array<u32, WORKGROUP>;
var<workgroup> pieceSum: array<f32, WORKGROUP>;

// A row of logits, and the piece of it, first..last-1, that belongs to this thread.
struct Row {
  base: u32,
  first: u32,
  last: u32,
  largest: f32,
  scale: f32,  // 1 / temperature
}

// The tokens with sortKey above `key`, and of those with this very key the ids up to `lastId`.
struct Kept {
  key: u32,
  lastId: u32,
}

// An integer that orders floats: a < b if and only if sortKey(a) < sortKey(b). -0 counts as 0, a NaN as the largest.
fn sortKey(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let magnitude = bits & 0x7fffffffu;
  if (magnitude == 0u) { return 0x80000000u; }
  if (magnitude > 0x7f800000u) { return 0xffffffffu; }
  return bits ^ select(0x80000000u, 0xffffffffu, (bits >> 31u) == 1u);
}

fn isKept(v: u32, logit: f32, kept: Kept) -> bool {
  if (LIMITED == 0u) { return true; }
  let key = sortKey(logit);
  return key > kept.key || (key == kept.key && v <= kept.lastId);
}

// Not yet divided by the sum; the largest logit has weight 1.
fn weight(logit: f32, row: Row) -> f32 {
  return exp((logit - row.largest) * row.scale);
}

// Weight of the kept tokens of this thread's piece.
fn pieceWeight(row: Row, kept: Kept) -> f32 {
  var sum = 0.0;
  for (var v = row.first; v < row.last; v++) {
    let logit = logits[row.base + v];
    if (isKept(v, logit, kept)) { sum += weight(logit, row); }
  }
  return sum;
}

// The k-th largest key of the row: the largest that at least k tokens reach. Counts are exact in f32 up to 2^24.
fn topKThreshold(row: Row, thread: u32) -> u32 {
  var key = 0u;
  for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
    var count = 0.0;
    for (var v = row.first; v < row.last; v++) {
      if (sortKey(logits[row.base + v]) >= (key | bit)) { count += 1.0; }
    }
    count = workgroupSum(count, thread);
    key |= select(0u, bit, count >= f32(params.topK));
  }
  return key;
}

// The shortest head of the order (logit falling, id rising) with at least topP of the weight of the keys from `lowest`.
fn topPThreshold(row: Row, lowest: u32, thread: u32) -> Kept {
  let total = workgroupSum(pieceWeight(row, Kept(lowest, params.vocab)), thread);
  // One token has weight 1: a wanted weight below 1 means that one is enough, however small topP is.
  let wanted = max(params.topP * total, 0.5);
  // The largest key whose tokens, taken with all larger ones, reach it (never below `lowest`, which does) ...
  var key = 0u;
  for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
    let reached = workgroupSum(pieceWeight(row, Kept(key | bit, params.vocab)), thread);
    key |= select(0u, bit, reached >= wanted);
  }
  // ... and the smallest id up to which that key's tokens are needed: without this id the weight falls short.
  var lastId = 0u;
  for (var bit = 1u << (31u - countLeadingZeros(params.vocab)); bit > 0u; bit >>= 1u) {
    let reached = workgroupSum(pieceWeight(row, Kept(key, (lastId | bit) - 1u)), thread);
    lastId |= select(0u, bit, reached < wanted);
  }
  return Kept(key, lastId);
}

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

  let own = Row(base, first, last, rowMax, scale);
  var kept = Kept(0u, params.vocab); // all
  if (LIMITED == 1u) {
    if (!greedy && params.topK > 0u) { kept.key = topKThreshold(own, thread); }
    if (!greedy && params.topP < 1.0) { kept = topPThreshold(own, kept.key, thread); }
  }
  pieceSum[thread] = pieceWeight(own, kept);
  workgroupBarrier();
  if (thread != 0u) { return; }

  var total = 0.0;
  for (var piece = 0u; piece < WORKGROUP; piece++) { total += pieceSum[piece]; }
  var token = rowArgmax;
  if (!greedy) { token = inverseTransform(row, own, kept, total, rowArgmax); }

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

// The kept token at which the running sum of weights passes u; `fallback` if rounding lets it pass the end.
fn inverseTransform(rowId: u32, row: Row, kept: Kept, total: f32, fallback: u32) -> u32 {
  let threshold = uniformNumber(rowId) * total;
  var below = 0.0;
  var piece = 0u;
  while (piece < WORKGROUP - 1u && below + pieceSum[piece] <= threshold) {
    below += pieceSum[piece];
    piece += 1u;
  }
  let pieceLength = (params.vocab + WORKGROUP - 1u) / WORKGROUP;
  let first = min(piece * pieceLength, params.vocab);
  let last = min(first + pieceLength, params.vocab);
  for (var v = first; v < last; v++) {
    let logit = logits[row.base + v];
    if (isKept(v, logit, kept)) { below += weight(logit, row); }
    if (below > threshold) { return v; }
  }
  return fallback;
}
