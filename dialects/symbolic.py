"""Numbers that are known by a value while a function is traced, and by an expression afterwards.

A `SymInt` is a size of a shapeless trace or an integer argument, a `SymFloat` what is computed from one by real
arithmetic. Both behave like the Python number that they stand for (`isinstance(n, int)` holds): arithmetic stays
symbolic, and whatever needs the number itself gets its value, the *hint*. What such a use assumed is recorded in the
`Scope` of the trace:

    guard   a comparison and its outcome: `s0 == 1` is False. The trace is valid for all numbers with the same outcomes.
    pin     a use of the value itself (`range(n)`, `int(n)`, a dict key): the trace is valid for this number only.

They are no subclasses of int and float, because C code reads the digits of those without asking.

    >>> scope = Scope(); n, m = scope.size(3), scope.size(4)
    >>> (n * m) // m, n * m == m * n, n == 1, scope.guards
    (s0, True, False, {'s0 - 1 == 0': False})

Integer expressions are polynomials over symbols and opaque quotients and remainders, so that equal sizes are seen to be
equal; their text is a Python expression. Once its trace has ended, a symbolic number is its hint.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple

from mlxir.dialects import polynomials as poly
from mlxir.dialects.polynomials import Terms, text_of
from mlxir.runtime.errors import CompileError, Where, user_frame


class Opaque(NamedTuple):
    """What an atom `a // b` or `a % b` is made of, beside the symbols in it."""

    sign: str
    a: Terms
    b: Terms
    symbols: frozenset[str]


LONGEST = 4000  # characters of a real expression; a longer one becomes its value, which is pinned


class Scope:
    """The symbols of one trace, or of one compilation, and what it assumed of them.

    A compilation is `structural`: equal expressions are equal dict keys there, which depends on no value.
    """

    def __init__(self, structural: bool = False) -> None:
        self.structural = structural
        self.hints: dict[str, int | float] = {}
        self.guards: dict[str, bool] = {}
        self.pins: dict[str, Where] = {}
        self.places: dict[str, Where] = {}  # where the outcome of each guard was asked for
        self.least: dict[str, int] = {}  # lower bounds of atoms
        self.opaque: dict[str, Opaque] = {}
        self.equal: dict[str, str | int] = {}  # symbols that are equal to another one, or to a number
        self.arrays: dict[Any, Any] = {}  # what a trace keeps of numbers that became arrays
        self.active = True

    def _symbol(self, hint: int | float) -> str:
        name = f"s{len(self.hints)}"
        self.hints[name] = hint
        return name

    def size(self, hint: int, least: int = 0) -> SymInt:
        """A new symbol for the length of an axis; `least` is known of all lengths that it will stand for."""
        name = self._symbol(hint)
        self.least[name] = least
        return SymInt(self, {(name,): 1}, hint)

    def number(self, hint: int | float) -> SymInt | SymFloat:
        """A new symbol for a Python number."""
        name = self._symbol(hint)
        if isinstance(hint, float):
            return SymFloat(self, name, hint, frozenset((name,)))
        return SymInt(self, {(name,): 1}, hint)

    def decide(self, text: str, outcome: bool) -> bool:
        """Record the outcome of a comparison."""
        if self.active and text not in self.guards:
            if self.structural and (len(text) > INVOLVED or len(self.guards) >= MOST_GUARDS):
                raise CompileError(f"[lower] what is decided from sizes is too involved: {text[:INVOLVED]}")
            self.guards[text] = outcome
            self.places[text] = user_frame()
        return outcome

    def same_as(self, name: str) -> str | int:
        """The symbol that stands for all that are equal to this one, or their number."""
        if name in self.pins:
            return self.hints[name]  # type: ignore[return-value]
        other = self.equal.get(name)
        return name if other is None else self.same_as(other) if isinstance(other, str) else other

    def _bounded(self, terms: Terms) -> None:
        """Remember `a - 3 > 0`."""
        products = [p for p in terms if p]
        if len(products) == 1 and len(products[0]) == 1 and terms[products[0]] == 1:
            (atom,) = products[0]
            self.least[atom] = max(self.least.get(atom, 0), 1 - terms.get((), 0))

    def _equated(self, terms: Terms) -> None:
        """Remember `a - b == 0` and `a - 3 == 0`."""
        names = sorted([p[0] for p in terms if len(p) == 1])
        if any(len(p) > 1 or (p and (abs(c) != 1 or p[0] not in self.hints)) for p, c in terms.items()):
            return
        first = self.same_as(names[0])
        if len(names) == 1 and isinstance(first, str):
            self.equal[first] = -terms.get((), 0) * terms[(names[0],)]
        elif len(names) == 2 and sum(terms.values()) == 0 and () not in terms:
            second = self.same_as(names[1])
            if isinstance(first, int):
                first, second = second, first
            if isinstance(first, str) and first != second:
                self.equal[first] = second

    def pin(self, symbols: frozenset[str]) -> None:
        """Record that the values of symbols were used."""
        if self.active:
            for name in symbols:
                if name not in self.pins:
                    self.pins[name] = user_frame()

    def assumptions(self) -> dict[str, Where]:
        """Guards and pins as Python conditions over the symbols, each with the line that made it."""
        pinned = {f"{name} == {literal(self.hints[name])}": where for name, where in self.pins.items()}
        guards = {text if outcome else f"not ({text})": self.places[text] for text, outcome in self.guards.items()}
        return pinned | guards


def literal(x: int | float) -> str:
    """A number as an expression (`inf` and `nan` are names)."""
    return repr(x) if x >= 0 else f"({x!r})"


def function(names: Iterable[str], expressions: Iterable[str], joined: str) -> Callable[..., Any]:
    """A function of the symbols `names`: all `expressions` as one tuple (joined by ",") or condition ("and")."""
    parts = [f"({e})" for e in expressions]
    body = " and ".join(["True", *parts]) if joined == "and" else "".join(f"{p}, " for p in parts)
    return eval(f"lambda {', '.join(names)}: ({body})", {"__builtins__": {}, "inf": math.inf, "nan": math.nan})

INVOLVED, MOST_GUARDS = 200, 50  # characters of a guard and number of guards of code that serves several sizes


class _Symbolic:
    """What both kinds share: uses that need the value."""

    __slots__ = ()
    hint: Any
    scope: Scope

    if TYPE_CHECKING:  # bound by `_define_operators`
        __add__: Any
        __sub__: Any
        __rsub__: Any
        __mul__: Any
        __lt__: Any
        __gt__: Any

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols that it depends on."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The expression."""
        raise NotImplementedError

    def value(self) -> Any:
        """The hint, pinned."""
        self.scope.pin(self.symbols)
        return self.hint

    def __int__(self) -> int:
        return int(self.value())

    def __float__(self) -> float:
        return float(self.value())

    def __complex__(self) -> complex:
        return complex(self.value())

    def __hash__(self) -> int:
        return hash(self.text if self.scope.structural else self.value())

    def __repr__(self) -> str:
        return self.text if self.scope.active else repr(self.hint)

    def __format__(self, spec: str) -> str:
        return format(self.value(), spec) if spec else repr(self)

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.value(), digits)

    def __trunc__(self) -> int:
        return math.trunc(self.value())

    def __floor__(self) -> int:
        return math.floor(self.value())

    def __ceil__(self) -> int:
        return math.ceil(self.value())

    def __getattr__(self, name: str) -> Any:
        """Whatever else the number has."""
        if not hasattr(plain(self), name):
            raise AttributeError(f"{type(plain(self)).__name__!r} object has no attribute {name!r}")
        return getattr(self.value(), name)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict) -> Any:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        value = self.value()
        return type(value), (value,)


