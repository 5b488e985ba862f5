"""Threads: tracing state is per thread; one compiled function may be called from many. Each test is bounded in time."""

import contextlib
import os
import threading

import numpy as np
import pytest
from counting import Counter, value

import mlxir as mx
from mlxir import compilation
from mlxir.compiler import cache, evaluate
from mlxir.runtime import launch

THREADS = 6
SECONDS = 60

a = mx.array


def together(*works):
    """Run the functions at once, each on a thread of its own; raises what the first failing one raised."""
    barrier = threading.Barrier(len(works))
    failures = []

    def run(work):
        try:
            barrier.wait(SECONDS)
            work()
        except BaseException as error:  # noqa: BLE001 (handed to the test's thread)
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def test_one_function_from_many_threads_is_traced_once_per_signature():
    f = Counter(lambda x, k: mx.sum(mx.exp(x) * k, axis=-1))
    g = mx.compile(f)

    def work():
        for n in (3, 5, 3, 7, 5):
            for k in (1.0, 2.0):
                x = np.arange(2 * n, dtype=np.float32).reshape(2, n) / 8
                np.testing.assert_allclose(np.array(g(a(x), k)), np.exp(x).sum(-1) * k, rtol=1e-5)

    together(*[work] * THREADS)
    info = g.cache_info()
    assert (f.runs, info.misses, info.entries) == (6, 6, 6) and info.hits == THREADS * 10 - 6


def test_one_executable_is_compiled_for_all_threads():
    mx.clear_compile_cache()
    before = mx.compile_cache_info()
    found = []

    def work():
        found.append(value(mx.compile(lambda x: mx.sum(x * 7.125))(a([1.0, 2.0]))))

    together(*[work] * THREADS)
    after = mx.compile_cache_info()
    assert found == [21.375] * THREADS
    assert (after.misses - before.misses, after.hits - before.hits) == (1, THREADS - 1)


def test_traces_of_different_threads_do_not_see_each_other():
    """While one thread traces, others evaluate, differentiate and compile."""
    inside, done = threading.Event(), threading.Event()

    def slow(x):
        y = mx.sin(x)
        inside.set()
        assert done.wait(SECONDS)
        return y * 2

    def other():
        assert inside.wait(SECONDS)
        try:
            assert (a(2.0) * 3).item() == 6.0  # no trace runs on this thread
            assert value(mx.grad(lambda x: x * x if x.item() > 0 else x)(a(3.0))) == 6.0
            assert value(mx.compile(lambda x: x + 1)(a(1.0))) == 2.0
            assert value(mx.vmap(lambda x: x * 2)(a([1.0, 2.0]))) == [2.0, 4.0]
        finally:
            done.set()

    g = mx.compile(slow)
    together(lambda: np.testing.assert_allclose(value(g(a(0.5))), 2 * np.sin(0.5), rtol=1e-6), other)


def test_captured_state_is_updated_by_one_call_at_a_time():
    state = {"n": a(0.0), "w": a([0.0, 0.0])}

    def step(x):
        state["n"] = state["n"] + 1
        state["w"] = state["w"] + x
        return state["n"]

    f = Counter(step)
    g = mx.compile(f, inputs=state, outputs=state)
    seen = []

    def work():
        for _ in range(20):
            seen.append(value(g(a([1.0, 2.0]))))

    together(*[work] * THREADS)
    total = THREADS * 20
    assert sorted(seen) == list(range(1, total + 1)) and f.runs == 1
    assert value(state["n"]) == total and value(state["w"]) == [total, 2 * total]


def test_shapeless_functions_and_numbers_from_many_threads():
    f = Counter(lambda x, k: mx.sum(x, axis=1) * k / x.shape[1])
    g = mx.compile(f, shapeless=True)

    def work():
        for n in range(2, 7):
            for k in (0.5, 1.5, 2.5, 3.5, 4.5):
                x = np.arange(3 * n, dtype=np.float32).reshape(3, n)
                np.testing.assert_allclose(np.array(g(a(x), k)), x.mean(1) * k, rtol=1e-5)

    together(*[work] * THREADS)
    assert f.runs == 4  # three values, then the number is an input


