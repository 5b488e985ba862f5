"""Calls that native code serves (mlxir/native): equal signatures, nothing else; and nothing is lost or kept."""

import collections
import gc
import sys
import threading
import weakref

import numpy as np
import pytest
from dispatching import a, assert_steady, served, stepper, warm

import mlxir as mx
from mlxir.compilation import _caches
from mlxir.native import form, native_functions
from mlxir.runtime.buffers import SHARED, allocator, pool
from mlxir.runtime.dtypes import float32
from mlxir.runtime.knobs import knobs

pytestmark = pytest.mark.skipif(native_functions() is None, reason="native code does not serve this interpreter")


class Named(dict):
    pass


class Sub(mx.array):
    pass


class Proxy:
    """Not an array, though it has all that an array has."""

    def __init__(self, x):
        self._value = x._value


ARGUMENTS = (lambda: (a(3), {"w": a(2), "b": [a(1), (a(4), None)]}, 2, "relu", True, 0.5, {}, []))()

UNLIKE = {
    "fewer": ARGUMENTS[:-1],
    "shape": (a(4), *ARGUMENTS[1:]),
    "dtype": (a(3, dtype=mx.int32), *ARGUMENTS[1:]),
    "subclass": (Sub([1.0, 1.0, 1.0]), *ARGUMENTS[1:]),
    "names": (a(3), {"w": a(2), "c": [a(1), (a(4), None)]}, *ARGUMENTS[2:]),
    "order": (a(3), {"b": [a(1), (a(4), None)], "w": a(2)}, *ARGUMENTS[2:]),
    "more names": (a(3), {"w": a(2), "b": [a(1), (a(4), None)], "c": a(1)}, *ARGUMENTS[2:]),
    "kind of dict": (a(3), Named(ARGUMENTS[1]), *ARGUMENTS[2:]),
    "list for tuple": (a(3), {"w": a(2), "b": [a(1), [a(4), None]]}, *ARGUMENTS[2:]),
    "longer list": (a(3), {"w": a(2), "b": [a(1), (a(4), None), a(1)]}, *ARGUMENTS[2:]),
    "shorter list": (a(3), {"w": a(2), "b": [a(1)]}, *ARGUMENTS[2:]),
    "int for float": (*ARGUMENTS[:2], 2.0, *ARGUMENTS[3:]),
    "int for bool": (*ARGUMENTS[:4], 1, *ARGUMENTS[5:]),
    "number": (*ARGUMENTS[:2], 3, *ARGUMENTS[3:]),
    "text": (*ARGUMENTS[:3], "gelu", *ARGUMENTS[4:]),
}


def total(x, *rest):
    return x.sum() + len(rest)


@pytest.fixture
def f():
    mx.eval(ARGUMENTS)
    return warm(mx.compile(total), *ARGUMENTS)


def test_equal_signatures_are_served(f):
    before = served(f)
    assert float(f(*ARGUMENTS)) == float(total(*ARGUMENTS))
    assert served(f) == before + 1 and f.cache_info().misses == 1 and f.cache_info().hits == 5


@pytest.mark.parametrize("name", UNLIKE)
def test_other_signatures_are_not(f, name):
    mx.eval(UNLIKE[name])
    before = served(f)
    assert float(f(*UNLIKE[name])) == float(total(*UNLIKE[name]))
    assert served(f) == before


@pytest.mark.parametrize("odd", [np.ones(1), Proxy(a(1)), object()], ids=["NumPy", "proxy", "object"])
def test_what_is_no_argument_is_refused_as_ever(f, odd):
    with pytest.raises(ValueError, match=r"\[compile\]"):
        f(odd, *ARGUMENTS[1:])


@pytest.mark.parametrize("odd", [collections.OrderedDict(x=1), {(1, 2): 3}], ids=str)
def test_there_is_no_plan_for_arguments_out_of_the_ordinary(odd):
    f = mx.compile(lambda x, odd: x + 1)
    for _ in range(6):
        assert f(a(1), odd).tolist() == [2]
    assert not served(f)


Pair = collections.namedtuple("Pair", "x y")


def test_results_of_all_forms():
    outside = mx.array([7.0])
    f = mx.compile(lambda x, t, k: {"y": x * k, "z": [v + 1 for v in t.values()], 3: "text", "same": t["u"], "p": Pair(
        outside, (x, None)), "e": ()})  # fmt: skip
    for i in range(8):
        for n in (2, 3):
            u = mx.full((n,), 1.0)
            x = mx.full((n,), float(i))
            mx.eval(u, x)
            out = f(x, {"u": u, "v": mx.full((300,), 2.0)}, 5)
            assert out["y"].tolist() == [5.0 * i] * n and list(out) == ["y", "z", 3, "same", "p", "e"]
            assert [z.tolist() for z in out["z"]] == [[2.0] * n, [3.0] * 300] and out["same"] is not u
            assert out["same"].tolist() == [1.0] * n and type(out["p"]) is Pair and out["p"].x.tolist() == [7.0]
            assert out["p"].y[0].tolist() == [float(i)] * n and out[3] == "text" and out["e"] == ()
    assert f.cache_info().misses == 2 and f.cache_info().hits == 14


