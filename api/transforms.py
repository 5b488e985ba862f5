"""The function transforms vjp, jvp and vmap, and eval. (grad lies in gradients.py, compile in compilation.py.)

A transform calls the Python function on stand-ins for its arguments, closes what was recorded into a program and
records one node that names it (`compiler/graph.py`). Nothing is differentiated or batched here: passes over the `mx`
dialect do that when results are evaluated or compiled. Every call of a transformed function runs the Python function
once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.activity import check_differentiable
from mlxir.compiler.evaluate import ValueTracing, evaluate, start
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
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime.errors import AxisError, Where, at, user_frame
from mlxir.runtime.trees import broadcast_prefix, container_kind, flatten, leaves, strict_leaves, tree_map, unflatten

from . import values
from .linearized import linearized
from .native.functions import native_function
from .ndarray import array, wrap
from .random import RandomState

__all__ = ["async_eval", "eval", "jvp", "linearize", "vjp", "vmap"]

_VJP, _JVP, _VMAP, _STOP_GRADIENT = RECORDS["vjp"], RECORDS["jvp"], RECORDS["vmap"], RECORDS["stop_gradient"]
_UNMAPPED = -1


# -- evaluation ------------------------------------------------------------------------------------------------------
def _values_in(trees: tuple) -> list[Value]:
    if len(trees) == 1 and type(trees[0]) is array:
        return [trees[0]._value]
    found = leaves(trees)
    return [x._value for x in found if isinstance(x, array)] + [x.value for x in found if isinstance(x, RandomState)]


@native_function("evaluate_call")
def eval(*args: Any) -> None:  # noqa: A001 (MLX's name)
    """Evaluate every array in the given trees; other leaves are ignored. Returns when the data is there.

    Raises ValueError for a value that depends on the arguments of a running vmap or compile.
    """
    evaluate(_values_in(args))


def async_eval(*args: Any) -> None:
    """Start the evaluation of every array in the given trees, and return before it is done.

    Reading an array waits for it; `synchronize` waits for all. An error of the evaluation is raised there.
    Raises ValueError for a value that depends on the arguments of a running transform.
    """
    wanted = _values_in(args)
    if running.depth and depends_on_trace(wanted):
        raise ValueError("[async_eval] Not allowed inside a graph transformation.")
    start(wanted)


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


def array_list(tag: str, what: str, given: Any) -> list[array]:
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
    what = type(result).__name__
    if isinstance(result, (list, tuple)):
        what += " holding " + next(type(x).__name__ for x in result if not isinstance(x, array))
    raise ValueError(
        f"[{tag}] {name}{at(where)} must return an array or a sequence of arrays; but {what} was returned."
    )


# -- vjp, jvp --------------------------------------------------------------------------------------------------------
class _Traced(NamedTuple):
    """A function traced at `primals`. The outputs of the program are `outputs`, then the arrays of `aux`."""

    program: Program
    operands: list[Value]  # the primals, then what the program captured
    outputs: list[Value]
    aux: Any

    def finished(self, found: Sequence[Value], *more: Any) -> tuple:
        """(outputs, *more), and the auxiliary tree if there is one."""
        outputs = [wrap(v) for v in found[: len(self.outputs)]]
        if self.aux is _NONE:
            return outputs, *more
        arrays = iter(found[len(self.outputs) :])
        return outputs, *more, tree_map(lambda x: wrap(next(arrays)) if isinstance(x, array) else x, self.aux)


_NONE = object()


def _traced(tag: str, fun: Callable, primals: list[Value], has_aux: bool) -> _Traced:
    name, where = describe(fun)
    since = first_uid()
    trace = Trace(tag, name, where)
    tracers = [tracer(p, trace) for p in primals]
    arguments = [wrap(t) for t in tracers]
    with ValueTracing(), trace:
        result, aux = fun(*arguments), _NONE
        if has_aux:
            if not isinstance(result, tuple) or len(result) != 2:
                raise ValueError(
                    f"[{tag}] With has_aux {name}{at(where)} must return a pair (outputs, auxiliary data); but"
                    f" {type(result).__name__} was returned."
                )
            result, aux = result
        outputs = _output_list(tag, fun, result)
        further = [x._value for x in leaves(aux) if isinstance(x, array)]
        program, captured = close(tracers, [*outputs, *further], since, name)
    for argument, stand_in, primal in zip(arguments, tracers, primals, strict=True):
        if argument._value is stand_in:
            argument._value = primal  # an ordinary array, should the function have kept it
    return _Traced(program, [*primals, *captured], outputs, aux)


def vjp(
    fun: Callable, primals: Sequence[array], cotangents: Sequence[array] | None = None, *, has_aux: bool = False
) -> Any:
    """(outputs, vector-Jacobian products) of `fun(*primals)`, each a list of arrays.

    One cotangent per output, except that outputs made by `stop_gradient` take none; it is cast to its output's dtype.
    Without `cotangents` the result is (outputs, pullback): `pullback(cotangents)` gives the products, as often as it is
    called, from what one evaluation of `fun` has left. With `has_aux`, `fun` returns (outputs, aux), and the tree aux
    comes as one more item; it is not differentiated here.

    Raises TypeError unless the arguments are sequences of arrays, ValueError for counts or shapes that do not fit.
    """
    check_callable("vjp", fun)
    given = [p._value for p in array_list("vjp", "primals", primals)]
    cts = None if cotangents is None else array_list("vjp", "cotangents", cotangents)
    traced = _traced("vjp", fun, given, has_aux)
    outputs = traced.outputs
    seeded = [i for i, v in enumerate(outputs) if v.node is None or v.node.primitive is not _STOP_GRADIENT]
    check_differentiable(traced.program, range(len(given)), seeded, "vjp")
    attrs = {"callee": traced.program, "wrt": tuple(range(len(given))), "seeded": tuple(seeded)}
    count = len(traced.program.outputs)
    avals = [*traced.program.avals, *[p.aval for p in given]]

    def seeds(cotangents: list[array]) -> list[Value]:
        if len(seeded) != len(cotangents):
            raise ValueError(
                f"[vjp] Number of outputs to compute gradients for ({len(seeded)}) does not match number of cotangents"
                f" ({len(cotangents)})."
            )
        for i, ct in zip(seeded, cotangents, strict=True):
            if outputs[i].shape != ct.shape:
                raise ValueError(f"[vjp] Output shape {outputs[i].shape} does not match cotangent shape {ct.shape}.")
        return [values.cast(ct._value, outputs[i].dtype) for i, ct in zip(seeded, cotangents, strict=True)]

    if cts is not None:
        found = apply_transform(_VJP, [*traced.operands, *seeds(cts)], attrs, avals)
        return traced.finished(found[:count], [wrap(v) for v in found[count:]])
    found, linear = linearized(_VJP, traced.operands, [outputs[i].aval for i in seeded], attrs, avals, count)

    def pullback(cotangents: Sequence[array]) -> list[array]:
        """The vector-Jacobian products for a sequence of cotangents, one per output."""
        return [wrap(v) for v in linear(seeds(array_list("vjp", "cotangents", cotangents)))]

    return traced.finished(found, pullback)


def _directions(given: list[Value], tangents: Sequence[array]) -> list[Value]:
    """Tangents for these primals. Raises ValueError where counts or shapes differ."""
    found = [t._value for t in array_list("jvp", "tangents", tangents)]
    if len(given) != len(found):
        raise ValueError(f"[jvp] Number of inputs ({len(given)}) does not match number of tangents ({len(found)}).")
    for p, t in zip(given, found, strict=True):
        if p.shape != t.shape:
            raise ValueError(f"[jvp] Input shape {p.shape} does not match shape of tangent {t.shape}.")
    return [values.cast(t, p.dtype) for p, t in zip(given, found, strict=True)]


def jvp(fun: Callable, primals: Sequence[array], tangents: Sequence[array], *, has_aux: bool = False) -> Any:
    """(outputs, Jacobian-vector products) of `fun(*primals)`, each a list of arrays.

    One tangent per primal, of its shape; it is cast to the primal's dtype. With `has_aux`, `fun` returns
    (outputs, aux), and the tree aux comes as a third item.
    Raises TypeError unless the arguments are sequences of arrays, ValueError for counts or shapes that do not fit.
    """
    check_callable("jvp", fun)
    given = [p._value for p in array_list("jvp", "primals", primals)]
    directions = _directions(given, tangents)
    traced = _traced("jvp", fun, given, has_aux)
    check_differentiable(traced.program, range(len(given)), range(len(traced.outputs)), "jvp")
    attrs = {"callee": traced.program, "wrt": tuple(range(len(given)))}
    found = apply_transform(_JVP, [*traced.operands, *directions], attrs, traced.program.avals * 2)
    count = len(traced.program.outputs)
    return traced.finished(found[:count], [wrap(v) for v in found[count : count + len(traced.outputs)]])


def linearize(fun: Callable, primals: Sequence[array], *, has_aux: bool = False) -> Any:
    """(outputs, pushforward): `pushforward(tangents)` gives the Jacobian-vector products of `fun` at `primals`.

    Outputs and products are lists of arrays. `fun` runs once; the pushforward repeats only what depends on tangents.
    With `has_aux`, `fun` returns (outputs, aux), and the tree aux comes as a third item. Raises as `jvp` does.
    """
    check_callable("linearize", fun)
    given = [p._value for p in array_list("linearize", "primals", primals)]
    traced = _traced("linearize", fun, given, has_aux)
    check_differentiable(traced.program, range(len(given)), range(len(traced.outputs)), "jvp")
    attrs = {"callee": traced.program, "wrt": tuple(range(len(given)))}
    count = len(traced.program.outputs)
    late = [p.aval for p in given]
    found, linear = linearized(_JVP, traced.operands, late, attrs, traced.program.avals * 2, count)

    def pushforward(tangents: Sequence[array]) -> list[array]:
        """The Jacobian-vector products for a sequence of tangents, one per primal."""
        return [wrap(v) for v in linear(_directions(given, tangents))[: len(traced.outputs)]]

    return traced.finished(found, pushforward)


# -- vmap ------------------------------------------------------------------------------------------------------------
def _leaf_axes(in_axes: Any, args: tuple) -> list[Any]:
    """The axis of every leaf of the arguments (BEHAVIOUR 7.1)."""
    if container_kind(in_axes) is None:
        return [in_axes] * len(leaves(args))
    if len(args) != 1:
        if not isinstance(in_axes, tuple):
            raise ValueError(
                "[tree_map] in_axes of vmap is not a valid prefix: a tuple with one entry per argument is needed, got"
                f" {in_axes!r}."
            )
        return broadcast_prefix(in_axes, args, "[tree_map] in_axes of vmap")
    if isinstance(args[0], array) and isinstance(in_axes, tuple) and len(in_axes) == 1:
        return [in_axes[0]]
    return broadcast_prefix(in_axes, args[0], "[tree_map] in_axes of vmap")


def _check_axis(axis: Any) -> None:
    if axis is not None and not isinstance(axis, int):
        raise ValueError(f"[vmap] axis must be int or None, got {axis!r}.")


def vmap(fun: Callable, in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """A function that maps `fun` over an axis of its arguments: the stacked results of `fun` on every example.

    `in_axes` is an int for all arrays, or a tuple with a prefix tree per argument (for a single argument the prefix
    tree itself); None stands for "not mapped". `out_axes` is a prefix tree of the result: where the batch axis goes,
    None for results that depend on no mapped array.

    Raises TypeError for keyword arguments, ValueError for trees that do not fit, sizes that disagree or leaves that are
    no arrays, AxisError for axes out of range.
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


