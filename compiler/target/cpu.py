"""The CPU target: loops -> LLVM IR.

    func.func @softmax(%x, %out) { scf.parallel (%row) = 0 to 4096 {...} }
      -> define internal void @softmax(ptr noalias %x, ptr noalias %out, i64 %lo, i64 %hi)   one thread's share of it
         define void @SYMBOL(i64 %lo, i64 %hi, ptr %buffers)                                 what the launcher calls

Kernels know nothing of each other. `LAUNCHER` is the same for all programs: it walks a program's list of launches and
runs each over the threads through the OpenMP runtime's ABI (`GOMP_parallel`, which libgomp, libomp and libiomp5
export) if its work pays for them. Loops are vectorised by LLVM; transcendental functions of float32 are the polynomials
of mathlib, inlined before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set

from mlxir.compiler.lower import mathlib
from mlxir.compiler.lower.loops import Step
from mlxir.compiler.lower.plan import NativeLaunch, Place
from mlxir.compiler.lower.routines import Routine, define
from mlxir.compiler.lower.scalar_math import define_math_function
from mlxir.compiler.target.codegen import compiled
from mlxir.compiler.target.llvm_text import to_llvmlite
from mlxir.compiler.target.unswitch import unswitch
from mlxir.dialects.mlir import context, ir, run_passes, to_llvm
from mlxir.runtime.launch import Launch, Object

GRAIN = 1 << 18  # simple operations that are worth another thread: waking one takes about 5 us
_FUNCTIONS = "convert-func-to-llvm{use-bare-ptr-memref-call-conv=1}"
# Vectors have one dimension, and memrefs one and no views: `convert-to-llvm` alone takes the rest.
PIPELINE = f"convert-scf-to-cf,{_FUNCTIONS},convert-to-llvm,reconcile-unrealized-casts"
LIBM = f"convert-math-to-libm,{_FUNCTIONS},reconcile-unrealized-casts"  # float64 functions that LLVM has no name for
MATH = {
    "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p",
    "sin": "sin", "cos": "cos", "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "atan2": "arctan2",
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
    "erf": "erf", "powf": "pow",
}  # fmt: skip


def llvm_text(loops: ir.Module, steps: Sequence[Step]) -> str:
    """LLVM IR of the lowered steps, one external function `step.symbol` for each; `loops` is consumed."""
    with context, ir.Location.unknown():
        _map_parallel_loops(loops, {s.name for s in steps})
        rest = _expand_math(loops)
        run_passes(loops, PIPELINE)
        if rest:
            run_passes(loops, LIBM)
        text = to_llvmlite(to_llvm(loops))
    text = text.replace("define void @mx_", "define internal void @mx_")
    text = text.replace("define float @mlxir_", "define internal float @mlxir_")
    return "\n".join([text, *map(_thunk, steps)])


def _thunk(step: Step) -> str:
    """Calls a kernel with the buffers of a table. It is not inlined: `noalias` is dear except on parameters."""
    count = len(step.buffers)
    lines = [f"define void @{step.symbol}(i64 %lo, i64 %hi, ptr %buffers) {{"]
    for i in range(count):
        lines += [f"  %p{i} = getelementptr ptr, ptr %buffers, i64 {i}", f"  %b{i} = load ptr, ptr %p{i}, align 8"]
    arguments = "".join([f"ptr %b{i}, " for i in range(count)])
    return "\n".join([*lines, f"  call void @{step.name}({arguments}i64 %lo, i64 %hi) noinline", "  ret void", "}"])


def code_of(text: str, steps: Sequence[Step], imports: Sequence[str] = ()) -> Object:
    """The object code of `llvm_text`, which calls the routines `imports`."""
    code = compiled(text)
    return Object(hashlib.sha256(code).hexdigest(), tuple([s.symbol for s in steps]), code, tuple(imports))


def routine_text(routine: Routine) -> str:
    """LLVM IR of one routine."""
    with context, ir.Location.unknown():
        module = ir.Module.create()
    define(module.body, routine)
    return llvm_text(module, [])


def launch_of(launch: NativeLaunch) -> Launch:
    """What the launcher needs to know of a step: how it is shared among threads, and its buffers."""
    step = launch.step
    useful = max(1, min(step.extent, int(step.extent * step.work / GRAIN), 1 << 20))
    align = 16 if step.extent >= 1024 else 1
    return Launch(step.symbol, step.extent, align, useful, tuple(map(_encoded, launch.places)))


def _encoded(place: Place) -> int:
    """An offset in the arena, or the complement of an entry of the table."""
    return place.at if place.kind == "arena" else ~place.at


def _map_parallel_loops(loops: ir.Module, steps: Set[str]) -> None:
    """The one place that maps parallel loops: the top-level one of a step takes its bounds from the caller, those
    inside are serial. A routine has none.
    """
    index, noalias = ir.IndexType.get(), ir.DictAttr.get({"llvm.noalias": ir.UnitAttr.get()})
    options = [["prefer-vector-width", "512"], ["no-trapping-math", "true"]]
    passthrough = ir.ArrayAttr.get([ir.ArrayAttr.get([ir.StringAttr.get(s) for s in pair]) for pair in options])
    for view in loops.body.operations:
        function = view.operation
        function.attributes["passthrough"] = passthrough
        if ir.StringAttr(function.attributes["sym_name"]).value not in steps:
            continue
        block = function.regions[0].blocks[0]
        buffers = [a.type for a in block.arguments]
        low, high = (block.add_argument(index, ir.Location.unknown()) for _ in range(2))
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([*buffers, index, index], []))
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([noalias] * len(buffers) + [ir.DictAttr.get({})] * 2)
        parallel = next(o.operation for o in block.operations if o.operation.name == "scf.parallel")
        parallel.operands[0], parallel.operands[1] = low, high
        unswitch(parallel.regions[0].blocks[0])


def _expand_math(loops: ir.Module) -> bool:
    """float32 operations of the math dialect become calls of mathlib's functions, which LLVM inlines.

    Returns whether operations on other types are left.
    """
    f32 = ir.F32Type.get()
    found: list[ir.Operation] = []
    rest = False

    def visit(operation: ir.Operation) -> ir.WalkResult:
        nonlocal rest
        if operation.name.startswith("math.") and operation.name[5:] in MATH:
            if operation.results[0].type == f32:
                found.append(operation)
            else:
                rest = True
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
    return rest


# -- the launcher ----------------------------------------------------------------------------------------------------
LAUNCHER = """
%mlxir.task = type { ptr, i64, i64, ptr, ptr }

