"""The gradient of attention on a GPU by tiles: the scores are computed again, and are never in memory.

    step 1, as the attention itself                        step 2
      scf.parallel (%tile)       tiles of queries            scf.parallel (%block)      tiles of keys
        q, ct, dq <- 0                                         k, v, dk <- 0, dv <- 0
        scf.for (%block)         tiles of keys                 scf.for (%head, %tile)   that share the keys
          k, v                                                   q, ct
          weights, slopes                                        weights, slopes
          dq += slopes k                                         dv += weights^T ct;  dk += slopes^T q

    weights = exp(q k^T - top) / total      slopes = weights (ct v^T - delta), 0 where a mask hides

Each tile has one writer: no atomics, and sums in an order that depends on the shapes alone.
"""

from __future__ import annotations

from typing import NamedTuple

from mlxir.compiler.lower.attention_tiles import MOST_BYTES, Tile, TileKernel, bytes_of_tile, guarded, widths, within
from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter
from mlxir.dialects.mlir import Function, Op, context, ir
from mlxir.dialects.mx.attention import work_dtype
from mlxir.runtime.dtypes import float32

SIZE = 16  # queries and keys of a tile


class _Tiles(NamedTuple):
    """Tiles of the operands, and of what is computed for each score."""

    queries: Tile
    cotangents: Tile
    keys: Tile
    values: Tile
    weights: Tile
    slopes: Tile


def fits(op: Op) -> bool:
    """Whether the gradient of an attention operation is one for this kernel."""
    q, k, v = op.operands[:3]
    if 0 in (*q.shape, *k.shape, *v.shape) or work_dtype(q.dtype) is not float32:
        return False
    wide, deep = widths(SIZE, q.shape[3], v.shape[3])
    return 3 * (bytes_of_tile(SIZE, wide) + bytes_of_tile(SIZE, deep)) + 2 * bytes_of_tile(SIZE, SIZE) <= MOST_BYTES


def lower_attention_grad_tiles(function: Function, body: ir.Block) -> Lowered:
    """Lower a kernel with one attention_grad into the module whose body block is given, for a GPU."""
    with context, ir.Location.unknown():
        return _AttentionGrad(function, body).finish()


class _AttentionGrad(TileKernel):
    def __init__(self, function: Function, body: ir.Block):
        super().__init__(function, body, SIZE, SIZE)
        self.top, self.total, self.delta, self.ct = self.op.operands[4:8]
        self.group, self.member = Var("group", self.groups), Var("member", self.heads // self.groups)
        self.add("_queries", [self.out], self._queries)
        self.add("", [self.out + 1, self.out + 2], self._keys)

    def _tiles(self, e: OwnEmitter) -> _Tiles:
        sizes = (self.wide, self.deep, self.wide, self.deep, SIZE, SIZE)
        return _Tiles(*[self.matrix(e, SIZE, columns) for columns in sizes])

    def _work(self) -> float:
        return float(SIZE * (self.wide + self.deep) * 5)

    # -- for each score -----------------------------------------------------------------------------------------------
    def _load_queries(self, e: OwnEmitter, t: _Tiles) -> None:
        self.query_rows(e, t.queries, self.q, self.op.attrs["scale"])
        self.query_rows(e, t.cotangents, self.ct)

    def _load_keys(self, e: OwnEmitter, t: _Tiles) -> None:
        self.key_rows(e, t.keys, self.k)
        self.key_rows(e, t.values, self.v)

    def _differentiate(self, e: OwnEmitter, t: _Tiles) -> None:
        """Weights and slopes of the current tile of scores."""
        self.multiply(e, t.weights, t.queries, t.keys, self.wide, b_turned=True)
        self.multiply(e, t.slopes, t.cotangents, t.values, self.deep, b_turned=True)

        def element(r: Index, c: Index) -> None:
            at, row, key = t.weights.at(r, c), self.row(r), self.key(c)
            inside = within(row, self.steps) & within(key, self.length)

            def statistic(x: int) -> Reg:
                return self.read(e, self.op.operands[4 + x], self.example, self.head, row)

            def weight() -> Reg:
                score, _ = self.masked(e, e.read(t.weights.memory, float32, at), row, key)
                return e.k.exp(score - statistic(0)) / statistic(1)

            def slope() -> Reg:
                value = e.read(t.weights.memory, float32, at)
                value = value * (e.read(t.slopes.memory, float32, at) - statistic(2))
                test = self.visible(e, row, key)
                return value if test is None else e.k.select(test, value, e.k.const(0, float32))

            e.write(guarded(e, inside, weight, 0.0), t.weights.memory, at)
            e.write(guarded(e, inside, slope, 0.0), t.slopes.memory, at)

        self.each(e, SIZE, SIZE, element)

    def _store(self, e: OwnEmitter, tile: Tile, result: int, scale: float | None = None) -> None:
        """A tile of a gradient."""
        x = (self.q, self.k, self.v)[result]
        first, head = (self.row, Index.of(self.head)) if result == 0 else (self.key, Index.of(self.group))

        def element(r: Index, c: Index) -> None:
            with e.when(e.condition(within(first(r), x.shape[2]))):
                value = e.read(tile.memory, float32, tile.at(r, c))
                value = value if scale is None else value * scale
                at = self.place(result, self.example, head, first(r), c)
                e.write(Reg(value.value, x.dtype, e.k), e.buffers[self.out + result], at)

        self.each(e, SIZE, x.shape[3], element)

    # -- steps --------------------------------------------------------------------------------------------------------
    def _queries(self, e: OwnEmitter) -> tuple[int, float]:
        t, sums = self._tiles(e), self.matrix(e, SIZE, self.wide)

        def next_keys(_: list[Reg]) -> list[Reg]:
            self._load_keys(e, t)
            self._differentiate(e, t)
            self.multiply(e, sums, t.slopes, t.keys, SIZE, add=True)
            return []

        def tile() -> None:
            self.start(e)
            self._load_queries(e, t)
            self.clear(e, sums)
            e.serial(self.block, self.seen(e), [], next_keys)
            self._store(e, sums, 0, self.op.attrs["scale"])

        return over(e, [self.example, self.head, self.tile], tile), self.length * self._work()

    def _keys(self, e: OwnEmitter) -> tuple[int, float]:
        t, of_keys, of_values = self._tiles(e), self.matrix(e, SIZE, self.wide), self.matrix(e, SIZE, self.deep)

        def next_queries(_: list[Reg]) -> list[Reg]:
            self._load_queries(e, t)
            self._differentiate(e, t)
            self.multiply(e, of_values, t.weights, t.cotangents, SIZE, add=True, a_turned=True)
            self.multiply(e, of_keys, t.slopes, t.queries, SIZE, add=True, a_turned=True)
            return []

        def next_head(_: list[Reg]) -> list[Reg]:
            e.variables[self.head] = e.index(Index.of(self.group) * self.member.extent + self.member)
            e.serial(self.tile, e.constant_index(self.tile.extent), [], next_queries)
            return []

        def block() -> None:
            self.start(e)
            self._set_key_head(e)
            self._load_keys(e, t)
            self.clear(e, of_keys)
            self.clear(e, of_values)
            e.serial(self.member, e.constant_index(self.member.extent), [], next_head)
            self._store(e, of_keys, 1)
            self._store(e, of_values, 2)

        extent = over(e, [self.example, self.group, self.block], block)
        return extent, self.member.extent * self.steps * self._work()

    def _set_key_head(self, e: OwnEmitter) -> None:
        """The first head of the group stands for all: they share their keys."""
        e.variables[self.head] = e.index(Index.of(self.group) * self.member.extent)
