"""Contractions: matrix products with batch broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive, broadcast_shapes


class Matmul(Primitive):
    """`op(a) @ op(b)` over the last two axes of operands of rank >= 2; `op` transposes where `ta` / `tb` says so.

    Bilinear: the two transposes below are the whole derivative. The batch axes broadcast as in NumPy.
    """

    kind = "bilinear"
    operands = ("a", "b")
    lowering = "kernel"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        a, b = avals
        if a.ndim < 2 or b.ndim < 2:
            raise ShapeError(f"[matmul] operands must have at least 2 axes, got {a} and {b}")
        if a.dtype is not b.dtype or not a.dtype.is_inexact:
            raise ValueError(f"[matmul] Only inexact types of one kind are supported, got {a} and {b}")
        m, k = a.shape[-2:][::-1] if attrs["ta"] else a.shape[-2:]
        k2, n = b.shape[-2:][::-1] if attrs["tb"] else b.shape[-2:]
        if k != k2:
            raise ShapeError(
                f"[matmul] Last dimension of first input with shape {a.shape} must match second to last dimension of"
                f" second input with shape {b.shape}."
            )
        return (Aval(broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2]) + (m, n), a.dtype),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        a = np.swapaxes(arrays[0], -1, -2) if attrs["ta"] else arrays[0]
        b = np.swapaxes(arrays[1], -1, -2) if attrs["tb"] else arrays[1]
        return (np.matmul(a, b),)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return 2 * results[0].size * operands[0].shape[-2 if attrs["ta"] else -1]

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (a, b), (ta, tb) = primals, tangents
        left = m.emit(self, [ta, b], attrs)[0] if ta is not None else None
        right = m.emit(self, [a, tb], attrs)[0] if tb is not None else None
        return [m.add_any(left, right)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (a, b), (ct,) = primals, cts
        ta, tb = attrs["ta"], attrs["tb"]
        da = db = None
        if ct is None:
            return [None, None]
        a, b = m.conjugated(a), m.conjugated(b)
        if primals[0].active:
            da = m.matmul(b, ct, ta=tb, tb=True) if ta else m.matmul(ct, b, ta=False, tb=not tb)
            da = m.unbroadcast(da, tuple(primals[0].shape))
        if primals[1].active:
            db = m.matmul(ct, a, ta=True, tb=ta) if tb else m.matmul(a, ct, ta=not ta, tb=False)
            db = m.unbroadcast(db, tuple(primals[1].shape))
        return [da, db]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, m.batch_aligned(size, args, batched), attrs), [True]


matmul = Matmul("matmul", ("ta", "tb"))
