"""Evaluations that are repeated without cutting the graph (compiler/evaluate.py, `Tape` in compiler/graph.py)."""

import threading

import numpy as np
import pytest

import mlxir as mx
from mlxir import varying
from mlxir.compiler import cache, evaluate
from mlxir.compiler.graph import Tape, running
from mlxir.runtime.knobs import knobs

A, B = np.arange(8, dtype=np.float32) + 1, np.linspace(-1, 1, 8, dtype=np.float32)


@pytest.fixture(autouse=True)
def compiled_at_once(monkeypatch):
    """The compiled tier, and no plan from before."""
    monkeypatch.setattr(knobs, "tier", "compiled")
    evaluate.forget()
    running.tape = Tape()


def plans():
    return len(evaluate._plans)


def test_a_repeated_evaluation_makes_no_program(monkeypatch):
    a, b = mx.array(A), mx.array(B)
    first = np.array((a * b + a) * 0.5)
    monkeypatch.setattr(evaluate, "cut", None)  # to call it would be an error
    other = mx.array(B * 3)
    np.testing.assert_array_equal(np.array((a * b + a) * 0.5), first)
    np.testing.assert_array_equal(np.array((b * other + b) * 0.5), (B * (B * 3) + B) * np.float32(0.5))
    assert plans() == 1


CASES = {
    "which leaf": (lambda a, b: a * b + a, lambda a, b: a * b + b),
    "order": (lambda a, b: a - b, lambda a, b: b - a),
    "one leaf or two": (lambda a, b: a * a, lambda a, b: a * b),
    "operation": (lambda a, b: a * b, lambda a, b: a + b),
    "constant": (lambda a, b: a * 2.0, lambda a, b: a * 3.0),
    "signed zero": (lambda a, b: 1 / (a * 0.0), lambda a, b: 1 / (a * -0.0)),
    "attribute": (lambda a, b: mx.sum(a.reshape(2, 4), axis=0), lambda a, b: mx.sum(a.reshape(2, 4), axis=1)),
    "bounds": (lambda a, b: a[::2] * b[::2], lambda a, b: a[1::2] * b[1::2]),
    "dtype": (lambda a, b: a.astype(mx.float16) + 1, lambda a, b: a.astype(mx.int32) + 1),
    "transform": (lambda a, b: mx.vmap(mx.sin)(a) + 1, lambda a, b: mx.vmap(mx.exp)(a) + 1),
    "which result": (lambda a, b: mx.divmod(a, b)[0] + 1, lambda a, b: mx.divmod(a, b)[1] + 1),
    "result": (lambda a, b: [a + b, (a + b) * a][0], lambda a, b: [a + b, (a + b) * a][1]),
}


@pytest.mark.parametrize("name", CASES)
def test_graphs_that_differ_have_plans_that_differ(name):
    a, b = mx.array(A), mx.array(B)
    with np.errstate(divide="ignore"):
        expected = [np.array(mx.compile(f)(a, b)) for f in CASES[name]]
    for _ in range(3):
        for f, right in zip(CASES[name], expected, strict=True):
            running.tape = Tape()
            np.testing.assert_array_equal(np.array(f(a, b)), right)
    assert plans() == (1 if name == "order" else 2)  # a - b and b - a are one graph of two leaves


def test_several_values_and_values_that_are_there():
    a, b = mx.array(A), mx.array(B)
    for _ in range(3):
        c = a + b
        d, e = c * a, c * b
        mx.eval(c, d, e, a)
        mx.eval(d)
        for x, right in ((c, A + B), (d, (A + B) * A), (e, (A + B) * B)):
            np.testing.assert_array_equal(np.array(x), right)
    assert plans() == 1


def test_what_was_recorded_before_an_evaluation_is_no_argument_without_data():
    a, b = mx.array(A), mx.array(B)
    for _ in range(3):
        early = a * b
        mx.eval(a + b)
        np.testing.assert_array_equal(np.array(early - a), A * B - A)


def test_the_reference_tier_uses_no_plan(monkeypatch):
    a = mx.array(A)
    mx.eval(mx.sin(a) * a)
    monkeypatch.setattr(knobs, "tier", "reference")
    np.testing.assert_array_equal(np.array(mx.sin(a) * a), np.sin(A) * A)


def test_nothing_is_recorded_while_a_trace_runs():
    tapes = []
    mx.grad(lambda x: (tapes.append(running.tape), (x * x).sum())[1])(mx.array(A))
    assert tapes == [None] and isinstance(running.tape, Tape)


