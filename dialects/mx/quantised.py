"""Packed integers: what quantised weights are read through. All other parts of quantisation are elementwise."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.dtypes import uint32
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive

WORD = 32


class UnpackBits(Primitive):
    """Unsigned integers of `bits` bits out of uint32 words, along the last axis.

    The words are one stream of bits, lowest first: value i takes the bits i * bits and up, across words if need be.
    """

    kind = "structural"
    lowering = "element"
    operands = ("words",)
    costly = False
    no_jvp = no_vjp = "bits have no derivative"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (words,), bits = avals, attrs["bits"]
        if words.dtype is not uint32 or not words.shape or not 1 <= bits <= WORD:
            raise ShapeError(f"[unpack_bits] takes words of uint32 along a last axis, got {words} for {bits} bits")
        if words.shape[-1] * WORD % bits:
            raise ShapeError(f"[unpack_bits] {words.shape[-1]} words do not hold whole values of {bits} bits")
        return (Aval((*words.shape[:-1], words.shape[-1] * WORD // bits), uint32),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        (words,), bits = operands, attrs["bits"]
        start = idx[-1] * bits
        offset = e.index_value(start % WORD, uint32)
        low = words((*idx[:-1], start // WORD))
        if WORD % bits == 0:
            return e.apply(self, [low, offset], attrs, uint32)
        return e.apply(self, [low, offset, words((*idx[:-1], (start + (bits - 1)) // WORD))], attrs, uint32)

    def body(self, k: Any, low: Any, offset: Any, high: Any = None, *, bits: int) -> Any:
        """`high` is the word of the value's last bit, where it may be another one than that of its first."""
        value = low >> offset
        if high is not None:
            word, limit = k.const(WORD, uint32), k.const(WORD - bits, uint32)
            above = high << ((word - offset) & k.const(WORD - 1, uint32))
            value = k.select(offset > limit, value | above, value)
        return value & k.const((1 << bits) - 1, uint32)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        (words,), bits = arrays, attrs["bits"]
        if WORD % bits == 0:  # no value lies in two words
            fields = (words[..., None] >> np.arange(0, WORD, bits, dtype=np.uint32)) & np.uint32((1 << bits) - 1)
            return (fields.reshape(*words.shape[:-1], words.shape[-1] * (WORD // bits)),)
        octets = np.ascontiguousarray(words).astype("<u4").view(np.uint8)
        stream = np.unpackbits(octets.reshape(*words.shape[:-1], -1), axis=-1, bitorder="little")
        fields = stream.reshape(*words.shape[:-1], words.shape[-1] * WORD // bits, bits)
        return ((fields.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(-1, dtype=np.uint32),)

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, attrs), [True]


unpack_bits = UnpackBits("unpack_bits", ("bits",))
