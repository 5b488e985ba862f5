"""Reductions and scans: MLX's widening of small integers, `keepdims`, and the statistics composed of them."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any, Protocol

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import RECORDS, Primitive, fast, scan_sort
from mlxir.dialects.mx import elementwise as prim
from mlxir.dialects.mx import reduce as reductions
from mlxir.dialects.mx.record import Shape
from mlxir.ndarray import array, wrap
from mlxir.runtime.dtypes import (
    Dtype,
    at_least_float,
    bool_,
    float32,
    int8,
    int16,
    int32,
    uint8,
    uint16,
    uint32,
)  # fmt: skip
from mlxir.values import (
    axes_of,
    axis_of,
    binary,
    broadcast_to,
    cast,
    concatenate,
    full,
    promoted,
    record,
    reshape,
    slice_axis,
    transpose,
    unary,
)  # fmt: skip

from .common import Operand, check_array, check_dtype, failure, named
from .elementwise import complex_logaddexp, isclose, operands

__all__ = [
    "all", "allclose", "any", "argmax", "argmin", "array_equal", "count_nonzero", "cummax", "cummin", "cumprod",
    "cumsum", "cumulative_prod", "cumulative_sum", "diff", "logcumsumexp", "logsumexp", "max", "mean", "median", "min",
    "minmax", "prod", "softmax", "std", "sum", "var",
]  # fmt: skip

Axis = int | Sequence[int] | None
_WIDENED = {bool_: int32, int8: int32, int16: int32, uint8: uint32, uint16: uint32}


class Reduction(Protocol):
    def __call__(
        self, a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None
    ) -> array: ...


def _reduced(shape: Shape, axes: Shape) -> Shape:
    return tuple([n for i, n in enumerate(shape) if i not in axes])


def _kept(shape: Shape, axes: Shape) -> Shape:
    return tuple([1 if i in axes else n for i, n in enumerate(shape)])


def reduce_value(primitive: Primitive, x: Value, axes: Shape, keepdims: bool = False) -> Value:
    """A reduction over normalised axes."""
    shape = x.shape
    if axes:
        rest = () if len(axes) == len(shape) else _reduced(shape, axes)
        x = record(primitive, (x,), {"axes": axes}, rest, x.dtype)
    return reshape(x, _kept(shape, axes)) if keepdims else x


def _reduction(name: str, doc: str, widened: bool = False, logical: bool = False, non_empty: bool = False) -> Reduction:
    primitive = RECORDS[name]

    def function(a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None) -> array:
        if stream is not None:
            check_stream(name, stream)
        x = check_array(name, a)._value
        axes = axes_of(name, axis, len(x.shape))
        if logical:
            x = cast(x, bool_)
        elif widened and axes and x.dtype in _WIDENED:
            x = cast(x, _WIDENED[x.dtype])
        if non_empty and 0 in [x.shape[i] for i in axes]:
            raise failure(ValueError, f"[{name}] Cannot {name} reduce zero size array.")
        return wrap(reduce_value(primitive, x, axes, keepdims))

    return named(function, name, doc)


sum = _reduction("sum", "Sum over axes (all if None); bool and small integers are summed in 32 bits.", widened=True)
prod = _reduction("prod", "Product over axes; bool and small integers are multiplied in 32 bits.", widened=True)
max = _reduction("max", "Maximum over axes; NaN wins.", non_empty=True)
min = _reduction("min", "Minimum over axes; NaN wins.", non_empty=True)
all = _reduction("all", "Whether all elements are true.", logical=True)
any = _reduction("any", "Whether any element is true.", logical=True)


def minmax(
    a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None
) -> tuple[array, array]:
    """(min, max) over axes."""
    check_stream("minmax", stream)
    return min(a, axis, keepdims), max(a, axis, keepdims)


def count_nonzero(a: array, /, *, axis: Axis = None, keepdims: bool = False, stream: StreamOrDevice = None) -> array:
    """Number of elements that are not zero (int32)."""
    check_stream("count_nonzero", stream)
    counted = cast(check_array("count_nonzero", a)._value, bool_)
    return sum(wrap(cast(counted, int32)), axis, keepdims)


def array_equal(a: Operand, b: Operand, equal_nan: bool = False, stream: StreamOrDevice = None) -> array:
    """Whether shapes and all elements are equal (a bool array of shape ())."""
    check_stream("array_equal", stream)
    x, y = operands(a, b)
    if x.shape != y.shape:
        return wrap(full(False, (), bool_))
    x, y = promoted(x, y)
    same = binary(prim.equal, x, y, bool_)
    if equal_nan and x.dtype.is_inexact:
        nans = binary(prim.logical_and, binary(prim.not_equal, x, x, bool_), binary(prim.not_equal, y, y, bool_))
        same = binary(prim.logical_or, same, nans)
    return wrap(reduce_value(reductions.all_, same, tuple(range(len(same.shape)))))


def allclose(
    a: Operand,
    b: Operand,
    /,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    *,
    equal_nan: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """Whether all elements are close; see `isclose`."""
    check_stream("allclose", stream)
    return all(isclose(a, b, rtol, atol, equal_nan=equal_nan))


# -- statistics ------------------------------------------------------------------------------------------------------
def mean_value(x: Value, axes: Shape, keepdims: bool = False, ddof: int = 0) -> Value:
    """The sum over (count - ddof); in the dtype of x."""
    shape = x.shape
    count = math.prod([shape[a] for a in axes]) - ddof
    total = reduce_value(reductions.sum_, x, axes, keepdims)
    return binary(prim.multiply, total, full(1.0 / count if count > 0 else math.inf, (), x.dtype))


def mean(a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None) -> array:
    """Average over axes; float32 for integers."""
    check_stream("mean", stream)
    x = check_array("mean", a)._value
    x = cast(x, at_least_float(x.dtype))
    return wrap(mean_value(x, axes_of("mean", axis, len(x.shape)), keepdims))


def variance_value(x: Value, axes: Shape, keepdims: bool = False, ddof: int = 0) -> Value:
    """The mean squared distance from the mean (real for complex numbers)."""
    centred = binary(prim.subtract, x, mean_value(x, axes, True))
    if x.dtype.kind == "c":
        centred = unary(prim.abs_, centred, float32)
    return mean_value(unary(prim.square, centred), axes, keepdims, ddof)


def var(
    a: array,
    /,
    axis: Axis = None,
    keepdims: bool = False,
    ddof: int = 0,
    *,
    correction: int | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Variance over axes; divides by n - ddof (`correction` is another name of `ddof`)."""
    check_stream("var", stream)
    x = check_array("var", a)._value
    x = cast(x, at_least_float(x.dtype))
    axes = axes_of("mean", axis, len(x.shape))
    return wrap(variance_value(x, axes, keepdims, ddof if correction is None else correction))


