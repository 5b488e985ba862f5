"""Illegal Metal kernels, each with what must catch it; the blind spots; and legal Metal that the verifier refuses.

Every kernel has the parameters of `SIGNATURE`. Those that compile run over 128 threads in threadgroups of 64, with `o`
and `x` of 128 floats, `n` = 128 and `c` of 128 uints.
"""

from __future__ import annotations

from typing import NamedTuple

HEADER = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"
SIGNATURE = """(device float* o [[buffer(0)]], device const float* x [[buffer(1)]], constant uint& n [[buffer(2)]],
    device uint* c [[buffer(3)]], uint gid [[thread_position_in_grid]], uint lid [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]])"""


class Rejected(NamedTuple):
    """A source that no GPU may see: `body` of a kernel (or a whole source) and a pattern of the message."""

    name: str
    body: str
    message: str
    before: str = ""  # declarations in front of the kernel

    @property
    def source(self) -> str:
        if self.body.startswith("#include"):
            return self.body
        if "kernel" in self.body:
            return HEADER + self.before + self.body
        return f"{HEADER}{self.before}kernel void k{SIGNATURE} {{\n{self.body}\n}}\n"


class Faulty(NamedTuple):
    """The body of a kernel that compiles, and a pattern of what is found when it runs ("" for a blind spot)."""

    name: str
    body: str
    message: str = ""


# ---- rejected by lint.py and reflect.py
LINT = [
    Rejected(
        "kernel_pointer_space", "kernel void k(float* o [[buffer(0)]]) { o[0] = 0; }", "pointer or reference without"
    ),
    Rejected("local_pointer_space", "float* p = o; p[gid] = 1;", "without address space: 'float \\*'"),
    Rejected("helper_pointer_space", "h(o, gid);", "without address space", "void h(float* p, uint i) { p[i] = 1; }\n"),
    Rejected(
        "struct_pointer_space",
        "f(o);",
        "without address space: 'const P &'",
        "struct P { float v; };\nfloat g(const P& p) { return p.v; }\n",
    ),
    Rejected("double", "double d = x[gid]; o[gid] = float(d);", "'double'"),
    Rejected("long_long", "long long z = gid; o[gid] = float(z);", "'long long'"),
    Rejected("new", "thread float* p = new float; *p = 1;", "'new'"),
    Rejected("throw", "if (gid > 9) throw 1;", "'throw'"),
    Rejected("virtual", "", "'virtual'", "struct V { virtual void f(); };\n"),
    Rejected("std", "o[gid] = std::exp(x[gid]);", "'std'"),
    Rejected("goto", "goto e; e: o[gid] = 1;", "'goto'"),
    Rejected("asm", 'asm("nop");', "'asm'"),
    Rejected("lambda", "auto f = [](float a) { return a; }; o[gid] = f(x[gid]);", "lambda"),
    Rejected("reserved_name", "float __t = x[gid]; o[gid] = __t;", "reserved identifier"),
    Rejected("keyword_as_name", "float vertex = x[gid]; o[gid] = vertex;", "keyword of Metal"),
    Rejected("opencl_word", "local float b[4]; b[0] = 0;", "word of OpenCL"),
    Rejected("opencl_literal", "float2 v = (float2)(x[gid], 1.0f); o[gid] = v.x;", "OpenCL vector literal"),
    Rejected("opencl_swizzle", "float4 v = float4(x[gid]); o[gid] = v.lo.x;", "OpenCL swizzle"),
    Rejected("line_directive", "\n#error no\no[gid] = 1;", "directive #error"),
    Rejected("wide_vector", "ulong4 v = ulong4(1ul); o[gid] = float(v.x);", "more than 16 bytes"),
    Rejected(
        "recursion", "o[gid] = float(f(int(gid)));", "recursion", "int f(int n) { return n < 2 ? 1 : n * f(n - 1); }\n"
    ),
    Rejected(
        "mutual_recursion",
        "o[gid] = float(f(int(gid)));",
        "recursion",
        "int f(int n);\nint g(int n) { return f(n - 1); }\nint f(int n) { return n < 2 ? 1 : g(n); }\n",
    ),
    Rejected("threadgroup_memory", "threadgroup float b[8200]; b[lid] = x[gid]; o[gid] = b[lid];", "32800 bytes"),
    Rejected(
        "no_attribute", "kernel void k(device float* o [[buffer(0)]], uint gid) { o[gid] = 0; }", "needs one attribute"
    ),
    Rejected(
        "misspelt_attribute",
        "kernel void k(device float* o [[buffer(0)]], uint i [[thread_position_in_gird]]) {}",
        "unknown attribute",
    ),
    Rejected("builtin_type", "kernel void k(int i [[thread_position_in_grid]]) {}", "type int is wrong"),
    Rejected("builtin_vector", "kernel void k(uint2 i [[thread_index_in_threadgroup]]) {}", "type uint2 is wrong"),
    Rejected(
        "builtins_differ",
        "kernel void k(uint2 i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {}",
        "must have the same type",
    ),
    Rejected(
        "vectors_differ",
        "kernel void k(uint2 i [[thread_position_in_grid]], uint3 g [[threadgroup_position_in_grid]]) {}",
        "same number of components",
    ),
    Rejected(
        "buffer_twice", "kernel void k(device float* o [[buffer(0)]], device float* p [[buffer(0)]]) {}", "used twice"
    ),
    Rejected("buffer_31", "kernel void k(device float* o [[buffer(31)]]) {}", "not in 0..30"),
    Rejected("buffer_by_value", "kernel void k(constant uint n [[buffer(0)]]) {}", "needs exactly one address space"),
    Rejected(
        "threadgroup_as_buffer", "kernel void k(threadgroup float* b [[buffer(0)]]) {}", "on a threadgroup pointer"
    ),
    Rejected("kernel_result", "kernel int k(device float* o [[buffer(0)]]) { return 1; }", "must be declared"),
    Rejected(
        "kernel_twice",
        "kernel void k(device float* o [[buffer(0)]]) {}\nkernel void k(device float* o [[buffer(0)]]) {}",
        "defined twice",
    ),
    Rejected(
        "template_kernel", "template <typename T> kernel void k(device T* o [[buffer(0)]]) {}", "template kernels"
    ),
]