def test_plans_serve_what_is_evaluated():
    f = warm(mx.compile(lambda x: x * 2), a(3))
    before, x = served(f), a(3)
    mx.eval(x)
    assert f(f(f(x))).tolist() == [8] * 3 and served(f) == before + 3


def test_switching_off_and_tracing_come_first():
    calls = []
    x = mx.array([0.5])
    f = warm(mx.compile(lambda x: calls.append(1) or mx.sin(x)), x)
    assert len(calls) == 1
    assert mx.grad(lambda x: f(x).sum())(x).tolist() == pytest.approx([np.cos(0.5)])
    calls.clear()
    with mx.disable_compile():
        f(x)
    assert len(calls) == 1


def test_several_signatures_at_once():
    f = mx.compile(lambda x: x + 1)
    arrays = [a(n) for n in range(1, 7)]
    mx.eval(arrays)
    for _ in range(6):
        for x in arrays:
            assert f(x).tolist() == [2] * x.size
    before = served(f)
    for x in arrays[-4:] * 2:  # the last four have plans
        f(x)
    assert served(f) == before + 8
    f.cache_clear()
    assert f(arrays[0]).tolist() == [2] and f.cache_info().misses == 1


def test_switched_off_there_are_no_plans(monkeypatch):
    monkeypatch.setattr(knobs, "native", False)
    f = mx.compile(lambda x: x + 1)
    for _ in range(6):
        assert f(a(2)).tolist() == [2, 2]
    assert not served(f)


# -- captured state ---------------------------------------------------------------------------------------------------


def test_captured_state_is_read_and_written():
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    for i in range(1, 10):
        assert step(x).item() == 10 * i
        assert [layer["w"].tolist() for layer in state["layers"]] == [[j + i] * 4 for j in range(3)]
        assert state["step"].item() == i and list(state) == ["layers", "step", "k"] and state["k"] == 1
    assert served(step) >= 5
    state["layers"][1]["w"] = mx.full((4,), 100.0)
    mx.eval(state)
    step(x)
    assert state["layers"][1]["w"].tolist() == [101] * 4
    before = served(step)
    state["layers"].append({"w": mx.zeros(4), "b": mx.zeros(2)})
    mx.eval(state)
    step(x)
    assert served(step) == before and state["layers"][3]["w"].tolist() == [1] * 4


def test_arrays_that_others_hold_keep_their_data():
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    warm(step, x)
    layer = state["layers"][0]
    held, numbers = layer["w"], np.array(layer["w"])
    view = np.asarray(state["layers"][1]["w"])  # without a copy
    shared = mx.array(state["layers"][2]["w"])  # another array of the same value
    noticed = weakref.ref(state["step"])
    seen = view.copy(), np.array(shared)
    before = served(step)
    step(x)
    assert served(step) == before + 1
    assert layer["w"] is not held and np.array_equal(held, numbers) and np.array_equal(layer["w"], numbers + 1)
    assert np.array_equal(view, seen[0]) and np.array_equal(state["layers"][1]["w"], seen[0] + 1)
    assert np.array_equal(shared, seen[1]) and np.array_equal(state["layers"][2]["w"], seen[1] + 1)
    assert noticed() is None
    pool.clear()
    step(x)
    assert np.array_equal(view, seen[0])


def test_arrays_of_the_state_may_be_arguments():
    state, step = stepper()
    x = state["layers"][2]["b"]
    f = mx.compile(lambda y: y + state["step"], inputs=state)
    warm(f, x)
    assert f(x).tolist() == [0, 0]
    warm(step, state["layers"][2]["w"] * 1)


def test_the_random_state():
    draw = mx.compile(lambda: mx.random.uniform(shape=(3,)), inputs=mx.random.state, outputs=mx.random.state)
    mx.random.seed(3)
    found = [draw().tolist() for _ in range(8)]
    assert served(draw)
    mx.random.seed(3)
    assert found == [mx.random.uniform(shape=(3,)).tolist() for _ in range(8)]
    state = [{"x": a(2)}, mx.random.state]

    def step():
        state[0]["x"] = state[0]["x"] + mx.random.uniform(shape=(2,))

    mx.random.seed(5)
    f = mx.compile(step, inputs=state, outputs=state)
    for _ in range(8):
        f()
    assert served(f)
    mx.random.seed(5)
    assert state[0]["x"].tolist() == pytest.approx((1 + sum(mx.random.uniform(shape=(2,)) for _ in range(8))).tolist())


def test_state_that_is_rebuilt_is_left_to_python():
    state = {"pair": (a(1), a(1))}

    def step():
        x, y = state["pair"]
        state["pair"] = (y, x + y)

    f = mx.compile(step, inputs=state, outputs=state)
    for _ in range(8):
        f()
    assert not served(f) and [x.item() for x in state["pair"]] == [34, 55]


