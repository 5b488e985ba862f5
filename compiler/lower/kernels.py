"""Primitives with loops of their own: scans, argmax/argmin, scatter. Each lowers one kernel function to steps.

Elementwise producers are computed where the loop reads its operand, so `cumsum(exp(x))` is one kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from mlxir.compiler.lower.builder import _TYPES, INDEX, Reg
from mlxir.compiler.lower.emit import Emitter
from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.loops import Lowered, Step, loop_function, over
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.scalars import Pull
from mlxir.compiler.lower.sort import lower_sort
from mlxir.dialects.mlir import Function, Tensor, context, ir
from mlxir.runtime.dtypes import bool_, int64, uint32
from mlxir.runtime.errors import CompileError

LANES = 256  # columns of a scatter that one iteration owns


class _Kernel:
    """What the lowerings below share: the operation, its operands as scalars at an index, and the function that is
    filled.
    """

    def __init__(self, function: Function, body: ir.Block, suffix: str = ""):
        ops, results = function.read()
        self.op = next(op for op in ops if op.record.lowering == "kernel")
        if [id(t) for t in results] != [id(t) for t in self.op.results]:
            raise CompileError(f"[lower] {self.op.record.name} cannot be fused with what reads it")
        self.avals = [t.aval for t in function.arguments] + [t.aval for t in results]
        self.name = function.name + suffix
        _, block = loop_function(body, self.name, self.avals)
        self.k = ScalarBuilder(ir.InsertionPoint(block))
        self.e = Emitter(self.k, list(block.arguments))
        self.pull = Pull(ops, {id(t): i for i, t in enumerate(function.arguments)})
        self.out = block.arguments[len(function.arguments)]

    def value(self, tensor: Tensor, idx: Sequence[Any]) -> Reg:
        return self.e.value(self.pull.at(tensor, tuple(Index.of(i) for i in idx)))

    def finish(self, extent: int, work: float) -> Step:
        self.k.op("func.return", [])
        numbers = tuple(range(len(self.avals)))
        return Step(self.name, extent, work, numbers, numbers[-1:])


def _rows(shape: Sequence[int], axis: int) -> list[Var]:
    return [Var(f"i{a}", n) for a, n in enumerate(shape) if a != axis]


def lower_scan(function: Function, body: ir.Block) -> Lowered:
    """Parallel over rows; one serial loop that carries the running value."""
    with context, ir.Location.unknown():
        kernel = _Kernel(function, body)
        e, record, attrs = kernel.e, kernel.op.record, kernel.op.attrs
        (x,), axis = kernel.op.operands, attrs["axis"]
        rows, n = _rows(x.shape, axis), x.shape[axis]

        def row() -> None:
            step = Var("t", n)

            def advance(carried: list[Reg]) -> list[Reg]:
                at: Any = (Index.of(n - 1) - step_index) if attrs["reverse"] else step_index
                idx = [*rows[:axis], at, *rows[axis:]]
                new = e.combine(record, carried[0], kernel.value(x, idx))
                position = e.index(linear(tuple(Index.of(i) for i in idx), x.shape))
                e.k.store(new if attrs["inclusive"] else carried[0], kernel.out, position)
                return [new]

            step_index = Index.of(step)
            e.serial(step, e.constant_index(n), [e.neutral(record, x.dtype)], advance)

        extent = over(e, rows, row)
        return Lowered([kernel.finish(extent, 4.0 * n)], [])


def lower_argreduction(function: Function, body: ir.Block) -> Lowered:
    """Parallel over rows; one serial loop that carries the best value and where it was."""
    with context, ir.Location.unknown():
        kernel = _Kernel(function, body)
        e, k, record = kernel.e, kernel.k, kernel.op.record
        (x,), axis = kernel.op.operands, kernel.op.attrs["axis"]
        rows, n = _rows(x.shape, axis), x.shape[axis]

        def row() -> None:
            step = Var("t", n)
            first = kernel.value(x, [*rows[:axis], 0, *rows[axis:]])

            def advance(carried: list[Reg]) -> list[Reg]:
                best, where = carried
                value = kernel.value(x, [*rows[:axis], step, *rows[axis:]])
                better = record.better(k, value, best)
                here = k.cast(Reg(k.op("arith.index_cast", [e.variables[step]], _TYPES[int64]), int64, k), uint32)
                return [k.select(better, value, best), k.select(better, here, where)]

            _, where = e.serial(step, e.constant_index(n), [first, k.const(0, uint32)], advance)
            position = linear(tuple(Index.of(i) for i in rows), kernel.op.results[0].shape)
            k.store(where, kernel.out, e.index(position))

        extent = over(e, rows, row)
        return Lowered([kernel.finish(extent, 4.0 * n)], [])


_COMBINE: dict[str, Callable[[Any, Reg, Reg], Reg]] = {
    "set": lambda k, old, new: new,
    "add": lambda k, old, new: old + new,
    "multiply": lambda k, old, new: old * new,
    "maximum": lambda k, old, new: k.maximum(old, new),
    "minimum": lambda k, old, new: k.minimum(old, new),
}


def lower_scatter(function: Function, body: ir.Block) -> Lowered:
    """A parallel copy, then the updates in order: each iteration owns some columns of the slices, so none is contended.
    """
    with context, ir.Location.unknown():
        copy = _Kernel(function, body, "_copy")
        x = copy.op.operands[0]
        dims = [Var(f"i{a}", n) for a, n in enumerate(x.shape)]

        def element() -> None:
            position = copy.e.index(linear(tuple(Index.of(d) for d in dims), x.shape))
            copy.k.store(copy.value(x, dims), copy.out, position)

        first = copy.finish(over(copy.e, dims, element), 2.0)
        update = _Kernel(function, body)
        extent, work = _scatter_updates(update)
        return Lowered([first, update.finish(extent, work)], [])


def _scatter_updates(kernel: _Kernel) -> tuple[int, float]:
    e, k, op = kernel.e, kernel.k, kernel.op
    x, *indices, updates = op.operands
    batch = indices[0].shape
    sizes = updates.shape[len(batch) :]
    columns = prod(sizes)
    # Slices that extend along an indexed axis may overlap at different columns: then one iteration owns them all.
    apart = all(sizes[a] == 1 for a in op.attrs["axes"])
    lanes = (min(LANES, columns) if apart else columns) or 1
    blocks, block, lane = -(-columns // lanes), Var("block", -(-columns // lanes)), Var("lane", lanes)
    combine = _COMBINE[op.attrs["mode"]]
    picks = [Var(f"b{i}", n) for i, n in enumerate(batch)]

    def owned() -> None:
        def apply_update() -> None:
            valid, base = _slice_start(kernel, x, indices, op.attrs["axes"], sizes, picks)
            operation = ir.Operation.create("scf.if", results=[], operands=[valid.value], regions=2, loc=k.loc, ip=k.ip)
            with e.block(operation.regions[0].blocks.append()):
                e.parallel(lane, e.constant_index(lanes), lambda: _lane(base))
                k.op("scf.yield", [])

        _nested(e, picks, apply_update)

    def _lane(base: ir.Value) -> None:
        column = Index.of(block) * lanes + Index.of(lane)

        def write() -> None:
            inner = delinearize(column, sizes)
            offset = e.index(linear(inner, x.shape))
            at = k.op("arith.addi", [base, offset], INDEX)
            new = kernel.value(updates, [*picks, *inner])
            k.store(combine(k, k.load(kernel.out, at, x.dtype), new), kernel.out, at)

        if columns % lanes == 0:
            write()
            return
        inside = e.condition(kernel.pull.graph.in_range(column, 0, columns))
        operation = ir.Operation.create("scf.if", results=[], operands=[inside.value], regions=2, loc=k.loc, ip=k.ip)
        with e.block(operation.regions[0].blocks.append()):
            write()
            k.op("scf.yield", [])

    over(e, [block], owned)
    return blocks, 4.0 * lanes * prod(batch)


def _nested(e: Emitter, variables: Sequence[Var], body: Callable[[], None]) -> None:
    """Serial loops over all variables."""
    if not variables:
        body()
        return
    head, *rest = variables
    e.repeat(head, e.constant_index(head.extent), lambda: _nested(e, rest, body))


def _slice_start(
    kernel: _Kernel,
    x: Tensor,
    indices: Sequence[Tensor],
    axes: Sequence[int],
    sizes: Sequence[int],
    picks: Sequence[Var],
) -> tuple[Reg, ir.Value]:
    """(whether the slice lies inside, position of its first element) for the current index values; negatives wrap."""
    k, valid, total = kernel.k, None, None
    for axis, array in zip(axes, indices, strict=True):
        i = kernel.value(array, picks)
        signed = i.dtype.kind == "i"
        i = k.cast(i, int64)
        if signed:
            i = k.select(i < 0, i + x.shape[axis], i)
        inside = (i >= 0) & (i <= x.shape[axis] - sizes[axis])
        valid = inside if valid is None else valid & inside
        stride = prod(x.shape[axis + 1 :])
        total = i * stride if total is None else total + i * stride
    if valid is None or total is None:
        return k.const(True, bool_), kernel.e.constant_index(0)
    return valid, k.op("arith.index_cast", [total.value], INDEX)


def lowering_of(function: Function, vectors: bool) -> Callable[[Function, ir.Block], Lowered]:
    """The lowering of the primitive with loops of its own in a kernel, by its kind.

    With `vectors` the loops are those for a CPU, which has vector registers and few threads.
    """
    record = next(op.record for op in function.read()[0] if op.record.lowering == "kernel")
    if record.kind not in _BY_KIND:
        raise CompileError(f"[lower] no loops are known for {record.name}")
    if record.kind == "sort":
        return functools.partial(lower_sort, vectors=vectors)
    return _BY_KIND[record.kind]


_BY_KIND = {"scan": lower_scan, "argreduction": lower_argreduction, "indexing": lower_scatter, "sort": None}
