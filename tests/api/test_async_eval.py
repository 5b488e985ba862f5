"""async_eval overlaps with Python, errors surface where results are read, threads may share graphs (BEHAVIOUR 2)."""

import os
import threading

import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import evaluate as evaluation


class Gate:
    """Holds the evaluations of the worker thread back until it is opened."""

    def __init__(self, monkeypatch):
        self.open, self.began = threading.Event(), threading.Event()
        run, caller = evaluation._run, threading.get_ident()

        def held(program, arguments):
            if threading.get_ident() != caller:
                self.began.set()
                assert self.open.wait(20)
            return run(program, arguments)

        monkeypatch.setattr(evaluation, "_run", held)


def test_async_eval_returns_before_completion(monkeypatch):
    gate = Gate(monkeypatch)
    x = mx.array([1.0, 2.0])
    y = x * 2
    mx.async_eval(y, [y])
    assert gate.began.wait(20) and not gate.open.is_set()
    z = y + 1  # the graph goes on
    mx.async_eval(z)
    other = mx.sum(x * 5)
    assert other.item() == 15  # what does not depend on it does not wait
    threading.Timer(0.05, gate.open.set).start()
    assert z.tolist() == [3, 5] and y.tolist() == [2, 4]  # reads wait
    mx.synchronize()


def test_eval_waits_for_async_eval(monkeypatch):
    gate = Gate(monkeypatch)
    y = mx.array([1.0, 2.0]) * 2
    mx.async_eval(y)
    threading.Timer(0.05, gate.open.set).start()
    mx.eval(y)
    assert gate.open.is_set() and mx.compile(lambda y: y + 1)(y).tolist() == [3, 5]


def test_errors_surface_where_results_are_read_and_at_synchronize(monkeypatch):
    def fails(program, arguments):
        raise RuntimeError("[test] the step failed")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "_run", fails)
        y = mx.array([1.0]) * 2
        mx.async_eval(y)
        z = y + 1
        for read in (lambda: y.item(), lambda: mx.eval(y), mx.synchronize):
            with pytest.raises(RuntimeError, match="the step failed"):
                read()
    mx.synchronize()  # said once
    with pytest.raises(RuntimeError, match="the step failed"):
        z.item()


def test_async_eval_of_leaked_placeholders():
    box = []
    mx.vmap(lambda x: (box.append(x * 2), x)[1])(mx.array([1.0]))
    with pytest.raises(RuntimeError, match=r"^\[eval\]"):
        mx.async_eval(box[0])


def test_async_eval_of_what_depends_on_no_tracer():
    c = mx.array([1.0, 2.0])

    def f(x):
        y = c * 2
        mx.async_eval(y, c)
        return mx.sum(x * y)

    assert mx.grad(f)(c).tolist() == [2, 4] and mx.vmap(lambda x: f(x))(c).tolist() == [6, 12]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_worker_of_its_own():
    y = mx.array([1.0]) * 2
    mx.async_eval(y)
    mx.synchronize()
    child = os.fork()
    if child == 0:
        z = mx.array([2.0]) * 3
        mx.async_eval(z)
        os._exit(0 if z.item() == 6 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_eval_lets_other_threads_run():
    """Compiled code runs without the GIL: another thread counts meanwhile."""
    x = mx.array(np.random.default_rng(0).standard_normal((700, 700)).astype(np.float32))
    product = mx.compile(lambda x: (x @ x @ x @ x @ x @ x) * 1e-6)
    mx.eval(product(x))
    stop, count = threading.Event(), [0]

    def counting():
        while not stop.is_set():
            count[0] += 1

    thread = threading.Thread(target=counting)
    thread.start()
    before = count[0]
    mx.eval(product(x))
    during = count[0] - before
    stop.set()
    thread.join()
    assert during > 100


def test_threads_may_evaluate_the_same_graph():
    for _ in range(20):
        x = mx.array(np.arange(64, dtype=np.float32))
        shared = [x]
        for i in range(20):
            shared.append(mx.sin(shared[-1]) + shared[i // 2])
        found, errors = [], []

        def work(values=shared, found=found, errors=errors):
            try:
                found.append(np.array(mx.sum(mx.stack(values))))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not errors
        np.testing.assert_allclose(found, found[0], rtol=1e-5)  # the tiers round differently
