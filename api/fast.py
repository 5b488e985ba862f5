"""`mlxir.fast`: what MLX has kernels for. Here these are compositions of plain operations, which the compiler fuses."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

from mlxir.compiler.graph import Value, running
from mlxir.dialects.mx import attention
from mlxir.dialects.mx import elementwise as prim
from mlxir.dialects.mx import fast as composites
from mlxir.runtime.dtypes import Dtype, bool_, float32, promote, scalar_dtype

from .custom_kernels import cuda_kernel, metal_kernel, precompiled_cuda_kernel
from .devices import StreamOrDevice, check_stream
from .dtype_info import finfo
from .gated_delta import gated_delta_update
from .ndarray import array, wrap
from .ops.common import check_array, failure
from .ops.indexing import take_along_axis
from .ops.reduce import logsumexp
from .ops.shape import text
from .values import (
    arange,
    binary,
    broadcast_shape,
    cast,
    concatenate,
    emit,
    full,
    record,
    reshape,
    slice_axis,
    unary,
)  # fmt: skip

__all__ = [
    "cross_entropy", "cuda_kernel", "gated_delta_update", "layer_norm", "metal_kernel", "precompiled_cuda_kernel",
    "rms_norm", "rope", "scaled_dot_product_attention",
]  # fmt: skip


def _check_norm(name: str, x: Value, **parameters: Value | None) -> Dtype:
    """The result dtype of a normalisation. Raises ValueError for operands that do not fit."""
    if not x.shape:
        raise failure(ValueError, f"[{name}] Input must have at least 1 dimension but got input with 0 dimensions.")
    dtype = x.dtype
    for what, p in parameters.items():
        if p is None:
            continue
        if len(p.shape) != 1:
            raise failure(ValueError, f"[{name}] ({what}) must have 1 dimension but has {len(p.shape)} dimensions.")
        if p.shape[0] != x.shape[-1]:
            raise failure(
                ValueError,
                f"[{name}] ({what}) must have the same size as the last dimension of x ({x.shape[-1]})"
                f" but has {p.shape[0]} elements.",
            )
        dtype = promote(dtype, p.dtype)
    if not dtype.is_float:
        raise failure(ValueError, f"[{name}] Received unsupported type {dtype.name}.")
    return dtype


def _normalised(x: Value, eps: float, centred: bool) -> Value:
    """`x / sqrt(mean(x * x) + eps)` over the last axis, where `centred` after the mean has been subtracted."""
    n = x.shape[-1]
    each, attrs = full(1.0 / n if n else math.inf, (), x.dtype), {"axes": (len(x.shape) - 1,), "centred": centred}
    return record(composites.normalize, (x, each, full(eps, (), x.dtype)), attrs, x.shape, x.dtype)


def _work_dtype(dtype: Dtype) -> Dtype:
    """Half precision is normalised in float32."""
    return float32 if dtype.size < 4 or not dtype.is_float else dtype


def rms_norm(x: array, weight: array | None, eps: float, *, stream: StreamOrDevice = None) -> array:
    """Root mean square normalisation of the last axis, scaled by `weight`."""
    check_stream("rms_norm", stream)
    v = check_array("rms_norm", x)._value
    w = None if weight is None else check_array("rms_norm", weight)._value
    dtype = _check_norm("rms_norm", v, weight=w)
    out = cast(_normalised(cast(v, _work_dtype(dtype)), eps, centred=False), dtype)
    return wrap(out if w is None else binary(prim.multiply, out, cast(w, dtype)))


def layer_norm(
    x: array, weight: array | None, bias: array | None, eps: float, *, stream: StreamOrDevice = None
) -> array:
    """Normalises the last axis to mean 0 and variance 1; then `weight * x + bias`."""
    check_stream("layer_norm", stream)
    v = check_array("layer_norm", x)._value
    w = None if weight is None else check_array("layer_norm", weight)._value
    b = None if bias is None else check_array("layer_norm", bias)._value
    dtype = _check_norm("layer_norm", v, weight=w, bias=b)
    if w is None:  # then the bias does not count, as in MLX
        dtype = _check_norm("layer_norm", v)
    out = cast(_normalised(cast(v, _work_dtype(dtype)), eps, centred=True), dtype)
    if w is not None:
        out = binary(prim.multiply, out, cast(w, dtype))
    return wrap(out if b is None else binary(prim.add, out, cast(b, dtype)))


def cross_entropy(logits: array, targets: array, *, stream: StreamOrDevice = None) -> array:
    """logsumexp(logits) - logits[target] over the last axis, in float32."""
    check_stream("cross_entropy", stream)
    x = check_array("cross_entropy", logits)
    t = check_array("cross_entropy", targets)
    if not x.ndim or t.shape != x.shape[:-1]:
        raise failure(
            ValueError, f"[cross_entropy] targets of shape {text(t.shape)} do not fit logits of shape {text(x.shape)}."
        )
    if not x.dtype.is_float or not t.dtype.is_integer:
        raise failure(
            ValueError, f"[cross_entropy] logits must be floating and targets integer, got {x.dtype}, {t.dtype}."
        )
    score = take_along_axis(x, wrap(reshape(t._value, (*t.shape, 1))), -1)
    loss = logsumexp(x, -1)._value
    return wrap(cast(binary(prim.subtract, loss, reshape(score._value, t.shape)), float32))


# -- rotary embedding ------------------------------------------------------------------------------------------------
def rope(
    a: array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: int | array,
    freqs: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Rotates pairs of the first `dims` features of `a` (B, *, T, D) by angles that grow with the position.

    Pairs are neighbours (`traditional`) or half of `dims` apart. `offset` is an int, a scalar or one per example.
    """
    check_stream("rope", stream)
    x = check_array("rope", a)._value
    if len(x.shape) < 3:
        raise failure(
            ValueError, f"[rope] Input must have at least 3 dimensions but got input with {len(x.shape)} dimensions."
        )
    if not x.dtype.is_float:
        raise failure(ValueError, f"[rope] Input must be a floating type but got {x.dtype.name}.")
    kind = offset.dtype if isinstance(offset, array) else scalar_dtype(offset)
    if not kind.is_integer:
        raise failure(ValueError, f"[rope] offset must be an integer but got type {kind.name}.")
    if (base is None) == (freqs is None):
        raise failure(ValueError, "[rope] Only one of base or freqs can have a value.")
    half = dims // 2
    if not 0 < dims <= x.shape[-1] or dims % 2:
        raise failure(ValueError, f"[rope] dims must be even and at most {x.shape[-1]}, got {dims}.")
    cosine, sine = _rotations.find(x, half, base, scale, offset, freqs)
    last = len(x.shape) - 1
    if traditional:
        first, second = slice_axis(x, last, 0, dims - 1, 2), slice_axis(x, last, 1, dims, 2)
    else:
        first, second = slice_axis(x, last, 0, half), slice_axis(x, last, half, dims)
    left = binary(prim.subtract, binary(prim.multiply, first, cosine), binary(prim.multiply, second, sine))
    right = binary(prim.add, binary(prim.multiply, first, sine), binary(prim.multiply, second, cosine))
    if traditional:
        pairs = [reshape(v, (*left.shape, 1)) for v in (left, right)]
        parts = [reshape(concatenate(pairs, last + 1), (*left.shape[:-1], dims))]
    else:
        parts = [left, right]
    if dims < x.shape[-1]:
        parts.append(slice_axis(x, last, dims, x.shape[-1]))
    return wrap(concatenate(parts, last))


