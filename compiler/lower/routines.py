"""Routines: functions that many kernels call, each compiled once for all of them.

    in a kernel      func.call @mlxir_gemm_block_6_4_16_...(%a, %b, %c, %a_at, ...)
    on its own       func.func @mlxir_gemm_block_6_4_16_...(%a: memref<1xf32>, ...) { loops over tiles and k }

The register tiles of a matrix product and the packing of its operands are the same code in every product, and they are
most of what LLVM would have to do for one. So a kernel only declares them. Whatever changes from product to product
(strides, extents) is an argument; `form` holds what the code is made for. The object code of a routine is kept in
memory and on disk like that of a kernel (compiler/kernels.py), under its symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxir.compiler.lower.builder import INDEX, memref_type
from mlxir.compiler.lower.scalar_math import ScalarBuilder
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import context, ir
from mlxir.runtime.dtypes import Dtype


class Routine(NamedTuple):
    """What a routine is made from: plain data, equal for equal code."""

    name: str  # of its definition
    form: tuple[int | str, ...]

    @property
    def symbol(self) -> str:
        return "_".join(["mlxir", self.name, *map(str, self.form)])


class Definition(NamedTuple):
    """A routine's parameters, `buffers` and then so many `numbers`, and what fills its body.

    Buffers are passed with the place where to begin: nothing is known of their length.
    """

    buffers: Sequence[Dtype]
    numbers: int
    emit: Callable[[VectorEmitter, list[ir.Value]], None]


DEFINITIONS: dict[str, Callable[..., Definition]] = {}


def routine(define: Callable[..., Definition]) -> Callable[..., Routine]:
    """Enter a definition, a function of a form, under its name; what is returned makes routines of it."""
    name = define.__name__
    DEFINITIONS[name] = define
    return lambda *form: Routine(name, form)


def call(e: VectorEmitter, what: Routine, buffers: Sequence[ir.Value], numbers: Sequence[ir.Value]) -> None:
    """Call a routine, which the module of the kernel declares from then on."""
    definition = DEFINITIONS[what.name](*what.form)
    if what not in e.routines:
        e.routines[what] = None
        _declare(e.entry.owner.operation.parent.regions[0].blocks[0], what.symbol, definition)
    types = [memref_type(1, d) for d in definition.buffers]
    places = [_without_size(e, b, t) for b, t in zip(buffers, types, strict=True)]
    e.k.op("func.call", [*places, *numbers], callee=ir.FlatSymbolRefAttr.get(what.symbol))


def _without_size(e: VectorEmitter, buffer: ir.Value, kind: ir.Type) -> ir.Value:
    """A buffer as routines take it."""
    if buffer.type == kind:
        return buffer
    attributes = {
        "static_offsets": ir.DenseI64ArrayAttr.get([0]), "static_sizes": ir.DenseI64ArrayAttr.get([1]),
        "static_strides": ir.DenseI64ArrayAttr.get([1]),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 0, 0, 0]),
    }  # fmt: skip
    return e.k.op("memref.reinterpret_cast", [buffer], kind, **attributes)


def _function(body: ir.Block, symbol: str, definition: Definition, **attributes: ir.Attribute) -> ir.Operation:
    types = [*[memref_type(1, d) for d in definition.buffers], *[INDEX] * definition.numbers]
    attributes["sym_name"] = ir.StringAttr.get(symbol)
    attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(types, []))
    return ir.Operation.create(
        "func.func", attributes=attributes, regions=1, ip=ir.InsertionPoint.at_block_begin(body),
        loc=ir.Location.unknown(),
    )  # fmt: skip


def _declared(body: ir.Block) -> dict[str, ir.Operation]:
    functions = [view.operation for view in body.operations if view.operation.name == "func.func"]
    return {ir.StringAttr(f.attributes["sym_name"]).value: f for f in functions}


def _declare(body: ir.Block, symbol: str, definition: Definition) -> None:
    if symbol not in _declared(body):
        _function(body, symbol, definition, sym_visibility=ir.StringAttr.get("private"))


def define(body: ir.Block, what: Routine) -> None:
    """Add a routine to a module, in place of its declaration."""
    with context, ir.Location.unknown() as unknown:
        declaration = _declared(body).get(what.symbol)
        if declaration is not None:
            declaration.erase()
        definition = DEFINITIONS[what.name](*what.form)
        operation = _function(body, what.symbol, definition)
        types = ir.FunctionType(ir.TypeAttr(operation.attributes["function_type"]).value).inputs
        block = operation.regions[0].blocks.append(*types, arg_locs=[unknown] * len(types))
        arguments, count = list(block.arguments), len(definition.buffers)
        e = VectorEmitter(ScalarBuilder(ir.InsertionPoint(block)), arguments[:count])
        definition.emit(e, arguments[count:])
        e.k.op("func.return", [])
