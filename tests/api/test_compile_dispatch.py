"""The short path of compiled calls (`signatures.recogniser`) serves equal signatures and leaves all others alone."""

import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime.buffers import SHARED, allocator, pool
from mlxir.runtime.dtypes import float32
from mlxir.signatures import recogniser


def a(*shape, dtype=mx.float32):
    return mx.ones(shape, dtype)


class Named(dict):
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
    "no array": (Proxy(a(3)), *ARGUMENTS[1:]),
    "NumPy": (np.ones(3, np.float32), *ARGUMENTS[1:]),
    "names": (a(3), {"w": a(2), "c": [a(1), (a(4), None)]}, *ARGUMENTS[2:]),
    "order": (a(3), {"b": [a(1), (a(4), None)], "w": a(2)}, *ARGUMENTS[2:]),
    "more names": (a(3), {"w": a(2), "b": [a(1), (a(4), None)], "c": a(1)}, *ARGUMENTS[2:]),
    "kind of dict": (a(3), Named(ARGUMENTS[1]), *ARGUMENTS[2:]),
    "list for tuple": (a(3), {"w": a(2), "b": [a(1), [a(4), None]]}, *ARGUMENTS[2:]),
    "longer list": (a(3), {"w": a(2), "b": [a(1), (a(4), None), a(1)]}, *ARGUMENTS[2:]),
    "int for float": (*ARGUMENTS[:2], 2.0, *ARGUMENTS[3:]),
    "int for bool": (*ARGUMENTS[:4], 1, *ARGUMENTS[5:]),
    "number": (*ARGUMENTS[:2], 3, *ARGUMENTS[3:]),
    "text": (*ARGUMENTS[:3], "gelu", *ARGUMENTS[4:]),
    "not evaluated": (a(3) + 1, *ARGUMENTS[1:]),
}


@pytest.fixture
def recognise():
    mx.eval(ARGUMENTS)
    return recogniser(ARGUMENTS)


def test_equal_signatures_are_recognised(recognise):
    buffers = recognise(ARGUMENTS)
    assert [b.shape for b in buffers] == [(3,), (2,), (1,), (4,)]


@pytest.mark.parametrize("name", UNLIKE)
def test_other_signatures_are_not(recognise, name):
    if name != "not evaluated":
        mx.eval([x for x in UNLIKE[name] if isinstance(x, (mx.array, dict))])
    assert recognise(UNLIKE[name]) is None


@pytest.mark.parametrize("odd", [0.0, -0.0, float("nan"), np.ones(1), Named(x=1)], ids=str)
def test_there_is_none_for_arguments_out_of_the_ordinary(odd):
    assert recogniser((odd,)) is None


def test_repeated_calls_give_what_the_first_gives():
    f = mx.compile(lambda x, t, k: {"y": x * k, "z": [v + 1 for v in t.values()], 3: "text"})
    for i in range(8):
        for n in (2, 3):
            out = f(mx.full((n,), float(i)), {"u": mx.full((n,), 1.0), "v": mx.full((300,), 2.0)}, 5)
            assert out["y"].tolist() == [5.0 * i] * n and list(out) == ["y", "z", 3] and out[3] == "text"
            assert [z.tolist() for z in out["z"]] == [[2.0] * n, [3.0] * 300]
    assert f.cache_info().misses == 2 and f.cache_info().hits == 14


def test_switching_off_and_tracing_come_before_the_short_path():
    calls = []
    f = mx.compile(lambda x: calls.append(1) or mx.sin(x))
    x = mx.array([0.5])
    for _ in range(6):
        f(x)
    assert len(calls) == 1
    assert mx.grad(lambda x: f(x).sum())(x).tolist() == pytest.approx([np.cos(0.5)])
    calls.clear()
    with mx.disable_compile():
        f(x)
    assert len(calls) == 1


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
