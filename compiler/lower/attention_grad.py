"""Lowers `mx.attention_grad`: the gradient of attention without the scores in memory.

    scf.parallel (%unit, %share)                              example x key head, shares of its blocks of rows
      scf.for (%block)
        scf.for (%keys) over the keys that the rows see       KEYS at a time
          weights[key][row] = exp(scale k q^T - top) / total;   slopes = v ct^T
          slopes = weights (slopes - delta)
          dv += weights ct    dk += slopes (scale q)            rows of the keys, in memory
          dq[row][feature] += slopes^T k                        in scratch
        scale dq to the result

Where there are few key heads to keep threads busy, the blocks of each are shared out; a share adds up its own dk and
dv, and a second step adds the shares. The number of shares depends on the shapes alone.
"""

from __future__ import annotations

import math

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.index import Index, Var, linear
from mlxir.compiler.lower.loops import Lowered, Step, over
from mlxir.compiler.lower.streaming import KEYS, Streaming
from mlxir.compiler.lower.tiles import SPARE, Matrix
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx import Aval

UNITS = 8  # so many pieces of work keep the threads busy


def lower_attention_grad(function: Function, body: ir.Block) -> Lowered:
    """One step, or two where the sums for keys and values are shared out or converted."""
    with context, ir.Location.unknown():
        return _AttentionGrad(function, body).lower()


