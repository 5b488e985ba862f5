"""custom_function (BEHAVIOUR section 10): rules under every transform, against real MLX where it is right."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as real
import numpy as np
import pytest
from counting import Counter, value
from oracle import assert_agree, assert_same

import mlxir as mx

V = np.array([1.0, 2.0, 3.0], np.float32)
W = np.array([0.5, -1.0, 4.0], np.float32)
M = np.arange(12, dtype=np.float32).reshape(3, 4) / 4

# Rules that are no derivatives of the function: a result says which of them was used.
RULES: dict[str, Callable] = {
    "vjp": lambda p, c, o: c * 10 * p,
    "jvp": lambda p, t: t * 100 * p,
    "vmap": lambda i, axis: (i * 7, axis),
}


def marked(m: Any, *kinds: str) -> Any:
    """x -> 3 x with these rules."""
    f = m.custom_function(lambda x: x * 3)
    for kind in kinds:
        getattr(f, kind)(RULES[kind])
    return f


def two(m: Any) -> Any:
    """(x, y) -> (x y, x + y) with a vjp rule that uses everything it is given."""
    f = m.custom_function(lambda x, y: (x * y, x + y))
    return f.vjp(lambda p, c, o: (c[0] * o[1] + p[1], c[1] * o[0] * p[0]))


def tree(m: Any) -> Any:
    f = m.custom_function(lambda d, k: {"out": [d["a"] * k, d["b"]]})
    return f.vjp(lambda p, c, o: ({"a": c["out"][0] * 5, "b": c["out"][1] * o["out"][0]}, None))


def exponential(m: Any) -> Any:
    return m.custom_function(lambda x: m.exp(x)).vjp(lambda x, c, o: c * o)


def positional(m: Any) -> Any:
    f = m.custom_function(lambda x, k, y: x * k * y)
    f.jvp(lambda p, t: sum(d * 9 for d in t if d is not None))
    return f.vmap(lambda i, axes: (i[0] * (1 if axes[2] is None else 2) * i[1], axes[0]))


CASES: dict[str, Callable[[Any], Any]] = {
    "call": lambda m: marked(m, "vjp", "jvp", "vmap")(m.array(V)),
    "grad": lambda m: m.grad(marked(m, "vjp", "jvp", "vmap"))(m.array(2.0)),
    "jvp": lambda m: m.jvp(marked(m, "vjp", "jvp", "vmap"), [m.array(V)], [m.array(W)]),
    "vmap": lambda m: m.vmap(marked(m, "vjp", "jvp", "vmap"))(m.array(V)),
    "grad without its rule": lambda m: m.grad(lambda x: marked(m, "jvp", "vmap")(x).sum())(m.array(V)),
    "jvp without its rule": lambda m: m.jvp(marked(m, "vjp", "vmap"), [m.array(V)], [m.array(W)]),
    "vmap without its rule": lambda m: m.vmap(marked(m, "vjp", "jvp"))(m.array(V)),
    "grad of grad": lambda m: m.grad(m.grad(marked(m, "vjp")))(m.array(2.0)),
    "third derivative": lambda m: m.grad(m.grad(m.grad(exponential(m))))(m.array(0.5)),
    "jvp of grad": lambda m: m.jvp(m.grad(marked(m, "vjp", "jvp")), [m.array(2.0)], [m.array(1.0)]),
    "jvp of jvp": lambda m: m.jvp(lambda x: m.jvp(marked(m, "jvp"), [x], [x])[1], [m.array(V)], [m.array(W)]),
    "jvp of value_and_grad": lambda m: m.jvp(
        lambda x: list(m.value_and_grad(marked(m, "vjp", "jvp"))(x)), [m.array(2.0)], [m.array(1.0)]),
    "vmap of grad": lambda m: m.vmap(m.grad(marked(m, "vjp", "vmap")))(m.array(V)),
    "vmap of jvp": lambda m: m.vmap(lambda x: m.jvp(marked(m, "jvp", "vmap"), [x], [x])[1][0])(m.array(V)),
    "grad of vmap uses the vmap rule": lambda m: m.grad(
        lambda x: m.vmap(marked(m, "vjp", "vmap"))(x).sum())(m.array(V)),
    "vmap of vmap": lambda m: m.vmap(m.vmap(marked(m, "vmap")))(m.array(M)),
    "vmap over the last axis": lambda m: m.vmap(
        m.custom_function(lambda x: x * 3).vmap(lambda x, axis: (x + axis, axis)), in_axes=1, out_axes=1)(m.array(M)),
    "axes": lambda m: m.vmap(positional(m), in_axes=(0, None, 0))(m.array(M), m.array(2.0), m.array(M)),
    "several": lambda m: m.vjp(two(m), [m.array(V), m.array(W)], [m.array(W), m.array(V)]),
    "unused output": lambda m: m.grad(lambda x, y: two(m)(x, y)[0].sum(), argnums=(0, 1))(m.array(V), m.array(W)),
    "trees": lambda m: m.grad(lambda d: tree(m)(d, 2)["out"][0].sum())({"a": m.array(V), "b": m.array(W)})["a"],
    "tangents of some": lambda m: m.jvp(lambda x: positional(m)(x, 2, m.array(W)), [m.array(V)], [m.array(W)]),
    "tangent behind stop_gradient": lambda m: m.jvp(
        lambda x: positional(m)(x, 2, m.stop_gradient(x)), [m.array(V)], [m.array(W)]),
    "closure is constant": lambda m: m.grad(
        lambda w: m.custom_function(lambda x: x * w).vjp(lambda p, c, o: c * w * 2)(w * 2))(m.array(3.0)),
    "closure without argument": lambda m: m.grad(
        lambda w: m.custom_function(lambda x: x * w).vjp(RULES["vjp"])(m.array(2.0)))(m.array(3.0)),
    "no rule differentiates closures": lambda m: m.grad(
        lambda w: m.custom_function(lambda x: x * w)(m.array(2.0)))(m.array(3.0)),
    "compile inside": lambda m: m.grad(lambda x: m.compile(marked(m, "vjp"))(x))(m.array(2.0)),
    "compile outside": lambda m: m.compile(m.grad(marked(m, "vjp")))(m.array(2.0)),
    "checkpoint inside": lambda m: m.grad(
        m.custom_function(m.checkpoint(lambda x: m.sin(x))).vjp(RULES["vjp"]))(m.array(2.0)),
    "checkpoint outside": lambda m: m.grad(m.checkpoint(lambda x: marked(m, "vjp")(m.sin(x))))(m.array(2.0)),
    "rule with transforms": lambda m: m.grad(
        m.custom_function(lambda x: x * 3).vjp(lambda p, c, o: c * m.grad(lambda x: x**3)(p)))(m.array(2.0)),
    "rule with a custom function": lambda m: m.grad(
        m.custom_function(lambda x: x * 3).vjp(lambda p, c, o: marked(m, "vjp")(c) * exponential(m)(p)))(m.array(0.5)),
    "grad of a rule with a custom function": lambda m: m.grad(m.grad(
        m.custom_function(lambda x: x * 3).vjp(lambda p, c, o: c * exponential(m)(p))))(m.array(0.5)),
    "one gradient in a sequence": lambda m: m.grad(
        m.custom_function(lambda x: x * 3).vjp(lambda p, c, o: [c * 2]))(m.array(2.0)),
    "gradients of the arrays only": lambda m: m.grad(
        lambda x: m.custom_function(lambda x, k, y: x * k * y).vjp(lambda p, c, o: (c, c * 2))(x, 5, x))(m.array(2.0)),
    "kwargs": lambda m: m.grad(
        lambda x: m.custom_function(lambda x, k=1, s=None: x * k * s).vjp(
            lambda p, c, o, k=1, s=None: c * k * s)(x, k=4, s=m.array(6.0)))(m.array(2.0)),
    "mixed dtypes": lambda m: m.grad(
        lambda x: m.custom_function(lambda x, i: x * i).vjp(
            lambda p, c, o: (c * p[1], None))(x, m.array([1, 2, 3])).sum())(m.array(V)),
    "keyword and rule error": lambda m: m.vmap(lambda x: marked(m, "vmap")(x=x))(m.array(V)),
    "vmap rule that returns no pair": lambda m: m.vmap(
        m.custom_function(lambda x: x).vmap(lambda i, axis: i))(m.array(V)),
    "result that is no array": lambda m: m.custom_function(lambda x: (x, "s")).vjp(RULES["vjp"])(m.array(V)),
    "value read in the function": lambda m: m.grad(
        m.custom_function(lambda x: x * 3 if x > 1 else x).vjp(lambda p, c, o: c * 5 if o > 3 else c))(m.array(2.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_mlx(name: str) -> None:
    assert_agree(CASES[name])


@pytest.mark.parametrize("name", ["call", "grad", "jvp", "vmap", "grad of grad", "vmap of grad", "several"])
def test_agrees_when_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.runtime.knobs.knobs, "tier", "compiled")
    assert_same(CASES[name](mx), CASES[name](real))


def test_is_named_after_its_function() -> None:
    def named(x: Any, k: int = 1) -> Any:
        """What it does."""
        return x

    f = mx.custom_function(named)
    assert (f.__name__, f.__doc__, inspect.signature(f)) == ("named", "What it does.", inspect.signature(named))
    assert f.vjp(RULES["vjp"]) is f.jvp(RULES["jvp"]) is f.vmap(RULES["vmap"]) is f
    assert repr(f) == "<custom_function named with rules ['vjp', 'jvp', 'vmap']>"


# -- the keyword form (OURS) -----------------------------------------------------------------------------------------
def test_rules_may_be_keywords() -> None:
    x, v = mx.array(2.0), mx.array(V)
    rules = {f"fun_{kind}": rule for kind, rule in RULES.items()}
    for f in (mx.custom_function(lambda x: x * 3, **rules), mx.custom_function(f=lambda x: x * 3, **rules)):
        assert value(mx.grad(f)(x)) == 20 and value(mx.jvp(f, [x], [x])[1][0]) == 400
        assert value(mx.vmap(f)(v)) == (V * 7).tolist()
    assert value(mx.grad(f.vjp(lambda p, c, o: c))(x)) == 1  # a later rule replaces that of the keyword


def test_without_a_function_it_is_a_decorator() -> None:
    @mx.custom_function(fun_vjp=RULES["vjp"])
    def f(x: Any) -> Any:
        return x * 3

    assert f.__name__ == "f" and value(mx.grad(f)(mx.array(2.0))) == 20


def test_wrong_constructions() -> None:
    with pytest.raises(TypeError, match=r"\[custom_function\]"):
        mx.custom_function(3)
    with pytest.raises(TypeError, match="twice"):
        mx.custom_function(abs, f=abs)
    with pytest.raises(TypeError, match=r"\[custom vjp\]"):
        mx.custom_function(abs).vjp(3)


# -- the lines marked OURS -------------------------------------------------------------------------------------------
def test_none_is_a_zero_gradient() -> None:
    f = mx.custom_function(lambda x, y: x * y, fun_vjp=lambda p, c, o: (None, c * 2))
    gx, gy = mx.grad(lambda x, y: f(x, y).sum(), argnums=(0, 1))(mx.array(V), mx.array(W))
    assert value(gx) == [0, 0, 0] and value(gy) == [2, 2, 2]
    g = mx.custom_function(lambda d: d["a"] * d["b"][0], fun_vjp=lambda d, c, o: {"a": c, "b": None})
    found = mx.grad(lambda d: g(d).sum())({"a": mx.array(V), "b": [mx.array(W)]})
    assert value(found["a"]) == [1, 1, 1] and value(found["b"][0]) == [0, 0, 0]
    assert value(mx.grad(mx.custom_function(lambda x: x * 3, fun_vjp=lambda p, c, o: None))(mx.array(2.0))) == 0


def test_arrays_in_keywords_get_zero() -> None:
    f = mx.custom_function(lambda x, k: x * k, fun_vjp=lambda p, c, o, k: c * k)
    gx, gk = mx.grad(lambda x, k: f(x, k=k), argnums=(0, 1))(mx.array(2.0), mx.array(5.0))
    assert (value(gx), value(gk)) == (5, 0)


BAD_GRADIENTS: dict[str, Any] = {
    "one for two": lambda p, c, o: c,
    "three for two": lambda p, c, o: (c, c, c),
    "a dict": lambda p, c, o: {"x": c, "y": c},
    "nested": lambda p, c, o: ([c], c),
    "no array": lambda p, c, o: (c, 2.0),
    "wrong shape": lambda p, c, o: (c, c.sum()),
    "to be broadcast": lambda p, c, o: (c, c[:1]),
}


@pytest.mark.parametrize("name", BAD_GRADIENTS)
def test_a_wrong_vjp_rule_is_named(name: str) -> None:
    def my_rule(p: Any, c: Any, o: Any) -> Any:
        return BAD_GRADIENTS[name](p, c, o)

    f = mx.custom_function(lambda x, y: x * y, fun_vjp=my_rule)
    with pytest.raises(ValueError, match=r"\[custom vjp\] my_rule \(test_custom_function.py"):
        mx.grad(lambda x, y: f(x, y).sum())(mx.array(V), mx.array(W))
    assert value(f(mx.array(V), mx.array(W))) == (V * W).tolist()


def test_a_gradient_for_what_is_no_array_is_refused() -> None:
    f = mx.custom_function(lambda x, k: x * k, fun_vjp=lambda p, c, o: (c, c))
    with pytest.raises(ValueError, match="returned a gradient for a int"):
        mx.grad(lambda x: f(x, 2))(mx.array(3.0))


@pytest.mark.parametrize(
    "rule", [lambda p, t: [t, t, t], lambda p, t: t, lambda p, t: (t, t.sum()), lambda p, t: (t, 1.0)]
)
def test_a_wrong_jvp_rule_is_named(rule: Callable) -> None:
    f = mx.custom_function(lambda x: (x, x * 2), fun_jvp=rule)
    with pytest.raises(ValueError, match=r"\[custom jvp\] lambda|\[custom jvp\] <lambda>"):
        mx.jvp(lambda x: list(f(x)), [mx.array(V)], [mx.array(V)])


@pytest.mark.parametrize(
    "rule",
    [
        lambda i, a: (i, a, a), lambda i, a: [(i, i), a], lambda i, a: (i, a), lambda i, a: ((i, i), 5),
        lambda i, a: ((i, i), "0"), lambda i, a: ((i, i[:2]), a), lambda i, a: ((i, 3), a), lambda i, a: ((i, i), None),
    ],
)  # fmt: skip
def test_a_wrong_vmap_rule_raises(rule: Callable) -> None:
    f = mx.custom_function(lambda x: (x, x * 2), fun_vmap=rule)
    with pytest.raises(ValueError, match=r"\[custom vmap\]|\[tree_flatten\]"):
        mx.vmap(f)(mx.array(V))


def test_a_tangent_may_be_none() -> None:
    f = mx.custom_function(lambda x: (x, x * 2), fun_jvp=lambda p, t: (None, t * 4))
    zero, tangent = mx.jvp(lambda x: list(f(x)), [mx.array(V)], [mx.array(W)])[1]
    assert value(zero) == [0, 0, 0] and value(tangent) == (W * 4).tolist()


def test_an_unmapped_output_of_a_vmap_rule_is_repeated() -> None:
    f = mx.custom_function(lambda x: (x, x * 2), fun_vmap=lambda i, a: ((i, mx.array(5.0)), (a, None)))
    assert value(mx.vmap(f)(mx.array(V))[1]) == [5, 5, 5]


@pytest.mark.parametrize("kind", ["jvp", "vmap"])
def test_keywords_are_for_the_vjp_rule_only(kind: str) -> None:
    f = marked(mx, kind)
    with pytest.raises(ValueError, match=rf"\[custom {kind}\] .* positional arguments only"):
        if kind == "jvp":
            mx.jvp(lambda x: f(x=x), [mx.array(V)], [mx.array(V)])
        else:
            mx.vmap(lambda x: f(x=x))(mx.array(V))


@pytest.mark.parametrize("result", [(), {"a": []}])
def test_a_result_without_arrays_raises(result: Any) -> None:
    f = mx.custom_function(lambda x: result, fun_vjp=RULES["vjp"])
    with pytest.raises(ValueError, match="at least one array"):
        f(mx.array(V))
    with pytest.raises(ValueError, match="at least one array"):
        mx.grad(lambda x: f(x) or x)(mx.array(2.0))


def test_vmap_maps_the_vjp_rule() -> None:
    """Without a vmap rule `grad(vmap(f))` keeps the vjp rule; real MLX loses it."""
    f, x = marked(mx, "vjp", "jvp"), mx.array(V)
    assert value(mx.grad(lambda x: mx.vmap(f)(x).sum())(x)) == (V * 10).tolist()
    assert value(mx.vmap(mx.grad(f))(x)) == (V * 10).tolist()
    assert value(mx.jvp(mx.vmap(f), [x], [x])[1][0]) == (V * V * 100).tolist()
    assert value(mx.grad(lambda x: mx.vmap(mx.vmap(f))(x).sum())(mx.array(M))) == (M * 10).tolist()


def test_vmap_sums_the_gradient_of_what_is_not_mapped() -> None:
    f = mx.custom_function(lambda x, w: x @ w, fun_vjp=lambda p, c, o: (c @ p[1].T, mx.outer(p[0], c) * 2))
    x, w = mx.array(M), mx.array(np.ones((4, 2), np.float32))
    mapped = mx.vmap(f, in_axes=(0, None))
    gx, gw = mx.grad(lambda x, w: mapped(x, w).sum(), argnums=(0, 1))(x, w)
    np.testing.assert_allclose(np.array(gx), np.ones((3, 2)) @ np.ones((2, 4)))
    np.testing.assert_allclose(np.array(gw), 2 * M.T @ np.ones((3, 2)))


def test_a_mapped_closure_is_mapped_or_refused() -> None:
    def mapped(w: Any, rule: Callable | None) -> Any:
        return mx.custom_function(lambda x: x * w, fun_vjp=lambda p, c, o: c * w * 3, fun_vmap=rule)(w + 1)

    found = mx.vmap(mx.grad(lambda w: mapped(w, None)))(mx.array(V))
    assert value(found) == (V * 3).tolist()
    with pytest.raises(ValueError, match=r"\[custom vmap\] .* mapped, by closure"):
        mx.vmap(lambda w: mapped(w, lambda i, a: (i * w, a)))(mx.array(V))


def test_residuals_may_leave_the_function_by_closure() -> None:
    def loss(x: Any) -> Any:
        kept = []

        def fun(x: Any) -> Any:
            kept.append(mx.sin(x))
            return kept[0] * 2

        return mx.custom_function(fun, fun_vjp=lambda p, c, o: c * kept[0])(x * 2)

    assert value(mx.grad(loss)(mx.array(0.5))) == pytest.approx(2 * np.sin(1.0))
    assert value(mx.compile(mx.grad(loss))(mx.array(0.5))) == pytest.approx(2 * np.sin(1.0))


# -- when rules run --------------------------------------------------------------------------------------------------
def test_only_the_rules_in_question_are_traced() -> None:
    rules = {kind: Counter(rule) for kind, rule in RULES.items()}
    f = mx.custom_function(Counter(lambda x: x * 3), **{f"fun_{kind}": rule for kind, rule in rules.items()})

    def runs() -> tuple[int, ...]:
        return tuple(rules[kind].runs for kind in ("vjp", "jvp", "vmap"))

    x = mx.array(2.0)
    f(x)
    mx.compile(f)(x)
    mx.grad(lambda w: f(x) * w)(x)  # the argument does not depend on what is differentiated
    mx.grad(lambda w: f(mx.stop_gradient(w)) * w)(x)
    assert runs() == (0, 0, 0)
    mx.grad(f)(x)
    assert runs() == (1, 0, 0)
    mx.jvp(f, [x], [x])
    assert runs() == (1, 1, 0)
    mx.vmap(f)(mx.array(V))
    assert runs() == (1, 1, 1)


def test_an_error_of_a_rule_is_the_caller_s() -> None:
    def rule(p: Any, c: Any, o: Any) -> Any:
        raise KeyError("mine")

    f = mx.custom_function(lambda x: x * 3, fun_vjp=rule)
    with pytest.raises(KeyError, match="mine"):
        mx.grad(f)(mx.array(2.0))
    assert value(mx.grad(marked(mx, "vjp"))(mx.array(2.0))) == 20  # and the next trace is in order


def test_a_rule_reads_primals_and_outputs_and_no_cotangent() -> None:
    seen = []

    def rule(p: Any, c: Any, o: Any) -> Any:
        seen.append((p.item(), o.item()))
        return c

    f = mx.custom_function(lambda x: x * 3, fun_vjp=rule)
    assert value(mx.grad(lambda x: f(x * 2))(mx.array(2.0))) == 2 and seen == [(4, 12)]
    g = mx.custom_function(lambda x: x * 3, fun_vjp=lambda p, c, o: c if c > 0 else p)
    with pytest.raises(ValueError, match=r"\[eval\] not allowed during custom vjp"):
        mx.grad(g)(mx.array(2.0))


def test_arguments_are_copied_as_containers() -> None:
    def fun(d: dict) -> Any:
        d["w"] = d["w"] * 2
        d["new"] = d["w"]
        return d["w"]

    f, d = mx.custom_function(fun, fun_vjp=lambda p, c, o: {"w": c}), {"w": mx.array(V)}
    for _ in range(2):
        f(d)
        mx.grad(lambda d: f(d).sum())(d)
    assert list(d) == ["w"] and value(d["w"]) == V.tolist()


def test_compiled_once() -> None:
    f = marked(mx, "vjp", "vmap")
    fun = Counter(mx.value_and_grad(lambda x: mx.vmap(marked(mx, "vjp"))(x).sum() + f(x).sum()))
    compiled = mx.compile(fun)
    before = mx.compile_cache_info().misses
    for _ in range(3):
        loss, grad = compiled(mx.array(V))
        assert value(loss) == 36 and value(grad) == (V * 20).tolist()
    assert fun.runs == 1 and mx.compile_cache_info().misses == before + 1


def test_the_dump_shows_the_rules_and_then_no_transform(tmp_path: Any) -> None:
    def my_vjp(p: Any, c: Any, o: Any) -> Any:
        return c * mx.sin(p)

    f = mx.custom_function(lambda x: x * 3, fun_vjp=my_vjp)
    folder = mx.dump(mx.grad(lambda x: f(x).sum()), "f32[4]", directory=tmp_path, stages=["mx", "transformed"])
    traced, transformed = (next(folder.glob(f"{n}-*")).read_text() for n in (1, 2))
    assert '"mx.custom"() {' in traced and "fun_vjp = @my_vjp" in traced and "func.func private @my_vjp" in traced
    assert "mx.sin" in transformed and "mx.custom" not in transformed and "call" not in transformed


def test_a_rule_may_call_its_own_function():
    """As often as the call is differentiated it has a rule, and no more often: the factors tell how many were used."""

    @mx.custom_function
    def wave(x):
        return mx.sin(x)

    wave.vjp(lambda x, ct, out: 2 * ct * mx.cos(x) * (1 + 0 * wave(x)))
    wave.jvp(lambda x, t: 3 * t * (mx.cos(x) + wave(x)))
    x, one = mx.array(0.3), mx.array(1.0)
    c, s = np.cos(0.3), np.sin(0.3)
    np.testing.assert_allclose(mx.grad(wave)(x).item(), 2 * c, rtol=1e-5)
    np.testing.assert_allclose(mx.compile(mx.grad(mx.grad(wave)))(x).item(), -2 * s, rtol=1e-5)
    np.testing.assert_allclose(mx.jvp(wave, [x], [one])[1][0].item(), 3 * (c + s), rtol=1e-5)
    twice = mx.jvp(lambda x: mx.jvp(wave, [x], [one])[1][0], [x], [one])[1][0]
    np.testing.assert_allclose(twice.item(), 3 * (-s + 3 * (c + s)), rtol=1e-5)