# ---- rejected by clang
COMPILE = [
    Rejected("device_to_thread", "thread float* p = o; p[gid] = 1;", "cannot initialize"),
    Rejected("threadgroup_to_device", "threadgroup float b[64]; device float* p = b; p[lid] = 1;", "cannot initialize"),
    Rejected(
        "device_to_helper",
        "o[gid] = h(o);",
        "no matching function|generic address space",
        "float h(thread float* p) { return *p; }\n",
    ),
    Rejected("write_constant", "kernel void k(constant float* c [[buffer(0)]]) { c[0] = 0; }", "read-only"),
    Rejected(
        "method_of_device_object",
        "device P* p = (device P*)o; o[gid] = p->twice();",
        "Metal has no generic address space",
        "struct P { float a; float twice() const { return a * 2; } };\n",
    ),
    Rejected("write_const", "((device const float*)o)[gid] = 1;", "read-only"),
    Rejected("nested_threadgroup", "if (gid > 3) { threadgroup float b[8]; b[lid & 7] = 1; }", "outermost scope"),
    Rejected(
        "helper_threadgroup",
        "h(lid);",
        "non-kernel function",
        "void h(uint i) { threadgroup float b[64]; b[i] = 0; }\n",
    ),
    Rejected("threadgroup_initialiser", "threadgroup float b[4] = {0}; o[gid] = b[lid & 3];", "initializer"),
    Rejected("mutable_global", "o[gid] = g;", "program scope variable", "float g = 3;\n"),
    Rejected("threadgroup_global", "o[gid] = 1;", "program scope variable", "threadgroup float g[4];\n"),
    Rejected("static_local", "static int z = 0; o[gid] = float(z);", "static local variable"),
    Rejected("function_pointer", "o[gid] = 1;", "pointers to functions", "float (*fp)(float);\n"),
    Rejected("variable_array", "float a[n]; a[0] = x[gid]; o[gid] = a[0];", "array size is not a constant"),
    Rejected("erf", "o[gid] = erf(x[gid]);", "undeclared identifier 'erf'"),
    Rejected("expm1", "o[gid] = expm1(x[gid]);", "undeclared identifier 'expm1'"),
    Rejected("log1p", "o[gid] = log1p(x[gid]);", "undeclared identifier 'log1p'"),
    Rejected("expf", "o[gid] = expf(x[gid]);", "undeclared identifier 'expf'"),
    Rejected("exp_of_bfloat", "o[gid] = float(exp(bfloat(x[gid])));", "deleted function"),
    Rejected("max_of_float_int", "o[gid] = max(x[gid], 1);", "ambiguous"),
    Rejected("min_of_uint_int", "o[gid] = float(min(gid, 5));", "ambiguous"),
    Rejected("float_to_bfloat", "bfloat b = x[gid]; o[gid] = float(b);", "implicit conversion"),
    Rejected("half_to_bfloat", "half h = half(x[gid]); bfloat b = h; o[gid] = float(b);", "cannot initialize"),
    Rejected("components", "float4 v = float4(1.0f, 2.0f, x[gid]); o[gid] = v.x;", "wrong number of vector components"),
    Rejected("float4_to_float3", "float3 v = float4(x[gid]); o[gid] = v.x;", "cannot initialize"),
    Rejected("half4_to_float4", "half4 h = half4(half(x[gid])); float4 f = h; o[gid] = f.x;", "cannot initialize"),
    Rejected("swizzle", "float2 v = float2(x[gid]); o[gid] = v.z;", "exceeds type"),
    Rejected("as_type_size", "o[gid] = as_type<float>(half(x[gid]));", "bit_cast|as_type size mismatch"),
    Rejected("matrix_4x4", "simdgroup_matrix<float, 4, 4> m; o[gid] = 1;", "only 8x8"),
    Rejected("matrix_int", "simdgroup_matrix<int, 8, 8> m; o[gid] = 1;", "element type"),
    Rejected(
        "matrix_header",
        "#include <metal_stdlib>\nusing namespace metal;\n"
        "kernel void k(device float* o [[buffer(0)]]) { simdgroup_float8x8 m; simdgroup_load(m, o); }",
        "simdgroup_float8x8",
    ),
    Rejected("simd_sum_of_bfloat", "o[gid] = float(simd_sum(bfloat(x[gid])));", "no SIMD-group function for this type"),
    Rejected("simd_sum_of_long", "o[gid] = float(simd_sum(long(gid)));", "no SIMD-group function for this type"),
    Rejected("simd_max_of_bool", "o[gid] = simd_max(gid > 3u) ? 1.0f : 0.0f;", "no SIMD-group function for this type"),
    Rejected("if_constexpr", "if constexpr (sizeof(int) == 4) o[gid] = 1;", "constexpr if"),
    Rejected(
        "structured_binding",
        "P p; p.a = 1; p.b = 2; auto [a, b] = p; o[gid] = float(a + b);",
        "structured binding",
        "struct P { int a; int b; };\n",
    ),
    Rejected("uninitialised_variable", "float v; if (gid > 500) v = 1; o[gid] = v;", "uninitialized"),
    Rejected(
        "atomic_on_plain", "atomic_fetch_add_explicit((device int*)o, 1, memory_order_relaxed);", "no matching function"
    ),
    Rejected(
        "atomic_64_add",
        "atomic_fetch_add_explicit((device atomic_ulong*)o, 1ul, memory_order_relaxed);",
        "no atomic_fetch_add_explicit",
    ),
    Rejected(
        "atomic_float_max",
        "atomic_fetch_max_explicit((device atomic_float*)o, 1.0f, memory_order_relaxed);",
        "no atomic_fetch_max_explicit",
    ),
    Rejected(
        "atomic_float_threadgroup",
        "threadgroup atomic_float a[1]; atomic_fetch_add_explicit(a, 1.0f, memory_order_relaxed);",
        "no atomic_fetch_add_explicit",
    ),
    Rejected(
        "atomic_order",
        "atomic_fetch_add_explicit((device atomic_int*)o, 1, memory_order_acquire);",
        "memory_order_acquire",
    ),
]

