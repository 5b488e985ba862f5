"""First-order linear recurrences: `y[i] = a[i] * y[i-1] + b[i]` along an axis.

The derivatives of cumprod, logcumsumexp and of products at equal indices are such recurrences. Written as one they are
exact where factors are zero, can be differentiated any number of times and take memory in proportion to the operands,
where a table of all pairs of elements would take its square.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive


class Recurrence(Primitive):
    """`y[i] = a[i] * y[i-1] + b[i]` along `axis`, with `y[-1] = 0`; from the end, with `y[i+1]`, if `reverse`."""

    kind = "recurrence"
    lowering = "kernel"
    operands = ("a", "b")

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        a, b = avals
        if a != b or not 0 <= attrs["axis"] < a.ndim:
            raise ShapeError(f"[recurrence] operands {a} and {b} along axis {attrs['axis']}")
        return (a,)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        a, b = (np.moveaxis(x, attrs["axis"], 0) for x in arrays)
        if attrs["reverse"]:
            a, b = a[::-1], b[::-1]
        out = b.copy()
        for i in range(1, len(out)):
            out[i] += a[i] * out[i - 1]
        return (np.moveaxis(out[::-1] if attrs["reverse"] else out, 0, attrs["axis"]),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        """dy[i] = a[i] * dy[i-1] + (da[i] * y[i-1] + db[i])."""
        (a, _), (ta, tb) = primals, tangents
        total = None if ta is None else ta * shifted(m, outs[0], attrs["axis"], 1, 0, attrs["reverse"])
        total = m.add_any(total, tb)
        return [None if total is None else m.recurrence(a, total, **attrs)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        """db[i] = ct[i] + a[i+1] * db[i+1]; da[i] = db[i] * y[i-1]."""
        (a, _), (ct,), axis, back = primals, cts, attrs["axis"], not attrs["reverse"]
        if ct is None:
            return [None, None]
        following = shifted(m, m.conjugated(a), axis, 1, 0, back)
        db = m.recurrence(following, ct, axis=axis, reverse=back)
        return [db * m.conjugated(shifted(m, outs[0], axis, 1, 0, attrs["reverse"])), db]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        wide = [x if flag else m.broadcast(x, (size, *x.shape)) for x, flag in zip(args, batched, strict=True)]
        return m.emit(self, wide, {**attrs, "axis": attrs["axis"] + 1}), [True]


recurrence = Recurrence("recurrence", ("axis", "reverse"))


def shifted(m: OpBuilder, x: Any, axis: int, by: int, fill: Any, reverse: bool) -> Any:
    """`x[i - by]` at position i along an axis (`x[i + by]` if `reverse`), `fill` where there is none."""
    shape = tuple(x.shape)
    n, none = shape[axis], (0,) * len(shape)
    by = min(by, n)
    start, stop, pad = list(none), list(shape), list(none)
    start[axis], stop[axis], pad[axis] = (by, n, by) if reverse else (0, n - by, by)
    kept = m.slice(x, start=tuple(start), stop=tuple(stop), strides=(1,) * len(shape))
    value = m.scalar(fill, x.dtype)
    return m.pad(kept, value, low=none, high=tuple(pad)) if reverse else m.pad(kept, value, low=tuple(pad), high=none)
