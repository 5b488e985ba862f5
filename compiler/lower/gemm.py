"""Lowers matmul kernels: `op(a) @ op(b)` with the elementwise operations that follow it.

For a CPU the product is computed by blocks. One step iterates over blocks of C; in it a routine (gemm_block.py) moves a
register tile (`rows` x `vectors` registers of `lanes`) over the block, and the operations that follow are applied
to the rows it has just written to scratch memory:

    scf.parallel (%block)                                        batch x column blocks x row blocks
      scf.for (%panel) over K                                    the sums lie in scratch between panels
        call @mlxir_gemm_block_...                               register tiles of the block
        in the last panel: scf.for (%row of tiles)
          call @mlxir_gemm_block_...                             those of these rows
          scf.for (%row) scf.parallel (%column)                  bias, activation, residual, casts -> results

An operand is read in place where its layout suits the tile; else a step before packs it (gemm_pack.py), which takes any
index map. Where a block has all rows of C, it packs what it reads of b itself. A matrix that is computed from much less
memory (dequantised weights) is packed, too, or, for few rows, multiplied as it is computed (lanes.py).
gemm_schedule.py decides. Large arrays that the operations behind read or write are prefetched while the tiles before
them are multiplied (prefetch.py). Where an extent is no multiple of the tile, the last tile moves back and overlaps
the one before: every access is a whole vector inside its buffer. There are two kinds of tile: vectors along the columns
of C (`b` is read as vectors, `a` as scalars), or along K, for few rows by a transposed matrix. Each element of C is the
same sequence of operations whatever the threads are, and is written once.
"""

from __future__ import annotations

import functools
from math import prod
from typing import NamedTuple

import llvmlite.binding as llvm

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.gemm_block import Block, Lanes, Sums, gemm_block, gemm_block_k, gemm_computed_k
from mlxir.compiler.lower.gemm_pack import Operand, Packing, Panels
from mlxir.compiler.lower.gemm_product import Product, StepBuilder
from mlxir.compiler.lower.gemm_schedule import PANEL, Side, ceil_div, choose, should_swap
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.lanes import Computed
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.prefetch import Lines, Stream
from mlxir.compiler.lower.routines import call
from mlxir.compiler.lower.scalars import reachable
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.symbolic import is_symbolic, plain
from mlxir.runtime.dtypes import Dtype, int64
from mlxir.runtime.errors import CompileError

SMALL = 1 << 11  # multiply-adds up to which tiles do not pay
FAR = 1 << 22  # bytes that the operations behind a product touch, which are beyond L2 then
SIZE_CLASSES = (64, 16)  # of rows, columns or steps along K, where they are symbolic: code for at least so many


