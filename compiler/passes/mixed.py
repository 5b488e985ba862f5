"""Sums of columns join the kernel that walks the rows of the same matrix: its elements are read once for both.

    %s = sum %x [1]    %dx = ... (%x, %s)                          one kernel over the rows of %x, whose pieces
    %dw = sum (%g * %x) [0]    (waits for %s or reads %x)    ->    keep sums of columns beside it (lower/mixed.py)

The gradient of a normalisation is such a pair. Only targets with that form of kernel run this (`fuse(vectors=True)`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from mlxir.dialects.mlir import Op

if TYPE_CHECKING:
    from mlxir.compiler.passes.fuse import Fusion, Group

SCRATCH_BYTES = 1 << 16  # of sums of columns
FEWEST = 16  # rows and columns that are worth it


class Space(NamedTuple):
    """A matrix: `rows` x `columns`, its sums of columns taken over `pieces` of the rows (0: over all)."""

    rows: int
    columns: int
    pieces: int


def columns_of(op: Op) -> Space:
    """`column_space` of a sum that is known to have one."""
    space = column_space(op)
    assert space is not None
    return space


def row_space(op: Op) -> Space | None:
    """Of a reduction of the last axes."""
    shape, axes = op.operands[0].shape, tuple(sorted(op.attrs["axes"]))
    first = len(shape) - len(axes)
    if not axes or axes[0] != first or first == 0 or axes[-1] != len(shape) - 1:
        return None
    return Space(prod(shape[:first]), prod(shape[first:]), 0)


def column_space(op: Op) -> Space | None:
    """Of a sum over the first axes, or, where it has been split, over those after the first."""
    x, axes = op.operands[0], tuple(sorted(op.attrs["axes"]))
    shape, last = x.shape, len(axes)
    if op.record.name != "sum" or not x.dtype.is_float or row_space(op) is not None:
        return None
    if axes == tuple(range(last)) and last < len(shape):
        return Space(prod(shape[:last]), prod(shape[last:]), 0)
    if axes == tuple(range(1, 1 + last)) and 1 + last < len(shape):
        return Space(prod(shape[: 1 + last]), prod(shape[1 + last :]), shape[0])
    return None


def join_columns(fusion: Fusion) -> None:
    """Merge what can be merged, kernels of columns into kernels of rows."""
    kernels = [g for g in fusion.groups if g.merged_into is None and g.kind == "loops"]
    rows = [g for g in kernels if _space(fusion, g, row_space) is not None]
    columns = [g for g in kernels if _space(fusion, g, column_space) is not None]
    for b in columns:
        for a in rows:
            if a is not b and _fits(fusion, a, b):
                fusion.merge(a, b)
                a.after.discard(a)
                a.kind = "mixed"
                _forget(fusion, a)
                break


def _reductions(fusion: Fusion, g: Group) -> list[Op]:
    return [fusion.ops[n] for n in g.members if fusion.ops[n].record.lowering == "reduce"]


def _space(fusion: Fusion, g: Group, kind: Callable[[Op], Space | None]) -> Space | None:
    """The matrix whose rows (or columns) all reductions of a kernel reduce; those of a mixed one, of its rows."""
    spaces = [kind(op) for op in _reductions(fusion, g)]
    if g.kind == "mixed":
        spaces = [s for s in spaces if s is not None]
    return spaces[0] if spaces and all(s is not None and s == spaces[0] for s in spaces) else None


def _fits(fusion: Fusion, a: Group, b: Group) -> bool:
    """Whether the column sums of `b` can be taken while `a` walks its rows."""
    over_rows, over_columns = _space(fusion, a, row_space), _space(fusion, b, column_space)
    if over_rows is None or over_columns is None or over_rows[:2] != over_columns[:2]:
        return False
    rows, columns, pieces = over_columns
    if any(type(n) is not int for n in (rows, columns)) or rows == columns or min(rows, columns) < FEWEST:
        return False
    sums = [op for g in (a, b) for op in _reductions(fusion, g) if column_space(op) is not None]
    if len(sums) * columns * 4 > SCRATCH_BYTES or any(column_space(op) != over_columns for op in sums):
        return False
    if a.depends_on(b) or any(g is not a and g.depends_on(a) for g in b.after):
        return False
    shared = fusion.inputs_of(b) & (fusion.inputs_of(a) | {id(t) for n in a.members for t in fusion.ops[n].results})
    full = rows * columns
    if not any(fusion.sizes[t] == full for t in shared):
        return False
    return _late(fusion, b, rows, columns, pieces)


def _late(fusion: Fusion, b: Group, rows: int, columns: int, pieces: int) -> bool:
    """Whether all that is computed from the sums has as many elements as there are columns (in each piece)."""
    todo = [n for n in b.members if fusion.ops[n].record.lowering == "reduce"]
    seen = set(todo)
    while todo:
        n = todo.pop()
        if n in b.outputs and fusion.ops[n].results[0].aval.size != columns * (pieces or 1):
            return False
        users = [u for t in fusion.ops[n].results for u in fusion.users.get(id(t), ()) if u in b.members]
        todo += [u for u in users if u not in seen]
        seen.update(users)
    known = (rows * columns, columns * (pieces or 1))
    return all(fusion.ops[n].results[0].aval.size in known for n in b.outputs)


def _forget(fusion: Fusion, g: Group) -> None:
    """What only the kernel itself reads is not stored any more."""

    def read_outside(n: int) -> bool:
        results = fusion.ops[n].results
        if any(id(t) in fusion.final or id(t) in fusion.waits for t in results):
            return True
        return any(fusion.homes[u] != [g] for t in results for u in fusion.users.get(id(t), ()))

    g.outputs = [n for n in g.outputs if read_outside(n)]
