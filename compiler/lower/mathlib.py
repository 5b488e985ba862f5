"""Transcendental functions as straight-line float32 code, written once against an abstract scalar builder `k`.

A loop around any of these bodies is vectorised by LLVM: there is no branch, no table, no call and no loop in them.
Handles passed in and returned are "float32" scalars of the builder; pow and the trigonometric functions use float64
inside, because a fused float64 step is cheaper there than double-float arithmetic.

The code relies on IEEE semantics: each operation is rounded once, nothing is reassociated, and a product is contracted
with a sum only where `k.fma` says so. `k.min(a, b)` and `k.max(a, b)` return b when either is NaN, so a bound stands
first and a NaN passes through. Special values follow NumPy (C99): infinities, NaN, signed zeros, denormals.

Polynomial coefficients are minimax fits whose coefficients were rounded to float32 one after the other, the rest being
refitted each time. Bounds in the docstrings are in units in the last place of the correctly rounded result, over all
finite arguments unless a range is given; tests/compiler/test_mathlib.py asserts them.
"""

import math

_F32, _F64, _I32, _I64 = "float32", "float64", "int32", "int64"

_LOG2E = 1.44269502
_LN2 = 0.693147182  # float32(ln 2)
_LN2_HI = 0.693147123  # the float32 below ln 2, so that _LN2_LO = ln 2 - _LN2_HI is positive: signs of zero survive
_LN2_LO = 5.769999e-08
_EXPONENT_MASK = -0x800000  # sign and exponent bits, as int32
_SMALLEST_NORMAL = 2.0**-126
_LARGEST = 3.40282347e38

# Adding _TO_INTEGER rounds a small float32 to an integer and leaves that integer in the low mantissa bits. _BIAS added
# to the constant makes those bits an exponent field.
_TO_INTEGER = 1.5 * 2.0**23
_BIAS = 127.0

# The product of these two float32 values is pi / 2 to 47 bits: fma(_PIO2_A, _PIO2_B, -r) is pi / 2 - r, rounded once.
_PIO2_A = 0.933189452
_PIO2_B = 1.68325555


def _const(k, value):
    return k.const(value, _F32)


def _polynomial(k, x, coefficients):
    """Horner's rule, the highest power first: the fewest operations, and independent lanes hide its latency."""
    p = _const(k, coefficients[0])
    for c in coefficients[1:]:
        p = k.fma(p, x, _const(k, c))
    return p


def _clamp(k, x, low, high):
    return k.max(_const(k, low), k.min(_const(k, high), x))


def _shifted_exponent(k, t):
    """2**n, where the low mantissa bits of t hold n plus the exponent bias."""
    return k.bitcast(k.bitcast(t, _I32) << 23, _F32)


def _scaled(k, x, bits):
    """x 2**n, where the low bits hold n plus twice the exponent bias: by two normal numbers also where the result is
    denormal or overflows, the second product rounding once."""
    half = (bits << 22) & 0x7F800000
    return x * k.bitcast(half, _F32) * k.bitcast((bits << 23) - half, _F32)


# ---- exponentials ---------------------------------------------------------------------------------------------------

# exp(r) on [-ln 2 / 2, ln 2 / 2] and 2**r on [-1/2, 1/2], relative errors 2**-28.2 and 2**-28.3
_EXP = (0.0013821038, 0.00836867373, 0.0416682623, 0.166665211, 0.49999994, 1.0, 1.0)
_EXP2 = (0.000153289075, 0.00133909762, 0.00961850025, 0.0555035956, 0.240226477, 0.693147182, 1.0)
# (exp(r) - 1) / r on [-ln 2 / 2, ln 2 / 2], relative error of exp(r) - 1 2**-26.1
_EXPM1 = (0.00138706923, 0.00836627185, 0.0416674353, 0.166665465, 0.49999997, 1.0)
# ((exp(2 r) - 1) / (2 r) - 1) / r on [-ln 2 / 4, ln 2 / 4], relative error of exp(2 r) - 1 2**-26.1
_TANH = (0.0443856716, 0.13386327, 0.333339512, 0.666661799, 0.99999994)


def _reduce_exp(k, x, magic):
    """t and r with x = n ln 2 + r, n = t - magic being the integer that magic rounds to."""
    t = k.fma(x, _const(k, _LOG2E), _const(k, magic))
    n = t - magic
    return t, k.fma(n, _const(k, -_LN2_LO), k.fma(n, _const(k, -_LN2_HI), x))


