"""Emits scalar graphs and the loops around them as scf/memref/arith/math operations.

Loops whose iterations are independent, but for named reductions, are `scf.parallel`; a target maps them (threads,
lanes, vectors). Everything
that does not depend on a loop's variable is computed before the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from mlxir.compiler.lower.builder import _STORAGE, _TYPES, INDEX, Reg
from mlxir.compiler.lower.index import Condition, Dynamic, Index, Quotient, Remainder, Var
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Scalar
from mlxir.dialects.mlir import ir
from mlxir.dialects.mx import Primitive
from mlxir.dialects.polynomials import Terms, text_of
from mlxir.dialects.symbolic import Scope, is_symbolic, lower_bound
from mlxir.runtime.dtypes import Dtype, bool_, complex64, float32, float64, int64
from mlxir.runtime.errors import CompileError

SCRATCH_BYTES = 1 << 15  # a row of scratch must stay in L1 (and in threadgroup memory)


class Sizes:
    """Symbolic sizes inside a kernel, computed at its beginning from the lengths of axes in a buffer."""

    def __init__(self, k: ScalarBuilder, buffer: ir.Value):
        self.k, self.buffer = k, buffer
        # Everything is put before this operation, so that it dominates all uses.
        self.before = ir.InsertionPoint(k.index(0).owner)
        self.known: dict[str, ir.Value] = {}

    def value(self, n: Any) -> ir.Value:
        """An expression as an index."""
        outside, self.k.ip = self.k.ip, self.before
        try:
            return self._expression(n.scope, n.terms, n.text)
        finally:
            self.k.ip = outside

    def _expression(self, scope: Scope, terms: Terms, text: str) -> ir.Value:
        if text not in self.known:
            total = None
            for product, c in terms.items():
                value = self.k.index(c)
                for atom in product:
                    value = self.k.op("arith.muli", [value, self._atom(scope, atom)], INDEX)
                total = value if total is None else self.k.op("arith.addi", [total, value], INDEX)
            self.known[text] = self.k.index(0) if total is None else total
        return self.known[text]

    def _atom(self, scope: Scope, atom: str) -> ir.Value:
        if atom in self.known:
            return self.known[atom]
        if atom in scope.opaque:
            sign, a, b, _ = scope.opaque[atom]
            if lower_bound(scope, b) <= 0:
                raise CompileError(f"[lower] {text_of(b)} may not be positive and divides")
            p, q = (self._expression(scope, t, text_of(t)) for t in (a, b))
            remainder = self.k.op("arith.remsi", [p, q], INDEX)
            if lower_bound(scope, a) < 0:  # the machine rounds towards zero
                remainder = self.k.op("arith.remsi", [self.k.op("arith.addi", [remainder, q], INDEX), q], INDEX)
            whole = self.k.op("arith.divsi", [self.k.op("arith.subi", [p, remainder], INDEX), q], INDEX)
            value = whole if sign == "//" else remainder
        else:
            word = self.k.load(self.buffer, self.k.index(int(atom[1:])), int64)
            value = self.k.op("arith.index_cast", [word.value], INDEX)
        self.known[atom] = value
        return value


class Emitter:
    """Code of one kernel. `buffers[i]` is the memref that `load` nodes call i; scopes follow the nesting of blocks."""

    def __init__(self, k: ScalarBuilder, buffers: Sequence[ir.Value], sizes: ir.Value | None = None):
        self.k, self.buffers = k, list(buffers)
        self.entry = k.ip.block  # of the function: scratch memory is allocated there, never in a loop
        self.sizes = None if sizes is None else Sizes(k, sizes)  # what symbolic sizes are computed from
        self.variables: dict[Var, ir.Value] = {}
        self.scopes: list[dict[Any, Any]] = [{}]
        self.stored: dict[int, Callable[[], Reg]] = {}  # nodes whose value lies in scratch memory: id -> load

    # -- scopes and regions -----------------------------------------------------------------------------------------
    def _known(self, key: Any) -> Any:
        for scope in reversed(self.scopes):
            if key in scope:
                return scope[key]
        return None

    @contextmanager
    def block(self, block: ir.Block) -> Any:
        """Emit into `block` with a scope of its own."""
        outside = self.k.ip
        self.k.ip = ir.InsertionPoint(block)
        self.scopes.append({})
        try:
            yield
        finally:
            self.scopes.pop()
            self.k.ip = outside

    def constant_index(self, value: int) -> ir.Value:
        if is_symbolic(value) and self.sizes is not None:
            return self.sizes.value(value)
        found = self._known(("c", value))
        if found is None:
            found = self.scopes[-1]["c", value] = self.k.index(value)
        return found

    # -- index arithmetic -------------------------------------------------------------------------------------------
    def index(self, expression: Index) -> ir.Value:
        found = self._known(("i", expression.key))
        if found is not None:
            return found
        total = None
        for atom, c in expression.terms.values():
            value = self._atom(atom)
            if c != 1:
                value = self.k.op("arith.muli", [value, self.constant_index(c)], INDEX)
            total = value if total is None else self.k.op("arith.addi", [total, value], INDEX)
        if total is None:
            return self.constant_index(expression.constant)
        if is_symbolic(expression.constant) or expression.constant:
            total = self.k.op("arith.addi", [total, self.constant_index(expression.constant)], INDEX)
        self.scopes[-1]["i", expression.key] = total
        return total

    def _atom(self, atom: Any) -> ir.Value:
        if isinstance(atom, Var):
            return self.variables[atom]
        if isinstance(atom, (Quotient, Remainder)):
            # Neither part is ever negative: see `index._lift`.
            name = "arith.remsi" if isinstance(atom, Remainder) else "arith.divsi"
            return self.k.op(name, [self.index(atom.inner), self.constant_index(atom.n)], INDEX)
        return self._dynamic(atom)

    def _dynamic(self, atom: Dynamic) -> ir.Value:
        """Negative indices count from the end; the result is clamped, so that no access leaves the buffer."""
        k = self.k
        i = k.cast(self.value(atom.node), int64)
        if atom.node.dtype.kind == "i":
            i = k.select(i < 0, i + self._word(atom.extent), i)
        i = k.minimum(k.maximum(i, k.const(0, int64)), self._word(max(atom.limit - 1, 0)))
        return k.op("arith.index_cast", [i.value], INDEX)

    def _word(self, n: int) -> Reg:
        """An integer as a register."""
        if not is_symbolic(n):
            return self.k.const(n, int64)
        return Reg(self.k.op("arith.index_cast", [self.constant_index(n)], _TYPES[int64]), int64, self.k)

    def condition(self, condition: Condition) -> Reg:
        k, total = self.k, None
        for index, low, high in condition.parts:
            value = self.index(index)
            least, most = index.bounds
            tests = []
            if low > least:
                tests.append(self._compare(5, value, low))
            if high <= most:
                tests.append(self._compare(2, value, high))
            for test in tests:
                total = test if total is None else total & test
        return total if total is not None else k.const(True, bool_)

    def _compare(self, predicate: int, value: ir.Value, bound: int) -> Reg:
        code = ir.IntegerAttr.get(_TYPES[int64], predicate)
        return Reg(
            self.k.op("arith.cmpi", [value, self.constant_index(bound)], _TYPES[bool_], predicate=code), bool_, self.k
        )

    # -- values -----------------------------------------------------------------------------------------------------
    def value(self, node: Scalar) -> Reg:
        found = self._known(id(node))
        if found is None:
            stored = self.stored.get(id(node))
            found = stored() if stored is not None else self._compute(node)
            self.scopes[-1][id(node)] = found
        return found

    def _compute(self, node: Scalar) -> Reg:
        k = self.k
        if node.kind == "load":
            buffer, position, _ = node.data
            return k.load(self.buffers[buffer], self.index(position), node.dtype)
        if node.kind == "constant":
            return k.const(node.data[0], node.dtype)
        if node.kind == "apply":
            record, attrs = node.data
            return record.body(k, *[self.value(a) for a in node.args], **attrs)
        if node.kind == "ramp":
            return self._ramp(node)
        if node.kind == "guard":
            return self._guard(node)
        return self._nested_reduce(node)

    def _ramp(self, node: Scalar) -> Reg:
        index, start, step = node.data
        k, wide = self.k, int64
        i = Reg(k.op("arith.index_cast", [self.index(index)], _TYPES[int64]), int64, k)
        if node.dtype.is_inexact and not (start == int(start) and step == int(step)):
            wide, i = float64, k.cast(i, float64)
        else:
            start, step = int(start), int(step)
        if step != 1:
            i = i * k.const(step, wide)
        if start:
            i = i + k.const(start, wide)
        return k.cast(i, node.dtype)

    def _guard(self, node: Scalar) -> Reg:
        (condition,) = node.data
        test = self.condition(condition)
        if all(self._safe(a) for a in node.args):
            return self.k.select(test, self.value(node.args[0]), self.value(node.args[1]))
        return self.if_else(test, node.dtype, lambda: self.value(node.args[0]), lambda: self.value(node.args[1]))

    def _safe(self, node: Scalar) -> bool:
        """Cheap, and computable whatever the guard says."""
        return node.kind == "constant" or self._known(id(node)) is not None

    def if_else(self, test: Reg, dtype: Dtype, then: Callable[[], Reg], otherwise: Callable[[], Reg]) -> Reg:
        k = self.k
        parts = 2 if dtype is complex64 else 1
        types = [_TYPES[dtype if dtype is not complex64 else float32]] * parts
        operation = ir.Operation.create("scf.if", results=types, operands=[test.value], regions=2, loc=k.loc, ip=k.ip)
        for region, branch in zip(operation.regions, (then, otherwise), strict=True):
            with self.block(region.blocks.append()):
                k.op("scf.yield", raw_values(branch()))
        return from_raw(list(operation.results), dtype, k)

    # -- loops ------------------------------------------------------------------------------------------------------
    def hoist(self, nodes: Sequence[Scalar], variables: Sequence[Var]) -> None:
        """Compute now what `nodes` need and what does not depend on `variables`; nothing under a guard, which may not
        be safe.
        """
        bound, seen = frozenset(variables), set()

        def visit(node: Scalar) -> None:
            if id(node) in seen or id(node) in self.stored:
                return
            seen.add(id(node))
            if not node.free & bound:
                if node.kind != "constant":
                    self.value(node)
            elif node.kind in ("apply", "reduce"):
                for a in node.args:
                    visit(a)

        for node in nodes:
            visit(node)

    def parallel(self, var: Var, extent: ir.Value, body: Callable[[], None]) -> ir.Operation:
        """`scf.parallel` without results."""

        def iteration() -> list[Reg]:
            body()
            return []

        return self._parallel(var, extent, [], iteration, [])

    def reduce(self, var: Var, nodes: Sequence[Scalar], extent: ir.Value, prepare: Callable[[], None]) -> list[Reg]:
        """`scf.parallel` over `var` that reduces the bodies of `nodes` (reduce nodes), each by its record's combine."""

        def body() -> list[Reg]:
            prepare()
            return [self.reduced(n) for n in nodes]

        records = [n.data[0] for n in nodes]
        starts = [self.neutral(r, n.dtype) for r, n in zip(records, nodes, strict=True)]
        pairs = list(zip(records, [n.dtype for n in nodes], strict=True))
        loop = self._parallel(var, extent, starts, body, pairs)
        return [Reg(v, n.dtype, self.k) for v, n in zip(loop.results, nodes, strict=True)]

    def _parallel(self, var: Var, extent: ir.Value, starts: list[Reg], body: Callable, combines: list) -> ir.Operation:
        k = self.k
        zero, one = self.constant_index(0), self.constant_index(1)
        operation = ir.Operation.create(
            "scf.parallel",
            results=[s.value.type for s in starts],
            operands=[zero, extent, one, *[s.value for s in starts]],
            attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 1, len(starts)])},
            regions=1,
            loc=k.loc,
            ip=k.ip,
        )
        block = operation.regions[0].blocks.append(INDEX, arg_locs=[k.loc])
        with self.block(block):
            self.variables[var] = block.arguments[0]
            values = body()
            reduction = ir.Operation.create(
                "scf.reduce", operands=[v.value for v in values], regions=len(values), loc=k.loc, ip=k.ip
            )
            for region, value, (record, dtype) in zip(reduction.regions, values, combines, strict=True):
                inner = region.blocks.append(value.value.type, value.value.type, arg_locs=[k.loc, k.loc])
                with self.block(inner):
                    a, b = (Reg(v, dtype, k) for v in inner.arguments)
                    k.op("scf.reduce.return", [self.combine(record, a, b).value])
        return operation

    def repeat(self, var: Var, extent: ir.Value, body: Callable[[], None]) -> None:
        """`scf.for` that carries nothing."""

        def iteration(_: list[Reg]) -> list[Reg]:
            body()
            return []

        self.serial(var, extent, [], iteration)

    def serial(
        self, var: Var, extent: ir.Value, starts: list[Reg], body: Callable[[list[Reg]], list[Reg]]
    ) -> list[Reg]:
        """`scf.for` that carries registers."""
        k = self.k
        raw = [v for s in starts for v in raw_values(s)]
        operation = ir.Operation.create(
            "scf.for",
            results=[v.type for v in raw],
            operands=[self.constant_index(0), extent, self.constant_index(1), *raw],
            regions=1,
            loc=k.loc,
            ip=k.ip,
        )
        types = [INDEX, *[v.type for v in raw]]
        block = operation.regions[0].blocks.append(*types, arg_locs=[k.loc] * len(types))
        dtypes = [s.dtype for s in starts]
        with self.block(block):
            self.variables[var] = block.arguments[0]
            carried = _unflatten(list(block.arguments)[1:], dtypes, k)
            k.op("scf.yield", [v for r in body(carried) for v in raw_values(r)])
        return _unflatten(list(operation.results), dtypes, k)

    def reduced(self, node: Scalar) -> Reg:
        """What a reduction combines."""
        return self.addend(node.data[0], node.args[0])

    def addend(self, record: Primitive, value: Scalar) -> Reg:
        """A value that a reduction by `record` combines. A product that is added up becomes part of a multiply-add."""
        if record.name == "sum" and value.kind == "apply" and value.data[0].name in ("multiply", "square"):
            for a in value.args:
                self.value(a)
            self.k.summand = True
            try:
                return self.value(value)
            finally:
                self.k.summand = False
        return self.value(value)

    def combine(self, record: Primitive, a: Reg, b: Reg) -> Reg:
        """One step of a reduction; sums and products may be reassociated, which vectorising them needs."""
        self.k.reassociate = True
        result = record.combine(self.k, a, b)
        self.k.reassociate = False
        return result

    def neutral(self, record: Primitive, dtype: Dtype) -> Reg:
        return self.k.const(record.init(dtype.numpy), dtype)

    def _nested_reduce(self, node: Scalar) -> Reg:
        """A reduction inside other loops: serial."""
        record, variables = node.data

        def loop(n: int, start: Reg) -> Reg:
            if n == len(variables):
                return self.combine(record, start, self.reduced(node))
            extent = self.constant_index(variables[n].extent)
            return self.serial(variables[n], extent, [start], lambda carried: [loop(n + 1, carried[0])])[0]

        return loop(0, self.neutral(record, node.dtype))

    # -- memory -----------------------------------------------------------------------------------------------------
    def scratch(self, size: int, dtype: Dtype, as_stored: bool = False) -> tuple[ir.Value, Dtype]:
        """A small private buffer for registers of `dtype` (2-byte floats stay float32, unless it is `as_stored`).

        One of symbolic size is as large as it may ever be.
        """
        kept = float32 if dtype.is_float and dtype.size == 2 and not as_stored else dtype
        if is_symbolic(size):
            if size * kept.size > SCRATCH_BYTES:
                raise CompileError(f"[lower] {size} elements of scratch memory are too many")
            size = SCRATCH_BYTES // kept.size
        count = size * (2 if dtype is complex64 else 1)
        kind = ir.MemRefType.get([count], _STORAGE[kept])
        operation = ir.Operation.create(
            "memref.alloca", results=[kind], attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([0, 0])},
            loc=self.k.loc, ip=ir.InsertionPoint.at_block_begin(self.entry),
        )  # fmt: skip
        operation.attributes["alignment"] = ir.IntegerAttr.get(_TYPES[int64], 64)
        return operation.result, kept

    def keep(self, value: Reg, buffer: ir.Value, kept: Dtype, at: ir.Value) -> None:
        self.k.store(Reg(value.value, kept, self.k), buffer, at)

    def recall(self, buffer: ir.Value, kept: Dtype, dtype: Dtype, at: ir.Value) -> Reg:
        return Reg(self.k.load(buffer, at, kept).value, dtype, self.k)


def raw_values(reg: Reg) -> list[ir.Value]:
    """The SSA values of a register: two for complex64."""
    return [p.value for p in reg.value] if reg.dtype is complex64 else [reg.value]


def from_raw(values: list[ir.Value], dtype: Dtype, k: ScalarBuilder) -> Reg:
    if dtype is complex64:
        return Reg(tuple(Reg(v, float32, k) for v in values), complex64, k)
    return Reg(values[0], dtype, k)


def _unflatten(values: list[ir.Value], dtypes: Sequence[Dtype], k: ScalarBuilder) -> list[Reg]:
    out, at = [], 0
    for dtype in dtypes:
        n = 2 if dtype is complex64 else 1
        out.append(from_raw(values[at : at + n], dtype, k))
        at += n
    return out
