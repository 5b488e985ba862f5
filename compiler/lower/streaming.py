"""What the attention kernels share: the geometry of the blocks, staging into scratch memory, masks.

Query heads that share a key head are rows of one matrix, (H / G) T of them; a block is `block` of these rows, which are
the lanes of vectors: scores lie as [key][row], so that everything per row is done lane by lane. A block of rows meets
the keys KEYS at a time; operands are copied into scratch first, which takes any layout, dtype and computed operand, and
brings the rows side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxir.compiler.lower.builder import _TYPES, INDEX, Reg
from mlxir.compiler.lower.gemm import host_vector_bytes
from mlxir.compiler.lower.index import Index, Var, linear
from mlxir.compiler.lower.loops import Step, loop_function
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar
from mlxir.compiler.lower.tiles import Matrix, Tiles
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, Op, Tensor, ir
from mlxir.dialects.mx import Aval
from mlxir.dialects.mx.attention import HIDDEN, work_dtype
from mlxir.dialects.mx.shape import broadcast_index
from mlxir.runtime.dtypes import bool_, int32, int64
from mlxir.runtime.errors import CompileError

BLOCK = 64  # rows
KEYS = 64
WIDEST = 512  # features: wider blocks would outgrow L2


def fits(op: Op) -> bool:
    """Whether an attention operation is one that these kernels take: their blocks are made for the numbers."""
    q, k, v = op.operands[:3]
    if any(type(n) is not int for x in (q, k, v) for n in x.shape):
        return False
    return 0 not in (*q.shape, *k.shape, *v.shape) and max(q.shape[3], v.shape[3]) <= WIDEST


class Streaming:
    """An attention operation and its kernel function in the making."""

    def __init__(self, function: Function, body: ir.Block):
        ops, self.results = function.read()
        self.op = next(o for o in ops if o.record.lowering == "kernel")
        if [id(t) for t in self.results] != [id(t) for t in self.op.results]:
            raise CompileError(f"[lower] {self.op.record.name} cannot be fused with what reads it")
        self.function, self.body = function, body
        self.avals = [t.aval for t in function.arguments] + [t.aval for t in self.results]
        self.inputs = len(function.arguments)
        self.pull = Pull(ops, {id(t): i for i, t in enumerate(function.arguments)})
        self.q, self.k, self.v, self.mask, *self.others = self.op.operands
        self.batch, self.heads, self.steps, self.width = self.q.shape
        self.groups, self.length, self.value_width = self.k.shape[1], self.k.shape[2], self.v.shape[3]
        self.repeats = self.heads // self.groups
        self.rows = self.repeats * self.steps
        self.scale, self.causal, self.fill = (self.op.attrs[n] for n in ("scale", "causal", "fill"))
        self.dtype = work_dtype(self.q.dtype)
        vector_bytes = host_vector_bytes()
        self.tiles = Tiles(self.dtype, vector_bytes // self.dtype.size, 16 if vector_bytes == 32 else 32)
        self.block = min(BLOCK, self.padded(self.rows))
        self.blocks = -(-self.rows // self.block)
        self._variables()

    def _variables(self) -> None:
        """Loop variables: unit (a key head of an example), block, row of the block, key, features."""
        self.unit, self.number = Var("unit", self.batch * self.groups), Var("block", self.blocks)
        self.row, self.key = Var("row", self.block), Var("key", self.length)
        self.feature, self.value_feature = Var("d", self.width), Var("e", self.value_width)
        self.example, self.group = Index.of(self.unit) // self.groups, Index.of(self.unit) % self.groups
        self.head, self.step = self.head_and_step(Index.of(self.number) * self.block + self.row)
        # Lanes beyond the last row read the mask of the last row.
        self.mask_row = Var("mask_row", self.block) if self.rows % self.block else self.row
        head, step = self.head_and_step(Index.of(self.number) * self.block + self.mask_row)
        self.mask_node = self.broadcast(self.mask, (self.example, head, step, Index.of(self.key)))

    def padded(self, n: int) -> int:
        return -(-n // self.tiles.lanes) * self.tiles.lanes

    def head_and_step(self, row: Index) -> tuple[Index, Index]:
        if self.repeats == 1:
            return self.group, row
        return self.group * self.repeats + row // self.steps, row % self.steps

    def broadcast(self, x: Tensor, at: tuple[Index, ...]) -> Scalar:
        """`x`, some of whose axes have length 1."""
        return self.pull.at(x, tuple(Index.of(i) for i in broadcast_index(x.aval, at)))

    def result_position(self, n: int, head: Index, step: Index, column: Var) -> Index:
        """Where element (example, head, step, column) of result n lies."""
        order = (step, head) if self.op.attrs["swapped"] else (head, step)
        return linear((self.example, *order, Index.of(column)), self.results[n].shape)

    # -- the function -------------------------------------------------------------------------------------------------
    def add(
        self, suffix: str, temporaries: Sequence[Aval], writes: Sequence[int],
        emit: Callable[[VectorEmitter], tuple[int, float]],
    ) -> Step:  # fmt: skip
        """A step over all buffers of the kernel; `emit` fills it: -> (extent, work)."""
        avals, name = [*self.avals, *temporaries], self.function.name + suffix
        _, block = loop_function(self.body, name, avals)
        e = VectorEmitter(ScalarBuilder(ir.InsertionPoint(block)), list(block.arguments))
        extent, work = emit(e)
        e.k.op("func.return", [])
        return Step(name, extent, work, tuple(range(len(avals))), tuple(writes))

    # -- scratch memory -----------------------------------------------------------------------------------------------
    def matrix(self, e: VectorEmitter, rows: int, columns: int) -> Matrix:
        """Scratch for both extents rounded up to whole vectors."""
        rows, columns = self.padded(rows), self.padded(columns)
        return Matrix(e.scratch(rows * columns, self.dtype)[0], e.constant_index(0), columns)

    def vector(self, e: VectorEmitter) -> ir.Value:
        """Scratch for one number per row of the block."""
        return e.scratch(self.block, self.dtype)[0]

    def load(self, e: VectorEmitter, buffer: ir.Value, at: ir.Value) -> Reg:
        return e.k.load(buffer, at, self.dtype)

    def value(self, e: VectorEmitter, node: Scalar) -> Reg:
        """A scalar in the work dtype, in which registers hold 2-byte floats anyway."""
        return Reg(e.k.cast(e.value(node), self.dtype).value, self.dtype, e.k)

    def clear(self, e: VectorEmitter, buffer: ir.Value, first: ir.Value, count: int | ir.Value) -> None:
        at = Var("at", 0)
        e.lanes(at, count, lambda: e.k.store(e.k.const(0, self.dtype), buffer, e.plus(first, e.variables[at])))

    def each_row(self, e: VectorEmitter, body: Callable[[ir.Value], None]) -> None:
        """Lane by lane over the rows of the block."""
        e.lanes(self.row, self.block, lambda: body(e.variables[self.row]))

    def stage_rows(
        self, e: VectorEmitter, x: Tensor, column: Var, count: ir.Value, target: Matrix, factor: float = 1.0
    ) -> None:
        """Rows of the block of q or of what is shaped like it, times `factor`; zeros below them."""
        node = self.pull.at(x, (self.example, self.head, self.step, Index.of(column)))
        self._stage(e, node, self.row, column, count, target, factor)
        if self.rows % self.block:
            missing, left = Var("missing", 0), e.minus(e.constant_index(self.block), count)

            def no_row() -> None:
                row = e.plus(count, e.variables[missing])
                self.clear(e, target.buffer, target.at(e, row, e.constant_index(0)), column.extent)

            e.repeat(missing, left, no_row)

    def stage_keys(
        self, e: VectorEmitter, x: Tensor, column: Var, first: ir.Value, count: ir.Value, target: Matrix
    ) -> None:
        """Rows of k or v from key `first` on."""
        node = self.pull.at(x, (self.example, self.group, Index.of(self.key), Index.of(column)))
        self._stage(e, node, Var("local", KEYS), column, count, target, 1.0, first)

    def _stage(
        self, e: VectorEmitter, node: Scalar, local: Var, column: Var, count: ir.Value, target: Matrix, factor: float,
        first_key: ir.Value | None = None,
    ) -> None:  # fmt: skip
        def row() -> None:
            at = target.at(e, e.variables[local], e.constant_index(0))
            if first_key is not None:
                e.variables[self.key] = e.plus(first_key, e.variables[local])
            e.hoist([node], [column])

            def element() -> None:
                value = self.value(e, node)
                value = value if factor == 1 else value * factor
                e.k.store(value, target.buffer, e.plus(at, e.variables[column]))

            e.lanes(column, column.extent, element)

        e.repeat(local, count, row)

    # -- masks --------------------------------------------------------------------------------------------------------
    @property
    def plain(self) -> bool:
        """Whether there is no mask at all."""
        return not self.causal and self._unmasked

    @property
    def _unmasked(self) -> bool:
        return self.mask.dtype is bool_ and self.mask_node.kind == "constant" and bool(self.mask_node.data[0])

    def sight(self, e: VectorEmitter) -> ir.Value:
        """How many keys, from the first on, the rows of the block need."""
        aligned = self.repeats == 1 or self.steps % self.block == 0
        if not self.causal or not aligned or self.length < self.steps or self.fill > HIDDEN:
            return e.constant_index(self.length)
        first = Index.of(self.number) * self.block
        first = first if self.repeats == 1 else first % self.steps
        return e.least(e.plus(e.index(first), self.block + self.length - self.steps), self.length)

    def limits(self, e: VectorEmitter) -> ir.Value | None:
        """The last key that each row sees, where they are causal."""
        if not self.causal:
            return None
        last, _ = e.scratch(self.block, int32)
        position = self.step + (self.length - self.steps)
        self.each_row(e, lambda at: e.k.store(self._integer(e, e.index(position)), last, at))
        return last

    def _integer(self, e: VectorEmitter, i: ir.Value) -> Reg:
        return e.k.cast(Reg(e.k.op("arith.index_cast", [i], _TYPES[int64]), int64, e.k), int32)

    def masked(self, e: VectorEmitter, x: Reg, last: ir.Value | None) -> tuple[Reg, Reg | None]:
        """The score of (row, key), and whether it counts (None: always)."""
        visible: Reg | None = None
        if self.mask_row is not self.row:
            first = e.times(e.variables[self.number], self.block)
            most = e.rest(self.rows - 1, first, self.block - 1)
            e.variables[self.mask_row] = e.k.op("arith.minui", [e.variables[self.row], most], INDEX)
        if self.mask.dtype is not bool_:
            x = x + self.value(e, self.mask_node)
        elif not self._unmasked:
            visible = e.value(self.mask_node)
        if last is not None:
            below = self._integer(e, e.variables[self.key]) <= e.k.load(last, e.variables[self.row], int32)
            visible = below if visible is None else visible & below
        return (x if visible is None else e.k.select(visible, x, e.k.const(self.fill, self.dtype))), visible

    def over_keys(
        self, e: VectorEmitter, sight: ir.Value, body: Callable[[ir.Value, ir.Value], None], keys: int = KEYS
    ) -> None:
        """`body(first, count)` for the keys in sight, `keys` at a time."""
        block, most = Var("keys", 0), e.constant_index(keys)
        count = e.k.op("arith.divui", [e.plus(sight, keys - 1), most], INDEX)

        def piece() -> None:
            first = e.times(e.variables[block], keys)
            body(first, e.k.op("arith.minui", [e.minus(sight, first), most], INDEX))

        e.repeat(block, count, piece)

    def scores(
        self, e: VectorEmitter, first: ir.Value, count: ir.Value, body: Callable[[ir.Value], None]
    ) -> None:
        """`body(position)` for every score [key][row] of a piece, lane by lane; `key` and `row` are bound."""
        local = Var("local", KEYS)

        def key() -> None:
            e.variables[self.key] = e.plus(first, e.variables[local])
            start = e.times(e.variables[local], self.block)
            self.each_row(e, lambda at: body(e.plus(start, at)))

        e.repeat(local, count, key)
