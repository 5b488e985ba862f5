"""Records: everything that is known about a primitive, beside its name.

A record says how shapes and dtypes follow from the operands, how to differentiate and batch the primitive, how to lower
it
and how NumPy computes it. A *kind* (a class below, or in `kinds.py`) derives most of that from the little that is
particular to the primitive.

Rules (`jvp`, `vjp`, `vmap`, `decompose`) are written against a builder `m` of `mx` operations (`OpBuilder`): `m.sin(x)`
emits one operation and returns a handle with `.shape`, `.dtype` and the usual operators. The same rules thus run in
every pass.

Lowering comes in one of five forms, named by `Primitive.lowering`:

    element   the value at one index, from the operands' values at indices   (fuses with everything)
    reduce    a combine over some axes                                       (fuses as the loop of a kernel)
    kernel    loops of its own, written in compiler/lower (matmul, scan, sort, scatter)
    library   a step that the host runs through the reference implementation (FFT, LAPACK, ...)
    alias     no code: the result is the operand, in its place (depends)

A composite has none: a pass replaces it by its decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import RuleNotImplementedError, ShapeError

Shape = tuple[int, ...]
Attrs = dict[str, Any]


class Aval(NamedTuple):
    """An abstract value: what is known of an array while tracing."""

    shape: Shape
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)


RECORDS: dict[str, Primitive] = {}


class Primitive:
    """Base of all kinds; subclasses override what they derive. Instances register themselves under their name."""

    kind = "primitive"
    lowering: str | None = None
    operands: tuple[str, ...] = ("x",)  # names; one starting with * stands for any number of operands of one type
    outputs: tuple[str, ...] = ("out",)  # names of the results
    data: str = ""  # the attribute that is the value of every element: an operand would do as well
    updates: bool = False  # whether the result is a copy of the first operand but for what `writes` says
    direct: tuple[int, ...] = ()  # of a composite's kernel: operands that must lie in memory, the others it may compute
    element: Any  # what single kinds add; `lowering` and `kind` say which
    decompose: Any
    writes: Any  # of one that updates, on NumPy arrays: (where the copy is written to, with what)
    put: Any  # writes that into an array
    combine: Any
    init: Any
    better: Any
    no_jvp: str = ""  # reason for which a rule is absent on purpose; shown in the coverage table
    no_vjp: str = ""
    no_vmap: str = ""

    def __init__(self, name: str, attrs: Sequence[str] = ()):
        if name in RECORDS:
            raise ValueError(f"primitive {name!r} is recorded twice")
        self.name = name
        self.attrs = tuple(attrs)
        RECORDS[name] = self

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    # -- what a kind or a record provides -------------------------------------------------------------------------
    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        """Shapes and dtypes of the results. Raises ValueError/ShapeError for operands that do not fit."""
        raise NotImplementedError(f"{self.name} has no shape rule")

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        """The results by NumPy. The evaluator casts each to the inferred dtype."""
        raise NotImplementedError(f"{self.name} has no reference")

    def jvp(self, m: OpBuilder, primals: list[Any], tangents: list[Any], outs: list[Any], **attrs: Any) -> list[Any]:
        """Tangents of the results; a symbolic zero is None, on the way in as on the way out."""
        raise RuleNotImplementedError(f"[{self.name}::jvp] Not implemented for {self.name}")

    def vjp(self, m: OpBuilder, primals: list[Any], cts: list[Any], outs: list[Any], **attrs: Any) -> list[Any]:
        """Cotangents of the operands from those of the results (None = zero)."""
        raise RuleNotImplementedError(f"[{self.name}::vjp] Not implemented for {self.name}")

    def vmap(
        self, m: OpBuilder, size: int, args: list[Any], batched: list[bool], **attrs: Any
    ) -> tuple[list, list[bool]]:
        """Batched results. A batched operand carries its batch axis, of length `size`, in front; so does a batched
        result.
        """
        raise RuleNotImplementedError(f"[{self.name}::vmap] Not implemented for {self.name}")

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        """The arithmetic of one evaluation as profiles count it: an operation per element, whatever it is."""
        return sum(r.size for r in results)

    # -- the coverage table ---------------------------------------------------------------------------------------
    def coverage(self) -> dict[str, str]:
        """Cell by cell: "yes", or the reason for which a rule is absent, or "" for an unexplained hole."""

        def has(rule: str, reason: str = "") -> str:
            return "yes" if getattr(type(self), rule) is not getattr(Primitive, rule) else reason

        lowered = self.lowering or ("composite" if self.kind == "composite" else "")
        return {
            "kind": self.kind,
            "shape": has("infer"),
            "jvp": self.no_jvp or has("jvp"),
            "vjp": self.no_vjp or has("vjp"),
            "vmap": self.no_vmap or has("vmap"),
            "cpu": lowered,
            "metal": {"library": "host step"}.get(lowered, lowered),
            "reference": has("reference"),
        }


class OpBuilder:
    """Emits primitives: `m.sin(x)` is `m.emit(RECORDS["sin"], [x], {})`. Passes and tracers implement `emit`."""

    def emit(self, record: Primitive, operands: list[Any], attrs: Attrs) -> list[Any]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        record = RECORDS.get(name.rstrip("_"))
        if record is None:
            raise AttributeError(f"no primitive is called {name!r}")

        def call(*operands: Any, **attrs: Any) -> Any:
            results = self.emit(record, list(operands), attrs)
            return results[0] if len(results) == 1 else results

        setattr(self, name, call)
        return call

    # -- functions of the module, for the rules of calls ------------------------------------------------------------
    def derived(self, transform: str, callee: str, **attrs: Any) -> str:
        """The name of the function that a transform (`vjp`, `jvp`, `vmap`, with its attributes) makes of `callee`."""
        raise NotImplementedError

    def inlined(self, callee: str, operands: Sequence[Any]) -> list[Any]:
        """The results of a function at `operands`, by emitting its operations."""
        raise NotImplementedError

    def parameter_avals(self, callee: str) -> list[Aval]:
        """The types of a function's parameters."""
        raise NotImplementedError

    def result_avals(self, callee: str) -> list[Aval]:
        """The types of a function's results."""
        raise NotImplementedError

    # -- small conveniences of rules, all in terms of primitives ----------------------------------------------------
    def scalar(self, value: Any, dtype: Dtype) -> Any:
        """A rank-0 constant."""
        return self.full(value=value, shape=(), dtype=dtype)

    def zeros(self, like: Any) -> Any:
        return self.full(value=0, shape=tuple(like.shape), dtype=like.dtype)

    def cast(self, x: Any, dtype: Dtype) -> Any:
        return x if x.dtype is dtype else self.astype(x, dtype=dtype)

    def broadcast(self, x: Any, shape: Shape) -> Any:
        return x if tuple(x.shape) == tuple(shape) else self.broadcast_to(x, shape=tuple(shape))

    def reshaped(self, x: Any, shape: Shape) -> Any:
        return x if tuple(x.shape) == tuple(shape) else self.reshape(x, shape=tuple(shape))

    def permuted(self, x: Any, axes: Sequence[int]) -> Any:
        return x if list(axes) == list(range(len(axes))) else self.transpose(x, axes=tuple(axes))

    def moved(self, x: Any, source: int, destination: int) -> Any:
        order = [i for i in range(len(x.shape)) if i != source]
        order.insert(destination, source)
        return self.permuted(x, order)

    def conjugated(self, x: Any) -> Any:
        """What a cotangent is multiplied by where the derivative is `x` (BEHAVIOUR section 4)."""
        return self.conjugate(x) if x.dtype.kind == "c" else x

    def unbroadcast(self, x: Any, shape: Shape) -> Any:
        """The transpose of broadcasting: sum `x` down to `shape`."""
        if tuple(x.shape) == tuple(shape):
            return x
        lead = len(x.shape) - len(shape)
        axes = tuple(range(lead)) + tuple(
            lead + i for i, n in enumerate(shape) if n == 1 and x.shape[lead + i] != 1
        )  # fmt: skip
        return self.reshaped(self.sum(x, axes=axes), shape) if axes else self.reshaped(x, shape)

    def expanded(self, x: Any, axes: Sequence[int]) -> Any:
        """`x` with axes of length 1 inserted at the (final) positions `axes`."""
        shape = list(x.shape)
        for axis in sorted(axes):
            shape.insert(axis, 1)
        return self.reshaped(x, tuple(shape))

    def batch_aligned(self, size: int, args: list[Any], batched: list[bool]) -> list[Any]:
        """Operands of one vmapped operation that broadcasts: batch axes in front of equally many others."""
        rank = max(len(a.shape) - b for a, b in zip(args, batched, strict=True))
        return [
            self.reshaped(a, (size,) + (1,) * (rank + 1 - len(a.shape)) + tuple(a.shape[1:])) if b else a
            for a, b in zip(args, batched, strict=True)
        ]

    def add_any(self, a: Any, b: Any) -> Any:
        """Sum of two tangents or cotangents of which either may be a symbolic zero."""
        if a is None or b is None:
            return b if a is None else a
        return self.add(a, b)


