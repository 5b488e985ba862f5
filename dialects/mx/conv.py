"""Convolution in any number of dimensions, channels last.

One record is enough for everything: its derivatives and batched forms are convolutions again, with other attributes
and transposed operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from mlxir.runtime.errors import ShapeError

from .record import Aval, OpBuilder, Primitive, Shape


class Axis(NamedTuple):
    """One spatial axis: output o reads, at tap k, place (o * stride + k * dilation - low) / input_dilation."""

    size: int
    taps: int
    stride: int
    low: int
    high: int
    dilation: int
    input_dilation: int

    @property
    def dilated(self) -> int:
        """The length of the input with its gaps."""
        return (self.size - 1) * self.input_dilation + 1 if self.size else 0

    @property
    def reach(self) -> int:
        """The length of the kernel with its gaps."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def slack(self) -> int:
        return self.dilated + self.low + self.high - self.reach

    @property
    def outputs(self) -> int:
        return self.slack // self.stride + 1


def axes_of(x: Shape, w: Shape, attrs: dict[str, Any]) -> list[Axis]:
    """The spatial axes of a convolution."""
    names = ("stride", "low", "high", "dilation", "input_dilation")
    return [Axis(*parts) for parts in zip(x[1:-1], w[1:-1], *(attrs[n] for n in names), strict=True)]


