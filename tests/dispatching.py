"""Helpers of the tests of native calls."""

import gc
import sys
import tracemalloc

import mlxir as mx
from mlxir.compilation import _caches
from mlxir.runtime.buffers import Buffer, pool
from mlxir.runtime.dtypes import float32


def a(*shape, dtype=mx.float32):
    return mx.ones(shape, dtype)


def served(f):
    """How many calls of a compiled function native code has served."""
    return _caches[f].served.value


def warm(f, *args, **kwargs):
    """Call until there is a plan."""
    for _ in range(5):
        f(*args, **kwargs)
    assert served(f), "no plan was made"
    return f


def stepper(n=3):
    layers = [{"w": mx.full((4,), float(i)), "b": mx.zeros(2)} for i in range(n)]
    state = {"layers": layers, "step": mx.array(0), "k": 1}
    mx.eval(state)

    def step(x):
        for layer in state["layers"]:
            layer["w"] = layer["w"] + x
        state["step"] = state["step"] + 1
        return state["step"] * 10

    return state, mx.compile(step, inputs=state, outputs=state)


def counts():
    gc.collect()
    common = (None, True, False, mx.array, Buffer, float32, dict, list, tuple, 0, pool)
    return [sys.getrefcount(x) for x in common], len(gc.get_objects())


def assert_steady(call, times=10_000):
    for _ in range(50):
        call()
    (before, objects), active = counts(), mx.get_active_memory()
    tracemalloc.start()
    for _ in range(100):
        call()
    gc.collect()
    first, _ = tracemalloc.get_traced_memory()
    for _ in range(times):
        call()
    gc.collect()
    last, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    after, now = counts()
    assert all(y - x < 50 for x, y in zip(before, after, strict=True)), (before, after)
    assert now - objects < 50 and last - first < 20_000 and mx.get_active_memory() <= active
