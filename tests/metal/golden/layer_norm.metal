#include <metal_stdlib>
using namespace metal;
#pragma clang fp contract(off)

inline float threadgroup_sum(float v, threadgroup float* partial, uint simdgroups, uint lane, uint simdgroup) {
  v = simd_sum(v);
  if (lane == 0) partial[simdgroup] = v;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  v = simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return v;
}

// layer_norm.py:6: sum, full, multiply
// layer_norm.py:7: reshape, subtract
// layer_norm.py:8: multiply, sum, multiply
// layer_norm.py:9: full, add, rsqrt, reshape, multiply, multiply, add
[[max_total_threads_per_threadgroup(256)]]
kernel void mx_sum(
    device const float* in0 [[buffer(0)]],  // float32 4x1000
    device const float* in1 [[buffer(1)]],  // float32 1000
    device const float* in2 [[buffer(2)]],  // float32 1000
    device float* out0 [[buffer(3)]],  // float32 4x1000
    uint group [[threadgroup_position_in_grid]],
    uint lid [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[8];
  float kept0[4];
  float sum0 = 0.0f;
  for (uint j = lid; j < 1000; j += 256) {
    sum0 += in0[group * 1000 + j];
  }
  sum0 = threadgroup_sum(sum0, partial, 8, lane, simdgroup);
  const float v0 = sum0 * 0.001f;
  float sum1 = 0.0f;
  for (uint n = 0; n < 4; ++n) {
    const uint j = lid + n * 256;
    if (j < 1000) {
      const float v1 = in0[group * 1000 + j] - v0;
      kept0[n] = v1;
      sum1 += v1 * v1;
    }
  }
  sum1 = threadgroup_sum(sum1, partial, 8, lane, simdgroup);
  const float v2 = 1.0f / precise::sqrt(sum1 * 0.001f + 1e-05f);
  for (uint n = 0; n < 4; ++n) {
    const uint j = lid + n * 256;
    if (j < 1000) {
      out0[group * 1000 + j] = kept0[n] * v2 * in1[j] + in2[j];
    }
  }
}
