#include <metal_stdlib>
using namespace metal;
#pragma clang fp contract(off)

// Error function as 1 - (1 - v)**8, v a polynomial in |x|.
inline float mlxir_erf(float x) {
  const float v0 = fabs(x);
  const float v1 = 4.0f < v0 ? 4.0f : v0;
  const float v2 = fma(fma(fma(1.9151184e-05f, v1, -0.0003550748f), v1, 0.002050026f), v1, -0.00074391946f);
  const float v3 = fma(fma(fma(v2, v1, -0.026358705f), v1, 0.008356803f), v1, 0.27852136f);
  const float v4 = fma(v1, 0.5641896f, fma(v3, v1, -2.9317691e-08f) * v1);
  const float v5 = v4 * 0.25f;
  const float v6 = v5 * v5;
  const float v7 = v5 + v5 - v6;
  const float v8 = v4 - fma(v7, v7, v6 + v6);
  return copysign(fma(-v8, v8, v8 + v8), x);
}

// elementwise.py:5: multiply, add, tanh
// elementwise.py:6: full, multiply, full, multiply, erf, full, add, multiply
kernel void mx_tanh_erf(
    device const float* in0 [[buffer(0)]],  // float32 8x60
    device const float* in1 [[buffer(1)]],  // float32 60
    device const float* in2 [[buffer(2)]],  // float32 8x1
    device float* out0 [[buffer(3)]],  // float32 8x60
    uint2 position [[thread_position_in_grid]]) {
  const uint row = position.y;
  const uint column = position.x;
  const float v0 = in2[row];
  const uint v1 = row * 60 + column;
  const float v2 = in0[v1];
  out0[v1] = precise::tanh(v2 * in1[column] + v0) * 0.5f * (mlxir_erf(v2 * 0.70710677f) + 1.0f);
}