def test_a_long_recording_is_cut(monkeypatch):
    monkeypatch.setattr(knobs, "tier", "reference")
    x = one = mx.array(1.0)
    for _ in range(Tape.LONGEST + 100):
        x = x + one
    assert len(running.tape.key) < Tape.LONGEST and float(x) == Tape.LONGEST + 101


def test_the_tape_keeps_no_data_alive():
    before = mx.get_active_memory()
    x = mx.zeros((1 << 20,)) + 1
    mx.eval(x)
    y = x * x
    del x, y
    assert mx.get_active_memory() <= before


def test_threads_that_share_operands_do_not_mix_their_recordings():
    a, b, wrong = mx.array(A), mx.array(B), []

    def work(n):
        for _ in range(200):
            x = a * b if n % 2 else b + a
            for _ in range(n + 1):
                x = x - (b if n % 2 else a)
            right = A * B if n % 2 else B + A
            for _ in range(n + 1):
                right = right - (B if n % 2 else A)
            if not np.array_equal(np.array(x), right):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_what_a_trace_recorded_is_not_taken_for_data():
    for f, right in ((mx.sin, np.cos), (mx.exp, np.exp), (mx.square, lambda x: 2 * x)):
        gradient = mx.grad(lambda x, f=f: f(x).sum())(mx.array(A))
        np.testing.assert_allclose(np.array(gradient + 1), right(A) + 1, rtol=1e-5)


def test_what_another_thread_recorded_is_not_taken_for_data():
    for f, right in ((mx.sin, np.sin), (mx.exp, np.exp), (mx.square, np.square)):
        made = []
        thread = threading.Thread(target=lambda f=f, made=made: made.append(f(mx.array(A))))
        thread.start()
        thread.join()
        np.testing.assert_allclose(np.array(made[0] * 2), right(A) * 2, rtol=1e-5)
    assert plans() == 3


def test_what_an_evaluation_left_behind_is_found_again(monkeypatch):
    """`p` and `x` are behind no value that is evaluated in their step; `x` is never."""

    def conjugate_gradients(steps):
        x, r = mx.zeros(8), mx.array(A)
        p, e, errors = r, r @ r, []
        for _ in range(steps):
            q = p * mx.array(B)
            a = e / (p @ q)
            x, r = x + a * p, r - a * q
            e, before = r @ r, e
            p = r + (e / before) * p
            errors.append(e.item())
        return errors

    first = conjugate_gradients(4)
    monkeypatch.setattr(evaluate, "cut", None)  # to call it would be an error
    assert conjugate_gradients(4) == first


def test_a_loss_that_is_read_after_its_gradient_is_computed_with_it(monkeypatch):
    loss_and_gradient = mx.value_and_grad(lambda w: mx.sum(mx.sin(w) * mx.array(B)))
    w = mx.array(A)
    for step in range(4):
        if step == 2:  # the first step, which no plan remembers, says that it is read; the second one keeps it
            monkeypatch.setattr(evaluate, "cut", None)  # to call it would be an error
        knobs.tier = "compiled" if step else "reference"
        right = float(np.sum(np.sin(np.array(w)) * B))
        loss, gradient = loss_and_gradient(w)
        w = w - 0.5 * gradient
        mx.eval(w)
        assert abs(loss.item() - right) < 1e-4


def test_a_part_of_an_array_is_a_leaf_like_any_other(monkeypatch):
    a = mx.array(A)
    first = [np.array(a[i : i + 4] * 2 + a[i]) for i in range(1)]
    monkeypatch.setattr(evaluate, "cut", None)
    first += [np.array(a[i : i + 4] * 2 + a[i]) for i in range(1, 4)]
    for i, found in enumerate(first):
        np.testing.assert_array_equal(found, A[i : i + 4] * 2 + A[i])


def test_numbers_that_keep_changing_are_data(monkeypatch):
    a, x = mx.array(A), 0.123456
    for i in range(12):
        if i == varying.SETTLED + 1:
            monkeypatch.setattr(evaluate, "cut", None)
        x = x * 1.01 + 0.001
        np.testing.assert_allclose(np.array(a * x + 1.0), A * np.float32(x) + 1, rtol=1e-6)


def test_clearing_the_cache_lets_plans_go():
    mx.eval(mx.array(A) * 2)
    assert plans() == 1
    cache.clear()
    assert plans() == 0
