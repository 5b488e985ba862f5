"""`mlxir.linalg`: norms, inverses, solutions, factorisations and spectra.

Matrices lie in the last two axes, all axes before them are batch axes. Factorisations take float32 and float64, spectra
also complex64; they run LAPACK (through NumPy and SciPy) as a step of the host. All are differentiable in both modes
and vmap; the records (dialects/mx/linalg.py, spectra.py) say by which formulas. A matrix with fewer than two axes, of
another dtype, or not square where it must be raises ValueError; a singular one raises RuntimeError when the result is
evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxir.compiler.graph import Value, apply
from mlxir.dialects.mx import Primitive, scan_sort, spectra
from mlxir.dialects.mx import linalg as records
from mlxir.dialects.mx.matrices import alternatives
from mlxir.runtime.dtypes import Dtype, at_least_float, complex64, float32, float64

from .devices import StreamOrDevice, check_stream
from .ndarray import array, wrap
from .ops import creation, elementwise, reduce, shape
from .ops.common import check_array, failure
from .values import axis_of, cast, emit, promoted, reshape, static_slice, transpose

__all__ = ["cholesky", "cholesky_inv", "cross", "det", "eig", "eigh", "eigvals", "eigvalsh", "inv", "lu", "lu_factor",
           "norm", "pinv", "qr", "slogdet", "solve", "solve_triangular", "svd", "tri_inv"]  # fmt: skip


def norm(
    a: array,
    /,
    ord: None | int | float | str = None,
    axis: None | int | Sequence[int] = None,
    keepdims: bool = False,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """Vector norm over one axis, or matrix norm over two; without `ord` and `axis` the 2-norm of all elements.

    Vectors: any number, or +-inf. Matrices: 'fro', 1, -1, inf, -inf, and by singular values 'nuc', 2, -2.
    """
    check_stream("norm", stream)
    x = check_array("norm", a)._value
    x = cast(x, at_least_float(x.dtype))
    if axis is None:
        if ord is None:
            flat = wrap(x)
            return _two(flat, tuple(range(flat.ndim)), keepdims)
        if len(x.shape) not in (1, 2):
            raise failure(
                ValueError, f"[linalg.norm] Inputs must be 1-D or 2-D when ord is given, got {len(x.shape)}-D."
            )
        axes = tuple(range(len(x.shape)))
    else:
        axes = tuple([axis_of("linalg.norm", i, len(x.shape)) for i in ([axis] if isinstance(axis, int) else axis)])
    if len(axes) not in (1, 2):
        raise failure(ValueError, f"[linalg.norm] Received too many axes for norm: {len(axes)}.")
    if len(set(axes)) != len(axes):
        raise failure(ValueError, "[linalg.norm] The two axes of a matrix norm must differ.")
    if ord is None:
        return _two(wrap(x), axes, keepdims)
    if len(axes) == 1:
        if isinstance(ord, str):
            raise failure(ValueError, f"[linalg.norm] Invalid ord '{ord}' for vector norm.")
        return _vector(wrap(x), float(ord), axes[0], keepdims)
    return _matrix(wrap(x), ord, axes, keepdims)


def _magnitude(x: array) -> array:
    return elementwise.abs(x)


def _two(x: array, axes: tuple[int, ...], keepdims: bool) -> array:
    squares = elementwise.square(_magnitude(x) if x.dtype.kind == "c" else x)
    return elementwise.sqrt(reduce.sum(squares, axes, keepdims))


def _vector(x: array, ord: float, axis: int, keepdims: bool) -> array:
    size = _magnitude(x)
    if ord == math.inf:
        return reduce.max(size, axis, keepdims)
    if ord == -math.inf:
        return reduce.min(size, axis, keepdims)
    if ord == 0:
        nonzero = elementwise.not_equal(size, 0)
        return reduce.sum(wrap(cast(nonzero._value, size.dtype)), axis, keepdims)
    if ord == 1:
        return reduce.sum(size, axis, keepdims)
    if ord == 2:
        return _two(x, (axis,), keepdims)
    return elementwise.power(reduce.sum(elementwise.power(size, ord), axis, keepdims), 1.0 / ord)


def _matrix(x: array, ord: int | float | str, axes: tuple[int, ...], keepdims: bool) -> array:
    if ord in ("fro", "f"):
        return _two(x, axes, keepdims)
    rows, columns = axes
    if ord in (1, -1, math.inf, -math.inf):
        inner, outer = (rows, columns) if ord in (1, -1) else (columns, rows)
        extremum = reduce.max if ord in (1, math.inf) else reduce.min
        sums = reduce.sum(_magnitude(x), inner, True)
        out = extremum(sums, outer, True)
        return out if keepdims else shape.squeeze(out, axes)
    if ord in ("nuc", 2, -2):
        rest = [i for i in range(x.ndim) if i not in axes]
        values = wrap(emit(spectra.singular_values, transpose(x._value, (*rest, rows, columns))))
        out = {"nuc": reduce.sum, 2: reduce.max, -2: reduce.min}[ord](values, -1)
        return shape.expand_dims(out, sorted(axes)) if keepdims else out
    raise failure(ValueError, f"[linalg.norm] Invalid ord {ord!r} for matrix norm.")


def cross(a: array, b: array, axis: int = -1, *, stream: StreamOrDevice = None) -> array:
    """Cross product along an axis of size 3; one of size 2 counts as having a third component 0."""
    check_stream("cross", stream)
    x, y = check_array("linalg.cross", a), check_array("linalg.cross", b)
    at = axis_of("linalg.cross", axis, max(x.ndim, y.ndim)) - max(x.ndim, y.ndim)
    if min(x.ndim, y.ndim) < -at or x.shape[at] not in (2, 3) or y.shape[at] not in (2, 3):
        raise failure(ValueError, "[linalg.cross] The specified axis must have size 2 or 3.")
    u, v = shape.split(x, x.shape[at], at), shape.split(y, y.shape[at], at)
    u, v = ([*p, creation.zeros_like(p[0])][:3] for p in (u, v))
    parts = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
    return shape.concatenate(parts, at)


# -- inverses and solutions --------------------------------------------------------------------------------------------


def _matrices(name: str, a: array, dtypes: tuple[Dtype, ...] = (float32, float64)) -> Value:
    """The operand of a composed function, checked under that function's name: square matrices of one of `dtypes`."""
    x = check_array(f"linalg.{name}", a)._value
    if len(x.shape) < 2:
        raise failure(
            ValueError,
            f"[linalg::{name}] Arrays must have >= 2 dimensions. Received array with {len(x.shape)} dimensions.",
        )
    if x.shape[-1] != x.shape[-2]:
        raise failure(ValueError, f"[linalg::{name}] Only defined for square matrices. Received shape {x.shape}.")
    if x.dtype not in dtypes:
        raise failure(
            ValueError,
            f"[linalg::{name}] Arrays must have type {alternatives(dtypes)}. Received array with type {x.dtype.name}.",
        )
    return x


