"""Random programs with nested transforms, as source text that runs on mlxir, on real MLX and on JAX alike.

A program is `def program(m, inputs)`: operations on arrays of a few small shapes, and inner functions that are
differentiated (grad, value_and_grad, vjp, jvp), mapped (vmap), compiled and checkpointed in any nesting, with closures
over the values and tracers of all functions around them. `m` is one of the libraries below; the same text thus runs on
each, and a text that failed can be kept as a test.

`python tests/nested_programs.py FIRST LAST` compares a range of seeds on all libraries that are installed and reports.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import mlx.core as real
import numpy as np

import mlxir

try:
    import jax
except ImportError:  # an extra of the tests; those that need it say so
    jax = None

Shape = tuple[int, ...]
DIMS = (1, 2, 3, 4)
LARGEST = 96


# -- libraries -------------------------------------------------------------------------------------------------------
class MLXLike:
    """mlxir or real MLX, with the few functions for which MLX has statements or other names."""

    def __init__(self, library: Any, dtype: str):
        self.library, self.dtype = library, getattr(library, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def run(self, program: Callable, inputs: list[np.ndarray], compile_whole: bool = False) -> list[np.ndarray]:
        fun = lambda *xs: program(self, xs)  # noqa: E731
        with self.library.stream(self.library.cpu):
            arrays = [self.library.array(x, self.dtype) for x in inputs]
            outs = (self.library.compile(fun) if compile_whole else fun)(*arrays)
            self.library.eval(outs)
        return [np.array(x, np.float64) for x in outs]

    def index(self, values: list) -> Any:
        return self.library.array(values, self.library.int32)

    def assigned(self, x: Any, index: Any, value: Any) -> Any:
        """A copy of x with `x[index] = value`."""
        out = x[...]
        out[index] = value
        return out

    def updated(self, x: Any, index: Any, value: Any, mode: str) -> Any:
        return getattr(x.at[index], mode)(value)

    def vjp_of(self, fun: Callable, primals: list, cotangents: list) -> list:
        return self.library.vjp(fun, primals, cotangents)[1]

    def jvp_of(self, fun: Callable, primals: list, tangents: list) -> list:
        return self.library.jvp(fun, primals, tangents)[1]


class JaxLike:
    """JAX under MLX's names; float64, so that a difference is a bug and no rounding."""

    def __init__(self) -> None:
        jax.config.update("jax_enable_x64", True)
        self.np, self.lax = jax.numpy, jax.lax
        self.stop_gradient, self.compile, self.checkpoint = jax.lax.stop_gradient, jax.jit, jax.checkpoint
        self.grad, self.value_and_grad, self.vmap = jax.grad, jax.value_and_grad, jax.vmap
        self.sigmoid, self.softmax, self.logsumexp = jax.nn.sigmoid, jax.nn.softmax, jax.nn.logsumexp
        self.erf, self.rsqrt, self.arctan = jax.lax.erf, jax.lax.rsqrt, jax.numpy.arctan

    def __getattr__(self, name: str) -> Any:
        return getattr(jax.numpy, name)

    def run(self, program: Callable, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [np.array(x, np.float64) for x in program(self, [jax.numpy.asarray(x, "float64") for x in inputs])]

    def eval(self, *trees: Any) -> None:
        pass

    def maximum(self, x: Any, y: Any) -> Any:
        """With MLX's derivative where both are equal."""
        return jax.numpy.where(x > y, x, y)

    def minimum(self, x: Any, y: Any) -> Any:
        return jax.numpy.where(x < y, x, y)

    def index(self, values: list) -> Any:
        return jax.numpy.asarray(values, "int32")

    def assigned(self, x: Any, index: Any, value: Any) -> Any:
        return x.at[index].set(value)

    def updated(self, x: Any, index: Any, value: Any, mode: str) -> Any:
        if mode != "multiply":
            return getattr(x.at[index], {"maximum": "max", "minimum": "min"}.get(mode, mode))(value)
        for i, v in zip(index, value, strict=True):  # JAX has no derivative for a product with duplicates
            x = x.at[i].set(x[i] * v)
        return x

    def _scan(self, scan: Callable, first: float, x: Any, axis: int, reverse: bool, inclusive: bool) -> Any:
        out = scan(x, axis=axis, reverse=reverse)
        if inclusive:
            return out
        n = x.shape[axis]
        head = jax.numpy.full_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis), first)
        kept = jax.lax.slice_in_dim(out, 1, n, axis=axis) if reverse else jax.lax.slice_in_dim(out, 0, n - 1, axis=axis)
        return jax.numpy.concatenate([kept, head] if reverse else [head, kept], axis)

    def cumsum(self, x: Any, *, axis: int, reverse: bool = False, inclusive: bool = True) -> Any:
        return self._scan(jax.lax.cumsum, 0.0, x, axis, reverse, inclusive)

    def cumprod(self, x: Any, *, axis: int, reverse: bool = False, inclusive: bool = True) -> Any:
        return self._scan(jax.lax.cumprod, 1.0, x, axis, reverse, inclusive)

    def cummax(self, x: Any, *, axis: int, reverse: bool = False) -> Any:
        return jax.lax.cummax(x, axis=axis, reverse=reverse)

    def cummin(self, x: Any, *, axis: int, reverse: bool = False) -> Any:
        return jax.lax.cummin(x, axis=axis, reverse=reverse)

    def logcumsumexp(self, x: Any, *, axis: int, reverse: bool = False) -> Any:
        return jax.lax.cumlogsumexp(x, axis=axis, reverse=reverse)

    def vjp_of(self, fun: Callable, primals: list, cotangents: list) -> list:
        outs, pullback = jax.vjp(lambda *xs: list(_sequence(fun(*xs))), *primals)
        return list(pullback([c.astype(o.dtype) for c, o in zip(cotangents, outs, strict=True)]))

    def jvp_of(self, fun: Callable, primals: list, tangents: list) -> list:
        return jax.jvp(lambda *xs: list(_sequence(fun(*xs))), primals, tangents)[1]


