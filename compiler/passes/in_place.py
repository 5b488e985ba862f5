"""Static updates of a small part of an array that lies in memory become scatters, which copy the rest or leave it.

    %1 = slice_update %cache, %k {start = [7, 0], ...}    ->    %1 = scatter %cache, 7, %k {axes = [0], mode = "set"}

A `slice_update` computes every element anew, where its reader does. A scatter is a kernel of its own, whose copy of the
array goes where nothing else needs the array (lower/plan.py).
"""

from __future__ import annotations

from typing import Any

from mlxir.compiler.passes.split_reductions import replace
from mlxir.dialects.mlir import Function, Module, Op, Tensor
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import int64

PART = 4  # of an array, at most one in so many elements is changed
RUN = 16  # elements of an update that lie side by side; with fewer, setting one takes as long as copying so many


def update_in_place(module: Module) -> None:
    """Rewrite what is a result of the program, and what such a result is an update of."""
    main = module.find("main")
    ops, results = main.read()
    stored = {id(t) for t in results}
    wanted = []
    for op in reversed(ops):
        if id(op.results[0]) in stored and op.record.updates:
            stored.add(id(op.operands[0]))
            wanted.append(op)
    there = {id(t) for t in main.arguments}
    for op in reversed(wanted):
        if id(op.operands[0]) in there:
            there.add(id(op.results[0]))
            if op.record.name == "slice_update" and _is_small(op):
                _as_scatter(main, op)


def _is_small(op: Op) -> bool:
    (x, update), attrs = op.operands, op.attrs
    if any(is_symbolic(n) for n in (*x.shape, *update.shape)) or set(attrs["strides"]) != {1}:
        return False
    run = 1
    for n, m in zip(reversed(update.shape), reversed(x.shape), strict=True):
        run *= n
        if n != m:
            break
    return PART * update.aval.size * (1 if run >= RUN else RUN) <= x.aval.size


def _number(m: Any, i: Any, n: int) -> Tensor:
    """A position on an axis of length n. It may be symbolic, as constants cannot."""
    if not is_symbolic(i):
        return m.full(value=i, shape=(), dtype=int64)
    positions = m.arange(start=0, step=1, length=n, dtype=int64)
    return m.reshaped(m.slice(positions, start=(i,), stop=(i + 1,), strides=(1,)), ())


def _as_scatter(main: Function, op: Op) -> None:
    (x, update), start = op.operands, op.attrs["start"]
    m = main.builder_before(op.operation)
    axes = tuple(a for a, n in enumerate(x.shape) if update.shape[a] != n)
    indices = [_number(m, start[a], x.shape[a]) for a in axes]
    replace(op, m.scatter(x, *indices, update, axes=axes, mode="set"))
