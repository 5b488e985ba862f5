"""Scans, argmax, argmin and scatters on guarded memory, in every form of their loops, against NumPy."""

import numpy as np
import pytest
from guarded import Kernel, run

from mlxir.compiler.lower.argreduce import lower_argreduction
from mlxir.compiler.lower.scan import lower_scan
from mlxir.compiler.lower.scatter import lower_scatter
from mlxir.dialects.mx import Aval
from mlxir.runtime.dtypes import bool_, complex64, float16, float32, from_numpy, int32, uint8
from mlxir.runtime.errors import CompileError

SCANS = {
    "cumsum": np.cumsum, "cumprod": np.cumprod, "cummax": np.maximum.accumulate, "cummin": np.minimum.accumulate,
    "logcumsumexp": np.logaddexp.accumulate,
}  # fmt: skip
IDENTITY = {"cumsum": 0, "cumprod": 1, "cummax": -np.inf, "cummin": np.inf, "logcumsumexp": -np.inf}
# In registers, over a boundary of blocks, by columns, one after the other, in pieces; all with remainders.
SHAPES = [((3, 37), 1), ((2, 1100), 1), ((7, 70), 0), ((2, 5, 33), 1), ((3, 9), 1), ((1, 66001), 1), ((1, 1), 0)]


def scanned(name, x, axis, reverse, inclusive):
    y = np.flip(x, axis) if reverse else x
    out = SCANS[name](y.astype(np.float64), axis=axis)
    if not inclusive:
        first = np.full_like(np.take(out, [0], axis), IDENTITY[name])
        out = np.concatenate([first, np.delete(out, -1, axis)], axis)
    return np.flip(out, axis) if reverse else out


def scan(name, shape, dtype, vectors=True, **attrs):
    return Kernel(lambda m, a: getattr(m, name)(a, **attrs), [Aval(shape, dtype)], lower_scan, vectors=vectors)


@pytest.mark.parametrize("shape, axis", SHAPES)
@pytest.mark.parametrize("name", SCANS)
def test_scan(name, shape, axis):
    """Both directions, with and without the element itself."""
    rng = np.random.default_rng(1)
    x = rng.uniform(0.99, 1.01, shape) if name == "cumprod" else rng.standard_normal(shape)
    x = x.astype(np.float32)
    for n, (reverse, inclusive) in enumerate(((False, True), (True, False), (False, False), (True, True))):
        if n > 1 and x.size > 100:
            continue
        attrs = {"axis": axis, "reverse": reverse, "inclusive": inclusive}
        (got,) = run(scan(name, shape, float32, **attrs), [x])
        expected = scanned(name, x, axis, reverse, inclusive)
        scale = np.cumsum(np.abs(x), axis).max() if name == "cumsum" else 10
        np.testing.assert_allclose(got, expected, rtol=3e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [float16, int32, uint8, complex64], ids=str)
def test_scan_of_other_dtypes(dtype):
    x = (np.random.default_rng(2).integers(0, 3, (2, 140))).astype(dtype.numpy)
    attrs = {"axis": 1, "reverse": False, "inclusive": True}
    assert np.array_equal(run(scan("cumsum", x.shape, dtype, **attrs), [x])[0], np.cumsum(x, 1, dtype=x.dtype))


def test_the_form_for_a_gpu_is_refused_on_a_cpu():
    """Before LLVM sees it, which would end the process."""
    with pytest.raises(CompileError, match=r"no LLVM IR for gpu\.shuffle"):
        scan("cumsum", (2, 140), float32, vectors=False, axis=1, reverse=False, inclusive=True)


def test_nan_and_infinities_in_a_scan():
    x = np.array([[1, 3, np.inf, 2, np.nan, 5] * 9], np.float32)
    for name in ("cumsum", "cummax", "cummin"):
        attrs = {"axis": 1, "reverse": False, "inclusive": True}
        np.testing.assert_array_equal(run(scan(name, x.shape, float32, **attrs), [x])[0], SCANS[name](x, axis=1))


def test_a_long_running_sum_is_as_exact_as_a_serial_one():
    x = np.random.default_rng(5).random((1, 200_000), np.float32)
    attrs = {"axis": 1, "reverse": False, "inclusive": True}
    (got,) = run(scan("cumsum", x.shape, float32, **attrs), [x])
    exact = np.cumsum(x.astype(np.float64), 1)
    assert np.abs(got - exact).max() <= np.abs(np.cumsum(x, 1) - exact).max()


ARG_SHAPES = [
    ((3, 31), 1), ((2, 4100), 1), ((2, 70000), 1), ((70000, 3), 0), ((5, 530), 0), ((2, 37, 3), 1), ((40001, 1), 0),
    ((600, 70), 0), ((2, 1003, 5), 1),
]  # fmt: skip


