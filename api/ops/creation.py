"""Functions that make arrays: constants, ranges, triangles and windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir import interop
from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import elementwise as prim
from mlxir.dialects.mx.record import Shape
from mlxir.dialects.symbolic import as_index
from mlxir.ndarray import array, as_value, value_of, wrap
from mlxir.runtime.dtypes import Dtype, bool_, float32, float64, int32, int64
from mlxir.values import arange as arange_value
from mlxir.values import binary, broadcast_shape, broadcast_to, cast, record, reshape, scalar, unary
from mlxir.values import full as full_value

from .common import Operand, Scalar, check_array, check_dtype, failure
from .shape import shape_of

__all__ = [
    "arange", "asarray", "bartlett", "blackman", "empty", "empty_like", "eye", "from_dlpack", "full", "full_like",
    "hamming", "hanning", "identity", "linspace", "ones", "ones_like", "tri", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip


def _sizes(shape: int | Sequence[int]) -> Shape:
    sizes = (shape,) if isinstance(shape, (int, np.integer)) else shape_of("full", shape)
    sizes = tuple([as_index(n) for n in sizes])
    if any(n < 0 for n in sizes):
        raise failure(ValueError, "[full] Negative dimensions not allowed.")
    return sizes


def full(
    shape: int | Sequence[int], vals: Operand, dtype: Dtype | None = None, *, stream: StreamOrDevice = None
) -> array:
    """An array of `shape` filled with a number, or with an array that broadcasts to it, in `dtype` if given."""
    check_stream("full", stream)
    sizes = _sizes(shape)
    if dtype is not None:
        check_dtype("full", dtype)
    if isinstance(vals, (bool, int, float, complex)):
        value = scalar(vals, dtype)
        return wrap(cast(full_value(vals, sizes, value.dtype), dtype or value.dtype))
    value = as_value(vals)
    if broadcast_shape("full", value.shape, sizes) != sizes:
        raise failure(ValueError, f"[broadcast_shapes] Shapes {value.shape} and {sizes} cannot be broadcast.")
    return wrap(broadcast_to(value if dtype is None else cast(value, dtype), sizes))


def zeros(shape: int | Sequence[int], dtype: Dtype | None = float32, *, stream: StreamOrDevice = None) -> array:
    """An array of zeros."""
    check_stream("zeros", stream)
    return wrap(full_value(0, _sizes(shape), check_dtype("zeros", dtype or float32)))


def ones(shape: int | Sequence[int], dtype: Dtype | None = float32, *, stream: StreamOrDevice = None) -> array:
    """An array of ones."""
    check_stream("ones", stream)
    return wrap(full_value(1, _sizes(shape), check_dtype("ones", dtype or float32)))


def zeros_like(a: array, /, dtype: Dtype | None = None, *, stream: StreamOrDevice = None) -> array:
    """Zeros of the shape and dtype of `a`."""
    check_stream("zeros_like", stream)
    x = check_array("zeros_like", a)._value
    return wrap(full_value(0, x.shape, check_dtype("zeros_like", dtype or x.dtype)))


def ones_like(a: array, /, dtype: Dtype | None = None, *, stream: StreamOrDevice = None) -> array:
    """Ones of the shape and dtype of `a`."""
    check_stream("ones_like", stream)
    x = check_array("ones_like", a)._value
    return wrap(full_value(1, x.shape, check_dtype("ones_like", dtype or x.dtype)))


def full_like(a: array, vals: Operand, dtype: Dtype | None = None, *, stream: StreamOrDevice = None) -> array:
    """An array of the shape and dtype of `a` filled with `vals`."""
    check_stream("full_like", stream)
    x = check_array("full_like", a)._value
    dtype = dtype or x.dtype
    value = cast(as_value(vals), dtype)
    if broadcast_shape("full_like", value.shape, x.shape) != x.shape:
        raise failure(ValueError, f"[broadcast_shapes] Shapes {value.shape} and {x.shape} cannot be broadcast.")
    return wrap(broadcast_to(value, x.shape))


empty, empty_like = zeros, zeros_like


def asarray(a: Any, dtype: Dtype | None = None, *, copy: bool | None = None) -> array:
    """`a` as an array; shares memory with other libraries' arrays where that is possible and `copy` is not True.

    Raises ValueError where `copy=False` and a copy is needed.
    """
    if a is None:
        raise failure(TypeError, "[asarray] None is no array data.")
    if isinstance(a, array) or copy or isinstance(a, (list, tuple, bool, int, float, complex)):
        if copy is False and not (isinstance(a, array) and dtype in (None, a.dtype)):
            raise failure(ValueError, "[convert] Unable to avoid copy while creating an array as requested.")
        return wrap(value_of(a, dtype))
    if not interop.holds_data(a):
        raise failure(ValueError, f"[asarray] Invalid type {type(a).__name__} received in array initialization.")
    value = interop.from_data(a, dtype, copy=False)
    if copy is False and value.buffer is not None and not np.shares_memory(value.buffer.numpy(), interop.as_numpy(a)):
        raise failure(ValueError, "[convert] Unable to avoid copy while creating an array as requested.")
    return wrap(value)


def from_dlpack(x: Any, /, *, copy: bool | None = None) -> array:
    """An array over the memory of a DLPack producer; its memory must not change as long as the array is used."""
    return wrap(interop.from_dlpack(x, copy))


# -- ranges ----------------------------------------------------------------------------------------------------------
_MISSING: Any = object()


def arange(
    start: int | float = _MISSING,
    stop: int | float | None = _MISSING,
    step: int | float | None = None,
    dtype: Dtype | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """`start, start + step, ...` up to but without `stop`; `arange(stop)` starts at 0.

    The dtype is int32 for ints (int64 where they need it), else float32.
    """
    check_stream("arange", stream)
    low: Any = 0 if start is _MISSING or stop in (_MISSING, None) else start
    high: Any = start if stop in (_MISSING, None) else stop
    by: Any = 1 if step is None else step
    numbers = (low, high, by)
    if dtype is bool_ or (dtype is None and isinstance(start, bool) and stop is _MISSING):
        raise failure(ValueError, "[arange] bool not supported for arange.")
    for n in numbers:
        if not isinstance(n, (int, float, np.integer, np.floating)):
            raise failure(TypeError, f"[arange] expected numbers, got {n!r}")
    if any(isinstance(n, (float, np.floating)) and not math.isfinite(n) for n in numbers):
        raise failure(ValueError, "[arange] Cannot compute length.")
    if by == 0:
        raise failure(ValueError, "[arange] step must be nonzero.")
    integers = all(isinstance(n, (int, np.integer)) for n in numbers)
    length = max(-((low - high) // by) if integers else math.ceil((high - low) / by), 0)
    if length > 2**31 - 1:
        raise failure(ValueError, "[arange] Maximum size exceeded.")
    if dtype is None:
        small = integers and all(-(2**31) <= n < 2**31 for n in (low, high))
        dtype = (int32 if small else int64) if integers else float32
    return wrap(arange_value(low, by, as_index(length), check_dtype("arange", dtype)))


def linspace(
    start: Scalar,
    stop: Scalar,
    num: int | None = 50,
    endpoint: bool = True,
    dtype: Dtype | None = float32,
    stream: StreamOrDevice = None,
) -> array:
    """`num` evenly spaced numbers from `start` to `stop` (without it unless `endpoint`)."""
    check_stream("linspace", stream)
    num = 50 if num is None else num
    low, high = float(start), float(stop)  # type: ignore[arg-type]
    if num < 0:
        raise failure(ValueError, f"[linspace] number of samples, {num}, must be non-negative.")
    dtype = check_dtype("linspace", dtype or float32)
    work = dtype if dtype in (float64,) or dtype.kind == "c" else float32
    gaps = num - 1 if endpoint else num
    step = (high - low) / gaps if gaps > 0 else 0.0
    return wrap(cast(arange_value(low, step, num, work), dtype))


# -- matrices --------------------------------------------------------------------------------------------------------
def _grid(rows: int, columns: int, k: int) -> tuple[Value, Value]:
    """Column numbers, and row numbers plus k, that broadcast to (rows, columns)."""
    return arange_value(0, 1, columns, int32), reshape(arange_value(k, 1, rows, int32), (rows, 1))


def eye(
    n: int, m: int | None = None, k: int = 0, dtype: Dtype | None = float32, *, stream: StreamOrDevice = None
) -> array:
    """An (n, m) matrix with ones on its k-th diagonal."""
    check_stream("eye", stream)
    m = n if m is None else m
    if n < 0 or m < 0:
        raise failure(ValueError, "[eye] N and M must be positive integers.")
    column, row = _grid(n, m, k)
    return wrap(cast(binary(prim.equal, row, column, bool_), dtype or float32))


def identity(n: int, dtype: Dtype | None = float32, *, stream: StreamOrDevice = None) -> array:
    """The identity matrix of size n."""
    check_stream("identity", stream)
    return eye(n, dtype=dtype)


def tri(
    n: int, m: int | None = None, k: int = 0, dtype: Dtype | None = None, *, stream: StreamOrDevice = None
) -> array:
    """An (n, m) matrix with ones on and below its k-th diagonal."""
    check_stream("tri", stream)
    column, row = _grid(max(n, 0), max(n if m is None else m, 0), k)
    return wrap(cast(binary(prim.greater_equal, row, column, bool_), dtype or float32))


def _triangle(name: str, x: array, k: int, lower: bool) -> array:
    v = check_array(name, x)._value
    if len(v.shape) < 2:
        raise failure(ValueError, f"[{name}] array must be at least 2-D")
    column, row = _grid(v.shape[-2], v.shape[-1], k)
    keep = binary(prim.greater_equal if lower else prim.less_equal, row, column, bool_)
    return wrap(record(prim.select, (keep, v, full_value(0, (), v.dtype)), {}, v.shape, v.dtype))


def tril(x: array, k: int = 0, *, stream: StreamOrDevice = None) -> array:
    """`x` with zeros above the k-th diagonal of its last two axes."""
    check_stream("tril", stream)
    return _triangle("tril", x, k, True)


def triu(x: array, k: int = 0, *, stream: StreamOrDevice = None) -> array:
    """`x` with zeros below the k-th diagonal of its last two axes."""
    check_stream("triu", stream)
    return _triangle("triu", x, k, False)


# -- windows ---------------------------------------------------------------------------------------------------------
def _window(size: int, coefficients: Sequence[float]) -> array:
    """The sum of `coefficients[j] * cos(2 pi j n / (size - 1))`."""
    size = as_index(size)
    if size < 1:
        return zeros((0,))
    if size == 1:
        return ones((1,))
    total = full_value(coefficients[0], (size,), float32)
    for j, c in enumerate(coefficients[1:], 1):
        angle = arange_value(0, 2 * math.pi * j / (size - 1), size, float32)
        total = binary(prim.add, total, binary(prim.multiply, full_value(c, (), float32), unary(prim.cos, angle)))
    return wrap(total)


def hanning(M: int, *, stream: StreamOrDevice = None) -> array:
    """The Hann window of M points."""
    check_stream("hanning", stream)
    return _window(M, (0.5, -0.5))


def hamming(M: int, *, stream: StreamOrDevice = None) -> array:
    """The Hamming window of M points."""
    check_stream("hamming", stream)
    return _window(M, (0.54, -0.46))


def blackman(M: int, *, stream: StreamOrDevice = None) -> array:
    """The Blackman window of M points."""
    check_stream("blackman", stream)
    return _window(M, (0.42, -0.5, 0.08))


def bartlett(M: int, *, stream: StreamOrDevice = None) -> array:
    """The triangular window of M points."""
    check_stream("bartlett", stream)
    M = as_index(M)
    if M < 1:
        return zeros((0,))
    if M == 1:
        return ones((1,))
    ramp = arange_value(-1, 2 / (M - 1), M, float32)
    return wrap(binary(prim.subtract, full_value(1, (), float32), unary(prim.abs_, ramp)))
