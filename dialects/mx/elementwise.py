"""Elementwise primitives: one body and one line per partial derivative each.

In a partial `(m, g, out, x, ...)`, `g` stands for the incoming tangent or cotangent. Derivative conventions at ties and
kinks
are MLX's (BEHAVIOUR section 5). `k` is the scalar builder of the kernels; its operators work on one element.
"""

from __future__ import annotations

import math

import numpy as np

from mlxir.runtime.dtypes import Dtype, bool_, float16, float32

from .kinds import Elementwise, compare

LOG2, LOG10 = math.log(2.0), math.log(10.0)
TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


def _inexact(*dtypes: Dtype) -> bool:
    return all(d is dtypes[0] for d in dtypes) and dtypes[0].is_inexact


def _real(*dtypes: Dtype) -> bool:
    return all(d is dtypes[0] for d in dtypes) and dtypes[0].kind != "c"


def _floating(*dtypes: Dtype) -> bool:
    return all(d is dtypes[0] for d in dtypes) and dtypes[0].is_float


def _integral(*dtypes: Dtype) -> bool:
    return all(d is dtypes[0] for d in dtypes) and dtypes[0].kind in "biu"


def _numeric(*dtypes: Dtype) -> bool:
    return all(d is dtypes[0] for d in dtypes) and dtypes[0].kind != "b"


def _real_part(dtype: Dtype) -> Dtype:
    return float32 if dtype.kind == "c" else dtype


def _unary(name, body, reference, partial=None, accepts=_inexact, **kw):
    return Elementwise(name, 1, body, reference, (partial,) if partial else (), accepts=accepts, **kw)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if x.size else x


def _erfinv(x: np.ndarray) -> np.ndarray:
    """Giles' single-precision start (GPU Computing Gems, 2010), then two Newton steps on erf in float64."""
    y = np.asarray(x, np.float64)
    w = -np.log((1 - y) * (1 + y))
    small = np.polyval(
        [2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
         0.246640727, 1.50140941], w - 2.5)  # fmt: skip
    large = np.polyval(
        [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
         1.00167406, 2.83297682], np.sqrt(np.maximum(w, 5)) - 3)  # fmt: skip
    r = np.where(w < 5, small, large) * y
    for _ in range(2):
        step = (_erf(r) - y) * (math.sqrt(math.pi) / 2) * np.exp(r * r)
        r = np.where(np.isfinite(step), r - step, r)
    return np.where(np.abs(y) == 1, np.copysign(np.inf, y), np.where(np.abs(y) > 1, np.nan, r))


def _sign(x: np.ndarray) -> np.ndarray:
    if x.dtype == np.bool_:
        return x
    if x.dtype.kind == "c":
        return np.where(x == 0, 0, x / np.maximum(np.abs(x), np.finfo(np.float32).tiny))
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype) if x.dtype.kind == "f" else np.sign(x)  # NaN gives 0


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x.real < 0, np.exp(np.minimum(x, 0)) / (1 + np.exp(np.minimum(x, 0))), 1 / (1 + np.exp(-x)))


def _int_or(integer, real):
    """A NumPy reference that treats integers and bool apart from inexact numbers."""
    return lambda *xs: integer(*xs) if xs[0].dtype.kind in "biu" else real(*xs)


def _floor_divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integer division by zero gives 0, as compiled code does; floats give floor(x / y)."""
    if x.dtype.kind in "biu":
        safe = np.where(y == 0, np.ones((), y.dtype), y)
        return np.where(y == 0, np.zeros((), x.dtype), (x & safe) if x.dtype.kind == "b" else np.floor_divide(x, safe))
    return np.floor(x / y)


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "b":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), x.dtype)
    if x.dtype.kind in "iu":
        safe = np.where(y == 0, np.ones((), y.dtype), y)
        return np.where(y == 0, np.zeros((), x.dtype), np.remainder(x, safe))
    return np.remainder(x, y)


def _power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Integers wrap around and a negative exponent counts as 0 multiplications unless the base is +-1, as in MLX."""
    if x.dtype.kind == "b":
        return x | ~y
    if x.dtype.kind in "iu":
        x, y = np.broadcast_arrays(x, y)
        result = np.power(x, np.maximum(y, 0))
        return np.where(y < 0, np.zeros((), x.dtype), result)
    return np.power(x, y)


