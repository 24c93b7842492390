// Causal scaled-dot-product attention with grouped queries, forward and backward, without a [queries, keys] matrix in
// memory (FlashAttention, Dao 2022/2023). With i a query, j a key it sees, d an element of a head:
//
//   s_ij = scale q_i . k_j        L_i = log sum_j exp(s_ij)        p_ij = exp(s_ij - L_i)        y_i = sum_j p_ij v_j
//   delta_i = dy_i . y_i          ds_ij = p_ij (dy_i . v_j - delta_i)
//   dq_i = scale sum_j ds_ij k_j        dk_j = scale sum_i ds_ij q_i        dv_j = sum_i p_ij dy_i
//
// Query i of batch row b has the position queryStart[b] + i among the keys, and sees key j iff
//
//   j <= position < end of key j
//
// Ends make several sequences with common beginnings one row, a tree of tokens in depth-first order: key j ends behind
// its last descendant. Where a key has ended, so have its descendants, and loops jump to its end. A mask is the special
// case that padding ends at 0 and everything else never.
//
//   q, y, dy, dq [batch, queries, heads, HEAD_SIZE]      k, v, dk, dv [batch, keys, kvHeads, HEAD_SIZE], or
//   logSumExp, delta [batch, heads, queries]             [batch, kvHeads, keys, HEAD_SIZE] as a cache has them
//   visibility: keyEnd [batch, keys], then queryStart [batch], as far as they are given
//
// A row (the HEAD_SIZE elements of one head) is VECTORS vec4f; rows are addressed in vec4f.
//
// One workgroup serves a block of rows of one batch row and key-value head. Each lane owns one row and keeps it in
// registers together with its sums: in `forward` and `backwardQuery` a (query, head) pair of the group of heads that
// share the key-value head, in `backwardKey` a key. The rows of the other side stream past and are fetched once for
// all lanes. How rows reach the lanes is all that differs between adapters; it is left to the file that includes this
// one:
//
//   attention_subgroup.wgsl    shuffles within a subgroup          attention_workgroup.wgsl    workgroup memory
//
// Each of them defines WORKGROUP, the number of lanes, and functions that all lanes call together:
//   loadOwn(&x, offset, block, lane)          the row of x at each lane's own offset
//   storeOwn(&x, offset, row, block, lane)    the opposite
//   stage(&a, &b, &stream, n, lane)           comes before row n of a stream in the tensors a and b is fetched
//   fetchFirst(&a, stream, n, lane)           row n of a, for every lane
//   fetchSecond(&b, stream, n, lane)          row n of b, for every lane
//
// A single query per batch row (decoding) does not fill lanes that own rows. It has an entry point of its own in each of
// the two files, `forwardOneQuery`, where lanes share the row.
//
// Safety: scores are shifted by their running maximum (forward) or by L (backward), so no exponential exceeds 1. A
// hidden key has the score LOWEST, far below any maximum, so that its exponential is exactly 0; infinities never
// occur. A query that sees nothing gives y = 0 and L = -LOWEST, and no p_ij of the backward pass. Every sum has one
// owner and a fixed order: no atomics, bit-equal from run to run.

