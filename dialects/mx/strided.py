"""Strided views: sliding windows for pooling, and whatever else is affine in its index."""

from __future__ import annotations

import itertools
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mlxir.runtime.dtypes import int32, int64
from mlxir.runtime.errors import ShapeError

from .kinds import Structural
from .record import Aval, OpBuilder, Shape

MOST_WINDOW = 64  # elements of a window up to which its transpose is a sum of shifted copies


def _reach(shape: Shape, strides: Shape, offset: int) -> tuple[int, int]:
    """The smallest and the largest position that is read."""
    ends = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    return offset + sum(min(e, 0) for e in ends), offset + sum(max(e, 0) for e in ends)


def _viewed(x: Aval, shape: Shape, strides: Shape, offset: int) -> Shape:
    low, high = _reach(shape, strides, offset)
    if len(shape) != len(strides) or (0 not in shape and not 0 <= low <= high < x.size):
        raise ShapeError(f"[as_strided] shape {shape}, strides {strides}, offset {offset} do not fit {x}")
    return tuple(shape)


def _index(x: Aval, idx: tuple, shape: Shape, strides: Shape, offset: int) -> tuple:
    """By the row-major position; where each stride is a multiple of an axis's, no division is left."""
    position, out = sum((i * s for i, s in zip(idx, strides, strict=True)), start=offset), []
    for n in reversed(x.shape):
        out.append(position % max(n, 1))
        position = position // max(n, 1)
    return tuple(reversed(out))


def _reference(x: np.ndarray, shape: Shape, strides: Shape, offset: int) -> np.ndarray:
    if 0 in shape:
        return np.zeros(shape, x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1)[offset:]
    return np.lib.stride_tricks.as_strided(flat, shape, [s * x.itemsize for s in strides])


class _Place(NamedTuple):
    """What one axis of the operand is indexed by: start + sum of step * index of an axis of the view."""

    start: int
    parts: list[tuple[int, int]]  # (axis of the view, step)


def _places(x: Shape, shape: Shape, strides: Shape, offset: int) -> list[_Place] | None:
    """The view as one sum per axis of the operand; None where it is none (a stride that wraps around an axis)."""
    places, rest = [], offset
    parts = {j: s for j, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1}
    for a, n in enumerate(x):
        unit = prod(x[a + 1 :])
        here = [(j, s // unit) for j, s in parts.items() if s >= unit and s % unit == 0] if n > 1 else []
        start, rest = divmod(rest, unit)
        if start + sum(step * (shape[j] - 1) for j, step in here) >= n:
            return None
        parts = {j: s for j, s in parts.items() if j not in dict(here)}
        places.append(_Place(start, here))
    return None if parts else places


def _transpose(m: OpBuilder, ct: Any, x: Aval, shape: Shape, strides: Shape, offset: int) -> Any:
    """Adds up what each element was read as: shifted copies for windows of a few elements, else a scatter."""
    if 0 in shape:
        return m.full(value=0, shape=x.shape, dtype=ct.dtype)
    repeated = tuple(j for j, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1 and s == 0)
    if repeated:
        kept = [j for j in range(len(shape)) if j not in repeated]
        ct = m.sum(ct, axes=repeated)
        shape, strides = tuple(shape[j] for j in kept), tuple(strides[j] for j in kept)
    places = _places(x.shape, shape, strides, offset)
    if places is not None:
        # Each axis of the operand goes with the longest axis of the view that moves along it; the others are unrolled.
        mains = [max(p.parts, key=lambda part: shape[part[0]], default=None) for p in places]
        others = [j for j, n in enumerate(shape) if n > 1 and j not in [p[0] for p in mains if p]]
        if prod(shape[j] for j in others) <= MOST_WINDOW:
            return _shifted(m, ct, x, places, mains, others)
    return _scattered(m, ct, x, shape, strides, offset)


def _shifted(
    m: OpBuilder, ct: Any, x: Aval, places: list[_Place], mains: list[Any], others: list[int]
) -> Any:
    shape, total = tuple(ct.shape), None
    kept = [part[0] for part in mains if part is not None]
    for at in itertools.product(*[range(shape[j]) for j in others]):
        fixed = dict(zip(others, at, strict=True))
        start = tuple(fixed.get(j, 0) for j in range(len(shape)))
        stop = tuple(fixed.get(j, n - 1) + 1 for j, n in enumerate(shape))
        piece = m.slice(ct, start=start, stop=stop, strides=(1,) * len(shape))
        order = sorted(kept)
        piece = m.permuted(m.reshaped(piece, tuple(shape[j] for j in order)), [order.index(j) for j in kept])
        piece = m.reshaped(piece, tuple(1 if part is None else shape[part[0]] for part in mains))
        first = tuple(p.start + sum(step * fixed[j] for j, step in p.parts if j in fixed) for p in places)
        steps = tuple(1 if part is None else part[1] for part in mains)
        ends = tuple(f + (n - 1) * s + 1 for f, n, s in zip(first, piece.shape, steps, strict=True))
        zeros = m.full(value=0, shape=x.shape, dtype=ct.dtype)
        total = m.add_any(total, m.slice_update(zeros, piece, start=first, stop=ends, strides=steps))
    return total


def _scattered(m: OpBuilder, ct: Any, x: Aval, shape: Shape, strides: Shape, offset: int) -> Any:
    dtype = int32 if x.size < 2**31 else int64
    position = m.full(value=offset, shape=shape, dtype=dtype)
    for j, (n, s) in enumerate(zip(shape, strides, strict=True)):
        ramp = m.arange(start=0, step=s, length=n, dtype=dtype)
        position = position + m.reshaped(ramp, tuple(n if i == j else 1 for i in range(len(shape))))
    zeros = m.full(value=0, shape=(x.size,), dtype=ct.dtype)
    flat = m.scatter(zeros, position, m.reshaped(ct, (*shape, 1)), axes=(0,), mode="add")
    return m.reshaped(flat, x.shape)


def _batched(x: Aval, shape: Shape, strides: Shape, offset: int) -> dict[str, Any]:
    return {"shape": (x.shape[0], *shape), "strides": (prod(x.shape[1:]), *strides), "offset": offset}


as_strided = Structural(
    "as_strided", ("shape", "strides", "offset"), shape=_viewed, index=_index, reference=_reference,
    transpose=_transpose, batch=_batched,
)  # fmt: skip
