"""The value of one element as a graph of scalars: what a kernel computes, before any loop is chosen.

`Pull` asks a kernel's results for their value at a symbolic index and follows the operations backwards (structural
operations only change
the index). Equal subexpressions are one node, so a value used at the same index twice is computed once, and a value
used by two stages of a
kernel is recognised.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxir.compiler.lower.index import Condition, Dynamic, Index, Remainder, Var, linear
from mlxir.compiler.passes.split_reductions import is_short
from mlxir.compiler.program import attr_key
from mlxir.dialects.mlir import Op, Tensor
from mlxir.dialects.mx import Aval, Primitive
from mlxir.dialects.mx.shape import broadcast_index
from mlxir.dialects.symbolic import plain
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import CompileError


class Scalar:
    """A node: `kind` with its parts. `free` are the loop variables it depends on, `cost` an estimate in simple
    operations.
    """

    __slots__ = ("args", "cost", "data", "dtype", "free", "key", "kind")

    def __init__(
        self, kind: str, dtype: Dtype, args: tuple[Scalar, ...], data: tuple, free: frozenset[Var], cost: int, key: Any
    ):
        self.kind, self.dtype, self.args, self.data, self.free, self.cost, self.key = (
            kind,
            dtype,
            args,
            data,
            free,
            cost,
            key,
        )

    def __repr__(self) -> str:
        return f"{self.kind}{self.data}({', '.join(map(repr, self.args))})"


class _Rounded:
    """A pseudo-primitive: what a value is once it has been in memory."""

    name, costly = "rounded", False

    @staticmethod
    def body(k: Any, x: Any) -> Any:
        return k.rounded(x)


class _Combined:
    """A pseudo-primitive: one step of a reduction."""

    costly = False

    def __init__(self, reduction: Primitive):
        self.name, self.body = f"combined {reduction.name}", reduction.combine


class Operand:
    """What a record's `element` sees of an operand: its aval, and its value at an index."""

    __slots__ = ("_at", "aval")

    def __init__(self, aval: Aval, at: Callable[[tuple], Scalar]):
        self.aval, self._at = aval, at

    def __call__(self, idx: tuple) -> Scalar:
        return self._at(tuple(Index.of(i) for i in idx))


def _dynamic_nodes(index: Index) -> list[Scalar]:
    """The scalars that an index depends on."""
    found: list[Scalar] = []
    for atom, _ in index.terms.values():
        if isinstance(atom, Dynamic):
            found.append(atom.node)
        elif not isinstance(atom, Var):
            found.extend(_dynamic_nodes(atom.inner))
    return found


