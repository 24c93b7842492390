// include: float
// Elementwise operations of one tensor: y[i] = f(x[i]), dx[i] = dy[i] f'(x[i]).
//
//   x, y, dy, dx   [size], any shape
//   accumulator    [size], updated in place
//
// Every thread strides over the grid (a "grid-stride loop"), so any number of workgroups is right. A scalar operand is
// data in `params`, so that a learning rate that changes every step does not compile a new kernel.

struct Params { size: u32, scalar: f32, low: f32, high: f32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;
@group(0) @binding(3) var<storage, read_write> accumulator: array<f32>;

const WORKGROUP: u32 = 64u;

@compute @workgroup_size(WORKGROUP)
fn neg(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = -x[i]; }
}

@compute @workgroup_size(WORKGROUP)
fn absolute(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = abs(x[i]); }
}

/// -1, 0 or 1
@compute @workgroup_size(WORKGROUP)
fn signum(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = sign(x[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn exponential(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = exp(x[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn logarithm(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = log(x[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn squareRoot(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = sqrt(x[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn reciprocalRoot(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = inverseSqrt(x[i]); }
}

// ---- with a scalar ----

@compute @workgroup_size(WORKGROUP)
fn addScalar(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = x[i] + params.scalar; }
}

@compute @workgroup_size(WORKGROUP)
fn mulScalar(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = x[i] * params.scalar; }
}

@compute @workgroup_size(WORKGROUP)
fn powScalar(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = power(x[i], params.scalar); }
}

/// A NaN is kept: the built-in turns it into a bound, and a compiler may make the built-in of comparisons.
@compute @workgroup_size(WORKGROUP)
fn clampRange(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    let raised = select(x[i], params.low, x[i] < params.low);
    y[i] = select(select(raised, params.high, raised > params.high), x[i], isNan(x[i]));
  }
}

/// The gradient passes inside the range and at its bounds.
@compute @workgroup_size(WORKGROUP)
fn clampBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) {
    dx[i] = select(0.0, dy[i], x[i] >= params.low && x[i] <= params.high);
  }
}

// ---- memory ----

@compute @workgroup_size(WORKGROUP)
fn fill(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = params.scalar; }
}

@compute @workgroup_size(WORKGROUP)
fn copy(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { y[i] = x[i]; }
}

@compute @workgroup_size(WORKGROUP)
fn addInto(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.size; i += grid.x * WORKGROUP) { accumulator[i] += x[i]; }
}
