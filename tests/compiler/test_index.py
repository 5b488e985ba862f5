"""Index arithmetic against plain integers: what an `Index` simplified itself to has the value of what was written."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlxir.compiler.lower.index import Condition, Index, Quotient, Remainder, Var, delinearize, linear


def value(index: Index, at: dict[Var, int]) -> int:
    """What the simplified expression gives, read off its terms. The loops divide towards zero, so no dividend may be
    negative.
    """
    total = index.constant
    for atom, c in index.terms.values():
        if isinstance(atom, Var):
            total += c * at[atom]
            continue
        assert isinstance(atom, Quotient)
        inner = value(atom.inner, at)
        assert inner >= 0, atom
        total += c * (inner % atom.n if isinstance(atom, Remainder) else inner // atom.n)
    return total


class Written(NamedTuple):
    """An expression as written: the `Index` that it became, and Python's integers computing the same."""

    index: Index
    plain: Callable[[dict[Var, int]], int]


VARS = [Var("a", 1), Var("b", 2), Var("c", 3), Var("d", 4), Var("e", 7), Var("f", 8), Var("g", 12), Var("h", 60)]
SMALL = st.integers(-9, 9)
DIVISOR = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 12, 24, 60])


def _plus(x: Written, y: Written) -> Written:
    return Written(x.index + y.index, lambda at: x.plain(at) + y.plain(at))


def _minus(x: Written, y: Written) -> Written:
    return Written(x.index - y.index, lambda at: x.plain(at) - y.plain(at))


def _grown(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    return st.one_of(
        st.builds(_plus, inner, inner),
        st.builds(_minus, inner, inner),
        st.builds(lambda x, n: Written(x.index * n, lambda at: x.plain(at) * n), inner, SMALL),
        st.builds(lambda x, n: Written(x.index // n, lambda at: x.plain(at) // n), inner, DIVISOR),
        st.builds(lambda x, n: Written(x.index % n, lambda at: x.plain(at) % n), inner, DIVISOR),
    )


LEAVES = st.one_of(
    st.sampled_from(VARS).map(lambda v: Written(Index.of(v), lambda at: at[v])),
    SMALL.map(lambda n: Written(Index.of(n), lambda at: n)),
)
EXPRESSIONS = st.recursive(LEAVES, _grown, max_leaves=8)
POINTS = st.fixed_dictionaries({v: st.integers(0, v.extent - 1) for v in VARS})
SHAPES = st.lists(st.integers(1, 8), min_size=0, max_size=4).map(tuple)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.lists(POINTS, min_size=3, max_size=3))
def test_simplified_equals_written(e: Written, points: list[dict[Var, int]]) -> None:
    for at in points:
        assert value(e.index, at) == e.plain(at), e.index


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, POINTS)
def test_bounds_hold(e: Written, at: dict[Var, int]) -> None:
    low, high = e.index.bounds
    assert low <= e.plain(at) <= high, e.index


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.sampled_from(VARS), EXPRESSIONS, POINTS)
def test_substitution_is_evaluation_at_the_substitute(e: Written, var: Var, new: Written, at: dict[Var, int]) -> None:
    """The substitute must stay within the variable's range, which simplifications have relied on."""
    low, high = new.index.bounds
    assume(low >= 0 and high < var.extent)
    replaced = e.index.substitute({var: new.index})
    assert value(replaced, at) == e.plain({**at, var: new.plain(at)}), (e.index, replaced)


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS)
def test_what_is_equal_has_equal_keys(x: Written, y: Written) -> None:
    """Loads of one position are one load only if their keys agree."""
    assert x.index - x.index == Index.of(0)
    assert x.index + y.index == y.index + x.index
    assert x.index + y.index - y.index == x.index


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.sampled_from(VARS), POINTS)
def test_coefficient_is_the_slope(e: Written, var: Var, at: dict[Var, int]) -> None:
    """A coefficient is promised only where the expression is linear in the variable."""
    c = e.index.coefficient(var)
    assert (var in e.index.free()) == (c != 0), e.index
    if c is not None:
        assert e.plain(at) - e.plain({**at, var: 0}) == c * at[var]


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.integers(-40, 40), st.integers(0, 60), POINTS)
def test_a_condition_decided_early_is_decided_right(e: Written, low: int, width: int, at: dict[Var, int]) -> None:
    condition = Condition.in_range(e.index, low, low + width)
    holds = low <= e.plain(at) < low + width
    if condition.always:
        assert holds
    if condition.never:
        assert not holds
    for index, first, end in condition.parts:
        assert (first <= value(index, at) < end) == holds


# -- reshapes: what must simplify away --------------------------------------------------------------------------------
def variables(shape: tuple[int, ...]) -> tuple[Index, ...]:
    """One loop variable per axis; an axis of length 1 has none, as in the lowering."""
    return tuple(Index.of(Var(f"i{n}", extent) if extent > 1 else 0) for n, extent in enumerate(shape))


def divisions(index: Index) -> int:
    """How many quotients and remainders are left."""
    return sum(1 + divisions(a.inner) for a, _ in index.terms.values() if isinstance(a, Quotient))


@given(SHAPES)
def test_the_index_of_a_position_is_the_index(shape: tuple[int, ...]) -> None:
    idx = variables(shape)
    assert delinearize(linear(idx, shape), shape) == idx


@given(SHAPES)
def test_the_position_of_an_index_is_the_position(shape: tuple[int, ...]) -> None:
    position = Index.of(Var("p", prod(shape)))
    expected = position if prod(shape) > 1 else Index.of(0)
    assert linear(delinearize(position, shape), shape) == expected


@st.composite
def merged(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape, and the same with some neighbouring axes merged and axes of length 1 put in."""
    shape = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5).map(tuple))
    cuts = [0, *sorted(draw(st.sets(st.integers(1, max(len(shape) - 1, 1))))), len(shape)]
    new: list[int] = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        new += [1] * draw(st.integers(0, 1)) + [prod(shape[a:b])]
    return shape, tuple(new)


@given(merged())
def test_a_reshape_that_merges_axes_leaves_no_division(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    shape, flat = shapes
    idx = variables(shape)
    through = delinearize(linear(idx, shape), flat)
    assert not any(divisions(i) for i in through), through
    assert linear(through, flat) == linear(idx, shape)
    back = delinearize(linear(through, flat), shape)
    assert not any(divisions(i) for i in back)


@settings(deadline=None)
@given(st.permutations([2, 2, 3, 4, 5]), st.permutations([2, 2, 3, 4, 5]), st.integers(1, 4), st.integers(1, 4))
def test_any_reshape_there_and_back_is_the_same_position(a: list[int], b: list[int], i: int, j: int) -> None:
    """Axes of `b` cut across those of `a`: divisions remain in between, and cancel on the way back."""
    first, second = (prod(a[:i]), *a[i:]), (*b[:j], prod(b[j:]))
    position = Index.of(Var("p", prod(a)))
    there = linear(delinearize(position, first), first)
    assert linear(delinearize(there, second), second) == position


def test_the_example_of_the_docstring() -> None:
    b, t, d = Var("b", 5), Var("t", 6), Var("d", 7)
    row = Index.of(b) * 6 + t
    assert delinearize(linear((row, d), (30, 7)), (5, 6, 7)) == (Index.of(b), Index.of(t), Index.of(d))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_element_has_position_zero(shape: tuple[int, ...]) -> None:
    assert linear(delinearize(Index.of(Var("p", 1)), shape), shape) == Index.of(0)