def _minus(m, g):
    """-g; bool has no sign, its arithmetic is modulo 2."""
    return g if g.dtype is bool_ else -g


def _wide(partial):
    """A partial derivative that squares its operands: float16 would overflow where the derivative does not."""

    def rule(m, g, o, *xs):
        if xs[0].dtype is not float16:
            return partial(m, g, o, *xs)
        return m.cast(partial(m, *[m.cast(v, float32) for v in (g, o, *xs)]), float16)

    return rule


def _power_by_base(m, g, o, x, y):
    """g y x^(y-1); zero where y is, at x = 0 too (MLX: NaN)."""
    if not x.dtype.is_inexact:
        return g * y * m.power(x, y - 1)
    zero = m.equal(y, m.zeros(y))
    return m.select(
        zero,
        m.zeros(g),
        g * y * m.power(x, m.select(zero, m.full(value=1, shape=tuple(y.shape), dtype=y.dtype), y - 1)),
    )


def _power_by_exponent(m, g, o, x, y):
    """g log(x) x^y; zero where x is (MLX: -inf at 0^0), in the second derivative too, hence a logarithm that stays
    finite.
    """
    if not x.dtype.is_inexact:
        return m.zeros(g)
    zero = m.equal(x, m.zeros(x))
    return g * m.log(m.select(zero, m.full(value=1, shape=tuple(x.shape), dtype=x.dtype), x)) * o