def _sequence(x: Any) -> Any:
    return x if isinstance(x, (list, tuple)) else [x]


# -- the generator ---------------------------------------------------------------------------------------------------
class Var(NamedTuple):
    """A variable of the program."""

    name: str
    shape: Shape


UNARY = (
    "m.sin({})", "m.cos({})", "m.tanh({})", "m.exp(m.minimum({}, 1.3))", "m.sigmoid({})", "m.square({})",
    "m.sqrt(m.abs({}) + 0.5)", "m.log1p(m.abs({}))", "m.erf({})", "-{}", "{} * 0.5 + 1", "1.5 - {}",
    "2 / (1.5 + m.square({}))", "m.rsqrt(1 + m.square({}))", "m.arctan({})", "m.abs({})", "{} ** 2",
    "m.stop_gradient({}) * 0.7", "m.maximum({}, 0.1)",
)  # fmt: skip
BINARY = (
    "{} + {}", "{} - {}", "{} * {}", "{} / (m.abs({}) + 1)", "m.maximum({}, {})", "m.minimum({}, {})",
    "m.logaddexp({}, {})", "m.arctan2({}, 1.5 + m.abs({}))", "m.power(m.abs({}) + 0.5, {})", "m.sin({}) * m.tanh({})",
)  # fmt: skip
REDUCE = ("sum", "mean", "max", "min", "prod", "logsumexp", "var")
SCANS = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
TRANSFORMS = ("grad", "value_and_grad", "grad_tree", "vjp", "jvp", "vmap", "compile", "checkpoint")