class Operators:
    """Operators of a handle: mixed into every value that rules compute with. `self.m` is its builder."""

    m: OpBuilder
    shape: Shape
    dtype: Dtype
    active: bool = True  # False where reverse mode needs no cotangent of this value: a rule may skip the work

    def _pair(self, other: Any) -> Any:
        return other if isinstance(other, Operators) else self.m.scalar(other, self.dtype)

    def __add__(self, other: Any) -> Any:
        return self.m.add(self, self._pair(other))

    def __radd__(self, other: Any) -> Any:
        return self.m.add(self._pair(other), self)

    def __sub__(self, other: Any) -> Any:
        return self.m.subtract(self, self._pair(other))

    def __rsub__(self, other: Any) -> Any:
        return self.m.subtract(self._pair(other), self)

    def __mul__(self, other: Any) -> Any:
        return self.m.multiply(self, self._pair(other))

    def __rmul__(self, other: Any) -> Any:
        return self.m.multiply(self._pair(other), self)

    def __truediv__(self, other: Any) -> Any:
        return self.m.divide(self, self._pair(other))

    def __rtruediv__(self, other: Any) -> Any:
        return self.m.divide(self._pair(other), self)

    def __neg__(self) -> Any:
        return self.m.negative(self)


def broadcast_shapes(name: str, *shapes: Shape) -> Shape:
    """NumPy's broadcasting rule. Raises ShapeError naming all shapes and the operation."""
    first = shapes[0]
    if all(len(s) == len(first) and s == first for s in shapes):
        return first
    out: list[int] = []
    for i in range(-max(map(len, shapes)), 0):
        size = None
        # Sizes may be symbolic: each comparison is one that decides.
        for n in [s[i] for s in shapes if len(s) >= -i]:
            if n is size or n == 1:
                continue
            if size is not None and n != size:
                texts = [f"({','.join(map(str, s))})" for s in shapes]
                raise ShapeError(f"[broadcast_shapes] Shapes {' and '.join(texts)} cannot be broadcast in {name}.")
            size = n
        out.append(1 if size is None else size)
    return tuple(out)


def normalize_axis(name: str, axis: int, ndim: int) -> int:
    """A non-negative axis. Raises ShapeError where it is out of range."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"[{name}] Invalid axis {axis} for array with {ndim} dimensions.")
    return axis + ndim if axis < 0 else axis
