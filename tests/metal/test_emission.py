"""The Metal target: what it prints is compiled by clang, executed in emulation, and compared with the reference."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import graph
from mlxir.compiler.pipeline import compile_metal, transformed_program
from mlxir.compiler.program import Program
from mlxir.dump import Spec, trace
from mlxir.runtime.dtypes import (
    bfloat16,
    bool_,
    complex64,
    float16,
    float32,
    float64,
    from_numpy,
    int32,
    int64,
    uint8,
    uint16,
)
from mlxir.runtime.emulator import MetalLibrary, unavailable_reason
from mlxir.runtime.errors import CompileError
from mlxir.runtime.trees import leaves, tree_map

if unavailable_reason() is None:
    from metal.emulation import Shaders, run_schedule, traced

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")
GOLDEN = Path(__file__).with_name("golden")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

Case = tuple[Callable[..., Any], tuple[np.ndarray, ...]]
CASES: dict[str, Case] = {}
_random = np.random.default_rng(7)


def case(name: str, fn: Callable[..., Any], *arrays: Any) -> None:
    assert name not in CASES
    CASES[name] = fn, tuple(np.asarray(a) for a in arrays)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    if dtype is np.complex64:
        return (_random.standard_normal(shape) + 1j * _random.standard_normal(shape)).astype(dtype)
    return _random.standard_normal(shape).astype(dtype)


def integers(name: str, *shape: int) -> np.ndarray:
    """Small numbers of both signs, and the extremes."""
    limits = np.iinfo(name)
    a = _random.integers(max(limits.min, -9), 10, shape).astype(name)
    a.flat[:2] = limits.min, limits.max
    return a


def softmax(axes: tuple[int, ...]) -> Callable[..., Any]:
    return lambda m, x: m.softmax(x, axes=axes)


def layer_norm(m: Any, x: Any, w: Any, b: Any) -> Any:
    mean = m.sum(x, axes=(1,)) * (1 / x.shape[1])
    d = x - m.expanded(mean, [1])
    variance = m.sum(d * d, axes=(1,)) * (1 / x.shape[1])
    return d * m.expanded(m.rsqrt(variance + 1e-5), [1]) * w + b


def reduced(op: str, axes: tuple[int, ...]) -> Callable[..., Any]:
    return lambda m, x: getattr(m, op)(x, axes=axes)


# -- element operations ------------------------------------------------------------------------------------------------
case("chain", lambda m, x, s, b: m.exp(-m.abs(m.tanh(x * s + b))) / 3.0, normal(6, 50), normal(50), normal(6, 1))
case("transcendental", lambda m, x: [getattr(m, f)(x) for f in (
    "exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "arcsin", "arccos", "arctan",
)], np.append(normal(20), [0, -0.0, np.inf, -np.inf, np.nan, 0.5]).astype(np.float32))  # fmt: skip
case("transcendental 2", lambda m, x: [getattr(m, f)(x) for f in (
    "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "erf", "erfinv", "sigmoid", "floor", "ceil",
    "trunc", "round",
)], np.append(normal(20), [0, np.inf, -np.inf, np.nan, 0.5, 1.5]).astype(np.float32))  # fmt: skip
case("binary", lambda m, x, y: [getattr(m, f)(x, y) for f in (
    "power", "arctan2", "logaddexp", "maximum", "minimum", "remainder", "floor_divide",
)], np.append(normal(20), [np.nan, 1, 0]).astype(np.float32),
     np.append(normal(20), [1, np.nan, 2]).astype(np.float32))  # fmt: skip
for name, half in HALVES.items():
    case(f"{name} chain", lambda m, x, y: m.exp(x) * y + x, normal(5, 30, dtype=half), normal(30, dtype=half))
    case(f"{name} softmax", softmax((1,)), normal(3, 150, dtype=half))
    case(f"{name} sum", reduced("sum", (0,)), normal(40, 9, dtype=half))
    case(
        f"{name} bits",
        lambda m, x: m.view(m.bitwise_xor(m.view(x, dtype=uint16), m.scalar(32768, uint16)), dtype=x.dtype),
        normal(3, 4, dtype=half),
    )
for name in INTEGERS:
    case(f"{name} arithmetic", lambda m, x, y: [
        x * y + x - y, m.floor_divide(x, y), m.remainder(x, y), m.maximum(x, y), m.minimum(x, y),
        m.negative(x), m.abs(x), m.power(x, y),
    ], integers(name, 40), integers(name, 40)[::-1])  # fmt: skip
    count = (np.arange(40) % (8 * np.dtype(name).itemsize)).astype(name)
    case(f"{name} bits", lambda m, x, n: [
        m.left_shift(x, n), m.right_shift(x, n), m.bitwise_and(x, n), m.bitwise_or(x, n), m.bitwise_xor(x, n),
        m.bitwise_invert(x),
    ], integers(name, 40), count)  # fmt: skip
    case(
        f"{name} comparisons",
        lambda m, x, y: [m.less(x, y), m.greater_equal(x, y), m.equal(x, y)],
        integers(name, 40),
        integers(name, 40),
    )
    case(f"{name} conversions", lambda m, x: [
        m.astype(x, dtype=d) for d in (bool_, uint8, int32, int64, float16, bfloat16, float32, complex64)
    ], integers(name, 40))  # fmt: skip
    case(
        f"{name} reductions",
        lambda m, x: [reduced(o, (1,))(m, x) for o in ("sum", "prod", "max", "min")],
        integers(name, 5, 70),
    )
    case(f"{name} wide sum", reduced("sum", (1,)), integers(name, 3, 300))
case("bool", lambda m, x, y: [
    m.logical_and(x, m.logical_not(y)), m.logical_or(x, y), m.bitwise_xor(x, y),
    m.select(x, m.astype(y, dtype=float32), m.scalar(2.5, float32)),
], _random.integers(0, 2, 33) > 0, _random.integers(0, 2, 33) > 0)  # fmt: skip
case("bool reductions", lambda m, x: [m.all(x, axes=(1,)), m.any(x, axes=(1,))], _random.integers(0, 90, (4, 300)) > 0)
case("float to integers", lambda m, x: [m.astype(x, dtype=d) for d in (uint8, int32, int64, bool_)],
     np.array([0.5, -1.5, 3e4, 1e9, -1e9], np.float32))  # fmt: skip
case("complex", lambda m, x, y: [
    x * y + x, x / y, m.exp(x), m.abs(x), m.real(m.sin(y)), m.imag(m.sqrt(x)), m.conjugate(x), m.equal(x, y), m.log(x),
    m.tanh(y),
], normal(21, dtype=np.complex64), normal(21, dtype=np.complex64))  # fmt: skip
case("complex sums", lambda m, x: [m.sum(x, axes=(1,)), m.prod(x, axes=(1,))], normal(9, 30, dtype=np.complex64))
case(
    "complex columns",
    lambda m, x: m.exp(x) / m.expanded(m.sum(m.exp(x), axes=(0,)), [0]),
    normal(12, 70, dtype=np.complex64),
)
case(
    "complex rows",
    lambda m, x: m.exp(x) / m.expanded(m.sum(m.exp(x), axes=(1,)), [1]),
    normal(4, 20, dtype=np.complex64),
)
case(
    "complex long rows",
    lambda m, x: m.exp(x) / m.expanded(m.sum(m.exp(x), axes=(1,)), [1]),
    normal(2, 300, dtype=np.complex64),
)
case("scalar", lambda m, x: m.exp(x) + 1.0, np.float32(0.7))
case(
    "empty", lambda m, x, y: [m.exp(x), m.sum(y, axes=(1,))], np.zeros((0, 3), np.float32), np.zeros((3, 0), np.float32)
)
for start, step, dtype in (
    (0, 1, int32),
    (5, -2, int64),
    (0.0, 0.1, float32),
    (-3.7, 0.3, float32),
    (1.0, 1e-3, float16),
):
    case(f"arange {start} {step}", lambda m, a=start, s=step, d=dtype: m.arange(start=a, step=s, length=333, dtype=d))
for width in (1, 2, 4):
    case(
        f"random bits {width}",
        lambda m, k, w=width: m.random_bits(k, shape=(7, 3), width=w),
        np.array([[3, 4], [9, 8]], np.uint32),
    )

case("large rows with broadcasts", lambda m, x, b, c: m.maximum(x * c + b, m.scalar(0.0, float32)),
     normal(300, 240), normal(240), normal(300, 1))  # fmt: skip
case("large rows, some reversed", lambda m, x, y: m.slice(x, start=(0, 239), stop=(300, -1), strides=(1, -1)) * y,
     normal(300, 240), normal(300, 240))  # fmt: skip
case("large rows under a guard", lambda m, x, y: m.concatenate(x, y, axis=0) * 2.0, normal(200, 240), normal(100, 240))
case("large rows of an odd length", lambda m, x, b: m.exp(x) + b, normal(301, 223), normal(223))
case("large wide", lambda m, x, y: [x + y, m.astype(x, dtype=float32)],
     _random.integers(-9, 9, 65537), _random.integers(-9, 9, 65537))  # fmt: skip
case("large bfloat16", lambda m, x: m.exp(x) * 2.0, normal(65540, dtype=ml_dtypes.bfloat16))
case("large complex", lambda m, x: x * x, normal(65540, dtype=np.complex64))
for size in (65536, 65539):  # several elements to a thread, and a tail
    case(f"large {size}", lambda m, x: m.sin(x) * 2.0, normal(size))
case("large bytes", lambda m, x: m.logical_not(x), _random.integers(0, 2, 65541) > 0)
case("large half", lambda m, x, y: m.exp(x) + m.astype(y, dtype=float16),
     normal(65538, dtype=np.float16), normal(65538))  # fmt: skip

# -- reductions --------------------------------------------------------------------------------------------------------
for shape in ((3, 7), (5, 129), (2, 3000), (1, 5000), (300, 10)):
    case(f"softmax {shape}", softmax((1,)), normal(*shape))
    case(f"layer norm {shape}", layer_norm, normal(*shape), normal(shape[1]), normal(shape[1]))
    case(f"column softmax {shape}", softmax((0,)), normal(*shape))
    case(
        f"reductions {shape}",
        lambda m, x: [reduced(o, (1,))(m, m.exp(x)) for o in ("sum", "max", "min", "prod")],
        normal(*shape) * 0.1,
    )
case("softmax of two axes", softmax((0, 2)), normal(4, 6, 100))
case("softmax of two long axes", softmax((0, 2)), normal(4, 3, 2048))
case("nan wins", lambda m, x: [reduced(o, a)(m, x) for o in ("max", "min") for a in ((0,), (1,))],
     np.where(np.eye(5, 140, dtype=bool), np.nan, normal(5, 140)).astype(np.float32))  # fmt: skip
case("sum of all", reduced("sum", (0, 1)), normal(30, 50))
case("sum in pieces", reduced("sum", (0,)), normal(40000))
case("sum axes 0 2", reduced("sum", (0, 2)), normal(4, 16, 30))
case("sum axis 1 of 3", reduced("sum", (1,)), normal(4, 5, 60))
case("sum columns", lambda m, x: m.sum(x * x, axes=(0,)), normal(70, 600))
for op in ("argmax", "argmin"):
    case(op, lambda m, x, op=op: [getattr(m, op)(x, axis=a) for a in (0, 1)], normal(20, 33))
    case(f"{op} of all", lambda m, x, op=op: getattr(m, op)(m.reshape(x, shape=(60,)), axis=0), normal(6, 10))

# -- kernels with loops of their own -----------------------------------------------------------------------------------
for op in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
    for reverse in (False, True):
        case(
            f"{op} reverse={reverse}",
            lambda m, x, op=op, r=reverse: getattr(m, op)(m.sin(x), axis=1, reverse=r, inclusive=not r),
            normal(5, 19),
        )
for name in ("int8", "int32", "uint64"):
    case(
        f"cumulative {name}",
        lambda m, x: [getattr(m, o)(x, axis=0, reverse=False, inclusive=True) for o in ("cumsum", "cummax")],
        integers(name, 30, 3),
    )
case(
    "cumsum complex", lambda m, x: m.cumsum(x, axis=1, reverse=False, inclusive=True), normal(3, 8, dtype=np.complex64)
)
for op in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):  # by threadgroups, of one and several SIMD-groups
    for size, reverse in ((70, False), (1030, True)):
        case(
            f"{op} of rows of {size}",
            lambda m, x, op=op, r=reverse: getattr(m, op)(m.sin(x), axis=1, reverse=r, inclusive=not r),
            normal(3, size),
        )
for name in ("uint8", "int32", "int64"):
    case(
        f"cumulative rows of {name}",
        lambda m, x: [getattr(m, o)(x, axis=1, reverse=False, inclusive=True) for o in ("cumsum", "cummax")],
        integers(name, 2, 300),
    )
case("cumsum of complex rows", lambda m, x: m.cumsum(x, axis=1, reverse=True, inclusive=True),
     normal(2, 140, dtype=np.complex64))  # fmt: skip
case("cummax of bool rows", lambda m, x: m.cummax(x, axis=1, reverse=False, inclusive=True),
     _random.integers(0, 40, (2, 140)) == 0)  # fmt: skip
case("cumsum of half rows", lambda m, x: m.cumsum(x, axis=1, reverse=False, inclusive=False),
     normal(2, 140, dtype=np.float16))  # fmt: skip
case("cumsum of strided rows", lambda m, x: m.cumsum(x, axis=0, reverse=False, inclusive=True), normal(600, 3))
rows = np.array([3, -4, 3, 63, -64, 0, 9], np.int32)
case("gather rows", lambda m, x, i: m.gather(x, i, axes=(0,), slice_sizes=(1, 20)), normal(64, 20), rows)
case(
    "gather points",
    lambda m, x, i, j: m.gather(x, i, j, axes=(0, 1), slice_sizes=(1, 1)),
    normal(64, 20),
    rows,
    rows % 20,
)
case(
    "gather int64", lambda m, x, i: m.gather(x, i, axes=(1,), slice_sizes=(4, 3)), normal(4, 50), np.array([5, -50, 47])
)
for mode in ("set", "add", "multiply", "maximum"):
    case(
        f"scatter rows {mode}",
        lambda m, x, i, u, o=mode: m.scatter(x, i, u, axes=(0,), mode=o),
        normal(64, 20),
        rows,
        normal(7, 1, 20),
    )
    case(
        f"scatter elements {mode}",
        lambda m, x, i, u, o=mode: m.scatter(x, i, u, axes=(0,), mode=o),
        normal(20),
        rows % 20,
        normal(7, 1),
    )
    case(f"scatter overlapping {mode}", lambda m, x, i, u, o=mode: m.scatter(x, i, u, axes=(0,), mode=o),
         normal(90), np.array([0, 2, 1, 50, 30]), normal(5, 40))  # fmt: skip
case(
    "scatter wide",
    lambda m, x, i, u: m.scatter(x, i, u, axes=(0,), mode="add"),
    normal(5, 700),
    np.array([3, 1, 3]),
    normal(3, 1, 700),
)
case(
    "scatter columns",
    lambda m, x, i, u: m.scatter(x, i, u, axes=(1,), mode="add"),
    normal(6, 20),
    np.array([3, 5, 3]),
    normal(3, 6, 1),
)
case("scatter half", lambda m, x, i, u: m.scatter(x, i, u, axes=(0,), mode="add"),
     normal(8, 5, dtype=np.float16), np.array([3, 5]), normal(2, 1, 5, dtype=np.float16))  # fmt: skip
case("pad", lambda m, x: m.pad(m.exp(x), m.scalar(3.0, float32), low=(1, 2), high=(1, 0)), normal(9, 11))
case(
    "concatenate",
    lambda m, x, y: [m.concatenate(x, y, axis=0), m.concatenate(m.exp(x), y, axis=1)],
    normal(4, 5),
    normal(4, 5),
)
case("transpose", lambda m, x: m.reshape(m.transpose(x, axes=(2, 0, 1)) + 1.0, shape=(120,)), normal(4, 5, 6))
case("slice", lambda m, x: m.slice(x, start=(1, 2), stop=(19, 30), strides=(2, 3)), normal(20, 31))
case("matmul with bias and relu",
     lambda m, x, w, b: m.maximum(m.matmul(x, w, ta=False, tb=False) + b, m.scalar(0.0, float32)),
     normal(9, 17), normal(17, 12), normal(12))  # fmt: skip
case("matmul transposed", lambda m, x, w: m.matmul(x, w, ta=True, tb=True), normal(17, 9), normal(12, 17))
case("matmul batched", lambda m, x, w: m.matmul(x, w, ta=False, tb=False), normal(3, 4, 5), normal(3, 5, 6))
for name, dtype in (*HALVES.items(), ("complex64", np.complex64)):
    case(
        f"matmul {name}",
        lambda m, x, w: m.matmul(x, w, ta=False, tb=False),
        normal(4, 5, dtype=dtype),
        normal(5, 6, dtype=dtype),
    )

# -- several steps -----------------------------------------------------------------------------------------------------
for op in ("sort", "argsort"):
    case(f"{op} by rank", lambda m, x, o=op: getattr(m, o)(m.exp(x), axis=0), normal(70, 3))
    case(f"{op} by digits", lambda m, x, o=op: getattr(m, o)(x, axis=1), integers("int16", 2, 1100))
case("library step between kernels", lambda m, x: m.sum(m.inv(m.exp(x)) * 2.0, axes=(0,)), normal(5, 5))
case("two kernels", lambda m, x: m.sum(m.matmul(m.exp(x), x, ta=False, tb=True), axes=(1,)), normal(12, 5))
case("one output twice", lambda m, x: (lambda y: [y, y, x])(m.exp(x)), normal(3, 3))


# -- programs of the public API, with transforms -----------------------------------------------------------------------
def training_step(params: list[mx.array], x: mx.array, y: mx.array) -> Any:
    def loss(params: list[mx.array]) -> mx.array:
        hidden = mx.maximum(x @ params[0] + params[1], 0.0)
        scores = hidden @ params[2] + params[3]
        return mx.mean(mx.logsumexp(scores, axis=1) - mx.sum(scores * y, axis=1))

    value, grads = mx.value_and_grad(loss)(params)
    return value, [p - 0.1 * g for p, g in zip(params, grads, strict=True)]


def attention_gradient(q: mx.array, k: mx.array, v: mx.array) -> Any:
    def loss(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return mx.sum((mx.softmax(q @ mx.transpose(k) * 0.25, axis=-1) @ v) ** 2)

    return mx.grad(loss, argnums=(0, 1, 2))(q, k, v)


def embedding_gradient(table: mx.array, rows: mx.array) -> mx.array:
    return mx.grad(lambda t: mx.sum(mx.exp(t[rows])))(table)


def convolution_step(w: mx.array, b: mx.array, head: mx.array, x: mx.array) -> Any:
    """A strided convolution, overlapping max pooling and a dense layer, with all gradients."""

    def loss(w: mx.array, b: mx.array, head: mx.array, x: mx.array) -> mx.array:
        hidden = mx.maximum(mx.conv2d(x, w, stride=2, padding=1) + b, 0.0)
        n, h, k, c = hidden.shape
        strides = (h * k * c, k * c, c, k * c, c, 1)
        pooled = mx.as_strided(hidden, (n, h - 1, k - 1, 2, 2, c), strides).max((3, 4))
        return mx.sum(mx.tanh(pooled.reshape(n, -1) @ head))

    return mx.value_and_grad(loss, argnums=(0, 1, 2, 3))(w, b, head, x)


API_CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "training step": (
        training_step, ([normal(20, 32), normal(32), normal(32, 9), normal(9)], normal(16, 20), normal(16, 9))
    ),
    "attention gradient": (attention_gradient, (normal(40, 16), normal(40, 16), normal(40, 16))),
    "attention by tiles": (
        lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25, mask="causal"),
        tuple(normal(1, 1, 40, 16) for _ in range(3)),
    ),
    "convolution step": (
        convolution_step, (normal(5, 3, 3, 2), normal(5), normal(3 * 2 * 5, 3), normal(2, 7, 6, 2))
    ),
    "transposed convolution": (
        lambda x, w: mx.conv_transpose2d(x, w, (2, 1), 1, groups=2), (normal(2, 4, 5, 4), normal(6, 3, 3, 2))
    ),
    "embedding gradient": (embedding_gradient, (normal(30, 16), _random.integers(0, 30, 12).astype(np.int32))),
    "vmap": (mx.vmap(lambda a, b: mx.softmax(a * b), in_axes=(0, None)), (normal(5, 8), normal(8))),
    "second derivative": (mx.grad(lambda x: mx.sum(mx.grad(lambda y: mx.sum(mx.sin(y) * y))(x) ** 2)), (normal(33),)),
}  # fmt: skip


def program_of(name: str) -> tuple[Program, list[np.ndarray]]:
    if name in CASES:
        fn, arrays = CASES[name]
        return traced(fn, *arrays)
    fn, arguments = API_CASES[name]
    abstract = tree_map(lambda a: Spec(a.shape, from_numpy(a.dtype)), arguments)
    return trace(fn, abstract, {}), leaves(arguments)


class Compiled:
    """All cases, compiled into a few libraries."""

    def __init__(self) -> None:
        programs = {name: program_of(name) for name in (*CASES, *API_CASES)}
        self.programs = programs
        self.numbers = {name: n for n, name in enumerate(programs)}
        self.shaders = Shaders.compile([program for program, _ in programs.values()])


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled()


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Integers exactly, floats within what their format and a few operations allow."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if found.dtype.kind in "biu":
        np.testing.assert_array_equal(found, expected)
        return
    tolerance = {"float16": 4e-3, "bfloat16": 3e-2}.get(found.dtype.name, 2e-5)
    wide = np.complex128 if found.dtype.kind == "c" else np.float64
    np.testing.assert_allclose(found.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance)


def test_no_compiler_warnings(compiled: Compiled) -> None:
    assert {library.warnings for library in compiled.shaders.libraries if library is not None} == {""}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", [*CASES, *API_CASES])
def test_program(compiled: Compiled, name: str, order: int) -> None:
    program, arguments = compiled.programs[name]
    outputs, reports = compiled.shaders.run(compiled.numbers[name], arguments, order)
    for report in reports:
        assert report.clean, (report.errors, report.warnings, report.divergences)
    for found, expected in zip(outputs, transformed_program(program).run_reference(arguments), strict=True):
        assert_equal(found, expected)


# -- the text ----------------------------------------------------------------------------------------------------------
GOLDEN_ARGUMENTS = {
    "elementwise": (normal(8, 60), normal(60), normal(8, 1)),
    "vectors": (normal(65539), normal(65539), normal(1)),
    "softmax": (normal(8, 100),),
    "layer_norm": (normal(4, 1000), normal(1000), normal(1000)),
    "matmul": (normal(30, 20), normal(20, 25), normal(25)),
}  # fmt: skip


def golden_program(name: str) -> tuple[Any, list[np.ndarray]]:
    """The program of golden/<name>.py: a file of its own, so that the shader's comments name its lines."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return traced(module.program, *GOLDEN_ARGUMENTS[name])


