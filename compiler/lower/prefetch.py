"""Prefetches what the operations behind a row of tiles of a matrix product read and write.

    lines = [&m[r, 0], &m[r, 16], ..., &v[r, 0], ...]          the cache lines of these rows, in scratch memory
    for columns of tiles { for %k { prefetch lines[...]; multiply-adds } }

A step along K of a tile asks for one line, so that memory works while the processor multiplies: the weight, the moments
of an optimizer, the factors of a gradient. Left to itself, it would wait for them behind every tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlxir.compiler.lower.builder import _TYPES, INDEX, Reg
from mlxir.compiler.lower.gemm_schedule import ceil_div
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype, int64

LINE = 64  # bytes
NEAR = 2  # where to: L2, because L1 is full of what is multiplied


class Stream(NamedTuple):
    """An array that is read or written at `position`."""

    buffer: int
    position: Index
    dtype: Dtype

    def along(self, row: Var, column: Var) -> bool:
        """Whether it lies in rows that are contiguous along the columns, and are not found by values in memory."""
        linear = all(isinstance(atom, Var) for atom, _ in self.position.terms.values())
        return linear and self.position.coefficient(column) == 1 and self.position.coefficient(row) != 0


class Lines:
    """The lines of `rows` rows of `columns` columns of some arrays, of which each of `tiles` tiles asks for a part."""

    table: ir.Value  # of so many addresses, in scratch memory

    def __init__(self, streams: Sequence[Stream], rows: int, columns: int, tiles: int):
        self.streams, self.rows = streams, rows
        self.per_row = [ceil_div(columns * s.dtype.size, LINE) for s in streams]
        self.count = rows * sum(self.per_row)
        self.each = ceil_div(self.count, tiles)

    def fill(self, e: VectorEmitter, row: Var, first: ir.Value) -> None:
        """For the rows from `first` on; `e` knows the first column."""
        begin = 0
        for stream, count in zip(self.streams, self.per_row, strict=True):
            self._fill(e, stream, (row, first), begin, count)
            begin += self.rows * count

    def _fill(self, e: VectorEmitter, stream: Stream, rows: tuple[Var, ir.Value], begin: int, count: int) -> None:
        """`count` lines of each row, from number `begin` on."""
        (row, first), local, line = rows, Var("local", self.rows), Var("line", count)
        buffer = e.k.op("memref.extract_aligned_pointer_as_index", [e.buffers[stream.buffer]], INDEX)

        def one_row() -> None:
            e.variables[row] = e.plus(first, e.variables[local])
            start = e.plus(buffer, e.times(e.index(stream.position), stream.dtype.size))
            to = e.plus(e.times(e.variables[local], count), begin)

            def one() -> None:
                address = e.plus(start, e.times(e.variables[line], LINE))
                word = Reg(e.k.op("arith.index_cast", [address], _TYPES[int64]), int64, e.k)
                e.k.store(word, self.table, e.plus(to, e.variables[line]))

            e.lanes(line, count, one)

        e.repeat(local, self.rows, one_row)

    def numbers(self, e: VectorEmitter) -> list[ir.Value]:
        return [e.constant_index(self.each), e.constant_index(self.count - 1)]


def prefetch(e: VectorEmitter, table: ir.Value, at: ir.Value) -> None:
    """Ask for the line whose address stands in the table."""
    pointer = e.k.op("llvm.inttoptr", [e.k.load(table, at, int64).value], ir.Type.parse("!llvm.ptr"))
    word = ir.IntegerType.get_signless(32)
    numbers = {name: ir.IntegerAttr.get(word, n) for name, n in (("rw", 0), ("hint", NEAR), ("cache", 1))}
    ir.Operation.create("llvm.intr.prefetch", operands=[pointer], attributes=numbers, loc=e.k.loc, ip=e.k.ip)
