"""Indexing on read and write, and the functions that gather or scatter.

Static ints and slices are one `slice` (or `slice_update`) and a reshape; integer arrays are a `gather` (or `scatter`)
on what the slices leave. Ints beside arrays count as arrays of shape (), as in NumPy. Static ints are checked; array
indices are clamped on read and dropped on write where they are out of range.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxir import interop
from mlxir.compiler.evaluate import evaluate
from mlxir.compiler.graph import Value, running
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import elementwise, indexing, scan_sort
from mlxir.dialects.mx import shape as shapes
from mlxir.dialects.mx.record import Shape
from mlxir.dialects.symbolic import SymInt
from mlxir.ndarray import array, as_value, wrap
from mlxir.runtime.dtypes import Dtype, bool_, int32, int64, promote
from mlxir.runtime.errors import AxisError
from mlxir.values import (
    arange,
    axis_of,
    binary,
    broadcast_shape,
    broadcast_to,
    cast,
    chunk,
    count,
    full,
    record,
    reshape,
    size_of,
    slice_bounds,
    static_slice,
    transpose,
)  # fmt: skip

from .common import Operand, check_array, failure
from .elementwise import reciprocal
from .shape import shape_of, text

__all__ = ["put_along_axis", "slice", "slice_update", "take", "take_along_axis"]

_slice = builtins.slice  # the public function `slice` hides it here


# -- what an index expression says -----------------------------------------------------------------------------------
class _Plan(NamedTuple):
    """An index expression on an array of known shape."""

    start: list[int]  # normalised bounds of the static slice, one per axis of the operand
    stop: list[int]
    strides: list[int]
    dropped: list[int]  # axes that an int selects (they are dropped), when there is no array
    arrays: list[tuple[int, Value]]  # axis and index array; ints are among them when there is an array
    layout: list[int | None]  # per axis of the result, without those of arrays: the operand's axis, or None: a new one
    position: int  # where in `layout` the axes of the index arrays go

    @property
    def sliced(self) -> Shape:
        return tuple([count(*s) for s in zip(self.start, self.stop, self.strides, strict=True)])


def _index_array(item: Any) -> Value | None:
    """The value of an integer index array or list; None for other types."""
    if isinstance(item, array):
        value = item._value
    elif isinstance(item, list):
        value = interop.from_sequence(item, None if _has_leaf(item) else int32)
    else:
        return None
    if value.dtype is bool_:
        raise failure(ValueError, "[index] boolean indices are not yet supported")
    if not value.dtype.is_integer:
        raise failure(ValueError, "[gather] Got indices with invalid dtype. Indices must be integral.")
    return value


def _has_leaf(items: Sequence[Any]) -> bool:
    return any(_has_leaf(i) if isinstance(i, (list, tuple)) else True for i in items)


def _int(item: Any) -> int | None:
    """A static integer index; None for other types (bool among them)."""
    kind: Any = type(item)
    if kind is int or kind is SymInt:
        return item
    if kind is bool or not isinstance(item, (int, np.integer)):
        return None
    return int(item)


def _bound(bound: Any) -> Any:
    if bound is None or type(bound) is int or type(bound) is SymInt:
        return bound
    if isinstance(bound, array) or not hasattr(bound, "__index__"):
        raise failure(ValueError, "[index] Slice indices must be integers or None.")
    return operator.index(bound)


def _normalised(item: _slice, n: int) -> tuple[int, int, int]:
    step = 1 if item.step is None else _bound(item.step)
    if step == 0:
        raise failure(ValueError, "[index] slice step cannot be zero")
    start, stop = slice_bounds(_bound(item.start), _bound(item.stop), step, n)
    return (start, stop, step) if count(start, stop, step) else (0, 0, 1)


def _checked(i: int, n: int) -> int:
    if not n:
        raise failure(AxisError, f"[take] Cannot do a non-empty take from an empty axis: index {i}.")
    if not -n <= i < n:
        raise failure(IndexError, f"[index] index {i} is out of bounds for an axis of size {n}")
    return i + n if i < 0 else i


def _plan(shape: Shape, index: Any) -> _Plan:
    """Reads an index expression.

    Raises ValueError for unsupported types and too many indices, IndexError for ints out of range.
    """
    items = index if type(index) is tuple else (index,)
    ndim = len(shape)
    consumed = 0
    dots = False
    has_array = False
    for item in items:
        if item is Ellipsis:
            if dots:
                raise failure(ValueError, "[index] An index can only have a single ellipsis (...)")
            dots = True
        elif item is not None:
            consumed += 1
            has_array = has_array or isinstance(item, (array, list))
    if consumed > ndim:
        raise failure(ValueError, f"[index] Too many indices for array with {ndim} dimensions.")
    start, stop, strides = [0] * ndim, list(shape), [1] * ndim
    dropped: list[int] = []
    arrays: list[tuple[int, Value]] = []
    layout: list[int | None] = []
    groups = 0  # runs of neighbouring array indices; more than one puts their axes in front
    position = 0
    in_run = False
    axis = 0
    for item in items:
        if item is None:
            layout.append(None)
            in_run = False
            continue
        if item is Ellipsis:
            kept = ndim - consumed
            layout.extend(range(axis, axis + kept))
            axis += kept
            in_run = False
            continue
        n = shape[axis]
        number = _int(item)
        if number is not None:
            number = _checked(number, n)
            if not has_array:
                start[axis], stop[axis] = number, number + 1
                dropped.append(axis)
                axis += 1
                continue
            value = full(number, (), int32)
        elif isinstance(item, _slice):
            start[axis], stop[axis], strides[axis] = _normalised(item, n)
            layout.append(axis)
            axis += 1
            in_run = False
            continue
        else:
            found = _index_array(item)
            if found is None:
                raise failure(ValueError, "[index] Cannot index mlx array using the given type.")
            if n == 0 and size_of(found.shape):
                raise failure(ValueError, "[index] Cannot do a non-empty take from an empty axis.")
            value = found
        if not in_run:
            groups += 1
            position = len(layout)
        in_run = True
        arrays.append((axis, value))
        axis += 1
    layout.extend(range(axis, ndim))
    return _Plan(start, stop, strides, dropped, arrays, layout, position if groups == 1 else 0)


def _common_indices(arrays: Sequence[tuple[int, Value]]) -> list[Value]:
    """The index arrays broadcast to one shape, in one integer dtype."""
    shape = broadcast_shape("gather", *[v.shape for _, v in arrays])
    dtype: Dtype = arrays[0][1].dtype
    for _, v in arrays:
        dtype = promote(dtype, v.dtype)
    if not dtype.is_integer:
        dtype = int64
    return [broadcast_to(cast(v, dtype), shape) for _, v in arrays]


# -- reading ---------------------------------------------------------------------------------------------------------
def gathered(x: Value, axes: Shape, indices: list[Value], sizes: Shape) -> Value:
    """The `gather` primitive: shape of the indices, then `sizes`."""
    if 0 in [x.shape[a] for a in axes]:  # the indices are empty too
        return full(0, indices[0].shape + sizes, x.dtype)
    attrs = {"axes": axes, "slice_sizes": sizes}
    return record(indexing.gather, (x, *indices), attrs, indices[0].shape + sizes, x.dtype)


def getitem(self: array, index: Any) -> array:
    """`self[index]`; see the module's docstring."""
    x = self._value
    shape = x.shape
    if type(index) is int and shape:  # the short path of a loop over rows
        n, rest = shape[0], shape[1:]
        i, rank = _checked(index, n), len(rest)
        if n != 1 and (found := chunk(x, (i,) + (0,) * rank, (1, *rest), rest)) is not None:
            return wrap(found)
        if n != 1:
            attrs = {"start": (i,) + (0,) * rank, "stop": (i + 1, *rest), "strides": (1,) * (rank + 1)}
            x = record(shapes.slice_, (x,), attrs, (1, *rest), x.dtype)
        return wrap(reshape(x, rest))
    plan = _plan(shape, index)
    if not plan.arrays:
        sliced = plan.sliced
        final = tuple([1 if a is None else sliced[a] for a in plan.layout])
        if not _strided(plan) and (found := chunk(x, plan.start, sliced, final)) is not None:
            return wrap(found)
        return wrap(reshape(static_slice(x, plan.start, plan.stop, plan.strides), final))
    x = static_slice(x, plan.start, plan.stop, plan.strides)
    indices = _common_indices(plan.arrays)
    axes = tuple([a for a, _ in plan.arrays])
    batch = indices[0].shape
    sizes = tuple([1 if a in axes else n for a, n in enumerate(x.shape)])
    out = gathered(x, axes, indices, sizes)
    # The arrays' axes come first; move them to their place and insert new axes.
    before = plan.layout[: plan.position]
    lead = len([a for a in before if a is not None])
    rest = tuple([n for a, n in enumerate(x.shape) if a not in axes])
    rank = len(batch)
    out = reshape(out, batch + rest)
    order = (*range(rank, rank + lead), *range(rank), *range(rank + lead, rank + len(rest)))
    out = transpose(out, order)
    lengths = [[1 if a is None else x.shape[a] for a in part] for part in (before, plan.layout[plan.position :])]
    return wrap(reshape(out, (*lengths[0], *batch, *lengths[1])))