def _exp_bounded(k, x):
    """exp on [-104, 89]."""
    t, r = _reduce_exp(k, x, _TO_INTEGER + 2.0 * _BIAS)
    return _scaled(k, _polynomial(k, r, _EXP), k.bitcast(t, _I32))


def exp(k, x):
    """e**x."""
    return _exp_bounded(k, _clamp(k, x, -104.0, 89.0))


def exp2(k, x):
    """2**x, exact for integers."""
    x = _clamp(k, x, -151.0, 129.0)
    t = x + (_TO_INTEGER + 2.0 * _BIAS)
    return _scaled(k, _polynomial(k, x - (t - (_TO_INTEGER + 2.0 * _BIAS)), _EXP2), k.bitcast(t, _I32))


def expm1(k, x):
    """e**x - 1 without cancellation near 0."""
    # half the result is computed, since 2**128 is not a float32; subtracting 0.5 - s keeps the sign of zero
    t, r = _reduce_exp(k, _clamp(k, x, -20.0, 89.0), _TO_INTEGER + _BIAS - 1.0)
    s = _shifted_exponent(k, t)
    half = k.fma(_polynomial(k, r, _EXPM1) * r, s, -(0.5 - s))
    return half + half


def sigmoid(k, x):
    """1 / (1 + e**-x), with full relative accuracy where it tends to 0."""
    e = _exp_bounded(k, _clamp(k, x, -104.0, 64.0))
    return e / (e + 1.0)


def tanh(k, x):
    """Hyperbolic tangent, v / (v + 1) with v = (e**(2 |x|) - 1) / 2."""
    a = k.min(_const(k, 9.02), k.abs(x))
    t = k.fma(a, _const(k, 2.0 * _LOG2E), _const(k, _TO_INTEGER + _BIAS))
    r = k.fma(t - (_TO_INTEGER + _BIAS), _const(k, -0.5 * _LN2), a)
    s = _shifted_exponent(k, t)
    v = k.fma(k.fma(_polynomial(k, r, _TANH), r * r, r), s, k.fma(s, _const(k, 0.5), _const(k, -0.5)))
    return k.copysign(v / (v + 1.0), x)


# sinh(r) = r + r**3 S(r**2) and cosh(r) = 1 + r**2 C(r**2) on [-ln 2 / 2, ln 2 / 2], relative errors 2**-26 and 2**-33
_SINH = (0.00836675335, 0.16666542)
_COSH = (0.00139354914, 0.0416664593, 0.5)


def _sinh_cosh_parts(k, x):
    """For |x| = n ln 2 + r: sinh(r), cosh(r) - 1, sinh(n ln 2) / 2 and cosh(n ln 2) / 2 (halved against overflow)."""
    t, r = _reduce_exp(k, k.min(_const(k, 89.5), k.abs(x)), _TO_INTEGER + _BIAS - 2.0)
    z = r * r
    sinh_r = k.fma(_polynomial(k, z, _SINH), z * r, r)
    cosh_r = _polynomial(k, z, _COSH) * z
    bits = k.bitcast(t, _I32) << 23
    up = k.bitcast(bits, _F32)  # 2**(n - 2)
    down = k.bitcast(-(254 << 23) - bits, _F32)  # 2**(6 - n), a normal number for every n: 258 - 512 = -254
    return sinh_r, cosh_r, k.fma(down, _const(k, -(2.0**-8)), up), k.fma(down, _const(k, 2.0**-8), up)


def sinh(k, x):
    """Hyperbolic sine, by the addition theorem: no division and no cancellation near 0."""
    sinh_r, cosh_r, sinh_n, cosh_n = _sinh_cosh_parts(k, x)
    half = k.fma(sinh_r, cosh_n, cosh_r * sinh_n) + sinh_n
    return k.copysign(half + half, x)


def cosh(k, x):
    """Hyperbolic cosine."""
    sinh_r, cosh_r, sinh_n, cosh_n = _sinh_cosh_parts(k, x)
    half = k.fma(sinh_r, sinh_n, cosh_r * cosh_n) + cosh_n
    return half + half


# ---- logarithms -----------------------------------------------------------------------------------------------------

