"""Lowers convolution kernels for a CPU: implicit GEMM, without an array of patches in memory.

A tile of rows x vectors registers sums over a nest of loops, taps and channels, with addresses that are affine in all
of them. Its scalars and vectors come from windows: the part of an operand that a block needs, copied to scratch once
with its padding, so that no tile tests for borders, and any layout, dtype or computed operand will do.

    scf.parallel (%block)                                     along the output: image x group x rows of the output
      window of x -> scratch
      scf.for (%tile of channels) scf.for (%row)
        scf.for (%tile of columns)                            register tiles
          scf.for (%tap) scf.for (%channel) { load w; broadcast x; vector.fma ... }
        scf.for (%column) scf.parallel (%channel)             bias, activation, casts -> results

    scf.parallel (%block)                                     along the kernel: parts of the taps
      scf.for (%panel) { windows of x and w -> scratch; tiles for all outputs add to the sums in memory }
    scf.parallel (%row) { adds the sums of all parts; bias, ... -> results }

The second is the gradient of the weights, whose taps are the outputs of the forward convolution (conv_schedule.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.conv_product import Convolution, lower_plain
from mlxir.compiler.lower.conv_schedule import (
    Extents,
    KernelSchedule,
    OutputSchedule,
    along_kernel,
    kernel_schedule,
    output_schedule,
    phases,
)
from mlxir.compiler.lower.conv_window import Inner, Span, Window
from mlxir.compiler.lower.gemm import SMALL, host_vector_bytes
from mlxir.compiler.lower.gemm_pack import Operand, Packing, first_lane
from mlxir.compiler.lower.gemm_product import StepBuilder
from mlxir.compiler.lower.gemm_schedule import ceil_div
from mlxir.compiler.lower.index import Index, Var, delinearize
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir
from mlxir.runtime.dtypes import Dtype

UNROLLED = 160  # multiply-adds of a tile that are written out instead of looped over


def lower_conv(function: Function, body: ir.Block, vector_bytes: int | None = None) -> Lowered:
    """Lower a kernel with one convolution into the module whose body block is given, for a CPU.

    `vector_bytes` is the width of its vector registers, by default that of this machine. Raises CompileError where the
    product has no elements but a result has some.
    """
    with context, ir.Location.unknown():
        product = Convolution(function)
        if product.empty or product.tensor.aval.size * product.terms <= SMALL:
            return lower_plain(product, body)
        parts = _parts(product, vector_bytes or host_vector_bytes())
        if parts is None:
            return lower_plain(product, body)
        builder = StepBuilder(product, body)
        for part in parts:
            part.add(builder)
        return builder.finish()


def _parts(product: Convolution, vector_bytes: int) -> list[_Part] | None:
    """One part per phase of the output; None where blocks do not pay or do not fit."""
    size, parts = product.sum_dtype.size, []
    first, second, third = (phases(a) for a in product.axes)
    for number, axes in enumerate((p, q, r) for p in first for q in second for r in third):
        extents = Extents(product.n.extent, product.groups, product.outs, product.depth, axes)
        suffix = f"_phase{number}" if number else ""
        if along_kernel(extents):
            by_kernel = kernel_schedule(extents, size, vector_bytes)
            part = by_kernel and _AlongKernel(product, extents, suffix, by_kernel)
        else:
            by_output = output_schedule(extents, size, vector_bytes)
            part = by_output and _AlongOutput(product, extents, suffix, by_output)
        if part is None:
            return None
        parts.append(part)
    return parts


# -- register tiles --------------------------------------------------------------------------------------------------
class _Level(NamedTuple):
    """A loop that a tile sums over, with what one step adds to the places in both operands."""

    extent: int | ir.Value
    a_stride: int
    b_stride: int


def _merged(levels: Sequence[_Level]) -> list[_Level]:
    """Loops of one step vanish, and two are one where the inner one just continues the outer one."""
    out: list[_Level] = []
    for level in levels:
        if level.extent == 1:
            continue
        if out and isinstance(level.extent, int) and out[-1][1:] == (
            level.a_stride * level.extent, level.b_stride * level.extent
        ):  # fmt: skip
            outer = out.pop().extent
            if isinstance(outer, int):
                level = level._replace(extent=outer * level.extent)
            else:
                out.append(_Level(outer, level.a_stride * level.extent, level.b_stride * level.extent))
        out.append(level)
    return out


class _Tile(NamedTuple):
    """C[r, v] += a[r, k] * b[k, v] over a nest of loops k. Row r of `a` lies at r * row_stride.

    Each element of `a` is spread over the lanes, or, if `a_is_vector`, read as a vector: the product is lane by lane.
    """

    a: ir.Value
    b: ir.Value
    dtype: Dtype
    rows: int
    vectors: int
    lanes: int
    row_stride: int
    a_is_vector: bool
    levels: list[_Level]

    def sums(self, e: VectorEmitter, a_at: ir.Value, b_at: ir.Value, start: list[Reg]) -> list[Reg]:
        return self._nest(e, self.levels, a_at, b_at, start)

    def _nest(self, e: VectorEmitter, levels: list[_Level], a: ir.Value, b: ir.Value, sums: list[Reg]) -> list[Reg]:
        if not levels:
            return self._step(e, a, b, sums)
        (extent, a_stride, b_stride), *rest = levels
        steps = [level.extent for level in levels]
        if all(isinstance(n, int) for n in steps) and prod(steps) * len(sums) <= UNROLLED:
            for i in range(extent):
                sums = self._nest(e, rest, e.plus(a, i * a_stride), e.plus(b, i * b_stride), sums)
            return sums
        var = Var(f"k{len(levels)}", 1)

        def body(carried: list[Reg]) -> list[Reg]:
            i = e.variables[var]
            return self._nest(e, rest, e.plus(a, e.times(i, a_stride)), e.plus(b, e.times(i, b_stride)), carried)

        return e.rolled(var, extent, sums, body)

    def _step(self, e: VectorEmitter, a: ir.Value, b: ir.Value, sums: list[Reg]) -> list[Reg]:
        columns = [
            e.load_vector(self.b, self.dtype, e.plus(b, v * self.lanes), self.lanes, self.dtype)
            for v in range(self.vectors)
        ]
        out = []
        for r in range(self.rows):
            row = e.plus(a, r * self.row_stride)
            if self.a_is_vector:
                places = [e.plus(row, v * self.lanes) for v in range(self.vectors)]
                values = [e.load_vector(self.a, self.dtype, p, self.lanes, self.dtype) for p in places]
            else:
                values = [e.spread(e.k.load(self.a, row, self.dtype).value, self.lanes, self.dtype)] * self.vectors
            for v, (x, column) in enumerate(zip(values, columns, strict=True)):
                total = e.multiply_add(x, column, sums[r * self.vectors + v].value)
                out.append(Reg(total, self.dtype, e.k))
        return out


class _Part:
    """What both ways of lowering one phase share."""

    def __init__(self, product: Convolution, extents: Extents, suffix: str):
        self.product, self.extents, self.suffix = product, extents, suffix
        self.dtype, self.lanewise = product.sum_dtype, extents.lanewise
        self.lane = product.g if self.lanewise else product.c
        self.group = product.c if self.lanewise else product.g
        self.taps = [Var(f"t{i}", a.taps) for i, a in enumerate(extents.axes)]
        order = [Index.of(t) * a.tap_step + a.tap if a.taps > 1 else Index.of(a.tap)
                 for t, a in zip(self.taps, extents.axes, strict=True)]  # fmt: skip
        empty = 0 in (*extents.taps, extents.depth)
        zero = product.pull.graph.constant(0, product.x.dtype)
        self.source: Scalar = zero if empty else product.source
        self.weight: Scalar = zero if empty else product.weight_at(order)

    def add(self, builder: StepBuilder) -> None:
        raise NotImplementedError

    def bind_output(self, e: VectorEmitter, axis: int, number: ir.Value) -> None:
        """The output's index on an axis, from its number in this phase."""
        a = self.extents.axes[axis]
        e.variables[self.product.o[axis]] = e.plus(e.times(number, a.step), a.first)

    def start(self, e: VectorEmitter, axis: int, number: ir.Value) -> ir.Value:
        """The place of tap 0 for an output."""
        a = self.extents.axes[axis]
        return e.plus(e.times(number, a.stride), -a.low)

    def store_roots(self, e: VectorEmitter, total: Reg) -> None:
        e.scopes[-1][id(self.product.accumulator)] = Reg(total.value, self.product.dtype, e.k)
        for root in self.product.roots:
            e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))


