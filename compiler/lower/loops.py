"""Chooses the loops of a fused kernel and emits them.

A kernel is a function of mx operations without loops of their own. Three forms, by what it reduces:

    map      no reduction: one parallel loop over the elements, or over rows with a loop over the last axis inside; over
             blocks where an operand's rows are columns of the result (across.py)
    row      reductions over the contiguous end: parallel over rows; inside, one loop per stage (rows.py). A stage
             computes all reductions whose inputs are known; the results of earlier stages are scalars, and an expensive
             full-size value that two stages need is kept in a row of scratch memory. Softmax and layer norm are one
             such kernel.
    column   reductions over leading axes: parallel over blocks of columns (columns.py); the reduced axes are serial
             loops around a loop over the columns of the block, which are contiguous, so accumulators are small arrays

    func.func @softmax(%x: memref<64xf32>, %out: memref<64xf32>)
      scf.parallel (%row) {
        %m = scf.parallel (%r) init(-inf) { ... scf.reduce(maximumf) }
        %s = scf.parallel (%r) init(0)    { exp(x - m) -> scratch; scf.reduce(addf) }
        scf.parallel (%r)                 { scratch / s -> out } }

Reductions of a few elements are written out (scalars.py); a short last axis whose elements share what is dear is, too.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from mlxir.compiler.lower.across import Across
from mlxir.compiler.lower.builder import INDEX, memref_type
from mlxir.compiler.lower.columns import ColumnEmitter
from mlxir.compiler.lower.emit import Emitter
from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.rows import RowEmitter
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar, indices, reachable, substitute
from mlxir.compiler.lower.steps import Lowered, Step
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.compiler.passes.split_reductions import SHORT, is_short
from mlxir.dialects.mlir import Function, Op, Tensor, context, ir
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import is_symbolic

COSTLY = 8  # operations: what several stages of a row need is then kept rather than computed again from L1
MOST_PIECES = 8  # of an axis along which arrays are joined


def loop_function(body: ir.Block, name: str, buffers: Sequence[Aval]) -> tuple[ir.Operation, ir.Block]:
    """`func.func @name(memref, ...)` with a terminated, otherwise empty block."""
    types = [memref_type(a.size, a.dtype) for a in buffers]
    operation = ir.Operation.create(
        "func.func",
        attributes={
            "sym_name": ir.StringAttr.get(name),
            "function_type": ir.TypeAttr.get(ir.FunctionType.get(types, [])),
        },
        regions=1,
        ip=ir.InsertionPoint(body),
    )
    block = operation.regions[0].blocks.append(*types, arg_locs=[ir.Location.unknown()] * len(types))
    return operation, block


def lower_fused(function: Function, body: ir.Block, costly: int = COSTLY, vector_bytes: int = 0) -> Lowered:
    """Lower one fused kernel into the module whose body block is given; `vector_bytes`: of vectors written by hand."""
    ops, results = function.read()
    avals = [t.aval for t in function.arguments] + [t.aval for t in results]
    with context, ir.Location.unknown():
        _, block = loop_function(body, function.name, avals)
        k = ScalarBuilder(ir.InsertionPoint(block))
        emitter = Emitter(k, list(block.arguments), sizes_of(function, list(block.arguments)))
        if any(t.aval.size for t in results):
            form = Form(ops, function.arguments, results, costly=costly, vector_bytes=vector_bytes)
            extent, work = form.emit(emitter)
        else:
            extent, work = over(emitter, [Var("nothing", 0)], lambda: None), 0.0
        k.op("func.return", [])
    numbers = tuple(range(len(avals)))
    return Lowered([Step(function.name, extent, work, numbers, numbers[len(function.arguments) :])], [])


SIZES = "mx.sizes"
"""The attribute of a kernel whose last argument holds the lengths of symbolic axes: s0, s1 ... (compiler/generic.py)"""


def sizes_of(function: Function, buffers: Sequence[Any]) -> Any:
    """Of a kernel's buffers (its arguments first), the one with the lengths of symbolic axes; None if it has none."""
    return buffers[len(function.arguments) - 1] if SIZES in function.operation.attributes else None


