"""Trees: nested lists, tuples and dicts whose leaves are arrays or anything else (BEHAVIOUR section 1).

Subclasses of the three are containers too. A tree that is rebuilt keeps tuple subclasses (a namedtuple by
`type(*items)`, others by `type(items)`); subclasses of list and dict come back as plain ones. Dicts keep their
insertion order. Sets, dataclasses, NumPy arrays and generators are leaves.

Users may register classes of their own as containers (MLX has no such thing): they are taken apart and put together by
functions that the registration names, and never changed in place.

This module knows no array class: where only arrays are allowed, the caller names the type.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

CONTAINERS = (list, tuple, dict)
_Class = TypeVar("_Class", bound=type)


# -- classes of the user ---------------------------------------------------------------------------------------------
class Registration(NamedTuple):
    """How objects of a class are taken apart and put together."""

    flatten: Callable[[Any], tuple[Sequence[Any], Hashable]]
    unflatten: Callable[[Any, list[Any]], Any]


REGISTERED: dict[type, Registration] = {}


def register_tree_node(
    cls: type,
    flatten: Callable[[Any], tuple[Sequence[Any], Hashable]],
    unflatten: Callable[[Any, list[Any]], Any],
) -> None:
    """Make objects of exactly this class containers of trees, in every function transform and in `eval`.

    `flatten(x)` returns (children, auxiliary data); children are subtrees, auxiliary data is constant and hashable: a
    compiled function is traced again where it differs. `unflatten(auxiliary data, children)` returns an object; it is
    also called with other children than arrays (axes of vmap, None). Raises ValueError for list, tuple, dict, their
    subclasses and a class that is registered already, TypeError for what is no class.
    """
    if not isinstance(cls, type):
        raise TypeError(f"[register_tree_node] a class is needed, got {cls!r}.")
    if issubclass(cls, CONTAINERS):
        raise ValueError(f"[register_tree_node] {cls.__name__} is a container already.")
    if cls in REGISTERED:
        raise ValueError(f"[register_tree_node] {cls.__name__} is registered already.")
    REGISTERED[cls] = Registration(flatten, unflatten)


def register_dataclass(
    cls: _Class | None = None, *, meta_fields: Sequence[str] = ()
) -> _Class | Callable[[_Class], _Class]:
    """Make a dataclass a container of trees; usable as a decorator. Its fields are children but for `meta_fields`.

    Objects are rebuilt without calling `__init__` or `__post_init__`. Raises TypeError for what is no dataclass,
    ValueError for names that are no fields.
    """
    import dataclasses  # lazy: 3 ms that only those who register a class pay

    if cls is None:
        return functools.partial(register_dataclass, meta_fields=meta_fields)  # type: ignore[return-value]
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise TypeError(f"[register_dataclass] a dataclass is needed, got {cls!r}.")
    every = [f.name for f in dataclasses.fields(cls)]
    if not set(meta_fields) <= set(every):
        raise ValueError(f"[register_dataclass] {cls.__name__} has the fields {every}, not {list(meta_fields)}.")
    meta, data = tuple(meta_fields), [name for name in every if name not in meta_fields]

    def flatten(x: Any) -> tuple[list[Any], Hashable]:
        return [getattr(x, name) for name in data], tuple([getattr(x, name) for name in meta])

    def unflatten(constants: Any, children: list[Any]) -> Any:
        out = object.__new__(cls)
        for name, value in zip((*meta, *data), (*constants, *children), strict=True):
            object.__setattr__(out, name, value)  # frozen ones too
        return out

    register_tree_node(cls, flatten, unflatten)
    return cls


# -- containers ------------------------------------------------------------------------------------------------------
def container_kind(tree: Any) -> type | None:
    """`list`, `tuple` or `dict` for a container (subclasses count), a registered class, or None for a leaf."""
    kind = type(tree)
    if kind in CONTAINERS or kind in REGISTERED:
        return kind
    if not isinstance(tree, CONTAINERS):
        return None
    return next(k for k in CONTAINERS if isinstance(tree, k))


def children(tree: Any) -> Iterable[Any]:
    """The subtrees of a container, in order."""
    registration = REGISTERED.get(type(tree))
    if registration is not None:
        return registration.flatten(tree)[0]
    return tree.values() if isinstance(tree, dict) else tree


def remake_tuple(kind: type, items: list) -> tuple:
    """A tuple of a given subclass."""
    if kind is tuple:
        return tuple(items)
    return kind(*items) if hasattr(kind, "_fields") else kind(items)


def maker(tree: Any) -> Callable[[list[Any]], Any]:
    """What makes a container like this one, a list or a tuple or of a registered class, of other children."""
    registration = REGISTERED.get(type(tree))
    if registration is not None:
        return functools.partial(registration.unflatten, registration.flatten(tree)[1])
    return list if isinstance(tree, list) else functools.partial(remake_tuple, type(tree))


class Structure:
    """The shape of a tree without its leaves.

    `type` is None for a leaf, else list, dict, the tuple's own class or a registered class; `keys` are those of a dict,
    or the auxiliary data of a registered class.
    """

    __slots__ = ("children", "count", "keys", "type")

    count: int

    def __init__(self, kind: type | None, children: tuple[Structure, ...] = (), keys: Any = None):
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
    registration = REGISTERED.get(kind)
    if registration is not None:
        items, auxiliary = registration.flatten(tree)
        return Structure(kind, tuple([_flatten(v, out) for v in items]), auxiliary)
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
        for item in children(tree):
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
    registration = REGISTERED.get(kind)
    if registration is not None:
        return registration.unflatten(structure.keys, items)
    return items if kind is list else remake_tuple(kind, items)


def tree_map(fn: Callable[[Any], Any], tree: Any) -> Any:
    """A new tree with `fn(leaf)` for every leaf."""
    kind = container_kind(tree)
    if kind is None:
        return fn(tree)
    if kind is dict:
        return {k: tree_map(fn, v) for k, v in tree.items()}
    return maker(tree)([tree_map(fn, v) for v in children(tree)])


def update(fn: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `fn(leaf)` for every leaf, lists and dicts changed in place (a slot only where its content changes).

    Tuples and objects of registered classes are rebuilt if something below them changed; a bare leaf gives `fn(leaf)`.
    """
    kind = container_kind(tree)
    if kind is None:
        return fn(tree)
    if kind is not list and kind is not dict:
        before = list(children(tree))
        items = [update(fn, v) for v in before]
        return tree if all(a is b for a, b in zip(items, before, strict=True)) else maker(tree)(items)
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
        given = type(tree).__name__
        raise ValueError(
            f"{what} is not a valid prefix of the tree: it has {type(prefix).__name__} where there is {given}."
        )
    if kind is dict:
        if set(prefix) != set(tree):
            raise ValueError(
                f"{what} is not a valid prefix of the tree: keys {list(prefix)} stand for keys {list(tree)}."
            )
        for key, item in tree.items():
            _broadcast_prefix(prefix[key], item, what, out)
        return
    entries, items = list(children(prefix)), list(children(tree))
    if len(entries) != len(items):
        raise ValueError(f"{what} is not a valid prefix of the tree: {len(entries)} entries stand for {len(items)}.")
    for entry, item in zip(entries, items, strict=True):
        _broadcast_prefix(entry, item, what, out)
