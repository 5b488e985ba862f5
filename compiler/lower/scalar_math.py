"""The functions of the scalar builder: rounding, integer division, and what records call exp, tanh, power, ...

Real transcendental functions become operations of the `math` dialect, which each target implements in its own way (the
CPU by the polynomials of mathlib.py, Metal by its library); what that dialect lacks is composed here. Those of complex
numbers are composed in complex_math.py.
"""

from __future__ import annotations

import math
from typing import Any

from mlxir.compiler.lower import complex_math, mathlib
from mlxir.compiler.lower.builder import _TYPES, KernelBuilder, Reg, _unsigned
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import bool_, complex64, float32, float64
from mlxir.runtime.errors import CompileError


class ScalarBuilder(KernelBuilder):
    """KernelBuilder with the functions that bodies use; `k` in `lambda k, x: k.sin(x)`."""

    def _math(self, name: str, *args: Reg) -> Reg:
        return self.reg(f"math.{name}", args, args[0].dtype)

    def _by_parts(self, name: str, x: Reg) -> Reg:
        rule = complex_math.FUNCTIONS.get(name)
        if rule is None:
            raise CompileError(f"[lower] {name} of complex64 is not supported by the compiled tier")
        return rule(self, x)

    def __getattr__(self, name: str) -> Any:
        """exp, log, tanh, ...: one operation of the math dialect each."""
        operation = _MATH.get(name)
        if operation is None:
            raise AttributeError(name)

        def function(x: Reg) -> Reg:
            return self._by_parts(name, x) if x.dtype is complex64 else self._math(operation, x)

        return function

    # -- magnitude and sign -----------------------------------------------------------------------------------------
    def abs(self, x: Reg) -> Reg:
        if x.dtype is complex64:
            return self._hypot(*x.value)
        if x.dtype.is_float:
            return self._math("absf", x)
        return x if _unsigned(x.dtype) else self._math("absi", x)

    def _hypot(self, a: Reg, b: Reg) -> Reg:
        """sqrt(a^2 + b^2) scaled by the larger one, which neither overflows nor underflows early; infinity wins."""
        a, b = self.abs(a), self.abs(b)
        big, small = self.maximum(a, b), self.minimum(a, b)
        ratio = self.select(big == 0.0, self.const(0, float32), small / big)
        scaled = big * self.sqrt(ratio * ratio + 1.0)
        return self.select((a == math.inf) | (b == math.inf), self.const(math.inf, float32), scaled)

    def sign(self, x: Reg) -> Reg:
        zero = self.const(0, x.dtype)
        if x.dtype is bool_:
            return x
        if x.dtype is complex64:
            size = self.abs(x)
            safe = self.select(size == 0.0, self.const(1, float32), size)
            lost = size == math.inf  # the direction
            return self._complex(*[self.select(lost, self.const(math.nan, float32), p / safe) for p in x.value])
        one = self.const(1, x.dtype)
        if _unsigned(x.dtype):
            return self.select(x == zero, zero, one)
        return self.select(x > zero, one, self.select(x < zero, self.const(-1, x.dtype), zero))  # NaN gives 0

    def copysign(self, magnitude: Reg, sign: Reg) -> Reg:
        return self._math("copysign", magnitude, sign)

    def real(self, x: Reg) -> Reg:
        return x.value[0]

    def imag(self, x: Reg) -> Reg:
        return x.value[1]

    def conjugate(self, x: Reg) -> Reg:
        return self._complex(x.value[0], -x.value[1])

    def div(self, a: Reg, b: Reg) -> Reg:
        return complex_math.divide(self, a, b) if a.dtype is complex64 else super().div(a, b)

    # -- rounding and integer division --------------------------------------------------------------------------------
    def _rounding(self, name: str, x: Reg) -> Reg:
        if x.dtype is complex64:
            return self._complex(*[self._rounding(name, p) for p in x.value])
        return self._math(name, x) if x.dtype.is_float else x

    def floor(self, x: Reg) -> Reg:
        return self._rounding("floor", x)

    def ceil(self, x: Reg) -> Reg:
        return self._rounding("ceil", x)

    def trunc(self, x: Reg) -> Reg:
        return self._rounding("trunc", x)

    def round_even(self, x: Reg) -> Reg:
        return self._rounding("roundeven", x)

    def _guarded_divisor(self, a: Reg, b: Reg) -> tuple[Reg, Reg]:
        """(divisor that neither traps nor overflows, whether the original was zero)."""
        zero = b == 0
        safe = self.select(zero, self.const(1, b.dtype), b)
        if not _unsigned(b.dtype):
            least = self.const(-(1 << (8 * b.dtype.size - 1)), b.dtype)
            overflows = (a == least) & (b == -1)
            safe = self.select(overflows, self.const(1, b.dtype), safe)
        return safe, zero

    def floor_divide(self, a: Reg, b: Reg) -> Reg:
        """Integers round towards minus infinity and give 0 for a zero divisor; floats give floor(a / b)."""
        if a.dtype.is_float:
            return self.floor(a / b)
        if a.dtype is bool_:
            return a & b
        safe, zero = self._guarded_divisor(a, b)
        if _unsigned(a.dtype):
            return self.select(zero, b, self.reg("arith.divui", [a, safe], a.dtype))
        q = self.reg("arith.divsi", [a, safe], a.dtype)
        inexact = (q * safe != a) & ((a < 0) ^ (safe < 0))
        return self.select(zero, b, self.select(inexact, q - 1, q))

    def remainder(self, a: Reg, b: Reg) -> Reg:
        """With the divisor's sign; integers give 0 for a zero divisor."""
        if a.dtype.is_float:
            r = self.reg("arith.remf", [a, b], a.dtype)
            return self.select((r != 0) & ((r < 0) ^ (b < 0)), r + b, r)
        if a.dtype is bool_:
            return self.const(False, bool_)
        safe, zero = self._guarded_divisor(a, b)
        if _unsigned(a.dtype):
            return self.select(zero, b, self.reg("arith.remui", [a, safe], a.dtype))
        r = self.reg("arith.remsi", [a, safe], a.dtype)
        return self.select(zero, b, self.select((r != 0) & ((r < 0) ^ (safe < 0)), r + safe, r))

    # -- powers and composed functions --------------------------------------------------------------------------------
    def rsqrt(self, x: Reg) -> Reg:
        return 1.0 / self.sqrt(x)

    def power(self, x: Reg, y: Reg) -> Reg:
        if x.dtype is complex64:
            zero = (x.value[0] == 0.0) & (x.value[1] == 0.0)
            result = self.exp(y * self.log(x))
            none = (y.value[0] == 0.0) & (y.value[1] == 0.0)
            edge = self.select(y.value[0] > 0.0, self.const(0, float32), self.const(math.nan, float32))
            result = self.select(zero, self._complex(edge, edge), result)
            return self.select(none, self.const(1, complex64), result)
        if x.dtype.is_float:
            return self._math("powf", x, y)
        if x.dtype is bool_:
            return x | ~y
        result, base = self.const(1, x.dtype), x
        for bit in range(8 * x.dtype.size):
            take = (y & self.const(1 << bit, y.dtype)) != 0
            result = self.select(take, result * base, result)
            base = base * base
        return result if _unsigned(x.dtype) else self.select(y < 0, self.const(0, x.dtype), result)

    def arctan2(self, y: Reg, x: Reg) -> Reg:
        return self._math("atan2", y, x)

    def sigmoid(self, x: Reg) -> Reg:
        """e^x / (e^x + 1), which is 1 long before e^x overflows."""
        if x.dtype is complex64:
            return 1.0 / (self.exp(-x) + 1.0)
        e = self.exp(self.min(self.const(64, x.dtype), x))
        return e / (e + 1.0)

    def logaddexp(self, a: Reg, b: Reg) -> Reg:
        """max(a, b) + log(1 + e^-|a - b|), where equal infinities are 0 apart."""
        big = self.max(a, b)
        apart = self.min(a, b) - big if a.dtype is complex64 else -self.abs(a - b)
        return big + self.log1p(self.exp(self.select(a == b, self.const(0, a.dtype), apart)))

    def erfinv(self, x: Reg) -> Reg:
        """The polynomial of mathlib in float32; float64 adds two Newton steps on erf to it."""
        if x.dtype is not float64:
            return Reg(mathlib.erfinv(self, Reg(x.value, float32, self)).value, x.dtype, self)
        root = self.cast(mathlib.erfinv(self, self.cast(x, float32)), float64)
        for _ in range(2):
            step = (self.erf(root) - x) * self.exp(root * root) * (math.sqrt(math.pi) / 2)
            root = self.select(self.abs(step) < math.inf, root - step, root)
        return root


_MATH = {
    "exp": "exp", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p", "sqrt": "sqrt",
    "sin": "sin", "cos": "cos", "tan": "tan", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "erf": "erf",
}  # fmt: skip


def define_math_function(module_body: ir.Block, symbol: str, function: Any, arity: int) -> None:
    """A private function `symbol` of `arity` float32 arguments whose body is `function` of mathlib; LLVM inlines it."""
    f32 = _TYPES[float32]
    operation = ir.Operation.create(
        "func.func",
        attributes={
            "sym_name": ir.StringAttr.get(symbol),
            "function_type": ir.TypeAttr.get(ir.FunctionType.get([f32] * arity, [f32])),
            "sym_visibility": ir.StringAttr.get("private"),
            "passthrough": ir.ArrayAttr.get([ir.StringAttr.get("alwaysinline")]),
        },
        regions=1,
        ip=ir.InsertionPoint(module_body),
    )
    block = operation.regions[0].blocks.append(*[f32] * arity, arg_locs=[ir.Location.unknown()] * arity)
    k = ScalarBuilder(ir.InsertionPoint(block))
    result = function(k, *[Reg(a, float32, k) for a in block.arguments])
    k.op("func.return", [result.value])
