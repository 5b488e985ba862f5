"""Public functions that are several primitives, executed from Metal source: quantised and gathered products, sorting
and its kin, updates in place, random numbers, convolutions, attention, norms, losses. Each with what may differ:
dtypes, bits, axes, masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from laws import assert_close

import mlxir as mx
from mlxir.compiler.evaluate import evaluate, resolve
from mlxir.compiler.pipeline import transformed_program
from mlxir.compiler.program import Program
from mlxir.dump import Spec, trace_captured
from mlxir.runtime.dtypes import from_numpy
from mlxir.runtime.emulator import unavailable_reason

if unavailable_reason() is None:
    from metal.emulation import Shaders

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")
FACTOR = 24  # of the laws' tolerance: sums of some hundred products, in another order
HALVES = (np.float16, ml_dtypes.bfloat16)
CASES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {}
_random = np.random.default_rng(7)


def case(name: str, fn: Callable[..., Any], *arguments: np.ndarray) -> None:
    assert name not in CASES
    CASES[name] = fn, arguments


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return _random.standard_normal(shape).astype(dtype)


def below(high: int, *shape: int, dtype: Any = np.int32) -> np.ndarray:
    return _random.integers(0, high, shape).astype(dtype)


def squares(fn: Callable[..., mx.array], count: int) -> Callable[..., Any]:
    """The gradients of the sum of squares of `fn` by its first `count` arguments."""
    return lambda *a: mx.grad(lambda *b: (fn(*b).astype(mx.float32) ** 2).sum(), argnums=tuple(range(count)))(*a)


# -- products ----------------------------------------------------------------------------------------------------------
def quantized(weights: np.ndarray, **options: Any) -> list[np.ndarray]:
    return [np.array(a) for a in mx.quantize(mx.array(weights), **options)]


_weights, _experts = normal(64, 128), normal(4, 64, 128)
for bits, size in ((2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64)):
    options = {"bits": bits, "group_size": size}
    packed = quantized(_weights, **options)
    case(f"quantized_matmul {bits} bits by {size}", lambda x, y, w, s, b, o=options: [
        mx.quantized_matmul(x, w, s, b, transpose=True, **o), mx.quantized_matmul(y, w, s, b, transpose=False, **o),
    ], normal(5, 128), normal(5, 64), *packed)  # fmt: skip
    case(f"dequantize {bits} bits by {size}", lambda w, s, b, o=options: mx.dequantize(w, s, b, **o), *packed)
    case(f"quantize {bits} bits by {size}", lambda x, o=options: mx.quantize(x, **o), _weights)
packed = quantized(_weights, bits=4, group_size=64)
for dtype in HALVES:
    halves = [packed[0], packed[1].astype(dtype), packed[2].astype(dtype)]
    for rows in (1, 3):
        case(f"quantized_matmul {np.dtype(dtype).name} {rows}", lambda x, w, s, b: mx.quantized_matmul(x, w, s, b),
             normal(rows, 128, dtype=dtype), *halves)  # fmt: skip
case("quantized_matmul gradient",
     lambda x, w, s, b: squares(lambda y: mx.quantized_matmul(y, w, s, b), 1)(x), normal(3, 128), *packed)  # fmt: skip
for mode in ("mxfp4", "mxfp8", "nvfp4"):
    case(f"quantized_matmul {mode}", lambda x, w, s, m=mode: mx.quantized_matmul(x, w, s, mode=m),
         normal(3, 128), *quantized(_weights, mode=mode))  # fmt: skip
case("gather_mm", lambda x, w, i: mx.gather_mm(x, w, rhs_indices=i),
     normal(6, 1, 16), normal(4, 16, 20), below(4, 6, dtype=np.uint32))  # fmt: skip
case("gather_mm of both", lambda x, w, i, j: mx.gather_mm(x, w, i, j),
     normal(5, 3, 16), normal(4, 16, 20), below(5, 6, dtype=np.uint32), below(4, 6, dtype=np.uint32))  # fmt: skip
case("gather_qmm", lambda x, w, s, b, i: mx.gather_qmm(x, w, s, b, rhs_indices=i),
     normal(6, 1, 128), *quantized(_experts), below(4, 6, dtype=np.uint32))  # fmt: skip
case("block_masked_mm", lambda a, b, m: mx.block_masked_mm(a, b, 32, m),
     normal(64, 64), normal(64, 64), below(2, 2, 2) > 0)  # fmt: skip
case("segmented_mm", mx.segmented_mm,
     normal(10, 32), normal(32, 12), np.array([[0, 16], [16, 32], [0, 32]], np.uint32))  # fmt: skip
case("addmm", lambda c, a, b: mx.addmm(c, a, b, 0.5, 2.0), normal(7, 9), normal(7, 5), normal(5, 9))
case("gemv", lambda a, x, y: [a @ x, y @ a], normal(40, 300), normal(300), normal(40))
case("split along k", lambda a, b: a @ b, normal(4, 3000), normal(3000, 5))
case("hadamard_transform", mx.hadamard_transform, normal(3, 64))

# -- order and place ---------------------------------------------------------------------------------------------------
for axis in (0, 1, None):
    case(f"sort along {axis}", lambda x, a=axis: [mx.sort(x, axis=a), mx.argsort(x, axis=a)], normal(33, 7))
    case(f"topk and partition along {axis}", lambda x, a=axis: [
        mx.sort(mx.topk(x, 5, axis=a), axis=a), mx.sort(mx.partition(x, 3, axis=a), axis=a),
    ], normal(33, 7))  # fmt: skip
for name in ("float16", "int8", "uint8", "int64", "uint64"):
    case(f"sort of long rows of {name}", lambda x: [mx.sort(x), mx.argsort(x)], (normal(2, 1100) * 50).astype(name))
case("sort with nan", mx.sort, np.where(_random.random((4, 50)) < 0.2, np.nan, normal(4, 50)).astype(np.float32))
case("updates", lambda x, i, u: [
    x.at[i].add(u), x.at[i].subtract(u), x.at[i].multiply(u), x.at[i].maximum(u), x.at[i].minimum(u),
], normal(30, 4), below(30, 9), normal(9, 4))  # fmt: skip
for name in ("float16", "bfloat16", "int8", "uint8", "int64", "complex64", "bool"):
    dtype = from_numpy(np.dtype(getattr(ml_dtypes, name, name))).numpy
    case(f"at.add {name}", lambda x, i, u: x.at[i].add(u), normal(30, 4).astype(dtype), below(30, 9),
         normal(9, 4).astype(dtype))  # fmt: skip
case("put_along_axis", lambda x, i, u: mx.put_along_axis(x, i, u, axis=1),
     normal(5, 9), np.argsort(normal(5, 9), axis=1)[:, :4].astype(np.int32), normal(5, 4))  # fmt: skip
case("take", lambda x, i: [mx.take(x, i, axis=0), x[:, i], x[i, 1:3]], normal(9, 9), below(9, 2, 3))
case("cumulative gradients", lambda x: [
    g for f in (mx.cumsum, mx.cumprod, mx.logcumsumexp) for g in squares(lambda y, f=f: f(y, axis=1), 1)(x)
], normal(4, 9))  # fmt: skip

# -- random numbers ----------------------------------------------------------------------------------------------------
_key = np.array([3, 4], np.uint32)
for name, draw in {
    "uniform": lambda k: mx.random.uniform(shape=(51,), key=k), "normal": lambda k: mx.random.normal((51,), key=k),
    "bernoulli": lambda k: mx.random.bernoulli(0.3, (51,), key=k), "split": lambda k: mx.random.split(k, 5),
    "randint": lambda k: mx.random.randint(-5, 9, (51,), key=k), "gumbel": lambda k: mx.random.gumbel((51,), key=k),
    "laplace": lambda k: mx.random.laplace((51,), key=k), "permutation": lambda k: mx.random.permutation(30, key=k),
    "truncated normal": lambda k: mx.random.truncated_normal(-1.0, 1.0, (51,), key=k),
    "half": lambda k: mx.random.uniform(shape=(50,), key=k, dtype=mx.float16),
    "brain": lambda k: mx.random.normal((50,), key=k, dtype=mx.bfloat16),
}.items():  # fmt: skip
    case(f"random {name}", draw, _key)
case("random categorical", lambda k, x: mx.random.categorical(x, key=k), _key, normal(6, 20))

# -- convolutions ------------------------------------------------------------------------------------------------------
_one, _two, _three = (normal(2, 13, 4), normal(6, 3, 4)), (normal(2, 8, 9, 4), normal(6, 3, 3, 2)), (
    normal(1, 4, 4, 3, 2), normal(3, 2, 3, 2, 2),
)  # fmt: skip
for name, fn, operands in (
    ("conv1d", lambda x, w: mx.conv1d(x, w, 2, 1), _one),
    ("conv1d by channel", lambda x, w: mx.conv1d(x, w, padding=2, groups=4), (normal(2, 13, 4), normal(4, 3, 1))),
    ("conv2d", lambda x, w: mx.conv2d(x, w, (2, 1), (1, 2), (1, 2), groups=2), _two),
    ("conv3d", lambda x, w: mx.conv3d(x, w, 1, 1), _three),
    ("conv_transpose1d", lambda x, w: mx.conv_transpose1d(x, w, 2, 1, output_padding=1), _one),
    ("conv_transpose2d", lambda x, w: mx.conv_transpose2d(x, w, 2, 1), (normal(1, 5, 6, 3), normal(4, 3, 3, 3))),
    ("conv_transpose3d", lambda x, w: mx.conv_transpose3d(x, w, 2, 1), _three),
):
    case(name, fn, *operands)
    case(f"{name} gradients", squares(fn, 2), *operands)
for dtype in HALVES:
    case(f"conv2d {np.dtype(dtype).name}", lambda x, w: mx.conv2d(x, w, 1, 1),
         normal(2, 8, 9, 3, dtype=dtype), normal(8, 3, 3, 3, dtype=dtype))  # fmt: skip
case("conv_general", lambda x, w: mx.conv_general(
    x, w, stride=2, padding=([1, 0], [2, 1]), kernel_dilation=1, input_dilation=(2, 1), groups=1, flip=True,
), normal(1, 6, 7, 3), normal(4, 3, 3, 3))  # fmt: skip
case("convolve", lambda a, b: mx.convolve(a, b, mode="same"), normal(30), normal(7))


# -- what mx.fast and losses are made of -------------------------------------------------------------------------------
def attend(**options: Any) -> Callable[..., mx.array]:
    return lambda q, k, v, **more: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, **options, **more)


_queries, _keys, _values = normal(2, 4, 10, 16), normal(2, 2, 13, 16), normal(2, 2, 13, 12)
case("attention, grouped", attend(), _queries, _keys, _values)
case("attention, causal", attend(mask="causal"), _queries, _keys, _values)
case("attention, one query", attend(), normal(2, 4, 1, 16), normal(2, 2, 130, 16), normal(2, 2, 130, 16))
case("attention, mask", lambda q, k, v, m: attend(mask=m)(q, k, v), _queries, _keys, _values, below(2, 10, 13) > 0)
case("attention, added mask", lambda q, k, v, m: attend(mask=m)(q, k, v), _queries, _keys, _values, normal(10, 13))
case("attention, sinks", lambda q, k, v, s: attend(sinks=s)(q, k, v), _queries, _keys, _values, normal(4))
for dtype in HALVES:
    case(f"attention, causal {np.dtype(dtype).name}", attend(mask="causal"),
         *[normal(1, 2, 40, 32, dtype=dtype) for _ in range(3)])  # fmt: skip
case("attention, several tiles", attend(mask="causal"), normal(1, 2, 70, 24), *[normal(1, 2, 75, n) for n in (24, 20)])
case("attention, more steps than keys", attend(mask="causal"), *[normal(1, 1, n, 8) for n in (40, 33, 33)])
case("attention, wide", attend(), *[normal(1, 1, n, 128) for n in (20, 40, 40)])
case("attention, rows that see nothing", lambda q, k, v, m: attend(mask=m)(q, k, v),
     *[normal(1, 1, 20, 16) for _ in range(3)], below(2, 20, 1) > 0)  # fmt: skip
case("attention gradients", squares(attend(mask="causal"), 3), _queries, _keys, _values)
case("attention gradients, mask", lambda q, k, v, m: squares(attend(mask=m), 3)(q, k, v),
     normal(1, 2, 20, 16), normal(1, 2, 40, 16), normal(1, 2, 40, 16), below(2, 20, 40) > 0)  # fmt: skip
case("attention gradients, added mask and sinks", lambda q, k, v, m, s: squares(
    lambda a, b, c, d: attend(mask=m, sinks=d)(a, b, c), 4,
)(q, k, v, s), normal(1, 2, 20, 16), normal(1, 2, 40, 16), normal(1, 2, 40, 16), normal(20, 40), normal(2))  # fmt: skip
case("attention gradients float16", squares(attend(mask="causal"), 3),
     *[normal(1, 1, 40, 32, dtype=np.float16) for _ in range(3)])  # fmt: skip
for name, norm, operands in (
    ("rms_norm", lambda x, w: mx.fast.rms_norm(x, w, 1e-5), (normal(40, 100), normal(100))),
    ("layer_norm", lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5), (normal(40, 100), normal(100), normal(100))),
):
    case(name, norm, *operands)
    case(f"{name} gradients", squares(norm, len(operands)), *operands)
case("rope", lambda x: [
    mx.fast.rope(x, 16, traditional=False, base=1e4, scale=1.0, offset=3),
    mx.fast.rope(x, 8, traditional=True, base=1e4, scale=0.5, offset=0),
], normal(2, 4, 10, 16))  # fmt: skip
case("cross entropy gradient", lambda x, t: mx.grad(lambda y: mx.mean(
    mx.logsumexp(y, axis=-1) - mx.take_along_axis(y, t[:, None], axis=-1)[:, 0]
))(x), normal(8, 50), below(50, 8))  # fmt: skip
case("moments", lambda x: [mx.var(x, axis=0), mx.std(x, axis=1), mx.mean(x), mx.median(x, axis=1)], normal(9, 30))
case("softmax in float32", lambda x: mx.softmax(x, axis=-1, precise=True), normal(6, 77, dtype=np.float16))
case("fft between kernels", lambda x: mx.abs(mx.fft.fft(x * 2)) + 1, normal(3, 16))
case("vmap of jvp", mx.vmap(lambda x, t: mx.jvp(lambda y: mx.softmax(mx.sin(y)), [x], [t])), normal(4, 9), normal(4, 9))


class Compiled:
    """All cases, compiled into a few libraries."""

    def __init__(self) -> None:
        self.programs = {name: _program(fn, arguments) for name, (fn, arguments) in CASES.items()}
        self.numbers = {name: n for n, name in enumerate(self.programs)}
        self.shaders = Shaders.compile([program for program, _ in self.programs.values()], batch=20)


def _program(fn: Callable[..., Any], arguments: tuple[np.ndarray, ...]) -> tuple[Program, list[np.ndarray]]:
    specs = tuple(Spec(a.shape, from_numpy(a.dtype)) for a in arguments)
    program, captured = trace_captured(fn, specs, {})
    evaluate(captured)
    buffers = [resolve(v).buffer for v in captured]
    return program, [*arguments, *[b.numpy() for b in buffers if b is not None]]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled()


def test_no_compiler_warnings(compiled: Compiled) -> None:
    assert {library.warnings for library in compiled.shaders.libraries if library is not None} == {""}


def test_attention_and_its_gradient_hold_no_scores(compiled: Compiled) -> None:
    """Two kernels more for the gradient, and no temporary as large as the scores: memory grows with the length."""
    for name in CASES:
        if name.startswith("attention gradients"):
            schedule = compiled.shaders.schedules[compiled.numbers[name]]
            steps, length = (p["shape"][2] for p in schedule["parameters"][:2])
            held = [b["shape"] for s in schedule["steps"] for b in s["buffers"] if b["kind"] == "arena"]
            assert held and all(shape[-2:] != [steps, length] for shape in held)
            kernels = " ".join(s["kernel"] for s in schedule["steps"])
            assert "mx_attention_grad_queries" in kernels and "matmul" not in kernels


@pytest.mark.parametrize("name", CASES)
def test_function(compiled: Compiled, name: str) -> None:
    program, arguments = compiled.programs[name]
    expected = transformed_program(program).run_reference(arguments)
    for order in (0, 1):
        outputs, reports = compiled.shaders.run(compiled.numbers[name], arguments, order)
        for report in reports:
            assert report.clean, (report.errors, report.warnings, report.divergences)
        for found, wanted in zip(outputs, expected, strict=True):
            assert_close(found, wanted, FACTOR)
