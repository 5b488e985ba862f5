"""Matrices: what the records of linear algebra share, the algebra of their rules and the base of the host steps.

Matrices lie in the last two axes, every axis before them is a batch axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import Dtype, complex64, float32, float64, uint32
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive


def adjoint(m: OpBuilder, x: Any) -> Any:
    """The conjugate transpose of the last two axes."""
    return m.conjugated(transposed(m, x))


def transposed(m: OpBuilder, x: Any) -> Any:
    rank = len(x.shape)
    return m.permuted(x, (*range(rank - 2), rank - 1, rank - 2))


def product(m: OpBuilder, *factors: Any) -> Any:
    out = factors[0]
    for factor in factors[1:]:
        out = m.matmul(out, factor, ta=False, tb=False)
    return out


def band(m: OpBuilder, shape: tuple[int, ...], comparison: str) -> Any:
    """The mask `row <comparison> column` of matrices of a shape."""
    rows, columns = shape[-2:]
    i = m.reshaped(m.arange(start=0, step=1, length=rows, dtype=uint32), (rows, 1))
    j = m.reshaped(m.arange(start=0, step=1, length=columns, dtype=uint32), (1, columns))
    return getattr(m, comparison)(i, j)


def keep(m: OpBuilder, x: Any, comparison: str) -> Any:
    """`x` where `row <comparison> column`, zero elsewhere."""
    return m.select(band(m, x.shape, comparison), x, m.scalar(0, x.dtype))


def lower(m: OpBuilder, x: Any) -> Any:
    return keep(m, x, "greater_equal")


def upper(m: OpBuilder, x: Any) -> Any:
    return keep(m, x, "less_equal")


def strictly_lower(m: OpBuilder, x: Any) -> Any:
    return keep(m, x, "greater")


def diagonal(m: OpBuilder, x: Any) -> Any:
    """The main diagonal, as vectors."""
    kept = m.sum(keep(m, x, "equal"), axes=(len(x.shape) - 1,))
    n = min(x.shape[-2:])
    return kept if kept.shape[-1] == n else window(m, kept, -1, 0, n)


def columns_times(m: OpBuilder, x: Any, scale: Any) -> Any:
    """`x @ diag(scale)`."""
    return x * m.cast(m.expanded(scale, [len(scale.shape) - 1]), x.dtype)


def window(m: OpBuilder, x: Any, axis: int, start: int, stop: int) -> Any:
    axis %= len(x.shape)
    low, high = [0] * len(x.shape), list(x.shape)
    low[axis], high[axis] = start, stop
    return m.slice(x, start=tuple(low), stop=tuple(high), strides=(1,) * len(low))


def split(m: OpBuilder, x: Any, axis: int, at: int) -> tuple[Any, Any]:
    """`x` up to a position of an axis, and from it on."""
    return window(m, x, axis, 0, at), window(m, x, axis, at, x.shape[axis])


def joined(m: OpBuilder, x: Any, y: Any, axis: int) -> Any:
    return m.concatenate(x, y, axis=axis % len(x.shape))


def symmetrised(m: OpBuilder, x: Any) -> Any:
    return (x + adjoint(m, x)) * m.scalar(0.5, x.dtype)


def separations(m: OpBuilder, values: Any) -> Any:
    """`gap[i, j] = values[j] - values[i]`, 1 on the diagonal: what the derivative of vectors is divided by."""
    rank = len(values.shape)
    gap = m.expanded(values, [rank - 1]) - m.expanded(values, [rank])
    return m.select(band(m, gap.shape, "equal"), m.scalar(1, gap.dtype), gap)


def off_diagonal(m: OpBuilder, x: Any) -> Any:
    return m.select(band(m, x.shape, "equal"), m.scalar(0, x.dtype), x)


def over_gaps(m: OpBuilder, x: Any, gaps: Any) -> Any:
    return off_diagonal(m, x) / m.cast(gaps, x.dtype)


def real_part(m: OpBuilder, x: Any) -> Any:
    return m.real(x) if x.dtype.kind == "c" else x


def real_dtype(dtype: Dtype) -> Dtype:
    """The dtype of magnitudes."""
    return float32 if dtype is complex64 else dtype


def spread(m: OpBuilder, x: Any, dtype: Dtype) -> Any:
    """`diag(x)`"""
    n = x.shape[-1]
    return m.select(band(m, (n, n), "equal"), m.expanded(m.cast(x, dtype), [len(x.shape) - 1]), m.scalar(0, dtype))


def alternatives(dtypes: tuple[Dtype, ...]) -> str:
    """`float32, float64 or complex64`"""
    *names, last = [d.name for d in dtypes]
    return f"{', '.join(names)} or {last}"


def or_zeros(m: OpBuilder, cts: list, outs: list) -> list:
    return [m.zeros(out) if ct is None else ct for ct, out in zip(cts, outs, strict=True)]


def by_matrix(function: Callable, *operands: np.ndarray) -> tuple[np.ndarray, ...]:
    """`function` on each matrix of the batch, for LAPACK routines that SciPy offers one matrix at a time."""
    batch = operands[0].shape[:-2]
    flat = [x.reshape(-1, *x.shape[-2:]) for x in operands]
    found = [function(*matrices) for matrices in zip(*flat, strict=True)]
    return tuple(np.stack(part).reshape(*batch, *part[0].shape) for part in zip(*found, strict=True))


def lapack(name: str, *operands: np.ndarray) -> Any:
    from scipy.linalg import get_lapack_funcs  # lazy: SciPy takes longer to import than all of mlxir

    return get_lapack_funcs((name,), operands)[0]


class LinearAlgebra(Primitive):
    """A host step on a (batch of) matrices. `_shapes(batch, rows, columns)` gives the shapes of the results."""

    kind = "linear algebra"
    lowering = "library"
    operands: tuple[str, ...] = ("a",)
    square = True
    dtypes: tuple[Dtype, ...] = (float32, float64)

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        a = avals[0]
        if a.ndim < 2:
            raise ShapeError(f"[linalg::{self.name}] Arrays must have >= 2 dimensions. Received {a}.")
        if self.square and a.shape[-1] != a.shape[-2]:
            raise ShapeError(f"[linalg::{self.name}] Only defined for square matrices. Received {a}.")
        if any(x.dtype is not a.dtype for x in avals) or a.dtype not in self.dtypes:
            received = " and ".join(map(str, avals))
            raise ValueError(
                f"[linalg::{self.name}] Arrays must have type {alternatives(self.dtypes)}. Received {received}."
            )
        return self.results(*avals, **attrs)

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        """Shapes and dtypes of the results of operands that fit."""
        return (avals[0],)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        """By NumPy or SciPy; may raise np.linalg.LinAlgError."""
        raise NotImplementedError

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        try:
            out = self.compute(*arrays, **attrs)
        except np.linalg.LinAlgError as error:
            raise RuntimeError(f"[linalg::{self.name}] {error} (operand of shape {arrays[0].shape})") from None
        return out if isinstance(out, tuple) else (out,)

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        outs = m.emit(self, m.batch_aligned(size, args, batched), attrs)
        return outs, [True] * len(outs)