def _rotation(
    x: Value, half: int, base: float | None, scale: float, offset: int | array, freqs: array | None
) -> tuple[Value, Value]:
    """Cosine and sine of the angle at every position and frequency, in a shape that broadcasts to the halves of `x`."""
    rank, steps = len(x.shape), x.shape[-2]
    position = reshape(arange(0, 1, steps, float32), (steps, 1))
    if isinstance(offset, array):
        start = cast(offset._value, float32)
        if len(start.shape) > 1 or (start.shape and start.shape[0] not in (1, x.shape[0])):
            raise failure(
                ValueError,
                f"[rope] offset must be a scalar or vector with {x.shape[0]} elements but has shape"
                f" {text(start.shape)}.",
            )
        start = reshape(start, start.shape + (1,) * (rank - 1)) if start.shape else start
    else:
        start = full(offset, (), float32)
    position = binary(prim.multiply, binary(prim.add, position, start), full(scale, (), float32))
    if freqs is None:
        exponent = arange(0, -math.log(base or 1.0) / half, half, float32)
        inverse = unary(prim.exp, exponent)
    else:
        table = check_array("rope", freqs)._value
        if table.shape != (half,):
            raise failure(ValueError, f"[rope] freqs must have shape ({half}) but has shape {text(table.shape)}.")
        inverse = unary(prim.reciprocal, cast(table, float32))
    angle = binary(prim.multiply, position, inverse)
    return cast(unary(prim.cos, angle), x.dtype), cast(unary(prim.sin, angle), x.dtype)


class _Rotations(threading.local):
    """The last rotation of this thread by a number: layers of a model, queries and keys share it until it is evaluated.
    """

    def __init__(self) -> None:
        self.key: tuple = ()
        self.values: list[Callable[[], Value | None]] = []

    def find(self, x: Value, *given: Any) -> tuple[Value, Value]:
        """`_rotation`, or what it gave on the same tape."""
        if running.tape is None or isinstance(given[3], array) or given[4] is not None:
            return _rotation(x, *given)
        key = x.shape[-2], x.dtype, *given
        if key == self.key:
            cosine, sine = [value() for value in self.values]
            if cosine is not None and sine is not None and _recorded(cosine) and _recorded(sine):
                return cosine, sine
        made = _rotation(x, *given)
        self.key, self.values = key, [*map(weakref.ref, made)]
        return made


