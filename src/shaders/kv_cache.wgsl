// Key/value cache: rows of past keys and values, written in place while a sequence grows. Keys and values go the same
// way, by one dispatch:
//
//   append:     cache[b, starts[b] + t, :] = new[b, t, :]    new [B, T, W] -> cache [B, capacity, W]
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

// One token's keys and values.
fn store(origin: u32, destination: u32, thread: u32) {
  for (var i = thread; i < params.width; i += WORKGROUP) {
    keys[destination + i] = newKeys[origin + i];
    values[destination + i] = newValues[origin + i];
  }
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
  if (position >= params.capacity) { return; }  // the launcher's caller bounds the length; never write into the next row
  let destination = (row * params.capacity + position) * params.width;
  store(token * params.width, destination, thread);
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
  store(origin, destination, thread);
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
  for (var i = thread; i < params.width; i += WORKGROUP) {
    keys[destination + i] = keys[origin + i];
    values[destination + i] = values[origin + i];
  }
}
