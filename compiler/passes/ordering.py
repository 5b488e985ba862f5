"""Takes `depends` out of a function: its result is its operand, and the order that it asks for becomes edges.

    %1 = depends %x, %ct    %2 = sin %1      ->      %2 = sin %x, and the operation that makes %2 waits for %ct

Fusion keeps a kernel that waits for a value behind the kernel that stores the value. A value that is only waited for is
not computed: what waits for it waits for what it would be computed from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlxir.dialects.mlir import Op, Tensor

Waits = dict[int, set[int]]
"""id of a value -> numbers of the operations that wait for it."""


def without_depends(ops: Sequence[Op], results: Sequence[Tensor]) -> tuple[list[Op], list[Tensor], Waits]:
    """(the other operations, the results, who waits for what); operations are numbered as in the returned list."""
    stands_for: dict[int, Tensor] = {}
    needs: dict[int, list[Tensor]] = {}  # id of a result of `depends` -> what has to be there before it
    others: list[tuple[Op, list[Tensor]]] = []  # with what has to be there before it
    for op in ops:
        before = [needed for t in op.operands for needed in needs.get(id(t), ())]
        operands = [stands_for.get(id(t), t) for t in op.operands]
        if op.record.lowering == "alias":
            (out,) = op.results
            stands_for[id(out)], needs[id(out)] = operands[0], [*before, *operands[1:]]
        else:
            others.append((op._replace(operands=operands), before))
    if not needs:
        return list(ops), list(results), {}
    results = [stands_for.get(id(t), t) for t in results]
    kept, dropped = _used(others, results)
    waits: Waits = {}
    for n, (_, before) in enumerate(kept):
        for t in _computed(before, dropped):
            waits.setdefault(id(t), set()).add(n)
    return [op for op, _ in kept], results, waits


def _used(
    ops: Sequence[tuple[Op, list[Tensor]]], results: Iterable[Tensor]
) -> tuple[list[tuple[Op, list[Tensor]]], dict[int, list[Tensor]]]:
    """(the operations whose results are read, the operands of each other one by the ids of its results)."""
    live = {id(t) for t in results}
    kept: list[tuple[Op, list[Tensor]]] = []
    dropped: dict[int, list[Tensor]] = {}
    for op, before in reversed(ops):
        if any(id(t) in live for t in op.results):
            live.update(id(t) for t in op.operands)
            kept.append((op, before))
        else:
            dropped.update((id(t), [*op.operands, *before]) for t in op.results)
    return kept[::-1], dropped


def _computed(values: Iterable[Tensor], dropped: dict[int, list[Tensor]]) -> list[Tensor]:
    """The values, each that is not computed replaced by what it would be computed from."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    stack = list(values)
    while stack:
        t = stack.pop()
        if id(t) in seen:
            continue
        seen.add(id(t))
        if id(t) in dropped:
            stack.extend(dropped[id(t)])
        else:
            found[id(t)] = t
    return list(found.values())
