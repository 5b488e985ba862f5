"""Lowers kernels that walk the rows of a matrix and sum its columns on the way (passes/mixed.py).

    scf.parallel (%piece)                          pieces of rows
      scf.for (%row)                               one loop per stage, as for rows alone; the last one adds to the sums
      sums of columns -> partial sums[piece]
    scf.parallel (%column)                         the partial sums are added, and what follows from them is computed

The number of pieces depends on the shape alone, so the sums do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.loops import Form, Lowered, Step, loop_function, over
from mlxir.compiler.lower.rows import RowEmitter
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar, reachable
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.compiler.passes.mixed import column_space, columns_of, row_space
from mlxir.dialects.mlir import Function, Op, Tensor, context, ir
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime.dtypes import Dtype, float32

Emit = Callable[[VectorEmitter], tuple[int, float]]
PIECES = 16
FEWEST_ROWS = 8  # of a piece


def lower_mixed(function: Function, body: ir.Block) -> Lowered:
    with context, ir.Location.unknown():
        return _Mixed(function, body).lower()


class _Rows(Form):
    """The rows' form. What is summed by columns is one more value per element, whose position is its column."""

    def __init__(self, ops: list[Op], arguments: Sequence[Tensor], results: Sequence[Tensor], sums: list[Op]):
        self.sums = sums
        lead = next(op for op in ops if op.record.lowering == "reduce" and row_space(op) is not None)
        super().__init__(ops, arguments, results, lead)

    def _roots(self) -> None:
        super()._roots()
        column = linear(tuple(Index.of(v) for v in self.inner), tuple(v.extent for v in self.inner))
        for op in self.sums:
            x = op.operands[0]
            same = x.shape == self.shape
            idx = self.full_index if same else delinearize(linear(self.full_index, self.shape), x.shape)
            self.roots.append(self.pull.at(x, idx))
            self.positions.append(column)


class _RowOfMixed(RowEmitter):
    """One row, whose last loop also adds to the sums of columns."""

    def __init__(self, form: _Rows, e: VectorEmitter, staged: Sequence[Scalar], sums: list[tuple[ir.Value, Dtype]]):
        super().__init__(form, e, staged)
        first = len(form.results)
        self.sums = list(zip(form.roots[first:], form.positions[first:], sums, form.sums, strict=True))

    def last(self) -> list[Scalar]:
        return [*super().last(), *[s[0] for s in self.sums]]

    def finish_element(self) -> None:
        e = self.e
        for root, position, (buffer, kept), op in self.sums:
            at = e.index(position)
            total = e.combine(op.record, e.recall(buffer, kept, root.dtype, at), e.addend(op.record, root))
            e.keep(total, buffer, kept, at)


class _Totals(Pull):
    """Values after the sums of columns, which are those of the pieces together."""

    def __init__(self, ops: list[Op], buffers: dict[int, int], partial: dict[int, tuple[int, Dtype]], pieces: int):
        super().__init__(ops, buffers)
        self.partial, self.pieces = partial, pieces

    def _compute(self, tensor: Tensor, idx: tuple[Index, ...]) -> Scalar:
        if id(tensor) not in self.partial:
            return super()._compute(tensor, idx)
        (buffer, kept), graph, position = self.partial[id(tensor)], self.graph, linear(idx, tensor.shape)
        op, _ = self.producer[id(tensor)]
        count = 1 if columns_of(op).pieces else self.pieces
        parts = [graph.load(buffer, position + n * tensor.aval.size, kept) for n in range(count)]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [graph.apply(RECORDS["add"], p, {}, kept) for p in pairs] + parts[len(parts) & ~1 :]
        if kept is tensor.dtype:
            return parts[0]
        return graph.apply(RECORDS["astype"], parts, {"dtype": tensor.dtype}, tensor.dtype)


