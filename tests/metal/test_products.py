"""Products by SIMD-group matrices: every form, dtype, edge and layout, executed in emulation in two thread orders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from metal.emulation import Shaders, caught, traced

from mlxir.compiler.pipeline import compile_metal, transformed_program
from mlxir.runtime.dtypes import float32
from mlxir.runtime.emulator import unavailable_reason

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
TOLERANCE = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}

Case = tuple[Callable[..., Any], list[np.ndarray], list[str]]
CASES: dict[str, Case] = {}
_random = np.random.default_rng(3)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return _random.standard_normal(shape).astype(dtype)


def case(name: str, fn: Callable[..., Any], *arrays: np.ndarray, contains: tuple[str, ...] = ()) -> None:
    """`contains` says what the shader's text must have."""
    CASES[name] = fn, list(arrays), list(contains)


def relu_of_bias(m: Any, x: Any, w: Any, b: Any) -> Any:
    return m.maximum(m.matmul(x, w, ta=False, tb=False) + b, m.scalar(0.0, x.dtype))


def times(ta: bool = False, tb: bool = False) -> Callable[..., Any]:
    return lambda m, a, b: m.matmul(a, b, ta=ta, tb=tb)


def convolution(**changes: Any) -> Callable[..., Any]:
    attrs = {"stride": (1, 1), "low": (1, 1), "high": (1, 1), "dilation": (1, 1), "input_dilation": (1, 1)}
    return lambda m, x, w: m.conv(x, w, **{**attrs, "groups": 1, "flip": False, **changes})


MATRIX = ("simdgroup_multiply_accumulate", "threadgroup_barrier")
for (name, dtype), (ta, tb) in product(DTYPES.items(), product((False, True), repeat=2)):
    m, k, n = (70, 37, 50) if name == "float32" and not ta else (29, 37, 27)
    a, b = normal(*((k, m) if ta else (m, k)), dtype=dtype), normal(*((n, k) if tb else (k, n)), dtype=dtype)
    case(f"edges {name} {ta} {tb}", times(ta, tb), a, b, contains=MATRIX)
for name, dtype in DTYPES.items():
    case(f"bias and relu {name}", relu_of_bias, normal(30, 33, dtype=dtype), normal(33, 35, dtype=dtype),
         normal(35, dtype=dtype), contains=(*MATRIX, "max"))  # fmt: skip
    case(f"dots {name}", times(tb=True), normal(3, 300, dtype=dtype), normal(9, 300, dtype=dtype),
         contains=("simd_sum",))  # fmt: skip
    case(f"columns {name}", times(), normal(2, 90, dtype=dtype), normal(90, 40, dtype=dtype), contains=("fma",))
    case(f"split columns {name}", times(), normal(1, 1100, dtype=dtype), normal(1100, 20, dtype=dtype),
         contains=("_parts",))  # fmt: skip
    case(f"split tiles {name}", times(), normal(9, 1100, dtype=dtype), normal(1100, 10, dtype=dtype),
         contains=(*MATRIX, "_parts"))  # fmt: skip
    case(f"split with what follows {name}", relu_of_bias, normal(9, 1100, dtype=dtype), normal(1100, 10, dtype=dtype),
         normal(10, dtype=dtype), contains=(*MATRIX, "_parts"))  # fmt: skip
    case(f"conv {name}", convolution(), normal(2, 5, 6, 3, dtype=dtype), normal(9, 3, 3, 3, dtype=dtype),
         contains=MATRIX)  # fmt: skip
case("whole tiles", times(), normal(64, 32), normal(32, 128), contains=("simdgroup_store(sum0, out0",))
case("small whole tiles", times(), normal(32, 16), normal(16, 32), contains=("simdgroup_store(sum0, out0",))
case("batched", times(), normal(3, 20, 17), normal(3, 17, 27), contains=MATRIX)
case("batch of one matrix", times(), normal(3, 20, 17), normal(17, 27), contains=MATRIX)
case("batch of one left matrix", times(tb=True), normal(20, 17), normal(3, 27, 17), contains=MATRIX)
case("computed operands", lambda m, a, b: m.matmul(m.exp(a), m.transpose(m.sin(b), axes=(1, 0)), ta=False, tb=False),
     normal(20, 17), normal(27, 17), contains=(*MATRIX, "precise::exp", "precise::sin"))  # fmt: skip
