"""Inverses, solutions, determinants and factorisations: LAPACK, through NumPy and SciPy, as steps that the host runs;
the derivatives are ours.

They follow Giles, "Collected matrix derivative results" (2008), and Walter and Lehmann (2013) for QR. A matrix that is
read as symmetric gets a symmetric cotangent, as in JAX and PyTorch. A singular matrix raises RuntimeError when it is
computed, as in MLX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.dtypes import complex64, float32, float64, uint32
from mlxir.runtime.errors import ShapeError

from .matrices import (
    LinearAlgebra,
    adjoint,
    band,
    by_matrix,
    diagonal,
    joined,
    lapack,
    lower,
    or_zeros,
    product,
    strictly_lower,
    symmetrised,
    transposed,
    upper,
    window,
)
from .record import Aval, OpBuilder, broadcast_shapes


class Inverse(LinearAlgebra):
    """The inverse of square matrices."""

    dtypes = (float32, float64, complex64)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return np.linalg.inv(arrays[0])

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None if tangents[0] is None else -product(m, outs[0], tangents[0], outs[0])]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        h = adjoint(m, outs[0])
        return [None if cts[0] is None else -product(m, h, cts[0], h)]


class PseudoInverse(LinearAlgebra):
    """Moore-Penrose; singular values below 10 max(rows, columns) eps times the largest count as zero.

    Derivative: Golub and Pereyra (1973), for constant rank.
    """

    square = False

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        *batch, rows, columns = avals[0].shape
        return (Aval((*batch, columns, rows), avals[0].dtype),)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        (a,) = arrays
        return np.linalg.pinv(a, rcond=10 * max(a.shape[-2:]) * np.finfo(a.dtype).eps)

    def _projectors(self, m: OpBuilder, a: Any, p: Any) -> tuple[Any, Any]:
        """Onto what `a` does not reach, and onto what it sends to zero."""
        left, right = product(m, a, p), product(m, p, a)
        first, second = (m.cast(band(m, x.shape, "equal"), x.dtype) - x for x in (left, right))
        return first, second

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (a,), (t,), (p,) = primals, tangents, outs
        if t is None:
            return [None]
        left, right = self._projectors(m, a, p)
        th, ph = adjoint(m, t), adjoint(m, p)
        return [product(m, p, ph, th, left) + product(m, right, th, ph, p) - product(m, p, t, p)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (a,), (ct,), (p,) = primals, cts, outs
        if ct is None:
            return [None]
        left, right = self._projectors(m, a, p)
        ch, ph = adjoint(m, ct), adjoint(m, p)
        return [product(m, left, ch, p, ph) + product(m, ph, p, ch, right) - product(m, ph, ct, ph)]


class Solve(LinearAlgebra):
    """`x` with `a @ x = b` for matrices `b`; the batch axes broadcast."""

    operands = ("a", "b")

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        a, b = avals
        if b.ndim < 2 or b.shape[-2] != a.shape[-1]:
            raise ShapeError(
                f"[linalg::{self.name}] Last dimension of first input with shape {a.shape} must match second to last"
                f" dimension of second input with shape {b.shape}."
            )
        return (Aval((*broadcast_shapes(self.name, a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), a.dtype),)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return np.linalg.solve(*arrays)

    def part(self, m: OpBuilder, a: Any, **attrs: Any) -> Any:
        """The entries of `a` that are read."""
        return a

    def flipped(self, **attrs: Any) -> dict:
        """The attributes of the system with the transposed matrix."""
        return attrs

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (a, _), (ta, tb), (x,) = primals, tangents, outs
        if ta is not None:
            tb = m.add_any(tb, -product(m, self.part(m, ta, **attrs), x))
        if tb is None:
            return [None]
        return m.emit(self, [a, m.broadcast(tb, x.shape)], attrs)

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (a, b), (ct,), (x,) = primals, cts, outs
        if ct is None:
            return [None, None]
        (w,) = m.emit(self, [adjoint(m, a), ct], self.flipped(**attrs))
        da = None
        if a.active:
            da = m.unbroadcast(self.part(m, -product(m, w, adjoint(m, x)), **attrs), a.shape)
        return [da, m.unbroadcast(w, b.shape) if b.active else None]


class SolveTriangular(Solve):
    """`x` with `a @ x = b`, reading the triangle of `a` that `upper` names."""

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        a, b = arrays
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        if 0 in (*batch, *b.shape[-2:]):
            return np.zeros((*batch, *b.shape[-2:]), b.dtype)
        if not np.all(np.diagonal(a, axis1=-2, axis2=-1)):
            raise np.linalg.LinAlgError("the triangular matrix has a zero on its diagonal")
        trtrs = lapack("trtrs", a, b)
        a, b = np.broadcast_to(a, batch + a.shape[-2:]), np.broadcast_to(b, batch + b.shape[-2:])
        return by_matrix(lambda a, b: trtrs(a, b, lower=not attrs["upper"])[:1], a, b)

    def part(self, m: OpBuilder, a: Any, **attrs: Any) -> Any:
        return upper(m, a) if attrs["upper"] else lower(m, a)

    def flipped(self, **attrs: Any) -> dict:
        return {"upper": not attrs["upper"]}


# -- determinants ------------------------------------------------------------------------------------------------------


class Determinant(LinearAlgebra):
    """`det a`. The derivative, det(a) inv(a)^T, exists here for regular matrices."""

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(avals[0].shape[:-2], avals[0].dtype),)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return np.linalg.det(arrays[0])

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None if tangents[0] is None else outs[0] * _relative_change(m, primals[0], tangents[0])]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None if cts[0] is None else _scaled_inverse(m, cts[0] * outs[0], primals[0])]


class SignAndLogDeterminant(LinearAlgebra):
    """The sign of `det a` and the logarithm of its magnitude (0 and -inf for a singular matrix)."""

    outputs = ("sign", "logabsdet")

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(avals[0].shape[:-2], avals[0].dtype),) * 2

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return tuple(np.linalg.slogdet(arrays[0]))

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None, None if tangents[0] is None else _relative_change(m, primals[0], tangents[0])]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None if cts[1] is None else _scaled_inverse(m, cts[1], primals[0])]


def _relative_change(m: OpBuilder, a: Any, t: Any) -> Any:
    """trace(a^-1 t)"""
    return m.sum(diagonal(m, m.solve(a, t)), axes=(len(a.shape) - 2,))


def _scaled_inverse(m: OpBuilder, scale: Any, a: Any) -> Any:
    rank = len(scale.shape)
    return m.expanded(scale, [rank, rank + 1]) * adjoint(m, m.inv(a))


# -- factorisations ----------------------------------------------------------------------------------------------------


class Cholesky(LinearAlgebra):
    """Lower `l` with `l @ l^T = a`, reading the lower triangle of `a` alone.

    Where `a` is not positive definite the result is what LAPACK's potrf leaves, as in MLX: it is not defined.
    """

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        (a,) = arrays
        try:
            return np.linalg.cholesky(a)
        except np.linalg.LinAlgError:
            potrf = lapack("potrf", a)
            return by_matrix(lambda x: potrf(x, lower=True, clean=True)[:1], a)

    def _half(self, m: OpBuilder, x: Any) -> Any:
        """The lower triangle with half the diagonal."""
        return (lower(m, x) + strictly_lower(m, x)) * m.scalar(0.5, x.dtype)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if tangents[0] is None:
            return [None]
        (factor,) = outs
        half = m.solve_triangular(factor, symmetrised(m, tangents[0]), upper=False)
        inner = transposed(m, m.solve_triangular(factor, transposed(m, half), upper=False))
        return [product(m, factor, self._half(m, inner))]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None:
            return [None]
        lt = transposed(m, outs[0])
        inner = self._half(m, product(m, lt, lower(m, cts[0])))
        half = m.solve_triangular(lt, inner, upper=True)
        return [symmetrised(m, transposed(m, m.solve_triangular(lt, transposed(m, half), upper=True)))]


class QR(LinearAlgebra):
    """`a = q @ r` with q (rows, k) of orthonormal columns and r (k, columns) upper triangular, k = min(rows, columns).

    A wide matrix [a1 a2] has the factors q and [r1, q^T a2] of its square part a1.
    """

    outputs = ("q", "r")
    square = False

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        *batch, rows, columns = avals[0].shape
        k = min(rows, columns)
        return Aval((*batch, rows, k), avals[0].dtype), Aval((*batch, k, columns), avals[0].dtype)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return tuple(np.linalg.qr(arrays[0]))

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (q, r) = tangents, outs
        if t is None:
            return [None, None]
        k, n = q.shape[-1], r.shape[-1]
        w = self._times_inverse(m, window(m, t, -1, 0, k), window(m, r, -1, 0, k))
        inner = product(m, adjoint(m, q), w)
        below = strictly_lower(m, inner)
        turn = below - adjoint(m, below)
        dq = product(m, q, turn) + w - product(m, q, inner)
        dr = product(m, inner - turn, window(m, r, -1, 0, k))
        if k < n:
            a2, t2 = (window(m, x, -1, k, n) for x in (primals[0], t))
            dr = joined(m, dr, product(m, adjoint(m, dq), a2) + product(m, adjoint(m, q), t2), -1)
        return [dq, dr]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (q, r), (gq, gr) = outs, or_zeros(m, cts, outs)
        k, n = q.shape[-1], r.shape[-1]
        r1, g1, g2 = r, gr, None
        if k < n:
            r1, g1, g2 = window(m, r, -1, 0, k), window(m, gr, -1, 0, k), window(m, gr, -1, k, n)
            gq = gq + product(m, window(m, primals[0], -1, k, n), adjoint(m, g2))
        inner = product(m, r1, adjoint(m, upper(m, g1))) - product(m, adjoint(m, gq), q)
        below = strictly_lower(m, inner)
        mirrored = lower(m, inner) + adjoint(m, below)
        turned = gq + product(m, q, mirrored)
        ga = adjoint(m, m.solve_triangular(r1, adjoint(m, turned), upper=True))
        return [ga if g2 is None else joined(m, ga, product(m, q, g2), -1)]

    def _times_inverse(self, m: OpBuilder, x: Any, r: Any) -> Any:
        """`x @ r^-1`"""
        return transposed(m, m.solve_triangular(transposed(m, r), transposed(m, x), upper=False))


class LU(LinearAlgebra):
    """Partial pivoting: the compact factors, LAPACK's pivots (row i was swapped with row pivots[i]), and the order of
    rows with `a[order] = l @ u`; pivots and order are uint32.
    """

    outputs = ("lu", "pivots", "order")
    square = False

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        *batch, rows, columns = avals[0].shape
        pivots = Aval((*batch, min(rows, columns)), uint32)
        return avals[0], pivots, Aval((*batch, rows), uint32)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        (a,) = arrays
        if a.size == 0:
            order = np.broadcast_to(np.arange(a.shape[-2]), a.shape[:-1])
            return a, np.zeros((*a.shape[:-2], min(a.shape[-2:])), np.uint32), order
        getrf = lapack("getrf", a)

        def factor(x: np.ndarray) -> tuple[np.ndarray, ...]:
            lu, pivots, _ = getrf(x)
            order = np.arange(x.shape[0])
            for i, pivot in enumerate(pivots):
                order[[i, pivot]] = order[[pivot, i]]
            return lu, pivots, order

        return by_matrix(factor, a)

    def _factors(self, m: OpBuilder, lu: Any) -> tuple[Any, Any]:
        """Both factors as square matrices, filled up by the identity."""
        *batch, rows, columns = lu.shape
        k = min(rows, columns)
        left, right = window(m, lu, -1, 0, k), window(m, lu, -2, 0, k)
        if k < rows:
            left = joined(m, left, m.full(value=0, shape=(*batch, rows, rows - k), dtype=lu.dtype), -1)
        left = strictly_lower(m, left) + m.cast(band(m, (rows, rows), "equal"), lu.dtype)
        right = upper(m, right)
        if k < columns:
            tail = window(m, m.cast(band(m, (columns, columns), "equal"), lu.dtype), -2, k, columns)
            right = joined(m, right, m.broadcast(tail, (*batch, columns - k, columns)), -2)
        return left, right

    def _rows(self, m: OpBuilder, x: Any, order: Any) -> Any:
        index = m.broadcast(m.expanded(order, [len(order.shape)]), x.shape)
        return m.take_along_axis(x, m.stop_gradient(index), axis=len(x.shape) - 2)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (lu, _, order) = tangents, outs
        if t is None:
            return [None, None, None]
        left, right = self._factors(m, lu)
        half = m.solve_triangular(left, self._rows(m, t, order), upper=False)
        inner = transposed(m, m.solve_triangular(transposed(m, right), transposed(m, half), upper=False))
        return [product(m, left, strictly_lower(m, inner)) + product(m, upper(m, inner), right), None, None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (ct, *_), (lu, _, order) = cts, outs
        if ct is None:
            return [None]
        left, right = self._factors(m, lu)
        lt, ut = transposed(m, left), transposed(m, right)
        inner = strictly_lower(m, product(m, lt, ct)) + upper(m, product(m, ct, ut))
        half = m.solve_triangular(lt, inner, upper=True)
        rows = transposed(m, m.solve_triangular(right, transposed(m, half), upper=True))
        back = m.argsort(order, axis=len(order.shape) - 1)
        return [self._rows(m, rows, back)]


inv = Inverse("inv")
pinv = PseudoInverse("pinv")
solve = Solve("solve")
solve_triangular = SolveTriangular("solve_triangular", ("upper",))
det = Determinant("det")
slogdet = SignAndLogDeterminant("slogdet")
cholesky = Cholesky("cholesky")
qr = QR("qr")
lu = LU("lu")
