"""`mlxir.fft`: discrete Fourier transforms with NumPy's names and conventions, and the short-time transform.

Results are complex64 (the `irfft` family: float32). All are differentiable and vmap; they run on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlxir.compiler.graph import Value
from mlxir.dialects.mx import fft as records
from mlxir.dialects.symbolic import as_index
from mlxir.runtime.dtypes import complex64, float32
from mlxir.runtime.errors import AxisError

from .devices import StreamOrDevice, check_stream
from .ndarray import array, wrap
from .ops import creation, elementwise, indexing, shape
from .ops.common import check_array, failure
from .values import axes_of, axis_of, cast, emit, full, slice_axis

__all__ = ["fft", "fft2", "fftfreq", "fftn", "fftshift", "ifft", "ifft2", "ifftn", "ifftshift", "irfft", "irfft2",
           "irfftn", "istft", "rfft", "rfft2", "rfftfreq", "rfftn", "stft"]  # fmt: skip

Axes = Sequence[int] | None
_NORMS = ("backward", "ortho", "forward")


def _check_norm(name: str, norm: str) -> None:
    if norm not in _NORMS:
        raise failure(ValueError, f"[{name}] Invalid norm. Expected one of {{'backward', 'ortho', 'forward'}}.")


def _plan(name: str, x: Value, s: Axes, axes: Axes) -> tuple[tuple[int, ...], list[int | None]]:
    """The axes to transform and the number of points asked for along each (None: as many as there are)."""
    ndim = len(x.shape)
    if axes is None and s is not None:
        raise failure(ValueError, f"[{name}] `axes` should not be `None` if `s` is not `None`.")
    if not ndim:
        raise failure(AxisError, "[fftn] Requires array with at least one dimension.")
    if axes is None:
        axes = range(ndim)
    found = tuple(axis_of("fftn", a, ndim) for a in axes)
    if len(set(found)) != len(found):
        raise failure(ValueError, f"[fftn] Duplicated axis received {tuple(axes)}.")
    if s is not None and len(s) != len(found):
        raise failure(ValueError, "[fftn] Shape and axes have different sizes.")
    return found, [None] * len(found) if s is None else [int(n) for n in s]


def _resized(x: Value, axis: int, n: int) -> Value:
    """`x` cut or padded with zeros to `n` points along an axis."""
    have = x.shape[axis]
    if n <= have:
        return slice_axis(x, axis, 0, n)
    widths = [(0, n - have if a == axis else 0) for a in range(len(x.shape))]
    return shape.pad(wrap(x), widths)._value


def _prepared(
    name: str, a: array, s: Axes, axes: Axes, norm: str, half: bool = False
) -> tuple[Value, tuple[int, ...], list[int]]:
    """The operand cut or padded, the axes to transform, and the points of the signal along each.

    `half`: of the signal's n points along the last axis the operand holds the first n // 2 + 1 frequencies. Errors
    carry the name of the general transform, as in MLX.
    """
    x = check_array(name, a)._value
    _check_norm(name, norm)
    found, asked = _plan(name, x, s, axes)
    sizes = [x.shape[axis] if n is None else n for axis, n in zip(found, asked, strict=True)]
    if half and found and asked[-1] is None:
        sizes[-1] = 2 * (sizes[-1] - 1)
    if any(n <= 0 for n in sizes):
        raise failure(ValueError, f"[fftn] Invalid FFT output size requested ({','.join(map(str, sizes))})")
    for axis, n in zip(found, sizes, strict=True):
        x = _resized(x, axis, n // 2 + 1 if half and axis == found[-1] else n)
    return x, found, sizes


def _scaled(x: Value, points: int, norm: str, inverse: bool) -> array:
    """The result under `norm`; the records follow "backward"."""
    power = {"backward": 0.0, "ortho": 0.5, "forward": 1.0}[norm]
    factor = points**power if inverse else points**-power
    return wrap(x) if factor == 1 else wrap(x) * factor


def _complex(name: str, a: array, s: Axes, axes: Axes, norm: str, inverse: bool) -> array:
    x, found, sizes = _prepared(name, a, s, axes, norm)
    if not found:
        return a
    out = emit(records.fft, cast(x, complex64), axes=found, inverse=inverse)
    return _scaled(out, math.prod(sizes), norm, inverse)


def _real(name: str, a: array, s: Axes, axes: Axes, norm: str) -> array:
    x, found, sizes = _prepared(name, a, s, axes, norm)
    if not found:
        return a
    out = emit(records.rfft, cast(x, float32), axis=found[-1])
    if found[:-1]:
        out = emit(records.fft, out, axes=found[:-1], inverse=False)
    return _scaled(out, math.prod(sizes), norm, False)


def _real_inverse(name: str, a: array, s: Axes, axes: Axes, norm: str) -> array:
    x, found, sizes = _prepared(name, a, s, axes, norm, half=True)
    if not found:
        return a
    x = cast(x, complex64)
    if found[:-1]:
        x = emit(records.fft, x, axes=found[:-1], inverse=True)
    return _scaled(emit(records.irfft, x, axis=found[-1], n=sizes[-1]), math.prod(sizes), norm, True)


def _points(n: int | None) -> Axes:
    return None if n is None else (n,)


def fft(a: array, n: int | None = None, axis: int = -1, norm: str = "backward", stream: StreamOrDevice = None) -> array:
    """The transform along an axis, cut or padded with zeros to `n` points."""
    check_stream("fft", stream)
    return _complex("fft", a, _points(n), (axis,), norm, False)


def ifft(
    a: array, n: int | None = None, axis: int = -1, norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """The inverse of `fft`."""
    check_stream("ifft", stream)
    return _complex("ifft", a, _points(n), (axis,), norm, True)


def fftn(a: array, s: Axes = None, axes: Axes = None, norm: str = "backward", stream: StreamOrDevice = None) -> array:
    """The transform over several axes (all if None), cut or padded to the sizes `s`."""
    check_stream("fftn", stream)
    return _complex("fftn", a, s, axes, norm, False)


def ifftn(a: array, s: Axes = None, axes: Axes = None, norm: str = "backward", stream: StreamOrDevice = None) -> array:
    """The inverse of `fftn`."""
    check_stream("ifftn", stream)
    return _complex("ifftn", a, s, axes, norm, True)


def fft2(
    a: array, s: Axes = None, axes: Axes = (-2, -1), norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """`fftn` over the last two axes."""
    check_stream("fft2", stream)
    return _complex("fft2", a, s, axes, norm, False)


def ifft2(
    a: array, s: Axes = None, axes: Axes = (-2, -1), norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """The inverse of `fft2`."""
    check_stream("ifft2", stream)
    return _complex("ifft2", a, s, axes, norm, True)


def rfft(
    a: array, n: int | None = None, axis: int = -1, norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """The n // 2 + 1 non-negative frequencies of real values; of complex ones the real part is taken."""
    check_stream("rfft", stream)
    return _real("rfft", a, _points(n), (axis,), norm)


