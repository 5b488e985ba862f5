"""Build: a traced program becomes a module of functions in the `mx` dialect.

    loss, g = value_and_grad(f)(x)     func.func private @f(%x) { %0 = "mx.sin"(%x) ... }
                                       func.func @main(%x) { %df = "mx.vjp"() {callee = @f, wrt = [0]} : () -> (... ->
                                       ...)
                                                             %l, %g = func.call_indirect %df(%x, %one) ... }

A program that a transform names becomes a private function; every operation carries the user's file and line. (A
transform makes a function value
because IRDL, in which the dialect is defined, has no operand lists of mixed types.)
"""

from __future__ import annotations

from mlxir.compiler.program import Program
from mlxir.dialects.mlir import Function, Module, Symbol, location
from mlxir.runtime import errors


def build(program: Program) -> Module:
    """The module whose function `main` is `program`."""
    module = Module()
    _build_function(module, program, "main", private=False, built={})
    module.verify()
    return module


def _build_function(module: Module, program: Program, name: str, private: bool, built: dict[int, Function]) -> Function:
    function = module.add_function(name, program.parameters, private)
    builder = function.builder_at_end()
    values = list(function.arguments)
    for argument in values:
        argument.m = builder
    for instruction in program.instructions:
        attrs = instruction.attrs
        if instruction.record.kind == "transform":
            attrs = {k: _symbol(module, v, built) if isinstance(v, Program) else v for k, v in attrs.items()}
        builder.at = location(*errors.location(instruction.where))
        operands = [values[i] for i in instruction.operands]
        values += builder.raw(instruction.record, operands, attrs, instruction.avals)
    function.returns([values[i] for i in program.outputs])
    return function


def _symbol(module: Module, program: Program, built: dict[int, Function]) -> Symbol:
    """The name of the function of a program; the same program under two transforms is one function."""
    if id(program) not in built:
        built[id(program)] = _build_function(module, program, program.name, True, built)
    return Symbol(built[id(program)].name)
