"""The row form: one loop per stage of reductions over a row, then one for what has a value per element.

%m = scf.parallel (%r) init(-inf) { ... scf.reduce(maximumf) }              softmax: two stages
%s = scf.parallel (%r) init(0)    { exp(x - m) -> scratch; scf.reduce(addf) }
scf.parallel (%r)                 { scratch / s -> out }

A last stage that no value per element depends on (the loss beside a gradient) is part of the last loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

from mlxir.compiler.lower.emit import SCRATCH_BYTES, Emitter
from mlxir.compiler.lower.index import Index, linear
from mlxir.compiler.lower.scalars import Scalar, children, reachable
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype

if TYPE_CHECKING:
    from mlxir.compiler.lower.loops import Form


def levels(staged: Sequence[Scalar]) -> list[list[Scalar]]:
    """Reductions by stage: one whose input needs another's result comes later."""
    known = {id(n) for n in staged}
    level: dict[int, int] = {}
    for node in reachable(staged):
        below = max((level[id(c)] for c in children(node)), default=0)
        level[id(node)] = below + 1 if id(node) in known else below
    stages: list[list[Scalar]] = [[] for _ in range(max(level[id(n)] for n in staged))]
    for n in staged:
        stages[level[id(n)] - 1].append(n)
    return stages