def std(
    a: array,
    /,
    axis: Axis = None,
    keepdims: bool = False,
    ddof: int = 0,
    *,
    correction: int | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Standard deviation over axes; see `var`."""
    check_stream("std", stream)
    return wrap(unary(prim.sqrt, var(check_array("std", a), axis, keepdims, ddof, correction=correction)._value))


def median(a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None) -> array:
    """Median over axes: the mean of the two middle elements where their number is even."""
    check_stream("median", stream)
    x = check_array("median", a)._value
    x = cast(x, at_least_float(x.dtype))
    axes = axes_of("median", axis, len(x.shape))
    if 0 in [x.shape[i] for i in axes]:
        raise failure(ValueError, "[median] median along empty axis.")
    kept = _kept(x.shape, axes)
    rest = tuple([i for i in range(len(x.shape)) if i not in axes])
    lead = tuple([x.shape[i] for i in rest])
    count = math.prod([x.shape[i] for i in axes])
    flat = reshape(transpose(x, rest + axes), (*lead, count))
    ordered = record(scan_sort.sort, (flat,), {"axis": len(lead)}, flat.shape, flat.dtype)
    low = slice_axis(ordered, len(lead), (count - 1) // 2, (count - 1) // 2 + 1)
    out = low
    if count % 2 == 0:
        high = slice_axis(ordered, len(lead), count // 2, count // 2 + 1)
        out = binary(prim.multiply, binary(prim.add, low, high), full(0.5, (), x.dtype))
    # NaN are sorted to the end, and one of them makes the median NaN.
    last = slice_axis(ordered, len(lead), count - 1, count)
    is_nan = binary(prim.not_equal, last, last, bool_)
    out = record(prim.select, (is_nan, last, out), {}, out.shape, out.dtype)
    return wrap(reshape(out, kept if keepdims else lead))


def logsumexp(a: array, /, axis: Axis = None, keepdims: bool = False, *, stream: StreamOrDevice = None) -> array:
    """log(sum(exp(a))) over axes, without overflow."""
    check_stream("logsumexp", stream)
    x = check_array("logsumexp", a)._value
    x = cast(x, at_least_float(x.dtype))
    axes = axes_of("logsumexp", axis, len(x.shape))
    if 0 in x.shape:
        raise failure(ValueError, "[logsumexp] Received empty array.")
    return wrap(reduce_value(fast.logsumexp, x, axes, keepdims))


def softmax(a: array, /, axis: Axis = None, *, precise: bool = False, stream: StreamOrDevice = None) -> array:
    """exp(a) / sum(exp(a)) over axes; `precise` computes half precision in float32."""
    check_stream("softmax", stream)
    x = check_array("softmax", a)._value
    axes = axes_of("softmax", axis, len(x.shape))
    if 0 in x.shape:
        return wrap(x)
    dtype = at_least_float(x.dtype)
    x = cast(x, float32 if precise and dtype.size < 4 else dtype)
    return wrap(cast(record(fast.softmax, (x,), {"axes": axes}, x.shape, x.dtype), dtype))


# -- positions of extrema --------------------------------------------------------------------------------------------
class _ArgReduction(Protocol):
    def __call__(
        self, a: array, /, axis: int | None = None, keepdims: bool = False, *, stream: StreamOrDevice = None
    ) -> array: ...


def _arg_reduction(name: str, doc: str) -> _ArgReduction:
    primitive = RECORDS[name]

    def function(
        a: array, /, axis: int | None = None, keepdims: bool = False, *, stream: StreamOrDevice = None
    ) -> array:
        if stream is not None:
            check_stream(name, stream)
        x = check_array(name, a)._value
        ndim = len(x.shape)
        kept = (1,) * ndim
        if axis is None:
            x, axis = reshape(x, (math.prod(x.shape),)), 0
        else:
            axis = axis_of(name, axis, ndim)
            kept = _kept(x.shape, (axis,))
        if 0 in x.shape:
            raise failure(ValueError, f"[{name}] Cannot {name} reduce zero size array.")
        out = record(primitive, (x,), {"axis": axis}, _reduced(x.shape, (axis,)), uint32)
        return wrap(reshape(out, kept) if keepdims else out)

    return named(function, name, doc)


argmax = _arg_reduction("argmax", "Index (uint32) of the maximum along an axis, or in the flattened array.")
argmin = _arg_reduction("argmin", "Index (uint32) of the minimum along an axis, or in the flattened array.")


# -- scans -----------------------------------------------------------------------------------------------------------
def _scanned(name: str, a: array, axis: int | None, reverse: bool, inclusive: bool, dtype: Dtype | None) -> array:
    x = check_array(name, a)._value
    if axis is None:
        x, axis = reshape(x, (math.prod(x.shape),)), 0
    else:
        axis = axis_of(name, axis, len(x.shape))
    if dtype is not None:
        x = cast(x, check_dtype(name, dtype))
    elif name == "cumsum" and x.dtype is bool_:
        x = cast(x, int32)
    elif name == "logcumsumexp":
        x = cast(x, at_least_float(x.dtype))
        if x.dtype.kind == "c":
            return wrap(_complex_logcumsumexp(x, axis, reverse, inclusive))
    attrs = {"axis": axis, "reverse": bool(reverse), "inclusive": bool(inclusive)}
    return wrap(record(RECORDS[name], (x,), attrs, x.shape, x.dtype))


def _complex_logcumsumexp(x: Value, axis: int, reverse: bool, inclusive: bool) -> Value:
    """The scan by doubling: after step s, each element holds the last 2^s ones combined."""
    n = x.shape[axis]
    if reverse:
        x = slice_axis(x, axis, n - 1, -1, -1) if n > 1 else x
    if not inclusive:
        first = broadcast_to(full(-math.inf, (), x.dtype), _kept(x.shape, (axis,)))
        x = concatenate([first, slice_axis(x, axis, 0, n - 1)], axis) if n else x
    step = 1
    while step < n:
        combined = complex_logaddexp(slice_axis(x, axis, step, n), slice_axis(x, axis, 0, n - step))
        x = concatenate([slice_axis(x, axis, 0, step), combined], axis)
        step *= 2
    return slice_axis(x, axis, n - 1, -1, -1) if reverse and n > 1 else x


def cumsum(
    a: array, /, axis: int | None = None, *, reverse: bool = False, inclusive: bool = True, dtype: Dtype | None = None,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """Running sum along an axis (of the flattened array if None)."""
    check_stream("cumsum", stream)
    return _scanned("cumsum", a, axis, reverse, inclusive, dtype)


def cumprod(
    a: array, /, axis: int | None = None, *, reverse: bool = False, inclusive: bool = True, dtype: Dtype | None = None,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """Running product along an axis."""
    check_stream("cumprod", stream)
    return _scanned("cumprod", a, axis, reverse, inclusive, dtype)


def cummax(
    a: array,
    /,
    axis: int | None = None,
    *,
    reverse: bool = False,
    inclusive: bool = True,
    stream: StreamOrDevice = None,
) -> array:
    """Running maximum along an axis."""
    check_stream("cummax", stream)
    return _scanned("cummax", a, axis, reverse, inclusive, None)


def cummin(
    a: array,
    /,
    axis: int | None = None,
    *,
    reverse: bool = False,
    inclusive: bool = True,
    stream: StreamOrDevice = None,
) -> array:
    """Running minimum along an axis."""
    check_stream("cummin", stream)
    return _scanned("cummin", a, axis, reverse, inclusive, None)


def logcumsumexp(
    a: array,
    /,
    axis: int | None = None,
    *,
    reverse: bool = False,
    inclusive: bool = True,
    stream: StreamOrDevice = None,
) -> array:
    """Running logsumexp along an axis."""
    check_stream("logcumsumexp", stream)
    return _scanned("logcumsumexp", a, axis, reverse, inclusive, None)


cumulative_sum, cumulative_prod = cumsum, cumprod


def diff(a: array, /, n: int = 1, axis: int = -1, *, stream: StreamOrDevice = None) -> array:
    """The n-th difference of neighbours along an axis."""
    check_stream("diff", stream)
    x = check_array("diff", a)._value
    axis = axis_of("diff", axis, len(x.shape))
    if n < 0:
        raise failure(ValueError, f"[diff] n must be non-negative but got {n}.")
    subtract: Any = prim.not_equal if x.dtype is bool_ else prim.subtract
    for _ in range(n):
        size = x.shape[axis]
        later = slice_axis(x, axis, builtins.min(1, size), size)
        x = binary(subtract, later, slice_axis(x, axis, 0, builtins.max(size - 1, 0)))
    return wrap(x)