def test_outputs_that_are_not_the_inputs():
    read, written = {"w": a(2)}, {"w": a(2), "n": 3}

    def step(x):
        written["w"] = read["w"] + x
        return x * 2

    f = mx.compile(step, inputs=read, outputs=written)
    x = a(2)
    mx.eval(x, read, written)
    warm(f, x)
    before = served(f)
    assert f(x).tolist() == [2, 2] and written == {"w": written["w"], "n": 3} and written["w"].tolist() == [2, 2]
    assert served(f) == before + 1
    written["v"] = a(1)
    with pytest.raises(ValueError, match="another number of arrays"):
        f(x)
    assert served(f) == before + 1


# -- nothing is lost, nothing is kept ----------------------------------------------------------------------------------


def test_references_do_not_drift():
    tree = {"u": [a(3), (a(2), None)], "v": a(500)}
    shape = tree["v"].shape
    mx.eval(tree)
    f = mx.compile(lambda t, k: ({"x": t["u"][0] * k, "y": Pair(t["v"] + 1, [t["v"]])}, "text", None, t["u"][1][0]))
    warm(f, tree, 3)
    held = sys.getrefcount(shape), sys.getrefcount(tree["v"]._value)
    assert_steady(lambda: f(tree, 3))
    assert (sys.getrefcount(shape), sys.getrefcount(tree["v"]._value)) == held


def test_references_of_misses_do_not_drift():
    f = mx.compile(lambda t: t["x"] + t["y"])
    x, y, other = a(3), a(3), a(3)
    mx.eval(x, y, other)
    warm(f, {"x": x, "y": y})
    before = served(f)
    assert_steady(lambda: f({"x": x, "y": y, "z": Sub(other)}), 1000)  # a subclass, behind what is alike
    assert served(f) == before


def test_references_of_state_do_not_drift():
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    warm(step, x)
    assert_steady(lambda: step(x))
    held = []
    assert_steady(lambda: (held.clear(), held.append(state["layers"][0]["w"]), step(x)), 2000)


class Meddler:
    """Part of a cycle; when it is collected, in the middle of whatever allocates, it changes the state."""

    def __init__(self, state):
        self.state, self.me = state, self

    def __del__(self):
        layer = self.state["layers"][0]
        layer["w"] = mx.full((4,), -1.0)
        self.state["layers"][1].pop("b", None)
        self.state["layers"][1]["b"] = mx.zeros(2)
        pool.clear()


def test_collections_in_the_middle_of_a_call():
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    warm(step, x)
    before = gc.get_threshold()
    try:
        for threshold in (1, 2, 3, 5, 7, 11, 17):
            gc.set_threshold(threshold, 1, 1)
            for _ in range(60):
                Meddler(state)
                step(x)
                mx.eval(state)
                assert all(layer["w"].shape == (4,) and layer["b"].shape == (2,) for layer in state["layers"])
    finally:
        gc.set_threshold(*before)
    assert state["layers"][2]["w"].tolist() == [2 + 5 + 7 * 60] * 4


def test_threads():
    big, small = a(200, 300), a(3)
    mx.eval(big, small)
    f = mx.compile(lambda x: mx.exp(x * 0.5).sum() + x.size)
    g = mx.compile(lambda x: {"y": x * 2, "z": [x]})
    state, step = stepper()
    x = a(4)
    mx.eval(x)
    right = float(warm(f, big)(big))
    warm(g, small)
    warm(step, x)
    start = state["step"].item()
    wrong = []

    def work(n):
        for _ in range(300):
            if abs(float(f(big)) - right) > 1 or g(small)["y"].tolist() != [2] * 3:
                wrong.append(n)
            step(x)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and state["step"].item() == start + 1200


def words(f):
    return np.frombuffer(_caches[f].plans[0][0], np.uint64)


def test_long_programs_let_other_threads_run():
    small, large = mx.compile(lambda x: x + 1), mx.compile(lambda x: x + 1)
    warm(small, a(8))
    warm(large, a(1 << 16))
    assert words(small)[form.LONG] == 0 and words(large)[form.LONG] == 1
    chain = mx.compile(lambda x, w: x @ w @ w @ w)
    warm(chain, a(256, 256), a(256, 256))
    assert words(chain)[form.LONG] == 1


def test_small_results_share_blocks_that_outlive_each_of_them():
    make = allocator([((8,), float32)] * 70 + [((), float32), ((1000,), float32)])
    buffers = make()
    assert len({id(b.owner) for b in buffers[:70]}) == -(-70 * 64 // SHARED)
    assert len({id(b.owner) for b in buffers}) == -(-70 * 64 // SHARED) + 2
    assert len({b.address for b in buffers}) == 72 and all(b.address % 64 == 0 for b in buffers)
    views = [b.numpy() for b in buffers]
    for i, view in enumerate(views):
        view[...] = i
    kept = views[5]
    active = pool.active
    del buffers, views, view
    assert pool.active < active
    again = make()
    for b in again:
        b.numpy()[...] = -1
    assert kept.tolist() == [5] * 8


