#include <metal_stdlib>
using namespace metal;

// one threadgroup per row, reductions in two levels: SIMD-group, then the partial results in threadgroup memory
kernel void row_softmax(
    device const float* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant uint& n [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]],
    uint size [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[32];
  device const float* xr = x + size_t(row) * n;
  device float* outr = out + size_t(row) * n;

  float m = -INFINITY;
  for (uint i = lid; i < n; i += size) m = max(m, xr[i]);
  m = simd_max(m);
  if (lane == 0) partial[simdgroup] = m;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  m = simd_max(lane < simdgroups ? partial[lane] : -INFINITY);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  float s = 0.0f;
  for (uint i = lid; i < n; i += size) s += fast::exp(xr[i] - m);
  s = simd_sum(s);
  if (lane == 0) partial[simdgroup] = s;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  s = simd_sum(lane < simdgroups ? partial[lane] : 0.0f);

  float scale = 1.0f / s;
  for (uint i = lid; i < n; i += size) outr[i] = fast::exp(xr[i] - m) * scale;
}
