"""Trees: nested lists, tuples and dicts whose leaves are arrays or anything else (BEHAVIOUR section 1).

Subclasses of the three are containers too. A tree that is rebuilt keeps tuple subclasses (a namedtuple by
`type(*items)`, others by `type(items)`); subclasses of list and dict come back as plain ones. Dicts keep their
insertion order. Sets, dataclasses, NumPy arrays and generators are leaves.

This module knows no array class: where only arrays are allowed, the caller names the type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

CONTAINERS = (list, tuple, dict)


def container_kind(tree: Any) -> type | None:
    """`list`, `tuple` or `dict` for a container (subclasses count), None for a leaf."""
    kind = type(tree)
    if kind in CONTAINERS:
        return kind
    if not isinstance(tree, CONTAINERS):
        return None
    return next(k for k in CONTAINERS if isinstance(tree, k))


def remake_tuple(kind: type, items: list) -> tuple:
    """A tuple of a given subclass."""
    if kind is tuple:
        return tuple(items)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


class Structure:
    """The shape of a tree without its leaves. `type` is None for a leaf, else list, dict or the tuple's own class."""

    __slots__ = ("children", "count", "keys", "type")

    count: int

    def __init__(self, kind: type | None, children: tuple[Structure, ...] = (), keys: tuple | None = None):
        self.type, self.children, self.keys = kind, children, keys
        self.count = sum(c.count for c in children) if kind else 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure):
            return NotImplemented
        return (self.type, self.keys, self.children) == (other.type, other.keys, other.children)

    def __hash__(self) -> int:
        return hash((self.type, self.keys, self.children))

    def __repr__(self) -> str:
        return repr(unflatten(self, [_Star()] * self.count))


class _Star:
    """How a leaf is shown in a structure's repr."""

    def __repr__(self) -> str:
        return "*"


LEAF = Structure(None)


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """(all leaves in order, structure): the lenient form, where a leaf may be anything."""
    out: list[Any] = []
    return out, _flatten(tree, out)


def _flatten(tree: Any, out: list[Any]) -> Structure:
    kind = container_kind(tree)
    if kind is None:
        out.append(tree)
        return LEAF
    if kind is dict:
        return Structure(dict, tuple([_flatten(v, out) for v in tree.values()]), tuple(tree))
    return Structure(list if kind is list else type(tree), tuple([_flatten(v, out) for v in tree]))


def leaves(tree: Any) -> list[Any]:
    """All leaves in order."""
    out: list[Any] = []
    _collect(tree, out)
    return out


def _collect(tree: Any, out: list[Any]) -> None:
    kind = container_kind(tree)
    if kind is None:
        out.append(tree)
    else:
        for item in tree.values() if kind is dict else tree:
            _collect(item, out)


def strict_leaves(tree: Any, array_type: type, place: str = "") -> list[Any]:
    """All leaves; raises ValueError if one is not of `array_type`. `place` tells the message where the tree stood."""
    found = leaves(tree)
    for leaf in found:
        if not isinstance(leaf, array_type):
            raise ValueError(
                f"[tree_flatten] The argument should contain only arrays{place and ' ' + place}, but it holds a"
                f" {type(leaf).__name__}; wrap it with array()."
            )
    return found


def unflatten(structure: Structure, items: Iterable[Any]) -> Any:
    """The tree of that structure with `items` for leaves; their number must fit."""
    source = iter(items)
    try:
        tree = _unflatten(structure, source)
    except StopIteration:
        raise ValueError(f"[tree_unflatten] {structure.count} leaves are needed, fewer were given") from None
    if next(source, structure) is not structure:
        raise ValueError(f"[tree_unflatten] {structure.count} leaves are needed, more were given")
    return tree


def _unflatten(structure: Structure, source: Iterator[Any]) -> Any:
    kind = structure.type
    if kind is None:
        return next(source)
    # No generator here: a StopIteration of `source` would end it silently.
    items = [_unflatten(child, source) for child in structure.children]
    if kind is dict:
        return dict(zip(structure.keys or (), items, strict=True))
    return items if kind is list else remake_tuple(kind, items)


def tree_map(fn: Callable[[Any], Any], tree: Any) -> Any:
    """A new tree with `fn(leaf)` for every leaf."""
    kind = container_kind(tree)
    if kind is None:
        return fn(tree)
    if kind is dict:
        return {k: tree_map(fn, v) for k, v in tree.items()}
    items = [tree_map(fn, v) for v in tree]
    return items if kind is list else remake_tuple(type(tree), items)


def update(fn: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `fn(leaf)` for every leaf, lists and dicts changed in place (a slot only where its content changes).

    Tuples are rebuilt if something below them changed; a bare leaf gives `fn(leaf)`.
    """
    kind = container_kind(tree)
    if kind is None:
        return fn(tree)
    if kind is tuple:
        items = [update(fn, v) for v in tree]
        return tree if all(a is b for a, b in zip(items, tree, strict=True)) else remake_tuple(type(tree), items)
    for key, item in list(tree.items()) if kind is dict else enumerate(tree):
        new = update(fn, item)
        if new is not item:
            tree[key] = new
    return tree


def broadcast_prefix(prefix: Any, tree: Any, what: str) -> list[Any]:
    """One entry of `prefix` per leaf of `tree`: a non-container stands for the whole subtree at its place.

    Raises ValueError unless containers match in kind (a list is no tuple), length and keys. `what` opens the message.
    """
    out: list[Any] = []
    _broadcast_prefix(prefix, tree, what, out)
    return out


def _broadcast_prefix(prefix: Any, tree: Any, what: str, out: list[Any]) -> None:
    kind = container_kind(prefix)
    if kind is None:
        out.extend([prefix] * len(leaves(tree)))
        return
    actual = container_kind(tree)
    if actual is not kind:
        given = actual.__name__ if actual else type(tree).__name__
        raise ValueError(
            f"{what} is not a valid prefix of the tree: it has a {kind.__name__} where there is a {given}."
        )
    if kind is dict:
        if set(prefix) != set(tree):
            raise ValueError(
                f"{what} is not a valid prefix of the tree: keys {list(prefix)} stand for keys {list(tree)}."
            )
        for key, item in tree.items():
            _broadcast_prefix(prefix[key], item, what, out)
        return
    if len(prefix) != len(tree):
        raise ValueError(f"{what} is not a valid prefix of the tree: {len(prefix)} entries stand for {len(tree)}.")
    for entry, item in zip(prefix, tree, strict=True):
        _broadcast_prefix(entry, item, what, out)
