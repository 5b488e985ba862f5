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

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlxir.compiler import kernels
from mlxir.compiler.build import build
from mlxir.compiler.kernels import Kernel
from mlxir.compiler.lower.attention import lower_attention
from mlxir.compiler.lower.attention_grad import lower_attention_grad
from mlxir.compiler.lower.attention_subgroups import lower_attention_subgroups, streams
from mlxir.compiler.lower.attention_tiles_grad import lower_attention_grad_tiles
from mlxir.compiler.lower.conv import lower_conv
from mlxir.compiler.lower.gemm import host_vector_bytes, lower_matmul
from mlxir.compiler.lower.gemm_subgroups import lower_conv_subgroups, lower_matmul_subgroups
from mlxir.compiler.lower.kernels import lowering_of
from mlxir.compiler.lower.loops import SIZES, Lowered, Step, lower_fused
from mlxir.compiler.lower.mixed import lower_mixed
from mlxir.compiler.lower.plan import NativeLaunch, Parts, Plan, Stage, make_plan
from mlxir.compiler.lower.routines import Routine, define
from mlxir.compiler.lower.streaming import fits
from mlxir.compiler.passes import attention
from mlxir.compiler.passes.fuse import fuse
from mlxir.compiler.passes.in_place import update_in_place
from mlxir.compiler.passes.moments import one_pass_moments
from mlxir.compiler.passes.outline import Fused
from mlxir.compiler.passes.outline import Launch as FusedLaunch
from mlxir.compiler.passes.recognise_attention import recognise_attention
from mlxir.compiler.passes.simplify import remove_dead, simplify
from mlxir.compiler.passes.split_reductions import split_reductions
from mlxir.compiler.passes.transforms import expand_transforms
from mlxir.compiler.program import Instruction, Program
from mlxir.compiler.schedule import schedule_of
from mlxir.compiler.target import cpu, metal
from mlxir.compiler.target.codegen import compiled
from mlxir.compiler.target.launcher import launcher
from mlxir.dialects.mlir import Function, Module, context, ir, run_passes
from mlxir.dialects.symbolic import holds_symbolic
from mlxir.runtime import pages
from mlxir.runtime.jobs import Threads
from mlxir.runtime.knobs import knobs
from mlxir.runtime.launch import Object, Schedule, thread_count

pages.release()  # of what loading MLIR has read, little is needed again

Observer = Callable[[str, Callable[[], str]], None]
"""Called with each stage's name and a function that prints it."""

Lowering = Callable[[Function, ir.Block], Lowered]
"""Fills a module's body with the loops of a fused kernel."""

BLOCKED: dict[str, Lowering] = {
    "matmul": lower_matmul, "conv": lower_conv, "attention": lower_attention, "attention_grad": lower_attention_grad,
    "mixed": lower_mixed,
    "loops": lambda function, body: lower_fused(function, body, vector_bytes=host_vector_bytes()),
}  # fmt: skip
SUBGROUPS: dict[str, Lowering] = {
    "matmul": lower_matmul_subgroups, "conv": lower_conv_subgroups, "attention": lower_attention_subgroups,
    "attention_grad": lower_attention_grad_tiles,
    "loops": functools.partial(lower_fused, costly=2),
}  # fmt: skip
"""Contractions by blocks for a CPU, and by tiles of SIMD-groups for Metal, whose registers keep what a CPU would
compute again from its L1.

A composite with a kernel that is not here is taken apart.
"""

SIZED = ("loops", "matmul", "own")
"""Kinds of kernels that may take the lengths of axes at run time."""

BATCH = 4  # kernels that LLVM compiles as one module: it needs 5 ms per module, whatever is in it


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
    recognise_attention(module)
    expand_transforms(module)
    return module


def fused(program: Program, observe: Observer, contractions: dict[str, Lowering]) -> Fused:
    """The program as kernels; `contractions` says which operations have a kernel of their own."""
    module = transformed(program, observe)
    takes = streams if contractions is SUBGROUPS else fits
    attention.decompose(module, lambda op: op.record.name in contractions and takes(op))
    simplify(module)
    attention.swap(module)
    one_pass_moments(module)
    split_reductions(module)
    if contractions is BLOCKED:
        update_in_place(module)
    module.verify()
    observe("transformed", module.text)
    made = fuse(module, vectors=contractions is BLOCKED)
    made.module.verify()
    observe("fused", made.module.text)
    return made


