// include: matmul_common
// include: bf16
// Matrix product for the software driver: one subgroup of 8 lanes per workgroup, a large tile of c in registers.
//
// Departs from the textbook's shared-memory tile: on a CPU loading an element costs as much as 6 to 20 multiply-adds
// (shared memory is at the lower end), but handing a value from one lane to the others costs one. So lanes load what no
// other lane loads, and pass it on: each lane owns 4 rows of a and 4 columns of b, and for 4 steps of k it loads a block of 4 x 4
// elements of either. The lanes then shuffle their rows round, one after the other, and every lane multiplies the row
// that is up by its own columns. Four steps of a 32 x 32 tile are 8 loads of vectors, 32 shuffles of vectors and 512
// multiply-adds of 8 lanes; four steps at once, because the tile exceeds a CPU's registers, and a sum that is fetched
// and put back then serves four multiply-adds.
//
// A vector of 4 costs less than three single elements, so blocks are loaded by vectors along whichever axis is contiguous
// (A_ALONG, B_ALONG), and turned round in registers, which costs nothing. Where sizes are not multiples of 4 they are
// gathered element by element (ALONG_NONE).
//
// A workgroup may compute several tiles side by side (tilesPerGroup). It then stages its rows of a in workgroup memory
// first: a load from there costs half, since the driver checks no bounds. A lane reads back what it wrote itself, so no
// barrier is needed. Only so many steps of k fit, CHUNK: longer sums are taken in chunks, which add up in c.
//
// Past the edges loads repeat the last row or column, steps past the last k are zeros, and stores are skipped. Each sum
// runs over k in order, in the same chunks whether its rows are staged or not. So neither the tile's size, nor the way
// of loading, nor staging, which depends on the number of CPUs, changes a bit of the result.
enable subgroups;

const ROWS_PER_LANE: u32 = 4u;  // 4, or 1 for products of a few rows
const ROW_LANES: u32 = 8u;      // lanes whose rows make up the tile: 8, or 6 where the tile would not be filled

const LANES: u32 = 8u;
const COLS_PER_LANE: u32 = 4u;
const STEPS: u32 = 4u;
const TILE_ROWS: u32 = ROWS_PER_LANE * ROW_LANES;
const TILE_COLS: u32 = COLS_PER_LANE * LANES;

// How the blocks of a and b are loaded, and whether c is stored by vectors.
const ALONG_NONE: u32 = 0u;
const ALONG_INNER: u32 = 1u;
const ALONG_OUTER: u32 = 2u;  // rows of a, columns of b
const A_ALONG: u32 = 0u;
const B_ALONG: u32 = 0u;
const C_VECTORS: u32 = 0u;

@group(0) @binding(1) var<storage, read> a: array<vec4f>;
@group(0) @binding(2) var<storage, read> b: array<vec4u>;  // float32 bits, or bf16
@group(0) @binding(3) var<storage, read_write> c: array<vec4f>;
@group(0) @binding(4) var<storage, read> bias: array<vec4f>;
@group(0) @binding(5) var<storage, read> residual: array<vec4f>;

// Steps of k that are summed up before they are added to c: as many as fit into 32 KiB of workgroup memory, staged.
const CHUNK: u32 = 256u;
// Whether the rows of a chunk are staged for all tiles of a workgroup.
const STAGED: u32 = 0u;
var<workgroup> staged: array<vec4f, max(STAGED * CHUNK / STEPS * ROWS_PER_LANE * LANES, 1u)>;

alias Rows = array<vec4f, ROWS_PER_LANE>;  // of a lane: four steps of k for each of its rows
alias Sums = array<vec4f, TILE_ROWS>;      // four columns of each row of the tile

fn elementA(index: u32) -> f32 {
  return a[index / 4u][index % 4u];
}

fn elementB(index: u32) -> f32 {
  if (B_BF16 == 1u) { return bf16Element(b[index / 8u][index / 2u % 4u], index); }
  return bitcast<f32>(b[index / 4u][index % 4u]);
}