class Conv(Primitive):
    """`out[n, o, c] = sum over taps k and channels q of x[n, place(o, k), q] * w[c, k, q]`; see `Axis` for `place`.

    Operands `x: (N, *spatial, C_in)` and `w: (C_out, *taps, C_in / groups)`; places outside x, or in the gaps that
    `input_dilation` makes, count as zero. `low` and `high` may be negative: that crops. Of `groups` equal groups of
    output channels, each sees its own group of input channels. `flip` reverses the taps. Bilinear.
    """

    kind = "bilinear"
    operands = ("x", "w")
    lowering = "kernel"

    def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
        (x, w), groups = avals, attrs["groups"]
        if x.ndim != w.ndim or x.ndim < 3 or any(len(attrs[n]) != x.ndim - 2 for n in self.attrs[:5]):
            raise ShapeError(f"[conv] the ranks of {x}, {w} and the attributes {attrs} do not fit")
        if x.dtype is not w.dtype or not x.dtype.is_float:
            raise ValueError(f"[conv] Only floating point types of one kind are supported, got {x} and {w}")
        if groups < 1 or w.shape[0] % groups or x.shape[-1] != groups * w.shape[-1]:
            raise ShapeError(f"[conv] {groups} groups of channels do not fit {x} and {w}")
        axes = axes_of(x.shape, w.shape, attrs)
        if any(min(a.stride, a.dilation, a.input_dilation) < 1 or a.slack < 0 for a in axes):
            raise ShapeError(f"[conv] The padded input is smaller than the kernel: {x}, {w}, {attrs}")
        return (Aval((x.shape[0], *(a.outputs for a in axes), w.shape[0]), x.dtype),)

    def reference(self, *arrays: np.ndarray, **attrs: Any) -> tuple[np.ndarray, ...]:
        """Pads, then one matrix product per tap or per place of the output, whichever are fewer."""
        (x, w), groups = arrays, attrs["groups"]
        axes = axes_of(x.shape, w.shape, attrs)
        taps, places = w.shape[1:-1], tuple(a.outputs for a in axes)
        count, outs, depth = len(x), len(w) // groups, w.shape[-1]
        w = w[(slice(None), *[slice(None, None, -1)] * len(axes))] if attrs["flip"] else w
        w = w.reshape(groups, outs, *taps, depth)
        x = _padded(x, axes)
        x = x.reshape(*x.shape[:-1], groups, depth)
        out = np.zeros((count, *places, groups, outs), x.dtype)
        if prod(taps) <= prod(places):
            for k in np.ndindex(*taps):
                at = [slice(i * a.dilation, i * a.dilation + (a.outputs - 1) * a.stride + 1, a.stride)
                      for i, a in zip(k, axes, strict=True)]  # fmt: skip
                out += np.einsum("...gq,gcq->...gc", x[(slice(None), *at)], w[(slice(None), slice(None), *k)],
                                 optimize=True)  # fmt: skip
        else:
            kernel = np.moveaxis(w, 1, -1).reshape(groups, -1, outs)
            for o in np.ndindex(*places):
                at = [slice(i * a.stride, i * a.stride + a.reach, a.dilation) for i, a in zip(o, axes, strict=True)]
                patch = np.moveaxis(x[(slice(None), *at)], -2, 0).reshape(groups, count, -1)
                out[(slice(None), *o)] = np.moveaxis(patch @ kernel, 0, 1)
        return (out.reshape(count, *places, groups * outs),)

    def flops(self, operands: Sequence[Aval], results: Sequence[Aval], **attrs: Any) -> int:
        return 2 * results[0].size * prod(operands[1].shape[1:])

    def jvp(self, m: OpBuilder, primals: list, tangents: list, outs: list, **attrs: Any) -> list:
        (x, w), (tx, tw) = primals, tangents
        left = m.emit(self, [tx, w], attrs)[0] if tx is not None else None
        right = m.emit(self, [x, tw], attrs)[0] if tw is not None else None
        return [m.add_any(left, right)]

    def vjp(self, m: OpBuilder, primals: list, cts: list, outs: list, **attrs: Any) -> list:
        (x, w), (ct,) = primals, cts
        if ct is None:
            return [None, None]
        if 0 in (*x.shape, *w.shape, *ct.shape):
            return [m.zeros(p) if p.active else None for p in primals]
        axes = axes_of(x.shape, w.shape, attrs)
        dx = _towards_input(m, w, ct, axes, attrs) if x.active else None
        dw = _towards_weight(m, x, ct, axes, attrs) if w.active else None
        return [dx, dw]

    def vmap(self, m: OpBuilder, size: int, args: list, batched: list[bool], **attrs: Any) -> tuple[list, list[bool]]:
        (x, w), groups = args, attrs["groups"]
        if not batched[1]:
            (out,) = m.emit(self, [m.reshaped(x, (size * x.shape[1], *x.shape[2:])), w], attrs)
            return [m.reshaped(out, (size, out.shape[0] // size, *out.shape[1:]))], [True]
        if batched[0]:
            # The examples are so many groups.
            x = m.moved(x, 0, len(x.shape) - 2)
            x = m.reshaped(x, (*x.shape[:-2], size * x.shape[-1]))
            (out,) = m.emit(self, [x, m.reshaped(w, (size * w.shape[1], *w.shape[2:]))],
                            {**attrs, "groups": groups * size})  # fmt: skip
            out = m.reshaped(out, (*out.shape[:-1], size, out.shape[-1] // size))
            return [m.moved(out, len(out.shape) - 2, 0)], [True]
        # The examples are more output channels of each group.
        per_group = w.shape[1] // groups
        w = m.moved(m.reshaped(w, (size, groups, per_group, *w.shape[2:])), 0, 1)
        w = m.reshaped(w, (groups * size * per_group, *w.shape[3:]))
        (out,) = m.emit(self, [x, w], attrs)
        lead = tuple(out.shape[:-1])
        out = m.moved(m.reshaped(out, (*lead, groups, size, per_group)), len(lead) + 1, 0)
        return [m.reshaped(out, (size, *lead, groups * per_group))], [True]


conv = Conv("conv", ("stride", "low", "high", "dilation", "input_dilation", "groups", "flip"))


def _padded(x: np.ndarray, axes: list[Axis]) -> np.ndarray:
    """With gaps and padding as zeros, cropped where the padding is negative."""
    gaps = np.zeros((len(x), *(a.dilated for a in axes), x.shape[-1]), x.dtype)
    gaps[(slice(None), *[slice(None, None, a.input_dilation) for a in axes])] = x
    borders = [(max(a.low, 0), max(a.high, 0)) for a in axes]
    wide = np.pad(gaps, [(0, 0), *borders, (0, 0)])
    crops = [slice(max(-a.low, 0), n - max(-a.high, 0)) for a, n in zip(axes, wide.shape[1:-1], strict=True)]
    return wide[(slice(None), *crops)]


def _towards_input(m: OpBuilder, w: Any, ct: Any, axes: list[Axis], attrs: dict[str, Any]) -> Any:
    """The cotangent of x: a convolution of `ct` by the reversed taps, strides and input gaps exchanged."""
    groups, taps, depth = attrs["groups"], tuple(w.shape[1:-1]), w.shape[-1]
    rank = len(taps)
    back = m.reshaped(w, (groups, w.shape[0] // groups, *taps, depth))
    back = m.permuted(back, (0, rank + 2, *range(2, rank + 2), 1))  # (group, q, *taps, c)
    low = tuple(a.reach - 1 - a.low for a in axes)
    high = []
    for a, before in zip(axes, low, strict=True):
        spread = (a.outputs - 1) * a.stride + 1
        high.append((a.size - 1) * a.input_dilation + a.reach - spread - before)
    return m.conv(
        ct, m.reshaped(back, (groups * depth, *taps, w.shape[0] // groups)), stride=attrs["input_dilation"], low=low,
        high=tuple(high), dilation=attrs["dilation"], input_dilation=attrs["stride"], groups=groups,
        flip=not attrs["flip"],
    )  # fmt: skip


def _towards_weight(m: OpBuilder, x: Any, ct: Any, axes: list[Axis], attrs: dict[str, Any]) -> Any:
    """The cotangent of w: a convolution of x by `ct` whose channels are the examples; strides and gaps exchanged."""
    groups, rank = attrs["groups"], len(axes)
    spatial, places = tuple(x.shape[1:-1]), tuple(ct.shape[1:-1])
    count, depth, outs = x.shape[0], x.shape[-1] // groups, ct.shape[-1] // groups
    source = m.permuted(m.reshaped(x, (count, *spatial, groups, depth)), (rank + 2, *range(1, rank + 2), 0))
    kernel = m.permuted(m.reshaped(ct, (count, *places, groups, outs)), (rank + 1, rank + 2, *range(1, rank + 1), 0))
    high = tuple((a.taps - 1) * a.dilation + (a.outputs - 1) * a.stride + 1 - a.dilated - a.low for a in axes)
    out = m.conv(
        m.reshaped(source, (depth, *spatial, groups * count)), m.reshaped(kernel, (groups * outs, *places, count)),
        stride=attrs["dilation"], low=attrs["low"], high=high, dilation=attrs["stride"],
        input_dilation=attrs["input_dilation"], groups=groups, flip=False,
    )  # fmt: skip
    out = m.permuted(out, (rank + 1, *range(1, rank + 1), 0))  # from (q, *taps, c)
    if attrs["flip"]:
        taps = out.shape[1:-1]
        out = m.slice(out, start=(0, *(n - 1 for n in taps), 0), stop=(out.shape[0], *(-1 for _ in taps), depth),
                      strides=(1, *(-1 for _ in taps), 1))  # fmt: skip
    return out
