"""Elementwise functions: dtype rules of MLX, then one primitive or a short composition.

Functions of one operand that are not exact on integers compute those in float32. Two operands are promoted to their
common dtype and broadcast; Python numbers are weak.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import RECORDS, control
from mlxir.dialects.mx import elementwise as prim
from mlxir.ndarray import array, as_value, wrap
from mlxir.runtime.dtypes import Dtype, at_least_float, bfloat16, bool_, float16, float32, promote, uint8
from mlxir.values import binary, broadcast_shape, broadcast_to, cast, full, promoted, record, unary

from .common import INEXACT, Binary, Operand, Unary, check_array, failure, named

__all__ = [
    "abs", "acos", "acosh", "add", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "asin",
    "asinh", "atan", "atan2", "atanh", "bitwise_and", "bitwise_invert", "bitwise_left_shift", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "ceil", "clip", "conj", "conjugate", "cos", "cosh", "degrees", "divide",
    "divmod", "equal", "erf", "erfinv", "exp", "expm1", "floor", "floor_divide", "greater", "greater_equal", "imag",
    "isclose", "isfinite", "isinf", "isnan", "isneginf", "isposinf", "left_shift", "less", "less_equal", "log", "log10",
    "log1p", "log2", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum",
    "multiply", "nan_to_num", "negative", "not_equal", "positive", "pow", "power", "radians", "real", "reciprocal",
    "remainder", "right_shift", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient",
    "subtract", "tan", "tanh", "trunc", "where",
]  # fmt: skip

_NO_ATTRS: dict[str, Any] = {}


# -- one operand -----------------------------------------------------------------------------------------------------
def _inexact(name: str, doc: str, real: bool = False) -> Unary:
    """A function that is computed in at least float32; `real` ones do not take complex numbers."""
    primitive = RECORDS[name]

    def function(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x = a._value if type(a) is array else as_value(a)
        dtype = x.dtype
        if dtype not in INEXACT:
            dtype = float32
            x = cast(x, dtype)
        elif real and dtype.kind == "c":
            raise failure(ValueError, f"[{name}] Not supported for complex64.")
        return wrap(record(primitive, (x,), _NO_ATTRS, x.shape, dtype))

    return named(function, name, doc)


def _same(name: str, doc: str, integers_as_they_are: bool = False, arrays_only: bool = False) -> Unary:
    """A function whose result has the operand's dtype; `integers_as_they_are`: it changes real inexact ones only."""
    primitive = RECORDS[name]

    def function(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x = check_array(name, a)._value if arrays_only else a._value if type(a) is array else as_value(a)
        if integers_as_they_are:
            if x.dtype not in INEXACT:
                return wrap(x)
            if x.dtype.kind == "c":
                raise failure(ValueError, f"[{name}] Not supported for complex64.")
        return wrap(unary(primitive, x))

    return named(function, name, doc)


sqrt = _inexact("sqrt", "Square root.")
rsqrt = _inexact("rsqrt", "1 / sqrt(a).")
reciprocal = _inexact("reciprocal", "1 / a.")
exp = _inexact("exp", "Exponential.")
expm1 = _inexact("expm1", "exp(a) - 1, exact near zero.", real=True)
log = _inexact("log", "Natural logarithm.")
log2 = _inexact("log2", "Logarithm to base 2.")
log10 = _inexact("log10", "Logarithm to base 10.")
log1p = _inexact("log1p", "log(1 + a), exact near zero.")
sin = _inexact("sin", "Sine.")
cos = _inexact("cos", "Cosine.")
tan = _inexact("tan", "Tangent.")
arcsin = asin = _inexact("arcsin", "Inverse sine.")
arccos = acos = _inexact("arccos", "Inverse cosine.")
arctan = atan = _inexact("arctan", "Inverse tangent.")
sinh = _inexact("sinh", "Hyperbolic sine.")
cosh = _inexact("cosh", "Hyperbolic cosine.")
tanh = _inexact("tanh", "Hyperbolic tangent.")
arcsinh = asinh = _inexact("arcsinh", "Inverse hyperbolic sine.")
arccosh = acosh = _inexact("arccosh", "Inverse hyperbolic cosine.")
arctanh = atanh = _inexact("arctanh", "Inverse hyperbolic tangent.")
erf = _inexact("erf", "Error function.", real=True)
erfinv = _inexact("erfinv", "Inverse of the error function.", real=True)
sigmoid = _inexact("sigmoid", "Logistic function 1 / (1 + exp(-a)).", real=True)
sign = _same("sign", "-1, 0 or 1 by the sign of a; a / |a| for complex numbers.")
square = _same("square", "a * a.")
floor = _same("floor", "The largest integer not above a.", integers_as_they_are=True)
ceil = _same("ceil", "The smallest integer not below a.", integers_as_they_are=True)
trunc = _same("trunc", "a rounded towards zero.", integers_as_they_are=True, arrays_only=True)


def abs(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """Absolute value; float32 for complex numbers."""
    check_stream("abs", stream)
    x = as_value(a)
    return wrap(unary(prim.abs_, x, float32 if x.dtype.kind == "c" else x.dtype))


def negative(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """-a. Raises ValueError for bool."""
    check_stream("negative", stream)
    return -wrap(as_value(a))


def positive(a: array, /, *, stream: StreamOrDevice = None) -> array:
    """a itself, as a new array."""
    check_stream("positive", stream)
    return wrap(check_array("positive", a)._value)


def round(a: Operand, /, decimals: int = 0, stream: StreamOrDevice = None) -> array:
    """Round half to even; with `decimals`, to that many digits behind the point (negative: before it)."""
    check_stream("round", stream)
    x, decimals = as_value(a), operator.index(decimals)
    if decimals == 0:
        return wrap(unary(prim.round_, x))
    if x.dtype not in INEXACT and decimals > 0:
        return wrap(x)
    dtype = at_least_float(x.dtype)
    scale = 10.0**decimals
    scaled = unary(prim.round_, binary(prim.multiply, cast(x, dtype), full(scale, (), dtype)))
    return wrap(cast(binary(prim.multiply, scaled, full(1.0 / scale, (), dtype)), x.dtype))


def logical_not(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """Whether a is false (zero)."""
    check_stream("logical_not", stream)
    return wrap(unary(prim.logical_not, cast(as_value(a), bool_)))


def bitwise_invert(a: Operand, stream: StreamOrDevice = None) -> array:
    """Complement of the bits. Raises ValueError for floating-point numbers."""
    check_stream("bitwise_invert", stream)
    x = as_value(a)
    if x.dtype in INEXACT:
        raise failure(ValueError, "[bitwise_invert] Bitwise inverse only allowed on integer types.")
    return ~wrap(x)


def _scaled(name: str, factor: float, doc: str) -> Unary:
    def function(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x = as_value(a)
        x = cast(x, at_least_float(x.dtype))
        return wrap(binary(prim.multiply, x, full(factor, (), x.dtype)))

    return named(function, name, doc)


degrees = _scaled("degrees", 180.0 / math.pi, "Radians to degrees.")
radians = _scaled("radians", math.pi / 180.0, "Degrees to radians.")


def _parts(x: Value) -> list[Value]:
    """The real numbers that a value consists of."""
    return [unary(prim.real, x, float32), unary(prim.imag, x, float32)] if x.dtype.kind == "c" else [x]


def _never(x: Value) -> Value:
    return broadcast_to(full(False, (), bool_), x.shape)


def _is_nan(x: Value) -> Value:
    return binary(prim.not_equal, x, x, bool_)


def _is_inf(x: Value) -> Value:
    hits = [binary(prim.equal, unary(prim.abs_, p), full(math.inf, (), p.dtype), bool_) for p in _parts(x)]
    return hits[0] if len(hits) == 1 else binary(prim.logical_or, hits[0], hits[1])


def isnan(a: Operand, stream: StreamOrDevice = None) -> array:
    """Which elements are NaN."""
    check_stream("isnan", stream)
    x = as_value(a)
    return wrap(_is_nan(x) if x.dtype in INEXACT else _never(x))


def isinf(a: Operand, stream: StreamOrDevice = None) -> array:
    """Which elements are infinite."""
    check_stream("isinf", stream)
    x = as_value(a)
    return wrap(_is_inf(x) if x.dtype in INEXACT else _never(x))


def isfinite(a: Operand, stream: StreamOrDevice = None) -> array:
    """Which elements are neither infinite nor NaN."""
    check_stream("isfinite", stream)
    x = as_value(a)
    if x.dtype not in INEXACT:
        return wrap(unary(prim.logical_not, _never(x)))
    return wrap(unary(prim.logical_not, binary(prim.logical_or, _is_inf(x), _is_nan(x))))


def isposinf(a: Operand, stream: StreamOrDevice = None) -> array:
    """Which elements are +inf."""
    check_stream("isposinf", stream)
    x = as_value(a)
    return wrap(binary(prim.equal, x, full(math.inf, (), x.dtype), bool_) if x.dtype in INEXACT else _never(x))


def isneginf(a: Operand, stream: StreamOrDevice = None) -> array:
    """Which elements are -inf."""
    check_stream("isneginf", stream)
    x = as_value(a)
    return wrap(binary(prim.equal, x, full(-math.inf, (), x.dtype), bool_) if x.dtype in INEXACT else _never(x))


_LARGEST = {float16: 65504.0, bfloat16: 3.3895313892515355e38, float32: 3.4028234663852886e38}


def nan_to_num(
    a: Operand,
    nan: float = 0.0,
    posinf: float | None = None,
    neginf: float | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """Replaces NaN by `nan` and infinities by `posinf` / `neginf` (None: the largest finite numbers)."""
    check_stream("nan_to_num", stream)
    x = as_value(a)
    dtype = x.dtype
    if dtype not in INEXACT:
        return wrap(x)
    if dtype not in _LARGEST and (posinf is None or neginf is None):
        raise failure(ValueError, f"[nan_to_num] Does not yet support given type: {dtype.name}.")
    high = _LARGEST[dtype] if posinf is None else posinf
    low = -_LARGEST[dtype] if neginf is None else neginf
    out = _select(_is_nan(x), full(nan, (), dtype), x)
    out = _select(binary(prim.equal, x, full(math.inf, (), dtype), bool_), full(high, (), dtype), out)
    return wrap(_select(binary(prim.equal, x, full(-math.inf, (), dtype), bool_), full(low, (), dtype), out))


def real(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """The real part; a itself if it is real."""
    check_stream("real", stream)
    x = as_value(a)
    return wrap(unary(prim.real, x, float32) if x.dtype.kind == "c" else x)


def imag(a: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """The imaginary part; zeros if a is real."""
    check_stream("imag", stream)
    x = as_value(a)
    return wrap(unary(prim.imag, x, float32) if x.dtype.kind == "c" else full(0, x.shape, x.dtype))


def conjugate(a: Operand, *, stream: StreamOrDevice = None) -> array:
    """The complex conjugate; a itself if it is real."""
    check_stream("conjugate", stream)
    x = as_value(a)
    return wrap(unary(prim.conjugate, x) if x.dtype.kind == "c" else x)


conj = conjugate


def stop_gradient(a: array, /, *, stream: StreamOrDevice = None) -> array:
    """The same values, through which no derivative passes."""
    check_stream("stop_gradient", stream)
    return wrap(unary(control.stop_gradient, check_array("stop_gradient", a)._value))


# -- two operands ----------------------------------------------------------------------------------------------------
def operands(a: Any, b: Any) -> tuple[Value, Value]:
    """Two operands as values of their own dtypes; a number beside an array is weak."""
    if isinstance(a, array):
        x = a._value
        return x, b._value if isinstance(b, array) else as_value(b, x.dtype)
    if isinstance(b, array):
        y = b._value
        return as_value(a, y.dtype), y
    return as_value(a), as_value(b)


def _binary(name: str, doc: str, result: Dtype | None = None, inexact: bool = False, no_complex: str = "") -> Binary:
    primitive = RECORDS[name]

    def function(a: Operand, b: Operand, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x, y = operands(a, b)
        dtype = x.dtype
        if y.dtype is not dtype:
            dtype = promote(dtype, y.dtype)
        if inexact and dtype not in INEXACT:
            dtype = float32
        if no_complex and dtype.kind == "c":
            raise failure(ValueError, f"[{name}] {no_complex}")
        return wrap(binary(primitive, cast(x, dtype), cast(y, dtype), result or dtype))

    return named(function, name, doc)


add = _binary("add", "a + b.")
subtract = _binary("subtract", "a - b.")
multiply = _binary("multiply", "a * b.")
divide = _binary("divide", "a / b, always a floating-point number.", inexact=True)
floor_divide = _binary("floor_divide", "floor(a / b).", no_complex="Complex type not supported.")
remainder = _binary("remainder", "a modulo b, with the sign of b.", no_complex="Complex type not supported.")
power = pow = _binary("power", "a ** b.")
maximum = _binary("maximum", "The larger element; NaN wins.")
minimum = _binary("minimum", "The smaller element; NaN wins.")
arctan2 = atan2 = _binary(
    "arctan2", "The angle of the point (b, a).", inexact=True, no_complex="Not supported for complex64."
)
equal = _binary("equal", "a == b.", result=bool_)
not_equal = _binary("not_equal", "a != b.", result=bool_)
less = _binary("less", "a < b.", result=bool_)
less_equal = _binary("less_equal", "a <= b.", result=bool_)
greater = _binary("greater", "a > b.", result=bool_)
greater_equal = _binary("greater_equal", "a >= b.", result=bool_)


_logaddexp = _binary("logaddexp", "log(exp(a) + exp(b)).", inexact=True)


def logaddexp(a: Operand, b: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """log(exp(a) + exp(b)), without overflow."""
    check_stream("logaddexp", stream)
    x, y = promoted(*operands(a, b))
    if x.dtype.kind == "c":
        return wrap(complex_logaddexp(x, y))
    return _logaddexp(wrap(x), wrap(y))


def complex_logaddexp(x: Value, y: Value) -> Value:
    """log(exp(x) + exp(y)) of complex numbers: the one of larger real part, and log1p of the quotient."""
    first = binary(prim.greater_equal, unary(prim.real, x, float32), unary(prim.real, y, float32), bool_)
    large, small = _select(first, x, y), _select(first, y, x)
    above = binary(prim.equal, unary(prim.real, large, float32), full(math.inf, (), float32), bool_)
    below = binary(prim.equal, unary(prim.real, small, float32), full(-math.inf, (), float32), bool_)
    infinite = binary(prim.logical_or, above, below)
    rest = unary(RECORDS["log1p"], unary(RECORDS["exp"], binary(prim.subtract, small, large)))
    return _select(infinite, large, binary(prim.add, large, rest))


def divmod(a: Operand, b: Operand, stream: StreamOrDevice = None) -> list[array]:
    """[floor_divide(a, b), remainder(a, b)]."""
    check_stream("divmod", stream)
    x, y = promoted(*operands(a, b))
    if x.dtype.kind == "c":
        raise failure(ValueError, "[divmod] Complex type not supported.")
    return [wrap(binary(prim.floor_divide, x, y)), wrap(binary(prim.remainder, x, y))]


def _logical(name: str, primitive_name: str, doc: str) -> Binary:
    primitive = RECORDS[primitive_name]

    def function(a: Operand, b: Operand, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        return wrap(binary(primitive, cast(as_value(a), bool_), cast(as_value(b), bool_), bool_))

    return named(function, name, doc)


logical_and = _logical("logical_and", "logical_and", "Whether both are true.")
logical_or = _logical("logical_or", "logical_or", "Whether either is true.")
logical_xor = _logical("logical_xor", "not_equal", "Whether exactly one is true.")


def _bitwise(name: str, doc: str, shift: bool = False) -> Binary:
    primitive = RECORDS[name]

    def function(a: Operand, b: Operand, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x, y = operands(a, b)
        dtype = promote(x.dtype, y.dtype)  # of int64 and uint64 it is float32
        if dtype in INEXACT:
            raise failure(
                RuntimeError,
                f"[{name}] Only allowed on integer or boolean types but got types {x.dtype.name} and {y.dtype.name}.",
            )
        if shift and dtype is bool_:
            dtype = uint8
        return wrap(binary(primitive, cast(x, dtype), cast(y, dtype)))

    return named(function, name, doc)


bitwise_and = _bitwise("bitwise_and", "Bitwise and. Raises RuntimeError for floating-point numbers.")
bitwise_or = _bitwise("bitwise_or", "Bitwise or. Raises RuntimeError for floating-point numbers.")
bitwise_xor = _bitwise("bitwise_xor", "Bitwise exclusive or. Raises RuntimeError for floating-point numbers.")
left_shift = bitwise_left_shift = _bitwise("left_shift", "a shifted left by b bits.", shift=True)
right_shift = bitwise_right_shift = _bitwise("right_shift", "a shifted right by b bits.", shift=True)


# -- three operands --------------------------------------------------------------------------------------------------
def _select(condition: Value, x: Value, y: Value) -> Value:
    """`select` on operands of fitting dtypes, which broadcast."""
    shape = x.shape
    if not condition.shape == x.shape == y.shape:
        shape = broadcast_shape("where", condition.shape, x.shape, y.shape)
    return record(prim.select, (condition, x, y), _NO_ATTRS, shape, x.dtype)


def where(condition: Operand, x: Operand, y: Operand, /, *, stream: StreamOrDevice = None) -> array:
    """x where the condition is true (not zero), y elsewhere; the three broadcast."""
    check_stream("where", stream)
    test = cast(as_value(condition), bool_)
    return wrap(_select(test, *promoted(*operands(x, y))))


def clip(a: Operand, /, a_min: Operand | None, a_max: Operand | None, *, stream: StreamOrDevice = None) -> array:
    """a limited to [a_min, a_max]; one of the two may be None."""
    check_stream("clip", stream)
    if a_min is None and a_max is None:
        raise failure(ValueError, "[clip] At most one of a_min and a_max may be None")
    x = as_value(a)
    partner = x.dtype
    if a_min is not None:
        low, x = promoted(as_value(a_min, partner), x)
        x = binary(prim.maximum, x, low)
    if a_max is not None:
        high, x = promoted(as_value(a_max, partner), x)
        x = binary(prim.minimum, x, high)
    return wrap(x)


# -- closeness -------------------------------------------------------------------------------------------------------
def isclose(
    a: Operand,
    b: Operand,
    /,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    *,
    equal_nan: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """Whether |a - b| <= atol + rtol * |b|; equal infinities are close, NaN are close where `equal_nan`."""
    check_stream("isclose", stream)
    x, y = check_array("isclose", a)._value, check_array("isclose", b)._value
    dtype = at_least_float(promote(x.dtype, y.dtype))
    x, y = cast(x, dtype), cast(y, dtype)
    size = float32 if dtype.kind == "c" else dtype
    bound = binary(
        prim.add, full(atol, (), size), binary(prim.multiply, full(rtol, (), size), unary(prim.abs_, y, size))
    )  # fmt: skip
    close = binary(prim.less_equal, unary(prim.abs_, binary(prim.subtract, x, y), size), bound, bool_)
    either_infinite = binary(prim.logical_or, _is_inf(x), _is_inf(y))
    close = binary(prim.logical_and, close, unary(prim.logical_not, either_infinite))
    both = binary(prim.logical_and, binary(prim.logical_and, _is_inf(x), _is_inf(y)), binary(prim.equal, x, y, bool_))
    close = binary(prim.logical_or, close, both)
    if equal_nan:
        close = binary(prim.logical_or, close, binary(prim.logical_and, _is_nan(x), _is_nan(y)))
    return wrap(close)
