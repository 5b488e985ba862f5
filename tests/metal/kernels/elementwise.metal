#include <metal_stdlib>
using namespace metal;

// out = a * sigmoid(b), four elements per thread, scalar tail
kernel void gate_f32(
    device const float* a [[buffer(0)]],
    device const float* b [[buffer(1)]],
    device float* out [[buffer(2)]],
    constant uint& n [[buffer(3)]],
    uint gid [[thread_position_in_grid]]) {
  uint i = gid * 4;
  if (i + 4 <= n) {
    float4 x = *(device const float4*)(a + i);
    float4 y = *(device const float4*)(b + i);
    *(device float4*)(out + i) = x / (1.0f + exp(-y));
  } else {
    for (; i < n; ++i) {
      out[i] = a[i] / (1.0f + exp(-b[i]));
    }
  }
}

// y = alpha * x + y, rounded once
kernel void axpy_f16(
    device const half* x [[buffer(0)]],
    device half* y [[buffer(1)]],
    constant half& alpha [[buffer(2)]],
    uint gid [[thread_position_in_grid]]) {
  y[gid] = half(float(alpha) * float(x[gid]) + float(y[gid]));
}

kernel void axpy_bf16(
    device const bfloat* x [[buffer(0)]],
    device bfloat* y [[buffer(1)]],
    constant bfloat& alpha [[buffer(2)]],
    uint2 gid [[thread_position_in_grid]],
    uint2 size [[threads_per_grid]]) {
  size_t i = gid.x + size_t(size.x) * gid.y;
  y[i] = bfloat(float(alpha) * float(x[i]) + float(y[i]));
}

// half and bfloat arithmetic rounds after every operation
kernel void fused_f16(
    device const half* x [[buffer(0)]],
    device half* out [[buffer(1)]],
    uint gid [[thread_position_in_grid]]) {
  out[gid] = x[gid] * x[gid] + x[gid] * half(3);
}

kernel void fused_bf16(
    device const bfloat* x [[buffer(0)]],
    device bfloat* out [[buffer(1)]],
    uint gid [[thread_position_in_grid]]) {
  out[gid] = x[gid] * x[gid] + x[gid] * bfloat(3);
}

kernel void mix_i32(
    device const int* x [[buffer(0)]],
    device const int* y [[buffer(1)]],
    device int* out [[buffer(2)]],
    uint gid [[thread_position_in_grid]]) {
  int a = x[gid], b = y[gid];
  out[gid] = select(a / b + (a % b), max(a, b) - min(a, b), (a ^ b) < 0) + (abs(a) >> 2);
}

kernel void complex_multiply(
    device const float2* x [[buffer(0)]],
    device const float2* y [[buffer(1)]],
    device float2* out [[buffer(2)]],
    uint gid [[thread_position_in_grid]]) {
  float2 a = x[gid], b = y[gid];
  out[gid] = float2(fma(a.x, b.x, -a.y * b.y), fma(a.x, b.y, a.y * b.x));
}
