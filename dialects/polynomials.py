"""Polynomials with integer coefficients over named atoms: the arithmetic of symbolic sizes (`symbolic.py`).

    s0*s1 - 3    {("s0", "s1"): 1, (): -3}
"""

from __future__ import annotations

from collections import Counter

Terms = dict[tuple[str, ...], int]
"""A polynomial: (sorted atoms of a product) -> coefficient, never 0; the empty product is the constant."""


def add(a: Terms, b: Terms, factor: int = 1) -> Terms:
    """a + factor * b."""
    out = dict(a)
    for product, c in b.items():
        c = out.get(product, 0) + factor * c
        if c:
            out[product] = c
        else:
            out.pop(product, None)
    return out


def multiply(a: Terms, b: Terms) -> Terms:
    """a * b."""
    out: Terms = {}
    for p, c in a.items():
        for q, d in b.items():
            out = add(out, {tuple(sorted(p + q)): c * d})
    return out


def order(product: tuple[str, ...]) -> tuple:
    """A key that sorts products: the longest first."""
    return -len(product), product


def _without(product: tuple[str, ...], factor: tuple[str, ...]) -> tuple[str, ...]:
    left = Counter(product)
    left.subtract(factor)
    return tuple(sorted(left.elements()))


def _within(factor: tuple[str, ...], product: tuple[str, ...]) -> bool:
    return Counter(factor) <= Counter(product)


def quotient(a: Terms, b: Terms) -> tuple[Terms, Terms]:
    """(q, r) with a = q * b + r, as far as the leading term of b divides."""
    lead = min(b, key=order)
    whole: Terms = {}
    rest = dict(a)
    # Each step replaces a term by smaller ones (in graded order), so this ends.
    while divisible := [p for p in rest if not rest[p] % b[lead] and _within(lead, p)]:
        product = min(divisible, key=order)
        factor: Terms = {_without(product, lead): rest[product] // b[lead]}
        whole, rest = add(whole, factor), add(rest, multiply(factor, b), -1)
    return whole, rest


def text_of(terms: Terms) -> str:
    """`2*s0*s1 + s0 - 3`."""
    out = ""
    for product in sorted(terms, key=order):
        c = terms[product]
        factors = [str(abs(c))] * (abs(c) != 1 or not product) + list(product)
        sign = ("-" if c < 0 else "") if not out else (" - " if c < 0 else " + ")
        out += sign + "*".join(factors)
    return out or "0"
