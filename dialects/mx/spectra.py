"""Singular values and eigenvalues with their vectors: LAPACK through NumPy, as steps that the host runs.

The derivatives keep what a factorisation leaves open as PyTorch and JAX do: vectors are differentiated at fixed phase,
and those of equal singular or eigen values have none (inf or NaN).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.dtypes import complex64, float32, float64

from .matrices import (
    LinearAlgebra,
    adjoint,
    columns_times,
    diagonal,
    joined,
    keep,
    over_gaps,
    product,
    real_dtype,
    real_part,
    separations,
    spread,
    symmetrised,
    window,
)
from .record import Aval, OpBuilder


class SVD(LinearAlgebra):
    """`a = u @ diag(s) @ vt` with square u and vt (MLX's form); s descending, real."""

    outputs = ("u", "s", "vt")
    square = False
    dtypes = (float32, float64, complex64)

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (a,) = avals
        *batch, rows, columns = a.shape
        s = Aval((*batch, min(rows, columns)), real_dtype(a.dtype))
        return Aval((*batch, rows, rows), a.dtype), s, Aval((*batch, columns, columns), a.dtype)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return tuple(np.linalg.svd(arrays[0], full_matrices=True))

    def _thin(self, m: OpBuilder, u: Any, s: Any, vt: Any) -> tuple[Any, Any]:
        """The first columns of u and of v."""
        k = s.shape[-1]
        return window(m, u, -1, 0, k), adjoint(m, window(m, vt, -2, 0, k))

    def _outside(self, m: OpBuilder, basis: Any, x: Any) -> Any:
        """What of `x` lies outside the span of `basis`."""
        return x - product(m, basis, adjoint(m, basis), x)

    def _completed(self, m: OpBuilder, basis: Any, full: Any, change: Any) -> Any:
        """The change of all columns: those beyond the first k only stay orthogonal to these."""
        k, n = basis.shape[-1], full.shape[-1]
        if k == n:
            return change
        rest = window(m, full, -1, k, n)
        return joined(m, change, -product(m, basis, adjoint(m, change), rest), -1)

    def _folded(self, m: OpBuilder, basis: Any, full: Any, ct: Any) -> Any:
        """The transpose of `_completed`."""
        k, n = basis.shape[-1], full.shape[-1]
        if k == n:
            return ct
        rest, gr = window(m, full, -1, k, n), window(m, ct, -1, k, n)
        return window(m, ct, -1, 0, k) - product(m, rest, adjoint(m, gr), basis)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (u, s, vt) = tangents, outs
        if t is None:
            return [None, None, None]
        first, v = self._thin(m, u, s, vt)
        inner = product(m, adjoint(m, first), t, v)
        ds = real_part(m, diagonal(m, inner))
        gaps = separations(m, m.square(s))
        scaled = columns_times(m, inner, s)  # inner @ diag(s)
        other = columns_times(m, adjoint(m, inner), s)  # its mirror image
        du = product(m, first, over_gaps(m, scaled + adjoint(m, scaled), gaps))
        dv = product(m, v, over_gaps(m, other + adjoint(m, other), gaps))
        if u.dtype.kind == "c":  # the phase that diag(inner) turns by is given to u
            du = du + columns_times(m, first, m.cast(diagonal(m, inner), u.dtype) - m.cast(ds, u.dtype)) / m.cast(
                m.expanded(s, [len(s.shape) - 1]), u.dtype
            )
        inverse = m.reciprocal(s)
        du = du + columns_times(m, self._outside(m, first, product(m, t, v)), inverse)
        dv = dv + columns_times(m, self._outside(m, v, product(m, adjoint(m, t), first)), inverse)
        du = self._completed(m, first, u, du)
        dv = self._completed(m, v, adjoint(m, vt), dv)
        return [du, ds, adjoint(m, dv)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        u, s, vt = outs
        first, v = self._thin(m, u, s, vt)
        gu, gs, gvt = cts
        inner, tall, wide = None, None, None
        gaps, inverse = separations(m, m.square(s)), m.reciprocal(s)
        if gs is not None:
            inner = spread(m, gs, u.dtype)
        if gu is not None:
            gu = self._folded(m, first, u, gu)
            turn = product(m, adjoint(m, first), gu)
            skew = turn - adjoint(m, turn)
            inner = m.add_any(inner, columns_times(m, over_gaps(m, skew, gaps), s))
            if u.dtype.kind == "c":
                inner = inner + keep(m, skew, "equal") * m.cast(
                    m.expanded(inverse, [len(s.shape) - 1]) * m.scalar(0.5, s.dtype), u.dtype
                )
            tall = columns_times(m, self._outside(m, first, gu), inverse)
        if gvt is not None:
            gv = self._folded(m, v, adjoint(m, vt), adjoint(m, gvt))
            turn = product(m, adjoint(m, v), gv)
            skew = over_gaps(m, turn - adjoint(m, turn), gaps)
            rows = skew * m.cast(m.expanded(s, [len(s.shape)]), u.dtype)
            inner = m.add_any(inner, rows)
            wide = columns_times(m, self._outside(m, v, gv), inverse)
        if inner is None:
            return [None]
        ga = product(m, first, inner, adjoint(m, v))
        if tall is not None:
            ga = ga + product(m, tall, adjoint(m, v))
        if wide is not None:
            ga = ga + product(m, first, adjoint(m, wide))
        return [ga]


class SingularValues(LinearAlgebra):
    """The singular values alone, descending."""

    square = False
    dtypes = SVD.dtypes

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        *batch, rows, columns = avals[0].shape
        return (Aval((*batch, min(rows, columns)), real_dtype(avals[0].dtype)),)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return np.linalg.svd(arrays[0], compute_uv=False)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return svd.jvp(m, primals, tangents, m.svd(primals[0]))[1:2] if tangents[0] is not None else [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None:
            return [None]
        return svd.vjp(m, primals, [None, cts[0], None], m.svd(primals[0]))


class EigenHermitian(LinearAlgebra):
    """Eigenvalues (ascending, real) and orthonormal eigenvectors, reading the lower triangle of `a` alone."""

    outputs = ("values", "vectors")
    dtypes = (float32, float64, complex64)

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (a,) = avals
        return Aval(a.shape[:-1], real_dtype(a.dtype)), a

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return tuple(np.linalg.eigh(arrays[0], "L"))

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (w, v) = tangents, outs
        if t is None:
            return [None, None]
        inner = product(m, adjoint(m, v), symmetrised(m, t), v)
        return [real_part(m, diagonal(m, inner)), product(m, v, over_gaps(m, inner, separations(m, w)))]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (gw, gv), (w, v) = cts, outs
        inner = None
        if gw is not None:
            inner = spread(m, gw, v.dtype)
        if gv is not None:
            inner = m.add_any(inner, over_gaps(m, product(m, adjoint(m, v), gv), separations(m, w)))
        return [None if inner is None else symmetrised(m, product(m, v, inner, adjoint(m, v)))]


class EigenValuesHermitian(LinearAlgebra):
    """The eigenvalues alone, ascending."""

    dtypes = EigenHermitian.dtypes

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(avals[0].shape[:-1], real_dtype(avals[0].dtype)),)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return np.linalg.eigvalsh(arrays[0], "L")

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return eigh.jvp(m, primals, tangents, m.eigh(primals[0]))[:1] if tangents[0] is not None else [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return eigh.vjp(m, primals, [cts[0], None], m.eigh(primals[0])) if cts[0] is not None else [None]


class Eigen(LinearAlgebra):
    """Eigenvalues and right eigenvectors of unit length of any square matrix, complex64 always."""

    outputs = ("values", "vectors")
    dtypes = (float32, float64, complex64)

    def results(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        shape = avals[0].shape
        return Aval(shape[:-1], complex64), Aval(shape, complex64)

    def compute(self, *arrays: np.ndarray, **attrs: Any) -> Any:
        return tuple(np.linalg.eig(arrays[0]))

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (w, v) = tangents, outs
        if t is None:
            return [None, None]
        inner = product(m, m.inv(v), m.cast(t, complex64), v)
        change = product(m, v, over_gaps(m, inner, separations(m, w)))
        growth = m.cast(m.real(m.sum(m.conjugate(v) * change, axes=(len(v.shape) - 2,))), complex64)
        return [diagonal(m, inner), change - columns_times(m, v, growth)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (a,), (gw, gv), (w, v) = primals, cts, outs
        inner, vh = None, adjoint(m, v)
        if gw is not None:
            inner = spread(m, gw, complex64)
        if gv is not None:
            turn = product(m, vh, gv)
            growth = m.cast(m.real(diagonal(m, turn)), complex64)
            change = turn - product(m, vh, columns_times(m, v, growth))
            inner = m.add_any(inner, over_gaps(m, change, m.conjugate(separations(m, w))))
        if inner is None:
            return [None]
        ga = product(m, m.inv(vh), inner, vh)
        return [ga if a.dtype is complex64 else m.cast(m.real(ga), a.dtype)]


svd = SVD("svd")
singular_values = SingularValues("singular_values")
eigh = EigenHermitian("eigh")
eigvalsh = EigenValuesHermitian("eigvalsh")
eig = Eigen("eig")