# -- writing ---------------------------------------------------------------------------------------------------------
_UPDATES = {
    "add": elementwise.add,
    "multiply": elementwise.multiply,
    "maximum": elementwise.maximum,
    "minimum": elementwise.minimum,
}


def _source(x: Value, update: Any) -> Value:
    """What is written, in the dtype of `x`."""
    if update is None:
        raise failure(TypeError, "[setitem] None cannot be assigned to an array")
    return cast(as_value(update, x.dtype), x.dtype)


def _without_leading_ones(x: Value, rank: int) -> Value:
    """`x` without leading axes of size 1 beyond `rank` axes."""
    extra = len(x.shape) - rank
    return reshape(x, x.shape[extra:]) if extra > 0 and all(n == 1 for n in x.shape[:extra]) else x


def _fitted(update: Value, shape: Shape) -> Value:
    """`update` broadcast to `shape`; leading axes of size 1 that are too many are dropped."""
    update = _without_leading_ones(update, len(shape))
    if len(update.shape) > len(shape) or broadcast_shape("setitem", update.shape, shape) != shape:
        raise failure(
            ValueError, f"[broadcast_shapes] Cannot broadcast {text(update.shape)} to {text(shape)} in an assignment."
        )
    return broadcast_to(update, shape)


def updated(x: Value, index: Any, update: Value, mode: str) -> Value:
    """`x` with `update` combined (mode set, add, multiply, maximum or minimum) at `index`; duplicates accumulate."""
    plan = _plan(x.shape, index)
    sliced = plan.sliced
    target_shape = [1 if a is None else sliced[a] for a in plan.layout]
    if not plan.arrays:
        update = reshape(_fitted(update, tuple(target_shape)), sliced)
        return _write_region(x, plan, update if mode == "set" else None, update, mode)
    indices = _common_indices(plan.arrays)
    axes = tuple([a for a, _ in plan.arrays])
    batch = indices[0].shape
    rank, position = len(batch), plan.position
    target = (*target_shape[:position], *batch, *target_shape[position:])
    update = _fitted(update, target)
    if not size_of(target):
        return x
    # Axes of the index arrays to the front; then every axis of x, those that are indexed of size 1.
    order = (*range(position, position + rank), *range(position), *range(position + rank, len(target)))
    sizes = tuple([1 if a in axes else n for a, n in enumerate(sliced)])
    update = reshape(transpose(update, order), batch + sizes)
    region = static_slice(x, plan.start, plan.stop, plan.strides)
    attrs = {"axes": axes, "mode": mode}
    region = record(indexing.scatter, (region, *indices, update), attrs, region.shape, x.dtype)
    return region if region.shape == x.shape and not _strided(plan) else _write_region(x, plan, region, region, "set")