@pytest.mark.parametrize("name", GOLDEN_ARGUMENTS)
def test_golden(name: str, update_golden: bool) -> None:
    """The text is as reviewed; `pytest --update-golden` writes it anew. What it computes is right, too."""
    program, arguments = golden_program(name)
    text, schedule = compile_metal(program)
    file = GOLDEN / f"{name}.metal"
    if update_golden:
        file.write_text(text)
    assert text == file.read_text()
    (expected,) = program.run_reference(arguments)
    library = MetalLibrary(text)
    for order in (0, 1):
        (found,), reports = run_schedule(schedule, library, arguments, order)
        assert all(r.clean for r in reports)
        assert_equal(found, expected)


def test_text_is_deterministic() -> None:
    program, _ = golden_program("softmax")
    assert compile_metal(program) == compile_metal(golden_program("softmax")[0])


# -- the schedule ------------------------------------------------------------------------------------------------------
def test_schedule_is_json_and_consistent(compiled: Compiled) -> None:
    for schedule in compiled.shaders.schedules:
        assert json.loads(json.dumps(schedule)) == schedule
        entries = {"parameter": schedule["parameters"], "result": schedule["results"]}
        assert all(0 <= o < len(schedule["parameters"]) + len(schedule["results"]) for o in schedule["outputs"])
        for step in schedule["steps"]:
            for place in step.get("buffers") or [*step["operands"], *step["results"]]:
                if place["kind"] == "arena":
                    assert place["at"] % 64 == 0
                    assert place["at"] + place["bytes"] <= schedule["arena"]
                else:
                    spec = entries[place["kind"]][place["at"]]
                    assert spec["dtype"] == place["dtype"]
                    assert np.prod(spec["shape"]) == np.prod(place["shape"])
            if "kernel" in step:
                assert all(n >= 1 for n in (*step["grid"], *step["threadgroup"]))
                assert np.prod(step["threadgroup"]) <= 1024
                assert step["dispatch"] == "threads" or step["threadgroup"][0] % schedule["simd_width"] == 0


