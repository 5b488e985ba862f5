"""grad and value_and_grad: gradients of scalar functions of trees of arrays.

The function sees its own containers with tracers in the place of arrays. One vjp node gives the value, the auxiliary
outputs and the gradients of all selected leaves.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxir.compiler.activity import check_differentiable
from mlxir.compiler.evaluate import ValueTracing
from mlxir.compiler.graph import Trace, Value, apply_transform, close, first_uid, running, tracer
from mlxir.dialects.mx import RECORDS
from mlxir.runtime.errors import at
from mlxir.runtime.trees import children, container_kind, leaves, maker, remake_tuple, strict_leaves, update

from . import values
from .ndarray import array, wrap
from .transforms import check_callable, describe

__all__ = ["grad", "value_and_grad"]

_VJP, _STOP_GRADIENT = RECORDS["vjp"], RECORDS["stop_gradient"]


class _StandIns:
    """Fresh arrays put into the arguments of a call in place of the arrays there, and taken out again.

    Lists and dicts of the caller are changed in place for the time of the call (BEHAVIOUR 3.5): what the function
    assigned to a slot stays, every other slot gets its own object back.
    """

    def __init__(self) -> None:
        # id of the stand-in -> (stand-in, its value, the original)
        self.made: dict[int, tuple[array, Value, array]] = {}

    def insert(self, tree: Any, make: Callable[[array], Value]) -> Any:
        def put(leaf: Any) -> Any:
            if not isinstance(leaf, array):
                return leaf
            value = make(leaf)
            stand_in = wrap(value)
            self.made[id(stand_in)] = stand_in, value, leaf
            return stand_in

        return update(put, tree)

    def remove(self, tree: Any) -> None:
        def back(leaf: Any) -> Any:
            found = self.made.get(id(leaf))
            return found[2] if found is not None and leaf._value is found[1] else leaf

        update(back, tree)

    def retire(self) -> None:
        """Make stand-ins that the function kept somewhere (a module's parameters) ordinary arrays."""
        for stand_in, value, original in self.made.values():
            if stand_in._value is value:
                stand_in._value = original._value


def _selected_indices(tag: str, argnums: Any, named: bool) -> list[int]:
    if argnums is None:
        return [] if named else [0]
    single = hasattr(argnums, "__index__") and not getattr(argnums, "ndim", 0)
    if not single and (isinstance(argnums, (str, Mapping)) or not hasattr(argnums, "__getitem__")):
        raise TypeError(f"[{tag}] argnums must be an int or a sequence of ints, got {argnums!r}.")
    try:
        indices = [operator.index(i) for i in ([argnums] if single else argnums)]
    except TypeError:
        raise TypeError(f"[{tag}] argnums must be an int or a sequence of ints, got {argnums!r}.") from None
    if not indices and not named:
        raise ValueError(f"[{tag}] Gradient wrt no argument requested")
    for i in indices:
        if i < 0:
            raise ValueError(f"[{tag}] Can't compute the gradient of negative argument index {i}")
        if indices.count(i) > 1:
            raise ValueError(f"[{tag}] Duplicate argument index {i} is not allowed.")
    return sorted(indices)


def _selected_names(tag: str, argnames: Any) -> set[str]:
    names = (argnames,) if isinstance(argnames, str) else argnames
    if not isinstance(names, (list, tuple, set)) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"[{tag}] argnames must be a string or a sequence of strings, got {argnames!r}.")
    return set(names)


def _paths(tree: Any, path: tuple, out: list[tuple]) -> None:
    """The path of every leaf in order."""
    kind = container_kind(tree)
    if kind is None:
        out.append(path)
        return
    for key, item in tree.items() if kind is dict else enumerate(children(tree)):
        _paths(item, (*path, key), out)