class Form:
    """The loop structure of one kernel, found once, then emitted."""

    def __init__(
        self, ops: list[Op], arguments: Sequence[Tensor], results: Sequence[Tensor], lead: Op | None = None,
        costly: int = COSTLY, vector_bytes: int = 0,
    ):  # fmt: skip
        self.pull = Pull(ops, {id(t): i for i, t in enumerate(arguments)}, results)
        self.results, self.costly, self.vector_bytes = results, costly, vector_bytes
        self.outputs: Sequence[int] = range(len(arguments), len(arguments) + len(results))  # their buffers
        reductions = [op for op in ops if op.record.lowering == "reduce" and not is_short(op)]
        self.axes: tuple[int, ...] = ()
        if reductions:
            lead = lead or max(reductions, key=lambda op: op.operands[0].aval.size)
            self.shape, self.axes = lead.operands[0].shape, tuple(sorted(lead.attrs["axes"]))
        else:
            self.shape = max((t.aval for t in results), key=lambda a: a.size).shape
        self.outer = [
            Var(f"i{a}", n) for a, n in enumerate(self.shape) if a not in self.axes and n != 1
        ]  # fmt: skip
        self.inner = tuple(self.pull.inner(n, self.shape[a]) for n, a in enumerate(self.axes))
        self._roots()
        self._merge_outer()
        self._merge_inner()

    # -- what is computed where -------------------------------------------------------------------------------------
    def _roots(self) -> None:
        """Each result at its symbolic position: as many elements as rows, or as the full iteration space."""
        outer, inner = iter(self.outer), iter(self.inner)
        full: list[Any] = []
        for a, n in enumerate(self.shape):
            full.append(next(inner) if a in self.axes else (next(outer) if n != 1 else 0))
        full_position = linear(tuple(full), self.shape)
        kept = tuple(i for a, i in enumerate(full) if a not in self.axes)
        row_position = linear(kept, tuple(n for a, n in enumerate(self.shape) if a not in self.axes))
        self.full_index = tuple(Index.of(i) for i in full)
        self.roots: list[Scalar] = []
        self.positions: list[Index] = []
        for t in self.results:
            size = t.aval.size
            rows = prod([n for a, n in enumerate(self.shape) if a not in self.axes])
            position = row_position if self.axes and size == rows else full_position
            if position is full_position and t.shape == self.shape:
                idx = self.full_index
            else:
                idx = delinearize(position, t.shape)
            op, _ = self.pull.producer[id(t)]
            self.roots.append(self.pull.value_of(op, idx))
            self.positions.append(linear(idx, t.shape))

    def _mergeable(self, a: Var, b: Var) -> bool:
        """Whether every access treats (a, b) as one longer axis (of some length)."""
        if not a.extent * b.extent:
            return False
        if not a.extent or not b.extent:
            return False
        for i in [*self.positions, *indices(reachable(self.roots))]:
            ca, cb = i.coefficient(a), i.coefficient(b)
            if ca is None or cb is None or ca != cb * b.extent:
                return False
        return True

    def _merge(self, a: Var, b: Var, fused: Var, reductions: dict) -> None:
        mapping = {a: Index.of(fused) // b.extent, b: Index.of(fused) % b.extent}
        self.roots = substitute(self.pull.graph, self.roots, mapping, reductions)
        self.positions = [p.substitute(mapping) for p in self.positions]

    def _merge_outer(self) -> None:
        n = len(self.outer) - 1
        while n > 0:
            a, b = self.outer[n - 1], self.outer[n]
            if self._mergeable(a, b):
                fused = Var(f"{a.name}{b.name}", a.extent * b.extent)
                self._merge(a, b, fused, {})
                self.outer[n - 1 : n + 1] = [fused]
            n -= 1

    def _merge_inner(self) -> None:
        n = len(self.inner) - 1
        while n > 0:
            a, b = self.inner[n - 1], self.inner[n]
            others = {v for node in reachable(self.roots) if node.kind == "reduce" for v in [node.data[1]]}
            if others <= {self.inner} and self._mergeable(a, b):
                fused = Var(f"{a.name}{b.name}", a.extent * b.extent)
                merged = (*self.inner[: n - 1], fused, *self.inner[n + 1 :])
                self._merge(a, b, fused, {self.inner: merged})
                self.inner = merged
            n -= 1

    def _write_out_last(self) -> None:
        """Where the last outer axis has few elements, and these share what is dear, they are computed together.

        Accelerations of bodies have three parts: the distances that all three need are computed once.
        """
        last = self.outer[-1] if len(self.outer) > 1 else Var("none", 1)
        if is_symbolic(last.extent) or not 1 < last.extent <= SHORT:
            return
        if not any(n.cost >= COSTLY and n.free and last not in n.free for n in reachable(self.roots)):
            return
        roots, positions = self.roots, self.positions
        self.outer, self.roots, self.positions = self.outer[:-1], [], []
        for i in range(last.extent):
            at = {last: Index.of(i)}
            self.roots += substitute(self.pull.graph, roots, at, {})
            self.positions += [p.substitute(at) for p in positions]
        self.outputs = [*self.outputs] * last.extent

    # -- emission ---------------------------------------------------------------------------------------------------
    def emit(self, e: Emitter) -> tuple[int, float]:
        self._write_out_last()
        nodes = reachable(self.roots)
        staged = [
            n for n in nodes if n.kind == "reduce" and n.data[1] == self.inner and not n.free & frozenset(self.inner)
        ]  # fmt: skip
        work = 1.0 * sum(_work(n, self.inner) for n in nodes)
        if not staged:
            return self._emit_map(e, work)
        if self._columns(staged):
            columns = ColumnEmitter(self, e, staged)
            return over(e, columns.variables, columns.emit), work * columns.block
        return over(e, self.outer, lambda: RowEmitter(self, e, staged).emit()), work

    def stores(self, e: Emitter) -> tuple[list, list]:
        """(scalar, position, buffer) of the results with a value per element, and of those with a value per row."""
        all_stores = [
            (root, position, e.buffers[n])
            for root, position, n in zip(self.roots, self.positions, self.outputs, strict=False)
        ]
        bound = frozenset(self.inner)
        return [s for s in all_stores if s[1].free() & bound], [s for s in all_stores if not s[1].free() & bound]

    def _columns(self, staged: list[Scalar]) -> bool:
        """Whether memory is contiguous along the last kept axis rather than along the last reduced one."""
        if not self.outer:
            return False
        lane, last = self.outer[-1], self.inner[-1]
        along = across = 0
        for node in reachable([s.args[0] for s in staged]):
            if node.kind == "load":
                position, elements = node.data[1], prod([v.extent for v in node.free])
                along += elements * (position.coefficient(last) == 1)
                across += elements * (position.coefficient(lane) == 1 and position.coefficient(last) not in (0, 1))
        return across > along

    def _emit_map(self, e: Emitter, work: float) -> tuple[int, float]:
        """One loop where everything is one axis, else rows times the last axis."""
        _, stores = self.stores(e)

        def element() -> None:
            self._store(e, stores)

        if len(self.outer) < 2:
            return over(e, self.outer, element), work
        *rows, last = self.outer
        across = Across.of(self, self.vector_bytes) if self.vector_bytes else None
        if across is not None:
            by_hand = VectorEmitter(e.k, e.buffers)
            return over(by_hand, across.variables, lambda: across.block(by_hand)), work * across.size

        def row() -> None:
            for var, roots, positions in self._pieces(last):
                e.hoist(roots, [var])
                stored = list(zip(roots, positions, [e.buffers[n] for n in self.outputs], strict=True))
                e.parallel(var, e.constant_index(var.extent), functools.partial(self._store, e, stored))

        return over(e, rows, row), work * last.extent

    @staticmethod
    def _store(e: Emitter, stores: list) -> None:
        for root, position, buffer in stores:
            e.k.store(e.value(root), buffer, e.index(position))

    def _pieces(self, last: Var) -> list[tuple[Var, list[Scalar], list[Index]]]:
        """The last axis cut where a guard decides otherwise: joined arrays are one loop each, without tests inside."""
        cuts = {0, last.extent}
        for node in reachable(self.roots):
            for index, low, high in node.data[0].parts if node.kind == "guard" else ():
                rest = index - last
                if index.coefficient(last) == 1 and not rest.free():
                    cuts |= {low - rest.constant, high - rest.constant}
        starts = sorted(c for c in cuts if 0 <= c <= last.extent)
        if len(starts) == 2 or len(starts) > MOST_PIECES + 1:
            return [(last, self.roots, self.positions)]
        found = []
        for start, stop in itertools.pairwise(starts):
            var = Var(f"{last.name}_{start}", stop - start)
            mapping = {last: Index.of(var) + start}
            roots = substitute(self.pull.graph, self.roots, mapping, {})
            found.append((var, roots, [p.substitute(mapping) for p in self.positions]))
        return found


def _work(node: Scalar, inner: Sequence[Var]) -> int:
    """An estimate of the operations that one node costs per row."""
    own = {"load": 1, "constant": 0, "ramp": 1, "guard": 2, "reduce": 1}.get(node.kind)
    if own is None:
        own = 12 if getattr(node.data[0], "costly", False) else 1
    times = 1
    for v in node.free.union(node.data[1] if node.kind == "reduce" else ()):
        times *= v.extent if v in inner else 1
    return own * times


def over(e: Emitter, variables: Sequence[Var], body: Callable[[], None]) -> int:
    """The kernel's one top-level parallel loop, over all of `variables` at once; its number of iterations."""
    extents = [v.extent for v in variables]
    total = prod(extents)
    flat = Var("p", total)

    def bind() -> None:
        if len(variables) == 1:
            e.variables[variables[0]] = e.variables[flat]
        elif any(is_symbolic(n) for n in extents):
            rest = e.variables[flat]
            for v in reversed(variables):
                extent = e.constant_index(v.extent)
                e.variables[v] = e.k.op("arith.remui", [rest, extent], INDEX)
                rest = e.k.op("arith.divui", [rest, extent], INDEX)
        else:
            for v, i in zip(variables, delinearize(Index.of(flat), tuple(extents)), strict=True):
                e.variables[v] = e.index(i)
        body()

    e.parallel(flat, e.constant_index(total), bind)
    return total
