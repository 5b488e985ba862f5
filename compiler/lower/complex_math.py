"""Functions of complex numbers by their real and imaginary parts, with the values of C99's annex G (and so NumPy's) at
zeros, infinities, NaN and on both sides of branch cuts.

Inverse functions avoid what the textbook formulas cancel, overflow and lose: Hull, Fairgrieve and Tang, "Implementing
the complex arcsine and arccosine functions using exception handling" (1997), without its exceptions; the rest as Kahan,
"Branch cuts for complex elementary functions" (1987). The trigonometric ones are the hyperbolic ones with the parts
swapped: sin(a + ib) is (v, u) where sinh(b + ia) is (u, v).
"""

from __future__ import annotations

import math
from typing import Any

from mlxir.compiler.lower.builder import Reg
from mlxir.runtime.dtypes import complex64, float32

HUGE = 1e8  # beyond it 1 is nothing beside a square


def _pair(k: Any, real: Reg, imag: Reg) -> Reg:
    return Reg((real, imag), complex64, k)


def _swapped(function: Any) -> Any:
    """The function whose value at a + ib is that of `function` at b + ia, its parts swapped."""

    def swapped(k: Any, z: Reg) -> Reg:
        w = function(k, _pair(k, z.value[1], z.value[0]))
        return _pair(k, w.value[1], w.value[0])

    return swapped


def _scaled(function: Any, factor: float) -> Any:
    """By parts: a product with a complex number would make NaN of infinity times zero."""

    def scaled(k: Any, z: Reg) -> Reg:
        w = function(k, z)
        return _pair(k, w.value[0] * factor, w.value[1] * factor)

    return scaled


def _finite(k: Any, x: Reg) -> Reg:
    return k.abs(x) < math.inf


def _infinite(k: Any, x: Reg) -> Reg:
    return k.abs(x) == math.inf


def divide(k: Any, a: Reg, b: Reg) -> Reg:
    """Smith's algorithm as NumPy has it: the quotient of the divisor's parts neither overflows nor underflows early."""
    (ar, ai), (br, bi) = a.value, b.value
    first = k.abs(br) >= k.abs(bi)
    large, small = k.select(first, br, bi), k.select(first, bi, br)
    zero = (large == 0.0) & (small == 0.0)
    ratio = small / large
    scale = 1.0 / k.select(zero, k.const(0, float32), large + small * ratio)
    real = k.select(first, ar + ai * ratio, ar * ratio + ai)
    imag = k.select(first, ai - ar * ratio, ai * ratio - ar)
    return _pair(k, k.select(zero, ar, real) * scale, k.select(zero, ai, imag) * scale)


# -- exponentials and logarithms -------------------------------------------------------------------------------------
def exp(k: Any, z: Reg) -> Reg:
    a, b = z.value
    root = k.exp(a * 0.5)  # e^a may overflow where e^a cos b does not
    lost = _infinite(k, a) & ~_finite(k, b)  # the angle: an infinity in some direction, or zero
    limit = root * root
    real = k.select(lost, limit, root * k.cos(b) * root)
    imag = k.select(lost & (a < 0.0), limit, k.select(b == 0.0, b, root * k.sin(b) * root))
    return _pair(k, real, imag)


def expm1(k: Any, z: Reg) -> Reg:
    a, b = z.value
    half = k.sin(b * 0.5)
    return _pair(k, k.expm1(a) * k.cos(b) - half * half * 2.0, exp(k, z).value[1])


def log(k: Any, z: Reg) -> Reg:
    """Near 1, -1, i and -i log|z| is log1p(|z|^2 - 1) / 2, where |z| would be rounded to 1."""
    x, y = k.abs(z.value[0]), k.abs(z.value[1])
    large, small = k.max(x, y), k.min(x, y)
    near = k.log1p((large - 1.0) * (large + 1.0) + small * small) * 0.5
    unit = (k.abs(large - 1.0) < 0.25) & (small < 0.25)
    return _pair(k, k.select(unit, near, k.log(k.abs(z))), k.arctan2(z.value[1], z.value[0]))


