"""Functions that rearrange elements, composed of reshape, transpose, broadcast, slice, concatenate and pad."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import shape as prim
from mlxir.dialects.mx import strided
from mlxir.dialects.mx.record import Shape
from mlxir.dialects.symbolic import as_index
from mlxir.ndarray import array, as_value, wrap
from mlxir.runtime.dtypes import Dtype
from mlxir.values import axes_of, axis_of, broadcast_shape, cast, promoted, record, size_of, slice_axis, slice_bounds
from mlxir.values import broadcast_to as broadcast_value
from mlxir.values import concatenate as join
from mlxir.values import full as full_value
from mlxir.values import reshape as reshape_value
from mlxir.values import transpose as transpose_value

from .common import Operand, check_array, check_dtype, failure
from .elementwise import multiply
from .reduce import sum as sum_axes

__all__ = [
    "as_strided", "astype", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_arrays", "broadcast_shapes",
    "broadcast_to", "concat", "concatenate", "contiguous", "diag", "diagonal", "expand_dims", "flatten", "flip", "kron",
    "matrix_transpose", "meshgrid", "moveaxis", "pad", "permute_dims", "repeat", "reshape", "roll", "split", "squeeze",
    "stack", "swapaxes", "tile", "trace", "transpose", "unflatten", "unstack",
]  # fmt: skip

def text(shape: Sequence[int]) -> str:
    """A shape as MLX's messages write it."""
    return f"({','.join(map(str, shape))})"


def shape_of(name: str, shape: Any) -> Shape:
    """A shape argument as a tuple of ints. Raises TypeError where it is no sequence of ints."""
    try:
        return tuple([as_index(n) for n in shape])
    except TypeError:
        raise failure(TypeError, f"[{name}] a shape is a sequence of ints, got {shape!r}") from None


def astype(a: array, /, dtype: Dtype, *, stream: StreamOrDevice = None) -> array:
    """`a` converted to `dtype`."""
    check_stream("astype", stream)
    return wrap(cast(check_array("astype", a)._value, check_dtype("astype", dtype)))


def contiguous(a: array, /, allow_col_major: bool = False, *, stream: StreamOrDevice = None) -> array:
    """The same values; every evaluated array is row-contiguous."""
    check_stream("contiguous", stream)
    return wrap(check_array("contiguous", a)._value)