def _count(total: int, block: int, e: VectorEmitter, first: ir.Value) -> int | ir.Value:
    """min(block, total - first): a constant where blocks come out even."""
    return block if total % block == 0 else e.rest(total, first, block)


# -- along the output ------------------------------------------------------------------------------------------------
class _AlongOutput(_Part):
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
        """Panels [group][tap][tile of channels][q][lane]."""
        operand = Operand(self.weight, self.lane, self.product.q)
        count = self.extents.outer_groups * prod(self.extents.taps)
        return Packing(operand, Var("tap", count), self.tile.columns, self.tile.lanes, self.dtype)

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
            rows = _count(x.counts[1], s.rows, e, first1)
            columns = _count(x.counts[2], s.columns, e, first2)
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
            levels = _merged([
                _Level(x.taps[0], self.tall * row, height * wide * panel),
                _Level(height, axes[1].dilation * row, wide * panel),
                _Level(wide, axes[2].dilation * self.width, panel),
                _Level(x.depth, tile.columns if self.lanewise else 1, packing.width),
            ])  # fmt: skip
            shape = _Tile(window, weights, self.dtype, tile.rows, tile.vectors, lanes, axes[2].stride * self.width,
                          self.lanewise, levels)  # fmt: skip
            group = 0 if self.lanewise else e.times(e.variables[self.group], prod(x.taps) * panel)
            start = e.plus(e.times(number, packing.depth * packing.width), group)
            totals = shape.sums(e, at, start, totals)
        for n, total in enumerate(totals):
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