@functools.cache
def host_vector_bytes() -> int:
    """The widest vector registers of this machine: 64 (AVX-512), 32 (AVX2 with FMA) or 16 bytes."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 16


def lower_matmul(function: Function, body: ir.Block, vector_bytes: int | None = None) -> Lowered:
    """Lower a kernel with one matmul into the module whose body block is given, for a CPU.

    `vector_bytes` is the width of its vector registers, by default that of this machine. Raises CompileError where the
    product has no elements but a result has some.
    """
    with context, ir.Location.unknown():
        product = Product(function)
        work = product.tensor.aval.size * product.k.extent
        if product.empty or not product.dtype.is_float or work <= SMALL:
            return lower_simple(product, body)
        return _Blocked(product, body, vector_bytes or host_vector_bytes()).lower()


def lower_matmul_simple(function: Function, body: ir.Block) -> Lowered:
    """The kernel as one loop over the elements of the product with a loop over K inside: for any dtype and target."""
    with context, ir.Location.unknown():
        return lower_simple(Product(function), body)


def lower_simple(product: Product, body: ir.Block) -> Lowered:
    if product.empty:
        if any(t.aval.size for t in product.results):
            raise CompileError("[lower] a matmul without elements cannot be fused with results that have some")
        return Lowered([], [])
    builder, kept = StepBuilder(product, body), product.sum_dtype

    def emit(e: VectorEmitter) -> tuple[int, float]:
        def multiply_add(total: list[Reg]) -> list[Reg]:
            a, b = (Reg(e.value(x).value, kept, e.k) for x in (product.left, product.right))
            return [e.k.fma(a, b, total[0]) if kept.is_float else total[0] + a * b]

        def element() -> None:
            e.hoist([product.left, product.right], [product.k])
            extent = e.constant_index(product.k.extent)
            (total,) = e.serial(product.k, extent, [e.k.const(0, kept)], multiply_add)
            e.scopes[-1][id(product.accumulator)] = Reg(total.value, product.dtype, e.k)
            for root in product.roots:
                e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))

        over(e, [product.b, product.i, product.j], element)
        per_step = product.left.cost + product.right.cost + 2
        return product.tensor.aval.size, 1.0 * (product.k.extent * per_step + sum(r.node.cost for r in product.roots))

    nodes = [product.left, product.right, *[r.node for r in product.roots]]
    builder.add("", nodes, [], [r.buffer for r in product.roots], emit)
    return builder.finish()


class _Reader(NamedTuple):
    """How tiles read an operand, from where on and with which distances: those of `Lanes`, as numbers."""

    buffer: ir.Value
    dtype: Dtype
    at: ir.Value
    lane: int
    depth: int
    step: int
    last: int

    def lanes(self, e: VectorEmitter, start: ir.Value | None, first: ir.Value, count: ir.Value) -> Lanes:
        """`count` tiles from number `first` on, from step `start` along K on."""
        at = self.at if start is None else e.plus(self.at, e.times(start, self.depth))
        lane, depth, step, last = map(e.constant_index, (self.lane, self.depth, self.step, self.last))
        return Lanes(at, lane, depth, step, last, first, count)


def _met(extent: int) -> int:
    """The extent for which a product is scheduled. A symbolic one: the least of its class, for which no tile is larger
    than the matrix; in the class of the large ones, the first that is met.
    """
    if not is_symbolic(extent):
        return extent
    low = next((n for n in SIZE_CLASSES if extent >= n), 1)
    return plain(extent) if low == SIZE_CLASSES[0] else low


def _side_met(side: Side) -> Side:
    """An operand with the strides of the sizes that were met first."""
    return side._replace(lane_stride=plain(side.lane_stride), depth_stride=plain(side.depth_stride))


def _present(overlap: int) -> bool:
    """Whether code for an overlap is needed: a symbolic one may be 0 for one size and not for another."""
    return is_symbolic(overlap) or overlap != 0


class _Blocked:
    """One product on a CPU: its steps, by the schedule that is chosen here."""

    def __init__(self, product: Product, body: ir.Block, vector_bytes: int):
        self.product, self.steps = product, StepBuilder(product, body)
        self.dtype, self.depth = product.sum_dtype, product.k.extent
        self.a, self.b = Operand(product.left, product.i, product.k), Operand(product.right, product.j, product.k)
        m, n, depth = (_met(x) for x in (product.i.extent, product.j.extent, self.depth))
        if should_swap(m, n, _side_met(self.a.side), vector_bytes // self.dtype.size):
            m, n = n, m
            self.a, self.b = self.b, self.a  # compute the transpose; only the names of rows and columns change
        self.m, self.n = self.a.lane.extent, self.b.lane.extent
        self.b.compute(product.pull.graph, vector_bytes // self.dtype.size)
        a, b = _side_met(self.a.side), _side_met(self.b.side)
        whole = not is_symbolic(self.depth)  # a part of a vector along K is made for one depth
        fixed = not any(is_symbolic(x) for x in (self.m, self.n, self.depth, product.b.extent))
        local = fixed and (product.b.extent == 1 or product.b in self.b.node.free)
        self.schedule = choose(plain(product.b.extent), m, n, depth, a, b, self.dtype.size, vector_bytes, whole, local)
        if not whole:
            self.schedule = self.schedule._replace(panel=PANEL if depth >= SIZE_CLASSES[0] else SIZE_CLASSES[0])
        self.tile, self.panels = self.schedule.tile, ceil_div(self.depth, self.schedule.panel)
        self.row_tiles, self.column_tiles = ceil_div(self.m, self.tile.rows), ceil_div(self.n, self.tile.columns)
        # How far the last tile moves back. A matrix narrower than the tile is packed with zeros beside it instead.
        self.row_overlap = self.row_tiles * self.tile.rows - self.m
        self.column_overlap = self.column_tiles * self.tile.columns - self.n if self.column_tiles > 1 else 0
        # A row of scratch holds a block's columns, after room for the last tile to move back.
        self.margin = self.tile.columns if _present(self.column_overlap) else 0
        self.stride = self.margin + self.schedule.block_columns * self.tile.columns

    def lower(self) -> Lowered:
        schedule, roots = self.schedule, self.product.roots
        nodes, packed = [r.node for r in roots], {}
        for x, wanted, width, suffix in (
            (self.b, schedule.pack_b, self.tile.columns, "_pack_b"),
            (self.a, schedule.pack_a, self.tile.rows, "_pack_a"),
        ):
            if wanted and not (x is self.b and schedule.local):
                packed[x] = self._pack(x, width, suffix)
            else:
                nodes.append(x.node)
        if schedule.local:
            blocks = self.product.b.extent * prod(self._block_counts())
            self.copies = self.steps.temporary(blocks * self._block_size(), self.dtype)
            packed[self.b] = self.copies
        writes = [r.buffer for r in roots]
        self.steps.add("", nodes, list(packed.values()), writes, lambda e: self._emit(e, packed))
        return self.steps.finish()

    # -- operands ---------------------------------------------------------------------------------------------------
    def _packing(self, x: Operand, width: int) -> Packing:
        batch = self.product.b if self.product.b in x.node.free else Var("b", 1)
        return Packing(x, batch, width, self.tile.lanes, self.dtype)

    def _pack(self, x: Operand, width: int, suffix: str) -> int:
        """Adds the step; the number of the temporary that it fills."""
        packing = self._packing(x, width)
        number = self.steps.temporary(packing.size, self.dtype)
        self.steps.add(suffix, [x.node], [], [number], lambda e: packing.emit(e, e.buffers[number]))
        return number

    def _reader(self, e: VectorEmitter, x: Operand, width: int, packed: int | None) -> _Reader:
        if packed is not None:
            packing, count = self._packing(x, width), ceil_div(x.lane.extent, width)
            step = packing.depth * width
            at = packing.start(e, e.constant_index(0))
            return _Reader(e.buffers[packed], self.dtype, at, 1, width, step, (count - 1) * step)
        side, last = x.side, max(x.lane.extent - width, 0)
        if not side.plain:  # tiles are told which lanes to compute
            return _Reader(None, self.dtype, e.constant_index(0), 1, 0, width, last)
        return _Reader(e.buffers[x.node.data[0]], x.node.dtype, e.index(x.base), side.lane_stride, side.depth_stride,
                       side.lane_stride * width, side.lane_stride * last)  # fmt: skip

    def _block_counts(self) -> tuple[int, int]:
        """Blocks of rows, and of columns."""
        schedule = self.schedule
        return ceil_div(self.row_tiles, schedule.block_rows), ceil_div(self.column_tiles, schedule.block_columns)

    # -- what a block packs for itself --------------------------------------------------------------------------------
    def _block_size(self) -> int:
        """Elements of a panel of K of a block's columns."""
        return self.schedule.block_columns * self.schedule.panel * self.tile.columns

    def _batch(self, e: VectorEmitter) -> ir.Value:
        return e.variables[self.product.b] if self.product.b.extent > 1 else e.constant_index(0)

    def _local_reader(self, e: VectorEmitter, at: ir.Value) -> _Reader:
        """How tiles read the copy of a block, which begins `at` with the block's first column."""
        step = self.schedule.panel * self.tile.columns
        start = e.minus(at, e.times(self.first_column, step))
        last = (self.column_tiles - 1) * step
        return _Reader(e.buffers[self.copies], self.dtype, start, 1, self.tile.columns, step, last)

    def _copy(self, e: VectorEmitter, b: _Reader, start: ir.Value, deep: ir.Value) -> None:
        """`deep` steps along K of the block's columns."""
        packing = self._packing(self.b, self.tile.columns)
        at = e.plus(b.at, e.times(self.first_column, b.step))
        panels = Panels(at, e.constant_index(b.step), self.first_column, self.column_count, start, deep)
        layout = packing.layout
        assert layout is not None
        layout(packing, e, b.buffer, panels)

    # -- blocks -----------------------------------------------------------------------------------------------------
    def _emit(self, e: VectorEmitter, packed: dict[Operand, int]) -> tuple[int, float]:
        tile, rows, columns = self.tile, self.schedule.block_rows, self.schedule.block_columns
        row_block, column_block = map(Var, ("row_block", "column_block"), self._block_counts())
        scratch, _ = e.scratch((rows if self.panels > 1 else 1) * tile.rows * self.stride, self.dtype)

        def block() -> None:
            a = self._reader(e, self.a, tile.rows, packed.get(self.a))
            self.first_row = e.times(e.variables[row_block], rows)
            self.first_column = e.times(e.variables[column_block], columns)
            self.column_count = e.part(self.column_tiles, self.first_column, columns)
            row_count = e.part(self.row_tiles, self.first_row, rows)
            if self.schedule.local:
                number = e.plus(e.times(self._batch(e), column_block.extent), e.variables[column_block])
                b = self._local_reader(e, e.times(number, self._block_size()))
            else:
                b = self._reader(e, self.b, tile.columns, packed.get(self.b))
            self._block(e, scratch, a, b, row_count)

        extent = over(e, [self.product.b, column_block, row_block], block)
        per_element = self.depth + sum(r.node.cost for r in self.product.roots)
        return extent, 1.0 * (rows * tile.rows * columns * tile.columns * per_element)

    def _block(self, e: VectorEmitter, scratch: ir.Value, a: _Reader, b: _Reader, row_count: ir.Value) -> None:
        """Panels of K one after the other, sums in scratch; in the last one, the operations that follow come behind
        each row of tiles.
        """
        panel, row, whole = Var("panel", self.panels), Var("row", self.schedule.block_rows), self.panels == 1
        lines = self._lines(e)

        def one_panel(number: ir.Value, start: ir.Value | None, count: ir.Value) -> None:
            if self.schedule.local:
                self._copy(e, b, e.constant_index(0) if start is None else start, count)
            columns = b.lanes(e, None if self.schedule.local else start, self.first_column, self.column_count)

            def all_rows() -> None:
                block = Block(a.lanes(e, start, self.first_row, row_count), columns, self._sums(e, None, number), count)
                self._multiply(e, (a, b, scratch), block, None)

            def one_row() -> None:
                tile, above = e.plus(self.first_row, e.variables[row]), None
                if not whole:
                    above = e.times(e.variables[row], self.tile.rows * self.stride)
                first, sums = e.times(tile, self.tile.rows), self._sums(e, above, number)
                if lines is not None:
                    e.variables[self.b.lane] = e.times(self.first_column, self.tile.columns)
                    lines.fill(e, self.a.lane, first)
                block = Block(a.lanes(e, start, tile, e.constant_index(1)), columns, sums, count)
                self._multiply(e, (a, b, scratch), block, lines)
                self._finish_rows(e, scratch, sums.at, first)

            def row_by_row() -> None:
                e.repeat(row, row_count, one_row)

            if whole:
                row_by_row()
            else:
                e.when_equal(number, self.panels - 1, row_by_row, all_rows)

        def panels() -> None:
            start = e.times(e.variables[panel], self.schedule.panel)
            one_panel(e.variables[panel], start, e.part(self.depth, start, self.schedule.panel))

        if whole:
            one_panel(e.constant_index(0), None, e.constant_index(self.depth))
        else:
            e.repeat(panel, panel.extent, panels)

    def _sums(self, e: VectorEmitter, above: ir.Value | None, panel: ir.Value) -> Sums:
        """The sums behind `above` in scratch, added to what is there but in panel 0."""
        at = e.constant_index(self.margin) if above is None else e.plus(above, self.margin)
        stride, edge, overlap = map(e.constant_index, (self.stride, self.column_tiles - 1, self.column_overlap))
        return Sums(at, stride, panel, edge, overlap)

    def _lines(self, e: VectorEmitter) -> Lines | None:
        """What the operations that follow read and write, where it is so much that it comes from far."""
        roots = self.product.roots
        loads = [n for n in reachable([r.node for r in roots]) if n.kind == "load"]
        streams = [Stream(n.data[0], n.data[1], n.dtype) for n in loads if n is not self.product.accumulator]
        streams += [Stream(r.buffer, r.position, r.node.dtype) for r in roots]
        streams = [s for s in streams if s.along(self.a.lane, self.b.lane)]
        sizes = self.m, self.n, self.product.b.extent
        if self.tile.along_k or any(map(is_symbolic, (*sizes, self.depth))):
            return None
        if prod(sizes) * sum(s.dtype.size for s in streams) < FAR:
            return None
        columns = self.schedule.block_columns
        lines = Lines(streams, self.tile.rows, columns * self.tile.columns, columns)
        if lines.each > self.depth - (self.panels - 1) * self.schedule.panel:
            return None  # listing them would take longer than the product
        lines.table, _ = e.scratch(lines.count, int64)
        return lines

    def _multiply(
        self, e: VectorEmitter, buffers: tuple[_Reader, _Reader, ir.Value], block: Block, lines: Lines | None
    ) -> None:
        (a, b, scratch), tile = buffers, self.tile
        dtypes = a.dtype.name, b.dtype.name, self.dtype.name
        if tile.along_k:
            if not self.b.side.plain:
                block = block._replace(count=e.constant_index(self.depth // self.b.side.computed))
                gemm_computed_k(e, block, tile, (a.buffer, a.dtype), (scratch, self.dtype), self._columns())
                return
            block = block._replace(count=e.constant_index(self.depth // tile.lanes))
            what = gemm_block_k(tile.rows, tile.vectors, tile.lanes, *dtypes, self.depth % tile.lanes)
        else:
            what = gemm_block(tile.rows, tile.vectors, tile.lanes, *dtypes, self._edge(), int(lines is not None))
        tables, numbers = ([], []) if lines is None else ([lines.table], lines.numbers(e))
        call(e, what, [a.buffer, b.buffer, scratch, *tables], [*block.numbers(), *numbers])

    def _columns(self) -> tuple[Var, list[Computed]]:
        """The columns of a tile of the matrix that is computed, and the variable that says where they begin."""
        first = Var("first_of_tile", self.n - self.tile.columns + 1)
        column = self.b.computed
        assert column is not None
        places = [{self.b.lane: Index.of(first) + c} for c in range(self.tile.columns)]
        return first, [column.moved(p) for p in places]

    def _edge(self) -> int:
        """Vectors that tiles of the last column compute; 0: as many as others, because they do not overlap."""
        if not _present(self.column_overlap):
            return 0
        known = 0 if is_symbolic(self.column_overlap) else self.column_overlap
        return self.tile.vectors - known // self.tile.lanes

    # -- what follows the product -----------------------------------------------------------------------------------
    def _finish_rows(self, e: VectorEmitter, scratch: ir.Value, begin: ir.Value, first: ir.Value) -> None:
        """The rows of a tile, from `first` on and from `begin` on in scratch, through the operations that follow."""
        most = self.tile.rows
        width = self.schedule.block_columns * self.tile.columns
        local, column = Var("local", most), Var("column", width if is_symbolic(self.n) else min(width, self.n))
        nodes = [r.node for r in self.product.roots]
        start = e.times(self.first_column, self.tile.columns)
        count = e.part(self.n, start, column.extent)

        def row() -> None:
            i = e.variables[self.a.lane] = e.plus(first, e.variables[local])
            at = e.variables[local]
            if _present(self.row_overlap):
                at = e.plus_from(at, self.row_overlap, i, (self.row_tiles - 1) * self.tile.rows)
            at = e.plus(e.times(at, self.stride), begin)
            if self.n > 1:  # a single column is no variable of the product's position
                e.hoist(nodes, [self.b.lane])

            def element() -> None:
                e.variables[self.b.lane] = e.plus(start, e.variables[column])
                total = e.recall(scratch, self.dtype, self.product.dtype, e.plus(at, e.variables[column]))
                e.scopes[-1][id(self.product.accumulator)] = total
                for root in self.product.roots:
                    e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))

            e.lanes(column, count, element)

        e.repeat(local, e.part(self.m, first, most), row)