// Elements index .. index + 3 of b; index is a multiple of 4.
fn vectorB(index: u32) -> vec4f {
  if (B_BF16 == 0u) { return bitcast<vec4f>(b[index / 4u]); }
  let words = b[index / 8u];
  let pair = select(words.xy, words.zw, (index & 4u) != 0u);
  return vec4f(
    bf16Element(pair.x, 0u), bf16Element(pair.x, 1u), bf16Element(pair.y, 0u), bf16Element(pair.y, 1u),
  );
}

// This lane's rows of a, from `first` on, at steps k .. k + 3.
fn loadRows(tile: Tile, first: u32, k: u32) -> Rows {
  var rows: Rows;
  if (A_ALONG == ALONG_OUTER) {
    let at = tile.aStart + min(first, params.rows - ROWS_PER_LANE);
    var steps = mat4x4f();
    for (var step = 0u; step < STEPS; step++) {
      let inside = k + step < params.inner;
      steps[step] = select(vec4f(), a[(at + min(k + step, params.inner - 1u) * params.aInner) / 4u], inside);
    }
    let turned = transpose(steps);
    for (var i = 0u; i < ROWS_PER_LANE; i++) { rows[i] = turned[i]; }
    return rows;
  }
  for (var i = 0u; i < ROWS_PER_LANE; i++) {
    let at = tile.aStart + min(first + i, params.rows - 1u) * params.aRow;
    if (A_ALONG == ALONG_INNER) {
      rows[i] = a[(at + k) / 4u];
    } else {
      for (var step = 0u; step < STEPS; step++) {
        let inside = k + step < params.inner;
        rows[i][step] = select(0.0, elementA(at + min(k + step, params.inner - 1u) * params.aInner), inside);
      }
    }
  }
  return rows;
}

// This lane's columns of b, from `first` on, at steps k .. k + 3: a vector of the 4 columns for each step.
fn loadColumns(tile: Tile, first: u32, k: u32) -> mat4x4f {
  if (B_ALONG == ALONG_INNER) {
    var columns = mat4x4f();
    for (var j = 0u; j < COLS_PER_LANE; j++) {
      columns[j] = vectorB(tile.bStart + min(first + j, params.cols - 1u) * params.bCol + k);
    }
    return transpose(columns);
  }
  var steps: mat4x4f;
  for (var step = 0u; step < STEPS; step++) {
    let inside = k + step < params.inner;
    let at = tile.bStart + min(k + step, params.inner - 1u) * params.bInner;
    if (B_ALONG == ALONG_OUTER) {
      steps[step] = select(vec4f(), vectorB(at + min(first, params.cols - COLS_PER_LANE)), inside);
    } else {
      for (var j = 0u; j < COLS_PER_LANE; j++) {
        steps[step][j] = select(0.0, elementB(at + min(first + j, params.cols - 1u) * params.bCol), inside);
      }
    }
  }
  return steps;
}

// Four steps for the rows of one lane, which have been handed to all.
fn addRows(sums: ptr<function, Sums>, owner: u32, rows: Rows, columns: mat4x4f) {
  for (var i = 0u; i < ROWS_PER_LANE; i++) {
    // By a shuffle with a constant lane: a broadcast takes an instruction more on this driver.
    let row = subgroupShuffle(rows[i], owner);
    var sum = (*sums)[owner * ROWS_PER_LANE + i];
    sum = fma(vec4f(row.x), columns[0], sum);
    sum = fma(vec4f(row.y), columns[1], sum);
    sum = fma(vec4f(row.z), columns[2], sum);
    sum = fma(vec4f(row.w), columns[3], sum);
    (*sums)[owner * ROWS_PER_LANE + i] = sum;
  }
}

// The block of rows that this lane staged for steps k .. k + 3 of the chunk.
fn stagedRows(step: u32, lane: u32) -> Rows {
  var rows: Rows;
  for (var i = 0u; i < ROWS_PER_LANE; i++) { rows[i] = staged[(step / STEPS * ROWS_PER_LANE + i) * LANES + lane]; }
  return rows;
}

