"""Quantised weights: MLX's affine groups and the microscaling formats mxfp4, mxfp8 and nvfp4, and products with them.

Each group of consecutive elements of a row shares a scale (affine: and a bias). The packed values are one stream of
bits per row, lowest first, in words of uint32. Dequantisation is elementwise, so it happens inside the kernels that
read the weights. Formats: OCP Microscaling Formats MX v1.0 (2023); scales of nvfp4 are e4m3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlxir.devices import StreamOrDevice, check_stream
from mlxir.dialects.mx import quantised as records
from mlxir.ndarray import array, wrap
from mlxir.runtime.dtypes import Dtype, bfloat16, float16, float32, float64, promote, uint8, uint16, uint32
from mlxir.values import cast, emit, full

from . import contract, elementwise, reduce, shape, views
from .common import check_array, failure
from .creation import arange

__all__ = ["dequantize", "from_fp8", "gather_qmm", "gather_qqmm", "qqmm", "quantize", "quantized_matmul", "to_fp8"]


@dataclass(frozen=True)
class Format:
    """One way to quantise: the allowed group sizes and bits, the default first."""

    mode: str
    group_sizes: tuple[int, ...]
    bits: tuple[int, ...]

    @property
    def affine(self) -> bool:
        return self.mode == "affine"


_FORMATS = {
    "affine": Format("affine", (64, 32, 128), (4, 1, 2, 3, 5, 6, 8)),
    "mxfp4": Format("mxfp4", (32,), (4,)),
    "mxfp8": Format("mxfp8", (32,), (8,)),
    "nvfp4": Format("nvfp4", (16,), (4,)),
}
_LARGEST = {4: 6.0, 8: 448.0}  # of e2m1 and e4m3


def _chosen(name: str, mode: str, group_size: int | None, bits: int | None) -> tuple[Format, int, int]:
    """The format with its group size and bits, defaults filled in."""
    form = _FORMATS.get(mode)
    if form is None:
        raise failure(ValueError, f"[{name}] Invalid quantization mode '{mode}'.")
    size = form.group_sizes[0] if group_size is None else group_size
    width = form.bits[0] if bits is None else bits
    if size not in form.group_sizes:
        known = "32, 64, and 128" if form.affine else str(form.group_sizes[0])
        raise failure(
            ValueError, f"[{name}] The requested group size {size} is not supported. {mode} has group sizes {known}."
        )
    if width not in form.bits:
        known = "1, 2, 3, 4, 5, 6 and 8" if form.affine else str(form.bits[0])
        raise failure(
            ValueError, f"[{name}] The requested number of bits {width} is not supported. {mode} has {known}."
        )
    return form, size, width


# -- small floating-point formats --------------------------------------------------------------------------------------


def _bits_of(x: array, dtype: Dtype) -> array:
    return views.view(x, dtype)


def _from_e4m3(code: array) -> array:
    """uint8 to float32: the code's exponent and mantissa are those of a float16 that is 256 times smaller."""
    magnitude = _bits_of((code & 127).astype(uint16) << 7, float16).astype(float32) * 256.0
    magnitude = elementwise.where((code & 127) == 127, float("nan"), magnitude)
    return elementwise.where(code >= 128, -magnitude, magnitude)


def _to_e4m3(x: array) -> array:
    """To the nearest of e4m3 as uint8, ties to even; beyond the largest, 448, it stays that; NaN is 127."""
    wide = x.astype(float32)
    bits = _bits_of(wide, uint32)
    sign, magnitude = (bits >> 24) & 0x80, bits & 0x7FFFFFFF
    # Normal results: round the mantissa to 3 bits and move the exponent's bias from 127 to 7.
    odd = (magnitude >> 20) & 1
    normal = (magnitude - ((127 - 7) << 23) + 0x7FFFF + odd) >> 20
    # Subnormal ones are multiples of 2^-9: adding 2^14 makes the hardware round to them.
    anchor = 2.0**14
    subnormal = _bits_of(_bits_of(magnitude, float32) + anchor, uint32) - 0x46800000
    code = elementwise.where(magnitude < (121 << 23), subnormal, normal)
    code = elementwise.where(magnitude > 0x43E00000, 126, code)
    code = elementwise.where(magnitude > 0x7F800000, 127, code)
    return (code | sign).astype(uint8)


