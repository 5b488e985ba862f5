"""checkpoint and depends (BEHAVIOUR section 11) under every transform, against real MLX where it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from counting import Counter, value
from oracle import assert_agree

import mlxir as mx

V = np.array([0.5, 1.0, 2.0], np.float32)
W = np.array([1.5, -1.0, 0.25], np.float32)
M = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def block(m: Any, x: Any, w: Any) -> Any:
    return m.tanh(m.sin(x) * w)


def chain(m: Any, wrap: Callable) -> Callable:
    def loss(ws: list, x: Any) -> Any:
        for w in ws:
            x = wrap(lambda x, w: block(m, x, w))(x, w)
        return (x * x).sum()

    return loss


def trees(m: Any) -> Callable:
    return lambda d, k, s=None: ({"y": d["x"] * k, "s": s}, [d["x"].sum(), None], k)


CASES: dict[str, Callable[[Any], Any]] = {
    "call": lambda m: m.checkpoint(lambda x, w: block(m, x, w))(m.array(V), m.array(W)),
    "grad": lambda m: m.grad(m.checkpoint(lambda x, w: block(m, x, w).sum()), argnums=(0, 1))(m.array(V), m.array(W)),
    "chain": lambda m: m.grad(chain(m, m.checkpoint))([m.array(V)] * 3, m.array(W)),
    "value_and_grad": lambda m: m.value_and_grad(chain(m, m.checkpoint), argnums=1)([m.array(V)] * 3, m.array(W)),
    "grad of grad": lambda m: m.grad(m.grad(m.checkpoint(lambda x: m.sin(x) * x * x)))(m.array(1.5)),
    "third derivative": lambda m: m.grad(m.grad(m.grad(m.checkpoint(lambda x: m.sin(x) * x))))(m.array(1.5)),
    "checkpoint in checkpoint": lambda m: m.grad(
        m.checkpoint(lambda x: m.checkpoint(lambda y: m.sin(y) * y)(m.cos(x)) * x))(m.array(1.5)),
    "jvp": lambda m: m.jvp(
        m.checkpoint(lambda x, w: block(m, x, w)), [m.array(V), m.array(W)], [m.array(W), m.array(V)]),
    "vmap": lambda m: m.vmap(m.checkpoint(lambda x, w: block(m, x, w)), in_axes=(0, None))(m.array(M), m.array(M[0])),
    "compile": lambda m: m.compile(m.grad(chain(m, m.checkpoint)))([m.array(V)] * 3, m.array(W)),
    "compile inside": lambda m: m.grad(m.checkpoint(m.compile(lambda x: m.sin(x) * x)))(m.array(1.5)),
    "closure": lambda m: m.grad(lambda w: m.checkpoint(lambda x: x * w)(m.array(2.0)))(m.array(3.0)),
    "closure beside an argument": lambda m: m.grad(lambda w: m.checkpoint(lambda x: x * w * x)(w))(m.array(3.0)),
    "closure, jvp": lambda m: m.jvp(
        lambda w: m.checkpoint(lambda x: x * w)(m.array(2.0)), [m.array(3.0)], [m.array(1.0)]),
    "integers": lambda m: m.grad(m.checkpoint(lambda x, i: (x * i).sum()))(m.array(V), m.array([0, 2, 3])),
    "not differentiated": lambda m: m.grad(lambda w: m.checkpoint(lambda x: m.sin(x))(m.array(2.0)) * w)(m.array(3.0)),
    "constant": lambda m: m.grad(lambda x: m.checkpoint(lambda y: m.array(2.0))(x) * x)(m.array(3.0)),
    "unused output": lambda m: m.grad(lambda x: m.checkpoint(lambda y: (m.sin(y), m.cos(y)))(x)[1])(m.array(3.0)),
    "identity": lambda m: m.grad(lambda x: m.checkpoint(lambda y: y)(x) * x)(m.array(3.0)),
    "value read": lambda m: m.grad(m.checkpoint(lambda x: x * x if x > 1 else x))(m.array(3.0)),
    "depends": lambda m: m.depends(m.array(V), m.array(M)),
    "depends, sequences": lambda m: m.depends((m.array(V), m.array(M)), [m.array(W)]),
    "depends on nothing": lambda m: m.depends(m.array(V), []),
    "depends, grad": lambda m: m.grad(
        lambda x, y: (m.depends(x * 2, y * y) * y.sum()).sum(), argnums=(0, 1))(m.array(V), m.array(M)),
    "depends, compile": lambda m: m.compile(lambda x, y: m.depends(x, m.sin(y)) + 1)(m.array(V), m.array(M)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_mlx(name: str) -> None:
    assert_agree(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_agrees_when_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.runtime.knobs.knobs, "tier", "compiled")
    assert_agree(CASES[name])


# What real MLX cannot do with a checkpoint, it does without.
PLAIN: dict[str, Callable[[Callable], Any]] = {
    "vmap of grad": lambda c: mx.vmap(mx.grad(c(lambda x: mx.sin(x) * x)))(mx.array(V)),
    "grad of vmap": lambda c: mx.grad(lambda x: mx.vmap(c(lambda x: mx.sin(x) * x))(x).sum())(mx.array(V)),
    "grad of jvp": lambda c: mx.grad(lambda x: mx.jvp(c(lambda x: mx.sin(x) * x), [x], [x])[1][0])(mx.array(1.5)),
    "jvp of grad": lambda c: mx.jvp(mx.grad(c(lambda x: mx.sin(x) * x)), [mx.array(1.5)], [mx.array(2.0)])[1][0],
    "hessian": lambda c: mx.hessian(c(lambda x: (mx.sin(x) * x * x).sum()))(mx.array(V)),
    "vmap of vmap of grad": lambda c: mx.vmap(mx.vmap(mx.grad(c(lambda x: mx.sin(x) * x))))(mx.array(M)),
    "vmap, not mapped": lambda c: mx.grad(
        lambda w: mx.vmap(c(lambda x, w: mx.sin(x) @ w), in_axes=(0, None))(mx.array(M), w).sum())(mx.array(M[0])),
    "vmap, mapped closure": lambda c: mx.vmap(lambda w: mx.grad(c(lambda x: x * x * w))(w + 1))(mx.array(V)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_equals_the_plain_function(name: str) -> None:
    expected, actual = PLAIN[name](lambda f: f), PLAIN[name](mx.checkpoint)
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-5, atol=1e-6)


def test_indices_may_be_arguments() -> None:
    """Real MLX differentiates all arguments of a checkpoint, and raises for these."""
    gather = mx.checkpoint(lambda x, i: (x[i] * i).sum())
    assert value(mx.grad(gather)(mx.array(V), mx.array([0, 2]))) == [0, 0, 2]
    with pytest.raises(ValueError, match="stop_gradient"):
        mx.grad(lambda x: gather(x, mx.argmax(x) + mx.array([0])))(mx.array(V))


def test_lenient_trees() -> None:
    f = mx.checkpoint(trees(mx))
    d = {"x": mx.array(V), "n": None, "s": "text"}
    for result in (f(d, 2, s="s"), mx.compile(f)(d, 2, s="s")):
        assert value(result[0]["y"]) == (V * 2).tolist() and result[0]["s"] == "s"
        assert value(result[1][0]) == V.sum() and result[1][1] is None and result[2] == 2
    loss, grad = mx.value_and_grad(lambda x: f({"x": x}, 3)[1][0])(mx.array(V))
    assert value(loss) == V.sum() and value(grad) == [1, 1, 1]


def test_a_result_without_arrays_is_returned() -> None:
    f = mx.checkpoint(lambda x: {"n": 3, "e": []})
    assert f(mx.array(V)) == {"n": 3, "e": []}
    assert value(mx.grad(lambda x: x * f(x)["n"])(mx.array(2.0))) == 3


def test_needs_a_function() -> None:
    with pytest.raises(TypeError, match=r"\[checkpoint\]"):
        mx.checkpoint(3)


def test_arguments_are_copied_as_containers() -> None:
    def fun(d: dict) -> Any:
        d["w"] = d["w"] * 2
        d["w"][0] = 7
        return d["w"].sum()

    f, d = mx.checkpoint(fun), {"w": mx.array(V)}
    for _ in range(2):
        f(d)
        mx.grad(f)(d)
    assert list(d) == ["w"] and value(d["w"]) == V.tolist()


def test_what_the_function_kept_is_an_ordinary_array() -> None:
    kept: list = []

    def fun(x: Any) -> Any:
        kept.extend([x, mx.sin(x)])
        return kept[-1] * 2

    assert value(mx.grad(mx.checkpoint(fun))(mx.array(0.5))) == pytest.approx(2 * np.cos(0.5))
    assert value(kept[0]) == 0.5 and value(kept[1]) == pytest.approx(np.sin(0.5))


def test_python_runs_the_function_once_per_call() -> None:
    """Real MLX runs it again in the backward pass; here the traced operations are replayed."""
    fun = Counter(lambda x: mx.sin(x) * x)
    mx.value_and_grad(mx.checkpoint(fun))(mx.array(2.0))
    assert fun.runs == 1


# -- randomness ------------------------------------------------------------------------------------------------------
def _dropout_gradient(wrap: Callable) -> Callable:
    """The function multiplies by a random mask: its gradient is that mask, so that both show the numbers drawn."""

    def masked(x: Any) -> Any:
        keep = mx.random.bernoulli(0.5, x.shape)
        return mx.exp(mx.log(x)) * keep

    def both(x: Any) -> Any:
        value, pull = mx.vjp(lambda x: wrap(masked)(x), [x], [mx.ones_like(x)])
        return value[0], pull[0]

    return both


@pytest.mark.parametrize("kind", ["eager", "compiled tier", "compile", "compile with state"])
def test_randomness_replays(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "compiled tier":
        monkeypatch.setattr(mx.runtime.knobs.knobs, "tier", "compiled")
    both, x = _dropout_gradient(mx.checkpoint), mx.ones((64,))
    if kind == "compile":
        both = mx.compile(both)
    if kind == "compile with state":
        both = mx.compile(both, inputs=mx.random.state, outputs=mx.random.state)
    mx.random.seed(3)
    masks = []
    for _ in range(3):
        forward, backward = both(x)
        assert 0 < value(forward.sum()) < 64
        np.testing.assert_allclose(np.array(forward), np.array(backward), rtol=1e-5)
        masks.append(value(forward))
    assert (masks[0] != masks[1] != masks[2]) == (kind != "compile")  # without captured state the key is frozen
    mx.random.seed(3)
    assert np.allclose(value(_dropout_gradient(lambda f: f)(x)[0]), masks[0])  # the numbers of the plain function


def test_the_random_state_advances_as_without_checkpoint() -> None:
    def after(wrap: Callable) -> Any:
        mx.random.seed(5)
        mx.eval(mx.grad(wrap(lambda x: (x * mx.random.normal((3,))).sum()))(mx.array(V)))
        return value(mx.random.uniform(shape=(2,)))

    assert after(mx.checkpoint) == after(lambda f: f)


# -- compilation -----------------------------------------------------------------------------------------------------
def test_compiled_once() -> None:
    fun = Counter(mx.value_and_grad(chain(mx, mx.checkpoint)))
    compiled = mx.compile(fun)
    before = mx.compile_cache_info().misses
    expected = value(chain(mx, lambda f: f)([mx.array(V)] * 3, mx.array(W)))
    for _ in range(3):
        loss, _ = compiled([mx.array(V)] * 3, mx.array(W))
        assert value(loss) == pytest.approx(expected)
    assert fun.runs == 1 and mx.compile_cache_info().misses == before + 1


def test_the_dump_shows_the_checkpoint_and_then_the_fence(tmp_path: Any) -> None:
    stages, gradient = ["mx", "transformed", "fused"], mx.grad(chain(mx, mx.checkpoint))
    folder = mx.dump(gradient, ["f32[3]", "f32[3]"], "f32[3]", directory=tmp_path, stages=stages)
    traced, transformed, fused = (next(folder.glob(f"{n}-*")).read_text() for n in (1, 2, 3))
    assert traced.count('"mx.checkpoint"() {callee = @') == 2
    assert "mx.checkpoint" not in transformed and "call" not in transformed
    assert '"mx.depends"(' in transformed and "mx.depends" not in fused


# -- depends ---------------------------------------------------------------------------------------------------------
def test_depends_is_transparent_to_jvp_and_vmap() -> None:
    """Real MLX has no such rules."""
    x, y = mx.array(V), mx.array(W)
    (out,), (tangent,) = mx.jvp(lambda x, y: mx.depends(x * 2, y), [x, y], [y, x])
    assert value(out) == (V * 2).tolist() and value(tangent) == (W * 2).tolist()
    for axes in ((0, 0), (0, None), (None, 0)):
        mapped = mx.vmap(lambda x, y: mx.depends(x, y) * 2, in_axes=axes)(mx.array(M), mx.array(M))
        expected = np.broadcast_to(M * 2, (3, 3, 4)) if axes[0] is None else M * 2
        np.testing.assert_array_equal(np.array(mapped), expected)


@pytest.mark.parametrize("arguments", [(3, V), (V, 3), ({"a": V}, V), ("s", V), (V, None)])
def test_depends_takes_arrays(arguments: tuple) -> None:
    given = [mx.array(x) if isinstance(x, np.ndarray) else x for x in arguments]
    with pytest.raises(TypeError, match=r"\[depends\]"):
        mx.depends(*given)


def test_depends_of_nothing_is_nothing() -> None:
    assert mx.depends([], mx.array(V)) == []  # real MLX crashes