def test_threads_that_trace_do_not_wait_for_each_other():
    """f's trace calls g while another thread's trace of g calls f."""
    both = threading.Barrier(2)

    def meet():
        with contextlib.suppress(threading.BrokenBarrierError):  # only the first trace of each meets the other
            both.wait(2)

    def fun(x):
        meet()
        return (g(a(2.0)) if x.dtype == mx.float32 else x) * x

    def gun(x):
        meet()
        return f(a(3)) + x

    f, g = mx.compile(fun), mx.compile(gun)
    results = {}
    together(lambda: results.update(f=value(f(a(1.0)))), lambda: results.update(g=value(g(a(2.0)))))
    assert results == {"f": 11.0, "g": 11.0}


def test_a_lazy_array_is_evaluated_by_many_threads():
    for _ in range(20):
        x = mx.sum(mx.exp(mx.arange(8) * 0.25)) + mx.arange(3)
        found = []
        together(*[lambda: found.append(value(x * 2))] * THREADS)  # noqa: B023
        assert found == [found[0]] * THREADS and len(found[0]) == 3


@pytest.mark.parametrize("shapeless", [False, True])
def test_hammer(shapeless):
    """Compiled, differentiated, mapped and eager code at once, random keys per thread."""

    def loss(w, x):
        return mx.mean(mx.tanh(x @ w) ** 2)

    step = mx.compile(mx.value_and_grad(loss), shapeless=shapeless)
    rows = mx.compile(mx.vmap(lambda r: mx.softmax(r)), shapeless=shapeless)
    draw = mx.compile(lambda: mx.random.uniform(shape=(2,)), inputs=mx.random.state, outputs=mx.random.state)

    def work(seed):
        rng = np.random.default_rng(seed)
        mx.random.seed(seed)
        drawn = [value(draw()) for _ in range(3)]
        mx.random.seed(seed)
        assert drawn == [value(mx.random.uniform(shape=(2,))) for _ in range(3)]
        for n in (2, 4, 3, 4, 2):
            w, x = rng.standard_normal((4, 3)).astype(np.float32), rng.standard_normal((n, 4)).astype(np.float32)
            got, gradient = step(a(w), a(x))
            t = np.tanh(x @ w)
            np.testing.assert_allclose(value(got), (t**2).mean(), rtol=1e-4)
            np.testing.assert_allclose(np.array(gradient), x.T @ (2 * t * (1 - t**2) / t.size), rtol=1e-3, atol=1e-5)
            e = np.exp(x - x.max(1, keepdims=True))
            np.testing.assert_allclose(np.array(rows(a(x))), e / e.sum(1, keepdims=True), rtol=1e-5)
            y = a(x) * seed + 1
            mx.eval(y)
            np.testing.assert_allclose(np.array(y), x * seed + 1, rtol=1e-6)

    together(*[lambda seed=seed: work(seed) for seed in range(THREADS)])


def test_caches_are_cleared_while_another_thread_makes_functions(monkeypatch):
    made = [mx.compile(lambda x: x)]

    class Growing(dict):
        """Another thread takes its turn between two entries."""

        def items(self):
            for item in super().items():
                yield item
                made.append(mx.compile(lambda x: x))

    monkeypatch.setattr(compilation._caches, "data", Growing(compilation._caches.data))
    g = mx.compile(lambda x: x + 1)
    g(a([1.0]))
    mx.clear_compile_cache()
    assert g.cache_info().entries == 0


def test_a_destructor_may_compute_inside_any_lock():
    """One that a collection runs while this thread is in the compiler's tables."""
    g = mx.compile(lambda x: mx.sum(x) * 3.0625)
    for lock in (cache._lock, cache.compiling, evaluate._lock, launch._linking, launch._starting):
        with lock:
            watch = threading.Timer(SECONDS, os._exit, (1,))  # what hangs here would hang for ever
            watch.start()
            mx.clear_compile_cache()
            assert value(g(a([1.0, 2.0]))) == 9.1875 and mx.compile_cache_info().entries > 0
            watch.cancel()
