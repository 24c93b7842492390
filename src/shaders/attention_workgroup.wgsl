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
