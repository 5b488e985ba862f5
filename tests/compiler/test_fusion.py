"""What fuses with what, and that fused programs compute what the reference evaluator does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import laws
import numpy as np
import pytest
import random_programs
from small_programs import check, program

from mlxir.compiler import evaluate, pipeline
from mlxir.compiler.graph import Value, apply_transform, cut
from mlxir.compiler.passes.fuse import Fused, fuse
from mlxir.compiler.passes.simplify import simplify
from mlxir.compiler.passes.split_reductions import split_reductions
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import float32, from_name
from mlxir.runtime.knobs import knobs


@pytest.fixture(autouse=True)
def _verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of this file are compiled here and now, with all IR verified."""
    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "verify", True)


def gradient(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = float32) -> Program:
    """The gradients of the arrays, for a cotangent that is the last parameter; the value is not returned."""
    callee = program(function, *shapes, dtype=dtype)
    inputs = [Value(*a) for a in (*callee.parameters, *callee.avals)]
    wrt = tuple(range(len(shapes)))
    attrs = {"callee": callee, "wrt": wrt, "seeded": (0,)}
    outs = apply_transform(RECORDS["vjp"], inputs, attrs, [*callee.avals, *callee.parameters])
    return cut(outs[1:], inputs).program


def fused(traced: Program, vectors: bool = False) -> Fused:
    module = pipeline.transformed(traced, lambda stage, text: None)
    simplify(module)
    split_reductions(module)
    result = fuse(module, vectors)
    read = {v for launch in result.launches for v in launch.operands} | set(result.outputs)
    unread = [
        launch.name for launch in result.launches
        # The statistics of attention are for its gradient.
        if not set(launch.results[: 1 if launch.kind == "attention" else None]) <= read
    ]  # fmt: skip
    assert not unread, f"{unread} write values that no one reads"
    assert all(len(launch.operands) + len(launch.results) <= 31 for launch in result.launches)
    return result


def kernels(traced: Program) -> list[tuple[str, int]]:
    """(kind, number of results) of each kernel."""
    return [(launch.kind, len(launch.results)) for launch in fused(traced).launches]


def data(traced: Program, seed: int = 0) -> list[np.ndarray]:
    return [laws.sample(a.shape, a.dtype.name, "any", seed + i) for i, a in enumerate(traced.parameters)]


# -- what becomes one kernel -----------------------------------------------------------------------------------------
def mean(m: Any, x: Any, axis: int) -> Any:
    return m.expanded(m.sum(x, axes=(axis,)) * (1 / x.shape[axis]), [axis])


def layer_norm(m: Any, x: Any, w: Any, b: Any) -> Any:
    centred = x - mean(m, x, 1)
    return centred * m.rsqrt(mean(m, m.square(centred), 1) + 1e-5) * w + b


def gelu(m: Any, x: Any) -> Any:
    return x * (m.erf(x * 0.7071) + 1) * 0.5


def chain(m: Any, x: Any, y: Any) -> Any:
    for _ in range(3):
        x = m.tanh(x * y + 1) - m.exp(-m.abs(x))
    return x


def cross_entropy(m: Any, x: Any, y: Any) -> Any:
    return m.sum((m.expanded(m.logsumexp(x, axes=(1,)), [1]) - x) * y, axes=(1,))


def batch_norm(m: Any, x: Any) -> Any:
    """Statistics of columns, broadcast without axes of length 1."""
    centre, scale = (m.sum(v, axes=(0,)) * (1 / x.shape[0]) for v in (x, m.square(x)))
    return (x - centre) * m.rsqrt(scale + 1e-5)


def dense(m: Any, x: Any, w: Any, b: Any) -> Any:
    return gelu(m, m.matmul(x, w, ta=False, tb=False) + b)


def attention(m: Any, q: Any, k: Any, v: Any) -> Any:
    scores = m.softmax(m.matmul(q, k, ta=False, tb=True) * 0.125, axes=(2,))
    return m.matmul(scores, v, ta=False, tb=False)