# -- shapes ----------------------------------------------------------------------------------------------------------
def inferred(name: str, size: int, shape: Shape) -> Shape:
    """`shape` for `size` elements, with its -1 filled in. Raises ValueError where that is impossible."""
    if -1 in shape:
        if shape.count(-1) > 1:
            raise failure(ValueError, f"[{name}] Reshape can only infer one dimension.")
        known = -size_of(shape)
        if known == 0:
            raise failure(ValueError, f"[{name}] Cannot infer the shape of an empty array")
        shape = tuple([size // known if n == -1 else n for n in shape])
    if size_of(shape) != size or any(n < 0 for n in shape):
        raise failure(ValueError, f"[{name}] Cannot reshape array of size {size} into shape {text(shape)}.")
    return shape


def reshape(a: array, /, shape: Sequence[int], *, stream: StreamOrDevice = None) -> array:
    """The elements, in row-major order, in another shape; one dimension may be -1."""
    check_stream("reshape", stream)
    x = check_array("reshape", a)._value
    return wrap(reshape_value(x, inferred("reshape", size_of(x.shape), shape_of("reshape", shape))))


def flatten(a: array, /, start_axis: int = 0, end_axis: int = -1, *, stream: StreamOrDevice = None) -> array:
    """Merges the axes from `start_axis` to `end_axis` (inclusive) into one."""
    check_stream("flatten", stream)
    x = check_array("flatten", a)._value
    shape, ndim = x.shape, len(x.shape)
    if not ndim:
        return wrap(reshape_value(x, (1,)))
    start = max(start_axis + ndim if start_axis < 0 else start_axis, 0)
    end = min(end_axis + ndim if end_axis < 0 else end_axis, ndim - 1)
    if end < start:
        raise failure(ValueError, "[flatten] start_axis must be less than or equal to end_axis")
    return wrap(reshape_value(x, shape[:start] + (size_of(shape[start : end + 1]),) + shape[end + 1 :]))


def unflatten(a: array, /, axis: int, shape: Sequence[int], *, stream: StreamOrDevice = None) -> array:
    """Splits an axis into several; one of them may be -1."""
    check_stream("unflatten", stream)
    x = check_array("unflatten", a)._value
    parts = shape_of("unflatten", shape)
    given, axis = axis, axis_of("unflatten", axis, len(x.shape))
    if not parts:
        raise failure(ValueError, "[unflatten] Shape to unflatten to cannot be empty.")
    size = x.shape[axis]
    if parts.count(-1) > 1:
        raise failure(ValueError, "[Unflatten] Can only infer one dimension.")
    if -1 in parts and size_of(parts):
        parts = tuple([size // -size_of(parts) if n == -1 else n for n in parts])
    if size_of(parts) != size:
        raise failure(
            ValueError, f"[Unflatten] Cannot unflatten axis {given} with size {size} into shape {text(parts)}."
        )
    return wrap(reshape_value(x, x.shape[:axis] + parts + x.shape[axis + 1 :]))


def squeeze(a: array, /, axis: int | Sequence[int] | None = None, *, stream: StreamOrDevice = None) -> array:
    """Drops axes of size 1: the given ones, or all."""
    check_stream("squeeze", stream)
    x = check_array("squeeze", a)._value
    if axis is None:
        axes = tuple([i for i, n in enumerate(x.shape) if n == 1])
    else:
        axes = axes_of("squeeze", axis, len(x.shape))
    for i in axes:
        if x.shape[i] != 1:
            raise failure(
                ValueError, f"[squeeze] Cannot squeeze axis {i} with size {x.shape[i]} which is not equal to 1."
            )
    return wrap(reshape_value(x, tuple([n for i, n in enumerate(x.shape) if i not in axes])))


def expand_dims(a: array, /, axis: int | Sequence[int], *, stream: StreamOrDevice = None) -> array:
    """Inserts axes of size 1 at the given positions of the result."""
    check_stream("expand_dims", stream)
    x = check_array("expand_dims", a)._value
    count = 1 if isinstance(axis, int) else len(axis)
    axes = axes_of("expand_dims", axis, len(x.shape) + count)
    shape = list(x.shape)
    for i in axes:
        shape.insert(i, 1)
    return wrap(reshape_value(x, tuple(shape)))


def _atleast(name: str, widen: Callable[[Shape], Shape]) -> Any:
    def function(*arys: array, stream: StreamOrDevice = None) -> array | list[array]:
        if stream is not None:
            check_stream(name, stream)
        out = [wrap(reshape_value(x, widen(x.shape))) for x in (check_array(name, a)._value for a in arys)]
        return out[0] if len(out) == 1 else out

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The arrays with at least {name[-2]} axes; a list if there are several."
    return function


atleast_1d = _atleast("atleast_1d", lambda s: s or (1,))
atleast_2d = _atleast("atleast_2d", lambda s: (1,) * (2 - len(s)) + s)
atleast_3d = _atleast(
    "atleast_3d", lambda s: (1,) * (2 - len(s)) + s + (1,) if len(s) < 3 else s
)  # fmt: skip


# -- order of axes ---------------------------------------------------------------------------------------------------
def transpose(a: array, /, axes: Sequence[int] | None = None, *, stream: StreamOrDevice = None) -> array:
    """Permutes the axes; reverses them if None."""
    check_stream("transpose", stream)
    x = check_array("transpose", a)._value
    ndim = len(x.shape)
    if axes is None:
        return wrap(transpose_value(x, tuple(range(ndim - 1, -1, -1))))
    if len(axes) != ndim:
        raise failure(ValueError, f"[transpose] Received {len(axes)} axes for array with {ndim} dimensions.")
    order = tuple([axis_of("transpose", i, ndim) for i in axes])
    if len(set(order)) != ndim:
        raise failure(ValueError, "[transpose] Repeat axes not allowed.")
    return wrap(transpose_value(x, order))


permute_dims = transpose


def matrix_transpose(a: array, /, *, stream: StreamOrDevice = None) -> array:
    """Swaps the last two axes."""
    check_stream("matrix_transpose", stream)
    if check_array("matrix_transpose", a).ndim < 2:
        raise failure(ValueError, "[matrix_transpose] Input array must have at least 2 dimensions.")
    return swapaxes(a, -1, -2)


def swapaxes(a: array, /, axis1: int, axis2: int, *, stream: StreamOrDevice = None) -> array:
    """Swaps two axes."""
    check_stream("swapaxes", stream)
    x = check_array("swapaxes", a)._value
    ndim = len(x.shape)
    i, j = axis_of("swapaxes", axis1, ndim), axis_of("swapaxes", axis2, ndim)
    order = list(range(ndim))
    order[i], order[j] = order[j], order[i]
    return wrap(transpose_value(x, tuple(order)))


def moveaxis(a: array, /, source: int, destination: int, *, stream: StreamOrDevice = None) -> array:
    """Moves one axis to another position."""
    check_stream("moveaxis", stream)
    x = check_array("moveaxis", a)._value
    ndim = len(x.shape)
    i, j = axis_of("moveaxis", source, ndim), axis_of("moveaxis", destination, ndim)
    order = [k for k in range(ndim) if k != i]
    order.insert(j, i)
    return wrap(transpose_value(x, tuple(order)))


def flip(a: array, /, axis: int | Sequence[int] | None = None, *, stream: StreamOrDevice = None) -> array:
    """Reverses the order of elements along axes (all if None)."""
    check_stream("flip", stream)
    x = check_array("flip", a)._value
    ndim = len(x.shape)
    if axis is None:
        axis = range(ndim)
    # An axis may be named twice.
    for i in sorted({axis_of("flip", k, ndim) for k in ([axis] if isinstance(axis, int) else axis)}):
        x = slice_axis(x, i, x.shape[i] - 1, -1, -1) if x.shape[i] > 1 else x
    return wrap(x)


# -- broadcasting ----------------------------------------------------------------------------------------------------
def broadcast_to(a: Operand, /, shape: Sequence[int], *, stream: StreamOrDevice = None) -> array:
    """`a` repeated to a shape that it broadcasts to."""
    check_stream("broadcast_to", stream)
    x = as_value(a)
    target = shape_of("broadcast_to", shape)
    if any(n < 0 for n in target):
        raise failure(ValueError, "[broadcast_to] Negative dimensions not allowed.")
    if broadcast_shape("broadcast_to", x.shape, target) != target:
        raise failure(ValueError, f"[broadcast_shapes] Shapes {text(x.shape)} and {text(target)} cannot be broadcast.")
    return wrap(broadcast_value(x, target))


def broadcast_shapes(*shapes: Sequence[int]) -> Shape:
    """The shape that several shapes broadcast to. Raises ValueError where there is none."""
    if not shapes:
        raise failure(ValueError, "[broadcast_shapes] Must provide at least one shape.")
    return broadcast_shape("broadcast_shapes", *[shape_of("broadcast_shapes", s) for s in shapes])


def broadcast_arrays(*arrays: array, stream: StreamOrDevice = None) -> list[array]:
    """The arrays broadcast to their common shape."""
    check_stream("broadcast_arrays", stream)
    values = [check_array("broadcast_arrays", a)._value for a in arrays]
    if not values:
        return []
    shape = broadcast_shape("broadcast_arrays", *[v.shape for v in values])
    return [wrap(broadcast_value(v, shape)) for v in values]


def meshgrid(
    *arrays: array, sparse: bool | None = False, indexing: str | None = "xy", stream: StreamOrDevice = None
) -> tuple[array, ...]:
    """Coordinate grids of flattened arrays; `xy` swaps the first two axes, `sparse` leaves them unbroadcast."""
    check_stream("meshgrid", stream)
    if indexing not in ("xy", "ij"):
        raise failure(ValueError, "[meshgrid] Invalid indexing value. Valid values are 'xy' and 'ij'.")
    count = len(arrays)
    grids = []
    for i, a in enumerate(arrays):
        at = 1 - i if indexing == "xy" and count > 1 and i < 2 else i
        x = check_array("meshgrid", a)._value
        grids.append(wrap(reshape_value(x, tuple([size_of(x.shape) if k == at else 1 for k in range(count)]))))
    return tuple(grids if sparse else broadcast_arrays(*grids))


# -- joining and splitting -------------------------------------------------------------------------------------------
def _members(name: str, arrays: Any) -> list[Value]:
    values = [check_array(name, a)._value for a in arrays]
    if not values:
        verb = "concatenation" if name == "concatenate" else "stacking"
        raise failure(ValueError, f"[{name}] No arrays provided for {verb}")
    return values


def concatenate(arrays: Sequence[array] | array, axis: int | None = 0, *, stream: StreamOrDevice = None) -> array:
    """Joins arrays along an axis (flattened if None); they are promoted to a common dtype."""
    check_stream("concatenate", stream)
    values = _members("concatenate", arrays)
    if axis is None:
        values, axis = [reshape_value(v, (size_of(v.shape),)) for v in values], 0
    if len(values) == 1:
        return wrap(values[0])
    first = values[0].shape
    axis = axis_of("concatenate", axis, len(first))
    for v in values:
        if len(v.shape) != len(first):
            raise failure(
                ValueError,
                "[concatenate] All the input arrays must have the same number of dimensions. However, got arrays with"
                f" dimensions {len(first)} and {len(v.shape)}.",
            )
    for v in values:
        if v.shape[:axis] != first[:axis] or v.shape[axis + 1 :] != first[axis + 1 :]:
            raise failure(
                ValueError,
                "[concatenate] All the input array dimensions must match exactly except for the concatenation axis."
                f" However, the provided shapes are {', '.join(text(u.shape) for u in values)}, and the concatenation"
                f" axis is {axis}.",
            )
    return wrap(join(promoted(*values), axis))


concat = concatenate


def stack(arrays: Sequence[array] | array, axis: int | None = 0, *, stream: StreamOrDevice = None) -> array:
    """Joins arrays of one shape along a new axis."""
    check_stream("stack", stream)
    values = _members("stack", arrays)
    shape = values[0].shape
    if any(v.shape != shape for v in values):
        raise failure(ValueError, "[stack] All arrays must have the same shape")
    at = axis_of("stack", axis or 0, len(shape) + 1)
    wide = shape[:at] + (1,) + shape[at:]
    return wrap(join([reshape_value(v, wide) for v in promoted(*values)], at))


def split(
    a: array, /, indices_or_sections: int | Sequence[int], axis: int = 0, *, stream: StreamOrDevice = None
) -> list[array]:
    """Splits along an axis: into equal sections, or at indices."""
    check_stream("split", stream)
    x = check_array("split", a)._value
    indices = () if isinstance(indices_or_sections, int) else tuple(map(operator.index, indices_or_sections))
    axis = axis_of("split", axis, len(x.shape))
    size = x.shape[axis]
    if isinstance(indices_or_sections, int):
        sections = indices_or_sections
        if sections <= 0:
            raise failure(ValueError, f"[split] num_splits must be positive and non-zero but got {sections}.")
        if size % sections:
            raise failure(
                ValueError,
                "[split] Array split does not result in sub arrays with equal size: attempting"
                f" {sections} splits along axis {axis} for shape {text(x.shape)}.",
            )
        bounds = [i * (size // sections) for i in range(sections + 1)]
    else:
        bounds = [0, *indices, size]
    pieces = [slice_bounds(low, high, 1, size) for low, high in zip(bounds[:-1], bounds[1:], strict=True)]
    return [wrap(slice_axis(x, axis, low, max(high, low))) for low, high in pieces]


def unstack(x: array, /, *, axis: int = 0, stream: StreamOrDevice = None) -> tuple[array, ...]:
    """The slices along an axis, which is dropped."""
    check_stream("unstack", stream)
    v = check_array("unstack", x)._value
    axis = axis_of("unstack", axis, len(v.shape))
    shape = v.shape[:axis] + v.shape[axis + 1 :]
    return tuple([wrap(reshape_value(slice_axis(v, axis, i, i + 1), shape)) for i in range(v.shape[axis])])


def tile(a: array, reps: int | Sequence[int], /, *, stream: StreamOrDevice = None) -> array:
    """Repeats the whole array `reps[i]` times along axis i."""
    check_stream("tile", stream)
    x = check_array("tile", a)._value
    counts = (reps,) if isinstance(reps, int) else shape_of("tile", reps)
    if min(counts, default=0) < 0:
        raise failure(ValueError, f"[broadcast_to] Negative dimensions not allowed: tile got {text(counts)}.")
    shape = (1,) * (len(counts) - len(x.shape)) + x.shape
    counts = (1,) * (len(shape) - len(counts)) + counts
    interleaved = [n for pair in zip((1,) * len(shape), shape, strict=True) for n in pair]
    repeated = [n for pair in zip(counts, shape, strict=True) for n in pair]
    x = broadcast_value(reshape_value(x, tuple(interleaved)), tuple(repeated))
    return wrap(reshape_value(x, tuple([n * r for n, r in zip(shape, counts, strict=True)])))


def repeat(array: array, repeats: int, axis: int | None = None, *, stream: StreamOrDevice = None) -> array:
    """Repeats every element along an axis (of the flattened array if None)."""
    check_stream("repeat", stream)
    x = check_array("repeat", array)._value
    if not isinstance(repeats, int):
        raise failure(TypeError, f"[repeat] repeats must be an int, got {type(repeats).__name__}")
    if axis is None:
        x, axis = reshape_value(x, (size_of(x.shape),)), 0
    else:
        axis = axis_of("repeat", axis, len(x.shape))
    if repeats < 0:
        raise failure(ValueError, "[repeat] Number of repeats cannot be negative")
    lead, n, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    wide = broadcast_value(reshape_value(x, (*lead, n, 1, *rest)), (*lead, n, repeats, *rest))
    return wrap(reshape_value(wide, (*lead, n * repeats, *rest)))


def roll(
    a: array, /, shift: int | Sequence[int], axis: int | Sequence[int] | None = None, *, stream: StreamOrDevice = None
) -> array:
    """Rotates elements along axes; along the flattened array if `axis` is None."""
    check_stream("roll", stream)
    x = check_array("roll", a)._value
    if axis is None:
        total = shift if isinstance(shift, int) else sum(shift)
        flat = _rotated(reshape_value(x, (size_of(x.shape),)), total, 0)
        return wrap(reshape_value(flat, x.shape))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    shifts = (shift,) * len(axes) if isinstance(shift, int) else tuple(shift)
    if isinstance(axis, int):
        shifts = (sum(shifts),)
    elif len(shifts) < len(axes):
        raise failure(ValueError, "[roll] At least one shift value per axis is required.")
    for amount, i in zip(shifts, axes, strict=False):
        x = _rotated(x, amount, axis_of("roll", i, len(x.shape)))
    return wrap(x)


def _rotated(x: Value, shift: int, axis: int) -> Value:
    n = x.shape[axis]
    cut = -shift % n if n else 0
    return join([slice_axis(x, axis, cut, n), slice_axis(x, axis, 0, cut)], axis) if cut else x


# -- padding ---------------------------------------------------------------------------------------------------------
def _widths(pad_width: Any, ndim: int) -> list[tuple[int, int]]:
    if isinstance(pad_width, int):
        return [(pad_width, pad_width)] * ndim
    widths = list(pad_width)
    if all(isinstance(w, int) for w in widths) and 1 <= len(widths) <= 2:
        return [(widths[0], widths[-1])] * ndim
    if any(isinstance(w, int) or len(w) != 2 for w in widths):
        raise failure(TypeError, f"[pad] pad_width is an int, a pair of ints or one pair per axis, got {pad_width!r}")
    if len(widths) == 1:
        widths = widths * ndim
    if len(widths) != ndim:
        raise failure(ValueError, f"[pad] Invalid number of padding sizes passed to pad with axes of size {ndim}")
    return [(w[0], w[-1]) for w in widths]


def pad(
    a: array,
    pad_width: int | Sequence[int] | Sequence[Sequence[int]],
    mode: str = "constant",
    constant_values: Operand = 0,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """Extends axes at both ends by a constant, the edge element, or a reflection (with or without the edge itself)."""
    check_stream("pad", stream)
    x = check_array("pad", a)._value
    widths = _widths(pad_width, len(x.shape))
    if mode not in ("constant", "edge", "reflect", "symmetric"):
        raise failure(ValueError, f"[pad] Invalid padding mode ({mode}) passed to pad")
    for i, pair in enumerate(widths):
        for which, n in zip(("low", "high"), pair, strict=True):
            if n < 0:
                raise failure(
                    ValueError,
                    f"[pad] Invalid {which} padding size ({n}) passed to pad for axis {i}. Padding sizes must be"
                    " non-negative",
                )
    if not any(low or high for low, high in widths):
        return wrap(x)
    if mode == "constant":
        fill = cast(as_value(constant_values), x.dtype)
        if size_of(fill.shape) != 1:
            raise failure(ValueError, "[pad] constant_values must be a scalar")
        low, high = tuple([w[0] for w in widths]), tuple([w[1] for w in widths])
        shape = tuple([n + p + q for n, p, q in zip(x.shape, low, high, strict=True)])
        return wrap(record(prim.pad, (x, reshape_value(fill, ())), {"low": low, "high": high}, shape, x.dtype))
    for axis, (before, after) in enumerate(widths):
        if not before and not after:
            continue
        if not x.shape[axis]:
            raise failure(ValueError, f"[pad] cannot extend the empty axis {axis} in mode {mode}")
        x = _picked(x, axis, np.pad(np.arange(x.shape[axis]), (before, after), mode=mode).tolist())  # type: ignore[call-overload]
    return wrap(x)


def _picked(x: Value, axis: int, positions: list[int]) -> Value:
    """The slices of `x` at static positions along `axis`, joined from runs of equal steps (1, -1 or 0)."""
    pieces: list[Value] = []
    start = 0
    while start < len(positions):
        stop, step = start + 1, 1
        if stop < len(positions) and abs(positions[stop] - positions[start]) <= 1:
            step = positions[stop] - positions[start]
            while stop < len(positions) and positions[stop] - positions[stop - 1] == step:
                stop += 1
        first, last = positions[start], positions[stop - 1]
        if step:
            pieces.append(slice_axis(x, axis, first, last + step, step))
        else:
            shape = x.shape[:axis] + (stop - start,) + x.shape[axis + 1 :]
            pieces.append(broadcast_value(slice_axis(x, axis, first, first + 1), shape))
        start = stop
    return join(pieces, axis)


# -- diagonals and strides -------------------------------------------------------------------------------------------
def diagonal(a: array, offset: int = 0, axis1: int = 0, axis2: int = 1, stream: StreamOrDevice = None) -> array:
    """The diagonals of the matrices over two axes, as a new last axis."""
    check_stream("diagonal", stream)
    return _diagonal("diagonal", a, offset, axis1, axis2)


def _diagonal(name: str, a: array, offset: int, axis1: int, axis2: int) -> array:
    x = check_array(name, a)._value
    ndim = len(x.shape)
    if ndim < 2:
        raise failure(ValueError, f"[{name}] Array must have at least two dimensions, but got {ndim} dimensions.")
    i, j = axis_of(name, axis1, ndim), axis_of(name, axis2, ndim)
    if i == j:
        raise failure(ValueError, f"[{name}] axis1 and axis2 cannot be the same axis")
    x = transpose_value(x, tuple([k for k in range(ndim) if k not in (i, j)]) + (i, j))
    lead, (rows, columns) = x.shape[:-2], x.shape[-2:]
    first = offset if offset >= 0 else -offset * columns
    count = max(min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns), 0)
    flat = reshape_value(x, (*lead, rows * columns))
    if not count:
        return wrap(slice_axis(flat, ndim - 2, 0, 0))
    step = columns + 1
    return wrap(slice_axis(flat, ndim - 2, first, first + (count - 1) * step + 1, step))


def diag(a: array, /, k: int = 0, *, stream: StreamOrDevice = None) -> array:
    """The k-th diagonal of a matrix, or the matrix with a vector on its k-th diagonal."""
    check_stream("diag", stream)
    x = check_array("diag", a)._value
    if len(x.shape) == 2:
        return diagonal(a, k)
    if len(x.shape) != 1:
        raise failure(ValueError, f"[diag] array must be 1-D or 2-D, got array with {len(x.shape)} dimensions.")
    size = x.shape[0] + abs(k)
    zeros = full_value(0, (size * size,), x.dtype)
    if not x.shape[0]:
        return wrap(reshape_value(zeros, (size, size)))
    first = k if k >= 0 else -k * size
    attrs = {"start": (first,), "stop": (first + (x.shape[0] - 1) * (size + 1) + 1,), "strides": (size + 1,)}
    return wrap(reshape_value(record(prim.slice_update, (zeros, x), attrs, zeros.shape, x.dtype), (size, size)))


def trace(
    a: array,
    /,
    offset: int = 0,
    axis1: int = 0,
    axis2: int = 1,
    dtype: Dtype | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """The sum of a diagonal, in `dtype` if given."""
    check_stream("trace", stream)
    entries = _diagonal("trace", a, offset, axis1, axis2)
    return sum_axes(entries if dtype is None else astype(entries, dtype), -1)


def as_strided(
    a: array,
    /,
    shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    offset: int = 0,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """Element `offset + sum(i * stride)` of the flattened array at each index i.

    Raises ValueError for positions outside the array.
    """
    check_stream("as_strided", stream)
    x = check_array("as_strided", a)._value
    sizes = x.shape if shape is None else shape_of("as_strided", shape)
    if strides is None:
        steps = tuple([size_of(sizes[i + 1 :]) for i in range(len(sizes))])
    else:
        steps = shape_of("as_strided", strides)
    if len(sizes) != len(steps):
        raise failure(ValueError, f"[as_strided] {len(steps)} strides for shape {text(sizes)}")
    if 0 in sizes:
        return wrap(full_value(0, sizes, x.dtype))
    reach = [(n - 1) * s for n, s in zip(sizes, steps, strict=True)]
    low, high = offset + sum(min(r, 0) for r in reach), offset + sum(max(r, 0) for r in reach)
    count = size_of(x.shape)
    if low < 0 or high >= count:
        raise failure(
            ValueError, f"[as_strided] positions {low} to {high} reach outside an array of {count} elements"
        )
    return wrap(record(strided.as_strided, (x,), {"shape": sizes, "strides": steps, "offset": offset}, sizes, x.dtype))


def kron(a: array, b: array, *, stream: StreamOrDevice = None) -> array:
    """Kronecker product: every element of `a` times the whole of `b`."""
    check_stream("kron", stream)
    x, y = check_array("kron", a), check_array("kron", b)
    if not x.size or not y.size:
        raise failure(ValueError, "[kron] cannot take Kronecker product of empty arrays.")
    rank = max(x.ndim, y.ndim)
    p, q = (1,) * (rank - x.ndim) + x.shape, (1,) * (rank - y.ndim) + y.shape
    left = reshape(x, [n for size in p for n in (size, 1)])
    right = reshape(y, [n for size in q for n in (1, size)])
    return reshape(multiply(left, right), [m * n for m, n in zip(p, q, strict=True)])