declare void @GOMP_parallel(ptr, ptr, i32, i32)
declare i32 @omp_get_thread_num()
declare i32 @omp_get_num_threads()
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.usub.sat.i64(i64, i64)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)

; LLVM may fold double -> float -> half to one libcall, which lives in compiler-rt: kernels are linked with these.
define half @__truncdfhf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to half
  ret half %h
}
define bfloat @__truncdfbf2(double %d) {
  %slot = alloca float
  %f = fptrunc double %d to float
  store volatile float %f, ptr %slot
  %g = load volatile float, ptr %slot
  %h = fptrunc float %g to bfloat
  ret bfloat %h
}

; One thread's part of a step. Iterations are shared out evenly, and a share is cut into four pieces (rounded up to
; `align`): a thread takes those of its own share, then what others have not begun, so that nobody waits for a thread that
; the system runs late or slowly. What each has taken is counted in a cache line of its own.
define internal void @mlxir.share(ptr %mlxir.task) {
entry:
  %fn = load ptr, ptr %mlxir.task
  %np = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 1
  %n = load i64, ptr %np
  %ap = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 2
  %align = load i64, ptr %ap
  %bp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 3
  %buffers = load ptr, ptr %bp
  %kp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 4
  %counters = load ptr, ptr %kp
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
  %share = mul i64 %e3, %align
  %p1 = add i64 %e3, 3
  %p2 = udiv i64 %p1, 4
  %piece = mul i64 %p2, %align
  br label %next
next:
  %v = phi i64 [ 0, %entry ], [ %v1, %done ]
  %whose0 = add i64 %t, %v
  %over = icmp uge i64 %whose0, %T
  %whose1 = sub i64 %whose0, %T
  %whose = select i1 %over, i64 %whose1, i64 %whose0
  %first = mul i64 %whose, %share
  %left = call i64 @llvm.usub.sat.i64(i64 %n, i64 %first)
  %length = call i64 @llvm.umin.i64(i64 %left, i64 %share)
  %counter = getelementptr [64 x i8], ptr %counters, i64 %whose
  br label %look
look:
  %taken = load atomic i64, ptr %counter monotonic, align 8
  %some = icmp ult i64 %taken, %length
  br i1 %some, label %take, label %done
take:
  %from = atomicrmw add ptr %counter, i64 %piece monotonic
  %mine = icmp ult i64 %from, %length
  br i1 %mine, label %work, label %done
work:
  %to0 = add i64 %from, %piece
  %to = call i64 @llvm.umin.i64(i64 %to0, i64 %length)
  %lo = add i64 %first, %from
  %hi = add i64 %first, %to
  call void %fn(i64 %lo, i64 %hi, ptr %buffers)
  br label %look
done:
  %v1 = add i64 %v, 1
  %more = icmp ult i64 %v1, %T
  br i1 %more, label %next, label %end
end:
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
  %lines = zext i32 %T to i64
  %counters = alloca [64 x i8], i64 %lines, align 64
  %bytes = mul i64 %lines, 64
  call void @llvm.memset.p0.i64(ptr align 64 %counters, i8 0, i64 %bytes, i1 false)
  %kp = getelementptr %mlxir.task, ptr %mlxir.task, i32 0, i32 4
  store ptr %counters, ptr %kp
  call void @GOMP_parallel(ptr @mlxir.share, ptr %mlxir.task, i32 %T, i32 0)
  ret void
}

