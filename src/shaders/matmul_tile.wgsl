// include: matmul_common
// include: bf16
// Matrix product for GPUs, and for every adapter without fixed subgroups of 8: the textbook's shared-memory tile.
//
// A workgroup of 16 x 16 threads computes a 64 x 64 tile of c. It walks over k in slices of 16: all threads copy a
// 64 x 16 slice of a and a 16 x 64 slice of b to shared memory (8.1 KiB), then each multiplies 4 rows by 4 columns from
// there. Thread (x, y) owns rows y + 16 i and columns x + 16 j: neighbouring threads write neighbouring columns.
//
// Neighbouring threads also read neighbouring addresses, whichever way an operand is laid out: the copy runs along k
// if k is its contiguous axis, else along rows (columns). Elements outside the matrices are copied as 0.

const SIDE: u32 = 16u;           // threads along each side of the workgroup
const TILE: u32 = 64u;           // rows and columns of the tile
const SLICE: u32 = 16u;          // steps of k per slice
const PER_THREAD: u32 = 4u;      // TILE / SIDE
const THREADS: u32 = 256u;       // SIDE * SIDE
const PITCH: u32 = 65u;          // TILE + 1: a column of the slice then touches different memory banks

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<u32>;  // float32 bits, or bf16
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
@group(0) @binding(5) var<storage, read> residual: array<f32>;

var<workgroup> aSlice: array<f32, SLICE * PITCH>;  // [k][row]
var<workgroup> bSlice: array<f32, SLICE * PITCH>;  // [k][col]

fn loadB(index: u32) -> f32 {
  if (B_BF16 == 1u) { return bf16Element(b[index / 2u], index); }
  return bitcast<f32>(b[index]);
}

// Element `i` of a slice that is copied along k (contiguous: true) or along the other axis -> (other, k).
fn sliceElement(i: u32, alongInner: bool) -> vec2u {
  return select(vec2u(i % TILE, i / TILE), vec2u(i / SLICE, i % SLICE), alongInner);
}

@compute @workgroup_size(THREADS)
fn matmul(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let tile = locateTile(workgroupId.x + workgroupId.y * grid.x, TILE, TILE);
  if (!tile.exists) { return; }  // the same for the whole workgroup, so no thread misses a barrier
  let x = thread % SIDE;
  let y = thread / SIDE;

  var sums: array<vec4f, PER_THREAD>;
  for (var start = 0u; start < params.inner; start += SLICE) {
    for (var i = thread; i < SLICE * TILE; i += THREADS) {
      let ofA = sliceElement(i, params.aInner == 1u);
      let row = tile.row + ofA.x;
      var aElement = 0.0;
      if (row < params.rows && start + ofA.y < params.inner) {
        aElement = a[tile.aStart + row * params.aRow + (start + ofA.y) * params.aInner];
      }
      aSlice[ofA.y * PITCH + ofA.x] = aElement;

      let ofB = sliceElement(i, params.bInner == 1u);
      let col = tile.col + ofB.x;
      var bElement = 0.0;
      if (col < params.cols && start + ofB.y < params.inner) {
        bElement = loadB(tile.bStart + (start + ofB.y) * params.bInner + col * params.bCol);
      }
      bSlice[ofB.y * PITCH + ofB.x] = bElement;
    }
    workgroupBarrier();
    for (var k = 0u; k < SLICE; k++) {
      let colElements = vec4f(
        bSlice[k * PITCH + x],
        bSlice[k * PITCH + x + SIDE],
        bSlice[k * PITCH + x + 2u * SIDE],
        bSlice[k * PITCH + x + 3u * SIDE],
      );
      for (var i = 0u; i < PER_THREAD; i++) {
        sums[i] = fma(vec4f(aSlice[k * PITCH + y + i * SIDE]), colElements, sums[i]);
      }
    }
    workgroupBarrier();
  }

  for (var i = 0u; i < PER_THREAD; i++) {
    for (var j = 0u; j < PER_THREAD; j++) {
      let row = tile.row + y + i * SIDE;
      let col = tile.col + x + j * SIDE;
      if (row < params.rows && col < params.cols) { store(tile, row, col, sums[i][j]); }
    }
  }
}

// Writes one element of c: the product, and what is to be added to it.
fn store(tile: Tile, row: u32, col: u32, product: f32) {
  let index = tile.cStart + row * params.cRow + col;
  var sum = product;
  if (params.addends != 0u) {
    if ((params.addends & ADD_C) != 0u) { sum += c[index]; }
    if ((params.addends & ADD_BIAS) != 0u) { sum += bias[params.biasOffset + col]; }
    if ((params.addends & ADD_RESIDUAL) != 0u) { sum += residual[index]; }
  }
  c[index] = sum;
}