def _mapped_outputs(program: Program, count: int) -> list[bool]:
    """Which outputs of a program depend on its first `count` parameters."""
    dependent = set(range(count))
    for instruction in program.instructions:
        if not dependent.isdisjoint(instruction.operands):
            dependent.update(instruction.results)
    return [slot in dependent for slot in program.outputs]


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
        trace.size = size
        inner = [wrap(x._value) if isinstance(x, array) else x for x in given]
        stand_ins = []
        for i, value, axis in mapped:
            stand_ins.append(placeholder(value.shape[:axis] + value.shape[axis + 1 :], value.dtype, trace))
            trace.mapped[stand_ins[-1].uid] = value, axis
            inner[i] = wrap(stand_ins[-1])
        result = fun(*unflatten(structure, inner))
        outputs = [x._value for x in strict_leaves(result, array, f"returned by {name}{at(where)}")]
        program, captured = close(stand_ins, outputs, since, name)
    result_axes, avals = [], []
    if isinstance(result, array) and type(out_axes) is tuple and len(out_axes) == 1:
        (out_axes,) = out_axes  # as for a single argument
    wanted = broadcast_prefix(out_axes, result, "[tree_map] out_axes of vmap")
    for value, axis, dependent in zip(outputs, wanted, _mapped_outputs(program, len(stand_ins)), strict=True):
        _check_axis(axis)
        rank = len(value.shape) + 1
        if axis is None:
            if dependent:
                raise ValueError(
                    f"[vmap] out_axes is None for a result of {name}{at(where)} that depends on a mapped argument."
                )
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