def _results(primitive: Primitive, a: array) -> tuple[array, ...]:
    return tuple(wrap(v) for v in apply(primitive, (check_array(f"linalg.{primitive.name}", a)._value,), {}))


def _adjoint(x: array) -> array:
    flipped = shape.swapaxes(x, -1, -2)
    return elementwise.conj(flipped) if x.dtype is complex64 else flipped


def inv(a: array, *, stream: StreamOrDevice = None) -> array:
    """The inverse of square matrices."""
    check_stream("inv", stream)
    return wrap(emit(records.inv, _matrices("inv", a)))


def tri_inv(a: array, upper: bool = False, *, stream: StreamOrDevice = None) -> array:
    """The inverse of triangular matrices; the other triangle is not read."""
    check_stream("tri_inv", stream)
    x = _matrices("tri_inv", a)
    identity = creation.eye(x.shape[-1], dtype=x.dtype)._value
    return wrap(emit(records.solve_triangular, x, identity, upper=bool(upper)))


def cholesky_inv(a: array, upper: bool = False, *, stream: StreamOrDevice = None) -> array:
    """The inverse of the matrix whose Cholesky factor is `a`."""
    check_stream("cholesky_inv", stream)
    _matrices("cholesky_inv", a)
    inverse = tri_inv(a, upper)
    return inverse @ _adjoint(inverse) if upper else _adjoint(inverse) @ inverse


def pinv(a: array, *, stream: StreamOrDevice = None) -> array:
    """The Moore-Penrose inverse (columns, rows) of matrices (rows, columns)."""
    check_stream("pinv", stream)
    return _results(records.pinv, a)[0]


def _solution(primitive: Primitive, a: array, b: array, **attrs: bool) -> array:
    name = primitive.name
    x, y = promoted(check_array(f"linalg.{name}", a)._value, check_array(f"linalg.{name}", b)._value)
    vector = len(y.shape) == 1
    out = wrap(emit(primitive, x, reshape(y, (*y.shape, 1)) if vector else y, **attrs))
    return shape.squeeze(out, -1) if vector else out


def solve(a: array, b: array, *, stream: StreamOrDevice = None) -> array:
    """`x` with `a @ x = b`, for a vector `b` or matrices `b`; batch axes broadcast."""
    check_stream("solve", stream)
    return _solution(records.solve, a, b)


def solve_triangular(a: array, b: array, *, upper: bool = False, stream: StreamOrDevice = None) -> array:
    """`x` with `a @ x = b` where `a` is triangular; the other triangle is not read."""
    check_stream("solve_triangular", stream)
    return _solution(records.solve_triangular, a, b, upper=bool(upper))


# -- determinants ------------------------------------------------------------------------------------------------------