def log1p(k: Any, z: Reg) -> Reg:
    """log|1 + z| is log1p(x (2 + x) + y^2) / 2, which does not round small z to 1 + z."""
    x, y = z.value
    small = k.max(k.abs(x), k.abs(y)) < 0.5
    near = k.log1p(x * (x + 2.0) + y * y) * 0.5
    return _pair(k, k.select(small, near, k.log(k.abs(_pair(k, x + 1.0, y)))), k.arctan2(y, x + 1.0))


def sqrt(k: Any, z: Reg) -> Reg:
    """Principal root: t = sqrt((|z| + |re|) / 2), the other part im / 2t."""
    real, imag = z.value
    large = k.max(k.abs(real), k.abs(imag)) > 1e37  # |z| may overflow
    half = k.select(large, k.const(0.25, float32), k.const(1, float32))
    x, y = real * half, imag * half
    t = k.sqrt(k.abs(_pair(k, x, y)) * 0.5 + k.abs(x) * 0.5)
    other = y / (k.select(t == 0.0, k.const(1, float32), t) * 2.0)
    double = k.select(large, k.const(2, float32), k.const(1, float32))
    t, other = t * double, other * double
    right, infinite = real >= 0.0, _infinite(k, imag)
    first, second = k.select(right, t, k.abs(other)), k.select(right, other, k.copysign(t, imag))
    return _pair(k, k.select(infinite, k.abs(imag), first), k.select(infinite, imag, second))


# -- hyperbolic and trigonometric ------------------------------------------------------------------------------------
def sinh(k: Any, z: Reg) -> Reg:
    a, b = z.value
    lost = _infinite(k, a) & ~_finite(k, b)
    real = k.select(lost | (a == 0.0), a, k.sinh(a) * k.cos(b))
    return _pair(k, real, k.select(b == 0.0, b, k.cosh(a) * k.sin(b)))


def cosh(k: Any, z: Reg) -> Reg:
    a, b = z.value
    lost = _infinite(k, a) & ~_finite(k, b)
    real = k.select(lost, k.abs(a), k.cosh(a) * k.cos(b))
    zero = k.copysign(k.const(0, float32), a) * k.copysign(k.const(1, float32), b)
    return _pair(k, real, k.select((a == 0.0) | (b == 0.0), zero, k.sinh(a) * k.sin(b)))


def tanh(k: Any, z: Reg) -> Reg:
    """(s cosh(a) (1 + t^2) + it) / (1 + (1 + t^2) s^2) with t = tan b, s = sinh a; far out 1 and a trace of sin 2b."""
    a, b = z.value
    far = k.abs(a) > 11.0
    x = k.select(far, k.const(0, float32), a)
    t, s = k.tan(b), k.sinh(x)
    beta = t * t + 1.0
    below = beta * s * s + 1.0
    real = k.select(a == 0.0, a, beta * k.sqrt(s * s + 1.0) * s / below)
    e = k.exp(-k.abs(a))
    trace = k.select(e == 0.0, k.copysign(k.const(0, float32), t), t / beta * 4.0 * e * e)
    known = _infinite(k, a) | _finite(k, b)  # else the angle of an infinity: NaN
    outside = k.select(known, k.copysign(k.const(1, float32), a), b - b)
    inside = k.select(b == 0.0, b, t / below)
    return _pair(k, k.select(far, outside, real), k.select(far, k.select(known, trace, b - b), inside))


