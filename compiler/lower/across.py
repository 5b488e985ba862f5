"""The map form where an operand is read across: its rows are columns of the result.

`b + transpose(a)`, by blocks of 64 x 64, one parallel loop over them; squares are transposed in registers on their way
into scratch memory, from where the ordinary loops over the block read them in order:

    scf.parallel (%block) {
      scf.for square of 16 x 16 {
        16 x vector.load %a, 4 x 16 x vector.shuffle, 16 x vector.store %scratch }
      scf.for (%row) {
        scf.parallel (%column) { %b[row, column] + %scratch[row, column] -> %out[row, column] } } }

Element by element, neighbours in the result are a whole row of the operand apart: each takes a cache line, of which the
next row may find little left, above all where that distance is a power of 2 and all lines fall into a few cache sets.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from mlxir.compiler.lower.builder import _STORAGE, Reg
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import Dtype, complex64

if TYPE_CHECKING:
    from mlxir.compiler.lower.loops import Form

BLOCK = 64  # rows and columns
BLOCK_BYTES = 1 << 15  # of scratch memory for all operands that are read across
LEAST = 1 << 12  # elements: fewer lie in L1, in whatever order they are read
LEAST_LANES, MOST_LANES = 4, 16  # of a square


class _Edge(NamedTuple):
    """One of the two axes of a block: which loop variable it is part of, and where that stands in the block."""

    var: Var
    size: int  # of the block, but the last
    block: Var  # number of the block
    within: Var  # place in the block

    @staticmethod
    def of(var: Var) -> _Edge:
        size = min(BLOCK, var.extent)
        return _Edge(var, size, Var(f"{var.name}_b", -(-var.extent // size)), Var(f"{var.name}_w", size))

    @property
    def start(self) -> Index:
        return Index.of(self.block) * self.size


class Across:
    """The loops of a map over blocks."""

    def __init__(self, form: Form, row: Var, loads: list[Scalar], vector_bytes: int):
        self.form, self.loads, self.vector_bytes = form, loads, vector_bytes
        self.row, self.column = _Edge.of(row), _Edge.of(form.outer[-1])

    @staticmethod
    def of(form: Form, vector_bytes: int) -> Across | None:
        """The loops for a form that reads something across, on vectors of so many bytes; None for others."""
        *rows, last = form.outer
        if any(is_symbolic(v.extent) for v in form.outer) or prod([v.extent for v in form.outer]) < LEAST:
            return None
        loads = [n for n in _always_computed(form.roots) if n.kind == "load" and n.dtype is not complex64]
        for row in rows:
            across = [n for n in loads if n.data[1].coefficient(row) == 1 and _turns(n, row, last)]
            room = itertools.accumulate([n.dtype.size * BLOCK**2 for n in across])
            fitting = [n for n, used in zip(across, room, strict=True) if used <= BLOCK_BYTES]
            if fitting:
                return Across(form, row, fitting, vector_bytes)
        return None

    @property
    def variables(self) -> list[Var]:
        """Of the parallel loop."""
        others = [v for v in self.form.outer[:-1] if v is not self.row.var]
        return [*others, self.column.block, self.row.block]

    @property
    def size(self) -> int:
        """Elements of a block."""
        return self.row.size * self.column.size

    def block(self, e: VectorEmitter) -> None:
        """One iteration."""
        row, column = self.row, self.column
        rows, columns = (e.part(edge.var.extent, e.index(edge.start), edge.size) for edge in (row, column))
        for node in self.loads:
            buffer, _ = e.scratch(self.size, node.dtype, as_stored=True)
            self._fill(e, node, buffer, rows, columns)
            place = Index.of(row.within) * column.size + Index.of(column.within)
            e.stored[id(node)] = functools.partial(self._recall, e, buffer, place, node.dtype)
        form = self.form
        stores = list(zip(form.roots, form.positions, [e.buffers[n] for n in form.outputs], strict=True))

        def element() -> None:
            e.variables[column.var] = e.index(column.start + Index.of(column.within))
            for root, position, target in stores:
                e.k.store(e.value(root), target, e.index(position))

        def line() -> None:
            e.variables[row.var] = e.index(row.start + Index.of(row.within))
            e.hoist(form.roots, [column.var])
            e.parallel(column.within, columns, element)

        e.repeat(row.within, rows, line)

    @staticmethod
    def _recall(e: VectorEmitter, buffer: ir.Value, place: Index, dtype: Dtype) -> Reg:
        return e.k.load(buffer, e.index(place), dtype)

    # -- an operand's block -----------------------------------------------------------------------------------------
    def _fill(self, e: VectorEmitter, node: Scalar, buffer: ir.Value, rows: ir.Value, columns: ir.Value) -> None:
        """Put the block of a load into scratch memory, turned: squares, then what is left at the edges."""
        shorter = min(self.row.size, self.column.size)
        n = min(MOST_LANES, self.vector_bytes // node.dtype.size, 1 << (shorter.bit_length() - 1))
        down, right = Var("down", self.row.size // n), Var("right", self.column.size // n)
        whole = [e.k.op("arith.divui", [size, e.constant_index(n)], rows.type) for size in (rows, columns)]
        square = functools.partial(self._square, e, node, buffer, n, down, right)
        e.repeat(right, whole[1], lambda: e.repeat(down, whole[0], square))
        even = [edge.var.extent % n == 0 for edge in (self.row, self.column)]
        done = [e.times(count, n) for count in whole]
        if not even[0]:  # the rows below, of all columns
            self._rest(e, node, buffer, (done[0], e.minus(rows, done[0])), (e.constant_index(0), columns))
        if not even[1]:
            self._rest(e, node, buffer, (e.constant_index(0), done[0]), (done[1], e.minus(columns, done[1])))

    def _square(self, e: VectorEmitter, node: Scalar, buffer: ir.Value, n: int, down: Var, right: Var) -> None:
        source, position, _ = node.data
        r, c = Index.of(down) * n, Index.of(right) * n
        at = e.index(position.substitute({self.row.var: self.row.start + r, self.column.var: self.column.start + c}))
        kind = ir.VectorType.get([n], _STORAGE[node.dtype])
        stride = position.coefficient(self.column.var)
        loaded = [e.k.op("vector.load", [e.buffers[source], e.plus(at, i * stride)], kind) for i in range(n)]
        to = e.index(r * self.column.size + c)
        for i, value in enumerate(e.transposed(loaded)):
            e.store_vector(value, buffer, e.plus(to, i * self.column.size))

    def _rest(
        self, e: VectorEmitter, node: Scalar, buffer: ir.Value, rows: Sequence[ir.Value], columns: Sequence[ir.Value]
    ) -> None:
        """Element by element, for (first, count) of rows and columns."""
        source, position, _ = node.data
        r, c = Var("r", self.row.size), Var("c", self.column.size)

        def element() -> None:
            here, there = e.plus(rows[0], e.variables[r]), e.plus(columns[0], e.variables[c])
            e.variables[self.row.var] = e.k.op("arith.addi", [e.index(self.row.start), here], here.type)
            e.variables[self.column.var] = e.k.op("arith.addi", [e.index(self.column.start), there], there.type)
            value: Reg = e.k.load(e.buffers[source], e.index(position), node.dtype)
            e.k.store(value, buffer, e.plus(e.times(here, self.column.size), there))

        e.repeat(c, columns[1], lambda: e.repeat(r, rows[1], element))


def _turns(node: Scalar, row: Var, last: Var) -> bool:
    """Whether squares of a load are worth their shuffles: both axes are long, and neighbours are far apart."""
    stride = node.data[1].coefficient(last)
    return stride is not None and min(stride, row.extent, last.extent) >= LEAST_LANES


def _always_computed(roots: Sequence[Scalar]) -> list[Scalar]:
    """Nodes that every element needs: nothing under a guard, which may not be safe, or in a loop of its own."""
    found: dict[int, Scalar] = {}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            if node.kind == "apply":
                waiting += node.args
    return list(found.values())
