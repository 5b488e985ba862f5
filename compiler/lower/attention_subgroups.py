"""Attention on a GPU, a threadgroup per query: softmax(scale q k^T + mask) v without the scores in memory.

    scf.parallel (%query)                                  example x head x step
      scf.parallel (%d) { query[d] = q * scale }           scratch
      scf.for (%block) iter_args(top, total)               KEYS at a time
        largest = scf.parallel (%key) { scores[key] = query . k[key], masked }       reduced to the largest
        sum = scf.parallel (%key) { scores[key] = exp(scores[key] - top) }           reduced to the sum
        scf.parallel (%e) { sums[e] = sums[e] * exp(old top - top) + scores . v[:, e] }
      out = sums / total; top; total

That is the form for few queries (a token that is decoded), whose keys are read once. More of them are taken by tiles
(attention_tiles.py); where those have no room for the features, by products (gemm_subgroups.py) with a softmax on their
scores, unless these would fill the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

from mlxir.compiler.lower import attention_tiles_grad
from mlxir.compiler.lower.attention_tiles import fits, lower_attention_tiles
from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.index import Condition, Index, Var, linear
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel
from mlxir.dialects.mlir import Function, Op, Tensor, context, ir
from mlxir.dialects.mx.attention import work_dtype
from mlxir.dialects.mx.reduce import max_, sum_
from mlxir.dialects.mx.shape import broadcast_index
from mlxir.runtime.dtypes import bool_

KEYS = 256  # scores that a threadgroup holds at a time
FEW_STEPS = 8
MOST_SCORES = 1 << 24  # that are held in memory
WIDEST = 512  # features


def streams(op: Op) -> bool:
    """Whether an attention operation, or the gradient of one, has a kernel that holds no scores in memory."""
    if op.record.name == "attention_grad":
        return attention_tiles_grad.fits(op)
    q, k, v = op.operands[:3]
    if op.record.name != "attention" or 0 in (*q.shape, *k.shape, *v.shape):
        return False
    many = prod(q.shape[:3]) * k.shape[2] > MOST_SCORES
    by_query = (q.shape[2] <= FEW_STEPS or many) and max(q.shape[3], v.shape[3]) <= WIDEST
    return by_query or fits(op)


def lower_attention_subgroups(function: Function, body: ir.Block) -> Lowered:
    """Lower a kernel with one attention into the module whose body block is given, for a GPU."""
    with context, ir.Location.unknown():
        op = next(op for op in function.read()[0] if op.record.name == "attention")
        if op.operands[0].shape[2] > FEW_STEPS and fits(op):
            return lower_attention_tiles(function, body)
        return _Attention(function, body).finish()


class _Attention(OwnKernel):
    def __init__(self, function: Function, body: ir.Block):
        super().__init__(function, body)
        self.q, self.k, self.v, self.mask, self.sinks = self.op.operands
        (batch, heads, self.steps, width), (_, groups, self.length, _) = self.q.shape, self.k.shape
        self.dtype = work_dtype(self.q.dtype)
        self.example, self.head, self.step = Var("example", batch), Var("head", heads), Var("step", self.steps)
        self.key_head = Index.of(self.head) // (heads // groups)
        self.d, self.e = Var("d", width), Var("e", self.v.shape[3])
        self.block, self.local = Var("block", -(-self.length // KEYS)), Var("key", KEYS)
        self.add("", range(self.out, self.out + 3), self._emit)

    def _emit(self, e: OwnEmitter) -> tuple[int, float]:
        self.query = e.scratch(self.d.extent, self.dtype)[0]
        self.scores = e.scratch(KEYS, self.dtype)[0]
        self.sums = e.scratch(self.e.extent, self.dtype)[0]
        extent = over(e, [self.example, self.head, self.step], lambda: self._row(e))
        return extent, float(self.length * (self.d.extent + self.e.extent + 12))

    # -- operands -----------------------------------------------------------------------------------------------------
    def _read(self, e: OwnEmitter, x: Tensor, *at: Index | Var) -> Reg:
        """An element of `x`, some of whose axes may have length 1, in the work dtype."""
        idx = broadcast_index(x.aval, tuple(Index.of(i) for i in at))
        return e.k.cast(self.value(e, x, idx), self.dtype)

    def _key(self, local: Var) -> Index:
        return (Index.of(self.block) * KEYS if self.block.extent > 1 else Index.of(0)) + local

    def _score(self, e: OwnEmitter) -> Reg:
        """Of the current key, masked."""
        key, row = self._key(self.local), (self.example, self.head, self.step)

        def add(total: list[Reg]) -> list[Reg]:
            k = self._read(e, self.k, self.example, self.key_head, key, self.d)
            return [e.k.fma(e.read(self.query, self.dtype, self.d), k, total[0])]

        (score,) = e.serial(self.d, e.constant_index(self.d.extent), [e.k.const(0, self.dtype)], add)
        if self.mask.dtype is not bool_:
            score = score + self._read(e, self.mask, *row, key)
        for visible in self._visible(e, row, key):
            score = e.k.select(visible, score, e.k.const(self.op.attrs["fill"], self.dtype))
        return score

    def _visible(self, e: OwnEmitter, row: Sequence[Var], key: Index) -> list[Reg]:
        """What must hold for the score to count."""
        tests = []
        if self.mask.dtype is bool_:
            at = broadcast_index(self.mask.aval, tuple(Index.of(i) for i in (*row, key)))
            node = self.pull.at(self.mask, tuple(Index.of(i) for i in at))
            if not (node.kind == "constant" and node.data[0]):
                tests.append(e.value(node))
        if self.op.attrs["causal"]:
            within = Condition.in_range(key - self.step, -self.steps, self.length - self.steps + 1)
            if not within.always:
                tests.append(e.condition(within))
        return tests

    # -- a row --------------------------------------------------------------------------------------------------------
    def _row(self, e: OwnEmitter) -> None:
        k, zero = e.k, e.k.const(0, self.dtype)

        def scale() -> None:
            q = self._read(e, self.q, self.example, self.head, self.step, self.d)
            e.write(q * self.op.attrs["scale"], self.query, self.d)

        e.lanes(self.d, self.d.extent, scale)
        e.lanes(self.e, self.e.extent, lambda: e.write(zero, self.sums, self.e))
        sink = self._read(e, self.sinks, self.example, self.head)
        weight = k.select(sink == -math.inf, zero, k.const(1, self.dtype))
        blocks = e.constant_index(self.block.extent)
        top, total = e.serial(self.block, blocks, [sink, weight], lambda carried: self._keys(e, *carried))
        out, order = e.buffers[self.out], (self.example, self.head, self.step)
        swapped = (self.example, self.step, self.head) if self.op.attrs["swapped"] else order
        place = linear(tuple(Index.of(v) for v in (*swapped, self.e)), self.avals[self.out].shape)

        def result() -> None:
            value = e.read(self.sums, self.dtype, self.e) / total
            e.write(Reg(value.value, self.q.dtype, k), out, place)

        e.lanes(self.e, self.e.extent, result)
        row = linear(tuple(Index.of(v) for v in order), self.q.shape[:3])
        e.write(top, e.buffers[self.out + 1], row)
        e.write(total, e.buffers[self.out + 2], row)

    def _keys(self, e: OwnEmitter, top: Reg, total: Reg) -> list[Reg]:
        """The next keys: the largest score so far, and the sum of exponentials relative to it."""
        k, again = e.k, Var("again", KEYS)
        count = e.rest(self.length, e.times(e.variables[self.block], KEYS), KEYS)
        if self.length % KEYS == 0 or self.block.extent == 1:
            count = e.constant_index(min(self.length, KEYS))

        def score() -> list[Reg]:
            value = self._score(e)
            e.write(value, self.scores, self.local)
            return [value]

        (largest,) = e.folded(max_, self.local, count, self.dtype, score)
        new = k.maximum(top, largest)
        safe = k.select(new == -math.inf, k.const(0, self.dtype), new)  # where all are -inf yet
        decay = k.exp(top - safe)

        def weigh() -> list[Reg]:
            value = k.exp(e.read(self.scores, self.dtype, self.local) - safe)
            e.write(value, self.scores, self.local)
            return [value]

        (part,) = e.folded(sum_, self.local, count, self.dtype, weigh)

        def accumulate() -> None:
            def add(carried: list[Reg]) -> list[Reg]:
                v = self._read(e, self.v, self.example, self.key_head, self._key(again), self.e)
                return [k.fma(e.read(self.scores, self.dtype, again), v, carried[0])]

            start = e.read(self.sums, self.dtype, self.e) * decay
            (value,) = e.serial(again, count, [start], add)
            e.write(value, self.sums, self.e)

        e.lanes(self.e, self.e.extent, accumulate)
        return [new, total * decay + part]
