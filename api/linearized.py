"""vjp and jvp in two halves: what depends on the primals alone, recorded once, and a linear function of the rest.

The transform is expanded when it is called (elsewhere: when results are evaluated), and its plain operations are sorted
by whether they depend on the cotangents or tangents. The linear function repeats only those that do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxir.compiler.evaluate import evaluate, expanded
from mlxir.compiler.graph import Node, Value, apply_transform, running
from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mx import Aval, Primitive

from .entries import replay

Linear = Callable[[Sequence[Value]], list[Value]]


def linearized(
    transform: Primitive,
    operands: Sequence[Value],
    late: Sequence[Aval],
    attrs: dict,
    avals: Sequence[Aval],
    count: int,
) -> tuple[list[Value], Linear]:
    """(the first `count` results of a transform, the function that gives the others).

    The transform's operands are `operands`, then values of the types `late`, which the function takes.
    """
    if running.symbolic:  # sizes are not known yet: the whole transform is recorded at each call
        outputs = replay(attrs["callee"], operands)
        return outputs, lambda seeds: apply_transform(transform, [*operands, *seeds], attrs, avals)[count:]
    first = len(operands)
    total = first + len(late)
    results = tuple(range(total, total + len(avals)))
    call = Instruction(transform, attrs, tuple(range(total)), results, avals)
    plain = expanded(Program([*[v.aval for v in operands], *late], [call], results, transform.name))
    known = dict(enumerate(operands))
    dependent, linear = set(range(first, total)), []
    for i in plain.instructions:
        if dependent.isdisjoint(i.operands):
            _record(i, known)
        else:
            dependent.update(i.results)
            linear.append(i)
    wanted = plain.outputs[count:]
    used = {s for i in linear for s in i.operands}.union(wanted)
    kept = {s: v for s, v in known.items() if s in used}

    def apply(seeds: Sequence[Value]) -> list[Value]:
        if not running.depth:
            evaluate(kept.values())  # once: later calls find the data
        slots = {**kept, **dict(enumerate(seeds, first))}
        for i in linear:
            _record(i, slots)
        return [slots[s] for s in wanted]

    return [known[s] for s in plain.outputs[:count]], apply


def _record(i: Instruction, slots: dict[int, Value]) -> None:
    """Record an operation of a program again, on the values in its slots."""
    node = Node(i.record, i.attrs, tuple([slots[s] for s in i.operands]), i.avals, i.where)
    for n, (slot, aval) in enumerate(zip(i.results, i.avals, strict=True)):
        slots[slot] = Value(aval.shape, aval.dtype, node, n)
