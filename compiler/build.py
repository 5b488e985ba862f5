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
from mlxir.dialects.mlir import Function, Module, location
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
        callee = attrs.get("callee")
        if callee is not None:
            # The same program under two transforms (its value and its gradient) is one function.
            if id(callee) not in built:
                built[id(callee)] = _build_function(module, callee, callee.name, True, built)
            attrs = {**attrs, "callee": built[id(callee)].name}
        builder.at = location(*errors.location(instruction.where))
        emit = builder.transform if callee is not None else builder.raw
        values += emit(instruction.record, [values[i] for i in instruction.operands], attrs, instruction.avals)
    function.returns([values[i] for i in program.outputs])
    return function