def lowered(program: Program, observe: Observer, contractions: dict[str, Lowering] = BLOCKED) -> Loops:
    """The program as loops, for either target; `contractions` says how matmul and its like are lowered."""
    kernels = fused(program, observe, contractions)
    with context, ir.Location.unknown():
        module = ir.Module.create()
    loops = {k.name: _lower(kernels, k, contractions, module) for k in kernels.launches if k.kind != "library"}
    observe("loops", lambda: str(module))
    return Loops(module, loops, kernels, make_plan(parts_of(kernels), loops))


def _lower(fused: Fused, launch: FusedLaunch, contractions: dict[str, Lowering], module: ir.Module) -> Lowered:
    """Add the loops of one kernel to a module."""
    function = fused.module.find(launch.name)
    lower = {"loops": lower_fused, **contractions}.get(launch.kind)
    return (lower or lowering_of(function, vectors=contractions is BLOCKED))(function, module.body)


def compile_program(program: Program, observe: Observer | None = None) -> tuple[list[Object], Schedule]:
    """Object code for this processor, the launcher first, and how to call it.

    Whoever watches the stages (`observe`, MLXIR_DUMP, MLXIR_DEBUG from 3 on) sees all kernels compiled anew.
    """
    start = time.perf_counter()
    watched = observe is not None or bool(knobs.dump) or knobs.debug >= 3
    observe = observe or observer(program.name)
    parts = fused(program, observe, BLOCKED)
    made, code = _watched_kernels(parts, observe) if watched else _kernels(parts)
    plan = make_plan(parts_of(parts), {name: kernel.named(name) for name, kernel in made.items()})
    schedule = schedule_of(plan)
    observe("schedule", schedule.to_json)
    if knobs.debug >= 1:
        steps = [k.step for k in plan.launches if isinstance(k, NativeLaunch)]
        seconds = time.perf_counter() - start
        print(f"[mlxir] compiled {program.name}: {len(steps)} kernels, {seconds * 1e3:.0f} ms", file=sys.stderr)
        for step in steps if knobs.debug >= 2 else ():
            work = f"{step.extent} iterations of about {step.work:.0f} operations"
            print(f"[mlxir]   {step.name}: {work}", file=sys.stderr)
    return [launcher(), *code], schedule


def compile_generic(program: Program) -> tuple[Parts, dict[str, Lowered], list[Object]]:
    """The kernels and object code of a program with symbolic sizes, whose last parameter holds the lengths of axes.

    Those that depend on them are kept apart from other kernels, because what lowering decides from sizes belongs to the
    program.
    """
    observe = observer(program.name)
    made = fused(program, observe, BLOCKED)
    lengths = made.parameters - 1
    launches = []
    apart = {k.name for k in made.launches if k.kind != "library" and _depends_on_sizes(made.module.find(k.name))}
    for launch in made.launches:
        if launch.kind in SIZED and launch.name in apart:
            function = made.module.find(launch.name)
            function.add_parameter(made.values[lengths])
            with context:
                function.operation.attributes[SIZES] = ir.UnitAttr.get()
            launch = launch._replace(operands=(*launch.operands, lengths))
        launches.append(launch)
    made = made._replace(launches=launches)
    watched = bool(knobs.dump) or knobs.debug >= 3
    compiled_kernels, code = _watched_kernels(made, observe) if watched else _kernels(made, apart)
    return parts_of(made), {name: k.named(name) for name, k in compiled_kernels.items()}, [launcher(), *code]


def _depends_on_sizes(function: Function) -> bool:
    """Whether a kernel depends on symbolic sizes."""
    ops, _ = function.read()
    shapes = [t.shape for t in [*function.arguments, *[t for op in ops for t in op.results]]]
    return any(map(holds_symbolic, [*shapes, *[a for op in ops for a in op.attrs.values()]]))


def parts_of(fused: Fused) -> Parts:
    """A fused program without its functions."""
    stages = [Stage(k.kind, k.name, k.op.attrs if k.op is not None else None, k.operands, k.results)
              for k in fused.launches]  # fmt: skip
    return Parts(stages, fused.values, fused.parameters, fused.outputs)


