"""First-order linear recurrences, by primitives alone: `y[i] = a[i] * y[i-1] + b[i]` along an axis.

The derivatives of cumprod, logcumsumexp and of products at equal indices are such recurrences. Written as one they are
exact where factors are zero, can be differentiated any number of times and take memory in proportion to the operands,
where a table of all pairs of elements would take its square.
"""

from __future__ import annotations

from typing import Any

from .record import OpBuilder


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


def recurrence(m: OpBuilder, a: Any, b: Any, axis: int, reverse: bool) -> Any:
    """`y[i] = a[i] * y[i-1] + b[i]` with `y[-1] = 0`; from the end, with `y[i+1]`, if `reverse`.

    Each step doubles how far back an element sees: after it, `y` is the sum of `2 * reach` terms and `a` the product of
    as many factors. O(n log n) operations, O(n) memory at a time.
    """
    n, reach = a.shape[axis], 1
    while reach < n:
        b = b + a * shifted(m, b, axis, reach, 0, reverse)
        if 2 * reach < n:
            a = a * shifted(m, a, axis, reach, 0, reverse)
        reach *= 2
    return b
