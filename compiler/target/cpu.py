"""The CPU target: loops -> LLVM IR.

    func.func @softmax(%x, %out) { scf.parallel (%row) = 0 to 4096 {...} }
      -> define internal void @softmax(ptr noalias %x, ptr noalias %out, i64 %lo, i64 %hi)   one thread's share of it
         define void @SYMBOL(i64 %lo, i64 %hi, ptr %buffers)                                 what the launcher calls

Kernels know nothing of each other. The launcher (launcher.py) walks a program's list of launches and runs each over the
threads of a pool (pool.py) if its work pays for them. Loops are vectorised by LLVM; transcendental functions of float32
are the polynomials of mathlib, inlined before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from mlxir.compiler.lower import mathlib
from mlxir.compiler.lower.routines import Routine, define
from mlxir.compiler.lower.scalar_math import define_math_function
from mlxir.compiler.lower.steps import Step
from mlxir.compiler.target.codegen import compiled
from mlxir.compiler.target.extrema import order_extrema
from mlxir.compiler.target.interleave import interleave
from mlxir.compiler.target.llvm_text import to_llvmlite
from mlxir.compiler.target.streaming import stream
from mlxir.compiler.target.unswitch import unswitch
from mlxir.dialects.mlir import context, ir, run_passes, to_llvm, verify_functions
from mlxir.runtime.caches import streaming_bytes
from mlxir.runtime.launch import Object

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
CHAINS = frozenset(f"math.{name}" for name in MATH)


def llvm_text(loops: ir.Module, steps: Sequence[Step]) -> str:
    """LLVM IR of the lowered steps, one external function `step.symbol` for each; `loops` is consumed."""
    with context, ir.Location.unknown():
        _map_parallel_loops(loops, {s.name: s.extent for s in steps})
        rest = _expand_math(loops)
        verify_functions(loops)
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


def _map_parallel_loops(loops: ir.Module, steps: Mapping[str, int]) -> None:
    """The one place that maps parallel loops: the top-level one of a step (of so many iterations) takes its bounds from
    the caller, those inside are serial. A routine has none.
    """
    index, noalias = ir.IndexType.get(), ir.DictAttr.get({"llvm.noalias": ir.UnitAttr.get()})
    options = [["prefer-vector-width", "512"], ["no-trapping-math", "true"]]
    passthrough = ir.ArrayAttr.get([ir.ArrayAttr.get([ir.StringAttr.get(s) for s in pair]) for pair in options])
    for view in loops.body.operations:
        function = view.operation
        function.attributes["passthrough"] = passthrough
        name = ir.StringAttr(function.attributes["sym_name"]).value
        if name not in steps:
            continue
        block = function.regions[0].blocks[0]
        buffers = [a.type for a in block.arguments]
        low, high = (block.add_argument(index, ir.Location.unknown()) for _ in range(2))
        function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([*buffers, index, index], []))
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([noalias] * len(buffers) + [ir.DictAttr.get({})] * 2)
        parallel = next(o.operation for o in block.operations if o.operation.name == "scf.parallel")
        parallel.operands[0], parallel.operands[1] = low, high
        unswitch(parallel.regions[0].blocks[0])
        order_extrema(parallel.regions[0].blocks[0])
        parallel = stream(function, parallel, streaming_bytes())
        interleave(parallel, steps[name], CHAINS)


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
