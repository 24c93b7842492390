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
  for (var c = 0u; c < QUADS; c++) {
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
    for (var c = 0u; c < QUADS; c++) {
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
    var mine: vec4f;
    for (var c = 0u; c < QUADS; c++) {
      mine = select(mine, subgroupShuffle(row[c], owner), lane == c % WORKGROUP);
      let last = c % WORKGROUP; // of the lanes that have their vec4f now
      if ((last == WORKGROUP - 1u || c == QUADS - 1u) && lane <= last) {
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
