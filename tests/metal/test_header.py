"""The metal_stdlib that shaders are compiled against: every function and type that the emitter uses, against NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from metal.illegal_kernels import HEADER

from mlxir.runtime.emulator import MetalLibrary, unavailable_reason

_REASON = unavailable_reason()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

ORDERS = (0, 1)


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# Metal function -> (NumPy function, lowest and highest argument)
UNARY = {
    "exp": (np.exp, -20, 20), "exp2": (np.exp2, -20, 20), "log": (np.log, 1e-3, 50), "log2": (np.log2, 1e-3, 50),
    "log10": (np.log10, 1e-3, 50), "sin": (np.sin, -9, 9), "cos": (np.cos, -9, 9), "tan": (np.tan, -1.5, 1.5),
    "asin": (np.arcsin, -1, 1), "acos": (np.arccos, -1, 1), "atan": (np.arctan, -9, 9), "sinh": (np.sinh, -9, 9),
    "cosh": (np.cosh, -9, 9), "tanh": (np.tanh, -4, 4), "asinh": (np.arcsinh, -9, 9), "acosh": (np.arccosh, 1, 9),
    "atanh": (np.arctanh, -0.99, 0.99), "sqrt": (np.sqrt, 0, 100), "rsqrt": (lambda x: x**-0.5, 0.01, 100),
    "floor": (np.floor, -9, 9), "ceil": (np.ceil, -9, 9), "rint": (np.rint, -9, 9), "trunc": (np.trunc, -9, 9),
    "round": (lambda x: np.trunc(x + np.copysign(0.5, x)), -9, 9), "fabs": (np.abs, -9, 9), "abs": (np.abs, -9, 9),
}  # fmt: skip
BINARY = {
    "pow": (np.power, 0.1, 9), "fmin": (np.minimum, -9, 9), "fmax": (np.maximum, -9, 9), "min": (np.minimum, -9, 9),
    "max": (np.maximum, -9, 9), "atan2": (np.arctan2, -9, 9), "copysign": (np.copysign, -9, 9),
    "fmod": (np.fmod, -9, 9),
}  # fmt: skip


def _function_kernel(name: str, operands: int) -> str:
    """Calls a function on float, half, float4, and in precise:: and fast::."""
    args = [", ".join(f"{convert}({v}[i])" for v in "xy"[:operands]) for convert in ("float", "half", "float4")]
    return f"""kernel void call_{name}(device const float* x [[buffer(0)]], device const float* y [[buffer(1)]],
    device float* out [[buffer(2)]], device half* outh [[buffer(3)]], uint i [[thread_position_in_grid]]) {{
  out[i * 4] = {name}({args[0]});
  out[i * 4 + 1] = precise::{name}({args[0]});
  out[i * 4 + 2] = fast::{name}({args[0]});
  out[i * 4 + 3] = {name}({args[2]}).w;
  outh[i] = {name}({args[1]});
}}
"""


@pytest.fixture(scope="module")
def functions() -> MetalLibrary:
    sources = [_function_kernel(n, 1) for n in UNARY] + [_function_kernel(n, 2) for n in BINARY]
    return MetalLibrary(HEADER + "".join(sources))


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_math_function(functions, rng, name):
    reference, low, high = (UNARY | BINARY)[name]
    x, y = rng.uniform(low, high, (2, 64)).astype(np.float16).astype(np.float32)
    if name == "fmod":
        y[np.abs(y) < 0.1] = 1
    out, out_half = np.zeros(256, np.float32), np.zeros(64, np.float16)
    assert functions.run(f"call_{name}", [x, y, out, out_half], grid=64, threadgroup=64).clean
    expected = reference(x.astype(np.float64), *[y.astype(np.float64)] * (name in BINARY))
    np.testing.assert_allclose(out, np.repeat(expected, 4), rtol=2e-6, atol=1e-6)
    with np.errstate(over="ignore"):
        expected_half = expected.astype(np.float16)
    np.testing.assert_allclose(out_half, expected_half, rtol=1e-3)


SPECIAL = """#include <metal_stdlib>
using namespace metal;