struct Params {
  batch: u32,
  queries: u32,
  keys: u32,
  kvHeads: u32,
  groupHeads: u32, // query heads per key-value head
  keyStride: u32,  // from a key to the next of its head, in vec4f
  headStride: u32, // from a key to that of the next head
  keyRule: u32,    // what keyEnd holds: NOTHING, MASK or ENDS
  firstStart: u32, // where queryStart begins in `visibility`; NEVER: all rows start at 0
  scale: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4f>;
@group(0) @binding(2) var<storage, read> k: array<vec4f>;
@group(0) @binding(3) var<storage, read> v: array<vec4f>;
@group(0) @binding(4) var<storage, read> visibility: array<u32>;
@group(0) @binding(5) var<storage, read_write> logSumExp: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(7) var<storage, read> savedY: array<vec4f>;
@group(0) @binding(8) var<storage, read> savedLogSumExp: array<f32>;
@group(0) @binding(9) var<storage, read> dy: array<vec4f>;
@group(0) @binding(10) var<storage, read_write> rowStats: array<vec2f>; // L and delta of each row, by `rowStatistics`
@group(0) @binding(11) var<storage, read> savedRowStats: array<vec2f>;
@group(0) @binding(12) var<storage, read_write> dq: array<vec4f>;
@group(0) @binding(13) var<storage, read_write> dk: array<vec4f>;
@group(0) @binding(14) var<storage, read_write> dv: array<vec4f>;

const HEAD_SIZE: u32 = 32u; // a multiple of 4
const VECTORS: u32 = HEAD_SIZE / 4u;
const LOWEST: f32 = -3.4028234e38; // -FLT_MAX
const FIRST_MAXIMUM: f32 = -1e30;  // below any real score, far above LOWEST

const NOTHING: u32 = 0u;
const MASK: u32 = 1u;
const ENDS: u32 = 2u;
const NEVER: u32 = 0xffffffffu; // the end of a key that all later queries see; also: nowhere

alias Row = array<vec4f, VECTORS>;

// Rows that stream past: number n of `count` starts at `base + n * stride`.
struct Stream {
  base: u32,
  stride: u32,
  count: u32,
  tile: u32, // the rows that lie ready; only attention_workgroup.wgsl uses it
}

// The work of a workgroup: rows first..end-1 of one batch row and key-value head, one for each lane from 0 on.
struct Block {
  b: u32,
  kvHead: u32,
  first: u32,
  end: u32,
}

// Block number `group` where each batch row and key-value head has `rows` rows.
fn blockOf(group: u32, rows: u32) -> Block {
  let blocks = (rows + WORKGROUP - 1u) / WORKGROUP;
  let pair = group / blocks;
  let first = group % blocks * WORKGROUP;
  return Block(pair / params.kvHeads, pair % params.kvHeads, first, min(first + WORKGROUP, rows));
}

// Position of the first query of batch row b among the keys.
fn startOf(b: u32) -> u32 {
  if (params.firstStart == NEVER) {
    return 0u;
  }
  return visibility[params.firstStart + b];
}

// One past the last position that sees key j; 0 for padding.
fn endOf(b: u32, j: u32) -> u32 {
  if (params.keyRule == NOTHING) {
    return NEVER;
  }
  let end = visibility[b * params.keys + j];
  return select(end, NEVER, params.keyRule == MASK && end != 0u);
}

// Where the row of key (or value) j starts.
fn keyRow(b: u32, kvHead: u32, j: u32) -> u32 {
  return b * params.keys * params.kvHeads * VECTORS + kvHead * params.headStride + j * params.keyStride;
}

// The rows of keys (or values) that any query of the block may see: however long the cache is, loops end there.
fn keyStream(block: Block) -> Stream {
  let lastQuery = (block.end - 1u) / params.groupHeads;
  let count = min(startOf(block.b) + lastQuery + 1u, params.keys);
  return Stream(keyRow(block.b, block.kvHead, 0u), params.keyStride, count, NEVER);
}

// The first key from number n on that has not ended before the block's first query; all lanes get the same.
fn nextKey(block: Block, n: u32, keys: Stream) -> u32 {
  if (params.keyRule == NOTHING) {
    return n;
  }
  let firstPosition = startOf(block.b) + block.first / params.groupHeads;
  var next = n;
  while (next < keys.count) {
    let end = endOf(block.b, next);
    if (end > firstPosition) {
      break;
    }
    next = max(next + 1u, end);
  }
  return next;
}

// One past the last query that sees any key of a block of keys.
fn queryEnd(block: Block) -> u32 {
  var end = 0u;
  for (var j = block.first; j < block.end; j++) {
    end = max(end, endOf(block.b, j));
  }
  return min(end - min(end, startOf(block.b)), params.queries);
}

// The (query, head) pair of a lane. Heads of a group are neighbours, so that decoding (one query) fills several lanes.
struct Query {
  offset: u32,   // of its row in q, y, dy, dq
  index: u32,    // of its entry in logSumExp, rowStats
  position: u32, // among the keys
}

fn queryOf(block: Block, lane: u32) -> Query {
  let row = min(block.first + lane, block.end - 1u); // surplus lanes repeat the last row and store nothing
  let i = row / params.groupHeads;
  let heads = params.kvHeads * params.groupHeads;
  let head = block.kvHead * params.groupHeads + row % params.groupHeads;
  return Query(
    ((block.b * params.queries + i) * heads + head) * VECTORS,
    (block.b * heads + head) * params.queries + i,
    startOf(block.b) + i,
  );
}

// Whether the query at `position` sees key j.
fn sees(position: u32, j: u32, end: u32) -> bool {
  return j <= position && position < end;
}

@compute @workgroup_size(WORKGROUP)
fn forward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let block = blockOf(workgroupId.x + workgroupId.y * grid.x, params.queries * params.groupHeads);
  if (block.b >= params.batch) {
    return;
  }
  let own = queryOf(block, lane);
  var query = loadOwn(&q, own.offset, block, lane);
  var output: Row;
  var maximum = FIRST_MAXIMUM;
  var sum = 0.0;
  var keys = keyStream(block);
  for (var n = nextKey(block, 0u, keys); n < keys.count; n = nextKey(block, n + 1u, keys)) {
    stage(&k, &v, &keys, n, lane);
    var key = fetchFirst(&k, keys, n, lane);
    var value = fetchSecond(&v, keys, n, lane);
    var s = 0.0;
    for (var c = 0u; c < VECTORS; c++) {
      s += dot(query[c], key[c]);
    }
    s = select(LOWEST, s * params.scale, sees(own.position, n, endOf(block.b, n)));
    // Online softmax: when the maximum rises, what was summed up so far shrinks.
    let newMaximum = max(maximum, s);
    let shrink = exp(maximum - newMaximum);
    let p = exp(s - newMaximum);
    maximum = newMaximum;
    sum = sum * shrink + p;
    for (var c = 0u; c < VECTORS; c++) {
      output[c] = output[c] * shrink + p * value[c];
    }
  }
  let seesNothing = sum == 0.0;
  for (var c = 0u; c < VECTORS; c++) {
    output[c] *= select(1.0 / sum, 0.0, seesNothing);
  }
  storeOwn(&y, own.offset, output, block, lane);
  if (block.first + lane < block.end) {
    logSumExp[own.index] = select(maximum + log(max(sum, 1e-30)), -LOWEST, seesNothing);
  }
}

