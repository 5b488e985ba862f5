"""Convolutions, channels last: inputs `(N, *spatial, C_in)`, weights `(C_out, *taps, C_in / groups)`.

Floating point only; operands are promoted to one dtype. float16 and bfloat16 are summed in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from mlxir.compiler.graph import Value
from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import conv as prim
from mlxir.dialects.mx.record import Shape
from mlxir.ndarray import array, wrap
from mlxir.runtime.dtypes import promote
from mlxir.values import cast, record, reshape, static_slice, transpose

from .common import check_array, failure
from .contract import matmul_value
from .shape import text

__all__ = [
    "conv1d", "conv2d", "conv3d", "conv_general", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "convolve",
]  # fmt: skip

Sizes = int | Sequence[int]


def conv1d(
    input: array, weight: array, /, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1, *,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """1-d convolution: `(N, L, C_in)` by `(C_out, K, C_in / groups)`; see `conv_general`."""
    check_stream("conv1d", stream)
    return _forward("conv1d", 1, input, weight, stride, padding, dilation, groups)


def conv2d(
    input: array, weight: array, /, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1, *,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """2-d convolution: `(N, H, W, C_in)` by `(C_out, KH, KW, C_in / groups)`; see `conv_general`."""
    check_stream("conv2d", stream)
    return _forward("conv2d", 2, input, weight, stride, padding, dilation, groups)


def conv3d(
    input: array, weight: array, /, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1, groups: int = 1, *,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """3-d convolution: `(N, D, H, W, C_in)` by `(C_out, KD, KH, KW, C_in / groups)`; see `conv_general`."""
    check_stream("conv3d", stream)
    return _forward("conv3d", 3, input, weight, stride, padding, dilation, groups)


def conv_transpose1d(
    input: array, weight: array, /, stride: int = 1, padding: int = 0, dilation: int = 1, output_padding: int = 0,
    groups: int = 1, *, stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """The transpose of `conv1d` in its input, of `(N, L, C_in)` by `(C_out, K, C_in / groups)`."""
    check_stream("conv_transpose1d", stream)
    return _transposed("conv_transpose1d", 1, input, weight, stride, padding, dilation, output_padding, groups)


def conv_transpose2d(
    input: array, weight: array, /, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1,
    output_padding: Sizes = 0, groups: int = 1, *, stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """The transpose of `conv2d` in its input, of `(N, H, W, C_in)` by `(C_out, KH, KW, C_in / groups)`."""
    check_stream("conv_transpose2d", stream)
    return _transposed("conv_transpose2d", 2, input, weight, stride, padding, dilation, output_padding, groups)


def conv_transpose3d(
    input: array, weight: array, /, stride: Sizes = 1, padding: Sizes = 0, dilation: Sizes = 1,
    output_padding: Sizes = 0, groups: int = 1, *, stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """The transpose of `conv3d` in its input, of `(N, D, H, W, C_in)` by `(C_out, KD, KH, KW, C_in / groups)`."""
    check_stream("conv_transpose3d", stream)
    return _transposed("conv_transpose3d", 3, input, weight, stride, padding, dilation, output_padding, groups)


def conv_general(
    input: array, weight: array, /, stride: Sizes = 1, padding: Sizes | tuple[Sequence[int], Sequence[int]] = 0,
    kernel_dilation: Sizes = 1, input_dilation: Sizes = 1, groups: int = 1, flip: bool = False, *,
    stream: StreamOrDevice = None,
) -> array:  # fmt: skip
    """Convolution over 1 to 3 spatial axes with every option.

    `padding` is a number, one per axis, or a pair of such lists for the low and high ends; it may be negative.
    `input_dilation` puts gaps between the elements of the input, `kernel_dilation` between the taps; `flip` reverses
    the taps. Raises ValueError for integers and complex numbers, shapes that do not fit, sizes that are not positive,
    and a padded input smaller than the kernel; TypeError for arguments of other types.
    """
    check_stream("conv_general", stream)
    x, w = _operands("conv_general", input, weight)
    if isinstance(padding, tuple) and len(padding) == 2 and not all(_is_int(p) for p in padding):
        low, high = (_listed("conv_general", "padding", p) for p in padding)
    else:
        low = high = _listed("conv_general", "padding", padding)
    strides, gaps, spread = (
        _listed("conv_general", n, v)
        for n, v in (("stride", stride), ("kernel_dilation", kernel_dilation), ("input_dilation", input_dilation))
    )
    groups = _int("conv_general", "groups", groups)
    return wrap(_convolved(x, w, strides, low, high, gaps, spread, groups, bool(flip)))


def convolve(a: array, v: array, /, mode: str = "full", *, stream: StreamOrDevice = None) -> array:
    """The discrete convolution of two vectors; `mode` is full, same or valid, of the longer one.

    Raises ValueError for empty operands, other ranks, integers, and an unknown mode.
    """
    check_stream("convolve", stream)
    x, w = check_array("convolve", a)._value, check_array("convolve", v)._value
    if len(x.shape) != 1 or len(w.shape) != 1:
        raise failure(ValueError, "[convolve] Inputs must be 1D.")
    if not x.shape[0] or not w.shape[0]:
        raise failure(ValueError, "[convolve] Inputs cannot be empty.")
    x, w = (x, w) if x.shape[0] >= w.shape[0] else (w, x)
    n = w.shape[0]
    if mode not in ("full", "same", "valid"):
        raise failure(ValueError, "[convolve] Invalid mode.")
    low, high = {"full": (n - 1, n - 1), "same": (n // 2, n - 1 - n // 2), "valid": (0, 0)}[mode]
    x, w = reshape(x, (1, x.shape[0], 1)), reshape(w, (1, n, 1))
    out = _convolved(*_promoted(x, w), (1,), (low,), (high,), (1,), (1,), 1, True)
    return wrap(reshape(out, (out.shape[1],)))


# -- arguments -------------------------------------------------------------------------------------------------------
def _is_int(value: Any) -> bool:
    return isinstance(value, int) or (hasattr(value, "__index__") and not getattr(value, "ndim", 0))


def _int(name: str, argument: str, value: Any) -> int:
    if not _is_int(value):
        raise failure(TypeError, f"[{name}] {argument} must be an int, got {value!r}")
    return operator.index(value)


def _listed(name: str, argument: str, value: Any) -> Shape:
    """An argument that is an int or a sequence of ints, as a tuple."""
    if _is_int(value):
        return (operator.index(value),)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise failure(TypeError, f"[{name}] {argument} must be an int or a sequence of ints, got {value!r}")
    return tuple([_int(name, argument, v) for v in value])


def _repeated(name: str, sizes: Shape, rank: int, default: int) -> Shape:
    """One size per axis, from one for all or none. Raises ValueError for other numbers of them."""
    if len(sizes) not in (0, 1, rank):
        raise failure(ValueError, f"[conv] Invalid {name} {text(sizes)} for {rank}D convolution.")
    return sizes * rank if len(sizes) == 1 else sizes or (default,) * rank


def _per_axis(name: str, rank: int, argument: str, value: Any) -> Shape:
    """`rank` ints from an int or a sequence of as many; for one axis an int. Raises TypeError for the rest."""
    sizes = _listed(name, argument, value)
    if _is_int(value):
        return sizes * rank
    if rank == 1 or len(sizes) != rank:
        raise failure(TypeError, f"[{name}] {argument} must be an int" + (f" or {rank} ints" if rank > 1 else ""))
    return sizes


def _operands(name: str, input: Any, weight: Any) -> tuple[Value, Value]:
    return _promoted(check_array(name, input)._value, check_array(name, weight)._value)


def _promoted(x: Value, w: Value) -> tuple[Value, Value]:
    """Both in one dtype. Raises ValueError where the input's or the common one is none of real numbers."""
    dtype = promote(x.dtype, w.dtype)
    for d, which in ((x.dtype, "input"), (dtype, "weight")):
        if not d.is_float:
            raise failure(
                ValueError,
                f"[conv] Invalid {which} array with type {d.name}. Convolution currently only supports floating point"
                " types",
            )
    return cast(x, dtype), cast(w, dtype)


