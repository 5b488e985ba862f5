#include <metal_stdlib>
using namespace metal;
#pragma clang fp contract(off)

// The larger one; NaN wins.
inline float maximum(float a, float b) {
  return (a > b || isnan(a)) ? a : b;
}

inline float simd_maximum(float v) {
  return simd_any(isnan(v)) ? NAN : simd_max(v);
}

// softmax.py:5: max, reshape, subtract, exp
// softmax.py:6: sum, reshape, divide
[[max_total_threads_per_threadgroup(32)]]
kernel void mx_max_sum(
    device const float* in0 [[buffer(0)]],  // float32 8x100
    device float* out0 [[buffer(1)]],  // float32 8x100
    uint group [[threadgroup_position_in_grid]],
    uint lid [[thread_index_in_threadgroup]]) {
  float kept0[4];
  float maximum0 = -INFINITY;
  for (uint j = lid; j < 100; j += 32) {
    maximum0 = maximum(maximum0, in0[group * 100 + j]);
  }
  maximum0 = simd_maximum(maximum0);
  float sum0 = 0.0f;
  for (uint n = 0; n < 4; ++n) {
    const uint j = lid + n * 32;
    if (j < 100) {
      const float v0 = precise::exp(in0[group * 100 + j] - maximum0);
      kept0[n] = v0;
      sum0 += v0;
    }
  }
  sum0 = simd_sum(sum0);
  for (uint n = 0; n < 4; ++n) {
    const uint j = lid + n * 32;
    if (j < 100) {
      out0[group * 100 + j] = kept0[n] / sum0;
    }
  }
}