# (log(1 + f) - f) / f**2, likewise log2 and log10, on [-1/3, 1/3], relative error of the logarithm 2**-25.2
_LOG = (0.140211686, -0.153832182, 0.139970303, -0.16417098, 0.200110778, -0.250077456, 0.333332002, -0.499999374)
_LOG2 = (0.20230633, -0.221939147, 0.201928392, -0.23684743, 0.288699329, -0.360785574, 0.480896413, -0.721346617)
_LOG10 = (
    0.0608988442, -0.0668342933, 0.0607864894, -0.0712931156, 0.0869071782, -0.108607605, 0.144764245, -0.217146963,
)  # fmt: skip
# (log(1 + f) - f) / f**2 on [-1/4, 1/2], relative error of the logarithm 2**-25.1
_LOG1P = (0.0541502424, -0.120672189, 0.149822742, -0.168223098, 0.199772075, -0.249934912, 0.333335459, -0.500000596)

_LOG2E_LO = 1.92596303e-08  # log2(e) - _LOG2E
_LOG10E_HI, _LOG10E_LO = 0.434294492, -1.010305e-08
_LOG10_2_HI, _LOG10_2_LO = 0.30103001, -1.43209888e-08
_TWO_THIRDS_BITS = 0x3F2AAAAB
_THREE_QUARTERS_BITS = 0x3F400000


def _split_normal(k, x, low_bits=_TWO_THIRDS_BITS):
    """e (shifted left by 23, int32) and f with x = 2**e (1 + f) and low <= 1 + f < 2 low, for a positive normal x."""
    e = (k.bitcast(x, _I32) - low_bits) & _EXPONENT_MASK
    return e, k.bitcast(k.bitcast(x, _I32) - e, _F32) - 1.0


def _split(k, x):
    """e (as float32, times 2**23) and f with x = 2**e (1 + f) and 2/3 <= 1 + f < 4/3, for x > 0, denormals included.

    A zero, an infinity or a NaN gives some finite values: callers put these edges right."""
    # the bits of a denormal, read as an integer, are x 2**149
    denormal = x < _SMALLEST_NORMAL
    e, f = _split_normal(k, k.select(denormal, k.cast(k.bitcast(x, _I32), _F32), x))
    return k.cast(e - k.select(denormal, k.const(149 << 23, _I32), k.const(0, _I32)), _F32), f


def _log_edges(k, x, result):
    """The result of a logarithm that is -inf at x = 0, NaN below and at NaN, inf at inf."""
    # Comparisons compete with multiplications; bits, sums and extrema do not. Any other bit makes a NaN of -inf.
    bits = k.bitcast(x, _I32)
    edge = k.bitcast(bits | (bits >> 8) | _EXPONENT_MASK, _F32) + x
    return k.select(x <= 0.0, edge, k.max(result, x - _LARGEST))


def log(k, x):
    """Natural logarithm."""
    e, f = _split(k, x)
    return _log_edges(k, x, k.fma(e, _const(k, _LN2 * 2.0**-23), k.fma(_polynomial(k, f, _LOG), f * f, f)))


def log2(k, x):
    """Logarithm to base 2, exact for powers of two."""
    e, f = _split(k, x)
    r = k.fma(f, _const(k, _LOG2E_LO), _polynomial(k, f, _LOG2) * (f * f))
    return _log_edges(k, x, k.fma(e, _const(k, 2.0**-23), k.fma(f, _const(k, _LOG2E), r)))


def log10(k, x):
    """Logarithm to base 10."""
    e, f = _split(k, x)
    r = k.fma(f, _const(k, _LOG10E_LO), _polynomial(k, f, _LOG10) * (f * f))
    r = k.fma(f, _const(k, _LOG10E_HI), k.fma(e, _const(k, _LOG10_2_LO * 2.0**-23), r))
    return _log_edges(k, x, k.fma(e, _const(k, _LOG10_2_HI * 2.0**-23), r))


def _log1p_finite(k, x):
    """log(1 + x) for finite x > -1: with 1 + x = 2**e (1 + f), f = 2**-e x - (1 - 2**-e) loses nothing of x."""
    minus_e = (_THREE_QUARTERS_BITS + 0x7FFFFF - k.bitcast(x + 1.0, _I32)) & _EXPONENT_MASK
    scale = k.bitcast(minus_e + (129 << 23), _F32)  # 2**(2 - e), a normal number for every e
    f = k.bitcast(k.bitcast(x, _I32) + minus_e, _F32) - k.fma(scale, _const(k, -0.25), _const(k, 1.0))
    # the negative factor keeps the sign of zero
    r = k.fma(_polynomial(k, f, _LOG1P), f * f, f)
    return k.fma(k.cast(minus_e, _F32), _const(k, -_LN2 * 2.0**-23), r)


