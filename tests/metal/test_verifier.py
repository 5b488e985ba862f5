"""The Metal verifier itself: right kernels give right results in every thread order, wrong ones are caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from metal.illegal_kernels import BLIND_SPOTS, COMPILE, HEADER, LINT, NOTED, REFUSED, RUN, SIGNATURE, Faulty, Rejected

from mlxir.runtime.emulator import (
    MetalCheckError,
    MetalCompileError,
    MetalError,
    MetalLaunchError,
    MetalLibrary,
    MetalLintError,
    Report,
    unavailable_reason,
)

_REASON = unavailable_reason()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

HERE = Path(__file__).parent
ORDERS = (0, 1)


def load(name: str) -> MetalLibrary:
    library = MetalLibrary((HERE / "kernels" / f"{name}.metal").read_text())
    assert library.warnings == ""
    return library


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def elementwise() -> MetalLibrary:
    return load("elementwise")


@pytest.fixture(scope="module")
def matmul() -> MetalLibrary:
    return load("matmul")


@pytest.fixture(scope="module")
def atomics() -> MetalLibrary:
    return load("atomics")


# ---------------------------------------------------------------- right kernels


@pytest.mark.parametrize("order", ORDERS)
def test_elementwise_f32_with_vector_body_and_tail(elementwise, rng, order):
    a, b = (rng.standard_normal(1003).astype(np.float32) for _ in range(2))
    out = np.full_like(a, np.nan)
    assert elementwise.run("gate_f32", [a, b, out, 1003], grid=(251,), threadgroup=(64,), order=order).clean
    np.testing.assert_allclose(out, a / (1 + np.exp(-b.astype(np.float64))), rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel, dtype", [("axpy_f16", np.float16), ("axpy_bf16", ml_dtypes.bfloat16)])
def test_elementwise_16_bit_updates_in_place(elementwise, rng, order, kernel, dtype):
    x, y = (rng.standard_normal((33, 32)).astype(dtype) for _ in range(2))
    expected = (np.float32(2.5) * x.astype(np.float32) + y.astype(np.float32)).astype(dtype)
    grid, group = ((33 * 32,), (64,)) if kernel == "axpy_f16" else ((32, 33), (8, 8))
    assert elementwise.run(kernel, [x, y, 2.5], grid=grid, threadgroup=group, order=order).clean
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("kernel, dtype", [("fused_f16", np.float16), ("fused_bf16", ml_dtypes.bfloat16)])
def test_16_bit_arithmetic_rounds_after_every_operation(elementwise, rng, kernel, dtype):
    x = rng.standard_normal(512).astype(dtype)
    out = np.zeros_like(x)
    assert elementwise.run(kernel, [x, out], grid=512, threadgroup=128).clean
    np.testing.assert_array_equal(out, x * x + x * dtype(3))


@pytest.mark.parametrize("order", ORDERS)
def test_elementwise_int(elementwise, rng, order):
    x, y = rng.integers(-1000, 1000, (2, 777), dtype=np.int32)
    y[y == 0] = 1
    out = np.zeros_like(x)
    assert elementwise.run("mix_i32", [x, y, out], grid=777, threadgroup=256, order=order).clean
    quotient = np.trunc(x / y).astype(np.int32)
    expected = np.where((x ^ y) < 0, abs(x - y), quotient + (x - quotient * y)) + (abs(x) >> 2)
    np.testing.assert_array_equal(out, expected)


def test_complex_as_float2(elementwise, rng):
    x, y = (rng.standard_normal((2, 100)) + 1j * rng.standard_normal((2, 100))).astype(np.complex64)
    out = np.zeros_like(x)
    assert elementwise.run("complex_multiply", [x, y, out], grid=100, threadgroup=32).clean
    np.testing.assert_allclose(out, x * y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_idioms_of_emitted_shaders(rng, order):
    n, v = 6, np.array([0.25, -1.5, 2.0, 0.75, -0.5, 1.25], np.float32)
    x = np.zeros(2 * n, np.float32)
    x[::2] = v
    params = np.array((n, 0.5, (1, 2, 3)), np.dtype([("n", "u4"), ("scale", "f4"), ("strides", "i8", 3)], align=True))
    mask = np.array([True, True, True, False, False, True])
    b = np.arange(n).astype(ml_dtypes.bfloat16)
    out, flags = np.zeros((n, 12), np.float32), np.zeros(n, np.bool_)
    h, bits = np.zeros(n, np.float16), np.zeros(n, np.uint64)
    buffers = [x, out, params, [2, 1], mask, flags, b, h, bits]
    assert load("idioms").run("idioms", buffers, grid=8, threadgroup=8, order=order).clean

    i = np.arange(n)
    np.testing.assert_array_equal(flags, ((v < 0.5) & mask) | ~mask)
    np.testing.assert_array_equal(h, np.maximum(i + 1, 3) + (i + 1))
    np.testing.assert_array_equal(bits, v.view(np.uint32) ^ np.uint64(0x3F800000 << 32) ^ (i.astype(np.uint64) << 40))
    q = np.stack([v + 1, v, np.full(n, 2), np.full(n, 2)], 1)
    q = np.where(q > 1.5, 0, q) * 2
    iv = np.maximum(q.astype(int), 1) * 2
    w = np.where(i % 4 == 0, v + 10, np.where(i % 4 == 1, v - 1, v * 0.5)) + q[:, :3].sum(1) - 0.75
    expected = [
        np.maximum(v, 0) + v / 2,
        1 / (1 + np.exp(-v.astype(np.float64))) + i % 4 + 1 + 48,
        np.full(n, x[:3].sum() + v[0]),
        iv[:, 0] + iv[:, 1],
        *q.T,
        w,
        w * w - 1 + 2 * w,
        np.where(i % 2 == 0, i, 2 * i),
        np.sin(w) * np.cos(w),
    ]
    np.testing.assert_allclose(out, np.stack(expected, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_row_softmax(rng, order):
    x = rng.standard_normal((5, 300)).astype(np.float32) * 4
    out = np.zeros_like(x)
    report = load("softmax").run(
        "row_softmax", [x, out, 300], grid=5, threadgroup=128, in_threadgroups=True, order=order
    )
    assert report.clean
    assert (report.barriers, report.simd_operations) == (5 * 3, 5 * 4 * 4)
    expected = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(out, expected / expected.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_matmul_tiled(matmul, rng, order):
    m, n, k = 21, 35, 40
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    c = np.zeros((m, n), np.float32)
    report = matmul.run("matmul_tiled", [a, b, c, (m, n, k)], grid=(3, 2), threadgroup=(16, 16), in_threadgroups=True,
                        order=order)  # fmt: skip
    assert report.clean
    np.testing.assert_allclose(c, a.astype(np.float64) @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_matmul_simdgroup(matmul, rng, order):
    m, n, k = 64, 32, 24
    a, b = rng.standard_normal((m, k)).astype(np.float16), rng.standard_normal((k, n)).astype(np.float16)
    c = np.zeros((m, n), np.float32)
    report = matmul.run("matmul_simdgroup", [a, b, c, (m, n, k)], grid=(n // 32, m // 32), threadgroup=128,
                        in_threadgroups=True, order=order)  # fmt: skip
    assert report.clean
    np.testing.assert_allclose(c, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)
    a8, b8 = rng.standard_normal((2, 8, 8)).astype(np.float32)
    c8 = np.zeros((8, 8), np.float32)
    assert matmul.run("matmul_transposed", [a8, b8, c8], grid=32, threadgroup=32, order=order).clean
    np.testing.assert_allclose(c8, (a8.astype(np.float64) @ b8).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(atomics, rng, order):
    x = rng.integers(0, 16, 200, dtype=np.uint8)
    counts = np.zeros(16, np.uint32)
    assert atomics.run("histogram", [x, counts, 200], grid=256, threadgroup=64, order=order).clean
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=16))

    values = rng.integers(-500, 500, 100, dtype=np.int32)
    total, ends, bits = np.zeros(1, np.float32), np.zeros(2, np.int32), np.zeros(5, np.uint32)
    widest = np.zeros(1, np.uint64)
    assert atomics.run("combine", [values, total, ends, bits, widest], grid=100, threadgroup=64, order=order).clean
    assert total[0] == values.sum()
    assert tuple(ends) == (min(values.min(), 0), max(values.max(), 0))
    assert bits[0] == np.bitwise_or.reduce(values & 0xFF)
    assert tuple(bits[1:3]) == (1, 1)
    assert tuple(bits[3:]) == ((100, 100) if order == 0 else (1, 1))  # counts up only when threads come in that order
    assert widest[0] == 99 << 40


# ---------------------------------------------------------------- the launch

BUILTINS = """#include <metal_stdlib>
using namespace metal;
kernel void positions(device uint* out [[buffer(0)]],
    uint3 grid [[thread_position_in_grid]], uint3 inner [[thread_position_in_threadgroup]],
    uint3 group [[threadgroup_position_in_grid]], uint3 groups [[threadgroups_per_grid]],
    uint3 size [[threads_per_threadgroup]], uint3 total [[threads_per_grid]],
    uint3 dispatched [[dispatch_threads_per_threadgroup]], uint index [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
    uint width [[threads_per_simdgroup]], uint simdgroups [[simdgroups_per_threadgroup]]) {
  device uint* o = out + ((grid.z * total.y + grid.y) * total.x + grid.x) * 26;
  for (uint i = 0; i < 3; ++i) {
    o[i] = grid[i];
    o[3 + i] = inner[i];
    o[6 + i] = group[i];
    o[9 + i] = groups[i];
    o[12 + i] = size[i];
    o[15 + i] = total[i];
    o[18 + i] = dispatched[i];
  }
  o[21] = index;
  o[22] = lane;
  o[23] = simdgroup;
  o[24] = width;
  o[25] = simdgroups;
}
[[kernel]] void scratch(device const float* x [[buffer(1)]], device float* out [[buffer(4)]],
    threadgroup float* shared [[threadgroup(0)]], ushort2 at [[thread_position_in_threadgroup]]) {
  shared[at.x] = x[at.x];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[at.x] = shared[at.x ^ 1];
}
[[max_total_threads_per_threadgroup(64)]] kernel void shift(device float* x [[buffer(0)]],
    device float* y [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  y[i] = x[i] + 1.0f;
}
struct Sizes {
  uint count;
  float scale;
  uint strides[2];
};
kernel void with_struct(device float* out [[buffer(0)]], constant Sizes& sizes [[buffer(1)]],
    constant uint* shape [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < sizes.count) out[i * sizes.strides[1]] = sizes.scale * float(shape[1]);
}
"""


@pytest.fixture(scope="module")
def builtins() -> MetalLibrary:
    return MetalLibrary(BUILTINS)


@pytest.mark.parametrize("grid, group, in_threadgroups", [((5, 6, 4), (4, 3, 3), False), ((2, 1, 2), (4, 3, 3), True)])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_positions_with_non_uniform_threadgroups(builtins, grid, group, in_threadgroups, order):
    total = tuple(g * t for g, t in zip(grid, group, strict=True)) if in_threadgroups else grid
    out = np.zeros((*total[::-1], 26), np.uint32)
    run = {"grid": grid, "threadgroup": group, "in_threadgroups": in_threadgroups}
    assert builtins.run("positions", [out], order=order, **run).clean
    for z, y, x in np.ndindex(out.shape[:3]):
        at = np.array([x, y, z])
        position, local = at // group, at % group
        size = np.minimum(group, total - position * group)
        index = (local[2] * size[1] + local[1]) * size[0] + local[0]
        expected = [*at, *local, *position, *-(-np.array(total) // group), *size, *total, *group, index, index % 32,
                    index // 32, 32, -(-size.prod() // 32)]  # fmt: skip
        assert out[z, y, x].tolist() == expected


def test_dynamic_threadgroup_memory_and_sparse_buffer_indices(builtins):
    x, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run = {"grid": 64, "threadgroup": 64}
    assert builtins.run("scratch", {1: x, 4: out}, threadgroup_memory={0: 256}, **run).clean
    np.testing.assert_array_equal(out, x.reshape(32, 2)[:, ::-1].reshape(-1))
    with pytest.raises(MetalCheckError, match="after the end of threadgroup memory shared"):
        builtins.run("scratch", {1: x, 4: out}, threadgroup_memory={0: 252}, **run)


def test_struct_parameter(builtins):
    sizes = np.array((3, 0.5, (7, 2)), np.dtype([("count", "u4"), ("scale", "f4"), ("strides", "u4", 2)]))
    out = np.zeros(6, np.float32)
    assert builtins.run("with_struct", [out, sizes, [4, 6]], grid=4, threadgroup=4).clean
    np.testing.assert_array_equal(out, [3, 0, 3, 0, 3, 0])


def test_arrays_that_share_memory_share_it_in_the_kernel(builtins):
    x = np.zeros(64, np.float32)
    assert builtins.run("shift", [x, x], grid=64, threadgroup=64).clean
    np.testing.assert_array_equal(x, 1)
    arena = np.zeros(96, np.float32)
    report = builtins.run("shift", [arena[:64], arena[32:]], grid=64, threadgroup=64, strict=False)
    assert len(report.errors) == 1 and re.search(r"data race .* on x \[\[buffer\(0\)\]\] = y", report.errors[0])


@pytest.mark.parametrize(
    "buffers, options, message",
    [
        ([np.zeros(8, np.float32)], {}, "has the buffers"),
        ([np.zeros(8, np.float32), 1.0], {}, "pass an array"),
        ([np.zeros(8, np.float32), np.zeros(8)], {}, "needs float32, the array is float64"),
        ([np.zeros(8, np.float32), np.zeros(16, np.float32)[::2]], {}, "contiguous"),
        ([np.zeros(8, np.float32), np.frombuffer(bytes(32), np.float32)], {}, "read-only"),
        ([np.zeros(8, np.float32)] * 2, {"threadgroup": 65}, "65 threads per threadgroup, 64 allowed"),
        ([np.zeros(8, np.float32)] * 2, {"grid": 0}, "positive"),
        ([np.zeros(8, np.float32)] * 2, {"kernel": "missing"}, "no kernel"),
    ],
)
def test_launch_that_does_not_fit(builtins, buffers, options, message):
    arguments = {"kernel": "shift", "grid": 8, "threadgroup": 8} | options
    with pytest.raises(MetalLaunchError, match=message):
        builtins.run(buffers=buffers, **arguments)


def test_value_that_does_not_fit(elementwise):
    x = np.zeros(4, np.float32)
    with pytest.raises(MetalLaunchError, match="no value of the type uint"):
        elementwise.run("gate_f32", [x, x, x.copy(), -1], grid=1, threadgroup=1)


# ---------------------------------------------------------------- wrong kernels


@pytest.mark.parametrize("case", LINT, ids=lambda c: c.name)
def test_rejected_by_lint(case: Rejected):
    with pytest.raises(MetalLintError, match=case.message):
        MetalLibrary(case.source)


@pytest.mark.parametrize("case", COMPILE, ids=lambda c: c.name)
def test_rejected_by_clang(case: Rejected):
    with pytest.raises(MetalCompileError, match=case.message):
        MetalLibrary(case.source)


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.name)
def test_legal_metal_that_is_refused(case: Rejected):
    with pytest.raises(MetalError, match=case.message):
        MetalLibrary(case.source)


@pytest.fixture(scope="module")
def faulty() -> MetalLibrary:
    kernels = [f"kernel void {f.name}{SIGNATURE} {{\n  {f.body}\n}}\n" for f in RUN + NOTED + BLIND_SPOTS]
    return MetalLibrary(HEADER + "".join(kernels))


def run_faulty(library: MetalLibrary, case: Faulty, order: int) -> Report:
    o, x, c = np.zeros(128, np.float32), np.ones(128, np.float32), np.zeros(128, np.uint32)
    return library.run(case.name, [o, x, 128, c], grid=128, threadgroup=64, order=order, strict=False, time_limit=0.3)


@pytest.mark.parametrize("case", RUN, ids=lambda c: c.name)
def test_caught_when_run(faulty, case: Faulty):
    errors = [e for order in ORDERS for e in run_faulty(faulty, case, order).errors]
    assert any(re.search(case.message, e) for e in errors), errors


@pytest.mark.parametrize("case", NOTED, ids=lambda c: c.name)
def test_noted_when_run(faulty, case: Faulty):
    report = run_faulty(faulty, case, 0)
    assert report.errors == []
    assert any(re.search(case.message, n) for n in report.warnings + report.divergences)
    assert report.divergent == (0 if report.warnings else 4)


@pytest.mark.parametrize("case", BLIND_SPOTS, ids=lambda c: c.name)
def test_known_to_be_missed(faulty, case: Faulty):
    for order in ORDERS:
        assert run_faulty(faulty, case, order).clean


def test_error_names_the_line_and_the_thread(faulty):
    o, x, c = np.zeros(128, np.float32), np.ones(128, np.float32), np.zeros(128, np.uint32)
    with pytest.raises(MetalCheckError) as caught:
        faulty.run("write_past_end", [o, x, 128, c], grid=128, threadgroup=64)
    line = next(i for i, text in enumerate(faulty.source_lines, 1) if "o[gid + 1] = 1;" in text)
    assert caught.value.report.errors == [
        f"kernel.metal:{line}: o[gid + 1] = 1; -- out-of-bounds write of 4 bytes, 0 bytes after the end of "
        "o [[buffer(0)]] [first: thread (63, 0, 0) of threadgroup (1, 0, 0)]"
    ]
    np.testing.assert_array_equal(o, [0] + [1] * 127)


def _mutants(source: str, kernel: str) -> dict[str, str]:
    """Each threadgroup barrier of a kernel left out, one at a time, and each made to order the wrong memory."""
    barrier = re.compile(r"threadgroup_barrier\(mem_flags::mem_threadgroup\);")
    body = source[source.index(f"kernel void {kernel}(") :]
    body = body[: body.index("\n}\n") + 3]
    mutants = {}
    for i, match in enumerate(barrier.finditer(body)):
        for word, text in (("without", ""), ("device", "threadgroup_barrier(mem_flags::mem_device);")):
            name = f"{kernel}_{word}_{i}"
            mutated = body[: match.start()] + text + body[match.end() :]
            mutants[name] = mutated.replace(f"kernel void {kernel}(", f"kernel void {name}(")
    return mutants


def test_every_barrier_of_the_right_kernels_is_needed(rng):
    softmax, matmul = ((HERE / "kernels" / f"{n}.metal").read_text() for n in ("softmax", "matmul"))
    mutants = _mutants(softmax, "row_softmax") | _mutants(matmul, "matmul_tiled")
    assert len(mutants) == 2 * (3 + 2)
    library = MetalLibrary(HEADER + "".join(mutants.values()))
    x = rng.standard_normal((2, 256)).astype(np.float32)
    a, b = rng.standard_normal((2, 32, 32)).astype(np.float32)
    for name in mutants:
        if name.startswith("row_softmax"):
            run = {"buffers": [x, np.zeros_like(x), 256], "grid": 2, "threadgroup": 128}
        else:
            run = {"buffers": [a, b, np.zeros_like(a), (32, 32, 32)], "grid": (2, 2), "threadgroup": (16, 16)}
        for order in ORDERS:
            with pytest.raises(MetalCheckError, match=r"data race|uninitialised"):
                library.run(name, in_threadgroups=True, order=order, **run)


# ---------------------------------------------------------------- the tool chain


def test_concurrent_first_use_without_system_compiler(tmp_path):
    """Two processes with an empty cache and an empty PATH build everything at the same time."""
    program = """
import numpy as np
from mlxir.runtime.emulator import MetalLibrary
library = MetalLibrary('''#include <metal_stdlib>
using namespace metal;
kernel void twice(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = x[i] * 2; }
''')
x = np.arange(100, dtype=np.float32)
library.run("twice", [x], grid=100, threadgroup=32)
np.testing.assert_array_equal(x, np.arange(100) * 2)
"""
    environment = {
        **os.environ,
        "MLXIR_METAL_VERIFIER_CACHE": str(tmp_path),
        "PATH": "",
        "PYTHONPATH": str(HERE.parent),
    }
    runs = [subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    for run in runs:
        _, messages = run.communicate(timeout=280)
        assert run.returncode == 0, messages
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".log", ".so", ".so"]
