"""Automatic differentiation: the derivative function of a function of plain primitives.

Reverse mode replays the primal operations, then walks them backwards asking each record for its `vjp`:

    func @f(%x) { %0 = sin %x; return %0 }   ->   func @f_vjp(%x, %ct) { %0 = sin %x; %1 = cos %x; %2 = multiply %ct, %1
                                                                          return %0, %2 }

Forward mode carries a tangent beside each value. A symbolic zero is None, never a tensor. A composite without a rule of
its own is replayed
by its decomposition. Derivative operations carry the location of the primal operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxir.compiler.passes.functions import Builder, Functions
from mlxir.dialects.mlir import Function, Op, Tensor
from mlxir.dialects.mx import Primitive
from mlxir.dialects.mx.control import StopGradient


def _has_rule(record: Primitive, rule: str) -> bool:
    return getattr(type(record), rule) is not getattr(Primitive, rule)


class _Recorder(Builder):
    """A builder that keeps a tape of what it emits."""

    def __init__(self, m: Builder):
        super().__init__(m, m.functions)
        self.tape: list[tuple[Primitive, dict, list[Tensor], list[Tensor], Any]] = []

    def raw(self, record: Any, operands: Any, attrs: Any, avals: Any) -> list[Tensor]:
        results = super().raw(record, operands, attrs, avals)
        active = any(t.active for t in operands) and not isinstance(record, StopGradient)
        for result in results:
            result.active = active
        self.tape.append((record, attrs, list(operands), results, self.at))
        return results


def _replay(ops: list[Op], env: dict[int, Tensor], tape: _Recorder, rule: str) -> None:
    """Emit the primal operations; a composite that has no such rule appears by its parts."""
    for op in ops:
        tape.at = op.operation.location
        operands = [env[id(t)] for t in op.operands]
        if op.record.kind == "composite" and not _has_rule(op.record, rule):
            outs = op.record.decompose(tape, *operands, **op.attrs)
        else:
            outs = tape.raw(op.record, operands, op.attrs, [t.aval for t in op.results])
        env.update((id(old), new) for old, new in zip(op.results, outs, strict=True))


def vjp_function(functions: Functions, callee: Function, wrt: Sequence[int], seeded: Sequence[int]) -> Function:
    """`@f_vjp(*args, *cotangents of outputs[j] for j in seeded) -> (*outputs, *gradients of args[i] for i in wrt)`."""
    ops, results = callee.read()
    parameters = [*[t.aval for t in callee.arguments], *[results[j].aval for j in seeded]]
    function, plain = functions.new(f"{callee.name}_vjp", parameters)
    m = _Recorder(plain)
    count = len(callee.arguments)
    for i, argument in enumerate(function.arguments):
        argument.m, argument.active = m, i in wrt
    env = {id(p): a for p, a in zip(callee.arguments, function.arguments[:count], strict=True)}
    _replay(ops, env, m, "vjp")
    tape, m.tape = m.tape, []
    outputs = [env[id(t)] for t in results]
    cts: dict[int, Tensor] = {}
    for out, ct in zip([outputs[j] for j in seeded], function.arguments[count:], strict=True):
        if out.active:
            cts[id(out)] = m.add_any(cts.get(id(out)), ct)
    for record, attrs, operands, outs, where in reversed(tape):
        if not outs[0].active:
            continue
        out_cts = [cts.pop(id(o), None) for o in outs]
        if all(c is None for c in out_cts):
            continue
        m.at = where
        in_cts = record.vjp(m, operands, out_cts, outs, **attrs)
        for operand, ct in zip(operands, in_cts, strict=True):
            if ct is not None and operand.active:
                cts[id(operand)] = m.add_any(cts.get(id(operand)), ct)
        m.tape.clear()
    grads = [cts.get(id(function.arguments[i])) for i in wrt]
    zeros = [m.zeros(function.arguments[i]) if g is None else g for i, g in zip(wrt, grads, strict=True)]
    function.returns(outputs + zeros)
    return function


def jvp_function(functions: Functions, callee: Function, wrt: Sequence[int]) -> Function:
    """`@f_jvp(*args, *tangents of args[i] for i in wrt) -> (*outputs, *their tangents)`."""
    ops, results = callee.read()
    avals = [t.aval for t in callee.arguments]
    function, plain = functions.new(f"{callee.name}_jvp", [*avals, *[avals[i] for i in wrt]])
    m = _Recorder(plain)
    count = len(callee.arguments)
    for argument in function.arguments:
        argument.m = m
    env = {id(p): a for p, a in zip(callee.arguments, function.arguments[:count], strict=True)}
    _replay(ops, env, m, "jvp")
    tangents: dict[int, Tensor] = {
        id(function.arguments[i]): t for i, t in zip(wrt, function.arguments[count:], strict=True)
    }
    tape, m.tape = m.tape, []
    for record, attrs, operands, outs, where in tape:
        ins = [tangents.get(id(o)) for o in operands]
        if all(t is None for t in ins):
            continue
        m.at = where
        for out, tangent in zip(outs, record.jvp(m, operands, ins, outs, **attrs), strict=True):
            if tangent is not None:
                tangents[id(out)] = tangent
        m.tape.clear()
    outputs = [env[id(t)] for t in results]
    out_tangents = [tangents.get(id(o)) for o in outputs]
    function.returns(outputs + [m.zeros(o) if t is None else t for o, t in zip(outputs, out_tangents, strict=True)])
    return function
