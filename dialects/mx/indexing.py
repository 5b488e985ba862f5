"""Gathers and scatters by integer arrays. Indices carry no gradient; no index ever reaches outside an operand.

Negative indices count from the end. Out of range, a read is clamped to the nearest element (its derivative is dropped)
and a write is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import int32, int64
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive, Shape
from .recurrence import shifted


def _no_index_gradient(name: str, indices: Sequence[Any]) -> None:
    if any(i.active for i in indices):
        raise ValueError(
            f"[{name}] cannot calculate the gradient with respect to the indices; call stop_gradient on them first."
        )


def _batched(m: OpBuilder, size: int, indices: list, batched: list[bool]) -> list:
    """Index arrays that all carry the batch axis in front, in a dtype that can count the examples."""
    wide = [_countable(m, i) for i in indices]
    return [i if b else m.broadcast(i, (size, *i.shape)) for i, b in zip(wide, batched, strict=True)]


def _countable(m: OpBuilder, index: Any) -> Any:
    """An index array in a dtype that holds every position of an axis."""
    return m.cast(index, int32) if index.dtype.size < 4 else index


def _where_last(m: OpBuilder, values: Any, x: Any, indices: list, axes: tuple[int, ...]) -> Any:
    """`values`, of the shape of a scatter's updates, but 0 for updates that a later one overwrites."""
    batch = tuple(indices[0].shape)
    if prod(batch) == 1:
        return values
    # All updates cover the same part of an axis that is not indexed, so one position of it tells.
    slim = lambda shape: tuple(n if a in axes else 1 for a, n in enumerate(shape))  # noqa: E731
    sizes = slim(values.shape[len(batch) :])
    number = m.arange(start=0, step=1, length=prod(batch), dtype=int32)
    number = m.broadcast(m.reshaped(number, batch + (1,) * len(sizes)), batch + sizes)
    board = m.full(value=-1, shape=slim(x.shape), dtype=int32)
    last = m.gather(m.scatter(board, *indices, number, axes=axes, mode="set"), *indices, axes=axes, slice_sizes=sizes)
    return m.select(m.equal(last, number), values, m.zeros(values))