def log1p(k, x):
    """log(1 + x), accurate near 0."""
    return _log_edges(k, x + 1.0, _log1p_finite(k, x))


def _log_of_sum(k, a, w):
    """log1p(w), or log(2 a) for a > 2**28, where w = a + sqrt(a**2 +- 1) may have overflowed and equals 2 a."""
    large = a > 2.0**28
    r = _log1p_finite(k, k.select(large, a, w)) + k.select(large, _const(k, _LN2), _const(k, 0.0))
    return k.select(a < math.inf, r, a)


def arcsinh(k, x):
    """Inverse hyperbolic sine, log1p(|x| + x**2 / (1 + sqrt(x**2 + 1)))."""
    a = k.abs(x)
    w = a + a * a / (k.sqrt(k.fma(a, a, _const(k, 1.0))) + 1.0)
    return k.copysign(_log_of_sum(k, a, w), x)


def arccosh(k, x):
    """Inverse hyperbolic cosine, log1p(t + sqrt(t**2 + 2 t)) with t = x - 1; NaN below 1."""
    t = x - 1.0
    r = _log_of_sum(k, x, t + k.sqrt(k.fma(t, t, t + t)))
    return k.select(x >= 1.0, r, _const(k, math.nan))


def arctanh(k, x):
    """Inverse hyperbolic tangent, log1p(2 |x| / (1 - |x|)) / 2; infinite at +-1, NaN beyond."""
    a = k.abs(x)
    r = _log1p_finite(k, (a + a) / (1.0 - a)) * 0.5
    edge = k.select(a == 1.0, _const(k, math.inf), _const(k, math.nan))
    return k.copysign(k.select(a < 1.0, r, edge), x)


# ---- error function -------------------------------------------------------------------------------------------------

# 4 (1 - (1 - erf(a))**(1/8)) / a on [0, 4], its constant term as a sum of two; relative error of erf 2**-27.0
_ERF_HEAD = 0.564189613
_ERF = (
    1.91511845e-05, -0.000355074793, 0.0020500261, -0.00074391946, -0.026358705, 0.0083568031, 0.278521359,
    -2.93176914e-08,
)  # fmt: skip

# erfinv(x) / x as polynomials in w = log(1 - x**2) down to -6.125, and in w + 11.375 from there to -16.7 (about their
# middle they lose less to rounding), relative errors 2**-23.9 and 2**-23.2
_ERFINV_CENTRE = (
    5.47750867e-09, 1.44362176e-07, 1.24051007e-06, 1.96030342e-07, -5.58326501e-05, -0.000146953826, 0.00231570029,
    0.0115399938, -0.232015282, 0.886226892,
)  # fmt: skip
_ERFINV_TAIL = (
    2.59414795e-10, 1.81478421e-09, -1.1183884e-08, -3.12719095e-07, -6.26552719e-06, -0.000130930406, -0.00318732997,
    -0.14920263, 3.2072897,
)  # fmt: skip
_ERFINV_TAIL_CENTRE = -11.375


def erf(k, x):
    """Error function as 1 - (1 - v)**8, v a polynomial in |x|: one formula for the whole axis, no division."""
    a = k.min(_const(k, 4.0), k.abs(x))
    v4 = k.fma(a, _const(k, _ERF_HEAD), _polynomial(k, a, _ERF) * a)  # of four, so that denormals stay whole
    v = v4 * 0.25
    # d = 2 v - (1 - (1 - v)**2), then 4 v - (1 - (1 - v)**4): what is subtracted loses less than what is left
    d = v * v
    w = (v + v) - d
    d = k.fma(w, w, d + d)
    w = v4 - d
    return k.copysign(k.fma(-w, w, w + w), x)


def erfinv(k, x):
    """Inverse error function, after Giles: x times a polynomial in w = log(1 - x**2); infinite at +-1, NaN beyond."""
    q = k.fma(-x, x, _const(k, 1.0))
    e, f = _split_normal(k, q)
    w = k.fma(_polynomial(k, f, _LOG), f * f, f)
    w = k.fma(k.cast(e, _F32), _const(k, _LN2 * 2.0**-23), w)
    # at w = -inf the tail's even degree and positive leading coefficient give +inf
    w = k.select(q > 0.0, w, k.select(q == 0.0, _const(k, -math.inf), _const(k, math.nan)))
    tail = _polynomial(k, w - _ERFINV_TAIL_CENTRE, _ERFINV_TAIL)
    return k.select(w > -6.125, _polynomial(k, w, _ERFINV_CENTRE), tail) * x


