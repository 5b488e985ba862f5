"""A convolution along its kernel: sums of all outputs in memory, to which panels of taps are added one by one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.conv_product import Convolution
from mlxir.compiler.lower.conv_schedule import Extents, KernelSchedule
from mlxir.compiler.lower.conv_tile import Level, Part, RegisterTile, block_count, merged, nested
from mlxir.compiler.lower.conv_window import Inner, Span, Window
from mlxir.compiler.lower.gemm_product import StepBuilder
from mlxir.compiler.lower.gemm_schedule import ceil_div
from mlxir.compiler.lower.index import Index, Var, delinearize
from mlxir.compiler.lower.loops import over
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir


class AlongKernel(Part):
    """All outputs of a block of images and channels; their sums, one set per part of the taps, lie in memory."""

    def __init__(self, product: Convolution, extents: Extents, suffix: str, schedule: KernelSchedule):
        super().__init__(product, extents, suffix)
        self.schedule, self.tile = schedule, schedule.tile
        s, x = schedule, extents
        self.unit = s.channels if self.lanewise else 1  # of the window: from one image to the next
        self.width = s.images * self.unit
        self.places = x.axes[2].window(x.counts[2], s.taps2)
        self.tall = x.axes[1].window(x.counts[1], s.taps1)
        self.set_axes = 2 if s.joined else 3  # axes of the output that have sums of their own
        self.size = prod(x.counts[: self.set_axes]) * s.rows * s.lanes
        self.image_blocks, self.channel_blocks = ceil_div(x.images, s.images), ceil_div(x.lanes, s.channels)
        self.panels = (x.depth, x.taps[0], ceil_div(x.taps[1], s.taps1), ceil_div(x.taps[2], s.taps2))

    def add(self, builder: StepBuilder) -> None:
        roots = self.product.roots
        blocks = prod(v.extent for v in self._blocks())
        number = builder.temporary(blocks * self.size, self.dtype)
        builder.add(f"{self.suffix}_sums", [self.source, self.weight], [], [number],
                    lambda e: self._emit(e, e.buffers[number]))  # fmt: skip
        builder.add(self.suffix, [r.node for r in roots], [number], [r.buffer for r in roots],
                    lambda e: self._finish(e, e.buffers[number]))  # fmt: skip

    def _blocks(self) -> list[Var]:
        """The order of blocks of sums in memory."""
        return [Var("split", self.schedule.splits), Var("group", self.extents.outer_groups),
                Var("image_block", self.image_blocks), Var("channel_block", self.channel_blocks)]  # fmt: skip

    def _emit(self, e: VectorEmitter, sums: ir.Value) -> tuple[int, float]:
        s, x, tile = self.schedule, self.extents, self.tile
        variables = self._blocks()
        slack = tile.rows * self.unit  # tiles that are filled up read a little too far
        window = e.scratch(x.counts[0] * self.tall * self.places * self.width + slack, self.dtype)[0]
        kernel = e.scratch(s.taps1 * s.taps2 * s.channels + slack, self.dtype)[0]
        total = prod(self.panels)
        word, panel = Var("word", self.size // tile.lanes), Var("panel", ceil_div(total, s.splits))

        def block() -> None:
            split, group, images, channels = (e.variables[v] for v in variables)
            e.variables[self.group] = group
            corner = split
            for v in variables[1:]:
                corner = e.plus(e.times(corner, v.extent), e.variables[v])
            corner = e.times(corner, self.size)
            zero = e.zeros(tile.lanes, self.dtype)

            def clear() -> None:
                e.store_vector(zero, sums, e.plus(corner, e.times(e.variables[word], tile.lanes)))

            def one_panel() -> None:
                number = e.plus(start, e.variables[panel])
                e.variables[flat] = number
                at = [e.index(i) for i in delinearize(Index.of(flat), self.panels)]
                self._panel(e, at, window, kernel, e.times(images, s.images), e.times(channels, s.channels))
                self._tiles(e, at, window, kernel, sums, corner)

            flat, start = Var("panel_number", total), e.times(split, panel.extent)
            e.repeat(word, word.extent, clear)
            e.repeat(panel, e.rest(total, start, panel.extent), one_panel)

        extent = over(e, variables, block)
        return extent, float(max(1, x.work // max(extent, 1)))

    def _tap_counts(self, e: VectorEmitter, at: Sequence[ir.Value]) -> list[tuple[ir.Value, int | ir.Value]]:
        """(first, count) of the taps of axes 1 and 2 in a panel."""
        sizes = ((self.extents.taps[1], self.schedule.taps1), (self.extents.taps[2], self.schedule.taps2))
        firsts = [e.times(part, size) for part, (_, size) in zip(at[2:], sizes, strict=True)]
        return [(f, block_count(total, size, e, f)) for f, (total, size) in zip(firsts, sizes, strict=True)]

    def _panel(
        self, e: VectorEmitter, at: Sequence[ir.Value], window: ir.Value, kernel: ir.Value, first_image: ir.Value,
        first_channel: ir.Value,
    ) -> None:  # fmt: skip
        """Fills both windows: [output of axis 0][place][place][image] of x, [tap][tap][channel] of w."""
        s, x, axes, product = self.schedule, self.extents, self.extents.axes, self.product
        e.variables[product.q] = at[0]
        e.variables[self.taps[0]] = at[1]
        (first1, count1), (first2, count2) = self._tap_counts(e, at)
        row = self.places * self.width
        places = [e.plus(e.times(t, a.dilation), -a.low) for t, a in zip((at[1], first1, first2), axes, strict=True)]
        spans = [
            Span(product.p[0], places[0], axes[0].stride, x.counts[0], self.tall * row),
            Span(product.p[1], places[1], 1, self.tall, row),
            Span(product.p[2], places[2], 1, self.places, self.width),
        ]
        images = Inner(product.n, first_image, block_count(x.images, s.images, e, first_image), self.unit)
        channels = Inner(self.lane, first_channel, block_count(x.lanes, s.channels, e, first_channel), 1)
        inner = [images, channels] if self.lanewise else [images]
        Window(e, self.source, spans, inner, window, self.dtype).emit()
        taps = [Span(self.taps[1], first1, 1, count1, s.taps2 * s.channels),
                Span(self.taps[2], first2, 1, count2, s.channels)]  # fmt: skip
        Window(e, self.weight, taps, [channels], kernel, self.dtype).emit()

    def _tiles(
        self, e: VectorEmitter, panel: Sequence[ir.Value], window: ir.Value, kernel: ir.Value, sums: ir.Value,
        corner: ir.Value,
    ) -> None:  # fmt: skip
        """Adds a panel to all sums."""
        s, x, tile, axes = self.schedule, self.extents, self.tile, self.extents.axes
        (_, count1), (_, count2) = self._tap_counts(e, panel)
        row = self.places * self.width
        levels = [Level(count1, axes[1].dilation * row, s.taps2 * s.channels),
                  Level(count2, axes[2].dilation * self.width, s.channels)]  # fmt: skip
        a, b, unit = window, kernel, self.unit
        if s.swapped:
            a, b, levels = kernel, window, [Level(n, b_stride, a_stride) for n, a_stride, b_stride in levels]
        kind = "lanes" if self.lanewise else "element"
        shape = RegisterTile(a, b, self.dtype, tile, unit, kind, merged(levels))
        out = [Var(f"set{i}", n) for i, n in enumerate(x.counts[: self.set_axes])]
        piece, column = Var("piece", s.rows // tile.rows), Var("tile_column", s.lanes // tile.columns)
        strides = (self.tall * row, axes[1].stride * row, axes[2].stride * self.width)

        def one_tile() -> None:
            at, number = e.constant_index(0), e.constant_index(0)
            for v, stride in zip(out, strides, strict=False):
                at = e.plus(at, e.times(e.variables[v], stride))
                number = e.plus(e.times(number, v.extent), e.variables[v])
            down = e.times(e.variables[piece], tile.rows)
            shift = e.times(e.variables[column], tile.columns)
            place = e.plus(e.plus(corner, e.times(number, s.rows * s.lanes)), e.plus(e.times(down, s.lanes), shift))
            if s.swapped:
                self._add(e, shape, down, e.plus(at, shift), sums, place)
            else:
                at = e.plus(at, e.times(down, unit))
                self._add(e, shape, e.plus(at, shift) if self.lanewise else at, shift, sums, place)

        nested(e, [*out, piece, column], one_tile)

    def _add(
        self, e: VectorEmitter, shape: RegisterTile, a: ir.Value, b: ir.Value, sums: ir.Value, place: ir.Value
    ) -> None:
        tile, width = self.tile, self.schedule.lanes
        places = [e.plus(place, r * width + v * tile.lanes) for r in range(tile.rows) for v in range(tile.vectors)]
        start = [Reg(e.load_vector(sums, self.dtype, p, tile.lanes, self.dtype), self.dtype, e.k) for p in places]
        for total, p in zip(shape.sums(e, a, b, start), places, strict=True):
            e.store_vector(total.value, sums, p)

    def _finish(self, e: VectorEmitter, sums: ir.Value) -> tuple[int, float]:
        """Adds the parts of each element; then the operations that follow."""
        s, x, product = self.schedule, self.extents, self.product
        split, group, image_block, channel_block = self._blocks()
        out = [Var(f"set{i}", n) for i, n in enumerate(x.counts)]
        # The other axis of the sums is walked outside, the lanes of a block inside.
        if s.swapped:
            outer, inner, inner_block, size, total = self.lane, product.n, image_block, s.images, x.images
            block = Var("channel", x.lanes)
            image_at, channel_at = Index.of(inner_block), Index.of(block) // s.channels
            row = Index.of(block) % s.channels
        else:
            outer, inner, inner_block, size, total = product.n, self.lane, channel_block, s.channels, x.lanes
            block = Var("image", x.images)
            image_at, channel_at = Index.of(block) // s.images, Index.of(inner_block)
            row = Index.of(block) % s.images + (Index.of(out[2]) * s.images if s.joined else 0)
        lane, number, corner = Var("lane", size), Index.of(0), Index.of(group)
        for v in out[: self.set_axes]:
            number = number * v.extent + Index.of(v)
        for blocks, i in ((image_block, image_at), (channel_block, channel_at)):
            corner = corner * blocks.extent + i
        part = prod(v.extent for v in (group, image_block, channel_block)) * self.size
        position = corner * self.size + (number * s.rows + row) * s.lanes

        def rows() -> None:
            e.variables[outer], e.variables[self.group] = e.variables[block], e.variables[group]
            for axis in range(3):
                self.bind_output(e, axis, e.variables[out[axis]])
            first, start = e.times(e.variables[inner_block], size), e.index(position)
            if inner.extent > 1:
                e.hoist([r.node for r in product.roots], [inner])

            def element() -> None:
                e.variables[inner] = e.plus(first, e.variables[lane])
                at = e.plus(start, e.variables[lane])

                def add(totals: list[Reg]) -> list[Reg]:
                    return [totals[0] + e.k.load(sums, e.plus(at, e.times(e.variables[split], part)), self.dtype)]

                (sum_,) = e.serial(split, e.constant_index(s.splits), [e.k.const(0, self.dtype)], add)
                self.store_roots(e, sum_)

            count = block_count(total, size, e, first)
            e.lanes(lane, count, element)

        extent = over(e, [group, block, *out, inner_block], rows)
        return extent, float(size * (s.splits + sum(r.node.cost for r in product.roots)))
