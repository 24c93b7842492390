// include: bf16
// Rows of a table by id, and the gradient of the table.
//
//   y[i] = table[ids[i]]                    dTable[id] = sum of dy[i] over the i with ids[i] = id
//
// table, dTable: [vocabulary, cols]. ids: u32 [rows]. y, dy: [rows, cols].
//
// Backward without atomics: the host groups the positions by id and passes, for each of the `segments` distinct ids,
// the triple (id, first, end) in segmentTable; its positions are occurrences[first..end), in order. One workgroup adds
// up one id's rows, so the order of additions never changes. Rows of dTable that no id names are zero-filled before, or
// hold the shares of other operations, to which these sums are then added.
//
// One workgroup per output row (forward) or per distinct id (backward); a thread takes every WORKGROUP-th column.
//
// table may be a range of the whole: its row 0 is then row `firstRow`, and the dispatch writes only the y[i] whose id
// lies in it. dTable may be one too: ids in segmentTable count from its first row. An id beyond the vocabulary gives
// NaN.

struct Params {
  rows: u32,
  cols: u32,
  firstRow: u32,    // forward: which rows of the table are bound
  tableRows: u32,
  vocabulary: u32,
  segments: u32,    // backward
  adds: u32,        // backward: whether to add to what dTable holds
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>; // float32 bits, or bf16
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> segmentTable: array<u32>;
@group(0) @binding(2) var<storage, read> occurrences: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dTable: array<f32>;

const WORKGROUP: u32 = 64u;
const TABLE_BF16: u32 = 0u;
const NAN_BITS: u32 = 0x7fc00000u;

fn loadTable(index: u32) -> f32 {
  if (TABLE_BF16 == 1u) { return bf16Element(table[index / 2u], index); }
  return bitcast<f32>(table[index]);
}

@compute @workgroup_size(WORKGROUP)
fn embedding(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let id = ids[row];
  let start = row * params.cols;
  if (id >= params.vocabulary) {
    for (var col = thread; col < params.cols; col += WORKGROUP) { y[start + col] = bitcast<f32>(NAN_BITS | id); }
  } else if (id >= params.firstRow && id - params.firstRow < params.tableRows) {
    let source = (id - params.firstRow) * params.cols;
    for (var col = thread; col < params.cols; col += WORKGROUP) { y[start + col] = loadTable(source + col); }
  }
}

@compute @workgroup_size(WORKGROUP)
fn embeddingBackward(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let segment = workgroupId.x + workgroupId.y * grid.x;
  if (segment >= params.segments) { return; }
  let id = segmentTable[3u * segment];
  let first = segmentTable[3u * segment + 1u];
  let end = segmentTable[3u * segment + 2u];
  for (var col = thread; col < params.cols; col += WORKGROUP) {
    var sum = 0.0;
    for (var i = first; i < end; i++) { sum += dy[occurrences[i] * params.cols + col]; }
    if (params.adds == 1u) { sum += dTable[id * params.cols + col]; }
    dTable[id * params.cols + col] = sum;
  }
}