# ---- legal Metal that the verifier refuses: do not emit it
REFUSED = [
    Rejected(
        "bool_vector", "float4 v = float4(x[gid]); bool4 m = v < float4(1.0f); o[gid] = select(v, v, m).x;", "bool4"
    ),
    Rejected("vector_direct_initialisation", "float4 v(x[gid], 1.0f, 2.0f, 3.0f); o[gid] = v.x;", "float4"),
    Rejected(
        "struct_from_constant",
        "kernel void k(device uint* o [[buffer(0)]], constant P& p [[buffer(1)]]) { P q = p; o[0] = q.a; }",
        "no matching constructor",
        "struct P { uint a; uint b; };\n",
    ),
    Rejected("float_to_half", "half h = x[gid]; o[gid] = float(h);", "implicit conversion"),
    Rejected("bfloat_to_half", "half h = half(bfloat(x[gid])); o[gid] = float(h);", "not allowed"),
    Rejected("restrict", "device float* __restrict p = o; p[gid] = 1;", "reserved identifier"),
]

# ---- found when the kernel runs
RUN = [
    Faulty("write_past_end", "o[gid + 1] = 1;", r"out-of-bounds write of 4 bytes, 0 bytes after the end of o"),
    Faulty("read_past_end", "o[gid] = x[gid + n];", r"out-of-bounds read of 4 bytes, \d+ bytes after the end of x"),
    Faulty("read_before_begin", "o[gid] = x[int(gid) - 1];", r"out-of-bounds read of 4 bytes, 4 bytes before x"),
    Faulty("wild_pointer", "o[gid] = x[gid + (1ul << 40)];", "far from any buffer"),
    Faulty(
        "vector_past_end", "if (gid == 31) *(device float4*)(o + 126) = float4(1.0f);", "across the end of o|misaligned"
    ),
    Faulty(
        "misaligned_float4", "if (gid < 8) o[gid] = (*(device const float4*)(x + gid)).x;", "misaligned 16-byte access"
    ),
    Faulty("misaligned_float2", "if (gid == 0) o[1] = (*(device const float2*)(x + 1)).x;", "misaligned 8-byte access"),
    Faulty(
        "threadgroup_index",
        "threadgroup float b[64]; b[lid + 1] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = b[lid + 1];",
        "array index out of bounds",
    ),
    Faulty(
        "threadgroup_pointer",
        "threadgroup float b[64]; threadgroup float d[64]; threadgroup float* p = b + 1; d[lid] = 0; "
        "p[lid] = x[gid]; threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = p[lid] + d[lid];",
        "out-of-bounds write of 4 bytes, 0 bytes after the end of threadgroup variable b",
    ),
    Faulty(
        "second_of_two_tiles",
        "threadgroup float tile_1[64]; threadgroup float tile_2[64]; tile_1[lid] = x[gid]; tile_2[lid] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = (&tile_2[1])[lid] + tile_1[lid];",
        "after the end of threadgroup variable tile_2",
    ),
    Faulty("thread_array_index", "float a[4] = {0, 1, 2, 3}; o[gid] = a[lid];", "array index out of bounds"),
    Faulty(
        "large_thread_array",
        "float a[200000]; for (uint i = 0; i < n * 1000; i++) a[i] = x[gid]; o[gid] = a[lid * 1000];",
        "signal 11",
    ),
    Faulty(
        "no_barrier",
        "threadgroup float b[64]; b[lid] = x[gid]; o[gid] = b[63 - lid];",
        "(data race|uninitialised).* threadgroup variable b",
    ),
    Faulty(
        "no_barrier_in_simdgroup",
        "threadgroup float b[64]; b[lid] = x[gid]; o[gid] = b[lid ^ 1];",
        "(data race|uninitialised).* threadgroup variable b",
    ),
    Faulty(
        "barrier_mem_none",
        "threadgroup float b[64]; b[lid] = x[gid]; threadgroup_barrier(mem_flags::mem_none); o[gid] = b[63 - lid];",
        "data race",
    ),
    Faulty(
        "barrier_mem_device",
        "threadgroup float b[64]; b[lid] = x[gid]; threadgroup_barrier(mem_flags::mem_device); o[gid] = b[63 - lid];",
        "data race",
    ),
    Faulty(
        "barrier_mem_threadgroup_for_device",
        "o[gid] = x[gid]; threadgroup_barrier(mem_flags::mem_threadgroup); o[gid ^ 33] += 1;",
        "data race",
    ),
    Faulty(
        "simdgroup_barrier_too_narrow",
        "threadgroup float b[64]; b[lid] = x[gid]; "
        "simdgroup_barrier(mem_flags::mem_threadgroup); o[gid] = b[63 - lid];",
        "(data race|uninitialised).* b",
    ),
    Faulty(
        "simdgroup_barrier_mem_none",
        "threadgroup float b[64]; b[lid] = x[gid]; simdgroup_barrier(mem_flags::mem_none); o[gid] = b[lid ^ 1];",
        "data race",
    ),
    Faulty(
        "no_barrier_at_loop_end",
        "threadgroup float b[64]; float s = 0; for (int i = 0; i < 3; i++) { b[lid] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); s += b[63 - lid]; } o[gid] = s;",
        "data race",
    ),
    Faulty(
        "no_barrier_scalar",
        "threadgroup float total; total = x[gid]; threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = total;",
        r"data race \(write after write\)",
    ),
    Faulty(
        "read_then_write",
        "threadgroup float b[64]; b[lid] = x[gid]; threadgroup_barrier(mem_flags::mem_threadgroup); "
        "float v = b[0]; if (lid == 63) b[0] = v + 1; o[gid] = v;",
        "data race",
    ),
    Faulty(
        "read_by_other_simdgroup",
        "threadgroup float b[64]; b[lid] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); float v = 0; if (lid < 3 || lid == 40) v = b[5]; "
        "simdgroup_barrier(mem_flags::mem_threadgroup); if (lid == 1) b[5] = 9; o[gid] = v;",
        "data race",
    ),
    Faulty(
        "barrier_in_branch",
        "threadgroup float b[64]; b[lid] = x[gid]; "
        "if (lid < 40) threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = b[lid];",
        "reached by 40 of 64 threads",
    ),
    Faulty(
        "return_before_barrier",
        "threadgroup float b[64]; if (gid >= n - 3) return; b[lid] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = b[lid];",
        "reached by 61 of 64 threads",
    ),
    Faulty(
        "two_barriers",
        "if (lid < 32) threadgroup_barrier(mem_flags::mem_device); "
        "else threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = 1;",
        "different threadgroup_barrier calls",
    ),
    Faulty(
        "simdgroup_barrier_in_branch",
        "if (lane < 7) simdgroup_barrier(mem_flags::mem_device); o[gid] = x[gid];",
        "simdgroup_barrier reached by 7 of 32",
    ),
    Faulty(
        "uninitialised_threadgroup",
        "threadgroup float b[64]; if (lid < 32) b[lid] = x[gid]; "
        "threadgroup_barrier(mem_flags::mem_threadgroup); o[gid] = b[63 - lid];",
        "uninitialised threadgroup variable b",
    ),
    Faulty(
        "uninitialised_accumulator",
        "threadgroup float b[64]; b[lid] += x[gid]; o[gid] = b[lid];",
        "uninitialised threadgroup variable b",
    ),
    Faulty("race_between_threadgroups", "o[lid] = x[gid];", r"data race \(write after write\) on o"),
    Faulty("race_in_accumulation", "o[0] += x[gid];", "data race .* on o"),
    Faulty(
        "race_through_device",
        "o[gid] = x[gid]; threadgroup_barrier(mem_flags::mem_device); o[gid] = o[(gid + 64) % n];",
        "data race .* on o",
    ),
    Faulty(
        "race_with_atomic",
        "atomic_fetch_add_explicit((device atomic_uint*)c, 1u, memory_order_relaxed); "
        "if (gid == 5) o[0] = float(c[0]);",
        "data race .* on c",
    ),
    Faulty(
        "shuffle_inactive",
        "float v = x[gid]; if (lane < 7) v = simd_shuffle(v, ushort(9)); o[gid] = v;",
        "reads lane 9",
    ),
    Faulty("shuffle_lane_40", "o[gid] = simd_shuffle(x[gid], ushort(40));", "reads lane 40"),
    Faulty(
        "matrix_in_branch",
        "simdgroup_float8x8 m; if (lane < 16) simdgroup_load(m, x); o[gid] = x[gid];",
        "simdgroup matrix function executed by 16 of 32 lanes",
    ),
    Faulty(
        "matrix_without_barrier",
        "threadgroup float b[128]; simdgroup_float8x8 m = simdgroup_float8x8(1); "
        "simdgroup_store(m, b + sg * 64); o[gid] = b[sg * 64 + (lane ^ 1)];",
        "data race",
    ),
    Faulty(
        "matrix_past_end",
        "simdgroup_float8x8 m; simdgroup_load(m, x + 96, 8); o[gid] = m.thread_elements()[0];",
        "out-of-bounds read .* x",
    ),
    Faulty("division_by_zero", "c[gid] = 7 / (n - 128);", "division by zero"),
    Faulty("float_to_int", "o[gid] = float(int(x[gid] * 1e30f));", "outside of the range of the integer type"),
    Faulty(
        "invalid_bool", "c[gid] = 7; o[gid] = ((device bool*)c)[gid * 4] ? 1.0f : 2.0f;", "bool that is neither 0 nor 1"
    ),
    Faulty("endless_loop", "for (uint i = 0; i != n + 1; i += 2) o[gid] = float(i);", "time limit"),
    Faulty(
        "wait_for_other_threadgroup",
        "device atomic_uint* flag = (device atomic_uint*)c; "
        "if (gid == 0) { while (atomic_load_explicit(flag, memory_order_relaxed) == 0u) {} } "
        "if (gid == 64) atomic_store_explicit(flag, 1u, memory_order_relaxed); o[gid] = x[gid];",
        "time limit",
    ),
]

