"""Unique elements, with an output size that does not depend on the values."""

from __future__ import annotations

from mlxir.devices import StreamOrDevice, check_stream
from mlxir.ndarray import array, as_value, wrap
from mlxir.runtime.dtypes import bool_, int32, uint32
from mlxir.values import cast

from .common import Operand, check_array, failure
from .creation import arange, full, ones
from .elementwise import minimum, where
from .indexing import take
from .reduce import cumsum
from .shape import concatenate, flatten, reshape
from .sorting import argsort, searchsorted

__all__ = ["unique"]


def unique(
    a: array,
    /,
    size: int,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    fill_value: Operand | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array | tuple[array, ...]:
    """The `size` smallest different elements of the flattened array, ascending; NaN are all different.

    Fewer are padded with `fill_value` (default: the smallest element), whose counts are 0. On request also, in this
    order: the index (uint32) of each element's first occurrence; the inverse (uint32, shape of `a`), which rebuilds
    `a`; the counts (int32). Raises ValueError for a negative size and for empty input without a fill value.
    """
    check_stream("unique", stream)
    x = flatten(check_array("unique", a))
    if size < 0:
        raise failure(ValueError, f"[unique] The size must be non-negative but got {size}.")
    if not x.size:
        return _of_nothing(a, size, (return_index, return_inverse, return_counts), fill_value)
    order = argsort(x)
    ordered = take(x, order)
    is_new = concatenate([ones((1,), bool_), ordered[1:] != ordered[:-1]])
    number = cumsum(is_new.astype(int32)) - 1  # of the unique element that each one is
    slots = arange(size)
    first = searchsorted(number, slots).astype(int32)
    is_used = slots <= number[-1]
    at = where(is_used, first, 0)
    fill = ordered[0] if fill_value is None else wrap(cast(as_value(fill_value, x.dtype), x.dtype))
    out = [where(is_used, take(ordered, at), fill)]
    if return_index:
        out.append(take(order, at))
    if return_inverse:
        inverse = take(minimum(number, max(size - 1, 0)), argsort(order)).astype(uint32)
        out.append(reshape(inverse, a.shape))
    if return_counts:
        out.append(searchsorted(number, slots, side="right").astype(int32) - first)
    return tuple(out) if len(out) > 1 else out[0]


def _of_nothing(a: array, size: int, wanted: tuple[bool, ...], fill_value: Operand | None) -> array | tuple[array, ...]:
    """The result for an array without elements."""
    if size and fill_value is None:
        raise failure(ValueError, "[unique] A fill value is required for an empty input with a non-zero size.")
    fill = wrap(cast(as_value(0 if fill_value is None else fill_value, a.dtype), a.dtype))
    extra = [full((size,), 0, uint32), full(a.shape, 0, uint32), full((size,), 0, int32)]
    out = [full((size,), fill), *[x for x, is_wanted in zip(extra, wanted, strict=True) if is_wanted]]
    return tuple(out) if len(out) > 1 else out[0]