SQUARE, ROW = (64, 128), (128,)
LOOPS, MATMUL, OWN = ("loops", 1), ("matmul", 1), ("own", 1)
STRUCTURE = {
    "softmax": (lambda: program(lambda m, x: m.softmax(x, axes=(1,)), SQUARE), [LOOPS]),
    "softmax of columns": (lambda: program(lambda m, x: m.softmax(x, axes=(0,)), SQUARE), [LOOPS]),
    "softmax over two axes": (lambda: program(lambda m, x: m.softmax(x, axes=(1, 2)), (8, 16, 16)), [LOOPS]),
    "log softmax": (lambda: program(lambda m, x: x - m.expanded(m.logsumexp(x, axes=(1,)), [1]), SQUARE), [LOOPS]),
    "layer norm": (lambda: program(layer_norm, SQUARE, ROW, ROW), [LOOPS]),
    "softmax gradient": (lambda: gradient(lambda m, x: m.softmax(x, axes=(1,)), SQUARE), [LOOPS]),
    "cross entropy": (lambda: program(cross_entropy, SQUARE, SQUARE), [LOOPS]),
    "cross entropy gradient": (lambda: gradient(cross_entropy, SQUARE, SQUARE), [("loops", 2)]),
    "gate gradient": (lambda: gradient(lambda m, a, b: a * m.sigmoid(a) * b, SQUARE, SQUARE), [("loops", 2)]),
    "batch norm": (lambda: program(batch_norm, SQUARE), [LOOPS]),
    "maximum's gradient": (lambda: gradient(lambda m, x: m.max(x, axes=(1,)), SQUARE), [LOOPS]),
    "chain": (lambda: program(chain, SQUARE, SQUARE), [LOOPS]),
    "chain of rows": (lambda: program(chain, SQUARE, ROW), [LOOPS]),
    "dense": (lambda: program(dense, (64, 32), (32, 128), ROW), [MATMUL]),
    "dense of a transposed weight": (
        lambda: program(lambda m, x, w, b: dense(m, x, m.transpose(w, axes=(1, 0)), b), (64, 32), (128, 32), ROW),
        [MATMUL]),
    "attention": (lambda: program(attention, *[(4, 16, 64)] * 3), [("attention", 3)]),
    "column sums": (lambda: program(lambda m, x: m.sum(x * 2, axes=(0,)), SQUARE), [LOOPS]),
    "row sums": (lambda: program(lambda m, x: m.sum(m.exp(x), axes=(1,)), SQUARE), [LOOPS]),
    "loss": (lambda: program(lambda m, x, y: m.sum(m.square(x - y), axes=(0, 1)), SQUARE, SQUARE), [LOOPS]),
    "scan of a chain": (
        lambda: program(lambda m, x: m.cumsum(m.exp(x) * 2, axis=1, reverse=False, inclusive=True), SQUARE), [OWN]),
    "moved and joined": (
        lambda: program(lambda m, x, y: m.concatenate(m.transpose(x, axes=(1, 0)), -y, axis=0) * 2, (8, 16), (4, 8)),
        [LOOPS]),
    "joined along the rows": (
        lambda: program(lambda m, x, y, z: m.concatenate(m.concatenate(x, y * 2, axis=1), -z, axis=1) + 1,
            (8, 5), (8, 16), (8, 1)), [LOOPS]),
    "a bias and its activation behind flattened axes": (
        lambda: program(lambda m, x, w, b: gelu(m, m.reshape(m.matmul(x, w, ta=False, tb=False), shape=(4, 8, 24)) + b),
            (32, 16), (16, 24), (24,)), [MATMUL]),
    "a value and its column sums": (
        lambda: program(lambda m, x, g: [m.exp(x) * g, m.sum(m.exp(x) * g, axes=(0,))], SQUARE, SQUARE),
        [("loops", 2)]),
    "a result under another shape": (
        lambda: program(lambda m, x: m.reshape(m.cumsum(x, axis=1, reverse=False, inclusive=True), shape=(128, 64)),
            SQUARE), [OWN]),
    "several results of one space": (lambda: program(lambda m, x: [m.exp(x), m.sin(x), x * 2], SQUARE), [("loops", 3)]),
    "row and column results": (lambda: program(lambda m, x: [m.sum(x, axes=(1,)), x - mean(m, x, 1)], SQUARE),
        [("loops", 2)]),
    "optimizer": (
        lambda: program(lambda m, p, g, s: [p - g * 0.1 * m.rsqrt(s * 0.9 + m.square(g) * 0.1),
            s * 0.9 + m.square(g) * 0.1], *[SQUARE] * 3),
        [("loops", 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure(name: str) -> None:
    traced, expected = STRUCTURE[name][0](), STRUCTURE[name][1]
    assert kernels(traced) == expected
    check(traced, data(traced), 1e-5)


def test_a_value_used_by_far_away_kernels_is_computed_once() -> None:
    """An expensive value that a matmul and a loop need is written to memory, not computed twice."""
    traced = program(
        lambda m, x, w: [m.matmul(m.exp(x), w, ta=False, tb=False), m.sum(m.exp(x), axes=(0,))], SQUARE, (128, 8)
    )
    text = fused(traced).module.text()
    assert text.count('"mx.exp"') == 1
    check(traced, data(traced), 1e-5)


def test_nan_wins_in_complex_extrema() -> None:
    """On either side, in either part."""
    nan = float("nan")
    x, y = (np.array(v, np.complex64) for v in ([nan, 1, complex(0, nan), 2j], [1j, complex(nan, 0), 5, 1j]))
    traced = program(lambda m, x, y: [m.maximum(x, y), m.minimum(x, y)], (4,), (4,), dtype=from_name("complex64"))
    check(traced, [x, y], 0)


def test_steps_of_a_stencil_are_computed_once() -> None:
    """Each in the kernel of the next would be computed at four times as many places from step to step."""

    def steps(m: Any, u: Any) -> Any:
        for _ in range(6):
            (h, w), strides = u.shape, (1, 1)
            corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
            a, b, c, d = [m.slice(u, start=(i, j), stop=(h - 2 + i, w - 2 + j), strides=strides) for i, j in corners]
            u = (a + b) * 0.4 + (c + d) * 0.1
        return u

    traced = program(steps, (20, 36))
    assert kernels(traced) == [("loops", 1)] * 3
    check(traced, data(traced), 1e-5)


@pytest.mark.parametrize("size, expected", [(32, ["loops", "matmul"]), (256, ["matmul"])])
def test_products_compute_large_operands_on_the_way(size: int, expected: list[str]) -> None:
    """Here an outer product; one that stays in the nearest cache is stored and read."""
    traced = program(lambda m, x, a, b: m.matmul(x, a * b, ta=False, tb=False), (4, size), (size, 1), (1, size))
    assert [launch.kind for launch in fused(traced, vectors=True).launches] == expected


def test_equal_layers_have_equal_kernels() -> None:
    """Wherever simplification has put their shared constants."""

    def layer(m: Any, x: Any, w: Any, b: Any) -> Any:
        return x + dense(m, layer_norm(m, x, b, b), w, b)

    def layers(m: Any, x: Any, w: Any, b: Any) -> Any:
        return layer(m, layer(m, layer(m, x, w, b), w, b), w, b)

    result = fused(gradient(layers, (8, 16), (16, 16), (16,)))
    functions = [result.module.find(k.name) for k in result.launches if k.kind == "matmul"]
    texts = {f.operation.get_asm().replace(f"@{f.name}(", "@kernel(") for f in functions}
    assert len(functions) == 9 and len(texts) <= 5


def test_the_rows_of_a_total_stay_whole() -> None:
    """So that what depends on the row alone is not computed for each element of the sum."""
    total = program(lambda m, x, y: m.sum(x * m.expanded(m.sin(y), [1]), axes=(0, 1)), (512, 96), (512,))
    assert "tensor<64x8x96xf32>" in fused(total).module.text()


def test_a_total_joins_the_kernel_that_walks_its_rows() -> None:
    """It is taken by rows, then: nothing else reads the matrix."""
    total = program(lambda m, x: m.sum(x * m.rsqrt(mean(m, m.square(x), 1)), axes=(0, 1)), (512, 96))
    assert [launch.name for launch in fused(total).launches] == ["mx_sum", "mx_sum_2"]
    assert '"mx.sum"(%arg0) {axes = array<i64: 0>} : (tensor<512xf32>) -> tensor<f32>' in fused(total).module.text()
    check(total, data(total), 1e-6)


def test_a_constant_exponent_needs_no_selection() -> None:
    text = fused(gradient(lambda m, x: m.power(x, m.scalar(3, float32)), SQUARE)).module.text()
    assert "mx.select" not in text and "mx.power" not in text


REDUCED = {
    "softmax of rows": lambda m, x: m.softmax(x, axes=(1,)),
    "softmax of columns": lambda m, x: m.softmax(x, axes=(0,)),
    "centred rows": lambda m, x: [x - mean(m, x, 1), m.sum(m.exp(x) * m.conjugate(x), axes=(1,))],
    "centred columns": lambda m, x: [x - mean(m, x, 0), m.sum(m.exp(x) * m.conjugate(x), axes=(0,))],
    "moduli": lambda m, x: [m.abs(x), m.sum(m.abs(x), axes=(0,)), m.imag(x) * 2],
    "total": lambda m, x: m.sum(m.sin(x), axes=(0, 1)),
}


@pytest.mark.parametrize("name", REDUCED)
def test_complex_reductions(name: str) -> None:
    """A complex number is two registers and two elements of scratch memory."""
    traced = program(REDUCED[name], (30, 40), dtype=from_name("complex64"))
    check(traced, data(traced), 1e-5)


# What two kernels read is computed in both of them where that reads no more elements than it has itself.
READ_AGAIN = {
    "one array": (lambda m, x, y, w: x * 2, False),
    "one array twice": (lambda m, x, y, w: x * x, False),
    "a polynomial of one array": (lambda m, x, y, w: x * 0.04 * x, False),
    "an array and a row": (lambda m, x, y, w: x * w, False),
    "two arrays": (lambda m, x, y, w: x * y, True),
    "a multiple of another array": (lambda m, x, y, w: y * 0.04 * x, True),
    "a costly function of the same array": (lambda m, x, y, w: m.sin(x) * x, True),
    "a costly function": (lambda m, x, y, w: m.sin(x), True),
}


@pytest.mark.parametrize("case", READ_AGAIN)
def test_what_two_kernels_read_is_stored_if_reading_its_operands_again_costs_more(case: str) -> None:
    value, stored = READ_AGAIN[case]

    def sums(m: Any, x: Any, y: Any, w: Any) -> Any:
        v = value(m, x, y, w)
        return m.sum(v, axes=(0,)), m.sum(v, axes=(1,))

    made = fused(program(sums, SQUARE, SQUARE, ROW))
    sizes = sorted([made.values[v].size for launch in made.launches for v in launch.results])
    assert sizes == [64, 128] + [64 * 128] * stored


# -- programs that once failed ----------------------------------------------------------------------------------------
def max_of_products(m: Any, x: Any, w: Any, v: Any) -> Any:
    """The gradient computes the products again, and has to find the maximum among them."""
    top = m.max(x * w, axes=(1,))
    return m.tanh(m.matmul(m.reshape(top, shape=(1, 64)), v, ta=False, tb=False))


def max_of_centred(m: Any, x: Any, v: Any) -> Any:
    top = m.max(x - mean(m, x, 1), axes=(1,))
    return m.tanh(m.matmul(m.reshape(top, shape=(1, 64)), v, ta=False, tb=False))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
    ("function", "shapes"), [(max_of_products, (SQUARE, ROW, (64, 8))), (max_of_centred, (SQUARE, (64, 8)))]
)
def test_a_maximum_is_found_again(function: Callable, shapes: tuple, dtype: str) -> None:
    """Values that two kernels compute are equal to the bit, whether from what memory holds or from a register."""
    traced = gradient(function, *shapes, dtype=from_name(dtype))
    arguments = data(traced)
    actual = [a.numpy() for a in evaluate.executable(traced).run([Buffer.from_numpy(a) for a in arguments])]
    expected = pipeline.transformed_program(traced).run_reference(arguments)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            a.astype(np.float64), e.astype(np.float64), rtol=0, atol={2: 0.05, 4: 1e-4, 8: 1e-11}[a.dtype.itemsize]
        )


def shared_by_all_columns(m: Any, c: Any, x: Any) -> Any:
    """A column kernel one of whose reductions is the same for all columns."""
    down = m.expanded(m.sum(m.broadcast_to(m.reshape(c, shape=(5, 1)), shape=(5, 16)), axes=(0,)) * 0.2, [0])
    wide = m.broadcast_to(m.reshape(c, shape=(5, 1)), shape=(5, 16)) + down
    out = wide * m.sin(x)
    return [out, m.sum(out, axes=(0,))]


def empty_axis(m: Any, x: Any) -> Any:
    return [m.broadcast_to(x, shape=(2, 0)), m.reshape(m.broadcast_to(x, shape=(0, 3, 2)) * 2, shape=(3, 0, 2))]


REGRESSIONS = {
    "shared by all columns": lambda: program(shared_by_all_columns, (5,), (5, 16)),
    "empty axis": lambda: program(empty_axis, (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", REGRESSIONS)
def test_programs_that_once_failed(name: str) -> None:
    traced = REGRESSIONS[name]()
    check(traced, data(traced), 1e-5)


# -- random programs -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed: int) -> None:
    traced, arguments = random_programs.random_program(seed, "float64", 16)
    fused(traced)
    check(traced, arguments, 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_batched_random_programs(seed: int) -> None:
    callee, arguments = random_programs.random_program(3000 + seed, "float64", 12)
    shapes = [Aval((3, *a.shape), a.dtype) if a.dtype.is_float else a for a in callee.parameters]
    stacked = [np.stack([x, x * 1.5, -x]) if x.dtype.kind == "f" else x for x in arguments]
    inputs, outs = [Value(*a) for a in shapes], [Aval((*a.shape, 3), a.dtype) for a in callee.avals]
    in_axes = tuple(0 if a.dtype.is_float else -1 for a in callee.parameters)
    attrs = {"callee": callee, "in_axes": in_axes, "out_axes": tuple(a.ndim - 1 for a in outs), "size": 3}
    traced = cut(apply_transform(RECORDS["vmap"], inputs, attrs, outs), inputs).program
    fused(traced)
    check(traced, stacked, 1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_gradients_of_random_programs(seed: int) -> None:
    callee, arguments = random_programs.random_program(1000 + seed, "float64", 10)
    wrt = tuple(i for i, a in enumerate(callee.parameters) if a.dtype.is_float)
    inputs = [Value(*a) for a in (*callee.parameters, *callee.avals)]
    attrs = {"callee": callee, "wrt": wrt, "seeded": tuple(range(len(callee.avals)))}
    outs = apply_transform(RECORDS["vjp"], inputs, attrs, [*callee.avals, *[callee.parameters[i] for i in wrt]])
    traced = cut(outs, inputs).program
    fused(traced)
    check(
        traced, [*arguments, *[laws.sample(a.shape, a.dtype.name, "any", i) for i, a in enumerate(callee.avals)]], 1e-9
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_of_larger_arrays(seed: int) -> None:
    traced, arguments = random_programs.random_program(2000 + seed, "float32", 10, large=True)
    check(traced, arguments, 2e-3)


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_a_deep_product_with_few_results_is_split_along_its_depth(ta: bool, tb: bool) -> None:
    """As a batch of products, read in place, and one sum; products with many results stay whole."""
    rng = np.random.default_rng(0)
    shapes = [(12288, 5) if ta else (5, 12288), (7, 12288) if tb else (12288, 7)]
    traced = program(lambda m, a, b: m.matmul(a, b, ta=ta, tb=tb) + 1.0, *shapes)
    assert kernels(traced) == [("matmul", 1), ("loops", 1)]
    check(traced, [rng.standard_normal(s).astype(np.float32) for s in shapes], 1e-5)
    wide = [(12288, 200) if ta else (200, 12288), (200, 12288) if tb else (12288, 200)]
    assert kernels(program(lambda m, a, b: m.matmul(a, b, ta=ta, tb=tb) + 1.0, *wide)) == [("matmul", 1)]
