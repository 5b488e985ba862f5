"""Copies windows of an operand to scratch memory: rows of channels, with zeros where the window leaves the operand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlxir.compiler.lower.builder import _TYPES, INDEX, Reg
from mlxir.compiler.lower.index import Var
from mlxir.compiler.lower.scalars import Scalar
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype, bool_, int64

_BELOW = 6  # unsigned


class Span(NamedTuple):
    """One axis of a window: element i, i < extent, is place `first` + i * step of `var`, and goes to i * stride."""

    var: Var
    first: ir.Value
    step: int
    extent: ir.Value | int
    stride: int


class Inner(NamedTuple):
    """A channel axis of a window: element i, i < extent, is channel `first` + i, and goes to i * stride."""

    var: Var
    first: ir.Value
    extent: ir.Value | int
    stride: int


class Window:
    """A window of `node`, an element as a scalar over the variables of `spans` and `inner`, in the dtype of `target`.

    The last span has step 1 and its elements lie side by side, `inner` inside them.
    """

    def __init__(
        self, e: VectorEmitter, node: Scalar, spans: Sequence[Span], inner: Sequence[Inner], target: ir.Value,
        dtype: Dtype,
    ):  # fmt: skip
        self.e, self.node, self.spans, self.inner, self.target, self.dtype = e, node, spans, inner, target, dtype

    def emit(self) -> None:
        self._level(0, self.e.constant_index(0), None)

    def _level(self, n: int, at: ir.Value, inside: Reg | None) -> None:
        e, span = self.e, self.spans[n]
        if n == len(self.spans) - 1:
            self._columns(at, inside)
            return
        var = Var(f"w{n}", span.extent if isinstance(span.extent, int) else span.var.extent)

        def body() -> None:
            place = e.variables[span.var] = e.plus(span.first, e.times(e.variables[var], span.step))
            valid = self._below(place, span.var.extent)
            here = e.plus(at, e.times(e.variables[var], span.stride))
            self._level(n + 1, here, valid if inside is None else inside & valid)

        e.repeat(var, span.extent, body)

    def _below(self, place: ir.Value, limit: int) -> Reg:
        """0 <= place < limit."""
        e = self.e
        code = ir.IntegerAttr.get(_TYPES[int64], _BELOW)
        test = e.k.op("arith.cmpi", [place, e.constant_index(limit)], _TYPES[bool_], predicate=code)
        return Reg(test, bool_, e.k)

    def _columns(self, at: ir.Value, inside: Reg | None) -> None:
        """Zeros, the part of the row that lies in the operand, zeros."""
        e, span = self.e, self.spans[-1]
        count = e.constant_index(span.extent) if isinstance(span.extent, int) else span.extent

        def clamped(value: ir.Value) -> ir.Value:
            return e.k.op("arith.minsi", [e.k.op("arith.maxsi", [value, e.constant_index(0)], INDEX), count], INDEX)

        def minus(a: ir.Value, b: ir.Value) -> ir.Value:
            return e.k.op("arith.subi", [a, b], INDEX)

        low = clamped(minus(e.constant_index(0), span.first))
        high = clamped(minus(e.constant_index(span.var.extent), span.first))
        if inside is not None:
            low, high = (e.k.op("arith.select", [inside.value, v, count], INDEX) for v in (low, high))
        self._clear(at, low)
        self._copy(e.plus(at, e.times(low, span.stride)), e.plus(span.first, low), minus(high, low))
        self._clear(e.plus(at, e.times(high, span.stride)), minus(count, high))

    def _clear(self, at: ir.Value, count: ir.Value) -> None:
        e, var = self.e, Var("z", 1)
        zero = e.k.const(0, self.dtype)
        extent = e.times(count, self.spans[-1].stride)
        e.lanes(var, extent, lambda: e.k.store(zero, self.target, e.plus(at, e.variables[var])))

    def _flat(self) -> bool:
        """Whether the columns with their channels are one run in memory, on both sides."""
        span = self.spans[-1]
        if self.node.kind != "load" or len(self.inner) != 1 or not isinstance(self.inner[0].extent, int):
            return False
        position, (channel,) = self.node.data[1], self.inner
        run = channel.extent
        unit = run == 1 or position.coefficient(channel.var) == 1
        return unit and channel.stride == 1 and span.stride == run and position.coefficient(span.var) in (
            run, 0 if span.var.extent == 1 else run)  # fmt: skip

    def _copy(self, at: ir.Value, place: ir.Value, count: ir.Value) -> None:
        e, span = self.e, self.spans[-1]
        column = Var("column", max(span.var.extent, 1))
        if self._flat():
            (channel,) = self.inner
            e.variables[span.var], e.variables[channel.var] = place, channel.first
            buffer, start = e.buffers[self.node.data[0]], e.index(self.node.data[1])

            def element() -> None:
                value = e.k.load(buffer, e.plus(start, e.variables[column]), self.node.dtype)
                e.keep(value, self.target, self.dtype, e.plus(at, e.variables[column]))

            e.lanes(column, e.times(count, span.stride), element)
            return

        def body() -> None:
            e.variables[span.var] = e.plus(place, e.variables[column])
            self._channels(0, e.plus(at, e.times(e.variables[column], span.stride)))

        e.repeat(column, count, body)

    def _channels(self, n: int, at: ir.Value) -> None:
        e, channel = self.e, self.inner[n]
        var = Var(f"channel{n}", max(channel.var.extent, 1))
        last = n == len(self.inner) - 1

        def body() -> None:
            e.variables[channel.var] = e.plus(channel.first, e.variables[var])
            here = e.plus(at, e.times(e.variables[var], channel.stride))
            if last:
                e.keep(e.value(self.node), self.target, self.dtype, here)
            else:
                self._channels(n + 1, here)

        (e.lanes if last else e.repeat)(var, channel.extent, body)
