// What emitted shaders are made of, in one kernel: helpers, structs, overloads, address spaces, vectors, conversions.
#include <metal_stdlib>
#include <metal_math>
using namespace metal;
#define TILE 16
#pragma METAL fp contract(off)

constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
constant constexpr int kWidth = 32;

enum Mode : uint { plain = 0, doubled = 1 };

struct Params {
  uint n;
  float scale;
  long strides[3];
};

struct Complex {
  float re;
  float im;
};

inline Complex operator*(Complex a, Complex b) {
  Complex r;
  r.re = a.re * b.re - a.im * b.im;
  r.im = a.re * b.im + a.im * b.re;
  return r;
}

template <typename T>
inline T relu(T x) {
  return x > T(0) ? x : T(0);
}

inline float scaled(float x, constant Params& p) { return x * p.scale; }

inline half scaled(half x, constant Params& p) { return x * half(p.scale); }

inline float sum_of(device const float* x, uint n) {
  float s = 0.0f;
  for (uint i = 0; i < n; ++i) s += x[i];
  return s;
}

inline float first_of(threadgroup const float* x) { return x[0]; }

inline void add_to(thread float& x, float y) { x += y; }

METAL_FUNC float logistic(float x) { return 1.0f / (1.0f + metal::precise::exp(-x)); }

kernel void idioms(
    const device float* x [[buffer(0)]],
    device float* out [[buffer(1)]],
    constant Params& p [[buffer(2)]],
    constant const int64_t* strides [[buffer(3)]],
    device const bool* mask [[buffer(4)]],
    device bool* flags [[buffer(5)]],
    device const bfloat* b [[buffer(6)]],
    device half* h [[buffer(7)]],
    device ulong* bits [[buffer(8)]],
    uint3 gid [[thread_position_in_grid]],
    ushort lid [[thread_index_in_threadgroup]]) {
  threadgroup float shared[64];
  const uint i = gid.x;
  shared[lid] = i < p.n ? x[i * strides[0]] : 0.0f;
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  if (i >= p.n) return;
  device float* o = out + i * 12;

  float v = shared[lid];
  o[0] = relu(v) + scaled(v, p);
  o[1] = logistic(v) + table[i & 3] + float(kWidth + TILE);
  o[2] = sum_of(x, 3) + first_of(shared);
  flags[i] = (v < 0.5f && mask[i]) || !mask[i];

  bfloat bf = b[i] + as_type<bfloat>(ushort(0x3f80));
  half hv = scaled(half(float(bf)), p) * 2.0h;
  h[i] = max(hv, half(3)) + relu(hv);

  float4 q = float4(v, v + 1.0f, float2(2.0f));
  q.xy = q.yx;
  q = select(q, float4(0.0f), q > 1.5f) * 2.0f;
  *reinterpret_cast<device float4*>(o + 4) = q;
  int4 iv = max(int4(q), int4(1)) << 1;
  o[3] = dot(q.xy, q.zw) + float(iv.x + iv[1]);

  uint2 packed = as_type<uint2>(float2(v, 1.0f));
  bits[i] = as_type<ulong>(packed) ^ (ulong(i) << 40);

  switch (i & 3) {
    case 0: add_to(v, 10.0f); break;
    case 1: v -= 1.0f; break;
    default: v *= 0.5f;
  }
  uint k = 0;
  while (k < 3) v += q[k++];
  do {
    v -= 0.25f;
  } while (--k);
  o[8] = v;

  Complex z = {v, 1.0f};
  z = z * z;
  Mode mode = i % 2 == 0 ? plain : doubled;
  auto w = float3(gid);
  o[9] = z.re + z.im;
  o[10] = mode == doubled ? 2.0f * w.x : w[0];
  float cosine;
  o[11] = sincos(v, cosine) * cosine;
}
