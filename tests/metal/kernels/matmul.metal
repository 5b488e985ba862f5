#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// C[M,N] = A[M,K] B[K,N]: 16x16 tiles in threadgroup memory, any M, N, K
kernel void matmul_tiled(
    device const float* A [[buffer(0)]],
    device const float* B [[buffer(1)]],
    device float* C [[buffer(2)]],
    constant uint3& mnk [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint2 t [[thread_position_in_threadgroup]]) {
  threadgroup float As[16][16 + 1];
  threadgroup float Bs[16][16 + 1];
  uint M = mnk.x, N = mnk.y, K = mnk.z;
  uint row = group.y * 16 + t.y, col = group.x * 16 + t.x;
  float sum = 0.0f;
  for (uint k0 = 0; k0 < K; k0 += 16) {
    As[t.y][t.x] = (row < M && k0 + t.x < K) ? A[row * K + k0 + t.x] : 0.0f;
    Bs[t.y][t.x] = (k0 + t.y < K && col < N) ? B[(k0 + t.y) * N + col] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < 16; ++k) sum = fma(As[t.y][k], Bs[k][t.x], sum);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (row < M && col < N) C[row * N + col] = sum;
}

// 2x2 simdgroups per threadgroup, each a 16x16 block of C in 8x8 fragments; M, N multiples of 32, K of 8
kernel void matmul_simdgroup(
    device const half* A [[buffer(0)]],
    device const half* B [[buffer(1)]],
    device float* C [[buffer(2)]],
    constant uint3& mnk [[buffer(3)]],
    uint2 group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  uint N = mnk.y, K = mnk.z;
  uint row = group.y * 32 + (simdgroup / 2) * 16, col = group.x * 32 + (simdgroup % 2) * 16;
  simdgroup_float8x8 acc[2][2];
  for (uint i = 0; i < 2; ++i)
    for (uint j = 0; j < 2; ++j) acc[i][j] = simdgroup_float8x8(0);
  for (uint k = 0; k < K; k += 8) {
    simdgroup_half8x8 a[2];
    simdgroup_half8x8 b[2];
    for (uint i = 0; i < 2; ++i) simdgroup_load(a[i], A + (row + i * 8) * K + k, K);
    for (uint j = 0; j < 2; ++j) simdgroup_load(b[j], B + k * N + col + j * 8, N);
    for (uint i = 0; i < 2; ++i)
      for (uint j = 0; j < 2; ++j) simdgroup_multiply_accumulate(acc[i][j], a[i], b[j], acc[i][j]);
  }
  for (uint i = 0; i < 2; ++i)
    for (uint j = 0; j < 2; ++j) simdgroup_store(acc[i][j], C + (row + i * 8) * N + col + j * 8, N);
}

// C = (A B)^T for 8x8 matrices, through threadgroup memory that only one simdgroup uses
kernel void matmul_transposed(
    device const float* A [[buffer(0)]],
    device const float* B [[buffer(1)]],
    device float* C [[buffer(2)]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[64];
  simdgroup_float8x8 a, b, c;
  simdgroup_load(a, A);
  simdgroup_load(b, B);
  simdgroup_multiply(c, a, b);
  simdgroup_store(c, tile, 8, ulong2(0, 0), true);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  C[lane] = tile[lane];
  C[lane + 32] = tile[lane + 32];
}
