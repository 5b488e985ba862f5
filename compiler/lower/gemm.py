"""Lowers matmul kernels: `op(a) @ op(b)` with the elementwise operations that follow it.

For a CPU the product is computed by blocks. A step iterates over blocks of C; inside, a register tile (`rows` x `vectors` * `lanes`
accumulators) walks over the block, and the following operations are applied to the rows that it has just written to scratch memory:

    scf.parallel (%block)                                        batch x column blocks x row blocks
      scf.for (%panel) over K                                    the accumulators lie in scratch between the panels of K
        scf.for (%i) scf.for (%j)                                register tiles of the block
          scf.for (%k) { load b; broadcast a; vector.fma ... }
      scf.for (%row) scf.parallel (%column)                      bias, activation, residual, casts -> results

An operand is read in place where its layout suits the tile, else a step before packs it into panels of the tile's width, which takes any
index map (transposes, broadcasts, even computed values). Where an extent is no multiple of the tile, the last tile moves back and overlaps
the one before: every access is a full vector inside its buffer. Two shapes of tile exist: vectors along the columns of C (`b` is
read as vectors, `a` as scalars), and vectors along K, for few rows by a transposed matrix. Each element of C is the same
sequence of operations whatever the blocks and threads are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np

from mlxir.compiler.lower.builder import _STORAGE, _TYPES, INDEX, Reg
from mlxir.compiler.lower.emit import Emitter
from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.loops import Lowered, Step, over, loop_function
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar, reachable
from mlxir.dialects.mlir import Function, Tensor, context, ir
from mlxir.dialects.mx import Aval
from mlxir.dialects.mx.contract import matmul
from mlxir.dialects.mx.shape import broadcast_index, reshape
from mlxir.runtime.dtypes import Dtype, bool_, float32, float64

PANEL = int(__import__('os').environ.get('PANEL','512'))  # of K: a panel of b (PANEL x tile columns) streams from L2 while the rows of a stay in L1
SCRATCH_BYTES = 1 << 17
BLOCKS = 16  # at least so many iterations where the shape allows it: an even share for a few threads
SMALL = 1 << 11  # multiply-adds up to which tiles do not pay
CHUNK = 32  # rows of a matrix that one iteration packs

with context:
    _REASSOC = ir.Attribute.parse("#arith.fastmath<reassoc>")
    _ADD = ir.Attribute.parse("#vector.kind<add>")
    _ROLLED = ir.Attribute.parse("#llvm.loop_annotation<unroll = <disable = true>>")


@functools.cache
def host_vector_bytes() -> int:
    """The widest vector registers of this machine: 64 (AVX-512), 32 (AVX2 with FMA) or 16 bytes."""
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 64
    return 32 if features.get("avx2") and features.get("fma") else 16


# -- what a kernel computes --------------------------------------------------------------------------------------------
class _Root(NamedTuple):
    """A result: its element as a scalar, where it goes, and the number of its buffer."""

    node: Scalar
    position: Index
    buffer: int


class _Product:
    """A kernel with one matmul: its operands and results as scalars over the variables b (batch), i, j and k.

    `accumulator` stands for the product's element (b, i, j) in the results. Results that need the product at other indices are in
    `later`: they are computed from a temporary that holds the whole product.
    """

    def __init__(self, function: Function):
        ops, self.results = function.read()
        (op,) = (o for o in ops if o.record is matmul)
        self.name, self.arguments = function.name, function.arguments
        (self.product,) = op.results
        self.dtype, shape = self.product.dtype, self.product.shape
        self.sum_dtype = float32 if self.dtype.is_float and self.dtype.size == 2 else self.dtype
        self.temporary = len(self.arguments) + len(self.results)  # the buffer number of the product, and of the first temporary
        numbers = {id(t): n for n, t in enumerate(self.arguments)}
        self.pull = Pull(ops, numbers | {id(self.product): self.temporary})

        left, right = op.operands
        ta, tb = op.attrs["ta"], op.attrs["tb"]
        batch, (m, n) = shape[:-2], shape[-2:]
        depth = left.shape[-2 if ta else -1]
        count = int(np.prod(batch, dtype=np.int64))
        self.b, self.i, self.j, self.k = Var("b", count), Var("i", m), Var("j", n), Var("k", depth)

        def operand(x: Tensor, which: Any, row: Any, column: Any, transposed: bool) -> Scalar:
            lead = broadcast_index(Aval(x.shape[:-2], x.dtype), delinearize(Index.of(which), batch))
            last = (column, row) if transposed else (row, column)
            return self.pull.at(x, tuple(Index.of(v) for v in (*lead, *last)))

        self.batch = Index.of(self.b) if count != 1 else Index.of(0)
        self.right = operand(right, self.batch, self.k, self.j, tb)
        self.left = operand(left, self.batch, self.i, self.k, ta)
        if count > 1 and self.b not in self.right.free:
            # One matrix for the whole batch: its axes are more rows.
            rows = Var("i", count * m)
            flat = operand(left, Index.of(rows) // m, Index.of(rows) % m, self.k, ta)
            if flat.kind == "load" and flat.data[1].coefficient(rows) is not None:
                self.left, self.i, self.b, self.batch = flat, rows, Var("b", 1), Index.of(0)
        self.position = (self.batch * self.i.extent + self.i) * n + self.j
        self.accumulator = self.pull.at(self.product, delinearize(self.position, shape))
        self._find_roots()

    @property
    def avals(self) -> list[Aval]:
        return [t.aval for t in (*self.arguments, *self.results)]

    def _find_roots(self) -> None:
        self.roots: list[_Root] = []
        self.later: list[_Root] = []
        for n, tensor in enumerate(self.results, len(self.arguments)):
            x = tensor
            while id(x) in self.pull.producer and self.pull.producer[id(x)][0].record is reshape:
                (x,) = self.pull.producer[id(x)][0].operands  # a result lies in memory row-major whatever its shape
            indices = (self._in_order(x), self._permuted(x))
            found = next((idx for idx in indices if idx is not None and self._only_here(self.pull.at(x, idx))), None)
            if found is not None:
                self.roots.append(_Root(self.pull.at(x, found), linear(found, x.shape), n))
            else:
                flat = Index.of(Var("p", x.aval.size))
                self.later.append(_Root(self.pull.at(x, delinearize(flat, x.shape)), flat, n))
        if self.later:
            self.roots.append(_Root(self.accumulator, self.position, self.temporary))

    def _in_order(self, x: Tensor) -> tuple[Index, ...] | None:
        return delinearize(self.position, x.shape) if x.aval.size == self.product.aval.size else None

    def _permuted(self, x: Tensor) -> tuple[Index, ...] | None:
        """The index of `x` that reads the product at (b, i, j), where `x` is a transposed form of it."""
        if x.aval.size != self.product.aval.size:
            return None
        variables = [Var(f"x{a}", n) for a, n in enumerate(x.shape)]
        node = self.pull.at(x, tuple(Index.of(v) if v.extent > 1 else Index.of(0) for v in variables))
        read = self._reads(node)
        if len(read) != 1 or None in (strides := [read[0].data[1].coefficient(v) for v in variables]):
            return None
        span = 1
        for stride, v in sorted(zip(strides, variables, strict=True), key=lambda s: (s[0], s[1].extent)):
            if v.extent > 1:
                if stride != span:
                    return None
                span *= v.extent
        return tuple(self.position // max(s, 1) % v.extent for s, v in zip(strides, variables, strict=True))

    def _reads(self, node: Scalar) -> list[Scalar]:
        return [n for n in reachable([node]) if n.kind == "load" and n.data[0] == self.temporary]

    def _only_here(self, node: Scalar) -> bool:
        return all(n is self.accumulator for n in self._reads(node))


# -- emission that both forms share --------------------------------------------------------------------------------------
class _Lowering:
    """Steps and temporaries while they are made."""

    def __init__(self, product: _Product, body: ir.Block):
        self.product, self.body = product, body
        self.steps: list[Step] = []
        self.temporaries = [Aval((product.product.aval.size,), product.dtype)] if product.later else []

    def temporary(self, size: int, dtype: Dtype) -> int:
        """The number of a new temporary buffer."""
        self.temporaries.append(Aval((size,), dtype))
        return self.product.temporary + len(self.temporaries) - 1

    def step(self, suffix: str, reads: Sequence[Scalar], also: Sequence[int], writes: Sequence[int], emit: Callable) -> None:
        """A function of the buffers that `reads` load, those of `also` and `writes`; `emit(e)` returns (extent, work)."""
        avals = [*self.product.avals, *self.temporaries]
        loaded = {n.data[0] for n in reachable(reads) if n.kind == "load" and n is not self.product.accumulator}
        numbers = tuple(sorted(loaded.union(also, writes)))
        name = self.product.name + suffix
        _, block = loop_function(self.body, name, [avals[n] for n in numbers])
        values = dict(zip(numbers, block.arguments, strict=True))
        e = Emitter(ScalarBuilder(ir.InsertionPoint(block)), [values.get(n) for n in range(len(avals))])
        extent, work = emit(e)
        e.k.op("func.return", [])
        self.steps.append(Step(name, extent, work, numbers, tuple(writes)))

    def finish(self) -> Lowered:
        """Adds the results that need the whole product, element by element."""
        for root in self.product.later:
            (flat,) = (atom for atom, _ in root.position.terms.values()) if root.position.terms else (Var("p", 1),)

            def emit(e: Emitter, root: _Root = root, flat: Var = flat) -> tuple[int, float]:
                over(e, [flat], lambda: e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position)))
                return flat.extent, float(root.node.cost)

            # Here the product is an ordinary buffer, also at the index that the steps before knew as the accumulator.
            self.step(f"_{root.buffer}", [root.node], [self.product.temporary], [root.buffer], emit)
        return Lowered(self.steps, self.temporaries)


def lower_matmul_simple(function: Function, body: ir.Block) -> Lowered:
    """The kernel as one loop over the elements of the product with a loop over K inside: for any dtype and target."""
    with context, ir.Location.unknown():
        return _simple(_Product(function), body)


def _simple(product: _Product, body: ir.Block) -> Lowered:
    lowering = _Lowering(product, body)
    roots, kept = product.roots, product.sum_dtype

    def emit(e: Emitter) -> tuple[int, float]:
        def multiply_add(total: list[Reg]) -> list[Reg]:
            a, b = (Reg(e.value(x).value, kept, e.k) for x in (product.left, product.right))
            return [total[0] + a * b]

        def element() -> None:
            e.hoist([product.left, product.right], [product.k])
            extent = e.constant_index(product.k.extent)
            (total,) = e.serial(product.k, extent, [e.k.const(0, kept)], multiply_add)
            e.scopes[-1][id(product.accumulator)] = Reg(total.value, product.dtype, e.k)
            for root in roots:
                e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))

        over(e, [product.b, product.i, product.j], element)
        cost = product.left.cost + product.right.cost + 2
        return product.product.aval.size, float(product.k.extent * cost + sum(r.node.cost for r in roots))

    reads = [product.left, product.right, *[r.node for r in roots]]
    lowering.step("", reads, [], [r.buffer for r in roots], emit)
    return lowering.finish()


# -- the form for CPUs ---------------------------------------------------------------------------------------------------
class _Operand:
    """One side of the product over its own axis (`lane`: i or j) and k, with its strides where it is a plain load."""

    def __init__(self, node: Scalar, lane: Var, depth: Var):
        self.node, self.lane, self.depth = node, lane, depth
        self.lane_stride = self.depth_stride = -1
        if node.kind == "load":
            position: Index = node.data[1]
            strides = position.coefficient(lane), position.coefficient(depth)
            if None not in strides:
                self.lane_stride, self.depth_stride = strides
                self.base = position - Index.of(lane) * strides[0] - Index.of(depth) * strides[1]
        self.strided = self.lane_stride >= 0 and self.depth_stride >= 0


class _Tile(NamedTuple):
    """A register tile: `rows` x `columns` elements of C in rows * vectors registers of `lanes` each.

    `along_k`: each register holds partial sums of one element, and vectors == columns.
    """

    rows: int
    vectors: int
    lanes: int
    along_k: bool = False

    @property
    def columns(self) -> int:
        return self.vectors if self.along_k else self.vectors * self.lanes


class _Panels(NamedTuple):
    """How tiles read an operand: the element (lane l, depth k) of tile t is at base(t) + l * lane_stride + k * depth_stride."""

    buffer: ir.Value
    dtype: Dtype
    lane_stride: int
    depth_stride: int
    base: Callable[[ir.Value, ir.Value], ir.Value]  # (tile number, first lane) -> position


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _choose_tile(m: int, n: int, lanes: int, registers: int) -> _Tile:
    """The tile whose estimated cycles for the whole product are fewest: two multiply-adds or two loads per cycle."""
    best, least = _Tile(1, 1, lanes), float("inf")
    for vectors in (2, 1, 3, 4, 6, 8):
        if vectors > 1 and vectors * lanes > n:
            continue
        for rows in range(1, min(m, 16 if vectors > 1 else 24) + 1):
            if rows * vectors + vectors + 1 > registers:
                break
            cycles = max(rows * vectors / 2, (rows + vectors) / 2, 4.0) + 0.5
            total = _ceil(m, rows) * _ceil(n, vectors * lanes) * cycles
            if total < least * 0.999:
                best, least = _Tile(rows, vectors, lanes), total
    return best


def lower_matmul(function: Function, body: ir.Block, vector_bytes: int | None = None) -> Lowered:
    """Lower a kernel with one matmul into the module whose body block is given, for a CPU with vectors of `vector_bytes`."""
    with context, ir.Location.unknown():
        product = _Product(function)
        work = product.product.aval.size * product.k.extent
        if not product.dtype.is_float or work <= SMALL:
            return _simple(product, body)
        return _Blocked(product, body, vector_bytes or host_vector_bytes()).lower()


class _Blocked:
    """Chooses tile, blocks and packing for one product, and emits its steps."""

    def __init__(self, product: _Product, body: ir.Block, vector_bytes: int):
        self.product, self.lowering = product, _Lowering(product, body)
        self.a, self.b = _Operand(product.left, product.i, product.k), _Operand(product.right, product.j, product.k)
        if product.j.extent == 1 and self.a.lane_stride == 1:
            self.a, self.b = self.b, self.a  # a column is computed as a row
        self.m, self.n, self.depth = self.a.lane.extent, self.b.lane.extent, product.k.extent
        self.dtype = product.sum_dtype
        self._choose(vector_bytes)
        self.vector = ir.VectorType.get([self.tile.lanes], _TYPES[self.dtype])
        self.row_tiles, self.column_tiles = _ceil(self.m, self.tile.rows), _ceil(self.n, self.tile.columns)
        # How far the last tile moves back to stay inside; a matrix narrower than the tile is packed with zeros beside it.
        self.row_overlap = self.row_tiles * self.tile.rows - self.m
        self.column_overlap = max(0, self.column_tiles * self.tile.columns - self.n) if self.n >= self.tile.columns else 0
        self._choose_blocks()

    # -- choices ----------------------------------------------------------------------------------------------------
    def _choose(self, vector_bytes: int) -> None:
        lanes, registers = vector_bytes // self.dtype.size, 16 if vector_bytes == 32 else 32
        few = self.n == 1 or self.m <= min(64, self.depth // lanes)  # a sum across a register costs about as much as lanes
        if few and self.a.depth_stride == 1 and self.b.depth_stride == 1 and self.depth >= lanes:
            rows = min(self.m, 4)
            self.tile = _Tile(rows, min(self.n, 8 if rows == 1 else 4), lanes, along_k=True)
            self.pack_a = self.pack_b = False
            return
        while lanes > 4 and lanes // 2 >= self.n:
            lanes //= 2
        size = self.dtype.size
        # Rows whose distance is a multiple of 4 KB compete for the same few lines of L1.
        crowded = self.a.depth_stride == 1 and self.a.lane_stride * self.a.node.dtype.size % 4096 == 0
        many, large = self.n >= 16 * lanes, self.m * self.depth * size > 1 << 20
        self.pack_a = not self.a.strided or (self.m > 8 and many and (crowded or large))
        self.tile = _choose_tile(min(self.m, 8) if crowded and not self.pack_a else self.m, self.n, lanes, registers)
        in_place = self.b.lane_stride == 1 and self.n >= self.tile.columns
        self.pack_b = not in_place or (self.row_tiles_of(self.m) > 6 and self.depth * self.n * size > 1 << 18)
        import os
        if "PA" in os.environ: self.pack_a=bool(int(os.environ["PA"]))
        if "PB" in os.environ: self.pack_b=bool(int(os.environ["PB"]))
        if "TILE" in os.environ: self.tile=_Tile(*map(int,os.environ["TILE"].split(",")), lanes)

    def row_tiles_of(self, m: int) -> int:
        return _ceil(m, self.tile.rows)

    def _choose_blocks(self) -> None:
        tile, size = self.tile, self.dtype.size
        # A large matrix that is read in place is read a few whole rows at a time, the order in which it lies in memory.
        streamed = not tile.along_k and not self.pack_b and self.depth * self.n * size > 1 << 18
        panel = (8 if self.m <= 4 else 16) if streamed else self.depth if tile.along_k else PANEL
        self.panels = _ceil(self.depth, panel)
        self.panel = _ceil(self.depth, self.panels)
        self.panels = _ceil(self.depth, self.panel)
        columns = min(self.column_tiles, max(1, (512 if streamed else 256) // tile.columns))
        if self.panels == 1:
            rows = min(self.row_tiles, max(1, 256 // tile.rows))
        else:
            rows = min(self.row_tiles, max(1, SCRATCH_BYTES // ((columns + 1) * tile.columns * size) // tile.rows))
        rows, columns = self._share(rows, columns, 256 // tile.columns if streamed else 1)
        if 'BR' in __import__('os').environ: rows,columns=map(int,__import__('os').environ['BR'].split(','))
        self.block_rows, self.block_columns = rows, columns
        self.stride = (columns + (1 if self.column_overlap else 0)) * tile.columns
        self.front = tile.columns if self.column_overlap else 0

    def _share(self, most_rows: int, most_columns: int, least_columns: int) -> tuple[int, int]:
        """The block, in tiles, of which 2, 4, 8 and 16 threads get the most even shares; the largest of equals."""
        best, block = 0.0, (1, 1)
        tiles = self.product.b.extent * self.row_tiles * self.column_tiles
        for columns in sorted({_ceil(self.column_tiles, n) for n in range(_ceil(self.column_tiles, most_columns), self.column_tiles + 1)} | {1}):
            if columns < least_columns and columns < most_columns: continue
            for rows in sorted({_ceil(self.row_tiles, n) for n in range(_ceil(self.row_tiles, most_rows), self.row_tiles + 1)}):
                count = self.product.b.extent * _ceil(self.row_tiles, rows) * _ceil(self.column_tiles, columns)
                share = sum(tiles / (t * _ceil(count, t) * rows * columns) for t in (2, 4, 8, 16))
                share -= 0.08 * count.bit_length()
                if share > best:
                    best, block = share, (rows, columns)
        return block

    # -- small emission helpers -----------------------------------------------------------------------------------------
    @staticmethod
    def _add(e: Emitter, a: ir.Value, b: ir.Value | int) -> ir.Value:
        if isinstance(b, int):
            if b == 0:
                return a
            b = e.constant_index(b)
        return e.k.op("arith.addi", [a, b], INDEX)

    @staticmethod
    def _times(e: Emitter, a: ir.Value, n: int) -> ir.Value:
        return a if n == 1 else e.k.op("arith.muli", [a, e.constant_index(n)], INDEX)

    @staticmethod
    def _least(e: Emitter, a: ir.Value, b: int) -> ir.Value:
        return e.k.op("arith.minsi", [a, e.constant_index(b)], INDEX)

    def _compare(self, e: Emitter, predicate: int, a: ir.Value, b: int) -> ir.Value:
        code = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), predicate)
        return e.k.op("arith.cmpi", [a, e.constant_index(b)], _TYPES[bool_], predicate=code)

    @staticmethod
    def _when(e: Emitter, test: ir.Value, body: Callable[[], None]) -> None:
        operation = ir.Operation.create("scf.if", operands=[test], regions=2, loc=e.k.loc, ip=e.k.ip)
        with e.block(operation.regions[0].blocks.append()):
            body()
            e.k.op("scf.yield", [])

    def _load_vector(self, e: Emitter, buffer: ir.Value, dtype: Dtype, position: ir.Value, lanes: int) -> ir.Value:
        value = e.k.op("vector.load", [buffer, position], ir.VectorType.get([lanes], _STORAGE[dtype]))
        if dtype is not self.dtype:
            value = e.k.op("arith.extf", [value], ir.VectorType.get([lanes], _TYPES[self.dtype]))
        return value

    def _constant_vector(self, e: Emitter, values: Any, kind: ir.Type) -> ir.Value:
        attribute = ir.DenseElementsAttr.get([ir.Attribute.parse(v) for v in values], kind)
        return e.k.op("arith.constant", [], kind, value=attribute)

    def _zeros(self, e: Emitter) -> ir.Value:
        zero = ir.FloatAttr.get(_TYPES[self.dtype], 0.0)
        return e.k.op("arith.constant", [], self.vector, value=ir.DenseElementsAttr.get_splat(self.vector, zero))

    @staticmethod
    def _loop(e: Emitter, var: Var, extent: ir.Value, starts: list[Reg], body: Callable[[list[Reg]], list[Reg]]) -> list[Reg]:
        """A serial loop that LLVM leaves as it is: tiles are unrolled already, and the rest is not worth its time."""

        def rolled(carried: list[Reg]) -> list[Reg]:
            e.k.ip.block.owner.attributes["loop_annotation"] = _ROLLED
            return body(carried)

        return e.serial(var, extent, starts, rolled)

    # -- packing ----------------------------------------------------------------------------------------------------
    def _pack(self, operand: _Operand, width: int, suffix: str) -> int:
        """A step that copies an operand into panels: [batch][tile][k][lane of the tile], in the dtype of the sums."""
        tiles = _ceil(operand.lane.extent, width)
        batches = self.product.b.extent if self.product.b in operand.node.free else 1
        target = self.lowering.temporary(batches * tiles * self.depth * width, self.dtype)
        pack = self._pack_rows if operand.lane_stride == 1 and operand.lane.extent >= width else self._pack_values
        if operand.depth_stride == 1 and operand.lane.extent >= width and self.depth >= self.tile.lanes:
            pack = self._pack_transposed

        def emit(e: Emitter) -> tuple[int, float]:
            return pack(e, operand, width, e.buffers[target], batches, tiles)

        self.lowering.step(suffix, [operand.node], [], [target], emit)
        return target

    def _first_lane(self, e: Emitter, tile: ir.Value, width: int, extent: int) -> ir.Value:
        """Of a tile: the last one moves back to stay inside."""
        first = self._times(e, tile, width)
        return first if extent % width == 0 else self._least(e, first, max(extent - width, 0))

    def _panel_start(self, e: Emitter, batch: ir.Value, tile: ir.Value, tiles: int, width: int, batches: int) -> ir.Value:
        if batches > 1:
            tile = self._add(e, self._times(e, batch, tiles), tile)
        return self._times(e, tile, self.depth * width)

    def _pack_values(self, e: Emitter, x: _Operand, width: int, target: ir.Value, batches: int, tiles: int) -> tuple[int, float]:
        """Element by element: any index map, and panels that are wider than the matrix."""
        batch, tile, local = self.product.b if batches > 1 else Var("b", 1), Var("tile", tiles), Var("lane", width)
        inside = min(width, x.lane.extent)

        def panel() -> None:
            first = self._first_lane(e, e.variables[tile], width, x.lane.extent)
            start = self._panel_start(e, e.variables[batch], e.variables[tile], tiles, width, batches)

            def row(_: list) -> list:
                at = self._add(e, start, self._times(e, e.variables[x.depth], width))

                def element() -> None:
                    e.variables[x.lane] = self._add(e, first, e.variables[local])
                    e.keep(e.value(x.node), target, self.dtype, self._add(e, at, e.variables[local]))

                e.parallel(local, e.constant_index(inside), element)
                if inside < width:
                    blank = self._add(e, at, inside)
                    zero = e.k.const(0, self.dtype)
                    e.parallel(
                        local, e.constant_index(width - inside), lambda: e.k.store(zero, target, self._add(e, blank, e.variables[local]))
                    )
                return []

            self._loop(e, x.depth, e.constant_index(self.depth), [], row)

        over(e, [batch, tile], panel)
        return batches * tiles, float(self.depth * width * max(x.node.cost, 1))

    def _pack_rows(self, e: Emitter, x: _Operand, width: int, target: ir.Value, batches: int, tiles: int) -> tuple[int, float]:
        """Rows of the matrix are contiguous along the lanes: an iteration cuts a few rows into pieces of the tile's width."""
        chunks = _ceil(self.depth, CHUNK)
        batch, chunk, tile, row = self.product.b if batches > 1 else Var("b", 1), Var("c", chunks), Var("tile", tiles), Var("r", CHUNK)

        def rows() -> None:
            first_row = self._times(e, e.variables[chunk], CHUNK)
            count = self._least(e, e.k.op("arith.subi", [e.constant_index(self.depth), first_row], INDEX), CHUNK)
            base = self._add(e, e.index(x.base), self._times(e, first_row, x.depth_stride))

            def piece(_: list) -> list:
                source = self._add(e, base, self._first_lane(e, e.variables[tile], width, x.lane.extent))
                start = self._panel_start(e, e.variables[batch], e.variables[tile], tiles, width, batches)
                start = self._add(e, start, self._times(e, first_row, width))

                def copy(_: list) -> list:
                    at = self._add(e, source, self._times(e, e.variables[row], x.depth_stride))
                    value = self._load_vector(e, e.buffers[x.node.data[0]], x.node.dtype, at, width)
                    e.k.op("vector.store", [value, target, self._add(e, start, self._times(e, e.variables[row], width))])
                    return []

                self._loop(e, row, count, [], copy)
                return []

            self._loop(e, tile, e.constant_index(tiles), [], piece)

        over(e, [batch, chunk], rows)
        return batches * chunks, float(CHUNK * tiles * width)

    def _pack_transposed(
        self, e: Emitter, x: _Operand, width: int, target: ir.Value, batches: int, tiles: int
    ) -> tuple[int, float]:
        """Columns are contiguous along K: squares of lanes x lanes elements are transposed in registers."""
        lanes, buffer = self.tile.lanes, e.buffers[x.node.data[0]]
        batch, tile = self.product.b if batches > 1 else Var("b", 1), Var("tile", tiles)
        step, square = Var("s", self.depth // lanes), Var("v", width // lanes)
        rest, lane = Var("t", lanes), Var("l", width)

        def panel() -> None:
            first = self._first_lane(e, e.variables[tile], width, x.lane.extent)
            source = self._add(e, e.index(x.base), self._times(e, first, x.lane_stride))
            start = self._panel_start(e, e.variables[batch], e.variables[tile], tiles, width, batches)

            def transpose(column: ir.Value, used: int) -> None:
                """A square from column `column` of the panel on, of which the panel has `used` columns."""
                depth = self._times(e, e.variables[step], lanes)
                at = self._add(e, self._add(e, source, self._times(e, column, x.lane_stride)), depth)
                places = [self._add(e, at, r * x.lane_stride) for r in range(used)]
                rows = [self._load_vector(e, buffer, x.node.dtype, p, lanes) for p in places]
                to = self._add(e, self._add(e, start, column), self._times(e, depth, width))
                for r, value in enumerate(self._transposed(e, rows + rows[:1] * (lanes - used))):
                    if used < lanes:
                        part, mask = ir.VectorType.get([used], _TYPES[self.dtype]), ir.DenseI64ArrayAttr.get(range(used))
                        value = e.k.op("vector.shuffle", [value, value], part, mask=mask)
                    e.k.op("vector.store", [value, target, self._add(e, to, r * width)])

            def whole(_: list) -> list:
                transpose(self._times(e, e.variables[square], lanes), lanes)
                return []

            def squares(_: list) -> list:
                if width >= lanes:
                    self._loop(e, square, e.constant_index(width // lanes), [], whole)
                if width % lanes:
                    transpose(e.constant_index(width - width % lanes), width % lanes)
                return []

            def tail(_: list) -> list:
                depth = self._add(e, e.variables[rest], self.depth - self.depth % lanes)
                at, to = self._add(e, source, depth), self._add(e, start, self._times(e, depth, width))

                def element() -> None:
                    place = self._add(e, at, self._times(e, e.variables[lane], x.lane_stride))
                    value = e.k.load(buffer, place, x.node.dtype)
                    e.keep(value, target, self.dtype, self._add(e, to, e.variables[lane]))

                e.parallel(lane, e.constant_index(width), element)
                return []

            self._loop(e, step, e.constant_index(self.depth // lanes), [], squares)
            if self.depth % lanes:
                self._loop(e, rest, e.constant_index(self.depth % lanes), [], tail)

        over(e, [batch, tile], panel)
        return batches * tiles, float(self.depth * width)

    def _transposed(self, e: Emitter, rows: list[ir.Value]) -> list[ir.Value]:
        """Of a square: log2(n) rounds that interleave row r with row r + n/2."""
        n = len(rows)
        low = ir.DenseI64ArrayAttr.get([i // 2 + n * (i % 2) for i in range(n)])
        high = ir.DenseI64ArrayAttr.get([n // 2 + i // 2 + n * (i % 2) for i in range(n)])
        for _ in range(n.bit_length() - 1):
            pairs = [(rows[r], rows[r + n // 2]) for r in range(n // 2)]
            rows = [e.k.op("vector.shuffle", p, self.vector, mask=half) for p in pairs for half in (low, high)]
        return rows

    # -- the product ------------------------------------------------------------------------------------------------
    def lower(self) -> Lowered:
        product, roots = self.product, self.product.roots
        reads, packed = [r.node for r in roots], {}
        for operand, wanted, width, suffix in (
            (self.b, self.pack_b, self.tile.columns, "_pack_b"),
            (self.a, self.pack_a, self.tile.rows, "_pack_a"),
        ):
            if wanted:
                packed[operand] = self._pack(operand, width, suffix)
            else:
                reads.append(operand.node)
        writes = [r.buffer for r in roots]
        self.lowering.step("", reads, list(packed.values()), writes, lambda e: self._emit(e, packed))
        return self.lowering.finish()

    def _panels(self, e: Emitter, x: _Operand, width: int, tiles: int, packed: int | None) -> _Panels:
        batches = self.product.b.extent if self.product.b in x.node.free else 1
        if packed is None:
            start = e.index(x.base)
            return _Panels(
                e.buffers[x.node.data[0]], x.node.dtype, x.lane_stride, x.depth_stride,
                lambda tile, lane: self._add(e, start, self._times(e, lane, x.lane_stride)),
            )  # fmt: skip
        batch = e.variables[self.product.b]
        return _Panels(
            e.buffers[packed], self.dtype, 1, width,
            lambda tile, lane: self._panel_start(e, batch, tile, tiles, width, batches),
        )  # fmt: skip

    def _emit(self, e: Emitter, packed: dict) -> tuple[int, float]:
        tile, rows, columns = self.tile, self.block_rows, self.block_columns
        row_blocks, column_blocks = Var("rb", _ceil(self.row_tiles, rows)), Var("cb", _ceil(self.column_tiles, columns))
        held = rows * tile.rows if self.panels > 1 else tile.rows
        scratch, _ = e.scratch(held * self.stride, self.dtype)

        def block() -> None:
            a = self._panels(e, self.a, tile.rows, self.row_tiles, packed.get(self.a))
            b = self._panels(e, self.b, tile.columns, self.column_tiles, packed.get(self.b))
            self.first_row, row_count = self._range(e, row_blocks, rows, self.row_tiles)
            self.first_column, column_count = self._range(e, column_blocks, columns, self.column_tiles)
            self.column_count = column_count
            if self.panels == 1:
                self._one_panel(e, scratch, a, b, row_count)
            else:
                self._many_panels(e, scratch, a, b, row_count)

        over(e, [self.product.b, column_blocks, row_blocks], block)
        extent = self.product.b.extent * row_blocks.extent * column_blocks.extent
        per_element = self.depth + sum(r.node.cost for r in self.product.roots)
        return extent, float(rows * tile.rows * columns * tile.columns * per_element)

    def _range(self, e: Emitter, block: Var, size: int, total: int) -> tuple[ir.Value, ir.Value]:
        """(first tile of a block, number of its tiles)."""
        first = self._times(e, e.variables[block], size)
        if total % size == 0:
            return first, e.constant_index(size)
        left = e.k.op("arith.subi", [e.constant_index(total), first], INDEX)
        return first, self._least(e, left, size)

    def _one_panel(self, e: Emitter, scratch: ir.Value, a: _Panels, b: _Panels, row_count: ir.Value) -> None:
        """K in one go: a row of tiles, then the operations that follow on it."""
        row = Var("row", self.block_rows)

        def rows(_: list) -> list:
            tile = self._add(e, self.first_row, e.variables[row])
            zero = self._zeros(e)
            self._row_of_tiles(e, a, b, tile, e.constant_index(self.depth), None, scratch, e.constant_index(0), zero)
            first = self._times(e, tile, self.tile.rows)
            left = e.k.op("arith.subi", [e.constant_index(self.m), first], INDEX)
            self._finish_rows(e, scratch, first, self._least(e, left, self.tile.rows))
            return []

        self._loop(e, row, row_count, [], rows)

    def _many_panels(self, e: Emitter, scratch: ir.Value, a: _Panels, b: _Panels, row_count: ir.Value) -> None:
        """Panels of K one after the other, sums in scratch; then the operations that follow on the block."""
        panel, row, word = Var("panel", self.panels), Var("row", self.block_rows), Var("w", 1)
        words = self.block_rows * self.tile.rows * self.stride // self.tile.lanes
        zero = self._zeros(e)

        def clear(_: list) -> list:
            e.k.op("vector.store", [zero, scratch, self._times(e, e.variables[word], self.tile.lanes)])
            return []

        def panels(_: list) -> list:
            start = self._times(e, e.variables[panel], self.panel)
            left = e.k.op("arith.subi", [e.constant_index(self.depth), start], INDEX)
            count = self._least(e, left, self.panel)

            def rows(_: list) -> list:
                tile = self._add(e, self.first_row, e.variables[row])
                at = self._times(e, e.variables[row], self.tile.rows * self.stride)
                self._row_of_tiles(e, a, b, tile, count, start, scratch, at, None)
                return []

            self._loop(e, row, row_count, [], rows)
            return []

        self._loop(e, word, e.constant_index(words), [], clear)
        self._loop(e, panel, e.constant_index(self.panels), [], panels)
        first = self._times(e, self.first_row, self.tile.rows)
        left = e.k.op("arith.subi", [e.constant_index(self.m), first], INDEX)
        self._finish_rows(e, scratch, first, self._least(e, left, self.block_rows * self.tile.rows))

    def _row_of_tiles(
        self, e: Emitter, a: _Panels, b: _Panels, tile: ir.Value, count: ir.Value, start: ir.Value | None,
        scratch: ir.Value, at: ir.Value, zero: ir.Value | None,
    ) -> None:  # fmt: skip
        """The tiles of a block that share their rows: `count` multiply-adds from `start` on; `zero` begins a sum."""
        column = Var("column", self.block_columns)
        a_base = a.base(tile, self._first_lane(e, tile, self.tile.rows, self.m))
        if start is not None:
            a_base = self._add(e, a_base, self._times(e, start, a.depth_stride))

        def columns(_: list) -> list:
            number = self._add(e, self.first_column, e.variables[column])
            b_base = b.base(number, self._first_lane(e, number, self.tile.columns, self.n))
            if start is not None:
                b_base = self._add(e, b_base, self._times(e, start, b.depth_stride))
            corner = self._add(e, at, self._add(e, self._times(e, e.variables[column], self.tile.columns), self.front))
            if self.tile.along_k:
                self._tile_along_k(e, a, b, a_base, b_base, scratch, corner, zero)
            else:
                self._tile_along_columns(e, a, b, a_base, b_base, count, scratch, corner, zero)
            return []

        self._loop(e, column, self.column_count, [], columns)

    def _tile_along_columns(
        self, e: Emitter, a: _Panels, b: _Panels, a_base: ir.Value, b_base: ir.Value, count: ir.Value,
        scratch: ir.Value, corner: ir.Value, zero: ir.Value | None,
    ) -> None:  # fmt: skip
        """C[r, v] += a[r, k] * b[k, v] with one register per (r, v)."""
        k, tile, depth = e.k, self.tile, Var("kk", self.panel)
        places = [self._add(e, corner, r * self.stride + v * tile.lanes) for r in range(tile.rows) for v in range(tile.vectors)]
        starts = [zero if zero is not None else self._load_vector(e, scratch, self.dtype, p, tile.lanes) for p in places]

        def step(sums: list[Reg]) -> list[Reg]:
            a_at = self._add(e, a_base, self._times(e, e.variables[depth], a.depth_stride))
            b_at = self._add(e, b_base, self._times(e, e.variables[depth], b.depth_stride))
            vectors = [
                self._load_vector(e, b.buffer, b.dtype, self._add(e, b_at, v * tile.lanes), tile.lanes) for v in range(tile.vectors)
            ]
            out = []
            for r in range(tile.rows):
                scalar = k.load(a.buffer, self._add(e, a_at, r * a.lane_stride), a.dtype).value
                wide = k.op("vector.broadcast", [scalar], self.vector)
                for v, vector in enumerate(vectors):
                    total = sums[r * tile.vectors + v].value
                    out.append(Reg(k.op("vector.fma", [wide, vector, total], self.vector), self.dtype, k))
            return out

        sums = self._loop(e, depth, count, [Reg(s, self.dtype, k) for s in starts], step)
        for value, place in zip(sums, places, strict=True):
            k.op("vector.store", [value.value, scratch, place])

    def _tile_along_k(
        self, e: Emitter, a: _Panels, b: _Panels, a_base: ir.Value, b_base: ir.Value,
        scratch: ir.Value, corner: ir.Value, zero: ir.Value | None,
    ) -> None:  # fmt: skip
        """C[r, c] = sum over k of a[r, k] * b[c, k], a vector of k at a time; the last vector overlaps and is masked."""
        k, tile, lanes = e.k, self.tile, self.tile.lanes
        whole = self.depth // lanes
        depth = Var("kk", whole)

        def multiply_add(at: ir.Value, sums: list[Reg], prepare: Callable[[ir.Value], ir.Value]) -> list[Reg]:
            def read(x: _Panels, base: ir.Value, n: int) -> list[ir.Value]:
                places = [self._add(e, self._add(e, base, at), i * x.lane_stride) for i in range(n)]
                return [prepare(self._load_vector(e, x.buffer, x.dtype, p, lanes)) for p in places]

            columns = read(b, b_base, tile.vectors)
            pairs = [(x, y) for x in read(a, a_base, tile.rows) for y in columns]
            fused = [k.op("vector.fma", [x, y, s.value], self.vector) for (x, y), s in zip(pairs, sums, strict=True)]
            return [Reg(f, self.dtype, k) for f in fused]

        def step(sums: list[Reg]) -> list[Reg]:
            return multiply_add(self._times(e, e.variables[depth], lanes), sums, lambda v: v)

        sums = [Reg(zero, self.dtype, k)] * (tile.rows * tile.vectors)
        sums = self._loop(e, depth, e.constant_index(whole), sums, step)
        if self.depth % lanes:
            mask_type = ir.VectorType.get([lanes], _TYPES[bool_])
            done = lanes - self.depth % lanes
            mask = self._constant_vector(e, ["true" if i >= done else "false" for i in range(lanes)], mask_type)
            last = e.constant_index(self.depth - lanes)
            sums = multiply_add(last, sums, lambda v: k.op("arith.select", [mask, v, zero], self.vector))
        for n, total in enumerate(sums):
            value = k.op("vector.reduction", [total.value], _TYPES[self.dtype], kind=_ADD, fastmath=_REASSOC)
            r, c = divmod(n, tile.vectors)
            k.op("memref.store", [value, scratch, self._add(e, corner, r * self.stride + c)])

    # -- what follows the product --------------------------------------------------------------------------------------
    def _finish_rows(self, e: Emitter, scratch: ir.Value, first: ir.Value, count: ir.Value) -> None:
        """`count` rows from `first` on, the first of them at the start of scratch, into the results."""
        local, lane, k = Var("r", self.block_rows * self.tile.rows), Var("lane", self.block_columns * self.tile.columns), e.k
        roots, last_tile = self.product.roots, (self.row_tiles - 1) * self.tile.rows

        def row(_: list) -> list:
            i, at = self._add(e, first, e.variables[local]), e.variables[local]
            e.variables[self.a.lane] = i
            if self.row_overlap:
                moved = self._add(e, at, self.row_overlap)
                at = k.op("arith.select", [self._compare(e, 5, i, last_tile), moved, at], INDEX)
            at = self._add(e, self._times(e, at, self.stride), self.front)
            if self.column_overlap:
                self._close_gap(e, scratch, at)
            start = self._times(e, self.first_column, self.tile.columns)
            left = k.op("arith.subi", [e.constant_index(self.n), start], INDEX)
            e.hoist([r.node for r in roots], [self.b.lane])

            def element() -> None:
                e.variables[self.b.lane] = self._add(e, start, e.variables[lane])
                place = self._add(e, at, e.variables[lane])
                e.scopes[-1][id(self.product.accumulator)] = e.recall(scratch, self.dtype, self.product.dtype, place)
                for r in roots:
                    k.store(e.value(r.node), e.buffers[r.buffer], e.index(r.position))

            e.parallel(lane, self._least(e, left, self.block_columns * self.tile.columns), element)
            return []

        self._loop(e, local, count, [], row)

    def _close_gap(self, e: Emitter, scratch: ir.Value, at: ir.Value) -> None:
        """The last tile of a row began further left than its place in scratch says: move it there."""
        word, width = Var("w", 1), 1 if self.tile.along_k else self.tile.lanes
        number = self._add(e, self.first_column, self.column_count)

        def move() -> None:
            before = self._add(e, self.column_count, -1)
            source = self._add(e, at, self._times(e, before, self.tile.columns))

            def piece(_: list) -> list:
                place = self._add(e, source, self._times(e, e.variables[word], width))
                value = self._load_vector(e, scratch, self.dtype, place, width)
                e.k.op("vector.store", [value, scratch, self._add(e, place, -self.column_overlap)])
                return []

            self._loop(e, word, e.constant_index(self.tile.columns // width), [], piece)

        self._when(e, self._compare(e, 0, number, self.column_tiles), move)