def _arcs(k: Any, z: Reg) -> tuple[Reg, Reg, Reg]:
    """(|re|, n, v): the real part of arcsin is the angle of n + i|re|, that of arccos the one of re + in, and both have
    an imaginary part of size v = arccosh(a); a is half the sum of the distances from 1 and -1, n = sqrt(a^2 - re^2).
    """
    x, y = k.abs(z.value[0]), k.abs(z.value[1])
    one = k.const(1, float32)
    far = ~(k.maximum(x, y) <= HUGE)  # or NaN
    u, v = k.select(far, one, x), k.select(far, one, y)
    r, s = k.abs(_pair(k, u + 1.0, v)), k.abs(_pair(k, u - 1.0, v))
    a = (r + s) * 0.5
    outer, near = 1.0 / (r + u + 1.0), s + k.abs(u - 1.0)
    # a - u and a - 1: one of them is a sum of what is not small, the other of v^2 / what is not; at 1 both are the sum.
    total = (v * v * outer + near) * 0.5
    root_total, root_rest = k.sqrt(total), v * k.sqrt((outer + 1.0 / near) * 0.5)
    n = k.sqrt(a + u) * k.select(u <= 1.0, root_total, root_rest)
    excess = k.select(u < 1.0, root_rest * root_rest, total)
    height = k.log1p(excess + k.sqrt(a + 1.0) * k.select(u < 1.0, root_rest, root_total))
    beyond = k.log(k.abs(_pair(k, x * 2.0**-20, y * 2.0**-20))) + 21 * math.log(2)
    return x, k.select(x == 0.0, one, k.select(far, y, n)), k.select(far, beyond, height)


def arcsin(k: Any, z: Reg) -> Reg:
    x, n, v = _arcs(k, z)
    return _pair(k, k.copysign(k.arctan2(x, n), z.value[0]), k.copysign(v, z.value[1]))


def arccos(k: Any, z: Reg) -> Reg:
    _, n, v = _arcs(k, z)
    return _pair(k, k.arctan2(n, z.value[0]), -k.copysign(v, z.value[1]))


def arccosh(k: Any, z: Reg) -> Reg:
    w = arccos(k, z)
    return _pair(k, k.abs(w.value[1]), k.copysign(w.value[0], z.value[1]))


def arctanh(k: Any, z: Reg) -> Reg:
    """log1p(4x / ((1 - x)^2 + y^2)) / 4, and half the angle of (1 - x)(1 + x) - y^2 + 2iy; far out 1 / z and pi / 2."""
    x, y = k.abs(z.value[0]), k.abs(z.value[1])
    size = k.abs(_pair(k, x, y))
    far = size > HUGE
    one = k.const(1, float32)
    u, v = k.select(far, one, x), k.select(far, one, y)
    gap = k.abs(_pair(k, 1.0 - u, v))
    tiny = gap < 1e-10  # at the pole, where the square of the gap is zero
    ratio = k.select(tiny, k.const(2, float32), u * 4.0 / gap) / gap
    near = k.log1p(ratio) * k.select(tiny, k.const(0.5, float32), k.const(0.25, float32))
    beyond = k.select(size == math.inf, k.const(0, float32), x / size / size)
    real = k.select(x == 0.0, x, k.select(far, beyond, near))
    angle = k.arctan2(v * 2.0, (1.0 - u) * (u + 1.0) - v * v) * 0.5
    imag = k.select(far, k.select(y == y, k.const(math.pi / 2, float32), y), angle)
    return _pair(k, k.copysign(real, z.value[0]), k.copysign(imag, z.value[1]))


FUNCTIONS = {
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log2": _scaled(log, 1 / math.log(2)),
    "log10": _scaled(log, 1 / math.log(10)),
    "log1p": log1p,
    "sqrt": sqrt,
    "sinh": sinh,
    "cosh": cosh,
    "tanh": tanh,
    "sin": _swapped(sinh),
    "cos": lambda k, z: cosh(k, _pair(k, -z.value[1], z.value[0])),
    "tan": _swapped(tanh),
    "arcsin": arcsin,
    "arccos": arccos,
    "arctan": _swapped(arctanh),
    "arcsinh": _swapped(arcsin),
    "arccosh": arccosh,
    "arctanh": arctanh,
}
