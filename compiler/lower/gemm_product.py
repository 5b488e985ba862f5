"""What a matmul kernel computes, as scalars, and the steps it is lowered to; shared by all forms of its loops.

A convolution (conv_product.py) is the other `Contraction`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.loops import SIZES, Lowered, Step, loop_function, over
from mlxir.compiler.lower.routines import Routine
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull, Scalar, reachable
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, Tensor, ir
from mlxir.dialects.mx import Aval, Primitive
from mlxir.dialects.mx.contract import matmul
from mlxir.dialects.mx.shape import broadcast_index, reshape
from mlxir.runtime.dtypes import Dtype, float32


class Root(NamedTuple):
    """A result: its element as a scalar, where it goes, and the number of its buffer."""

    node: Scalar
    position: Index
    buffer: int


class Contraction:
    """A kernel with one product of sums, which its results are computed from element by element.

    A subclass finds the variables of one element; `results_at` then makes the results scalars over them. `accumulator`
    stands for the element of the product at `position` in `roots`. Results that need the product at other indices are
    in `later`: they are computed from a temporary, the first one, that holds the whole product.
    """

    roots: list[Root]
    later: list[Root]
    position: Index
    accumulator: Scalar

    def __init__(self, function: Function, record: Primitive):
        ops, self.results = function.read()
        (self.op,) = (o for o in ops if o.record is record)
        self.name, self.arguments = function.name, function.arguments
        self.sized = SIZES in function.operation.attributes
        (self.tensor,) = self.op.results
        self.dtype = self.tensor.dtype
        self.sum_dtype = float32 if self.dtype.is_float and self.dtype.size == 2 else self.dtype
        self.first_temporary = len(self.arguments) + len(self.results)
        numbers = {id(t): n for n, t in enumerate(self.arguments)}
        self.pull = Pull(ops, numbers | {id(self.tensor): self.first_temporary})
        self.empty = self.tensor.aval.size == 0
        self.roots, self.later = [], []

    @property
    def avals(self) -> list[Aval]:
        return [t.aval for t in (*self.arguments, *self.results)]

    def results_at(self, position: Index) -> None:
        """Find the results, the product's element lying at `position` of its row-major order."""
        self.position = position
        self.accumulator = self.pull.at(self.tensor, delinearize(position, self.tensor.shape))
        for n, tensor in enumerate(self.results, len(self.arguments)):
            x = tensor
            while id(x) in self.pull.producer and self.pull.producer[id(x)][0].record is reshape:
                (x,) = self.pull.producer[id(x)][0].operands  # a result lies row-major in memory whatever its shape
            candidates = (self._in_order(x), self._permuted(x))
            found = next((idx for idx in candidates if idx is not None and self._only_here(self.pull.at(x, idx))), None)
            if found is not None:
                self.roots.append(Root(self.pull.at(x, found), linear(found, x.shape), n))
            else:
                flat = Index.of(Var("e", x.aval.size))
                self.later.append(Root(self.pull.at(x, delinearize(flat, x.shape)), flat, n))
        if self.later:
            self.roots.append(Root(self.accumulator, self.position, self.first_temporary))

    def _in_order(self, x: Tensor) -> tuple[Index, ...] | None:
        return delinearize(self.position, x.shape) if x.aval.size == self.tensor.aval.size else None

    def _permuted(self, x: Tensor) -> tuple[Index, ...] | None:
        """The index at which `x`, a transposed form of the product, reads it at (b, i, j)."""
        if x.aval.size != self.tensor.aval.size:
            return None
        variables = [Var(f"x{a}", n) for a, n in enumerate(x.shape)]
        read = self._reads(self.pull.at(x, tuple(Index.of(v) if v.extent > 1 else Index.of(0) for v in variables)))
        if len(read) != 1:
            return None
        strides = [-1 if (s := read[0].data[1].coefficient(v)) is None else s for v in variables]
        rest, span, idx = self.position, 1, [Index.of(0)] * len(variables)
        for axis in sorted(range(len(variables)), key=lambda a: strides[a]):
            extent = variables[axis].extent
            if extent > 1:
                if strides[axis] != span:
                    return None
                idx[axis], rest, span = rest % extent, rest // extent, span * extent
        return tuple(idx)

    def _reads(self, node: Scalar) -> list[Scalar]:
        return [n for n in reachable([node]) if n.kind == "load" and n.data[0] == self.first_temporary]

    def _only_here(self, node: Scalar) -> bool:
        return all(n is self.accumulator for n in self._reads(node))


