"""custom_function, checkpoint and depends: functions that say themselves how they are transformed.

While a transform or a compile is tracing, a call of such a function is traced by itself and recorded as one operation
that names the traced program (dialects/mx/control.py); the passes over the `mx` dialect ask that operation for its
rules. The user's rules are traced right behind the function, for the transforms around the call that can reach it.
Without a running trace a call is a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.evaluate import ValueTracing
from mlxir.compiler.graph import (
    Trace,
    Value,
    apply,
    apply_transform,
    close,
    first_uid,
    placeholder,
    running,
    tracer,
    traces_behind,
)
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS
from mlxir.dialects.mx.control import UNMAPPED
from mlxir.runtime.errors import at
from mlxir.runtime.trees import broadcast_prefix, children, container_kind, flatten, leaves, strict_leaves, unflatten

from . import values
from .ndarray import array, wrap
from .transforms import check_callable, describe

__all__ = ["checkpoint", "custom_function", "depends"]

_CHECKPOINT, _CUSTOM, _DEPENDS = RECORDS["checkpoint"], RECORDS["custom"], RECORDS["depends"]
_STOP_GRADIENT = RECORDS["stop_gradient"]


# -- one call --------------------------------------------------------------------------------------------------------
class _Arguments:
    """The arguments of a call: trees whose leaves may be anything; their arrays are the inputs."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.positional, self.keywords = args, kwargs
        self._given, self._structure = flatten((args, kwargs))
        self.inputs: list[Value] = [x._value for x in self._given if isinstance(x, array)]

    def filled(self, items: Sequence[Any], others: Callable[[Any], Any] = lambda leaf: leaf) -> tuple[tuple, dict]:
        """(args, kwargs) in new containers, with `items` in the place of arrays."""
        source = iter(items)
        new = [next(source) if isinstance(x, array) else others(x) for x in self._given]
        return unflatten(self._structure, new)

    def call(self, fun: Callable, items: Sequence[array]) -> Any:
        args, kwargs = self.filled(items)
        return fun(*args, **kwargs)


def _unwrapped(args: tuple) -> Any:
    """What a rule gets for positional arguments: a single one bare."""
    return args[0] if len(args) == 1 else args


class _Traced(NamedTuple):
    """A call traced by itself: what it returned, the arrays of that, their program and what it captured."""

    result: Any
    outputs: list[Value]
    program: Program
    captured: list[Value]


def _trace(fun: Callable, arguments: _Arguments, arrays_of: Callable[[Any], list[array]]) -> _Traced:
    """Call `fun` on stand-ins for its inputs. They can be read wherever the inputs can."""
    since = first_uid()
    stand_ins = [tracer(v) for v in arguments.inputs]
    given = [wrap(t) for t in stand_ins]
    with ValueTracing():
        result = arguments.call(fun, given)
        outputs = [x._value for x in arrays_of(result)]
        program, captured = close(stand_ins, outputs, since, describe(fun)[0])
    _retire(given, stand_ins, arguments.inputs)
    return _Traced(result, outputs, program, captured)


def _retire(arrays: Sequence[array], stand_ins: Sequence[Value], originals: Sequence[Value]) -> None:
    """Make the arrays that a function was given ordinary ones, should it have kept them."""
    for x, stand_in, original in zip(arrays, stand_ins, originals, strict=True):
        if x._value is stand_in:
            x._value = original


# -- checkpoint ------------------------------------------------------------------------------------------------------
def _arrays(tree: Any) -> list[array]:
    return [x for x in leaves(tree) if isinstance(x, array)]