def _kernels(fused: Fused, apart: Collection[str] = ()) -> tuple[dict[str, Kernel], list[Object]]:
    """The compiled kernels by name, and all objects.

    Equal kernels are compiled once, by whichever program needs them first; those that are kept `apart`, by this one.

    Kernels are compiled in small batches, so that LLVM works on some while the next ones are lowered here.
    """
    launches = {k.name: k for k in fused.launches if k.kind != "library"}
    keys = {name: kernels.key_of(fused.module.find(name), k.kind) for name, k in launches.items()}
    first = {key: name for name, key in reversed(keys.items())}
    alone = {keys[name] for name in apart}
    known = {key: kernel for key in first if key not in alone and (kernel := kernels.recall(key)) is not None}
    missing = [key for key in dict.fromkeys(keys.values()) if key not in known]
    routines: dict[Routine, Callable[[], Object]] = {}
    with Threads(thread_count()) as threads:

        def need(kernel: Lowered) -> None:
            for routine in kernel.routines:
                if routine not in routines:
                    routines[routine] = _routine(routine, threads)

        for kernel in known.values():
            need(kernel.lowered)
        batches = []
        for batch in _batches([key for key in missing if key not in alone], [key for key in missing if key in alone]):
            with context, ir.Location.unknown():
                module = ir.Module.create()
            loops = {}
            for key in batch:
                loops[key] = kernels.symbols(_lower(fused, launches[first[key]], BLOCKED, module), key)
                need(loops[key])
            steps = [s for kernel in loops.values() for s in kernel.steps]
            imports = dict.fromkeys(r for kernel in loops.values() for r in kernel.routines)
            # Who recalls one of these kernels links the object with all of them.
            loops = {key: kernel._replace(routines=tuple(imports)) for key, kernel in loops.items()}
            text, symbols = cpu.llvm_text(module, steps), [r.symbol for r in imports]
            batches.append((loops, threads.submit(functools.partial(cpu.code_of, text, steps, symbols))))
        for loops, code in batches:
            for key, lowered in loops.items():
                made = Kernel(lowered, code.wait()).unnamed(first[key])
                known[key] = made if key in alone else kernels.keep(key, made)
        shared = [made() for made in routines.values()]
    own = {kernel.code.digest: kernel.code for kernel in known.values()}
    return {name: known[key] for name, key in keys.items()}, [*shared, *own.values()]


def _batches(*groups: list[str]) -> Iterator[list[str]]:
    """What is compiled as one module: kernels of one group."""
    for keys in groups:
        for at in range(0, len(keys), BATCH):
            yield keys[at : at + BATCH]


def _routine(routine: Routine, threads: Threads) -> Callable[[], Object]:
    """What waits for the object of a routine, which is recalled, or compiled on a thread from now on."""
    found = kernels.recall_routine(routine)
    if found is not None:
        return lambda: found
    code = threads.submit(functools.partial(compiled, cpu.routine_text(routine), optimised=False))
    return lambda: kernels.keep_routine(routine, code.wait())


def routine_code(routine: Routine) -> Object:
    """The object of a routine."""
    with Threads(1) as thread:
        return _routine(routine, thread)()


def _watched_kernels(fused: Fused, observe: Observer) -> tuple[dict[str, Kernel], list[Object]]:
    """The compiled kernels by name, from one module with readable symbols, apart from all caches; and its object.

    The module holds the routines, too.
    """
    with context, ir.Location.unknown():
        module = ir.Module.create()
    loops = {}
    for launch in fused.launches:
        if launch.kind != "library":
            kernel = _lower(fused, launch, BLOCKED, module)
            steps = [s._replace(symbol=f"{s.name}.thunk") for s in kernel.steps]
            loops[launch.name] = kernel._replace(steps=steps)
    for routine in {r: None for kernel in loops.values() for r in kernel.routines}:
        define(module.body, routine)
    steps = [s for kernel in loops.values() for s in kernel.steps]
    observe("loops", lambda: str(module))
    module.operation.verify()
    text = cpu.llvm_text(module, steps)
    observe("llvm", lambda: text)
    code = cpu.code_of(text, steps)
    observe("asm", lambda: compiled(text, assembly=True).decode())
    return {name: Kernel(kernel, code).unnamed(name) for name, kernel in loops.items()}, [code]


def compile_metal(program: Program, observe: Observer | None = None) -> tuple[str, dict[str, Any]]:
    """Metal shaders, and the schedule that runs them (its format: compiler/target/metal.py)."""
    observe = observe or observer(program.name)
    loops = lowered(program, observe, SUBGROUPS)
    code = metal.generate(loops.module, loops.kernels, loops.fused, loops.plan)
    observe("metal", lambda: code.text)
    observe("schedule", lambda: json.dumps(code.schedule, indent=1))
    return code.text, code.schedule


def transformed_program(program: Program) -> Program:
    """The transformed program as data again, for the reference evaluator; dead and common operations are gone."""
    module = transformed(program, observer(program.name))
    function = module.find("main")
    remove_dead(function)
    run_passes(module.module, "cse")
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
