"""Operations on `Value`s, below the `array` class: what every public function is made of.

The functions here trust their caller: dtypes are equal and shapes fit, unless the docstring says otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from mlxir.compiler.graph import Value, apply, constant, number_input, record, running, with_place
from mlxir.dialects.mx import RECORDS, Primitive
from mlxir.dialects.mx.record import Shape, broadcast_shapes
from mlxir.dialects.symbolic import SYMBOLIC
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.devices import gpu
from mlxir.runtime.dtypes import Dtype, promote, scalar_dtype, uint64
from mlxir.runtime.errors import AxisError, ShapeError, user_frame

from .varying import traced_each_time

_FULL, _ASTYPE, _RESHAPE, _TRANSPOSE = RECORDS["full"], RECORDS["astype"], RECORDS["reshape"], RECORDS["transpose"]
_BROADCAST, _CONCATENATE, _SLICE = RECORDS["broadcast_to"], RECORDS["concatenate"], RECORDS["slice"]
_ARANGE = RECORDS["arange"]
_NO_ATTRS: dict[str, Any] = {}
_PYTHON = {"b": bool, "i": int, "u": int, "f": float, "c": complex}


def emit(primitive: Primitive, *inputs: Value, **attrs: Any) -> Value:
    """Record one operation with one result; the record's shape rule checks the operands."""
    return apply(primitive, inputs, attrs)[0]


def full(value: Any, shape: Shape, dtype: Dtype) -> Value:
    """A constant array. `value`, a Python number, is made one of the dtype's kind: equal constants are equal nodes.

    A symbolic number is an input of its trace.
    """
    if type(value) in SYMBOLIC:
        return broadcast_to(number_input(value, dtype), shape)
    return record(_FULL, (), {"value": _PYTHON[dtype.kind](value), "shape": shape, "dtype": dtype}, shape, dtype)


def arange(start: float, step: float, length: int, dtype: Dtype) -> Value:
    """`start + i * step` for i in 0..length-1."""
    number = _PYTHON[dtype.kind]
    start, step = (n if type(n) in SYMBOLIC else number(n) for n in (start, step))
    attrs = {"start": start, "step": step, "length": length, "dtype": dtype}
    return record(_ARANGE, (), attrs, (length,), dtype)


def scalar(value: Any, partner: Dtype | None = None) -> Value:
    """A Python number as a rank-0 constant with the dtype it takes beside an array of dtype `partner` (weak typing)."""
    dtype = scalar_dtype(value, partner)
    kind = dtype.kind
    if kind in "iu" and type(value) is not bool:
        bits = 8 * dtype.size
        low, high = (0, (1 << bits) - 1) if kind == "u" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        if dtype is uint64 and -(1 << 63) <= value < 0:
            value += 1 << 64  # wraps around, as in MLX
        if not low <= value <= high:
            raise with_place(
                ValueError(f"[convert] Converting {value} to {dtype.name} would result in overflow."), user_frame(2)
            )
    return full(value, (), dtype)


def cast(x: Value, dtype: Dtype) -> Value:
    return x if x.dtype is dtype else record(_ASTYPE, (x,), {"dtype": dtype}, x.shape, dtype)


_cached_broadcast = functools.lru_cache(maxsize=4096)(broadcast_shapes)


def broadcast_shape(name: str, *shapes: Shape) -> Shape:
    """NumPy's rule. Raises ShapeError with the user's line."""
    try:
        return (broadcast_shapes if running.symbolic else _cached_broadcast)(name, *shapes)
    except ShapeError as error:
        raise with_place(error, user_frame(2)) from None


def unary(primitive: Primitive, x: Value, dtype: Dtype | None = None) -> Value:
    """An elementwise operation on one operand; `dtype` is that of the result, the operand's if None."""
    return record(primitive, (x,), _NO_ATTRS, x.shape, dtype or x.dtype)


def binary(primitive: Primitive, a: Value, b: Value, dtype: Dtype | None = None) -> Value:
    """An elementwise operation on operands of one dtype, which broadcast; `dtype` is that of the result."""
    shape = a.shape if same(a.shape, b.shape) else broadcast_shape(primitive.name, a.shape, b.shape)
    return record(primitive, (a, b), _NO_ATTRS, shape, dtype or a.dtype)


def promoted(*values: Value) -> list[Value]:
    """The values cast to their common dtype."""
    dtype = values[0].dtype
    for v in values[1:]:
        dtype = promote(dtype, v.dtype)
    return [cast(v, dtype) for v in values]


def same(a: Shape, b: Shape) -> bool:
    """Whether two shapes are equal. Ranks come first: a symbolic size is compared only where that decides."""
    return a is b or (len(a) == len(b) and a == b)


def reshape(x: Value, shape: Shape) -> Value:
    return x if same(x.shape, shape) else record(_RESHAPE, (x,), {"shape": shape}, shape, x.dtype)


def transpose(x: Value, axes: Shape) -> Value:
    if axes == tuple(range(len(axes))):
        return x
    shape = x.shape
    return record(_TRANSPOSE, (x,), {"axes": axes}, tuple([shape[a] for a in axes]), x.dtype)


