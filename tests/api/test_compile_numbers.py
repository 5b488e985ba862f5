"""Python numbers that change on each call become inputs of a compiled function, unless the trace depends on them."""

import math

import mlx.core as real
import numpy as np
import pytest
from counting import Counter, value

import mlxir as mx

a = mx.array
V = a(np.arange(1, 4, dtype=np.float32))


def run(fun, calls, **options):
    """The results of the calls, compiled; each is compared with the same call as one with constants."""
    f = Counter(fun)
    g = mx.compile(f, **options)
    for args in calls:
        got, want = g(*args), mx.compile(fun)(*args)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_array_equal(np.array(got), np.array(want))
    return f.runs, g


def test_a_learning_rate_is_an_input_after_three_values():
    runs, g = run(lambda p, lr: p - lr * mx.sin(p), [(V, 0.1 / (i + 1)) for i in range(8)])
    assert runs == 4 and g.cache_info()[:2] == (4, 4)
    executables = mx.compile_cache_info().compilations
    assert value(g(V, 0.0)) == value(V) and mx.compile_cache_info().compilations == executables


def test_arithmetic_of_numbers_happens_in_python():
    """Adam's bias correction, in double precision, for every step."""

    def adam(p, step, lr):
        return p * (1 - lr * 0.01) - lr / (1 - 0.999**step) * mx.sqrt(p) + abs(-lr) * step // 2

    assert run(adam, [(V, step, 0.1 / step) for step in range(1, 9)])[0] == 4


DTYPES = [mx.float32, mx.float16, mx.bfloat16, mx.int32, mx.int8, mx.uint8, mx.bool_, mx.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).rpartition(".")[2])
def test_numbers_stay_weak(dtype):
    x = mx.array([1, 0, 2]).astype(dtype)
    assert run(lambda x, k: x * k, [(x, k) for k in range(1, 8)])[0] == 4
    assert run(lambda x, k: x + k, [(x, k / 4) for k in range(1, 8)])[0] == 4
    assert run(lambda x, k: mx.array(k) * x + mx.full((3,), k), [(x, k) for k in range(1, 8)])[0] == 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_constants_and_digits_are_those_of_mlx(dtype):
    """A constant is the number that an array would hold; digits are those of the number that memory would hold."""

    def program(m, x):
        return x * 0.1, m.full((), 0.3, dtype=x.dtype) * x, m.round(x, -1), m.round(x, 2), m.round(x * 0.7)

    values = np.random.default_rng(0).uniform(-600, 600, 200).astype(np.float32)
    theirs = program(real, real.array(values).astype(getattr(real, dtype)))
    mine = mx.compile(lambda x: program(mx, x))(mx.array(values).astype(getattr(mx, dtype)))
    for have, want in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(np.array(have.astype(mx.float32)), np.array(want.astype(real.float32)))


def test_an_integer_that_needs_more_bits():
    calls = [(mx.array([True, False]), k) for k in (1, 2, 3, 4, 2**40, 5, 2**40 + 1)]
    assert run(lambda x, k: x * k, calls)[0] == 5  # int64 is another program
    g = mx.compile(lambda x, k: x + k)
    x = mx.array([1], dtype=mx.int8)
    for k in range(6):
        assert value(g(x, k)) == [1 + k]
    with pytest.raises(ValueError, match="overflow"):
        g(x, 300)


DEPENDENT = [
    ("shape", lambda x, n: mx.sum(mx.broadcast_to(x, (n, 3)), axis=0)),
    ("slice", lambda x, n: x[: n % 3 + 1]),
    ("loop", lambda x, n: sum([x] * n)),
    ("int", lambda x, n: x * int(n)),
    ("str", lambda x, n: x * len(f"{n:04d}") + int(f"{n:d}")),
    ("dict key", lambda x, n: x * {k: k * k for k in range(1, 9)}[n]),
    ("math", lambda x, n: x * math.sqrt(n)),
    ("numpy", lambda x, n: x * float(np.sqrt(np.float64(n)))),
    ("attribute", lambda x, n: mx.clip(x, n, n.bit_length())),
    ("evaluated", lambda x, n: x * (mx.array(2.0) * n).item()),
]


@pytest.mark.parametrize(("name", "fun"), DEPENDENT, ids=[d[0] for d in DEPENDENT])
def test_a_trace_that_depends_on_the_value_keeps_it_constant(name, fun):
    runs, g = run(fun, [(V, n) for n in (1, 2, 3, 4, 5, 6, 1, 2)])
    assert runs == 6 and g.cache_info().entries == 6


