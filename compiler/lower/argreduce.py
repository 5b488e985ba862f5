"""argmax and argmin: the extremum first, which vector units find fast, and then where it is.

    along contiguous rows      the extremum of each chunk of a row; then its first element in the best chunk
    along another axis         a block of columns at a time, with the best element and its place for each column
    a few long rows, columns   pieces of them in parallel; then the best of their winners

NaN counts as extreme, and of equal elements the first one wins.
"""

from __future__ import annotations

import functools
from typing import Any

from mlxir.compiler.lower.builder import _TYPES, Reg
from mlxir.compiler.lower.gemm import host_vector_bytes
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel, Rows
from mlxir.compiler.lower.scalars import Scalar
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx import RECORDS
from mlxir.dialects.mx.reduce import ArgReduction
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import bool_, float32, float64, int64, uint32

SHORT = 32  # elements of a row that are compared one after the other
CHUNK = 256  # of a row: where the extremum is looked up
UNROLL = 4  # registers of running extrema
COLUMNS = 2048  # of a block: rows are read in long runs
MIN_ITERATIONS = 16  # over blocks of columns, so that threads have something to share: long columns are cut
LONG_COLUMN = 256
ROWS_AT_ONCE = 8
with context:
    _FIRST, _OR = ir.DenseI64ArrayAttr.get([0]), ir.Attribute.parse("#vector.kind<or>")

FEW_ROWS, LONG_ROW, MOST_PIECES, SMALLEST_PIECE = 64, 1 << 15, 64, 1 << 13


def _predicate(code: int) -> ir.IntegerAttr:
    return ir.IntegerAttr.get(_TYPES[int64], code)


def lower_argreduction(function: Function, body: ir.Block, vectors: bool) -> Lowered:
    """Lower argmax or argmin; without `vectors`, for a GPU: one thread per column, or one threadgroup per row."""
    with context, ir.Location.unknown():
        job = _Job(OwnKernel(function, body), vectors)
        if job.pieces == 1:
            job.kernel.add("", [job.kernel.out], lambda e: job.emit(e, job.kernel.out))
        else:
            winners = job.kernel.temporary(job.rows.count * job.pieces, uint32)
            job.kernel.add("_pieces", [winners], lambda e: job.emit(e, winners))
            job.kernel.add("", [job.kernel.out], lambda e: job.choose(e, winners))
        return job.kernel.finish()


