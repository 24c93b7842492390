// include: matmul_common
// include: bf16
// Matrix product for the software driver: one subgroup of 8 lanes per workgroup, a large tile of c in registers.
//
// Departs from the textbook's shared-memory tile: on a CPU every load, shared memory included, costs as much as 20
// multiply-adds, but handing a value from one lane to the others costs 3. So for each k a lane loads one element of a
// per block of 8 rows and one of b for each of its 4 columns, and the lanes broadcast their a to each other: a step of
// a 32 x 32 tile is 8 loads, 32 broadcasts and 128 multiply-adds, each of 8 lanes. Two steps of k are taken at once:
// the tile exceeds a CPU's registers, and a sum that is fetched and put back then serves two multiply-adds.
//
// The tile is ROW_BLOCKS blocks of 8 rows x 32 columns, of which lane l owns l, l + 8, l + 16 and l + 24, as a vec4f.
// Past the edges loads repeat the last row or column and stores are skipped. Each sum runs over k in order, so the
// tile's size changes no bit of the result.
enable subgroups;

const ROW_BLOCKS: u32 = 4u;

const LANES: u32 = 8u;
const BLOCK_ROWS: u32 = 8u;
const TILE_ROWS: u32 = ROW_BLOCKS * BLOCK_ROWS;
const TILE_COLS: u32 = 32u;

alias Sums = array<vec4f, TILE_ROWS>;

fn loadColumns(at: vec4u) -> vec4f {
  return vec4f(loadB(at.x), loadB(at.y), loadB(at.z), loadB(at.w));
}

// Two steps of k for one row: its elements of a, and its columns' elements of b at the first and at the next step.
fn addRow(sums: ptr<function, Sums>, row: u32, rowElements: vec2f, first: vec4f, next: vec4f) {
  (*sums)[row] = fma(vec4f(rowElements.y), next, fma(vec4f(rowElements.x), first, (*sums)[row]));
}

// Two steps of k for 8 rows; each lane has the elements of a of one of them. Written out because a broadcast takes its
// lane as a constant.
fn addRows(sums: ptr<function, Sums>, row: u32, rowElements: vec2f, first: vec4f, next: vec4f) {
  addRow(sums, row, subgroupBroadcast(rowElements, 0u), first, next);
  addRow(sums, row + 1u, subgroupBroadcast(rowElements, 1u), first, next);
  addRow(sums, row + 2u, subgroupBroadcast(rowElements, 2u), first, next);
  addRow(sums, row + 3u, subgroupBroadcast(rowElements, 3u), first, next);
  addRow(sums, row + 4u, subgroupBroadcast(rowElements, 4u), first, next);
  addRow(sums, row + 5u, subgroupBroadcast(rowElements, 5u), first, next);
  addRow(sums, row + 6u, subgroupBroadcast(rowElements, 6u), first, next);
  addRow(sums, row + 7u, subgroupBroadcast(rowElements, 7u), first, next);
}

@compute @workgroup_size(LANES)
fn matmul(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = locateTile(workgroupId.x + workgroupId.y * grid.x, TILE_ROWS, TILE_COLS);
  if (!tile.exists) { return; }

  // Where this lane reads next: one row of a per block of rows, and four columns of b.
  var aIndex: array<u32, ROW_BLOCKS>;
  for (var i = 0u; i < ROW_BLOCKS; i++) {
    aIndex[i] = tile.aStart + min(tile.row + i * BLOCK_ROWS + lane, params.rows - 1u) * params.aRow;
  }
  let cols = tile.col + lane + vec4u(0u, 8u, 16u, 24u);
  var bIndex = tile.bStart + min(cols, vec4u(params.cols - 1u)) * params.bCol;

  var sums: Sums;
  for (var k = 1u; k < params.inner; k += 2u) {
    // All loads before all sums: between them, they cost a tenth more.
    var rowElements: array<vec2f, ROW_BLOCKS>;
    for (var i = 0u; i < ROW_BLOCKS; i++) {
      rowElements[i] = vec2f(a[aIndex[i]], a[aIndex[i] + params.aInner]);
      aIndex[i] += 2u * params.aInner;
    }
    let first = loadColumns(bIndex);
    let next = loadColumns(bIndex + params.bInner);
    bIndex += 2u * params.bInner;
    for (var i = 0u; i < ROW_BLOCKS; i++) {
      addRows(&sums, i * BLOCK_ROWS, rowElements[i], first, next);
    }
  }

  // If k has an odd size, its last step is taken row by row, as the sums are written.
  let isOdd = (params.inner & 1u) == 1u;
  var last: vec4f;
  if (isOdd) { last = loadColumns(bIndex); }

  // The bound is data, so the compiler leaves this loop a loop: unrolled, it would take seconds to compile.
  let rowsInside = min(TILE_ROWS, params.rows - tile.row);
  for (var i = 0u; i < rowsInside; i++) {
    let row = tile.row + i;
    var sum = sums[i];
    if (isOdd) {
      let rowElement = a[tile.aStart + row * params.aRow + (params.inner - 1u) * params.aInner];
      sum = fma(vec4f(rowElement), last, sum);
    }
    for (var j = 0u; j < 4u; j++) {
      if (cols[j] < params.cols) { store(tile, row, cols[j], sum[j]); }
    }
  }
}
