"""A convolution along its output: blocks of it, each with its window of x; the weights are packed once."""

from __future__ import annotations

from math import prod

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.conv_product import Convolution
from mlxir.compiler.lower.conv_schedule import Extents, OutputSchedule
from mlxir.compiler.lower.conv_tile import Level, Part, RegisterTile, block_count, merged
from mlxir.compiler.lower.conv_window import Inner, Span, Window
from mlxir.compiler.lower.gemm_pack import Operand, Packing, first_lane
from mlxir.compiler.lower.gemm_product import StepBuilder
from mlxir.compiler.lower.gemm_schedule import ceil_div
from mlxir.compiler.lower.index import Index, Var, delinearize
from mlxir.compiler.lower.loops import over
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir


class AlongOutput(Part):
    """Blocks of the output, each with its window of x; the weights are packed once, by a step before."""

    def __init__(self, product: Convolution, extents: Extents, suffix: str, schedule: OutputSchedule):
        super().__init__(product, extents, suffix)
        self.schedule, self.tile = schedule, schedule.tile
        self.width = extents.depth * (self.tile.columns if self.lanewise else 1)  # of a place in the window
        (_, height, reach), tile, axes = extents.taps, self.tile, extents.axes
        self.row_tiles = ceil_div(schedule.columns, tile.rows)
        self.places = axes[2].window(self.row_tiles * tile.rows, reach)
        self.tall = axes[1].window(schedule.rows, height)
        self.empty = 0 in (*extents.taps, extents.depth)

    def add(self, builder: StepBuilder) -> None:
        roots = self.product.roots
        packed, reads = None, []
        if not self.empty:
            packed = builder.temporary(self._packing().size, self.dtype)
            builder.add(f"{self.suffix}_pack", [self.weight], [], [packed], lambda e: self._pack(e, e.buffers[packed]))
            reads = [packed]
        nodes = [self.source, *[r.node for r in roots]]
        builder.add(self.suffix, nodes, reads, [r.buffer for r in roots],
                    lambda e: self._emit(e, None if packed is None else e.buffers[packed]))  # fmt: skip

    # -- weights ----------------------------------------------------------------------------------------------------
    def _packing(self) -> Packing:
        """Panels [group][tap][tile of channels][q][lane]; along the depth [group][tap][vector of q][channel][lane]."""
        lane, depth, width = self.lane, self.product.q, self.tile.columns
        if self.tile.along_k:
            lane, depth, width = depth, lane, self.tile.lanes
        count = self.extents.outer_groups * prod(self.extents.taps)
        return Packing(Operand(self.weight, lane, depth), Var("tap", count), width, self.tile.lanes, self.dtype)

    def _pack(self, e: VectorEmitter, target: ir.Value) -> tuple[int, float]:
        packing = self._packing()
        variables = [self.group, *self.taps]

        def bind() -> None:
            which = delinearize(Index.of(packing.batch), tuple(v.extent for v in variables))
            for v, i in zip(variables, which, strict=True):
                e.variables[v] = e.index(i)

        return packing._replace(bind=bind).emit(e, target)

    # -- blocks -----------------------------------------------------------------------------------------------------
    def _emit(self, e: VectorEmitter, weights: ir.Value | None) -> tuple[int, float]:
        s, x, tile = self.schedule, self.extents, self.tile
        block1, block2 = Var("rows", ceil_div(x.counts[1], s.rows)), Var("columns", ceil_div(x.counts[2], s.columns))
        channel_tiles = ceil_div(x.lanes, tile.columns)
        outer = Var("channels", channel_tiles if self.lanewise else 1)  # lanes of groups have a window of their own
        plane = Var("plane", x.counts[0])
        group = self.group if not self.lanewise else Var("all", 1)
        size = x.taps[0] * self.tall * self.places * self.width
        window = e.scratch(max(size, 1), self.dtype)[0]
        sums = e.scratch(self.row_tiles * tile.rows * tile.columns, self.dtype)[0]

        def block() -> None:
            if self.lanewise:
                e.variables[self.group] = e.constant_index(0)
            self.bind_output(e, 0, e.variables[plane])
            first1, first2 = e.times(e.variables[block1], s.rows), e.times(e.variables[block2], s.columns)
            rows = block_count(x.counts[1], s.rows, e, first1)
            columns = block_count(x.counts[2], s.columns, e, first2)
            if self.lanewise:
                channel = first_lane(e, e.variables[outer], tile.columns, x.lanes)
                self._fill(e, window, e.variables[plane], first1, first2, rows, channel)
                self._rows(e, window, weights, sums, first1, first2, rows, columns, e.variables[outer], channel)
                return
            self._fill(e, window, e.variables[plane], first1, first2, rows, None)
            number = Var("channel_tile", channel_tiles)

            def channels() -> None:
                channel = first_lane(e, e.variables[number], tile.columns, x.lanes)
                self._rows(e, window, weights, sums, first1, first2, rows, columns, e.variables[number], channel)

            e.repeat(number, channel_tiles, channels)

        extent = over(e, [self.product.n, group, outer, plane, block1, block2], block)
        per_block = s.rows * s.columns * (tile.columns if self.lanewise else x.lanes)
        cost = x.depth * prod(x.taps) + sum(r.node.cost for r in self.product.roots)
        return extent, float(per_block * cost)

    def _fill(
        self, e: VectorEmitter, window: ir.Value, plane: ir.Value, first1: ir.Value, first2: ir.Value,
        rows: int | ir.Value, channel: ir.Value | None,
    ) -> None:  # fmt: skip
        """The window [tap of axis 0][place of axis 1][place of axis 2][channel]."""
        if self.empty:
            return
        x, axes, zero = self.extents, self.extents.axes, e.constant_index(0)
        row = self.places * self.width
        reach = axes[1].window(1, axes[1].taps)
        tall = self.tall if isinstance(rows, int) else e.plus(e.times(e.plus(rows, -1), axes[1].stride), reach)
        spans = [
            Span(self.product.p[0], self.start(e, 0, plane), axes[0].dilation, x.taps[0], self.tall * row),
            Span(self.product.p[1], self.start(e, 1, first1), 1, tall, row),
            Span(self.product.p[2], self.start(e, 2, first2), 1, self.places, self.width),
        ]
        inner = [Inner(self.product.q, zero, x.depth, self.tile.columns if self.lanewise else 1)]
        if channel is not None:
            inner.append(Inner(self.product.g, channel, min(self.tile.columns, x.lanes), 1))
        Window(e, self.source, spans, inner, window, self.dtype).emit()

    def _rows(
        self, e: VectorEmitter, window: ir.Value, weights: ir.Value | None, sums: ir.Value, first1: ir.Value,
        first2: ir.Value, rows: int | ir.Value, columns: int | ir.Value, number: ir.Value, channel: ir.Value,
    ) -> None:  # fmt: skip
        """The rows of a block for one tile of channels, each finished before the next."""
        tile, axes, size = self.tile, self.extents.axes, self.tile.rows * self.tile.columns
        row, piece = Var("row", self.schedule.rows), Var("piece", self.row_tiles)

        def one_row() -> None:
            base = e.times(e.variables[row], axes[1].stride * self.places * self.width)

            def tiles() -> None:
                at = e.plus(base, e.times(e.variables[piece], tile.rows * axes[2].stride * self.width))
                self._tile(e, window, at, weights, number, sums, e.times(e.variables[piece], size))

            used = self.row_tiles if isinstance(columns, int) else ceil_div_value(e, columns, tile.rows)
            e.repeat(piece, used, tiles)
            self.bind_output(e, 1, e.plus(first1, e.variables[row]))
            self._finish(e, sums, first2, columns, channel)

        e.repeat(row, rows, one_row)

    def _tile(
        self, e: VectorEmitter, window: ir.Value, at: ir.Value, weights: ir.Value | None, number: ir.Value,
        sums: ir.Value, place: ir.Value,
    ) -> None:  # fmt: skip
        tile, x, lanes = self.tile, self.extents, self.tile.lanes
        zero = Reg(e.zeros(lanes, self.dtype), self.dtype, e.k)
        totals = [zero] * (tile.rows * tile.vectors)
        if weights is not None:
            packing, row = self._packing(), self.places * self.width
            panel = packing.tiles * packing.depth * packing.width
            (_, height, wide), axes = x.taps, x.axes
            levels = merged([
                Level(x.taps[0], self.tall * row, height * wide * panel),
                Level(height, axes[1].dilation * row, wide * panel),
                Level(wide, axes[2].dilation * self.width, panel),
                Level(packing.tiles, lanes, packing.depth * packing.width) if tile.along_k else
                Level(x.depth, tile.columns if self.lanewise else 1, packing.width),
            ])  # fmt: skip
            kind = "depth" if tile.along_k else "lanes" if self.lanewise else "element"
            shape = RegisterTile(window, weights, self.dtype, tile, axes[2].stride * self.width, kind, levels)
            group = 0 if self.lanewise else e.times(e.variables[self.group], prod(x.taps) * panel)
            start = e.plus(e.times(number, packing.depth * packing.width), group)
            totals = shape.sums(e, at, start, totals)
        for n, total in enumerate(totals):
            if tile.along_k:
                one = Reg(e.sum_of_lanes(total.value, self.dtype), self.dtype, e.k)
                e.k.store(one, sums, e.plus(place, n))
            else:
                e.store_vector(total.value, sums, e.plus(place, n * lanes))

    def _finish(
        self, e: VectorEmitter, sums: ir.Value, first2: ir.Value, columns: int | ir.Value, channel: ir.Value
    ) -> None:
        """A row of sums through the operations that follow."""
        column, lane = Var("column", self.schedule.columns), Var("lane", self.tile.columns)
        nodes = [r.node for r in self.product.roots]

        def one_column() -> None:
            self.bind_output(e, 2, e.plus(first2, e.variables[column]))
            at = e.times(e.variables[column], self.tile.columns)
            if self.lane.extent > 1:
                e.hoist(nodes, [self.lane])

            def element() -> None:
                e.variables[self.lane] = e.plus(channel, e.variables[lane])
                total = e.recall(sums, self.dtype, self.product.dtype, e.plus(at, e.variables[lane]))
                self.store_roots(e, total)

            e.lanes(lane, min(self.tile.columns, self.extents.lanes), element)

        e.repeat(column, columns, one_column)


def ceil_div_value(e: VectorEmitter, value: ir.Value, n: int) -> ir.Value:
    return e.k.op("arith.divsi", [e.plus(value, n - 1), e.constant_index(n)], INDEX)
