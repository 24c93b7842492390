// What the adapter can do at best: arithmetic without memory, and memory without arithmetic.
//
//   multiplyAdd   every thread runs 12 independent chains x <- x a + b in registers, `rounds` times STEPS long
//   copyValues    destination[i] = source[i], PER_THREAD values of a thread, a workgroup apart
//   copyVectors   the same by vectors of four
//   readVectors   results[thread] = the sum of PER_THREAD vectors of source, a workgroup apart
//   nothing       one workgroup that writes one number: what a dispatch costs

struct Params { count: u32, rounds: u32, factor: f32, summand: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> results: array<f32>;
@group(0) @binding(2) var<storage, read> source: array<f32>;
@group(0) @binding(3) var<storage, read_write> destination: array<f32>;
@group(0) @binding(4) var<storage, read> sourceVectors: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> destinationVectors: array<vec4f>;

const WORKGROUP: u32 = 64u;
const STEPS: u32 = 4u;
const PER_THREAD: u32 = 8u;

@compute @workgroup_size(WORKGROUP)
fn multiplyAdd(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let index = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP + lane;
  let a = vec4f(params.factor);
  let b = vec4f(params.summand);
  var x = vec4f(f32(lane));
  var y = x + vec4f(1.0);
  var z = x + vec4f(2.0);
  for (var round = 0u; round < params.rounds; round++) {
    // A fixed number of steps, which compilers unroll: without that the loop's own work is most of it. A small one: the
    // software driver's compiler puts the steps of a chain behind one another, and with many a processor would find too
    // few independent instructions among those that it looks at, and wait for each.
    for (var step = 0u; step < STEPS; step++) {
      x = fma(x, a, b);
      y = fma(y, a, b);
      z = fma(z, a, b);
    }
  }
  let sum = x + y + z;
  if (index < params.count) { results[index] = sum.x + sum.y + sum.z + sum.w; }
}

@compute @workgroup_size(WORKGROUP)
fn copyValues(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP * PER_THREAD + lane;
  for (var i = 0u; i < PER_THREAD; i++) {
    let index = first + i * WORKGROUP;
    if (index < params.count) { destination[index] = source[index]; }
  }
}

@compute @workgroup_size(WORKGROUP)
fn copyVectors(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let first = (workgroupId.x + workgroupId.y * grid.x) * WORKGROUP * PER_THREAD + lane;
  for (var i = 0u; i < PER_THREAD; i++) {
    let index = first + i * WORKGROUP;
    if (index < params.count) { destinationVectors[index] = sourceVectors[index]; }
  }
}

@compute @workgroup_size(WORKGROUP)
fn readVectors(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = workgroupId.x + workgroupId.y * grid.x;
  var sum = vec4f();
  for (var i = 0u; i < PER_THREAD; i++) {
    let index = group * WORKGROUP * PER_THREAD + lane + i * WORKGROUP;
    if (index < params.count) { sum += sourceVectors[index]; }
  }
  results[group * WORKGROUP + lane] = sum.x + sum.y + sum.z + sum.w;
}

@compute @workgroup_size(1)
fn nothing() {
  results[0] = params.factor;
}
