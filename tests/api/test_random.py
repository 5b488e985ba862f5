"""mlxir.random against real MLX: the same key gives the same bits, through every distribution, dtype and shape."""

import threading

import mlx.core as real
import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime.knobs import knobs

SHAPES = [(), (1,), (5,), (3, 4), (7, 1, 3), (257,), (0,), (2, 0)]
FLOATS = ["float32", "float16", "bfloat16"]
INTS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SEEDS = [0, 12345, 2**40 + 7]
# Of one rounding step in the dtype: transcendental functions differ in the last place between implementations.
TOLERANCE = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.6e-2, "complex64": 3e-6}
X = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
# Compiled code may contract `span * u + low` to one rounding, and keeps halves in float32 inside a kernel.
EXACT = knobs.tier != "compiled"
LOGITS = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def numpy(x):
    """The data of either library's array; bfloat16 widened."""
    if str(x.dtype) == "mlx.core.bfloat16":
        x = x.astype(real.float32 if isinstance(x, real.array) else mx.float32)
    return np.array(x)


def same(mine, theirs, tol=0.0):
    assert str(mine.dtype) == str(theirs.dtype) and mine.shape == theirs.shape
    np.testing.assert_allclose(numpy(mine), numpy(theirs), rtol=tol, atol=tol)


def both(call, tol=0.0):
    """The same call on either library."""
    same(call(mx, mx.array), call(real, real.array), tol)


