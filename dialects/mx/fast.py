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
        return m.emit(self, args, {**attrs, "axes": tuple(a + 1 for a in attrs["axes"])}), [True]


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


def _deviations(m: OpBuilder, x: Any, each: Any, eps: Any, axes: tuple[int, ...], centred: bool) -> tuple[Any, Any]:
    """x less its mean, and what that is multiplied by."""
    if centred:
        x = x - m.expanded(m.sum(x, axes=axes), axes) * each
    return x, m.rsqrt(m.expanded(m.sum(m.square(x), axes=axes), axes) * each + eps)


def _normalize(m: OpBuilder, *operands: Any, **attrs: Any) -> Any:
    deviations, scale = _deviations(m, *operands, **attrs)
    return deviations * scale


def _normalized(x: Aval, each: Aval, eps: Aval, **attrs: Any) -> Aval:
    if x.dtype.kind != "f" or not x.dtype is each.dtype is eps.dtype:
        raise ValueError(f"[normalize] operands must have one floating dtype, got {x}, {each} and {eps}")
    return x


class Normalize(Composite):
    """x (less its mean, where `centred`) / sqrt(its mean square + eps) over `axes`.

    `each`, 1 / the number of elements, and `eps` are constants; numbers that may be symbolic are operands. A derived
    gradient would pass through the mean square, then through the mean: here the sums over the tangent belong to the
    passes over a row that the sums over x need anyway.
    """

    operands = ("x", "each", "eps")

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (x, each, eps), t, axes = primals, tangents[0], attrs["axes"]
        if t is None:
            return [None]
        deviations, scale = _deviations(m, x, each, eps, **attrs)
        along = m.expanded(m.sum(t * deviations, axes=axes), axes) * each
        if attrs["centred"]:
            t = t - m.expanded(m.sum(t, axes=axes), axes) * each
        return [(t - deviations * (along * scale * scale)) * scale]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        return [*self.jvp(m, primals, cts, outs, **attrs), None, None]  # the Jacobian is symmetric

    vmap = Softmax.vmap


normalize = Normalize("normalize", _normalize, _normalized, ("axes", "centred"))
softmax = Softmax("softmax", _softmax, lambda x, axes: x, ("axes",))
logsumexp = LogSumExp(
    "logsumexp", _logsumexp,
    lambda x, axes: Aval(tuple(n for i, n in enumerate(x.shape) if i not in axes), x.dtype), ("axes",),
)  # fmt: skip