# ---- counted or noted, not an error: the tests of the compiler assert that there is none
NOTED = [
    Faulty(
        "simd_sum_in_branch",
        "float v = x[gid]; if (lane < 7) v = simd_sum(v); o[gid] = v;",
        "SIMD-group function executed by 7 of 32 threads",
    ),
    Faulty(
        "simd_sum_after_return",
        "if (lane == 3) return; o[gid] = simd_sum(x[gid]);",
        "SIMD-group function executed by 31 of 32 threads",
    ),
    Faulty("signed_overflow", "int i = 2147483647 - 100 + int(gid); o[gid] = float(i);", "signed integer overflow"),
]

# ---- known to be missed, with the reason
BLIND_SPOTS = [
    Faulty("shift_by_width", "c[gid] = gid << (n - 88);"),  # OpenCL defines it: clang masks the count
    Faulty("partly_uninitialised_array", "float a[4]; a[lid & 1] = 1; o[gid] = a[lid & 3];"),  # no checks on the stack
    Faulty("output_read_first", "o[gid] += x[gid];"),  # every device buffer counts as initialised
    Faulty("vector_comparison", "int4 m = float4(x[gid]) < float4(1.0f); c[gid] = uint(m.x);"),  # bool4 in Metal
    Faulty("shuffle_down_past_end", "o[gid] = simd_shuffle_down(x[gid], ushort(1));"),  # lane 31 undefined in Metal
    Faulty("denormals", "o[gid] = x[gid] * 1e-30f * 1e-10f;"),  # a GPU flushes to zero
    Faulty(
        "registers",
        "float a[4096]; for (uint i = 0; i < 4096; i++) a[i] = x[i & 127] + float(gid); o[gid] = a[(gid * 37) & 4095];",
    ),  # no limit known here
]
