"""Computes consecutive elements of an operand as vectors: what a product multiplies without ever storing it.

    element k:        astype(words[k // 8] >> 4 * (k % 8) & 15) * scales[k // 64]          weights of 4 bits
    16 lanes of it:   %w = vector.load words[2 * %c] : vector<2xi32>          k = 16 * %c + lane
                      %v = vector.shuffle %w [0 x 8, 1 x 8]      %q = andi (shrui %v, [0, 4 .. 28, 0, 4 .. 28]), 15
                      %x = mulf (uitofp %q), spread scales[%c // 4]

In each index the lanes must differ by constants: then a load is one of a vector, whose elements go where they belong,
or one of a scalar for all lanes. LLVM's vectoriser would gather for such indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlxir.compiler.lower.builder import _STORAGE, _TYPES, Reg
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Scalar, ScalarGraph, reachable, substitute
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import bool_, complex64

CHUNK = 4  # vectors: as long as a group of weights that share a scale; weights of 3 bits share words every other one


class LanesBuilder(ScalarBuilder):
    """Bodies of records on vectors: operations with a vector among their operands give one, scalars are spread."""

    def __init__(self, ip: ir.InsertionPoint, lanes: int):
        super().__init__(ip)
        self.lanes, self.summand = lanes, True  # as a product with its sum, so what leads to it: rounded once or twice

    def op(self, name: str, operands: Sequence[ir.Value], result: ir.Type | None = None, **attributes: Any) -> Any:
        if result is not None and any(isinstance(o.type, ir.VectorType) for o in operands):
            operands = [self._spread(o) for o in operands]
            result = ir.VectorType.get([self.lanes], result)
        return super().op(name, operands, result, **attributes)

    def _spread(self, value: ir.Value) -> ir.Value:
        if isinstance(value.type, ir.VectorType):
            return value
        return super().op("vector.broadcast", [value], ir.VectorType.get([self.lanes], value.type))


class Computed:
    """The elements of `node` along `axis`, chunk after chunk of `parts` vectors of `lanes` elements each."""

    def __init__(self, graph: ScalarGraph, node: Scalar, axis: Var, lanes: int, parts: int):
        self.graph, self.node, self.axis, self.lanes, self.parts = graph, node, axis, lanes, parts
        self.chunk = Var(f"{axis.name}_chunk", axis.extent // self.length)
        self._starts: dict[Any, tuple[Index, list[int]] | None] = {}

    @property
    def length(self) -> int:
        """Of a chunk, in elements."""
        return self.lanes * self.parts

    def possible(self) -> bool:
        nodes = [n for n in reachable([self.node]) if self.axis in n.free]
        return self.axis.extent % self.length == 0 and all(self._possible(n) for n in nodes)

    def _possible(self, node: Scalar) -> bool:
        if node.dtype is complex64:
            return False
        if node.kind == "load":
            place = self._start(node.data[1], 0)
            return node.dtype is not bool_ and place is not None and max(place[1]) - min(place[1]) < self.lanes
        if node.kind == "ramp":
            place = self._start(node.data[0], 0)
            return place is not None and not place[0].terms and node.dtype.is_integer
        return node.kind == "apply" and not getattr(node.data[0], "costly", False)

    def _start(self, index: Index, part: int) -> tuple[Index, list[int]] | None:
        """The index of lane 0 and the distances of all lanes from it; None where these are not constant."""
        key = index.key, part
        if key not in self._starts:
            first = Index.of(self.chunk) * self.length + part * self.lanes
            places = [index.substitute({self.axis: first + n}) for n in range(self.lanes)]
            distances = [p - places[0] for p in places]
            known = not any(d.terms for d in distances) and self.axis not in places[0].free()
            self._starts[key] = (places[0], [d.constant for d in distances]) if known else None
        return self._starts[key]

    def emit(self, e: VectorEmitter, part: int) -> ir.Value:
        """One vector; `e` knows the chunk and the other variables."""
        k, known = LanesBuilder(e.k.ip, self.lanes), dict[int, Reg]()

        def value(node: Scalar) -> Reg:
            if id(node) not in known:
                made = compute(node) if self.axis in node.free else e.value(node)
                known[id(node)] = Reg(made.value, node.dtype, k)
            return known[id(node)]

        def compute(node: Scalar) -> Reg:
            if node.kind == "apply":
                record, attrs = node.data
                return record.body(k, *[value(a) for a in node.args], **attrs)
            found = self._start(node.data[1 if node.kind == "load" else 0], part)
            assert found is not None
            if node.kind == "load":
                return self._load(e, k, node, *found)
            _, start, step = node.data
            numbers = np.array([int(start) + int(step) * (found[0].constant + d) for d in found[1]])
            bits = numbers.astype(node.dtype.numpy).view(f"i{node.dtype.size}")
            kind = ir.VectorType.get([self.lanes], _TYPES[node.dtype])
            return Reg(k.op("arith.constant", [], kind, value=ir.DenseElementsAttr.get(bits, type=kind)), node.dtype, k)

        return k._spread(value(self.node).value)

    def _load(self, e: VectorEmitter, k: LanesBuilder, node: Scalar, start: Index, distances: list[int]) -> Reg:
        buffer, least = e.buffers[node.data[0]], min(distances)
        at, width = e.index(start + least), max(distances) - least + 1
        if width == 1:
            return e.k.load(buffer, at, node.dtype)
        value = e.k.op("vector.load", [buffer, at], ir.VectorType.get([width], _STORAGE[node.dtype]))
        if distances != list(range(self.lanes)):
            mask = ir.DenseI64ArrayAttr.get([d - least for d in distances])
            kind = ir.VectorType.get([self.lanes], _STORAGE[node.dtype])
            value = e.k.op("vector.shuffle", [value, value], kind, mask=mask)
        if _STORAGE[node.dtype] != _TYPES[node.dtype]:
            value = k.op("arith.extf", [value], _TYPES[node.dtype])
        return Reg(value, node.dtype, k)

    def moved(self, mapping: dict[Var, Index]) -> Computed:
        """The same chunk where other variables are mapped."""
        (node,) = substitute(self.graph, [self.node], mapping, {})
        found = Computed(self.graph, node, self.axis, self.lanes, self.parts)
        found.chunk = self.chunk
        return found


def vectors_along(graph: ScalarGraph, node: Scalar, axis: Var, lanes: int) -> Computed | None:
    """`node` in vectors of `lanes` (or twice as many) elements along `axis`; None where it cannot be."""
    if is_symbolic(axis.extent) or axis not in node.free:
        return None
    tries = (Computed(graph, node, axis, lanes * n, CHUNK // n) for n in (1, 2))
    return next((found for found in tries if found.possible()), None)
