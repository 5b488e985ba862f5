#include <metal_stdlib>
using namespace metal;
#pragma clang fp contract(off)

// Error function as 1 - e**g(|x|), g a polynomial.
inline float mlxir_erf(float x) {
  const float v0 = fabs(x);
  const float v1 = 3.95f < v0 ? 3.95f : v0;
  const float v2 = fma(fma(fma(-4.1597912e-05f, v1, 0.00038767f), v1, -0.0012710537f), v1, -0.0001783173f);
  const float v3 = fma(fma(fma(v2, v1, 0.019301763f), v1, -0.10280731f), v1, -0.63661754f);
  const float v4 = fma(v1, -1.1283792f, fma(v3, v1, 5.8635383e-08f) * v1);
  const float v5 = fma(v4, 1.442695f, 1.2583039e+07f);
  const float v6 = fma(v5 - 1.2583039e+07f, -0.6931472f, v4);
  const float v7 = fma(fma(fma(0.0013870692f, v6, 0.008366272f), v6, 0.041667435f), v6, 0.16666546f);
  const float v8 = as_type<float>(as_type<uint>(v5) << 23);
  return copysign(fma(-fma(fma(v7, v6, 0.49999997f), v6 * v6, v6), v8, 1.0f - v8), x);
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
