"""The pipeline: from a traced program to something that runs. Read it from top to bottom; every line is a stage.

    trace      Python function -> graph -> Program                                     compiler/graph.py
    mx         Program -> functions of the mx dialect, transforms as operations        compiler/build.py
"""

from __future__ import annotations

from mlxir.compiler.build import build
from mlxir.compiler.passes.transforms import expand_transforms
from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mlir import Module


def transformed(program: Program) -> Module:
    """The program as one function of plain primitives."""
    module = build(program)
    expand_transforms(module)
    return module


def transformed_program(program: Program) -> Program:
    """The transformed program as data again, for the reference evaluator."""
    module = transformed(program)
    function = module.find("main")
    ops, results = function.read()
    slots = {id(t): i for i, t in enumerate(function.arguments)}
    instructions = []
    for op in ops:
        outs = tuple(slots.setdefault(id(t), len(slots)) for t in op.results)
        operands = tuple(slots[id(t)] for t in op.operands)
        instructions.append(Instruction(op.record, op.attrs, operands, outs, [t.aval for t in op.results]))
    return Program([t.aval for t in function.arguments], instructions, [slots[id(t)] for t in results], program.name)
