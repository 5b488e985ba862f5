"""The function transforms: grad, value_and_grad, vjp, jvp, vmap and what follows from them; eval and async_eval.

A transform calls the Python function on stand-ins for its arguments, closes what was recorded into a program and records one node that names it
(`compiler/graph.py`). Nothing is differentiated or batched here: passes over the `mx` dialect do that when results are evaluated or compiled.
Every call of a transformed function runs the Python function once.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlxir.compiler.activity import check_differentiable
from mlxir.compiler.evaluate import ValueTracing, evaluate
from mlxir.compiler.graph import (
    Trace,
    Value,
    apply_transform,
    close,
    depends_on_trace,
    first_uid,
    placeholder,
    running,
    tracer,
)
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime.dtypes import bool_, int32
from mlxir.runtime.errors import AxisError, Where, at, user_frame
from mlxir.runtime.trees import broadcast_prefix, container_kind, flatten, leaves, remake_tuple, strict_leaves, unflatten, update

from . import values
from .ndarray import array, wrap
from .random import RandomState

__all__ = ["async_eval", "eval", "grad", "hessian", "jacfwd", "jacrev", "jvp", "value_and_grad", "vjp", "vmap"]

_VJP, _JVP, _VMAP, _STOP_GRADIENT = RECORDS["vjp"], RECORDS["jvp"], RECORDS["vmap"], RECORDS["stop_gradient"]
_UNMAPPED = -1


# -- evaluation ------------------------------------------------------------------------------------------------------
def _values_in(trees: tuple) -> list[Value]:
    found = leaves(trees)
    return [x._value for x in found if isinstance(x, array)] + [x.value for x in found if isinstance(x, RandomState)]


def eval(*args: Any) -> None:  # noqa: A001 (MLX's name)
    """Evaluate every array in the given trees; other leaves are ignored. Returns when the data is there.

    Raises ValueError for a value that depends on the arguments of a running vmap or compile.
    """
    evaluate(_values_in(args))


def async_eval(*args: Any) -> None:
    """Start the evaluation of every array in the given trees. (The CPU target computes in the calling thread: it is done on return.)

    Raises ValueError for a value that depends on the arguments of a running transform.
    """
    wanted = _values_in(args)
    if running.depth and depends_on_trace(wanted):
        raise ValueError("[async_eval] Not allowed inside a graph transformation.")
    evaluate(wanted)


# -- shared by the transforms ----------------------------------------------------------------------------------------
def check_callable(tag: str, fun: Any) -> None:
    """Raises TypeError unless `fun` can be called."""
    if not callable(fun):
        raise TypeError(f"[{tag}] The first argument must be a function, but a {type(fun).__name__} was given.")


def describe(fun: Callable) -> tuple[str, Where]:
    """The name of a function and where it is defined, for messages and for symbols of the module."""
    inner = inspect.unwrap(fun)
    code = getattr(inner, "__code__", None)
    name = getattr(inner, "__name__", type(inner).__name__)
    return name, (code, code.co_firstlineno) if code is not None else user_frame(2)


def _array_list(tag: str, what: str, given: Any) -> list[array]:
    """A flat sequence of arrays as a list. Raises TypeError for anything else."""
    ok = isinstance(given, (list, tuple)) or (isinstance(given, array) and given.ndim > 0)
    items = list(given) if ok else []
    if not ok or not all(isinstance(x, array) for x in items):
        kinds = ", ".join(sorted({type(x).__name__ for x in items if not isinstance(x, array)})) or type(given).__name__
        raise TypeError(f"[{tag}] {what} must be a list or tuple of arrays, but {kinds} was given.")
    return items


def _output_list(tag: str, fun: Callable, result: Any) -> list[Value]:
    """The outputs of a function that must return an array or a sequence of arrays."""
    if isinstance(result, array):
        return [result._value]
    if isinstance(result, (list, tuple)) and all(isinstance(x, array) for x in result):
        return [x._value for x in result]
    name, where = describe(fun)
    held = "" if not isinstance(result, (list, tuple)) else " holding " + type(
        next(x for x in result if not isinstance(x, array))).__name__  # fmt: skip
    raise ValueError(
        f"[{tag}] {name}{at(where)} must return an array or a sequence of arrays; but {type(result).__name__}{held} was returned."
    )


def _mapped_outputs(count: int, instructions: Sequence[Any], outputs: Sequence[int]) -> list[bool]:
    """Which outputs of a program depend on its first `count` parameters."""
    dependent = set(range(count))
    for instruction in instructions:
        if not dependent.isdisjoint(instruction.operands):
            dependent.update(instruction.results)
    return [slot in dependent for slot in outputs]


class _StandIns:
    """Fresh arrays put into the arguments of a call in place of the arrays there, and taken out again.

    Lists and dicts of the caller are changed in place for the time of the call (BEHAVIOUR 3.5): what the function assigned to a
    slot stays, every other slot gets its own object back.
    """

    def __init__(self) -> None:
        self.made: dict[int, tuple[array, Value, array]] = {}  # id of the stand-in -> (stand-in, its value, the original)

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


# -- grad ------------------------------------------------------------------------------------------------------------
def _selected_indices(tag: str, argnums: Any, named: bool) -> list[int]:
    if argnums is None:
        return [] if named else [0]
    if isinstance(argnums, (str, dict)):
        raise TypeError(f"[{tag}] argnums must be an int or a sequence of ints, got {argnums!r}.")
    items = list(argnums) if isinstance(argnums, Iterable) else [argnums]
    try:
        indices = [operator.index(i) for i in items]
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
    names = [argnames] if isinstance(argnames, str) else list(argnames) if isinstance(argnames, (list, tuple, set)) else None
    if names is None or not all(isinstance(n, str) for n in names):
        raise TypeError(f"[{tag}] argnames must be a string or a sequence of strings, got {argnames!r}.")
    return set(names)


def _paths(tree: Any, path: tuple, out: list[tuple]) -> None:
    """The path of every leaf in order."""
    kind = container_kind(tree)
    if kind is None:
        out.append(path)
        return
    for key, item in tree.items() if kind is dict else enumerate(tree):
        _paths(item, (*path, key), out)


class _Differentiated:
    """One differentiated argument: its leaves become tracers, its gradient tree is built from what the call left of it."""

    def __init__(self, tag: str, label: Any, tree: Any, first: int):
        self.tag, self.label = tag, label
        place = f"in {'keyword argument' if isinstance(label, str) else 'argument'} {label!r}"
        self.count = len(strict_leaves(tree, array, place))
        paths: list[tuple] = []
        _paths(tree, (), paths)
        self.by_path = {path: first + i for i, path in enumerate(paths)}

    def gradients(self, tree: Any, by_id: dict[int, int], grads: Sequence[Value], path: tuple = ()) -> Any:
        """The tree with its arrays replaced by gradients: of the stand-in that is there, else of the one that was there."""
        kind = container_kind(tree)
        if kind is None:
            if not isinstance(tree, array):
                return tree
            index = by_id.get(id(tree))
            if index is None:
                index = self.by_path.get(path)
            if index is None:
                raise ValueError(f"[{self.tag}] The structure of argument {self.label!r} changed inside the function: {path}"
                                 " is an array now and was none before the call.")  # fmt: skip
            return wrap(grads[index])
        if kind is dict:
            return {k: self.gradients(v, by_id, grads, (*path, k)) for k, v in tree.items()}
        items = [self.gradients(v, by_id, grads, (*path, i)) for i, v in enumerate(tree)]
        return items if kind is list else remake_tuple(type(tree), items)


def _loss_and_aux(tag: str, fun: Callable, result: Any) -> tuple[array, tuple]:
    """The scalar to differentiate and the further outputs. Raises ValueError for a result of any other form."""
    name, where = describe(fun)
    about = f"[{tag}] The return value of the function whose gradient we want to compute should be"
    if tag == "grad":
        if not isinstance(result, array):
            raise ValueError(f"{about} a scalar array; but {type(result).__name__} was returned by {name}{at(where)}.")
        loss, aux = result, ()
    else:
        if not isinstance(result, (array, tuple)):
            raise ValueError(
                f"{about} either a scalar array or a tuple with the first value being a scalar array (Union[array, tuple[array, Any,"
                f" ...]]); but {type(result).__name__} was returned by {name}{at(where)}."
            )
        if isinstance(result, tuple):
            if not result:
                raise ValueError(f"{about} either a scalar array or a non-empty tuple. Instead, {name}{at(where)} returned an empty tuple.")
            if not isinstance(result[0], array):
                raise ValueError(
                    f"{about} either a scalar array or a tuple with the first value being a scalar array (Union[array, tuple[array,"
                    f" Any, ...]]); but {name}{at(where)} returned a tuple with the first value being of type {type(result[0]).__name__}."
                )
            loss, aux = result[0], tuple(result[1:])
        else:
            loss, aux = result, ()
    if loss.shape != ():
        raise ValueError(
            f"[vjp] Output shape {loss.shape} does not match cotangent shape (). If you are using grad your function must return a scalar:"
            f" {tag} needs a scalar; got shape {loss.shape} from {name}{at(where)}, use .sum() or vjp."
        )
    return loss, aux


def _gradient_call(
    tag: str, fun: Callable, indices: list[int], names: set[str], single: bool, args: tuple, kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """(value, gradients) of one call."""
    if indices and indices[-1] >= len(args):
        raise ValueError(
            f"[{tag}] Can't compute the gradient of argument index {indices[-1]} because the function is called with only"
            f" {len(args)} positional arguments."
        )
    for name in names - kwargs.keys():
        raise ValueError(
            f"[{tag}] Can't compute the gradient of keyword argument '{name}' because the function is called with the following"
            f" keyword arguments {{{', '.join(kwargs)}}}"
        )
    selected: dict[Any, _Differentiated] = {}
    count = 0
    for label in [*indices, *[k for k in kwargs if k in names]]:
        selected[label] = _Differentiated(tag, label, kwargs[label] if isinstance(label, str) else args[label], count)
        count += selected[label].count
    if not count:
        raise ValueError(f"[{tag}] Must specify at least one argument.")

    name, _ = describe(fun)
    nested = running.depth > 0
    since = first_uid()
    stand_ins = _StandIns()
    tracers: list[Value] = []
    primals: list[Value] = []

    def trace(leaf: array) -> Value:
        primals.append(leaf._value)
        tracers.append(tracer(leaf._value))
        return tracers[-1]

    def enter(label: Any, tree: Any) -> Any:
        return stand_ins.insert(tree, trace if label in selected else lambda leaf: leaf._value)

    trees: tuple[list, dict] = ([], {})
    try:
        for i, tree in enumerate(args):
            trees[0].append(enter(i, tree))
        # Positional tracers come first, so the gradient leaves are numbered as `selected` numbers them.
        for key, tree in kwargs.items():
            trees[1][key] = enter(key, tree)
        by_value = {id(t): i for i, t in enumerate(tracers)}
        by_id = {i: by_value[id(value)] for i, (_, value, _) in stand_ins.made.items() if id(value) in by_value}
        with ValueTracing():
            result = fun(*trees[0], **trees[1])
            loss, aux = _loss_and_aux(tag, fun, result)
            traced = {id(x): x for x in leaves(aux) if isinstance(x, array) and _made_inside(x._value, since)}
            outputs = [loss._value, *[x._value for x in traced.values()]]
            program, captured = close(tracers, outputs, since, name)
            check_differentiable(program, range(count), (0,), "vjp")
            avals = [*program.avals, *[p.aval for p in primals]]
            one = values.full(1, (), loss.dtype)
            attrs = {"callee": program, "wrt": tuple(range(count)), "seeded": (0,)}
            found = apply_transform(_VJP, [*primals, *captured, one], attrs, avals)
        gradients = found[len(outputs) :]
        positional = [selected[i].gradients(trees[0][i], by_id, gradients) for i in indices]
        keyword = {k: selected[k].gradients(trees[1][k], by_id, gradients) for k in kwargs if k in names}
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
    fun: Callable, argnums: int | Sequence[int] | None = None, argnames: str | Sequence[str] = ()
) -> Callable[..., tuple[Any, Any]]:
    """A function that returns the value of `fun` and its gradient.

    `fun` returns a scalar array, or a tuple whose first item is one; further items are returned as they are and not differentiated.
    `argnums` (an int or several, default 0) and `argnames` select the arguments, trees of arrays. One index gives that argument's
    tree of gradients, several a tuple of them; with `argnames` the gradient is `(positional, {name: tree})`.

    Raises TypeError for selections of a wrong type, ValueError for wrong ones, for arguments that hold other leaves than arrays, and
    for a result that is no scalar.
    """
    return _gradient_function("value_and_grad", fun, argnums, argnames)


def grad(fun: Callable, argnums: int | Sequence[int] | None = None, argnames: str | Sequence[str] = ()) -> Callable[..., Any]:
    """A function that returns the gradient of `fun`, which returns a scalar array; see `value_and_grad`."""
    return _gradient_function("grad", fun, argnums, argnames)


def _gradient_function(tag: str, fun: Callable, argnums: Any, argnames: Any) -> Callable[..., Any]:
    check_callable(tag, fun)
    names = _selected_names(tag, argnames)
    indices = _selected_indices(tag, argnums, bool(names))
    single = len(indices) == 1

    @functools.wraps(fun, updated=())
    def differentiated(*args: Any, **kwargs: Any) -> Any:
        value, gradients = _gradient_call(tag, fun, indices, names, single, args, kwargs)
        return gradients if tag == "grad" else (value, gradients)

    return differentiated


# -- vjp, jvp --------------------------------------------------------------------------------------------------------
def vjp(fun: Callable, primals: Sequence[array], cotangents: Sequence[array]) -> tuple[list[array], list[array]]:
    """(outputs, vector-Jacobian products) of `fun(*primals)`, each a list of arrays.

    One cotangent per output, except that outputs made by `stop_gradient` take none; a cotangent is cast to its output's dtype.
    Raises TypeError unless the arguments are sequences of arrays, ValueError for counts or shapes that do not fit.
    """
    check_callable("vjp", fun)
    given = [p._value for p in _array_list("vjp", "primals", primals)]
    cts = [c._value for c in _array_list("vjp", "cotangents", cotangents)]
    since = first_uid()
    tracers = [tracer(p) for p in given]
    with ValueTracing():
        outputs = _output_list("vjp", fun, fun(*map(wrap, tracers)))
        seeded = [i for i, v in enumerate(outputs) if v.node is None or v.node.primitive is not _STOP_GRADIENT]
        program, captured = close(tracers, outputs, since, describe(fun)[0])
        check_differentiable(program, range(len(given)), seeded, "vjp")
    if len(seeded) != len(cts):
        raise ValueError(
            f"[vjp] Number of outputs to compute gradients for ({len(seeded)}) does not match number of cotangents ({len(cts)})."
        )
    for i, ct in zip(seeded, cts, strict=True):
        if outputs[i].shape != ct.shape:
            raise ValueError(f"[vjp] Output shape {outputs[i].shape} does not match cotangent shape {ct.shape}.")
    cts = [values.cast(ct, outputs[i].dtype) for i, ct in zip(seeded, cts, strict=True)]
    attrs = {"callee": program, "wrt": tuple(range(len(given))), "seeded": tuple(seeded)}
    avals = [*program.avals, *[p.aval for p in given]]
    found = [wrap(v) for v in apply_transform(_VJP, [*given, *captured, *cts], attrs, avals)]
    return found[: len(outputs)], found[len(outputs) :]


def jvp(fun: Callable, primals: Sequence[array], tangents: Sequence[array]) -> tuple[list[array], list[array]]:
    """(outputs, Jacobian-vector products) of `fun(*primals)`, each a list of arrays.

    One tangent per primal, of its shape; it is cast to the primal's dtype.
    Raises TypeError unless the arguments are sequences of arrays, ValueError for counts or shapes that do not fit.
    """
    check_callable("jvp", fun)
    given = [p._value for p in _array_list("jvp", "primals", primals)]
    directions = [t._value for t in _array_list("jvp", "tangents", tangents)]
    if len(given) != len(directions):
        raise ValueError(f"[jvp] Number of inputs ({len(given)}) does not match number of tangents ({len(directions)}).")
    for p, t in zip(given, directions, strict=True):
        if p.shape != t.shape:
            raise ValueError(f"[jvp] Input shape {p.shape} does not match shape of tangent {t.shape}.")
    since = first_uid()
    tracers = [tracer(p) for p in given]
    with ValueTracing():
        outputs = _output_list("jvp", fun, fun(*map(wrap, tracers)))
        program, captured = close(tracers, outputs, since, describe(fun)[0])
        check_differentiable(program, range(len(given)), range(len(outputs)), "jvp")
    directions = [values.cast(t, p.dtype) for p, t in zip(given, directions, strict=True)]
    attrs = {"callee": program, "wrt": tuple(range(len(given)))}
    found = [wrap(v) for v in apply_transform(_JVP, [*given, *captured, *directions], attrs, program.avals * 2)]
    return found[: len(outputs)], found[len(outputs) :]


# -- vmap ------------------------------------------------------------------------------------------------------------
def _leaf_axes(in_axes: Any, args: tuple) -> list[Any]:
    """The axis of every leaf of the arguments (BEHAVIOUR 7.1)."""
    if container_kind(in_axes) is None:
        return [in_axes] * len(leaves(args))
    if len(args) != 1:
        if not isinstance(in_axes, tuple):
            raise ValueError(f"[vmap] in_axes is not a valid prefix: a tuple with one entry per argument is needed, got {in_axes!r}.")
        return broadcast_prefix(in_axes, args, "[vmap] in_axes")
    if isinstance(args[0], array) and isinstance(in_axes, tuple) and len(in_axes) == 1:
        return [in_axes[0]]
    return broadcast_prefix(in_axes, args[0], "[vmap] in_axes")


def _check_axis(axis: Any) -> None:
    if axis is not None and not isinstance(axis, int):
        raise ValueError(f"[vmap] axis must be int or None, got {axis!r}.")


def vmap(fun: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """A function that maps `fun` over an axis of its arguments: the stacked results of `fun` on every example.

    `in_axes` is an int for all arrays, or a tuple with a prefix tree per argument (for a single argument the prefix tree itself); None
    stands for "not mapped". `out_axes` is a prefix tree of the result: where the batch axis goes, None for results that
    depend on no mapped array. Raises TypeError for keyword arguments, ValueError for trees that do not fit, sizes that
    disagree or leaves that are no arrays, AxisError for axes out of range.
    """
    check_callable("vmap", fun)
    if in_axes is None or out_axes is None:
        raise TypeError(f"[vmap] {'in_axes' if in_axes is None else 'out_axes'} must not be None as a whole")

    @functools.wraps(fun, updated=())
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise TypeError(f"[vmap] Keyword arguments are not supported, got {', '.join(map(repr, kwargs))}.")
        return _vmap_call(fun, in_axes, out_axes, args)

    return mapped


def _vmap_call(fun: Callable, in_axes: Any, out_axes: Any, args: tuple) -> Any:
    name, where = describe(fun)
    given, structure = flatten(args)
    axes = _leaf_axes(in_axes, args)
    mapped: list[tuple[int, Value, int]] = []  # (position of the leaf, its value, axis)
    for i, (leaf, axis) in enumerate(zip(given, axes, strict=True)):
        _check_axis(axis)
        if axis is None:
            continue
        (leaf,) = strict_leaves(leaf, array, f"of {name}{at(where)} that are mapped")
        if not -leaf.ndim <= axis < leaf.ndim:
            raise AxisError(f"[vmap] Invalid vectorization axis {axis} for array with shape {leaf.shape}")
        mapped.append((i, leaf._value, int(axis) % leaf.ndim))
    if not mapped:
        raise ValueError("[vmap] At least one of in_axes must be non-None.")
    size = mapped[0][1].shape[mapped[0][2]]
    for _, value, axis in mapped:
        if value.shape[axis] != size:
            raise ValueError(f"[vmap] Inconsistent axis sizes: {size} and {value.shape[axis]}.")

    since = first_uid()
    with Trace("vmap", name, where) as trace:
        inner = [wrap(x._value) if isinstance(x, array) else x for x in given]
        stand_ins = []
        for i, value, axis in mapped:
            stand_ins.append(placeholder(value.shape[:axis] + value.shape[axis + 1 :], value.dtype, trace))
            inner[i] = wrap(stand_ins[-1])
        result = fun(*unflatten(structure, inner))
        outputs = [x._value for x in strict_leaves(result, array, f"returned by {name}{at(where)}")]
        program, captured = close(stand_ins, outputs, since, name)
    result_axes, avals = [], []
    depends = _mapped_outputs(len(stand_ins), program.instructions, program.outputs)
    for value, axis, dependent in zip(outputs, broadcast_prefix(out_axes, result, "[vmap] out_axes"), depends, strict=True):
        _check_axis(axis)
        rank = len(value.shape) + 1
        if axis is None:
            if dependent:
                raise ValueError(f"[vmap] out_axes is None for a result of {name}{at(where)} that depends on a mapped argument.")
            result_axes.append(_UNMAPPED)
            avals.append(value.aval)
            continue
        if not -rank <= axis < rank:
            raise AxisError(f"[vmap] Invalid output vectorization axis {axis} for array with shape {value.shape}")
        axis = int(axis) % rank
        result_axes.append(axis)
        avals.append(Aval(value.shape[:axis] + (size,) + value.shape[axis:], value.dtype))
    attrs = {
        "callee": program,
        "in_axes": tuple([axis for _, _, axis in mapped] + [_UNMAPPED] * len(captured)),
        "out_axes": tuple(result_axes),
        "size": size,
    }
    found = apply_transform(_VMAP, [*[value for _, value, _ in mapped], *captured], attrs, avals)
    return unflatten(flatten(result)[1], map(wrap, found))


# -- Jacobians -------------------------------------------------------------------------------------------------------
def _basis(like: array) -> array:
    """The unit vectors of an array's space, stacked along a new first axis."""
    n = like.size
    ramp = values.emit(RECORDS["arange"], start=0, step=1, length=n, dtype=int32)
    eye = values.binary(RECORDS["equal"], values.reshape(ramp, (n, 1)), values.reshape(ramp, (1, n)), bool_)
    return wrap(values.reshape(values.cast(eye, like.dtype), (n, *like.shape)))


