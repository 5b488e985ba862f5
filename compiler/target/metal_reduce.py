"""Reductions over the threads of a threadgroup, in two levels: within each SIMD-group, then over the groups' results.

    v = simd_sum(v);  if (lane == 0) partial[simdgroup] = v;  barrier;
    v = simd_sum(lane < simdgroups ? partial[lane] : 0);      barrier

A threadgroup is one-dimensional and made of whole SIMD-groups of 32, so every lane takes part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mlxir.compiler.target import metal_expr as x
from mlxir.compiler.target.metal_memory import walk
from mlxir.compiler.target.metal_ops import FLOAT_TYPES, bits_of, is_bool
from mlxir.dialects.mlir import ir
from mlxir.runtime.errors import CompileError

SIMD = 32
_NAMES = {
    "addf": "sum", "addi": "sum", "mulf": "product", "muli": "product", "maximumf": "maximum", "minimumf": "minimum",
    "maxsi": "max", "maxui": "max", "minsi": "min", "minui": "min", "andi": "and", "ori": "or", "xori": "xor",
}  # fmt: skip
_BOOLEAN = {"maxui": "or", "minui": "and"}  # max of booleans is or
_FORMULAS = {
    "sum": "v + other", "product": "v * other", "max": "max(v, other)", "min": "min(v, other)", "and": "v & other",
    "or": "v | other", "xor": "v ^ other",
}  # fmt: skip


class Combine(NamedTuple):
    """How a parallel loop combines its iterations: one operation of two block arguments."""

    name: str
    operation: ir.Operation
    block: ir.Block

    def variable_type(self, type_: ir.Type) -> str:
        """The C++ type of the running value."""
        if is_bool(type_):
            return "bool"
        if isinstance(type_, ir.IntegerType):
            bits = max(bits_of(type_), 32)
            return x.SIGNED[bits] if self.operation.name in ("arith.maxsi", "arith.minsi") else x.UNSIGNED[bits]
        return FLOAT_TYPES[str(type_)]

    def neutral(self, type_: ir.Type) -> Any:
        """What changes nothing, as the constant that a loop starts from."""
        if self.name in ("maximum", "minimum"):
            return -math.inf if self.name == "maximum" else math.inf
        if self.name in ("sum", "product"):
            return {"sum": 0, "product": 1}[self.name]
        if is_bool(type_):
            return self.name == "and"
        bits = bits_of(type_)
        if self.name in ("or", "xor"):
            return 0
        if self.name == "and":
            return -1
        low, high = x.RANGE[(x.SIGNED if "si" in self.operation.name else x.UNSIGNED)[bits]]
        value = low if self.name == "max" else high
        return value - (1 << bits) if value >> (bits - 1) > 0 else value

    def check_neutral(self, kernel: str, start: ir.Value) -> None:
        """Each thread starts from the initial value, so it must change nothing."""
        owner = start.owner
        constant = None if isinstance(owner, ir.Block) else owner.operation.attributes["value"]
        value = getattr(constant, "value", None)
        if is_bool(start.type) and value is not None:
            value = bool(value)
        if value != self.neutral(start.type):
            raise CompileError(
                f"[metal] {kernel}: a reduction by {self.operation.name} does not start from its neutral element"
            )


def combine_of(kernel: str, block: ir.Block) -> Combine:
    operations = list(walk(block))
    name = operations[0].name.partition(".")[2]
    if len(operations) != 2 or name not in _NAMES:
        raise CompileError(f"[metal] {kernel}: no reduction over threads is known for {operations[0].name}")
    boolean = is_bool(block.arguments[0].type)
    return Combine(_BOOLEAN.get(name, _NAMES[name]) if boolean else _NAMES[name], operations[0], block)


def simd_function(name: str, kind: str) -> str:
    """The function that reduces over a SIMD-group: Metal's own, or a helper."""
    if kind == "bool":
        return {"and": "simd_all", "or": "simd_any"}[name]
    return f"simd_{name}_{kind}" if kind in ("long", "ulong") else f"simd_{name}"


def threadgroup_function(name: str, kind: str) -> str:
    """The helper that reduces over a threadgroup."""
    return f"threadgroup_{name}" if kind in ("float", "bool") else f"threadgroup_{name}_{kind}"


def is_helper(function: str) -> bool:
    """Whether a reduction function is not Metal's own: 64-bit integers, and extrema that a NaN wins."""
    return function in EXTRA or not function.startswith("simd_") or function.endswith("long")


EXTRA = {
    f"simd_{name}": f"""\
inline float simd_{name}(float v) {{
  return simd_any(isnan(v)) ? NAN : simd_{name[:3]}(v);
}}"""
    for name in ("maximum", "minimum")
}


def helper(name: str) -> tuple[str, list[str]]:
    """The text of a reduction's helper function, and the helpers that it calls itself."""
    if name in EXTRA:
        return EXTRA[name], []
    level, operation, *rest = name.split("_")
    kind = rest[0] if rest else "bool" if operation in ("and", "or") else "float"
    if level == "simd":
        return _simd_helper(name, operation, kind), []
    inner = simd_function(operation, kind)
    neutral = _neutral_text(operation, kind)
    text = f"""\
inline {kind} {name}({kind} v, threadgroup {kind}* partial, uint simdgroups, uint lane, uint simdgroup) {{
  v = {inner}(v);
  if (lane == 0) partial[simdgroup] = v;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  v = {inner}(lane < simdgroups ? partial[lane] : {neutral});
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return v;
}}"""
    return text, [inner] if is_helper(inner) else []


def _simd_helper(name: str, operation: str, kind: str) -> str:
    """64-bit values travel between lanes as two 32-bit ones."""
    return f"""\
inline {kind} {name}({kind} v) {{
  for (ushort distance = 16; distance > 0; distance /= 2) {{
    const {kind} other = as_type<{kind}>(simd_shuffle_xor(as_type<uint2>(v), distance));
    v = {_FORMULAS[operation]};
  }}
  return v;
}}"""


def _neutral_text(operation: str, kind: str) -> str:
    if kind == "bool":
        return "true" if operation == "and" else "false"
    if kind == "float":
        return {"sum": "0.0f", "product": "1.0f", "maximum": "-INFINITY", "minimum": "INFINITY"}[operation]
    low, high = x.RANGE[kind]
    value = {"sum": 0, "product": 1, "max": low, "min": high, "and": high, "or": 0, "xor": 0}[operation]
    return x.cast(x.integer(value), kind).text