class _AttentionGrad(Streaming):
    def lower(self) -> Lowered:
        self.shares = min(self.blocks, -(-UNITS // self.unit.extent))
        self.share = Var("share", self.shares)
        outputs = list(range(self.inputs, len(self.avals)))
        in_place = self.shares == 1 and self.q.dtype is self.dtype
        if in_place:
            return Lowered([self.add("", (), outputs, lambda e: self._emit(e, None))], [])
        parts = self.unit.extent * self.shares * self.length
        temporaries = [Aval((parts * n,), self.dtype) for n in (self.width, self.value_width)]
        numbers = [len(self.avals), len(self.avals) + 1]
        first = self.add("", temporaries, [outputs[0], *numbers], lambda e: self._emit(e, numbers))
        rest = [self._sum(temporaries, numbers[i], outputs[i + 1], i + 1) for i in range(2)]
        return Lowered([first, *rest], temporaries)

    # -- the main step ------------------------------------------------------------------------------------------------
    def _emit(self, e: VectorEmitter, temporaries: list[int] | None) -> tuple[int, float]:
        block, width, values = self.block, self.width, self.value_width
        # q and ct side by side, so that one loop transposes both
        self.by_row = self.matrix(e, block, self.padded(width) + values)
        self.by_feature = self.matrix(e, self.padded(width) + values, block)
        middle = e.constant_index(self.padded(width))
        self.ct_rows = self.by_row._replace(base=middle)
        self.ct = self.by_feature._replace(base=e.constant_index(self.padded(width) * self.by_feature.stride))
        self.keys, self.values = self.matrix(e, KEYS + SPARE, width), self.matrix(e, KEYS + SPARE, values)
        self.weights, self.slopes = self.matrix(e, KEYS + SPARE, block), self.matrix(e, KEYS + SPARE, block)
        self.dq = self.matrix(e, block, width)
        self.top, self.inverse, self.delta = (self.vector(e) for _ in range(3))
        extent = over(e, [self.unit, self.share], lambda: self._share(e, temporaries))
        seen = self.length / 2 if self.causal else self.length
        return extent, float(self.rows / self.shares * seen * (3 * width + 2 * values + 20))

    def _share(self, e: VectorEmitter, temporaries: list[int] | None) -> None:
        self.sums = [self._target(e, n, temporaries) for n in range(2)]
        turn = Var("turn", self.blocks)
        for sums, column in zip(self.sums, (self.feature, self.value_feature), strict=True):
            row = Var("row", self.length)

            def clear(sums: Matrix = sums, column: Var = column, row: Var = row) -> None:
                self.clear(e, sums.buffer, sums.at(e, e.variables[row], e.constant_index(0)), column.extent)

            e.repeat(row, self.length, clear)

        def block() -> None:
            e.variables[self.number] = e.plus(e.times(e.variables[turn], self.shares), e.variables[self.share])
            self._block(e)

        left = e.minus(e.constant_index(self.blocks + self.shares - 1), e.variables[self.share])
        e.repeat(turn, e.k.op("arith.divui", [left, e.constant_index(self.shares)], INDEX), block)

    def _target(self, e: VectorEmitter, n: int, temporaries: list[int] | None) -> Matrix:
        """Where the sums of dk (0) or dv (1) are kept: [key][feature]."""
        column = (self.feature, self.value_feature)[n]
        if temporaries is None:
            position = self.result_position(n + 1, self.group, Index.of(self.key), column)
            stride = position.coefficient(self.key) or 0
            base = e.index(position - Index.of(self.key) * stride - Index.of(column))
            return Matrix(e.buffers[self.inputs + 1 + n], base, stride)
        start = e.index(Index.of(self.unit) * self.shares + self.share)
        return Matrix(e.buffers[temporaries[n]], e.times(start, self.length * column.extent), column.extent)

    def _block(self, e: VectorEmitter) -> None:
        first = e.times(e.variables[self.number], self.block)
        count = e.rest(self.rows, first, self.block)
        ct = self.others[3]
        self.stage_rows(e, self.q, self.feature, count, self.by_row, self.scale)
        self.stage_rows(e, ct, self.value_feature, count, self.ct_rows)
        self.tiles.transpose(e, self.by_row, self.block, self.by_row.stride, self.by_feature)
        self._statistics(e, count)
        self.clear(e, self.dq.buffer, e.constant_index(0), self.block * self.dq.stride)
        self.last = self.limits(e)
        self.over_keys(e, self.sight(e), lambda first, count: self._keys(e, first, count))
        self._finish(e, count)

    def _statistics(self, e: VectorEmitter, count: ir.Value) -> None:
        """What is known of each row; one that is not there has no weights."""
        k, zero, infinite = e.k, e.k.const(0, self.dtype), e.k.const(math.inf, self.dtype)
        at = (self.example, self.head, self.step)
        top, total, delta = (self.pull.at(x, at) for x in self.others[:3])

        def nothing(row: ir.Value) -> None:
            for buffer, value in ((self.top, infinite), (self.inverse, zero), (self.delta, zero)):
                k.store(value, buffer, row)

        def known() -> None:
            row = e.variables[self.row]
            k.store(self.value(e, top), self.top, row)
            k.store(1.0 / self.value(e, total), self.inverse, row)
            k.store(self.value(e, delta), self.delta, row)

        self.each_row(e, nothing)
        e.lanes(self.row, count, known)

    def _keys(self, e: VectorEmitter, first: ir.Value, count: ir.Value) -> None:
        tiles, width, values = self.tiles, self.width, self.value_width
        self.stage_keys(e, self.k, self.feature, first, count, self.keys)
        self.stage_keys(e, self.v, self.value_feature, first, count, self.values)
        tiles.multiply(e, count, self.block, width, self.keys, self.by_feature, self.weights, whole=True)
        tiles.multiply(e, count, self.block, values, self.values, self.ct, self.slopes, whole=True)
        self.scores(e, first, count, lambda at: self._differentiate(e, at))
        dk, dv = (s._replace(base=s.at(e, first, e.constant_index(0))) for s in self.sums)
        tiles.multiply(e, count, values, self.block, self.weights, self.ct_rows, dv, add=True)
        tiles.multiply(e, count, width, self.block, self.slopes, self.by_row, dk, add=True)
        tiles.multiply(e, self.block, width, count, self.slopes.transposed(), self.keys, self.dq, add=True)

    def _differentiate(self, e: VectorEmitter, at: ir.Value) -> None:
        """From the score and the cotangent of its weight to the weight and the cotangent of the score."""
        k, row = e.k, e.variables[self.row]
        x, visible = self.masked(e, self.load(e, self.weights.buffer, at), self.last)
        weight = k.exp(x - self.load(e, self.top, row)) * self.load(e, self.inverse, row)
        slope = weight * (self.load(e, self.slopes.buffer, at) - self.load(e, self.delta, row))
        slope = slope if visible is None else k.select(visible, slope, k.const(0, self.dtype))
        k.store(weight, self.weights.buffer, at)
        k.store(slope, self.slopes.buffer, at)

    def _finish(self, e: VectorEmitter, count: ir.Value) -> None:
        k, column = e.k, self.feature
        position = self.result_position(0, self.head, self.step, column)

        def row() -> None:
            start = e.times(e.variables[self.row], self.dq.stride)

            def element() -> None:
                value = self.load(e, self.dq.buffer, e.plus(start, e.variables[column])) * self.scale
                k.store(Reg(value.value, self.q.dtype, k), e.buffers[self.inputs], e.index(position))

            e.lanes(column, self.width, element)

        e.repeat(self.row, count, row)

    # -- the shares ---------------------------------------------------------------------------------------------------
    def _sum(self, temporaries: list[Aval], source: int, target: int, result: int) -> Step:
        """Adds what the shares have found for the rows of keys."""
        column, key = (self.feature, self.value_feature)[result - 1], self.key
        position = self.result_position(result, self.group, Index.of(key), column)
        shape = (self.unit.extent, self.shares, self.length, column.extent)

        def emit(e: VectorEmitter) -> tuple[int, float]:
            def element() -> None:
                total = e.k.const(0, self.dtype)
                for n in range(self.shares):
                    at = linear((Index.of(self.unit), Index.of(n), Index.of(key), Index.of(column)), shape)
                    total = total + self.load(e, e.buffers[source], e.index(at))
                e.k.store(Reg(total.value, self.q.dtype, e.k), e.buffers[target], e.index(position))

            extent = over(e, [self.unit, key], lambda: e.lanes(column, column.extent, element))
            return extent, float(self.shares * column.extent)

        return self.add(f"_{result}", temporaries, [target], emit)