# ---- trigonometric functions ----------------------------------------------------------------------------------------

# From |x| = bound on: 1 / pi, less the leading bits whose product with any such float32 x is a multiple of 2, as the
# sum of two float64 values.
_INVERSE_PI = (
    (0.0, 0.31830988618379064, 3.583247455607534e-17),
    (2.0**49, 1.284127663345183e-08, -2.7170920538718753e-25),
    (2.0**75, 1.46854777018591e-16, 5.090832193749855e-33),
    (2.0**102, -2.7170920538718753e-25, 1.9429493537593412e-41),
)
_TO_INTEGER_F64 = 1.5 * 2.0**52

# (sin(r) - r) / r**3 on [-1.654, 1.654] and (tan(r) - r) / r**3 on [-0.868, 0.868], in r**2, relative errors
# 2**-26; the first is tuned to give a sine of 1 at float32(pi / 2), and nowhere more
_SIN = (2.58763475e-06, -0.000198013615, 0.0083329482, -0.166666538)
_TAN = (0.00579123665, -0.00302360673, 0.0135041149, 0.0201629139, 0.0542956032, 0.133304045, 0.333334208)


def _reduce_turns(k, x, per_pi):
    """t and f (float64) with x per_pi / pi = n + f, n the integer in the low mantissa bits of t; NaN at infinities.

    Payne and Hanek's reduction with two constants: the fused step that subtracts n from a float64 product of x with 53
    bits of 1 / pi is exact, and 53 more bits follow. |f| exceeds 1/2 by at most 0.0259 per_pi.
    """
    a = k.abs(x)
    high, low = (k.const(c * per_pi, _F64) for c in _INVERSE_PI[0][1:])
    for bound, next_high, next_low in _INVERSE_PI[1:]:
        beyond = a >= bound
        high = k.select(beyond, k.const(next_high * per_pi, _F64), high)
        low = k.select(beyond, k.const(next_low * per_pi, _F64), low)
    d = k.cast(x, _F64)
    t = k.fma(d, high, k.const(_TO_INTEGER_F64, _F64))
    return t, k.fma(d, low, k.fma(d, high, -(t - _TO_INTEGER_F64)))


def _sin_turns(k, t, f):
    """(-1)**n sin(pi f), n being the integer in the low mantissa bits of t."""
    f = k.bitcast(k.bitcast(f, _I64) ^ (k.bitcast(t, _I64) << 63), _F64)
    r = k.cast(f * math.pi, _F32)
    z = r * r
    # the sum loses the sign of a negative zero
    return k.copysign(k.fma(_polynomial(k, z, _SIN), z * r, r), r)


def sin(k, x):
    """Sine, for every finite argument."""
    t, f = _reduce_turns(k, x, 1.0)
    return _sin_turns(k, t, f)


def cos(k, x):
    """Cosine, for every finite argument: cos(pi (n + f)) = (-1)**n sin(pi (1/2 - |f|))."""
    t, f = _reduce_turns(k, x, 1.0)
    return _sin_turns(k, t, 0.5 - k.abs(f))


def tan(k, x):
    """Tangent, for every finite argument."""
    t, f = _reduce_turns(k, x, 2.0)
    r = k.cast(f * (0.5 * math.pi), _F32)
    z = r * r
    v = k.fma(_polynomial(k, z, _TAN), z * r, r)
    odd = (k.bitcast(t, _I64) & 1) != 0
    return k.select(odd, -1.0 / v, v)


# (arcsin(s) - s) / s**3 on [0, 1/2] and (arctan(s) - s) / s**3 on [0, 1], in s**2, relative errors 2**-27.6, 2**-25.8
_ARCSIN = (0.0421583131, 0.0241847765, 0.0454691499, 0.0749530941, 0.166667521)
_ARCTAN = (
    0.00291987741, -0.0163645409, 0.0432062298, -0.0755173713, 0.10665787, -0.142110035, 0.199937671, -0.333331525,
)  # fmt: skip


def _pi_over_2_minus(k, r):
    return k.fma(_const(k, _PIO2_A), _const(k, _PIO2_B), -r)


def _arcsin_parts(k, x):
    """large = |x| > 1/2, and arcsin(s) with s = |x|, or if large s = sqrt((1 - |x|) / 2); NaN where |x| > 1."""
    a = k.abs(x)
    large = a > 0.5
    z = k.select(large, k.fma(a, _const(k, -0.5), _const(k, 0.5)), a * a)
    s = k.select(large, k.sqrt(z), a)
    return large, k.fma(_polynomial(k, z, _ARCSIN), s * z, s)


