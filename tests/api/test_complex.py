"""Functions of complex numbers in compiled code: at zeros, infinities, NaN, on both sides of branch cuts, and where
textbook formulas cancel or overflow.
"""

import itertools

import mlx.core as real
import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime.knobs import knobs

FUNCTIONS = (
    "abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cos", "cosh", "exp", "log", "log10", "log1p",
    "log2", "reciprocal", "rsqrt", "sign", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
PARTS = [0.0, 1.0, 2.0, 0.5, 1e-3, 40.0, 100.0, 1e20, 1e38, np.inf]
PARTS = [*PARTS, *[-x for x in PARTS], np.nan]
SPECIAL = np.array([complex(x, y) for x, y in itertools.product(PARTS, PARTS)], np.complex64)


def compiled(names, z):
    """The functions by name, in one compiled call."""
    results = mx.compile(lambda z: [getattr(mx, n)(z) for n in names])(mx.array(z))
    return dict(zip(names, map(np.array, results), strict=True))


@pytest.fixture(scope="module")
def at_special_values():
    return compiled(FUNCTIONS, SPECIAL)


def same(have, want):
    """Which numbers agree, up to single precision (of 1 where they are smaller)."""
    if have.dtype.kind == "c":
        return same(have.real, want.real) & same(have.imag, want.imag)
    with np.errstate(all="ignore"):
        near = np.abs(have - want) <= 2e-6 * np.maximum(1, np.abs(want))
    return (have == want) | (np.isnan(have) & np.isnan(want)) | near


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name, at_special_values, monkeypatch):
    monkeypatch.setattr(knobs, "tier", "reference")
    have = at_special_values[name]
    with np.errstate(all="ignore"):
        reference = np.array(getattr(mx, name)(mx.array(SPECIAL)))
    wrong = np.flatnonzero(~same(have, reference))
    assert not len(wrong), [(SPECIAL[i], have[i], reference[i]) for i in wrong[:5]]
    if name not in ("rsqrt", "reciprocal"):  # there MLX counts the sign of zero as C does, the reference as NumPy
        theirs = np.array(getattr(real, name)(real.array(SPECIAL)))
        wrong = np.flatnonzero(~same(have, theirs))
        assert not len(wrong), [(SPECIAL[i], have[i], theirs[i]) for i in wrong[:5]]


def test_division_neither_overflows_nor_underflows_early():
    parts = np.array([complex(x, y) for x, y in itertools.product([0, 1, 1e-30, -1e30, 1e-20, 3e38, np.inf], repeat=2)])
    a, b = (x.ravel().astype(np.complex64) for x in np.meshgrid(parts, parts))
    with np.errstate(all="ignore"):
        want = a / b
    have = np.array(mx.compile(lambda a, b: a / b)(mx.array(a), mx.array(b)))
    wrong = np.flatnonzero(~same(have, want))
    assert not len(wrong), [(a[i], b[i], have[i], want[i]) for i in wrong[:5]]


def test_the_square_root_of_the_largest_numbers_is_finite():
    assert np.isfinite(compiled(["sqrt"], np.array([3e38 + 3e38j], np.complex64))["sqrt"]).all()


@pytest.mark.parametrize("centre", [0, 1, -1, 1j, -1j])
def test_every_digit_near_poles_and_branch_points(centre):
    """The relative error of each part, against double precision; of logarithms that of what vanishes at the centre."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** rng.uniform(-6, -0.5, (2, 500)) * rng.choice([-1, 1], (2, 500))
    z = (centre + scale[0] + 1j * scale[1]).astype(np.complex64)
    wide = z.astype(np.complex128)
    have = compiled([n for n in FUNCTIONS if n not in ("abs", "log2", "log10", "rsqrt", "sign", "reciprocal")], z)
    log, log1p = have.pop("log"), have.pop("log1p")
    for name, found in have.items():
        want = getattr(np, name)(wide)
        for part in (np.real, np.imag):
            error = np.abs(part(found) - part(want)) / np.abs(part(want))
            assert error.max() < 6e-7, (name, z[error.argmax()], error.max())
    if centre:
        assert np.all(np.abs(log.real - np.log(np.abs(wide))) < 1e-6 * np.abs(wide - centre))
    else:  # log1p of NumPy rounds to 1 + z: its series
        want = np.where(np.abs(wide) < 1e-3, wide - wide**2 / 2 + wide**3 / 3, np.log(1 + wide))
        assert np.all(np.abs(log1p - want) < 1e-6 * np.abs(want))


def test_powers_of_zero_and_to_the_zeroth(monkeypatch):
    """z^0 is 1, else 0^w is 0 where Re w > 0 and NaN elsewhere, on both tiers; in MLX too, but for 0^0 = NaN."""
    monkeypatch.setattr(knobs, "tier", "reference")
    parts = [0.0, -0.0, 1.0, -2.5, 0.3]
    numbers = np.array([complex(x, y) for x, y in itertools.product(parts, parts)], np.complex64)
    zero = np.zeros_like(numbers)
    power = mx.compile(mx.power)
    for base, exponent in ((zero, numbers), (-zero, numbers), (numbers, zero)):
        have, eager = (np.array(f(mx.array(base), mx.array(exponent))) for f in (power, mx.power))
        theirs = np.array(real.power(real.array(base), real.array(exponent)))
        assert np.all(same(have, eager))
        both_nan = np.isnan(have) & np.isnan(theirs)  # MLX: with an infinite real part
        assert np.all(same(have, theirs) | both_nan | ((base == 0) & (exponent == 0)))