def _strided(plan: _Plan) -> bool:
    return any(s != 1 for s in plan.strides)


def _write_region(x: Value, plan: _Plan, whole: Value | None, update: Value, mode: str) -> Value:
    """`x` with the static slice of the plan replaced by `update`, or combined with it."""
    if mode != "set":
        region = static_slice(x, plan.start, plan.stop, plan.strides)
        update = binary(_UPDATES[mode], region, update)
    if update.shape == x.shape and not _strided(plan):
        return update
    if not size_of(update.shape):
        return x
    attrs = {"start": tuple(plan.start), "stop": tuple(plan.stop), "strides": tuple(plan.strides)}
    return record(shapes.slice_update, (x, update), attrs, x.shape, x.dtype)


def _mask(index: Any) -> Value | None:
    """The value of a boolean mask, or None if `index` is something else."""
    if type(index) is tuple and len(index) == 1:
        index = index[0]
    if isinstance(index, (bool, np.bool_)):
        return full(bool(index), (), bool_)
    if isinstance(index, array):
        return index._value if index._value.dtype is bool_ else None
    if isinstance(index, np.ndarray):
        return interop.from_data(index) if index.dtype == np.bool_ else None
    if isinstance(index, list) and _has_leaf(index):
        value = interop.from_sequence(index)
        return value if value.dtype is bool_ else None
    return None


