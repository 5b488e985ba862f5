"""Products of matrices in parts: block masks, segments of the inner axis, and the Walsh-Hadamard transform."""

from __future__ import annotations

import math

import numpy as np

from mlxir.devices import StreamOrDevice, check_stream
from mlxir.ndarray import array
from mlxir.runtime.dtypes import bool_, promote

from . import contract, creation, elementwise, shape
from .common import check_array, failure

__all__ = ["block_masked_mm", "hadamard_transform", "segmented_mm"]


def _masked(x: array, mask: array | None, block: int) -> array:
    """`x` with the blocks of its last two axes weighted (or kept, by a bool mask)."""
    if mask is None:
        return x
    rows, columns = x.shape[-2:]
    wanted = (-(-rows // block), -(-columns // block))
    if mask.ndim < 2 or mask.shape[-2:] != wanted:
        raise failure(
            ValueError,
            f"[block_masked_mm] A mask of shape {shape.text(mask.shape)} does not fit {shape.text(x.shape)} in blocks"
            f" of {block}: its last axes must be {wanted}.",
        )
    whole = shape.repeat(shape.repeat(mask, block, -2)[..., :rows, :], block, -1)[..., :columns]
    return elementwise.where(whole, x, 0) if mask.dtype is bool_ else x * whole.astype(x.dtype)


def block_masked_mm(
    a: array,
    b: array,
    /,
    block_size: int = 64,
    mask_out: array | None = None,
    mask_lhs: array | None = None,
    mask_rhs: array | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """`a @ b` with square blocks of either operand and of the result masked (bool) or weighted.

    `a` is (..., M, K), `b` (..., K, N); a mask has one entry per block of `block_size`, the last ones may be smaller.
    """
    check_stream("block_masked_mm", stream)
    x, y = check_array("block_masked_mm", a), check_array("block_masked_mm", b)
    if x.ndim < 2 or y.ndim < 2:
        raise failure(ValueError, f"[block_masked_mm] Operands need 2 axes, got {x.shape} and {y.shape}.")
    if block_size < 1:
        raise failure(ValueError, f"[block_masked_mm] block_size must be positive, got {block_size}.")
    out = contract.matmul(_masked(x, mask_lhs, block_size), _masked(y, mask_rhs, block_size))
    return _masked(out, mask_out, block_size)


def segmented_mm(a: array, b: array, /, segments: array, *, stream: StreamOrDevice = None) -> array:
    """`a[:, s:e] @ b[s:e]` for each (s, e) in the last axis of `segments`: (..., 2) gives (..., M, N).

    Raises ValueError for operands that are no matrices and for segments that are not pairs of integers.
    """
    check_stream("segmented_mm", stream)
    x, y, bounds = (check_array("segmented_mm", v) for v in (a, b, segments))
    if not bounds.dtype.is_integer:
        raise failure(ValueError, "[segmented_mm] Got segments with invalid dtype. Segments must be integral.")
    if x.ndim != 2 or y.ndim != 2:
        raise failure(ValueError, "[segmented_mm] Batched matmul not supported")
    if x.shape[1] != y.shape[0]:
        raise failure(
            ValueError,
            f"[segmented_mm] Last dimension of first input with shape {shape.text(x.shape)} must match second to last"
            f" dimension of second input with shape {shape.text(y.shape)}.",
        )
    if not bounds.shape or bounds.shape[-1] != 2:
        raise failure(
            ValueError, f"[segmented_mm] Segments must have a last axis of 2, got {shape.text(bounds.shape)}."
        )
    position = creation.arange(x.shape[1], dtype=bounds.dtype)
    inside = elementwise.logical_and(position >= bounds[..., :1], position < bounds[..., 1:])
    dtype = promote(x.dtype, y.dtype)
    kept = elementwise.where(shape.expand_dims(inside, -2), x.astype(dtype), 0)
    return contract.matmul(kept, y.astype(dtype))


# Hadamard matrices of the orders that are no powers of two, rows as bits (1 for +): from N. J. A. Sloane's library.
_BASE = {
    1: (1,),
    12: (0xBFF, 0x2AA, 0xEC3, 0x896, 0xFB0, 0xA25, 0xCEC, 0x989, 0xC3B, 0x962, 0xF0E, 0xA58),
    20: (0x84336, 0x4238B, 0x211D5, 0x108FA, 0x866D, 0x7C139, 0xBA29C, 0xD914E, 0xE88A7, 0xF0653,
         0x35A0F, 0x1AD17, 0x8D49B, 0xC685D, 0x6343E, 0x49A10, 0xA0D08, 0x54484, 0x2E042, 0x93021),
    28: (0x818694C, 0x41C14A6, 0x20E2A13, 0x1071549, 0x838AE4, 0x41E532, 0x30D299, 0x3D019D2, 0x1E82CA9, 0x8E43654,
         0xC621B2A, 0xE210D95, 0xF00A6CA, 0x7807325, 0x5B3201E, 0xAC9900F, 0x564C847, 0xAB24463, 0xD590271, 0x6AC8178,
         0xB4640BC, 0x66B70C0, 0xB35B820, 0xD8ADC10, 0x6D54E08, 0x37A8704, 0x9AD4382, 0xCD6A181),
}  # fmt: skip
_FACTOR = 64  # the transform of 2^k points is made of products with matrices of at most this order


def _signs(order: int) -> np.ndarray:
    rows = [[1.0 if row >> (order - 1 - i) & 1 else -1.0 for i in range(order)] for row in _BASE[order]]
    return np.array(rows, np.float32)


def _sylvester(order: int) -> np.ndarray:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard_transform(a: array, scale: float | None = None, stream: StreamOrDevice = None) -> array:
    """The Walsh-Hadamard transform of the last axis, times `scale` (1 / sqrt(n) if None: then it is orthonormal).

    n must be m * 2^k with m in (1, 12, 20, 28), else ValueError. Integers become float32.
    """
    check_stream("hadamard_transform", stream)
    x = check_array("hadamard_transform", a)
    if not x.dtype.is_inexact:
        x = x.astype(promote(x.dtype, creation.zeros(()).dtype))
    n = x.shape[-1] if x.shape else 1
    bases = [m for m in _BASE if n and n % m == 0 and (n // m) & (n // m - 1) == 0]
    if not bases:
        raise failure(ValueError, "[hadamard] Only supports n = m*2^k where m in (1, 12, 20, 28).")
    scale = 1 / math.sqrt(n) if scale is None else float(scale)
    power = n // bases[0]
    factors = [_signs(bases[0])] if bases[0] > 1 else []
    while power > 1:
        factors.append(_sylvester(min(power, _FACTOR)))
        power //= len(factors[-1])
    parts = [len(f) for f in factors]
    out = x.reshape(*x.shape[:-1], *parts)
    for i, factor in enumerate(factors):
        # The transform of a product of orders is one transform along each axis.
        along = i - len(parts)
        matrix = array(factor.T).astype(x.dtype)
        out = shape.moveaxis(contract.matmul(shape.moveaxis(out, along, -1), matrix), -1, along)
    return out.reshape(x.shape) * scale
