"""Symbolic numbers: what they compute is what Python computes, for all numbers that keep what was assumed of them."""

import copy
import math
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxir.dialects.symbolic import Scope, SymFloat, SymInt, as_index, function, gcd, plain

BINARY = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.truediv]
COMPARE = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]


def compute(numbers, steps):
    """A straight-line program: each step is an operation on two earlier numbers, or a comparison that decides."""
    known = list(numbers)
    outcomes = []
    for op, i, j, constant in steps:
        a, b = known[i % len(known)], constant if constant is not None else known[j % len(known)]
        if op in COMPARE:
            outcomes.append(bool(op(a, b)))
            known.append(a + 1 if outcomes[-1] else b)
        else:
            known.append(op(a, b))
    return known, outcomes


steps = st.lists(
    st.tuples(
        st.sampled_from(BINARY + COMPARE), st.integers(0, 9), st.integers(0, 9),
        st.one_of(st.none(), st.integers(-3, 9)),
    ),
    max_size=7,
)  # fmt: skip
sizes = st.lists(st.integers(0, 12), min_size=3, max_size=3)


@settings(max_examples=300, deadline=None)
@given(sizes, st.lists(sizes, min_size=1, max_size=6), steps, st.booleans())
def test_results_hold_for_all_numbers_that_keep_the_assumptions(first, others, program, structural):
    least = 2 if structural else 0
    first = [max(n, least) for n in first]
    scope = Scope(structural)
    try:
        want, outcomes = compute(first, program)
    except (ZeroDivisionError, OverflowError):
        return
    symbols = [scope.size(n, least) for n in first]
    got, decided = compute(symbols, program)
    assert decided == outcomes and [plain(x) for x in got] == want
    assert [type(plain(x)) for x in got] == [type(x) for x in want]
    holds = function(scope.hints, scope.assumptions(), "and")
    texts = [x.text if isinstance(x, (int, float)) and type(x) in (SymInt, SymFloat) else repr(x) for x in got]
    values = function(scope.hints, texts, ",")
    assert holds(*first)
    for numbers in others:
        numbers = [max(n, least) for n in numbers]
        try:
            kept = holds(*numbers)
        except ArithmeticError:
            continue
        if kept:
            try:
                known, outcomes = compute(numbers, program)
            except ArithmeticError as error:
                with pytest.raises(type(error)):
                    values(*numbers)
            else:
                assert outcomes == decided and list(values(*numbers)) == known


def test_sizes_that_are_equal_are_seen_to_be_equal():
    scope = Scope()
    n, m, k = scope.size(3), scope.size(4), scope.size(5)
    assert n * m == m * n and (n + m) * (n - m) == n * n - m * m and n * (m + 1) - n == n * m
    assert (4 * n + 3) // 4 == n and (4 * n + 3) % 4 == 3 and n >= 0 and n + 1 > 0 and n * m * k >= 0
    assert math.prod((n, m, 2)) == 2 * n * m and not scope.guards and not scope.pins
    assert (n * m * k) // (n * m) == k and list(scope.guards) == ["s0*s1 == 0"]


def test_a_compilation_decides_without_asking():
    """Lengths of at least 2, as code for all sizes has them: index arithmetic leaves no assumption."""
    scope = Scope(structural=True)
    n, m = scope.size(3, 2), scope.size(4, 2)
    assert (n * m - 1) // m == n - 1 and (m - 1) // m == 0 and m // (n * m) == 0 and 1 % m == 1
    assert n * m > n and n * m != n and n != 1 and max(n - 1, 0) == n - 1 and -(-n // 8) > 0
    assert gcd(n * m, 4 * m) == m and gcd(6 * n, 4) == 2 and gcd(6, 4) == 2
    assert {n * m: "found"}[m * n] == "found" and hash(n) == hash(n * 1)
    assert not scope.guards and not scope.pins
    assert n > 5 or True  # noqa: SIM222 (asked for its guard)
    assert list(scope.guards) == ["s0 - 5 > 0"]


USES = [
    int, float, hash, complex, range, "{:d}".format, lambda n: [0] * n, lambda n: n << 1, lambda n: n & 3,
    lambda n: 2**n, lambda n: n.bit_length(), lambda n: "abcdef"[n], lambda n: np.zeros(n), math.sqrt, operator.index,
    lambda n: pickle.loads(pickle.dumps(n)), lambda n: {3: 1}[n],
]  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
def test_uses_of_the_value_pin_it(use):
    scope = Scope()
    n, other = scope.size(3), scope.size(4)
    got = use(n)
    assert list(scope.pins) == ["s0"] and "s0 == 3" in scope.assumptions()
    assert type(got) is np.ndarray or got == use(3)
    assert other.scope is scope


def test_what_needs_no_value():
    scope = Scope()
    n, x = scope.size(3), scope.number(0.5)
    assert isinstance(n, int) and not isinstance(n, (bool, float)) and isinstance(x, float)
    assert repr(n) == str(n) == f"{n}" == "s0" and repr((n, 2)) == "(s0, 2)"
    assert as_index(n) is n and abs(n) is n and +n is n and round(n) is n and math.floor(n) is n
    assert copy.copy(n) is n and copy.deepcopy([n])[0] is n and not hasattr(n, "shape") and n.real is not None
    assert str(1 / n) == "1 / (s0)" and str(-x) == "-(s1)" and str(n * x + 1) == "((s0) * (s1)) + 1"
    assert n.__add__("a") is NotImplemented and (n == "a") is False and (n != None) is True  # noqa: E711
    with pytest.raises(TypeError):
        n + "a"
    with pytest.raises(ZeroDivisionError):
        n // 0
    assert {k for k in scope.pins} <= {"s0"}


def test_after_the_trace_they_are_plain():
    scope = Scope()
    n, x = scope.size(3), scope.number(0.5)
    scope.active = False
    assert type(n + 1) is int and type(x * 2) is float and n == 3 and repr(n) == "3" and n // 2 == 1 and -x == -0.5
    assert not scope.guards and not scope.pins


def test_numbers_of_two_traces():
    """In another trace a number is the value that it has there, pinned; in a compilation it is a mistake."""
    outer, inner, compilation = Scope(), Scope(), Scope(structural=True)
    n, m = outer.size(3), inner.size(4)
    assert str(m + n) == "s0 + 3" and list(outer.pins) == ["s0"] and not inner.pins
    with pytest.raises(RuntimeError, match="another compilation"):
        compilation.size(5) + n


def test_nan_and_powers():
    scope = Scope()
    x, y = scope.number(math.nan), scope.number(2.0)
    assert x != x and not x <= 1 and not x >= 1 and x != 1  # noqa: PLR0124
    assert str(y**0.5) == "(s1) ** 0.5" and "not ((s1) < 0)" in scope.assumptions()
    assert (y - 3) ** 0.5 == (-1.0) ** 0.5 and list(scope.pins) == ["s1"]  # complex: no symbolic number
