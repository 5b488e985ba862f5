"""Index arithmetic: integer expressions over loop variables that simplify themselves.

An `Index` is a sum of atoms with integer coefficients plus a constant. An atom is a loop variable, a quotient or
remainder that did not
simplify, or a data-dependent index. Bounds of the atoms decide most divisions: reading a `(B, T, D)` array through a
reshape to
`(B * T, D)` at `(b * T + t, d)` gives back `(b, t, d)`, so no division reaches the loops.
"""

from __future__ import annotations

from typing import Any

from mlxir.dialects.symbolic import gcd


class Var:
    """A loop variable with values 0 .. extent-1."""

    __slots__ = ("extent", "name")

    def __init__(self, name: str, extent: int):
        self.name, self.extent = name, extent

    def __repr__(self) -> str:
        return self.name

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, max(self.extent - 1, 0)

    @property
    def key(self) -> Any:
        return self.name

    def free(self) -> frozenset[Var]:
        return frozenset((self,))


class Quotient:
    """`inner // n`."""

    __slots__ = ("inner", "n")

    def __init__(self, inner: Index, n: int):
        self.inner, self.n = inner, n

    def __repr__(self) -> str:
        return f"({self.inner} // {self.n})"

    @property
    def bounds(self) -> tuple[int, int]:
        low, high = self.inner.bounds
        return low // self.n, high // self.n

    @property
    def key(self) -> Any:
        return "//", self.inner.key, self.n

    def free(self) -> frozenset[Var]:
        return self.inner.free()