def _inside(m: OpBuilder, x: Any, indices: list, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    """Which slices lie inside `x`: those outside are not written."""
    inside = None
    for axis, index in zip(axes, indices, strict=True):
        start = m.cast(index, int64)
        if index.dtype.kind == "i":
            start = m.select(m.less(start, m.scalar(0, int64)), start + x.shape[axis], start)
        limit = m.scalar(x.shape[axis] - sizes[axis], int64)
        fits = m.logical_and(m.greater_equal(start, m.scalar(0, int64)), m.less_equal(start, limit))
        inside = fits if inside is None else m.logical_and(inside, fits)
    return inside


def _other_factors(m: OpBuilder, x: Any, indices: list, updates: Any, axes: tuple[int, ...]) -> Any:
    """For a scatter that multiplies, at each update the product of the other updates of the same element; 0 where the
    update is not written.

    Updates are sorted by the element that they meet; there the products of those before and those after each are
    recurrences. So zeros among them are exact in derivatives of any order.
    """
    batch, shape, count = tuple(indices[0].shape), tuple(updates.shape), prod(updates.shape)
    sizes = shape[len(batch) :]
    ones, zeros = (m.full(value=v, shape=(count,), dtype=x.dtype) for v in (1, 0))
    inside = m.reshaped(_inside(m, x, indices, axes, sizes), batch + (1,) * len(sizes))
    inside = m.reshaped(m.broadcast(inside, shape), (count,))
    if prod(batch) <= 1 or not count:
        return m.reshaped(m.select(inside, ones, zeros), shape)
    numbers = m.reshaped(m.arange(start=0, step=1, length=prod(x.shape), dtype=int64), tuple(x.shape))
    places = m.reshaped(m.gather(numbers, *indices, axes=axes, slice_sizes=sizes), (count,))
    order = m.stop_gradient(m.argsort(places, axis=0))
    places = m.take_along_axis(places, order, axis=0)
    # What is not written multiplies nothing.
    factors = m.take_along_axis(m.select(inside, m.reshaped(updates, (count,)), ones), order, axis=0)

    def product_before(reverse: bool) -> Any:
        same = m.equal(places, shifted(m, places, 0, 1, -1, reverse))
        previous = shifted(m, factors, 0, 1, 1, reverse)
        return m.recurrence(m.select(same, previous, zeros), m.select(same, zeros, ones), axis=0, reverse=reverse)

    others = m.take_along_axis(product_before(False) * product_before(True), m.argsort(order, axis=0), axis=0)
    return m.reshaped(m.select(inside, others, zeros), shape)


def _lanes(m: OpBuilder, size: int, like: Any) -> Any:
    """The number of the example, in the shape and dtype of a batched index array."""
    ramp = m.arange(start=0, step=1, length=size, dtype=like.dtype)
    return m.broadcast(m.reshaped(ramp, (size,) + (1,) * (len(like.shape) - 1)), tuple(like.shape))


def _check_indices(name: str, x: Aval, axes: Sequence[int], indices: Sequence[Aval]) -> None:
    if len(axes) != len(indices) or not indices or len(set(axes)) != len(axes):
        raise ShapeError(f"[{name}] {len(indices)} index arrays for axes {axes}")
    if any(not 0 <= axis < x.ndim for axis in axes):
        raise ShapeError(f"[{name}] axes {axes} are out of range for {x}")
    if any(i != indices[0] or not i.dtype.is_integer for i in indices):
        raise ShapeError(
            f"[{name}] indices must be integers of one shape and dtype, got {', '.join(map(str, indices))}"
        )


def _positions(shape: Shape, axes: Sequence[int], sizes: Shape, indices: Sequence[np.ndarray]) -> tuple:
    """NumPy index arrays of all elements that `indices` select, and which selections lie inside."""
    batch = np.broadcast_shapes(*(i.shape for i in indices))
    rank, grids, valid = len(shape), [], np.ones(batch, bool)
    for axis in range(rank):
        grid = np.arange(sizes[axis]).reshape((1,) * len(batch) + tuple(-1 if a == axis else 1 for a in range(rank)))
        if axis in axes:
            start = np.broadcast_to(indices[list(axes).index(axis)], batch).astype(np.int64)
            start = np.where(start < 0, start + shape[axis], start)
            limit = shape[axis] - sizes[axis]
            valid &= (start >= 0) & (start <= limit)
            start = np.clip(start, 0, limit)
            grid = start.reshape(batch + (1,) * rank) + grid
        grids.append(grid)
    return tuple(grids), valid


class Gather(Primitive):
    """For every position of the broadcast index arrays, the slice of `slice_sizes` that starts at these indices of
    `axes`.

    Operands `(x, *indices)`; result shape `index shape + slice_sizes` (as in MLX, sizes of 1 stay).
    """

    kind = "indexing"
    lowering = "element"
    operands = ("x", "*indices")
    costly = True

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        x, *indices = avals
        axes, sizes = attrs["axes"], attrs["slice_sizes"]
        _check_indices("gather", x, axes, indices)
        if len(sizes) != x.ndim or any(not 0 <= s <= n for s, n in zip(sizes, x.shape, strict=True)):
            raise ShapeError(f"[gather] slice sizes {sizes} do not fit the shape {x.shape}")
        return (Aval(indices[0].shape + tuple(sizes), x.dtype),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        x, *indices = operands
        lead = len(idx) - x.aval.ndim
        inner = list(idx[lead:])
        for axis, array in zip(attrs["axes"], indices, strict=True):
            n = x.aval.shape[axis]
            inner[axis] = e.dynamic_index(array(idx[:lead]), n, n - attrs["slice_sizes"][axis] + 1) + inner[axis]
        return x(tuple(inner))

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        x, *indices = arrays
        if not x.size:
            return (np.zeros(np.broadcast_shapes(*(i.shape for i in indices)) + tuple(attrs["slice_sizes"]), x.dtype),)
        grids, _ = _positions(x.shape, attrs["axes"], attrs["slice_sizes"], indices)
        return (x[grids],)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return m.emit(self, [tangents[0], *primals[1:]], attrs) if tangents[0] is not None else [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        x, *indices = primals
        _no_index_gradient("gather", indices)
        if cts[0] is None or not x.active:
            return [None] * len(primals)
        grad = m.scatter(m.zeros(x), *indices, cts[0], axes=attrs["axes"], mode="add")
        return [grad] + [None] * len(indices)

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        x, *indices = args
        axes, sizes = attrs["axes"], attrs["slice_sizes"]
        if not batched[0]:
            return m.emit(self, [x, *_batched(m, size, indices, batched[1:])], attrs), [True]
        axes = tuple(a + 1 for a in axes)
        if any(batched[1:]):
            indices = _batched(m, size, indices, batched[1:])
            lanes = _lanes(m, size, indices[0])
            (out,) = m.emit(self, [x, lanes, *indices], {"axes": (0, *axes), "slice_sizes": (1, *sizes)})
            rank = len(lanes.shape)
            return [m.reshaped(out, tuple(out.shape[:rank]) + tuple(out.shape[rank + 1 :]))], [True]
        (out,) = m.emit(self, [x, *indices], {"axes": axes, "slice_sizes": (size, *sizes)})
        return [m.moved(out, len(indices[0].shape), 0)], [True]


gather = Gather("gather", ("axes", "slice_sizes"))


class Scatter(Primitive):
    """`x` with `updates` combined into the slices that `indices` select; operands `(x, *indices, updates)`.

    `updates` has the shape that gathering those slices has. `mode` is set, add, multiply, maximum or minimum.
    Duplicates accumulate; for `set` the last
    one wins.
    """

    kind = "indexing"
    lowering = "kernel"
    operands = ("x", "*indices", "updates")
    updates = True

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        x, *indices, updates = avals
        _check_indices("scatter", x, attrs["axes"], indices)
        batch = indices[0].shape
        sizes = updates.shape[len(batch) :]
        fits = updates.shape[: len(batch)] == batch and len(sizes) == x.ndim
        if not fits or any(s > n for s, n in zip(sizes, x.shape, strict=True)) or updates.dtype is not x.dtype:
            raise ShapeError(f"[scatter] updates {updates} with index shape {batch} do not fit {x}")
        return (x,)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        out = arrays[0].copy()
        self.put(out, *self.writes(*arrays, **attrs), **attrs)
        return (out,)

    def writes(self, *arrays: np.ndarray, **attrs: Any) -> tuple[Any, np.ndarray]:
        x, *indices, updates = arrays
        batch = np.broadcast_shapes(*(i.shape for i in indices))
        sizes = updates.shape[len(batch) :]
        if not updates.size or not x.size:
            return np.zeros(x.shape, bool), updates.reshape(-1)[:0]
        grids, valid = _positions(x.shape, attrs["axes"], sizes, indices)
        grids = np.broadcast_arrays(*grids)
        keep = np.broadcast_to(valid.reshape(batch + (1,) * x.ndim), updates.shape)
        return tuple(g[keep] for g in grids), updates[keep]

    def put(self, out: np.ndarray, where: Any, values: np.ndarray, **attrs: Any) -> None:
        ufunc = {"add": np.add, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum}.get(
            attrs["mode"]
        )
        if ufunc is None:
            out[where] = values
        else:
            ufunc.at(out, where, values)

    def _gathered(self, m: OpBuilder, x: Any, indices: list, updates: Any, attrs: dict) -> Any:
        sizes = tuple(updates.shape[len(updates.shape) - len(x.shape) :])
        return m.gather(x, *indices, axes=attrs["axes"], slice_sizes=sizes)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        x, *indices, updates = primals
        tx, tu = tangents[0], tangents[-1]
        if tx is None and tu is None:
            return [None]
        tx = m.zeros(x) if tx is None else tx
        tu = m.zeros(updates) if tu is None else tu
        mode = attrs["mode"]
        if mode in ("set", "add"):
            return m.emit(self, [tx, *indices, tu], attrs)
        dx, du = self._partials(m, x, indices, updates, outs[0], attrs)
        return [m.scatter(tx * dx, *indices, tu * du, axes=attrs["axes"], mode="add")]

    def _partials(self, m: OpBuilder, x: Any, indices: list, updates: Any, out: Any, attrs: dict) -> tuple[Any, Any]:
        """d out / d x elementwise, and d out / d update at each update."""
        if attrs["mode"] != "multiply":
            hit = self._gathered(m, out, indices, updates, attrs)
            return m.cast(m.equal(x, out), x.dtype), m.cast(m.equal(updates, hit), x.dtype)
        ones = m.full(value=1, shape=tuple(x.shape), dtype=x.dtype)
        others = self._gathered(m, x, indices, updates, attrs) * _other_factors(m, x, indices, updates, attrs["axes"])
        return m.scatter(ones, *indices, updates, **attrs), others

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        x, *indices, updates = primals
        _no_index_gradient("scatter", indices)
        (ct,), mode = cts, attrs["mode"]
        none = [None] * len(indices)
        if ct is None:
            return [None, *none, None]
        dx = du = None
        if mode in ("multiply", "maximum", "minimum"):
            dx, du = self._partials(m, x, indices, updates, outs[0], attrs)
        kept, back = None, None
        if x.active:
            kept = m.scatter(ct, *indices, m.zeros(updates), **attrs) if mode == "set" else ct
            kept = kept if dx is None else kept * m.conjugated(dx)
        if updates.active:
            back = self._gathered(m, ct, indices, updates, attrs)
            if mode == "set":
                back = _where_last(m, back, x, indices, attrs["axes"])
            elif du is not None:
                back = back * m.conjugated(du)
        return [kept, *none, back]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        """The batch axis becomes one more indexed axis, so examples never mix."""
        x, *indices, updates = args
        x = x if batched[0] else m.broadcast(x, (size, *x.shape))
        indices = _batched(m, size, indices, batched[1:-1])
        rank = len(indices[0].shape)
        updates = updates if batched[-1] else m.broadcast(updates, (size, *updates.shape))
        updates = m.reshaped(updates, tuple(updates.shape[:rank]) + (1,) + tuple(updates.shape[rank:]))
        operands = [x, _lanes(m, size, indices[0]), *indices, updates]
        return m.emit(self, operands, {**attrs, "axes": (0, *(a + 1 for a in attrs["axes"]))}), [True]


scatter = Scatter("scatter", ("axes", "mode"))


class TakeAlongAxis(Primitive):
    """`out[.., i, ..] = x[.., index[.., i, ..], ..]`: operands of one rank, whose other axes are equal."""

    kind = "indexing"
    lowering = "element"
    operands = ("x", "index")
    costly = True

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x, index), axis = avals, attrs["axis"]
        if x.ndim != index.ndim or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True)) if i != axis
        ):  # fmt: skip
            raise ShapeError(f"[take_along_axis] index {index} does not fit {x} along axis {axis}")
        if not index.dtype.is_integer:
            raise ValueError(f"[take_along_axis] indices must be integers, got {index}")
        return (Aval(index.shape, x.dtype),)

    def element(self, e: Any, idx: tuple, operands: Any, **attrs: Any) -> Any:
        (x, index), axis = operands, attrs["axis"]
        n = x.aval.shape[axis]
        return x(idx[:axis] + (e.dynamic_index(index(idx), n, n),) + idx[axis + 1 :])

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        (x, index), axis = arrays, attrs["axis"]
        n, index = x.shape[axis], index.astype(np.int64)
        return (np.take_along_axis(x, np.clip(np.where(index < 0, index + n, index), 0, max(n - 1, 0)), axis),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return m.emit(self, [tangents[0], primals[1]], attrs) if tangents[0] is not None else [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        x, index = primals
        _no_index_gradient("take_along_axis", [index])
        if cts[0] is None or not x.active:
            return [None, None]
        if index.shape[attrs["axis"]] == 1:
            return [_placed(m, x, index, cts[0], attrs["axis"]), None]
        return [put_along(m, m.zeros(x), index, cts[0], attrs["axis"], "add"), None]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        wide = [a if b else m.broadcast(a, (size, *a.shape)) for a, b in zip(args, batched, strict=True)]
        return m.emit(self, wide, {"axis": attrs["axis"] + 1}), [True]


take_along_axis = TakeAlongAxis("take_along_axis", ("axis",))


def _placed(m: OpBuilder, x: Any, index: Any, ct: Any, axis: int) -> Any:
    """`ct` at the one index along `axis`, else 0: elementwise, so that it joins what reads it (a cross-entropy's
    gradient).
    """
    n, index = x.shape[axis], _countable(m, index)
    if index.dtype.kind == "i":
        index = m.select(m.less(index, m.scalar(0, index.dtype)), index + n, index)
    ramp = m.arange(start=0, step=1, length=n, dtype=index.dtype)
    here = m.equal(index, m.reshaped(ramp, tuple(n if a == axis else 1 for a in range(len(x.shape)))))
    return m.select(here, ct, m.zeros(x))


def put_along(m: OpBuilder, x: Any, index: Any, updates: Any, axis: int, mode: str) -> Any:
    """`x` with `updates` combined at `index` along `axis` (the other axes at their own position), by one scatter."""
    rank, indices, index = len(x.shape), [], _countable(m, index)
    for a in range(rank):
        ramp = m.arange(start=0, step=1, length=index.shape[a], dtype=index.dtype)
        lined = m.reshaped(ramp, tuple(index.shape[a] if i == a else 1 for i in range(rank)))
        indices.append(index if a == axis else m.broadcast(lined, tuple(index.shape)))
    slices = m.reshaped(updates, tuple(updates.shape) + (1,) * rank)
    return m.scatter(x, *indices, slices, axes=tuple(range(rank)), mode=mode)
