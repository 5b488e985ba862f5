"""Scans along an axis, and sorting.

`reverse` runs from the end, `inclusive=False` leaves the element itself out (the first result is the identity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import uint32
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive
from .reduce import _highest, _lowest


class Scan(Primitive):
    """Running combine along `axis`. `combine(k, a, b)` and `init(numpy dtype)` define the loop."""

    kind = "scan"
    lowering = "kernel"

    def __init__(
        self, name: str, combine: Callable, init: Callable, reference: Callable, backward: Callable, forward: Callable
    ):
        super().__init__(name, ("axis", "reverse", "inclusive"))
        self.combine, self.init, self._reference = combine, init, reference
        self.backward, self.forward = backward, forward

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        if not 0 <= attrs["axis"] < avals[0].ndim:
            raise ShapeError(f"[{self.name}] axis {attrs['axis']} is out of range for shape {avals[0].shape}")
        return (avals[0],)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        (x,), axis = arrays, attrs["axis"]
        if attrs["reverse"]:
            x = np.flip(x, axis)
        out = self._reference(x, axis).astype(x.dtype)
        if not attrs["inclusive"] and out.shape[axis]:
            first = np.full_like(np.take(out, [0], axis), self.init(x.dtype))
            out = np.concatenate([first, np.take(out, range(out.shape[axis] - 1), axis)], axis)
        return (np.flip(out, axis) if attrs["reverse"] else out,)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None if tangents[0] is None else self.forward(m, tangents[0], outs[0], primals[0], attrs)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None if cts[0] is None else self.backward(m, cts[0], outs[0], primals[0], attrs)]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {**attrs, "axis": attrs["axis"] + 1}), [True]


def _opposite(attrs: dict) -> dict:
    return {**attrs, "reverse": not attrs["reverse"]}


def _cumsum_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    return m.cumsum(ct, **_opposite(attrs))


def _pairwise(m: OpBuilder, x: Any, attrs: dict) -> tuple[Any, Any, int]:
    """The scan as a masked table: `(x with a new axis, mask[i, j] = element j takes part in result i, that axis)`."""
    axis, n, rank = attrs["axis"], x.shape[attrs["axis"]], len(x.shape)
    ramp = m.arange(start=0, step=1, length=n, dtype=uint32)
    i, j = m.reshaped(ramp, (n, 1)), m.reshaped(ramp, (1, n))
    first, second = (j, i) if attrs["reverse"] else (i, j)
    mask = m.greater_equal(first, second) if attrs["inclusive"] else m.greater(first, second)
    shape = [1] * (rank + 1)
    shape[axis], shape[axis + 1] = n, n
    return m.expanded(x, [axis]), m.reshaped(mask, tuple(shape)), axis + 1


def _cumprod_table(m: OpBuilder, out: Any, x: Any, attrs: dict) -> tuple[Any, int]:
    """d out_i / d x_j = the product of the other participating elements: exact where elements are zero, O(n^2) memory.
    """
    wide, mask, axis = _pairwise(m, x, attrs)
    shape = tuple(x.shape[:axis]) + (x.shape[axis - 1],) + tuple(x.shape[axis:])
    factors = m.select(m.broadcast(mask, shape), m.broadcast(wide, shape), m.full(value=1, shape=shape, dtype=x.dtype))
    left = m.cumprod(factors, axis=axis, reverse=False, inclusive=False)
    right = m.cumprod(factors, axis=axis, reverse=True, inclusive=False)
    return m.select(m.broadcast(mask, shape), left * right, m.full(value=0, shape=shape, dtype=x.dtype)), axis


def _cumprod_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    table, axis = _cumprod_table(m, out, x, attrs)
    return m.sum(m.conjugated(table) * m.expanded(ct, [axis]), axes=(axis - 1,))


def _cumprod_forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
    table, axis = _cumprod_table(m, out, x, attrs)
    return m.sum(table * m.expanded(t, [axis - 1]), axes=(axis,))


def _winner_table(m: OpBuilder, out: Any, x: Any, attrs: dict) -> tuple[Any, int]:
    """1 where element j is result i's extremum; the latest of equal ones wins (BEHAVIOUR section 5)."""
    wide, mask, axis = _pairwise(m, x, attrs)
    n = x.shape[axis - 1]
    shape = tuple(x.shape[:axis]) + (n,) + tuple(x.shape[axis:])
    hit = m.logical_and(m.broadcast(m.equal(wide, m.expanded(out, [axis])), shape), m.broadcast(mask, shape))
    last = m.cumsum(m.cast(hit, uint32), axis=axis, reverse=not attrs["reverse"], inclusive=True)
    return m.cast(m.logical_and(hit, m.equal(last, m.scalar(1, uint32))), x.dtype), axis