class Remainder(Quotient):
    """`inner % n`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"({self.inner} % {self.n})"

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, self.n - 1

    @property
    def key(self) -> Any:
        return "%", self.inner.key, self.n


class Dynamic:
    """A data-dependent index: the integer scalar `node`, wrapped at `extent` and clamped to 0 .. limit-1."""

    __slots__ = ("extent", "limit", "node")

    def __init__(self, node: Any, extent: int, limit: int):
        self.node, self.extent, self.limit = node, extent, limit

    def __repr__(self) -> str:
        return f"clamp({self.node.key})"

    @property
    def bounds(self) -> tuple[int, int]:
        return 0, max(self.limit - 1, 0)

    @property
    def key(self) -> Any:
        return "dyn", id(self.node), self.extent, self.limit

    def free(self) -> frozenset[Var]:
        return self.node.free


class Index:
    """`sum(coefficient * atom) + constant`; immutable, compared by `key`."""

    __slots__ = ("_free", "_key", "constant", "terms")

    def __init__(self, terms: dict[Any, tuple[Any, int]], constant: int):
        self.terms, self.constant = terms, constant  # terms: atom key -> (atom, coefficient)
        self._key: Any = None
        self._free: frozenset[Var] | None = None

    @staticmethod
    def of(value: Any) -> Index:
        """An Index from an int, a Var or an Index."""
        if isinstance(value, Index):
            return value
        if isinstance(value, int):
            return Index({}, value)
        return Index({value.key: (value, 1)}, 0)

    @property
    def key(self) -> Any:
        if self._key is None:
            self._key = (tuple(sorted(((repr(k), c) for k, (_, c) in self.terms.items()))), self.constant)
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        parts = [f"{c}*{a}" if c != 1 else f"{a}" for a, c in self.terms.values()]
        return " + ".join(parts + [str(self.constant)] * (self.constant != 0 or not parts))

    @property
    def bounds(self) -> tuple[int, int]:
        low = high = self.constant
        for atom, c in self.terms.values():
            a, b = atom.bounds
            low, high = low + min(c * a, c * b), high + max(c * a, c * b)
        return low, high

    def free(self) -> frozenset[Var]:
        """The loop variables it depends on."""
        if self._free is None:
            self._free = frozenset().union(*(a.free() for a, _ in self.terms.values()))
        return self._free

    def coefficient(self, var: Var) -> int | None:
        """Of a loop variable; None where the variable occurs inside a quotient or a data-dependent index."""
        if any(var in a.free() for a, _ in self.terms.values() if not isinstance(a, Var)):
            return None
        found = self.terms.get(var.key)
        return found[1] if found else 0

    def substitute(self, mapping: dict[Var, Index]) -> Index:
        total = Index.of(self.constant)
        for atom, c in self.terms.values():
            if isinstance(atom, Var):
                new = mapping.get(atom, Index.of(atom))
            elif isinstance(atom, Remainder):
                new = atom.inner.substitute(mapping) % atom.n
            elif isinstance(atom, Quotient):
                new = atom.inner.substitute(mapping) // atom.n
            else:
                new = Index.of(atom)
            total = total + new * c
        return total

    def __add__(self, other: Any) -> Index:
        other = Index.of(other)
        terms = dict(self.terms)
        for key, (atom, c) in other.terms.items():
            c += terms[key][1] if key in terms else 0
            if c:
                terms[key] = (atom, c)
            else:
                terms.pop(key, None)
        return _recombined(terms, self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: Any) -> Index:
        return self + Index.of(other) * -1

    def __rsub__(self, other: Any) -> Index:
        return Index.of(other) - self

    def __mul__(self, n: int) -> Index:
        if n == 0:
            return Index({}, 0)
        return Index({k: (a, c * n) for k, (a, c) in self.terms.items()}, self.constant * n)

    __rmul__ = __mul__

    def _split(self, n: int) -> tuple[Index, Index]:
        """(q, r) with self = n * q + r, where r keeps the terms that n does not divide."""
        whole = {k: (a, c // n) for k, (a, c) in self.terms.items() if c % n == 0}
        rest = {k: (a, c) for k, (a, c) in self.terms.items() if c % n}
        return Index(whole, self.constant // n), Index(rest, self.constant % n)

    def __floordiv__(self, n: int) -> Index:
        if n == 1:
            return self
        if n == 0:  # of an axis without elements: never evaluated
            return Index({}, 0)
        whole, rest = self._split(n)
        low, high = rest.bounds
        if low // n == high // n:
            return whole + low // n
        common = gcd(n, *[c for _, c in rest.terms.values()])
        if common > 1:
            inner = Index({k: (a, c // common) for k, (a, c) in rest.terms.items()}, rest.constant // common)
            return whole + inner // (n // common)
        ((atom, c),) = rest.terms.values() if len(rest.terms) == 1 else ((None, 0),)
        if type(atom) is Quotient and c == 1 and not rest.constant:
            return whole + atom.inner // (atom.n * n)
        shift = _lift(low, n)
        return whole + Index.of(Quotient(rest + shift * n, n)) - shift

    def __mod__(self, n: int) -> Index:
        if n in (0, 1):
            return Index({}, 0)
        _, rest = self._split(n)
        low, high = rest.bounds
        if low // n == high // n:
            return rest - (low // n) * n
        common = gcd(n, *[c for _, c in rest.terms.values()])
        if common > 1:
            inner = Index({k: (a, c // common) for k, (a, c) in rest.terms.items()}, rest.constant // common)
            return (inner % (n // common)) * common + rest.constant % common
        ((atom, c),) = rest.terms.values() if len(rest.terms) == 1 else ((None, 0),)
        if type(atom) is Remainder and c == 1 and not rest.constant and atom.n % n == 0:
            return atom.inner % n
        return Index.of(Remainder(rest + _lift(low, n) * n, n))


def _lift(low: int, n: int) -> int:
    """How many times n must be added to a value of at least `low` so that it is not negative: loops divide towards
    zero.
    """
    return max(-(low // n), 0)


def _recombined(terms: dict[Any, tuple[Any, int]], constant: int) -> Index:
    """c*n*(x // n) + c*(x % n) = c*x."""
    for atom, c in terms.values() if len(terms) > 1 else ():
        if isinstance(atom, Remainder):
            # The quotient may have simplified itself: (p // 2) // 2 is p // 4.
            quotient = (atom.inner // atom.n).terms
            partner = next(iter(quotient)) if len(quotient) == 1 else None
            if partner in terms and terms[partner][1] == c * atom.n:
                rest = {k: t for k, t in terms.items() if k not in (atom.key, partner)}
                return Index(rest, constant) + atom.inner * c
    return Index(terms, constant)


def linear(idx: tuple, shape: tuple[int, ...]) -> Index:
    """The row-major position of an index."""
    position = Index.of(0)
    for i, n in zip(idx, shape, strict=True):
        position = position * n + i
    return position


def delinearize(position: Index, shape: tuple[int, ...]) -> tuple[Index, ...]:
    """The index of a row-major position. (An axis of length 0 has none: no loop gets there.)"""
    out = []
    for n in reversed(shape):
        out.append(position % max(n, 1))
        position = position // max(n, 1)
    return tuple(reversed(out))


class Condition:
    """A conjunction of `low <= index < high` and `index == value`; empty means true, `never` false."""

    __slots__ = ("never", "parts")

    def __init__(self, parts: tuple = (), never: bool = False):
        self.parts, self.never = parts, never

    @property
    def always(self) -> bool:
        return not self.parts and not self.never

    def __and__(self, other: Condition) -> Condition:
        return Condition(self.parts + other.parts, self.never or other.never)

    @property
    def key(self) -> Any:
        return tuple((i.key, low, high) for i, low, high in self.parts)

    def free(self) -> frozenset[Var]:
        return frozenset().union(*(i.free() for i, _, _ in self.parts))

    @staticmethod
    def in_range(index: Any, low: int, high: int) -> Condition:
        index = Index.of(index)
        least, most = index.bounds
        if low <= least and most < high:
            return Condition()
        if most < low or least >= high:
            return Condition(never=True)
        return Condition(((index, low, high),))
