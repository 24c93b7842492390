// include: attention
enable subgroups;
// How attention.wgsl moves rows on software drivers, which run on a CPU: one workgroup is one subgroup. Of each row
// lane l loads the vec4f l, l + WORKGROUP.. and shuffles hand them round. There a load costs as much as many
// shuffles, whether its lanes read one element or many different ones, and takes long to compile. So loadOwn and
// storeOwn too move one row after the other; their loops start at block.first, not at 0, because a driver that could
// bound the number of rounds would unroll them.

const WORKGROUP: u32 = 8u; // the subgroup size of the adapter

// The row at `start`, for every lane.
fn fetch(x: ptr<storage, array<vec4f>, read>, start: u32, lane: u32) -> Row {
  var row: Row;
  var mine: vec4f;
  for (var c = 0u; c < VECTORS; c++) {
    if (c % WORKGROUP == 0u) {
      mine = (*x)[start + c + lane]; // what lies past the row's end is not used
    }
    row[c] = subgroupShuffle(mine, c % WORKGROUP);
  }
  return row;
}

fn loadOwn(x: ptr<storage, array<vec4f>, read>, offset: u32, block: Block, lane: u32) -> Row {
  var own: Row;
  for (var n = block.first; n < block.end; n++) {
    let owner = n - block.first;
    var row = fetch(x, subgroupShuffle(offset, owner), lane);
    for (var c = 0u; c < VECTORS; c++) {
      own[c] = select(own[c], row[c], lane == owner);
    }
  }
  return own;
}

fn storeOwn(x: ptr<storage, array<vec4f>, read_write>, offset: u32, own: Row, block: Block, lane: u32) {
  var row = own;
  for (var n = block.first; n < block.end; n++) {
    let owner = n - block.first;
    let start = subgroupShuffle(offset, owner);
    var mine = vec4f();
    for (var c = 0u; c < VECTORS; c++) {
      mine = select(mine, subgroupShuffle(row[c], owner), lane == c % WORKGROUP);
      let last = c % WORKGROUP; // of the lanes that have their vec4f now
      if ((last == WORKGROUP - 1u || c == VECTORS - 1u) && lane <= last) {
        (*x)[start + c - last + lane] = mine;
      }
    }
  }
}

// Nothing to prepare: rows are loaded when they are fetched.
fn stage(
  first: ptr<storage, array<vec4f>, read>,
  second: ptr<storage, array<vec4f>, read>,
  stream: ptr<function, Stream>,
  n: u32,
  lane: u32,
) {}

fn fetchFirst(x: ptr<storage, array<vec4f>, read>, stream: Stream, n: u32, lane: u32) -> Row {
  return fetch(x, stream.base + n * stream.stride, lane);
}

fn fetchSecond(x: ptr<storage, array<vec4f>, read>, stream: Stream, n: u32, lane: u32) -> Row {
  return fetch(x, stream.base + n * stream.stride, lane);
}

// ---- one query ----------------------------------------------------------------------------------------------------
//
// When a single query per batch row asks (decoding), there is one row for each head of the group, and lanes that own
// rows would mostly idle. Here a workgroup takes WORKGROUP keys at a time. Of each row lane l owns the vectors l,
// l + WORKGROUP ..: scores are sums over lanes, and lane j keeps the score of key j, so that one exponential serves all
// keys. Loops over keys start at the block's first, not at 0, lest they be unrolled (see above).

const GROUP_HEADS: u32 = 1u; // query heads per key-value head
const OWN_VECTORS: u32 = (VECTORS + WORKGROUP - 1u) / WORKGROUP;

alias OwnVectors = array<vec4f, OWN_VECTORS>;

fn loadVectors(x: ptr<storage, array<vec4f>, read>, start: u32, lane: u32) -> OwnVectors {
  var vectors: OwnVectors;
  for (var c = 0u; c < OWN_VECTORS; c++) {
    let vector = c * WORKGROUP + lane;
    vectors[c] = select(vec4f(), (*x)[start + min(vector, VECTORS - 1u)], vector < VECTORS);
  }
  return vectors;
}