def test_schedule_of_several_steps(compiled: Compiled) -> None:
    """A library step stands between the kernels whose values it takes and gives; intermediates lie in the arena."""
    schedule = compiled.shaders.schedules[compiled.numbers["library step between kernels"]]
    first, inverse, last = schedule["steps"]
    assert (inverse["library"], inverse["attrs"]) == ("inv", {})
    assert [b["access"] for b in first["buffers"]] == ["read", "write"]
    assert first["buffers"][1]["kind"] == inverse["operands"][0]["kind"] == "arena"
    assert first["buffers"][1]["at"] == inverse["operands"][0]["at"]
    assert last["buffers"][0]["at"] == inverse["results"][0]["at"]
    assert (last["buffers"][-1]["kind"], last["buffers"][-1]["at"]) == ("result", 0)
    assert schedule["outputs"] == [1]


def test_scatter_reads_what_it_writes(compiled: Compiled) -> None:
    schedule = compiled.shaders.schedules[compiled.numbers["scatter rows add"]]
    copy, update = schedule["steps"]
    assert [b["access"] for b in copy["buffers"]] == ["read", "write"]
    assert [b["access"] for b in update["buffers"]] == ["read", "read", "readwrite"]


def test_stages_are_observed() -> None:
    program, _ = golden_program("softmax")
    seen: dict[str, str] = {}
    text, schedule = compile_metal(program, lambda stage, show: seen.__setitem__(stage, show()))
    assert list(seen)[-3:] == ["loops", "metal", "schedule"]
    assert seen["metal"] == text
    assert json.loads(seen["schedule"]) == schedule


