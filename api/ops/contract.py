"""Products that contract axes: matmul and what is made of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir.compiler.graph import Value, running
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import contract as prim
from mlxir.dialects.mx import elementwise
from mlxir.dialects.mx import reduce as reductions
from mlxir.dialects.mx.record import Shape
from mlxir.ndarray import array, wrap
from mlxir.runtime.dtypes import complex64, float32, float64, promote
from mlxir.runtime.errors import AxisError
from mlxir.values import (
    axis_of,
    binary,
    broadcast_shape,
    broadcast_to,
    cast,
    full,
    promoted,
    record,
    reshape,
    size_of,
    transpose,
    unary,
)  # fmt: skip

from .common import INEXACT, Operand, check_array, failure
from .indexing import take
from .reduce import sum as sum_axes
from .shape import diagonal, text

__all__ = ["addmm", "einsum", "einsum_path", "gather_mm", "inner", "matmul", "outer", "tensordot", "vecdot"]

_FLAGS = {"ta": False, "tb": False}
_WIDE = frozenset([float32, float64, complex64])  # what is summed as it is multiplied, without a wider accumulator


def _inexact_pair(name: str, a: Value, b: Value) -> tuple[Value, Value]:
    dtype = promote(a.dtype, b.dtype)
    if dtype not in INEXACT:
        raise failure(
            ValueError,
            f"[{name}] Only inexact types are supported but {a.dtype.name} and {b.dtype.name} were provided which"
            f" results in {dtype.name}, which is not a floating point type.",
        )
    return cast(a, dtype), cast(b, dtype)


def matmul_value(a: Value, b: Value, name: str = "matmul") -> Value:
    """`a @ b` with NumPy's rules for vectors and batches. Raises ValueError where shapes or dtypes do not fit."""
    p, q = a.shape, b.shape
    if not p or not q:
        raise failure(ValueError, f"[{name}] Got 0 dimension input. Inputs must have at least one dimension.")
    if a.dtype is not b.dtype or a.dtype not in INEXACT:
        a, b = _inexact_pair(name, a, b)
    if len(p) == 1 and len(q) == 1 and p == q and a.dtype in _WIDE:
        return record(reductions.sum_, (binary(elementwise.multiply, a, b),), {"axes": (0,)}, (), a.dtype)
    if len(p) == 1:
        a = reshape(a, (1, *p))
    if len(q) == 1:
        b = reshape(b, (*q, 1))
    left, right = a.shape, b.shape
    if left[-1] != right[-2]:
        raise failure(
            ValueError,
            f"[{name}] Last dimension of first input with shape {text(left)} must match second to last dimension of"
            f" second input with shape {text(right)}.",
        )
    if len(left) > 2 and len(right) == 2:
        # One large product instead of a batch of small ones with the same right side.
        a = reshape(a, (size_of(left[:-1]), left[-1]))
        out = record(prim.matmul, (a, b), _FLAGS, (a.shape[0], right[1]), a.dtype)
        out = reshape(out, (*left[:-1], right[1]))
    else:
        batch = left[:-2] if left[:-2] == right[:-2] else broadcast_shape(name, left[:-2], right[:-2])
        out = record(prim.matmul, (a, b), _FLAGS, (*batch, left[-2], right[-1]), a.dtype)
    if len(p) == 1 or len(q) == 1:
        shape = out.shape[:-2] + ((left[-2],) if len(p) > 1 else ()) + ((right[-1],) if len(q) > 1 else ())
        out = reshape(out, shape)
    return out


def matmul(a: array, b: array, /, *, stream: StreamOrDevice = None) -> array:
    """Matrix product of the last two axes; the others broadcast, vectors gain an axis that is dropped again."""
    check_stream("matmul", stream)
    return wrap(matmul_value(check_array("matmul", a)._value, check_array("matmul", b)._value))


