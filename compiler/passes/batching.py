"""Vectorising map: the batched function of a function of plain primitives.

    func @f(%x: tensor<3xf32>) { sum %x {axes=[0]} }   ->   func @f_vmap(%x: tensor<8x3xf32>) { sum %x {axes=[1]} }

The batch axis of a batched value is always in front; in_axes and out_axes are transposes at the borders. An operation
none of
whose operands is batched is emitted as it was. A composite without a rule of its own is batched part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxir.compiler.passes.functions import Builder, Functions
from mlxir.dialects.mlir import Function, Tensor
from mlxir.dialects.mx import Aval, OpBuilder, Operators, Primitive
from mlxir.dialects.mx.control import SUMMED, UNMAPPED

Pair = tuple[Tensor, bool]
"""A value with whether it is batched."""


class _Example(Operators):
    """A value as one example sees it."""

    def __init__(self, pair: Pair, m: _Examples):
        tensor, mapped = pair
        self.pair, self.shape, self.dtype, self.m = pair, tensor.shape[mapped:], tensor.dtype, m


class _Examples(OpBuilder):
    """Emits, for what is written about one example, the batched operations."""

    def __init__(self, m: Builder, size: int):
        self.m, self.size = m, size

    def emit(self, record: Primitive, operands: list[Any], attrs: dict) -> list[Any]:
        return [_Example(pair, self) for pair in self.batched(record, [o.pair for o in operands], attrs)]

    def batched(self, record: Primitive, operands: list[Pair], attrs: dict) -> list[Pair]:
        args, flags = [p[0] for p in operands], [p[1] for p in operands]
        if not any(flags):
            return [(out, False) for out in self.m.emit(record, args, attrs)]
        if record.kind == "composite" and type(record).vmap is Primitive.vmap:
            return [e.pair for e in record.decompose(self, *[_Example(p, self) for p in operands], **attrs)]
        outs, mapped = record.vmap(self.m, self.size, args, flags, **attrs)
        return list(zip(outs, list(mapped) * len(outs) if len(mapped) == 1 else mapped, strict=True))


def vmap_function(
    functions: Functions, callee: Function, in_axes: Sequence[int], out_axes: Sequence[int], size: int
) -> Function:
    """`@f_vmap(*args) -> outputs` with argument i mapped over `in_axes[i]` and output j over `out_axes[j]`.

    An output whose axis is SUMMED is the sum over the examples: a gradient of an argument that is not mapped.
    """
    ops, results = callee.read()
    parameters = [_with_axis(t.aval, axis, size) for t, axis in zip(callee.arguments, in_axes, strict=True)]
    function, m = functions.new(f"{callee.name}_vmap", parameters)
    examples = _Examples(m, size)
    env: dict[int, Pair] = {}
    for parameter, argument, axis in zip(callee.arguments, function.arguments, in_axes, strict=True):
        mapped = axis != UNMAPPED
        env[id(parameter)] = (m.moved(argument, axis, 0) if mapped else argument, mapped)
    for inner in ops:
        m.at = inner.operation.location
        outs = examples.batched(inner.record, [env[id(t)] for t in inner.operands], inner.attrs)
        env.update((id(old), new) for old, new in zip(inner.results, outs, strict=True))
    finals = []
    for result, axis in zip(results, out_axes, strict=True):
        value, mapped = env[id(result)]
        if axis == UNMAPPED:
            finals.append(value)
            continue
        value = value if mapped else m.broadcast(value, (size, *value.shape))
        finals.append(m.sum(value, axes=(0,)) if axis == SUMMED else m.moved(value, 0, axis))
    function.returns(finals)
    return function


def _with_axis(aval: Aval, axis: int, size: int) -> Aval:
    return aval if axis == UNMAPPED else Aval((*aval.shape[:axis], size, *aval.shape[axis:]), aval.dtype)
