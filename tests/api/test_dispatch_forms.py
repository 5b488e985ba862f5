"""What calls that native code serves may be given besides arrays in trees: keywords, numbers, methods, arrays that are
not evaluated, objects of registered classes.
"""

import copy
import dataclasses
import functools
import gc
import inspect
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
from dispatching import a, assert_steady, served, stepper, warm

import mlxir as mx
from mlxir.compilation import _caches
from mlxir.native import native_functions

pytestmark = pytest.mark.skipif(native_functions() is None, reason="native code does not serve this interpreter")


def test_keywords():
    f = mx.compile(lambda x, *, scale=1, y: x * scale + y)
    x, y = a(2), a(2)
    mx.eval(x, y)
    warm(f, x, scale=3, y=y)
    before = served(f)
    assert f(x, scale=3, y=y).tolist() == [4, 4] and served(f) == before + 1
    assert f(x, y=y, scale=3).tolist() == [4, 4] and f(x, scale=4, y=y).tolist() == [5, 5] and served(f) == before + 1
    with pytest.raises(TypeError):
        f(x)


def test_keywords_by_other_ways():
    class Name(str):
        pass

    f = mx.compile(lambda x, k=1: x + k)
    x = a(2)
    mx.eval(x)
    warm(f, x, k=2)
    before = served(f)
    assert f(*(x,), **{"k": 2}).tolist() == functools.partial(f, x)(k=2).tolist() == [3, 3] and served(f) == before + 2
    assert f(x, **{Name("k"): 2}).tolist() == [3, 3] and f(x).tolist() == [2, 2] and served(f) == before + 2
    for wrong in ({"k": 2, "j": 1}, {"j": 2}):
        with pytest.raises(TypeError):
            f(x, **wrong)
    with pytest.raises(TypeError):
        f(x, 2, k=2)


def test_floats_are_told_apart_by_their_bits():
    x = mx.array([1.0, -1.0])
    for k, first in ((0.0, np.inf), (-0.0, -np.inf), (float("nan"), np.nan)):
        f = mx.compile(lambda x, k: (x / k, repr(k)))
        warm(f, x, k)
        for same in (k, float(repr(k))):
            before = served(f)
            y, text = f(x, same)
            assert served(f) == before + 1 and text == repr(k)
            assert np.array_equal(y.tolist(), [first, -first], equal_nan=True)
        before = served(f)
        assert [f(x, k)[1] for k in (0, 0.5, -k)] == ["0", "0.5", repr(-k)] and served(f) == before


def test_numbers_that_are_inputs():
    f = mx.compile(lambda x, rate, n: x * (rate * 2) + n)
    x = a(2)
    mx.eval(x)
    for i in range(1, 20):
        assert f(x, i / 4, 1).tolist() == [i / 2 + 1] * 2
    assert served(f) >= 8 and f.cache_info().misses <= 5
    before = served(f)
    assert f(x, 0.0, 1).tolist() == [1, 1] and np.isnan(f(x, float("nan"), 1).tolist()).all()
    assert served(f) == before + 2
    assert f(x, 3, 1).tolist() == [7, 7] and served(f) == before + 2  # an int is another signature


def test_numbers_on_which_a_trace_depends():
    f = mx.compile(lambda x, k: x * k if k < 10 else x - k)
    x = a(2)
    mx.eval(x)
    for k in [*range(1, 9), 11, 12, 3, 4, 13, 5, 14, 6, 7, 15, 16]:
        assert f(x, float(k)).tolist() == [k if k < 10 else 1 - k] * 2


def test_numbers_become_inputs_while_another_thread_gets_its_plan(monkeypatch):
    """An entry's plan takes for inputs what was one when the entry was made."""
    f = mx.compile(lambda x, k: x * k)
    cache, x = _caches[f], a(2)
    mx.eval(x)
    for _ in range(3):
        f(x, 1.0)
    before = cache.plan

    def meanwhile(*arguments):
        for k in (2.0, 3.0, 4.0, 5.0):  # now k is an input
            f(x, k)
        return before(*arguments)

    monkeypatch.setattr(cache, "plan", meanwhile)
    f(x, 1.0)
    monkeypatch.undo()
    for k in (1.0, 6.0, 7.0, 1.0):
        assert f(x, k).tolist() == [k, k]


def test_references_of_numbers_do_not_drift():
    f = mx.compile(lambda x, r: x * r)
    x = a(2)
    numbers = iter(range(1, 10**6))
    for _ in range(12):
        f(x, float(next(numbers)))
    assert served(f)
    assert_steady(lambda: f(x, float(next(numbers))), 3000)


def test_methods():
    class Model:
        @mx.compile
        def double(self, x):
            return x * 2

    class Layer(dict):
        @mx.compile
        def __call__(self, x):
            return x * self["w"]

    layer, x = Layer(w=a(2) + 1), a(2)
    mx.eval(layer, x)
    before = sys.getrefcount(layer)
    for _ in range(6):
        assert layer(x).tolist() == layer.__call__(x).tolist() == Layer.__call__(layer, x).tolist() == [2, 2]
    assert served(Layer.__call__) == 14 and sys.getrefcount(layer) == before
    with pytest.raises(ValueError, match="trees of arrays"):
        Model().double(x)


