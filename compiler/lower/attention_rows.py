"""Lowers `mx.attention` for few rows, a token that is decoded: every key and value is read once, in the order in which
it lies in memory.

    scf.parallel (%unit)                                      example x key head
      scf.for (%keys)                                         KEYS at a time
        scores[row][key]: vectors along the features of q and k, and a sum across each
        new top; exp; total; out[row][feature] = out * exp(old top - top) + scores v
"""

from __future__ import annotations

import math

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.index import Index, Var, linear
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.streaming import Streaming
from mlxir.compiler.lower.tiles import Matrix
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Tensor, ir
from mlxir.dialects.mx import RECORDS

KEYS = 256


def lower_few_rows(kernel: Streaming) -> Lowered:
    """`kernel` has fewer rows than half a vector."""
    rows = _FewRows(kernel)
    return Lowered([kernel.add("", (), range(kernel.inputs, len(kernel.avals)), rows.emit)], [])


class _FewRows:
    def __init__(self, kernel: Streaming):
        self.s = kernel
        self.local = Var("local", KEYS)

    def emit(self, e: VectorEmitter) -> tuple[int, float]:
        s = self.s
        self.query, self.out = s.matrix(e, s.rows, s.width), s.matrix(e, s.rows, s.value_width)
        self.weights = Matrix(e.scratch(s.rows * KEYS, s.dtype)[0], e.constant_index(0), KEYS)
        self.top, self.total = s.vector(e), s.vector(e)
        self.keys = self._source(e, s.k, s.feature)
        self.values = self._source(e, s.v, s.value_feature)
        extent = over(e, [s.unit], lambda: self._unit(e))
        return extent, float(s.rows * s.length * (s.width + s.value_width + 12))

    def _source(self, e: VectorEmitter, x: Tensor, column: Var) -> tuple[Tensor, Var, Scalar, Matrix | None]:
        """How keys or values are read: in place where vectors can run along the features, else from scratch."""
        s = self.s
        node = s.pull.at(x, (s.example, s.group, Index.of(s.key), Index.of(column)))
        in_place = node.kind == "load" and node.dtype is s.dtype and node.data[1].coefficient(column) == 1
        in_place = in_place and node.data[1].coefficient(s.key) is not None
        return x, column, node, None if in_place else s.matrix(e, KEYS, column.extent)

    def _unit(self, e: VectorEmitter) -> None:
        s, row = self.s, Var("r", self.s.rows)
        e.variables[s.number] = e.constant_index(0)
        s.stage_rows(e, s.q, s.feature, e.constant_index(s.rows), self.query, s.scale)
        s.clear(e, self.out.buffer, e.constant_index(0), s.rows * self.out.stride)
        self.last = s.limits(e)

        def begin() -> None:
            e.variables[s.row] = e.variables[row]
            self._begin(e)

        e.repeat(row, s.rows, begin)
        s.over_keys(e, e.constant_index(s.length), lambda first, count: self._keys(e, first, count), KEYS)
        for r in range(s.rows):
            e.variables[s.row] = e.constant_index(r)
            self._finish(e, r)

    def _begin(self, e: VectorEmitter) -> None:
        s, k, at = self.s, e.k, e.variables[self.s.row]
        (sinks,) = s.others
        sink = s.value(e, s.broadcast(sinks, (s.example, s.head)))
        k.store(sink, self.top, at)
        k.store(k.select(sink == -math.inf, k.const(0, s.dtype), k.const(1, s.dtype)), self.total, at)

    def _piece(self, e: VectorEmitter, source: tuple, first: ir.Value, count: ir.Value) -> Matrix:
        """Keys or values from `first` on."""
        x, column, node, scratch = source
        s = self.s
        if scratch is not None:
            s.stage_keys(e, x, column, first, count, scratch)
            return scratch
        position: Index = node.data[1]
        stride = position.coefficient(s.key) or 0
        base = e.index(position - Index.of(s.key) * stride - Index.of(column))
        return Matrix(e.buffers[node.data[0]], e.plus(base, e.times(first, stride)), stride)

    def _keys(self, e: VectorEmitter, first: ir.Value, count: ir.Value) -> None:
        s = self.s
        keys = self._piece(e, self.keys, first, count)
        e.repeat(self.local, count, lambda: self._scores_of_key(e, keys))
        for r in range(s.rows):
            self._softmax(e, r, first, count)
        values = self._piece(e, self.values, first, count)
        s.tiles.multiply(e, s.rows, s.value_width, count, self.weights, values, self.out, add=True)

    def _scores_of_key(self, e: VectorEmitter, keys: Matrix) -> None:
        """The products of one key with every row."""
        s, at = self.s, e.variables[self.local]
        start, zero = keys.at(e, at, e.constant_index(0)), e.constant_index(0)
        pieces = [
            (first + n * vectors * lanes + v * lanes, lanes)
            for first, count, vectors, lanes in s.tiles.pieces(s.width) for n in range(count) for v in range(vectors)
        ]  # fmt: skip
        loaded = [e.load_vector(keys.buffer, s.dtype, e.plus(start, p), lanes, s.dtype) for p, lanes in pieces]
        for r in range(s.rows):
            corner = self.query.at(e, e.constant_index(r), zero)
            sums: dict[int, ir.Value] = {}
            for (p, lanes), x in zip(pieces, loaded, strict=True):
                y = e.load_vector(self.query.buffer, s.dtype, e.plus(corner, p), lanes, s.dtype)
                sums[lanes] = e.multiply_add(x, y, sums[lanes]) if lanes in sums else e.multiply(x, y)
            total = e.k.const(0, s.dtype)
            for value in sums.values():
                total = total + Reg(e.sum_of_lanes(value, s.dtype), s.dtype, e.k)
            e.k.store(total, self.weights.buffer, e.plus(at, r * KEYS))

    def _softmax(self, e: VectorEmitter, r: int, first: ir.Value, count: ir.Value) -> None:
        s, k, weights, row = self.s, e.k, self.weights.buffer, e.constant_index(r)
        old = s.load(e, self.top, row)

        def place() -> ir.Value:
            return e.plus(e.variables[self.local], r * KEYS)

        def mask() -> None:
            e.variables[s.row], e.variables[s.key] = row, e.plus(first, e.variables[self.local])
            x, _ = s.masked(e, s.load(e, weights, place()), self.last)
            k.store(x, weights, place())

        def weigh() -> list[Reg]:
            weight = k.exp(s.load(e, weights, place()) - safe)
            k.store(weight, weights, place())
            return [weight]

        if not s.plain:
            e.lanes(self.local, count, mask)
        (largest,) = e.folded(RECORDS["max"], self.local, count, s.dtype, lambda: [s.load(e, weights, place())])
        new = k.maximum(old, largest)
        safe = k.select(new == -math.inf, k.const(0, s.dtype), new)
        decay = k.exp(old - safe)
        (total,) = e.folded(RECORDS["sum"], self.local, count, s.dtype, weigh)
        k.store(new, self.top, row)
        k.store(s.load(e, self.total, row) * decay + total, self.total, row)
        column = Var("column", s.value_width)

        def fade() -> None:
            at = e.plus(e.variables[column], r * self.out.stride)
            k.store(s.load(e, self.out.buffer, at) * decay, self.out.buffer, at)

        e.lanes(column, s.value_width, fade)

    def _finish(self, e: VectorEmitter, r: int) -> None:
        s, k, row = self.s, e.k, e.constant_index(r)
        out, top, total = e.buffers[s.inputs :]
        head, step = s.head_and_step(Index.of(r))
        position = s.result_position(0, head, step, s.value_feature)
        inverse = 1.0 / s.load(e, self.total, row)

        def element() -> None:
            at = e.plus(e.variables[s.value_feature], r * self.out.stride)
            k.store(Reg((s.load(e, self.out.buffer, at) * inverse).value, s.q.dtype, k), out, e.index(position))

        e.lanes(s.value_feature, s.value_width, element)
        to = e.index(linear((s.example, head, step), s.results[1].shape))
        k.store(s.load(e, self.top, row), top, to)
        k.store(s.load(e, self.total, row), total, to)
