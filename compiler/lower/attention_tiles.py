"""Attention on a GPU by tiles: a threadgroup takes some queries, and their keys block by block, through shared memory.

    scf.parallel (%tile)                                   example x head x 16 or 32 queries
      q <- queries * scale;  sums <- 0                     tiles in scratch
      scf.for (%block)                                     16 or 32 keys, which a causal mask does not hide from all
        kv <- keys;    scores = q kv^T                     gpu.subgroup_mma_*, as in gemm_subgroups.py
        scores masked; the largest so far, exp, the sum    a row is a thread's; elements are shared by all
        sums = sums * decay
        kv <- values;  sums += scores kv
      out = sums / total; top; total

The scores are never in memory. Tiles are float32. What the gradient (attention_tiles_grad.py) needs, too, is in
`TileKernel`: tiles, how they are filled, masked and multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.gemm_subgroups import FRAGMENT, fragment_type, mma
from mlxir.compiler.lower.index import Condition, Index, Var, linear
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel
from mlxir.dialects.mlir import Function, Op, Tensor, context, ir
from mlxir.dialects.mx.attention import work_dtype
from mlxir.dialects.mx.shape import broadcast_index
from mlxir.runtime.dtypes import bool_, float32

SUBGROUPS = 4
PADDING = 4  # elements between the rows of a tile: neighbouring rows then lie in different banks
MOST_BYTES = 31 << 10  # of scratch
SIZES = ((32, 32), (32, 16), (16, 32), (16, 16))  # queries and keys of a tile, best first


class Tile(NamedTuple):
    """A matrix in scratch memory. Tiles that are filled after each other may share theirs."""

    memory: ir.Value
    rows: int
    columns: int
    stride: int

    def at(self, row: Index, column: Index) -> Index:
        return row * self.stride + column


def bytes_of_tile(rows: int, columns: int) -> int:
    """The size of a tile in scratch."""
    return 4 * rows * (columns + PADDING)


def _whole(n: int, size: int) -> int:
    return -(-n // size) * size


def widths(rows: int, *columns: int) -> list[int]:
    """Widths rounded up so that the SIMD-groups share the fragments of so many rows evenly."""
    return [_whole(c, FRAGMENT * max(1, SUBGROUPS * FRAGMENT // rows)) for c in columns]


def tile_of(q: Tensor, v: Tensor) -> tuple[int, int] | None:
    """How many queries and keys the tiles hold; None where there is no room for them."""
    if work_dtype(q.dtype) is not float32:
        return None
    for rows, keys in SIZES:
        d, e = widths(rows, q.shape[3], v.shape[3])
        tiles = ((rows, d), (keys, max(d, e)), (rows, keys), (rows, e))
        room = sum(bytes_of_tile(*t) for t in tiles) + 12 * rows
        if room <= MOST_BYTES and (rows < 2 * q.shape[2] or rows == SIZES[-1][0]):
            return rows, keys
    return None


def fits(op: Op) -> bool:
    """Whether an attention operation is one for `lower_attention_tiles`."""
    q, k, v = op.operands[:3]
    return 0 not in (*q.shape, *k.shape, *v.shape) and tile_of(q, v) is not None


def lower_attention_tiles(function: Function, body: ir.Block) -> Lowered:
    """Lower a kernel with one attention into the module whose body block is given, for a GPU."""
    with context, ir.Location.unknown():
        return _Attention(function, body).finish()


class TileKernel(OwnKernel):
    """An operation on queries, keys and values (example, head, step or key, feature), and a mask of their scores."""

    def __init__(self, function: Function, body: ir.Block, rows: int, keys: int):
        super().__init__(function, body)
        self.q, self.k, self.v, self.mask = self.op.operands[:4]
        (batch, self.heads, self.steps, self.width), (_, self.groups, self.length, _) = self.q.shape, self.k.shape
        self.features = self.v.shape[3]
        self.rows, self.keys = rows, keys
        self.wide, self.deep = widths(min(rows, keys), self.width, self.features)
        self.example, self.head = Var("example", batch), Var("head", self.heads)
        self.tile, self.block = Var("tile", -(-self.steps // rows)), Var("block", -(-self.length // keys))
        self.subgroup = Var("subgroup", SUBGROUPS)
        self._elements: dict[int, Var] = {}
        node = self.pull.at(self.mask, (Index.of(0),) * 4) if self.mask.dtype is bool_ else None
        self.unmasked = node is not None and node.kind == "constant" and bool(node.data[0])

    # -- where things are ---------------------------------------------------------------------------------------------
    def start(self, e: OwnEmitter) -> None:
        """Let the SIMD-groups know their numbers."""
        bound = ir.IntegerAttr.get(INDEX, SUBGROUPS)
        e.variables[self.subgroup] = e.k.op("gpu.subgroup_id", [], INDEX, upper_bound=bound)

    @property
    def key_head(self) -> Index:
        return Index.of(self.head) // (self.heads // self.groups)

    def row(self, local: Index) -> Index:
        """The step of a row of the tile; it may lie past the last one."""
        return Index.of(self.tile) * self.rows + local

    def key(self, local: Index) -> Index:
        return Index.of(self.block) * self.keys + local

    def read(self, e: OwnEmitter, x: Tensor, *at: Index | Var) -> Reg:
        """An element of `x`, some of whose axes may have length 1, as float32."""
        idx = broadcast_index(x.aval, tuple(Index.of(i) for i in at))
        return e.k.cast(self.value(e, x, idx), float32)

    def place(self, result: int, *at: Index | Var) -> Index:
        """Where an element of a result of shape (example, head, ..) lies; results may be swapped."""
        order = (at[0], at[2], at[1], at[3]) if self.op.attrs["swapped"] else at
        return linear(tuple(Index.of(i) for i in order), self.avals[self.out + result].shape)

    # -- tiles --------------------------------------------------------------------------------------------------------
    @staticmethod
    def matrix(e: OwnEmitter, rows: int, columns: int) -> Tile:
        stride = columns + PADDING
        return Tile(e.scratch(rows * stride, float32)[0], rows, columns, stride)

    def each(self, e: OwnEmitter, rows: int, columns: int, body: Callable[[Index, Index], None]) -> None:
        """All threads share the elements."""
        # One variable for all loops of a size: operands are remembered by the names of those that they depend on.
        n = self._elements.setdefault(rows * columns, Var(f"n{rows * columns}", rows * columns))
        e.lanes(n, n.extent, lambda: body(Index.of(n) // columns, Index.of(n) % columns))

    def fill(
        self, e: OwnEmitter, tile: Tile, inside: Callable[[Index, Index], Condition] | None,
        value: Callable[[Index, Index], Reg],
    ) -> None:  # fmt: skip
        """Fill a tile; zeros where `inside` does not hold. Without it, everything is inside."""

        def element(r: Index, c: Index) -> None:
            test = inside(r, c) if inside is not None else Condition()
            e.write(guarded(e, test, lambda: value(r, c), 0.0), tile.memory, tile.at(r, c))

        self.each(e, tile.rows, tile.columns, element)

    def clear(self, e: OwnEmitter, tile: Tile) -> None:
        self.fill(e, tile, None, lambda r, c: e.k.const(0, float32))

    def query_rows(self, e: OwnEmitter, tile: Tile, x: Tensor, scale: float | None = None) -> None:
        """A tile of an array over steps."""

        def value(r: Index, c: Index) -> Reg:
            found = self.read(e, x, self.example, self.head, self.row(r), c)
            return found if scale is None else found * scale

        self.fill(e, tile, lambda r, c: within(self.row(r), self.steps) & within(c, x.shape[3]), value)

    def key_rows(self, e: OwnEmitter, tile: Tile, x: Tensor) -> None:
        """A tile of keys or values."""
        self.fill(
            e, tile, lambda r, c: within(self.key(r), self.length) & within(c, x.shape[3]),
            lambda r, c: self.read(e, x, self.example, self.key_head, self.key(r), c),
        )  # fmt: skip

    def multiply(
        self, e: OwnEmitter, target: Tile, a: Tile, b: Tile, depth: int, add: bool = False,
        a_turned: bool = False, b_turned: bool = False,
    ) -> None:  # fmt: skip
        """target = a b, or target += a b; a turned operand lies in scratch as its transpose."""
        bands = min(SUBGROUPS, target.rows // FRAGMENT)
        each = target.columns // FRAGMENT // (SUBGROUPS // bands)
        top = Index.of(self.subgroup) % bands * FRAGMENT
        left = Index.of(self.subgroup) // bands * (each * FRAGMENT)
        columns = [left + n * FRAGMENT for n in range(each)]
        turned, type_ = {"transpose": ir.UnitAttr.get()}, fragment_type(float32, "COp")
        k8 = Var("k8", depth // FRAGMENT)

        def load(x: Tile, row: Index, column: Index, role: str, is_turned: bool) -> ir.Value:
            at = x.at(column, row) if is_turned else x.at(row, column)
            attributes = turned if is_turned else {}
            return mma(e, "load_matrix", [x.memory, e.index(at)], fragment_type(float32, role), x.stride, **attributes)

        def step(carried: list[Reg]) -> list[Reg]:
            deep = Index.of(k8) * FRAGMENT
            left_factor = load(a, top, deep, "AOp", a_turned)
            right = [load(b, deep, c, "BOp", b_turned) for c in columns]
            return [
                Reg(mma(e, "compute", [left_factor, x, s.value], type_), float32, e.k)
                for x, s in zip(right, carried, strict=True)
            ]

        if add:
            starts = [load(target, top, c, "COp", False) for c in columns]
        else:
            starts = [mma(e, "constant_matrix", [e.k.const(0, float32).value], type_)] * each
        sums = e.serial(k8, e.constant_index(k8.extent), [Reg(s, float32, e.k) for s in starts], step)
        for c, total in zip(columns, sums, strict=True):
            mma(e, "store_matrix", [total.value, target.memory, e.index(target.at(top, c))], None, target.stride)

    # -- scores -------------------------------------------------------------------------------------------------------
    def visible(self, e: OwnEmitter, row: Index, key: Index) -> Reg | None:
        """What must hold for a score to count; None: nothing."""
        test = None
        if self.mask.dtype is bool_ and not self.unmasked:
            at = broadcast_index(self.mask.aval, (Index.of(self.example), Index.of(self.head), row, key))
            test = self.value(e, self.mask, at)
        if self.op.attrs["causal"]:
            below = Condition.in_range(key - row, -self.steps - self.rows, self.length - self.steps + 1)
            if not below.always:
                found = e.condition(below)
                test = found if test is None else test & found
        return test

    def masked(self, e: OwnEmitter, score: Reg, row: Index, key: Index) -> tuple[Reg, Reg | None]:
        """A score with its mask, and whether it is visible."""
        if self.mask.dtype is not bool_:
            score = score + self.read(e, self.mask, self.example, self.head, row, key)
        test = self.visible(e, row, key)
        hidden = e.k.const(self.op.attrs["fill"], float32)
        return (score if test is None else e.k.select(test, score, hidden)), test

    def seen(self, e: OwnEmitter) -> ir.Value:
        """The number of blocks of keys that the queries of the tile see."""
        ahead = self.length - self.steps
        if not (self.op.attrs["causal"] and self.unmasked and ahead >= 0):
            return e.constant_index(self.block.extent)
        last = (Index.of(self.tile) * self.rows + (self.rows + ahead + self.keys - 1)) // self.keys
        return e.least(e.index(last), self.block.extent)


def within(i: Index | Var, n: int) -> Condition:
    """0 <= i < n."""
    return Condition.in_range(Index.of(i), 0, n)


def guarded(e: OwnEmitter, test: Condition, value: Callable[[], Reg], otherwise: float) -> Reg:
    """`value()` where the test holds."""
    if test.always:
        return value()
    return e.if_else(e.condition(test), float32, value, lambda: e.k.const(otherwise, float32))


class _Attention(TileKernel):
    def __init__(self, function: Function, body: ir.Block):
        ops = [op for op in function.read()[0] if op.record.name == "attention"]
        sizes = tile_of(ops[0].operands[0], ops[0].operands[2])
        assert sizes is not None
        super().__init__(function, body, *sizes)
        self.add("", range(self.out, self.out + 3), self._emit)

    def _emit(self, e: OwnEmitter) -> tuple[int, float]:
        rows, keys = self.rows, self.keys
        self.queries, self.sums = self.matrix(e, rows, self.wide), self.matrix(e, rows, self.deep)
        self.scores, both = self.matrix(e, rows, keys), self.matrix(e, keys, max(self.wide, self.deep))
        self.key_tile, self.value_tile = both._replace(columns=self.wide), both._replace(columns=self.deep)
        self.top, self.total, self.decay = (e.scratch(rows, float32)[0] for _ in range(3))
        extent = over(e, [self.example, self.head, self.tile], lambda: self._tile(e))
        return extent, float(rows * self.length * (self.wide + self.deep + 12))

    def _tile(self, e: OwnEmitter) -> None:
        k, r = e.k, Var("r", self.rows)
        self.start(e)
        self.query_rows(e, self.queries, self.q, self.op.attrs["scale"])
        self.clear(e, self.sums)

        def begin() -> None:
            sink = self.read(e, self.op.operands[4], self.example, self.head)
            e.write(sink, self.top, r)
            e.write(k.select(sink == -math.inf, k.const(0, float32), k.const(1, float32)), self.total, r)

        e.lanes(r, r.extent, begin)
        e.serial(self.block, self.seen(e), [], lambda _: self._keys(e))
        self._results(e)

    def _keys(self, e: OwnEmitter) -> list[Reg]:
        """The next keys."""
        k, scores = e.k, self.scores
        self.key_rows(e, self.key_tile, self.k)
        self.multiply(e, scores, self.queries, self.key_tile, self.wide, b_turned=True)

        def mask(r: Index, c: Index) -> None:
            def value() -> Reg:
                return self.masked(e, e.read(scores.memory, float32, scores.at(r, c)), row, key)[0]

            row, key = self.row(r), self.key(c)
            inside = within(row, self.steps) & within(key, self.length)
            e.write(guarded(e, inside, value, -math.inf), scores.memory, scores.at(r, c))

        def weigh(r: Index, c: Index) -> None:
            top = e.read(self.top, float32, r)
            safe = k.select(top == -math.inf, k.const(0, float32), top)  # where all are -inf yet
            value = k.exp(e.read(scores.memory, float32, scores.at(r, c)) - safe)
            e.write(value, scores.memory, scores.at(r, c))

        def fade(r: Index, c: Index) -> None:
            at = self.sums.at(r, c)
            e.write(e.read(self.sums.memory, float32, at) * e.read(self.decay, float32, r), self.sums.memory, at)

        self.each(e, self.rows, self.keys, mask)
        self._rows(e, self._largest)
        self.each(e, self.rows, self.keys, weigh)
        self._rows(e, self._summed)
        self.each(e, self.rows, self.deep, fade)
        self.key_rows(e, self.value_tile, self.v)
        self.multiply(e, self.sums, scores, self.value_tile, self.keys, add=True)
        return []

    def _rows(self, e: OwnEmitter, body: Callable[[OwnEmitter, Var], None]) -> None:
        r = Var("r", self.rows)
        e.lanes(r, r.extent, lambda: body(e, r))

    def _folded(self, e: OwnEmitter, r: Var, start: float, combine: Callable[[Reg, Reg], Reg]) -> Reg:
        """A row of scores, folded."""
        c = Var("c", self.keys)

        def step(carried: list[Reg]) -> list[Reg]:
            at = self.scores.at(Index.of(r), Index.of(c))
            return [combine(carried[0], e.read(self.scores.memory, float32, at))]

        return e.serial(c, e.constant_index(c.extent), [e.k.const(start, float32)], step)[0]

    def _largest(self, e: OwnEmitter, r: Var) -> None:
        """The largest score so far, and what the sums before shrink by."""
        old = e.read(self.top, float32, r)
        new = e.k.maximum(old, self._folded(e, r, -math.inf, e.k.maximum))
        safe = e.k.select(new == -math.inf, e.k.const(0, float32), new)
        e.write(e.k.exp(old - safe), self.decay, r)
        e.write(new, self.top, r)

    def _summed(self, e: OwnEmitter, r: Var) -> None:
        before = e.read(self.total, float32, r) * e.read(self.decay, float32, r)
        e.write(before + self._folded(e, r, 0.0, lambda a, b: a + b), self.total, r)

    def _results(self, e: OwnEmitter) -> None:
        def element(r: Index, c: Index) -> None:
            with e.when(e.condition(within(self.row(r), self.steps))):
                at = self.place(0, self.example, self.head, self.row(r), c)
                value = e.read(self.sums.memory, float32, self.sums.at(r, c)) / e.read(self.total, float32, r)
                e.write(Reg(value.value, self.q.dtype, e.k), e.buffers[self.out], at)

        def row(e: OwnEmitter, r: Var) -> None:
            with e.when(e.condition(within(self.row(Index.of(r)), self.steps))):
                indices: Sequence[Index | Var] = (self.example, self.head, self.row(Index.of(r)))
                at = linear(tuple(Index.of(i) for i in indices), self.q.shape[:3])
                for n, kept in enumerate((self.top, self.total)):
                    e.write(e.read(kept, float32, r), e.buffers[self.out + 1 + n], at)

        self.each(e, self.rows, self.features, element)
        self._rows(e, row)