def _masked(x: Value, mask: Value, source: Value) -> Value:
    """`x[mask] = source`: a source with one axis more than an element is consumed in order, others are repeated."""
    rank = len(mask.shape)
    if mask.shape != x.shape[:rank]:
        raise failure(
            ValueError,
            "[masked_scatter] The boolean mask should have the same shape as the beginning of the indexed array but the"
            f" mask has shape {text(mask.shape)} and the array has shape {text(x.shape)}",
        )
    rest = x.shape[rank:]
    wide = reshape(mask, mask.shape + (1,) * len(rest))
    while len(source.shape) > len(rest) + 1 and source.shape[0] == 1:
        source = reshape(source, source.shape[1:])
    if len(source.shape) > len(rest):
        count = source.shape[0]
        source = _fitted(source, (count, *rest))
        if count < size_of(mask.shape) and not running.depth:
            evaluate([mask])  # the source may be too short, and nothing can say so later
        known = mask.buffer
        if not count or (known is not None and int(known.numpy().sum()) > count):
            raise failure(RuntimeError, "[masked_scatter] Source does not have enough elements for mask.")
        flat = reshape(mask, (size_of(mask.shape),))
        attrs = {"axis": 0, "reverse": False, "inclusive": False}
        order = record(scan_sort.cumsum, (cast(flat, int32),), attrs, flat.shape, int32)
        source = reshape(gathered(source, (0,), [reshape(order, mask.shape)], (1, *rest)), x.shape)
    shape = broadcast_shape("masked_scatter", x.shape, source.shape)
    if shape != x.shape:
        raise failure(
            ValueError,
            f"[masked_scatter] Cannot broadcast array of shape {text(source.shape)} into shape {text(rest)}.",
        )
    return record(elementwise.select, (wide, source, x), {}, x.shape, x.dtype)


def setitem(self: array, index: Any, update: Any) -> None:
    """`self[index] = update`: the array refers to a new value; the update is cast to its dtype and broadcast."""
    x = self._value
    source = _source(x, update)
    mask = None if type(index) is int else _mask(index)
    self._value = updated(x, index, source, "set") if mask is None else _masked(x, mask, source)


class ArrayAt:
    """`x.at[index].add(v)`: a new array with `v` combined at `index`; unlike `x[index] += v`, duplicates accumulate."""

    __slots__ = ("_index", "_set", "_x")

    def __init__(self, x: array):
        self._x, self._index, self._set = x, None, False

    def __getitem__(self, index: Any) -> ArrayAt:
        out = ArrayAt(self._x)
        out._index, out._set = index, True
        return out

    def _source(self, value: Operand, changed: Callable[[array], array] | None = None) -> Value:
        """What is combined with the array, in its dtype; `changed` is applied before the cast."""
        if not self._set:
            raise failure(ValueError, "[at] Must give indices to array.at (e.g. `x.at[0].add(4)`).")
        if changed is not None and value is not None:
            value = changed(wrap(as_value(value, self._x.dtype)))
        return _source(self._x._value, value)

    def _combined(self, source: Value, mode: str) -> array:
        x = self._x._value
        mask = _mask(self._index)
        if mask is None:
            return wrap(updated(x, self._index, source, mode))
        combined = binary(_UPDATES[mode], x, _masked(x, mask, source))
        wide = reshape(mask, mask.shape + (1,) * (len(x.shape) - len(mask.shape)))
        return wrap(record(elementwise.select, (wide, combined, x), {}, x.shape, x.dtype))

    def add(self, value: Operand) -> array:
        """x[index] + value."""
        return self._combined(self._source(value), "add")

    def subtract(self, value: Operand) -> array:
        """x[index] - value. Raises ValueError for bool."""
        return self._combined(self._source(value, operator.neg), "add")

    def multiply(self, value: Operand) -> array:
        """x[index] * value."""
        return self._combined(self._source(value), "multiply")

    def divide(self, value: Operand) -> array:
        """x[index] / value, as a product with the reciprocal, which is cast to the dtype of x."""
        return self._combined(self._source(value, reciprocal), "multiply")

    def maximum(self, value: Operand) -> array:
        """max(x[index], value)."""
        return self._combined(self._source(value), "maximum")

    def minimum(self, value: Operand) -> array:
        """min(x[index], value)."""
        return self._combined(self._source(value), "minimum")


