"""compile: signatures, captured state, composition, switching off (BEHAVIOUR sections 8 and 9). Traces are counted."""

import enum
import functools
import gc
import inspect
import os
import sys
import threading
import weakref
from collections import namedtuple

import numpy as np
import processes
import pytest
from counting import Counter, value

import mlxir as mx

Point = namedtuple("Point", "x y")
V = np.arange(1, 5, dtype=np.float32)


class Color(enum.IntEnum):
    red = 1
    green = 2


a = mx.array


# -- signatures ------------------------------------------------------------------------------------------------------
Z = a(V)
SAME = [
    ("equal shapes", (a(V),), {}, (a(V + 1),), {}),
    ("lazy and concrete", (a(V) + 1,), {}, (a(V),), {}),
    ("constants", (Z, 2, 2.5, "s", None, True), {}, (Z, 2, 2.5, "s", None, True), {}),
    ("trees", ([Z, {"k": (Z,)}],), {}, ([a(V), {"k": (a(V),)}],), {}),
    ("keywords", (Z,), {"k": Z, "n": 3}, (Z,), {"k": a(V), "n": 3}),
    ("enum", (Z, Color.red), {}, (Z, Color.red), {}),
    ("nan", (Z, float("nan")), {}, (Z, -float("nan") * 0), {}),
]
DIFFERENT = [
    ("shape", (Z,), {}, (a(V[:2]),), {}),
    ("rank", (Z,), {}, (a(V[None]),), {}),
    ("dtype", (Z,), {}, (a(V.astype(np.float16)),), {}),
    ("count", (Z,), {}, (Z, Z), {}),
    ("int value", (Z, 2), {}, (Z, 3), {}),
    ("float value", (Z, 2.0), {}, (Z, 3.0), {}),
    ("str value", (Z, "a"), {}, (Z, "b"), {}),
    ("int and bool", (Z, 1), {}, (Z, True), {}),
    ("int and float", (Z, 1), {}, (Z, 1.0), {}),
    ("int and float of equal bits", (Z, 0), {}, (Z, 0.0), {}),
    ("zeros of two signs", (Z, 0.0), {}, (Z, -0.0), {}),
    ("None and 0", (Z, None), {}, (Z, 0), {}),
    ("enum and int", (Z, Color.red), {}, (Z, 1), {}),
    ("list and tuple", ([Z, Z],), {}, ((Z, Z),), {}),
    ("tuple and namedtuple", ((Z, Z),), {}, (Point(Z, Z),), {}),
    ("nesting", ([Z, [Z]],), {}, ([[Z], Z],), {}),
    ("dict keys", ({"a": Z},), {}, ({"b": Z},), {}),
    ("dict and list", ({0: Z},), {}, ([Z],), {}),
    ("empty containers", (Z, []), {}, (Z, {}), {}),
    ("positional and keyword", (Z, Z), {}, (Z,), {"y": Z}),
    ("keyword names", (Z,), {"k": Z}, (Z,), {"l": Z}),
    ("array and number", (Z, a(1)), {}, (Z, 1), {}),
]


def leaves_of(args, kwargs):
    return [np.array(x) if isinstance(x, mx.array) else x for x in (*args, *kwargs.values())]


@pytest.mark.parametrize(("args", "kwargs", "args2", "kwargs2"), [c[1:] for c in SAME], ids=[c[0] for c in SAME])
def test_equal_signatures_trace_once(args, kwargs, args2, kwargs2):
    f = Counter(lambda *a, **k: mx.sum(a[0] if isinstance(a[0], mx.array) else a[0][0]) * 2)
    g = mx.compile(f)
    g(*args, **kwargs), g(*args2, **kwargs2), g(*args, **kwargs)
    assert f.runs == 1 and g.cache_info()[:3] == (2, 1, 1)


@pytest.mark.parametrize(
    ("args", "kwargs", "args2", "kwargs2"), [c[1:] for c in DIFFERENT], ids=[c[0] for c in DIFFERENT]
)
def test_different_signatures_trace_again_and_old_ones_hit(args, kwargs, args2, kwargs2):
    f = Counter(lambda *a, **k: (a, k))
    g = mx.compile(f)
    for _ in range(2):
        for given, named in ((args, kwargs), (args2, kwargs2)):
            got, got_named = g(*given, **named)
            assert repr(got) == repr(given) and repr(got_named) == repr(named)
    assert f.runs == 2 and g.cache_info()[:3] == (2, 2, 2)


class Odd:
    pass


