"""Chooses how a convolution is computed on a CPU: which blocks, on which register tile. No MLIR here.

Gaps in the input are taken apart first: outputs whose places are equal modulo the gap see the same taps, and form a
`Phase` without gaps. A convolution is then computed in one of two ways:

    along the output   blocks of the output, for each a window of the input: for few taps and many outputs
    along the kernel   all outputs at once, sums in memory, windows of input and kernel one after the other: for few
                       outputs and many taps, as in the gradient of the weights
"""

from __future__ import annotations

from math import gcd, prod
from typing import NamedTuple

from mlxir.compiler.lower.gemm_schedule import Tile, ceil_div, choose_tile
from mlxir.dialects.mx.conv import Axis

WINDOW_BYTES = 1 << 17  # of a window, so that it stays in L2
MOST_BYTES = 1 << 19  # of all scratch on the stack
SUMS_BYTES = 160 << 10
ITERATIONS = 8  # so that threads have something to share
SPLIT_WORK = 1 << 19  # multiply-adds that are worth sums of their own


class Phase(NamedTuple):
    """Outputs first + i * step, i < `outputs`, that sum taps tap + j * tap_step, j < taps: at place i * stride +
    j * dilation - low of an axis of `size` elements.
    """

    size: int
    first: int
    step: int
    outputs: int
    tap: int
    tap_step: int
    taps: int
    stride: int
    dilation: int
    low: int

    def window(self, outputs: int, taps: int) -> int:
        """How many places so many outputs and taps reach."""
        return (outputs - 1) * self.stride + (taps - 1) * self.dilation + 1


def phases(axis: Axis) -> list[Phase]:
    """An axis by the remainder of its outputs; one phase where the input has no gaps."""
    gap = axis.input_dilation
    step, tap_step = gap // gcd(axis.stride, gap), gap // gcd(axis.dilation, gap)
    found = []
    for first in range(min(step, axis.outputs)):
        start = first * axis.stride - axis.low
        tap = next((k for k in range(tap_step) if (start + k * axis.dilation) % gap == 0), None)
        place = 0 if tap is None else (start + tap * axis.dilation) // gap
        taps = 0 if tap is None else ceil_div(max(axis.taps - tap, 0), tap_step)
        found.append(
            Phase(
                axis.size, first, step, ceil_div(axis.outputs - first, step), tap or 0, tap_step, taps,
                step * axis.stride // gap, tap_step * axis.dilation // gap, -place,
            )  # fmt: skip
        )
    return found


class Extents(NamedTuple):
    """The sizes of a product: images n, groups, output channels and input channels of a group, and the three axes."""

    images: int
    groups: int
    outs: int
    depth: int
    axes: tuple[Phase, ...]  # three

    @property
    def lanewise(self) -> bool:
        """Whether the groups are the lanes of vectors: each has a single output channel."""
        return self.outs == 1 and self.groups > 1

    @property
    def lanes(self) -> int:
        return self.groups if self.lanewise else self.outs

    @property
    def outer_groups(self) -> int:
        return 1 if self.lanewise else self.groups

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(a.outputs for a in self.axes)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(a.taps for a in self.axes)

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return self.images * self.groups * self.outs * self.depth * prod(self.counts) * prod(self.taps)


class OutputSchedule(NamedTuple):
    """Blocks of `rows` x `columns` outputs of the last two axes; a tile's rows are outputs of the last one.

    A tile's vectors lie along output channels, or (`along_k`) along input channels, for few output channels.
    """

    tile: Tile
    rows: int
    columns: int


class KernelSchedule(NamedTuple):
    """Sums of all outputs for blocks of `images` x `channels`; panels of `taps1` x `taps2` taps, which `splits`
    iterations share.

    The lanes of a tile are output channels (or groups), and its rows are pairs of an output of the last axis and an
    image where such outputs lie side by side (`joined`); or, `swapped`, the lanes are images and the rows channels.
    """

    tile: Tile
    swapped: bool
    joined: bool
    images: int
    channels: int
    rows: int  # of tiles, filled up, per output of the axes that a tile does not join
    taps1: int
    taps2: int
    splits: int

    @property
    def lanes(self) -> int:
        return self.images if self.swapped else self.channels


def along_kernel(x: Extents) -> bool:
    """Which of the two ways."""
    few = prod(x.counts) * 4 <= prod(x.taps) or (prod(x.counts) <= 4 and x.images > 1)
    return few and x.work > 0


