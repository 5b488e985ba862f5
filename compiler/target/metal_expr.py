"""Expressions of the Metal Shading Language: text with its type, its precedence and, for integers, its bounds.

The loops' integers are signless and wrap; C++ has signed and unsigned ones, and signed overflow is undefined. So an
integer is printed in the smallest of uint, int, long and ulong that holds its bounds, arithmetic that may leave the
bounds is done unsigned, and casts appear where an operation asks for the other interpretation of the bits. Index
arithmetic thereby gets 32 bits wherever sizes permit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RANGE = {
    "bool": (0, 1),
    "char": (-(1 << 7), (1 << 7) - 1), "uchar": (0, (1 << 8) - 1),
    "short": (-(1 << 15), (1 << 15) - 1), "ushort": (0, (1 << 16) - 1),
    "int": (-(1 << 31), (1 << 31) - 1), "uint": (0, (1 << 32) - 1),
    "long": (-(1 << 63), (1 << 63) - 1), "ulong": (0, (1 << 64) - 1),
}  # fmt: skip
SIGNED = {8: "char", 16: "short", 32: "int", 64: "long"}
UNSIGNED = {8: "uchar", 16: "ushort", 32: "uint", 64: "ulong"}
_COMPUTED = ("uint", "int", "long", "ulong")  # the types that C++ computes in
_LEVEL = {
    "*": 2, "/": 2, "%": 2, "+": 3, "-": 3, "<<": 4, ">>": 4, "<": 5, "<=": 5, ">": 5, ">=": 5, "==": 6, "!=": 6,
    "&": 7, "^": 8, "|": 9, "&&": 10, "||": 11,
}  # fmt: skip
TERNARY = 12


@dataclass(frozen=True)
class Expr:
    """An expression.

    `level` is its precedence (0 binds strongest); `low` and `high` bound an integer; `value` is that of a literal;
    `loads` says that it reads memory, so that it must not move past a store.
    """

    text: str
    type: str
    level: int = 0
    low: int = 0
    high: int = 0
    value: Any = None
    loads: bool = False

    def within(self, low: int, high: int) -> bool:
        return low <= self.low and self.high <= high

    def at(self, level: int) -> str:
        """The text, in parentheses if it binds weaker than `level`."""
        return self.text if self.level <= level else f"({self.text})"


def integer(value: int, type_: str = "int") -> Expr:
    """An integer literal that stands for itself in arithmetic; see `cast` for one whose C++ type matters."""
    if value == -(1 << 31):
        text = "(-2147483647 - 1)"
    elif value == -(1 << 63):
        text = "(-9223372036854775807l - 1l)"
    else:
        wide = abs(value) > RANGE["int"][1]
        text = str(value) + (
            "" if not wide else "u" if 0 <= value <= RANGE["uint"][1] else "l" if value <= RANGE["long"][1] else "ul"
        )
    return Expr(text, type_, 1 if value < 0 else 0, value, value, value)


def boolean(value: bool) -> Expr:
    return Expr("true" if value else "false", "bool", 0, int(value), int(value), bool(value))


def real(value: float) -> Expr:
    """A float literal: the shortest decimal that gives the float32 back."""
    single = np.float32(value)
    if math.isnan(value):
        text = "NAN"
    elif math.isinf(single):
        text = "-INFINITY" if single < 0 else "INFINITY"
    else:
        text = str(single) + "f"
    return Expr(text, "float", 1 if text.startswith("-") else 0, value=float(value))


def call(name: str, *arguments: Expr, type_: str = "float", low: int | None = None, high: int | None = None) -> Expr:
    """A function call or a conversion `type(x)`."""
    bounds = RANGE.get(type_, (0, 0))
    return Expr(
        f"{name}({', '.join(a.text for a in arguments)})", type_, 0,
        bounds[0] if low is None else low, bounds[1] if high is None else high, None, any(a.loads for a in arguments),
    )  # fmt: skip


def cast(x: Expr, type_: str) -> Expr:
    """`x` as exactly `type_`, converted as C++ converts."""
    if x.type == type_ and (x.value is None or type_ in ("float", "bool", "int")):
        return x
    bounds = RANGE.get(type_)
    if isinstance(x.value, int) and bounds is not None and bounds[0] <= x.value <= bounds[1] and type_ in _COMPUTED:
        plain = integer(x.value, type_)
        suffix = {"int": "", "uint": "u", "long": "l", "ulong": "ul"}[type_]
        digits = plain.text.rstrip("ul")
        return plain if plain.text.startswith("(") else replace(plain, text=digits + suffix)
    if bounds is not None and x.type in RANGE and x.within(*bounds):
        return call(type_, x, type_=type_, low=x.low, high=x.high)
    return call(type_, x, type_=type_)


def operand(x: Expr, type_: str) -> Expr:
    """`x` as an operand of an operator that computes in `type_`: literals and small integers convert by themselves."""
    if x.value is not None and type(x.value) is int and x.within(*RANGE[type_]):
        return integer(x.value, type_)
    if x.type == type_ or (type_ == "int" and x.type in ("char", "uchar", "short", "ushort")):
        return x
    return cast(x, type_)


def both(a: Expr, b: Expr, type_: str) -> tuple[Expr, Expr]:
    """Both as operands of one operator; beside a long, C++ widens anything smaller by itself."""
    beside_long = type_ == "long" and "long" in (a.type, b.type)

    def converted(e: Expr) -> Expr:
        return e if beside_long and e.value is None and e.type not in ("bool", "ulong") else operand(e, type_)

    return converted(a), converted(b)


def common(low: int, high: int, *operands: Expr) -> str:
    """The type to compute in: one that holds the bounds and the operands; an operand's own or else the smallest."""
    low, high = min(low, *[o.low for o in operands]), max(high, *[o.high for o in operands])
    present = [o.type for o in operands if o.value is None and o.type in _COMPUTED]
    for type_ in (*present, *_COMPUTED):
        if RANGE[type_][0] <= low and high <= RANGE[type_][1]:
            return type_
    return "ulong"