@pytest.mark.parametrize(
    "bad",
    [np.zeros(2), np.float32(1), np.int64(1), 1j, b"x", mx.float32, slice(2), ..., {1}, Odd(), len],
    ids=lambda x: type(x).__name__,
)
def test_arguments_are_arrays_or_constants(bad):
    f = Counter(lambda x, y: x)
    g = mx.compile(f)
    for args in ((Z, bad), (Z, [1, {"k": bad}])):
        with pytest.raises(
            ValueError, match=rf"^\[compile\].*trees of arrays or constants.*received type {type(bad).__name__}"
        ):
            g(*args)
    with mx.disable_compile(), pytest.raises(ValueError, match=r"^\[compile\]"):
        g(Z, bad)
    assert f.runs == 0


def test_unusual_constants_are_accepted():
    g = mx.compile(lambda x, c: x * c)
    assert value(g(a(2.0), np.float64(1.5))) == 3.0 and value(g(a(2.0), True)) == 2.0
    assert mx.compile(lambda x, c: (x, c))(Z, 2**70)[1] == 2**70


def test_what_is_not_callable():
    with pytest.raises(TypeError, match="function"):
        mx.compile(3)


def test_wrappers_own_their_entries():
    f = Counter(lambda x: x * 2)
    g, h = mx.compile(f), mx.compile(f)
    g(Z), h(Z)
    del g
    gc.collect()
    assert f.runs == 2 and h.cache_info()[:3] == (0, 1, 1)
    h(Z)
    assert f.runs == 2
    mx.clear_compile_cache()
    assert h.cache_info()[:3] == (0, 0, 0)
    h(Z)
    assert f.runs == 3
    h.cache_clear()
    h(Z)
    assert f.runs == 4
    alive = weakref.ref(f)
    del f, h
    gc.collect()
    assert alive() is None


def test_equal_programs_share_one_executable():
    mx.clear_compile_cache()
    before = mx.compile_cache_info()
    for _ in range(3):
        assert value(mx.compile(lambda x: mx.sum(x * 3.25))(Z)) == 32.5
    after = mx.compile_cache_info()
    assert (after.hits - before.hits, after.misses - before.misses, after.entries) == (2, 1, 1)


# -- results ---------------------------------------------------------------------------------------------------------
def test_results_keep_their_tree_and_their_constants():
    marker = Odd()

    def f(x, p):
        return {"y": [x * 2, (x, 3, None)], "p": Point(p["a"], "s"), "e": [[], {}], "m": marker, "c": Z}

    g = mx.compile(f)
    for x in (a(2.0), a(5.0)):
        out = g(x, {"a": x + 1})
        assert list(out) == ["y", "p", "e", "m", "c"] and type(out["p"]) is Point and out["m"] is marker
        assert (value(out["y"][0]), value(out["y"][1][0]), out["y"][1][1:]) == (2 * value(x), value(x), (3, None))
        assert value(out["p"].x) == value(x) + 1 and out["e"] == [[], {}] and value(out["c"]) == V.tolist()
    first, second = g(a(1.0), {"a": a(V)}), g(a(1.0), {"a": a(V)})
    assert first["y"] is not second["y"]


def test_results_without_computation():
    assert mx.compile(lambda x: None)(Z) is None
    assert mx.compile(lambda: 3)() == 3
    assert value(mx.compile(lambda x: x)(Z)) == V.tolist()
    assert value(mx.compile(lambda: mx.array(2.0) * 3)()) == 6.0
    g = mx.compile(lambda x, y: [y, x, x])
    assert [value(v) for v in g(a(1.0), a(2.0))] == [2.0, 1.0, 1.0] == [value(v) for v in g(a(1.0), a(2.0))]


def test_arguments_are_copied_containers():
    def f(d, items):
        assert type(d) is dict
        d["w"] = d["w"] * 2
        items.append(d["w"])
        items[0] = None
        return mx.sum(d["w"])

    d, items = {"w": a(V)}, [a(1.0)]
    w, first = d["w"], items[0]
    g = mx.compile(f)
    assert [value(g(d, items)) for _ in range(2)] == [20.0, 20.0]
    assert d["w"] is w and items == [first]


def test_in_place_updates_of_arguments_stay_inside():
    def f(x):
        x[0] = 9.0
        x += 1
        return x

    x = a(V)
    g = mx.compile(f)
    assert value(g(x)) == value(g(x)) == [10.0, 3.0, 4.0, 5.0] and value(x) == V.tolist()


def test_closures_are_frozen():
    box = [a(2.0)]
    g = mx.compile(lambda x: x * box[0])
    assert value(g(a(3.0))) == 6.0
    box[0] = a(5.0)
    assert value(g(a(3.0))) == 6.0 and value(g(a([3.0]))) == [15.0]
    lazy = a(2.0) * 4
    h = mx.compile(lambda x: x * lazy)
    assert value(h(a(1.0))) == value(h(a(1.0))) == 8.0