class ScalarGraph:
    """Makes scalar nodes, equal ones once. This is the `e` that a record's `element` receives."""

    def __init__(self) -> None:
        self._nodes: dict[Any, Scalar] = {}

    def _node(
        self,
        kind: str,
        dtype: Dtype,
        args: tuple = (),
        data: tuple = (),
        key: Any = None,
        cost: int = 0,
        free: Any = None,
    ) -> Scalar:
        full = (kind, dtype.name, tuple([id(a) for a in args]), key if key is not None else data)
        node = self._nodes.get(full)
        if node is None:
            free = frozenset() if free is None else free
            free = free.union(*[a.free for a in args])
            node = self._nodes[full] = Scalar(kind, dtype, args, data, free, cost + sum([a.cost for a in args]), full)
        return node

    def constant(self, value: Any, dtype: Dtype) -> Scalar:
        if dtype.is_float and dtype.size == 2:  # as an array of that dtype holds it
            with np.errstate(over="ignore"):
                value = float(np.asarray(value, dtype.numpy))
        return self._node("constant", dtype, data=(value,), key=attr_key(value))

    def load(self, buffer: int, position: Index, dtype: Dtype) -> Scalar:
        dynamic = tuple(_dynamic_nodes(position))
        cost = 1 + sum(n.cost for n in dynamic)
        return self._node("load", dtype, (), (buffer, position, dynamic), (buffer, position.key), cost, position.free())

    def apply(
        self, record: Primitive | type[_Rounded] | _Combined, args: Sequence[Scalar], attrs: dict, dtype: Dtype
    ) -> Scalar:
        key = (record.name, tuple([attr_key(a) for a in attrs.values()]))
        return self._node(
            "apply", dtype, tuple(args), (record, attrs), key, 12 if getattr(record, "costly", False) else 1
        )

    def ramp(self, index: Index, start: Any, step: Any, dtype: Dtype) -> Scalar:
        return self._node(
            "ramp", dtype, (), (index, start, step), (index.key, repr(start), repr(step)), 1, index.free()
        )

    def index_value(self, index: Any, dtype: Dtype) -> Scalar:
        return self.ramp(Index.of(index), 0, 1, dtype)

    def reduce(self, record: Primitive, variables: tuple[Var, ...], body: Scalar) -> Scalar:
        node = self._node(
            "reduce", body.dtype, (body,), (record, variables), (record.name, tuple(v.name for v in variables))
        )
        node.free = body.free - frozenset(variables)
        for v in variables:
            node.cost *= plain(v.extent)
        return node

    # -- conditions and data-dependent indices --------------------------------------------------------------------
    @staticmethod
    def true() -> Condition:
        return Condition()

    @staticmethod
    def in_range(index: Any, low: int, high: int) -> Condition:
        return Condition.in_range(index, low, high)

    @staticmethod
    def equals(index: Any, value: int) -> Condition:
        return Condition.in_range(index, value, value + 1)

    def where(self, condition: Condition, then: Callable[[], Scalar], otherwise: Callable[[], Scalar]) -> Scalar:
        if condition.always:
            return then()
        if condition.never:
            return otherwise()
        a, b = then(), otherwise()
        return self._node("guard", a.dtype, (a, b), (condition,), condition.key, 2, condition.free())

    @staticmethod
    def dynamic_index(node: Scalar, extent: int, limit: int) -> Index:
        return Index.of(Dynamic(node, extent, limit))


class Pull:
    """Values of a kernel at symbolic indices. `buffers` numbers the values that lie in memory; `stored` are the
    kernel's results.

    What a kernel stores, it also reads rounded: other kernels read it from memory, and what both compute from it has to
    be equal (the
    gradient of max looks for the elements that equal the maximum).
    """

    def __init__(self, ops: Sequence[Op], buffers: dict[int, int], stored: Sequence[Tensor] = ()):
        self.graph, self.buffers = ScalarGraph(), buffers
        self._stored = {id(t) for t in stored if t.dtype.is_float and t.dtype.size == 2}
        self.producer: dict[int, tuple[Op, int]] = {id(t): (op, i) for op in ops for i, t in enumerate(op.results)}
        self._memo: dict[Any, Scalar] = {}
        self._vars: dict[tuple[int, int, int], Var] = {}

    def inner(self, position: int, extent: int, taken: frozenset[Var] = frozenset()) -> Var:
        """The canonical variable of the `position`-th reduced axis; the same for all reductions of equal extents."""
        for level in range(16):
            var = self._vars.setdefault((position, extent, level), Var(f"r{position}_{extent}_{level}", extent))
            if var not in taken:
                return var
        raise CompileError("[lower] reductions are nested more than 16 deep")

    def at(self, tensor: Tensor, idx: tuple[Index, ...]) -> Scalar:
        key = (id(tensor), tuple([i.key for i in idx]))
        found = self._memo.get(key)
        if found is None:
            found = self._memo[key] = self._compute(tensor, idx)
        return found

    def _compute(self, tensor: Tensor, idx: tuple[Index, ...]) -> Scalar:
        buffer = self.buffers.get(id(tensor))
        if buffer is not None:
            return self.graph.load(buffer, linear(idx, tensor.shape), tensor.dtype)
        op, _ = self.producer[id(tensor)]
        value = self.value_of(op, idx)
        return self.graph.apply(_Rounded, [value], {}, value.dtype) if id(tensor) in self._stored else value

    def value_of(self, op: Op, idx: tuple[Index, ...]) -> Scalar:
        """The result of `op` at `idx`, computed and not loaded."""
        record, attrs = op.record, op.attrs
        if record.lowering == "reduce":
            return self._reduce(op, idx)
        if record.lowering != "element":
            raise CompileError(f"[lower] {record.name} has loops of its own and cannot be fused")
        operands = [Operand(t.aval, functools.partial(self.at, t)) for t in op.operands]
        if record.kind == "elementwise":
            args = [x(broadcast_index(x.aval, idx)) for x in operands]
            return self.graph.apply(record, args, attrs, op.results[0].dtype)
        return record.element(self.graph, idx, operands, **attrs)

    def _reduce(self, op: Op, idx: tuple[Index, ...]) -> Scalar:
        (x,), axes = op.operands, op.attrs["axes"]
        if is_short(op):
            return self._written_out(op, idx)
        taken: frozenset[Var] = frozenset().union(*[i.free() for i in idx])
        variables = tuple(self.inner(n, x.shape[a], taken) for n, a in enumerate(sorted(axes)))
        rest, inner = iter(idx), iter(variables)
        full = tuple(Index.of(next(inner)) if a in axes else next(rest) for a in range(len(x.shape)))
        return self.graph.reduce(op.record, variables, self.at(x, full))

    def _written_out(self, op: Op, idx: tuple[Index, ...]) -> Scalar:
        """A reduction of a few elements, in their order."""
        (x,), axes = op.operands, sorted(op.attrs["axes"])
        step, total = _Combined(op.record), None
        for place in itertools.product(*[range(x.shape[a]) for a in axes]):
            rest, inner = iter(idx), iter(place)
            value = self.at(x, tuple(Index.of(next(inner)) if a in axes else next(rest) for a in range(len(x.shape))))
            total = value if total is None else self.graph.apply(step, (total, value), {}, value.dtype)
        assert total is not None
        return total


