"""Random programs over the primitives, for properties of the compiler: reproducible by seed, with tame values.

Values share subexpressions, shapes come from a small palette per program (so that operands often fit), and several
values are results.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from mlxir.compiler.graph import GraphBuilder, GraphHandle, constant, cut
from mlxir.compiler.program import Program
from mlxir.dialects.mx.record import broadcast_shapes
from mlxir.runtime.dtypes import Dtype, bool_, from_name, int32, uint32

DIMS = (1, 2, 3, 4, 5, 7, 8, 16, 33, 65)
LARGE_DIMS = (1, 2, 3, 16, 64, 100, 129, 300, 1000)
UNARY: tuple[Callable[[Any, Any], Any], ...] = (
    lambda m, x: m.tanh(x), lambda m, x: m.sigmoid(x), lambda m, x: m.sin(x), lambda m, x: -x, lambda m, x: m.abs(x),
    lambda m, x: m.exp(m.minimum(x, m.scalar(1, x.dtype))), lambda m, x: m.square(m.tanh(x)), lambda m,
    x: m.sqrt(m.abs(x) + 0.1),
    lambda m, x: m.log1p(m.abs(x)), lambda m, x: m.erf(x), lambda m, x: x * 0.5 + 1, lambda m, x: m.stop_gradient(x),
)  # fmt: skip
BINARY = ("add", "subtract", "multiply", "maximum", "minimum", "logaddexp")


class Generator:
    """Builds one program, operation by operation, from the float values made so far."""

    def __init__(self, seed: int, dtype: str, operations: int = 14, large: bool = False):
        self.rng, self.m, self.dtype = np.random.default_rng(seed), GraphBuilder(), from_name(dtype)
        self.largest = 200_000 if large else 6000
        self.palette = [int(n) for n in self.rng.choice(LARGE_DIMS if large else DIMS, 4)]
        self.inputs: list[GraphHandle] = []
        self.arrays: list[np.ndarray] = []
        self.values: list[Any] = [self.leaf(self.shape()) for _ in range(self.rng.integers(1, 4))]
        # A choice between nearly equal values may fall either way; only in float64 is that as good as impossible.
        self.choices = dtype == "float64"
        kinds = [getattr(self, n) for n in dir(self) if n.startswith("op_") and (self.choices or n[3:] not in CHOICES)]
        weights = np.array([WEIGHTS.get(k.__name__[3:], 1) for k in kinds], float)
        while operations:
            made = self.rng.choice(kinds, p=weights / weights.sum())()
            if made is not None and 0 <= prod(made.shape) <= self.largest and len(made.shape) <= 4:
                self.values.append(made)
                operations -= 1

    def program(self) -> tuple[Program, list[np.ndarray]]:
        """The program of a few of the last values, and its arguments."""
        count = min(int(self.rng.integers(1, 5)), len(self.values))
        last = self.values[-8:]
        chosen = [self.values[-1]] + [
            last[i] for i in self.rng.choice(len(last), min(count - 1, len(last)), replace=False)
        ]
        return cut([v.value for v in chosen], [x.value for x in self.inputs]).program, self.arrays

    # -- choices ------------------------------------------------------------------------------------------------------
    def shape(self) -> tuple[int, ...]:
        shape = tuple(int(self.rng.choice(self.palette)) for _ in range(self.rng.choice(4, p=(0.1, 0.2, 0.4, 0.3))))
        return shape if prod(shape) <= self.largest else shape[1:]

    def leaf(self, shape: tuple[int, ...], dtype: Dtype | None = None, high: int = 0) -> Any:
        dtype = dtype or self.dtype
        data = self.rng.integers(-high, high, shape) if high else self.rng.standard_normal(shape)
        array = np.asarray(data, dtype.numpy)
        self.arrays.append(array)
        self.inputs.append(self.m.handle(constant(array)))
        return self.inputs[-1]

    def any(self, rank: int = 0) -> Any:
        """A value of at least this rank; recent ones are likelier."""
        fit = [v for v in self.values if len(v.shape) >= rank and prod(v.shape)]
        if not fit:
            shape = tuple(int(self.rng.choice(self.palette)) for _ in range(rank))
            self.values.append(self.leaf(shape if prod(shape) <= self.largest else (3,) * rank))
            return self.values[-1]
        weights = np.arange(1, len(fit) + 1) ** 1.0
        return fit[self.rng.choice(len(fit), p=weights / weights.sum())]

    def axis(self, x: Any) -> int:
        return int(self.rng.integers(len(x.shape)))

    def axes(self, x: Any) -> tuple[int, ...]:
        """Often the last or the first axis, else any."""
        rank, kind = len(x.shape), self.rng.integers(4)
        if kind < 2:
            return (rank - 1,) if kind else (0,)
        return tuple(a for a in range(rank) if self.rng.random() < 0.5) or (self.axis(x),)

    def partner(self, x: Any) -> Any:
        """A value that broadcasts with x, or None."""
        for _ in range(6):
            y = self.any()
            try:
                broadcast_shapes("", x.shape, y.shape)
                return y
            except ValueError:
                continue
        kept = [n if self.rng.random() < 0.7 else 1 for n in x.shape]
        return self.leaf(tuple(kept[self.rng.integers(len(kept) + 1) :]))

    # -- operations ---------------------------------------------------------------------------------------------------
    def op_unary(self) -> Any:
        return UNARY[self.rng.integers(len(UNARY))](self.m, self.any())

    def op_binary(self) -> Any:
        x = self.any()
        y = self.partner(x)
        x, y = (x, y) if self.rng.random() < 0.5 else (y, x)
        return getattr(self.m, BINARY[self.rng.integers(len(BINARY))])(x, y)

    def op_divide(self) -> Any:
        x = self.any()
        return x / (self.m.abs(self.partner(x)) + 1)

    def op_select(self) -> Any:
        x = self.any()
        y = self.partner(x)
        return self.m.select(self.m.greater(x, y), self.m.tanh(x), y)

    def op_reduce(self) -> Any:
        x = self.any(1)
        axes, kind = self.axes(x), self.rng.integers(4)
        count = prod(x.shape[a] for a in axes)
        if kind == 0:
            return self.m.max(x, axes=axes)
        if kind == 1:
            return self.m.min(x, axes=axes)
        return self.m.sum(x, axes=axes) * (1 / count)

    def op_normalise(self) -> Any:
        """Reduce with kept axes, then combine with the operand."""
        x = self.any(1)
        axes = self.axes(x)
        mean = self.m.expanded(self.m.sum(x, axes=axes) * (1 / prod(x.shape[a] for a in axes)), axes)
        if self.rng.random() < 0.5:
            return x - mean
        spread = self.m.expanded(self.m.max(self.m.abs(x - mean), axes=axes), axes)
        return (x - mean) / (spread + 0.5)

    def op_softmax(self) -> Any:
        x = self.any(1)
        return getattr(self.m, "softmax" if self.rng.random() < 0.7 else "logsumexp")(x, axes=self.axes(x))

    def op_softmax_gradient(self) -> Any:
        x = self.any(1)
        axes = self.axes(x)
        out = self.m.softmax(x, axes=axes)
        return out * (x - self.m.expanded(self.m.sum(out * x, axes=axes), axes))

    def op_reshape(self) -> Any:
        x = self.any()
        rest, shape = prod(x.shape), []
        while len(shape) < 3 and rest > 1 and self.rng.random() < 0.7:
            divisors = [d for d in range(1, rest + 1) if rest % d == 0]
            shape.append(int(self.rng.choice(divisors)))
            rest //= shape[-1]
        return self.m.reshape(x, shape=(*shape, rest))

    def op_transpose(self) -> Any:
        x = self.any(2)
        return self.m.transpose(x, axes=tuple(int(a) for a in self.rng.permutation(len(x.shape))))

    def op_broadcast(self) -> Any:
        x = self.any()
        shape = tuple(int(self.rng.choice(self.palette)) if n == 1 else n for n in x.shape)
        lead = (int(self.rng.choice(self.palette)),) if self.rng.random() < 0.5 else ()
        return self.m.broadcast_to(x, shape=lead + shape) if prod(lead + shape) <= self.largest else None

    def bounds(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        start, stop, strides = [], [], []
        for n in shape:
            a, b = sorted(int(v) for v in self.rng.integers(0, n + 1, 2))
            a, b = (0, n) if self.rng.random() < 0.4 or a == b else (a, b)
            step = int(self.rng.choice((1, 1, 1, 2, 3)))
            reverse = self.rng.random() < 0.25
            start.append(b - 1 if reverse else a)
            stop.append(a - 1 if reverse else b)
            strides.append(-step if reverse else step)
        return {"start": tuple(start), "stop": tuple(stop), "strides": tuple(strides)}

    def op_slice(self) -> Any:
        x = self.any(1)
        return self.m.slice(x, **self.bounds(x.shape))

    def op_slice_update(self) -> Any:
        x = self.any(1)
        bounds = self.bounds(x.shape)
        inner = self.m.slice(x, **bounds).shape
        update = self.partner(self.m.full(value=0, shape=inner, dtype=self.dtype))
        try:
            fits = broadcast_shapes("", update.shape, inner) == inner
        except ValueError:
            fits = False
        update = update if fits else self.leaf(inner)
        return self.m.slice_update(x, self.m.broadcast(update, inner), **bounds)

    def op_pad(self) -> Any:
        x = self.any(1)
        low, high = (tuple(int(v) for v in self.rng.integers(0, 3, len(x.shape))) for _ in range(2))
        value = self.m.scalar(0.5, self.dtype) if self.rng.random() < 0.5 else self.leaf(())
        return self.m.pad(x, value, low=low, high=high)

    def op_concatenate(self) -> Any:
        x = self.any(1)
        axis = self.axis(x)
        fit = [v for v in self.values if len(v.shape) == len(x.shape) and all(
            a == b for i, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if i != axis)]  # fmt: skip
        parts = [fit[self.rng.integers(len(fit))] for _ in range(self.rng.integers(2, 4))]
        out = parts[0]
        for part in parts[1:]:
            out = self.m.concatenate(out, part, axis=axis)
        return out

    def op_matmul(self) -> Any:
        x = self.any(2)
        ta, tb = (bool(v) for v in self.rng.integers(0, 2, 2))
        k, n = x.shape[-2 if ta else -1], int(self.rng.choice(self.palette))
        fit = [v for v in self.values if len(v.shape) == 2 and v.shape[-1 if tb else -2] == k]
        w = fit[-1] if fit and self.rng.random() < 0.5 else self.leaf((n, k) if tb else (k, n))
        out = self.m.matmul(x, w, ta=ta, tb=tb) * (1 / max(k, 1))
        if self.rng.random() < 0.5:
            out = self.m.tanh(out + self.leaf((out.shape[-1],)))
        return out

    def op_gather(self) -> Any:
        x = self.any(1)
        axis, shape = self.axis(x), tuple(int(v) for v in self.rng.integers(1, 5, self.rng.integers(0, 3)))
        if self.choices and self.rng.random() < 0.3:
            index = self.m.stop_gradient(self.m.astype(self.m.argmax(x, axis=axis), dtype=int32))
            if len(index.shape) > 1 or prod(index.shape) > 40:
                return None
        else:
            index = self.leaf(shape, int32, x.shape[axis])
        sizes = tuple(1 if a == axis else n for a, n in enumerate(x.shape))
        return self.m.gather(x, index, axes=(axis,), slice_sizes=sizes)

    def op_take_along(self) -> Any:
        x = self.any(1)
        axis = self.axis(x)
        return self.m.take_along_axis(
            self.m.tanh(x), self.m.stop_gradient(self.m.argsort(self.any_like(x), axis=axis)), axis=axis
        )

    def any_like(self, x: Any) -> Any:
        fit = [v for v in self.values if v.shape == x.shape]
        return fit[self.rng.integers(len(fit))]

    def op_scatter(self) -> Any:
        x = self.any(1)
        axis, count = self.axis(x), int(self.rng.integers(1, 4))
        index = self.leaf((count,), int32, x.shape[axis])
        sizes = tuple(1 if a == axis else n for a, n in enumerate(x.shape))
        updates = self.m.broadcast(self.m.sin(self.leaf((count, *[1] * len(sizes)))), (count, *sizes))
        return self.m.scatter(x, index, updates, axes=(axis,), mode=str(self.rng.choice(("set", "add", "maximum"))))

    def op_scan(self) -> Any:
        x = self.any(1)
        reverse, inclusive = (bool(v) for v in self.rng.integers(0, 2, 2))
        return self.m.cumsum(x, axis=self.axis(x), reverse=reverse, inclusive=inclusive) * 0.1

    def op_arg(self) -> Any:
        x = self.any(1)
        index = self.m.argmin(x, axis=self.axis(x))
        return self.m.astype(self.m.remainder(index, self.m.scalar(5, uint32)), dtype=self.dtype)

    def op_sort(self) -> Any:
        x = self.any(1)
        return self.m.sort(x, axis=self.axis(x))

    def op_mask(self) -> Any:
        x = self.any(1)
        axes = self.axes(x)
        some = getattr(self.m, "any" if self.rng.random() < 0.5 else "all")(
            self.m.less(x, self.m.scalar(0.3, self.dtype)), axes=axes
        )
        assert some.dtype is bool_
        return self.m.select(self.m.expanded(some, axes), x, self.m.cos(x))

    def op_arange(self) -> Any:
        x = self.any(1)
        ramp = self.m.arange(start=0, step=1, length=x.shape[-1], dtype=self.dtype)
        return x + ramp * 0.01


CHOICES = ("take_along", "sort", "arg", "mask", "select")
WEIGHTS = {
    "unary": 6,
    "binary": 6,
    "reduce": 4,
    "normalise": 3,
    "softmax": 2,
    "matmul": 2,
    "reshape": 2,
    "slice": 2,
    "sort": 0.3,
}


def random_program(
    seed: int, dtype: str, operations: int = 14, large: bool = False
) -> tuple[Program, list[np.ndarray]]:
    """A program and arguments for it."""
    return Generator(seed, dtype, operations, large).program()
