"""The emitter of loops that are vectorised by hand: positions, vectors, and loops that LLVM leaves as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlxir.compiler.lower.builder import _STORAGE, _TYPES, INDEX, Reg
from mlxir.compiler.lower.emit import Emitter
from mlxir.compiler.lower.index import Var
from mlxir.dialects.mlir import context, ir
from mlxir.dialects.mx import Primitive
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import Dtype, bool_, int64

with context:
    _ROLLED = ir.Attribute.parse("#llvm.loop_annotation<unroll = <disable = true>>")
    _REASSOC = ir.Attribute.parse("#arith.fastmath<reassoc>")
    _ADD = ir.Attribute.parse("#vector.kind<add>")

_EQUAL, _LESS, _AT_LEAST = 0, 2, 5


class VectorEmitter(Emitter):
    """Emitter with arithmetic on positions and with vectors. Vector accesses need no alignment beyond the element's."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.routines: dict[Any, None] = {}  # that the function calls (routines.py), in the order of their first call

    # -- positions --------------------------------------------------------------------------------------------------
    def plus(self, a: ir.Value, b: ir.Value | int) -> ir.Value:
        if isinstance(b, int):
            if not is_symbolic(b) and b == 0:
                return a
            b = self.constant_index(b)
        return self.k.op("arith.addi", [a, b], INDEX)

    def minus(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.subi", [a, b], INDEX)

    def times(self, a: ir.Value, n: int) -> ir.Value:
        return a if n == 1 else self.k.op("arith.muli", [a, self.constant_index(n)], INDEX)

    def product(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.muli", [a, b], INDEX)

    def lesser(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.minsi", [a, b], INDEX)

    def least(self, a: ir.Value, n: int) -> ir.Value:
        return self.lesser(a, self.constant_index(n))

    def part(self, total: int, used: ir.Value, most: int) -> ir.Value:
        """min(total - used, most) for `used` a multiple of `most`, which is known where parts come out even."""
        if not is_symbolic(total) and total % most == 0:
            return self.constant_index(most)
        return self.rest(total, used, most)

    def rest(self, total: int, used: ir.Value, most: int) -> ir.Value:
        """min(total - used, most)."""
        return self.least(self.k.op("arith.subi", [self.constant_index(total), used], INDEX), most)

    def _test(self, predicate: int, a: ir.Value, n: int) -> ir.Value:
        code = ir.IntegerAttr.get(_TYPES[int64], predicate)
        return self.k.op("arith.cmpi", [a, self.constant_index(n)], _TYPES[bool_], predicate=code)

    def plus_from(self, a: ir.Value, n: int, at: ir.Value, limit: int) -> ir.Value:
        """`a + n` where `at >= limit`, else `a`."""
        return self.k.op("arith.select", [self._test(_AT_LEAST, at, limit), self.plus(a, n), a], INDEX)

    @contextmanager
    def when(self, test: Reg) -> Any:
        """Emit into the block that runs where `test` holds."""
        k = self.k
        operation = ir.Operation.create("scf.if", operands=[test.value], regions=2, loc=k.loc, ip=k.ip)
        with self.block(operation.regions[0].blocks.append()):
            yield
            k.op("scf.yield", [])

    def when_equal(
        self, a: ir.Value, n: int, body: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> None:
        test = self._test(_EQUAL, a, n)
        operation = ir.Operation.create("scf.if", operands=[test], regions=2, loc=self.k.loc, ip=self.k.ip)
        for region, emit in zip(operation.regions, (body, otherwise), strict=True):
            if emit is not None:
                with self.block(region.blocks.append()):
                    emit()
                    self.k.op("scf.yield", [])

    # -- loops ------------------------------------------------------------------------------------------------------
    def rolled(
        self, var: Var, extent: ir.Value | int, starts: list[Reg], body: Callable[[list[Reg]], list[Reg]]
    ) -> list[Reg]:
        """A serial loop that LLVM must not unroll: its body is a tile already, or is not worth the time."""

        def marked(carried: list[Reg]) -> list[Reg]:
            self.k.ip.block.owner.attributes["loop_annotation"] = _ROLLED
            return body(carried)

        return self.serial(var, self._extent(extent), starts, marked)

    def repeat(self, var: Var, extent: ir.Value | int, body: Callable[[], None]) -> None:
        """`rolled` without carried values."""

        def once(_: list[Reg]) -> list[Reg]:
            body()
            return []

        self.rolled(var, extent, [], once)

    def lanes(self, var: Var, extent: ir.Value | int, body: Callable[[], None]) -> None:
        """An inner loop of scalar code for LLVM to vectorise."""
        self.parallel(var, self._extent(extent), body)

    def folded(
        self, record: Primitive, var: Var, extent: ir.Value | int, dtype: Dtype, body: Callable[[], list[Reg]]
    ) -> list[Reg]:
        """The reduction by `record` of what `body` gives for each lane."""
        loop = self._parallel(var, self._extent(extent), [self.neutral(record, dtype)], body, [(record, dtype)])
        return [Reg(loop.results[0], dtype, self.k)]

    def _extent(self, extent: ir.Value | int) -> ir.Value:
        return self.constant_index(extent) if isinstance(extent, int) else extent

    # -- vectors ----------------------------------------------------------------------------------------------------
    @staticmethod
    def vector_type(lanes: int, dtype: Dtype) -> ir.Type:
        return ir.VectorType.get([lanes], _TYPES[dtype])

    def load_vector(self, buffer: ir.Value, stored: Dtype, at: ir.Value, lanes: int, dtype: Dtype) -> ir.Value:
        """`lanes` consecutive elements of a buffer of `stored`, as `dtype`: the same, or float32 for a 2-byte float."""
        value = self.k.op("vector.load", [buffer, at], ir.VectorType.get([lanes], _STORAGE[stored]))
        if _STORAGE[stored] != _TYPES[dtype]:
            value = self.k.op("arith.extf", [value], self.vector_type(lanes, dtype))
        return value

    def store_vector(self, value: ir.Value, buffer: ir.Value, at: ir.Value) -> None:
        self.k.op("vector.store", [value, buffer, at])

    def zeros(self, lanes: int, dtype: Dtype) -> ir.Value:
        kind = self.vector_type(lanes, dtype)
        splat = ir.DenseElementsAttr.get_splat(kind, ir.FloatAttr.get(_TYPES[dtype], 0.0))
        return self.k.op("arith.constant", [], kind, value=splat)

    def without(self, value: ir.Value, first: int, zeros: ir.Value) -> ir.Value:
        """`value` with zeros for its `first` lanes."""
        n = ir.VectorType(value.type).shape[0]
        # shuffle: lane i of the result is lane mask[i] of the two operands in a row
        mask = ir.DenseI64ArrayAttr.get([n + i if i < first else i for i in range(n)])
        return self.k.op("vector.shuffle", [value, zeros], value.type, mask=mask)

    def leading_mask(self, count: ir.Value, lanes: int) -> ir.Value:
        """Which of so many lanes are among the first `count` (any number)."""
        kind, whole = ir.VectorType.get([lanes], _TYPES[int64]), self.k.op("arith.index_cast", [count], _TYPES[int64])
        numbers = ir.DenseElementsAttr.get(np.arange(lanes, dtype=np.int64), type=kind)
        operands = [self.k.op("arith.constant", [], kind, value=numbers), self.k.op("vector.broadcast", [whole], kind)]
        code = ir.IntegerAttr.get(_TYPES[int64], _LESS)
        return self.k.op("arith.cmpi", operands, ir.VectorType.get([lanes], _TYPES[bool_]), predicate=code)

    def choose(self, mask: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.select", [mask, a, b], a.type)

    def leading(self, value: ir.Value, lanes: int, dtype: Dtype, first: int = 0) -> ir.Value:
        """`lanes` lanes from lane `first` on."""
        mask = ir.DenseI64ArrayAttr.get(range(first, first + lanes))
        return self.k.op("vector.shuffle", [value, value], self.vector_type(lanes, dtype), mask=mask)

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """The columns of a square of n rows, n a power of 2: log2(n) rounds that interleave row r with row r + n/2."""
        n = len(rows)
        low = ir.DenseI64ArrayAttr.get([i // 2 + n * (i % 2) for i in range(n)])
        high = ir.DenseI64ArrayAttr.get([n // 2 + i // 2 + n * (i % 2) for i in range(n)])
        for _ in range(n.bit_length() - 1):
            pairs = [(rows[r], rows[r + n // 2]) for r in range(n // 2)]
            rows = [self.k.op("vector.shuffle", p, p[0].type, mask=half) for p in pairs for half in (low, high)]
        return rows

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.k.op("vector.fma", [a, b, c], c.type)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.addf", [a, b], a.type)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.k.op("arith.mulf", [a, b], a.type)

    def spread(self, scalar: ir.Value, lanes: int, dtype: Dtype) -> ir.Value:
        return self.k.op("vector.broadcast", [scalar], self.vector_type(lanes, dtype))

    def sum_of_lanes(self, value: ir.Value, dtype: Dtype) -> ir.Value:
        """As a tree, the same one every time."""
        return self.k.op("vector.reduction", [value], _TYPES[dtype], kind=_ADD, fastmath=_REASSOC)
