"""Inlines a function at the operation that stands for calling it.

    %df = "mx.vjp"() {callee = @f}
    %r = func.call_indirect %df(%a)      ->     the operations of @f_vjp with %a for its argument; %r is replaced

Upstream's inliner refuses dialects that are defined at run time, hence this one.
"""

from __future__ import annotations

from mlxir.dialects.mlir import Function, Op, Tensor


def inline_call(function: Function, op: Op, callee: Function) -> None:
    """Replace `op` of `function` by the body of `callee`, whose parameters are `op`'s operands."""
    ops, results = callee.read()
    builder = function.builder_before(op.operation)
    env: dict[int, Tensor] = {id(p): a for p, a in zip(callee.arguments, op.operands, strict=True)}
    for inner in ops:
        builder.at = inner.operation.location
        outs = builder.raw(
            inner.record, [env[id(t)] for t in inner.operands], inner.attrs, [t.aval for t in inner.results]
        )
        env.update((id(old), new) for old, new in zip(inner.results, outs, strict=True))
    for old, new in zip(op.operation.results, results, strict=True):
        old.replace_all_uses_with(env[id(new)].value)
    function_value = op.operation.operands[0].owner
    op.operation.erase()
    function_value.erase()
