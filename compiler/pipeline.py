"""The pipeline: from a traced program to something that runs. Read it from top to bottom; every line is a stage.

    trace         Python function -> graph -> Program                               compiler/graph.py
    mx            Program -> functions of the mx dialect, transforms as operations  compiler/build.py
    transformed   autodiff and vmap expanded, innermost first; simplified           compiler/passes/
    fused         operations grouped into kernels                                   compiler/passes/fuse.py
    loops         kernels as parallel loops over memrefs                            compiler/lower/
    llvm, asm     LLVM IR and machine code for this processor                       compiler/target/cpu.py
    metal         the same loops as Metal shaders, with their schedule              compiler/target/metal.py
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mlxir.compiler.build import build
from mlxir.compiler.lower.gemm import lower_matmul, lower_matmul_simple
from mlxir.compiler.lower.kernels import lowering_of
from mlxir.compiler.lower.loops import Lowered, Step, lower_fused
from mlxir.compiler.lower.plan import LibraryLaunch, Plan, make_plan
from mlxir.compiler.passes.fuse import Fused, fuse
from mlxir.compiler.passes.simplify import simplify
from mlxir.compiler.passes.split_reductions import split_reductions
from mlxir.compiler.passes.transforms import expand_transforms
from mlxir.compiler.program import Instruction, Program
from mlxir.compiler.target import cpu, metal
from mlxir.dialects.mlir import Function, Module, context, ir
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Schedule, Segment

Observer = Callable[[str, Callable[[], str]], None]
"""Called with each stage's name and a function that prints it."""

Lowering = Callable[[Function, ir.Block], Lowered]
"""Fills a module's body with the loops of a fused kernel."""


class Loops(NamedTuple):
    """Everything a target needs: kernels as loops, the fused functions they come from, and where their buffers lie."""

    module: ir.Module
    kernels: dict[str, Lowered]
    fused: Fused
    plan: Plan

    @property
    def steps(self) -> list[Step]:
        return [step for kernel in self.kernels.values() for step in kernel.steps]


def transformed(program: Program, observe: Observer) -> Module:
    """The program as one function of plain primitives."""
    module = build(program)
    observe("mx", module.text)
    expand_transforms(module)
    return module


def lowered(program: Program, observe: Observer, matmul: Lowering = lower_matmul) -> Loops:
    """The program as loops, for either target; a matmul is blocked for the CPU, or one loop over its elements."""
    module = transformed(program, observe)
    simplify(module)
    split_reductions(module)
    module.verify()
    observe("transformed", module.text)
    fused = fuse(module)
    fused.module.verify()
    observe("fused", fused.module.text)
    loops = _lower(fused, matmul)
    observe("loops", lambda: str(loops.module))
    return loops


def _lower(fused: Fused, matmul: Lowering) -> Loops:
    with context, ir.Location.unknown():
        module = ir.Module.create()
    lowerings = {"loops": lower_fused, "matmul": matmul}
    kernels: dict[str, Lowered] = {}
    for launch in fused.launches:
        if launch.kind != "library":
            function = fused.module.find(launch.name)
            lower = lowerings.get(launch.kind) or lowering_of(function)
            kernels[launch.name] = lower(function, module.body)
    return Loops(module, kernels, fused, make_plan(fused, kernels))


def compile_program(program: Program, observe: Observer | None = None) -> tuple[bytes, Schedule]:
    """Object code for this processor, and how to call it."""
    start = time.perf_counter()
    observe = observe or observer(program.name)
    loops = lowered(program, observe)
    steps, plan = loops.steps, loops.plan
    code = cpu.generate(loops.module, steps, plan)
    observe("llvm", lambda: code.text)
    binary = code.object_code()
    observe("asm", code.assembly)
    schedule = _schedule(plan)
    observe("schedule", schedule.to_json)
    if knobs.debug >= 1:
        seconds = time.perf_counter() - start
        print(f"[mlxir] compiled {program.name}: {len(steps)} kernels, {seconds * 1e3:.0f} ms", file=sys.stderr)
        for step in steps if knobs.debug >= 2 else ():
            work = f"{step.extent} iterations of about {step.work:.0f} operations"
            print(f"[mlxir]   {step.name}: {work}", file=sys.stderr)
    return binary, schedule


def compile_metal(program: Program, observe: Observer | None = None) -> tuple[str, dict[str, Any]]:
    """Metal shaders, and the schedule that runs them (its format: compiler/target/metal.py)."""
    observe = observe or observer(program.name)
    loops = lowered(program, observe, lower_matmul_simple)
    code = metal.generate(loops.module, loops.kernels, loops.fused, loops.plan)
    observe("metal", lambda: code.text)
    observe("schedule", lambda: json.dumps(code.schedule, indent=1))
    return code.text, code.schedule


def _schedule(plan: Plan) -> Schedule:
    segments: list[Segment] = []
    entries = itertools.count()
    native = False
    for launch in plan.launches:
        if isinstance(launch, LibraryLaunch):
            operands = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.operands)
            results = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.results)
            segments.append(Segment(-1, launch.primitive, launch.attrs, operands, results))
            native = False
        elif not native:
            segments.append(Segment(next(entries)))
            native = True
    parameters = [(a.shape, a.dtype) for a in plan.parameters]
    written = [(a.shape, a.dtype) for a in plan.results]
    return Schedule(parameters, written, plan.outputs, plan.arena, segments, len(plan.launches))


def transformed_program(program: Program) -> Program:
    """The transformed program as data again, for the reference evaluator."""
    module = transformed(program, observer(program.name))
    function = module.find("main")
    ops, results = function.read()
    slots = {id(t): i for i, t in enumerate(function.arguments)}
    instructions = []
    for op in ops:
        outs = tuple(slots.setdefault(id(t), len(slots)) for t in op.results)
        operands = tuple(slots[id(t)] for t in op.operands)
        instructions.append(Instruction(op.record, op.attrs, operands, outs, [t.aval for t in op.results]))
    return Program([t.aval for t in function.arguments], instructions, [slots[id(t)] for t in results], program.name)


# -- watching the stages ---------------------------------------------------------------------------------------------
STAGES = {
    "mx": ("1-mx.mlir", 3), "transformed": ("2-transformed.mlir", 3), "fused": ("3-fused.mlir", 3),
    "loops": ("4-loops.mlir", 4), "llvm": ("5-kernels.ll", 5), "asm": ("6-kernels.s", 6),
    "metal": ("5-kernels.metal", 5), "schedule": ("7-schedule.json", 6),
}  # fmt: skip
"""Stage -> (file in a dump, rung of the debug ladder on which it is printed)."""

_dumps = itertools.count()


def observer(name: str) -> Observer:
    """What MLXIR_DEBUG and MLXIR_DUMP ask to see of one compilation."""
    folder = Path(knobs.dump) / f"{next(_dumps):03d}-{name}" if knobs.dump else None

    def observe(stage: str, text: Callable[[], str]) -> None:
        file, rung = STAGES[stage]
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text())
        if knobs.debug >= rung:
            print(f"// ---- {name}: {stage}\n{text()}", file=sys.stderr)

    return observe
