"""Scans along an axis, and sorting.

`reverse` runs from the end, `inclusive=False` leaves the element itself out (the first result is the identity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import int32, uint32
from mlxir.runtime.errors import ShapeError

from .indexing import put_along
from .record import Aval, OpBuilder, Primitive
from .recurrence import shifted
from .reduce import _highest, _lowest


class Scan(Primitive):
    """Running combine along `axis`. `combine(k, a, b)` and `init(numpy dtype)` define the loop."""

    kind = "scan"
    lowering = "kernel"

    def __init__(
        self, name: str, combine: Callable, init: Callable, reference: Callable, backward: Callable, forward: Callable,
        costly: bool = False,
    ):  # fmt: skip
        """`costly` says that `combine` calls functions."""
        super().__init__(name, ("axis", "reverse", "inclusive"))
        self.costly = costly
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
        if tangents[0] is None or 0 in primals[0].shape:
            return [None]
        return [self.forward(m, tangents[0], outs[0], primals[0], attrs)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None or 0 in primals[0].shape:
            return [None]
        return [self.backward(m, cts[0], outs[0], primals[0], attrs)]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {**attrs, "axis": attrs["axis"] + 1}), [True]


def _opposite(attrs: dict) -> dict:
    return {**attrs, "reverse": not attrs["reverse"]}


def _cumsum_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    return m.cumsum(ct, **_opposite(attrs))


def _inclusive_cotangent(m: OpBuilder, ct: Any, attrs: dict) -> Any:
    """The cotangent of the inclusive scan: the exclusive one is that, moved on by a place."""
    return ct if attrs["inclusive"] else shifted(m, ct, attrs["axis"], 1, 0, not attrs["reverse"])


def _scanned_tangent(m: OpBuilder, t: Any, attrs: dict) -> Any:
    """The tangent of the scan as it was asked for, from that of the inclusive one."""
    return t if attrs["inclusive"] else shifted(m, t, attrs["axis"], 1, 0, attrs["reverse"])


def _before(m: OpBuilder, x: Any, attrs: dict) -> Any:
    """The product of the elements before each."""
    return m.cumprod(x, axis=attrs["axis"], reverse=attrs["reverse"], inclusive=False)


def _cumprod_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    """(product before j) * h[j], where h[j] = sum over i >= j of ct[i] * (product from j+1 to i)
    = ct[j] + x[j+1] * h[j+1]: exact where elements are zero.
    """
    axis, back, factors = attrs["axis"], not attrs["reverse"], m.conjugated(x)
    following = shifted(m, factors, axis, 1, 0, back)
    products = m.recurrence(following, _inclusive_cotangent(m, ct, attrs), axis=axis, reverse=back)
    return _before(m, factors, attrs) * products


def _cumprod_forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
    """t_out[i] = x[i] * t_out[i-1] + (product before i) * t[i]."""
    tangent = m.recurrence(x, _before(m, x, attrs) * t, axis=attrs["axis"], reverse=attrs["reverse"])
    return _scanned_tangent(m, tangent, attrs)


def _winner(m: OpBuilder, better: Callable, x: Any, out: Any, attrs: dict) -> tuple[Any, Any]:
    """(position along the axis of each result's extremum, whether there is one).

    The latest of equal elements wins (BEHAVIOUR section 5): the last place, in the order of the scan, where the element
    is the extremum so far.
    """
    axis, reverse, n = attrs["axis"], attrs["reverse"], x.shape[attrs["axis"]]
    ramp = m.arange(start=0, step=1, length=n, dtype=int32)
    ramp = m.broadcast(m.reshaped(ramp, tuple(n if a == axis else 1 for a in range(len(x.shape)))), tuple(x.shape))
    none = m.full(value=n if reverse else -1, shape=tuple(x.shape), dtype=int32)
    record = m.equal(x, out if attrs["inclusive"] else better(m, out, x))
    found = (m.cummin if reverse else m.cummax)(m.select(record, ramp, none), **attrs)
    exists = m.less(found, m.scalar(n, int32)) if reverse else m.greater_equal(found, m.scalar(0, int32))
    return m.stop_gradient(m.select(exists, found, m.zeros(found))), exists


def _extremum_rules(better: Callable) -> tuple[Callable, Callable]:
    """(backward, forward) of a running extremum: results take the tangent of their winner."""

    def backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
        place, exists = _winner(m, better, x, out, attrs)
        return put_along(m, m.zeros(x), place, m.select(exists, ct, m.zeros(ct)), attrs["axis"], "add")

    def forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
        place, exists = _winner(m, better, x, out, attrs)
        return m.select(exists, m.take_along_axis(t, place, axis=attrs["axis"]), m.zeros(t))

    return backward, forward


def _lse_parts(m: OpBuilder, out: Any, x: Any, attrs: dict) -> tuple[Any, Any]:
    """(exp(x[i] - out[i]), exp(out[i-1] - out[i])) of the inclusive scan: the weight of the newest element in result i
    and that of all before it. Both are 0 where the sum is still 0.
    """
    axis, reverse = attrs["axis"], attrs["reverse"]
    total = out if attrs["inclusive"] else m.logaddexp(out, x)
    low = -float("inf")
    empty = m.equal(total, m.full(value=low, shape=tuple(total.shape), dtype=x.dtype))
    safe = m.select(empty, m.zeros(total), total)
    return m.exp(x - safe), m.exp(shifted(m, total, axis, 1, low, reverse) - safe)


def _lse_backward(m: OpBuilder, ct: Any, out: Any, x: Any, attrs: dict) -> Any:
    """weight[j] * h[j], where h[j] = sum over i >= j of ct[i] * exp(out[j] - out[i]) = ct[j] + decay[j+1] * h[j+1]."""
    axis, back = attrs["axis"], not attrs["reverse"]
    weight, decay = (m.conjugated(part) for part in _lse_parts(m, out, x, attrs))
    following = shifted(m, decay, axis, 1, 0, back)
    return weight * m.recurrence(following, _inclusive_cotangent(m, ct, attrs), axis=axis, reverse=back)


def _lse_forward(m: OpBuilder, t: Any, out: Any, x: Any, attrs: dict) -> Any:
    """t_out[i] = decay[i] * t_out[i-1] + weight[i] * t[i]."""
    weight, decay = _lse_parts(m, out, x, attrs)
    tangent = m.recurrence(decay, weight * t, axis=attrs["axis"], reverse=attrs["reverse"])
    return _scanned_tangent(m, tangent, attrs)


def _logcumsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    """NumPy's for real numbers; it has no logaddexp of complex ones."""
    if x.dtype.kind != "c":
        return np.logaddexp.accumulate(x, axis)
    out = x.copy()
    rows = np.moveaxis(out, axis, 0)
    for before, row in zip(rows, rows[1:], strict=False):
        big, small = np.maximum(before, row), np.minimum(before, row)
        row[...] = big + np.log1p(np.exp(small - big))
    return out


cumsum = Scan("cumsum", lambda k, a, b: a + b, lambda d: 0, lambda x, axis: np.cumsum(x, axis, dtype=x.dtype),
              _cumsum_backward, lambda m, t, o, x, attrs: m.cumsum(t, **attrs))  # fmt: skip
cumprod = Scan("cumprod", lambda k, a, b: a * b, lambda d: 1, lambda x, axis: np.cumprod(x, axis, dtype=x.dtype),
               _cumprod_backward, _cumprod_forward)  # fmt: skip
cummax = Scan("cummax", lambda k, a, b: k.maximum(a, b), _lowest, np.maximum.accumulate,
              *_extremum_rules(lambda m, a, b: m.maximum(a, b)))  # fmt: skip
cummin = Scan("cummin", lambda k, a, b: k.minimum(a, b), _highest, np.minimum.accumulate,
              *_extremum_rules(lambda m, a, b: m.minimum(a, b)))  # fmt: skip
logcumsumexp = Scan("logcumsumexp", lambda k, a, b: k.logaddexp(a, b), lambda d: -float("inf"), _logcumsumexp,
                    _lse_backward, _lse_forward, costly=True)  # fmt: skip


def _comparable(x: np.ndarray) -> np.ndarray:
    """NumPy knows how to order NaN in its own dtypes only: bfloat16 as float32."""
    return x.astype(np.float32) if x.dtype.kind == "V" else x


class Sort(Primitive):
    """Stable ascending sort along `axis`, NaN last. The derivative moves (co)tangents by the sorting permutation."""

    kind = "sort"
    lowering = "kernel"
    gives_indices = False

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        if not 0 <= attrs["axis"] < avals[0].ndim:
            raise ShapeError(f"[{self.name}] axis {attrs['axis']} is out of range for shape {avals[0].shape}")
        return (avals[0],)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.sort(_comparable(arrays[0]), attrs["axis"], kind="stable"),)

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

    gives_indices = True
    no_jvp = no_vjp = "indices carry no gradient"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(super().infer(*avals, **attrs)[0].shape, uint32),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (np.argsort(_comparable(arrays[0]), attrs["axis"], kind="stable"),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None]


sort = Sort("sort", ("axis",))
argsort = ArgSort("argsort", ("axis",))