def _from_e2m1(code: array) -> array:
    """The 16 values of e2m1 (uint32 codes) in float32: bits of a float16 that is 2^14 times smaller."""
    magnitude = _bits_of((code & 7).astype(uint16) << 9, float16).astype(float32) * 16384.0
    return elementwise.where(code >= 8, -magnitude, magnitude)


def _to_e2m1(x: array) -> array:
    """The code of the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign, ties towards zero, never -0; uint32."""
    size = elementwise.abs(x)
    code = (size > 0.25).astype(uint32)
    for step in (0.75, 1.25, 1.75, 2.5, 3.5, 5.0):
        code = code + (size > step).astype(uint32)
    return elementwise.where(elementwise.logical_and(x < 0, code > 0), code + 8, code)


def _from_e8m0(code: array) -> array:
    """2^(code - 127) in float32; code 0, 2^-127, is subnormal."""
    wide = code.astype(uint32)
    return _bits_of(elementwise.where(wide == 0, 0x400000, wide << 23), float32)


def to_fp8(x: array, *, stream: StreamOrDevice = None) -> array:
    """Floating-point values as e4m3 in uint8: nearest, ties to even; larger ones become the largest, 448."""
    check_stream("to_fp8", stream)
    value = check_array("to_fp8", x)
    if not value.dtype.is_inexact or value.dtype.kind == "c":
        raise failure(
            ValueError, f"[to_fp8] Only real floating types are supported but x.dtype() == {value.dtype.name}."
        )
    return _to_e4m3(value)


def from_fp8(x: array, dtype: Dtype = bfloat16, *, stream: StreamOrDevice = None) -> array:
    """e4m3 codes (uint8) as values of a floating dtype."""
    check_stream("from_fp8", stream)
    code = check_array("from_fp8", x)
    if code.dtype is not uint8:
        raise failure(ValueError, f"[from_fp8] Input must have type uint8 but x.dtype() == {code.dtype.name}.")
    if not dtype.is_float:
        raise failure(ValueError, f"[from_fp8] Only real floating types are supported but dtype == {dtype.name}.")
    return _from_e4m3(code).astype(dtype)


# -- packing -----------------------------------------------------------------------------------------------------------


