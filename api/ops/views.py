"""`view`: the bits of an array as another dtype."""

from __future__ import annotations

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import elementwise
from mlxir.dialects.mx import shape as shapes
from mlxir.ndarray import array, as_value, wrap
from mlxir.runtime.dtypes import Dtype, uint8, uint16, uint32, uint64
from mlxir.values import arange, binary, cast, full, record, reshape, slice_axis

from .common import Operand, check_dtype, failure

__all__ = ["view"]

_UNSIGNED = {1: uint8, 2: uint16, 4: uint32, 8: uint64}


def _bits(x: Value, dtype: Dtype) -> Value:
    return x if x.dtype is dtype else record(shapes.view, (x,), {"dtype": dtype}, x.shape, dtype)


def view(a: Operand, dtype: Dtype, stream: StreamOrDevice = None) -> array:
    """The same bytes as elements of `dtype` (little-endian); where sizes differ, the last axis grows or shrinks.

    Raises ValueError for scalars whose size would change, and for a last axis that is no multiple of the new size.
    """
    check_stream("view", stream)
    x = as_value(a)
    check_dtype("view", dtype)
    old, new = x.dtype.size, dtype.size
    if old == new:
        return wrap(_bits(x, dtype))
    if not x.shape:
        raise failure(ValueError, "[view] Changing the type of a scalar is only allowed for types with the same size.")
    lead, n = x.shape[:-1], x.shape[-1]
    words = _bits(x, _UNSIGNED[old])
    if new < old:
        shifts = arange(0, 8 * new, old // new, words.dtype)
        parts = binary(elementwise.right_shift, reshape(words, (*lead, n, 1)), shifts)
        return wrap(_bits(reshape(cast(parts, _UNSIGNED[new]), (*lead, n * (old // new))), dtype))
    count = new // old
    if n % count:
        raise failure(
            ValueError,
            "[view] When viewing as a larger dtype, the size in bytes of the last axis must be a multiple of the"
            " requested type size.",
        )
    wide = cast(reshape(words, (*lead, n // count, count)), _UNSIGNED[new])
    total = reshape(slice_axis(wide, len(lead) + 1, 0, 1), (*lead, n // count))
    for i in range(1, count):
        part = reshape(slice_axis(wide, len(lead) + 1, i, i + 1), (*lead, n // count))
        shifted = binary(elementwise.left_shift, part, full(8 * old * i, (), _UNSIGNED[new]))
        total = binary(elementwise.bitwise_or, total, shifted)
    return wrap(_bits(total, dtype))
