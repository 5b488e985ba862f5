"""The column form: a block of columns; serial loops over the reduced axes around a loop over the block.

scf.parallel (%lane) { 0 -> sums }
scf.for (%row) { scf.parallel (%lane) { sums + x[row, lane] -> sums } }
scf.parallel (%lane) { sums -> out }
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.emit import Emitter
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.rows import levels, within
from mlxir.compiler.lower.scalars import Scalar, children, reachable
from mlxir.dialects.mlir import ir
from mlxir.dialects.symbolic import is_symbolic, plain
from mlxir.runtime.dtypes import Dtype

if TYPE_CHECKING:
    from mlxir.compiler.lower.loops import Form

COLUMN_BLOCK = 4096  # columns: accumulators of a block stay in L1, and rows are read in long runs
COLUMN_BYTES = 1 << 19  # of a block of columns that is read more than once: part of L2
MIN_ITERATIONS = 8  # of a column kernel, so that threads have something to share
ROWS_AT_ONCE = (8, 4, 2, 1)  # whose sums meet in registers: the first one that fits
LONGEST = 16  # operations per column that are written out for the first of these
CHEAP = 3  # operations on what a column has one of: computed again for each row rather than kept


class ColumnEmitter:
    """A block of columns: serial loops over the reduced axes around a loop over the block, accumulators in scratch."""

    def __init__(self, form: Form, e: Emitter, staged: Sequence[Scalar]):
        self.form, self.e, self.stages = form, e, levels(staged)
        *self.rows, self.lane = form.outer
        rows = prod([v.extent for v in self.rows])
        share = -(-plain(self.lane.extent * rows) // MIN_ITERATIONS)
        most = COLUMN_BLOCK
        if len(self.stages) > 1:  # a block of columns that is read again should still be in the cache, if it can be
            fitting = COLUMN_BYTES // (4 * max(1, plain(prod([v.extent for v in form.inner])))) // 64 * 64
            most = min(fitting or most, most)
        self.block = min(max(-(-share // 64) * 64, 64), most, plain(self.lane.extent))
        self.blocks = -(-self.lane.extent // self.block)
        self.full, self.short = form.stores(e)
        self.staged = {id(n) for n in staged}
        self.number = Var("block", self.blocks)

    @property
    def variables(self) -> list[Var]:
        """Of the parallel loop around `emit`."""
        return [*self.rows, self.number]

    def emit(self) -> None:
        e = self.e
        self.start = e.k.op("arith.muli", [e.variables[self.number], e.constant_index(self.block)], INDEX)
        left = e.k.op("arith.subi", [e.constant_index(self.lane.extent), self.start], INDEX)
        self.count = e.k.op("arith.minui", [left, e.constant_index(self.block)], INDEX)
        known: set[int] = set()
        full = list(self.full)
        for stage in self.stages:
            # What is the same for all columns is one scalar; code outside the loops over columns may need it.
            for n in stage:
                if self.lane not in n.free:
                    e.scopes[-1][id(n)] = e.value(n)
            if across := [n for n in stage if self.lane in n.free]:
                # Results that need no sum that is not known yet are stored on the way.
                ready = [s for s in full if self._needed([s[0]]) <= known]
                full = [s for s in full if s not in ready]
                self._keep_shared([*[n.args[0] for n in across], *[s[0] for s in ready]])
                self._reduce_stage(across, ready)
            known |= {id(n) for n in stage}
        if self.short:
            self._lanes(lambda: self._store(self.short))
        if full:
            self._keep_shared([s[0] for s in full])
            self._serial(1, lambda _: self._lanes(lambda: self._store(full)))

    def _needed(self, nodes: list[Scalar]) -> set[int]:
        """The staged reductions that values are computed from."""
        return {id(n) for n in reachable(nodes)} & self.staged

    def _keep_shared(self, roots: list[Scalar]) -> None:
        """Compute what all rows of a column share once, into scratch, where that costs more than reading it."""
        e, rows, found, seen = self.e, frozenset(self.form.inner), list[Scalar](), set[int]()

        def visit(node: Scalar) -> None:
            if id(node) in seen or id(node) in self.staged or id(node) in e.stored:
                return
            seen.add(id(node))
            if node.free & rows:
                for a in node.args if node.kind in ("apply", "reduce") else ():  # what a guard keeps may not be safe
                    visit(a)
            elif self.lane in node.free and self._cost(node) > CHEAP:
                found.append(node)

        for root in roots:
            visit(root)
        places = [e.scratch(self.block, n.dtype) for n in found]

        def column() -> None:
            for n, (buffer, kept) in zip(found, places, strict=True):
                e.keep(e.value(n), buffer, kept, self.local)

        if found:
            self._lanes(column)
        for n, (buffer, kept) in zip(found, places, strict=True):
            e.stored[id(n)] = functools.partial(self._total, buffer, kept, n.dtype)

    def _cost(self, node: Scalar) -> int:
        """Of computing a value from what is known."""
        known = self.staged | self.e.stored.keys()
        parts = [n for n in within([node], known) if id(n) not in known]
        return sum(n.cost - sum(c.cost for c in children(n)) for n in parts)

    def _store(self, stores: list) -> None:
        for root, position, buffer in stores:
            self.e.k.store(self.e.value(root), buffer, self.e.index(position))

    def _lanes(self, body: Callable[[], None]) -> None:
        """A loop over the columns of the block; inside, the lane variable is the absolute column."""
        e = self.e
        local = Var("lane", self.block)

        def bind() -> None:
            self.local = e.variables[local]
            e.variables[self.lane] = e.k.op("arith.addi", [self.start, self.local], INDEX)
            body()

        e.parallel(local, self.count, bind)

    def _serial(self, unroll: int, body: Callable[[list], None], n: int = 0) -> None:
        """Loops over the reduced axes; `body` gets the values of the last variable for `unroll` iterations in a row."""
        e, var = self.e, self.form.inner[n]
        if n < len(self.form.inner) - 1:
            e.repeat(var, e.constant_index(var.extent), lambda: self._serial(unroll, body, n + 1))
            return
        step = Var(f"{var.name}_by{unroll}", var.extent // unroll)

        if unroll == 1:
            e.repeat(var, e.constant_index(var.extent), lambda: body([e.variables[var]]))
        else:
            rows = [Index.of(step) * unroll + u for u in range(unroll)]
            e.repeat(step, e.constant_index(step.extent), lambda: body([e.index(r) for r in rows]))
            if is_symbolic(var.extent):  # the others, if any, are a multiple of `unroll`
                rest = Var(f"{var.name}_rest", var.extent - step.extent * unroll)
                row = Index.of(rest) + step.extent * unroll
                e.repeat(rest, e.constant_index(rest.extent), lambda: body([e.index(row)]))

    def _reduce_stage(self, stage: list[Scalar], ready: list) -> None:
        """Several rows per pass over the block, so that the accumulators are loaded and stored less often; `ready` are
        results to store on the way.
        """
        e, last = self.e, self.form.inner[-1]
        accumulators = [e.scratch(self.block, n.dtype) for n in stage]
        bodies = [*[n.args[0] for n in stage], *[s[0] for s in ready]]
        fitting = ROWS_AT_ONCE[sum(map(self._cost, bodies)) > LONGEST :]
        unroll = fitting[0] if is_symbolic(last.extent) else next(u for u in fitting if last.extent % u == 0)

        def clear() -> None:
            for n, (buffer, kept) in zip(stage, accumulators, strict=True):
                e.keep(e.neutral(n.data[0], n.dtype), buffer, kept, self.local)

        def rows_at_once(rows: list) -> None:
            """Per row, what all columns share is computed before the loop over the columns."""
            scopes = []
            for row in rows:
                e.variables[last] = row
                e.scopes.append({})
                e.hoist(bodies, [self.lane])
                scopes.append(e.scopes.pop())
            self._lanes(lambda: accumulate(rows, scopes))

        def accumulate(rows: list, scopes: list[dict]) -> None:
            totals: list = [None] * len(stage)
            for row, scope in zip(rows, scopes, strict=True):
                e.scopes += [scope, {}]
                e.variables[last] = row
                for i, n in enumerate(stage):
                    value = e.reduced(n)
                    totals[i] = value if totals[i] is None else e.combine(n.data[0], totals[i], value)
                self._store(ready)
                del e.scopes[-2:]
            for n, total, (buffer, kept) in zip(stage, totals, accumulators, strict=True):
                old = e.recall(buffer, kept, n.dtype, self.local)
                e.keep(e.combine(n.data[0], old, total), buffer, kept, self.local)

        self._lanes(clear)
        self._serial(unroll, rows_at_once)
        for n, (buffer, kept) in zip(stage, accumulators, strict=True):
            e.stored[id(n)] = functools.partial(self._total, buffer, kept, n.dtype)

    def _total(self, buffer: ir.Value, kept: Dtype, dtype: Dtype) -> Reg:
        """What the current column's accumulator holds."""
        return self.e.recall(buffer, kept, dtype, self.local)
