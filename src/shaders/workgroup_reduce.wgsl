// Reductions of one value per thread over the workgroup, for row-wise kernels. Every thread must call them, and every
// thread gets the result. A thread without data passes the identity (0 for a sum, LOWEST for a maximum).
//
// A tree in workgroup memory, always in the same order: equal inputs give equal bits. The including file declares
// `const WORKGROUP: u32`, a power of two, so any subgroup size (or none) will do.

// The lowest finite float. Not -infinity: WGSL has no literal for it, and infinity - infinity is NaN.
const LOWEST: f32 = -3.4028234e38;

var<workgroup> reduceScratch: array<f32, WORKGROUP>;
var<workgroup> reduceScratch4: array<vec4f, WORKGROUP>;

fn workgroupSum(value: f32, thread: u32) -> f32 {
  reduceScratch[thread] = value;
  workgroupBarrier();
  for (var stride = WORKGROUP / 2u; stride > 0u; stride /= 2u) {
    if (thread < stride) { reduceScratch[thread] += reduceScratch[thread + stride]; }
    workgroupBarrier();
  }
  let total = reduceScratch[0];
  workgroupBarrier(); // the next reduction overwrites the scratch memory
  return total;
}

fn workgroupMax(value: f32, thread: u32) -> f32 {
  reduceScratch[thread] = value;
  workgroupBarrier();
  for (var stride = WORKGROUP / 2u; stride > 0u; stride /= 2u) {
    if (thread < stride) { reduceScratch[thread] = max(reduceScratch[thread], reduceScratch[thread + stride]); }
    workgroupBarrier();
  }
  let largest = reduceScratch[0];
  workgroupBarrier();
  return largest;
}

// Four sums at the price of one, for kernels that hold four rows at a time.
fn workgroupSum4(value: vec4f, thread: u32) -> vec4f {
  reduceScratch4[thread] = value;
  workgroupBarrier();
  for (var stride = WORKGROUP / 2u; stride > 0u; stride /= 2u) {
    if (thread < stride) { reduceScratch4[thread] += reduceScratch4[thread + stride]; }
    workgroupBarrier();
  }
  let total = reduceScratch4[0];
  workgroupBarrier();
  return total;
}