def test_a_comparison_is_traced_once_per_outcome():
    runs, _ = run(lambda x, k: x * k if k > 0 else x - k, [(V, k) for k in (1.0, 2.0, 3.0, 4.0, -1.0, 5.0, -2.0, -3.0)])
    assert runs == 5
    runs, _ = run(lambda x, n: x * n if n % 2 == 0 else x, [(V, n) for n in range(12)])
    assert runs == 5


def test_many_outcomes_make_it_a_constant():
    calls = [(V, float(n)) for n in range(30)]
    runs, g = run(lambda x, k: x * sum(k > n for n in range(30)), calls)
    assert runs == 30
    assert g.cache_info().entries <= 30
    assert run(lambda x, k: x, calls)[0] == 4


def test_each_number_is_decided_by_itself():
    f = Counter(lambda x, n, lr: x[:n] * lr)
    g = mx.compile(f)
    for i in range(8):
        assert value(g(V, 2, 0.5 * i)) == [0.5 * i, i]
    assert f.runs == 4
    for n in (1, 3):
        assert len(value(g(V, n, 9.0))) == n
    assert f.runs == 6
    for i in range(8):
        assert value(g(V, 3, 0.5 * i))[0] == 0.5 * i
    assert f.runs == 6


def test_other_sizes_and_shapeless():
    f = Counter(lambda x, k: x * k)
    g = mx.compile(f)
    for n in (1, 2, 3, 4):
        assert value(g(mx.ones((n,)), float(n))) == [float(n)] * n
    assert value(g(mx.ones((4,)), 5.0)) == [5.0] * 4 and f.runs == 4  # known for all sizes
    h = mx.compile(f, shapeless=True)
    f.runs = 0
    for n in range(1, 9):
        assert value(h(mx.ones((n % 3 + 2,)), n / 2)) == [n / 2] * (n % 3 + 2)
    assert f.runs == 4


def test_numbers_in_trees_keywords_and_transforms():
    f = Counter(lambda p, *, hyper: mx.grad(lambda v: mx.sum(v * v) * hyper["lr"][0])(p) + hyper["b"])
    g = mx.compile(f)
    for i in range(8):
        assert value(g(V, hyper={"lr": (i / 2,), "b": i * 3})) == [i * v + i * 3 for v in (1, 2, 3)]
    assert f.runs == 4


def test_bools_strings_and_other_types_are_constants():
    f = Counter(lambda x, c: x)
    g = mx.compile(f)
    for c in (True, False, "a", "b", "c", "d", "e", None, np.float64(1), np.float64(2), np.float64(3), np.float64(4)):
        g(V, c), g(V, c)
    assert f.runs == 12


def test_returned_numbers_are_those_of_the_call():
    g = mx.compile(lambda x, k: (x * k, k, k + 1))
    for k in range(8):
        y, same, more = g(V, k)
        assert (value(y), same, more, type(same)) == ([k, 2 * k, 3 * k], k, k + 1, int)


def test_a_number_that_becomes_an_array_and_is_returned():
    f = Counter(lambda x, k: (mx.array(k), x))
    g = mx.compile(f)
    for k in range(8):
        assert value(g(V, k / 4)[0]) == k / 4
    assert f.runs == 4


def test_failures_of_python_arithmetic_are_the_users():
    g = mx.compile(lambda x, k: x * (1 / k))
    for k in (1.0, 2.0, 4.0, 8.0, 16.0):
        assert value(g(V, k)) == [v / k for v in (1, 2, 3)]
    with pytest.raises(ZeroDivisionError):
        g(V, 0.0)
    assert value(g(V, 32.0)) == [v / 32 for v in (1, 2, 3)]


def test_nan_infinity_and_signed_zero():
    calls = [(V, k) for k in (1.0, 2.0, 3.0, 4.0, math.inf, -math.inf, 0.0, -0.0, math.nan)]
    runs, _ = run(lambda x, k: mx.where(mx.isnan(x * k), 7.0, 1 / (x * k)), calls)
    assert runs == 4


def test_captured_values_follow_inputs():
    """A nested compiled function takes the number of the outer call."""
    inner = mx.compile(lambda x, k: x * k)
    f = Counter(lambda x, k: inner(x, k + 1) * inner(a(1.0), k))
    g = mx.compile(f)
    for k in range(8):
        assert value(g(a(2.0), float(k))) == 2 * (k + 1) * k
    assert f.runs == 4
    box = []
    h = mx.compile(lambda x, k: (box.append(k), x * k)[1])
    for k in range(8):
        h(V, k)
    assert [n + 1 for n in box] == [1, 2, 3, 4]  # after the trace, a leaked number is its value