def _forward(
    name: str, rank: int, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> array:
    x, w = _operands(name, input, weight)
    arguments = (("stride", stride), ("padding", padding), ("dilation", dilation))
    strides, edges, gaps = (_per_axis(name, rank, *a) for a in arguments)
    return wrap(_convolved(x, w, strides, edges, edges, gaps, (1,), _int(name, "groups", groups), False))


def _transposed(
    name: str, rank: int, input: Any, weight: Any, stride: Any, padding: Any, dilation: Any, output_padding: Any,
    groups: Any,
) -> array:  # fmt: skip
    x, w = _operands(name, input, weight)
    arguments = (("stride", stride), ("padding", padding), ("dilation", dilation), ("output_padding", output_padding))
    spread, edges, gaps, more = (_per_axis(name, rank, *a) for a in arguments)
    low = tuple([d * (k - 1) - p for d, k, p in zip(gaps, w.shape[1:-1], edges, strict=False)])
    high = tuple([n + m for n, m in zip(low, more, strict=False)])
    return wrap(_convolved(x, w, (1,), low, high, gaps, spread, _int(name, "groups", groups), True))


# -- the primitive ---------------------------------------------------------------------------------------------------
def _convolved(
    x: Value, w: Value, stride: Shape, low: Shape, high: Shape, dilation: Shape, input_dilation: Shape, groups: int,
    flip: bool,
) -> Value:  # fmt: skip
    """The checks that MLX makes, then a convolution, or the matrix product that one of one tap is.

    Sizes are one per axis, or one or none for all.
    """
    p, q = x.shape, w.shape
    rank = len(p) - 2
    if not 1 <= rank <= 3:
        raise failure(
            ValueError,
            "[conv] Only works for inputs with 1-3 spatial dimensions. The inputs must be in the format [N, ..., C_in]",
        )
    if len(q) != rank + 2:
        raise failure(
            ValueError,
            f"[conv] Invalid weight array with {len(q)} dimensions for {rank}D convolution. Expected an array with"
            f" {rank + 2} dimensions following the format [C_out, ..., C_in].",
        )
    stride = _repeated("strides", stride, rank, 1)
    low, high = _repeated("padding", low, rank, 0), _repeated("padding", high, rank, 0)
    dilation = _repeated("kernel dilation", dilation, rank, 1)
    input_dilation = _repeated("input dilation", input_dilation, rank, 1)
    if groups < 1:
        raise failure(ValueError, f"[conv] The number of groups must be positive, got {groups}.")
    if p[-1] != groups * q[-1]:
        raise failure(
            ValueError,
            "[conv] Expect the input channels in the input and weight array to match but got shapes - input:"
            f" {text(p)} and weight: {text(q)}" + (f" in {groups} groups" if groups > 1 else ""),
        )
    if q[0] % groups:
        raise failure(
            ValueError,
            "[conv] If groups > 1, the output channels must be divisible by the number of groups. Got"
            f" {q[0]} output channels and {groups} groups.",
        )
    for name, sizes in (("Stride", stride), ("Kernel dilation", dilation), ("Input dilation", input_dilation)):
        if min(sizes) < 1:
            raise failure(ValueError, f"[conv] {name} sizes must be positive. Got {name.lower()} {text(sizes)}.")
    attrs = {"stride": stride, "low": low, "high": high, "dilation": dilation, "input_dilation": input_dilation,
             "groups": groups, "flip": flip}  # fmt: skip
    axes = prim.axes_of(p, q, attrs)
    for n, axis in enumerate(axes, 1):
        if axis.slack < 0:
            raise failure(
                ValueError,
                "[conv] Spatial dimensions of input after padding cannot be smaller than weight spatial dimensions."
                f" Got error at axis {n} for input with shape {text(p)}, padding low {text(low)}, padding high"
                f" {text(high)}, and weight of shape {text(q)}.",
            )
    places = tuple([a.outputs for a in axes])
    if groups == 1 and all(a.taps == a.input_dilation == 1 and a.low == a.high == 0 for a in axes):
        ends = tuple([(n - 1) * s + 1 for n, s in zip(places, stride, strict=True)])
        x = static_slice(x, (0,) * (rank + 2), (p[0], *ends, p[-1]), (1, *stride, 1))
        return matmul_value(x, transpose(reshape(w, (q[0], q[-1])), (1, 0)), "conv")
    return record(prim.conv, (x, w), attrs, (p[0], *places, q[0]), x.dtype)