case("gathered rows", lambda m, t, i, w: m.matmul(
    m.reshape(m.gather(t, i, axes=(0,), slice_sizes=(1, 20)), shape=(12, 20)), w, ta=False, tb=False),
     normal(30, 20), _random.integers(0, 30, 12).astype(np.int32), normal(20, 16), contains=MATRIX)  # fmt: skip
case("transposed result", lambda m, a, b: m.transpose(m.matmul(a, b, ta=False, tb=False) * 2.0, axes=(1, 0)),
     normal(20, 17), normal(17, 27), contains=MATRIX)  # fmt: skip
case("two results", lambda m, a, b: (lambda c: [c, m.tanh(c)])(m.matmul(a, b, ta=False, tb=False)),
     normal(20, 17), normal(17, 27), contains=MATRIX)  # fmt: skip
case("result in another type", lambda m, a, b: m.astype(m.matmul(a, b, ta=False, tb=False), dtype=float32),
     normal(20, 17, dtype=np.float16), normal(17, 27, dtype=np.float16), contains=MATRIX)  # fmt: skip
case("conv strided", convolution(stride=(2, 1), low=(0, 1)), normal(2, 7, 6, 3), normal(8, 3, 2, 3), contains=MATRIX)
case("conv in groups", convolution(groups=2), normal(1, 5, 6, 4), normal(16, 3, 3, 2), contains=MATRIX)
case("conv dilated", convolution(dilation=(2, 1), input_dilation=(1, 2)), normal(1, 6, 5, 2), normal(8, 3, 3, 2),
     contains=MATRIX)  # fmt: skip
case("conv flipped", convolution(flip=True), normal(1, 5, 6, 3), normal(8, 3, 3, 3), contains=MATRIX)


def attend(**changes: Any) -> Callable[..., Any]:
    attrs = {"scale": 0.3, "fill": -1e30, "causal": False, "swapped": False, **changes}
    return lambda m, *operands: m.attention(*operands, **attrs)


STREAMING = ("simd_max", "fma")
for name, dtype in DTYPES.items():
    case(f"decode {name}", attend(), normal(1, 4, 1, 16, dtype=dtype), normal(1, 2, 40, 16, dtype=dtype),
         normal(1, 2, 40, 12, dtype=dtype), np.ones((1, 1, 1, 40), bool), normal(1, 4), contains=STREAMING)  # fmt: skip
case("decode many keys", attend(swapped=True), normal(2, 1, 2, 8), normal(2, 1, 600, 8), normal(2, 1, 600, 8),
     _random.integers(0, 2, (2, 1, 1, 600)) > 0, np.full((1, 1), -np.inf, np.float32), contains=STREAMING)  # fmt: skip
case("causal", attend(causal=True), normal(1, 2, 5, 8), normal(1, 2, 9, 8), normal(1, 2, 9, 8),
     normal(1, 1, 5, 9), np.full((1, 1), -np.inf, np.float32), contains=STREAMING)  # fmt: skip
case("attention by tiles", attend(causal=True), normal(1, 2, 33, 8), normal(1, 2, 33, 8), normal(1, 2, 33, 8),
     np.ones((1, 1, 1, 33), bool), np.full((1, 1), -np.inf, np.float32), contains=MATRIX)  # fmt: skip


class Compiled:
    def __init__(self) -> None:
        self.traced = {name: traced(fn, *arrays) for name, (fn, arrays, _) in CASES.items()}
        self.numbers = {name: n for n, name in enumerate(CASES)}
        self.shaders = Shaders.compile([program for program, _ in self.traced.values()], batch=24)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled()