def _recorded(value: Value) -> bool:
    """Whether a value is on this thread's tape, still to be evaluated."""
    return value.node is not None and value.mark is not None and value.mark[0] is running.tape


_rotations = _Rotations()


# -- attention -------------------------------------------------------------------------------------------------------
def scaled_dot_product_attention(
    q: array,
    k: array,
    v: array,
    *,
    scale: float,
    mask: None | str | array = None,
    sinks: array | None = None,
    force_fused: bool = False,
    stream: StreamOrDevice = None,
) -> array:
    """softmax(scale * q @ k.T + mask) @ v for q (B, N_q, T_q, D), k and v (B, N_kv, T_kv, D), N_q a multiple of N_kv.

    `mask` is "causal" (aligned at the lower right), a bool or an additive array; `sinks` adds a logit per query head to
    the softmax's sum. The softmax runs in float32.
    """
    check_stream("scaled_dot_product_attention", stream)
    queries, keys, weights = (check_array("scaled_dot_product_attention", a)._value for a in (q, k, v))
    dtype, heads, groups = _check_attention(queries, keys, weights)
    batch, _, steps, _ = queries.shape
    bias, causal = full(True, (1, 1, 1, 1), bool_), False
    if isinstance(mask, str):
        if mask != "causal":
            raise failure(
                ValueError, f"[scaled_dot_product_attention] Invalid mask type {mask}: it must be 'causal' or an array."
            )
        causal = True
    elif mask is not None:
        bias = _attention_mask(mask, (batch, heads, steps, keys.shape[2]), dtype)
    extra = full(-math.inf, (1, 1), dtype)
    if sinks is not None:
        extra = check_array("scaled_dot_product_attention", sinks)._value
        if extra.shape != (heads,):
            raise failure(
                ValueError, f"[scaled_dot_product_attention] sinks must have shape ({heads}), got {text(extra.shape)}."
            )
        if promote(extra.dtype, dtype) is not dtype:
            raise failure(
                ValueError,
                f"[scaled_dot_product_attention] Type of sinks must promote to output type {dtype.name}.",
            )
        extra = reshape(cast(extra, dtype), (1, heads))
    operands = (cast(queries, dtype), cast(keys, dtype), cast(weights, dtype), bias, extra)
    attrs = {"scale": float(scale), "causal": causal, "fill": float(finfo(dtype).min), "swapped": False}
    return wrap(emit(attention.attention, *operands, **attrs))


def _check_attention(q: Value, k: Value, v: Value) -> tuple[Dtype, int, int]:
    """Result dtype, query heads and key heads. Raises ValueError for operands that do not fit."""
    tag = "[scaled_dot_product_attention]"
    for x in (q, k, v):
        if len(x.shape) != 4:
            raise failure(ValueError, f"{tag} input with shape {text(x.shape)} expected to be rank 4")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise failure(
            ValueError, f"{tag} mismatching batch dimension for input: {q.shape[0]}, {k.shape[0]}, {v.shape[0]}"
        )
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise failure(ValueError, f"{tag} shapes {text(q.shape)}, {text(k.shape)} and {text(v.shape)} do not fit")
    heads, groups = q.shape[1], k.shape[1]
    if groups != v.shape[1] or not groups or heads % groups:
        raise failure(
            ValueError,
            f"{tag} n_heads must be a multiple of n_kv_heads, found n_heads {heads} for n_kv_heads {groups}.",
        )
    dtype = promote(promote(q.dtype, k.dtype), v.dtype)
    if not dtype.is_float:
        raise failure(ValueError, f"{tag} Received unsupported type {dtype.name}.")
    return dtype, heads, groups


def _attention_mask(mask: array, shape: tuple[int, ...], dtype: Dtype) -> Value:
    """The mask with four axes, each of the length of `shape` (B, heads, T_q, T_kv) or 1."""
    found = check_array("scaled_dot_product_attention", mask)._value
    if len(found.shape) > 4 or broadcast_shape("scaled_dot_product_attention", found.shape, shape) != shape:
        raise failure(
            ValueError,
            f"[scaled_dot_product_attention] mask with shape {text(found.shape)} does not broadcast to {text(shape)}.",
        )
    if found.dtype is not bool_ and promote(found.dtype, dtype) is not dtype:
        raise failure(ValueError, "[scaled_dot_product_attention] Mask type must promote to output type.")
    found = found if found.dtype is bool_ else cast(found, dtype)
    return reshape(found, (1,) * (4 - len(found.shape)) + found.shape)