class _Differentiated:
    """A differentiated argument: its leaves become tracers; gradients take the form that the call left it in."""

    def __init__(self, tag: str, label: Any, tree: Any, first: int):
        self.tag, self.label = tag, label
        place = f"in {'keyword argument' if isinstance(label, str) else 'argument'} {label!r}"
        self.count = len(strict_leaves(tree, array, place))
        paths: list[tuple] = []
        _paths(tree, (), paths)
        self.by_path = {path: first + i for i, path in enumerate(paths)}

    def gradients(
        self, tree: Any, number: Callable[[array], int | None], grads: Sequence[Value], path: tuple = ()
    ) -> Any:
        """The tree with its arrays replaced by gradients: of the stand-in that is there, else that was there before."""
        kind = container_kind(tree)
        if kind is None:
            if not isinstance(tree, array):
                return tree
            index = number(tree)
            if index is None:
                index = self.by_path.get(path)
            if index is None:
                raise ValueError(
                    f"[{self.tag}] The structure of argument {self.label!r} changed inside the function: there is an"
                    f" array at {path} now, and there was none before the call."
                )
            return wrap(grads[index])
        if kind is dict:
            return {k: self.gradients(v, number, grads, (*path, k)) for k, v in tree.items()}
        return maker(tree)([self.gradients(v, number, grads, (*path, i)) for i, v in enumerate(children(tree))])


def _loss_and_aux(tag: str, fun: Callable, result: Any, has_aux: bool) -> tuple[array, tuple]:
    """The scalar to differentiate and the further outputs. Raises ValueError for a result of any other form."""
    name, where = describe(fun)
    wanted = "a scalar array" if tag == "grad" else "either a scalar array or a tuple with the first value being one"
    if has_aux:
        wanted = "a pair (scalar array, auxiliary data)"
    about = f"[{tag}] The return value of the function whose gradient we want to compute should be {wanted}; but"
    aux: tuple = ()
    if isinstance(result, array) and not has_aux:
        loss = result
    elif not isinstance(result, tuple) or (len(result) != 2 if has_aux else tag == "grad"):
        raise ValueError(f"{about} {type(result).__name__} was returned by {name}{at(where)}.")
    elif not result:
        raise ValueError(f"{about} {name}{at(where)} returned an empty tuple.")
    elif not isinstance(result[0], array):
        raise ValueError(
            f"{about} the first value that {name}{at(where)} returned is of type {type(result[0]).__name__}."
        )
    else:
        loss, aux = result[0], tuple(result[1:])
    if loss.shape != ():
        raise ValueError(
            f"[vjp] Output shape {loss.shape} does not match cotangent shape (). If you are using grad your function"
            f" must return a scalar: {tag} needs a scalar; got shape {loss.shape} from {name}{at(where)}, use .sum()"
            " or vjp."
        )
    return loss, aux