def addmm(
    c: array, a: array, b: array, /, alpha: float = 1.0, beta: float = 1.0, *, stream: StreamOrDevice = None
) -> array:
    """alpha * (a @ b) + beta * c, where c broadcasts to the product's shape."""
    check_stream("addmm", stream)
    x, y, z = (check_array("addmm", v)._value for v in (a, b, c))
    dtype = promote(promote(x.dtype, y.dtype), z.dtype)
    if dtype not in INEXACT:
        raise failure(
            ValueError,
            f"[addmm] Only real floating point types are supported but {z.dtype.name}, {x.dtype.name} and"
            f" {y.dtype.name} were provided which results in {dtype.name}, which is not a real floating point type.",
        )
    out = matmul_value(cast(x, dtype), cast(y, dtype), "addmm")
    if broadcast_shape("addmm", z.shape, out.shape) != out.shape and dtype.kind != "c":
        raise failure(ValueError, "[addmm] input c must broadcast to the output shape")
    z = cast(z, dtype)
    if alpha != 1.0:
        out = binary(elementwise.multiply, full(alpha, (), dtype), out)
    if beta != 1.0:
        z = binary(elementwise.multiply, full(beta, (), dtype), z)
    return wrap(binary(elementwise.add, out, z))


def inner(a: array, b: array, /, *, stream: StreamOrDevice = None) -> array:
    """Products of the last axes of all pairs of vectors in `a` and `b`."""
    check_stream("inner", stream)
    x, y = check_array("inner", a)._value, check_array("inner", b)._value
    if not x.shape or not y.shape:
        x, y = promoted(x, y)
        return wrap(binary(elementwise.multiply, x, y))
    if x.shape[-1] != y.shape[-1]:
        raise failure(ValueError, "[inner] a and b must have the same last dimension.")
    return wrap(matmul_value(x, y)) if len(y.shape) == 1 else tensordot(a, b, ([-1], [-1]))


def outer(a: array, b: array, /, *, stream: StreamOrDevice = None) -> array:
    """All products of elements of the flattened arrays."""
    check_stream("outer", stream)
    x, y = promoted(check_array("outer", a)._value, check_array("outer", b)._value)
    return wrap(binary(elementwise.multiply, reshape(x, (size_of(x.shape), 1)), reshape(y, (1, size_of(y.shape)))))


def vecdot(a: array, b: array, /, *, axis: int = -1, stream: StreamOrDevice = None) -> array:
    """sum(conj(a) * b) along an axis; the other axes broadcast."""
    check_stream("vecdot", stream)
    x, y = promoted(check_array("vecdot", a)._value, check_array("vecdot", b)._value)
    if not -min(len(x.shape), len(y.shape)) <= axis < max(len(x.shape), len(y.shape)):
        raise failure(AxisError, "[vecdot] axis is out of bounds.")
    if axis >= 0 and len(x.shape) != len(y.shape):
        raise failure(ValueError, "[vecdot] axis is out of bounds.")
    if x.shape[axis] != y.shape[axis]:
        raise failure(ValueError, "[vecdot] a and b must have the same size along axis.")
    if x.dtype.kind == "c":
        x = unary(elementwise.conjugate, x)
    product = binary(elementwise.multiply, x, y)
    return sum_axes(wrap(product), axis)


