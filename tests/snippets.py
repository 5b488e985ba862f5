"""Pieces of Python that must do the same with mlxir as with real MLX, down to containers, dtypes and kinds of errors.

A snippet is the body of a function of the names below; its last line is the result. Tables of them are text, separated
by lines of dashes.
"""

from __future__ import annotations

import re
import textwrap
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import mlx.core as real
import numpy as np
from oracle import TOLERANCE, numpy_of

import mlxir

Point = namedtuple("Point", "x y")


class Pair(tuple):
    """A subclass of tuple that is no namedtuple."""


class Items(list):
    """A subclass of list."""


class Table(dict):
    """A subclass of dict."""


V = np.array([0.5, -1.25, 2.0, 0.75], np.float32)
W = np.array([1.5, -0.5, 0.25, 3.0], np.float32)
M = np.arange(12, dtype=np.float32).reshape(3, 4) / 5 - 1
Z = np.array([1 + 2j, 3 - 1j], np.complex64)
I = np.array([1, 2, 3, 4], np.int32)  # noqa: E741 (integers)


def table(text: str) -> list[str]:
    """The snippets of a table."""
    return [part.strip("\n") for part in re.split(r"\n-{3,}\n", textwrap.dedent(text).strip("\n"))]


def names(library: Any) -> dict[str, Any]:
    """What a snippet may use: `m` is the library, `a` makes an array."""
    return {
        "m": library, "a": library.array, "np": np, "V": V, "W": W, "M": M, "Z": Z, "I": I, "Point": Point,
        "Pair": Pair, "Items": Items, "Table": Table, "OrderedDict": OrderedDict, "defaultdict": defaultdict,
    }  # fmt: skip


def outcome(snippet: str, library: Any) -> Any:
    """The result of a snippet with its arrays evaluated, or the exception that it raises."""
    *body, last = snippet.split("\n")
    source = "\n".join(["def run():", *[f"    {line}" for line in body], f"    return {last}"])
    known = names(library)
    exec(compile(source, "<snippet>", "exec"), known)
    try:
        result = known["run"]()
        library.eval(result)
    except Exception as error:  # what is compared
        return error
    return result


def tag(error: Exception) -> str:
    """The operation in brackets that a message begins with."""
    found = re.match(r"\[[^\]]*\]", str(error))
    return found.group() if found else ""


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal in containers, dtypes, shapes and values; an error of a type that fits, with the same tag."""
    if isinstance(theirs, Exception):
        assert isinstance(mine, type(theirs)), f"{mine!r} is no {type(theirs).__name__} ({theirs})"
        assert tag(theirs) in ("", tag(mine)), f"{mine} begins with another tag than {theirs}"
        return
    if isinstance(mine, Exception):
        raise mine
    if isinstance(theirs, real.array):
        assert isinstance(mine, mlxir.array), f"{mine!r} is no array"
        dtype = str(theirs.dtype).rpartition(".")[2]
        assert (mine.shape, str(mine.dtype).rpartition(".")[2]) == (theirs.shape, dtype)
        tolerance = TOLERANCE.get(dtype, 0)
        np.testing.assert_allclose(numpy_of(mine), numpy_of(theirs), rtol=tolerance, atol=tolerance)
        return
    assert type(mine).__name__ == type(theirs).__name__, f"{mine!r} is of another type than {theirs!r}"
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        mine, theirs = list(mine.values()), list(theirs.values())
    if isinstance(theirs, (list, tuple)):
        assert len(mine) == len(theirs)
        for x, y in zip(mine, theirs, strict=True):
            assert_same(x, y)
    elif isinstance(theirs, np.ndarray):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)
    elif isinstance(theirs, float):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)
    elif not isinstance(theirs, real.Dtype):
        assert mine == theirs


def assert_agree(snippet: str) -> None:
    """A snippet does the same with both libraries."""
    assert_same(outcome(snippet, mlxir), outcome(snippet, real))
