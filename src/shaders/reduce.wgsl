// include: float
// Sum or maximum along the middle axis of x [outer, n, inner] -> y [outer, chunks, inner].
//
// The axis is cut into `chunks` pieces of `chunk` elements (the last may be shorter), each reduced on its own; the host
// runs a second pass over the pieces when there are several. That gives a long axis enough threads, and keeps float32
// sums short, which bounds their rounding error. The order of additions is fixed by the shape: no atomics.
//
//   lines   one thread per element of y; neighbouring threads read neighbouring columns. Right for inner > 1.
//   rows    for inner = 1: ROW_THREADS threads share a piece and join their partial results in a tree.
//
// A maximum starts from an element instead of -infinity (which WGSL cannot write), and keeps a NaN.

// adds: to what y holds, for the gradients that several operations share.
struct Params { size: u32, n: u32, inner: u32, chunk: u32, chunks: u32, scale: f32, adds: u32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const MAXIMUM: u32 = 0u;
const ROW_THREADS: u32 = 64u;
const WORKGROUP: u32 = 64u;

var<workgroup> partials: array<f32, ROW_THREADS>;

fn combine(a: f32, b: f32) -> f32 {
  if (MAXIMUM == 1u) { return select(select(a, b, b > a || isNan(b)), a, isNan(a)); }
  return a + b;
}

@compute @workgroup_size(WORKGROUP)
fn lines(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  let i = id.x + id.y * grid.x * WORKGROUP;
  if (i >= params.size) { return; }
  let column = i % params.inner;
  let piece = i / params.inner % params.chunks;
  let outer = i / (params.inner * params.chunks);
  let first = piece * params.chunk;
  let last = min(first + params.chunk, params.n);
  let base = outer * params.n * params.inner + column;
  var result = 0.0;
  if (MAXIMUM == 1u) { result = x[base + first * params.inner]; }
  for (var k = first; k < last; k++) { result = combine(result, x[base + k * params.inner]); }
  store(i, result);
}

fn store(i: u32, result: f32) {
  var value = result * params.scale;
  if (params.adds == 1u) { value += y[i]; }
  y[i] = value;
}

@compute @workgroup_size(ROW_THREADS)
fn rows(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) lane: u32,
) {
  let group = workgroupId.x + workgroupId.y * grid.x;
  let i = min(group, params.size - 1u); // a surplus group goes along: all threads must meet at the barriers
  let first = i % params.chunks * params.chunk;
  let last = min(first + params.chunk, params.n);
  let base = i / params.chunks * params.n;
  var result = 0.0;
  if (MAXIMUM == 1u) { result = x[base + first]; }
  for (var k = first + lane; k < last; k += ROW_THREADS) { result = combine(result, x[base + k]); }
  partials[lane] = result;
  for (var half = ROW_THREADS / 2u; half > 0u; half /= 2u) {
    workgroupBarrier();
    if (lane < half) { partials[lane] = combine(partials[lane], partials[lane + half]); }
  }
  if (lane == 0u && group < params.size) { store(i, partials[0]); }
}
