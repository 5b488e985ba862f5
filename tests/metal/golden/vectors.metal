#include <metal_stdlib>
using namespace metal;
#pragma clang fp contract(off)

// vectors.py:5: multiply
// vectors.py:6: tanh, add
kernel void mx_tanh(
    device const float* in0 [[buffer(0)]],  // float32 65539
    device const float* in1 [[buffer(1)]],  // float32 65539
    device const float* in2 [[buffer(2)]],  // float32 1
    device float* out0 [[buffer(3)]],  // float32 65539
    uint thread_position [[thread_position_in_grid]]) {
  const uint first = thread_position * 4;
  if (first + 4 <= 65539) {
    const float4 in0_4 = *(device const float4*)(in0 + first);
    const float4 in1_4 = *(device const float4*)(in1 + first);
    float4 out0_4 = float4(0.0f);
    for (uint n = 0; n < 4; ++n) {
      out0_4[n] = precise::tanh(in0_4[n] * in1_4[n]) + in2[0];
    }
    *(device float4*)(out0 + first) = out0_4;
    return;
  }
  for (uint i = first; i < 65539; ++i) {
    out0[i] = precise::tanh(in0[i] * in1[i]) + in2[0];
  }
}
