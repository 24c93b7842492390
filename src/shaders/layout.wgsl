// Moving elements: permute, slice, concat and expand are one strided copy; gather picks along an axis by index.
//
// stridedCopy      y[yOffset + sum_d index_d y_d] = x[xOffset + sum_d index_d x_d], d = 0 .. RANK - 1, for every index.
//                  Elements are copied as bits, so float32 data and u32 ids share the kernel.
// gather           values [outer, n, inner], indices [outer, m, inner] -> picked [outer, m, inner]:
//                  picked[o, k, j] = values[o, indices[o, k, j], j]; NaN where the index is not below n
// gatherBackward   dPicked, indices [outer, m, inner] -> dValues [outer, n, inner]: each element adds up the picks
//                  of its line that point to it, so repeated indices need no atomics and always add in the same order
//
// Every thread strides over the grid (a "grid-stride loop"), so any number of workgroups is right.

struct Params {
  size: u32,
  // stridedCopy: lengths of axes 1.. of the shape, strides of x and y from axis 0 on, offsets
  length1: u32, length2: u32, length3: u32,
  x0: u32, x1: u32, x2: u32, x3: u32,
  y0: u32, y1: u32, y2: u32, y3: u32,
  xOffset: u32, yOffset: u32,
  // gather
  n: u32, m: u32, inner: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@group(0) @binding(1) var<storage, read> values: array<f32>;
@group(0) @binding(1) var<storage, read> dPicked: array<f32>;
@group(0) @binding(2) var<storage, read> indices: array<u32>;
@group(0) @binding(3) var<storage, read_write> picked: array<f32>;
@group(0) @binding(3) var<storage, read_write> dValues: array<f32>;

const RANK: u32 = 1u;
const WORKGROUP: u32 = 64u;

/// Offsets into x and y of element i of the shape. One division per axis, it is slow.
fn offsets(i: u32) -> vec2u {
  var rest = i;
  var at = vec2u(params.xOffset, params.yOffset);
  if (RANK > 3u) {
    let outer = rest / params.length3;
    at += (rest - outer * params.length3) * vec2u(params.x3, params.y3);
    rest = outer;
  }
  if (RANK > 2u) {
    let outer = rest / params.length2;
    at += (rest - outer * params.length2) * vec2u(params.x2, params.y2);
    rest = outer;
  }
  if (RANK > 1u) {
    let outer = rest / params.length1;
    at += (rest - outer * params.length1) * vec2u(params.x1, params.y1);
    rest = outer;
  }
  return at + rest * vec2u(params.x0, params.y0);
}

@compute @workgroup_size(WORKGROUP)
fn stridedCopy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[at.y] = x[at.x];
  }
}

@compute @workgroup_size(WORKGROUP)
fn gather(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let outer = i / (params.m * params.inner);
    let index = indices[i];
    if (index < params.n) {
      picked[i] = values[(outer * params.n + index) * params.inner + i % params.inner];
    } else {
      picked[i] = bitcast<f32>(index | 0x7fc00000u); // a NaN: loud, where a clamped index would pass unnoticed
    }
  }
}

@compute @workgroup_size(WORKGROUP)
fn gatherBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let outer = i / (params.n * params.inner);
    let index = i / params.inner % params.n;
    let line = outer * params.m * params.inner + i % params.inner;
    var total = 0.0;
    for (var k = 0u; k < params.m; k++) {
      let at = line + k * params.inner;
      if (indices[at] == index) { total += dPicked[at]; }
    }
    dValues[i] = total;
  }
}