class Product(Contraction):
    """A kernel with one matmul: its operands and results as scalars over the variables b (batch), i, j and k."""

    def __init__(self, function: Function):
        super().__init__(function, matmul)
        op, shape = self.op, self.tensor.shape
        self.left_tensor, self.right_tensor = op.operands
        self.ta, self.tb = op.attrs["ta"], op.attrs["tb"]
        batch, (m, n) = shape[:-2], shape[-2:]
        count = prod(batch)
        depth = self.left_tensor.shape[-2 if self.ta else -1]
        self.b, self.i, self.j, self.k = Var("b", count), Var("i", m), Var("j", n), Var("k", depth)
        if self.empty:
            return
        which = Index.of(self.b) if count != 1 else Index.of(0)
        self.left, self.right = self._left(which, self.i, batch), self._right(which, batch)
        if count > 1 and self.b not in self.right.free and depth:
            # One matrix for the whole batch: the batch axes are more rows.
            rows = Var("i", count * m)
            flat = self._left(Index.of(rows) // m, Index.of(rows) % m, batch)
            if flat.kind == "load" and flat.data[1].coefficient(rows) is not None:
                self.left, self.i, self.b, which = flat, rows, Var("b", 1), Index.of(0)
        self.results_at((which * self.i.extent + self.i) * n + self.j)

    # -- operands ---------------------------------------------------------------------------------------------------
    def _left(self, which: Any, row: Any, batch: Sequence[int]) -> Scalar:
        return self._element(self.left_tensor, which, batch, (self.k, row) if self.ta else (row, self.k))

    def _right(self, which: Any, batch: Sequence[int]) -> Scalar:
        return self._element(self.right_tensor, which, batch, (self.j, self.k) if self.tb else (self.k, self.j))

    def _element(self, x: Tensor, which: Any, batch: Sequence[int], last: tuple) -> Scalar:
        if self.k.extent == 0:
            return self.pull.graph.constant(0, x.dtype)
        lead = broadcast_index(Aval(x.shape[:-2], x.dtype), delinearize(which, tuple(batch)))
        return self.pull.at(x, tuple(Index.of(v) for v in (*lead, *last)))


class StepBuilder:
    """The steps and temporaries of a product while they are made."""

    def __init__(self, product: Contraction, body: ir.Block):
        self.product, self.body = product, body
        self.steps: list[Step] = []
        self.routines: dict[Routine, None] = {}
        self.temporaries = [Aval((product.tensor.aval.size,), product.dtype)] if product.later else []

    def temporary(self, size: int, dtype: Dtype) -> int:
        """The number of a new temporary buffer."""
        self.temporaries.append(Aval((size,), dtype))
        return self.product.first_temporary + len(self.temporaries) - 1

    def add(
        self,
        suffix: str,
        nodes: Sequence[Scalar],
        reads: Sequence[int],
        writes: Sequence[int],
        emit: Callable[[VectorEmitter], tuple[int, float]],
    ) -> None:
        """A step over the buffers that `nodes` load, `reads` and `writes`; `emit` fills it: -> (extent, work)."""
        avals = [*self.product.avals, *self.temporaries]
        loads = {n.data[0] for n in reachable(nodes) if n.kind == "load"} - {self.product.first_temporary}
        lengths = [len(self.product.arguments) - 1] * self.product.sized
        numbers = tuple(sorted(loads.union(reads, writes, lengths)))
        name = self.product.name + suffix
        _, block = loop_function(self.body, name, [avals[n] for n in numbers])
        buffers = dict(zip(numbers, block.arguments, strict=True))
        lie = [buffers.get(n) for n in range(len(avals))]
        e = VectorEmitter(ScalarBuilder(ir.InsertionPoint(block)), lie, *[lie[n] for n in lengths])
        extent, work = emit(e)
        e.k.op("func.return", [])
        self.routines |= e.routines
        self.steps.append(Step(name, extent, work, numbers, tuple(writes)))

    def finish(self) -> Lowered:
        """Adds the results that need the whole product, element by element."""
        for root in self.product.later:

            def emit(e: VectorEmitter, root: Root = root) -> tuple[int, float]:
                (flat,) = root.position.free()
                store = (e.buffers[root.buffer], root.position)
                over(e, [flat], lambda: e.k.store(e.value(root.node), store[0], e.index(store[1])))
                return flat.extent, float(root.node.cost)

            self.add(f"_{root.buffer}", [root.node], [self.product.first_temporary], [root.buffer], emit)
        return Lowered(self.steps, self.temporaries, tuple(self.routines))
