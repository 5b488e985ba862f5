"""Sort kernels on guarded memory: networks, ranks and digits against NumPy's stable sort, bit by bit."""

import numpy as np
import pytest
from guarded import Kernel, run

from mlxir.compiler.lower.sort import lower_sort
from mlxir.dialects.mx import Aval
from mlxir.runtime.dtypes import (
    bfloat16,
    bool_,
    complex64,
    float16,
    float32,
    float64,
    int8,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
)

NETWORK = [(float32, 1), (float32, 2), (float32, 5), (int32, 16), (float32, 65), (uint8, 130), (bool_, 70),
           (bfloat16, 40), (float16, 100), (int64, 33), (float64, 20), (complex64, 90), (uint16, 300)]  # fmt: skip
LONG = [(float32, 40001), (float64, 9000), (int8, 140000), (uint32, 40001), (complex64, 9000)]  # sorted by digits


def values(dtype, shape):
    """Many ties; for floats also infinities, both zeros, and NaN of both signs."""
    rng, size = np.random.default_rng(3), int(np.prod(shape))
    if dtype is bool_:
        return rng.random(shape) < 0.5
    if dtype.is_integer:
        limits = np.iinfo(dtype.numpy)
        x = rng.integers(limits.min, limits.max, size, dtype.numpy, endpoint=True)
        x[::3] = x[rng.integers(0, size, x[::3].size)]
        return x.reshape(shape)
    special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1.0, -1.0])
    x = np.where(rng.random(size) < 0.3, special[rng.integers(0, 8, size)], rng.standard_normal(size))
    if dtype is complex64:
        x = x.astype(np.complex64)
        x.imag = np.where(rng.random(size) < 0.5, special[rng.integers(0, 8, size)], 0)
    return x.astype(dtype.numpy).reshape(shape)


def same(got, expected):
    """Equal, zeros by their sign; one NaN is as good as another."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if got.dtype.kind == "c":
        same(got.real, expected.real)
        same(got.imag, expected.imag)
        return
    if got.dtype.kind not in "biu":
        got, expected = got.astype(np.float64), expected.astype(np.float64)
        nan = np.isnan(expected)
        assert np.array_equal(np.isnan(got), nan)
        assert np.array_equal(np.signbit(got[~nan]), np.signbit(expected[~nan]))
        got, expected = got[~nan], expected[~nan]
    assert np.array_equal(got, expected)


def check(x, dtype, axis, vectors):
    # NumPy knows no order of NaN in bfloat16.
    order = np.argsort(x.astype(np.float32) if dtype is bfloat16 else x, axis=axis, kind="stable")
    expected = {"sort": np.take_along_axis(x, order, axis), "argsort": order.astype(np.uint32)}
    for name, want in expected.items():
        build = lambda m, a, name=name: getattr(m, name)(a, axis=axis)  # noqa: E731
        (got,) = run(Kernel(build, [Aval(x.shape, dtype)], lower_sort, vectors=vectors), [x])
        same(got, want)


@pytest.mark.parametrize("dtype, n", NETWORK, ids=lambda p: getattr(p, "name", str(p)))
def test_short_rows(dtype, n):
    check(values(dtype, (3, n)), dtype, 1, True)


@pytest.mark.parametrize("dtype, n", LONG, ids=lambda p: getattr(p, "name", str(p)))
def test_long_rows(dtype, n):
    check(values(dtype, (2, n)), dtype, 1, True)


@pytest.mark.parametrize("shape, axis", [((70, 3), 0), ((2, 33, 5), 1), ((4, 0), 1), ((0, 4), 1), ((1, 1), 0)])
def test_strided_and_empty(shape, axis):
    check(values(float32, shape), float32, axis, True)


@pytest.mark.parametrize("n", [1, 7, 200, 2500])
@pytest.mark.parametrize("dtype", [float32, int64], ids=str)
def test_without_vectors(dtype, n):
    """The loops for a GPU: by rank up to 1024 elements, by digits beyond."""
    check(values(dtype, (2, n)), dtype, 1, False)


def test_equal_digits_are_skipped():
    """Small numbers differ in few digits; a row of equal ones in none."""
    x = np.stack([np.arange(40000) % 7, np.full(40000, 5)]).astype(np.int32)
    check(x, int32, 1, True)


def test_producers_are_computed_on_the_way():
    x = values(float32, (2, 50))
    x = np.where(np.isnan(x), 0, x).astype(np.float32)
    kernel = Kernel(lambda m, a: m.sort(m.negative(a), axis=1), [Aval(x.shape, float32)], lower_sort, vectors=True)
    same(run(kernel, [x])[0], np.sort(-x, axis=1, kind="stable"))