# name -> (call, whether every bit must agree)
DISTRIBUTIONS = {
    "uniform": (lambda m, a, **k: m.random.uniform(**k), True),
    "uniform bounds": (lambda m, a, **k: m.random.uniform(-3, 5.5, **k), EXACT),
    "normal": (lambda m, a, **k: m.random.normal(**k), False),
    "normal loc scale": (lambda m, a, **k: m.random.normal(loc=1.5, scale=2.0, **k), False),
    "truncated_normal": (lambda m, a, **k: m.random.truncated_normal(-1, 2, **k), False),
    "gumbel": (lambda m, a, **k: m.random.gumbel(**k), False),
    "laplace": (lambda m, a, **k: m.random.laplace(**k), False),
    "laplace loc scale": (lambda m, a, **k: m.random.laplace(loc=1.0, scale=2.0, **k), False),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_float_distributions(name, dtype, seed):
    call, exact = DISTRIBUTIONS[name]
    for shape in SHAPES:
        mine = call(mx, mx.array, shape=shape, dtype=getattr(mx, dtype), key=mx.random.key(seed))
        theirs = call(real, real.array, shape=shape, dtype=getattr(real, dtype), key=real.random.key(seed))
        same(mine, theirs, 0.0 if exact else 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_complex_normal(shape, seed):
    same(mx.random.normal(shape, mx.complex64, key=mx.random.key(seed)),
         real.random.normal(shape, real.complex64, key=real.random.key(seed)), TOLERANCE["complex64"])  # fmt: skip
    same(mx.random.normal(shape, mx.complex64, loc=1, scale=2.0, key=mx.random.key(seed)),
         real.random.normal(shape, real.complex64, loc=1, scale=2.0, key=real.random.key(seed)), 2e-5)  # fmt: skip


@pytest.mark.parametrize("dtype", [*INTS, "bool_"])
def test_randint(dtype):
    for seed in SEEDS:
        for shape in SHAPES:
            for low, high in ((0, 10), (-5, 3), (0, 2), (5, 5), (5, 2), (0.5, 7.9), (0, 300)):
                if low < 0 and dtype[0] in "ub":
                    continue
                both(lambda m, a, s=seed, n=shape, lo=low, hi=high: m.random.randint(
                    lo, hi, n, getattr(m, dtype), key=m.random.key(s)))  # fmt: skip


@pytest.mark.parametrize(("low", "high", "dtype"), [(2**24 - 1, 2**24 + 2, "int32"), (-(2**31), 2**31 - 1, "int32"),
                                                    (0, 2**40, "int64"), (2**62, 2**62 + 2**40, "int64")])  # fmt: skip
def test_randint_beyond_float32(low, high, dtype):
    same(mx.random.randint(low, high, (500,), getattr(mx, dtype), key=mx.random.key(5)),
         real.random.randint(low, high, (500,), getattr(real, dtype), key=real.random.key(5)))  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_bits_and_permutations(seed):
    both(lambda m, a: m.random.key(seed))
    for num in (1, 2, 3, 5, 8, 0):
        both(lambda m, a, n=num: m.random.split(m.random.key(seed), n))
    for n in (1, 2, 5, 100):
        both(lambda m, a, n=n: m.random.permutation(n, key=m.random.key(seed)))
    for axis in (0, 1, 2, -1, -2):
        both(lambda m, a, n=axis: m.random.permutation(a(X), n, key=m.random.key(seed)))


@pytest.mark.parametrize("seed", SEEDS)
def test_bernoulli_and_categorical(seed):
    for shape in SHAPES:
        both(lambda m, a, s=shape: m.random.bernoulli(0.3, s, key=m.random.key(seed)))
    p = np.array([0.0, 0.1, 0.9, 1.0], np.float32)
    both(lambda m, a: m.random.bernoulli(a(p), key=m.random.key(seed)))
    both(lambda m, a: m.random.bernoulli(a(p), (50, 4), key=m.random.key(seed)))
    for axis in (0, 1, 2, -1):
        rest = list(LOGITS.shape)
        del rest[axis]
        both(lambda m, a, n=axis: m.random.categorical(a(LOGITS), n, key=m.random.key(seed)))
        both(lambda m, a, n=axis: m.random.categorical(a(LOGITS), n, num_samples=6, key=m.random.key(seed)))
        both(
            lambda m, a, n=axis, r=tuple(rest): m.random.categorical(
                a(LOGITS), n, shape=(2, *r), key=m.random.key(seed)
            )
        )
    both(lambda m, a: m.random.categorical(a(LOGITS.astype(np.float16)), key=m.random.key(seed)))
    both(lambda m, a: m.random.categorical(a(LOGITS[0, 0]), shape=(), key=m.random.key(seed)))
    row = LOGITS[:1, 0]  # one distribution: MLX draws from it in another way
    both(lambda m, a: m.random.categorical(a(row), key=m.random.key(seed)))
    both(lambda m, a: m.random.categorical(a(row.T), 0, shape=(3, 1), key=m.random.key(seed)))
    both(lambda m, a: m.random.categorical(a(row[0]), num_samples=50, key=m.random.key(seed)))
    row = np.array([-np.inf, 0, np.inf, np.inf], np.float32)
    both(lambda m, a, row=row: m.random.categorical(a(row), num_samples=9, key=m.random.key(seed)))


def test_array_parameters_broadcast():
    low, high = np.array([0.1, 0.9], np.float32), np.array([[1.0], [2.0], [3.0]], np.float32)
    both(lambda m, a: m.random.uniform(a(low), a(high), (3, 2), key=m.random.key(1)), 0 if EXACT else 1e-6)
    both(lambda m, a: m.random.randint(a(low) * 0, a(high) * 9, (4, 3, 2), key=m.random.key(1)))
    both(lambda m, a: m.random.normal((3, 2), loc=a(low), scale=a(high), key=m.random.key(1)), 1e-5)
    both(lambda m, a: m.random.truncated_normal(a(low), a(high), key=m.random.key(1)), 1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_implicit_sequence(seed):
    mx.random.seed(seed)
    real.random.seed(seed)
    for _ in range(4):
        both(lambda m, a: m.random.uniform(shape=(3,)))
        both(lambda m, a: m.random.state[0])
        both(lambda m, a: m.random.permutation(7))
    assert len(mx.random.state) == 1 and len(list(mx.random.state)) == 1


def test_known_values():
    mx.random.seed(0)
    np.testing.assert_allclose(np.array(mx.random.normal((3,))), [1.13788, -1.22095, -0.591536], rtol=1e-5)
    assert mx.random.split(mx.random.key(7), 2).tolist() == [[966301609, 989289821], [1948237315, 1058547403]]


def test_each_thread_has_a_state():
    mx.random.seed(3)
    expected = [mx.random.uniform().item() for _ in range(2)]
    mx.random.seed(3)
    found = [mx.random.uniform().item()]
    other = []

    def work():
        other.append(mx.random.uniform().item())
        mx.random.seed(3)
        other.append(mx.random.uniform().item())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    found.append(mx.random.uniform().item())
    assert found == expected and other[1] == expected[0] and other[0] != expected[0]


def test_defaults_and_stream_argument():
    assert mx.random.uniform(dtype=None).dtype is mx.float32 and mx.random.normal().shape == ()
    assert mx.random.randint(0, 3, dtype=None).dtype is mx.int32
    for call in (mx.random.uniform, mx.random.normal, mx.random.gumbel, mx.random.laplace, mx.random.bernoulli):
        call(key=mx.random.key(0), stream=None)


ERRORS = [
    (TypeError, "seed", lambda: mx.random.key(-1)),
    (TypeError, "seed", lambda: mx.random.key(2**64)),
    (TypeError, "seed", lambda: mx.random.seed(1.5)),
    (ValueError, r"^\[bits\] Expected key shape", lambda: mx.random.uniform(key=mx.array([1, 2, 3], mx.uint32))),
    (ValueError, r"^\[bits\] Expected key type uint32.*int32", lambda: mx.random.split(mx.array([1, 2]))),
    (ValueError, r"^\[uniform\].*floating", lambda: mx.random.uniform(dtype=mx.int32)),
    (ValueError, r"^\[uniform\] Cannot generate", lambda: mx.random.uniform(mx.zeros((4,)))),
    (ValueError, "cannot be broadcast", lambda: mx.random.uniform(mx.zeros((4,)), shape=(3,))),
    (ValueError, r"^\[normal\].*floating", lambda: mx.random.normal((2,), mx.int32)),
    (ValueError, r"^\[randint\] randint only accepts", lambda: mx.random.randint(0, 5, dtype=mx.float32)),
    (ValueError, r"^\[bernoulli\].*float type", lambda: mx.random.bernoulli(2)),
    (
        ValueError,
        r"^\[categorical\] At most one",
        lambda: mx.random.categorical(mx.zeros((2, 3)), shape=(2,), num_samples=2),
    ),
    (IndexError, r"^\[categorical\] Invalid axis 5", lambda: mx.random.categorical(mx.zeros((2, 3)), axis=5)),
    (ValueError, "broadcast", lambda: mx.random.categorical(mx.zeros((2, 3)), shape=(5, 3))),
]


@pytest.mark.parametrize(("kind", "text", "call"), ERRORS, ids=range(len(ERRORS)))
def test_errors(kind, text, call):
    with pytest.raises(kind, match=text):
        call()


def test_draws_can_be_transformed():
    key = mx.random.key(1)
    g = mx.grad(lambda s: mx.sum(mx.random.normal((4,), loc=s, scale=s, key=key)))(mx.array(2.0))
    np.testing.assert_allclose(np.array(g), 4 + np.array(mx.random.normal((4,), key=key)).sum(), rtol=1e-5)
    compiled = mx.compile(lambda k: mx.random.normal((5,), key=k))
    np.testing.assert_allclose(np.array(compiled(key)), np.array(mx.random.normal((5,), key=key)), rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(
        np.array(compiled(mx.random.key(2))),
        np.array(mx.random.normal((5,), key=mx.random.key(2))),
        rtol=3e-6,
        atol=1e-6,
    )
