// The functions of workgroup_reduce.wgsl for workgroups of exactly one subgroup: the loader puts this file in the place
// of that one where the adapter allows (kernel.ts). Lanes hand each other their values, with no workgroup memory and no
// barrier, which on the software driver cuts a kernel into pieces that save and restore all they hold.
enable subgroups;

const LOWEST: f32 = -3.4028234e38;

fn workgroupSum(value: f32, thread: u32) -> f32 {
  return subgroupAdd(value);
}

fn workgroupMax(value: f32, thread: u32) -> f32 {
  return subgroupMax(value);
}

fn workgroupSum4(value: vec4f, thread: u32) -> vec4f {
  return subgroupAdd(value);
}
