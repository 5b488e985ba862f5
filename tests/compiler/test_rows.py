"""Reductions and what is made of them: variances in one pass, short reductions, extrema as integers, joined rows, and
how iterations are shared among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from small_programs import check, program, run

from mlxir.compiler import pipeline
from mlxir.compiler.program import Program
from mlxir.compiler.target.unswitch import unswitch
from mlxir.dialects.mlir import ir
from mlxir.dialects.mx import OpBuilder
from mlxir.runtime.dtypes import from_name
from mlxir.runtime.knobs import knobs


@pytest.fixture(autouse=True)
def _verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "verify", True)


def launches(traced: Program) -> list[Any]:
    return pipeline.fused(traced, lambda stage, text: None, pipeline.BLOCKED).launches


# -- variances ---------------------------------------------------------------------------------------------------------
def variance(axes: tuple[int, ...], shape: tuple[int, ...]) -> Callable:
    def function(m: OpBuilder, x: Any) -> list:
        count = int(np.prod([shape[a] for a in axes]))
        mean = m.multiply(m.sum(x, axes=axes), m.scalar(1 / count, x.dtype))
        squares = m.square(m.subtract(x, m.expanded(mean, axes)))
        return [m.multiply(m.sum(squares, axes=axes), m.scalar(1 / count, x.dtype)), mean]

    return function


VARIANCES = {
    "everything": ((1024, 1100), (0, 1)),
    "long rows": ((8, 1 << 17), (1,)),
    "columns": ((4096, 300), (0,)),
    "channels": ((16, 40, 50, 40), (0, 1, 2)),
    "a vector": ((1 << 20,), (0,)),
}


@pytest.mark.parametrize("name", VARIANCES)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_variance_reads_a_large_array_once(name: str, offset: float) -> None:
    shape, axes = VARIANCES[name]
    traced = program(variance(axes, shape), shape)
    assert sum(0 in launch.operands for launch in launches(traced)) == 1
    x = (np.random.default_rng(0).standard_normal(shape) + offset).astype(np.float32)
    found, mean = run(traced, x)
    np.testing.assert_allclose(found, x.astype(np.float64).var(axes), rtol=1e-6 + 3e-8 * offset)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [slice(0, 0), slice(0, 4), slice(0, None, 16), slice(0, 1)], ids=str)
def test_a_variance_of_columns_is_as_exact_as_numpys(rows: slice) -> None:
    """Where some rows lie far from the others: the deviations of a block are those from the mean of four rows."""
    shape = (4096, 300)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x[rows] += 1e4
    x += np.float32(100)
    exact = x.astype(np.float64).var(0)
    (found, _), numpys = run(program(variance((0,), shape), shape), x), x.var(0)
    assert np.abs(found / exact - 1).max() <= np.abs(numpys / exact - 1).max()


def loops_around(name: str, module: ir.Module) -> set[str]:
    """The serial and parallel loops that operations of a name stand in, below the loop over a kernel's iterations."""
    found: set[str] = set()

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name == name:
            around = operation.parent
            while around.parent.name != "func.func":
                found.add(around.name)
                around = around.parent
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def test_what_the_rows_of_a_column_share_is_computed_once() -> None:
    def normalised(m: OpBuilder, x: Any) -> Any:
        power = m.multiply(m.sum(m.square(x), axes=(0,)), m.scalar(1 / x.shape[0], x.dtype))
        return m.divide(x, m.expanded(m.sqrt(m.add(m.exp(power), power)), (0,)))

    traced = program(normalised, (72, 80))
    assert loops_around("math.sqrt", pipeline.lowered(traced, lambda stage, text: None).module) == {"scf.parallel"}
    check(traced, [np.random.default_rng(0).standard_normal((72, 80)).astype(np.float32)], 1e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_variance_keeps_what_is_not_finite(value: float) -> None:
    x = np.ones((1024, 1100), np.float32)
    x[3, 4] = value
    assert np.isnan(run(program(variance((0, 1), x.shape), x.shape), x)[0])


@pytest.mark.parametrize("order", ["before", "after", "never"])
def test_deviations_from_something_else(order: str) -> None:
    """The sum of the array itself may stand before them, behind them, or nowhere."""

    def function(m: OpBuilder, x: Any, s: Any) -> list:
        sums = [m.sum(x, axes=(0, 1))] if order == "before" else []
        sums.insert(0, m.sum(m.square(m.subtract(x, s)), axes=(0, 1)))
        return [*sums, m.sum(x, axes=(0, 1))] if order == "after" else sums

    x, s = np.random.default_rng(0).random((1024, 1100), np.float32), np.array([[0.25]], np.float32)
    found, *rest = run(program(function, x.shape, s.shape), x, s)
    np.testing.assert_allclose(found, np.square(x.astype(np.float64) - 0.25).sum(), rtol=1e-6)
    for total in rest:
        np.testing.assert_allclose(total, x.astype(np.float64).sum(), rtol=1e-6)


def test_a_reduction_of_one_that_is_split_is_split() -> None:
    x = np.random.default_rng(0).random((100, 40_000), np.float32)
    (found,) = run(program(lambda m, x: m.sum(m.sum(x, axes=(0,)), axes=(0,)), x.shape), x)
    np.testing.assert_allclose(found, x.sum(dtype=np.float64), rtol=1e-6)
    x = x[:, :20_000].copy()

    def deviations(m: OpBuilder, x: Any) -> Any:
        return m.sum(m.square(m.subtract(x, m.sum(x, axes=(0, 1)))), axes=(0, 1))

    (found,) = run(program(deviations, x.shape), x)
    np.testing.assert_allclose(found, np.square(x - x.sum(dtype=np.float64)).sum(), rtol=1e-6)


# -- short reductions --------------------------------------------------------------------------------------------------
def accelerations(m: OpBuilder, x: Any, mass: Any) -> Any:
    count = x.shape[0]
    d = m.subtract(m.reshape(x, shape=(1, count, 3)), m.reshape(x, shape=(count, 1, 3)))
    squared = m.add(m.sum(m.square(d), axes=(2,)), m.scalar(0.01, x.dtype))
    weight = m.divide(m.reshape(mass, shape=(1, count)), m.multiply(squared, m.sqrt(squared)))
    return m.sum(m.multiply(d, m.reshape(weight, shape=(count, count, 1))), axes=(1,))


def test_pairs_are_never_stored() -> None:
    traced = program(accelerations, (50, 3), (50,))
    assert len(launches(traced)) == 1
    rng = np.random.default_rng(0)
    check(traced, [rng.standard_normal((50, 3)).astype(np.float32), rng.random(50, np.float32)], 1e-5)


def softmax(m: OpBuilder, x: Any) -> Any:
    e = m.exp(m.subtract(x, m.expanded(m.max(x, axes=(1,)), (1,))))
    return m.divide(e, m.expanded(m.sum(e, axes=(1,)), (1,)))


def lengths(m: OpBuilder, x: Any) -> list:
    length = m.sqrt(m.sum(m.multiply(x, m.conjugated(x)), axes=(1,)))
    return [m.divide(x, m.expanded(length, (1,))), length]


def over_first(m: OpBuilder, x: Any) -> list:
    return [m.sum(x, axes=(0,)), m.prod(x, axes=(0,)), m.min(x, axes=(0,))]


SHORT = {
    "softmax": (softmax, (37, 3), 1), "lengths": (lengths, (37, 2), 2), "one": (softmax, (5, 1), 1),
    "first axis": (over_first, (4, 29), 1),
    "two axes": (lambda m, x: m.sum(m.exp(x), axes=(0, 2)), (2, 11, 2), 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", SHORT)
def test_short_reductions(name: str, dtype: str) -> None:
    function, shape, most = SHORT[name]
    kind = from_name(dtype)
    traced = program(function, shape, dtype=kind)
    assert len(launches(traced)) <= most
    x = np.random.default_rng(0).standard_normal(shape).astype(kind.numpy)
    check(traced, [x], 1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool"])
def test_short_reductions_of_other_numbers(dtype: str) -> None:
    kind, rng = from_name(dtype), np.random.default_rng(0)
    x = (rng.integers(-3, 4, (33, 3)) + (1j * rng.integers(-3, 4, (33, 3)) if dtype == "complex64" else 0)).astype(
        kind.numpy
    )

    def function(m: OpBuilder, x: Any) -> Any:
        return (
            [m.any(x, axes=(1,)), m.all(x, axes=(1,))]
            if dtype == "bool"
            else [m.sum(x, axes=(1,)), m.prod(x, axes=(1,))]
        )

    check(program(function, x.shape, dtype=kind), [x], 1e-6)


def test_a_short_sum_has_the_bits_of_the_reference() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    (found,) = run(program(lambda m, x: m.sum(m.square(x), axes=(1,)), x.shape), x)
    np.testing.assert_array_equal(found, np.square(x).sum(1))


# -- extrema -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [5, 16, 100, 1024])
def test_extrema_of_unusual_rows(length: int) -> None:
    x = np.random.default_rng(0).standard_normal((12, length)).astype(np.float32)
    x[0, 3], x[1, 2] = np.nan, -np.nan
    x.view(np.int32)[2, 1], x.view(np.int32)[3, 1] = -1, 0x7F800001  # the last and the first of all NaNs
    x[4], x[5], x[6, 1], x[7, 0] = -np.inf, np.inf, np.inf, -np.inf
    x[8], x[8, 1], x[9] = 0, -0.0, -0.0
    x[10] = -np.abs(x[10])
    x[11] *= np.float32(1e-40)
    most, least = run(program(lambda m, x: [m.max(x, axes=(1,)), m.min(x, axes=(1,))], x.shape), x)
    np.testing.assert_array_equal(most, x.max(1))
    np.testing.assert_array_equal(least, x.min(1))
    assert list(np.signbit(most[8:10])) == [False, True] and list(np.signbit(least[8:10])) == [True, True]


def with_its_sum(m: OpBuilder, x: Any, y: Any) -> list:
    """A value per element, and a sum that none of them depends on."""
    top = m.max(x, axes=(1,))
    shifted = x - m.expanded(top, [1])
    return [shifted, m.sum(shifted * y, axes=(1,)), top]


def test_a_sum_is_taken_where_the_elements_are_stored() -> None:
    traced = program(with_its_sum, (30, 96), (30, 96))
    loops: list[ir.Operation] = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name == "scf.parallel":
            loops.append(operation)
        return ir.WalkResult.ADVANCE

    made = pipeline.lowered(traced, lambda stage, text: None)
    made.module.operation.walk(visit)
    assert len(loops) == 3  # over rows; the maximum; what is stored, with the sum
    rng = np.random.default_rng(0)
    check(traced, [rng.standard_normal((30, 96)).astype(np.float32) for _ in range(2)], 1e-6)


# -- joined rows -------------------------------------------------------------------------------------------------------
def joined(m: OpBuilder, a: Any, b: Any, c: Any) -> list:
    once = m.concatenate(m.concatenate(a, b, axis=0), c, axis=0)
    return [once, m.exp(once)]


def branches(block: ir.Block, inside: bool = False) -> Iterator[ir.Operation]:
    """The decisions inside the innermost loops."""
    for view in block.operations:
        operation = view.operation
        if operation.name == "scf.if" and inside:
            yield operation
        for region in operation.regions:
            for body in region.blocks:
                yield from branches(body, operation.name == "scf.parallel")


def test_inner_loops_decide_nothing_that_their_row_decides() -> None:
    traced = program(joined, (5, 40), (1, 40), (7, 40))
    loops = pipeline.lowered(traced, lambda stage, text: None)
    (function,) = loops.module.body.operations
    (step,) = [
        v.operation for v in function.operation.regions[0].blocks[0].operations if v.operation.name == "scf.parallel"
    ]
    body = step.regions[0].blocks[0]
    assert list(branches(body))
    unswitch(body)
    assert loops.module.operation.verify()
    assert not list(branches(body))
    rng = np.random.default_rng(0)
    check(traced, [rng.standard_normal(s).astype(np.float32) for s in ((5, 40), (1, 40), (7, 40))], 1e-6)


# -- threads -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("shape", [(600_011,), (3, 400_000), (1023, 700)])
def test_every_iteration_runs_once(threads: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "threads", threads)
    x = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float32)
    last = len(shape) - 1
    doubled, sums = run(program(lambda m, x: [m.add(x, x), m.sum(x, axes=(last,))], shape), x)
    np.testing.assert_array_equal(doubled, x + x)
    np.testing.assert_array_equal(sums, x.sum(last))