// Over all lanes, for every lane; always in the same order.
fn sumOfLanes(value: f32) -> f32 {
  var sum = value;
  for (var step = 1u; step < WORKGROUP; step *= 2u) { sum += subgroupShuffleXor(sum, step); }
  return sum;
}

fn maxOfLanes(value: f32) -> f32 {
  var largest = value;
  for (var step = 1u; step < WORKGROUP; step *= 2u) { largest = max(largest, subgroupShuffleXor(largest, step)); }
  return largest;
}

@compute @workgroup_size(WORKGROUP)
fn forwardOneQuery(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = workgroupId.x + workgroupId.y * grid.x;
  let b = group / params.kvHeads;
  if (b >= params.batch) {
    return;
  }
  let position = startOf(b);
  let count = min(position + 1u, params.keys);
  let base = keyRow(b, group % params.kvHeads, 0u);
  let firstHead = group * GROUP_HEADS; // of all rows: heads of a group are neighbours
  var queries: array<OwnVectors, GROUP_HEADS>;
  var outputs: array<OwnVectors, GROUP_HEADS>;
  var maxima: array<f32, GROUP_HEADS>;
  var sums: array<f32, GROUP_HEADS>;
  for (var g = 0u; g < GROUP_HEADS; g++) {
    queries[g] = loadVectors(&q, (firstHead + g) * VECTORS, lane);
    maxima[g] = FIRST_MAXIMUM;
  }
  for (var first = 0u; first < count; first += WORKGROUP) {
    let end = min(first + WORKGROUP, count);
    var scores = array<f32, GROUP_HEADS>();
    for (var n = first; n < end; n++) {
      let key = loadVectors(&k, base + n * params.keyStride, lane);
      for (var g = 0u; g < GROUP_HEADS; g++) {
        var partial = 0.0;
        for (var c = 0u; c < OWN_VECTORS; c++) { partial += dot(queries[g][c], key[c]); }
        let score = params.scale * sumOfLanes(partial);
        scores[g] = select(scores[g], score, lane == n - first);
      }
    }
    let own = min(first + lane, count - 1u);
    let seen = first + lane < count && sees(position, own, endOf(b, own));
    for (var g = 0u; g < GROUP_HEADS; g++) {
      let score = select(LOWEST, scores[g], seen);
      let newMaximum = max(maxima[g], maxOfLanes(score));
      let shrink = exp(maxima[g] - newMaximum);
      scores[g] = exp(score - newMaximum); // from here on the share of the lane's key
      maxima[g] = newMaximum;
      sums[g] = sums[g] * shrink + sumOfLanes(scores[g]);
      for (var c = 0u; c < OWN_VECTORS; c++) { outputs[g][c] *= shrink; }
    }
    for (var n = first; n < end; n++) {
      let value = loadVectors(&v, base + n * params.keyStride, lane);
      let counts = sees(position, n, endOf(b, n)); // a share of 0 would not keep a NaN in padding away
      for (var g = 0u; g < GROUP_HEADS; g++) {
        let share = subgroupShuffle(scores[g], n - first);
        for (var c = 0u; c < OWN_VECTORS; c++) { outputs[g][c] += select(vec4f(), share * value[c], counts); }
      }
    }
  }
  for (var g = 0u; g < GROUP_HEADS; g++) {
    let seesNothing = sums[g] == 0.0;
    for (var c = 0u; c < OWN_VECTORS; c++) {
      let vector = c * WORKGROUP + lane;
      let scale = select(1.0 / sums[g], 0.0, seesNothing);
      if (vector < VECTORS) { y[(firstHead + g) * VECTORS + vector] = outputs[g][c] * scale; }
    }
    if (lane == 0u) {
      logSumExp[firstHead + g] = select(maxima[g] + log(max(sums[g], 1e-30)), -LOWEST, seesNothing);
    }
  }
}