def test_an_uncaptured_input_is_refused():
    z = a(1.0)
    for f, kw in ((lambda x: z + x, {}), (lambda x: z, {}), (lambda x: x, {"outputs": [z]})):
        with pytest.raises(ValueError, match=r"^\[compile\].*uncaptured inputs is not allowed"):
            mx.compile(f, **kw)(z)
    with pytest.raises(ValueError, match="uncaptured inputs"):
        mx.compile(lambda x: z + x, inputs=[z])(a(2.0))


# -- errors while tracing --------------------------------------------------------------------------------------------
def test_a_trace_that_raises_leaves_no_entry():
    fail = [True]

    def f(x):
        if fail[0]:
            raise KeyError("boo")
        return x * 2

    g = mx.compile(f)
    with pytest.raises(KeyError):
        g(a(1.0))
    assert g.cache_info().entries == 0
    fail[0] = False
    assert value(g(a(1.0))) == 2.0


READS = [
    lambda x: x if x > 0 else -x,
    lambda x: x * x.item(),
    lambda x: (mx.eval(x * 2), x)[1],
    lambda x: (print(x), x)[1],
    lambda x: mx.array(np.array(x)),
]


@pytest.mark.parametrize("read", READS, ids=range(len(READS)))
def test_traced_arrays_cannot_be_read(read):
    with pytest.raises(ValueError, match=r"^\[eval\].*not allowed.*test_compile.py:\d+"):
        mx.compile(read)(a(1.0))
    with mx.disable_compile():
        mx.compile(read)(a(1.0))


def test_constants_may_be_read_while_tracing():
    z = a(3.0)
    assert value(mx.compile(lambda x: x * (z * 2).item())(a(2.0))) == 12.0


def test_a_leaked_placeholder_names_the_function():
    box = []

    def leaky(x):
        box.append(x * 2)
        return x

    mx.compile(leaky)(a(1.0))
    with pytest.raises(RuntimeError, match=r"^\[eval\].*leaky \(test_compile.py:\d+\).*inputs=, outputs="):
        mx.eval(box[0])
    with pytest.raises(RuntimeError, match="leaky"):
        mx.compile(lambda x: x + box[0])(a(1.0))


# -- composition -----------------------------------------------------------------------------------------------------
def test_transforms_of_compiled_functions_are_differentiated_through():
    f = Counter(lambda x, y: mx.sum(mx.sin(x) * y))
    g = mx.compile(f)
    for _ in range(2):
        np.testing.assert_allclose(np.array(mx.grad(g)(a(V), a(V))), np.cos(V) * V, rtol=1e-5)
    np.testing.assert_allclose(np.array(mx.vmap(g)(a(V[:, None]), a(V[:, None]))), np.sin(V) * V, rtol=1e-5)
    assert f.runs == 3 and g.cache_info().entries == 0
    np.testing.assert_allclose(np.array(mx.compile(mx.grad(g))(a(V), a(V))), np.cos(V) * V, rtol=1e-5)
    assert g.cache_info().entries == 0


def test_compiled_transforms_trace_once():
    f = Counter(lambda x: mx.sum(x * x * x))
    second = mx.compile(mx.grad(lambda x: mx.sum(mx.grad(f)(x))))
    rows = mx.compile(mx.vmap(mx.grad(f)))
    for _ in range(3):
        assert value(second(a(V))) == (6 * V).tolist()
        assert value(rows(a(V[None]))) == (3 * V * V)[None].tolist()
    assert f.runs == 2


def test_reading_values_is_fine_where_the_outer_transform_has_them():
    g = mx.compile(lambda x: x * x if x.item() > 0 else -x)
    assert value(mx.grad(g)(a(3.0))) == 6.0
    with pytest.raises(ValueError, match=r"^\[eval\]"):
        mx.compile(mx.vmap(lambda x: x if x > 0 else -x))(a(V))


def test_a_closure_over_an_outer_tracer_is_part_of_the_outer_trace():
    f = Counter(lambda y, box: None)
    assert value(mx.grad(lambda x: mx.compile(lambda y: x * y)(a(2.0)))(a(3.0))) == 2.0
    assert value(mx.vmap(lambda x: mx.compile(lambda y: (x * y, y))(a(2.0))[0])(a(V))) == (2 * V).tolist()
    box = [a(10.0)]
    f = Counter(lambda y: box[0] * y)
    g = mx.compile(f)

    def outer(x):
        box[0] = x
        return g(a(2.0))

    assert value(mx.grad(outer)(a(3.0))) == 2.0 and g.cache_info().entries == 0
    box[0] = a(10.0)
    assert value(g(a(2.0))) == 20.0 and value(g(a(2.0))) == 20.0 and f.runs == 2
    # Inside another trace, arguments that do not depend on it run at once.
    assert value(mx.grad(lambda x: x * g(a(2.0)))(a(3.0))) == 20.0 and f.runs == 2