def _jacobian(tag: str, fun: Callable, argnums: int | Sequence[int], product: Callable[..., Any]) -> Callable[..., Any]:
    check_callable(tag, fun)
    indices = [argnums] if isinstance(argnums, int) else list(argnums)

    @functools.wraps(fun, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        primals = _array_list(tag, "differentiated arguments", [args[i] for i in indices])

        def selected(*chosen: array) -> array:
            full = list(args)
            for i, x in zip(indices, chosen, strict=True):
                full[i] = x
            result = fun(*full, **kwargs)
            if not isinstance(result, array):
                name, where = describe(fun)
                raise ValueError(f"[{tag}] {name}{at(where)} must return one array; but {type(result).__name__} was returned.")
            return result

        found = product(selected, primals)
        return found[0] if isinstance(argnums, int) else tuple(found)

    return jacobian


def jacrev(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The Jacobian of an array-valued function by reverse mode, of shape `output shape + input shape`; one per entry of `argnums`."""

    def product(selected: Callable, primals: list[array]) -> list[array]:
        out = selected(*primals)
        rows = vmap(lambda ct: vjp(selected, primals, [ct])[1])(_basis(out))
        return [wrap(values.reshape(r._value, (*out.shape, *p.shape))) for r, p in zip(rows, primals, strict=True)]

    return _jacobian("jacrev", fun, argnums, product)


def jacfwd(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The Jacobian of an array-valued function by forward mode, of shape `output shape + input shape`; one per entry of `argnums`."""

    def product(selected: Callable, primals: list[array]) -> list[array]:
        found = []
        for i, primal in enumerate(primals):

            def column(tangent: array, i: int = i, primal: array = primal) -> array:
                return jvp(lambda x: selected(*primals[:i], x, *primals[i + 1 :]), [primal], [tangent])[1][0]

            columns = vmap(column, out_axes=-1)(_basis(primal))
            found.append(wrap(values.reshape(columns._value, (*columns.shape[:-1], *primal.shape))))
        return found

    return _jacobian("jacfwd", fun, argnums, product)


def hessian(fun: Callable, argnums: int = 0) -> Callable[..., Any]:
    """The matrix of second derivatives of a scalar function: forward over reverse mode."""
    return jacfwd(jacrev(fun, argnums), argnums)
