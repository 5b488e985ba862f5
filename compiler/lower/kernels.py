"""Which lowering has the loops of a primitive with loops of its own; the shortest of them.

Elementwise producers are computed where the loop reads its operand, so `cumsum(exp(x))` is one kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mlxir.compiler.lower.argreduce import lower_argreduction
from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel, Rows
from mlxir.compiler.lower.scan import lower_scan
from mlxir.compiler.lower.scatter import lower_scatter
from mlxir.compiler.lower.sort import lower_sort
from mlxir.dialects.mlir import Function, context, ir
from mlxir.runtime.errors import CompileError


def lower_recurrence(function: Function, body: ir.Block, vectors: bool) -> Lowered:
    """Parallel over rows; one serial loop that carries the element before."""
    with context, ir.Location.unknown():
        kernel = OwnKernel(function, body)
        (a, b), attrs = kernel.op.operands, kernel.op.attrs
        rows = Rows(b.shape, attrs["axis"])
        step = Var("t", rows.n)
        at: Any = Index.of(rows.n - 1) - step if attrs["reverse"] else Index.of(step)

        def emit(e: OwnEmitter) -> tuple[int, float]:
            def advance(carried: list[Reg]) -> list[Reg]:
                new = kernel.value(e, a, rows.element(at)) * carried[0] + kernel.value(e, b, rows.element(at))
                e.write(new, e.buffers[kernel.out], rows.position(at))
                return [new]

            def row() -> None:
                e.serial(step, e.constant_index(rows.n), [e.k.const(0, b.dtype)], advance)

            return over(e, rows.variables, row), 6.0 * rows.n

        kernel.add("", [kernel.out], emit)
        return kernel.finish()


def lowering_of(function: Function, vectors: bool) -> Callable[[Function, ir.Block], Lowered]:
    """The lowering of the primitive with loops of its own in a kernel, by its kind.

    With `vectors` the loops are those for a CPU, which has vector registers and few threads.
    """
    record = next(op.record for op in function.read()[0] if op.record.lowering == "kernel")
    if record.kind not in _BY_KIND:
        raise CompileError(f"[lower] no loops are known for {record.name}")
    return functools.partial(_BY_KIND[record.kind], vectors=vectors)


_BY_KIND: dict[str, Callable[..., Lowered]] = {
    "scan": lower_scan, "recurrence": lower_recurrence, "argreduction": lower_argreduction, "indexing": lower_scatter,
    "sort": lower_sort,
}  # fmt: skip
