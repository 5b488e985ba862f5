#include <metal_stdlib>
using namespace metal;

// counts values 0..15 in threadgroup memory, then adds to the result
kernel void histogram(
    device const uchar* x [[buffer(0)]],
    device atomic_uint* counts [[buffer(1)]],
    constant uint& n [[buffer(2)]],
    uint gid [[thread_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]]) {
  threadgroup atomic_uint local_counts[16];
  if (lid < 16) atomic_store_explicit(&local_counts[lid], 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (gid < n) atomic_fetch_add_explicit(&local_counts[x[gid]], 1u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lid < 16) {
    uint count = atomic_load_explicit(&local_counts[lid], memory_order_relaxed);
    atomic_fetch_add_explicit(&counts[lid], count, memory_order_relaxed);
  }
}

// result: sum (float), smallest, largest, bitwise or, and how many threads won the exchange of a flag
kernel void combine(
    device const int* x [[buffer(0)]],
    device atomic_float* sum [[buffer(1)]],
    device atomic_int* range [[buffer(2)]],
    device atomic_uint* bits [[buffer(3)]],
    device atomic_ulong* widest [[buffer(4)]],
    uint gid [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(sum, float(x[gid]), memory_order_relaxed);
  atomic_fetch_min_explicit(range, x[gid], memory_order_relaxed);
  atomic_fetch_max_explicit(range + 1, x[gid], memory_order_relaxed);
  atomic_fetch_or_explicit(bits, uint(x[gid] & 0xff), memory_order_relaxed);
  if (atomic_exchange_explicit(bits + 1, 1u, memory_order_relaxed) == 0u) {
    atomic_fetch_add_explicit(bits + 2, 1u, memory_order_relaxed);
  }
  uint expected = gid;
  if (atomic_compare_exchange_weak_explicit(bits + 3, &expected, gid + 1, memory_order_relaxed, memory_order_relaxed)) {
    atomic_fetch_add_explicit(bits + 4, 1u, memory_order_relaxed);
  }
  atomic_max_explicit(widest, ulong(gid) << 40, memory_order_relaxed);
}
