"""Attention, softmax(scale q k^T + mask) v, and its gradient: composites for which the CPU has a streaming kernel.

A kernel never holds the scores, T x S of them; it keeps the largest score of each row and the sum of its exponentials,
from which the gradient computes them again. `decompose` says in plain operations what both compute: the reference,
forward mode, second derivatives and targets without the kernel use it.

Shapes: q (B, H, T, D), k (B, G, S, D), v (B, G, S, E) with H a multiple of G: query heads share key heads in groups.
`mask` (bool: which scores count; float: what is added to them) has four axes of the full length or 1 and `sinks`, one
more logit per row whose value is 0, has shape (B or 1, H or 1). There is no mask where it is the constant True, and no
sinks where they are the constant -inf. `causal` hides key s from query t where s > t + S - T. A hidden score is
`fill`. With `swapped` the results that are shaped like q, k and v come as (B, T, H, D).

float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxir.runtime.dtypes import Dtype, bool_, float32, int32
from mlxir.runtime.errors import ShapeError

from .kinds import Composite
from .record import Aval, OpBuilder, Shape

HIDDEN = -6e4
"""A `fill` this low gives exp(fill - top) = 0 beside any score that is not hidden: such keys need not be looked at."""


def work_dtype(dtype: Dtype) -> Dtype:
    """What scores and sums are computed in."""
    return float32 if dtype.is_float and dtype.size == 2 else dtype


def _swapped(shape: Shape) -> Shape:
    return (shape[0], shape[2], shape[1], shape[3])


def _check(name: str, q: Aval, k: Aval, v: Aval, mask: Aval) -> Shape:
    """The shape of the scores. Raises ShapeError and ValueError for operands that do not fit."""
    fits = q.ndim == k.ndim == v.ndim == mask.ndim == 4
    fits = fits and q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3] and q.shape[3] == k.shape[3]
    if not fits or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ShapeError(f"[{name}] operands {q}, {k} and {v} do not fit")
    scores = (*q.shape[:3], k.shape[2])
    if any(n not in (1, full) for n, full in zip(mask.shape, scores, strict=True)):
        raise ShapeError(f"[{name}] mask {mask} does not broadcast to {scores}")
    if not q.dtype.is_float or q.dtype is not k.dtype or q.dtype is not v.dtype:
        raise ValueError(f"[{name}] operands must have one floating dtype, got {q}, {k} and {v}")
    if mask.dtype is not bool_ and not mask.dtype.is_float:
        raise ValueError(f"[{name}] mask must be bool or floating, got {mask}")
    return scores


def _results(q: Aval, k: Aval, v: Aval, mask: Aval, sinks: Aval, swapped: bool, **_: Any) -> tuple[Aval, ...]:
    scores = _check("attention", q, k, v, mask)
    if sinks.ndim != 2 or any(n not in (1, full) for n, full in zip(sinks.shape, scores, strict=False)):
        raise ShapeError(f"[attention] sinks {sinks} do not broadcast to {scores[:2]}")
    out, rows = (*scores[:3], v.shape[3]), Aval(scores[:3], work_dtype(q.dtype))
    return Aval(_swapped(out) if swapped else out, q.dtype), rows, rows


def _grad_results(
    q: Aval, k: Aval, v: Aval, mask: Aval, top: Aval, total: Aval, delta: Aval, ct: Aval, swapped: bool, **_: Any
) -> tuple[Aval, ...]:
    scores = _check("attention_grad", q, k, v, mask)
    rows = Aval(scores[:3], work_dtype(q.dtype))
    if (top, total, delta) != (rows,) * 3 or ct != Aval((*scores[:3], v.shape[3]), q.dtype):
        raise ShapeError(f"[attention_grad] {top}, {total}, {delta} and {ct} do not fit scores of shape {scores}")
    return tuple(Aval(_swapped(a.shape), a.dtype) if swapped else a for a in (q, k, v))


# -- the formulas ----------------------------------------------------------------------------------------------------
def _split(m: OpBuilder, x: Any, groups: int) -> Any:
    """(B, H, ...) as (B, G, H / G, ...), where query heads share key heads."""
    batch, heads, *rest = x.shape
    return x if heads == groups else m.reshaped(x, (batch, groups, heads // groups, *rest))


def _shared(m: OpBuilder, x: Any, heads: int) -> Any:
    """Keys or values beside split queries."""
    return x if x.shape[1] == heads else m.expanded(x, [2])


def _joined(m: OpBuilder, x: Any) -> Any:
    """The inverse of _split."""
    return x if len(x.shape) == 4 else m.reshaped(x, (x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:]))


def _added(m: OpBuilder, x: Any) -> Any:
    """What query heads give their key head."""
    return m.sum(x, axes=(2,)) if len(x.shape) == 5 else x


def _times(m: OpBuilder, a: Any, b: Any, ta: bool = False, tb: bool = False) -> Any:
    return m.matmul(a, b, ta=ta, tb=tb)


def _visible(m: OpBuilder, mask: Any, steps: int, length: int, causal: bool) -> Any:
    """Which scores count, as something that broadcasts to them; None: all."""
    found = mask if mask.dtype is bool_ else None
    if causal:
        first = 0 if steps == length else length - steps  # a number, where the lengths have names but are equal
        row = m.reshaped(m.arange(start=first, step=1, length=steps, dtype=int32), (steps, 1))
        below = m.greater_equal(row, m.arange(start=0, step=1, length=length, dtype=int32))
        found = below if found is None else m.logical_and(found, below)
    return found


def _scores(m: OpBuilder, q: Any, k: Any, mask: Any, scale: float, causal: bool, fill: float) -> Any:
    """The masked scores (B, H, T, S) of operands in the work dtype."""
    heads, groups = q.shape[1], k.shape[1]
    s = _joined(m, _times(m, _split(m, q * scale, groups), _shared(m, k, heads), tb=True))
    if mask.dtype is not bool_:
        s = s + m.cast(mask, s.dtype)
    visible = _visible(m, mask, s.shape[2], s.shape[3], causal)
    return s if visible is None else m.select(visible, s, m.scalar(fill, s.dtype))


def _weighted(m: OpBuilder, p: Any, v: Any) -> Any:
    """p @ v."""
    heads, groups = p.shape[1], v.shape[1]
    return _joined(m, _times(m, _split(m, p, groups), _shared(m, v, heads)))


def _attention(m: OpBuilder, q: Any, k: Any, v: Any, mask: Any, sinks: Any, scale: float, causal: bool, fill: float,
               swapped: bool) -> list:  # fmt: skip
    dtype, wide = q.dtype, work_dtype(q.dtype)
    q, k, v, sinks = (m.cast(x, wide) for x in (q, k, v, sinks))
    s, sinks = _scores(m, q, k, mask, scale, causal, fill), m.broadcast(sinks, tuple(q.shape[:2]))
    sinks = m.broadcast(m.expanded(sinks, [2]), tuple(s.shape[:3]))
    top = m.maximum(m.max(s, axes=(3,)), sinks)
    e = m.exp(s - m.expanded(top, [3]))
    total = m.sum(e, axes=(3,)) + m.exp(sinks - top)
    out = m.cast(_weighted(m, e / m.expanded(total, [3]), v), dtype)
    return [m.permuted(out, (0, 2, 1, 3)) if swapped else out, top, total]


def _attention_grad(m: OpBuilder, q: Any, k: Any, v: Any, mask: Any, top: Any, total: Any, delta: Any, ct: Any,
                    scale: float, causal: bool, fill: float, swapped: bool) -> list:  # fmt: skip
    dtype, wide = q.dtype, work_dtype(q.dtype)
    q, k, v, ct = (m.cast(x, wide) for x in (q, k, v, ct))
    p = m.exp(_scores(m, q, k, mask, scale, causal, fill) - m.expanded(top, [3])) / m.expanded(total, [3])
    ds = p * (_products(m, ct, v) - m.expanded(delta, [3]))
    grads = [*_score_gradients(m, ds, q, k, mask, scale, causal), _transposed_weights(m, p, ct, v.shape[1])]
    grads = [m.cast(g, dtype) for g in grads]
    return [m.permuted(g, (0, 2, 1, 3)) for g in grads] if swapped else grads


def _products(m: OpBuilder, ct: Any, v: Any) -> Any:
    """ct @ v^T: the cotangent of the weights."""
    heads, groups = ct.shape[1], v.shape[1]
    return _joined(m, _times(m, _split(m, ct, groups), _shared(m, v, heads), tb=True))


def _transposed_weights(m: OpBuilder, p: Any, x: Any, groups: int) -> Any:
    """p^T @ x, summed over the query heads of a key head."""
    return _added(m, _times(m, _split(m, p, groups), _split(m, x, groups), ta=True))


def _hidden(m: OpBuilder, ds: Any, mask: Any, causal: bool) -> Any:
    """The cotangent of the scores before they were masked."""
    visible = _visible(m, mask, ds.shape[2], ds.shape[3], causal)
    return ds if visible is None else m.select(visible, ds, m.scalar(0, ds.dtype))


def _score_gradients(m: OpBuilder, ds: Any, q: Any, k: Any, mask: Any, scale: float, causal: bool) -> list:
    """The cotangents of q and k from that of the masked scores."""
    ds = _hidden(m, ds, mask, causal)
    return [_weighted(m, ds, k) * scale, _transposed_weights(m, ds, q * scale, k.shape[1])]


# -- the records -----------------------------------------------------------------------------------------------------
class _Batched(Composite):
    """A composite whose operands all begin with the batch axis, of which that of some may be 1."""

    lowering = "kernel"
    direct = (1, 2)
    spread: tuple[int, ...] = ()  # operands that may have a batch axis of length 1

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        """The examples become more of the batch."""
        batch = args[0].shape[batched[0]]
        merged = []
        for i, (x, is_batched) in enumerate(zip(args, batched, strict=True)):
            shape = tuple(x.shape[is_batched:])
            if i in self.spread and not is_batched and shape[0] == 1:
                merged.append(x)
                continue
            x = x if is_batched else m.expanded(x, [0])
            x = m.broadcast(x, (size, batch, *shape[1:]))
            merged.append(m.reshaped(x, (size * batch, *shape[1:])))
        outs = m.emit(self, merged, attrs)
        return [m.reshaped(o, (size, batch, *o.shape[1:])) for o in outs], [True]


def _products_flops(count: int, rows: Aval, operands: Sequence[Aval], attrs: dict) -> int:
    """Of `count` products between the scores of `rows` and q or its like; a causal one needs half of the square."""
    return count * 2 * rows.size * operands[1].shape[2] * operands[0].shape[-1] // (2 if attrs["causal"] else 1)


class Attention(_Batched):
    """The weighted values, and per row (B, H, T) the largest score and the sum of exp(score - largest)."""

    operands = ("q", "k", "v", "mask", "sinks")
    outputs = ("out", "top", "total")
    spread = (3, 4)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return _products_flops(2, results[1], operands, attrs)

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        q, k, v, mask, sinks = primals
        (ct, dtop, dtotal), (out, top, total) = cts, outs
        if dtop is not None or dtotal is not None or (mask.active and mask.dtype is not bool_):
            return self._materialised(m, primals, cts, outs, attrs)
        if attrs["swapped"]:
            ct, out = (m.permuted(x, (0, 2, 1, 3)) for x in (ct, out))
        delta = m.sum(m.cast(ct, top.dtype) * m.cast(out, top.dtype), axes=(3,))
        grads: list[Any] = [None] * 3
        if q.active or k.active or v.active:
            grads = m.attention_grad(q, k, v, mask, top, total, delta, ct, **{**attrs, "swapped": False})
        return [*grads, None, self._sinks_gradient(m, sinks, top, total, -delta)]

    def _sinks_gradient(self, m: OpBuilder, sinks: Any, top: Any, total: Any, weight: Any) -> Any:
        """`weight` is the cotangent of a sink's share of the sum, times the sum."""
        if not sinks.active:
            return None
        wide = m.expanded(m.broadcast(m.cast(sinks, top.dtype), tuple(top.shape[:2])), [2])
        share = m.exp(m.broadcast(wide, tuple(top.shape)) - top) / total
        return m.cast(m.unbroadcast(m.sum(share * weight, axes=(2,)), tuple(sinks.shape)), sinks.dtype)

    def _materialised(self, m: OpBuilder, primals: list, cts: list, outs: list, attrs: dict) -> list:
        """Where the scores' own cotangent is needed: the mask's gradient is as large as they are, and `top` and `total`
        have cotangents only in derivatives of derivatives.
        """
        mask, sinks = primals[3], primals[4]
        (ct, dtop, dtotal), (out, top, total) = cts, outs
        scale, causal, fill = attrs["scale"], attrs["causal"], attrs["fill"]
        wide = top.dtype
        q, k, v = (m.cast(x, wide) for x in primals[:3])
        s = _scores(m, q, k, mask, scale, causal, fill)
        wide_sinks = m.expanded(m.broadcast(m.cast(sinks, wide), tuple(top.shape[:2])), [2])
        wide_sinks = m.broadcast(wide_sinks, tuple(top.shape))
        # Not `top` and `total`: a kernel rounds its scores otherwise, so that none of these need equal its largest.
        largest = m.maximum(m.max(s, axes=(3,)), wide_sinks)
        e = m.exp(s - m.expanded(largest, [3]))
        p = e / m.expanded(m.sum(e, axes=(3,)) + m.exp(wide_sinks - largest), [3])
        row, dv, ds = m.zeros(top), None, m.zeros(p)
        if ct is not None:
            ct, out = (m.permuted(x, (0, 2, 1, 3)) if attrs["swapped"] else x for x in (ct, out))
            ct = m.cast(ct, wide)
            row = -m.sum(ct * m.cast(out, wide), axes=(3,))
            dv, ds = _transposed_weights(m, p, ct, v.shape[1]), p * _products(m, ct, v)
        if dtotal is not None:
            row = row + dtotal * total
        ds = ds + p * m.expanded(row, [3])
        dsinks = None if not sinks.active else self._sinks_gradient(m, sinks, top, total, row)
        if dtop is not None or dtotal is not None:
            # The largest score moves `top` and with it every exponential.
            moved = m.zeros(top) if dtop is None else dtop
            moved = moved if dtotal is None else moved - dtotal * total
            hit = m.cast(m.equal(s, m.expanded(largest, [3])), wide)
            sink_hit = m.cast(m.equal(wide_sinks, largest), wide)
            moved = moved / (m.sum(hit, axes=(3,)) + sink_hit)
            ds = ds + hit * m.expanded(moved, [3])
            if dsinks is not None:
                at_hits = m.unbroadcast(m.sum(sink_hit * moved, axes=(2,)), tuple(sinks.shape))
                dsinks = dsinks + m.cast(at_hits, sinks.dtype)
        dmask = None
        if mask.active and mask.dtype is not bool_:
            dmask = m.cast(m.unbroadcast(_hidden(m, ds, mask, causal), tuple(mask.shape)), mask.dtype)
        dq, dk = _score_gradients(m, ds, q, k, mask, scale, causal)
        back = [None if g is None else m.cast(g, x.dtype) for g, x in zip((dq, dk, dv), primals, strict=False)]
        return [*back, dmask, dsinks]


class AttentionGrad(_Batched):
    """The cotangents of q, k and v from that of the output, `ct`; `delta` is sum(ct * out) of each row.

    p = exp(scores - top) / total;   dv = p^T ct;   ds = p (ct v^T - delta);   dq = scale ds k;   dk = scale ds^T q
    """

    operands = ("q", "k", "v", "mask", "top", "total", "delta", "ct")
    outputs = ("dq", "dk", "dv")
    spread = (3,)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return _products_flops(5, operands[4], operands, attrs)


_ATTRS = ("scale", "causal", "fill", "swapped")
attention = Attention("attention", _attention, _results, _ATTRS)
attention_grad = AttentionGrad("attention_grad", _attention_grad, _grad_results, _ATTRS)
