"""Lowers `mx.attention`: softmax(scale q k^T + mask) v without the scores in memory.

    scf.parallel (%block)                                     example x key head x block of rows
      q block, transposed, to scratch
      scf.for (%keys) over the keys that the rows see         KEYS at a time
        scores[key][row] = k q^T                              register tiles
        new top; scores = exp(scores - top); total; out[row][feature] = out * exp(old top - top) + scores^T v
      out / total to the result

Row by row, `top` is the largest score so far (a sink is one, too), and `total` and `out` are sums relative to it.
Blocks of keys that a causal mask hides from a whole block of rows are never computed.
"""

from __future__ import annotations

import math

from mlxir.compiler.lower.attention_rows import lower_few_rows
from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.index import Var, linear
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.streaming import KEYS, Streaming
from mlxir.compiler.lower.tiles import SPARE
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir


def lower_attention(function: Function, body: ir.Block) -> Lowered:
    """Few rows (a token that is decoded) go along the features, others along the rows."""
    with context, ir.Location.unknown():
        kernel = _Attention(function, body)
        if 2 * kernel.rows < kernel.tiles.lanes:
            return lower_few_rows(kernel)
        step = kernel.add("", (), range(kernel.inputs, len(kernel.avals)), kernel.emit)
        return Lowered([step], [])


class _Attention(Streaming):
    def emit(self, e: VectorEmitter) -> tuple[int, float]:
        turn = Var("turn", self.blocks)
        self.query, self.query_rows = self.matrix(e, self.width, self.block), self.matrix(e, self.block, self.width)
        self.keys, self.values = self.matrix(e, KEYS + SPARE, self.width), self.matrix(e, KEYS, self.value_width)
        self.weights = self.matrix(e, KEYS + SPARE, self.block)
        self.out = self.matrix(e, self.block, self.value_width)
        self.top, self.total, self.shift, self.decay = (self.vector(e) for _ in range(4))

        def block() -> None:
            e.variables[self.number] = self._in_turn(e, e.variables[turn])
            self._block(e)

        extent = over(e, [self.unit, turn], block)
        seen = self.length / 2 if self.causal else self.length
        return extent, float(self.block * seen * (self.width + self.value_width + 12))

    def _in_turn(self, e: VectorEmitter, turn: ir.Value) -> ir.Value:
        """Blocks from both ends by turns where later ones see more keys, so that threads get equal shares."""
        if not self.causal or self.blocks < 3:
            return turn
        two = e.constant_index(2)
        half, odd = (e.k.op(f"arith.{name}", [turn, two], INDEX) for name in ("divui", "remui"))
        span = e.minus(e.constant_index(self.blocks - 1), e.times(half, 2))
        return e.plus(half, e.k.op("arith.muli", [odd, span], INDEX))

    def _block(self, e: VectorEmitter) -> None:
        first = e.times(e.variables[self.number], self.block)
        count = e.rest(self.rows, first, self.block)
        self.stage_rows(e, self.q, self.feature, count, self.query_rows, self.scale)
        self.tiles.transpose(e, self.query_rows, self.block, self.width, self.query)
        self._begin(e, count)
        self.last = self.limits(e)
        self.over_keys(e, self.sight(e), lambda first, count: self._keys(e, first, count))
        self._finish(e, count)

    def _begin(self, e: VectorEmitter, count: ir.Value) -> None:
        """Nothing summed yet: a sink is the only score so far."""
        k, infinite = e.k, e.k.const(-math.inf, self.dtype)

        def nothing(at: ir.Value) -> None:
            k.store(infinite, self.top, at)
            k.store(k.const(0, self.dtype), self.total, at)

        self.each_row(e, nothing)
        self.clear(e, self.out.buffer, e.constant_index(0), self.block * self.out.stride)
        (sinks,) = self.others
        node = self.broadcast(sinks, (self.example, self.head))
        if node.kind == "constant" and node.data[0] == -math.inf:
            return

        def sink() -> None:
            value, row = self.value(e, node), e.variables[self.row]
            k.store(value, self.top, row)
            k.store(k.select(value == infinite, k.const(0, self.dtype), k.const(1, self.dtype)), self.total, row)

        e.lanes(self.row, count, sink)

    def _keys(self, e: VectorEmitter, first: ir.Value, count: ir.Value) -> None:
        self.stage_keys(e, self.k, self.feature, first, count, self.keys)
        self.stage_keys(e, self.v, self.value_feature, first, count, self.values)
        self.tiles.multiply(e, count, self.block, self.width, self.keys, self.query, self.weights, whole=True)
        self._softmax(e, first, count)
        by_row = self.weights.transposed()
        self.tiles.multiply(e, self.block, self.value_width, count, by_row, self.values, self.out, self.decay)

    def _softmax(self, e: VectorEmitter, first: ir.Value, count: ir.Value) -> None:
        k, weights = e.k, self.weights.buffer

        def keep_largest(at: ir.Value) -> None:
            x, row = self.load(e, weights, at), e.variables[self.row]
            if not self.plain:
                x, _ = self.masked(e, x, self.last)
                k.store(x, weights, at)
            k.store(k.max(self.load(e, self.shift, row), x), self.shift, row)

        def move(at: ir.Value) -> None:
            """From the old largest score to the new one; where all are -inf yet, differences from 0 stay defined."""
            old, new = self.load(e, self.top, at), self.load(e, self.shift, at)
            safe = k.select(new == -math.inf, k.const(0, self.dtype), new)
            decay = k.exp(old - safe)
            for value, target in ((new, self.top), (safe, self.shift), (decay, self.decay)):
                k.store(value, target, at)
            k.store(self.load(e, self.total, at) * decay, self.total, at)

        def weigh(at: ir.Value) -> None:
            row = e.variables[self.row]
            weight = k.exp(self.load(e, weights, at) - self.load(e, self.shift, row))
            k.store(weight, weights, at)
            k.store(self.load(e, self.total, row) + weight, self.total, row)

        self.each_row(e, lambda at: k.store(self.load(e, self.top, at), self.shift, at))
        self.scores(e, first, count, keep_largest)
        self.each_row(e, move)
        self.scores(e, first, count, weigh)

    def _finish(self, e: VectorEmitter, count: ir.Value) -> None:
        k = e.k
        out, top, total = e.buffers[self.inputs :]
        column, position = self.value_feature, self.result_position(0, self.head, self.step, self.value_feature)
        row_position = linear((self.example, self.head, self.step), self.results[1].shape)

        def row() -> None:
            at = e.variables[self.row]
            inverse = 1.0 / self.load(e, self.total, at)
            start = e.times(at, self.out.stride)

            def element() -> None:
                value = self.load(e, self.out.buffer, e.plus(start, e.variables[column])) * inverse
                k.store(Reg(value.value, self.q.dtype, k), out, e.index(position))

            e.lanes(column, self.value_width, element)

        def statistics() -> None:
            at, to = e.variables[self.row], e.index(row_position)
            k.store(self.load(e, self.top, at), top, to)
            k.store(self.load(e, self.total, at), total, to)

        e.repeat(self.row, count, row)
        e.lanes(self.row, count, statistics)
