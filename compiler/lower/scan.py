"""Running sums and their like along one axis.

    along contiguous rows     a register at a time: log2(lanes) shifted combines, then what came before is combined in
    along another axis        a block of columns at a time: the running values lie in scratch, one per column
    a few long rows           pieces of them in parallel: their totals first, from which follows where each one begins

    x0 x1 x2 x3   ->   x0 x01 x12 x23   ->   x0 x01 x012 x0123                   (x01 = x0 combined with x1)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.gemm import host_vector_bytes
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel, Rows
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scan_groups import by_groups, fits
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx.scan_sort import Scan
from mlxir.runtime.dtypes import Dtype, bool_, complex64, float32

BLOCK = 512  # elements of a row that are combined in scratch
SHORT = 16  # elements of a row that are combined one after the other
COLUMNS = 512  # of a block, at most
MIN_ITERATIONS = 8  # over blocks of columns, so that threads have something to share
ROWS_AT_ONCE = 4
FEW_ROWS, LONG_ROW, PIECES = 16, 1 << 16, 16


def lower_scan(function: Function, body: ir.Block, vectors: bool) -> Lowered:
    """Lower a scan; without `vectors`, to one loop per row, or a threadgroup per row (scan_groups.py)."""
    with context, ir.Location.unknown():
        job = Job(OwnKernel(function, body))
        if not job.x.aval.size:
            return Lowered([], [])
        emit = _form(job) if vectors else functools.partial(by_groups, job) if fits(job) else job.one_by_one
        if vectors and job.rows.count < FEW_ROWS and job.n >= LONG_ROW and emit != job.by_columns:
            job.split()
            totals = job.kernel.temporary(job.rows.count * job.pieces, job.x.dtype)
            job.kernel.add("_totals", [totals], lambda e: job.totals(e, totals))
            job.kernel.add("_begins", [totals], lambda e: job.begins(e, totals))
            job.begin = lambda e: e.read(e.buffers[totals], job.x.dtype, job.rows.number * job.pieces + job.piece)
        job.kernel.add("", [job.kernel.out], emit)
        return job.kernel.finish()


def _form(job: Job) -> Callable[[OwnEmitter], tuple[int, float]]:
    simple = job.x.dtype not in (complex64, bool_) and not job.record.costly
    lanes = job.rows.variables[-1].extent if job.rows.variables else 1
    # A combine that calls functions is only worth vectors across rows, whatever way these lie.
    if lanes > 1 and (job.rows.stride > 1 or job.record.costly):
        return job.by_columns
    return job.along_row if simple and job.n > SHORT else job.one_by_one


class _Lanes(ScalarBuilder):
    """Combines whole registers."""

    def reg(self, name: str, operands: Sequence[Reg], dtype: Dtype, **attributes: Any) -> Reg:
        return Reg(self.op(name, [o.value for o in operands], operands[0].value.type, **attributes), dtype, self)


class Job:
    """A scan. In reverse, element 0 of a row is its last one."""

    def __init__(self, kernel: OwnKernel):
        assert isinstance(kernel.op.record, Scan)
        self.kernel, self.record, attrs = kernel, kernel.op.record, kernel.op.attrs
        (self.x,) = kernel.op.operands
        self.dtype, self.rows = self.x.dtype, Rows(self.x.shape, attrs["axis"])
        self.n, self.reverse, self.inclusive = self.rows.n, attrs["reverse"], attrs["inclusive"]
        self._pieces(1)
        self.begin: Callable[[OwnEmitter], Reg] = lambda e: e.neutral(self.record, self.dtype)

    def _pieces(self, count: int) -> None:
        self.pieces, self.size, self.piece = count, -(-self.n // count), Var("piece", count)
        self.step = Var("t", self.size)  # the one of all steps: operands remember what they depend on

    def split(self) -> None:
        """Rows are scanned piece by piece."""
        self._pieces(PIECES)

    # -- where things are -------------------------------------------------------------------------------------------
    def _rows(self, e: OwnEmitter, body: Callable[[], None]) -> tuple[int, float]:
        """A step over rows, or over (row, piece)."""
        pieces = [self.piece] if self.pieces > 1 else []
        return over(e, [*self.rows.variables, *pieces], body), 4.0 * self.size

    def _count(self, e: OwnEmitter) -> ir.Value:
        """The number of elements of the current piece."""
        return e.rest(self.n, e.index(self._first), self.size) if self.pieces > 1 else e.constant_index(self.n)

    @property
    def _first(self) -> Index:
        return Index.of(self.piece) * self.size if self.pieces > 1 else Index.of(0)

    def _along(self, i: Any) -> Index:
        return Index.of(self.n - 1) - i if self.reverse else Index.of(i)

    def value(self, e: OwnEmitter, i: Any) -> Reg:
        return self.kernel.value(e, self.x, self.rows.element(self._along(i)))

    def store(self, e: OwnEmitter, value: Reg, i: Any) -> None:
        e.write(value, e.buffers[self.kernel.out], self.rows.position(self._along(i)))

    # -- forms ------------------------------------------------------------------------------------------------------
    def one_by_one(self, e: OwnEmitter) -> tuple[int, float]:
        def advance(carried: list[Reg]) -> list[Reg]:
            new = self.record.combine(e.k, carried[0], self.value(e, self._first + self.step))
            self.store(e, new if self.inclusive else carried[0], self._first + self.step)
            return [new]

        def row() -> None:
            e.serial(self.step, self._count(e), [self.begin(e)], advance)

        return self._rows(e, row)

    def by_columns(self, e: OwnEmitter) -> tuple[int, float]:
        *outer, column = self.rows.variables
        share = -(-column.extent * (self.rows.count // column.extent) // MIN_ITERATIONS)
        width = min(COLUMNS, column.extent, max(64, -(-share // 64) * 64))
        block, lane = Var("block", -(-column.extent // width)), Var("lane", width)
        at_once = next(n for n in (ROWS_AT_ONCE, 2, 1) if self.n % n == 0)
        step = Var("t", self.n // at_once)
        running, kept = e.scratch(width, self.dtype)

        def advance() -> None:
            e.variables[column] = e.index(Index.of(block) * width + lane)
            total = e.recall(running, kept, self.dtype, e.at(lane))
            for n in range(at_once):
                i = Index.of(step) * at_once + n
                new = self.record.combine(e.k, total, self.value(e, i))
                self.store(e, new if self.inclusive else total, i)
                total = new
            e.keep(total, running, kept, e.at(lane))

        def columns() -> None:
            count = e.rest(column.extent, e.index(Index.of(block) * width), width)
            e.lanes(lane, count, lambda: e.keep(self.begin(e), running, kept, e.at(lane)))
            e.repeat(step, step.extent, lambda: e.lanes(lane, count, advance))

        return over(e, [*outer, block], columns), 4.0 * self.n * width

    def along_row(self, e: OwnEmitter) -> tuple[int, float]:
        """In scratch: what came before, at `lanes - 1`, then the elements of a block."""
        kept = float32 if self.dtype.is_float and self.dtype.size == 2 else self.dtype
        lanes = host_vector_bytes() // kept.size
        running, _ = e.scratch(lanes + BLOCK, self.dtype)
        block, i, word = Var("block", -(-self.size // BLOCK)), Var("i", BLOCK), Var("word", BLOCK // lanes)

        def copy(first: Index, offset: int, read: bool) -> None:
            place = e.at(i, offset)
            if read:
                e.keep(self.value(e, first + i), running, kept, place)
            else:
                self.store(e, e.recall(running, kept, self.dtype, place), first + i)

        def one() -> None:
            first, used = self._first + Index.of(block) * BLOCK, e.index(Index.of(block) * BLOCK)
            count = e.least(e.minus(self._count(e), used), BLOCK)
            e.lanes(i, count, lambda: copy(first, lanes, True))
            before = e.recall(running, kept, self.dtype, e.constant_index(lanes - 1))
            words = e.divided(e.plus(count, lanes - 1), lanes)
            start = [Reg(e.spread(before.value, lanes, self.dtype), self.dtype, e.k)]
            e.rolled(word, words, start, lambda carried: self._word(e, running, kept, lanes, word, carried[0]))
            e.lanes(i, count, lambda: copy(first, lanes - (not self.inclusive), False))
            last = e.recall(running, kept, self.dtype, e.plus(count, lanes - 1))
            e.keep(last, running, kept, e.constant_index(lanes - 1))

        def row() -> None:
            e.keep(self.begin(e), running, kept, e.constant_index(lanes - 1))
            e.repeat(block, e.divided(e.plus(self._count(e), BLOCK - 1), BLOCK), one)

        return self._rows(e, row)

    def _word(
        self, e: OwnEmitter, running: ir.Value, kept: Dtype, lanes: int, word: Var, before: Reg
    ) -> list[Reg]:  # fmt: skip
        """One register of scratch with all before it combined in; the running value in all lanes."""
        k = _Lanes(e.k.ip)

        def combine(a: ir.Value, b: ir.Value) -> ir.Value:
            return self.record.combine(k, Reg(a, self.dtype, k), Reg(b, self.dtype, k)).value

        at = e.plus(e.times(e.at(word), lanes), lanes)
        x = e.load_vector(running, kept, at, lanes, self.dtype)
        distance = 1
        while distance < lanes:
            shifted = _shuffle(k, x, x, [max(n - distance, 0) for n in range(lanes)])
            x = _shuffle(k, x, combine(shifted, x), [n if n < distance else lanes + n for n in range(lanes)])
            distance *= 2
        e.store_vector(combine(before.value, x), running, at)
        last = _shuffle(k, x, x, [lanes - 1] * lanes)
        return [Reg(combine(before.value, last), self.dtype, e.k)]

    # -- pieces -----------------------------------------------------------------------------------------------------
    def totals(self, e: OwnEmitter, totals: int) -> tuple[int, float]:
        """Of each piece."""

        def row() -> None:
            def add(carried: list[Reg]) -> list[Reg]:
                return [e.combine(self.record, carried[0], self.value(e, self._first + self.step))]

            (total,) = e.serial(self.step, self._count(e), [e.neutral(self.record, self.dtype)], add)
            e.write(total, e.buffers[totals], self.rows.number * self.pieces + self.piece)

        return self._rows(e, row)

    def begins(self, e: OwnEmitter, totals: int) -> tuple[int, float]:
        """The totals become what comes before each piece."""

        def row() -> None:
            def add(carried: list[Reg]) -> list[Reg]:
                at = e.at(self.rows.number * self.pieces + self.piece)
                total = e.read(e.buffers[totals], self.dtype, at)
                e.write(carried[0], e.buffers[totals], at)
                return [self.record.combine(e.k, carried[0], total)]

            e.serial(self.piece, e.constant_index(self.pieces), [e.neutral(self.record, self.dtype)], add)

        return over(e, self.rows.variables, row), 4.0 * self.pieces


def _shuffle(k: ScalarBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    return k.op("vector.shuffle", [a, b], a.type, mask=ir.DenseI64ArrayAttr.get(lanes))