class _Mixed:
    """A mixed kernel while it is lowered."""

    def __init__(self, function: Function, body: ir.Block):
        self.function, self.body = function, body
        self.ops, self.results = function.read()
        self.sums = [op for op in self.ops if op.record.lowering == "reduce" and column_space(op) is not None]
        self.avals = [t.aval for t in function.arguments] + [t.aval for t in self.results]
        self.rows, self.columns, split = columns_of(self.sums[0])
        late, numbered = self._late(), list(enumerate(self.results, len(function.arguments)))
        self.early = [(t, n) for n, t in numbered if id(t) not in late]
        self.later = [(t, n) for n, t in numbered if id(t) in late]
        share = -(-self.rows // (split or min(PIECES, max(1, self.rows // FEWEST_ROWS))))
        self.share, self.pieces = share, -(-self.rows // share)

    def _late(self) -> set[int]:
        """What is computed from the sums, and what has a value per column without them."""
        made = {id(op.results[0]) for op in self.sums}
        for op in self.ops:
            if any(id(t) in made for t in op.operands):
                made |= {id(t) for t in op.results}
        return made | {id(t) for t in self.results if t.aval.size not in (self.rows, self.rows * self.columns)}

    def lower(self) -> Lowered:
        kept = [float32 if op.results[0].dtype.size == 2 else op.results[0].dtype for op in self.sums]
        temporaries = [Aval((self.pieces * self.columns,), d) for d in kept]
        numbers = range(len(self.avals), len(self.avals) + len(kept))
        self.partial = {id(op.results[0]): (n, d) for op, n, d in zip(self.sums, numbers, kept, strict=True)}
        early, later = [n for _, n in self.early], [n for _, n in self.later]
        steps = [self._step("", temporaries, [*early, *numbers], self._emit_rows)]
        if later:
            steps.append(self._step("_columns", temporaries, later, self._emit_columns))
        return Lowered(steps, temporaries)

    def _step(self, suffix: str, temporaries: list[Aval], writes: list[int], emit: Emit) -> Step:
        avals, name = [*self.avals, *temporaries], self.function.name + suffix
        _, block = loop_function(self.body, name, avals)
        e = VectorEmitter(ScalarBuilder(ir.InsertionPoint(block)), list(block.arguments))
        extent, work = emit(e)
        e.k.op("func.return", [])
        return Step(name, extent, work, tuple(range(len(avals))), tuple(writes))

    def _emit_rows(self, e: VectorEmitter) -> tuple[int, float]:
        form = _Rows(self.ops, self.function.arguments, [t for t, _ in self.early], self.sums)
        form.outputs = [n for _, n in self.early]
        nodes = reachable(form.roots)
        staged = [n for n in nodes if n.kind == "reduce" and n.data[1] == form.inner and not n.free & set(form.inner)]
        piece, local, column = Var("piece", self.pieces), Var("local", self.share), Var("column", self.columns)
        row = Var("row_of_all", self.rows)
        sums = [e.scratch(self.columns, op.results[0].dtype) for op in self.sums]
        extents = tuple(v.extent for v in form.outer)

        def clear() -> None:
            for op, (buffer, kept) in zip(self.sums, sums, strict=True):
                e.keep(e.neutral(op.record, op.results[0].dtype), buffer, kept, e.variables[column])

        def store() -> None:
            at = e.plus(e.times(e.variables[piece], self.columns), e.variables[column])
            for op, (buffer, kept) in zip(self.sums, sums, strict=True):
                total = e.k.load(buffer, e.variables[column], kept)
                e.k.store(total, e.buffers[self.partial[id(op.results[0])][0]], at)

        def one_row() -> None:
            e.variables[row] = e.plus(e.times(e.variables[piece], self.share), e.variables[local])
            if len(form.outer) == 1:
                e.variables[form.outer[0]] = e.variables[row]
            else:
                for v, i in zip(form.outer, delinearize(Index.of(row), extents), strict=True):
                    e.variables[v] = e.index(i)
            _RowOfMixed(form, e, staged, sums).emit()

        def rows() -> None:
            first = e.times(e.variables[piece], self.share)
            e.lanes(column, self.columns, clear)
            e.repeat(local, e.rest(self.rows, first, self.share), one_row)
            e.lanes(column, self.columns, store)

        cost = sum(n.cost for n in form.roots)
        return over(e, [piece], rows), float(self.share * self.columns * max(cost, 4))

    def _emit_columns(self, e: VectorEmitter) -> tuple[int, float]:
        arguments = {id(t): n for n, t in enumerate(self.function.arguments)}
        pull = _Totals(self.ops, arguments, self.partial, self.pieces)
        size = max(t.aval.size for t, _ in self.later)
        column = Var("column", size)
        roots = [(pull.at(t, delinearize(Index.of(column), t.shape)), n) for t, n in self.later]

        def element() -> None:
            for root, n in roots:
                e.k.store(e.value(root), e.buffers[n], e.variables[column])

        return over(e, [column], element), float(sum(root.cost for root, _ in roots))