def arcsin(k, x):
    """Inverse sine; arcsin(a) = pi / 2 - 2 arcsin(sqrt((1 - a) / 2)) above 1/2."""
    large, r = _arcsin_parts(k, x)
    return k.copysign(k.select(large, _pi_over_2_minus(k, r + r), r), x)


def arccos(k, x):
    """Inverse cosine."""
    large, r = _arcsin_parts(k, x)
    r = k.copysign(r, x)
    base = k.select(x < 0.0, _const(k, math.pi), _const(k, 0.0))
    return k.select(large, k.fma(r, _const(k, 2.0), base), _pi_over_2_minus(k, r))


def _arctan_unit(k, s):
    """arctan on [0, 1]."""
    z = s * s
    return k.fma(_polynomial(k, z, _ARCTAN), z * s, s)


def arctan(k, x):
    """Inverse tangent."""
    a = k.abs(x)
    one = _const(k, 1.0)
    r = _arctan_unit(k, k.min(one, a) / k.max(one, a))
    return k.copysign(k.select(a > 1.0, _pi_over_2_minus(k, r), r), x)


def arctan2(k, y, x):
    """Angle of the point (x, y), in [-pi, pi]; zeros and infinities as C99's atan2."""
    ax, ay = k.abs(x), k.abs(y)
    # the operands' order lets a NaN in either through; 2**-149 turns 0 / 0 into 0
    shorter, longer = k.min(ax, ay), k.max(_const(k, 2.0**-149), k.max(ay, ax))
    r = _arctan_unit(k, k.select(shorter == longer, _const(k, 1.0), shorter / longer))
    r = k.select(ay > ax, _pi_over_2_minus(k, r), r)
    r = k.select(k.bitcast(x, _I32) < 0, k.fma(_const(k, _PIO2_A), _const(k, 2.0 * _PIO2_B), -r), r)
    return k.copysign(r, y)


# ---- power ----------------------------------------------------------------------------------------------------------

# log2(1 + f) / f on [-1/4, 1/2], relative error 2**-33: the high powers in float32, the low ones in float64
_POW_LOG2_HIGH = (-0.044958815, 0.115508996, -0.152872056, 0.164656714, -0.180314407, 0.205820397, -0.240428224)
_POW_LOG2_LOW = (0.2885460235013229, -0.3606743593517662, 0.4808982822264261, -0.7213475168560286, 1.4426950409945383)


def pow(k, x, y):
    """x**y, the logarithm and its product with y in float64. Special cases of C99: pow(x, 0) = pow(1, y) = 1 even for
    NaN, NaN for a finite negative x with a fractional y, signs of zero and infinity by odd integers y."""
    a = k.abs(x)
    denormal = a < _SMALLEST_NORMAL
    e, f = _split_normal(k, k.select(denormal, a * 2.0**23, a), _THREE_QUARTERS_BITS)
    e = k.fma(k.cast(e, _F32), _const(k, 2.0**-23), k.select(denormal, _const(k, -23.0), _const(k, 0.0)))
    e = k.select(a < math.inf, k.select(a == 0.0, _const(k, -math.inf), e), a)

    p = k.cast(_polynomial(k, f, _POW_LOG2_HIGH), _F64)
    f = k.cast(f, _F64)
    for c in _POW_LOG2_LOW:
        p = k.fma(p, f, k.const(c, _F64))
    # a finite y times log2(1) = 0 is 0, also where y was infinite; 0 times an infinite logarithm is put right below
    v = k.cast(_clamp(k, y, -_LARGEST, _LARGEST), _F64) * k.fma(p, f, k.cast(e, _F64))
    v = k.max(k.const(-152.0, _F64), k.min(k.const(130.0, _F64), v))

    magic = _TO_INTEGER_F64 + 2.0 * _BIAS
    t = v + magic
    bits = k.cast(k.bitcast(t, _I64), _I32)
    magnitude = _scaled(k, _polynomial(k, k.cast(v - (t - magic), _F32), _EXP2), bits)

    floor, half = k.floor(y), y * 0.5
    odd = (floor == y) & (k.floor(half) != half)
    result = k.select(odd, k.copysign(magnitude, x), magnitude)
    result = k.select((x < 0.0) & (a < math.inf) & (floor != y), _const(k, math.nan), result)
    return k.select((y == 0.0) | (x == 1.0), _const(k, 1.0), result)