; A program is a list of 64-bit words: the most buffers of a launch, then the launches, then 0. A launch is its
; function, its iterations, `align`, the threads that pay, the number of its buffers, and these: offsets in the arena,
; or complements of entries of the table.
define void @mlxir_run(ptr %program, ptr %table, ptr %arena, i32 %threads) {
entry:
  %most = load i64, ptr %program
  %buffers = alloca ptr, i64 %most, align 16
  %first = getelementptr i64, ptr %program, i64 1
  br label %next
next:
  %at = phi ptr [ %first, %entry ], [ %after, %go ]
  %fn = load ptr, ptr %at
  %end = icmp eq ptr %fn, null
  br i1 %end, label %done, label %launch
launch:
  %np = getelementptr i64, ptr %at, i64 1
  %n = load i64, ptr %np
  %ap = getelementptr i64, ptr %at, i64 2
  %align = load i64, ptr %ap
  %up = getelementptr i64, ptr %at, i64 3
  %useful = load i32, ptr %up
  %cp = getelementptr i64, ptr %at, i64 4
  %count = load i64, ptr %cp
  %places = getelementptr i64, ptr %at, i64 5
  br label %more
more:
  %i = phi i64 [ 0, %launch ], [ %i1, %place ]
  %left = icmp ult i64 %i, %count
  br i1 %left, label %place, label %go
place:
  %pp = getelementptr i64, ptr %places, i64 %i
  %p = load i64, ptr %pp
  %inside = icmp sge i64 %p, 0
  %index = xor i64 %p, -1
  %offset = getelementptr i8, ptr %arena, i64 %p
  %entry_at = getelementptr ptr, ptr %table, i64 %index
  %from = select i1 %inside, ptr %program, ptr %entry_at
  %given = load ptr, ptr %from
  %b = select i1 %inside, ptr %offset, ptr %given
  %slot = getelementptr ptr, ptr %buffers, i64 %i
  store ptr %b, ptr %slot
  %i1 = add i64 %i, 1
  br label %more
go:
  call void @mlxir.launch(ptr %fn, i64 %n, i64 %align, i32 %useful, i32 %threads, ptr %buffers)
  %after = getelementptr i64, ptr %places, i64 %count
  br label %next
done:
  ret void
}

; The same with one argument, which Python passes faster: the program, the arena, the threads, then the table.
define void @mlxir_call(ptr %block) {
  %program = load ptr, ptr %block
  %ap = getelementptr i64, ptr %block, i64 1
  %arena = load ptr, ptr %ap
  %tp = getelementptr i64, ptr %block, i64 2
  %threads64 = load i64, ptr %tp
  %threads = trunc i64 %threads64 to i32
  %table = getelementptr i64, ptr %block, i64 3
  call void @mlxir_run(ptr %program, ptr %table, ptr %arena, i32 %threads)
  ret void
}
"""

