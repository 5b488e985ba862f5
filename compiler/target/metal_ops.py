"""The operations of arith and math as expressions of the Metal Shading Language, and functions that the language lacks.

Floats are float32 in registers. Transcendental functions are the language's `precise::` ones; erf, expm1 and log1p,
which it lacks, are the polynomials of mathlib, printed from the same bodies that the CPU target compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlxir.compiler.target import metal_expr as x
from mlxir.compiler.target.metal_expr import Expr, call, infix
from mlxir.dialects.mlir import ir
from mlxir.runtime.errors import CompileError

FLOAT_TYPES = {"f16": "half", "bf16": "bfloat", "f32": "float"}
MATHLIB = {"erf": 1, "expm1": 1, "log1p": 1}
"""Functions of mathlib that Metal has no equivalent of, with their number of arguments."""

_PRECISE = {name: name for name in (
    "exp", "exp2", "log", "log2", "log10", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
    "tanh", "asinh", "acosh", "atanh",
)} | {"powf": "pow"}  # fmt: skip
_EXACT = {
    "absf": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "roundeven": "rint", "fma": "fma",
    "copysign": "copysign",
}  # fmt: skip
_FLOAT_COMPARE = {1: "==", 2: ">", 3: ">=", 4: "<", 5: "<=", 13: "!="}
_INT_COMPARE = {
    0: ("==", None), 1: ("!=", None), 2: ("<", True), 3: ("<=", True), 4: (">", True), 5: (">=", True),
    6: ("<", False), 7: ("<=", False), 8: (">", False), 9: (">=", False),
}  # fmt: skip

HELPERS = {
    "maximum": """\
// The larger one; NaN wins.
inline float maximum(float a, float b) {
  return (a > b || isnan(a)) ? a : b;
}""",
    "minimum": """\
// The smaller one; NaN wins.
inline float minimum(float a, float b) {
  return (a < b || isnan(a)) ? a : b;
}""",
    "shuffle_up": """\
// The value of the thread `distance` below: 64 bits travel as two 32-bit values.
inline ulong shuffle_up(ulong v, ushort distance) {
  return as_type<ulong>(simd_shuffle_up(as_type<uint2>(v), distance));
}""",
    "to_long": """\
// A conversion that is defined for every float: what no int64 holds gives the least one, as on x86.
inline long to_long(float v) {
  return fabs(v) < 9.223372e+18f ? long(v) : (-9223372036854775807l - 1l);
}""",
    "to_ulong": """\
// A conversion that is defined for every float: negative numbers wrap, what is too large gives 0.
inline ulong to_ulong(float v) {
  if (fabs(v) < 9.223372e+18f) return ulong(long(v));
  return v > 0.0f && v < 1.8446744e+19f ? ulong(v) : 0ul;
}""",
    "ramp": """\
