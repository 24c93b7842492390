// Key/value cache: rows of past keys and values, written in place while a sequence grows.
//
//   append:     cache[b, starts[b] + t, :] = x[b, t, :]      x [B, T, W] -> cache [B, capacity, W]
//   copyPrefix: cache[b, t, :] = source[sourceRow[b], t, :]  for t < time: gives every sample its prompt's keys
//
// W = key/value heads * head size. One thread per element of x (append) or of the copied prefix (copyPrefix).

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
@group(0) @binding(2) var<storage, read> starts: array<u32>;     // [B] position of each row's first new token
@group(0) @binding(2) var<storage, read> sourceRow: array<u32>;  // [B] which row of `source` to copy
@group(0) @binding(3) var<storage, read_write> cache: array<f32>;

const WORKGROUP: u32 = 64u;

struct Position {
  row: u32,
  time: u32,
  channel: u32,
}

fn positionOf(index: u32) -> Position {
  let token = index / params.width;
  return Position(token / params.time, token % params.time, index % params.width);
}

@compute @workgroup_size(WORKGROUP)
fn append(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP + thread;
  if (index >= params.batch * params.time * params.width) { return; }
  let at = positionOf(index);
  let token = starts[at.row] + at.time;
  if (token >= params.capacity) { return; }  // the launcher's caller bounds the length; never write into the next row
  cache[(at.row * params.capacity + token) * params.width + at.channel] = x[index];
}

@compute @workgroup_size(WORKGROUP)
fn copyPrefix(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let index = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP + thread;
  if (index >= params.batch * params.time * params.width) { return; }
  let at = positionOf(index);
  let value = source[(sourceRow[at.row] * params.sourceCapacity + at.time) * params.width + at.channel];
  cache[(at.row * params.capacity + at.time) * params.width + at.channel] = value;
}