# -- functions -------------------------------------------------------------------------------------------------------
def _integral(name: str, indices: Value) -> Value:
    if indices.dtype is bool_:
        raise failure(ValueError, f"[{name.capitalize()}] Boolean indices not supported.")
    if not indices.dtype.is_integer:
        raise failure(ValueError, f"[{name}] Got indices with invalid dtype. Indices must be integral.")
    return indices


def take(a: array, /, indices: int | array, axis: int | None = None, *, stream: StreamOrDevice = None) -> array:
    """The slices at `indices` along an axis (elements of the flattened array if None)."""
    check_stream("take", stream)
    x = check_array("take", a)._value
    number = _int(indices)
    count = size_of(check_array("take", indices).shape) if number is None else 1
    if axis is None:
        x, axis = reshape(x, (size_of(x.shape),)), 0
    else:
        axis = axis_of("take", axis, len(x.shape))
    if not (x.shape[axis] if number is None else size_of(x.shape)) and count:
        raise failure(ValueError, "[take] Cannot do a non-empty take from an array with zero elements.")
    if number is not None:
        i = _checked(number, x.shape[axis])
        start = [i if k == axis else 0 for k in range(len(x.shape))]
        stop = [i + 1 if k == axis else m for k, m in enumerate(x.shape)]
        return wrap(reshape(static_slice(x, start, stop), x.shape[:axis] + x.shape[axis + 1 :]))
    index = _integral("gather", check_array("take", indices)._value)
    sizes = x.shape[:axis] + (1,) + x.shape[axis + 1 :]
    out = gathered(x, (axis,), [index], sizes)
    rank, rest = len(index.shape), x.shape[:axis] + x.shape[axis + 1 :]
    out = reshape(out, index.shape + rest)
    order = (*range(rank, rank + axis), *range(rank), *range(rank + axis, rank + len(rest)))
    return wrap(transpose(out, order))


def _along(name: str, a: array, indices: array, axis: int | None) -> tuple[Value, Value, int]:
    """Operand and indices of one rank, broadcast against each other but for `axis`."""
    x, index = check_array(name, a)._value, check_array(name, indices)._value
    if axis is None:
        x, axis = reshape(x, (size_of(x.shape),)), 0
    axis = axis_of(name, axis, len(x.shape))
    if len(x.shape) != len(index.shape):
        raise failure(
            ValueError,
            f"[{name}] Indices of dimension {len(index.shape)} does not match array of dimension {len(x.shape)}.",
        )
    _integral(name, index)
    others = broadcast_shape(
        name, x.shape[:axis] + (1,) + x.shape[axis + 1 :], index.shape[:axis] + (1,) + index.shape[axis + 1 :]
    )
    x = broadcast_to(x, others[:axis] + (x.shape[axis],) + others[axis + 1 :])
    return x, broadcast_to(index, others[:axis] + (index.shape[axis],) + others[axis + 1 :]), axis


def take_along_axis(a: array, /, indices: array, axis: int | None = -1, *, stream: StreamOrDevice = None) -> array:
    """`out[.., i, ..] = a[.., indices[.., i, ..], ..]`; `a` is flattened if `axis` is None."""
    check_stream("take_along_axis", stream)
    x, index, axis = _along("take_along_axis", a, indices, axis)
    if x.shape[axis] == 0 and size_of(index.shape):
        raise failure(ValueError, "[take_along_axis] Cannot do a non-empty take from an empty axis.")
    return wrap(record(indexing.take_along_axis, (x, index), {"axis": axis}, index.shape, x.dtype))


