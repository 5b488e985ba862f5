"""A block of a matrix product, as routines: C = A @ B or C += A @ B for some tiles of rows by some tiles of columns.

    for rows of tiles { for columns of tiles {
      %c:24 = scf.for %k { %b:4 = load B[k]; for each of 6 rows { %a = spread A[r, k]; fma(%a, %b#0), ... } }
      store %c } }

    gemm_block      vectors along the columns of C, as above
    gemm_block_k    vectors along K, for few rows by a transposed matrix: a register holds partial sums of one element

A and B are panels that were packed ([k][lane], as wide as the tile), or matrices where they lie: strides are arguments,
which costs a few additions beside the multiply-adds of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.gemm_schedule import Tile
from mlxir.compiler.lower.index import Var
from mlxir.compiler.lower.lanes import Computed
from mlxir.compiler.lower.prefetch import prefetch
from mlxir.compiler.lower.routines import Definition, routine
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype, from_name, int64


class Lanes(NamedTuple):
    """The tiles of an operand: lane l of tile t lies, at depth k, at at + min(t * step, last) + l * lane + k * depth.

    A block has `count` of them, from number `first` on.
    """

    at: ir.Value
    lane: ir.Value
    depth: ir.Value
    step: ir.Value
    last: ir.Value
    first: ir.Value
    count: ir.Value

    def tile(self, e: VectorEmitter, number: ir.Value) -> ir.Value:
        return e.plus(self.at, e.lesser(e.product(e.plus(self.first, number), self.step), self.last))


class Sums(NamedTuple):
    """Where C goes, its tiles side by side; the sums are added to what lies there if `add` is not 0.

    The last column of tiles, number `edge`, moves back by `overlap` columns, which the tile before has computed.
    """

    at: ir.Value
    stride: ir.Value
    add: ir.Value
    edge: ir.Value
    overlap: ir.Value


class Block(NamedTuple):
    """What both routines take: `count` steps along K, in elements or in vectors."""

    a: Lanes
    b: Lanes
    c: Sums
    count: ir.Value

    def numbers(self) -> list[ir.Value]:
        return [*self.a, *self.b, *self.c, self.count]

    @staticmethod
    def of(numbers: list[ir.Value]) -> Block:
        n = len(Lanes._fields)
        return Block(Lanes(*numbers[:n]), Lanes(*numbers[n : 2 * n]), Sums(*numbers[2 * n : -1]), numbers[-1])


NUMBERS = 2 * len(Lanes._fields) + len(Sums._fields) + 1
Corners = tuple[ir.Value, ir.Value, ir.Value, ir.Value]
"""Where a tile begins in a, b and c, and the number of its column in the block."""


def _tiles(
    e: VectorEmitter, x: Block, tile: Tile, one: Callable[[Corners], None], edge: Callable[[Corners], None] | None
) -> None:
    """All tiles of a block; `edge` computes those of the last column, if they differ."""
    row, column = Var("row", 1), Var("column", 1)

    before = e.product(e.minus(x.c.edge, x.b.first), e.constant_index(tile.columns))
    most = e.minus(before, x.c.overlap)  # columns before the last tile of all

    def along_a_row() -> None:
        a_at = x.a.tile(e, e.variables[row])
        above = e.plus(x.c.at, e.product(e.times(e.variables[row], tile.rows), x.c.stride))

        def at_a_column() -> None:
            left = e.lesser(e.times(e.variables[column], tile.columns), most)
            at = a_at, x.b.tile(e, e.variables[column]), e.plus(above, left), e.variables[column]
            if edge is None:
                one(at)
            else:
                number = e.minus(e.plus(x.b.first, e.variables[column]), x.c.edge)
                e.when_equal(number, 0, lambda: edge(at), lambda: one(at))

        e.repeat(column, x.b.count, at_a_column)

    e.repeat(row, x.a.count, along_a_row)


@routine
def gemm_block(
    rows: int, vectors: int, lanes: int, a_dtype: str, b_dtype: str, dtype: str, edge: int, ahead: int
) -> Definition:
    """(a, b, c; a Block). `edge`: vectors that tiles of the last column compute; 0, where it does not move back.

    The others were computed by the column before, and so was a part of the first. With `ahead` also (lines; each,
    last): each tile asks for so many of the lines while it multiplies, up to the last (prefetch.py).
    """
    types = from_name(a_dtype), from_name(b_dtype), from_name(dtype)
    tile = Tile(rows, vectors, lanes)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        x, lines = Block.of(numbers[:NUMBERS]), numbers[NUMBERS:]

        def at_the_edge(at: Corners) -> None:
            a_at, b_at, corner, number = at
            skip = (vectors - edge) * lanes
            rest = a_at, e.plus(b_at, skip), e.plus(corner, skip), number
            _tile(e, x, tile._replace(vectors=edge), types, rest, e.plus(x.c.overlap, -skip), lines)

        _tiles(e, x, tile, lambda at: _tile(e, x, tile, types, at, None, lines), at_the_edge if edge else None)

    return Definition((*types, int64) if ahead else types, NUMBERS + (2 if ahead else 0), emit)


def _tile(
    e: VectorEmitter, x: Block, tile: Tile, types: tuple[Dtype, Dtype, Dtype], at: Corners, kept: ir.Value | None,
    lines: list[ir.Value],
) -> None:  # fmt: skip
    """One tile; the first `kept` columns of C stay as they are."""
    (a, b, c, *table), (a_dtype, b_dtype, dtype), lanes, vectors = e.buffers, types, tile.lanes, range(tile.vectors)
    a_at, b_at, corner, number = at
    k, zero = Var("k", 1), e.zeros(lanes, dtype)
    row_starts = [e.plus(a_at, e.times(x.a.lane, r)) for r in range(tile.rows)]

    def step(sums: list[Reg]) -> list[Reg]:
        if lines:
            each, last = lines
            line = e.plus(e.product(number, each), e.lesser(e.variables[k], e.plus(each, -1)))
            prefetch(e, table[0], e.lesser(line, last))
        a_step, b_from = e.product(e.variables[k], x.a.depth), e.plus(b_at, e.product(e.variables[k], x.b.depth))
        row_of_b = [e.load_vector(b, b_dtype, e.plus(b_from, v * lanes), lanes, dtype) for v in vectors]
        out = []
        for r in range(tile.rows):
            scalar = e.k.load(a, e.plus(row_starts[r], a_step), a_dtype).value
            spread = e.spread(scalar, lanes, dtype)
            row = sums[r * tile.vectors : (r + 1) * tile.vectors]
            out += [e.multiply_add(spread, y, s.value) for y, s in zip(row_of_b, row, strict=True)]
        return [Reg(v, dtype, e.k) for v in out]

    sums = e.rolled(k, x.count, [Reg(zero, dtype, e.k)] * (tile.rows * tile.vectors), step)
    places = [e.plus(e.plus(corner, e.times(x.c.stride, r)), v * lanes) for r in range(tile.rows) for v in vectors]
    masks = [None if kept is None else e.leading_mask(e.plus(kept, -v * lanes), lanes) for v in vectors]

    def store(add: bool) -> None:
        for n, (total, place) in enumerate(zip(sums, places, strict=True)):
            value, mask = total.value, masks[n % tile.vectors]
            if add or mask is not None:
                before = e.load_vector(c, dtype, place, lanes, dtype)
                value = e.add(before, value) if add else value
                value = value if mask is None else e.choose(mask, before, value)
            e.store_vector(value, c, place)

    e.when_equal(x.c.add, 0, lambda: store(False), lambda: store(True))


@routine
def gemm_block_k(rows: int, columns: int, lanes: int, a_dtype: str, b_dtype: str, dtype: str, rest: int) -> Definition:
    """(a, b, c; a Block): C[r, c] = sum over k of a[r, k] * b[c, k], all of K at once.

    K is `count` vectors and `rest` more elements: these come in a last vector that moves back to stay inside, and
    counts what it repeats as zeros. Tiles that overlap write the same values.
    """
    types = from_name(a_dtype), from_name(b_dtype), from_name(dtype)
    tile = Tile(rows, columns, lanes, along_k=True)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        x = Block.of(numbers)
        _tiles(e, x, tile, lambda at: _tile_along_k(e, x, tile, types, at, rest), None)

    return Definition(types, NUMBERS, emit)


def _tile_along_k(
    e: VectorEmitter, x: Block, tile: Tile, types: tuple[Dtype, Dtype, Dtype], at: Corners, rest: int
) -> None:
    (a, b, c), (a_dtype, b_dtype, dtype), (a_at, b_at, corner, _), lanes = e.buffers, types, at, tile.lanes
    k, zero = Var("k", 1), e.zeros(lanes, dtype)
    a_starts = [e.plus(a_at, e.times(x.a.lane, r)) for r in range(tile.rows)]
    b_starts = [e.plus(b_at, e.times(x.b.lane, v)) for v in range(tile.columns)]

    def add(sums: list[Reg], deep: ir.Value, skip: int) -> list[Reg]:
        def read(buffer: ir.Value, stored: Dtype, starts: list[ir.Value]) -> list[ir.Value]:
            values = [e.load_vector(buffer, stored, e.plus(s, deep), lanes, dtype) for s in starts]
            return [e.without(v, skip, zero) for v in values] if skip else values

        columns = read(b, b_dtype, b_starts)
        pairs = [(x, y) for x in read(a, a_dtype, a_starts) for y in columns]
        totals = [e.multiply_add(x, y, s.value) for (x, y), s in zip(pairs, sums, strict=True)]
        return [Reg(t, dtype, e.k) for t in totals]

    starts = [Reg(zero, dtype, e.k)] * (tile.rows * tile.columns)
    sums = e.rolled(k, x.count, starts, lambda sums: add(sums, e.times(e.variables[k], lanes), 0))
    if rest:
        sums = add(sums, e.plus(e.times(x.count, lanes), rest - lanes), lanes - rest)
    _store_sums(e, x, tile, corner, (c, dtype), sums)


def _store_sums(
    e: VectorEmitter, x: Block, tile: Tile, corner: ir.Value, c: tuple[ir.Value, Dtype], sums: list[Reg]
) -> None:
    """The elements of a tile along K, each the sum of a register's lanes."""
    for n, total in enumerate(sums):
        r, v = divmod(n, tile.columns)
        place = e.plus(e.plus(corner, e.times(x.c.stride, r)), v)
        e.k.store(Reg(e.sum_of_lanes(total.value, c[1]), c[1], e.k), c[0], place)


