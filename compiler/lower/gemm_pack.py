"""Packs an operand of a matrix product into panels as wide as the register tile, in the dtype of the sums.

A panel holds [k][lane]; panels lie as [batch][tile]. Each of the first functions fills one step, out of calls of the
routines that follow where the operand is a matrix in memory. Where the extent is no multiple of
the width, the last panel moves back and repeats lanes of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mlxir.compiler.lower.builder import INDEX
from mlxir.compiler.lower.gemm_schedule import Side, ceil_div
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.lanes import Computed, vectors_along
from mlxir.compiler.lower.loops import over
from mlxir.compiler.lower.routines import Definition, call, routine
from mlxir.compiler.lower.scalars import Scalar, ScalarGraph
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import Dtype, from_name

CHUNK = 16  # rows of a matrix that one iteration packs


class Operand:
    """One side of the product over its own axis (`lane`: i or j) and k; `side` says how it lies in memory."""

    def __init__(self, node: Scalar, lane: Var, depth: Var):
        self.node, self.lane, self.depth = node, lane, depth
        self.computed: Computed | None = None
        self.side = Side(False, 0, 0, node.dtype.size)
        if node.kind == "load":
            position: Index = node.data[1]
            along, deep = position.coefficient(lane), position.coefficient(depth)
            if along is not None and deep is not None:
                self.base = position - Index.of(lane) * along - Index.of(depth) * deep
                self.side = Side(along >= 0 and deep >= 0, along, deep, node.dtype.size)

    def compute(self, graph: ScalarGraph, lanes: int) -> None:
        """See whether it can be computed in vectors along k."""
        self.computed = None if self.side.plain else vectors_along(graph, self.node, self.depth, lanes)
        if self.computed is not None:
            self.side = self.side._replace(computed=self.computed.length)


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
        if self.operand.computed is not None and self.extent >= self.width:
            return _computed(self, self.operand.computed, e, target)
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
    x, stride, chunk = p.operand, p.operand.side.depth_stride, Var("chunk", ceil_div(p.depth, CHUNK))

    def rows() -> None:
        p.bind()
        above = e.times(e.variables[chunk], CHUNK)
        source = e.plus(e.index(x.base), e.times(above, stride))
        to = e.plus(p.start(e, e.constant_index(0)), e.times(above, p.width))
        known = (stride, max(p.extent - p.width, 0), p.depth * p.width, p.tiles)
        numbers = [source, to, e.part(p.depth, above, CHUNK), *map(e.constant_index, known)]
        what = gemm_pack_rows(p.width, x.node.dtype.name, p.dtype.name)
        call(e, what, [e.buffers[x.node.data[0]], target], numbers)

    over(e, [p.batch, chunk], rows)
    return p.batch.extent * chunk.extent, 1.0 * CHUNK * p.tiles * p.width


def _transposed(p: Packing, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
    """Lanes are contiguous along K: squares of lanes x lanes elements are transposed in registers."""
    x, stride, tile = p.operand, p.operand.side.lane_stride, Var("tile", p.tiles)

    def panel() -> None:
        p.bind()
        source = e.plus(e.index(x.base), e.times(p.first_lane(e, e.variables[tile]), stride))
        start = p.start(e, e.variables[tile])
        what = gemm_pack_columns(p.width, p.lanes, x.node.dtype.name, p.dtype.name)
        numbers = [source, e.constant_index(stride), start, e.constant_index(p.depth)]
        call(e, what, [e.buffers[x.node.data[0]], target], numbers)

    over(e, [p.batch, tile], panel)
    return p.batch.extent * p.tiles, 1.0 * p.depth * p.width


def _computed(p: Packing, x: Computed, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
    """Computed along K: chunks of all lanes of a panel go to scratch memory and are transposed from there."""
    tile, first, lane = Var("tile", p.tiles), Var("first", p.extent - p.width + 1), Var("lane", p.width)
    scratch, _ = e.scratch(p.width * x.length, p.dtype)
    of_lane = x.moved({p.operand.lane: Index.of(first) + lane})

    def one_lane() -> None:
        row = e.times(e.variables[lane], x.length)
        e.hoist([of_lane.node], [x.axis])
        for part in range(x.parts):
            e.store_vector(of_lane.emit(e, part), scratch, e.plus(row, part * x.lanes))

    def chunk() -> None:
        e.repeat(lane, p.width, one_lane)
        start = e.plus(p.start(e, e.variables[tile]), e.times(e.variables[x.chunk], x.length * p.width))
        numbers = [e.constant_index(0), e.constant_index(x.length), start, e.constant_index(x.length)]
        call(e, gemm_pack_columns(p.width, p.lanes, p.dtype.name, p.dtype.name), [scratch, target], numbers)

    def panel() -> None:
        p.bind()
        e.variables[first] = p.first_lane(e, e.variables[tile])
        e.repeat(x.chunk, p.depth // x.length, chunk)

    over(e, [p.batch, tile], panel)
    return p.batch.extent * p.tiles, 1.0 * p.depth * p.width * x.node.cost


# -- routines --------------------------------------------------------------------------------------------------------
@routine
def gemm_pack_rows(width: int, stored: str, dtype: str) -> Definition:
    """(x, panels; from, to, count, stride, last, step, tiles): `count` rows, `stride` apart, cut into `tiles` pieces.

    Piece t, at min(t * width, last) of a row, goes to panel t, which begins at to + t * step.
    """
    source, kept = from_name(stored), from_name(dtype)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        (x, panels), tile, row = e.buffers, Var("tile", 1), Var("row", CHUNK)
        start, to, count, stride, last, step, tiles = numbers

        def piece() -> None:
            begin = e.plus(start, e.lesser(e.times(e.variables[tile], width), last))
            panel = e.plus(to, e.product(e.variables[tile], step))

            def copy() -> None:
                at = e.plus(begin, e.product(e.variables[row], stride))
                value = e.load_vector(x, source, at, width, kept)
                e.store_vector(value, panels, e.plus(panel, e.times(e.variables[row], width)))

            e.repeat(row, count, copy)

        e.repeat(tile, tiles, piece)

    return Definition((source, kept), 7, emit)


@routine
def gemm_pack_columns(width: int, lanes: int, stored: str, dtype: str) -> Definition:
    """(x, panel; from, stride, to, depth): a panel whose lane l is the `depth` elements at `from + l * stride`."""
    source, kept, n = from_name(stored), from_name(dtype), lanes
    step, square, single, lane = Var("step", 1), Var("square", 1), Var("single", 1), Var("lane", width)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        (x, panel), (start, stride, to, depth) = e.buffers, numbers
        squares = e.k.op("arith.divui", [depth, e.constant_index(n)], INDEX)

        def transpose(first: ir.Value, used: int) -> None:
            """The square from lane `first` of the panel on, of which the panel has `used` lanes."""
            above = e.times(e.variables[step], n)
            at = e.plus(e.plus(start, e.product(first, stride)), above)
            places = [e.plus(at, e.times(stride, r)) for r in range(used)]
            rows = [e.load_vector(x, source, p, n, kept) for p in places]
            corner = e.plus(e.plus(to, first), e.times(above, width))
            for r, value in enumerate(e.transposed(rows + rows[:1] * (n - used))):
                value = e.leading(value, used, kept) if used < n else value
                e.store_vector(value, panel, e.plus(corner, r * width))

        def all_lanes() -> None:
            if width >= n:
                e.repeat(square, width // n, lambda: transpose(e.times(e.variables[square], n), n))
            if width % n:
                transpose(e.constant_index(width - width % n), width % n)

        def rest() -> None:
            deep = e.plus(e.times(squares, n), e.variables[single])
            at, corner = e.plus(start, deep), e.plus(to, e.times(deep, width))

            def copy() -> None:
                value = e.k.load(x, e.plus(at, e.product(e.variables[lane], stride)), source)
                e.keep(value, panel, kept, e.plus(corner, e.variables[lane]))

            e.repeat(lane, width, copy)

        e.repeat(step, squares, all_lanes)
        e.repeat(single, e.minus(depth, e.times(squares, n)), rest)

    return Definition((source, kept), 4, emit)