def test_compiled_functions_inside_compiled_functions():
    inner = Counter(lambda x: x + 1)
    g = mx.compile(inner)
    outer = mx.compile(lambda x: g(x) * g(a(1.0)))
    assert value(outer(a(2.0))) == value(outer(a(2.0))) == 6.0
    assert inner.runs == 2 and g.cache_info().entries == 1


# -- shapeless -------------------------------------------------------------------------------------------------------
def test_shapeless_never_freezes_a_shape():
    g = mx.compile(lambda x: mx.reshape(x * 2, (x.shape[0] * x.shape[1], -1)), shapeless=True)
    for shape in ((2, 3, 4), (5, 1, 2), (2, 3, 4)):
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        np.testing.assert_array_equal(np.array(g(a(x))), 2 * x.reshape(shape[0] * shape[1], -1))


# -- switching off ---------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def compiling():
    mx.enable_compile()
    yield
    mx.enable_compile()


def test_the_switch_is_checked_on_each_call():
    f = Counter(lambda x: x * 2)
    g = mx.compile(f)
    g(Z), g(Z)
    assert f.runs == 1
    mx.disable_compile()
    g(Z), g(Z)
    assert f.runs == 3
    mx.enable_compile()
    g(Z)
    assert f.runs == 3


def test_the_switch_as_context_manager_nests_and_restores():
    f = Counter(lambda x: x * 2)
    g = mx.compile(f)

    def compiled():
        f.runs = 0
        g(Z), g(Z)
        return f.runs < 2

    with mx.disable_compile() as mode:
        assert not compiled() and "disabled" in repr(mode)
        with mx.enable_compile():
            assert compiled()
        assert not compiled()
    assert compiled()
    mx.disable_compile()
    with pytest.raises(KeyError), mx.enable_compile():
        assert compiled()
        raise KeyError
    assert not compiled()
    mx.enable_compile()
    context = mx.disable_compile()
    assert not compiled()
    with context:
        pass
    assert compiled()

    @mx.disable_compile()
    def decorated():
        return compiled()

    mx.enable_compile()
    assert decorated() is False


def test_decorators_partial_and_methods():
    @functools.partial(mx.compile, shapeless=False)
    def f(x, n=2):
        """Doc."""
        return x * n

    assert f.__name__ == "f" and f.__doc__ == "Doc." and value(f(a(3.0))) == 6.0 and value(f(a(3.0), n=4)) == 12.0
    g = mx.compile(functools.partial(lambda x, y: x - y, a(5.0)))
    assert value(g(a(3.0))) == 2.0


def test_the_wrapper_looks_like_the_function():
    def f(x, *, scale: float = 2.0):
        """Doc."""
        return x * scale

    g = mx.compile(f)
    assert (g.__name__, g.__qualname__, g.__doc__, g.__wrapped__) == (f.__name__, f.__qualname__, f.__doc__, f)
    assert inspect.signature(g) == inspect.signature(f)


def test_in_place_updates_of_a_closed_over_array():
    z, state = a(V), {"z": a(V)}

    def f(x):
        z[0] = x
        return z * 2

    assert value(mx.compile(f)(a(9.0))) == [18.0, 4.0, 6.0, 8.0]
    with pytest.raises(RuntimeError, match=r"^\[eval\].*f \(test_compile.py"):
        mx.eval(z)
    kept = state["z"]
    mx.compile(lambda x: state["z"].__setitem__(0, x), inputs=state, outputs=state)(a(9.0))
    assert value(state["z"]) == [9.0, 2.0, 3.0, 4.0] and value(kept) == V.tolist()


def test_reading_inside_a_compiled_gradient():
    with pytest.raises(ValueError, match=r"^\[eval\]"):
        mx.compile(mx.grad(lambda x: x * x if x > 0 else x))(a(1.0))


def test_the_switch_holds_for_all_threads():
    f = Counter(lambda x: x * 2)
    g = mx.compile(f)
    with mx.disable_compile():
        thread = threading.Thread(target=lambda: (g(Z), g(Z)))
        thread.start()
        thread.join()
    assert f.runs == 2


@pytest.mark.parametrize("setting", ["0", "1", ""])
def test_the_environment_variable(setting):
    code = (
        "import mlxir as mx; f = mx.compile(lambda x: x if x.item() > 0 else -x); print(f(mx.array(-2.0)).item());"
        "mx.enable_compile(); f(mx.array(1.0))"
    )
    environment = {**os.environ, "MLX_DISABLE_COMPILE": setting}
    done = processes.run([sys.executable, "-c", code], env=environment)
    assert done.stdout == "2.0\n" and "ValueError: [eval] not allowed during compile" in done.stderr