def signed(x: Expr, bits: int) -> Expr:
    """`x` with the C++ value that its `bits` bits have as a signed integer."""
    low, high = RANGE[SIGNED[bits]]
    if x.within(low, high):
        return x
    return integer(_wrapped(x.value, bits)) if x.value is not None else cast(x, SIGNED[bits])


def unsigned(x: Expr, bits: int) -> Expr:
    """`x` with the C++ value that its `bits` bits have as an unsigned integer."""
    low, high = RANGE[UNSIGNED[bits]]
    if x.within(low, high):
        return x
    return integer(x.value % (1 << bits)) if x.value is not None else cast(x, UNSIGNED[bits])


def _wrapped(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def infix(symbol: str, a: Expr, b: Expr, type_: str, low: int = 0, high: int = 0) -> Expr:
    """`a symbol b`, with the parentheses that precedence asks for and those that keep compilers from warning."""
    level = _LEVEL[symbol]
    if symbol in ("+", "-") and b.text.startswith("-") and b.value is not None and b.level == 1:
        return infix("-" if symbol == "+" else "+", a, replace(b, text=b.text[1:], level=0), type_, low, high)
    if level <= 3:
        left, right = level, level - 1
    elif level <= 6 and symbol not in ("<<", ">>"):
        left = right = 3
    elif level >= 10:
        left, right = (level if _top(a, symbol) else 6), 6
    else:
        left, right = (level if _top(a, symbol) else 1), 1
    text = f"{a.at(left)} {symbol} {b.at(right)}"
    return Expr(text, type_, level, low, high, None, a.loads or b.loads)


def _top(x: Expr, symbol: str) -> bool:
    """Whether `x` is itself a chain of `symbol`."""
    return x.level == _LEVEL[symbol]


def negated(x: Expr) -> Expr:
    """`!x`."""
    if x.text.startswith("!") and x.level == 1:
        return replace(x, text=x.text[1:], level=0)
    return Expr("!" + x.at(0), "bool", 1, 0, 1, None, x.loads)


def ternary(test: Expr, a: Expr, b: Expr, type_: str) -> Expr:
    text = f"{test.at(9)} ? {a.at(9)} : {b.at(9)}"
    loads = test.loads or a.loads or b.loads
    return Expr(text, type_, TERNARY, min(a.low, b.low), max(a.high, b.high), None, loads)


# -- integer arithmetic ----------------------------------------------------------------------------------------------
def arithmetic(symbol: str, a: Expr, b: Expr, bits: int) -> Expr:
    """`a symbol b` for + - * of `bits` wide integers, which wrap."""
    if symbol == "+":
        low, high = a.low + b.low, a.high + b.high
    elif symbol == "-":
        low, high = a.low - b.high, a.high - b.low
    else:
        products = [p * q for p in (a.low, a.high) for q in (b.low, b.high)]
        low, high = min(products), max(products)
    if a.value is not None and b.value is not None:
        return integer(_wrapped(low, bits))
    if symbol != "-":
        neutral = 0 if symbol == "+" else 1
        if b.value == neutral:
            return a
        if a.value == neutral:
            return b
    if any(RANGE[t[bits]][0] <= low and high <= RANGE[t[bits]][1] for t in (SIGNED, UNSIGNED)):
        type_ = common(low, high, a, b)
        return infix(symbol, *both(a, b, type_), type_, low, high)
    type_ = "ulong" if bits == 64 else "uint"
    wide = infix(symbol, _modular(a, type_), _modular(b, type_), type_, *RANGE[type_])
    return wide if bits >= 32 else cast(wide, UNSIGNED[bits])


def _modular(x: Expr, type_: str) -> Expr:
    """`x` modulo the size of an unsigned type."""
    if x.value is not None:
        return integer(x.value % (RANGE[type_][1] + 1), type_)
    return operand(x, type_)


def divided(symbol: str, a: Expr, b: Expr) -> Expr:
    """`a / b` or `a % b`, rounded to zero; both with the values that the operation means."""
    low, high = min(-a.high, a.low, 0), max(-a.low, a.high, 0)
    if b.value is not None and b.value > 0 and a.low >= 0:
        low, high = (a.low // b.value, a.high // b.value) if symbol == "/" else (0, min(a.high, b.value - 1))
    elif a.low >= 0 and b.low >= 0:
        low = 0
    if a.value is not None and b.value is not None and b.value > 0 and a.value >= 0:
        return integer(low if symbol == "/" else a.value % b.value)
    type_ = common(a.low, a.high, a, b)
    return infix(
        symbol, operand(a, type_), operand(b, type_), type_, max(low, RANGE[type_][0]), min(high, RANGE[type_][1])
    )


def bitwise(symbol: str, a: Expr, b: Expr, bits: int) -> Expr:
    """`&`, `|` or `^` of `bits` wide integers."""
    a, b = unsigned(a, bits), unsigned(b, bits)
    if a.value is not None and b.value is not None:
        return integer({"&": a.value & b.value, "|": a.value | b.value, "^": a.value ^ b.value}[symbol])
    if symbol == "^" and b.value == (1 << bits) - 1:
        type_ = "ulong" if bits == 64 else "uint"
        flipped = Expr("~" + operand(a, type_).at(1), type_, 1, *RANGE[type_], None, a.loads)
        return flipped if bits >= 32 else cast(flipped, UNSIGNED[bits])
    high = min(a.high, b.high) if symbol == "&" else (1 << max(a.high.bit_length(), b.high.bit_length())) - 1
    type_ = common(0, high, a, b)
    return infix(symbol, *both(a, b, type_), type_, 0, high)


def shifted(symbol: str, a: Expr, count: Expr, bits: int) -> Expr:
    """`a << count` of unsigned `a`, or `a >> count`; the count is below the width."""
    if symbol == ">>":
        type_ = common(a.low, a.high, a)
        low, high = (0, a.high >> count.low) if a.low >= 0 else (a.low, max(a.high, 0))
        return infix(symbol, cast(a, type_), count, type_, low, high)
    high = a.high << min(count.high, bits - 1)
    type_ = "ulong" if bits == 64 else "uint"
    wide = infix(symbol, cast(a, type_), count, type_, 0, min(high, RANGE[type_][1]))
    return wide if bits >= 32 or high <= RANGE[UNSIGNED[bits]][1] else cast(wide, UNSIGNED[bits])


def compared(symbol: str, a: Expr, b: Expr) -> Expr:
    """A comparison of integers that have the values it means."""
    type_ = common(a.low, a.high, a, b)
    return infix(symbol, *both(a, b, type_), "bool", 0, 1)


def extremum(name: str, a: Expr, b: Expr) -> Expr:
    """`min(a, b)` or `max(a, b)` of integers that have the values it means."""
    pick = min if name == "min" else max
    low, high = pick(a.low, b.low), pick(a.high, b.high)
    type_ = common(low, high, a, b)
    return call(name, cast(a, type_), cast(b, type_), type_=type_, low=low, high=high)


def chosen(test: Expr, a: Expr, b: Expr) -> Expr:
    """`test ? a : b` of integers, in one type."""
    type_ = common(min(a.low, b.low), max(a.high, b.high), a, b)
    return ternary(test, operand(a, type_), operand(b, type_), type_)
