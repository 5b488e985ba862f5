"""Captured state of compiled functions: trees of arrays that a trace reads and writes in place.

`inputs` hold placeholders while the function is traced, `outputs` are read off afterwards and overwritten after every
call (BEHAVIOUR section 8.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from mlxir.compiler.graph import Trace, Value, placeholder
from mlxir.dialects.symbolic import Scope
from mlxir.runtime.trees import REGISTERED, children, container_kind, leaves, maker, update

from .ndarray import array, wrap
from .random import RandomState


def _containers(tree: Any) -> Iterator[list | dict]:
    """Every list and dict of a tree."""
    kind = container_kind(tree)
    if kind is not None:
        if kind is list or kind is dict:
            yield tree
        for item in children(tree):
            yield from _containers(item)


class Snapshot:
    """The contents of all lists and dicts of the captured state, for a trace that raises."""

    def __init__(self, *trees: Any):
        self.saved = [(c, c.copy() if type(c) in (list, dict) else (dict if isinstance(c, dict) else list)(c))
                      for tree in trees for c in _containers(tree)]  # fmt: skip
        self.random = RandomState().value

    def restore(self) -> None:
        for container, content in self.saved:
            # The base classes' own methods: `nn.Module`, a dict, has an `update` of its own.
            if isinstance(container, dict):
                dict.clear(container)
                dict.update(container, content)
            else:
                list.__setitem__(container, slice(None), content)
        RandomState().value = self.random


class Placeholders:
    """Placeholders for the arrays of a call, in the order of the signature.

    Those of captured state are put into it for the time of a trace. With a scope, axes have symbolic lengths if
    `shapeless`, and so have the Python numbers listed in `inputs` (as the signature counts them); `sources` tells for
    each symbol where its number comes from: (array, axis), or (-1, number).
    """

    def __init__(self, trace: Trace, scope: Scope | None = None, shapeless: bool = False, inputs: Collection[int] = ()):
        self.trace, self.scope, self.shapeless, self.inputs = trace, scope, shapeless, inputs
        self.made: list[Value] = []
        self.sources: list[tuple[int, int]] = []
        self.numbers = 0
        self.swapped: dict[int, tuple[array, array]] = {}  # id of the stand-in -> (stand-in, original)
        self.random: Value | None = None

    def make(self, value: Value, symbolic: bool = True) -> Value:
        shape = value.shape
        if self.scope is not None and self.shapeless and symbolic:
            self.sources += [(len(self.made), axis) for axis in range(len(shape))]
            sizes: list[Any] = [self.scope.size(n) for n in shape]
            shape = tuple(sizes)
        self.made.append(placeholder(shape, value.dtype, self.trace))
        return self.made[-1]

    def argument(self, leaf: Any) -> Any:
        if isinstance(leaf, array):
            return wrap(self.make(leaf._value))
        if type(leaf) is int or type(leaf) is float:
            self.numbers += 1
            if self.scope is not None and self.numbers - 1 in self.inputs:
                self.sources.append((-1, self.numbers - 1))
                return self.scope.number(leaf)
        return leaf

    def insert(self, leaf: Any) -> Any:
        if isinstance(leaf, array):
            stand_in = wrap(self.make(leaf._value))
            self.swapped[id(stand_in)] = stand_in, leaf
            return stand_in
        if isinstance(leaf, RandomState):
            self.random, leaf.value = leaf.value, self.make(leaf.value, symbolic=False)
        return leaf

    def remove(self, state: Any) -> None:
        """Put back what the function did not reassign."""

        def back(leaf: Any) -> Any:
            found = self.swapped.get(id(leaf))
            return found[1] if found is not None and leaf._value.trace is self.trace else leaf

        update(back, state)
        if self.random is not None:
            RandomState().value = self.random


def written(state: Any) -> list[Value]:
    """The values that stand in captured outputs, in order."""
    return [x._value if isinstance(x, array) else x.value for x in leaves(state) if isinstance(x, (array, RandomState))]


def write(tree: Any, new: Iterator[array]) -> Any:
    """Put the next arrays into the array slots of captured outputs.

    A tuple is rebuilt; an array that no list or dict holds refers to the new value.
    """
    if isinstance(tree, dict):
        for key, item in tree.items():  # existing keys only: the dict keeps its size
            if type(item) is array:
                tree[key] = next(new)
            elif isinstance(item, (dict, list, RandomState)):
                write(item, new)
            elif isinstance(item, (tuple, array)) or type(item) in REGISTERED:
                tree[key] = _rewritten(item, new)
    elif isinstance(tree, list):
        for i, item in enumerate(tree):
            if type(item) is array:
                tree[i] = next(new)
            elif isinstance(item, (dict, list, RandomState)):
                write(item, new)
            elif isinstance(item, (tuple, array)) or type(item) in REGISTERED:
                tree[i] = _rewritten(item, new)
    elif isinstance(tree, tuple) or type(tree) in REGISTERED:
        for item in children(tree):
            write(item, new)
    elif isinstance(tree, array):
        tree._value = next(new)._value
    elif isinstance(tree, RandomState):
        tree.value = next(new)._value
    return tree


def _rewritten(item: Any, new: Iterator[array]) -> Any:
    """What a slot holds instead of a tuple, an object of a registered class or an array."""
    if isinstance(item, array):
        return next(new)
    if not isinstance(item, tuple) and type(item) not in REGISTERED:
        return write(item, new)
    return maker(item)([_rewritten(x, new) for x in children(item)])
