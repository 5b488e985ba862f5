"""Products of matrices for a GPU: tiles in threadgroup memory that SIMD-groups multiply.

    scf.parallel (%tile)                                   batch x parts of K x row tiles x column tiles
      %subgroup = gpu.subgroup_id
      scf.for (%panel) iter_args(fragments of C)           16 steps along K
        scf.parallel (%n) { tile of a <- left operand }    any index map, computed operands; zeros outside
        scf.parallel (%n) { tile of b <- right operand }
        scf.for (%k) { gpu.subgroup_mma_load_matrix; gpu.subgroup_mma_compute }
      gpu.subgroup_mma_store_matrix -> scratch
      scf.parallel (%n) { bias, activation, casts -> results }

Where there are few tiles and K is long, K is cut into parts whose sums a second step adds. Skinny products have no use
for tiles: each element is a reduction over K if both operands lie along K, else a loop over a part of K. Sums are
float32 for 2-byte floats. A convolution is such a product, too: rows are outputs, K runs over taps and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as pairs
from math import prod
from typing import Any, NamedTuple

from mlxir.compiler.lower.builder import INDEX, Reg, storage_type
from mlxir.compiler.lower.conv_product import Convolution, lower_plain
from mlxir.compiler.lower.gemm import lower_simple
from mlxir.compiler.lower.gemm_product import Contraction, Product, Root, StepBuilder
from mlxir.compiler.lower.index import Index, Var, delinearize
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.scalars import Scalar, reachable, substitute
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx.reduce import sum_
from mlxir.runtime.dtypes import Dtype, float16, float32

FRAGMENT = 8  # rows and columns of what a SIMD-group multiplies at once
STEP = 16  # along K between two barriers
SIDES = 2  # SIMD-groups along the rows of a tile, and along its columns
BAND = 2  # rows of fragments of a SIMD-group that are written to scratch at once
PADDING = 16  # bytes between the rows of a tile: neighbouring rows then lie in different banks
SMALL = 1 << 11  # multiply-adds up to which tiles do not pay
SKINNY = 8  # rows or columns below which tiles would be mostly zeros
FEW_TILES, LONG = 64, 512  # K is cut below so many tiles, into parts of at least so many steps
FEW_THREADS = 1 << 13
MOST_PARTS = 32


class Matrices(NamedTuple):
    """A contraction as left[b, i, k] * right[b, k, j]; its results are computed over b, i and j."""

    product: Contraction
    b: Var
    i: Var
    j: Var
    k: Var
    left: Scalar
    right: Scalar
    accumulator: Scalar
    roots: list[Root]

    @property
    def elements(self) -> int:
        return self.b.extent * self.i.extent * self.j.extent

    @property
    def position(self) -> Index:
        return (Index.of(self.b) * self.i.extent + self.i) * self.j.extent + self.j


def lower_matmul_subgroups(function: Function, body: ir.Block) -> Lowered:
    """Lower a kernel with one matmul into the module whose body block is given, for a GPU."""
    with context, ir.Location.unknown():
        p = Product(function)
        if p.empty or p.sum_dtype is not float32 or p.tensor.aval.size * p.k.extent <= SMALL:
            return lower_simple(p, body)
        made = Matrices(p, p.b, p.i, p.j, p.k, p.left, p.right, p.accumulator, p.roots)
        return _lower(made, body)


def lower_conv_subgroups(function: Function, body: ir.Block) -> Lowered:
    """The same for a kernel with one convolution."""
    with context, ir.Location.unknown():
        p = Convolution(function)
        if p.empty or p.sum_dtype is not float32 or p.tensor.aval.size * p.terms <= SMALL:
            return lower_plain(p, body)
        return _lower(_convolution(p), body)


def _convolution(p: Convolution) -> Matrices:
    """Rows are the outputs of all images, columns the channels of a group, K the taps with their channels."""
    rows = Var("i", p.n.extent * prod(o.extent for o in p.o))
    depth = Var("k", p.terms)
    spread = (([p.n, *p.o], rows), ([*p.k, p.q], depth))
    mapping = {}
    for variables, flat in spread:
        for v, at in zip(variables, delinearize(Index.of(flat), tuple(v.extent for v in variables)), strict=True):
            mapping[v] = at
    weight = p.weight_at([Index.of(k) if k.extent != 1 else Index.of(0) for k in p.k])
    nodes = [p.padded_source(), weight, p.accumulator, *[r.node for r in p.roots]]
    left, right, accumulator, *results = substitute(p.pull.graph, nodes, mapping, {})
    roots = [
        Root(node, r.position.substitute(mapping), r.buffer) for node, r in zip(results, p.roots, strict=True)
    ]
    return Matrices(p, p.g, rows, p.c, depth, left, right, accumulator, roots)


def _lower(m: Matrices, body: ir.Block) -> Lowered:
    steps = StepBuilder(m.product, body)
    if min(m.i.extent, m.j.extent) >= SKINNY:
        tiles = _Tiles(m)
        parts = _parts(m, tiles.count, FEW_TILES)
        _in_parts(m, steps, parts, tiles.emit)
    elif _along(m.left, m.k) and _along(m.right, m.k):
        _add(m, steps, "", m.roots, lambda e: _dots(e, m))
    else:
        parts = _parts(m, m.elements, FEW_THREADS)
        _in_parts(m, steps, parts, lambda e, roots, part: _columns(e, m, roots, part))
    return steps.finish()


def _index(v: Var) -> Index:
    """A variable of extent 1 is always 0."""
    return Index.of(v) if v.extent != 1 else Index.of(0)


def _along(node: Scalar, v: Var) -> bool:
    """Whether neighbours along a variable are neighbours in memory."""
    return any(n.kind == "load" and n.data[1].coefficient(v) == 1 for n in reachable([node]))


# -- parts of K ------------------------------------------------------------------------------------------------------
def _parts(m: Matrices, independent: int, enough: int) -> int:
    """Into how many parts K is cut so that there is work for the whole GPU."""
    return max(1, min(-(-enough // independent), m.k.extent // LONG, MOST_PARTS))


Emit = Callable[[VectorEmitter, Sequence[Root], Var], tuple[int, float]]


def _add(m: Matrices, steps: StepBuilder, suffix: str, roots: Sequence[Root],
         emit: Callable[[VectorEmitter], tuple[int, float]]) -> None:  # fmt: skip
    steps.add(suffix, [m.left, m.right, *[r.node for r in roots]], [], [r.buffer for r in roots], emit)


def _in_parts(m: Matrices, steps: StepBuilder, parts: int, emit: Emit) -> None:
    """The product in one step; or its sums over each part of K, and a step that adds them."""
    part = Var("part", parts)
    if parts == 1:
        _add(m, steps, "", m.roots, lambda e: emit(e, m.roots, part))
        return
    sums = steps.temporary(parts * m.elements, float32)
    partial = Root(m.accumulator, Index.of(part) * m.elements + m.position, sums)
    _add(m, steps, "_parts", [partial], lambda e: emit(e, [partial], part))
    read = m.product.pull.graph.load(sums, partial.position, float32)

    def total(e: VectorEmitter) -> tuple[int, float]:
        def element() -> None:
            start = e.k.const(0, float32)
            (value,) = e.serial(part, e.constant_index(parts), [start], lambda s: [s[0] + e.value(read)])
            _finish(e, m.accumulator, value, m.product.dtype, m.roots)

        return over(e, [m.b, m.i, m.j], element), float(parts)

    steps.add("", [r.node for r in m.roots], [sums], [r.buffer for r in m.roots], total)


def _finish(e: VectorEmitter, accumulator: Scalar, total: Reg, dtype: Dtype, roots: Sequence[Root]) -> None:
    """What follows the product, for one element: `total`, taken as `dtype`."""
    e.scopes[-1][id(accumulator)] = Reg(total.value, dtype, e.k)
    for root in roots:
        e.k.store(e.value(root.node), e.buffers[root.buffer], e.index(root.position))


# -- skinny products -------------------------------------------------------------------------------------------------
def _term(e: VectorEmitter, m: Matrices) -> tuple[Reg, Reg]:
    """The factors of the current step along K."""
    a, b = (Reg(e.value(x).value, float32, e.k) for x in (m.left, m.right))
    return a, b


def _dots(e: VectorEmitter, m: Matrices) -> tuple[int, float]:
    """An element is the sum of products along K, where both operands lie."""

    def element() -> None:
        def term() -> list[Reg]:
            a, b = _term(e, m)
            return [a * b]

        (total,) = e.folded(sum_, m.k, m.k.extent, float32, term)
        _finish(e, m.accumulator, total, m.product.dtype, m.roots)

    return over(e, [m.b, m.i, m.j], element), float(m.k.extent)


def _columns(e: VectorEmitter, m: Matrices, roots: Sequence[Root], part: Var) -> tuple[int, float]:
    """An element is a loop over a part of K; neighbouring elements read neighbours in memory."""
    length = -(-m.k.extent // part.extent)
    local = Var("step", length)

    def element() -> None:
        first = e.times(e.variables[part], length)
        count = e.rest(m.k.extent, first, length) if m.k.extent % length else length

        def add(total: list[Reg]) -> list[Reg]:
            e.variables[m.k] = e.plus(first, e.variables[local])
            return [e.k.fma(*_term(e, m), total[0])]

        (total,) = e.rolled(local, count, [e.k.const(0, float32)], add)
        _finish(e, m.accumulator, total, m.product.dtype if part.extent == 1 else float32, roots)

    return over(e, [m.b, part, m.i, m.j], element), float(length)


# -- tiles -----------------------------------------------------------------------------------------------------------
class _Side:
    """The tile of one operand: `size` lanes (rows of a, columns of b) by STEP, in the order in which memory has them.
    """

    def __init__(self, node: Scalar, lane: Var, depth: Var, size: int, dtype: Dtype, start: int):
        self.node, self.lane, self.depth, self.size, self.dtype = node, lane, depth, size, dtype
        self.lanes_first = _along(node, lane)
        self.stride = (size if self.lanes_first else STEP) + PADDING // dtype.size
        self.start = start
        self.end = start + (STEP if self.lanes_first else size) * self.stride

    def at(self, lane: Index, deep: Index) -> Index:
        """Where an element lies in scratch."""
        return (deep * self.stride + lane if self.lanes_first else lane * self.stride + deep) + self.start

    def fill(self, e: VectorEmitter, m: Matrices, scratch: ir.Value, first: Index, deep: Index) -> None:
        """The tile from lane `first` and from step `deep` on; zeros outside of the matrix."""
        n, graph = Var(f"n{self.size}", self.size * STEP), m.product.pull.graph
        local = (Index.of(n) % self.size, Index.of(n) // self.size)
        if not self.lanes_first:
            local = (Index.of(n) // STEP, Index.of(n) % STEP)
        mapping = {self.lane: first + local[0], self.depth: deep + local[1]}
        inside = graph.in_range(mapping[self.lane], 0, self.lane.extent)
        inside &= graph.in_range(mapping[self.depth], 0, self.depth.extent)
        value = graph.where(
            inside,
            lambda: substitute(graph, [self.node], mapping, {})[0],
            lambda: graph.constant(0, self.node.dtype),
        )

        def element() -> None:
            e.k.store(Reg(e.value(value).value, self.dtype, e.k), scratch, e.index(self.at(*local)))

        e.lanes(n, n.extent, element)

    def fragment(self, e: VectorEmitter, scratch: ir.Value, lane: Index, deep: Index, role: str) -> ir.Value:
        """The 8x8 elements from there on; rows are lanes in the role of a, steps in that of b."""
        turned = {"transpose": ir.UnitAttr.get()} if self.lanes_first == (role == "AOp") else {}
        type_ = fragment_type(self.dtype, role)
        return mma(e, "load_matrix", [scratch, e.index(self.at(lane, deep))], type_, self.stride, **turned)


def fragment_type(dtype: Dtype, role: str) -> ir.Type:
    return ir.Type.parse(f'!gpu.mma_matrix<{FRAGMENT}x{FRAGMENT}x{storage_type(dtype)}, "{role}">')


def mma(e: VectorEmitter, name: str, operands: Sequence[ir.Value], type_: ir.Type | None = None,
         stride: int | None = None, **attributes: Any) -> ir.Value:  # fmt: skip
    if stride is not None:
        attributes["leadDimension"] = ir.IntegerAttr.get(INDEX, stride)
    return e.k.op(f"gpu.subgroup_mma_{name}", operands, type_, **attributes)


class _Tiles:
    """The product by tiles, one per threadgroup; each SIMD-group has a quarter of the tile as fragments."""

    def __init__(self, m: Matrices):
        self.m = m
        self.rows, self.columns = (64 if v.extent > 32 else 32 for v in (m.i, m.j))
        self.dtype = float16 if m.left.dtype is m.right.dtype is float16 else float32
        self.a = _Side(m.left, m.i, m.k, self.rows, self.dtype, 0)
        self.b = _Side(m.right, m.j, m.k, self.columns, self.dtype, self.a.end)
        self.row = Var("row_tile", -(-m.i.extent // self.rows))
        self.column = Var("column_tile", -(-m.j.extent // self.columns))
        # Of fragments that a SIMD-group has:
        self.high, self.wide = self.rows // SIDES // FRAGMENT, self.columns // SIDES // FRAGMENT
        self.subgroup = Var("subgroup", SIDES * SIDES)
        self.stride = self.columns + PADDING // 4  # of the tile of c

    @property
    def count(self) -> int:
        return self.m.b.extent * self.row.extent * self.column.extent

    def emit(self, e: VectorEmitter, roots: Sequence[Root], part: Var) -> tuple[int, float]:
        m = self.m
        panels = -(-m.k.extent // (part.extent * STEP))
        sums = 0 if self._stored_whole(roots) else SIDES * BAND * FRAGMENT * self.stride
        shared = self.b.end if self.dtype is float16 else max(self.b.end, sums)
        scratch = e.scratch(shared, self.dtype, as_stored=True)[0]
        total = e.scratch(sums, float32)[0] if sums and self.dtype is float16 else scratch

        def tile() -> None:
            bound = ir.IntegerAttr.get(INDEX, SIDES * SIDES)
            e.variables[self.subgroup] = e.k.op("gpu.subgroup_id", [], INDEX, upper_bound=bound)
            zero = mma(e, "constant_matrix", [e.k.const(0, float32).value], fragment_type(float32, "COp"))
            panel = Var("panel", panels)
            start = (_index(part) * panels + _index(panel)) * STEP
            starts = [Reg(zero, float32, e.k)] * (self.high * self.wide)
            fragments = e.serial(
                panel, e.constant_index(panels), starts, lambda c: self._panel(e, scratch, start, c)
            )
            if self._stored_whole(roots):
                self._store_whole(e, fragments, roots[0])
                return
            for band in range(0, self.high, BAND):
                self._band(e, total, band, fragments, roots, part)

        work = self.rows * self.columns * (panels * STEP + sum(r.node.cost for r in roots))
        return over(e, [m.b, part, self.row, self.column], tile), float(work)

    def _panel(self, e: VectorEmitter, scratch: ir.Value, start: Index, sums: list[Reg]) -> list[Reg]:
        """Adds STEP steps along K to the fragments of c."""
        self.a.fill(e, self.m, scratch, _index(self.row) * self.rows, start)
        self.b.fill(e, self.m, scratch, _index(self.column) * self.columns, start)
        k = Var("k8", STEP // FRAGMENT)

        def multiply(carried: list[Reg]) -> list[Reg]:
            deep, (top, left) = Index.of(k) * FRAGMENT, self._corner()
            a = [self.a.fragment(e, scratch, top + r * FRAGMENT, deep, "AOp") for r in range(self.high)]
            b = [self.b.fragment(e, scratch, left + c * FRAGMENT, deep, "BOp") for c in range(self.wide)]
            type_ = fragment_type(float32, "COp")
            return [
                Reg(mma(e, "compute", [x, y, c.value], type_), float32, e.k)
                for (x, y), c in zip(pairs(a, b), carried, strict=True)
            ]

        return e.serial(k, e.constant_index(k.extent), sums, multiply)

    def _corner(self) -> tuple[Index, Index]:
        """The first row and column, within the tile, of what the SIMD-group computes."""
        number = Index.of(self.subgroup)
        return number // SIDES * (self.rows // SIDES), number % SIDES * (self.columns // SIDES)

    # -- results ------------------------------------------------------------------------------------------------------
    def _stored_whole(self, roots: Sequence[Root]) -> bool:
        """Whether the fragments are the result, and all lie inside of it."""
        m = self.m
        if len(roots) != 1 or m.i.extent % self.rows or m.j.extent % self.columns:
            return False
        node, position, _ = roots[0]
        return node is m.accumulator and m.product.dtype is float32 and position.coefficient(m.j) == 1 and (
            (position.coefficient(m.i) or 0) > 0
        )  # fmt: skip

    def _store_whole(self, e: VectorEmitter, fragments: list[Reg], root: Root) -> None:
        m, (top, left) = self.m, self._corner()
        stride = root.position.coefficient(m.i)
        for n, fragment in enumerate(fragments):
            r, c = divmod(n, self.wide)
            mapping = {
                m.i: _index(self.row) * self.rows + top + r * FRAGMENT,
                m.j: _index(self.column) * self.columns + left + c * FRAGMENT,
            }
            at = e.index(root.position.substitute(mapping))
            mma(e, "store_matrix", [fragment.value, e.buffers[root.buffer], at], None, stride)

    def _band(
        self, e: VectorEmitter, scratch: ir.Value, band: int, fragments: list[Reg], roots: Sequence[Root], part: Var
    ) -> None:
        """Some rows of fragments go through scratch, so that any thread can compute the results of any element."""
        m, (_, left) = self.m, self._corner()
        height = BAND * FRAGMENT  # rows of each SIMD-group
        top = Index.of(self.subgroup) // SIDES * height
        for number, fragment in enumerate(fragments[band * self.wide : (band + BAND) * self.wide]):
            r, c = divmod(number, self.wide)
            at = e.index((top + r * FRAGMENT) * self.stride + left + c * FRAGMENT)
            mma(e, "store_matrix", [fragment.value, scratch, at], None, self.stride)
        n = Var("n", SIDES * height * self.columns)
        row, column = Index.of(n) // self.columns, Index.of(n) % self.columns
        within = row // height * (self.rows // SIDES) + row % height + band * FRAGMENT
        mapping = {m.i: _index(self.row) * self.rows + within, m.j: _index(self.column) * self.columns + column}
        graph = m.product.pull.graph
        accumulator, *nodes = substitute(graph, [m.accumulator, *[r.node for r in roots]], mapping, {})
        moved = [
            Root(x, r.position.substitute(mapping), r.buffer) for x, r in zip(nodes, roots, strict=True)
        ]
        inside = graph.in_range(mapping[m.i], 0, m.i.extent) & graph.in_range(mapping[m.j], 0, m.j.extent)

        def store() -> None:
            total = e.k.load(scratch, e.index(row * self.stride + column), float32)
            _finish(e, accumulator, total, m.product.dtype if part.extent == 1 else float32, moved)

        def element() -> None:
            if inside.always:
                store()
            else:
                with e.when(e.condition(inside)):
                    store()

        e.lanes(n, n.extent, element)