def tensordot(
    a: array, b: array, /, axes: int | Sequence[Sequence[int]] = 2, *, stream: StreamOrDevice = None
) -> array:
    """Contracts the last `axes` axes of a with the first of b, or the listed axes of each."""
    check_stream("tensordot", stream)
    x, y = check_array("tensordot", a)._value, check_array("tensordot", b)._value
    p, q = len(x.shape), len(y.shape)
    if isinstance(axes, int):
        if axes < 0:
            raise failure(ValueError, "[tensordot] axis must be greater or equal to 0.")
        if axes > min(p, q):
            raise failure(ValueError, "[tensordot] axis must be less than the number of dimensions of a and b.")
        ours, theirs = tuple(range(p - axes, p)), tuple(range(axes))
    else:
        if len(axes) != 2:
            raise failure(ValueError, "[tensordot] axes must be an int or two lists of axes.")
        ours = tuple([axis_of("tensordot", i, p) for i in axes[0]])
        theirs = tuple([axis_of("tensordot", i, q) for i in axes[1]])
        if len(ours) != len(theirs):
            raise failure(ValueError, "[tensordot] axes must have the same size.")
    if any(x.shape[i] != y.shape[j] for i, j in zip(ours, theirs, strict=True)):
        raise failure(ValueError, "[tensordot] a and b must have the same shape on the contracted axes.")
    left = tuple([i for i in range(p) if i not in ours])
    right = tuple([i for i in range(q) if i not in theirs])
    x, y = _inexact_pair("matmul", x, y)
    if not ours:
        return wrap(binary(elementwise.multiply, reshape(x, x.shape + (1,) * q), y))
    size = size_of(tuple([x.shape[i] for i in ours]))
    rows, columns = tuple([x.shape[i] for i in left]), tuple([y.shape[i] for i in right])
    x = reshape(transpose(x, left + ours), (size_of(rows), size))
    y = reshape(transpose(y, theirs + right), (size, size_of(columns)))
    return wrap(reshape(matmul_value(x, y), rows + columns))


