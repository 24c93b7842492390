// Rows of a table by id, and the gradient of the table.
//
//   y[i] = table[ids[i]]                    dTable[id] = sum of dy[i] over the i with ids[i] = id
//
// table, dTable: [vocabulary, cols]. ids: u32 [rows]. y, dy: [rows, cols].
//
// Backward without atomics: the host groups the positions by id and passes, for each of the `segments` distinct ids,
// the triple (id, first, end) in segmentTable; its positions are occurrences[first..end), in order. One workgroup adds
// up one id's rows, so the order of additions never changes. Rows of dTable that no id names are zero-filled before.
//
// One workgroup per output row (forward) or per distinct id (backward); a thread takes every WORKGROUP-th column.

struct Params { rows: u32, cols: u32, segments: u32 }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> segmentTable: array<u32>;
@group(0) @binding(2) var<storage, read> occurrences: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dTable: array<f32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn embedding(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let row = workgroupId.x + workgroupId.y * grid.x;
  if (row >= params.rows) { return; }
  let source = ids[row] * params.cols;
  let start = row * params.cols;
  for (var col = thread; col < params.cols; col += WORKGROUP) { y[start + col] = table[source + col]; }
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
    dTable[id * params.cols + col] = sum;
  }
}