def checkpoint(fun: Callable) -> Callable[..., Any]:
    """A function that computes what `fun` does, and keeps nothing but its arguments for the gradient.

    The backward pass computes the intermediate values again, late: after the backward pass of everything behind the
    call. Arguments and results are trees of anything. Gradients flow to arrays in the arguments alone; what `fun`
    reaches by closure is constant. Random numbers that `fun` draws are the same in the recomputation.

    Raises TypeError if `fun` cannot be called.
    """
    check_callable("checkpoint", fun)

    @functools.wraps(fun, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        arguments = _Arguments(args, kwargs)
        if not running.depth:
            return arguments.call(fun, [wrap(v) for v in arguments.inputs])
        traced = _trace(fun, arguments, _arrays)
        attrs = {"callee": traced.program, "inputs": tuple(range(len(arguments.inputs)))}
        found = apply_transform(_CHECKPOINT, [*arguments.inputs, *traced.captured], attrs, traced.program.avals)
        items, structure = flatten(traced.result)
        source = map(wrap, found)
        return unflatten(structure, [next(source) if isinstance(x, array) else x for x in items])

    return checkpointed


# -- custom_function -------------------------------------------------------------------------------------------------
class _Rule(NamedTuple):
    """A traced rule: its program, what it captured, and which inputs it is about (see `Custom` of the dialect)."""

    program: Program | str = ""
    captured: Sequence[Value] = ()
    which: tuple[int, ...] = ()


class custom_function:  # noqa: N801 (MLX's name)
    """A function with rules of its own for differentiation and batching.

        @mx.custom_function
        def f(x, y): ...

        @f.vjp
        def f_vjp(primals, cotangents, outputs): ...        # or custom_function(f, fun_vjp=f_vjp)

    `vjp(primals, cotangents, outputs, **kwargs)` returns the gradients of the primals, None for zero;
    `jvp(primals, tangents)` returns the tangents of the outputs, where a tangent may be None on either side;
    `vmap(inputs, axes)` returns `(outputs, out_axes)`, an axis being None for what is not mapped. Primals, tangents,
    inputs and axes are those of the single positional argument, or a tuple of them all; cotangents and outputs have the
    structure of the result. The keyword form follows the same convention.

    Rules are traced like any function and may be transformed in turn; a missing one falls back on transforming the
    function. As soon as there is a rule, arrays that the function reaches by closure are constants. Results of the
    function must be trees of arrays, at least one. Wrong structures and shapes raise ValueError naming the rule.
    """

    def __init__(
        self,
        fun: Callable | None = None,
        *,
        f: Callable | None = None,
        fun_vjp: Callable | None = None,
        fun_jvp: Callable | None = None,
        fun_vmap: Callable | None = None,
    ):
        if fun is not None and f is not None:
            raise TypeError("[custom_function] The function is given twice, as fun and as f.")
        self._fun: Callable[..., Any] | None = None
        self._rules: dict[str, Callable] = {}
        for kind, rule in (("vjp", fun_vjp), ("jvp", fun_jvp), ("vmap", fun_vmap)):
            if rule is not None:
                self._register(kind, rule)
        wrapped = fun if fun is not None else f
        if wrapped is not None:
            self._wrap(wrapped)

    def _wrap(self, fun: Callable) -> None:
        check_callable("custom_function", fun)
        self._fun = fun
        functools.update_wrapper(self, fun, updated=())

    def _register(self, kind: str, rule: Callable) -> custom_function:
        check_callable(f"custom {kind}", rule)
        self._rules[kind] = rule
        return self

    def vjp(self, f: Callable) -> custom_function:
        """Register the reverse-mode rule; returns the custom function."""
        return self._register("vjp", f)

    def jvp(self, f: Callable) -> custom_function:
        """Register the forward-mode rule; returns the custom function."""
        return self._register("jvp", f)

    def vmap(self, f: Callable) -> custom_function:
        """Register the batching rule; returns the custom function."""
        return self._register("vmap", f)

    def __repr__(self) -> str:
        return f"<custom_function {describe(self._fun)[0] if self._fun else ''} with rules {list(self._rules)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fun is None:  # made without a function: a decorator
            self._wrap(*args, **kwargs)
            return self
        if not self._rules:
            return self._fun(*args, **kwargs)
        arguments = _Arguments(args, kwargs)
        if running.depth:
            return self._record(self._fun, arguments)
        result = arguments.call(self._fun, [wrap(v) for v in arguments.inputs])
        _strict_outputs(self._fun, result)
        return result

    def _record(self, fun: Callable, arguments: _Arguments) -> Any:
        traced = _trace(fun, arguments, functools.partial(_strict_outputs, fun))
        behind = [traces_behind(v) for v in arguments.inputs]
        linked = [traces_behind(v, blocked=_STOP_GRADIENT) for v in arguments.inputs]
        vjp = jvp = vmap = _Rule()
        maps = {t for traces in behind for t in traces if t.kind == "vmap"}
        pushed = tuple(i for i, traces in enumerate(linked) if any(t.kind == "jvp" for t in traces))
        # What is exported may be differentiated where it is imported.
        around = {t for traces in linked for t in traces if t.kind in ("vjp", "jvp", "export")}
        # Each rule being traced serves one of them; so a rule may call its own function, which needs no rule any more.
        differentiated = len(around) > sum(t.kind in ("custom vjp", "custom jvp") for t in running.traces)
        if differentiated and "vjp" in self._rules and any(t.kind != "jvp" for t in around):
            vjp = _traced_vjp(self._rules["vjp"], arguments, traced)
        if differentiated and "jvp" in self._rules and pushed:
            jvp = _traced_jvp(self._rules["jvp"], arguments, traced, pushed)
        if "vmap" in self._rules and maps:
            vmap = _traced_vmap(self._rules["vmap"], arguments, traced, max(maps, key=lambda t: t.order), behind)
        captured = traced.captured, vjp.captured, jvp.captured, vmap.captured
        attrs = {
            "callee": traced.program,
            "inputs": tuple(range(len(arguments.inputs))),
            "captured": tuple(map(len, captured)),
            "fun_vjp": vjp.program,
            "vjp_inputs": vjp.which,
            "fun_jvp": jvp.program,
            "jvp_inputs": jvp.which,
            "fun_vmap": vmap.program,
            "vmap_axes": vmap.which,
        }
        operands = [*arguments.inputs, *[v for part in captured for v in part]]
        found = apply_transform(_CUSTOM, operands, attrs, traced.program.avals)
        return unflatten(flatten(traced.result)[1], map(wrap, found))


def _strict_outputs(fun: Callable, result: Any) -> list[array]:
    name, where = describe(fun)
    found = strict_leaves(result, array, f"returned by {name}{at(where)}")
    if not found:
        raise ValueError(f"[custom_function] {name}{at(where)} must return at least one array.")
    return found


# -- tracing rules ---------------------------------------------------------------------------------------------------
def _check(kind: str, rule: Callable, fits: bool, problem: str) -> None:
    if not fits:
        name, where = describe(rule)
        raise ValueError(f"[custom {kind}] {name}{at(where)} {problem}")


def _check_positional(kind: str, rule: Callable, arguments: _Arguments) -> None:
    given = ", ".join(arguments.keywords)
    problem = f"can be used with positional arguments only, but the function was called with keywords {given}."
    _check(kind, rule, not arguments.keywords, problem)


def _matched(result: Any, tree: Any) -> list[Any] | None:
    """An entry of `result` for each leaf of `tree`, None for all below a None; None if the structures differ.

    A list may stand for a tuple.
    """
    kind = container_kind(tree)
    if result is None:
        return [None] * len(leaves(tree))
    if kind is None:
        return [result] if container_kind(result) is None else None
    if (kind is dict) is not isinstance(result, dict) or container_kind(result) is None:
        return None
    theirs, ours = list(children(result)), list(children(tree))
    if len(theirs) != len(ours) or (kind is dict and set(result) != set(tree)):
        return None
    pairs = [(result[k], tree[k]) for k in tree] if kind is dict else zip(theirs, ours, strict=True)
    found = [_matched(r, t) for r, t in pairs]
    return None if any(part is None for part in found) else [leaf for part in found for leaf in part or ()]


def _gradient_leaves(result: Any, args: tuple) -> list[Any] | None:
    """Per leaf of the positional arguments, what a vjp rule returned for it; None if that fits in no way.

    It has the structure of the primals. A single argument may come as a sequence of one, and a flat sequence may leave
    out the leaves that are no arrays.
    """
    found = _matched(result, _unwrapped(args))
    if found is None and len(args) == 1 and isinstance(result, (list, tuple)) and len(result) == 1:
        found = _matched(result[0], args[0])
    if found is not None:
        return found
    flat = list(result) if isinstance(result, (list, tuple)) else [result]
    given = leaves(args)
    if all(x is None or isinstance(x, array) for x in flat) and len(flat) == len(_arrays(args)):
        source = iter(flat)
        return [next(source) if isinstance(x, array) else None for x in given]
    return None


def _traced_vjp(rule: Callable, arguments: _Arguments, traced: _Traced) -> _Rule:
    name, where = describe(rule)
    since = first_uid()
    structure = flatten(traced.result)[1]
    with ValueTracing(), Trace("custom vjp", name, where, running.traces) as trace:
        primals = [tracer(v) for v in arguments.inputs]
        cotangents = [placeholder(v.shape, v.dtype, trace) for v in traced.outputs]
        outputs = [tracer(v) for v in traced.outputs]
        given = [wrap(p) for p in primals]
        args, kwargs = arguments.filled(given)
        found = _gradient_leaves(
            rule(_unwrapped(args), *[unflatten(structure, map(wrap, v)) for v in (cotangents, outputs)], **kwargs),
            arguments.positional,
        )
        wanted = leaves(arguments.positional)
        _check("vjp", rule, found is not None, f"must return a gradient per primal, {len(wanted)}, in their structure.")
        which: list[int] = []
        grads: list[Value] = []
        index = -1
        for leaf, grad in zip(wanted, found or (), strict=True):
            index += isinstance(leaf, array)
            if grad is None:
                continue
            _check("vjp", rule, isinstance(grad, array), f"returned a {type(grad).__name__} for a gradient.")
            _check("vjp", rule, isinstance(leaf, array), f"returned a gradient for a {type(leaf).__name__}.")
            _check("vjp", rule, grad.shape == leaf.shape,
                   f"returned a gradient of shape {grad.shape} for a primal of shape {leaf.shape}.")  # fmt: skip
            which.append(index)
            grads.append(values.cast(grad._value, leaf.dtype))
        program, captured = close([*primals, *cotangents, *outputs], grads, since, name)
    _retire(given, primals, arguments.inputs)
    return _Rule(program, captured, tuple(which))


def _traced_jvp(rule: Callable, arguments: _Arguments, traced: _Traced, which: tuple[int, ...]) -> _Rule:
    _check_positional("jvp", rule, arguments)
    name, where = describe(rule)
    since = first_uid()
    inputs = arguments.inputs
    with ValueTracing(), Trace("custom jvp", name, where, running.traces) as trace:
        primals = [tracer(v) for v in inputs]
        tangents = {i: placeholder(inputs[i].shape, inputs[i].dtype, trace) for i in which}
        given = [wrap(p) for p in primals]
        args, _ = arguments.filled(given)
        directions = [wrap(tangents[i]) if i in tangents else None for i in range(len(inputs))]
        result = rule(_unwrapped(args), _unwrapped(arguments.filled(directions, others=lambda leaf: None)[0]))
        found = _matched(result, traced.result)
        _check("jvp", rule, found is not None, "must return a tangent per output, in the structure of the outputs.")
        outs = []
        for tangent, out in zip(found or (), traced.outputs, strict=True):
            if tangent is None:
                outs.append(values.full(0, out.shape, out.dtype))
                continue
            _check("jvp", rule, isinstance(tangent, array), f"returned a {type(tangent).__name__} for a tangent.")
            _check("jvp", rule, tangent.shape == out.shape,
                   f"returned a tangent of shape {tangent.shape} for an output of shape {out.shape}.")  # fmt: skip
            outs.append(values.cast(tangent._value, out.dtype))
        program, captured = close([*primals, *tangents.values()], outs, since, name)
    _retire(given, primals, inputs)
    return _Rule(program, captured, which)


def _traced_vmap(
    rule: Callable, arguments: _Arguments, traced: _Traced, around: Trace, behind: Sequence[set[Trace]]
) -> _Rule:
    """The rule for the vmap `around` the call: an argument of the mapped function keeps its axis, others have 0."""
    _check_positional("vmap", rule, arguments)
    name, where = describe(rule)
    since = first_uid()
    inputs, size = arguments.inputs, around.size
    axes = [
        around.mapped.get(v.uid, (v, 0))[1] if around in traces else None
        for v, traces in zip(inputs, behind, strict=True)
    ]
    with ValueTracing(), Trace("custom vmap", name, where, set().union(*behind) - {around}) as trace:
        stand_ins = [
            tracer(v) if axis is None else placeholder((*v.shape[:axis], size, *v.shape[axis:]), v.dtype, trace)
            for v, axis in zip(inputs, axes, strict=True)
        ]
        given = [wrap(v) for v in stand_ins]
        args, _ = arguments.filled(given)
        result = rule(_unwrapped(args), _unwrapped(arguments.filled(axes, others=lambda leaf: None)[0]))
        pair = isinstance(result, tuple) and len(result) == 2
        _check("vmap", rule, pair, "should return a tuple with 2 items, the outputs and their axes.")
        found = strict_leaves(result[0], array, f"returned by {name}{at(where)}")
        _check("vmap", rule, len(found) == len(traced.outputs), f"must return {len(traced.outputs)} outputs.")
        out_axes = broadcast_prefix(result[1], result[0], f"[custom vmap] the axes returned by {name}{at(where)}")
        outs = [
            _in_front(rule, x._value, axis, out, size)
            for x, axis, out in zip(found, out_axes, traced.outputs, strict=True)
        ]
        program, captured = close(stand_ins, outs, since, name)
    _check("vmap", rule, not any(around in traces_behind(v) for v in captured),
           "reads an array that is mapped, by closure: make it an argument of the function.")  # fmt: skip
    _retire(given, stand_ins, [v if axis is None else s for v, s, axis in zip(inputs, stand_ins, axes, strict=True)])
    return _Rule(program, captured, tuple(UNMAPPED if axis is None else axis for axis in axes))


def _in_front(rule: Callable, x: Value, axis: Any, out: Value, size: int) -> Value:
    """An output of a vmap rule with its batch axis in front, as Value of the output's dtype."""
    _check("vmap", rule, axis is None or type(axis) is int, f"returned the axis {axis!r}, which is no int or None.")
    rank = len(x.shape)
    if axis is None:
        x, shape = values.broadcast_to(x, (size, *x.shape)), (size, *x.shape)
    else:
        _check("vmap", rule, -rank <= axis < rank, f"returned axis {axis} for an output of shape {x.shape}.")
        axis %= rank
        x = values.transpose(x, (axis, *[a for a in range(rank) if a != axis]))
        shape = x.shape
    wanted = (size, *out.shape)
    _check("vmap", rule, shape == wanted, f"returned an output of batched shape {shape}, where {wanted} is expected.")
    return values.cast(x, out.dtype)


# -- depends ---------------------------------------------------------------------------------------------------------
def _flat_arrays(what: str, given: Any) -> list[Value]:
    items = list(given) if isinstance(given, (list, tuple)) else [given]
    for x in items:
        if not isinstance(x, array):
            raise TypeError(f"[depends] {what} must be an array or a list or tuple of arrays, got {type(x).__name__}.")
    return [x._value for x in items]


def depends(inputs: array | Sequence[array], dependencies: array | Sequence[array]) -> array | list[array]:
    """The `inputs`, to be used only when the `dependencies` have been computed.

    Values and derivatives are those of the inputs; the compiled program computes what reads the results after the
    dependencies. An array gives an array, a sequence a list. Raises TypeError for anything else.
    """
    found = _flat_arrays("inputs", inputs)
    for dependency in _flat_arrays("dependencies", dependencies):
        found = [apply(_DEPENDS, (x, dependency), {})[0] for x in found]
    return wrap(found[0]) if isinstance(inputs, array) else [wrap(v) for v in found]
