"""Sort keys: unsigned integers whose order is that of the values, NaN last and -0 beside +0.

    -inf .. -1 .. 0 .. 1 .. inf, NaN
    0x007fffff .. 0x407fffff .. 0x80000000 .. 0xbf800000 .. 0xff800000, 0xffffffff

Integers keep their order with the sign bit flipped. A complex key is that of the real part above that of the imaginary
one; those with NaN come last, in NumPy's order: first where only the imaginary part is NaN, then only the real one.
"""

from __future__ import annotations

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.runtime.dtypes import Dtype, bool_, complex64, uint8, uint16, uint32, uint64

_UNSIGNED = {1: uint8, 2: uint16, 4: uint32, 8: uint64}


def key_dtype(dtype: Dtype) -> Dtype:
    return _UNSIGNED[dtype.size]


def zero_key(dtype: Dtype) -> int:
    """The key of both zeros of a float dtype."""
    return 1 << (8 * dtype.size - 1)


def key_of(k: ScalarBuilder, x: Reg) -> Reg:
    if x.dtype is complex64:
        return _complex_key(k, x)
    if x.dtype is bool_:
        return k.cast(x, uint8)
    unsigned = key_dtype(x.dtype)
    bits, sign = k.bitcast(x, unsigned), k.const(zero_key(x.dtype), unsigned)
    if x.dtype.kind == "u":
        return bits
    if x.dtype.kind == "i":
        return bits ^ sign
    ones = k.const(-1, unsigned)
    key = bits ^ k.select(bits >= sign, ones, sign)
    key = k.select(x == 0, sign, key)
    return k.select(x != x, ones, key)


def _complex_key(k: ScalarBuilder, x: Reg) -> Reg:
    real, imaginary = x.value
    high, low = key_of(k, real), key_of(k, imaginary)
    no_real, no_imaginary = real != real, imaginary != imaginary
    # The key of an infinity is the largest of a number; there is room above it.
    group = k.select(no_imaginary, k.const(-1, uint32), k.const(-2, uint32))
    last = k.select(no_real, group, k.const(-3, uint32))
    order = k.select(no_real, low, high)
    nan = no_real | no_imaginary
    high, low = k.select(nan, last, high), k.select(nan, order, low)
    return (k.cast(high, uint64) << 32) | k.cast(low, uint64)


def value_of(k: ScalarBuilder, key: Reg, dtype: Dtype) -> Reg:
    """The value of a key, which is real; of zero the positive one."""
    if dtype is bool_:
        return k.cast(key, bool_)
    sign = k.const(zero_key(dtype), key.dtype)
    if dtype.kind == "u":
        bits = key
    elif dtype.kind == "i":
        bits = key ^ sign
    else:
        bits = key ^ k.select(key >= sign, sign, k.const(-1, key.dtype))
    return k.bitcast(bits, dtype)
