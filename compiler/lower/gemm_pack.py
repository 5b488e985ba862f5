"""Packs an operand of a matrix product into panels as wide as the register tile, in the dtype of the sums.

A panel holds [k][lane]. A step packs a whole operand into panels that lie as [batch][tile], or a block of the product
packs those that it reads; both by calls of the routines below. Where the extent is no multiple of the width, the last
panel moves back and repeats lanes of the one before.
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
MOVED = 4.0  # simple operations that an element costs which is moved from far and to far


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

    @property
    def layout(self) -> Callable[[Packing, VectorEmitter, ir.Value, Panels], None] | None:
        """What packs panels; None where only `_values` can."""
        side = self.operand.side
        if self.extent < self.width:
            return None
        if side.plain and side.lane_stride == 1:
            return _cut
        if side.plain and side.depth_stride == 1 and self.depth >= self.lanes:
            return _transposed
        return _computed if self.operand.computed is not None else None

    def first_lane(self, e: VectorEmitter, tile: ir.Value) -> ir.Value:
        return first_lane(e, tile, self.width, self.extent)

    def start(self, e: VectorEmitter, tile: ir.Value) -> ir.Value:
        """Where the panel of a tile begins."""
        if self.batch.extent > 1:
            tile = e.plus(e.times(e.variables[self.batch], self.tiles), tile)
        return e.times(tile, self.depth * self.width)

    def emit(self, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
        """The step: it iterates over chunks of rows where these are contiguous along the lanes, else over tiles."""
        layout = self.layout
        if layout is None:
            return _values(self, e, target)
        rows = layout is _cut
        part = Var("chunk", ceil_div(self.depth, CHUNK)) if rows else Var("tile", self.tiles)
        cost = max(MOVED, float(self.operand.node.cost))

        def one() -> None:
            self.bind()
            zero, step = e.constant_index(0), e.constant_index(self.depth * self.width)
            if rows:
                above = e.times(e.variables[part], CHUNK)
                at = e.plus(self.start(e, zero), e.times(above, self.width))
                panels = Panels(at, step, zero, e.constant_index(self.tiles), above, e.part(self.depth, above, CHUNK))
            else:
                tile, one = e.variables[part], e.constant_index(1)
                panels = Panels(self.start(e, tile), step, tile, one, zero, e.constant_index(self.depth))
            layout(self, e, target, panels)

        over(e, [self.batch, part], one)
        each = CHUNK * self.tiles if rows else self.depth
        return self.batch.extent * part.extent, cost * each * self.width


class Panels(NamedTuple):
    """`count` panels from tile `first` on, to lie `step` apart from `at` on; `deep` steps along K from `start` on."""

    at: ir.Value
    step: ir.Value
    first: ir.Value
    count: ir.Value
    start: ir.Value
    deep: ir.Value


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


def _cut(p: Packing, e: VectorEmitter, target: ir.Value, panels: Panels) -> None:
    """Rows are contiguous along the lanes: they are cut into pieces of the tile's width."""
    x, stride, begin = p.operand, p.operand.side.depth_stride, e.times(panels.first, p.width)
    source = e.plus(e.plus(e.index(x.base), begin), e.times(panels.start, stride))
    last = e.minus(e.constant_index(max(p.extent - p.width, 0)), begin)
    numbers = [source, panels.at, panels.deep, e.constant_index(stride), last, panels.step, panels.count]
    what = gemm_pack_rows(p.width, x.node.dtype.name, p.dtype.name)
    call(e, what, [e.buffers[x.node.data[0]], target], numbers)


def _transposed(p: Packing, e: VectorEmitter, target: ir.Value, panels: Panels) -> None:
    """Lanes are contiguous along K: squares of lanes x lanes elements are transposed in registers."""
    x, stride, tile = p.operand, p.operand.side.lane_stride, Var("panel", 1)
    what = gemm_pack_columns(p.width, p.lanes, x.node.dtype.name, p.dtype.name)

    def panel() -> None:
        lane = p.first_lane(e, e.plus(panels.first, e.variables[tile]))
        source = e.plus(e.plus(e.index(x.base), e.times(lane, stride)), panels.start)
        to = e.plus(panels.at, e.product(e.variables[tile], panels.step))
        numbers = [source, e.constant_index(stride), to, panels.deep]
        call(e, what, [e.buffers[x.node.data[0]], target], numbers)

    e.repeat(tile, panels.count, panel)


def _computed(p: Packing, e: VectorEmitter, target: ir.Value, panels: Panels) -> None:
    """Computed along K: chunks of all lanes of a panel go to scratch memory and are transposed from there."""
    x = p.operand.computed
    assert x is not None
    tile, first, lane = Var("panel", 1), Var("first", p.extent - p.width + 1), Var("lane", p.width)
    scratch, _ = e.scratch(p.width * x.length, p.dtype)
    of_lane, local = x.moved({p.operand.lane: Index.of(first) + lane}), Var("local", 1)
    length = e.constant_index(x.length)
    before, count = (e.k.op("arith.divui", [n, length], INDEX) for n in (panels.start, panels.deep))

    def one_lane() -> None:
        row = e.times(e.variables[lane], x.length)
        e.hoist([of_lane.node], [x.axis])
        for part in range(x.parts):
            e.store_vector(of_lane.emit(e, part), scratch, e.plus(row, part * x.lanes))

    def panel() -> None:
        e.variables[first] = p.first_lane(e, e.plus(panels.first, e.variables[tile]))
        to = e.plus(panels.at, e.product(e.variables[tile], panels.step))

        def chunk() -> None:
            e.variables[x.chunk] = e.plus(before, e.variables[local])
            e.repeat(lane, p.width, one_lane)
            numbers = [e.constant_index(0), length, e.plus(to, e.times(e.variables[local], x.length * p.width)), length]
            call(e, gemm_pack_columns(p.width, p.lanes, p.dtype.name, p.dtype.name), [scratch, target], numbers)

        e.repeat(local, count, chunk)

    e.repeat(tile, panels.count, panel)


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
