"""Vectorising map: the batched function of a function of plain primitives.

    func @f(%x: tensor<3xf32>) { sum %x {axes=[0]} }   ->   func @f_vmap(%x: tensor<8x3xf32>) { sum %x {axes=[1]} }

The batch axis of a batched value is always in front; in_axes and out_axes are transposes at the borders. An operation none of
whose operands is batched is emitted as it was.
"""

from __future__ import annotations

from mlxir.dialects.mlir import Function, Module, Op, Tensor

UNMAPPED = -1


def vmap_function(module: Module, callee: Function, op: Op) -> Function:
    """`@f_vmap(*args) -> outputs` with argument i mapped over `in_axes[i]` and output j over `out_axes[j]`."""
    in_axes, out_axes, size = op.attrs["in_axes"], op.attrs["out_axes"], op.attrs["size"]
    ops, results = callee.read()
    function = module.add_function(f"{callee.name}_vmap", [t.aval for t in op.operands])
    m = function.builder_at_end()
    env: dict[int, tuple[Tensor, bool]] = {}
    for parameter, argument, axis in zip(callee.arguments, function.arguments, in_axes, strict=True):
        argument.m = m
        mapped = axis != UNMAPPED
        env[id(parameter)] = (m.moved(argument, axis, 0) if mapped else argument, mapped)
    for inner in ops:
        m.at = inner.operation.location
        pairs = [env[id(t)] for t in inner.operands]
        args, batched = [p[0] for p in pairs], [p[1] for p in pairs]
        if any(batched):
            outs, flags = inner.record.vmap(m, size, args, batched, **inner.attrs)
            flags = list(flags) * len(outs) if len(flags) == 1 else flags
        else:
            outs = m.raw(inner.record, args, inner.attrs, [t.aval for t in inner.results])
            flags = [False] * len(outs)
        for old, new, flag in zip(inner.results, outs, flags, strict=True):
            env[id(old)] = (new, flag)
    finals = []
    for result, axis in zip(results, out_axes, strict=True):
        value, mapped = env[id(result)]
        if axis == UNMAPPED:
            finals.append(value)
            continue
        value = value if mapped else m.broadcast(value, (size, *value.shape))
        finals.append(m.moved(value, 0, axis))
    function.returns(finals)
    return function
