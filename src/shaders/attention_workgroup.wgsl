// include: attention
// How attention.wgsl moves rows on any adapter: each lane loads its own, and TILE streamed rows of both tensors at a
// time lie in workgroup memory.

const WORKGROUP: u32 = 32u;

// Two tiles of TILE * VECTORS * 16 bytes fill at most the 16 KiB that every adapter has.
const TILE: u32 = min(32u, 512u / VECTORS);

var<workgroup> firstTile: array<Row, TILE>;
var<workgroup> secondTile: array<Row, TILE>;

fn loadOwn(x: ptr<storage, array<vec4f>, read>, offset: u32, block: Block, lane: u32) -> Row {
  var own: Row;
  for (var c = 0u; c < VECTORS; c++) {
    own[c] = (*x)[offset + c];
  }
  return own;
}

fn storeOwn(x: ptr<storage, array<vec4f>, read_write>, offset: u32, own: Row, block: Block, lane: u32) {
  if (block.first + lane >= block.end) {
    return;
  }
  var row = own;
  for (var c = 0u; c < VECTORS; c++) {
    (*x)[offset + c] = row[c];
  }
}

// Where row n lies in another tile than the rows before, the lanes load that tile together.
fn stage(
  first: ptr<storage, array<vec4f>, read>,
  second: ptr<storage, array<vec4f>, read>,
  stream: ptr<function, Stream>,
  n: u32,
  lane: u32,
) {
  let tile = n / TILE;
  if (stream.tile == tile) {
    return;
  }
  stream.tile = tile;
  workgroupBarrier(); // every lane has done with the tile before
  let begin = tile * TILE;
  let vectors = min(TILE, stream.count - begin) * VECTORS;
  for (var at = lane; at < vectors; at += WORKGROUP) {
    let source = stream.base + (begin + at / VECTORS) * stream.stride + at % VECTORS;
    firstTile[at / VECTORS][at % VECTORS] = (*first)[source];
    secondTile[at / VECTORS][at % VECTORS] = (*second)[source];
  }
  workgroupBarrier();
}

fn fetchFirst(x: ptr<storage, array<vec4f>, read>, stream: Stream, n: u32, lane: u32) -> Row {
  return firstTile[n % TILE];
}

fn fetchSecond(x: ptr<storage, array<vec4f>, read>, stream: Stream, n: u32, lane: u32) -> Row {
  return secondTile[n % TILE];
}

// ---- one query ----------------------------------------------------------------------------------------------------
//
// When a single query per batch row asks (decoding), lanes that own rows would mostly idle. Here a workgroup serves one
// query head and takes WORKGROUP keys at a time. First each lane computes the score of a key. Then the lanes stand
// side by side over the head's vectors, several times over: each of these PARTS takes every PARTS-th key, with a
// maximum and sums of its own, and neighbouring lanes load neighbouring vectors of its value. At the end the parts'
// results are merged.

const PARTS: u32 = WORKGROUP / VECTORS;

var<workgroup> queryRow: Row;
var<workgroup> scores: array<f32, WORKGROUP>;
var<workgroup> outputs: array<vec4f, WORKGROUP>; // of part p: the vectors from p * VECTORS on
var<workgroup> maxima: array<f32, WORKGROUP>;    // of each part
var<workgroup> sums: array<f32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn forwardOneQuery(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  let heads = params.kvHeads * params.groupHeads;
  let b = row / heads;
  if (b >= params.batch) {
    return;
  }
  if (lane < VECTORS) {
    queryRow[lane] = q[row * VECTORS + lane];
  }
  workgroupBarrier();
  let position = startOf(b);
  let count = min(position + 1u, params.keys);
  let base = keyRow(b, row % heads / params.groupHeads, 0u);
  let part = lane / VECTORS;
  var output = vec4f();
  var maximum = FIRST_MAXIMUM;
  var sum = 0.0;
  for (var first = 0u; first < count; first += WORKGROUP) {
    let own = first + lane;
    var score = LOWEST;
    if (own < count && sees(position, own, endOf(b, own))) {
      score = 0.0;
      for (var c = 0u; c < VECTORS; c++) {
        score += dot(queryRow[c], k[base + own * params.keyStride + c]);
      }
      score *= params.scale;
    }
    scores[lane] = score;
    workgroupBarrier();
    let tile = select(0u, min(WORKGROUP, count - first), part < PARTS);
    for (var n = part; n < tile; n += PARTS) {
      if (scores[n] == LOWEST) {
        continue; // a share of 0 would not keep a NaN in padding away
      }
      let newMaximum = max(maximum, scores[n]);
      let shrink = exp(maximum - newMaximum);
      let share = exp(scores[n] - newMaximum);
      maximum = newMaximum;
      sum = sum * shrink + share;
      output = output * shrink + share * v[base + (first + n) * params.keyStride + lane % VECTORS];
    }
    workgroupBarrier(); // the next scores overwrite these
  }
  outputs[lane] = output;
  if (lane % VECTORS == 0u) {
    maxima[part] = maximum;
    sums[part] = sum;
  }
  workgroupBarrier();
  if (lane >= VECTORS) {
    return;
  }
  maximum = FIRST_MAXIMUM;
  for (var p = 0u; p < PARTS; p++) {
    maximum = max(maximum, maxima[p]);
  }
  sum = 0.0;
  output = vec4f();
  for (var p = 0u; p < PARTS; p++) {
    let shrink = exp(maxima[p] - maximum);
    sum += sums[p] * shrink;
    output += outputs[p * VECTORS + lane] * shrink;
  }
  let seesNothing = sum == 0.0;
  y[row * VECTORS + lane] = output * select(1.0 / sum, 0.0, seesNothing);
  if (lane == 0u) {
    logSumExp[row] = select(maximum + log(max(sum, 1e-30)), -LOWEST, seesNothing);
  }
}