def _gradient_call(
    tag: str,
    fun: Callable,
    indices: list[int],
    names: set[str],
    single: bool,
    has_aux: bool,
    args: tuple,
    kwargs: dict[str, Any],
) -> tuple[Any, Any]:
    """(value, gradients) of one call."""
    if indices and indices[-1] >= len(args):
        raise ValueError(
            f"[{tag}] Can't compute the gradient of argument index {indices[-1]} because the function is called with"
            f" only {len(args)} positional arguments."
        )
    for name in names - kwargs.keys():
        raise ValueError(
            f"[{tag}] Can't compute the gradient of keyword argument '{name}' because the function is called with the"
            f" following keyword arguments {{{', '.join(kwargs)}}}"
        )
    selected: dict[Any, _Differentiated] = {}
    count = 0
    for label, tree in [*[(i, args[i]) for i in indices], *[(k, x) for k, x in kwargs.items() if k in names]]:
        selected[label] = _Differentiated(tag, label, tree, count)
        count += selected[label].count
    if not count:
        raise ValueError(f"[{tag}] Must specify at least one argument.")

    name, where = describe(fun)
    nested = running.depth > 0
    here = Trace("vjp", name, where)
    since = first_uid()
    stand_ins = _StandIns()
    tracers: list[Value] = []
    primals: list[Value] = []

    def trace(leaf: array) -> Value:
        primals.append(leaf._value)
        tracers.append(tracer(leaf._value, here))
        return tracers[-1]

    def enter(label: Any, tree: Any) -> Any:
        # Arguments that are not differentiated are traced too: they count as tracers in what the function calls.
        return stand_ins.insert(tree, trace if label in selected else lambda leaf: tracer(leaf._value, here))

    trees: tuple[list, dict] = ([], {})
    try:
        for i, tree in enumerate(args):
            trees[0].append(enter(i, tree))
        # Positional arguments come first, so tracers are numbered as `selected` numbers the leaves.
        for key, tree in kwargs.items():
            trees[1][key] = enter(key, tree)
        numbers = {id(t): i for i, t in enumerate(tracers)}

        def number(leaf: array) -> int | None:
            """Which tracer a stand-in was made with, even if the function has changed the stand-in since."""
            found = stand_ins.made.get(id(leaf))
            return None if found is None else numbers.get(id(found[1]))

        with ValueTracing(), here:
            result = fun(*trees[0], **trees[1])
            loss, aux = _loss_and_aux(tag, fun, result, has_aux)
            traced = {id(x): x for x in leaves(aux) if isinstance(x, array) and _made_inside(x._value, since)}
            outputs = [loss._value, *[x._value for x in traced.values()]]
            program, captured = close(tracers, outputs, since, name)
            check_differentiable(program, range(count), (0,), "vjp")
        # Outside of the trace, so that this thread's tape knows of it.
        avals = [*program.avals, *[p.aval for p in primals]]
        one = values.full(1, (), loss.dtype)
        attrs = {"callee": program, "wrt": tuple(range(count)), "seeded": (0,)}
        found = apply_transform(_VJP, [*primals, *captured, one], attrs, avals)
        gradients = found[len(outputs) :]
        positional = [selected[i].gradients(trees[0][i], number, gradients) for i in indices]
        keyword = {k: selected[k].gradients(trees[1][k], number, gradients) for k in kwargs if k in names}
    finally:
        stand_ins.remove(trees)
    stand_ins.retire()
    # Auxiliary outputs are cut from differentiation; only a transform around this call could tell.
    cut_off = [values.unary(_STOP_GRADIENT, v) if nested else v for v in found[1 : len(outputs)]]
    fresh = dict(zip(traced, map(wrap, cut_off), strict=True))
    value: Any = wrap(found[0])
    if isinstance(result, tuple):
        value = remake_tuple(type(result), [value, *[update(lambda x: fresh.get(id(x), x), item) for item in aux]])
    picked = (positional[0] if single else tuple(positional)) if positional else None
    return value, (picked, keyword) if names else picked


def _made_inside(value: Value, since: int) -> bool:
    """Whether a value may depend on tracers made after `since`."""
    return value.uid >= since and (value.node is not None or value.alias is not None)


def value_and_grad(
    fun: Callable,
    argnums: int | Sequence[int] | None = None,
    argnames: str | Sequence[str] = (),
    *,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """A function that returns the value of `fun` and its gradient.

    `fun` returns a scalar array, or a tuple whose first item is one; further items are returned and not differentiated.
    With `has_aux` that tuple must be a pair. `argnums` (an int or several, default 0) and `argnames` select the
    arguments, trees of arrays. One index gives that argument's tree of gradients, several a tuple of them; with
    `argnames` the gradient is `(positional, {name: tree})`.

    Raises TypeError for selections of a wrong type; ValueError for wrong ones, for selected arguments that hold other
    leaves than arrays, and for a result that is no scalar.
    """
    return _gradient_function("value_and_grad", fun, argnums, argnames, has_aux)


def grad(
    fun: Callable,
    argnums: int | Sequence[int] | None = None,
    argnames: str | Sequence[str] = (),
    *,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """A function that returns the gradient of `fun`, which returns a scalar array; see `value_and_grad`.

    With `has_aux`, `fun` returns a pair (scalar array, aux) and the new function a pair (gradient, aux).
    """
    return _gradient_function("grad", fun, argnums, argnames, has_aux)


def _gradient_function(tag: str, fun: Callable, argnums: Any, argnames: Any, has_aux: bool) -> Callable[..., Any]:
    check_callable(tag, fun)
    names = _selected_names(tag, argnames)
    indices = _selected_indices(tag, argnums, bool(names))
    single = len(indices) == 1

    @functools.wraps(fun, updated=())
    def differentiated(*args: Any, **kwargs: Any) -> Any:
        value, gradients = _gradient_call(tag, fun, indices, names, single, has_aux, args, kwargs)
        if tag == "value_and_grad":
            return value, gradients
        return (gradients, value[1]) if has_aux else gradients

    return differentiated
