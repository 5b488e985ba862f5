"""Captured state of compiled functions: inputs=, outputs=, random state (BEHAVIOUR section 8.3)."""

import threading

import mlx.core as real
import numpy as np
import pytest
from counting import Counter, value

import mlxir as mx

a = mx.array


# -- captured state --------------------------------------------------------------------------------------------------
def test_inputs_are_read_at_each_call():
    state = {"w": a(2.0), "l": [a(3.0)], "n": 7}
    f = Counter(lambda x: x * state["w"] + state["l"][0] * state["n"])
    g = mx.compile(f, inputs=state)
    w = state["w"]
    assert value(g(a(1.0))) == 23.0 and state["w"] is w
    state["w"], state["l"][0], state["n"] = a(5.0), a(1.0), 100  # non-array leaves keep their traced values
    assert value(g(a(1.0))) == 12.0 and f.runs == 1
    state["w"] = a([1.0, 2.0])
    assert value(g(a(1.0))) == [101.0, 102.0] and f.runs == 2
    state["l"].append(a(1.0))
    g(a(1.0))
    assert f.runs == 3


def test_outputs_are_overwritten_after_each_call():
    state = {"w": a(1.0), "m": {"v": a(0.0)}}

    def step(x):
        state["m"]["v"] = state["m"]["v"] + 1
        state["w"] = state["w"] * x + state["m"]["v"]
        return state["w"] * 10

    def plain(w, v, x):
        return w * x + v + 1, v + 1

    f = Counter(step)
    g = mx.compile(f, inputs=state, outputs=state)
    w, v = 1.0, 0.0
    for x in (2.0, 3.0, 4.0):
        out = g(a(x))
        w, v = plain(w, v, x)
        assert (value(out), value(state["w"]), value(state["m"]["v"])) == (10 * w, w, v)
    assert f.runs == 1


def test_appended_outputs_keep_their_traced_length():
    made = []

    def f(x):
        made.append(x * 2)
        made.append(x + 1)
        return x

    g = mx.compile(f, outputs=made)
    g(a(1.0))
    assert [value(m) for m in made] == [2.0, 2.0]
    g(a(5.0))
    assert [value(m) for m in made] == [10.0, 6.0]
    made.pop()
    with pytest.raises(ValueError, match="another number of arrays"):
        g(a(5.0))


def test_in_place_updates_of_captured_state():
    state = {"w": a([1.0, 2.0])}
    before = state["w"]

    def f(x):
        state["w"][0] = x
        return mx.sum(state["w"])

    g = mx.compile(f, inputs=state, outputs=state)
    assert value(g(a(5.0))) == 7.0 and value(state["w"]) == [5.0, 2.0] and value(before) == [1.0, 2.0]
    assert value(g(a(6.0))) == 8.0 and value(state["w"]) == [6.0, 2.0]


def test_without_outputs_reassigned_state_is_dead():
    state = {"w": a(1.0), "k": a(2.0)}
    k = state["k"]

    def f(x):
        state["w"] = state["w"] * x
        return state["w"] * state["k"]

    assert value(mx.compile(f, inputs=state)(a(3.0))) == 6.0
    assert state["k"] is k
    with pytest.raises(RuntimeError, match=r"\[eval\]"):
        mx.eval(state["w"])


def test_state_survives_a_trace_that_raises():
    state = {"w": a(1.0), "l": [a(2.0)]}
    w, item = state["w"], state["l"][0]

    def f(x):
        state["w"] = state["w"] * x
        state["l"].append(x)
        state["new"] = x
        mx.random.uniform()
        raise KeyError("boo")

    mx.random.seed(4)
    key = value(mx.random.state[0])
    with pytest.raises(KeyError):
        mx.compile(f, inputs=[state, mx.random.state], outputs=[state, mx.random.state])(a(3.0))
    assert state == {"w": w, "l": [item]} and value(mx.random.state[0]) == key


def test_tuples_and_bare_arrays_as_state():
    state = [(a(1.0), [a(2.0)])]

    def f(x):
        first, rest = state[0]
        rest[0] = rest[0] + first
        state[0] = (first * x, rest)
        return x

    g = mx.compile(f, inputs=state, outputs=state)
    g(a(3.0)), g(a(3.0))
    assert value(state[0][0]) == 9.0 and value(state[0][1][0]) == 6.0


def test_a_training_step_matches_eager_execution():
    def make():
        return {"w": a(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)), "b": a(np.zeros(3, np.float32))}

    def loss(p, x, y):
        return mx.mean((mx.tanh(mx.sum(x[:, :, None] * p["w"], 1) + p["b"]) - y) ** 2)

    rng = np.random.default_rng(0)
    batches = [
        (a(rng.standard_normal((5, 4)).astype(np.float32)), a(rng.standard_normal((5, 3)).astype(np.float32)))
        for _ in range(4)
    ]

    def run(wrap):
        params, momentum = make(), {"w": a(np.zeros((4, 3), np.float32)), "b": a(np.zeros(3, np.float32))}
        state = [params, momentum]

        def step(x, y):
            value, grads = mx.value_and_grad(loss)(params, x, y)
            for k in params:
                momentum[k] = 0.9 * momentum[k] + grads[k]
                params[k] = params[k] - 0.1 * momentum[k]
            return value

        counted = Counter(step)
        stepper = wrap(counted, state)
        losses = [value(stepper(x, y)) for x, y in batches]
        return losses, value(params["w"]), counted.runs

    eager = run(lambda f, s: f)
    compiled = run(lambda f, s: mx.compile(f, inputs=s, outputs=s))
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-5)
    np.testing.assert_allclose(compiled[1], eager[1], rtol=1e-5, atol=1e-6)
    assert (eager[2], compiled[2]) == (4, 1)


# -- randomness ------------------------------------------------------------------------------------------------------
def test_random_state_as_captured_state_gives_the_eager_sequence():
    f = Counter(lambda x: x + mx.random.uniform(shape=(3,)) * mx.random.normal((3,)))
    mx.random.seed(7)
    eager = [value(f.fun(a(0.0))) for _ in range(3)]
    after = value(mx.random.state[0])
    for inputs in (mx.random.state, [{"k": [mx.random.state]}]):
        f.runs = 0
        g = mx.compile(f, inputs=inputs, outputs=inputs)
        mx.random.seed(7)
        np.testing.assert_allclose([value(g(a(0.0))) for _ in range(3)], eager, rtol=1e-5, atol=1e-6)
        assert value(mx.random.state[0]) == after and f.runs == 1
        mx.random.seed(7)
        np.testing.assert_allclose(value(g(a(0.0))), eager[0], rtol=1e-5, atol=1e-6)


def test_uncaptured_randomness_is_frozen_and_tracing_advances_the_state_once():
    g = mx.compile(lambda: mx.random.uniform(shape=(3,)))
    mx.random.seed(7)
    real.random.seed(7)
    first = value(g())
    assert value(g()) == first
    np.testing.assert_allclose(first, np.array(real.random.uniform(shape=(3,))), rtol=1e-6)
    assert value(mx.random.uniform()) == real.random.uniform().item()


def test_random_state_resolves_to_the_calling_thread():
    g = mx.compile(lambda: mx.random.uniform(), inputs=mx.random.state, outputs=mx.random.state)
    mx.random.seed(1)
    found = {}

    def work(seed):
        mx.random.seed(seed)
        found[seed] = [value(g()) for _ in range(3)]

    for seed in (1, 2, 1):
        thread = threading.Thread(target=work, args=(seed,))
        thread.start()
        thread.join()
    main = [value(g()) for _ in range(3)]
    assert main == found[1] != found[2]
