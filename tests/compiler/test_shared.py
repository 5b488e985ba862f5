"""Eager programs whose numbers change from step to step share their code (compiler/shared.py, compiler/plans.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import cache, evaluate, shared
from mlxir.compiler.shared import Column, fit
from mlxir.native import form
from mlxir.runtime.knobs import knobs

STEPS = 4 * knobs.tier_up


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts as if nothing had been evaluated, without the disk cache. Small programs count as large ones."""
    monkeypatch.setattr(shared, "WORK", 0)
    before = knobs.tier, knobs.cache_dir
    for seen in (evaluate._counts, evaluate._variants, evaluate._sharings, evaluate._shared):
        seen.clear()
    evaluate._state.keeping = 0
    knobs.tier, knobs.cache_dir = "auto", None
    mx.clear_compile_cache()
    yield
    knobs.tier, knobs.cache_dir = before


def compilations() -> int:
    return cache.info().compilations


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape).astype("f"))


def both_tiers(program: Callable[[], Iterator[Any]]) -> list[int]:
    """The compilations so far after each step of a program, whose results must be those of the reference tier."""
    knobs.tier = "reference"
    expected = list(program())
    knobs.tier, start, counts = "auto", compilations(), []
    for result, right in zip(program(), expected, strict=True):
        counts.append(compilations() - start)
        for x, y in zip(result, right, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-5)
    return counts


def numpy(*arrays: mx.array) -> list[np.ndarray]:
    mx.eval(*arrays)
    return [np.array(x) for x in arrays]


# -- programs: each yields the results of its steps ------------------------------------------------------------------
def growing() -> Iterator[Any]:
    """A cache that grows by one row, and a constant that tells the step, as rotary positions do."""
    w, keys = normal(4, 4), normal(18, 4)
    for n in range(STEPS):
        row = mx.tanh(keys[-1:] @ w + mx.full((1, 4), float(n)))
        keys = mx.concatenate([keys, row])
        yield numpy(keys, mx.softmax(keys @ row.T, axis=0).T @ keys)


def updated() -> Iterator[Any]:
    """A cache of fixed size whose next row is written, and of which what is written is read."""
    w, keys = normal(4, 4), normal(64, 4)
    for n in range(2, STEPS + 2):
        keys[n : n + 1] = mx.tanh(keys[n - 1 : n] @ w)
        yield numpy(keys, mx.sum(keys[: n + 1] * 2, axis=0))


def any_batch() -> Iterator[Any]:
    """Batches and lengths at random, products of both among the shapes."""
    w, rng = normal(6, 6), np.random.default_rng(0)
    for _ in range(STEPS):
        x = normal(int(rng.integers(2, 9)), int(rng.integers(2, 30)), 6)
        yield numpy((mx.maximum(x.reshape(-1, 6) @ w, 0)).reshape(x.shape).sum(axis=1))


def gradients() -> Iterator[Any]:
    w, rng = normal(5, 3), np.random.default_rng(0)
    for _ in range(STEPS):
        x = normal(int(rng.integers(2, 40)), 5)
        loss, grad = mx.value_and_grad(lambda w, x=x: mx.mean(mx.square(x @ w)))(w)
        w = w - 0.1 * grad
        yield numpy(loss, w)


def other_lockstep() -> Iterator[Any]:
    """Two sizes that are equal at first."""
    for n in range(2, STEPS + 2):
        m = n if n < STEPS // 2 else 2 * n - 5
        x, y = normal(n, 3), normal(m, 3)
        yield numpy(mx.concatenate([x * 2, y]), mx.sum(y, axis=0) + x[0])


