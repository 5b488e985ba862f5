"""The CPU target: loops -> LLVM IR -> object code.

    func.func @softmax(%x, %out) { scf.parallel (%row) = 0 to 4096 {...} }
      -> define void @softmax(ptr noalias %x, ptr noalias %out, i64 %lo, i64 %hi)   one thread's share of the iterations

The entry `mlxir_run(buffers, arena, threads)` runs the steps in order, each over the threads through the OpenMP
runtime's ABI (`GOMP_parallel`,
which libgomp, libomp and libiomp5 export) if its work pays for them. Loops are vectorised by LLVM; transcendental
functions of float32 are the
polynomials of mathlib, inlined before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm

from mlxir.compiler.lower import mathlib
from mlxir.compiler.lower.loops import Step
from mlxir.compiler.lower.plan import Place, Plan
from mlxir.compiler.lower.scalar_math import define_math_function
from mlxir.compiler.target.llvm_text import to_llvmlite
from mlxir.dialects.mlir import context, ir, run_passes, to_llvm

GRAIN = 1 << 18  # simple operations that are worth another thread: waking one takes about 5 us
PIPELINE = (
    "convert-vector-to-scf,convert-scf-to-cf,convert-math-to-llvm,convert-vector-to-llvm,convert-math-to-libm,expand-strided-metadata,"
    "lower-affine,convert-arith-to-llvm,finalize-memref-to-llvm{use-generic-functions=0},"
    "convert-func-to-llvm{use-bare-ptr-memref-call-conv=1},convert-cf-to-llvm,reconcile-unrealized-casts"
)
MATH = {
    "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p",
    "sin": "sin", "cos": "cos", "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
    "erf": "erf", "powf": "pow",
}  # fmt: skip


class CpuCode:
    """What the target made: LLVM IR as text, and object code and assembly from it."""

    def __init__(self, text: str, machine: Any, module: Any):
        self.text, self._machine, self._module = text, machine, module

    def object_code(self) -> bytes:
        return self._machine.emit_object(self._module)

    def assembly(self) -> str:
        return self._machine.emit_assembly(self._module)


def generate(loops: ir.Module, steps: Sequence[Step], plan: Plan) -> CpuCode:
    """Code for the lowered steps; `loops` is consumed."""
    with context, ir.Location.unknown():
        _map_parallel_loops(loops)
        _expand_math(loops)
        run_passes(loops, PIPELINE)
        text = to_llvmlite(to_llvm(loops))
    # Internal: a kernel lives on only as inlined into its thunk.
    text = "\n".join([text.replace("define void @mx_", "define internal void @mx_"), *_entries(steps, plan)])
    module, machine = _optimise(text)
    return CpuCode(text, machine, module)


def _map_parallel_loops(loops: ir.Module) -> None:
    """The one place that maps parallel loops: the top-level one takes its bounds from the caller, those inside are
    serial.
    """
    index, noalias = ir.IndexType.get(), ir.DictAttr.get({"llvm.noalias": ir.UnitAttr.get()})
    options = [["prefer-vector-width", "512"], ["no-trapping-math", "true"]]
    passthrough = ir.ArrayAttr.get([ir.ArrayAttr.get([ir.StringAttr.get(s) for s in pair]) for pair in options])
    for view in loops.body.operations:
        function = view.operation
        block = function.regions[0].blocks[0]
        buffers = [a.type for a in block.arguments]
        low, high = (block.add_argument(index, ir.Location.unknown()) for _ in range(2))
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([*buffers, index, index], []))
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([noalias] * len(buffers) + [ir.DictAttr.get({})] * 2)
        function.attributes["passthrough"] = passthrough
        parallel = next(o.operation for o in block.operations if o.operation.name == "scf.parallel")
        parallel.operands[0], parallel.operands[1] = low, high


def _expand_math(loops: ir.Module) -> None:
    """float32 operations of the math dialect become calls of mathlib's functions, which LLVM inlines."""
    f32 = ir.F32Type.get()
    found: list[ir.Operation] = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name.startswith("math.") and operation.name[5:] in MATH and operation.results[0].type == f32:
            found.append(operation)
        return ir.WalkResult.ADVANCE

    loops.operation.walk(visit)
    defined: set[str] = set()
    for operation in found:
        name = operation.name[5:]
        symbol = f"mlxir_{name}_f32"
        if symbol not in defined:
            defined.add(symbol)
            define_math_function(loops.body, symbol, getattr(mathlib, MATH[name]), len(operation.operands))
        call = ir.Operation.create(
            "func.call",
            results=[f32],
            operands=list(operation.operands),
            attributes={"callee": ir.FlatSymbolRefAttr.get(symbol)},
            ip=ir.InsertionPoint(operation),
            loc=operation.location,
        )
        operation.results[0].replace_all_uses_with(call.result)
        operation.erase()


