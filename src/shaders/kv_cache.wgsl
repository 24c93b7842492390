// Key/value cache: rows of past keys and values, written in place while a sequence grows. Keys and values go the same
// way, by one dispatch:
//
//   append:     cache[b, :, starts[b] + t, :] = new[b, t, :, :]       new [B, T, K, D] -> cache [B, K, capacity, D]
//   copyPrefix: cache[b, :, t, :] = source[sourceRow[b], :, t, :]     for t < time: gives every sample its prompt's keys
//   moveRows:   cache[moves[b].y, :, t, :] = cache[moves[b].x, :, t, :]  for t < time: closes the gaps of rows that have
//               ended. No row is moved from and moved to, so the order of moves does not matter.
//
// Unlike projections, a cache has its heads K before its tokens: attention reads the keys of one head one after the
// other, and so they lie in memory. One workgroup per token, its threads side by side over its K * D elements; D is a
// constant, so that telling heads apart takes no division, which on a CPU would be most of the work.

struct Params {
  batch: u32,
  time: u32,            // tokens written for each row
  heads: u32,           // K
  capacity: u32,        // tokens a row of the cache can hold
  sourceCapacity: u32,  // the same for the source of copyPrefix
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> starts: array<u32>;     // [B] position of each row's first new token
@group(0) @binding(1) var<storage, read> sourceRow: array<u32>;  // [B] which row of the source to copy
@group(0) @binding(1) var<storage, read> moves: array<vec2u>;    // [B] rows: from, to
@group(0) @binding(2) var<storage, read> newKeys: array<f32>;    // append: what to write; copyPrefix: the source
@group(0) @binding(3) var<storage, read> newValues: array<f32>;
@group(0) @binding(4) var<storage, read_write> keys: array<f32>;
@group(0) @binding(5) var<storage, read_write> values: array<f32>;

const WORKGROUP: u32 = 64u;
const HEAD_SIZE: u32 = 32u; // D

// Where element i of a token (head i / D) stands in a cache.
fn inCache(row: u32, token: u32, capacity: u32, i: u32) -> u32 {
  return ((row * params.heads + i / HEAD_SIZE) * capacity + token) * HEAD_SIZE + i % HEAD_SIZE;
}

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
  if (position >= params.capacity) { return; }  // the launcher's caller bounds the length; never write into the next head
  let width = params.heads * HEAD_SIZE;
  for (var i = thread; i < width; i += WORKGROUP) {
    let destination = inCache(row, position, params.capacity, i);
    keys[destination] = newKeys[token * width + i];
    values[destination] = newValues[token * width + i];
  }
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
  for (var i = thread; i < params.heads * HEAD_SIZE; i += WORKGROUP) {
    let origin = inCache(sourceRow[row], time, params.sourceCapacity, i);
    let destination = inCache(row, time, params.capacity, i);
    keys[destination] = newKeys[origin];
    values[destination] = newValues[origin];
  }
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
  for (var i = thread; i < params.heads * HEAD_SIZE; i += WORKGROUP) {
    let origin = inCache(pair.x, time, params.capacity, i);
    let destination = inCache(pair.y, time, params.capacity, i);
    keys[destination] = keys[origin];
    values[destination] = values[origin];
  }
}