def strided() -> Iterator[Any]:
    """Sizes that are no polynomial: halves."""
    for n in range(9, STEPS + 9):
        x = normal(n, 3)
        yield numpy(mx.exp(x[::2]), x[n // 2 :] + 1)


def scalars() -> Iterator[Any]:
    """Constants of several types that change while all sizes stay."""
    x = normal(7)
    for n in range(STEPS):
        some = mx.full((7,), n % 3 == 0).astype(mx.float32)
        yield numpy(x * mx.full((), 0.5 * n) + some - mx.full((1,), n, mx.int32))


def vmapped() -> Iterator[Any]:
    w = normal(4, 4)
    for n in range(3, STEPS + 3):
        yield numpy(mx.vmap(lambda row: mx.tanh(w @ row))(normal(n, 4)))


PROGRAMS = [growing, updated, any_batch, gradients, other_lockstep, strided, scalars, vmapped]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_programs_whose_sizes_change_share_their_code(program) -> None:
    counts = both_tiers(program)
    assert counts[2 * knobs.tier_up - 2] == 0 and 1 <= counts[-1] <= 4


def test_small_programs_wait_until_they_have_taken_some_time(monkeypatch) -> None:
    monkeypatch.setattr(shared, "WORK", 1000)
    assert both_tiers(growing)[-1] == 0


def test_few_sizes_get_code_of_their_own() -> None:
    w, start = normal(4, 4), compilations()
    for _ in range(knobs.tier_up):
        for n in (3, 5, 9):
            numpy(mx.tanh(normal(n, 4) @ w) * 2)
    assert compilations() - start == 3


def test_a_recurring_step_makes_no_program(monkeypatch) -> None:
    steps = growing()
    for _ in range(3 * knobs.tier_up):
        next(steps)
    monkeypatch.setattr(evaluate, "cut", None)  # to call it would be an error
    assert len(list(steps)) == STEPS - 3 * knobs.tier_up


def test_async_steps_share_their_code_too(monkeypatch) -> None:
    w, keys, expected = normal(4, 4), normal(18, 4), np.array(normal(18, 4))
    cuts, before = [], evaluate.cut
    monkeypatch.setattr(evaluate, "cut", lambda *args, **kwargs: (cuts.append(1), before(*args, **kwargs))[1])
    for n in range(STEPS):
        keys = mx.concatenate([keys, mx.tanh(keys[-1:] @ w + mx.full((1, 4), float(n)))])
        mx.async_eval(keys)
        expected = np.concatenate([expected, np.tanh(expected[-1:] @ np.array(w) + n)])
        if n % 5 == 4:
            np.testing.assert_allclose(np.array(keys), expected, rtol=1e-4, atol=1e-5)
    assert len(cuts) < STEPS - knobs.tier_up


def test_what_needs_its_sizes_stays_in_the_reference_tier() -> None:
    def sorting() -> Iterator[Any]:
        for n in range(3, STEPS + 3):
            yield numpy(mx.sort(normal(n) * 2))

    assert both_tiers(sorting)[-1] <= 1


def test_sizes_that_stay_get_code_of_their_own() -> None:
    list(any_batch())
    start, x, w = compilations(), normal(3, 7, 6), normal(6, 6)
    for n in range(evaluate.SETTLED * knobs.tier_up + 4):
        expected = np.maximum(np.array(x).reshape(-1, 6) @ np.array(w), 0).reshape(x.shape).sum(axis=1)
        y = (mx.maximum(x.reshape(-1, 6) @ w, 0)).reshape(x.shape).sum(axis=1)
        np.testing.assert_allclose(np.array(y), expected, rtol=1e-4, atol=1e-5)
        if n == knobs.tier_up:
            assert compilations() == start
    assert compilations() == start + 1


def test_integers_are_expressions_of_few_symbols() -> None:
    rows = [(4, n, 4 * n, n + 1, 7, n * m, m, 3 * n * m + 2) for n, m in ((17, 5), (18, 9), (20, 2), (23, 31))]
    columns, roots = fit(rows) or ([], [])
    assert roots == [1, 5, 6]  # n, n * m, then m
    assert columns == [
        Column((), 0, 4), Column((0,), 1, 0), Column((0,), 4, 0), Column((0,), 1, 1), Column((), 0, 7),
        Column((1,), 1, 0), Column((2,), 1, 0), Column((1,), 3, 2),
    ]  # fmt: skip
    assert fit([(2, 3), (4, 7), (8, 5)]) == ([Column((0,), 1, 0), Column((1,), 1, 0)], [0, 1])
    assert fit([(-1,), (-2,), (-3,)]) is None


# -- compiled functions inside lazy graphs ---------------------------------------------------------------------------
def test_a_small_compiled_function_joins_the_graph_of_its_arguments(monkeypatch) -> None:
    f = mx.compile(lambda x: x * mx.sigmoid(x), shapeless=True)
    x = normal(3, 4)
    mx.eval(x, f(x))
    for n in range(form.JOINED_AFTER):  # until it is clear that the arguments are other graphs each time
        v = normal(n + 10, 4) + 1
        f(v)
        assert v._value.buffer is not None
    hits, evaluated = f.cache_info().hits, []
    before = evaluate._evaluate
    monkeypatch.setattr(evaluate, "_evaluate", lambda wanted: (evaluated.append(len(wanted)), before(wanted)))
    for n in (3, 5, 9):  # new sizes need no code
        lazy = f(normal(n, 4) @ normal(4, 4)) + 1
        assert not evaluated
        v = np.array(normal(n, 4)) @ np.array(normal(4, 4))
        np.testing.assert_allclose(np.array(lazy), v / (1 + np.exp(-v)) + 1, rtol=1e-5)
        assert evaluated.pop() == 1 and not evaluated
    assert f.cache_info().hits == hits + 3 and f.cache_info().misses == 1


def test_arguments_that_a_plan_evaluates_are_evaluated() -> None:
    f = mx.compile(lambda x: x * mx.sigmoid(x))
    x = normal(3, 4)
    mx.eval(x, f(x))
    for _ in range(3 * form.JOINED_AFTER):
        v = x + 1
        f(v)
        assert v._value.buffer is not None


def test_large_results_of_compiled_functions_are_computed_by_their_own_code() -> None:
    f = mx.compile(lambda x: x * mx.sigmoid(x))
    x = normal(300, 100)
    mx.eval(x, f(x))
    y = x + 1
    z = f(y)
    assert y._value.buffer is not None and z._value.buffer is not None
    np.testing.assert_allclose(np.array(z), np.array(y) / (1 + np.exp(-np.array(y))), rtol=1e-5)