def _shift(fn):
    def shifted(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if x.dtype.kind == "b":
            return x.astype(bool)
        return fn(x, y)

    return shifted


# -- arithmetic ------------------------------------------------------------------------------------------------------
add = Elementwise("add", 2, lambda k, x, y: x + y, _int_or(lambda x, y: x + y, np.add),
                  (lambda m, g, o, x, y: g, lambda m, g, o, x, y: g))  # fmt: skip
subtract = Elementwise("subtract", 2, lambda k, x, y: x - y,
                       lambda x, y: np.logical_xor(x, y) if x.dtype == np.bool_ else np.subtract(x, y),
                       (lambda m, g, o, x, y: g, lambda m, g, o, x, y: _minus(m, g)))  # fmt: skip
multiply = Elementwise("multiply", 2, lambda k, x, y: x * y, np.multiply,
                       (lambda m, g, o, x, y: g * y, lambda m, g, o, x, y: g * x))  # fmt: skip
divide = Elementwise("divide", 2, lambda k, x, y: x / y, np.divide,
                     (lambda m, g, o, x, y: g / y, lambda m, g, o, x, y: -(g * o) / y), accepts=_inexact)  # fmt: skip
floor_divide = Elementwise(
    "floor_divide", 2, lambda k, x, y: k.floor_divide(x, y), _floor_divide, accepts=_real, flat=True
)
remainder = Elementwise("remainder", 2, lambda k, x, y: k.remainder(x, y), _remainder,
                        (lambda m, g, o, x, y: g, lambda m, g, o, x, y: _minus(m, g) * m.floor_divide(x, y)),
                        accepts=_real)  # fmt: skip
power = Elementwise("power", 2, lambda k, x, y: k.power(x, y), _power,
                    (_power_by_base, _power_by_exponent), costly=True)  # fmt: skip
maximum = Elementwise("maximum", 2, lambda k, x, y: k.maximum(x, y), np.maximum,
                      (lambda m, g, o, x, y: m.select(m.greater(x, y), g, m.zeros(g)),
                       lambda m, g, o, x, y: m.select(m.greater(x, y), m.zeros(g), g)))  # fmt: skip
minimum = Elementwise("minimum", 2, lambda k, x, y: k.minimum(x, y), np.minimum,
                      (lambda m, g, o, x, y: m.select(m.less(x, y), g, m.zeros(g)),
                       lambda m, g, o, x, y: m.select(m.less(x, y), m.zeros(g), g)))  # fmt: skip
arctan2 = Elementwise("arctan2", 2, lambda k, x, y: k.arctan2(x, y), np.arctan2,
                      (_wide(lambda m, g, o, x, y: g * y / (x * x + y * y)),
                       _wide(lambda m, g, o, x, y: -g * x / (x * x + y * y))),
                      accepts=_floating, costly=True)  # fmt: skip
logaddexp = Elementwise("logaddexp", 2, lambda k, x, y: k.logaddexp(x, y), np.logaddexp,
                        (lambda m, g, o, x, y: g * m.sigmoid(x - y), lambda m, g, o, x, y: g * m.sigmoid(y - x)),
                        accepts=_floating, costly=True)  # fmt: skip
negative = _unary("negative", lambda k, x: -x, np.negative, lambda m, g, o, x: -g, accepts=_numeric)


def _abs_partial(m, g, o, x):
    """sign(x) for real x; |z| is not holomorphic, its tangent is Re(conj(sign z) t) and its cotangent ct * sign z."""
    if x.dtype.kind != "c":
        return g * m.sign(x)
    return m.real(m.conjugate(m.sign(x)) * g) if g.dtype.kind == "c" else m.astype(g, dtype=x.dtype) * m.sign(x)


abs_ = _unary("abs", lambda k, x: k.abs(x), np.abs, _abs_partial, accepts=None, result=_real_part)


def _sign_partial(m, g, o, x):
    """Zero; z / |z| moves across the direction of z only. At z = 0 zero."""
    if x.dtype.kind != "c":
        return m.zeros(g)
    size, along = m.abs(x), m.real(m.conjugate(o) * g)
    zero = m.equal(size, m.zeros(size))
    across = (g - m.cast(along, g.dtype) * o) / m.cast(
        m.select(zero, m.full(value=1, shape=tuple(size.shape), dtype=size.dtype), size), g.dtype
    )
    return m.select(zero, m.zeros(g), across)


sign = _unary("sign", lambda k, x: k.sign(x), _sign, _sign_partial, accepts=None, real_linear=True)
square = _unary("square", lambda k, x: x * x, lambda x: x * x, lambda m, g, o, x: g * x * 2, accepts=None)
sqrt = _unary("sqrt", lambda k, x: k.sqrt(x), np.sqrt, lambda m, g, o, x: g * 0.5 / o)
rsqrt = _unary("rsqrt", lambda k, x: k.rsqrt(x), lambda x: 1 / np.sqrt(x), lambda m, g, o, x: g * -0.5 * o / x)
reciprocal = _unary("reciprocal", lambda k, x: 1.0 / x, lambda x: 1 / x, lambda m, g, o, x: -g * o * o)

# -- exponentials and logarithms -------------------------------------------------------------------------------------
exp = _unary("exp", lambda k, x: k.exp(x), np.exp, lambda m, g, o, x: g * o, costly=True)
expm1 = _unary("expm1", lambda k, x: k.expm1(x), np.expm1, lambda m, g, o, x: g * (o + 1), costly=True)
log = _unary("log", lambda k, x: k.log(x), np.log, lambda m, g, o, x: g / x, costly=True)
log2 = _unary("log2", lambda k, x: k.log2(x), np.log2, lambda m, g, o, x: g * (1 / LOG2) / x, costly=True)
log10 = _unary("log10", lambda k, x: k.log10(x), np.log10, lambda m, g, o, x: g * (1 / LOG10) / x, costly=True)
log1p = _unary("log1p", lambda k, x: k.log1p(x), np.log1p, lambda m, g, o, x: g / (x + 1), costly=True)
sigmoid = _unary("sigmoid", lambda k, x: k.sigmoid(x), _sigmoid, lambda m, g, o, x: g * o * (1 - o), costly=True)

# -- trigonometric and hyperbolic ------------------------------------------------------------------------------------
sin = _unary("sin", lambda k, x: k.sin(x), np.sin, lambda m, g, o, x: g * m.cos(x), costly=True)
cos = _unary("cos", lambda k, x: k.cos(x), np.cos, lambda m, g, o, x: -g * m.sin(x), costly=True)
tan = _unary("tan", lambda k, x: k.tan(x), np.tan, lambda m, g, o, x: g * (o * o + 1), costly=True)
arcsin = _unary("arcsin", lambda k, x: k.arcsin(x), np.arcsin, lambda m, g, o, x: g * m.rsqrt(1 - x * x), costly=True)
arccos = _unary("arccos", lambda k, x: k.arccos(x), np.arccos, lambda m, g, o, x: -g * m.rsqrt(1 - x * x), costly=True)
arctan = _unary("arctan", lambda k, x: k.arctan(x), np.arctan, _wide(lambda m, g, o, x: g / (x * x + 1)), costly=True)
sinh = _unary("sinh", lambda k, x: k.sinh(x), np.sinh, lambda m, g, o, x: g * m.cosh(x), costly=True)
cosh = _unary("cosh", lambda k, x: k.cosh(x), np.cosh, lambda m, g, o, x: g * m.sinh(x), costly=True)
tanh = _unary("tanh", lambda k, x: k.tanh(x), np.tanh, lambda m, g, o, x: g * (1 - o * o), costly=True)
arcsinh = _unary(
    "arcsinh", lambda k, x: k.arcsinh(x), np.arcsinh, _wide(lambda m, g, o, x: g * m.rsqrt(x * x + 1)), costly=True
)
arccosh = _unary(
    "arccosh", lambda k, x: k.arccosh(x), np.arccosh, _wide(lambda m, g, o, x: g * m.rsqrt(x * x - 1)), costly=True
)
arctanh = _unary("arctanh", lambda k, x: k.arctanh(x), np.arctanh, lambda m, g, o, x: g / (1 - x * x), costly=True)
erf = _unary("erf", lambda k, x: k.erf(x), _erf,
             lambda m, g, o, x: g * m.exp(-(x * x)) * TWO_OVER_ROOT_PI, accepts=_floating, costly=True)  # fmt: skip
erfinv = _unary("erfinv", lambda k, x: k.erfinv(x), _erfinv,
                lambda m, g, o, x: g * m.exp(o * o) / TWO_OVER_ROOT_PI, accepts=_floating, costly=True)  # fmt: skip

# -- rounding --------------------------------------------------------------------------------------------------------
floor = _unary("floor", lambda k, x: k.floor(x), np.floor, lambda m, g, o, x: m.zeros(g), accepts=_real)
ceil = _unary("ceil", lambda k, x: k.ceil(x), np.ceil, lambda m, g, o, x: m.zeros(g), accepts=_real)
trunc = _unary("trunc", lambda k, x: k.trunc(x), np.trunc, lambda m, g, o, x: m.zeros(g), accepts=_real)
# Digits are decided by the number that memory would hold: half precision in a register lies beside it.
round_ = _unary("round", lambda k, x: k.round_even(k.rounded(x)), np.round, lambda m, g, o, x: m.zeros(g), accepts=None)

# -- comparison and logic --------------------------------------------------------------------------------------------
# Rounded, because a kernel may hold one side unrounded in a register and the other as memory gave it back.
equal = compare("equal", lambda k, x, y: k.rounded(x) == k.rounded(y), np.equal)
not_equal = compare("not_equal", lambda k, x, y: k.rounded(x) != k.rounded(y), np.not_equal)
less = compare("less", lambda k, x, y: x < y, np.less)
less_equal = compare("less_equal", lambda k, x, y: x <= y, np.less_equal)
greater = compare("greater", lambda k, x, y: x > y, np.greater)
greater_equal = compare("greater_equal", lambda k, x, y: x >= y, np.greater_equal)
logical_and = Elementwise("logical_and", 2, lambda k, x, y: x & y, np.logical_and, result=bool_,
                          accepts=lambda *d: all(t is bool_ for t in d), flat=True)  # fmt: skip
logical_or = Elementwise("logical_or", 2, lambda k, x, y: x | y, np.logical_or, result=bool_,
                         accepts=lambda *d: all(t is bool_ for t in d), flat=True)  # fmt: skip
logical_not = Elementwise("logical_not", 1, lambda k, x: ~x, np.logical_not, result=bool_,
                          accepts=lambda d: d is bool_, flat=True)  # fmt: skip

# -- bits ------------------------------------------------------------------------------------------------------------
bitwise_and = Elementwise("bitwise_and", 2, lambda k, x, y: x & y, np.bitwise_and, accepts=_integral, flat=True)
bitwise_or = Elementwise("bitwise_or", 2, lambda k, x, y: x | y, np.bitwise_or, accepts=_integral, flat=True)
bitwise_xor = Elementwise("bitwise_xor", 2, lambda k, x, y: x ^ y, np.bitwise_xor, accepts=_integral, flat=True)
bitwise_invert = Elementwise("bitwise_invert", 1, lambda k, x: ~x, np.invert, accepts=_integral, flat=True)
left_shift = Elementwise("left_shift", 2, lambda k, x, y: x << y, _shift(np.left_shift), accepts=_integral, flat=True)
right_shift = Elementwise(
    "right_shift", 2, lambda k, x, y: x >> y, _shift(np.right_shift), accepts=_integral, flat=True
)

# -- complex numbers -------------------------------------------------------------------------------------------------
real = _unary("real", lambda k, x: k.real(x), np.real, lambda m, g, o, x: m.astype(g, dtype=x.dtype)
              if g.dtype.kind != "c" else m.real(g), accepts=lambda d: d.kind == "c", result=float32)  # fmt: skip
imag = _unary("imag", lambda k, x: k.imag(x), np.imag, lambda m, g, o, x: m.astype(g, dtype=x.dtype) * 1j
              if g.dtype.kind != "c" else m.imag(g), accepts=lambda d: d.kind == "c", result=float32)  # fmt: skip
conjugate = _unary("conjugate", lambda k, x: k.conjugate(x), np.conjugate, lambda m, g, o, x: m.conjugate(g),
                   accepts=lambda d: d.kind == "c", real_linear=True)  # fmt: skip

# -- selection and conversion ----------------------------------------------------------------------------------------
select = Elementwise("select", 3, lambda k, c, x, y: k.select(c, x, y), np.where,
                     (None, lambda m, g, o, c, x, y: m.select(c, g, m.zeros(g)),
                      lambda m, g, o, c, x, y: m.select(c, m.zeros(g), g)),
                     result=lambda c, x, y: x, accepts=lambda c, x, y: c is bool_ and x is y)  # fmt: skip


def _astype(x: np.ndarray, dtype: Dtype) -> np.ndarray:
    if x.dtype.kind == "c" and dtype.kind != "c":
        x = (x != 0) if dtype is bool_ else x.real
    if x.dtype.kind == "f" and dtype.kind in "iu" and dtype.size < 8:
        # Out-of-range floats wrap as compiled code does (through a wider integer), never by NumPy's undefined cast.
        x = (
            np.nan_to_num(np.trunc(x), nan=0, posinf=2.0**62, neginf=-(2.0**62))
            .clip(-(2.0**62), 2.0**62)
            .astype(np.int64)
        )
    return x.astype(dtype.numpy)


astype = Elementwise("astype", 1, lambda k, x, dtype: k.cast(x, dtype), _astype,
                     (lambda m, g, o, x, dtype: m.cast(g, dtype) if g.dtype is x.dtype else m.cast(g, x.dtype),),
                     attrs=("dtype",), result=lambda d, dtype: dtype, accepts=lambda d: True)  # fmt: skip
