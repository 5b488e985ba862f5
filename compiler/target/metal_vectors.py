"""Neighbours as vectors: a thread that computes several elements loads and stores those that lie together as one.

    for (uint i = first; i < first + 4; ++i) {          const float4 in0_4 = *(device const float4*)(in0 + first);
      out0[i] = in0[i] * in1[i % 300];                  float4 out0_4 = float4(0.0f);
    }                                             ->    for (uint n = 0; n < 4; ++n) {
                                                          const uint i = first + n;
                                                          out0_4[n] = in0_4[n] * in1[i % 300];
                                                        }
                                                        *(device float4*)(out0 + first) = out0_4;

An access is one of a vector if every iteration does it and its position is `i` plus multiples of the width. Buffers
begin at multiples of 64 bytes, so vectors are aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from mlxir.compiler.target.metal_body import Body, bytes_of, storage_type
from mlxir.compiler.target.metal_expr import Expr
from mlxir.compiler.target.metal_memory import is_scratch, position_of, walk
from mlxir.dialects.mlir import ir

_ACCESSES = ("memref.load", "memref.store")


class Vector(NamedTuple):
    """The neighbours of `memory` that a thread loads, or stores, from the position `index` of its first one on."""

    memory: ir.Value
    index: ir.Value
    writes: bool


def _memory(access: ir.Operation) -> ir.Value:
    return access.operands[access.name == "memref.store"]


def _index(access: ir.Operation) -> ir.Value:
    return access.operands[len(access.operands) - 1]


def elements_per_thread(block: ir.Block) -> int:
    """How many neighbours a thread computes where an iteration only computes elements; 1 where it does more.

    Vectors have at most 4 elements and 16 bytes.
    """
    operations = list(walk(block))
    if any(o.name.startswith("scf.") and o.name not in ("scf.if", "scf.yield", "scf.reduce") for o in operations):
        return 1
    accessed = [_memory(o) for o in operations if o.name in _ACCESSES]
    if any(is_scratch(m) for m in accessed):
        return 1
    return 16 // max(4, *[bytes_of(storage_type(ir.MemRefType(m.type).element_type, "")) for m in accessed])


def vectors_of(block: ir.Block, width: int) -> list[Vector]:
    """The accesses of a loop's body that move whole vectors of `width` elements."""
    accesses = [o for o in walk(block) if o.name in _ACCESSES]
    written = [_memory(o) for o in accesses if o.name == "memref.store"]
    found: dict[Vector, None] = {}
    for access in accesses:
        memory, index = _memory(access), _index(access)
        alone = written.count(memory) <= 1 and not (memory in written and access.name == "memref.load")
        at = position_of(index, block.arguments[0])
        together = at.stride == 1 and at.modulus % width == 0 and at.offset % width == 0
        if access.block == block and alone and together:
            found[Vector(memory, index, access.name == "memref.store")] = None
    return list(found)


def print_neighbours(body: Body, block: ir.Block, name: str, first: Expr, width: int) -> None:
    """Print `width` iterations of a loop with the variable `name`, from `first` on."""
    vectors, iv = vectors_of(block, width), block.arguments[0]
    body.env[iv] = first
    places = _places(body, vectors)
    types = {v: f"{body.memory[v.memory].type}{width}" for v in vectors}
    names = {v: body.name(f"{body.memory[v.memory].name}_{width}_").removesuffix("_0") for v in vectors}
    for v in vectors:
        if v.writes:
            body.line(f"{types[v]} {names[v]} = {types[v]}({_zero(body.memory[v.memory].type)});")
        else:
            body.line(f"const {types[v]} {names[v]} = *(device const {types[v]}*)({places[v]});")
    skipped = _only_positions(block, vectors)
    with body.variable("nmu") as lane, body.braces(f"for (uint {lane} = 0; {lane} < {width}; ++{lane})"):
        body.neighbours = {(v.memory, v.index): f"{names[v]}[{lane}]" for v in vectors}
        if _needed(block, skipped, vectors):
            body.line(f"const {first.type} {name} = {first.text} + {lane};")
        body.env[iv] = Expr(name, first.type, 0, first.low, first.high)
        for view in list(block.operations)[:-1]:
            if view.operation not in skipped:
                body.visit(view.operation)
        body.flush()
        body.neighbours = {}
    for v in vectors:
        if v.writes:
            body.line(f"*(device {types[v]}*)({places[v]}) = {names[v]};")


def _zero(type_: str) -> str:
    return "0.0f" if type_ == "float" else f"{type_}(0)" if type_ in ("half", "bfloat") else "0"


def _places(body: Body, vectors: Sequence[Vector]) -> dict[Vector, str]:
    """Where each vector begins; a position that several share has a name."""
    found = {}
    for index in dict.fromkeys(v.index for v in vectors):
        here = [v for v in vectors if v.index == index]
        at = _value_of(body, index)
        if len(here) > 1 and not at.text.isidentifier():
            name = body.name("at")
            body.line(f"const {at.type} {name} = {at.text};")
            at = replace(at, text=name, level=0)
        for v in here:
            buffer = body.memory[v.memory].name
            found[v] = buffer if at.value == 0 else f"{buffer} + {at.at(3)}"
    return found


def _value_of(body: Body, value: ir.Value) -> Expr:
    """Index arithmetic with the loop's variable as it is now."""
    if value in body.env:
        return body.env[value]
    operation = value.owner.operation
    return body.operations.expression(operation, [_value_of(body, v) for v in operation.operands])


def _only_positions(block: ir.Block, vectors: Sequence[Vector]) -> set[ir.Operation]:
    """The operations of a block whose results are only needed to compute where vectors begin."""
    vectored = {(v.memory, v.index) for v in vectors}
    found: set[ir.Operation] = set()

    def position(use: ir.OpOperand) -> bool:
        owner = use.owner.operation
        if owner in found:
            return True
        last = owner.name in _ACCESSES and use.operand_number == len(owner.operands) - 1
        return last and (_memory(owner), _index(owner)) in vectored

    for view in reversed(list(block.operations)[:-1]):
        operation = view.operation
        results = list(operation.results)
        if operation.name.startswith("arith.") and results and all(position(u) for r in results for u in r.uses):
            found.add(operation)
    return found


def _needed(block: ir.Block, skipped: set[ir.Operation], vectors: Sequence[Vector]) -> bool:
    """Whether the loop's variable is used for more than where vectors begin."""
    vectored = {(v.memory, v.index) for v in vectors}
    for use in block.arguments[0].uses:
        owner = use.owner.operation
        if owner in skipped:
            continue
        if owner.name in _ACCESSES and (_memory(owner), _index(owner)) in vectored:
            continue
        return True
    return False
