// include: matmul_common
// include: bf16
// Matrix product for the software driver: one subgroup of 8 lanes per workgroup, a large tile of c in registers.
//
// Departs from the textbook's shared-memory tile: on a CPU every load, shared memory included, costs as much as 20
// multiply-adds, but handing a value from one lane to the others costs 3. So for each k a lane loads one element of a
// per block of 8 rows and four of b per block of 32 columns, and the lanes broadcast their a to each other: a step of a
// 32 x 32 tile is 8 loads, 32 broadcasts and 128 multiply-adds, each of 8 lanes.
//
// The tile is ROW_BLOCKS x COL_BLOCKS blocks of 8 rows x 32 columns. Lane l owns columns l, l + 8, l + 16 and l + 24 of
// a block, one vec4f per row. Past the edges loads repeat the last row or column and stores are skipped.
enable subgroups;

const ROW_BLOCKS: u32 = 4u;
const COL_BLOCKS: u32 = 1u;

const LANES: u32 = 8u;
const BLOCK_ROWS: u32 = 8u;
const BLOCK_COLS: u32 = 32u;
const TILE_ROWS: u32 = ROW_BLOCKS * BLOCK_ROWS;
const TILE_COLS: u32 = COL_BLOCKS * BLOCK_COLS;

alias Sums = array<vec4f, TILE_ROWS * COL_BLOCKS>;  // [column block][row]

// Adds the outer product of 8 rows' elements of a (one per lane) and 32 columns' elements of b (four per lane) to the 8
// sums from `first` on. Written out because a broadcast takes its lane as a constant.
fn addOuterProduct(sums: ptr<function, Sums>, first: u32, rowElement: f32, colElements: vec4f) {
  (*sums)[first] = fma(vec4f(subgroupBroadcast(rowElement, 0u)), colElements, (*sums)[first]);
  (*sums)[first + 1u] = fma(vec4f(subgroupBroadcast(rowElement, 1u)), colElements, (*sums)[first + 1u]);
  (*sums)[first + 2u] = fma(vec4f(subgroupBroadcast(rowElement, 2u)), colElements, (*sums)[first + 2u]);
  (*sums)[first + 3u] = fma(vec4f(subgroupBroadcast(rowElement, 3u)), colElements, (*sums)[first + 3u]);
  (*sums)[first + 4u] = fma(vec4f(subgroupBroadcast(rowElement, 4u)), colElements, (*sums)[first + 4u]);
  (*sums)[first + 5u] = fma(vec4f(subgroupBroadcast(rowElement, 5u)), colElements, (*sums)[first + 5u]);
  (*sums)[first + 6u] = fma(vec4f(subgroupBroadcast(rowElement, 6u)), colElements, (*sums)[first + 6u]);
  (*sums)[first + 7u] = fma(vec4f(subgroupBroadcast(rowElement, 7u)), colElements, (*sums)[first + 7u]);
}

@compute @workgroup_size(LANES)
fn matmul(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = locateTile(workgroupId.x + workgroupId.y * grid.x, TILE_ROWS, TILE_COLS);
  if (!tile.exists) { return; }

  // Where this lane reads next: one row of a per block of rows, four columns of b per block of columns.
  var aIndex: array<u32, ROW_BLOCKS>;
  for (var i = 0u; i < ROW_BLOCKS; i++) {
    aIndex[i] = tile.aStart + min(tile.row + i * BLOCK_ROWS + lane, params.rows - 1u) * params.aRow;
  }
  var bIndex: array<vec4u, COL_BLOCKS>;
  for (var j = 0u; j < COL_BLOCKS; j++) {
    let cols = tile.col + j * BLOCK_COLS + lane + vec4u(0u, 8u, 16u, 24u);
    bIndex[j] = tile.bStart + min(cols, vec4u(params.cols - 1u)) * params.bCol;
  }

  var sums: Sums;
  for (var k = 0u; k < params.inner; k++) {
    var rowElements: array<f32, ROW_BLOCKS>;
    for (var i = 0u; i < ROW_BLOCKS; i++) {
      rowElements[i] = a[aIndex[i]];
      aIndex[i] += params.aInner;
    }
    for (var j = 0u; j < COL_BLOCKS; j++) {
      let at = bIndex[j];
      let colElements = vec4f(loadB(at.x), loadB(at.y), loadB(at.z), loadB(at.w));
      bIndex[j] += params.bInner;
      for (var i = 0u; i < ROW_BLOCKS; i++) {
        addOuterProduct(&sums, j * TILE_ROWS + i * BLOCK_ROWS, rowElements[i], colElements);
      }
    }
  }

  // The bound is data, so the compiler leaves this loop a loop: unrolled, it would take seconds to compile.
  let rowsInside = min(TILE_ROWS, params.rows - tile.row);
  for (var i = 0u; i < rowsInside; i++) {
    for (var j = 0u; j < COL_BLOCKS; j++) {
      for (var q = 0u; q < 4u; q++) {
        let col = tile.col + j * BLOCK_COLS + q * LANES + lane;
        if (col < params.cols) {
          let index = tile.cStart + (tile.row + i) * params.cRow + col;
          var sum = sums[j * TILE_ROWS + i][q];
          if (params.accumulate == 1u) { sum += c[index]; }
          c[index] = sum;
        }
      }
    }
  }
}