# -- along the kernel ------------------------------------------------------------------------------------------------
class _AlongKernel(_Part):
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
        return [(f, _count(total, size, e, f)) for f, (total, size) in zip(firsts, sizes, strict=True)]

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
        images = Inner(product.n, first_image, _count(x.images, s.images, e, first_image), self.unit)
        channels = Inner(self.lane, first_channel, _count(x.lanes, s.channels, e, first_channel), 1)
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
        levels = [_Level(count1, axes[1].dilation * row, s.taps2 * s.channels),
                  _Level(count2, axes[2].dilation * self.width, s.channels)]  # fmt: skip
        a, b, unit = window, kernel, self.unit
        if s.swapped:
            a, b, levels = kernel, window, [_Level(n, b_stride, a_stride) for n, a_stride, b_stride in levels]
        shape = _Tile(a, b, self.dtype, tile.rows, tile.vectors, tile.lanes, unit, self.lanewise, _merged(levels))
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

        _nested(e, [*out, piece, column], one_tile)

    def _add(self, e: VectorEmitter, shape: _Tile, a: ir.Value, b: ir.Value, sums: ir.Value, place: ir.Value) -> None:
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

            count = _count(total, size, e, first)
            e.lanes(lane, count, element)

        extent = over(e, [group, block, *out, inner_block], rows)
        return extent, float(size * (s.splits + sum(r.node.cost for r in product.roots)))


def _nested(e: VectorEmitter, variables: Sequence[Var], body: Callable[[], None]) -> None:
    """Serial loops over all variables."""
    if not variables:
        body()
        return
    head, *rest = variables
    e.repeat(head, head.extent, lambda: _nested(e, rest, body))