def substitute(
    graph: ScalarGraph,
    roots: Sequence[Scalar],
    mapping: dict[Var, Index],
    merged: dict[tuple[Var, ...], tuple[Var, ...]],
) -> list[Scalar]:
    """The same scalars over other loop variables; `merged` renames the variables of reductions."""
    memo: dict[int, Scalar] = {}

    def index(i: Index) -> Index:
        total = Index.of(i.constant)
        for atom, c in i.terms.values():
            if isinstance(atom, Var):
                new = mapping.get(atom, Index.of(atom))
            elif isinstance(atom, Dynamic):
                new = Index.of(Dynamic(visit(atom.node), atom.extent, atom.limit))
            else:
                inner = index(atom.inner)
                new = inner % atom.n if isinstance(atom, Remainder) else inner // atom.n
            total = total + new * c
        return total

    def visit(node: Scalar) -> Scalar:
        found = memo.get(id(node))
        if found is not None:
            return found
        if node.kind == "load":
            new = graph.load(node.data[0], index(node.data[1]), node.dtype)
        elif node.kind == "constant":
            new = node
        elif node.kind == "apply":
            new = graph.apply(node.data[0], [visit(a) for a in node.args], node.data[1], node.dtype)
        elif node.kind == "ramp":
            position, start, step = node.data
            new = graph.ramp(index(position), start, step, node.dtype)
        elif node.kind == "guard":
            parts = [Condition.in_range(index(i), low, high) for i, low, high in node.data[0].parts]
            condition = Condition(tuple(p for part in parts for p in part.parts), any(p.never for p in parts))
            new = graph.where(condition, lambda: visit(node.args[0]), lambda: visit(node.args[1]))
        else:
            record, variables = node.data
            new = graph.reduce(record, merged.get(variables, variables), visit(node.args[0]))
        memo[id(node)] = new
        return new

    return [visit(r) for r in roots]


def reachable(roots: Sequence[Scalar]) -> list[Scalar]:
    """All nodes under `roots`, operands first; the nodes of data-dependent indices included."""
    order: list[Scalar] = []
    seen: set[int] = set()

    def visit(node: Scalar) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        for a in children(node):
            visit(a)
        order.append(node)

    for root in roots:
        visit(root)
    return order


def children(node: Scalar) -> tuple[Scalar, ...]:
    """The nodes a node is computed from."""
    if node.kind == "load":
        return node.data[2]
    return node.args


def indices(nodes: Sequence[Scalar]) -> list[Index]:
    """Every index expression that occurs in `nodes`."""
    found = []
    for node in nodes:
        if node.kind == "load":
            found.append(node.data[1])
        elif node.kind == "ramp":
            found.append(node.data[0])
        elif node.kind == "guard":
            found.extend(i for i, _, _ in node.data[0].parts)
    return found
