"""Attention that is written in parts becomes one operation, of which the scores need not exist in memory.

    %s = matmul %q, %kt    %x = add (multiply %s, 0.125), %mask    %p = softmax %x    %o = matmul %p, %v
    ->   %k = transpose %kt    %o = attention %q, %k, %v, %mask {scale = 0.125}

It runs on every function before the transforms, so that derivatives are those of `attention`, which stream, too. The
parts must have no other reader. The scores may be scaled by a constant, and masked by a sum or by a selection of a
constant.
"""

from __future__ import annotations

from math import inf, prod
from typing import NamedTuple

from mlxir.compiler.passes.simplify import remove_dead
from mlxir.dialects.mlir import Function, Module, MxBuilder, Op, Tensor
from mlxir.dialects.mx.record import Shape
from mlxir.runtime.dtypes import bool_


class _Parts(NamedTuple):
    """softmax(scale q @ k^T + bias) @ v; `bias` is bool where it selects between the scores and `fill`.

    `transposed`: k comes as (..., D, S).
    """

    q: Tensor
    k: Tensor
    transposed: bool
    v: Tensor
    scale: float
    bias: Tensor | None
    fill: float


class _Fold(NamedTuple):
    """How leading axes become batch, heads and key heads."""

    batch: int
    heads: int
    groups: int
    mask: Shape  # its two leading axes


def recognise_attention(module: Module) -> None:
    for function in list(module.functions()):
        pattern = _Pattern(function)
        found = False
        for op in pattern.ops:
            parts = pattern.match(op)
            fold = None if parts is None else _fold(parts)
            if parts is not None and fold is not None:
                found = True
                out = _emit(function.builder_before(op.operation), parts, fold)
                op.operation.results[0].replace_all_uses_with(out.value)
        if found:
            remove_dead(function)


class _Pattern:
    """The operations of a function, read backwards from a product of weights and values."""

    def __init__(self, function: Function):
        self.ops, results = function.read()
        self.producer = {id(t): op for op in self.ops for t in op.results}
        self.uses: dict[int, int] = {id(t): 1 for t in results}
        for op in self.ops:
            for t in op.operands:
                self.uses[id(t)] = self.uses.get(id(t), 0) + 1

    def match(self, op: Op) -> _Parts | None:
        if op.record.name != "matmul" or op.attrs["ta"] or op.attrs["tb"]:
            return None
        weights, v = op.operands
        softmax = self._made_by(self._cast(weights), "softmax")
        if softmax is None or softmax.attrs["axes"] != (len(weights.shape) - 1,) or not v.dtype.is_float:
            return None
        scores, bias, fill = self._unmasked(self._cast(softmax.operands[0]))
        scores, scale = self._unscaled(self._cast(scores))
        product = self._made_by(self._cast(scores), "matmul")
        if product is None or product.attrs["ta"]:
            return None
        q, k = product.operands
        same = q.dtype is v.dtype and len(q.shape) == len(k.shape) == len(v.shape)
        return _Parts(q, k, not product.attrs["tb"], v, scale, bias, fill) if same else None

    def _made_by(self, t: Tensor, *names: str) -> Op | None:
        """What made `t`, if it is one of these operations and nothing else reads it."""
        op = self.producer.get(id(t))
        return op if op is not None and op.record.name in names and self.uses[id(t)] == 1 else None

    def _cast(self, t: Tensor) -> Tensor:
        """Through conversions between floats."""
        op = self._made_by(t, "astype")
        return self._cast(op.operands[0]) if op is not None and op.operands[0].dtype.is_float else t

    def _constant(self, t: Tensor) -> float | None:
        op = self.producer.get(id(t))
        while op is not None and op.record.name in ("reshape", "broadcast_to", "astype"):
            op = self.producer.get(id(op.operands[0]))
        return float(op.attrs["value"]) if op is not None and op.record.name == "full" else None

    def _unmasked(self, x: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """(scores, mask or what is added, fill)."""
        op = self._made_by(x, "select", "add")
        if op is None:
            return x, None, 0.0
        if op.record.name == "select":
            visible, scores, hidden = op.operands
            fill = self._constant(hidden)
            return (x, None, 0.0) if fill is None or scores.shape != x.shape else (scores, visible, fill)
        for scores, bias in (op.operands, op.operands[::-1]):
            inner, _ = self._unscaled(self._cast(scores))
            if scores.shape == x.shape and self._made_by(self._cast(inner), "matmul") is not None:
                return scores, bias, 0.0
        return x, None, 0.0

    def _unscaled(self, x: Tensor) -> tuple[Tensor, float]:
        op = self._made_by(x, "multiply", "divide")
        if op is None:
            return x, 1.0
        pairs = [op.operands, op.operands[::-1]] if op.record.name == "multiply" else [op.operands]
        for scores, factor in pairs:
            value = self._constant(factor)
            if value and scores.shape == x.shape:
                return scores, value if op.record.name == "multiply" else 1 / value
        return x, 1.0


def _fold(parts: _Parts) -> _Fold | None:
    """None where the leading axes fit no attention. q, k and v have the same ones, or queries share keys on the last.

    The mask has each axis in full or 1.
    """
    lead, keys = parts.q.shape[:-2], parts.k.shape[:-2]
    bias = () if parts.bias is None else parts.bias.shape
    if keys != parts.v.shape[:-2] or len(bias) > len(lead) + 2:
        return None
    mask = ((1,) * (len(lead) + 2 - len(bias)) + bias)[:-2]
    if keys == lead and len(lead) <= 2:
        batch, heads = (*lead, 1, 1)[:2]
        return _Fold(batch, heads, heads, (*mask, 1, 1)[:2])
    if keys == lead and (mask == lead or set(mask) == {1}):
        return _Fold(prod(lead), 1, 1, (prod(mask), 1))
    if len(lead) == 3 and keys == (*lead[:2], 1) and mask[1:] in ((1, 1), lead[1:]):
        return _Fold(lead[0], lead[1] * lead[2], lead[1], (mask[0], mask[1] * mask[2]))
    return None


def _emit(m: MxBuilder, parts: _Parts, fold: _Fold) -> Tensor:
    q, k, transposed, v, scale, bias, fill = parts
    (steps, width), (length, values) = q.shape[-2:], v.shape[-2:]
    rank = len(k.shape)
    if transposed:
        k = m.transpose(k, axes=(*range(rank - 2), rank - 1, rank - 2))
    if bias is None:
        mask = m.full(value=True, shape=(1, 1, 1, 1), dtype=bool_)
    else:
        mask = m.reshaped(bias, (*fold.mask, *((1, 1) + tuple(bias.shape))[-2:]))
    out, _, _ = m.attention(
        m.reshaped(q, (fold.batch, fold.heads, steps, width)),
        m.reshaped(k, (fold.batch, fold.groups, length, width)),
        m.reshaped(v, (fold.batch, fold.groups, length, values)),
        mask, m.full(value=-inf, shape=(1, 1), dtype=q.dtype),
        scale=scale, causal=False, fill=fill, swapped=False,
    )  # fmt: skip
    return m.reshaped(out, (*q.shape[:-1], values))
