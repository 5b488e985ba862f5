"""Reductions over axes, which are dropped; the public functions restore them for `keepdims`.

NaN wins in max and min; float16 and bfloat16 accumulate in float32. Integer widening (`sum` of int8 gives int32)
happens in
the public functions, so that a record's result dtype is its operand's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.dtypes import float32, int64, uint32
from mlxir.runtime.errors import ShapeError

from .kinds import Reduction
from .record import Aval, OpBuilder, Primitive


def _spread(m: OpBuilder, value: Any, x: Any, axes: tuple[int, ...]) -> Any:
    """A reduced value broadcast back over the axes that were reduced."""
    return m.broadcast(m.expanded(value, axes), tuple(x.shape))


def _count(x: Any, axes: tuple[int, ...]) -> int:
    """How many elements are reduced to one."""
    return int(np.prod([x.shape[a] for a in axes], dtype=np.int64))


def _lowest(dtype: np.dtype) -> Any:
    """The identity of max."""
    if dtype.kind in "bu":
        return 0
    low = -float("inf")
    return int(np.iinfo(dtype).min) if dtype.kind == "i" else complex(low, low) if dtype.kind == "c" else low


def _highest(dtype: np.dtype) -> Any:
    """The identity of min."""
    if dtype.kind in "biu":
        return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)
    high = float("inf")
    return complex(high, high) if dtype.kind == "c" else high


def _shared(m: OpBuilder, out: Any, x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """(1 where an element is the extremum, how many of them share the derivative), in a dtype that can count them."""
    wide = float32 if x.dtype.kind == "f" and x.dtype.size == 2 else x.dtype if x.dtype.is_inexact else int64
    hit = m.cast(m.equal(x, _spread(m, out, x, axes)), wide)
    return hit, m.sum(hit, axes=axes)


def _quotient(m: OpBuilder, a: Any, b: Any) -> Any:
    return m.divide(a, b) if a.dtype.is_inexact else m.floor_divide(a, b)


def _extremum_backward(m: OpBuilder, ct: Any, out: Any, x: Any, axes: tuple[int, ...]) -> Any:
    """Ties share the cotangent evenly."""
    if not _count(x, axes):
        return m.zeros(x)
    hit, count = _shared(m, out, x, axes)
    return hit * _spread(m, _quotient(m, m.cast(ct, hit.dtype), count), x, axes)


def _extremum_forward(m: OpBuilder, t: Any, out: Any, x: Any, axes: tuple[int, ...]) -> Any:
    if not _count(x, axes):
        return m.zeros(out)
    hit, count = _shared(m, out, x, axes)
    return _quotient(m, m.sum(hit * m.cast(t, hit.dtype), axes=axes), count)


def _others_product(m: OpBuilder, x: Any, axes: tuple[int, ...]) -> Any:
    """At each position the product of all other elements along `axes`; exact where elements are zero."""
    kept = [i for i in range(len(x.shape)) if i not in axes]
    order = kept + list(axes)
    moved = m.permuted(x, order)
    lead = tuple(x.shape[i] for i in kept)
    flat = m.reshaped(moved, lead + (_count(x, axes),))
    axis = len(lead)
    left = m.cumprod(flat, axis=axis, reverse=False, inclusive=False)
    right = m.cumprod(flat, axis=axis, reverse=True, inclusive=False)
    others = m.reshaped(left * right, tuple(moved.shape))
    return m.permuted(others, list(np.argsort(order)))


def _extremum(fn, init):
    return lambda x, axes: fn(x, axis=axes, initial=init(x.dtype))


sum_ = Reduction("sum", lambda k, a, b: a + b, lambda d: 0, lambda x, axes: np.sum(x, axis=axes, dtype=x.dtype),
                 backward=lambda m, ct, o, x, axes: _spread(m, ct, x, axes),
                 forward=lambda m, t, o, x, axes: m.sum(t, axes=axes))  # fmt: skip
prod = Reduction("prod", lambda k, a, b: a * b, lambda d: 1, lambda x, axes: np.prod(x, axis=axes, dtype=x.dtype),
                 backward=lambda m, ct, o, x, axes: _spread(m, ct, x, axes) * m.conjugated(_others_product(m, x, axes)),
                 forward=lambda m, t, o, x, axes: m.sum(t * _others_product(m, x, axes), axes=axes))  # fmt: skip
max_ = Reduction("max", lambda k, a, b: k.maximum(a, b), _lowest, _extremum(np.max, _lowest),
                 backward=_extremum_backward, forward=_extremum_forward)  # fmt: skip
min_ = Reduction("min", lambda k, a, b: k.minimum(a, b), _highest, _extremum(np.min, _highest),
                 backward=_extremum_backward, forward=_extremum_forward)  # fmt: skip
all_ = Reduction("all", lambda k, a, b: a & b, lambda d: True, lambda x, axes: np.all(x, axis=axes))
any_ = Reduction("any", lambda k, a, b: a | b, lambda d: False, lambda x, axes: np.any(x, axis=axes))


class ArgReduction(Primitive):
    """Index (uint32) of the extremum along one axis, which is dropped; the first one wins, NaN counts as extreme."""

    kind = "argreduction"
    lowering = "kernel"
    no_jvp = no_vjp = "flat"

    def __init__(self, name: str, extremum: str, better: Any, reference: Any):
        """`extremum` names the reduction to the element itself; `better(k, a, best)` says whether a replaces best."""
        super().__init__(name, ("axis",))
        self.extremum, self.better, self._reference = extremum, better, reference

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x,), axis = avals, attrs["axis"]
        if not 0 <= axis < x.ndim or x.shape[axis] == 0:
            raise ShapeError(f"[{self.name}] axis {axis} is empty or missing in an array of shape {x.shape}")
        return (Aval(x.shape[:axis] + x.shape[axis + 1 :], uint32),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (self._reference(arrays[0], axis=attrs["axis"]),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [None]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {"axis": attrs["axis"] + 1}), [True]


argmax = ArgReduction("argmax", "max", lambda k, a, best: (a > best) | ((a != a) & (best == best)), np.argmax)
argmin = ArgReduction("argmin", "min", lambda k, a, best: (a < best) | ((a != a) & (best == best)), np.argmin)