def gather_mm(
    a: array,
    b: array,
    /,
    lhs_indices: array | None = None,
    rhs_indices: array | None = None,
    *,
    sorted_indices: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """Products of the matrices of `a` and `b` that index arrays select among their (flattened) batch axes."""
    check_stream("gather_mm", stream)
    x, y = check_array("gather_mm", a), check_array("gather_mm", b)
    if lhs_indices is None and rhs_indices is None:
        return matmul(x, y)
    if x.ndim < 2 or y.ndim < 2:
        raise failure(ValueError, "[gather_mm] Got less than 2 dimensions.")
    x, y = map(wrap, _inexact_pair("gather_mm", x._value, y._value))
    if x.dtype.kind == "c":
        raise failure(ValueError, f"[gather_mm] Only real floating point types are supported but got {x.dtype.name}.")

    def picked(m: array, indices: array | None) -> array:
        if indices is None:
            return m
        if not indices.dtype.is_integer:
            raise failure(ValueError, "[gather_mm] Got indices with invalid dtype. Indices must be integral.")
        batch = wrap(reshape(m._value, (size_of(m.shape[:-2]), *m.shape[-2:])))
        return take(batch, indices, 0)

    return matmul(picked(x, lhs_indices), picked(y, rhs_indices))


# -- einsum ----------------------------------------------------------------------------------------------------------
class _Operand:
    """A value whose axes carry letters."""

    def __init__(self, value: Value, letters: str):
        self.value, self.letters = value, letters


_FREE = [c for c in map(chr, range(0x100, 0x400)) if c.isalpha()]


@functools.lru_cache(maxsize=1024)
def _parsed(name: str, subscripts: str, ranks: tuple[int, ...]) -> tuple[list[str], str]:
    """Letters of every operand and of the output; an ellipsis becomes letters of its own."""
    for c in subscripts.replace("->", "").replace("...", ""):
        if not (c.isalpha() or c in ", "):
            raise failure(ValueError, f"[{name}] Subscripts must be letters, but got '{c}'.")
    inputs_text, arrow, output = subscripts.replace(" ", "").partition("->")
    inputs = inputs_text.split(",")
    if len(inputs) != len(ranks):
        raise failure(
            ValueError,
            f"[{name}] Number of operands, {len(ranks)}, does not match number of input subscripts, {len(inputs)}",
        )
    most = max(
        [rank - len(t.replace("...", "")) for rank, t in zip(ranks, inputs, strict=True) if "..." in t], default=0
    )
    dots = "".join(_FREE[:most])
    letters = []
    for i, (t, rank) in enumerate(zip(inputs, ranks, strict=True)):
        if "..." in t:
            extra = rank - len(t.replace("...", ""))
            t = t.replace("...", dots[most - extra :] if extra > 0 else "")
        if len(t) != rank:
            raise failure(
                ValueError, f"[{name}] Invalid number of subscripts {len(t)} for input {i} with {rank} dimensions."
            )
        letters.append(t)
    if arrow:
        output = output.replace("...", dots)
        if len(set(output)) != len(output):
            raise failure(ValueError, f"[{name}] Repeat indices not allowed in output.")
        missing = set(output) - set("".join(letters))
        if missing:
            raise failure(ValueError, f"[{name}] Output subscript '{sorted(missing)[0]}' does not appear in any input.")
    else:
        joined = "".join(letters)
        output = dots + "".join(sorted(c for c in set(joined) if joined.count(c) == 1 and c not in dots))
    return letters, output


def _summed(operand: _Operand, keep: set[str]) -> _Operand:
    """Sums over the letters that nobody else asks for."""
    axes = tuple([i for i, c in enumerate(operand.letters) if c not in keep])
    value = sum_axes(wrap(operand.value), axes)._value
    return _Operand(value, "".join(c for c in operand.letters if c in keep))


def _aligned(operand: _Operand, letters: str) -> Value:
    """The value with its axes in the order of `letters`, of which it has all."""
    return transpose(operand.value, tuple([operand.letters.index(c) for c in letters]))


def _paired(a: _Operand, b: _Operand, keep: set[str]) -> _Operand:
    """Contracts two operands; letters outside `keep` are summed."""
    a, b = _summed(a, keep | set(b.letters)), _summed(b, keep | set(a.letters))
    shared = [c for c in a.letters if c in b.letters]
    batch = "".join(c for c in shared if c in keep)
    contracted = "".join(c for c in shared if c not in keep)
    left = "".join(c for c in a.letters if c not in shared)
    right = "".join(c for c in b.letters if c not in shared)
    size = {c: n for o in (a, b) for c, n in zip(o.letters, o.value.shape, strict=True)}

    def dims(letters: str) -> Shape:
        return tuple([size[c] for c in letters])

    if not contracted:
        x = reshape(_aligned(a, batch + left), dims(batch + left) + (1,) * len(right))
        y = reshape(_aligned(b, batch + right), dims(batch) + (1,) * len(left) + dims(right))
        x, y = promoted(x, y)
        return _Operand(binary(elementwise.multiply, x, y), batch + left + right)
    x, y = _inexact_pair("matmul", a.value, b.value)
    x = _aligned(_Operand(x, a.letters), batch + left + contracted)
    y = _aligned(_Operand(y, b.letters), batch + contracted + right)
    k = size_of(dims(contracted))
    x = reshape(x, (*dims(batch), size_of(dims(left)), k))
    y = reshape(y, (*dims(batch), k, size_of(dims(right))))
    return _Operand(reshape(matmul_value(x, y), dims(batch + left + right)), batch + left + right)


def _path(letters: Sequence[str], output: str, shapes: Sequence[Shape]) -> list[tuple[int, ...]]:
    """The order of contractions, two at a time: NumPy's greedy one, in which results go to the end of the list."""
    if len(letters) <= 2:
        return [tuple(range(len(letters)))]
    return (_greedy if not running.symbolic else _greedy.__wrapped__)(tuple(letters), output, tuple(shapes))


@functools.lru_cache(maxsize=1024)
def _greedy(letters: Sequence[str], output: str, shapes: Sequence[Shape]) -> list[tuple[int, ...]]:
    """`_path` of more than two operands."""
    # NumPy's parser takes the 52 ASCII letters only.
    alphabet = {
        c: chr(ord("a") + i if i < 26 else ord("A") + i - 26) for i, c in enumerate(dict.fromkeys("".join(letters)))
    }
    renamed = [",".join("".join(alphabet[c] for c in t) for t in letters), "".join(alphabet[c] for c in output)]
    dummies = [np.broadcast_to(np.float32(0), s) for s in shapes]
    path = np.einsum_path("->".join(renamed), *dummies, optimize="greedy")[0][1:]
    return [pair for step in path for pair in ([step] if len(step) <= 2 else [(0, 1)] * (len(step) - 1))]


def _operands(name: str, subscripts: str, operands: Sequence[Any]) -> tuple[list[_Operand], str]:
    """Operands without repeated letters and of equal sizes per letter, and the output's letters."""
    values = [check_array(name, o)._value for o in operands]
    letters, output = _parsed(name, subscripts, tuple([len(v.shape) for v in values]))
    size: dict[str, int] = {}
    for v, t in zip(values, letters, strict=True):
        for n, c in zip(v.shape, t, strict=True):
            size[c] = n if size.get(c, 1) == 1 else size[c]
    out = []
    for i, (v, t) in enumerate(zip(values, letters, strict=True)):
        for d, (n, c) in enumerate(zip(v.shape, t, strict=True)):
            if n not in (1, size[c]):
                raise failure(
                    ValueError,
                    f"[einsum] Cannot broadcast dimension {d} of input {i} with shape {text(v.shape)} to size"
                    f" {size[c]}.",
                )
        v = broadcast_to(v, tuple([size[c] for c in t]))
        while len(set(t)) != len(t):
            c = next(c for c in t if t.count(c) > 1)
            first, second = t.index(c), t.index(c, t.index(c) + 1)
            v = diagonal(wrap(v), 0, first, second)._value
            t = "".join(d for k, d in enumerate(t) if k not in (first, second)) + c
        out.append(_Operand(v, t))
    return out, output


def einsum(subscripts: str, *operands: Operand, stream: StreamOrDevice = None) -> array:
    """Einstein summation, e.g. `einsum("bij,jk->bik", x, y)`; contractions run pairwise as matrix products."""
    check_stream("einsum", stream)
    if not operands:
        raise failure(ValueError, "[einsum] At least one operand is required.")
    pending, output = _operands("einsum", subscripts, operands)
    for step in _path([o.letters for o in pending], output, [o.value.shape for o in pending]):
        chosen = [pending[i] for i in step]
        pending = [o for i, o in enumerate(pending) if i not in step]
        while len(chosen) > 1:
            others = chosen[2:] + pending
            keep = set(output).union(*[o.letters for o in others])
            chosen = [_paired(chosen[0], chosen[1], keep), *chosen[2:]]
        pending.append(chosen[0])
    return wrap(_aligned(_summed(pending[0], set(output)), output))


def einsum_path(subscripts: str, *operands: Operand) -> tuple[list[tuple[int, ...]], str]:
    """The order in which `einsum` contracts, and a report on it."""
    pending, output = _operands("einsum_path", subscripts, operands)
    letters = [o.letters for o in pending]
    path = _path(letters, output, [o.value.shape for o in pending])
    size = {c: n for o in pending for c, n in zip(o.letters, o.value.shape, strict=True)}

    def cost(terms: Sequence[str], out: set[str]) -> int:
        together = set("".join(terms))
        return size_of(tuple([size[c] for c in together])) * (max(1, len(terms) - 1) + bool(together - out))

    naive, optimized, scaling, left = cost(letters, set(output)), 0, 0, list(letters)
    for step in path:
        chosen = [left[i] for i in step]
        left = [t for i, t in enumerate(left) if i not in step]
        kept = set("".join(chosen)) & set(output).union(*left)
        optimized += cost(chosen, kept)
        scaling = max(scaling, len(set("".join(chosen))))
        left.append("".join(sorted(kept)))
    report = (
        f"  Complete contraction:  {','.join(letters)}->{output}\n         Naive scaling:  {len(size)}\n"
        f"     Optimized scaling:  {scaling}\n      Naive FLOP count:  {naive}\n  Optimized FLOP count:  {optimized}\n"
    )
    return path, report
