"""The two tiers: which one runs is decided by counts, and both give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import laws
import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import cache, evaluate
from mlxir.compiler import shared as sharing
from mlxir.runtime.knobs import knobs


@pytest.fixture(autouse=True)
def fresh_counts() -> Iterator[None]:
    """Each test starts as if nothing had been evaluated, without the disk cache."""
    before = knobs.tier, knobs.cache_dir
    for seen in (evaluate._counts, evaluate._variants, evaluate._sharings, evaluate._shared):
        seen.clear()
    evaluate._state.keeping = 0
    knobs.cache_dir = None
    mx.clear_compile_cache()
    yield
    knobs.tier, knobs.cache_dir = before


def compilations() -> int:
    return cache.info().compilations


def model(x: mx.array, w: mx.array) -> mx.array:
    return mx.softmax(mx.tanh(x @ w) + 1.0, axis=-1)


def data(n: int = 5) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(0)
    return mx.array(rng.standard_normal((n, 4)).astype("f")), mx.array(rng.standard_normal((4, 3)).astype("f"))


def test_a_graph_is_compiled_when_it_comes_back() -> None:
    x, w = data()
    start, counts = compilations(), []
    for _ in range(knobs.tier_up + 2):
        mx.eval(model(x, w))
        counts.append(compilations() - start)
    assert counts == [0] * (knobs.tier_up - 1) + [1] * 3


@pytest.mark.parametrize("shared", [True, False])
def test_few_shapes_of_one_structure_are_compiled(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    monkeypatch.setattr(sharing, "WORK", 0 if shared else 1 << 60)
    start = compilations()
    for _ in range(knobs.tier_up + 1):
        for n in range(1, evaluate.MOST_VARIANTS + 4):
            mx.eval(model(*data(n)))
    most = 3 if shared else evaluate.MOST_VARIANTS  # an axis of length 1 is a shape of its own
    assert 1 <= compilations() - start <= most


@pytest.mark.parametrize("tier", ["reference", "compiled"])
def test_a_tier_can_be_forced(tier: str) -> None:
    knobs.tier = tier
    start = compilations()
    for _ in range(knobs.tier_up + 1):
        mx.eval(model(*data()))
    assert compilations() - start == (1 if tier == "compiled" else 0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_tiers_agree(dtype: str) -> None:
    results = []
    for tier in ("reference", "compiled"):
        knobs.tier = tier
        x, w = (a.astype(getattr(mx, dtype)) for a in data())
        value, grad = mx.value_and_grad(lambda w, x=x: (model(x, w) ** 2).sum())(w)
        results.append([np.array(value), np.array(grad)])
    for a, b in zip(*results, strict=True):
        laws.assert_close(a, b, factor=2)


def test_what_the_compiled_tier_refuses_goes_on_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: object) -> None:
        raise mx.runtime.errors.CompileError("[lower] not supported")

    monkeypatch.setattr(evaluate, "executable", refuse)
    x, w = data()
    for _ in range(knobs.tier_up + 2):
        np.testing.assert_allclose(np.array(model(x, w)).sum(), 5, rtol=1e-5)
    knobs.tier = "compiled"
    with pytest.raises(mx.runtime.errors.CompileError, match="not supported"):
        mx.eval(model(x, w))


@pytest.mark.parametrize("begin", [mx.eval, mx.async_eval])
def test_what_is_never_evaluated_is_not_computed_again_at_every_step(monkeypatch, begin) -> None:
    """A state that only reaches the results it leads to: a step evaluates about as many operations as the first did."""
    sizes = []
    before = evaluate.cut

    def cut(*args: Any, **kwargs: Any) -> Any:
        found = before(*args, **kwargs)
        sizes.append(len(found.nodes))
        return found

    monkeypatch.setattr(evaluate, "cut", cut)
    x, w = data()
    state, expected = x, np.array(x)
    for _ in range(20):
        state = mx.tanh(state @ w @ w.T) + state
        loss = (state * state).sum()
        begin(loss)
        expected = np.tanh(expected @ np.array(w) @ np.array(w).T) + expected
        np.testing.assert_allclose(loss.item(), (expected * expected).sum(), rtol=1e-4)
    assert max(sizes) <= 3 * sizes[0]
    np.testing.assert_allclose(np.array(state), expected, rtol=1e-4)


def test_variables_that_nobody_asks_for_stay_fused() -> None:
    x, w = data()
    mx.eval(x, w)
    inner = x @ w
    outer = mx.exp(inner)
    mx.eval(outer)
    assert inner._value.buffer is None and outer._value.buffer is not None


def test_only_what_the_program_refers_to_is_kept() -> None:
    def kept(total: mx.array) -> list[Any]:
        evaluate._state.keeping = 1
        return evaluate._problem([total._value])[3]

    x = mx.ones((4,))
    nothing = kept(mx.sum(x * 3))  # (pytest keeps what is computed in an assertion)
    assert nothing == []
    product = x * 3
    assert kept(mx.sum(product)) == [product._value]
