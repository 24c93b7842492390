// What both matrix-product kernels share: parameters, and which tile of which matrix a workgroup computes.
//
//   c[batch, row, col] (+)= sum over k of a[batch, row, k] * b[batch, k, col], + bias[col], + residual[batch, row, col]
//
// a and b are read through strides in elements, so a transpose is an exchange of two strides and a broadcast axis is a
// stride of 0; nothing is ever copied. c [batch, rows, cols] is contiguous, or (without a batch) a block of a matrix
// whose rows are cRow elements apart; residual lies as c does. Up to three batch axes (the launcher merges what it
// can). Offsets let all three be blocks of larger matrices.

struct Params {
  rows: u32,
  cols: u32,
  inner: u32,
  aOffset: u32,
  aRow: u32,
  aInner: u32,
  bOffset: u32,
  bInner: u32,
  bCol: u32,
  cOffset: u32,
  cRow: u32,
  addends: u32,     // what is added to the product: ADD_.. below, or 0
  biasOffset: u32,
  batches: u32,
  batchSize1: u32,  // sizes of the two inner batch axes
  batchSize2: u32,
  aBatch0: u32,     // strides of the three batch axes
  aBatch1: u32,
  aBatch2: u32,
  bBatch0: u32,
  bBatch1: u32,
  bBatch2: u32,
  tilesPerGroup: u32,  // tiles side by side that a workgroup of matmul_subgroup.wgsl computes
}

@group(1) @binding(0) var<uniform> params: Params;

// Bits of `addends`. Without its bit, what is bound as bias or residual is not read.
const ADD_C: u32 = 1u;
const ADD_BIAS: u32 = 2u;
const ADD_RESIDUAL: u32 = 4u;

const B_BF16: u32 = 0u;

// One workgroup's share: a tile of one matrix of the batch.
struct Tile {
  exists: bool,  // false for the surplus workgroups of a folded grid
  row: u32,      // first row and column
  col: u32,
  aStart: u32,   // where the matrices of this batch begin
  bStart: u32,
  cStart: u32,
}

// Tiles run along the columns first: neighbouring workgroups share the rows of a.
fn locateTile(group: u32, tileRows: u32, tileCols: u32) -> Tile {
  let across = (params.cols + tileCols - 1u) / tileCols;
  let down = (params.rows + tileRows - 1u) / tileRows;
  let batch = group / (across * down);
  let within = group % (across * down);
  let batch2 = batch % params.batchSize2;
  let batch1 = batch / params.batchSize2 % params.batchSize1;
  let batch0 = batch / params.batchSize2 / params.batchSize1;
  return Tile(
    batch < params.batches,
    within / across * tileRows,
    within % across * tileCols,
    params.aOffset + batch0 * params.aBatch0 + batch1 * params.aBatch1 + batch2 * params.aBatch2,
    params.bOffset + batch0 * params.bBatch0 + batch1 * params.bBatch1 + batch2 * params.bBatch2,
    params.cOffset + batch * params.rows * params.cols,
  );
}
