"""Inlines a function at the operation that stands for calling it.

    %df = "mx.vjp"() {callee = @f}
    %r = func.call_indirect %df(%a)      ->     the operations of @f_vjp with %a for its argument; %r is replaced

Upstream's inliner refuses dialects that are defined at run time, hence this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxir.dialects.mlir import Function, MxBuilder, Op, Tensor


def emit_body(m: MxBuilder, callee: Function, operands: Sequence[Tensor]) -> list[Tensor]:
    """The results of `callee` at `operands`, computed by its operations where `m` emits. They keep their locations."""
    ops, results = callee.read()
    env: dict[int, Tensor] = {id(p): a for p, a in zip(callee.arguments, operands, strict=True)}
    place = m.at
    for inner in ops:
        m.at = inner.operation.location
        outs = m.raw(inner.record, [env[id(t)] for t in inner.operands], inner.attrs, [t.aval for t in inner.results])
        env.update((id(old), new) for old, new in zip(inner.results, outs, strict=True))
    m.at = place
    return [env[id(t)] for t in results]


def inline_call(function: Function, op: Op, callee: Function) -> None:
    """Replace `op` of `function` by the body of `callee`, whose parameters are the first of `op`'s operands."""
    builder = function.builder_before(op.operation)
    # Inlining an earlier call may have replaced the operands that `op` was read with: those of the operation are right.
    function_operand, *operands = op.operation.operands
    taken = zip(callee.arguments, operands[: len(callee.arguments)], strict=True)
    outs = emit_body(builder, callee, [Tensor(value, p.aval, builder) for p, value in taken])
    for old, new in zip(op.operation.results, outs, strict=True):
        old.replace_all_uses_with(new.value)
    function_value = function_operand.owner
    op.operation.erase()
    function_value.erase()