@pytest.mark.parametrize("shape, axis", ARG_SHAPES)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_argreduction(name, shape, axis):
    """The first of equal elements; the first NaN, if there is one; rows of infinities and of both zeros."""
    rng = np.random.default_rng(4)
    ties = rng.integers(-9, 9, shape).astype(np.float32)
    with_nan = np.where(rng.random(shape) < 0.01, np.float32(np.nan), ties)
    extreme = np.full(shape, -np.inf if name == "argmax" else np.inf, np.float32)
    zeros = np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0))
    vector_forms = (True, False) if ties.size < 50_000 else (True,)
    for vectors in vector_forms:
        build = lambda m, a: getattr(m, name)(a, axis=axis)  # noqa: E731
        kernel = Kernel(build, [Aval(shape, float32)], lower_argreduction, vectors=vectors)
        for x in (ties, with_nan, extreme, zeros):
            assert np.array_equal(run(kernel, [x])[0], getattr(np, name)(x, axis))


@pytest.mark.parametrize("dtype", [bool_, uint8, float16, complex64], ids=str)
def test_argreduction_of_other_dtypes(dtype):
    x = np.random.default_rng(6).integers(0, 2 if dtype is bool_ else 50, (3, 90)).astype(dtype.numpy)
    for axis in (0, 1):
        build = lambda m, a, axis=axis: m.argmax(a, axis=axis)  # noqa: E731
        kernel = Kernel(build, [Aval(x.shape, dtype)], lower_argreduction, vectors=True)
        assert np.array_equal(run(kernel, [x])[0], np.argmax(x, axis))


def scattered(x, indices, updates, axes, mode, vectors=True):
    arrays = [x, *indices, updates]
    avals = [Aval(a.shape, from_numpy(a.dtype)) for a in arrays]
    kernel = Kernel(lambda m, *a: m.scatter(*a, axes=axes, mode=mode), avals, lower_scatter, vectors=vectors)
    return run(kernel, arrays)[0]


MODES = {"add": np.add, "maximum": np.maximum, "minimum": np.minimum}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectors", [True, False])
def test_many_updates_of_few_elements(mode, vectors):
    """Blocks of updates have arrays of their own; indices outside are dropped, negative ones count from the end."""
    rng = np.random.default_rng(7)
    index = rng.integers(-320, 320, 40_001).astype(np.int32)
    updates, x = rng.integers(-5, 6, (40_001, 1)).astype(np.int32), rng.integers(-3, 3, 300).astype(np.int32)
    inside, expected = (index >= -300) & (index < 300), x.copy()
    MODES[mode].at(expected, index[inside], updates[inside, 0])
    assert np.array_equal(scattered(x, [index], updates, (0,), mode, vectors), expected)


@pytest.mark.parametrize("mode", ["set", "add"])
def test_rows(mode):
    """Embedding gradients; 300 columns are a block and a part of one."""
    rng = np.random.default_rng(8)
    x, index = rng.standard_normal((40, 300)).astype(np.float32), rng.integers(-42, 42, 60).astype(np.int32)
    updates = rng.standard_normal((60, 1, 300)).astype(np.float32)
    expected = x.copy()
    for i, row in zip(index, updates[:, 0], strict=True):
        if -40 <= i < 40:
            expected[i] = expected[i] + row if mode == "add" else row
    np.testing.assert_allclose(scattered(x, [index], updates, (0,), mode), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6, 1, 40), (6, 1, 300), (6, 1, 5), (1, 9, 40), (3, 9, 40), (2, 1, 20), (6, 2, 40)])
@pytest.mark.parametrize("start", [0, 2, -1, 7])
def test_one_slice(sizes, start):
    """Of one contiguous run, of several, of runs that are not worth a loop; outside it is dropped."""
    rng = np.random.default_rng(10)
    x = rng.standard_normal((6, 9, max(sizes[2], 40))).astype(np.float32)
    axis = 0 if sizes[0] < 6 else 1
    updates, at = rng.standard_normal(sizes).astype(np.float32), start + x.shape[axis] * (start < 0)
    expected = x.copy()
    if at + sizes[axis] <= x.shape[axis]:
        place = [slice(0, n) for n in sizes]
        place[axis] = slice(at, at + sizes[axis])
        expected[tuple(place)] = updates
    assert np.array_equal(scattered(x, [np.array(start, np.int64)], updates, (axis,), "set"), expected)


def test_batches_that_go_to_different_rows_run_in_parallel():
    rng = np.random.default_rng(9)
    x, index = rng.standard_normal((30, 50)).astype(np.float32), rng.integers(-52, 52, (30, 20)).astype(np.int32)
    updates = rng.standard_normal((30, 20)).astype(np.float32)

    def build(m, x, index, updates):
        rows = m.broadcast(m.reshaped(m.arange(start=0, step=1, length=30, dtype=int32), (30, 1)), (30, 20))
        return m.scatter(x, rows, index, m.reshaped(updates, (30, 20, 1, 1)), axes=(0, 1), mode="set")

    avals = [Aval(a.shape, from_numpy(a.dtype)) for a in (x, index, updates)]
    kernel = Kernel(build, avals, lower_scatter, vectors=True)
    assert [s.extent for s in kernel.steps] == [x.size, 30]
    expected = x.copy()
    for r in range(30):
        for i, value in zip(index[r], updates[r], strict=True):
            if -50 <= i < 50:
                expected[r, i] = value
    assert np.array_equal(run(kernel, [x, index, updates])[0], expected)