def test_no_compiler_warnings(compiled: Compiled) -> None:
    assert {library.warnings for library in compiled.shaders.libraries if library is not None} == {""}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_product(compiled: Compiled, name: str, order: int) -> None:
    program, arguments = compiled.traced[name]
    found, reports = compiled.shaders.run(compiled.numbers[name], arguments, order)
    for report in reports:
        assert report.clean, (report.errors, report.warnings, report.divergences)
    for a, b in zip(found, transformed_program(program).run_reference(arguments), strict=True):
        scale = max(float(np.abs(b.astype(np.float64)).max()), 1.0)
        tolerance = max(TOLERANCE[x.dtype.name] for x in arguments if x.dtype.name in TOLERANCE)
        np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", CASES)
def test_form(name: str) -> None:
    """The product is computed in the form that its case is about."""
    fn, arrays, contains = CASES[name]
    text, _ = compile_metal(traced(fn, *arrays)[0])
    assert [part for part in contains if part not in text] == []


# -- faults ------------------------------------------------------------------------------------------------------------
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"
FAULTS = {
    "stride of a tile": (", 20, ulong2", ", 19, ulong2"),
    "tile of b": ("+ m * 8 + 576", "+ m * 8 + 560"),
    "transposed fragment": (", ulong2(0, 0), true", ""),
    "other simdgroup": ("simdgroup % 2", "simdgroup / 2"),
    "rows outside": ("j / 32 < 29", "j / 32 < 30"),
    "rows read outside": ("j % 32 < 29", "j % 32 < 30"),
    "columns outside": ("j % 32 < 27", "j % 32 < 28"),
    "end of K": ("< 37)", "< 36)"),
    "fragment added twice": ("simdgroup_multiply_accumulate(sum1, a0, b1, sum1);",
                             "simdgroup_multiply_accumulate(sum1, a0, b1, sum0);"),
    "address space": ("threadgroup float kept0", "device float kept0"),
    "private tile": ("threadgroup float kept0", "float kept0"),
    "matrix of halves": ("simdgroup_float8x8 a0;", "simdgroup_half8x8 a0;"),
}  # fmt: skip


def _faulty(text: str) -> dict[str, str]:
    """The shader of a product with one fault each: every barrier left out, and FAULTS."""
    parts = text.split(BARRIER)
    assert len(parts) == 5
    faulty = {
        f"without barrier {n}": BARRIER.join(parts[:n]) + BARRIER.join(parts[n:]) for n in range(1, len(parts))
    }
    for name, (old, new) in FAULTS.items():
        assert old in text, (name, text)
        faulty[name] = text.replace(old, new)
    return faulty


def _compiled(name: str) -> tuple[str, dict[str, Any], list[np.ndarray], np.ndarray]:
    """Shader, schedule, arguments and result of a case."""
    fn, arrays, _ = CASES[name]
    program, arguments = traced(fn, *arrays)
    (expected,) = program.run_reference(arguments)
    return *compile_metal(program), arguments, expected


def test_faults_are_caught() -> None:
    """No fault put into the shader of a product gets past the checks that the cases pass."""
    text, *rest = _compiled("edges float32 True True")
    assert not caught(text, *rest, tolerance=1e-4)
    assert [name for name, source in _faulty(text).items() if not caught(source, *rest, tolerance=1e-4)] == []


def test_wrong_grids_are_caught() -> None:
    text, schedule, arguments, expected = _compiled("batched")
    (step,) = schedule["steps"]
    assert (step["grid"], step["threadgroup"]) == ([3, 1, 1], [128, 1, 1])
    for grid, threads in ((2, 128), (4, 128), (3, 64), (3, 96)):
        wrong = {**schedule, "steps": [{**step, "grid": [grid, 1, 1], "threadgroup": [threads, 1, 1]}]}
        assert caught(text, wrong, arguments, expected, tolerance=1e-4), (grid, threads)
