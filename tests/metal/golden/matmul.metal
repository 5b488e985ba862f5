#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
#pragma clang fp contract(off)

// matmul.py:5: matmul
// matmul.py:6: add, tanh
[[max_total_threads_per_threadgroup(128)]]
kernel void mx_matmul(
    device const float* in0 [[buffer(0)]],  // float32 30x20
    device const float* in1 [[buffer(1)]],  // float32 20x25
    device const float* in2 [[buffer(2)]],  // float32 25
    device float* out0 [[buffer(3)]],  // float32 30x25
    uint group [[threadgroup_position_in_grid]],
    uint lid [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float kept0[1216];
  simdgroup_float8x8 sum0 = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_float8x8 sum1 = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_float8x8 sum2 = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_float8x8 sum3 = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint k = 0; k < 2; ++k) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint j = lid; j < 512; j += 128) {
      kept0[j / 16 * 20 + j % 16] = (j / 16 < 30 && k * 16 + j % 16 < 20) ? in0[j / 16 * 20 + k * 16 + j % 16] : 0.0f;
    }
    for (uint j = lid; j < 512; j += 128) {
      kept0[j / 32 * 36 + j % 32 + 640] = (j % 32 < 25 && k * 16 + j / 32 < 20) ? in1[k * 400 + j / 32 * 25 + j % 32] : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint m = 0; m < 2; ++m) {
      simdgroup_float8x8 a0;
      simdgroup_load(a0, kept0 + simdgroup / 2 * 320 + m * 8, 20);
      simdgroup_float8x8 a1;
      simdgroup_load(a1, kept0 + simdgroup / 2 * 320 + m * 8 + 160, 20);
      simdgroup_float8x8 b0;
      simdgroup_load(b0, kept0 + m * 288 + simdgroup % 2 * 16 + 640, 36);
      simdgroup_float8x8 b1;
      simdgroup_load(b1, kept0 + m * 288 + simdgroup % 2 * 16 + 648, 36);
      simdgroup_multiply_accumulate(sum0, a0, b0, sum0);
      simdgroup_multiply_accumulate(sum1, a0, b1, sum1);
      simdgroup_multiply_accumulate(sum2, a1, b0, sum2);
      simdgroup_multiply_accumulate(sum3, a1, b1, sum3);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_store(sum0, kept0 + simdgroup / 2 * 576 + simdgroup % 2 * 16, 36);
  simdgroup_store(sum1, kept0 + simdgroup / 2 * 576 + simdgroup % 2 * 16 + 8, 36);
  simdgroup_store(sum2, kept0 + simdgroup / 2 * 576 + simdgroup % 2 * 16 + 288, 36);
  simdgroup_store(sum3, kept0 + simdgroup / 2 * 576 + simdgroup % 2 * 16 + 296, 36);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint j = lid; j < 1024; j += 128) {
    if (j / 32 < 30 && j % 32 < 25) {
      out0[j / 32 * 25 + j % 32] = precise::tanh(kept0[j / 32 * 36 + j % 32] + in2[j % 32]);
    }
  }
}