// L and delta of each row of y, a row per lane: what the two kernels that follow share.
@compute @workgroup_size(WORKGROUP)
fn rowStatistics(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP + lane;
  let heads = params.kvHeads * params.groupHeads;
  if (row >= params.batch * params.queries * heads) {
    return;
  }
  var delta = 0.0;
  for (var c = 0u; c < VECTORS; c++) {
    delta += dot(dy[row * VECTORS + c], savedY[row * VECTORS + c]);
  }
  let query = row / heads;
  let index = (query / params.queries * heads + row % heads) * params.queries + query % params.queries;
  rowStats[index] = vec2f(savedLogSumExp[index], delta);
}

@compute @workgroup_size(WORKGROUP)
fn backwardQuery(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let block = blockOf(workgroupId.x + workgroupId.y * grid.x, params.queries * params.groupHeads);
  if (block.b >= params.batch) {
    return;
  }
  let own = queryOf(block, lane);
  var query = loadOwn(&q, own.offset, block, lane);
  var dOutput = loadOwn(&dy, own.offset, block, lane);
  var dQuery: Row;
  let stats = savedRowStats[own.index];
  var keys = keyStream(block);
  for (var n = nextKey(block, 0u, keys); n < keys.count; n = nextKey(block, n + 1u, keys)) {
    stage(&k, &v, &keys, n, lane);
    var key = fetchFirst(&k, keys, n, lane);
    var value = fetchSecond(&v, keys, n, lane);
    var s = 0.0;
    var dP = 0.0;
    for (var c = 0u; c < VECTORS; c++) {
      s += dot(query[c], key[c]);
      dP += dot(dOutput[c], value[c]);
    }
    let seen = sees(own.position, n, endOf(block.b, n));
    let ds = select(0.0, exp(s * params.scale - stats.x) * (dP - stats.y), seen);
    for (var c = 0u; c < VECTORS; c++) {
      dQuery[c] += ds * key[c];
    }
  }
  for (var c = 0u; c < VECTORS; c++) {
    dQuery[c] *= params.scale;
  }
  storeOwn(&dq, own.offset, dQuery, block, lane);
}

@compute @workgroup_size(WORKGROUP)
fn backwardKey(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let block = blockOf(workgroupId.x + workgroupId.y * grid.x, params.keys);
  if (block.b >= params.batch) {
    return;
  }
  let j = min(block.first + lane, block.end - 1u); // surplus lanes repeat the last key and store nothing
  let end = endOf(block.b, j);
  let offset = keyRow(block.b, block.kvHead, j);
  var key = loadOwn(&k, offset, block, lane);
  var value = loadOwn(&v, offset, block, lane);
  var dKey: Row;
  var dValue: Row;
  // Key j is seen from query j - start on.
  let start = startOf(block.b);
  let endQuery = queryEnd(block);
  let firstQuery = min(block.first - min(block.first, start), endQuery);
  let heads = params.kvHeads * params.groupHeads;
  for (var g = 0u; g < params.groupHeads; g++) {
    let head = block.kvHead * params.groupHeads + g;
    let base = ((block.b * params.queries + firstQuery) * heads + head) * VECTORS;
    var queries = Stream(base, heads * VECTORS, endQuery - firstQuery, NEVER);
    let index = (block.b * heads + head) * params.queries + firstQuery;
    for (var n = 0u; n < queries.count; n++) {
      stage(&q, &dy, &queries, n, lane);
      var query = fetchFirst(&q, queries, n, lane);
      var dOutput = fetchSecond(&dy, queries, n, lane);
      var s = 0.0;
      var dP = 0.0;
      for (var c = 0u; c < VECTORS; c++) {
        s += dot(key[c], query[c]);
        dP += dot(value[c], dOutput[c]);
      }
      let seen = sees(start + firstQuery + n, j, end);
      let stats = savedRowStats[index + n];
      let p = select(0.0, exp(s * params.scale - stats.x), seen);
      let ds = select(0.0, p * (dP - stats.y), seen);
      for (var c = 0u; c < VECTORS; c++) {
        dKey[c] += ds * query[c];
        dValue[c] += p * dOutput[c];
      }
    }
  }
  for (var c = 0u; c < VECTORS; c++) {
    dKey[c] *= params.scale;
  }
  storeOwn(&dk, offset, dKey, block, lane);
  storeOwn(&dv, offset, dValue, block, lane);
}
