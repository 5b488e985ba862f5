"""Prints the matrix operations of SIMD-groups: fragments of 8x8 elements, and what multiplies them.

    %a = gpu.subgroup_mma_load_matrix %t[%i] {leadDimension = 20}   simdgroup_float8x8 a0; simdgroup_load(a0, t + i, 20)
    %d = gpu.subgroup_mma_compute %a, %b, %c                        simdgroup_multiply_accumulate(c, a0, b0, c)

A fragment is a variable. A sum replaces the fragment that it adds to, which nothing else may use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mlxir.compiler.target import metal_expr as x
from mlxir.compiler.target.metal_expr import Expr
from mlxir.dialects.mlir import ir
from mlxir.runtime.errors import CompileError

if TYPE_CHECKING:
    from mlxir.compiler.target.metal_body import Body

INCLUDE = "#include <metal_simdgroup_matrix>"
SUBGROUP = "gpu.subgroup_id"


def is_fragment(type_: ir.Type) -> bool:
    return str(type_).startswith("!gpu.mma_matrix")


def fragment_type(type_: ir.Type) -> str:
    """The C++ type of an 8x8 matrix."""
    return "simdgroup_half8x8" if "xf16" in str(type_) else "simdgroup_float8x8"


def subgroups_of(operation: ir.Operation) -> int:
    """The number of SIMD-groups that a kernel with this `gpu.subgroup_id` has."""
    return int(ir.IntegerAttr(operation.attributes["upper_bound"]).value)


def _subgroup(body: Body, operation: ir.Operation) -> None:
    body.env[operation.results[0]] = Expr("simdgroup", "uint", 0, 0, subgroups_of(operation) - 1)
    body.builtins["simdgroup"] = "simdgroup_index_in_threadgroup"


def _constant(body: Body, operation: ir.Operation) -> None:
    value, type_ = body.use(operation.operands[0]), fragment_type(operation.results[0].type)
    scalar = "half" if type_ == "simdgroup_half8x8" else "float"
    text = f"make_filled_simdgroup_matrix<{scalar}, 8, 8>({value.text})"
    body.env[operation.results[0]] = Expr(text, type_)


def _pointer(body: Body, memory: ir.Value, index: ir.Value) -> str:
    name, at = body.memory[memory].name, body.use(index)
    return name if at.value == 0 else f"{name} + {at.at(3)}"


def _stride(operation: ir.Operation) -> int:
    return int(ir.IntegerAttr(operation.attributes["leadDimension"]).value)


def _load(body: Body, operation: ir.Operation) -> None:
    memory, index = operation.operands
    role = str(operation.results[0].type).rpartition('"')[0].rpartition('"')[2]
    name, type_ = body.name(role[0].lower()), fragment_type(operation.results[0].type)
    turned = ", ulong2(0, 0), true" if "transpose" in operation.attributes else ""
    body.line(f"{type_} {name};")
    body.line(f"simdgroup_load({name}, {_pointer(body, memory, index)}, {_stride(operation)}{turned});")
    body.env[operation.results[0]] = Expr(name, type_)


def _multiply_add(body: Body, operation: ir.Operation) -> None:
    a, b, c = (body.use(v) for v in operation.operands)
    if len(list(operation.operands[2].uses)) > 1 or not c.text.isidentifier():
        raise CompileError(f"[metal] {body.kernel}: a fragment that is added to must be a variable of its own")
    body.line(f"simdgroup_multiply_accumulate({c.text}, {a.text}, {b.text}, {c.text});")
    body.env[operation.results[0]] = c


def _store(body: Body, operation: ir.Operation) -> None:
    value, memory, index = operation.operands
    body.flush()
    fragment = body.use(value)
    body.line(f"simdgroup_store({fragment.text}, {_pointer(body, memory, index)}, {_stride(operation)});")


def carried_fragment(body: Body, start: ir.Value) -> Expr:
    """The variable of a loop that adds to a fragment: an enclosing loop's, or a new one."""
    e = body.use(start)
    if e.text.isidentifier() and len(list(start.uses)) == 1:
        return e
    name = body.name("sum")
    body.line(f"{e.type} {name} = {e.text};")
    return x.Expr(name, e.type)


MATRIX_RULES: dict[str, Callable[[Body, ir.Operation], None]] = {
    SUBGROUP: _subgroup,
    "gpu.subgroup_mma_constant_matrix": _constant,
    "gpu.subgroup_mma_load_matrix": _load,
    "gpu.subgroup_mma_compute": _multiply_add,
    "gpu.subgroup_mma_store_matrix": _store,
}