def _packed(values: array, bits: int) -> array:
    """Values below 2^bits (uint32) as words; the values of a row fill them, without a rest."""
    *lead, n = values.shape
    filled = bits // math.gcd(bits, 32)  # words that hold whole values
    blocks = values.reshape(*lead, n * bits // 32 // filled, filled * 32 // bits)
    words = []
    for word in range(filled):
        first, last = word * 32 // bits, (word * 32 + 31) // bits
        start = arange(first, last + 1) * bits - word * 32  # of each value, in bits from the start of the word
        part = blocks[..., first : last + 1]
        left, right = elementwise.maximum(start, 0).astype(uint32), elementwise.maximum(-start, 0).astype(uint32)
        words.append(reduce.sum((part >> right) << left, -1))
    return shape.stack(words, -1).reshape(*lead, n * bits // records.WORD)


def _unpacked(words: array, bits: int) -> array:
    return wrap(emit(records.unpack_bits, words._value, bits=bits))


def _affine(w: array, bits: int) -> tuple[array, array, array]:
    """Values, scales and biases of groups along the last axis; in float32, as MLX computes them.

    The end of the range that is farther from zero is met exactly, and zero too; one bit chooses between the ends.
    """
    levels = float((1 << bits) - 1)
    wide = w.astype(float32)
    high, low = reduce.max(wide, -1, True), reduce.min(wide, -1, True)
    if bits == 1:
        scale = elementwise.maximum(high - low, 1e-7)
        return elementwise.clip(elementwise.round((wide - low) / scale), 0, 1).astype(uint32), scale, low
    below = elementwise.abs(low) > elementwise.abs(high)
    scale = elementwise.maximum((high - low) / levels, 1e-7)
    scale = elementwise.where(below, scale, -scale)
    edge = elementwise.where(below, low, high)
    zero = elementwise.round(edge / scale)
    exact = zero != 0
    scale = elementwise.where(exact, edge / elementwise.where(exact, zero, 1), scale)
    bias = elementwise.where(exact, edge, 0)
    values = elementwise.clip(elementwise.round((wide - bias) / scale), 0, levels)
    return values.astype(uint32), scale, bias


def _microscaled(w: array, form: Format, bits: int, global_scale: array | None) -> tuple[array, array]:
    """Codes (uint32) and scales (uint8) of groups along the last axis."""
    wide = w.astype(float32)
    top = reduce.max(elementwise.abs(wide), -1, True) / _LARGEST[bits]
    if form.mode == "nvfp4":
        outer = wrap(full(1.0, (), float32)) if global_scale is None else global_scale / (_LARGEST[4] * _LARGEST[8])
        scale_code = _to_e4m3(top / outer)
        scale = _from_e4m3(scale_code) * outer
    else:
        exponent = elementwise.ceil(elementwise.log2(top))
        exponent = elementwise.where(elementwise.isfinite(exponent), exponent, 0)
        scale_code = (elementwise.clip(exponent, -127, 127) + 127).astype(uint8)
        scale = _from_e8m0(scale_code)
    relative = wide / elementwise.where(scale == 0, 1, scale)
    relative = elementwise.where(scale == 0, 0, relative)
    codes = _to_e2m1(relative) if bits == 4 else _to_e4m3(relative).astype(uint32)
    return codes, scale_code


def quantize(
    w: array,
    /,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    global_scale: array | None = None,
    stream: StreamOrDevice = None,
) -> list[array]:
    """Pack floating-point rows (..., n): words (..., n * bits / 32) of uint32, scales (..., n / group_size), and for
    "affine" biases like the scales.

    | mode   | group sizes      | bits                    | scales        |
    |--------|------------------|-------------------------|---------------|
    | affine | 64 (default), 32, 128 | 4 (default), 1, 2, 3, 5, 6, 8 | dtype of w |
    | mxfp4  | 32 | 4 | e8m0 in uint8 |
    | mxfp8  | 32 | 8 | e8m0 in uint8 |
    | nvfp4  | 16 | 4 | e4m3 in uint8, relative to `global_scale` if given |

    Raises ValueError for other sizes, for fewer than two axes, and where n is no multiple of the group size.
    """
    check_stream("quantize", stream)
    x = check_array("quantize", w)
    form, size, width = _chosen("quantize", mode, group_size, bits)
    if not x.dtype.is_inexact or x.dtype.kind == "c" or x.dtype is float64:
        raise failure(
            ValueError, f"[quantize] Only real floating types can be quantized but w has type {x.dtype.name}."
        )
    if x.ndim < 2:
        raise failure(
            ValueError,
            f"[quantize] The matrix to be quantized must have at least 2 dimension but it has only {x.ndim}.",
        )
    if x.shape[-1] % size:
        raise failure(
            ValueError,
            "[quantize] The last dimension of the matrix needs to be divisible by the quantization group size"
            f" {size}. However the provided  matrix has shape {shape.text(x.shape)}",
        )
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
    if form.affine:
        values, scale, bias = _affine(groups, width)
        parts = tuple(shape.squeeze(p, -1).astype(x.dtype) for p in (scale, bias))
    else:
        values, scale = _microscaled(groups, form, width, global_scale)
        parts = (shape.squeeze(scale, -1),)
    return [_packed(values.reshape(x.shape), width), *parts]


def _check_packed(
    name: str, w: array, scales: array, biases: array | None, form: Format, size: int, width: int
) -> None:
    if w.dtype is not uint32:
        raise failure(ValueError, f"[{name}] The weight matrix should be uint32 but received {w.dtype.name}")
    if form.affine and biases is None:
        raise failure(ValueError, f"[{name}] Biases must be provided for affine quantization.")
    if w.ndim < 2 or scales.ndim != w.ndim:
        raise failure(ValueError, f"[{name}] The matrix and its scales must both have at least 2 dimensions.")
    if w.shape[:-1] != scales.shape[:-1] or w.shape[-1] * 32 != scales.shape[-1] * size * width:
        raise failure(
            ValueError,
            f"[{name}] Shape of scales and biases does not match the matrix given the quantization parameters. Provided"
            f" matrix of shape {shape.text(w.shape)} and scales/biases of shape {shape.text(scales.shape)} with"
            f" group_size={size} and bits={width}.",
        )
    if biases is not None and biases.shape != scales.shape:
        raise failure(ValueError, f"[{name}] Scales {scales.shape} and biases {biases.shape} differ in shape.")


def _dequantised(
    w: array, scales: array, biases: array | None, form: Format, size: int, width: int, global_scale: array | None
) -> array:
    """The values, of the scales' dtype (affine) or float32."""
    codes = _unpacked(w, width)
    groups = codes.reshape(*codes.shape[:-1], scales.shape[-1], size)
    if form.affine:
        assert biases is not None
        values = groups.astype(scales.dtype) * shape.expand_dims(scales, -1) + shape.expand_dims(biases, -1)
    else:
        values = _from_e2m1(groups) if width == 4 else _from_e4m3(groups.astype(uint8))
        scale = _from_e4m3(scales) if form.mode == "nvfp4" else _from_e8m0(scales)
        if global_scale is not None:
            scale = scale * (global_scale / (_LARGEST[4] * _LARGEST[8]))
        values = values * shape.expand_dims(scale, -1)
    return values.reshape(codes.shape)


def dequantize(
    w: array,
    /,
    scales: array,
    biases: array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    global_scale: array | None = None,
    dtype: Dtype | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """The values that `quantize` packed: of `dtype`, or the scales' (affine) or bfloat16 (the other modes)."""
    check_stream("dequantize", stream)
    form, size, width = _chosen("dequantize", mode, group_size, bits)
    _check_packed(
        "dequantize", check_array("dequantize", w), check_array("dequantize", scales), biases, form, size, width
    )
    values = _dequantised(w, scales, biases, form, size, width, global_scale)
    return values.astype(dtype or (scales.dtype if form.affine else bfloat16))


# -- products ----------------------------------------------------------------------------------------------------------


def _weights(
    name: str, x: array, w: array, scales: array, biases: array | None, transpose: bool, mode: str,
    group_size: int | None, bits: int | None, global_scale: array | None = None,
) -> tuple[array, array]:  # fmt: skip
    """`x` and the dequantised matrix, of one dtype, the matrix ready to be multiplied from the right."""
    x, w, scales = (check_array(name, v) for v in (x, w, scales))
    form, size, width = _chosen(name, mode, group_size, bits)
    _check_packed(name, w, scales, biases, form, size, width)
    dtype = x.dtype
    if form.affine:
        dtype = promote(promote(x.dtype, scales.dtype), biases.dtype)  # type: ignore[union-attr]
    if not dtype.is_inexact:
        raise failure(
            ValueError, f"[{name}] Only real floating types are supported but the result has type {dtype.name}."
        )
    if form.affine:
        scales, biases = scales.astype(dtype), biases.astype(dtype)  # type: ignore[union-attr]
    matrix = _dequantised(w, scales, biases, form, size, width, global_scale).astype(dtype)
    inner = matrix.shape[-1] if transpose else matrix.shape[-2]
    if not x.shape or x.shape[-1] != inner:
        rows, columns = matrix.shape[-2:][::-1] if transpose else matrix.shape[-2:]
        raise failure(
            ValueError,
            f"[{name}] Last dimension of first input with shape (..., {x.shape[-1] if x.shape else ''}) does not match"
            f" the expanded quantized matrix ({rows}, {columns}) computed from shape {shape.text(w.shape)} with"
            f" group_size={size}, bits={width} and transpose={str(bool(transpose)).lower()}",
        )
    return wrap(cast(x._value, dtype)), shape.swapaxes(matrix, -1, -2) if transpose else matrix


def quantized_matmul(
    x: array,
    w: array,
    /,
    scales: array,
    biases: array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    stream: StreamOrDevice = None,
) -> array:
    """`x @ w.T` (`x @ w` without `transpose`) for a quantised `w`; the batch axes broadcast."""
    check_stream("quantized_matmul", stream)
    return contract.matmul(*_weights("quantized_matmul", x, w, scales, biases, transpose, mode, group_size, bits))


def gather_qmm(
    x: array,
    w: array,
    /,
    scales: array,
    biases: array | None = None,
    lhs_indices: array | None = None,
    rhs_indices: array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    global_scale: array | None = None,
    *,
    sorted_indices: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """`gather_mm` with a quantised right side."""
    check_stream("gather_qmm", stream)
    left, right = _weights("gather_qmm", x, w, scales, biases, transpose, mode, group_size, bits, global_scale)
    return contract.gather_mm(left, right, lhs_indices, rhs_indices, sorted_indices=sorted_indices)


def _both(
    name: str, x: array, w: array, scales: array | None, group_size: int | None, bits: int | None, mode: str,
    scale_x: array | None, scale_w: array | None,
) -> tuple[array, array]:  # fmt: skip
    """Both sides rounded to the format: `x`, and the matrix to multiply it with from the right."""
    if mode not in ("nvfp4", "mxfp8"):
        raise failure(ValueError, f"[{name}] Only the modes 'nvfp4' and 'mxfp8' are supported, got '{mode}'.")
    x, w = check_array(name, x), check_array(name, w)
    form, size, width = _chosen(name, mode, group_size, bits)
    if scales is None:
        w, scales = quantize(w, size, width, mode, global_scale=scale_w)
    _check_packed(name, w, scales, None, form, size, width)
    packed, own = quantize(x, size, width, mode, global_scale=scale_x)
    left = _dequantised(packed, own, None, form, size, width, scale_x)
    right = _dequantised(w, scales, None, form, size, width, scale_w)
    return left.astype(x.dtype), shape.swapaxes(right, -1, -2).astype(x.dtype)


def qqmm(
    x: array,
    w: array,
    scales: array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "nvfp4",
    global_scale_x: array | None = None,
    global_scale_w: array | None = None,
    *,
    stream: StreamOrDevice = None,
) -> array:
    """`x @ w.T` with both sides quantised ("nvfp4" or "mxfp8"); `w` is quantised here unless `scales` says it is."""
    check_stream("qqmm", stream)
    return contract.matmul(*_both("qqmm", x, w, scales, group_size, bits, mode, global_scale_x, global_scale_w))


def gather_qqmm(
    x: array,
    w: array,
    /,
    scales: array | None = None,
    lhs_indices: array | None = None,
    rhs_indices: array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "nvfp4",
    global_scale_x: array | None = None,
    global_scale_w: array | None = None,
    *,
    sorted_indices: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """`gather_mm` with both sides quantised, as in `qqmm`."""
    check_stream("gather_qqmm", stream)
    left, right = _both("gather_qqmm", x, w, scales, group_size, bits, mode, global_scale_x, global_scale_w)
    return contract.gather_mm(left, right, lhs_indices, rhs_indices, sorted_indices=sorted_indices)