def _operand(scope: Scope, other: Any) -> Any:
    """The other side of an operation: an int, a float, or a symbolic number of the same scope; else None."""
    kind = type(other)
    if kind is int or kind is float:
        return other
    if kind is SymInt or kind is SymFloat:
        if other.scope is not scope and scope.structural:
            raise CompileError(f"[lower] the size {other.text} belongs to another compilation")
        return other if other.scope is scope else other.value()
    if isinstance(other, Integral):
        return int(other)
    return float(other) if isinstance(other, Real) else None


def is_symbolic(x: Any) -> bool:
    """Whether a number is one of a trace; isinstance does not tell."""
    return type(x) is SymInt or type(x) is SymFloat


def plain(x: Any) -> Any:
    """The hint of a symbolic number, any other thing itself; nothing is pinned."""
    return x.hint if type(x) is SymInt or type(x) is SymFloat else x


def holds_symbolic(x: Any) -> bool:
    """Whether a number is one of a trace, or a tuple holds such a number."""
    return any(map(holds_symbolic, x)) if type(x) is tuple else is_symbolic(x)


def as_index(n: Any) -> Any:
    """`operator.index`, but a symbolic integer stays what it is."""
    return n if type(n) is int or type(n) is SymInt else operator.index(n)


# -- integers --------------------------------------------------------------------------------------------------------
def _terms(x: Any) -> Terms:
    return x.terms if type(x) is SymInt else ({(): x} if x else {})