def test_wide_indices() -> None:
    """Positions beyond 32 bits are computed in 64; those of a smaller array in the same kernel are not."""
    value = graph.Value((70000, 100000), float32)
    builder = graph.GraphBuilder()
    x, b = builder.handle(value), builder.handle(graph.constant(normal(100000)))
    text, _ = compile_metal(graph.cut([(builder.exp(x) + b).value]).program)
    assert "const long at0 = long(row) * 100000 + first;" in text
    assert "(in1 + first)" in text
    assert MetalLibrary(text).warnings == ""


# -- what Metal lacks --------------------------------------------------------------------------------------------------
def test_float64_is_refused() -> None:
    program, _ = traced(lambda m, x: m.exp(x), np.zeros(4))
    with pytest.raises(CompileError, match=r"\[exp\] float64 does not exist in Metal \(test_emission.py:\d+\)"):
        compile_metal(program)


def test_float64_inside_is_refused() -> None:
    program, _ = traced(
        lambda m, x: m.astype(m.exp(m.astype(x, dtype=float64)), dtype=float32), np.zeros(4, np.float32)
    )
    with pytest.raises(CompileError, match=r"\[astype\] float64 does not exist in Metal \(test_emission.py:\d+\)"):
        compile_metal(program)


def test_many_operands_become_several_kernels() -> None:
    """Metal binds 31 buffers; fusion stays below."""

    def total(m: Any, *arrays: Any) -> Any:
        result = arrays[0]
        for a in arrays[1:]:
            result = result + a
        return result

    program, _ = traced(total, *[np.full(4, i, np.float32) for i in range(40)])
    _, schedule = compile_metal(program)
    assert len(schedule["steps"]) == 2
    assert all(len(step["buffers"]) <= 31 for step in schedule["steps"])
