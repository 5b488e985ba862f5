"""The register tile of convolutions, and what both ways of lowering them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.conv_product import Convolution
from mlxir.compiler.lower.conv_schedule import Extents
from mlxir.compiler.lower.gemm_product import StepBuilder
from mlxir.compiler.lower.gemm_schedule import Tile
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype

UNROLLED = 160  # multiply-adds of a tile that are written out instead of looped over


class Level(NamedTuple):
    """A loop that a tile sums over, with what one step adds to the places in both operands."""

    extent: int | ir.Value
    a_stride: int
    b_stride: int


def merged(levels: Sequence[Level]) -> list[Level]:
    """Loops of one step vanish, and two are one where the inner one just continues the outer one."""
    out: list[Level] = []
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
                out.append(Level(outer, level.a_stride * level.extent, level.b_stride * level.extent))
        out.append(level)
    return out


class RegisterTile(NamedTuple):
    """C[r, v] += a[r, k] * b[k, v] over a nest of loops k. Row r of `a` lies at r * row_stride.

    `a_is` says what of `a` meets a register of b: an element spread over the lanes, the same lanes (the product is lane
    by lane), or a vector of k that all registers of a row share (each register holds partial sums of one element).
    """

    a: ir.Value
    b: ir.Value
    dtype: Dtype
    tile: Tile
    row_stride: int
    a_is: str  # "element", "lanes" or "depth"
    levels: list[Level]

    def sums(self, e: VectorEmitter, a_at: ir.Value, b_at: ir.Value, start: list[Reg]) -> list[Reg]:
        return self._nest(e, self.levels, a_at, b_at, start)

    def _nest(self, e: VectorEmitter, levels: list[Level], a: ir.Value, b: ir.Value, sums: list[Reg]) -> list[Reg]:
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
        vectors, lanes = range(self.tile.vectors), self.tile.lanes

        def load(buffer: ir.Value, at: ir.Value) -> ir.Value:
            return e.load_vector(buffer, self.dtype, at, lanes, self.dtype)

        columns = [load(self.b, e.plus(b, v * lanes)) for v in vectors]
        out = []
        for r in range(self.tile.rows):
            row = e.plus(a, r * self.row_stride)
            if self.a_is == "lanes":
                values = [load(self.a, e.plus(row, v * lanes)) for v in vectors]
            elif self.a_is == "depth":
                values = [load(self.a, row)] * len(vectors)
            else:
                values = [e.spread(e.k.load(self.a, row, self.dtype).value, lanes, self.dtype)] * len(vectors)
            for v, (x, column) in enumerate(zip(values, columns, strict=True)):
                total = e.multiply_add(x, column, sums[r * len(vectors) + v].value)
                out.append(Reg(total, self.dtype, e.k))
        return out


class Part:
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
        """Adds the steps of this part."""
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


def block_count(total: int, block: int, e: VectorEmitter, first: ir.Value) -> int | ir.Value:
    """min(block, total - first): a constant where blocks come out even."""
    return block if total % block == 0 else e.rest(total, first, block)


def nested(e: VectorEmitter, variables: Sequence[Var], body: Callable[[], None]) -> None:
    """Serial loops over all variables."""
    if not variables:
        body()
        return
    head, *rest = variables
    e.repeat(head, head.extent, lambda: nested(e, rest, body))
