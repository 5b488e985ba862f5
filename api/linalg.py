"""`mlxir.linalg`: norms and products."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxir.runtime.dtypes import at_least_float

from .devices import StreamOrDevice
from .ndarray import array, wrap
from .ops import elementwise, reduce, shape
from .ops.common import check_array, failure
from .values import axis_of, cast

__all__ = ["cross", "norm"]


def norm(
    a: array,
    /,
    ord: None | int | float | str = None,
    axis: None | int | Sequence[int] = None,
    keepdims: bool = False,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """Vector norm over one axis, or matrix norm over two; without `ord` and `axis` the 2-norm of all elements.

    Vectors: any number, or +-inf. Matrices: 'fro', 1, -1, inf, -inf (the norms of singular values need an SVD).
    """
    x = check_array("norm", a)._value
    x = cast(x, at_least_float(x.dtype))
    if axis is None:
        if ord is None:
            flat = wrap(x)
            return _two(flat, tuple(range(flat.ndim)), keepdims)
        if len(x.shape) not in (1, 2):
            raise failure(
                ValueError, f"[linalg.norm] Inputs must be 1-D or 2-D when ord is given, got {len(x.shape)}-D."
            )
        axes = tuple(range(len(x.shape)))
    else:
        axes = tuple([axis_of("linalg.norm", i, len(x.shape)) for i in ([axis] if isinstance(axis, int) else axis)])
    if len(axes) not in (1, 2):
        raise failure(ValueError, f"[linalg.norm] Received too many axes for norm: {len(axes)}.")
    if len(set(axes)) != len(axes):
        raise failure(ValueError, "[linalg.norm] The two axes of a matrix norm must differ.")
    if ord is None:
        return _two(wrap(x), axes, keepdims)
    if len(axes) == 1:
        if isinstance(ord, str):
            raise failure(ValueError, f"[linalg.norm] Invalid ord '{ord}' for vector norm.")
        return _vector(wrap(x), float(ord), axes[0], keepdims)
    return _matrix(wrap(x), ord, axes, keepdims)


def _magnitude(x: array) -> array:
    return elementwise.abs(x)


def _two(x: array, axes: tuple[int, ...], keepdims: bool) -> array:
    squares = elementwise.square(_magnitude(x) if x.dtype.kind == "c" else x)
    return elementwise.sqrt(reduce.sum(squares, axes, keepdims))


def _vector(x: array, ord: float, axis: int, keepdims: bool) -> array:
    size = _magnitude(x)
    if ord == math.inf:
        return reduce.max(size, axis, keepdims)
    if ord == -math.inf:
        return reduce.min(size, axis, keepdims)
    if ord == 0:
        nonzero = elementwise.not_equal(size, 0)
        return reduce.sum(wrap(cast(nonzero._value, size.dtype)), axis, keepdims)
    if ord == 1:
        return reduce.sum(size, axis, keepdims)
    if ord == 2:
        return _two(x, (axis,), keepdims)
    return elementwise.power(reduce.sum(elementwise.power(size, ord), axis, keepdims), 1.0 / ord)


def _matrix(x: array, ord: int | float | str, axes: tuple[int, ...], keepdims: bool) -> array:
    if ord in ("fro", "f"):
        return _two(x, axes, keepdims)
    rows, columns = axes
    if ord in (1, -1, math.inf, -math.inf):
        inner, outer = (rows, columns) if ord in (1, -1) else (columns, rows)
        extremum = reduce.max if ord in (1, math.inf) else reduce.min
        sums = reduce.sum(_magnitude(x), inner, True)
        out = extremum(sums, outer, True)
        return out if keepdims else shape.squeeze(out, axes)
    if ord in ("nuc", 2, -2):
        raise failure(
            NotImplementedError,
            f"[linalg.norm] ord {ord!r} needs singular values, which mlxir.linalg does not have yet.",
        )
    raise failure(ValueError, f"[linalg.norm] Invalid ord {ord!r} for matrix norm.")


def cross(a: array, b: array, axis: int = -1, *, stream: StreamOrDevice = None) -> array:
    """Cross product along an axis of size 3; one of size 2 counts as having a third component 0."""
    x, y = check_array("linalg.cross", a), check_array("linalg.cross", b)
    at = axis_of("linalg.cross", axis, max(x.ndim, y.ndim)) - max(x.ndim, y.ndim)
    if min(x.ndim, y.ndim) < -at or x.shape[at] not in (2, 3) or y.shape[at] not in (2, 3):
        raise failure(ValueError, "[linalg.cross] The specified axis must have size 2 or 3.")
    u, v = shape.split(x, x.shape[at], at), shape.split(y, y.shape[at], at)
    u, v = ([*p, elementwise.multiply(p[0], 0)][:3] for p in (u, v))
    parts = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
    return shape.concatenate(parts, at)