def gemm_computed_k(
    e: VectorEmitter, x: Block, tile: Tile, a: tuple[ir.Value, Dtype], c: tuple[ir.Value, Dtype],
    b: tuple[Var, list[Computed]],
) -> None:  # fmt: skip
    """The same block where b is computed: by the columns of a tile, from a variable on. No routine: they are the
    kernel's own.
    """
    (first, columns), dtype = b, c[1]
    chunk, lanes = columns[0].chunk, columns[0].lanes

    def one(at: Corners) -> None:
        a_at, e.variables[first], corner, _ = at
        starts = [e.plus(a_at, e.times(x.a.lane, r)) for r in range(tile.rows)]

        def step(sums: list[Reg]) -> list[Reg]:
            deep, totals = e.times(e.variables[chunk], columns[0].length), [s.value for s in sums]
            # One column after the other: what its elements share is needed only then.
            for c, part in itertools.product(range(tile.columns), range(columns[0].parts)):
                values = columns[c].emit(e, part)
                for n, r in itertools.product(range(0, lanes, tile.lanes), range(tile.rows)):
                    row = e.load_vector(*a, e.plus(starts[r], e.plus(deep, part * lanes + n)), tile.lanes, dtype)
                    value, at = e.leading(values, tile.lanes, dtype, n), r * tile.columns + c
                    totals[at] = e.multiply_add(row, value, totals[at])
            return [Reg(t, dtype, e.k) for t in totals]

        zeros = [Reg(e.zeros(tile.lanes, dtype), dtype, e.k)] * (tile.rows * tile.columns)
        _store_sums(e, x, tile, corner, c, e.rolled(chunk, x.count, zeros, step))

    _tiles(e, x, tile, one, None)