@compute @workgroup_size(LANES)
fn matmul(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(subgroup_invocation_id) lane: u32,
) {
  let tile = locateTile(workgroupId.x + workgroupId.y * grid.x, TILE_ROWS, TILE_COLS * params.tilesPerGroup);
  if (!tile.exists) { return; }
  let firstRow = tile.row + lane * ROWS_PER_LANE;
  let endCol = min(tile.col + TILE_COLS * params.tilesPerGroup, params.cols);

  var start = 0u;
  loop {  // once even if k has no steps: c is then 0
    let end = min(start + CHUNK, params.inner);
    if (STAGED == 1u) {
      for (var k = start; k < end; k += STEPS) {
        let rows = loadRows(tile, firstRow, k);
        for (var i = 0u; i < ROWS_PER_LANE; i++) {
          staged[((k - start) / STEPS * ROWS_PER_LANE + i) * LANES + lane] = rows[i];
        }
      }
    }
    for (var col = tile.col; col < endCol; col += TILE_COLS) {
      let firstCol = col + lane * COLS_PER_LANE;
      var sums = Sums();
      for (var k = start; k < end; k += STEPS) {
        var rows = Rows();
        if (STAGED == 1u) { rows = stagedRows(k - start, lane); } else { rows = loadRows(tile, firstRow, k); }
        let columns = loadColumns(tile, firstCol, k);
        addRows(&sums, 0u, rows, columns);
        addRows(&sums, 1u, rows, columns);
        addRows(&sums, 2u, rows, columns);
        addRows(&sums, 3u, rows, columns);
        addRows(&sums, 4u, rows, columns);
        addRows(&sums, 5u, rows, columns);
        if (ROW_LANES == LANES) {
          addRows(&sums, 6u, rows, columns);
          addRows(&sums, 7u, rows, columns);
        }
      }
      storeSums(tile, firstCol, &sums, select(ADD_C, params.addends, start == 0u));
    }
    start = end;
    if (start == params.inner) { break; }
  }
}

// The bound of the loop is data, so the compiler leaves it a loop: unrolled, it would take seconds to compile.
fn storeSums(tile: Tile, firstCol: u32, sums: ptr<function, Sums>, addends: u32) {
  let end = min(tile.row + TILE_ROWS, params.rows);
  for (var row = tile.row; row < end; row++) {
    let i = row - tile.row;
    let index = tile.cStart + row * params.cRow + firstCol;
    if (C_VECTORS == 1u) {
      if (firstCol < params.cols) { storeVector(index, firstCol, (*sums)[i], addends); }
    } else {
      for (var j = 0u; j < COLS_PER_LANE; j++) {
        if (firstCol + j < params.cols) { storeElement(index + j, firstCol + j, (*sums)[i][j], addends); }
      }
    }
  }
}

// Writes four neighbours in a row of c: their sums, and what is to be added to them. All indices are multiples of 4.
fn storeVector(index: u32, col: u32, sums: vec4f, addends: u32) {
  var result = sums;
  if ((addends & ADD_C) != 0u) { result += c[index / 4u]; }
  if ((addends & ADD_BIAS) != 0u) { result += bias[(params.biasOffset + col) / 4u]; }
  if ((addends & ADD_RESIDUAL) != 0u) { result += residual[index / 4u]; }
  c[index / 4u] = result;
}

fn storeElement(index: u32, col: u32, sum: f32, addends: u32) {
  let biasIndex = params.biasOffset + col;
  var result = sum;
  if ((addends & ADD_C) != 0u) { result += c[index / 4u][index % 4u]; }
  if ((addends & ADD_BIAS) != 0u) { result += bias[biasIndex / 4u][biasIndex % 4u]; }
  if ((addends & ADD_RESIDUAL) != 0u) { result += residual[index / 4u][index % 4u]; }
  c[index / 4u][index % 4u] = result;
}
