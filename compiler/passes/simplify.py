"""Algebraic simplification, constant folding and removal of dead operations, after the transforms.

    transpose(transpose(x)) -> x          matmul(transpose(a), b) -> matmul(a, b) {ta}      stop_gradient(x) -> x
    softmax(x) -> its decomposition       add(full 1, full 2) -> full 3                 power(x, full 2) -> square(x)

Each rewrite below looks at one operation and at what produced its operands; the walk goes forward once, so chains
collapse. Only rewrites that
give the same bits are here (no x + 0 for floats: it would lose the sign of zero).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxir.compiler.reference import compute
from mlxir.dialects.mlir import Function, Module, MxBuilder, Op, Tensor, ir, run_passes

FOLDED_SIZE = 1  # constants of more elements are not folded: a kernel computes them in registers anyway


class _View:
    """One operation with its operands already simplified."""

    def __init__(self, op: Op, operands: list[Tensor], made: dict[int, Op | _View]):
        self.record, self.attrs, self.operands, self.results, self._made = (
            op.record,
            op.attrs,
            operands,
            op.results,
            made,
        )

    @property
    def name(self) -> str:
        return self.record.name

    def producer(self, i: int) -> Any:
        """What made operand i, or None for a parameter."""
        return self._made.get(id(self.operands[i]))

    def constant(self, i: int) -> Any:
        """The value of operand i if every element is one known constant."""
        made = self.producer(i)
        while made is not None and made.record.name in ("broadcast_to", "reshape"):
            made = self._made.get(id(made.operands[0]))
        return made.attrs["value"] if made is not None and made.record.name == "full" else None


def _identity(op: _View, m: MxBuilder) -> Tensor | None:
    """Operations that change nothing."""
    x: Any = op.operands[0] if op.operands else None
    out = op.results[0]
    if op.name == "stop_gradient":
        return x
    if op.name in ("reshape", "broadcast_to") and x.shape == out.shape:
        return x
    if op.name == "astype" and x.dtype is out.dtype:
        return x
    if op.name == "transpose" and op.attrs["axes"] == tuple(range(len(x.shape))):
        return x
    if op.record.kind == "reduction" and not op.attrs["axes"]:
        return x
    if op.name == "slice" and x.shape == out.shape and min(op.attrs["strides"], default=1) > 0:
        return x
    return None


def _composed(op: _View, m: MxBuilder) -> Tensor | None:
    """Two moves in a row are one."""
    inner = op.producer(0) if op.operands else None
    if inner is None or inner.record.name != op.name:
        return None
    if op.name == "reshape":
        return m.reshape(inner.operands[0], shape=op.attrs["shape"])
    if op.name == "transpose":
        return m.permuted(inner.operands[0], [inner.attrs["axes"][a] for a in op.attrs["axes"]])
    if op.name == "negative":
        return inner.operands[0]
    return None


def _one_sided(op: _View, m: MxBuilder) -> Tensor | None:
    """x * 1, x / 1, x - 0, x ** 1, x ** 2, where the result is as large as x."""
    if op.record.kind != "elementwise" or len(op.operands) != 2:
        return None
    x, out = op.operands[0], op.results[0]
    if op.name == "multiply" and op.constant(0) == 1 and op.operands[1].shape == out.shape:
        return op.operands[1]
    value = op.constant(1)
    if value is None or x.shape != out.shape or isinstance(value, complex):
        return None
    neutral = {"multiply": 1, "divide": 1, "subtract": 0, "power": 1}.get(op.name)
    if neutral is not None and value == neutral and x.dtype.kind != "b":
        return x
    if op.name == "power" and value == 2:
        return m.square(x)
    return None


def _decided(op: _View, m: MxBuilder) -> Tensor | None:
    """A selection by a constant."""
    which = op.constant(0) if op.name == "select" else None
    return None if which is None else m.broadcast(op.operands[1 if which else 2], op.results[0].shape)


def _folded(op: _View, m: MxBuilder) -> Tensor | None:
    """Elementwise on constants."""
    if op.record.kind != "elementwise" or not op.operands:
        return None
    values = [op.constant(i) for i in range(len(op.operands))]
    if any(v is None for v in values):
        return None
    arrays = [np.full((), v, t.dtype.numpy) for v, t in zip(values, op.operands, strict=True)]
    (result,) = compute(op.record, arrays, op.attrs)
    out = op.results[0]
    return m.full(value=result.item(), shape=out.shape, dtype=out.dtype)


def _transposed_operand(op: _View, m: MxBuilder) -> Tensor | None:
    """A matmul reads a transposed operand in place."""
    if op.name != "matmul":
        return None
    operands, attrs, changed = list(op.operands), dict(op.attrs), False
    for i, flag in enumerate(("ta", "tb")):
        inner = op.producer(i)
        if inner is not None and inner.record.name == "transpose":
            rank = len(inner.attrs["axes"])
            if inner.attrs["axes"] == (*range(rank - 2), rank - 1, rank - 2):
                operands[i], attrs[flag], changed = inner.operands[0], not attrs[flag], True
    return m.emit(op.record, operands, attrs)[0] if changed else None


def _decomposed(op: _View, m: MxBuilder) -> Tensor | None:
    """A composite becomes its parts, but where it has a kernel."""
    if op.record.kind != "composite" or op.record.lowering is not None:
        return None
    return op.record.decompose(m, *op.operands, **op.attrs)[0]


REWRITES: tuple[Callable[[_View, MxBuilder], Tensor | None], ...] = (
    _identity, _decomposed, _composed, _one_sided, _decided, _folded, _transposed_operand,
)  # fmt: skip


class _Tracked(MxBuilder):
    """A builder that simplifies what a rewrite emits, too."""

    def __init__(self, main: Function, made: dict[int, Any]):
        super().__init__(main.builder_at_end().insertion)
        self.made = made

    def before(self, operation: Any) -> None:
        self.insertion, self.at = ir.InsertionPoint(operation), operation.location

    def raw(self, record: Any, operands: Any, attrs: Any, avals: Any) -> list[Tensor]:
        results = super().raw(record, operands, attrs, avals)
        view = _View(Op(record, attrs, list(operands), results, None), list(operands), self.made)
        for rewrite in REWRITES:
            better = rewrite(view, self)
            if better is not None:
                return [better]
        for t in results:
            self.made[id(t)] = view
        return results


def simplify(module: Module) -> None:
    """Rewrite `main`, then remove common subexpressions and what nobody uses."""
    main = module.find("main")
    ops, _ = main.read()
    current: dict[int, Tensor] = {}
    made: dict[int, Any] = {}
    builder = _Tracked(main, made)
    for t in (*main.arguments, *[t for op in ops for t in op.results]):
        t.m = builder
    for op in ops:
        operands = [current.get(id(t), t) for t in op.operands]
        view = _View(op, operands, made)
        builder.before(op.operation)
        for rewrite in REWRITES:
            better = rewrite(view, builder)
            if better is not None:
                current[id(op.results[0])] = better
                op.operation.results[0].replace_all_uses_with(better.value)
                break
        else:
            for t in op.results:
                made[id(t)] = view
    remove_dead(main)
    run_passes(module.module, "cse")


def remove_dead(function: Function) -> None:
    """Erase operations without uses, last first."""
    for view in reversed(list(function.block.operations)):
        operation = view.operation
        if operation.name.startswith("mx.") and all(not any(True for _ in r.uses) for r in operation.results):
            operation.erase()