def put_along_axis(
    a: array, /, indices: array, values: array, axis: int | None = None, *, stream: StreamOrDevice = None
) -> array:
    """A copy of `a` with `values` at `indices` along an axis (of the flattened array if None); the two broadcast."""
    check_stream("put_along_axis", stream)
    shape = check_array("put_along_axis", a).shape
    source = cast(check_array("put_along_axis", values)._value, a.dtype)
    x, index, axis = _along("put_along_axis", a, indices, axis)
    rank = len(x.shape)
    source = _without_leading_ones(source, rank)
    if len(source.shape) > rank:
        raise failure(ValueError, f"[put_along_axis] values of shape {text(source.shape)} have more than {rank} axes.")
    index = broadcast_to(index, broadcast_shape("put_along_axis", index.shape, source.shape))
    source = _fitted(source, index.shape)
    if size_of(x.shape) != size_of(shape):
        raise failure(
            ValueError,
            f"[put_along_axis] Indices of shape {text(indices.shape)} do not fit an array of shape {text(shape)}.",
        )
    lanes = [
        index if k == axis else broadcast_to(
            reshape(arange(0, 1, n, index.dtype), tuple([n if i == k else 1 for i in range(rank)])), index.shape
        )
        for k, n in enumerate(index.shape)
    ]  # fmt: skip
    source = reshape(source, index.shape + (1,) * rank)
    attrs = {"axes": tuple(range(rank)), "mode": "set"}
    return wrap(reshape(record(indexing.scatter, (x, *lanes, source), attrs, x.shape, x.dtype), shape))


def _starts(name: str, start_indices: array, axes: Sequence[int], ndim: int) -> tuple[Shape, list[Value]]:
    """The axes and one rank-0 start index for each."""
    start = _integral(name, start_indices._value)
    if len(axes) > ndim:
        raise failure(ValueError, f"[{name}] Invalid number of starting positions for array with dimension {ndim}.")
    if len(start.shape) > 1 or size_of(start.shape) != len(axes):
        raise failure(
            ValueError,
            f"[{name}] Number of starting indices {size_of(start.shape)} does not match number of axes {len(axes)}.",
        )
    flat = reshape(start, (len(axes),))
    starts = [reshape(static_slice(flat, (i,), (i + 1,)), ()) for i in range(len(axes))]
    at = tuple([axis_of(name, a, ndim) for a in axes])
    if len(set(at)) != len(at):
        raise failure(ValueError, f"[{name}] Repeat axes not allowed.")
    return at, starts


def slice(
    a: array, start_indices: array, axes: Sequence[int], slice_size: Sequence[int], *, stream: StreamOrDevice = None
) -> array:
    """The block of shape `slice_size` that starts at (dynamic) `start_indices` of `axes` and at 0 of the others."""
    check_stream("slice", stream)
    x = check_array("slice", a)._value
    sizes = shape_of("slice", slice_size)
    at, starts = _starts("slice", check_array("slice", start_indices), axes, len(x.shape))
    if len(sizes) != len(x.shape) or any(not 0 <= s <= n for s, n in zip(sizes, x.shape, strict=True)):
        raise failure(ValueError, f"[slice] Invalid slice size {text(sizes)} for array with shape {text(x.shape)}.")
    if not at:
        return wrap(static_slice(x, (0,) * len(sizes), sizes))
    return wrap(gathered(x, at, starts, sizes))


def slice_update(
    a: array, update: array, start_indices: array, axes: Sequence[int], *, stream: StreamOrDevice = None
) -> array:
    """A copy of `a` with the block at (dynamic) `start_indices` of `axes` replaced by `update`.

    Leading axes that `update` lacks are repeated over the whole of `a`, unless they have a start index.
    """
    check_stream("slice_update", stream)
    x = check_array("slice_update", a)._value
    source = cast(check_array("slice_update", update)._value, x.dtype)
    at, starts = _starts("slice_update", check_array("slice_update", start_indices), axes, len(x.shape))
    lacking = range(len(x.shape) - len(source.shape))
    source = broadcast_to(source, tuple([1 if i in at else x.shape[i] for i in lacking]) + source.shape)
    if len(source.shape) > len(x.shape):
        raise failure(
            ValueError, f"[slice_update] update of shape {text(source.shape)} has more axes than {text(x.shape)}"
        )
    if any(s > n for s, n in zip(source.shape, x.shape, strict=True)):
        raise failure(
            ValueError, f"[slice_update] update of shape {text(source.shape)} does not fit into {text(x.shape)}"
        )
    if not at:
        plan_stop = source.shape
        zero = (0,) * len(plan_stop)
        if plan_stop == x.shape:
            return wrap(source)
        bounds = {"start": zero, "stop": plan_stop, "strides": (1,) * len(plan_stop)}
        return wrap(record(shapes.slice_update, (x, source), bounds, x.shape, x.dtype))
    attrs = {"axes": at, "mode": "set"}
    return wrap(record(indexing.scatter, (x, *starts, source), attrs, x.shape, x.dtype))