class RowEmitter:
    """One row: a loop per stage, then the results."""

    def __init__(self, form: Form, e: Emitter, staged: Sequence[Scalar]):
        self.form, self.e, self.stages = form, e, levels(staged)
        self.staged = {id(n) for n in staged}
        self.full, self.rows = form.stores(e)
        self.computed: set[int] = set()  # shared values that an earlier stage has put into scratch

    def emit(self) -> None:
        e, nodes = self.e, self.last()
        self.late = self.stages.pop() if self._ends_with_stores(nodes) else []
        self.scratch = {id(n): self._kept_where(n) for n in self._shared()}
        for stage in self.stages:
            self._reduce_stage(stage)
        if nodes:
            self._store_full([*nodes, *[n.args[0] for n in self.late]], 0)
        for root, position, buffer in self.rows:
            e.k.store(e.value(root), buffer, e.index(position))

    def _ends_with_stores(self, nodes: Sequence[Scalar]) -> bool:
        """Whether the loop that stores what has a value per element takes the last stage, too: nothing there may depend
        on it, and no long chains, which are interleaved only in loops without results.
        """
        stage, inner = {id(n) for n in self.stages[-1]}, frozenset(self.form.inner)
        if not nodes or len(inner) > 1 or any(n.dtype.kind == "c" for n in self.stages[-1]):
            return False
        for n in reachable(nodes):
            if id(n) in stage or (n.kind == "apply" and n.free & inner and getattr(n.data[0], "costly", False)):
                return False
        return True

    def last(self) -> list[Scalar]:
        """What the last loop computes for each element."""
        return [s[0] for s in self.full]

    def finish_element(self) -> None:
        """What else the last loop does."""

    def _kept_where(self, node: Scalar) -> tuple[Scalar, ir.Value, Dtype, Index]:
        """(node, buffer, dtype there, position): in the result that it is, or in a row of scratch."""
        for root, position, buffer in self.full:
            if root is node and _stored_as_is(node.dtype):
                return node, buffer, node.dtype, position
        inner = self.form.inner
        position = linear(tuple(Index.of(v) for v in inner), tuple(v.extent for v in inner))
        return (node, *self.e.scratch(self._row_size(), node.dtype), position)

    def _row_size(self) -> int:
        return prod([v.extent for v in self.form.inner])

    def _shared(self) -> list[Scalar]:
        """Expensive per-element values that more than one stage needs, largest expressions only."""
        groups = [[n.args[0] for n in stage] for stage in self.stages]
        groups.append([*self.last(), *[n.args[0] for n in self.late]])
        bound = frozenset(self.form.inner)
        uses: dict[int, tuple[Scalar, int]] = {}
        for group in groups:
            for node in within(group, self.staged):
                uses[id(node)] = (node, uses.get(id(node), (node, 0))[1] + 1)
        shared = [
            n
            for n, count in uses.values()
            if count > 1 and n.free & bound and n.kind == "apply" and self._cost(n) >= self.form.costly
        ]
        nested = {id(i) for n in shared for i in within(n.args, self.staged) if uses[id(i)][1] <= uses[id(n)][1]}
        chosen = [n for n in shared if id(n) not in nested]
        results = {id(s[0]) for s in self.full if _stored_as_is(s[0].dtype)}
        width = self._row_size() * sum(8 if n.dtype.size == 8 else 4 for n in chosen if id(n) not in results)
        return chosen if width <= SCRATCH_BYTES else [n for n in chosen if id(n) in results]

    def _cost(self, node: Scalar) -> int:
        """Of computing a value for one more element: what is known per row costs nothing there."""
        bound, total = frozenset(self.form.inner), 0
        for n in within([node], self.staged):
            if n.free & bound and id(n) not in self.staged:
                total += n.cost - sum([c.cost for c in children(n)])
        return total

    def _prepare(self, nodes: Sequence[Scalar]) -> None:
        """In a stage's loop: the first stage that computes a shared value keeps it in scratch, later ones read it."""
        if not self.scratch:
            return
        e = self.e
        needed = {id(n) for n in within(nodes, self.staged)}
        for key, (node, buffer, kept, position) in self.scratch.items():
            if key in self.computed:
                e.scopes[-1][key] = e.recall(buffer, kept, node.dtype, e.index(position))
            elif key in needed:
                e.keep(e.value(node), buffer, kept, e.index(position))

    def _store_full(self, nodes: Sequence[Scalar], n: int) -> None:
        """Loops over the reduced axes, the last one innermost, for results that have a value per element."""
        e, inner = self.e, self.form.inner
        extent = e.constant_index(inner[n].extent)
        e.hoist(nodes, inner[n:])

        def body() -> None:
            self._prepare(nodes)
            for root, position, buffer in self.full:
                if id(root) not in self.computed or self.scratch[id(root)][1] is not buffer:
                    e.k.store(e.value(root), buffer, e.index(position))
            self.finish_element()

        if n < len(inner) - 1:
            e.repeat(inner[n], extent, lambda: self._store_full(nodes, n + 1))
        elif self.late:
            for node, value in zip(self.late, e.reduce(inner[n], self.late, extent, body), strict=True):
                e.scopes[-1][id(node)] = value
        else:
            e.parallel(inner[n], extent, body)

    def _reduce_stage(self, stage: list[Scalar]) -> None:
        e, inner = self.e, self.form.inner
        bodies = [n.args[0] for n in stage]
        parallel = all(n.dtype.kind != "c" for n in stage)  # scf.reduce takes single values, a complex one is a pair

        def level(n: int) -> list:
            extent = e.constant_index(inner[n].extent)
            e.hoist(bodies, inner[n:])
            if n == len(inner) - 1 and parallel:
                return e.reduce(inner[n], stage, extent, lambda: self._prepare(bodies))
            starts = [e.neutral(s.data[0], s.dtype) for s in stage]
            return e.serial(inner[n], extent, starts, lambda carried: step(n, carried))

        def step(n: int, carried: list) -> list:
            if n == len(inner) - 1:
                self._prepare(bodies)
                values = [e.reduced(s) for s in stage]
            else:
                values = level(n + 1)
            return [e.combine(s.data[0], a, b) for s, a, b in zip(stage, carried, values, strict=True)]

        for node, value in zip(stage, level(0), strict=True):
            e.scopes[-1][id(node)] = value
        self.computed |= {id(n) for n in within(bodies, self.staged)} & self.scratch.keys()


def _stored_as_is(dtype: Dtype) -> bool:
    """Whether memory keeps exactly what a register holds."""
    return dtype.kind in "iu" or (dtype.is_float and dtype.size > 2)


def within(roots: Sequence[Scalar], stops: set[int]) -> list[Scalar]:
    """Nodes under `roots` that belong to the same loop: not beyond a staged reduction."""
    order: list[Scalar] = []
    seen: set[int] = set()

    def visit(node: Scalar) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        order.append(node)
        if id(node) not in stops:
            for c in children(node):
                visit(c)

    for root in roots:
        visit(root)
    return order
