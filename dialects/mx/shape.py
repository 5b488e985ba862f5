"""Structural primitives: they move elements and compute nothing, so a kernel reads through them by index arithmetic.

Also the sources of arrays: constants (`full`), ranges (`arange`) and embedded data (`constant`).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import bool_
from mlxir.runtime.errors import ShapeError

from .kinds import Structural
from .record import Aval, OpBuilder, Primitive, Shape


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argsort(axes))


def _transposed(x: Aval, axes: tuple[int, ...]) -> Shape:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"[transpose] axes {axes} are no permutation of the {x.ndim} axes of shape {x.shape}")
    return tuple(x.shape[a] for a in axes)


transpose = Structural(
    "transpose", ("axes",),
    shape=_transposed,
    index=lambda x, idx, axes: tuple(idx[i] for i in _inverse(axes)),
    reference=lambda x, axes: np.transpose(x, axes),
    transpose=lambda m, ct, x, axes: m.transpose(ct, axes=_inverse(axes)),
    batch=lambda x, axes: {"axes": (0,) + tuple(a + 1 for a in axes)},
)  # fmt: skip


def _reshaped(x: Aval, shape: Shape) -> Shape:
    if prod(shape) != x.size:
        raise ShapeError(f"[reshape] Cannot reshape array of size {x.size} into shape {shape}.")
    return shape


def _reshape_index(x: Aval, idx: tuple, shape: Shape) -> tuple:
    """Through the row-major position; index arithmetic simplifies it away where axes are only split or merged."""
    if tuple(n for n in x.shape if n != 1) == tuple(n for n in shape if n != 1):
        real = iter([i for i, n in zip(idx, shape, strict=True) if n != 1])
        return tuple(next(real) if n != 1 else 0 for n in x.shape)
    position, out = 0, []
    for i, n in zip(idx, shape, strict=True):
        position = position * n + i
    for n in reversed(x.shape):
        out.append(position % n)
        position = position // n
    return tuple(reversed(out))


reshape = Structural(
    "reshape", ("shape",),
    shape=_reshaped,
    index=_reshape_index,
    reference=lambda x, shape: np.reshape(x, shape),
    transpose=lambda m, ct, x, shape: m.reshape(ct, shape=x.shape),
    batch=lambda x, shape: {"shape": (x.shape[0],) + tuple(shape)},
)  # fmt: skip


def _broadcast(x: Aval, shape: Shape) -> Shape:
    tail = shape[len(shape) - x.ndim :] if len(shape) >= x.ndim else ()
    if len(shape) < x.ndim or any(a not in (1, b) for a, b in zip(x.shape, tail, strict=True)):
        raise ShapeError(f"[broadcast_to] Cannot broadcast array of shape {x.shape} into shape {shape}.")
    return shape


def broadcast_index(x: Aval, idx: tuple) -> tuple:
    """The index into an operand of shape `x.shape` for index `idx` of a result it was broadcast to (NumPy's rule)."""
    tail = idx[len(idx) - x.ndim :]
    return tuple(0 if n == 1 else i for n, i in zip(x.shape, tail, strict=True))


class BroadcastTo(Structural):
    """NumPy's broadcast_to; its batched form must first line up the ranks."""

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        (x,), shape = args, attrs["shape"]
        lead = (1,) * (len(shape) + 1 - len(x.shape))
        aligned = m.reshaped(x, (size,) + lead + tuple(x.shape[1:]))
        return [m.broadcast(aligned, (size,) + tuple(shape))], [True]


broadcast_to = BroadcastTo(
    "broadcast_to", ("shape",),
    shape=_broadcast,
    index=lambda x, idx, shape: broadcast_index(x, idx),
    reference=lambda x, shape: np.broadcast_to(x, shape),
    transpose=lambda m, ct, x, shape: m.unbroadcast(ct, x.shape),
    batch=lambda x, shape: {"shape": shape},
)  # fmt: skip


def _sliced(x: Aval, start: Shape, stop: Shape, strides: Shape) -> Shape:
    if not len(start) == len(stop) == len(strides) == x.ndim or 0 in strides:
        raise ShapeError(f"[slice] start {start}, stop {stop}, strides {strides} do not fit shape {x.shape}")
    counts = tuple(max(-((a - b) // s), 0) for a, b, s in zip(start, stop, strides, strict=True))
    for n, count, first, stride in zip(x.shape, counts, start, strides, strict=True):
        if count and not (0 <= first < n and 0 <= first + (count - 1) * stride < n):
            raise ShapeError(f"[slice] start {start}, stop {stop}, strides {strides} leave an array of shape {x.shape}")
    return counts


def _np_slices(start: Shape, stop: Shape, strides: Shape) -> tuple[slice, ...]:
    return tuple(slice(a, None if b < 0 else b, s) for a, b, s in zip(start, stop, strides, strict=True))


def _slice_transpose(m: OpBuilder, ct: Any, x: Aval, start: Shape, stop: Shape, strides: Shape) -> Any:
    zeros = m.full(value=0, shape=x.shape, dtype=ct.dtype)
    return m.slice_update(zeros, ct, start=start, stop=stop, strides=strides)


# Bounds are normalised: 0 <= start; a negative stride counts down to `stop`, which may be -1 (before the first
# element).
slice_ = Structural(
    "slice", ("start", "stop", "strides"),
    shape=_sliced,
    index=lambda x, idx, start, stop, strides: tuple(a + i * s for a, i, s in zip(start, idx, strides, strict=True)),
    reference=lambda x, start, stop, strides: x[_np_slices(start, stop, strides)],
    transpose=_slice_transpose,
    batch=lambda x, start, stop, strides: {
        "start": (0,) + tuple(start), "stop": (x.shape[0],) + tuple(stop), "strides": (1,) + tuple(strides)},
)  # fmt: skip


class SliceUpdate(Primitive):
    """`out = x; out[start:stop:strides] = update` for static, normalised bounds; linear in (x, update)."""

    kind = "structural"
    operands = ("x", "update")
    lowering = "element"
    costly = False
    updates = True

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        x, update = avals
        shape = _sliced(x, **attrs)
        if update.shape != shape or update.dtype is not x.dtype:
            raise ShapeError(f"[slice_update] update {update} does not fit the slice {shape} of {x}")
        return (x,)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        x, update = operands
        inside, inner = e.true(), []
        for i, n, a, s, count in zip(
            idx, x.aval.shape, attrs["start"], attrs["strides"], update.aval.shape, strict=True
        ):
            low, step = (a, s) if s > 0 else (a + (count - 1) * s, -s)
            offset = i - low
            if not (low == 0 and step == 1 and count == n):
                inside = inside & e.in_range(i, low, low + (count - 1) * step + 1)
                if step != 1:
                    inside = inside & e.equals(offset % step, 0)
            position = offset // step
            inner.append(position if s > 0 else (count - 1) - position)
        return e.where(inside, lambda: update(tuple(inner)), lambda: x(idx))

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        out = arrays[0].copy()
        self.put(out, *self.writes(*arrays, **attrs), **attrs)
        return (out,)

    def writes(self, *arrays: np.ndarray, **attrs: Any) -> tuple[Any, np.ndarray]:
        return _np_slices(**attrs), arrays[1]

    def put(self, out: np.ndarray, where: Any, values: np.ndarray, **attrs: Any) -> None:
        out[where] = values

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if tangents == [None, None]:
            return [None]
        return m.emit(self, [m.zeros(p) if t is None else t for p, t in zip(primals, tangents, strict=True)], attrs)

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None:
            return [None, None]
        x, update = primals
        return [
            m.slice_update(cts[0], m.zeros(update), **attrs) if x.active else None,
            m.slice(cts[0], **attrs) if update.active else None,
        ]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        x, update = (
            a if b else m.broadcast(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True)
        )  # fmt: skip
        wide = {"start": (0, *attrs["start"]), "stop": (size, *attrs["stop"]), "strides": (1, *attrs["strides"])}
        return m.emit(self, [x, update], wide), [True]


slice_update = SliceUpdate("slice_update", ("start", "stop", "strides"))


class Pad(Primitive):
    """Constant padding by a rank-0 operand: `low[i]` before and `high[i]` after axis i."""

    kind = "structural"
    operands = ("x", "value")
    lowering = "element"
    costly = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        x, value = avals
        low, high = attrs["low"], attrs["high"]
        if len(low) != x.ndim or len(high) != x.ndim or value.shape != () or min((*low, *high), default=0) < 0:
            raise ShapeError(f"[pad] padding {low}, {high} by {value} does not fit {x}")
        return (Aval(tuple(n + a + b for n, a, b in zip(x.shape, low, high, strict=True)), x.dtype),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        x, value = operands
        inside = e.true()
        for i, n, a, b in zip(idx, x.aval.shape, attrs["low"], attrs["high"], strict=True):
            if a or b:
                inside = inside & e.in_range(i, a, a + n)
        inner = tuple(i - a for i, a in zip(idx, attrs["low"], strict=True))
        return e.where(inside, lambda: x(inner), lambda: value(()))

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        x, value = arrays
        return (np.pad(x, list(zip(attrs["low"], attrs["high"], strict=True)), constant_values=value),)

    def _inner(self, x: Any, attrs: dict) -> dict:
        stop = tuple(a + n for a, n in zip(attrs["low"], x.shape, strict=True))
        return {"start": tuple(attrs["low"]), "stop": stop, "strides": (1,) * len(x.shape)}

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if tangents == [None, None]:
            return [None]
        return m.emit(self, [m.zeros(p) if t is None else t for p, t in zip(primals, tangents, strict=True)], attrs)

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (ct,), x = cts, primals[0]
        if ct is None:
            return [None, None]
        inside = self._inner(x, attrs)
        border = m.slice_update(ct, m.zeros(x), **inside) if primals[1].active else None
        return [
            m.slice(ct, **inside) if x.active else None,
            None if border is None else m.sum(border, axes=tuple(range(len(x.shape)))),
        ]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        x, value = args
        x = x if batched[0] else m.broadcast(x, (size, *x.shape))
        wide = {"low": (0, *attrs["low"]), "high": (0, *attrs["high"])}
        if not batched[1]:
            return m.emit(self, [x, value], wide), [True]
        # A padding value per example: pad with zeros, then choose by a padded mask.
        inside = m.pad(m.full(value=True, shape=tuple(x.shape), dtype=bool_), m.scalar(False, bool_), **wide)
        padded = m.pad(x, m.scalar(0, x.dtype), **wide)
        values = m.broadcast(m.reshaped(value, (size,) + (1,) * (len(x.shape) - 1)), tuple(padded.shape))
        return [m.select(inside, padded, values)], [True]


pad = Pad("pad", ("low", "high"))


class Concatenate(Primitive):
    """Joins two operands along `axis`; linear. More pieces are a balanced tree, which lowers to a binary search."""

    kind = "structural"
    lowering = "element"
    operands = ("x", "y")
    costly = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x, y), axis = avals, attrs["axis"]
        if x.ndim != y.ndim or not 0 <= axis < x.ndim or x.dtype is not y.dtype:
            raise ShapeError(f"[concatenate] {x} and {y} cannot be joined along axis {axis}")
        if any(a != b for i, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if i != axis):
            raise ShapeError(f"[concatenate] {x} and {y} differ in more than axis {axis}")
        shape = list(x.shape)
        shape[axis] += y.shape[axis]
        return (Aval(tuple(shape), x.dtype),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        (x, y), axis = operands, attrs["axis"]
        n = x.aval.shape[axis]
        shifted = idx[:axis] + (idx[axis] - n,) + idx[axis + 1 :]
        return e.where(e.in_range(idx[axis], 0, n), lambda: x(idx), lambda: y(shifted))

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.concatenate(arrays, attrs["axis"]),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if all(t is None for t in tangents):
            return [None]
        return m.emit(self, [m.zeros(p) if t is None else t for p, t in zip(primals, tangents, strict=True)], attrs)

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (ct,), axis, at, grads = cts, attrs["axis"], 0, []
        for p in primals:
            start, stop = [0] * len(p.shape), list(outs[0].shape)
            start[axis], stop[axis] = at, at + p.shape[axis]
            at = stop[axis]
            wanted = ct is not None and p.active
            strides = (1,) * len(start)
            grads.append(m.slice(ct, start=tuple(start), stop=tuple(stop), strides=strides) if wanted else None)
        return grads

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        wide = [a if b else m.broadcast(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True)]
        return m.emit(self, wide, {"axis": attrs["axis"] + 1}), [True]


concatenate = Concatenate("concatenate", ("axis",))


class Source(Primitive):
    """An array without operands: nothing to differentiate or batch."""

    kind = "source"
    operands = ()
    lowering = "element"
    no_jvp = no_vjp = no_vmap = "no operands"


class Full(Source):
    """Every element is the attribute `value` (a Python number)."""

    data = "value"
    costly = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(tuple(attrs["shape"]), attrs["dtype"]),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        return e.constant(attrs["value"], attrs["dtype"])

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.full(attrs["shape"], attrs["value"], attrs["dtype"].numpy),)


full = Full("full", ("value", "shape", "dtype"))


class Arange(Source):
    """`start + i * step` for i in 0..length-1, computed in float64 (or int64) and rounded once, as in MLX."""

    costly = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval((attrs["length"],), attrs["dtype"]),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        return e.ramp(idx[0], attrs["start"], attrs["step"], attrs["dtype"])

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        dtype = attrs["dtype"]
        wide = np.arange(attrs["length"])
        start, step = attrs["start"], attrs["step"]
        if dtype.is_inexact:
            return ((start + wide * step).astype(dtype.numpy),)
        return ((int(start) + wide * int(step)).astype(dtype.numpy),)


arange = Arange("arange", ("start", "step", "length", "dtype"))


class View(Primitive):
    """Reinterprets the bits of each element as a dtype of the same size."""

    kind = "structural"
    lowering = "element"
    costly = False
    no_jvp = no_vjp = "bits have no derivative"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x,), dtype = avals, attrs["dtype"]
        if x.dtype.size != dtype.size:
            raise ValueError(f"[view] {x.dtype.name} and {dtype.name} differ in size")
        return (Aval(x.shape, dtype),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        return e.apply(self, [operands[0](idx)], attrs, attrs["dtype"])

    def body(self, k: Any, x: Any, dtype: Any) -> Any:
        return k.bitcast(x, dtype)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.ascontiguousarray(arrays[0]).view(attrs["dtype"].numpy).reshape(arrays[0].shape),)

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, attrs), [True]


view = View("view", ("dtype",))