def _extremum_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    table, axis = _winner_table(m, out, x, attrs)
    return m.sum(table * m.expanded(ct, [axis]), axes=(axis - 1,))


def _extremum_forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
    table, axis = _winner_table(m, out, x, attrs)
    return m.sum(table * m.expanded(t, [axis - 1]), axes=(axis,))


def _lse_weights(m: OpBuilder, out: Any, x: Any, attrs: dict) -> tuple[Any, int]:
    wide, mask, axis = _pairwise(m, x, attrs)
    shape = tuple(x.shape[:axis]) + (x.shape[axis - 1],) + tuple(x.shape[axis:])
    low = m.full(value=-float("inf"), shape=shape, dtype=x.dtype)
    return m.exp(m.select(m.broadcast(mask, shape), m.broadcast(wide - m.expanded(out, [axis]), shape), low)), axis


def _lse_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    weights, axis = _lse_weights(m, out, x, attrs)
    return m.sum(m.conjugated(weights) * m.expanded(ct, [axis]), axes=(axis - 1,))


def _lse_forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
    weights, axis = _lse_weights(m, out, x, attrs)
    return m.sum(weights * m.expanded(t, [axis - 1]), axes=(axis,))


cumsum = Scan("cumsum", lambda k, a, b: a + b, lambda d: 0, lambda x, axis: np.cumsum(x, axis, dtype=x.dtype),
              _cumsum_backward, lambda m, t, o, x, attrs: m.cumsum(t, **attrs))  # fmt: skip
cumprod = Scan("cumprod", lambda k, a, b: a * b, lambda d: 1, lambda x, axis: np.cumprod(x, axis, dtype=x.dtype),
               _cumprod_backward, _cumprod_forward)  # fmt: skip
cummax = Scan("cummax", lambda k, a, b: k.maximum(a, b), _lowest, np.maximum.accumulate,
              _extremum_backward, _extremum_forward)  # fmt: skip
cummin = Scan("cummin", lambda k, a, b: k.minimum(a, b), _highest, np.minimum.accumulate,
              _extremum_backward, _extremum_forward)  # fmt: skip
logcumsumexp = Scan("logcumsumexp", lambda k, a, b: k.logaddexp(a, b), lambda d: -float("inf"), np.logaddexp.accumulate,
                    _lse_backward, _lse_forward)  # fmt: skip


class Sort(Primitive):
    """Stable ascending sort along `axis`, NaN last. The derivative moves (co)tangents by the sorting permutation."""

    kind = "opaque"
    lowering = "library"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        if not 0 <= attrs["axis"] < avals[0].ndim:
            raise ShapeError(f"[{self.name}] axis {attrs['axis']} is out of range for shape {avals[0].shape}")
        return (avals[0],)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.sort(arrays[0], attrs["axis"], kind="stable"),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if tangents[0] is None:
            return [None]
        return [m.take_along_axis(tangents[0], m.stop_gradient(m.argsort(primals[0], **attrs)), axis=attrs["axis"])]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None:
            return [None]
        # The inverse of a permutation is its argsort.
        inverse = m.stop_gradient(m.argsort(m.argsort(primals[0], **attrs), **attrs))
        return [m.take_along_axis(cts[0], inverse, axis=attrs["axis"])]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {"axis": attrs["axis"] + 1}), [True]


class ArgSort(Sort):
    """The permutation (uint32) that sorts along `axis`."""

    no_jvp = no_vjp = "indices carry no gradient"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(super().infer(*avals, **attrs)[0].shape, uint32),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.argsort(arrays[0], attrs["axis"], kind="stable"),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None]


sort = Sort("sort", ("axis",))
argsort = ArgSort("argsort", ("axis",))
