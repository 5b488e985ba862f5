"""Sorting, selection and search along an axis."""

from __future__ import annotations

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import Primitive, elementwise, scan_sort
from mlxir.ndarray import array, wrap
from mlxir.runtime.dtypes import Dtype, bool_, uint32
from mlxir.values import axis_of, binary, broadcast_to, cast, full, promoted, record, reshape, size_of, slice_axis

from .common import check_array, failure
from .indexing import gathered
from .shape import text

__all__ = ["argpartition", "argsort", "partition", "searchsorted", "sort", "topk"]


def _prepared(name: str, a: array, axis: int | None) -> tuple[Value, int]:
    x = check_array(name, a)._value
    if axis is None:
        return reshape(x, (size_of(x.shape),)), 0
    return x, axis_of(name, axis, len(x.shape))


def _sorted(primitive: Primitive, x: Value, axis: int, dtype: Dtype) -> Value:
    return record(primitive, (x,), {"axis": axis}, x.shape, dtype)


def sort(a: array, /, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """Ascending order along an axis (of the flattened array if None); NaN last."""
    check_stream("sort", stream)
    x, axis = _prepared("sort", a, axis)
    return wrap(_sorted(scan_sort.sort, x, axis, x.dtype))


def argsort(a: array, /, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """The permutation (uint32) that sorts along an axis; equal elements keep their order."""
    check_stream("argsort", stream)
    x, axis = _prepared("argsort", a, axis)
    return wrap(_sorted(scan_sort.argsort, x, axis, uint32))


def _check_kth(name: str, x: Value, kth: int, axis: int) -> None:
    if not -x.shape[axis] <= kth < x.shape[axis]:
        raise failure(
            ValueError, f"[{name}] Received invalid kth {kth} along axis {axis} for array with shape: {text(x.shape)}"
        )


def partition(a: array, /, kth: int, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """An order in which element `kth` is where sorting would put it, smaller ones before, larger ones behind it."""
    check_stream("partition", stream)
    x, axis = _prepared("partition", a, axis)
    _check_kth("partition", x, kth, axis)
    return wrap(_sorted(scan_sort.sort, x, axis, x.dtype))


def argpartition(a: array, /, kth: int, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """The permutation (uint32) of `partition`."""
    check_stream("argpartition", stream)
    x, axis = _prepared("argpartition", a, axis)
    _check_kth("argpartition", x, kth, axis)
    return wrap(_sorted(scan_sort.argsort, x, axis, uint32))


def topk(a: array, /, k: int, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """The k largest elements along an axis, in ascending order."""
    check_stream("topk", stream)
    x, axis = _prepared("topk", a, axis)
    n = x.shape[axis]
    if not 0 <= k <= n:
        raise failure(
            ValueError, f"[topk] Received invalid k={k} along axis {axis} for array with shape: {text(x.shape)}"
        )
    return wrap(slice_axis(_sorted(scan_sort.sort, x, axis, x.dtype), axis, n - k, n))


def searchsorted(
    sorted_sequence: array, values: array, /, side: str = "left", *, stream: StreamOrDevice = None
) -> array:
    """Positions (uint32) at which `values` keep the 1-D sequence sorted: before equal elements, or behind (`right`)."""
    check_stream("searchsorted", stream)
    if side not in ("left", "right"):
        raise failure(ValueError, f"[searchsorted] Invalid side '{side}'. Expected 'left' or 'right'.")
    x = check_array("searchsorted", sorted_sequence)._value
    if len(x.shape) != 1:
        raise failure(ValueError, f"[searchsorted] The sorted sequence must be 1-D but has {len(x.shape)} dimensions.")
    x, v = promoted(x, check_array("searchsorted", values)._value)
    n = x.shape[0]
    # NaN are the largest, as `sort` puts them: a < b is "not (b <= a)" for numbers, or b is NaN and a is not.
    position = broadcast_to(full(0, (), uint32), v.shape)
    step = 1 << n.bit_length() >> 1
    while step and n:
        candidate = binary(elementwise.add, position, full(step, (), uint32))
        inside = binary(elementwise.less_equal, candidate, full(n, (), uint32), bool_)
        index = binary(elementwise.subtract, candidate, full(1, (), uint32))
        probe = reshape(gathered(x, (0,), [index], (1,)), v.shape)
        before = _before(probe, v, side == "right")
        take = binary(elementwise.logical_and, inside, before)
        position = record(elementwise.select, (take, candidate, position), {}, v.shape, uint32)
        step >>= 1
    return wrap(cast(position, uint32))


def _before(x: Value, v: Value, or_equal: bool) -> Value:
    """Whether x sorts before v (or is equal to it), NaN being the largest."""
    below = binary(elementwise.less_equal if or_equal else elementwise.less, x, v, bool_)
    if not x.dtype.is_inexact:
        return below
    v_nan = binary(elementwise.not_equal, v, v, bool_)
    x_number = binary(elementwise.equal, x, x, bool_)
    larger = v_nan if or_equal else binary(elementwise.logical_and, v_nan, x_number)
    return binary(elementwise.logical_or, below, larger)