// start + i * step, rounded once: products and sums are pairs of floats, the second one the error of the first.
inline float ramp(long i, float step, float step_error, float start, float start_error) {
  const float n = float(i);
  const float product = n * step;
  const float product_error = fma(n, step, -product) + (n * step_error + float(i - long(n)) * step);
  const float sum = product + start;
  const float rest = sum - product;
  const float sum_error = (product - (sum - rest)) + (start - rest);
  return sum + (sum_error + (product_error + start_error));
}""",
}


@dataclass(frozen=True)
class Ramp:
    """`i * step + start`, which the lowering computes in float64; Metal has none, and adds pairs of floats."""

    i: Expr
    step: float
    start: float


def bits_of(type_: ir.Type) -> int:
    """The width of an integer; an index is as wide as a pointer."""
    return 64 if isinstance(type_, ir.IndexType) else ir.IntegerType(type_).width


def is_bool(type_: ir.Type) -> bool:
    return isinstance(type_, ir.IntegerType) and type_.width == 1


def float_type(type_: ir.Type, where: str) -> str:
    """`float`, `half` or `bfloat`; CompileError for float64."""
    found = FLOAT_TYPES.get(str(type_))
    if found is None:
        raise CompileError(
            f"[metal] {where} computes in {type_}, which Metal does not have; cast to float32, or use the CPU"
        )
    return found


class Operations:
    """Translates operations of one kernel. `need` is told which helper functions the expressions call."""

    def __init__(self, kernel: str, need: Callable[[str], None]):
        self.kernel, self.need = kernel, need

    def expression(self, operation: ir.Operation, operands: Sequence[Any]) -> Any:
        """The result of an operation of arith or math (an Expr, or a Ramp) from its operands."""
        dialect, _, name = operation.name.partition(".")
        if dialect == "math":
            return self._math(name, operation, operands)
        rule = getattr(self, "_" + name, None)
        if dialect != "arith" or rule is None:
            raise self._unknown(operation)
        return rule(operation, *operands)

    def _unknown(self, operation: ir.Operation) -> CompileError:
        return CompileError(f"[metal] {self.kernel}: there is no Metal code for {operation.name}")

    # -- constants ----------------------------------------------------------------------------------------------------
    def _constant(self, op: ir.Operation) -> Any:
        attribute = op.attributes["value"]
        if isinstance(attribute, ir.FloatAttr):
            if isinstance(attribute.type, ir.F64Type):
                return attribute.value
            return x.real(attribute.value)
        value = ir.IntegerAttr(attribute).value
        return x.boolean(bool(value)) if is_bool(op.results[0].type) else x.integer(int(value))

    # -- floats -------------------------------------------------------------------------------------------------------
    def _float(self, symbol: str, op: ir.Operation, a: Any, b: Any) -> Any:
        if isinstance(a, Ramp) and isinstance(b, float) and symbol in "+*":
            return replace(a, start=a.start + b) if symbol == "+" else Ramp(a.i, a.step * b, a.start * b)
        type_ = float_type(op.results[0].type, self.kernel)
        return infix(symbol, a, b, type_)

    def _addf(self, op: ir.Operation, a: Any, b: Any) -> Any:
        return self._float("+", op, a, b)

    def _subf(self, op: ir.Operation, a: Any, b: Any) -> Any:
        return self._float("-", op, a, b)

    def _mulf(self, op: ir.Operation, a: Any, b: Any) -> Any:
        return self._float("*", op, a, b)

    def _divf(self, op: ir.Operation, a: Any, b: Any) -> Any:
        return self._float("/", op, a, b)

    def _remf(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return call("precise::fmod", a, b, type_=float_type(op.results[0].type, self.kernel))

    def _negf(self, op: ir.Operation, a: Expr) -> Expr:
        return Expr("-" + a.at(0), float_type(op.results[0].type, self.kernel), 1, loads=a.loads)

    def _maximumf(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        self.need("maximum")
        return call("maximum", a, b, type_=float_type(op.results[0].type, self.kernel))

    def _minimumf(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        self.need("minimum")
        return call("minimum", a, b, type_=float_type(op.results[0].type, self.kernel))

    def _cmpf(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        float_type(op.operands[0].type, self.kernel)
        predicate = ir.IntegerAttr(op.attributes["predicate"]).value
        if op.operands[0] == op.operands[1] and predicate in (1, 13):
            test = call("isnan", a, type_="bool")
            return test if predicate == 13 else x.negated(test)
        if predicate not in _FLOAT_COMPARE:
            raise self._unknown(op)
        return infix(_FLOAT_COMPARE[predicate], a, b, "bool", 0, 1)

    def _extf(self, op: ir.Operation, a: Expr) -> Expr:
        return call("float", a, type_=float_type(op.results[0].type, self.kernel))

    def _truncf(self, op: ir.Operation, a: Any) -> Expr:
        type_ = float_type(op.results[0].type, self.kernel)
        if isinstance(a, Ramp):
            self.need("ramp")
            parts = [part for value in (a.step, a.start) for part in _pair(value)]
            return call("ramp", x.cast(a.i, "long"), *parts)
        return call(type_, a, type_=type_)

    def _math(self, name: str, op: ir.Operation, operands: Sequence[Expr]) -> Expr:
        if name == "absi":
            bits = bits_of(op.results[0].type)
            type_ = "long" if bits == 64 else "int"
            value = x.signed(operands[0], bits)
            most = min(max(-value.low, value.high), x.RANGE[type_][1])
            return call("abs", x.cast(value, type_), type_=type_, low=x.RANGE[type_][0] if bits >= 32 else 0, high=most)
        float_type(op.results[0].type, self.kernel)
        if name in MATHLIB:
            self.need("mlxir_" + name)
            return call("mlxir_" + name, *operands)
        if name in _PRECISE:
            return call("precise::" + _PRECISE[name], *operands)
        if name in _EXACT:
            return call(_EXACT[name], *operands)
        raise self._unknown(op)

    # -- integers and booleans -----------------------------------------------------------------------------------------
    def _addi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return x.arithmetic("+", a, b, bits_of(op.results[0].type))

    def _subi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return x.arithmetic("-", a, b, bits_of(op.results[0].type))

    def _muli(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return x.arithmetic("*", a, b, bits_of(op.results[0].type))

    def _divide(self, symbol: str, interpret: Callable[[Expr, int], Expr], op: ir.Operation, a: Expr, b: Expr) -> Expr:
        bits = bits_of(op.results[0].type)
        return x.divided(symbol, interpret(a, bits), interpret(b, bits))

    def _divsi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._divide("/", x.signed, op, a, b)

    def _remsi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._divide("%", x.signed, op, a, b)

    def _divui(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._divide("/", x.unsigned, op, a, b)

    def _remui(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._divide("%", x.unsigned, op, a, b)

    def _bits(self, symbol: str, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        type_ = op.results[0].type
        if not is_bool(type_):
            return x.bitwise(symbol, a, b, bits_of(type_))
        if symbol == "^":
            return x.negated(a) if b.value is True else infix("!=", a, b, "bool", 0, 1)
        for one, other in ((a, b), (b, a)):
            if one.value is not None:  # true && x, false || x; false && x, true || x
                return other if one.value is (symbol == "&") else one
        return infix(symbol * 2, a, b, "bool", 0, 1)

    def _andi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._bits("&", op, a, b)

    def _ori(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._bits("|", op, a, b)

    def _xori(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._bits("^", op, a, b)

    def _shli(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        bits = bits_of(op.results[0].type)
        return x.shifted("<<", x.unsigned(a, bits), b, bits)

    def _shrui(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        bits = bits_of(op.results[0].type)
        return x.shifted(">>", x.unsigned(a, bits), b, bits)

    def _shrsi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        bits = bits_of(op.results[0].type)
        return x.shifted(">>", x.signed(a, bits), b, bits)

    def _cmpi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        symbol, is_signed = _INT_COMPARE[ir.IntegerAttr(op.attributes["predicate"]).value]
        if op.operands[0] == op.operands[1]:  # a test for NaN, of an integer
            return x.boolean(symbol in ("==", "<=", ">="))
        type_ = op.operands[0].type
        if is_bool(type_):
            if is_signed is None:
                return infix(symbol, a, b, "bool", 0, 1)
            return x.compared(symbol, x.cast(a, "uint"), x.cast(b, "uint"))
        bits = bits_of(type_)
        # Equality holds for either interpretation; the signed one keeps index arithmetic as it is.
        interpret = x.unsigned if is_signed is False else x.signed
        return x.compared(symbol, interpret(a, bits), interpret(b, bits))

    def _extreme(self, name: str, interpret: Callable[[Expr, int], Expr], op: ir.Operation, a: Expr, b: Expr) -> Expr:
        type_ = op.results[0].type
        if is_bool(type_):
            return infix("||" if name == "max" else "&&", a, b, "bool", 0, 1)
        bits = bits_of(type_)
        return x.extremum(name, interpret(a, bits), interpret(b, bits))

    def _maxsi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._extreme("max", x.signed, op, a, b)

    def _minsi(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._extreme("min", x.signed, op, a, b)

    def _maxui(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._extreme("max", x.unsigned, op, a, b)

    def _minui(self, op: ir.Operation, a: Expr, b: Expr) -> Expr:
        return self._extreme("min", x.unsigned, op, a, b)

    # -- selection and conversions -------------------------------------------------------------------------------------
    def _select(self, op: ir.Operation, test: Expr, a: Expr, b: Expr) -> Expr:
        return self.choose(op.results[0].type, test, a, b)

    def choose(self, type_: ir.Type, test: Expr, a: Expr, b: Expr) -> Expr:
        """`test ? a : b`."""
        if is_bool(type_):
            return x.ternary(test, a, b, "bool")
        if isinstance(type_, (ir.IntegerType, ir.IndexType)):
            return x.chosen(test, a, b)
        return x.ternary(test, a, b, float_type(type_, self.kernel))

    def _index_cast(self, op: ir.Operation, a: Expr) -> Expr:
        return self._trunci(op, x.signed(a, bits_of(op.operands[0].type)))

    def _extsi(self, op: ir.Operation, a: Expr) -> Expr:
        return x.signed(a, bits_of(op.operands[0].type))

    def _extui(self, op: ir.Operation, a: Expr) -> Expr:
        if is_bool(op.operands[0].type):
            return replace(a, low=0, high=1)
        return x.unsigned(a, bits_of(op.operands[0].type))

    def _trunci(self, op: ir.Operation, a: Expr) -> Expr:
        type_ = op.results[0].type
        if is_bool(type_):
            low = x.bitwise("&", a, x.integer(1), bits_of(op.operands[0].type))
            return infix("!=", low, x.integer(0), "bool", 0, 1)
        bits = bits_of(type_)
        if a.within(*x.RANGE[x.SIGNED[bits]]) or a.within(*x.RANGE[x.UNSIGNED[bits]]):
            return a
        return x.cast(a, x.UNSIGNED[bits])

    def _from_int(self, op: ir.Operation, a: Expr) -> Any:
        if isinstance(op.results[0].type, ir.F64Type):
            return Ramp(a, 1.0, 0.0)
        return x.cast(a, float_type(op.results[0].type, self.kernel)) if a.value is None else x.real(a.value)

    def _sitofp(self, op: ir.Operation, a: Expr) -> Any:
        return self._from_int(op, x.signed(a, bits_of(op.operands[0].type)))

    def _uitofp(self, op: ir.Operation, a: Expr) -> Any:
        if is_bool(op.operands[0].type):
            return self._from_int(op, a)
        return self._from_int(op, x.unsigned(a, bits_of(op.operands[0].type)))

    def _fptosi(self, op: ir.Operation, a: Expr) -> Expr:
        return self._to_int(op, a, x.SIGNED[bits_of(op.results[0].type)])

    def _fptoui(self, op: ir.Operation, a: Expr) -> Expr:
        return self._to_int(op, a, x.UNSIGNED[bits_of(op.results[0].type)])

    def _to_int(self, op: ir.Operation, a: Expr, type_: str) -> Expr:
        """The lowering bounds what becomes a smaller integer by a wider one; 64 bits are as wide as it gets."""
        float_type(op.operands[0].type, self.kernel)
        if type_ in ("long", "ulong"):
            self.need("to_" + type_)
            return call("to_" + type_, a, type_=type_)
        return x.cast(a, type_)

    def _bitcast(self, op: ir.Operation, a: Expr) -> Expr:
        source, target = op.operands[0].type, op.results[0].type
        if isinstance(target, ir.IntegerType):
            float_type(source, self.kernel)
            type_ = x.UNSIGNED[target.width]
            return call(f"as_type<{type_}>", a, type_=type_)
        type_ = float_type(target, self.kernel)
        if isinstance(source, ir.IntegerType):
            a = x.cast(a, x.UNSIGNED[source.width])
        return call(f"as_type<{type_}>", a, type_=type_)


def _pair(value: float) -> tuple[Expr, Expr]:
    """A float64 as the sum of two floats."""
    head = float(np.float32(value))
    return x.real(head), x.real(value - head)
