// Key/value cache: rows of past keys and values, written in place while a sequence grows.
//
//   append:     cache[b, starts[b] + t, :] = x[b, t, :]      x [B, T, W] -> cache [B, capacity, W]
//   copyPrefix: cache[b, t, :] = source[sourceRow[b], t, :]  for t < time: gives every sample its prompt's keys
//   moveRows:   cache[moves[b].y, t, :] = cache[moves[b].x, t, :]  for t < time: closes the gaps of rows that have
//               ended. No row is moved from and moved to, so the order of moves does not matter.
//
// W = key/value heads * head size. One workgroup per token, its threads side by side over W: a division per token
// instead of per element, which is most of the work on a CPU.

struct Params {
  batch: u32,
  time: u32,            // tokens written for each row
  width: u32,           // W
  capacity: u32,        // tokens a row of the cache can hold
  sourceCapacity: u32,  // the same for `source`
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(1) var<storage, read> moves: array<vec2u>;    // [B] rows: from, to
@group(0) @binding(2) var<storage, read> starts: array<u32>;     // [B] position of each row's first new token
@group(0) @binding(2) var<storage, read> sourceRow: array<u32>;  // [B] which row of `source` to copy
@group(0) @binding(3) var<storage, read_write> cache: array<f32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn append(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let token = workgroupId.x + workgroupId.y * grid.x;
  if (token >= params.batch * params.time) { return; }
  let row = token / params.time;
  let position = starts[row] + token % params.time;
  if (position >= params.capacity) { return; }  // the launcher's caller bounds the length; never write into the next row
  let destination = (row * params.capacity + position) * params.width;
  for (var i = thread; i < params.width; i += WORKGROUP) { cache[destination + i] = x[token * params.width + i]; }
}

@compute @workgroup_size(WORKGROUP)
fn copyPrefix(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let token = workgroupId.x + workgroupId.y * grid.x;
  if (token >= params.batch * params.time) { return; }
  let row = token / params.time;
  let time = token % params.time;
  let origin = (sourceRow[row] * params.sourceCapacity + time) * params.width;
  let destination = (row * params.capacity + time) * params.width;
  for (var i = thread; i < params.width; i += WORKGROUP) { cache[destination + i] = source[origin + i]; }
}

@compute @workgroup_size(WORKGROUP)
fn moveRows(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let token = workgroupId.x + workgroupId.y * grid.x;
  if (token >= params.batch * params.time) { return; }
  let pair = moves[token / params.time];
  let time = token % params.time;
  let origin = (pair.x * params.capacity + time) * params.width;
  let destination = (pair.y * params.capacity + time) * params.width;
  for (var i = thread; i < params.width; i += WORKGROUP) { cache[destination + i] = cache[origin + i]; }
}
