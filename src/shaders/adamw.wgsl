// include: workgroup_reduce
// (workgroupSum comes from there; kernel.ts may put subgroup_reduce in its place.)
//
// AdamW (Loshchilov and Hutter 2019, algorithm 2) with clipping by the global gradient norm, all on the GPU.
//
//   norm  = sqrt(sum over all parameters of grad^2)      scale = min(1, maxNorm / (norm + 1e-6))
//   g = scale grad (-scale grad to maximise)
//   m = m + (1 - beta1) (g - m)                          v = beta2 v + (1 - beta2) g^2
//   p = (1 - lr weightDecay) p - (lr / correction1) m / (sqrt(v) / sqrt(correction2) + eps)
//
// correction = 1 - beta^step comes from the host in float64. All of p, m, v, grad: [size], read by vectors of four,
// which cost a CPU two thirds of four elements. Behind a size that is no multiple of four lies padding (memory.ts): the
// sum leaves it out, the update does not mind what it does to it.
//
// sumOfSquares: one workgroup per CHUNK elements of one parameter -> one partial sum.  gradNorm: one workgroup for all
// partial sums.  update: one workgroup per CHUNK elements. A norm that is not finite gives scale = NaN, and then update
// changes nothing: a bad gradient never reaches the parameters, and nobody had to read it back to know.

struct Params {
  size: u32,
  firstPartial: u32,     // sumOfSquares: where this parameter's partial sums begin
  partialCount: u32,     // gradNorm
  maxNorm: f32,          // gradNorm
  sign: f32,             // update: -1 to maximise
  decay: f32,            // update: lr weightDecay
  stepSize: f32,         // update: lr / (1 - beta1^step)
  sqrtCorrection2: f32,  // update: sqrt(1 - beta2^step)
  oneMinusBeta1: f32,
  beta2: f32,
  oneMinusBeta2: f32,
  eps: f32,
}

@group(1) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;
@group(0) @binding(1) var<storage, read> allPartials: array<f32>;
@group(0) @binding(2) var<storage, read_write> norm: array<f32>;
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;
@group(0) @binding(2) var<storage, read> gradScale: array<f32>; // `scale`, as update reads it
@group(0) @binding(3) var<storage, read_write> parameter: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> firstMoment: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> secondMoment: array<vec4f>;

const WORKGROUP: u32 = 64u;
const CHUNK: u32 = 4096u; // elements per workgroup
const NAN_BITS: u32 = 0x7fc00000u;

// By the bits of the exponent: compilers assume that floats are finite and fold every comparison that asks. They may fold
// this too where they see the arithmetic that made `value`; so it is asked of values that come from memory.
fn isFinite(value: f32) -> bool {
  return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(WORKGROUP)
fn sumOfSquares(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let chunk = workgroupId.x + workgroupId.y * grid.x;
  if (chunk * CHUNK >= params.size) { return; }
  let end = min((chunk + 1u) * CHUNK, params.size);
  var sums = vec4f();
  for (var i = chunk * CHUNK + 4u * thread; i < end; i += 4u * WORKGROUP) {
    let g = select(vec4f(), grad[i / 4u], i + vec4u(0u, 1u, 2u, 3u) < vec4u(end));
    sums += g * g;
  }
  let total = workgroupSum(sums.x + sums.y + sums.z + sums.w, thread);
  if (thread == 0u) { partials[params.firstPartial + chunk] = total; }
}

@compute @workgroup_size(WORKGROUP)
fn gradNorm(@builtin(local_invocation_index) thread: u32) {
  var sum = 0.0;
  for (var i = thread; i < params.partialCount; i += WORKGROUP) { sum += allPartials[i]; }
  let square = workgroupSum(sum, thread);
  if (thread == 0u) {
    let total = sqrt(square);
    norm[0] = total;
    let clipped = min(1.0, params.maxNorm / (total + 1e-6));
    // NaN only through the select on bits: min() would drop it.
    scale[0] = bitcast<f32>(select(NAN_BITS, bitcast<u32>(clipped), isFinite(square)));
  }
}

@compute @workgroup_size(WORKGROUP)
fn update(
  @builtin(workgroup_id) workgroupId: vec3u,
  @builtin(num_workgroups) grid: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let clip = gradScale[0];
  if (!isFinite(clip)) { return; }
  let chunk = workgroupId.x + workgroupId.y * grid.x;
  let end = min((chunk + 1u) * CHUNK, params.size);
  let p = params; // one load of each field instead of one per element
  for (var i = chunk * CHUNK + 4u * thread; i < end; i += 4u * WORKGROUP) {
    let at = i / 4u;
    let g = p.sign * clip * grad[at];
    let before = firstMoment[at];
    let m = before + p.oneMinusBeta1 * (g - before);
    let v = p.beta2 * secondMoment[at] + p.oneMinusBeta2 * g * g;
    firstMoment[at] = m;
    secondMoment[at] = v;
    let x = parameter[at];
    parameter[at] = x - p.decay * x - p.stepSize * m / (sqrt(v) / p.sqrtCorrection2 + p.eps);
  }
}