kernel void classify(device const float* x [[buffer(0)]], device uchar* out [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  bool negative = as_type<uint>(x[i]) >> 31;
  out[i] = uchar(isnan(x[i])) | uchar(isinf(x[i])) << 1 | uchar(isfinite(x[i])) << 2 | uchar(negative) << 3
      | uchar(isnan(half(x[i]))) << 4 | uchar(signbit(x[i])) << 5;
}

kernel void bits(device const uint* x [[buffer(0)]], device uint* out [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  uint v = x[i];
  out[i * 8] = popcount(v);
  out[i * 8 + 1] = clz(v);
  out[i * 8 + 2] = ctz(v);
  out[i * 8 + 3] = reverse_bits(v);
  out[i * 8 + 4] = mulhi(v, 0x9e3779b9u);
  out[i * 8 + 5] = rotate(v, 13u);
  out[i * 8 + 6] = uint(clz(ushort(v))) | uint(popcount(uchar(v))) << 16;
  out[i * 8 + 7] = clamp(v, 100u, 1000u);
}

kernel void limits(device float* out [[buffer(0)]], device long* whole [[buffer(1)]]) {
  out[0] = INFINITY;
  out[1] = -INFINITY;
  out[2] = NAN;
  out[3] = FLT_MAX;
  out[4] = M_PI_F;
  out[5] = float(numeric_limits<half>::max());
  out[6] = numeric_limits<float>::epsilon();
  out[7] = float(numeric_limits<bfloat>::lowest());
  out[8] = sign(-3.0f) + saturate(7.0f) + mix(1.0f, 3.0f, 0.5f) + step(1.0f, 2.0f) + fma(2.0f, 3.0f, 4.0f);
  out[9] = dot(float3(1, 2, 3), float3(4, 5, 6)) + length(float2(3, 4));
  whole[0] = numeric_limits<long>::lowest();
  whole[1] = numeric_limits<int>::max();
  whole[2] = numeric_limits<char>::min();
}

kernel void simd(device const float* x [[buffer(0)]], device const uint* u [[buffer(1)]],
    device float* out [[buffer(2)]], device uint* outu [[buffer(3)]],
    uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  out[i * 10] = simd_sum(x[i]);
  out[i * 10 + 1] = simd_max(x[i]);
  out[i * 10 + 2] = simd_min(x[i]);
  out[i * 10 + 3] = simd_product(x[i]);
  out[i * 10 + 4] = simd_prefix_inclusive_sum(x[i]);
  out[i * 10 + 5] = simd_prefix_exclusive_sum(x[i]);
  out[i * 10 + 6] = simd_shuffle_xor(x[i], ushort(5));
  out[i * 10 + 7] = simd_broadcast(x[i], ushort(7));
  out[i * 10 + 8] = simd_shuffle(x[i], ushort(31 - lane));
  out[i * 10 + 9] = float(simd_sum(half(lane)));
  outu[i * 8] = simd_and(u[i]);
  outu[i * 8 + 1] = simd_or(u[i]);
  outu[i * 8 + 2] = simd_xor(u[i]);
  outu[i * 8 + 3] = uint(ulong(simd_ballot(u[i] & 1)));
  outu[i * 8 + 4] = uint(simd_any(u[i] == 0)) | uint(simd_all(u[i] < 0xffffffff)) << 1;
  outu[i * 8 + 5] = simd_sum(u[i]);
  outu[i * 8 + 6] = uint(simd_max(short(u[i])));
  outu[i * 8 + 7] = simd_shuffle_up(simd_sum(uint2(u[i], 1u)).y + lane, ushort(2));
}
"""


@pytest.fixture(scope="module")
def special() -> MetalLibrary:
    return MetalLibrary(SPECIAL)


def test_classification(special):
    x = np.array([1.5, -0.0, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    out = np.zeros(6, np.uint8)
    assert special.run("classify", [x, out], grid=6, threadgroup=6).clean
    negative = np.signbit(x).astype(np.uint8)
    expected = np.isnan(x) | np.isinf(x) << 1 | np.isfinite(x) << 2 | negative << 3 | np.isnan(x) << 4 | negative << 5
    np.testing.assert_array_equal(out, expected)


def test_integer_functions(special, rng):
    x = np.concatenate([[0, 1, 2**32 - 1], rng.integers(0, 2**32, 29)]).astype(np.uint32)
    out = np.zeros((32, 8), np.uint32)
    assert special.run("bits", [x, out], grid=32, threadgroup=32).clean
    for value, row in zip(map(int, x), out.tolist(), strict=True):
        bits = f"{value:032b}"
        rotated = (value << 13 | value >> 19) & 0xFFFFFFFF
        short, char = value & 0xFFFF, value & 0xFF
        trailing = (value & -value).bit_length() - 1 if value else 32
        small = 16 - short.bit_length() | char.bit_count() << 16
        assert row == [bits.count("1"), 32 - value.bit_length(), trailing, int(bits[::-1], 2), value * 0x9E3779B9 >> 32,
                       rotated, small, min(max(value, 100), 1000)]  # fmt: skip


def test_constants_and_small_functions(special):
    out, whole = np.zeros(10, np.float32), np.zeros(3, np.int64)
    assert special.run("limits", [out, whole], grid=1, threadgroup=1).clean
    info = np.finfo(np.float32)
    lowest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).min)
    np.testing.assert_array_equal(out, np.array([np.inf, -np.inf, np.nan, info.max, np.pi, 65504, info.eps, lowest,
                                                 -1 + 1 + 2 + 1 + 10, 32 + 5], np.float32))  # fmt: skip
    assert whole.tolist() == [-(2**63), 2**31 - 1, -128]


@pytest.mark.parametrize("order", ORDERS)
def test_simd_functions(special, rng, order):
    x, u = rng.uniform(0.5, 1.5, 64).astype(np.float32), rng.integers(0, 2**32, 64, dtype=np.uint32)
    out, outu = np.zeros((2, 32, 10), np.float32), np.zeros((2, 32, 8), np.uint32)
    assert special.run("simd", [x, u, out, outu], grid=64, threadgroup=64, order=order).clean
    lane = np.arange(32)
    for v, w, got, gotu in zip(x.reshape(2, 32), u.reshape(2, 32), out, outu, strict=True):
        inclusive = np.cumsum(v.astype(np.float64))
        same = [np.full(32, f) for f in (v.sum(), v.max(), v.min(), v.prod())]
        shuffled = [v[lane ^ 5], np.full(32, v[7]), v[31 - lane]]
        expected = [*same, inclusive, inclusive - v, *shuffled, np.full(32, lane.sum())]
        np.testing.assert_allclose(got, np.stack(expected, 1), rtol=2e-6, atol=1e-6)
        ballot = int(sum(int(b) << i for i, b in enumerate(w & 1)))
        votes = int((w == 0).any()) | int((w < 2**32 - 1).all()) << 1
        largest = int(w.astype(np.int16).max()) & 0xFFFFFFFF
        bitwise = [f.reduce(w) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
        same_u = [*bitwise, ballot, votes, w.sum(dtype=np.uint32), largest]
        np.testing.assert_array_equal(gotu[:, :7], np.tile(np.array(same_u, np.uint32), (32, 1)))
        np.testing.assert_array_equal(gotu[:, 7], np.where(lane < 2, lane, lane - 2) + 32)


TYPES = {
    "bool": np.bool_, "char": np.int8, "uchar": np.uint8, "short": np.int16, "ushort": np.uint16, "int": np.int32,
    "uint": np.uint32, "long": np.int64, "ulong": np.uint64, "half": np.float16, "bfloat": ml_dtypes.bfloat16,
    "float": np.float32, "int32_t": np.int32, "uint8_t": np.uint8,
}  # fmt: skip


@pytest.fixture(scope="module")
def types() -> MetalLibrary:
    kernel = """kernel void copy_{0}(device const {0}* x [[buffer(0)]], device {0}* out [[buffer(1)]],
    constant {0}& scalar [[buffer(2)]], uint i [[thread_position_in_grid]]) {{
  threadgroup {0} shared[8];
  {0} mine = i == 3 ? scalar : {0}(x[i]);
  shared[i] = mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  {0} other = shared[7 - i];
  out[i] = {0}(float(other));
}}
"""
    return MetalLibrary(HEADER + "".join(kernel.format(t) for t in TYPES))


@pytest.mark.parametrize("type_", TYPES)
def test_every_type_as_buffer_scalar_and_threadgroup_array(types, type_):
    dtype = TYPES[type_]
    x = np.array([0, 1, 2, 3, 4, 5, 6, 1], np.float32).astype(dtype)
    out = np.zeros_like(x)
    assert types.run(f"copy_{type_}", [x, out, 1], grid=8, threadgroup=8).clean
    expected = x.copy()
    expected[3] = dtype(1)
    np.testing.assert_array_equal(out, expected[::-1])