class SymInt(_Symbolic):
    """An integer of a trace; see the module's docstring."""

    __slots__ = ("_text", "hint", "scope", "terms")

    def __init__(self, scope: Scope, terms: Terms, hint: int):
        self.scope, self.terms, self.hint = scope, terms, hint
        self._text = ""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return int

    @property
    def symbols(self) -> frozenset[str]:
        atoms = {atom for product in self.terms for atom in product}
        opaque = self.scope.opaque
        return frozenset().union(*[opaque[atom].symbols if atom in opaque else (atom,) for atom in atoms])

    @property
    def text(self) -> str:
        self._text = self._text or text_of(self.terms)
        return self._text

    def __index__(self) -> int:
        return self.value()

    def _made(self, terms: Terms, hint: int) -> SymInt | int:
        """An expression of this scope; a plain int where it is constant."""
        return SymInt(self.scope, terms, hint) if any(terms) else terms.get((), 0)

    def _opaque(self, sign: str, a: Any, b: Any, hint: int) -> SymInt | int:
        """A quotient or remainder that does not simplify, as an atom."""
        p, q = _terms(a), _terms(b)
        atom = f"(({text_of(p)}) {sign} ({text_of(q)}))"
        scope = self.scope
        symbols = frozenset().union(*[x.symbols for x in (a, b) if type(x) is SymInt])
        scope.opaque[atom] = Opaque(sign, p, q, symbols)
        if lower_bound(scope, q) > 0 and (sign == "%" or lower_bound(scope, p) >= 0):
            scope.least[atom] = 0
            if sign == "//":
                above = lower_bound(scope, poly.add(p, q, -1)) >= 0  # what is at least its divisor
                scope.least[atom] = int(above) if any(q) else int(lower_bound(scope, p)) // q[()]
        return SymInt(scope, {(atom,): 1}, hint)

    # -- arithmetic ---------------------------------------------------------------------------------------------------
    def _add(self, a: Any, b: Any) -> Any:
        return self._made(poly.add(_terms(a), _terms(b)), plain(a) + plain(b))

    def _subtract(self, a: Any, b: Any) -> Any:
        return self._made(poly.add(_terms(a), _terms(b), -1), plain(a) - plain(b))

    def _multiply(self, a: Any, b: Any) -> Any:
        return self._made(poly.multiply(_terms(a), _terms(b)), plain(a) * plain(b))

    def _divide(self, a: Any, b: Any) -> tuple[Any, Any]:
        """(a // b, a % b): the polynomial quotient, and what is left as an opaque atom."""
        hints = divmod(plain(a), plain(b))  # raises ZeroDivisionError
        if type(b) is SymInt and lower_bound(self.scope, b.terms) <= 0:
            _compared(self.scope, "==", b, 0)  # 0 does not divide: another size might
        whole, rest = poly.quotient(_terms(a), _terms(b))
        if not rest:
            return self._made(whole, hints[0]), 0
        left = self._made(rest, plain(a) - _evaluated(self.scope, whole) * plain(b))
        if type(left) is int and type(b) is int:
            return self._made(poly.add(whole, _terms(left // b)), hints[0]), left % b
        for shift in (0, 1):  # left or left + b may be known to be the remainder
            terms = poly.add(_terms(left), _terms(b), shift)
            if lower_bound(self.scope, terms) >= 0 and lower_bound(self.scope, poly.add(_terms(b), terms, -1)) > 0:
                return self._made(poly.add(whole, {(): shift}, -1), hints[0]), self._made(terms, hints[1])
        if type(b) is int and b > 0 and lower_bound(self.scope, poly.add({}, rest, -1)) >= 0:
            above = self._divide(b - 1 - left, b)[0]  # a // b = -((b - 1 - a) // b): natural atoms only
            quotient = self._made(poly.add(whole, _terms(above), -1), hints[0])
            return quotient, a - quotient * b
        quotient = self._opaque("//", left, b, plain(left) // plain(b))
        return self._made(poly.add(whole, _terms(quotient)), hints[0]), self._opaque("%", left, b, hints[1])

    def __neg__(self) -> Any:
        return 0 - self

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __bool__(self) -> bool:
        return bool(_unequal(self, 0))

    def __invert__(self) -> Any:
        return -self - 1

    def __round__(self, digits: int | None = None) -> Any:
        return self if digits is None or digits >= 0 else round(self.value(), digits)

    def __trunc__(self) -> Any:
        return self

    __floor__ = __ceil__ = __trunc__


def gcd(*numbers: Any) -> Any:
    """A common divisor: the greatest one of integers, that of all coefficients and all atoms of symbolic ones."""
    if not any(type(n) is SymInt for n in numbers):
        return math.gcd(*numbers)
    products = [Counter(p) for n in numbers for p in _terms(n)]
    common = functools.reduce(operator.and_, products) if products else Counter()
    factor: Any = math.gcd(*[c for n in numbers for c in _terms(n).values()])
    scope = next(n.scope for n in numbers if type(n) is SymInt)
    if not common:
        return factor
    terms = {tuple(sorted(common.elements())): factor}
    return SymInt(scope, terms, _evaluated(scope, terms))


def _evaluated(scope: Scope, terms: Terms) -> int:
    """The hint of a polynomial."""
    if not any(terms):
        return terms.get((), 0)
    return function(list(scope.hints), [text_of(terms)], ",")(*scope.hints.values())[0]


def lower_bound(scope: Scope, terms: Terms) -> float:
    """A lower bound of a polynomial: its constant, where no other coefficient is negative once each atom is written as
    its own lower bound plus something that is not negative.
    """
    shifted: Terms = {}
    for product, c in terms.items():
        part: Terms = {(): c}
        for atom in product:
            if atom not in scope.least:
                return -math.inf
            part = poly.add(poly.multiply(part, {(atom,): 1}), part, scope.least[atom])
        shifted = poly.add(shifted, part)
    return -math.inf if any(c < 0 for p, c in shifted.items() if p) else shifted.get((), 0)


def _compared(scope: Scope, sign: str, a: Any, b: Any) -> bool:
    """A comparison, decided from the expressions of integers or recorded as a guard."""
    outcome = _COMPARE[sign](plain(a), plain(b))
    if type(a) is SymFloat or type(b) is SymFloat or type(a) is float or type(b) is float:
        return scope.decide(f"{_float_text(a)} {sign} {_float_text(b)}", outcome)
    terms = poly.add(_terms(b), _terms(a), -1)
    if sign == "<=":
        sign, terms = "<", poly.add(terms, {(): 1})
    if sign == "==" and terms and terms[min(terms, key=poly.order)] < 0:
        terms = {p: -c for p, c in terms.items()}  # one text for a == b and b == a
    low, high = lower_bound(scope, terms), -lower_bound(scope, {p: -c for p, c in terms.items()})
    if low == high:
        return low == 0 if sign == "==" else low > 0
    if low > 0 or high < 0:
        return sign == "<" and low > 0
    if high == 0 and sign == "<":
        return False
    if sign == "==" and outcome and scope.active:
        scope._equated(terms)
    if sign != "==" and outcome and scope.structural:
        scope._bounded(terms)
    return scope.decide(f"{text_of(terms)} {'==' if sign == '==' else '>'} 0", outcome)


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"==": operator.eq, "<": operator.lt, "<=": operator.le}


# -- reals -----------------------------------------------------------------------------------------------------------
def _float_text(x: Any) -> str:
    return f"({x.text})" if isinstance(x, _Symbolic) else literal(x)


class SymFloat(_Symbolic):
    """A real number of a trace: the Python expression that gives it, evaluated anew for each call."""

    __slots__ = ("_symbols", "_text", "hint", "scope")

    def __init__(self, scope: Scope, text: str, hint: float, symbols: frozenset[str]):
        self.scope, self._text, self.hint, self._symbols = scope, text, hint, symbols

    @property
    def symbols(self) -> frozenset[str]:
        return self._symbols

    @property
    def text(self) -> str:
        return self._text

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return float

    def __neg__(self) -> Any:
        return SymFloat(self.scope, f"-({self.text})", -self.hint, self.symbols) if self.scope.active else -self.hint

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return -self if self < 0 else self

    def __bool__(self) -> bool:
        return bool(_unequal(self, 0))


def _real(scope: Scope, sign: str, a: Any, b: Any, hint: Any) -> Any:
    """A real expression, pinned to its value where it has grown too long or is no real number."""
    symbols = frozenset().union(*[x.symbols for x in (a, b) if isinstance(x, _Symbolic)])
    text = f"{_float_text(a)} {sign} {_float_text(b)}"
    if len(text) > LONGEST or type(hint) is not float:
        scope.pin(symbols)
        return hint
    if sign == "**" and isinstance(a, _Symbolic):
        _compared(scope, "<", a, 0)  # the power of a negative number may be complex
    return SymFloat(scope, text, hint, symbols)


_unequal: Any = operator.ne


# -- the operators of both -------------------------------------------------------------------------------------------
def _arithmetic(sign: str, compute: Callable[[Any, Any], Any], whole: Callable[[SymInt, Any, Any], Any] | None) -> Any:
    """The special methods `a sign b` and its reflection; `whole` works on integers."""

    def apply(self: Any, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return NotImplemented
        if not self.scope.active:
            return compute(plain(a), plain(b))
        if whole is not None and type(a) in (int, SymInt) and type(b) in (int, SymInt):
            return whole(self, a, b)
        return _real(self.scope, sign, a, b, compute(plain(a), plain(b)))

    return (
        lambda self, other: apply(self, self, _operand(self.scope, other)),
        lambda self, other: apply(self, _operand(self.scope, other), self),
    )


def _power(self: SymInt, a: Any, b: Any) -> Any:
    """An integer power by a small constant is a product; others are reals, or pinned."""
    if type(b) is int and 0 <= b <= 8:
        out: Any = 1
        for _ in range(b):
            out = out * a
        return out
    exponent = b.value() if type(b) is SymInt else b
    return _real(self.scope, "**", a, exponent, plain(a) ** exponent) if type(a) is SymInt else a**exponent


def _bitwise(compute: Callable[[int, int], int], reflected: bool) -> Any:
    """An operation on bits: on the values."""

    def apply(self: SymInt, other: Any) -> Any:
        other = _operand(self.scope, other)
        if other is None or isinstance(other, float):
            return NotImplemented
        other = other.value() if type(other) is SymInt else other
        return compute(other, self.value()) if reflected else compute(self.value(), other)

    return apply


def _comparison(sign: str, swapped: bool = False, negated: bool = False) -> Any:
    def compare(self: Any, other: Any) -> Any:
        other = _operand(self.scope, other)
        if other is None:
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        if not self.scope.active:
            return _COMPARE[sign](plain(a), plain(b)) != negated
        return _compared(self.scope, sign, a, b) != negated

    return compare


def _define_operators() -> None:
    table: list[tuple[str, str, Callable, Callable | None]] = [
        ("add", "+", operator.add, SymInt._add),
        ("sub", "-", operator.sub, SymInt._subtract),
        ("mul", "*", operator.mul, SymInt._multiply),
        ("floordiv", "//", operator.floordiv, lambda self, a, b: self._divide(a, b)[0]),
        ("mod", "%", operator.mod, lambda self, a, b: self._divide(a, b)[1]),
        ("truediv", "/", operator.truediv, None),
        ("pow", "**", operator.pow, _power),
    ]
    for name in ("and", "or", "xor", "lshift", "rshift"):
        setattr(SymInt, f"__{name}__", _bitwise(getattr(operator, f"__{name}__"), False))
        setattr(SymInt, f"__r{name}__", _bitwise(getattr(operator, f"__{name}__"), True))
    for kind in (SymInt, SymFloat):
        for name, sign, compute, whole in table:
            forward, reflected = _arithmetic(sign, compute, whole)
            setattr(kind, f"__{name}__", forward)
            setattr(kind, f"__r{name}__", reflected)
        more = {
            "divmod": lambda self, other: (self // other, self % other),
            "rdivmod": lambda self, other: (other // self, other % self),
            "eq": _comparison("=="), "ne": _comparison("==", negated=True),
            "lt": _comparison("<"), "gt": _comparison("<", swapped=True),
            "le": _comparison("<="), "ge": _comparison("<=", swapped=True),
        }  # fmt: skip
        for name, method in more.items():
            setattr(kind, f"__{name}__", method)


_define_operators()
SYMBOLIC: frozenset[type] = frozenset((SymInt, SymFloat))
"""`type(x) in SYMBOLIC` tells a symbolic number from a plain one; isinstance does not."""