class Generator:
    """Writes one program; every decision comes from the seed."""

    def __init__(self, seed: int, transforms: tuple[str, ...] = TRANSFORMS, depth: int = 3):
        self.rng, self.depth, self.transforms = np.random.default_rng(seed), depth, transforms
        self.palette = [int(n) for n in self.rng.choice(DIMS, 3)]
        self.lines: list[str] = []
        self.names = 0
        self.readable = True  # whether values may be read: false inside vmap, compile and checkpoint
        self.shapes = [self.some_shape() for _ in range(self.rng.integers(2, 5))]
        scope = [Var(f"inputs[{i}]", s) for i, s in enumerate(self.shapes)]
        scope = self.body(scope, 1, 0, int(self.rng.integers(4, 9)))
        new = scope[len(self.shapes) :]
        chosen = sorted(set(self.rng.integers(0, len(new), 3)) | {len(new) - 1})
        self.line(1, f"return [{', '.join(new[i].name for i in chosen)}]")

    def source(self) -> str:
        return "\n".join(["def program(m, inputs):", *self.lines]) + "\n"

    def inputs(self) -> list[np.ndarray]:
        return [self.rng.standard_normal(s) for s in self.shapes]

    # -- small choices ------------------------------------------------------------------------------------------------
    def line(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def new(self, shape: Shape) -> Var:
        self.names += 1
        return Var(f"v{self.names}", tuple(shape))

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def some_shape(self) -> Shape:
        return tuple(self.pick(self.palette) for _ in range(self.rng.choice(4, p=(0.1, 0.3, 0.4, 0.2))))

    def value(self, scope: list[Var], rank: int = 0) -> Var | None:
        """A value of at least this rank; recent ones are likelier."""
        fit = [v for v in scope if len(v.shape) >= rank]
        if not fit:
            return None
        weights = np.arange(1, len(fit) + 1) ** 1.5
        return fit[int(self.rng.choice(len(fit), p=weights / weights.sum()))]

    def partner(self, scope: list[Var], x: Var) -> Var:
        """A value that broadcasts with x."""
        fit = [x]
        for v in scope:
            try:
                if prod(np.broadcast_shapes(x.shape, v.shape)) <= LARGEST:
                    fit.append(v)
            except ValueError:
                continue
        return self.pick(fit)

    # -- bodies -------------------------------------------------------------------------------------------------------
    def body(self, scope: list[Var], indent: int, depth: int, count: int) -> list[Var]:
        """Write `count` statements; returns the scope with their results."""
        scope = list(scope)
        while count:
            use = depth < self.depth and self.chance(0.45 if depth == 0 else 0.3)
            made = self.transform(scope, indent, depth) if use else self.operation(scope, indent)
            if made is not None:
                scope.append(made)
                count -= 1
        return scope

    def define(
        self, scope: list[Var], shapes: list[Shape], indent: int, depth: int, outputs: int = 1
    ) -> tuple[str, list[Shape]]:
        """Write an inner function of arguments of these shapes: (its name, the shapes of its results)."""
        self.names += 1
        name = f"f{self.names}"
        arguments = [self.new(s) for s in shapes]
        self.line(indent, f"def {name}({', '.join(a.name for a in arguments)}):")
        inner = self.body([*scope, *arguments], indent + 1, depth + 1, int(self.rng.integers(1, 4)))
        made = inner[len(scope) :]
        results = [inner[-1], *[self.pick(made) for _ in range(outputs - 1)]]
        if outputs == 1 and len(arguments) == 1 and self.chance(0.3):
            # Make sure that the argument matters.
            mixed = self.new(inner[-1].shape)
            self.line(indent + 1, f"{mixed.name} = {inner[-1].name} * m.sum(m.sin({arguments[0].name}))")
            results = [mixed]
        text = ", ".join(r.name for r in results)
        self.line(indent + 1, f"return {text}")
        return name, [r.shape for r in results]

    def within(self, readable: bool, write: Callable[[], Any]) -> Any:
        before, self.readable = self.readable, self.readable and readable
        made = write()
        self.readable = before
        return made

    # -- transforms ---------------------------------------------------------------------------------------------------
    def transform(self, scope: list[Var], indent: int, depth: int) -> Var | None:
        return getattr(self, f"write_{self.pick(self.transforms)}")(scope, indent, depth)

    def arguments(self, scope: list[Var], most: int = 2) -> list[Var]:
        return [self.value(scope) for _ in range(self.rng.integers(1, most + 1))]

    def scalar(self, name: str, arguments: list[Var], indent: int) -> str:
        """A function with a scalar result: the sum of a function of the result of `name`."""
        self.names += 1
        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        self.line(indent, f"s{self.names} = lambda {names}: m.sum(m.sin({name}({names})))")
        return f"s{self.names}"

    def write_grad(self, scope: list[Var], indent: int, depth: int) -> Var:
        arguments = self.arguments(scope)
        name, _ = self.define(scope, [a.shape for a in arguments], indent, depth)
        scalar = self.scalar(name, arguments, indent)
        k = int(self.rng.integers(len(arguments)))
        out = self.new(arguments[k].shape)
        self.line(indent, f"{out.name} = m.grad({scalar}, argnums={k})({', '.join(a.name for a in arguments)})")
        return out

    def write_value_and_grad(self, scope: list[Var], indent: int, depth: int) -> Var:
        arguments = self.arguments(scope)
        name, _ = self.define(scope, [a.shape for a in arguments], indent, depth)
        scalar = self.scalar(name, arguments, indent)
        out, loss = self.new(arguments[0].shape), self.new(())
        names = ", ".join(a.name for a in arguments)
        self.line(indent, f"{loss.name}, {out.name} = m.value_and_grad({scalar})({names})")
        self.line(indent, f"{out.name} = {out.name} * {loss.name}")
        return out

    def write_grad_tree(self, scope: list[Var], indent: int, depth: int) -> Var:
        x, y = self.value(scope), self.value(scope)
        name, _ = self.define(scope, [x.shape, y.shape], indent, depth)
        self.names += 1
        loss = f"lambda p: m.sum(m.cos({name}(p['a'], p['b'][0])))"
        self.line(indent, f"t{self.names} = m.grad({loss})({{'a': {x.name}, 'b': [{y.name}]}})")
        out = self.new(self.pick([x, y]).shape)
        part = "['a']" if out.shape == x.shape else "['b'][0]"
        self.line(indent, f"{out.name} = t{self.names - 1}{part}")
        return out

    def write_vjp(self, scope: list[Var], indent: int, depth: int) -> Var:
        arguments, count = self.arguments(scope), int(self.rng.integers(1, 3))
        name, shapes = self.define(scope, [a.shape for a in arguments], indent, depth, count)
        k = int(self.rng.integers(len(arguments)))
        out = self.new(arguments[k].shape)
        cts = ", ".join(self.filled(scope, s) for s in shapes)
        self.line(indent, f"{out.name} = m.vjp_of({name}, [{', '.join(a.name for a in arguments)}], [{cts}])[{k}]")
        return out

    def write_jvp(self, scope: list[Var], indent: int, depth: int) -> Var:
        arguments, count = self.arguments(scope), int(self.rng.integers(1, 3))
        name, shapes = self.define(scope, [a.shape for a in arguments], indent, depth, count)
        k = int(self.rng.integers(count))
        out = self.new(shapes[k])
        tangents = ", ".join(self.filled(scope, a.shape) for a in arguments)
        self.line(indent, f"{out.name} = m.jvp_of({name}, [{', '.join(a.name for a in arguments)}], [{tangents}])[{k}]")
        return out

    def filled(self, scope: list[Var], shape: Shape) -> str:
        """An expression of this shape: a value that has it, or one spread over it."""
        same = [v for v in scope if v.shape == shape]
        if same and self.chance(0.7):
            return self.pick(same).name
        return f"m.broadcast_to(m.mean({self.value(scope).name}), {shape})"

    def write_vmap(self, scope: list[Var], indent: int, depth: int) -> Var | None:
        x = self.value(scope, 1)
        if x is None:
            return None
        axis = int(self.rng.integers(len(x.shape)))
        size, arguments, axes = x.shape[axis], [x], [axis]
        for _ in range(self.rng.integers(0, 2)):
            y = self.value(scope)
            fits = [a for a, n in enumerate(y.shape) if n == size]
            arguments.append(y)
            axes.append(self.pick(fits) if fits and self.chance(0.8) else None)
        pairs = list(zip(arguments, axes, strict=True))
        shapes = [a.shape if k is None else a.shape[:k] + a.shape[k + 1 :] for a, k in pairs]
        count = int(self.rng.integers(1, 3))
        name, outs = self.within(False, lambda: self.define(scope, shapes, indent, depth, count))
        places = [int(self.rng.integers(len(s) + 1)) for s in outs]
        axes = [k - len(a.shape) if k is not None and self.chance(0.3) else k for a, k in pairs]
        k = int(self.rng.integers(count))
        shape = outs[k][: places[k]] + (size,) + outs[k][places[k] :]
        if prod(shape) > LARGEST * 2 or len(shape) > 4:
            places, shape = [0] * count, (size, *outs[k])
        out = self.new(shape)
        where = places[0] if count == 1 else tuple(places)
        call = f"m.vmap({name}, in_axes={tuple(axes)}, out_axes={where})({', '.join(a.name for a in arguments)})"
        self.line(indent, f"{out.name} = {call}{f'[{k}]' if count > 1 else ''}")
        return out

    def write_wrapped(self, wrapper: str, scope: list[Var], indent: int, depth: int) -> Var:
        arguments = self.arguments(scope, 3)
        # An array must not come both as an argument and by closure (BEHAVIOUR 8.3); what a checkpointed function
        # captures has gradient zero in MLX (BEHAVIOUR 11).
        captured = [v for v in scope if v not in arguments] if wrapper == "m.compile" else []
        name, (shape,) = self.within(False, lambda: self.define(captured, [a.shape for a in arguments], indent, depth))
        out = self.new(shape)
        self.line(indent, f"{out.name} = {wrapper}({name})({', '.join(a.name for a in arguments)})")
        return out

    def write_compile(self, scope: list[Var], indent: int, depth: int) -> Var:
        return self.write_wrapped("m.compile", scope, indent, depth)

    def write_checkpoint(self, scope: list[Var], indent: int, depth: int) -> Var:
        return self.write_wrapped("m.checkpoint", scope, indent, depth)

    # -- operations ---------------------------------------------------------------------------------------------------
    def operation(self, scope: list[Var], indent: int) -> Var | None:
        """Write one operation; None if its choice does not fit the values."""
        x = self.value(scope)
        kind = self.rng.random()
        if kind < 0.25:
            made = self.pick(UNARY).format(x.name), x.shape
        elif kind < 0.5:
            y = self.partner(scope, x)
            made = self.pick(BINARY).format(x.name, y.name), np.broadcast_shapes(x.shape, y.shape)
        elif kind < 0.53 and self.readable:
            return self.branch(scope, x, indent)
        else:
            made = self.shaped(scope, x) if x.shape else None
        if made is None or prod(made[1]) > LARGEST or len(made[1]) > 4:
            return None
        out = self.new(made[1])
        self.line(indent, f"{out.name} = {made[0]}")
        return out

    def branch(self, scope: list[Var], x: Var, indent: int) -> Var:
        """A statement that reads a value."""
        out, y = self.new(x.shape), self.partner(scope, x)
        if y.shape != x.shape and np.broadcast_shapes(x.shape, y.shape) != x.shape:
            self.line(indent, f"m.eval({x.name})")
            y = x
        self.line(indent, f"{out.name} = m.sin({x.name}) if m.sum({y.name}) > 0.2 else {x.name} * {y.name}")
        return out

    def shaped(self, scope: list[Var], x: Var) -> tuple[str, Shape] | None:
        """An operation on an array of at least one axis: (expression, shape)."""
        n, s = x.name, x.shape
        axis = int(self.rng.integers(len(s)))
        sa = s[:axis] + s[axis + 1 :]
        shown = axis if self.chance(0.7) else axis - len(s)
        match int(self.rng.integers(21)):
            case 0 | 1:
                name = self.pick(REDUCE)
                if self.chance(0.4):
                    return f"m.{name}({n}, axis={shown}, keepdims=True)", s[:axis] + (1,) + s[axis + 1 :]
                return (f"m.{name}({n}, axis={shown})", sa) if self.chance(0.8) else (f"m.{name}({n})", ())
            case 2:
                return f"m.softmax({n}, axis={shown})", s
            case 3:
                name, options = self.pick(SCANS), f"axis={axis}, reverse={self.chance(0.5)}"
                if name in ("cumsum", "cumprod"):
                    options += f", inclusive={self.chance(0.5)}"
                return f"m.{name}({n}, {options})", s
            case 4:
                order = tuple(int(a) for a in self.rng.permutation(len(s)))
                return f"m.transpose({n}, {order})", tuple(s[a] for a in order)
            case 5:
                return f"m.reshape({n}, {(prod(s[:axis]), prod(s[axis:]))})", (prod(s[:axis]), prod(s[axis:]))
            case 6:
                return f"m.expand_dims({n}, {axis})", s[:axis] + (1,) + s[axis:]
            case 7:
                lead = self.pick(self.palette)
                return f"m.broadcast_to({n}, {(lead, *s)})", (lead, *s)
            case 8:
                low, high = int(self.rng.integers(0, 2)), int(self.rng.integers(0, 2))
                pads = [(0, 0)] * len(s)
                pads[axis] = (low, high)
                return f"m.pad({n}, {pads})", s[:axis] + (s[axis] + low + high,) + s[axis + 1 :]
            case 9:
                start, step = int(self.rng.integers(0, s[axis])), self.pick((1, 2, -1))
                part = [":"] * axis + [f"{start}::{step}"]
                count = len(range(s[axis])[start::step])
                return f"{n}[{', '.join(part)}]", s[:axis] + (count,) + s[axis + 1 :]
            case 10:
                index = [int(i) for i in self.rng.integers(-s[axis], s[axis], self.rng.integers(1, 4))]
                return f"m.take({n}, m.index({index}), axis={axis})", s[:axis] + (len(index),) + s[axis + 1 :]
            case 11:
                y = self.pick([v for v in scope if v.shape == s])
                order = f"m.stop_gradient(m.argsort({y.name}, axis={axis}))"
                return f"m.take_along_axis({n}, {order}, axis={axis})", s
            case 12:
                return f"m.sort({n}, axis={shown})", s
            case 13:
                fit = [v for v in scope if len(v.shape) == len(s) and v.shape[:axis] + v.shape[axis + 1 :] == sa]
                y = self.pick(fit)
                shape = s[:axis] + (s[axis] + y.shape[axis],) + s[axis + 1 :]
                return f"m.concatenate([{n}, {y.name}], axis={axis})", shape
            case 14:
                y = self.pick([v for v in scope if v.shape == s])
                return f"m.stack([{n}, {y.name}], axis={axis})", s[:axis] + (2,) + s[axis:]
            case 15:
                return f"m.roll({n}, {self.pick((-2, -1, 1))}, {axis})", s
            case 16:
                return f"m.repeat({n}, 2, axis={axis})", s[:axis] + (2 * s[axis],) + s[axis + 1 :]
            case 17 | 18:
                fit = [v for v in scope if len(v.shape) == 2 and v.shape[0] == s[-1]]
                if not fit:
                    return None
                w = self.pick(fit)
                return f"m.matmul({n}, {w.name})", (*s[:-1], w.shape[1])
            case 19:
                return self.written(scope, x)
            case _:
                y = self.partner(scope, x)
                test = f"{n} > {y.name}" if self.chance(0.7) else f"m.sin({n}) < 0.3"
                return f"m.where({test}, {n} * 2, {y.name})", np.broadcast_shapes(s, y.shape)

    def written(self, scope: list[Var], x: Var) -> tuple[str, Shape]:
        """A functional or an in-place update along the first axis."""
        n, s = x.name, x.shape
        mode = self.pick(("add", "multiply", "maximum", "minimum", "set", "set slice"))
        if mode == "set slice":
            start = int(self.rng.integers(0, s[0]))
            return f"m.assigned({n}, slice({start}, None), {self.filled(scope, s[1:])})", s
        count = int(self.rng.integers(1, 3)) if mode != "set" else 1
        index = [int(i) for i in self.rng.integers(0, s[0], count)]
        update = self.filled(scope, (count, *s[1:]))
        if mode == "set":
            return f"m.assigned({n}, m.index({index}), {update})", s
        # Not equal to what is there: with equal values both have derivative 1 in MLX, and 1/2 in JAX.
        return f"m.updated({n}, m.index({index}), {update} * 0.9 + 0.013, {mode!r})", s


def compiled(source: str) -> Callable:
    """The function of a program's text."""
    names: dict[str, Any] = {}
    exec(compile(source, "<program>", "exec"), names)
    return names["program"]


# -- comparison ------------------------------------------------------------------------------------------------------
def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest difference relative to the larger of 1 and the array's largest value; inf where shapes differ."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape or (np.isnan(x) != np.isnan(y)).any():
            return float("inf")
        fine = np.isfinite(x) & np.isfinite(y)
        if (x[~fine & ~np.isnan(x)] != y[~fine & ~np.isnan(y)]).any():
            return float("inf")
        if fine.any():
            worst = max(worst, float(np.abs(x[fine] - y[fine]).max() / max(1.0, np.abs(y[fine]).max())))
    return worst


def attempt(library: Any, source: str, inputs: list[np.ndarray], *options: bool) -> list[np.ndarray] | Exception:
    try:
        return library.run(compiled(source), inputs, *options)
    except Exception as error:  # a library may lack a rule
        return error


def verdict(source: str, inputs: list[np.ndarray], with_jax: bool = True, whole: bool = True) -> str:
    """How mlxir fares on a program against real MLX (in float32) and JAX (in float64).

    JAX compiles each operation for each shape, so it is slow; `with_jax=False` asks it only where MLX does not agree.
    `whole`: the program compiled as a whole must give the same, too.

    "agree with ..." names who gives the same; where MLX differs from JAX it is a defect of MLX, where only JAX differs
    it is another convention at a tie. "rounding": float32 is no measure for this program.
    """
    mine = attempt(MLXLike(mlxir, "float64"), source, inputs)
    if isinstance(mine, Exception):
        if "uncaptured inputs" in str(mine):
            return "refused"  # an operation without effect gave an argument of compile back as it was
        return f"mlxir fails: {type(mine).__name__}: {str(mine)[:200]}"
    single = attempt(MLXLike(mlxir, "float32"), source, inputs)
    if isinstance(single, Exception):
        return f"mlxir fails in float32: {type(single).__name__}: {str(single)[:200]}"
    if whole and " if m.sum" not in source and "m.eval(" not in source:  # nothing is read
        built = attempt(MLXLike(mlxir, "float64"), source, inputs, True)
        if isinstance(built, Exception):
            return f"mlxir fails compiled: {type(built).__name__}: {str(built)[:200]}"
        if distance(built, mine) > 1e-9:
            return f"mlxir differs compiled: {distance(built, mine)}"
    stable = distance(single, mine) < 1e-3
    theirs = attempt(MLXLike(real, "float32"), source, inputs)
    if not all(np.isfinite(x).all() for x in mine):
        return "not finite"
    to_mlx = distance(single, theirs) if isinstance(theirs, list) else None
    same_as_mlx = to_mlx is not None and to_mlx < 2e-3
    if same_as_mlx and not with_jax:
        return "agree with mlx"
    to_jax = None
    if jax is not None:
        from_jax = attempt(JaxLike(), source, inputs)
        if isinstance(from_jax, Exception):
            return f"jax fails: {from_jax}"
        to_jax = distance(mine, from_jax)
    if to_jax is None:
        if same_as_mlx or to_mlx is None:
            return "agree with mlx" if same_as_mlx else f"nobody else runs it: {theirs}"
        return f"mlxir differs from mlx: {to_mlx}" if stable else "rounding"
    if to_jax < 1e-6:
        if same_as_mlx:
            return "agree with both"
        return "agree with jax, mlx " + ("fails" if to_mlx is None else "differs" if stable else "rounds")
    if same_as_mlx:
        return f"agree with mlx, jax differs: {to_jax}"
    return f"mlxir differs: jax {to_jax}, mlx {to_mlx}, stable {stable}"


FINE = ("agree with both", "agree with mlx", "agree with jax", "refused", "not finite", "rounding")


def main(first: int, last: int) -> None:
    """Run a range of seeds; print what disagrees and a count of the verdicts."""
    counts: collections.Counter = collections.Counter()
    begin = time.perf_counter()
    for seed in range(first, last):
        generator = Generator(seed)
        outcome = verdict(generator.source(), generator.inputs(), seed % 6 == 0, seed % 3 == 0)
        counts[outcome.partition(":")[0]] += 1
        if not outcome.startswith(FINE) or "differs:" in outcome:
            print(f"seed {seed}: {outcome}", flush=True)
        if (seed - first) % 100 == 99:
            print(f"[{seed}] {time.perf_counter() - begin:.0f} s {dict(counts)}", flush=True)
    print(f"{first} to {last}: {dict(counts)}, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
