"""Composites: named because users and the IR know them by name, and because their derivative is better written than
derived.
"""

from __future__ import annotations

from typing import Any

from .kinds import Composite
from .record import Aval, OpBuilder


def _softmax(m: OpBuilder, x: Any, axes: tuple[int, ...]) -> Any:
    top = m.stop_gradient(m.max(x, axes=axes))
    e = m.exp(x - m.expanded(top, axes))
    return e / m.expanded(m.sum(e, axes=axes), axes)


class Softmax(Composite):
    """exp(x - max) / sum over `axes`."""

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (t,), (out,), axes = tangents, outs, attrs["axes"]
        return [None if t is None else out * (t - m.expanded(m.sum(out * t, axes=axes), axes))]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return self.jvp(m, primals, cts, [m.conjugated(outs[0])], **attrs)  # the Jacobian is symmetric

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {"axes": tuple(a + 1 for a in attrs["axes"])}), [True]


def _logsumexp(m: OpBuilder, x: Any, axes: tuple[int, ...]) -> Any:
    top = m.stop_gradient(m.max(x, axes=axes))
    size = m.abs(top)
    infinite = m.equal(size, m.scalar(float("inf"), size.dtype))
    safe = m.select(infinite, m.zeros(top), top)  # so that inf - inf never arises
    return m.log(m.sum(m.exp(x - m.expanded(safe, axes)), axes=axes)) + safe


class LogSumExp(Composite):
    """log(sum(exp(x))) over `axes`, which are dropped."""

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (x,), (t,), axes = primals, tangents, attrs["axes"]
        return [None if t is None else m.sum(t * m.exp(x - m.expanded(outs[0], axes)), axes=axes)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (x,), (ct,), axes = primals, cts, attrs["axes"]
        if ct is None:
            return [None]
        return [m.expanded(ct, axes) * m.conjugated(m.exp(x - m.expanded(outs[0], axes)))]

    vmap = Softmax.vmap


softmax = Softmax("softmax", _softmax, lambda x, axes: x, ("axes",))
logsumexp = LogSumExp(
    "logsumexp", _logsumexp,
    lambda x, axes: Aval(tuple(n for i, n in enumerate(x.shape) if i not in axes), x.dtype), ("axes",),
)  # fmt: skip
