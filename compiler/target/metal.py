"""The Metal target: loops -> Metal Shading Language, and a schedule that says how to run it.

    func.func @softmax(%x, %out) { scf.parallel (%row) = 0 to 64 { scf.parallel (%j) ... } }
      -> kernel void softmax(device const float* in0, device float* out0, uint group [[threadgroup_...]], ...)

The text is MSL 3.1 and relies on IEEE arithmetic: it is to be compiled with fast math off (MTLMathModeSafe).
A schedule is a dict that JSON can hold:

    {"version": 1,
     "simd_width": 32,           what the shaders take threadExecutionWidth to be
     "parameters": [{"shape": [64, 100], "dtype": "float32"}],
     "results": [{"shape": [64, 100], "dtype": "float32"}],                 buffers for the caller to make
     "outputs": [1],             per output the number of a parameter or, counted on from there, of a result
     "arena": 25600,             bytes of scratch memory that the steps share
     "steps": [
       {"kernel": "softmax",
        "dispatch": "threadgroups",
        "grid": [64, 1, 1],
        "threadgroup": [32, 1, 1],
        "buffers": [{"index": 0, "kind": "parameter", "at": 0, "bytes": 25600, "shape": [64, 100], "dtype": "float32",
                     "access": "read"}, ...]},
       {"library": "sort", "attrs": {"axis": 1}, "operands": [...], "results": [...]}]}        a step on the host

- `dispatch`: with "threadgroups" the grid counts threadgroups, and the kernel relies on their size
  (dispatchThreadgroups); with "threads" it counts threads, and any size of threadgroup will do (dispatchThreads).
- `kind`: "parameter" or "result" with its number as `at`, or "arena" with a byte offset, a multiple of 64.
- `access`: "read", "write" or "readwrite". Steps run in order; two neighbours may overlap if neither writes what the
  other accesses. `bytes` may be 0: such a buffer is bound to anything, nothing accesses it.
- bool lies in memory as one byte, complex64 as two floats.
- An attribute that is a tuple is a list, a dtype {"dtype": name}, a complex number {"complex": [real, imaginary]}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxir.compiler.lower import mathlib
from mlxir.compiler.lower.loops import Lowered, Step
from mlxir.compiler.lower.plan import LibraryLaunch, NativeLaunch, Place, Plan
from mlxir.compiler.lower.scalar_math import define_math_function
from mlxir.compiler.passes.fuse import Fused
from mlxir.compiler.target import metal_expr as x
from mlxir.compiler.target.metal_body import Body, Memory, bytes_of
from mlxir.compiler.target.metal_expr import Expr
from mlxir.compiler.target.metal_matrix import INCLUDE, SUBGROUP, subgroups_of
from mlxir.compiler.target.metal_memory import (
    GroupMemory,
    constant_of,
    inner_parallels,
    is_scratch,
    upper_bound,
    walk,
)
from mlxir.compiler.target.metal_ops import HELPERS, MATHLIB
from mlxir.compiler.target.metal_reduce import SIMD, helper
from mlxir.compiler.target.metal_vectors import elements_per_thread, print_neighbours
from mlxir.dialects.mlir import Function, Op, context, ir
from mlxir.dialects.mx import Aval
from mlxir.runtime.dtypes import Dtype, bfloat16, bool_, complex64, float16, float32, float64
from mlxir.runtime.errors import CompileError

MOST_BUFFERS = 31
MOST_THREADS = 1024
THREADGROUP_BYTES = 32 << 10
PER_THREAD = 4  # elements of a row that one thread takes
FEW = 16  # a loop of so few iterations is not worth a threadgroup ...
MANY = 256  # ... if there are so many of them
LARGE = 1 << 16  # elements from which on a thread computes several neighbours, as vectors
OWN_BYTES = 1 << 10  # of scratch that a single thread may have
# Sums and products are rounded one by one, as on the CPU; clang's own pragma is one that every compiler of the family
# knows, where Metal's is new.
HEAD = "#include <metal_stdlib>\nusing namespace metal;\n#pragma clang fp contract(off)"
_TYPES = {bool_: "uchar", float16: "half", bfloat16: "bfloat", float32: "float", complex64: "float"}


class MetalCode(NamedTuple):
    """Shader source, and the schedule that runs it."""

    text: str
    schedule: dict[str, Any]


class Mapping(NamedTuple):
    """How a kernel's top-level iterations become threads.

    "thread": one thread each. "grid": one row of threads each, along the one loop inside. In both a thread may compute
    `each` neighbours. "group": one threadgroup each, whose threads share the iterations of the loops inside; as many
    SIMD-groups as multiply matrices, if any do.
    """

    form: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    each: int = 1


def generate(loops: ir.Module, kernels: dict[str, Lowered], fused: Fused, plan: Plan) -> MetalCode:
    """Shaders for the lowered kernels, and their schedule. `fused` has the functions that the kernels come from."""
    functions = {ir.StringAttr(v.operation.attributes["sym_name"]).value: v.operation for v in loops.body.operations}
    shaders = _Shaders()
    printed: dict[str, _Printed] = {}
    with context, ir.Location.unknown():
        for launch in fused.launches:
            if launch.kind == "library":
                continue
            function = fused.module.find(launch.name)
            _refuse_float64(function)
            lowered, origin = kernels[launch.name], _origin(function)
            avals = [fused.values[v] for v in (*launch.operands, *launch.results)] + lowered.temporaries
            names = _names(len(launch.operands), len(launch.results), len(lowered.temporaries))
            for step in lowered.steps:
                if step.extent:
                    buffers = [(names[b], avals[b], b in step.writes) for b in step.buffers]
                    printed[step.name] = shaders.kernel(functions[step.name], step, buffers, origin)
    return MetalCode(shaders.text(), _schedule(plan, printed))


# -- the mapping -----------------------------------------------------------------------------------------------------
def map_to_device(step: Step, block: ir.Block) -> Mapping:
    """The one place that maps parallel loops; `block` is the body of the step's top-level loop."""
    inner = inner_parallels(block)
    widest = max((upper_bound(p.operands[1]) for p in inner), default=0)
    if step.extent > x.RANGE["uint"][1] or widest > x.RANGE["uint"][1] - MOST_THREADS:
        raise CompileError(f"[metal] {step.name}: more than 2^32 iterations of one loop")
    for operation in walk(block):
        if operation.name == SUBGROUP:  # SIMD-groups work together on matrices
            return Mapping("group", (step.extent, 1, 1), (subgroups_of(operation) * SIMD, 1, 1))
    per_thread = Mapping("thread", (step.extent, 1, 1), (min(256, _whole(step.extent)), 1, 1))
    if not widest and LARGE <= step.extent <= x.RANGE["uint"][1] - MOST_THREADS:
        each = elements_per_thread(block)
        return per_thread._replace(grid=(-(-step.extent // each), 1, 1), each=each)
    if not widest or (widest <= FEW and step.extent >= MANY) or _mostly_serial(block, inner):
        return per_thread
    if len(inner) == 1 and _flat(block, inner[0]):
        each = elements_per_thread(inner[0].regions[0].blocks[0]) if widest * step.extent >= LARGE else 1
        each = each if widest % each == 0 else 1
        columns = min(widest // each, 256)
        rows = max(1, min(256 // columns, step.extent))
        return Mapping("grid", (widest // each, step.extent, 1), (columns, rows, 1), each)
    repeated = any(p.parent.name != "scf.parallel" for p in inner)
    threads = min(_whole(widest if repeated else -(-widest // PER_THREAD)), MOST_THREADS)
    return Mapping("group", (step.extent, 1, 1), (threads, 1, 1))


def _whole(threads: int) -> int:
    """Rounded up to whole SIMD-groups."""
    return -(-threads // SIMD) * SIMD


def _flat(block: ir.Block, inner: ir.Operation) -> bool:
    """Whether each iteration of the inner loop can compute the little that stands around it by itself."""
    around = [view.operation for view in block.operations]
    plain = all(
        o.name in ("memref.load", "scf.parallel", "scf.reduce") or o.name.startswith(("arith.", "math."))
        for o in around
    )
    scratch = any(
        is_scratch(o.operands[o.name == "memref.store"])
        for o in walk(block)
        if o.name in ("memref.load", "memref.store")
    )
    return plain and not scratch and not inner.results and constant_of(inner.operands[1]) is not None


def _mostly_serial(block: ir.Block, inner: Sequence[ir.Operation]) -> bool:
    """Whether all threads of a group would run the same serial loops; then one thread may do it all.

    Not if its scratch memory were large.
    """
    inside = {o for p in inner for b in p.regions[0].blocks for o in walk(b)}
    serial = [
        o
        for o in walk(block)
        if o.name == "scf.for" and o not in inside and not inner_parallels(o.regions[0].blocks[0])
    ]
    scratch = {o.operands[o.name == "memref.store"] for o in walk(block) if o.name in ("memref.load", "memref.store")}
    size = sum(4 * ir.MemRefType(m.type).shape[0] for m in scratch if is_scratch(m))
    return bool(serial) and size <= OWN_BYTES


# -- kernels ---------------------------------------------------------------------------------------------------------
class _Binding(NamedTuple):
    position: int  # among the step's buffers
    aval: Aval
    access: str


class _Printed(NamedTuple):
    mapping: Mapping
    bindings: list[_Binding]


def _names(inputs: int, outputs: int, temporaries: int) -> list[str]:
    counts = {"in": inputs, "out": outputs, "tmp": temporaries}
    return [f"{role}{i}" for role, count in counts.items() for i in range(count)]


def _line_of(op: Op) -> str:
    """The line of the user's program that an operation comes from, or nothing."""
    at = op.operation.location
    return f"{Path(str(at.filename)).name}:{at.start_line}" if isinstance(at, ir.FileLineColLoc) else ""


def _origin(function: Function) -> list[str]:
    """The operations that a kernel fuses, by the line of the user's program that they come from."""
    lines: dict[str, list[str]] = {}
    for op in function.read()[0]:
        lines.setdefault(_line_of(op), []).append(op.record.name)
    return [f"// {line}{': ' if line else ''}{', '.join(names)}" for line, names in lines.items()]


def _refuse_float64(function: Function) -> None:
    """Metal has no double; the error names the operation and its line."""
    for op in function.read()[0]:
        if any(t.dtype is float64 for t in (*op.operands, *op.results)):
            line = _line_of(op)
            where = f" ({line})" if line else ""
            raise CompileError(
                f"[{op.record.name}] float64 does not exist in Metal{where}: cast to float32, or use the CPU"
            )


class _Shaders:
    """The source as it grows: helper functions and kernels."""

    def __init__(self) -> None:
        self.helpers: dict[str, str] = {}
        self.kernels: list[str] = []

    def text(self) -> str:
        matrices = any("simdgroup_load(" in kernel for kernel in self.kernels)
        head = HEAD.replace("\n", f"\n{INCLUDE}\n", 1) if matrices else HEAD
        return "\n\n".join([head, *self.helpers.values(), *self.kernels]) + "\n"

    def need(self, name: str) -> None:
        """Add a helper function, after those that it calls."""
        if name in self.helpers:
            return
        if name in HELPERS:
            self.helpers[name] = HELPERS[name]
        elif name.startswith("mlxir_"):
            self.helpers[name] = self._math_function(name)
        else:
            text, calls = helper(name)
            for other in calls:
                self.need(other)
            self.helpers[name] = text

    def _math_function(self, name: str) -> str:
        """A function of mathlib, printed as kernels are."""
        function, arity = name.removeprefix("mlxir_"), MATHLIB[name.removeprefix("mlxir_")]
        module = ir.Module.create()
        define_math_function(module.body, name, getattr(mathlib, function), arity)
        block = module.body.operations[0].operation.regions[0].blocks[0]
        body = Body(name, self.need)
        parameters = ["x", "y"][:arity]
        for argument, parameter in zip(block.arguments, parameters, strict=True):
            body.env[argument] = Expr(parameter, "float")
        result = body.use(body.run(block).operands[0])
        lines = [*body.lines, f"  return {result.text};"]
        signature = ", ".join(f"float {p}" for p in parameters)
        summary = (getattr(mathlib, function).__doc__ or "").split("\n")[0].split(":")[0].rstrip(".")
        return "\n".join([f"// {summary}.", f"inline float {name}({signature}) {{", *lines, "}"])

    def kernel(
        self, operation: ir.Operation, step: Step, buffers: Sequence[tuple[str, Aval, bool]], origin: Sequence[str]
    ) -> _Printed:
        """Print one step. `buffers` are the names, types and whether it writes to them, of the function's arguments."""
        block = operation.regions[0].blocks[0]
        top = next(v.operation for v in block.operations if v.operation.name == "scf.parallel")
        mapping = map_to_device(step, top.regions[0].blocks[0])
        group = GroupMemory(top.regions[0].blocks[0], mapping.threadgroup[0]) if mapping.form == "group" else None
        body = Body(step.name, self.need, group)
        parameters: list[str] = []
        bindings: list[_Binding] = []
        for position, (argument, (name, aval, written)) in enumerate(zip(block.arguments, buffers, strict=True)):
            uses = [u.owner.operation.name for u in argument.uses]
            if not uses:
                continue
            type_ = _element_type(aval.dtype)
            body.memory[argument] = Memory(name, type_, "device")
            shape = "x".join(map(str, aval.shape)) or "scalar"
            const = "" if written else "const "
            parameters.append(
                f"device {const}{type_}* {name} [[buffer({len(bindings)})]],  // {aval.dtype.name} {shape}"
            )
            reads = not {"memref.load", "memref.atomic_rmw"}.isdisjoint(uses)
            access = "read" if not written else "readwrite" if reads else "write"
            bindings.append(_Binding(position, aval, access))
        if len(bindings) > MOST_BUFFERS:
            raise CompileError(f"[metal] {step.name} has {len(bindings)} buffers, Metal binds at most {MOST_BUFFERS}")
        self._print_body(body, block, top, mapping, step.extent)
        _check_threadgroup_memory(step.name, body, block)
        parameters += _positions(mapping, body)
        attribute = f"[[max_total_threads_per_threadgroup({mapping.threadgroup[0]})]]\n" if group is not None else ""
        declared = [f"threadgroup {t} {n}[{mapping.threadgroup[0] // SIMD}];" for t, n in body.partials.items()]
        head = [*origin, f"{attribute}kernel void {step.name}(", *[f"    {p}" for p in parameters]]
        self.kernels.append("\n".join([*head, *[f"  {d}" for d in declared], *body.lines, "}"]))
        return _Printed(mapping, bindings)

    @staticmethod
    def _print_body(body: Body, block: ir.Block, top: ir.Operation, mapping: Mapping, extent: int) -> None:
        inside = top.regions[0].blocks[0]
        for view in block.operations:
            if view.operation == top:
                break
            body.visit(view.operation)
        name = {"thread": "i", "grid": "row", "group": "group"}[mapping.form]
        body.env[inside.arguments[0]] = _variable(name, extent)
        if mapping.form == "thread" and mapping.each > 1:
            _print_neighbours(body, inside, extent, mapping.each)
            return
        if mapping.form == "grid":
            body.line("const uint row = position.y;")
            start = "column = position.x" if mapping.each == 1 else f"first = position.x * {mapping.each}"
            body.line(f"const uint {start};")
        for view in inside.operations:
            operation = view.operation
            if mapping.form == "grid" and operation.name == "scf.parallel":
                columns, count = operation.regions[0].blocks[0], mapping.grid[0] * mapping.each
                if mapping.each > 1:
                    print_neighbours(body, columns, "column", _variable("first", count), mapping.each)
                else:
                    body.env[columns.arguments[0]] = _variable("column", count)
                    body.run(columns)
            elif operation.name != "scf.reduce":
                body.visit(operation)


def _print_neighbours(body: Body, block: ir.Block, extent: int, each: int) -> None:
    """The elements of a thread; those of the last one, if there are fewer, one after the other."""
    body.line(f"const uint first = thread_position * {each};")
    if extent % each == 0:
        print_neighbours(body, block, "i", _variable("first", extent), each)
        return
    with body.braces(f"if (first + {each} <= {extent})"):
        print_neighbours(body, block, "i", _variable("first", extent), each)
        body.line("return;")
    body.env[block.arguments[0]] = _variable("i", extent)
    with body.braces(f"for (uint i = first; i < {extent}; ++i)"):
        body.run(block)
        body.flush()


def _variable(name: str, extent: int) -> Expr:
    return Expr(name, "uint", 0, 0, extent - 1)


def _element_type(dtype: Dtype) -> str:
    if dtype in _TYPES:
        return _TYPES[dtype]
    return (x.SIGNED if dtype.kind == "i" else x.UNSIGNED)[8 * dtype.size]


def _positions(mapping: Mapping, body: Body) -> list[str]:
    """The built-in parameters of a kernel; the last one closes the list."""
    if mapping.form == "thread" and mapping.each > 1:
        return ["uint thread_position [[thread_position_in_grid]]) {"]
    if mapping.form == "thread":
        return ["uint i [[thread_position_in_grid]]) {"]
    if mapping.form == "grid":
        return ["uint2 position [[thread_position_in_grid]]) {"]
    positions = ["uint group [[threadgroup_position_in_grid]]", "uint lid [[thread_index_in_threadgroup]]"]
    positions += [f"uint {name} [[{attribute}]]" for name, attribute in body.builtins.items()]
    return [f"{p}," for p in positions[:-1]] + [positions[-1] + ") {"]


def _check_threadgroup_memory(kernel: str, body: Body, block: ir.Block) -> None:
    scratch = [(v, m) for v, m in body.memory.items() if m.space == "threadgroup"]
    sizes = [ir.MemRefType(v.type).shape[0] * bytes_of(m.type) for v, m in scratch]
    sizes += [SIMD * bytes_of(t) for t in body.partials]
    if sum(-(-s // 16) * 16 for s in sizes) > THREADGROUP_BYTES:
        raise CompileError(
            f"[metal] {kernel} needs {sum(sizes)} bytes of threadgroup memory, there are {THREADGROUP_BYTES}"
        )


# -- the schedule ----------------------------------------------------------------------------------------------------
def _schedule(plan: Plan, printed: dict[str, _Printed]) -> dict[str, Any]:
    steps = []
    for launch in plan.launches:
        if isinstance(launch, LibraryLaunch):
            steps.append({
                "library": launch.primitive,
                "attrs": {name: _plain(value) for name, value in launch.attrs.items()},
                "operands": [_place(plan, place, aval) for place, aval in launch.operands],
                "results": [_place(plan, place, aval) for place, aval in launch.results],
            })  # fmt: skip
        else:
            steps.append(_dispatch(plan, launch, printed[launch.step.name]))
    return {
        "version": 1, "simd_width": SIMD,
        "parameters": [_spec(a) for a in plan.parameters], "results": [_spec(a) for a in plan.results],
        "outputs": plan.outputs, "arena": plan.arena, "steps": steps,
    }  # fmt: skip


def _dispatch(plan: Plan, launch: NativeLaunch, kernel: _Printed) -> dict[str, Any]:
    mapping, buffers = kernel.mapping, []
    for index, binding in enumerate(kernel.bindings):
        place = _place(plan, launch.places[binding.position], binding.aval)
        buffers.append({"index": index, **place, "access": binding.access})
    return {
        "kernel": launch.step.name, "dispatch": "threadgroups" if mapping.form == "group" else "threads",
        "grid": list(mapping.grid), "threadgroup": list(mapping.threadgroup), "buffers": buffers,
    }  # fmt: skip


def _place(plan: Plan, place: Place, aval: Aval) -> dict[str, Any]:
    kind, at = place.kind, place.at
    if kind == "table":
        inputs = len(plan.parameters)
        kind, at = ("parameter", at) if at < inputs else ("result", at - inputs)
    return {"kind": kind, "at": at, "bytes": aval.size * aval.dtype.size, **_spec(aval)}


def _spec(aval: Aval) -> dict[str, Any]:
    return {"shape": list(aval.shape), "dtype": aval.dtype.name}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Dtype):
        return {"dtype": value.name}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return value
