"""Chooses the loops of a fused kernel and emits them.

A kernel is a function of mx operations without loops of their own. Three forms, by what it reduces:

    map      no reduction: one parallel loop over the elements, or over rows with a loop over the last axis inside
    row      reductions over the contiguous end: parallel over rows; inside, one loop per stage. A stage computes all
             reductions
             whose inputs are known; the results of earlier stages are scalars, and an expensive full-size value that
             two stages need is
             kept in a row of scratch memory. Softmax and layer norm are one such kernel.
    column   reductions over leading axes: parallel over blocks of columns; the reduced axes are serial loops around a
    loop over
             the columns of the block, which are contiguous, so accumulators are small arrays

    func.func @softmax(%x: memref<64xf32>, %out: memref<64xf32>)
      scf.parallel (%row) {
        %m = scf.parallel (%r) init(-inf) { ... scf.reduce(maximumf) }
        %s = scf.parallel (%r) init(0)    { exp(x - m) -> scratch; scf.reduce(addf) }
        scf.parallel (%r)                 { scratch / s -> out } }
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.lower.builder import INDEX, Reg, memref_type
from mlxir.compiler.lower.emit import SCRATCH_BYTES, Emitter
from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar, children, indices, reachable, substitute
from mlxir.compiler.passes.split_reductions import SHORT, is_short
from mlxir.dialects.mlir import Function, Op, Tensor, context, ir
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import is_symbolic, plain
from mlxir.runtime.dtypes import Dtype

COSTLY = 8  # operations: what several stages of a row need is then kept rather than computed again from L1
COLUMN_BLOCK = 4096  # columns: accumulators of a block stay in L1, and rows are read in long runs
COLUMN_BYTES = 1 << 19  # of a block of columns that is read more than once: part of L2
MIN_ITERATIONS = 8  # of a column kernel, so that threads have something to share
ROWS_AT_ONCE = 4
MOST_PIECES = 8  # of an axis along which arrays are joined


class Step(NamedTuple):
    """One function of loops: `extent` iterations of its one top-level scf.parallel, each of about `work` simple
    operations.

    `buffers` says which of the kernel's buffers are its parameters: the kernel's inputs, then its outputs, then its
    temporaries.
    """

    name: str
    extent: int
    work: float
    buffers: tuple[int, ...]
    writes: tuple[int, ...]  # those of `buffers` that it writes
    symbol: str = ""  # of its code, once it has some


class Lowered(NamedTuple):
    """A lowered kernel: steps to run in order, and the temporary buffers that they share."""

    steps: list[Step]
    temporaries: list[Aval]
    routines: tuple[Any, ...] = ()  # that the steps call (routines.py)


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


def lower_fused(function: Function, body: ir.Block, costly: int = COSTLY) -> Lowered:
    """Lower one fused kernel into the module whose body block is given."""
    ops, results = function.read()
    avals = [t.aval for t in function.arguments] + [t.aval for t in results]
    with context, ir.Location.unknown():
        _, block = loop_function(body, function.name, avals)
        k = ScalarBuilder(ir.InsertionPoint(block))
        emitter = Emitter(k, list(block.arguments), sizes_of(function, list(block.arguments)))
        if any(t.aval.size for t in results):
            extent, work = Form(ops, function.arguments, results, costly=costly).emit(emitter)
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
        costly: int = COSTLY,
    ):  # fmt: skip
        self.pull = Pull(ops, {id(t): i for i, t in enumerate(arguments)}, results)
        self.results, self.costly = results, costly
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
            return _ColumnEmitter(self, e, staged).emit(work)
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


def _levels(staged: Sequence[Scalar]) -> list[list[Scalar]]:
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
        self.form, self.e, self.stages = form, e, _levels(staged)
        self.staged = {id(n) for n in staged}
        self.full, self.rows = form.stores(e)
        self.computed: set[int] = set()  # shared values that an earlier stage has put into scratch

    def emit(self) -> None:
        e = self.e
        self.scratch = {id(n): self._kept_where(n) for n in self._shared()}
        for stage in self.stages:
            self._reduce_stage(stage)
        for root, position, buffer in self.rows:
            e.k.store(e.value(root), buffer, e.index(position))
        if nodes := self.last():
            self._store_full(nodes, 0)

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
        groups = [[n.args[0] for n in stage] for stage in self.stages] + [self.last()]
        bound = frozenset(self.form.inner)
        uses: dict[int, tuple[Scalar, int]] = {}
        for group in groups:
            for node in _within(group, self.staged):
                uses[id(node)] = (node, uses.get(id(node), (node, 0))[1] + 1)
        shared = [
            n
            for n, count in uses.values()
            if count > 1 and n.free & bound and n.kind == "apply" and self._cost(n) >= self.form.costly
        ]
        nested = {id(i) for n in shared for i in _within(n.args, self.staged) if uses[id(i)][1] <= uses[id(n)][1]}
        chosen = [n for n in shared if id(n) not in nested]
        results = {id(s[0]) for s in self.full if _stored_as_is(s[0].dtype)}
        width = self._row_size() * sum(8 if n.dtype.size == 8 else 4 for n in chosen if id(n) not in results)
        return chosen if width <= SCRATCH_BYTES else [n for n in chosen if id(n) in results]

    def _cost(self, node: Scalar) -> int:
        """Of computing a value for one more element: what is known per row costs nothing there."""
        bound, total = frozenset(self.form.inner), 0
        for n in _within([node], self.staged):
            if n.free & bound and id(n) not in self.staged:
                total += n.cost - sum([c.cost for c in children(n)])
        return total

    def _prepare(self, nodes: Sequence[Scalar]) -> None:
        """In a stage's loop: the first stage that computes a shared value keeps it in scratch, later ones read it back.
        """
        if not self.scratch:
            return
        e = self.e
        needed = {id(n) for n in _within(nodes, self.staged)}
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

        if n == len(inner) - 1:
            e.parallel(inner[n], extent, body)
        else:
            e.repeat(inner[n], extent, lambda: self._store_full(nodes, n + 1))

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
        self.computed |= {id(n) for n in _within(bodies, self.staged)} & self.scratch.keys()


def _stored_as_is(dtype: Dtype) -> bool:
    """Whether memory keeps exactly what a register holds."""
    return dtype.kind in "iu" or (dtype.is_float and dtype.size > 2)


def _within(roots: Sequence[Scalar], stops: set[int]) -> list[Scalar]:
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


class _ColumnEmitter:
    """A block of columns: serial loops over the reduced axes around a loop over the block, accumulators in scratch."""

    def __init__(self, form: Form, e: Emitter, staged: Sequence[Scalar]):
        self.form, self.e, self.stages = form, e, _levels(staged)
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

    def emit(self, work: float) -> tuple[int, float]:
        block = Var("block", self.blocks)
        return over(self.e, [*self.rows, block], lambda: self._emit_block(block)), work * self.block

    def _emit_block(self, block: Var) -> None:
        e = self.e
        self.start = e.k.op("arith.muli", [e.variables[block], e.constant_index(self.block)], INDEX)
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
                self._reduce_stage(across, ready)
            known |= {id(n) for n in stage}
        if self.short:
            self._lanes(lambda: self._store(self.short))
        if full:
            self._serial(1, lambda _: self._lanes(lambda: self._store(full)))

    def _needed(self, nodes: list[Scalar]) -> set[int]:
        """The staged reductions that values are computed from."""
        return {id(n) for n in reachable(nodes)} & {id(n) for stage in self.stages for n in stage}

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
        """Loops over the reduced axes; `body` gets the values of the last variable for `unroll` consecutive iterations.
        """
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
        symbolic = is_symbolic(last.extent)
        unroll = ROWS_AT_ONCE if symbolic else next(u for u in (ROWS_AT_ONCE, 2, 1) if last.extent % u == 0)

        def clear() -> None:
            for n, (buffer, kept) in zip(stage, accumulators, strict=True):
                e.keep(e.neutral(n.data[0], n.dtype), buffer, kept, self.local)

        bodies = [*[n.args[0] for n in stage], *[s[0] for s in ready]]

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
