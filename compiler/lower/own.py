"""What kernels with loops of their own share (scans, argmax, scatter, sort): one operation, its operands as scalars.

An operand is read through `value`, which computes elementwise producers on the way: `cumsum(exp(x))` is one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.index import Index, Var, linear
from mlxir.compiler.lower.loops import Lowered, Step, loop_function, sizes_of
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, Tensor, ir
from mlxir.dialects.mx import Aval
from mlxir.runtime.dtypes import Dtype, int64
from mlxir.runtime.errors import CompileError


class OwnEmitter(VectorEmitter):
    """The emitter of one step, with what loops over data-dependent positions need."""

    def at(self, *terms: Any) -> ir.Value:
        """The position that is the sum of integers, Vars, Indices, integer registers and positions."""
        total = None
        for term in terms:
            value = term
            if isinstance(term, (int, Var, Index)):
                value = self.index(Index.of(term))
            elif isinstance(term, Reg):
                value = self.k.op("arith.index_cast", [self.k.cast(term, int64).value], INDEX)
            total = value if total is None else self.k.op("arith.addi", [total, value], INDEX)
        return total

    def least(self, a: ir.Value, n: int) -> ir.Value:
        """min(a, n) of positions that are not negative."""
        return self.k.op("arith.minui", [a, self.constant_index(n)], INDEX)

    def divided(self, a: ir.Value, n: int) -> ir.Value:
        return a if n == 1 else self.k.op("arith.divsi", [a, self.constant_index(n)], INDEX)

    def shuffled(self, vector: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """Lane i of the result is lane `lanes[i]`."""
        return self.k.op("vector.shuffle", [vector, vector], vector.type, mask=ir.DenseI64ArrayAttr.get(lanes))

    def number(self, position: Any, dtype: Dtype) -> Reg:
        """A position as an integer register."""
        from_index = self.k.op("arith.index_cast", [self.at(position)], ir.IntegerType.get_signless(8 * dtype.size))
        return Reg(from_index, dtype, self.k)

    def read(self, buffer: ir.Value, dtype: Dtype, *terms: Any) -> Reg:
        return self.k.load(buffer, self.at(*terms), dtype)

    def write(self, value: Reg, buffer: ir.Value, *terms: Any) -> None:
        self.k.store(value, buffer, self.at(*terms))


class OwnKernel:
    """A kernel while it is lowered, step by step. Buffers are numbered: arguments, results, then temporaries."""

    def __init__(self, function: Function, body: ir.Block):
        ops, results = function.read()
        self.op = next(op for op in ops if op.record.lowering == "kernel")
        if [id(t) for t in results] != [id(t) for t in self.op.results]:
            raise CompileError(f"[lower] {self.op.record.name} cannot be fused with what reads it")
        self.name, self._function, self._body = function.name, function, body
        self.avals = [t.aval for t in function.arguments] + [t.aval for t in results]
        self.out = len(function.arguments)
        self.pull = Pull(ops, {id(t): i for i, t in enumerate(function.arguments)})
        self._first_temporary = len(self.avals)
        self._steps: list[Step] = []

    def temporary(self, size: int, dtype: Dtype) -> int:
        """The number of a new buffer that the steps added from now on share."""
        self.avals.append(Aval((size,), dtype))
        return len(self.avals) - 1

    def value(self, e: OwnEmitter, tensor: Tensor, idx: Sequence[Any]) -> Reg:
        return e.value(self.pull.at(tensor, tuple(Index.of(i) for i in idx)))

    def add(
        self, suffix: str, writes: Sequence[int], emit: Callable[[OwnEmitter], tuple[int, float]], copies: int = -1
    ) -> None:
        """A step that writes the buffers `writes`; `emit` fills its function: -> (extent, work per iteration).

        With `copies` all that it does is to copy that buffer (see `Step`).
        """
        name = self.name + suffix
        _, block = loop_function(self._body, name, self.avals)
        buffers = list(block.arguments)
        e = OwnEmitter(ScalarBuilder(ir.InsertionPoint(block)), buffers, sizes_of(self._function, buffers))
        extent, work = emit(e)
        e.k.op("func.return", [])
        self._steps.append(Step(name, extent, work, tuple(range(len(self.avals))), tuple(writes), copies=copies))

    def finish(self) -> Lowered:
        return Lowered(self._steps, self.avals[self._first_temporary :])


class Rows:
    """The rows of an array along one axis: where element `i` of the current row is, and where it lies in memory."""

    def __init__(self, shape: Sequence[int], axis: int):
        self.shape, self.axis, self.n = tuple(shape), axis, shape[axis]
        self.variables = [Var(f"i{a}", n) for a, n in enumerate(shape) if a != axis]
        self.count = prod(v.extent for v in self.variables)
        self.stride = prod(shape[axis + 1 :])

    def element(self, i: Any) -> tuple[Any, ...]:
        """The index of element `i`, an integer, a Var or an Index."""
        return (*self.variables[: self.axis], i, *self.variables[self.axis :])

    def position(self, i: Any) -> Index:
        return linear(tuple(Index.of(v) for v in self.element(i)), self.shape)

    @property
    def number(self) -> Index:
        """Of the current row, in row-major order."""
        return linear(tuple(Index.of(v) for v in self.variables), tuple(v.extent for v in self.variables))