# -- the entry -------------------------------------------------------------------------------------------------------
PRELUDE = """
%mlxir.task = type { ptr, i64, i64, ptr }

declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()

; LLVM may fold double -> float -> half to one libcall, which lives in compiler-rt: bring our own.
define weak half @__truncdfhf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to half
  ret half %h
}
define weak bfloat @__truncdfbf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to bfloat
  ret bfloat %h
}

; One thread's share of a step: iterations [t * chunk, (t + 1) * chunk), chunks rounded up to `align`.
define internal void @mlxir.share(ptr %mlxir.task) {
  %fn = load ptr, ptr %mlxir.task
  %np = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 1
  %n = load i64, ptr %np
  %ap = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 2
  %align = load i64, ptr %ap
  %bp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 3
  %buffers = load ptr, ptr %bp
  %t32 = call i32 @omp_get_thread_num()
  %T32 = call i32 @omp_get_num_threads()
  %t = zext i32 %t32 to i64
  %T = zext i32 %T32 to i64
  %n1 = add i64 %n, %T
  %n2 = sub i64 %n1, 1
  %even = udiv i64 %n2, %T
  %e1 = add i64 %even, %align
  %e2 = sub i64 %e1, 1
  %e3 = udiv i64 %e2, %align
  %chunk = mul i64 %e3, %align
  %lo0 = mul i64 %t, %chunk
  %hi0 = add i64 %lo0, %chunk
  %lo1 = icmp ult i64 %lo0, %n
  %lo = select i1 %lo1, i64 %lo0, i64 %n
  %hi1 = icmp ult i64 %hi0, %n
  %hi = select i1 %hi1, i64 %hi0, i64 %n
  call void %fn(i64 %lo, i64 %hi, ptr %buffers)
  ret void
}

define internal void @mlxir.launch(ptr %fn, i64 %n, i64 %align, i32 %useful, i32 %threads, ptr %buffers) {
  %less = icmp ult i32 %useful, %threads
  %T = select i1 %less, i32 %useful, i32 %threads
  %alone = icmp ule i32 %T, 1
  br i1 %alone, label %serial, label %fork
serial:
  call void %fn(i64 0, i64 %n, ptr %buffers)
  ret void
fork:
  %mlxir.task = alloca %mlxir.task
  store ptr %fn, ptr %mlxir.task
  %np = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 1
  store i64 %n, ptr %np
  %ap = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 2
  store i64 %align, ptr %ap
  %bp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 3
  store ptr %buffers, ptr %bp
  call void @GOMP_parallel(ptr @mlxir.share, ptr %mlxir.task, i32 %T, i32 0)
  ret void
}
"""


def _entries(steps: Sequence[Step], plan: Plan) -> list[str]:
    """LLVM text: a thunk per step that unpacks its buffers, and one entry per run of native steps."""
    lines = [PRELUDE]
    for step in steps:
        lines += [f"define internal void @{step.name}.thunk(i64 %lo, i64 %hi, ptr %buffers) {{"]
        for i in range(len(step.buffers)):
            lines += [f"  %p{i} = getelementptr ptr, ptr %buffers, i64 {i}", f"  %b{i} = load ptr, ptr %p{i}, align 8"]
        arguments = "".join(f"ptr %b{i}, " for i in range(len(step.buffers)))
        lines += [f"  call void @{step.name}({arguments}i64 %lo, i64 %hi)", "  ret void", "}"]
    for number, segment in enumerate(plan.native_segments()):
        lines += [f"define void @mlxir_run_{number}(ptr %table, ptr %arena, i32 %threads) {{"]
        most = max((len(launch.places) for launch in segment), default=1)
        lines += [f"  %buffers = alloca [{most} x ptr], align 16"]
        for n, launch in enumerate(segment):
            for i, place in enumerate(launch.places):
                lines += _address(f"a{n}_{i}", place)
                slot = f"%s{n}_{i}"
                lines += [f"  {slot} = getelementptr ptr, ptr %buffers, i64 {i}", f"  store ptr %a{n}_{i}, ptr {slot}"]
            step = launch.step
            useful = max(1, min(step.extent, int(step.extent * step.work / GRAIN)))
            align = 16 if step.extent >= 1024 else 1
            lines += [
                f"  call void @mlxir.launch(ptr @{step.name}.thunk, i64 {step.extent}, i64 {align},"
                f" i32 {min(useful, 1 << 20)}, i32 %threads, ptr %buffers)"
            ]
        lines += ["  ret void", "}"]
    return lines


def _address(name: str, place: Place) -> list[str]:
    if place.kind == "arena":
        return [f"  %{name} = getelementptr i8, ptr %arena, i64 {place.at}"]
    return [f"  %{name}.p = getelementptr ptr, ptr %table, i64 {place.at}", f"  %{name} = load ptr, ptr %{name}.p"]


def _optimise(text: str) -> tuple[Any, Any]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    # Interleaving is the vectoriser's; further unrolling and SLP cost compile time and gain nothing on these loops.
    options.loop_vectorization, options.slp_vectorization, options.loop_unrolling = True, False, False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module, machine