def _determinant(primitive: Primitive, a: array) -> tuple[array, ...]:
    """In float32 at least; the results of half precision are rounded back to it."""
    x = check_array(f"linalg.{primitive.name}", a)._value
    if x.dtype is complex64:
        raise failure(ValueError, f"[linalg::{primitive.name}] Complex inputs are not supported.")
    dtype = at_least_float(x.dtype)
    computed = cast(x, dtype if dtype is float64 else float32)
    return tuple(wrap(cast(v, dtype)) for v in apply(primitive, (computed,), {}))


def det(a: array, *, stream: StreamOrDevice = None) -> array:
    """The determinants of square matrices of any real dtype. Their gradient exists for regular matrices."""
    check_stream("det", stream)
    return _determinant(records.det, a)[0]


def slogdet(a: array, *, stream: StreamOrDevice = None) -> tuple[array, array]:
    """The sign of the determinant, and the logarithm of its magnitude (0 and -inf for a singular matrix)."""
    check_stream("slogdet", stream)
    sign, magnitude = _determinant(records.slogdet, a)
    return sign, magnitude


# -- factorisations ----------------------------------------------------------------------------------------------------


def cholesky(a: array, upper: bool = False, *, stream: StreamOrDevice = None) -> array:
    """Lower `l` with `l @ l.T = a`, or upper `u` with `u.T @ u = a`, reading that triangle of `a` alone.

    The result is not defined where `a` is not positive definite.
    """
    check_stream("cholesky", stream)
    x = wrap(_matrices("cholesky", a))
    factor = wrap(emit(records.cholesky, (_adjoint(x) if upper else x)._value))
    return _adjoint(factor) if upper else factor


def qr(a: array, *, stream: StreamOrDevice = None) -> tuple[array, array]:
    """`a = q @ r` with q (rows, k) of orthonormal columns, r (k, columns) upper triangular, k = min(rows, columns)."""
    check_stream("qr", stream)
    q, r = _results(records.qr, a)
    return q, r


def lu_factor(a: array, *, stream: StreamOrDevice = None) -> tuple[array, array]:
    """Both factors in one matrix, and LAPACK's pivots (uint32): row i was exchanged with row pivots[i]."""
    check_stream("lu_factor", stream)
    return _results(records.lu, a)[:2]  # type: ignore[return-value]


def lu(a: array, *, stream: StreamOrDevice = None) -> tuple[array, array, array]:
    """`p`, `l`, `u` with `a = l[p, :] @ u` (per matrix of the batch); `p` is uint32."""
    check_stream("lu", stream)
    compact, _, order = _results(records.lu, a)
    *batch, rows, columns = compact.shape
    k, start = min(rows, columns), (0,) * compact.ndim
    lower = wrap(static_slice(compact._value, start, (*batch, rows, k)))
    upper = wrap(static_slice(compact._value, start, (*batch, k, columns)))
    identity = creation.eye(rows, k, dtype=compact.dtype)
    back = wrap(emit(scan_sort.argsort, order._value, axis=order.ndim - 1))
    return back, creation.tril(lower, -1) + identity, creation.triu(upper)


# -- spectra -----------------------------------------------------------------------------------------------------------


def svd(a: array, compute_uv: bool = True, *, stream: StreamOrDevice = None) -> array | tuple[array, array, array]:
    """`u`, `s`, `vt` with square `u` and `vt`, `s` descending; `s` alone without `compute_uv`."""
    check_stream("svd", stream)
    if not compute_uv:
        return _results(spectra.singular_values, a)[0]
    u, s, vt = _results(spectra.svd, a)
    return u, s, vt


def _triangle(name: str, a: array, UPLO: str) -> array:
    """`a` with the triangle to be read in its lower half."""
    if UPLO not in ("L", "U"):
        raise failure(ValueError, f"[linalg::{name}] UPLO must be 'L' or 'U', got {UPLO!r}.")
    x = wrap(_matrices(name, a, (float32, float64, complex64)))
    return _adjoint(x) if UPLO == "U" else x


def eigh(a: array, UPLO: str = "L", *, stream: StreamOrDevice = None) -> tuple[array, array]:
    """Eigenvalues (ascending, real) and orthonormal eigenvectors (columns) of symmetric or Hermitian matrices."""
    check_stream("eigh", stream)
    values, vectors = _results(spectra.eigh, _triangle("eigh", a, UPLO))
    return values, vectors


def eigvalsh(a: array, UPLO: str = "L", *, stream: StreamOrDevice = None) -> array:
    """The eigenvalues alone of symmetric or Hermitian matrices, ascending."""
    check_stream("eigvalsh", stream)
    return _results(spectra.eigvalsh, _triangle("eigvalsh", a, UPLO))[0]


def eig(a: array, *, stream: StreamOrDevice = None) -> tuple[array, array]:
    """Eigenvalues and eigenvectors of unit length (columns) of any square matrices, complex64 always."""
    check_stream("eig", stream)
    values, vectors = _results(spectra.eig, a)
    return values, vectors


def eigvals(a: array, *, stream: StreamOrDevice = None) -> array:
    """The eigenvalues alone of any square matrices, complex64 always."""
    check_stream("eigvals", stream)
    return eig(a)[0]
