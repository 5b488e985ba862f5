"""Signatures of compiled functions: the key under which a call is found, and how two of them differ.

A key is a flat list. Each node of the tree begins with a token of its own kind (a shape, a container's type, a
constant's type), so the list can be read in one way only. Coarser keys are made of it where a call is not known:
without the lengths of axes (a shapeless trace serves all of them), without the values of Python numbers (one that keeps
changing becomes an input).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.graph import Value, number_input
from mlxir.dialects.symbolic import SYMBOLIC
from mlxir.runtime.dtypes import float32
from mlxir.runtime.trees import REGISTERED, children, container_kind

from .ndarray import array
from .random import RandomState

_CONSTANTS = (str, int, float, type(None))  # bool is an int
KEYWORD, STATE = object(), object()  # tokens of a key
_NUMBER, _ANY = object(), object()  # what stands for the value of a number that is an input, or of any number

Numbers = list[tuple[int, int | float]]
"""The Python ints and floats among the arguments: (position in the key, value)."""


# -- keys -------------------------------------------------------------------------------------------------------------
def flatten_argument(x: Any, key: list, values: list, numbers: Numbers) -> None:
    """Append a tree of arrays and constants to the key, its arrays to the values; ValueError for other leaves."""
    kind = type(x)
    if kind is array or isinstance(x, array):
        _append(x._value, key, values)
    elif isinstance(x, dict):
        key += [dict, len(x)]
        for name, item in x.items():
            key.append(name)
            flatten_argument(item, key, values, numbers)
    elif isinstance(x, (list, tuple)):
        key += [list if isinstance(x, list) else kind, len(x)]
        for item in x:
            flatten_argument(item, key, values, numbers)
    elif kind in REGISTERED:
        items, auxiliary = REGISTERED[kind].flatten(x)
        key += [kind, auxiliary, len(items)]
        for item in items:
            flatten_argument(item, key, values, numbers)
    elif isinstance(x, _CONSTANTS):
        if kind in SYMBOLIC:
            number: Any = x
            if number.scope.active:
                values.append(number_input(number, float32))  # part of a trace around this call
            x = number.hint
            kind = type(x)
        key.append(kind)
        if kind is int or kind is float:
            numbers.append((len(key), x))
        # NaN differs from itself and -0.0 equals 0.0: their text does not.
        key.append(repr(x) if isinstance(x, float) and (x != x or x == 0) else x)
    else:
        raise ValueError(
            "[compile] Function arguments must be trees of arrays or constants (floats, ints, strings, or None), but"
            f" received type {kind.__name__}."
        )


def flatten_state(x: Any, key: list, values: list) -> None:
    """Append captured state: its arrays count, leaves of other types are ignored."""
    kind = type(x)
    if kind is array or isinstance(x, array):
        _append(x._value, key, values)
    elif isinstance(x, dict):
        key.append(len(x))
        for name, item in x.items():
            key.append(name)
            flatten_state(item, key, values)
    elif isinstance(x, (list, tuple)):
        key.append(len(x))
        for item in x:
            flatten_state(item, key, values)
    elif kind is RandomState:
        _append(x.value, key, values)
    elif kind in REGISTERED:
        items, auxiliary = REGISTERED[kind].flatten(x)
        key += [kind, auxiliary, len(items)]
        for item in items:
            flatten_state(item, key, values)
    else:
        key.append(None)


def _append(value: Value, key: list, values: list) -> None:
    values.append(value)
    key += value.shape, value.dtype


def without_sizes(key: Sequence, values: Sequence) -> list:
    """The key with ranks for shapes.

    Shapes are found by identity, in order. (A dict may hold an array under its own shape: then the name is replaced
    instead, and the shape, which is equal to it, stays; so equal results still mean equal structures.)
    """
    shapes = iter([v.shape for v in values])
    following = next(shapes, None)
    out = list(key)
    for i, part in enumerate(key):
        if part is following and part is not None:
            out[i] = ("rank", len(part))
            following = next(shapes, None)
    return out


def without_numbers(key: Sequence, numbers: Numbers) -> list:
    """The key with nothing for the values of numbers."""
    out = list(key)
    for at, _ in numbers:
        out[at] = _ANY
    return out


def with_inputs(key: Sequence, numbers: Numbers, inputs: Collection[int]) -> list:
    """The key in which the numbers listed in `inputs` are inputs."""
    out = list(key)
    for i in inputs:
        out[numbers[i][0]] = _NUMBER
    return out


# -- explanations ----------------------------------------------------------------------------------------------------
class Description(NamedTuple):
    """What a call passed."""

    parts: dict[str, str]  # place in the arguments (`params['w']`) -> what is there (`f32[8,4]`)
    arrays: list[str]  # places of arrays, in order
    numbers: list[str]  # places of Python numbers, in order


def describe_call(fun: Callable, args: tuple, kwargs: dict, state: Any) -> Description:
    """A call for people."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    out = Description({}, [], [])
    for i, x in enumerate(args):
        _describe(x, named[i] if i < len(named) else f"argument {i}", out, True)
    for name, x in kwargs.items():
        _describe(x, name, out, True)
    if state is not None:
        _describe(state, "inputs", out, False)
    return out


def _describe(x: Any, path: str, out: Description, constants: bool) -> None:
    kind = container_kind(x)
    if kind is not None:
        items = list(x.items() if kind is dict else enumerate(children(x)))
        out.parts[path] = f"{type(x).__name__} of {len(items)}"
        for name, item in items:
            _describe(item, f"{path}[{name!r}]", out, constants)
    elif isinstance(x, (array, RandomState)):
        out.parts[path] = str((x._value if isinstance(x, array) else x.value).aval)
        out.arrays.append(path)
    elif constants:
        out.parts[path] = f"{type(x).__name__} {x!r}"
        if type(x) is int or type(x) is float:
            out.numbers.append(path)


def difference(new: Description, old: Description) -> list[str]:
    """What differs between two calls, a line each."""
    lines = []
    for path in dict.fromkeys((*new.parts, *old.parts)):
        now, before = new.parts.get(path), old.parts.get(path)
        if before is None:
            lines.append(f"{path}: {now} is new")
        elif now is None:
            lines.append(f"{path}: {before} is gone")
        elif now != before:
            lines.append(f"{path}: {now}, was {before}")
    return lines
