"""Activity analysis of traced programs: what depends on the differentiated parameters, and what has no derivative.

The autodiff pass runs when results are evaluated; what it would refuse is found here, at the call of the transform.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mx import RECORDS, Primitive
from mlxir.dialects.mx.control import StopGradient
from mlxir.runtime.errors import RuleNotImplementedError, at


def _index_operands(record: Primitive, count: int) -> range:
    """The positions of index operands among `count` operands; a starred name stands for all that the others leave."""
    for i, name in enumerate(record.operands):
        if name == "*indices":
            return range(i, count - (len(record.operands) - 1 - i))
        if name == "index":
            return range(i, i + 1)
    return range(0)


def _has_rule(record: Primitive, rule: str) -> bool:
    return record.kind in ("composite", "transform") or getattr(type(record), rule) is not getattr(Primitive, rule)


_SUSPECT = {
    rule: {r.name for r in RECORDS.values() if r.operands and (not _has_rule(r, rule) or _index_operands(r, 9))}
    for rule in ("jvp", "vjp")
}
"""Primitives that an analysis has to look at; most programs hold none."""


def active_slots(program: Program, parameters: Iterable[int]) -> set[int]:
    """The slots of a program that depend on these of its parameters; stop_gradient ends dependence."""
    active = set(parameters)
    for i in program.instructions:
        if active.isdisjoint(i.operands) or isinstance(i.record, StopGradient):
            continue
        active.update(_active_results(i, active) if i.record.kind == "transform" else i.results)
    return active


def _active_parameters(i: Instruction, active: set[int]) -> list[int]:
    """Of the function that a transform names. What a call captured is constant to it."""
    inputs = i.attrs.get("inputs", range(len(i.attrs["callee"].parameters)))
    return [n for n in inputs if i.operands[n] in active]


def _active_results(i: Instruction, active: set[int]) -> list[int]:
    """Of a transform: its primal outputs as the function it names has them, and all (co)tangents."""
    callee: Program = i.attrs["callee"]
    parameters = _active_parameters(i, active)
    if i.attrs.get("fun_vjp") or i.attrs.get("fun_jvp"):
        return list(i.results) if parameters else []
    inside = active_slots(callee, parameters)
    count = len(callee.outputs)
    return [r for n, r in enumerate(i.results) if n >= count or callee.outputs[n] in inside]


def check_differentiable(program: Program, parameters: Iterable[int], seeded: Iterable[int], rule: str) -> None:
    """Raise what the autodiff pass would raise for the gradient of these outputs, with the user's line.

    Raises RuleNotImplementedError where an active primitive has no such rule, ValueError where indices computed from a
    differentiated parameter reach a seeded output.
    """
    if not any(i.record.kind == "transform" or i.record.name in _SUSPECT[rule] for i in program.instructions):
        return
    active = active_slots(program, parameters)
    needed = {program.outputs[j] for j in seeded}
    for i in reversed(program.instructions):
        if needed.isdisjoint(i.results) or active.isdisjoint(i.results):
            continue
        needed.update(i.operands)
        if i.record.kind == "transform" and not i.attrs.get(f"fun_{rule}"):
            callee: Program = i.attrs["callee"]
            inner = _active_parameters(i, active)
            # A gradient that is needed needs the outputs it was seeded from.
            whole = not needed.isdisjoint(i.results[len(callee.outputs) :])
            outputs = [n for n, r in enumerate(i.results[: len(callee.outputs)]) if whole or r in needed]
            check_differentiable(callee, inner, outputs, rule)
        if i.record.name not in _SUSPECT[rule]:
            continue
        if not _has_rule(i.record, rule):
            raise RuleNotImplementedError(f"[Primitive::{rule}] Not implemented for {i.record.name}{at(i.where)}")
        if any(i.operands[n] in active for n in _index_operands(i.record, len(i.operands))):
            raise ValueError(
                f"[{i.record.name}] Cannot calculate {rule.upper()} with respect to indices{at(i.where)}. Use"
                " stop_gradient on indices to stop gradients from being computed."
            )
