"""Scatters: a parallel copy of the array, then the updates, so that no two threads write to the same element.

    func.func @mx_scatter_copy(%x, %i, %u, %out) { scf.parallel (%p) { %x[%p] -> %out[%p] } }
    func.func @mx_scatter(%x, %i, %u, %out)      { scf.parallel (%lane) { %u[%lane] -> %out[%i[0] * 8 + %lane] } }

The copy is a step of its own, which the buffer plan leaves out where the result may take the memory of the array. The
updates are parallel in one of these ways:

    batch axes along which an index is a ramp     their updates go to different places: parallel over them
    wide slices                                   parallel over blocks of columns, each of which takes all updates;
                                                  a block lies in one contiguous run, if these are long
    many updates of a small array                 parallel over blocks of updates, each into an array of its own; these
                                                  are combined with the array in the end (never for `set`)

Otherwise one thread applies the updates in order, which is the order of updates of one element in every form but one: a
GPU, which has too many threads for that, does all updates at once and adds by atomic operations where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from mlxir.compiler.lower.builder import INDEX, Reg
from mlxir.compiler.lower.index import Index, Var, delinearize, linear
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel
from mlxir.compiler.lower.scalars import reachable
from mlxir.compiler.passes.in_place import RUN
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx.reduce import _highest, _lowest
from mlxir.dialects.symbolic import is_symbolic
from mlxir.runtime.dtypes import Dtype, bool_, float32, int32, int64, uint32

LANES = 256  # columns of a slice that one iteration owns
BLOCKS = 8  # of updates with arrays of their own
MANY_UPDATES = 1 << 15
DENSE = 8  # updates per element of an array that is small enough for copies

_COMBINE: dict[str, Callable[[Any, Reg, Reg], Reg]] = {
    "set": lambda k, old, new: new,
    "add": lambda k, old, new: old + new,
    "multiply": lambda k, old, new: old * new,
    "maximum": lambda k, old, new: k.maximum(old, new),
    "minimum": lambda k, old, new: k.minimum(old, new),
}
_ATOMIC = {
    ("add", float32): 0, ("add", int32): 1, ("add", uint32): 1, ("maximum", int32): 6, ("maximum", uint32): 7,
    ("minimum", int32): 10, ("minimum", uint32): 11,
}  # fmt: skip
"""Updates that a GPU does by an atomic operation of 32 bits, with the `kind` of memref.atomic_rmw."""
_NEUTRAL: dict[str, Callable[[np.dtype], Any]] = {
    "add": lambda d: 0, "multiply": lambda d: 1, "maximum": _lowest, "minimum": _highest,
}  # fmt: skip


def lower_scatter(function: Function, body: ir.Block, vectors: bool) -> Lowered:
    """Lower a scatter; without `vectors`, for a GPU, without arrays for blocks of updates."""
    with context, ir.Location.unknown():
        job = _Job(OwnKernel(function, body))
        kernel = job.kernel
        if vectors and job.privatised:
            own = kernel.temporary(BLOCKS * job.x.aval.size, job.x.dtype)
            kernel.add("_blocks", [own], lambda e: job.blocks(e, own))
            kernel.add("", [kernel.out], lambda e: job.combine(e, own))
        else:
            atomic = not vectors and (job.mode, job.dtype) in _ATOMIC and len(job.apart) < len(job.picks)
            kernel.add("_copy", [kernel.out], job.copy, job.copied())
            kernel.add("", [kernel.out], job.updates_at_once if atomic else job.updates_in_order)
        return kernel.finish()


class _Job:
    def __init__(self, kernel: OwnKernel):
        self.kernel, op = kernel, kernel.op
        self.x, *self.indices, self.updates = op.operands
        self.axes, self.mode = op.attrs["axes"], op.attrs["mode"]
        self.dtype: Dtype = self.x.dtype
        batch = self.indices[0].shape
        self.sizes = self.updates.shape[len(batch) :]
        self.columns, self.count = prod(self.sizes), prod(batch)
        self.picks = [Var(f"b{i}", n) for i, n in enumerate(batch)]
        self.apart = self._apart()
        self.privatised = (
            self.mode != "set" and self.columns == 1 and not self.apart and self.dtype.kind != "c"
            and self.count >= max(MANY_UPDATES, DENSE * self.x.aval.size)
        )  # fmt: skip

    def _apart(self) -> list[Var]:
        """The batch axes along which the updates go to different places: an index along an axis counts up with them."""
        found = []
        for axis, array in zip(self.axes, self.indices, strict=True):
            node = self.kernel.pull.at(array, tuple(Index.of(v) for v in self.picks))
            if node.kind != "ramp" or self.sizes[axis] != 1:
                continue
            index, start, step = node.data
            counted = [v for v in self.picks if index.key == Index.of(v).key and v.extent > 1]
            if counted and start >= 0 and step >= 1 and float(start).is_integer() and float(step).is_integer():
                found += [v for v in counted if v not in found]
        return found

    def copied(self) -> int:
        """The buffer that is all there is to copy; -1 where the array is computed, or where updates depend on it."""
        buffer = self.kernel.pull.buffers.get(id(self.x), -1)
        at = tuple(Index.of(v) for v in self.picks)
        inner = tuple(Index.of(Var(f"c{a}", n)) for a, n in enumerate(self.sizes))
        roots = [self.kernel.pull.at(array, at) for array in self.indices]
        roots.append(self.kernel.pull.at(self.updates, at + inner))
        read = {node.data[0] for node in reachable(roots) if node.kind == "load"}
        return -1 if buffer in read else buffer

    def _run(self) -> int:
        """How many elements of a slice lie side by side in the array, if they are worth a loop; else 0."""
        run, axis = 1, len(self.sizes)
        if any(is_symbolic(n) for n in (*self.sizes, *self.x.shape)):
            return 0
        while axis and (axis == len(self.sizes) or self.sizes[axis] == self.x.shape[axis]):
            axis -= 1
            run *= self.sizes[axis]
        return run if run >= RUN else 0

    # -- steps ------------------------------------------------------------------------------------------------------
    def copy(self, e: OwnEmitter) -> tuple[int, float]:
        return self._each_element(e, lambda position: self._old(e, position))

    def _each_element(self, e: OwnEmitter, value: Callable[[Index], Reg]) -> tuple[int, float]:
        """Stores `value` of each position."""
        flat = Var("p", self.x.aval.size)
        return over(e, [flat], lambda: e.write(value(Index.of(flat)), e.buffers[self.kernel.out], flat)), 2.0

    def _old(self, e: OwnEmitter, position: Index) -> Reg:
        return self.kernel.value(e, self.x, delinearize(position, self.x.shape))

    def updates_in_order(self, e: OwnEmitter) -> tuple[int, float]:
        rest = [v for v in self.picks if v not in self.apart]
        # Slices that extend along an indexed axis may overlap at different columns: then one iteration owns them all.
        split = all(self.sizes[a] == 1 for a in self.axes) or not self.picks
        run = (self._run() if split else 0) or self.columns
        lanes = (min(LANES, run) if split else run) or 1
        row = Var("row", 1 if run is self.columns else self.columns // run)
        block, lane = Var("block", -(-run // lanes)), Var("lane", lanes)

        def owned() -> None:
            _nested(e, rest, lambda: self._update(e, lambda base: columns(base)))

        def columns(base: ir.Value) -> None:
            first = Index.of(block) * lanes
            count = e.rest(run, e.index(first), lanes) if run % lanes else e.constant_index(lanes)
            column = Index.of(row) * run + first + lane
            e.parallel(lane, count, lambda: self._apply(e, e.buffers[self.kernel.out], base, column))

        extent = over(e, [*self.apart, row, block], owned)
        return extent, 4.0 * lanes * prod(v.extent for v in rest)

    def updates_at_once(self, e: OwnEmitter) -> tuple[int, float]:
        """An iteration for each element of the updates."""
        column = Var("column", self.columns)
        inner = delinearize(Index.of(column), self.sizes)

        def update(base: ir.Value) -> None:
            at = e.at(base, linear(inner, self.x.shape))
            new = self.kernel.value(e, self.updates, [*self.picks, *inner]).value
            kind = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), _ATOMIC[self.mode, self.dtype])
            e.k.op("memref.atomic_rmw", [new, e.buffers[self.kernel.out], at], new.type, kind=kind)

        return over(e, [*self.picks, column], lambda: self._update(e, update)), 4.0

    def blocks(self, e: OwnEmitter, own: int) -> tuple[int, float]:
        """Updates block by block; each block has an array that starts from what changes nothing."""
        size, share = self.x.aval.size, -(-self.count // BLOCKS)
        block, i, element = Var("block", BLOCKS), Var("i", share), Var("element", size)
        buffer = e.buffers[own]

        def one() -> None:
            start = e.at(Index.of(block) * size)
            neutral = e.k.const(_NEUTRAL[self.mode](self.dtype.numpy), self.dtype)
            e.parallel(element, e.constant_index(size), lambda: e.write(neutral, buffer, start, element))
            first = Index.of(block) * share

            def update() -> None:
                batch = tuple(v.extent for v in self.picks)
                for v, index in zip(self.picks, delinearize(first + i, batch), strict=True):
                    e.variables[v] = e.index(index)
                self._update(e, lambda base: self._apply(e, buffer, e.at(start, base), Index.of(0)))

            e.repeat(i, e.rest(self.count, e.index(first), share), update)

        return over(e, [block], one), 4.0 * share + size

    def combine(self, e: OwnEmitter, own: int) -> tuple[int, float]:
        """The array with the blocks' arrays, in order."""

        def value(position: Index) -> Reg:
            total = self._old(e, position)
            for n in range(BLOCKS):
                part = e.read(e.buffers[own], self.dtype, position, n * self.x.aval.size)
                total = _COMBINE[self.mode](e.k, total, part)
            return total

        return self._each_element(e, value)

    # -- one update -------------------------------------------------------------------------------------------------
    def _update(self, e: OwnEmitter, apply: Callable[[ir.Value], None]) -> None:
        """`apply` where the slice of the current index values begins, if it lies inside; negative indices wrap."""
        k, valid, total = e.k, None, None
        for axis, array in zip(self.axes, self.indices, strict=True):
            i = self.kernel.value(e, array, self.picks)
            signed = i.dtype.kind == "i"
            i = k.cast(i, int64)
            if signed:
                i = k.select(i < 0, i + self.x.shape[axis], i)
            inside = (i >= 0) & (i <= self.x.shape[axis] - self.sizes[axis])
            valid = inside if valid is None else valid & inside
            stride = prod(self.x.shape[axis + 1 :])
            total = i * stride if total is None else total + i * stride
        if valid is None or total is None:
            valid, total = k.const(True, bool_), k.const(0, int64)
        with e.when(valid):
            apply(k.op("arith.index_cast", [total.value], INDEX))

    def _apply(self, e: OwnEmitter, buffer: ir.Value, base: ir.Value, column: Index) -> None:
        """One column of the slice that begins at `base`."""
        inner = delinearize(column, self.sizes)
        at = e.at(base, linear(inner, self.x.shape))
        new = self.kernel.value(e, self.updates, [*self.picks, *inner])
        if self.mode != "set":
            new = _COMBINE[self.mode](e.k, e.k.load(buffer, at, self.dtype), new)
        e.k.store(new, buffer, at)


def _nested(e: OwnEmitter, variables: Sequence[Var], body: Callable[[], None]) -> None:
    """Serial loops over all variables."""
    if not variables:
        body()
        return
    head, *rest = variables
    e.repeat(head, e.constant_index(head.extent), lambda: _nested(e, rest, body))