def test_compiled_functions_are_functions():
    def scale(x, k: int = 2):
        """Times k."""
        return x * k

    f = mx.compile(scale)
    f.note = 1
    assert (f.__name__, f.__doc__, f.__module__, f.__wrapped__, f.note) == ("scale", "Times k.", __name__, scale, 1)
    assert callable(f) and str(inspect.signature(f)) == "(x, k: 'int' = 2)".replace("'", "") and "scale" in repr(f)
    assert copy.copy(f) is f and copy.deepcopy({"f": f})["f"] is f and weakref.ref(f)() is f
    assert pickle.loads(pickle.dumps(mx.eval)) is mx.eval and mx.eval.__name__ == "eval"
    gone = weakref.ref(f)
    f.me = f
    del f
    gc.collect()
    assert gone() is None


def test_arguments_that_are_not_evaluated():
    f = mx.compile(lambda x, t, k: x + t["y"] * k)
    x, y = a(2), a(2)
    mx.eval(x, y)
    warm(f, x, {"y": y}, 2)
    for i in range(12):
        before = served(f)
        z = x * 2 + i
        assert f(z, {"y": y + 1}, 2).tolist() == [6 + i] * 2 and z._value.node is None
        assert f(z + z, {"y": z}, 2).tolist() == [4 * (2 + i)] * 2
        late = y * 3
        assert f(late, {"y": late}, 2).tolist() == [9, 9] and served(f) == before + 3
    before = served(f)
    assert f(x + 1, {"y": y}, 3).tolist() == [5, 5] and f(mx.ones(3) + 1, {"y": a(1)}, 2).tolist() == [4] * 3
    assert served(f) == before


def test_state_that_is_not_evaluated():
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    warm(step, x)
    before, n = served(step), state["step"].item()
    for i in range(8):
        state["layers"][1]["w"] = state["layers"][1]["w"] * 0 + i
        assert step(x * 1).item() == 10 * (n + i + 1) and state["layers"][1]["w"].tolist() == [i + 1] * 4
    assert served(step) == before + 8


def test_arguments_that_cannot_be_evaluated():
    f, x, leaked = mx.compile(lambda x: x + 1), a(2), []
    warm(f, x)
    mx.compile(lambda x: leaked.append(x * 2) or x)(x)
    before = sys.getrefcount(leaked[0]._value)
    for _ in range(20):
        with pytest.raises(RuntimeError, match="without a primitive"):
            f(leaked[0])
    assert sys.getrefcount(leaked[0]._value) - before < 3 and f(x).tolist() == [2, 2]


def test_references_of_late_arguments_do_not_drift():
    f, x = mx.compile(lambda x, k: {"y": x * 2, "x": x, "k": k}), a(3)
    mx.eval(x)
    warm(f, x, k=x)
    state, step = stepper()
    warm(step, a(4))
    assert_steady(lambda: (f(x * 2, k=x + 1), step(state["layers"][2]["w"] + 1)), 2000)


# -- objects of registered classes ------------------------------------------------------------------------------------
class Fragile:
    """A registered container that cannot be put together at will."""

    broken = False

    def __init__(self, x):
        self.x = x


def unflatten(auxiliary, children):
    if Fragile.broken:
        raise KeyError("broken")
    return Fragile(*children)


mx.register_tree_node(Fragile, lambda f: ([f.x], None), unflatten)


def test_errors_come_through(monkeypatch):
    f = mx.compile(lambda x: [Fragile(x + 1), x])
    x = a(2)
    mx.eval(x)
    warm(f, x)
    monkeypatch.setattr(Fragile, "broken", True)
    before = sys.getrefcount(x._value)
    for _ in range(100):
        with pytest.raises(KeyError, match="broken"):
            f(x)
    assert sys.getrefcount(x._value) - before < 5  # the last error holds what its frames do
    monkeypatch.setattr(Fragile, "broken", False)
    assert f(x)[0].x.tolist() == [2, 2]


def test_errors_of_calls_in_turn_let_the_next_one_begin():
    state, x = {"w": a(2)}, a(2)
    f = mx.compile(lambda x: Fragile(x + state["w"]), inputs=state, outputs=state)
    mx.eval(state, x)
    warm(f, x)
    Fragile.broken = True
    with pytest.raises(KeyError, match="broken"):
        f(x)
    Fragile.broken = False
    found = []
    thread = threading.Thread(target=lambda: found.append(f(x).x.tolist()))
    thread.start()
    thread.join(10)
    assert found == [[2, 2]]


@mx.register_dataclass(meta_fields=["kind"])
@dataclasses.dataclass
class Params:
    w: mx.array
    b: list
    kind: str = "linear"


def test_objects_of_registered_classes():
    f = mx.compile(lambda p, x: Params(p.w * x, p.b, p.kind + "!"))
    x, y = a(2), a(3)
    mx.eval(x, y)
    warm(f, Params(x, [y]), x)
    before = served(f)
    out = f(Params(x, [y]), x + 1)
    assert out.w.tolist() == [2, 2] and out.b[0].tolist() == [1] * 3 and out.kind == "linear!"
    assert served(f) == before + 1
    assert f(Params(x, [y], "other"), x).kind == "other!" and f(Params(x, [y, y]), x).b[1].tolist() == [1] * 3
    assert f(Params(y, [y]), y).w.tolist() == [1] * 3 and served(f) == before + 1
    p = Params(x, [y])
    assert_steady(lambda: (f(p, x), f(Params(x, [x]), x)), 1000)


def test_objects_that_cannot_be_taken_apart():
    f, x = mx.compile(lambda p: p.x + 1), a(2)
    mx.eval(x)
    p = warm(f, Fragile(x)) and Fragile(x)
    before = sys.getrefcount(p)
    del p.x
    for _ in range(10):
        with pytest.raises(AttributeError):
            f(p)
    assert sys.getrefcount(p) - before < 3 and f(Fragile(x)).tolist() == [2, 2]
