"""Packs an operand of a matrix product into panels as wide as the register tile, in the dtype of the sums.

A panel holds [k][lane]; panels lie as [batch][tile]. Each function fills one step. Where the extent is no multiple of
the width, the last panel moves back and repeats lanes of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlxir.compiler.lower.gemm_schedule import Side, ceil_div
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import over
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import Dtype

CHUNK = 16  # rows of a matrix that one iteration packs


class Operand:
    """One side of the product over its own axis (`lane`: i or j) and k; `side` says how it lies in memory."""

    def __init__(self, node: Scalar, lane: Var, depth: Var):
        self.node, self.lane, self.depth = node, lane, depth
        self.side = Side(False, 0, 0, node.dtype.size)
        if node.kind == "load":
            position: Index = node.data[1]
            along, deep = position.coefficient(lane), position.coefficient(depth)
            if along is not None and deep is not None:
                self.base = position - Index.of(lane) * along - Index.of(depth) * deep
                self.side = Side(along >= 0 and deep >= 0, along, deep, node.dtype.size)


class Packing(NamedTuple):
    """What to pack, and how: panels of `width` lanes; squares of `lanes` are transposed."""

    operand: Operand
    batch: Var  # of extent 1 where the operand is the same for the whole batch
    width: int
    lanes: int
    dtype: Dtype
    bind: Callable[[], None] = lambda: None  # sets the variables of the operand that depend on the batch

    @property
    def extent(self) -> int:
        return self.operand.lane.extent

    @property
    def tiles(self) -> int:
        return ceil_div(self.extent, self.width)

    @property
    def depth(self) -> int:
        return self.operand.depth.extent

    @property
    def size(self) -> int:
        return self.batch.extent * self.tiles * self.depth * self.width

    def first_lane(self, e: VectorEmitter, tile: ir.Value) -> ir.Value:
        return first_lane(e, tile, self.width, self.extent)

    def start(self, e: VectorEmitter, tile: ir.Value) -> ir.Value:
        """Where the panel of a tile begins."""
        if self.batch.extent > 1:
            tile = e.plus(e.times(e.variables[self.batch], self.tiles), tile)
        return e.times(tile, self.depth * self.width)

    def emit(self, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
        side = self.operand.side
        if side.plain and self.extent >= self.width and side.lane_stride == 1:
            return _rows(self, e, target)
        if side.plain and self.extent >= self.width and side.depth_stride == 1 and self.depth >= self.lanes:
            return _transposed(self, e, target)
        return _values(self, e, target)


def first_lane(e: VectorEmitter, tile: ir.Value, width: int, extent: int) -> ir.Value:
    """The first lane of a tile; the last tile moves back to stay inside."""
    first = e.times(tile, width)
    whole = not is_symbolic(extent) and extent % width == 0
    return first if whole else e.least(first, max(extent - width, 0))


def _values(p: Packing, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
    """Element by element: any index map, computed operands, and panels wider than the matrix, which zeros fill up."""
    x, tile, local = p.operand, Var("tile", p.tiles), Var("lane", p.width)
    inside = min(p.width, p.extent)

    def panel() -> None:
        p.bind()
        first, start = p.first_lane(e, e.variables[tile]), p.start(e, e.variables[tile])

        def row() -> None:
            at = e.plus(start, e.times(e.variables[x.depth], p.width))

            def copy() -> None:
                e.variables[x.lane] = e.plus(first, e.variables[local])
                e.keep(e.value(x.node), target, p.dtype, e.plus(at, e.variables[local]))

            def clear() -> None:
                e.k.store(e.k.const(0, p.dtype), target, e.plus(e.plus(at, inside), e.variables[local]))

            e.hoist([x.node], [x.lane])
            e.lanes(local, inside, copy)
            if inside < p.width:
                e.lanes(local, p.width - inside, clear)

        e.repeat(x.depth, p.depth, row)

    over(e, [p.batch, tile], panel)
    return p.batch.extent * p.tiles, 1.0 * p.depth * p.width * max(x.node.cost, 1)


def _rows(p: Packing, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
    """Rows are contiguous along the lanes: an iteration cuts a few of them into pieces of the tile's width."""
    x, stride = p.operand, p.operand.side.depth_stride
    chunk, tile, row = Var("chunk", ceil_div(p.depth, CHUNK)), Var("tile", p.tiles), Var("row", CHUNK)

    def rows() -> None:
        p.bind()
        above = e.times(e.variables[chunk], CHUNK)
        count = e.rest(p.depth, above, CHUNK)
        base = e.plus(e.index(x.base), e.times(above, stride))

        def piece() -> None:
            source = e.plus(base, p.first_lane(e, e.variables[tile]))
            start = e.plus(p.start(e, e.variables[tile]), e.times(above, p.width))

            def copy() -> None:
                at = e.plus(source, e.times(e.variables[row], stride))
                value = e.load_vector(e.buffers[x.node.data[0]], x.node.dtype, at, p.width, p.dtype)
                e.store_vector(value, target, e.plus(start, e.times(e.variables[row], p.width)))

            e.repeat(row, count, copy)

        e.repeat(tile, p.tiles, piece)

    over(e, [p.batch, chunk], rows)
    return p.batch.extent * chunk.extent, 1.0 * CHUNK * p.tiles * p.width


def _transposed(p: Packing, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
    """Lanes are contiguous along K: squares of lanes x lanes elements are transposed in registers."""
    x, stride, n = p.operand, p.operand.side.lane_stride, p.lanes
    buffer, dtype = e.buffers[x.node.data[0]], x.node.dtype
    tile, step, square = Var("tile", p.tiles), Var("step", p.depth // n), Var("square", p.width // n)
    single, lane = Var("single", n), Var("lane", p.width)

    def panel() -> None:
        p.bind()
        source = e.plus(e.index(x.base), e.times(p.first_lane(e, e.variables[tile]), stride))
        start = p.start(e, e.variables[tile])

        def transpose(first: ir.Value, used: int) -> None:
            """The square from lane `first` of the panel on, of which the panel has `used` lanes."""
            depth = e.times(e.variables[step], n)
            at = e.plus(e.plus(source, e.times(first, stride)), depth)
            rows = [e.load_vector(buffer, dtype, e.plus(at, r * stride), n, p.dtype) for r in range(used)]
            to = e.plus(e.plus(start, first), e.times(depth, p.width))
            for r, value in enumerate(e.transposed(rows + rows[:1] * (n - used))):
                value = e.leading(value, used, p.dtype) if used < n else value
                e.store_vector(value, target, e.plus(to, r * p.width))

        def squares() -> None:
            if p.width >= n:
                e.repeat(square, p.width // n, lambda: transpose(e.times(e.variables[square], n), n))
            if p.width % n:
                transpose(e.constant_index(p.width - p.width % n), p.width % n)

        def tail() -> None:
            depth = e.plus(e.variables[single], p.depth - p.depth % n)
            at, to = e.plus(source, depth), e.plus(start, e.times(depth, p.width))

            def copy() -> None:
                value = e.k.load(buffer, e.plus(at, e.times(e.variables[lane], stride)), dtype)
                e.keep(value, target, p.dtype, e.plus(to, e.variables[lane]))

            e.lanes(lane, p.width, copy)

        e.repeat(step, p.depth // n, squares)
        if is_symbolic(p.depth) or p.depth % n:
            e.repeat(single, p.depth % n, tail)

    over(e, [p.batch, tile], panel)
    return p.batch.extent * p.tiles, 1.0 * p.depth * p.width
