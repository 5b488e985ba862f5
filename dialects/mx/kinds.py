"""The kinds: how the rules of a primitive follow from the little its author writes (DESIGN section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxir.runtime.dtypes import Dtype, bool_
from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive, Shape, broadcast_shapes

Partial = Callable[..., Any]


class Elementwise(Primitive):
    """`out[i] = body(x[i], y[i], ...)` with NumPy broadcasting; operands share a dtype unless `result` says otherwise.

    `partials[j](m, g, out, *operands, **attrs)` is `g * d out / d operand_j` for any `g`: the same line gives jvp and
    vjp.
    For holomorphic functions of complex numbers the cotangent is multiplied by the conjugate (BEHAVIOUR section 4);
    `real_linear`
    marks functions whose derivative is a symmetric map of (Re, Im) instead: there the line serves as it is.
    `body(k, *scalars, **attrs)` computes one element with the scalar builder of the kernels.
    """

    kind = "elementwise"
    lowering = "element"

    def __init__(
        self,
        name: str,
        arity: int,
        body: Callable[..., Any],
        reference: Callable[..., Any],
        partials: Sequence[Partial | None] = (),
        attrs: Sequence[str] = (),
        result: Callable[..., Dtype] | Dtype | None = None,
        accepts: Callable[..., bool] | None = None,
        flat: bool = False,
        costly: bool = False,
        real_linear: bool = False,
    ):
        super().__init__(name, attrs)
        self.operands = ("x", "y", "z")[:arity]
        self.arity, self.body, self._reference, self.partials = arity, body, reference, tuple(partials)
        self.result, self.accepts, self.costly, self.real_linear = result, accepts, costly, real_linear
        if not partials:
            self.no_jvp = self.no_vjp = "flat" if flat else "no derivative"
        self.differentiable = bool(partials)

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        if len(avals) != self.arity:
            raise ValueError(f"[{self.name}] takes {self.arity} operands, got {len(avals)}")
        dtypes = [a.dtype for a in avals]
        if self.accepts is not None:
            if not self.accepts(*dtypes):
                raise ValueError(
                    f"[{self.name}] does not support operands of dtype {', '.join(d.name for d in dtypes)}"
                )
        elif any(d is not dtypes[0] for d in dtypes):
            raise ValueError(
                f"[{self.name}] operands have dtypes {', '.join(d.name for d in dtypes)}; cast them to one"
            )
        result = self.result
        dtype = dtypes[0] if result is None else result if isinstance(result, Dtype) else result(*dtypes, **attrs)
        return (Aval(broadcast_shapes(self.name, *(a.shape for a in avals)), dtype),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (self._reference(*arrays, **attrs),)

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        total = None
        for partial, tangent in zip(self.partials, tangents, strict=False):
            if partial is not None and tangent is not None:
                total = m.add_any(total, partial(m, tangent, outs[0], *primals, **attrs))
        if total is None:
            return [None]
        return [m.broadcast(m.cast(total, outs[0].dtype), outs[0].shape)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (ct,) = cts
        grads: list[Any] = []
        for i, primal in enumerate(primals):
            partial = self.partials[i] if i < len(self.partials) else None
            if partial is None or ct is None or not primal.active:
                grads.append(None)
                continue
            if primal.dtype.kind == "c" and ct.dtype.kind == "c" and not self.real_linear:
                g = m.conjugate(partial(m, m.conjugate(ct), outs[0], *primals, **attrs))
            else:
                g = partial(m, ct, outs[0], *primals, **attrs)
            grads.append(m.unbroadcast(m.cast(g, primal.dtype), primal.shape))
        return grads

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, m.batch_aligned(size, args, batched), attrs), [True]


class Structural(Primitive):
    """Moves elements without computing: linear, so its jvp is itself on the tangent and only the transpose is written.

    `shape(aval, **attrs)` gives the result shape, `index(e, idx, **attrs)` the operand's index of a result index (`e`
    holds
    the operand's aval and index arithmetic), `transpose(m, ct, aval, **attrs)` the cotangent, `batch(**attrs)` the
    attributes of the batched operation.
    """

    kind = "structural"
    lowering = "element"
    costly = False

    def __init__(
        self,
        name: str,
        attrs: Sequence[str],
        shape: Callable[..., Shape],
        index: Callable[..., tuple],
        reference: Callable[..., np.ndarray],
        transpose: Callable[..., Any],
        batch: Callable[..., dict],
    ):
        super().__init__(name, attrs)
        self.shape, self.index, self._reference, self.transpose, self.batch = shape, index, reference, transpose, batch

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        return (Aval(tuple(self.shape(avals[0], **attrs)), avals[0].dtype),)

    def element(self, e: Any, idx: tuple, operands: Sequence[Any], **attrs: Any) -> Any:
        (x,) = operands
        return x(self.index(x.aval, idx, **attrs))

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (self._reference(arrays[0], **attrs),)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return 0

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        return m.emit(self, [tangents[0]], attrs) if tangents[0] is not None else [None]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None:
            return [None]
        return [self.transpose(m, cts[0], Aval(tuple(primals[0].shape), primals[0].dtype), **attrs)]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, self.batch(Aval(tuple(args[0].shape), args[0].dtype), **attrs)), [True]


class Reduction(Primitive):
    """A combine over `axes`, which are dropped from the shape.

    `combine(k, a, b)` and `init(numpy dtype)` define the loop; `transpose`-like rules are written per record since max,
    prod and
    sum share nothing: `backward(m, ct, out, x, axes)` and `forward(m, t, out, x, axes)`.
    """

    kind = "reduction"
    lowering = "reduce"

    def __init__(
        self,
        name: str,
        combine: Callable[..., Any],
        init: Callable[[np.dtype], Any],
        reference: Callable[..., Any],
        result: Callable[[Dtype], Dtype] | None = None,
        backward: Callable[..., Any] | None = None,
        forward: Callable[..., Any] | None = None,
    ):
        super().__init__(name, ("axes",))
        self.combine, self.init, self._reference = combine, init, reference
        self.result, self.backward, self.forward = result, backward, forward
        if backward is None:
            self.no_jvp = self.no_vjp = "no derivative"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x,) = avals
        axes = attrs["axes"]
        if len(set(axes)) != len(axes) or any(not 0 <= a < x.ndim for a in axes):
            raise ShapeError(f"[{self.name}] axes {axes} do not fit an array of shape {x.shape}")
        dtype = self.result(x.dtype) if self.result else x.dtype
        return (Aval(tuple(n for i, n in enumerate(x.shape) if i not in axes), dtype),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        return (self._reference(arrays[0], tuple(attrs["axes"])),)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return operands[0].size

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        if tangents[0] is None or self.forward is None:
            return [None]
        return [m.cast(self.forward(m, tangents[0], outs[0], primals[0], **attrs), outs[0].dtype)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        if cts[0] is None or self.backward is None:
            return [None]
        x = primals[0]
        return [m.cast(self.backward(m, cts[0], outs[0], x, **attrs), x.dtype)]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        return m.emit(self, args, {**attrs, "axes": tuple(a + 1 for a in attrs["axes"])}), [True]


class Composite(Primitive):
    """Stands for other primitives: `decompose(m, *operands, **attrs)`; everything else follows from that.

    A record may still carry a `reference`, where a direct one is clearer than the decomposition.
    """

    kind = "composite"

    def __init__(self, name: str, decompose: Callable[..., Any], infer: Callable[..., Any], attrs: Sequence[str] = ()):
        super().__init__(name, attrs)
        self._decompose, self._infer = decompose, infer

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        out = self._infer(*avals, **attrs)
        return (out,) if isinstance(out, Aval) else tuple(out)

    def decompose(self, m: OpBuilder, *operands: Any, **attrs: Any) -> list[Any]:
        out = self._decompose(m, *operands, **attrs)
        return list(out) if isinstance(out, (list, tuple)) else [out]

    def coverage(self) -> dict[str, str]:
        derived = dict.fromkeys(("shape", "jvp", "vjp", "vmap", "cpu", "metal", "reference"), "composite")
        return {"kind": self.kind, **derived}


def compare(name: str, body: Callable, reference: Callable) -> Elementwise:
    """A comparison: two operands of one dtype give bool; it is flat, so it has no derivative."""
    return Elementwise(name, 2, body, reference, result=bool_, flat=True)
