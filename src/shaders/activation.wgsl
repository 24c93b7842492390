// Activation functions and their gradients, elementwise over [size].
//
//   tanh       (1 - e) / (1 + e) with e = exp(-2|x|) <= 1, so nothing overflows; a series near 0, where 1 - e cancels
//   sigmoid    1 / (1 + exp(-x)): exp may overflow to infinity, which gives the right limit 0
//   gelu       x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016)
//   geluTanh   x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the same as x/2 (1 + tanh u), GPT-2's form
//   silu       x sigmoid(x)
//   swiglu     silu(gate) up (Shazeer 2020)
//
// By vectors of four, which cost a CPU less than four elements: behind a size that is no multiple of four lies padding
// (memory.ts), which may hold anything. Every thread strides over the grid (a "grid-stride loop"), so any number of
// workgroups is right.

struct Params { vectors: u32 }

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read> gate: array<vec4f>;
@group(0) @binding(2) var<storage, read> up: array<vec4f>;
@group(0) @binding(3) var<storage, read> dy: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> dGate: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> dUp: array<vec4f>;

const WORKGROUP: u32 = 64u;
const SQRT_2_OVER_PI = 0.7978845608;
const INVERSE_SQRT_2PI = 0.3989422804;

fn sigmoid(v: vec4f) -> vec4f {
  return 1.0 / (1.0 + exp(-v));
}

/// The built-in is NaN at large |v| on some drivers.
fn stableTanh(v: vec4f) -> vec4f {
  let e = exp(-2.0 * abs(v));
  let magnitude = (1.0 - e) / (1.0 + e);
  let square = v * v;
  let series = v * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * 17.0 / 315.0)));
  return select(select(magnitude, -magnitude, v < vec4f()), series, abs(v) < vec4f(0.2));
}

/// Phi(v) = erfc(-v / sqrt 2) / 2, with erfc by Abramowitz and Stegun 7.1.26 (error <= 1.5e-7) where it is small.
fn normalCdf(v: vec4f) -> vec4f {
  let z = abs(v) * 0.7071067812;
  let t = 1.0 / (1.0 + 0.3275911 * z);
  let series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)));
  let tail = 0.5 * t * series * exp(-z * z);
  return select(tail, 1.0 - tail, v > vec4f());
}

fn normalDensity(v: vec4f) -> vec4f {
  return INVERSE_SQRT_2PI * exp(-0.5 * v * v);
}

@compute @workgroup_size(WORKGROUP)
fn tanhForward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) { y[i] = stableTanh(x[i]); }
}

/// x holds y = tanh, the forward's output: dx = dy (1 - y^2)
@compute @workgroup_size(WORKGROUP)
fn tanhBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) { dx[i] = dy[i] * (1.0 - x[i] * x[i]); }
}

@compute @workgroup_size(WORKGROUP)
fn geluForward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) { y[i] = x[i] * normalCdf(x[i]); }
}

/// d(x Phi)/dx = Phi(x) + x phi(x)
@compute @workgroup_size(WORKGROUP)
fn geluBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) {
    let v = x[i];
    dx[i] = dy[i] * (normalCdf(v) + v * normalDensity(v));
  }
}

@compute @workgroup_size(WORKGROUP)
fn geluTanhForward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) {
    let v = x[i];
    y[i] = v * sigmoid(2.0 * SQRT_2_OVER_PI * (v + 0.044715 * v * v * v));
  }
}

/// With s = sigmoid(2u): s + x s (1 - s) 2u'
@compute @workgroup_size(WORKGROUP)
fn geluTanhBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) {
    let v = x[i];
    let s = sigmoid(2.0 * SQRT_2_OVER_PI * (v + 0.044715 * v * v * v));
    let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * v * v);
    dx[i] = dy[i] * (s + v * s * (1.0 - s) * slope);
  }
}

@compute @workgroup_size(WORKGROUP)
fn siluForward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) { y[i] = x[i] * sigmoid(x[i]); }
}

/// With s = sigmoid(x): s + x s (1 - s)
@compute @workgroup_size(WORKGROUP)
fn siluBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) {
    let s = sigmoid(x[i]);
    dx[i] = dy[i] * s * (1.0 + x[i] * (1.0 - s));
  }
}

@compute @workgroup_size(WORKGROUP)
fn swigluForward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) { y[i] = gate[i] * sigmoid(gate[i]) * up[i]; }
}

@compute @workgroup_size(WORKGROUP)
fn swigluBackward(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) grid: vec3u) {
  for (var i = id.x; i < params.vectors; i += grid.x * WORKGROUP) {
    let g = gate[i];
    let s = sigmoid(g);
    dGate[i] = dy[i] * up[i] * s * (1.0 + g * (1.0 - s));
    dUp[i] = dy[i] * g * s;
  }
}