class _Job:
    def __init__(self, kernel: OwnKernel, vectors: bool):
        assert isinstance(kernel.op.record, ArgReduction)
        self.kernel, self.record, self.vectors = kernel, kernel.op.record, vectors
        (self.x,) = kernel.op.operands
        self.rows = Rows(self.x.shape, kernel.op.attrs["axis"])
        self.n, simple = self.rows.n, self.x.dtype.kind != "c"
        lanes = self.rows.variables[-1].extent if self.rows.variables else 1
        # Along the last axis, or (as good as) along one that only has axes of length 1 behind it.
        self.along_row = simple and self.rows.stride == 1 and self.n > SHORT
        self.by_columns = simple and vectors and self.rows.stride > 1 and lanes > 1
        self.pieces, self.size = 1, self.n  # elements of a piece
        if simple and self.rows.count < FEW_ROWS and self.n >= LONG_ROW:
            self.pieces = min(MOST_PIECES, self.n // SMALLEST_PIECE)
            self.size = -(-self.n // self.pieces)
        elif self.by_columns and not is_symbolic(self.x.aval.size) and self.n >= LONG_COLUMN:
            blocks = self.rows.count // lanes * -(-lanes // COLUMNS)
            most = min(-(-MIN_ITERATIONS // blocks), 2 * self.n // LONG_COLUMN)
            self.size = -(-self.n // (most * ROWS_AT_ONCE)) * ROWS_AT_ONCE
            self.pieces = -(-self.n // self.size)
        self.piece = Var("piece", self.pieces)
        self.start = Index.of(self.piece) * self.size if self.pieces > 1 else Index.of(0)

    def value(self, e: OwnEmitter, i: Any) -> Reg:
        return self.kernel.value(e, self.x, self.rows.element(i))

    def emit(self, e: OwnEmitter, target: int) -> tuple[int, float]:
        """Each piece's winner, in order of (row, piece)."""
        pieces = [self.piece] if self.pieces > 1 else []
        if self.by_columns:
            return self._columns(e, target, pieces)

        def row() -> None:
            where = self._along_row(e) if self.along_row else self._one_by_one(e)
            e.write(where, e.buffers[target], self.rows.number * self.pieces + (self.piece if pieces else 0))

        return over(e, [*self.rows.variables, *pieces], row), 2.0 * self.size

    def _count(self, e: OwnEmitter) -> ir.Value:
        """The number of elements of the current piece."""
        return e.rest(self.n, e.index(self.start), self.size) if self.pieces > 1 else e.constant_index(self.n)

    def _one_by_one(self, e: OwnEmitter) -> Reg:
        step = Var("t", self.size)

        def advance(carried: list[Reg]) -> list[Reg]:
            best, where = carried
            value = self.value(e, self.start + step)
            better = self.record.better(e.k, value, best)
            return [e.k.select(better, value, best), e.k.select(better, e.number(self.start + step, uint32), where)]

        starts = [self.value(e, self.start), e.number(self.start, uint32)]
        return e.serial(step, self._count(e), starts, advance)[1]

    def _along_row(self, e: OwnEmitter) -> Reg:
        k, chunk = e.k, min(CHUNK, self.size) if self.vectors else self.size
        block, i = Var("chunk", -(-self.size // chunk)), Var("t", chunk)
        extremum, nearest = RECORDS[self.record.extremum], RECORDS["min"]

        def element(number: Any) -> Reg:
            return self.value(e, self.start + Index.of(number) * chunk + i)

        node = self.kernel.pull.at(self.x, self.rows.element(self.start + Index.of(block) * chunk + i))
        plain = self.vectors and self.x.dtype in (float32, float64) and node.kind == "load"
        plain = plain and node.data[1].coefficient(i) == 1

        def size(number: Any) -> ir.Value:
            if block.extent == 1:
                return self._count(e)
            return e.least(e.minus(self._count(e), e.index(Index.of(number) * chunk)), chunk)

        def advance(carried: list[Reg]) -> list[Reg]:
            best, where = carried
            if plain:
                value = self._in_registers(e, node, i, size(block))
            else:
                (value,) = e.folded(extremum, i, size(block), self.x.dtype, lambda: [element(block)])
            better = self.record.better(k, value, best)
            return [k.select(better, value, best), k.select(better, e.number(block, uint32), where)]

        blocks = e.constant_index(block.extent)
        if self.pieces > 1 and block.extent > 1:
            blocks = e.divided(e.plus(self._count(e), chunk - 1), chunk)
        best, where = e.serial(block, blocks, [self.value(e, self.start), k.const(0, uint32)], advance)
        won = Var("won", block.extent)
        e.variables[won] = e.at(where)

        def place() -> list[Reg]:
            value = element(won)
            found = value == best
            if self.x.dtype.is_float:
                found = found | ((value != value) & (best != best))
            return [k.select(found, e.number(i, uint32), k.const(-1, uint32))]

        (within,) = e.folded(nearest, i, size(won), uint32, place)  # the chunk: vectors of 32-bit positions
        return within + e.number(self.start + Index.of(won) * chunk, uint32)

    def _in_registers(self, e: OwnEmitter, node: Scalar, i: Var, count: ir.Value) -> Reg:
        """The extremum of `count` floats in memory: NaN are only noted, which leaves one operation per register."""
        k, dtype, lanes = e.k, self.x.dtype, host_vector_bytes() // self.x.dtype.size
        buffer, base = e.buffers[node.data[0]], e.index(node.data[1].substitute({i: Index.of(0)}))
        no = ir.DenseElementsAttr.get_splat(e.vector_type(lanes, bool_), ir.BoolAttr.get(False))
        beyond = {"max": 2, "min": 4}[self.record.extremum]  # ordered and greater, or less
        unordered = 14

        def compare(code: int, a: ir.Value, b: ir.Value) -> ir.Value:
            return k.op("arith.cmpf", [a, b], e.vector_type(lanes, bool_), predicate=_predicate(code))

        def further(a: ir.Value, b: ir.Value) -> ir.Value:
            return k.op("arith.select", [compare(beyond, a, b), a, b], a.type)

        def loop(width: int, first: ir.Value, carried: list[Reg]) -> tuple[ir.Value, list[Reg]]:
            """Over the groups of `width` registers that are left behind `first`: (where they end, what is carried)."""
            word, step = Var(f"word{width}", 1 << 31), width * lanes
            groups = e.divided(e.minus(count, first), step)

            def advance(carried: list[Reg]) -> list[Reg]:
                *best, nan = [c.value for c in carried]
                start = e.plus(e.plus(base, first), e.times(e.at(word), step))
                for n in range(width):
                    x = e.load_vector(buffer, dtype, e.plus(start, n * lanes), lanes, dtype)
                    best[n] = further(x, best[n])
                    nan = k.op("arith.ori", [nan, compare(unordered, x, x)], nan.type)
                return [*[Reg(b, dtype, k) for b in best], Reg(nan, bool_, k)]

            return e.plus(first, e.times(groups, step)), e.rolled(word, groups, carried, advance)

        none = k.op("arith.constant", [], e.vector_type(lanes, bool_), value=no)
        begin = Reg(e.spread(k.load(buffer, base, dtype).value, lanes, dtype), dtype, k)
        done, carried = loop(UNROLL, e.constant_index(0), [*[begin] * UNROLL, Reg(none, bool_, k)])
        done, carried = loop(1, done, carried)
        *bests, nan = [c.value for c in carried]
        best = functools.reduce(further, bests)
        distance = lanes // 2
        while distance:
            best = further(best, e.shuffled(best, [n ^ distance for n in range(lanes)]))
            distance //= 2
        scalar = Reg(k.op("vector.extract", [best], _TYPES[dtype], static_position=_FIRST), dtype, k)
        any_nan = Reg(k.op("vector.reduction", [nan], _TYPES[bool_], kind=_OR), bool_, k)
        scalar = k.select(any_nan, k.const(float("nan"), dtype), scalar)
        rest = Var("rest", lanes)

        def one(carried: list[Reg]) -> list[Reg]:
            x = e.read(buffer, dtype, base, done, rest)
            return [k.select(self.record.better(k, x, carried[0]), x, carried[0])]

        return e.rolled(rest, e.minus(count, done), [scalar], one)[0]

    def _columns(self, e: OwnEmitter, target: int, pieces: list[Var]) -> tuple[int, float]:
        """Blocks of columns; the winners so far lie in scratch."""
        k, (*outer, column) = e.k, self.rows.variables
        width = min(COLUMNS, column.extent)
        block, lane = Var("block", -(-column.extent // width)), Var("lane", width)
        at_once = next(n for n in (ROWS_AT_ONCE, 4, 2, 1) if self.size % n == 0 and self.n % n == 0)
        step = Var("t", self.size // at_once)
        best, kept = e.scratch(width, self.x.dtype)
        where, _ = e.scratch(width, uint32)

        def lanes(count: ir.Value, body: Any) -> None:
            def one() -> None:
                e.variables[column] = e.index(Index.of(block) * width + lane)
                body(e.at(lane))

            e.lanes(lane, count, one)

        def begin(at: ir.Value) -> None:
            e.keep(self.value(e, self.start), best, kept, at)
            e.k.store(e.number(self.start, uint32), where, at)

        def advance(at: ir.Value) -> None:
            value, place = e.recall(best, kept, self.x.dtype, at), k.load(where, at, uint32)
            for n in range(at_once):
                i = self.start + Index.of(step) * at_once + n
                new = self.value(e, i)
                better = self._replaces(e, new, value)
                value, place = k.select(better, new, value), k.select(better, e.number(i, uint32), place)
            e.keep(value, best, kept, at)
            k.store(place, where, at)

        def finish(at: ir.Value) -> None:
            number = self.rows.number * self.pieces + (self.piece if pieces else 0)
            e.write(k.load(where, at, uint32), e.buffers[target], number)

        def columns() -> None:
            count = e.rest(column.extent, e.index(Index.of(block) * width), width)
            steps = e.divided(self._count(e), at_once)
            lanes(count, begin)
            e.repeat(step, steps, lambda: lanes(count, advance))
            lanes(count, finish)

        return over(e, [*outer, *pieces, block], columns), 2.0 * self.size * width

    def _replaces(self, e: OwnEmitter, new: Reg, best: Reg) -> Reg:
        """`better` in two comparisons of floats, where only one waits for another: not behind, and `best` is no NaN."""
        if not new.dtype.is_float:
            return self.record.better(e.k, new, best)
        not_behind = {"max": 9, "min": 11}[self.record.extremum]  # unordered or greater, or less
        return e.k.reg("arith.cmpf", [new, best], bool_, predicate=_predicate(not_behind)) & (best == best)

    def choose(self, e: OwnEmitter, winners: int) -> tuple[int, float]:
        """The best of the pieces' winners."""
        k, won = e.k, Var("winner", self.n)

        def row() -> None:
            def winner(piece: Any) -> tuple[Reg, Reg]:
                place = e.read(e.buffers[winners], uint32, self.rows.number * self.pieces + piece)
                e.variables[won] = e.at(place)
                return self.value(e, won), place

            def advance(carried: list[Reg]) -> list[Reg]:
                best, where = carried
                value, place = winner(self.piece)
                better = self.record.better(k, value, best)
                return [k.select(better, value, best), k.select(better, place, where)]

            first = [self.value(e, 0), k.const(0, uint32)]
            (_, where) = e.serial(self.piece, e.constant_index(self.pieces), first, advance)
            e.write(where, e.buffers[self.kernel.out], self.rows.number)

        return over(e, self.rows.variables, row), 4.0 * self.pieces