def irfft(
    a: array, n: int | None = None, axis: int = -1, norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """The inverse of `rfft`: `n` real values, 2 (frequencies - 1) if None."""
    check_stream("irfft", stream)
    return _real_inverse("irfft", a, _points(n), (axis,), norm)


def rfftn(a: array, s: Axes = None, axes: Axes = None, norm: str = "backward", stream: StreamOrDevice = None) -> array:
    """`rfft` over the last of `axes`, `fft` over the others."""
    check_stream("rfftn", stream)
    return _real("rfftn", a, s, axes, norm)


def irfftn(a: array, s: Axes = None, axes: Axes = None, norm: str = "backward", stream: StreamOrDevice = None) -> array:
    """The inverse of `rfftn`; the last of `s` counts real values."""
    check_stream("irfftn", stream)
    return _real_inverse("irfftn", a, s, axes, norm)


def rfft2(
    a: array, s: Axes = None, axes: Axes = (-2, -1), norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """`rfftn` over the last two axes."""
    check_stream("rfft2", stream)
    return _real("rfft2", a, s, axes, norm)


def irfft2(
    a: array, s: Axes = None, axes: Axes = (-2, -1), norm: str = "backward", stream: StreamOrDevice = None
) -> array:
    """The inverse of `rfft2`."""
    check_stream("irfft2", stream)
    return _real_inverse("irfft2", a, s, axes, norm)


# -- frequencies and shifts --------------------------------------------------------------------------------------------


def _check_samples(name: str, n: int, d: float) -> None:
    if n <= 0:
        raise failure(ValueError, f"[{name}] `n` must be greater than 0.")
    if d == 0:
        raise failure(ValueError, f"[{name}] `d` must be non-zero.")


def fftfreq(n: int, d: float = 1.0, stream: StreamOrDevice = None) -> array:
    """The frequency of each result of an `fft` of `n` samples at spacing `d`: float32 (n,)."""
    check_stream("fftfreq", stream)
    n = as_index(n)
    _check_samples("fftfreq", n, d)
    low, high = creation.arange(0, (n + 1) // 2), creation.arange(-(n // 2), 0)
    return shape.concatenate([low, high]).astype(float32) * (1 / (n * d))


def rfftfreq(n: int, d: float = 1.0, stream: StreamOrDevice = None) -> array:
    """The frequency of each result of an `rfft` of `n` samples at spacing `d`: float32 (n // 2 + 1,)."""
    check_stream("rfftfreq", stream)
    n = as_index(n)
    _check_samples("rfftfreq", n, d)
    return creation.arange(0, n // 2 + 1).astype(float32) * (1 / (n * d))


def _shifted(name: str, a: array, axes: int | Axes, direction: int) -> array:
    x = check_array(name, a)
    found = axes_of(name, axes, x.ndim)
    if not found:
        return x
    by = [x.shape[i] // 2 if direction > 0 else -(x.shape[i] // 2) for i in found]
    return shape.roll(x, by, list(found))


def fftshift(a: array, axes: int | Axes = None, stream: StreamOrDevice = None) -> array:
    """Move frequency zero to the centre of the axes (all if None)."""
    check_stream("fftshift", stream)
    return _shifted("fftshift", a, axes, 1)


def ifftshift(a: array, axes: int | Axes = None, stream: StreamOrDevice = None) -> array:
    """The inverse of `fftshift`."""
    check_stream("ifftshift", stream)
    return _shifted("ifftshift", a, axes, -1)


# -- the short-time transform ------------------------------------------------------------------------------------------


def _window(name: str, window: array | None, win_length: int | None, n_fft: int) -> array:
    """The window, centred in `n_fft` points."""
    length = n_fft if win_length is None else win_length
    if not 0 < length <= n_fft:
        raise failure(ValueError, f"[{name}] `win_length` must be in [1, n_fft = {n_fft}], got {length}.")
    if window is None:
        window = wrap(full(1, (length,), float32))
    if window.ndim != 1 or window.shape[0] != length:
        raise failure(ValueError, f"[{name}] The window must have shape ({length},), got {window.shape}.")
    left = (n_fft - length) // 2
    return shape.pad(window, (left, n_fft - length - left)) if length < n_fft else window


def _check_frames(name: str, n_fft: int, hop: int) -> None:
    if n_fft <= 0 or hop <= 0:
        raise failure(ValueError, f"[{name}] `n_fft` and `hop_length` must be positive, got {n_fft} and {hop}.")


def _frame_starts(frames: int, hop: int, n_fft: int) -> array:
    """index[frame, i] = the sample under point i of a frame."""
    return creation.arange(frames).reshape(frames, 1) * hop + creation.arange(n_fft).reshape(1, n_fft)


def stft(
    x: array,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: array | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    norm: str = "backward",
    onesided: bool | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Short-time Fourier transform of the last axis: complex64 (..., frequencies, frames).

    Frames of `n_fft` points every `hop_length` (n_fft // 4 if None) samples, times `window` (ones if None; padded to
    `n_fft` points from `win_length`). With `center` the signal is padded by n_fft // 2 on both sides ("reflect",
    "constant" or "edge"). `onesided` keeps the non-negative frequencies: by default for real signals.
    """
    check_stream("stft", stream)
    signal = check_array("stft", x)
    hop = n_fft // 4 if hop_length is None else hop_length
    _check_frames("stft", n_fft, hop)
    if signal.ndim < 1:
        raise failure(ValueError, "[stft] Requires array with at least one dimension.")
    if pad_mode not in ("reflect", "constant", "edge"):
        raise failure(ValueError, f"[stft] Invalid pad_mode {pad_mode!r}; use 'reflect', 'constant' or 'edge'.")
    real = signal.dtype is not complex64
    if onesided is None:
        onesided = real
    if center:
        widths = [(0, 0)] * (signal.ndim - 1) + [(n_fft // 2, n_fft // 2)]
        signal = shape.pad(signal, widths, pad_mode)
    if signal.shape[-1] < n_fft:
        raise failure(ValueError, f"[stft] The signal of {signal.shape[-1]} samples is shorter than n_fft = {n_fft}.")
    frames = (signal.shape[-1] - n_fft) // hop + 1
    framed = indexing.take(signal, _frame_starts(frames, hop, n_fft), axis=-1)
    framed = framed * _window("stft", window, win_length, n_fft)
    return shape.swapaxes(rfft(framed, norm=norm) if onesided else fft(framed, norm=norm), -1, -2)


def istft(
    stft_matrix: array,
    n_fft: int | None = None,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: array | None = None,
    center: bool = True,
    norm: str = "backward",
    onesided: bool | None = None,
    length: int | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """The inverse of `stft`: overlapping frames are added and divided by the sum of the squared windows.

    Takes (..., frequencies, frames) and gives (..., samples), `length` of them if given: float32, the real part
    where `onesided` is False (True if None). `n_fft` follows from the frequencies if None, an even number if
    one-sided; where there are others than belong to it, they are cut or padded with zeros.
    """
    check_stream("istft", stream)
    spectrum = check_array("istft", stft_matrix)
    if spectrum.ndim < 2:
        raise failure(ValueError, f"[istft] Requires (..., frequencies, frames), got shape {spectrum.shape}.")
    onesided = True if onesided is None else onesided
    frequencies, frames = spectrum.shape[-2:]
    if n_fft is None:
        n_fft = 2 * (frequencies - 1) if onesided else frequencies
    hop = n_fft // 4 if hop_length is None else hop_length
    _check_frames("istft", n_fft, hop)
    columns = shape.swapaxes(spectrum, -1, -2)
    inverse = irfft if onesided else ifft
    framed = elementwise.real(inverse(columns, n=n_fft, norm=norm))
    weights = _window("istft", window, win_length, n_fft)
    framed = framed * weights
    total = (frames - 1) * hop + n_fft
    index = _frame_starts(frames, hop, n_fft).reshape(-1)
    batch = framed.shape[:-2]
    added = _overlapped(framed.reshape(*batch, frames * n_fft), index, total)
    squares = shape.broadcast_to(elementwise.square(weights), (frames, n_fft)).reshape(-1)
    envelope = _overlapped(squares, index, total)
    out = added / elementwise.maximum(envelope, 1e-11)
    if center:
        out = out[..., n_fft // 2 :]
    if length is None:
        return out[..., : out.shape[-1] - n_fft // 2] if center else out
    have = out.shape[-1]
    if length <= have:
        return out[..., :length]
    return shape.pad(out, [(0, 0)] * (out.ndim - 1) + [(0, length - have)])


def _overlapped(values: array, index: array, total: int) -> array:
    """Sum of the values that fall on each of `total` samples."""
    zeros: Any = creation.zeros((*values.shape[:-1], total), values.dtype)
    return zeros.at[..., index].add(values)