def broadcast_to(x: Value, shape: Shape) -> Value:
    """`x` broadcast to a shape that it is known to fit."""
    return x if same(x.shape, shape) else record(_BROADCAST, (x,), {"shape": shape}, shape, x.dtype)


def count(start: int, stop: int, stride: int) -> int:
    """The length of `range(start, stop, stride)`, also of symbolic numbers."""
    return max(-((start - stop) // stride), 0)


def slice_bounds(start: int | None, stop: int | None, step: int, n: int) -> tuple[int, int]:
    """`slice(start, stop, step).indices(n)` without the step, also of symbolic numbers."""
    low, high = (-1, n - 1) if step < 0 else (0, n)

    def bounded(i: int) -> int:
        return max(i + n, low) if i < 0 else min(i, high)

    first = (high if step < 0 else low) if start is None else bounded(start)
    last = (low if step < 0 else high) if stop is None else bounded(stop)
    return first, last


def static_slice(x: Value, start: Sequence[int], stop: Sequence[int], strides: Sequence[int] | None = None) -> Value:
    """`x[start:stop:strides]` by normalised bounds (see the record): a stop of -1 means "before the first element"."""
    strides = (1,) * len(x.shape) if strides is None else tuple(strides)
    start, stop = tuple(start), tuple(stop)
    shape = tuple([count(a, b, s) for a, b, s in zip(start, stop, strides, strict=True)])
    if shape == x.shape and all(s == 1 for s in strides):
        return x
    return record(_SLICE, (x,), {"start": start, "stop": stop, "strides": strides}, shape, x.dtype)


def slice_axis(x: Value, axis: int, start: int, stop: int, stride: int = 1) -> Value:
    """`x[..., start:stop:stride, ...]` on one axis, normalised bounds."""
    rank = len(x.shape)
    return static_slice(
        x,
        [start if i == axis else 0 for i in range(rank)],
        [stop if i == axis else n for i, n in enumerate(x.shape)],
        [stride if i == axis else 1 for i in range(rank)],
    )


def chunk(x: Value, start: Sequence[int], sliced: Shape, shape: Shape) -> Value | None:
    """The part of an array, of shape `sliced`, that begins at `start`, as an array of shape `shape` over its memory:
    graphs that use it do not depend on `start`. None where it is all of the array, lies in several pieces, or is not
    evaluated.
    """
    buffer = x.buffer
    if type(buffer) is not Buffer or x.node is not None or x.alias is not None or x.trace is not None:
        return None
    if sliced == x.shape or not traced_each_time() or gpu() is not None:
        return None
    offset, stride, whole = 0, x.dtype.size, True
    for first, length, n in zip(reversed(start), reversed(sliced), reversed(x.shape), strict=True):
        if not length or not (whole or length == 1):
            return None
        whole = whole and length == n
        offset += first * stride
        stride *= n
    return constant(Buffer(buffer.pointer + offset, shape, x.dtype, buffer.owner))


def concatenate(values: Sequence[Value], axis: int) -> Value:
    """The values (of one dtype, shapes that fit) joined along `axis`, as a balanced tree of binary joins."""
    level = list(values)
    while len(level) > 1:
        pairs = [_joined(level[i], level[i + 1], axis) for i in range(0, len(level) - 1, 2)]
        level = pairs + ([level[-1]] if len(level) % 2 else [])
    return level[0]


def _joined(a: Value, b: Value, axis: int) -> Value:
    shape = a.shape[:axis] + (a.shape[axis] + b.shape[axis],) + a.shape[axis + 1 :]
    return record(_CONCATENATE, (a, b), {"axis": axis}, shape, a.dtype)


def size_of(shape: Shape) -> int:
    return math.prod(shape)


def axis_of(name: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front. Raises AxisError (a ValueError and an IndexError) where it is out of range."""
    if not hasattr(axis, "__index__"):
        raise with_place(TypeError(f"[{name}] An axis is an int, got {axis!r}."), user_frame(2))
    if not -ndim <= axis < ndim:
        error = AxisError(f"[{name}] Invalid axis {axis} for array with {ndim} dimensions.")
        raise with_place(error, user_frame(2))
    return int(axis + ndim if axis < 0 else axis)  # True is an axis, too


def axes_of(name: str, axis: int | Sequence[int] | None, ndim: int) -> Shape:
    """The axes of an `axis=` argument, sorted; None means all. Raises where one is out of range or named twice."""
    if axis is None:
        return tuple(range(ndim))
    if isinstance(axis, int):
        return (axis_of(name, axis, ndim),)
    axes = sorted([axis_of(name, int(a), ndim) for a in axis])
    if len(set(axes)) != len(axes):
        raise with_place(
            ValueError(f"[{name}] Duplicate axes {list(axis)} for array with {ndim} dimensions."), user_frame(2)
        )
    return tuple(axes)


__all__ = [
    "arange", "axes_of", "axis_of", "binary", "broadcast_shape", "broadcast_to", "cast", "chunk", "concatenate",
    "count", "emit", "full", "promoted", "record", "reshape", "same", "scalar", "size_of", "slice_axis", "slice_bounds",
    "static_slice", "transpose", "unary",
]  # fmt: skip
