// include: float
// Elementwise operations of two tensors (and `choose`, of three), with broadcasting: y[i] = f(a[.], b[.]).
//
//   a, b, condition   read through strides; a broadcast axis has stride 0
//   y                 [size], contiguous
//
// Every thread strides over the grid (a "grid-stride loop"). The host merges axes first, so that RANK is small: 1 when
// the shapes are equal or one operand is a scalar (then an offset is i times 1 or 0, without any division), 2 for a
// bias, at most 4.

struct Params {
  size: u32,
  // Lengths of the merged axes 1.. (axis 0 needs none), and each operand's strides from axis 0 to RANK - 1.
  length1: u32, length2: u32, length3: u32,
  a0: u32, a1: u32, a2: u32, a3: u32,
  b0: u32, b1: u32, b2: u32, b3: u32,
  c0: u32, c1: u32, c2: u32, c3: u32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> condition: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const RANK: u32 = 1u;
const WORKGROUP: u32 = 64u;

/// Where element i of y finds its operands: offsets into a, b and condition. One division per axis, it is slow.
fn offsets(i: u32) -> vec3u {
  var rest = i;
  var at = vec3u(0u);
  if (RANK > 3u) {
    let outer = rest / params.length3;
    at += (rest - outer * params.length3) * vec3u(params.a3, params.b3, params.c3);
    rest = outer;
  }
  if (RANK > 2u) {
    let outer = rest / params.length2;
    at += (rest - outer * params.length2) * vec3u(params.a2, params.b2, params.c2);
    rest = outer;
  }
  if (RANK > 1u) {
    let outer = rest / params.length1;
    at += (rest - outer * params.length1) * vec3u(params.a1, params.b1, params.c1);
    rest = outer;
  }
  return at + rest * vec3u(params.a0, params.b0, params.c0);
}

@compute @workgroup_size(WORKGROUP)
fn add(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = a[at.x] + b[at.y];
  }
}

@compute @workgroup_size(WORKGROUP)
fn sub(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = a[at.x] - b[at.y];
  }
}

@compute @workgroup_size(WORKGROUP)
fn mul(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = a[at.x] * b[at.y];
  }
}

@compute @workgroup_size(WORKGROUP)
fn div(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = a[at.x] / b[at.y];
  }
}

@compute @workgroup_size(WORKGROUP)
fn powers(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = power(a[at.x], b[at.y]);
  }
}

/// b a^(b-1), and 0 where b is 0: the derivative of a^b with respect to a
@compute @workgroup_size(WORKGROUP)
fn powSlope(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    let exponent = b[at.y];
    y[i] = select(exponent * power(a[at.x], exponent - 1.0), 0.0, exponent == 0.0);
  }
}

/// a log(b), and 0 where b is 0: with a = b^c, the derivative of b^c with respect to c
@compute @workgroup_size(WORKGROUP)
fn powLog(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = select(a[at.x] * log(b[at.y]), 0.0, b[at.y] == 0.0);
  }
}

/// A NaN on either side is kept: the built-in drops it, and a compiler may make the built-in of a comparison.
@compute @workgroup_size(WORKGROUP)
fn minimum(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    let smaller = select(a[at.x], b[at.y], b[at.y] < a[at.x] || isNan(b[at.y]));
    y[i] = select(smaller, a[at.x], isNan(a[at.x]));
  }
}

@compute @workgroup_size(WORKGROUP)
fn maximum(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    let larger = select(a[at.x], b[at.y], b[at.y] > a[at.x] || isNan(b[at.y]));
    y[i] = select(larger, a[at.x], isNan(a[at.x]));
  }
}

/// 1 where a < b, 1/2 where they are equal: a's share of the gradient of minimum(a, b)
@compute @workgroup_size(WORKGROUP)
fn less(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = select(select(0.0, 0.5, a[at.x] == b[at.y]), 1.0, a[at.x] < b[at.y]);
  }
}

@compute @workgroup_size(WORKGROUP)
fn equal(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = select(0.0, 1.0, a[at.x] == b[at.y]);
  }
}

/// condition != 0 ? a : b
@compute @workgroup_size(WORKGROUP)
fn choose(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let at = offsets(i);
    y[i] = select(b[at.y], a[at.x], condition[at.z] != 0u);
  }
}
