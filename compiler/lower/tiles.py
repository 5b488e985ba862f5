"""Products of small matrices that lie in scratch memory: register tiles for kernels that keep their operands in L2.

    for columns of c by vectors, rows of c by R:      R x V registers
      for k { load V vectors of b[k]; R scalars of a[:, k]; vector.fma ... }

`gemm.py` lowers a whole product; here another kernel (attention) computes a piece of one inside its loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.index import Var
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype

SPARE = 16  # rows of the tallest tile


class Matrix(NamedTuple):
    """Element (row, column) lies at base + row * stride + column * step. Vectors run along columns of step 1."""

    buffer: ir.Value
    base: ir.Value
    stride: int
    step: int = 1

    def transposed(self) -> Matrix:
        return self._replace(stride=self.step, step=self.stride)

    def at(self, e: VectorEmitter, row: ir.Value, column: ir.Value) -> ir.Value:
        return e.plus(e.plus(self.base, e.times(row, self.stride)), e.times(column, self.step))


class Tiles(NamedTuple):
    """The register tiles of a machine with vectors of `lanes` elements of `dtype`."""

    dtype: Dtype
    lanes: int
    registers: int

    @property
    def vectors(self) -> int:
        """Of the widest tile."""
        return 4 if self.registers == 32 else 2

    def rows(self, vectors: int) -> int:
        """So many that the sums hide the latency of a multiply-add."""
        return min(SPARE, 4 * self.vectors) // vectors

    def pieces(self, columns: int) -> Iterator[tuple[int, int, int, int]]:
        """(first column, count, vectors, lanes) of runs of equal tiles that cover `columns` exactly."""
        first, lanes, vectors = 0, self.lanes, self.vectors
        while first < columns:
            left = columns - first
            while lanes > left:
                lanes //= 2
            vectors = min(vectors, left // lanes)
            count = left // (lanes * vectors)
            yield first, count, vectors, lanes
            first += count * lanes * vectors

    def multiply(
        self, e: VectorEmitter, rows: int | ir.Value, columns: int, depth: int | ir.Value, a: Matrix, b: Matrix,
        c: Matrix, begin: ir.Value | None = None, add: bool = False, whole: bool = False,
    ) -> None:  # fmt: skip
        """c = a @ b; c + a @ b with `add`; c * begin + a @ b with `begin`, a buffer of one factor per row.

        `whole`: a and c have room for SPARE more rows, which may be read and written.
        """

        def strip(column: ir.Value, vectors: int, lanes: int) -> None:
            def tile(row: ir.Value, count: int) -> None:
                self._tile(e, row, count, column, vectors, lanes, depth, (a, b, c), begin, add)

            in_tiles(e, rows, self.rows(vectors), tile, whole)

        for first, count, vectors, lanes in self.pieces(columns):
            group, width = Var("columns", count), vectors * lanes
            if count == 1:
                strip(e.constant_index(first), vectors, lanes)
                continue

            def group_of_columns(first: int = first, group: Var = group, width: int = width, vectors: int = vectors,
                                 lanes: int = lanes) -> None:  # fmt: skip
                strip(e.plus(e.times(e.variables[group], width), first), vectors, lanes)

            e.repeat(group, count, group_of_columns)

    def _tile(
        self, e: VectorEmitter, row: ir.Value, rows: int, column: ir.Value, vectors: int, lanes: int,
        depth: int | ir.Value, operands: tuple[Matrix, Matrix, Matrix], begin: ir.Value | None, add: bool,
    ) -> None:  # fmt: skip
        a, b, c = operands
        dtype, k, zero = self.dtype, Var("k", 0), e.constant_index(0)
        a_base, b_base, corner = a.at(e, row, zero), b.at(e, zero, column), c.at(e, row, column)
        places = [e.plus(corner, r * c.stride + v * lanes) for r in range(rows) for v in range(vectors)]

        def load(matrix: Matrix, place: ir.Value) -> ir.Value:
            return e.load_vector(matrix.buffer, dtype, place, lanes, dtype)

        starts = [e.zeros(lanes, dtype)] * len(places)
        if add or begin is not None:
            starts = [load(c, p) for p in places]
        if begin is not None:
            factors = [e.spread(e.k.load(begin, e.plus(row, r), dtype).value, lanes, dtype) for r in range(rows)]
            starts = [e.multiply(s, factors[n // vectors]) for n, s in enumerate(starts)]

        def step(sums: list[Reg]) -> list[Reg]:
            a_at = e.plus(a_base, e.times(e.variables[k], a.step))
            b_at = e.plus(b_base, e.times(e.variables[k], b.stride))
            row_of_b = [load(b, e.plus(b_at, v * lanes)) for v in range(vectors)]
            out = []
            for r in range(rows):
                spread = e.spread(e.k.load(a.buffer, e.plus(a_at, r * a.stride), dtype).value, lanes, dtype)
                sums_of_row = sums[r * vectors : (r + 1) * vectors]
                out += [e.multiply_add(spread, x, s.value) for x, s in zip(row_of_b, sums_of_row, strict=True)]
            return [Reg(v, dtype, e.k) for v in out]

        for total, place in zip(e.rolled(k, depth, [Reg(s, dtype, e.k) for s in starts], step), places, strict=True):
            e.store_vector(total.value, c.buffer, place)

    def transpose(self, e: VectorEmitter, source: Matrix, rows: int, columns: int, target: Matrix) -> None:
        """target = source^T by squares of `lanes`; both have room for multiples of that."""
        n, i, j = self.lanes, Var("i", -(-rows // self.lanes)), Var("j", -(-columns // self.lanes))

        def square() -> None:
            row, column = e.times(e.variables[i], n), e.times(e.variables[j], n)
            at, to = source.at(e, row, column), target.at(e, column, row)
            loaded = [
                e.load_vector(source.buffer, self.dtype, e.plus(at, r * source.stride), n, self.dtype) for r in range(n)
            ]
            for r, value in enumerate(e.transposed(loaded)):
                e.store_vector(value, target.buffer, e.plus(to, r * target.stride))

        e.repeat(i, i.extent, lambda: e.repeat(j, j.extent, square))


def in_tiles(
    e: VectorEmitter, rows: int | ir.Value, size: int, tile: Callable[[ir.Value, int], None], whole: bool
) -> None:
    """`tile(first, count)` for `size` rows at a time, then for the rest: one tile if it is known or may be `whole`,
    else row by row.
    """
    group, single = Var("rows", 0), Var("row", 0)

    def full() -> None:
        tile(e.times(e.variables[group], size), size)

    if isinstance(rows, int):
        if rows >= size:
            e.repeat(group, rows // size, full)
        if rows % size:
            tile(e.constant_index(rows - rows % size), rows % size)
        return
    begun = e.plus(rows, size - 1) if whole else rows
    groups = e.k.op("arith.divui", [begun, e.constant_index(size)], INDEX)
    e.repeat(group, groups, full)
    if whole:
        return
    done = e.times(groups, size)
    e.repeat(single, e.minus(rows, done), lambda: tile(e.plus(done, e.variables[single]), 1))
