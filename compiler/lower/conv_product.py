"""What a convolution kernel computes, as scalars, and its plain form: one loop over the elements of the output."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.gemm_product import Contraction, StepBuilder
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx.conv import Axis, axes_of, conv
from mlxir.runtime.errors import CompileError

RANK = 3  # spatial axes: fewer are filled up in front by axes of length 1
_UNIT = Axis(size=1, taps=1, stride=1, low=0, high=0, dilation=1, input_dilation=1)


def _index(var: Var) -> Index:
    """A variable of extent 1 is always 0: index arithmetic then simplifies."""
    return Index.of(var) if var.extent != 1 else Index.of(0)


class Convolution(Contraction):
    """A kernel with one convolution: output element (n, o, g, c) sums over taps k and channels q of group g.

    n, g, c, q, the outputs o, the places p in x and the taps k (in the order in which they are applied) are variables.
    """

    def __init__(self, function: Function):
        super().__init__(function, conv)
        (self.x, self.w), attrs = self.op.operands, self.op.attrs
        axes = axes_of(self.x.shape, self.w.shape, attrs)
        self.rank, self.axes = len(axes), [_UNIT] * (RANK - len(axes)) + axes
        self.groups, self.outs, self.depth = attrs["groups"], self.w.shape[0] // attrs["groups"], self.w.shape[-1]
        self.flip = attrs["flip"]
        self.n, self.g = Var("n", self.x.shape[0]), Var("g", self.groups)
        self.c, self.q = Var("c", self.outs), Var("q", self.depth)
        self.o = [Var(f"o{i}", a.outputs) for i, a in enumerate(self.axes)]
        self.p = [Var(f"p{i}", a.size) for i, a in enumerate(self.axes)]
        self.k = [Var(f"k{i}", a.taps) for i, a in enumerate(self.axes)]
        if self.empty:
            return
        position = Index.of(0)
        for v in (self.n, *self.o, self.g, self.c):
            position = position * v.extent + _index(v)
        self.results_at(position)

    @property
    def terms(self) -> int:
        """How many products each element sums."""
        return prod(a.taps for a in self.axes) * self.depth

    def source_at(self, places: Sequence[Index]) -> Scalar:
        channel = _index(self.g) * self.depth + _index(self.q)
        return self.pull.at(self.x, (_index(self.n), *places[RANK - self.rank :], channel))

    @property
    def source(self) -> Scalar:
        """The element of x at places p of the spatial axes, for n, g and q."""
        return self.source_at([_index(p) for p in self.p])

    def weight_at(self, taps: Sequence[Index]) -> Scalar:
        """The element of w that is applied `taps`-th; one index per axis."""
        order = [k.extent - 1 - t if self.flip else t for k, t in zip(self.k, taps, strict=True)]
        channel = _index(self.g) * self.outs + _index(self.c)
        return self.pull.at(self.w, (channel, *order[RANK - self.rank :], _index(self.q)))

    def padded_source(self) -> Scalar:
        """The element of x that output o reads at tap k, or zero in gaps and outside."""
        graph, inside, places = self.pull.graph, self.pull.graph.true(), []
        for a, o, k in zip(self.axes, self.o, self.k, strict=True):
            place = _index(o) * a.stride + _index(k) * a.dilation - a.low
            inside = inside & graph.in_range(place, 0, a.dilated)
            if a.input_dilation > 1:
                inside = inside & graph.equals(place % a.input_dilation, 0)
            places.append(place // a.input_dilation)
        return graph.where(inside, lambda: self.source_at(places), lambda: graph.constant(0, self.x.dtype))


def lower_conv_simple(function: Function, body: ir.Block) -> Lowered:
    """The kernel as one loop over the elements of the output with loops over taps and channels inside."""
    with context, ir.Location.unknown():
        return lower_plain(Convolution(function), body)


def lower_plain(product: Convolution, body: ir.Block) -> Lowered:
    """See `lower_conv_simple`. Raises CompileError where the product has no elements but a result has some."""
    if product.empty:
        if any(t.aval.size for t in product.results):
            raise CompileError("[lower] a convolution without elements cannot be fused with results that have some")
        return Lowered([], [])
    builder, kept, graph = StepBuilder(product, body), product.sum_dtype, product.pull.graph
    if product.terms:
        left, right = product.padded_source(), product.weight_at([_index(k) for k in product.k])
    else:
        left = right = graph.constant(0, product.x.dtype)
    loops = [*product.k, product.q]

    def emit(e: VectorEmitter) -> tuple[int, float]:
        def nest(level: int, total: Reg) -> Reg:
            if level == len(loops):
                a, b = (Reg(e.value(x).value, kept, e.k) for x in (left, right))
                return e.k.fma(a, b, total)
            if loops[level].extent == 1:
                return nest(level + 1, total)
            extent = e.constant_index(loops[level].extent)
            return e.serial(loops[level], extent, [total], lambda sums: [nest(level + 1, sums[0])])[0]

        def element() -> None:
            total = nest(0, e.k.const(0, kept))
            e.scopes[-1][id(product.accumulator)] = Reg(total.value, product.dtype, e.k)
            for root in product.roots:
                e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))

        over(e, [product.n, *product.o, product.g, product.c], element)
        per_step = left.cost + right.cost + 2
        return product.tensor.aval.size, float(product.terms * per_step + sum(r.node.cost for r in product.roots))

    nodes = [left, right, *[r.node for r in product.roots]]
    builder.add("", nodes, [], [r.buffer for r in product.roots], emit)
    return builder.finish()