def _tile(x: Extents, rows: int, lanes: int, size: int, vector_bytes: int) -> Tile:
    width = vector_bytes // size
    while width > 4 and width // 2 >= lanes:
        width //= 2
    if x.lanewise:
        return Tile(min(rows, 8), 1, width)
    return choose_tile(rows, lanes, width, 16 if vector_bytes == 32 else 32)


def _tile_along_depth(x: Extents, columns: int, size: int, vector_bytes: int) -> Tile | None:
    """For so few output channels that they would leave most lanes empty, and input channels that fill them."""
    width = next((n for n in (vector_bytes // size, vector_bytes // size // 2) if n >= 4 and x.depth % n == 0), 0)
    if x.lanewise or not width or 2 * x.outs > width:
        return None
    # A sum across the lanes costs about ten steps.
    if x.outs * (x.depth / width + 10 / max(prod(x.taps), 1)) > x.depth:
        return None
    registers = 12 if vector_bytes == 32 else 24
    return Tile(max(1, min(columns, registers // x.outs)), x.outs, width, along_k=True)


def output_schedule(x: Extents, size: int, vector_bytes: int) -> OutputSchedule | None:
    """None where even the smallest window is too large."""
    (planes, height, width), (_, rows, columns) = x.taps, x.counts
    tile = _tile_along_depth(x, columns, size, vector_bytes) or _tile(x, columns, x.lanes, size, vector_bytes)
    channels = x.depth * (tile.columns if x.lanewise else 1) * size

    def window(r: int, c: int) -> int:
        tall, wide = x.axes[1].window(r, height), x.axes[2].window(ceil_div(c, tile.rows) * tile.rows, width)
        return max(planes, 1) * max(tall, 1) * max(wide, 1) * channels

    best = columns
    while best > tile.rows and window(1, best) > WINDOW_BYTES:
        best = ceil_div(ceil_div(best, 2), tile.rows) * tile.rows
    if window(1, best) > MOST_BYTES:
        return None
    others = x.images * x.outer_groups * x.counts[0] * ceil_div(columns, best)
    most = rows
    while most > 1 and (window(most, best) > WINDOW_BYTES or others * ceil_div(rows, most) < ITERATIONS):
        most -= 1
    return OutputSchedule(tile, ceil_div(rows, ceil_div(rows, most)), best)


def kernel_schedule(x: Extents, size: int, vector_bytes: int) -> KernelSchedule | None:
    """None where even the smallest window is too large."""
    outputs = prod(x.counts)
    swapped = not x.lanewise and x.images >= min(16, x.outs)
    joined = not swapped and x.axes[2].stride == 1
    inner = x.counts[2] if joined else 1
    tile = _tile(x, x.outs if swapped else inner * x.images, x.images if swapped else x.lanes, size, vector_bytes)
    images, channels = x.images, x.lanes
    if x.lanewise:
        channels = tile.columns
    while images * channels * outputs * size > SUMS_BYTES and max(images, channels) > 16:
        images, channels = (ceil_div(images, 2), channels) if images > channels else (images, ceil_div(channels, 2))
    if swapped:
        images = ceil_div(images, tile.columns) * tile.columns
    else:
        channels = ceil_div(channels, tile.columns) * tile.columns
    rows = ceil_div(channels if swapped else inner * images, tile.rows) * tile.rows
    per_place = images * (channels if x.lanewise else 1) * size
    wide1, wide2 = x.axes[1], x.axes[2]

    def window(t1: int, t2: int) -> int:
        places = x.counts[0] * wide1.window(x.counts[1], t1) * wide2.window(x.counts[2], t2)
        return places * per_place + t1 * t2 * channels * size

    taps1, taps2 = x.taps[1], x.taps[2]
    while taps1 > 1 and window(taps1, taps2) > 2 * WINDOW_BYTES:
        taps1 = ceil_div(taps1, 2)
    while taps2 > 1 and window(taps1, taps2) > 2 * WINDOW_BYTES:
        taps2 = ceil_div(taps2, 2)
    if window(taps1, taps2) > MOST_BYTES:
        return None
    blocks = x.outer_groups * ceil_div(x.images, images) * ceil_div(x.lanes, channels)
    panels = x.depth * x.taps[0] * ceil_div(x.taps[1], taps1) * ceil_div(x.taps[2], taps2)
    splits = max(1, min(panels, ITERATIONS // blocks, x.work // blocks // SPLIT_WORK))
    return KernelSchedule(tile, swapped, joined, images, channels, rows, taps1, taps2, splits)
