"""Random bits: the counter-based Threefry 2x32 generator (Salmon et al., "Parallel random numbers", SC 2011).

The layout of counters is MLX's, so that the same key gives the same bits as real MLX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.dtypes import uint8, uint16, uint32
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # of the key schedule
_WIDTHS = {1: uint8, 2: uint16, 4: uint32}


def threefry(key0: Any, key1: Any, count0: Any, count1: Any, constant: Any) -> tuple[Any, Any]:
    """Twenty rounds on uint32 values of any kind that has + ^ << >> |; `constant(n)` makes such a value."""
    keys = (key0, key1, key0 ^ key1 ^ constant(PARITY))
    v0, v1 = count0 + keys[0], count1 + keys[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            v0 = v0 + v1
            v1 = (v1 << constant(r)) | (v1 >> constant(32 - r))
            v1 = v1 ^ v0
        v0 = v0 + keys[(i + 1) % 3]
        v1 = v1 + keys[(i + 2) % 3] + constant(i + 1)
    return v0, v1


class RandomBits(Primitive):
    """Uniform bits of `width` bytes per element, `shape` of them for each key of the operand (uint32, `[..., 2]`)."""

    kind = "random"
    lowering = "element"
    costly = True
    no_jvp = no_vjp = "bits have no derivative"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (key,) = avals
        if key.dtype is not uint32 or key.ndim < 1 or key.shape[-1] != 2:
            raise ShapeError(f"[bits] Expected key shape (2) and dtype uint32 but received {key}")
        return (Aval(key.shape[:-1] + tuple(attrs["shape"]), _WIDTHS[attrs["width"]]),)

    def _words(self, attrs: dict) -> int:
        return -(-int(np.prod(attrs["shape"], dtype=np.int64)) * attrs["width"] // 4)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        (key,), width = operands, attrs["width"]
        lead = key.aval.ndim - 1
        position = 0
        for i, n in zip(idx[lead:], attrs["shape"], strict=True):
            position = position * n + i
        per_word = 4 // width
        operands = [
            key(idx[:lead] + (0,)),
            key(idx[:lead] + (1,)),
            e.index_value(position // per_word, uint32),
            e.index_value(position % per_word, uint32),
        ]
        return e.apply(self, operands, attrs, _WIDTHS[width])

    def body(self, k: Any, key0: Any, key1: Any, word: Any, part: Any, **attrs: Any) -> Any:
        """Word w of n: the pair of counters that MLX assigns to it, and which half of the pair's hash it is."""
        words, width = self._words(attrs), attrs["width"]
        half, odd = words // 2, words % 2
        constant = lambda n: k.const(n, uint32)  # noqa: E731
        second = word >= constant(half + odd)
        count0 = k.select(second, word - constant(half + odd), word)
        count1 = count0 + constant(half + odd)
        if odd:
            count1 = k.select(word == constant(half), constant(0), count1)
        v0, v1 = threefry(key0, key1, count0, count1, constant)
        value = k.select(second, v1, v0)
        if width == 4:
            return value
        return k.cast(value >> (part * constant(8 * width)), _WIDTHS[width])

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        (keys,), width, shape = arrays, attrs["width"], tuple(attrs["shape"])
        words = self._words(attrs)
        half, odd = words // 2, words % 2
        key = keys.reshape(-1, 2).astype(np.uint32)
        count0 = np.arange(half + odd, dtype=np.uint32)
        count1 = count0 + np.uint32(half + odd)
        if odd:
            count1[half] = 0
        v0, v1 = threefry(key[:, :1], key[:, 1:], count0[None], count1[None], np.uint32)
        bits = np.ascontiguousarray(np.concatenate([v0, v1[:, :half]], axis=1).astype(np.uint32))
        elements = int(np.prod(shape, dtype=np.int64))
        flat = bits.view(_WIDTHS[width].numpy)[:, :elements]
        return (flat.reshape(keys.shape[:-1] + shape),)

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, attrs), [True]


random_bits = RandomBits("random_bits", ("shape", "width"))
