"""Fourier transforms: values, shapes, dtypes and error types as real MLX gives them; gradients by finite differences."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from counting import Counter

import mlxir as mx


def names(m: object) -> dict:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4, 5))
    array = m.array  # type: ignore[attr-defined]
    return {"F": m.fft, "x": array(np.float32(x)), "z": array((x + 1j * y).astype(np.complex64)), "i": m.arange(6),  # type: ignore[attr-defined]
            "s": array(np.float32(rng.standard_normal((2, 64)))), "w": array(np.hanning(16).astype(np.float32)), "zero": array(1.0)}  # fmt: skip


ONE = [f"F.{f}({x}{more})" for f in ("fft", "ifft", "rfft", "irfft") for x in ("x", "z", "i", "x.astype(m.float16)")
       for more in ("", ", n=3", ", n=9", ", axis=0", ", n=2, axis=0", ", norm='ortho'", ", 5, 0, 'forward'", ", n=0", ", norm='no'")]  # fmt: skip
MANY = [f"F.{f}({x}{more})" for f in ("fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn") for x in ("x", "z")
        for more in ("", ", axes=(0, 2)", ", s=(3, 6), axes=(1, 2)", ", axes=(2, 0), norm='ortho'", ", s=(3,)", ", axes=(1, 1)", ", axes=[]", ", s=(2, 2, 2), axes=(0, 1)")]  # fmt: skip
REST = [
    *[f"F.fftfreq({x})" for x in ("1", "5", "8, 0.5", "0", "-2", "3, d=0")],
    *[f"F.rfftfreq({x})" for x in ("1", "5", "8, 0.5", "0", "3, d=0")],
    *[f"F.{f}({x})" for f in ("fftshift", "ifftshift") for x in ("x", "i", "x, axes=1", "x, axes=(0, 2)", "x, axes=[]", "x, axes=7", "zero")],
    "F.fft(zero)", "F.fftn(zero)", "F.fft([1, 2])", "F.fft(x, axis=9)",
    *[f"F.stft(s, {more})" for more in ("16", "16, 4", "16, 8, window=w", "16, 4, 8", "16, center=False", "16, pad_mode='constant'", "16, pad_mode='edge'",
                                        "16, onesided=False", "15, 5", "16, norm='ortho'", "200, center=False")],
    "F.stft(s.astype(m.complex64), 16)", "F.stft(s[0], 16, 4, window=w)",
    *[f"F.istft(F.stft(s, {n}, window={w}), hop_length={hop}, window={w}{more})" for n, hop, w, more in
      [(16, 4, "w", ""), (16, 4, "None", ""), (16, 4, "w", ", length=60"), (16, 4, "w", ", length=80"), (16, 4, "w", ", center=False")]],
    "F.istft(F.stft(s, 15, 5), 15, 5)", "F.istft(F.stft(s, 16, onesided=False), onesided=False)",
]  # fmt: skip


@pytest.mark.parametrize("text", [*ONE, *MANY, *REST])
def test_agrees_with_mlx(text: str) -> None:
    oracle.assert_agree(oracle.expression(text, names))


GRADIENTS = {
    "fft": lambda x: mx.abs(mx.fft.fft(x, n=7)), "ifft2": lambda x: mx.real(mx.fft.ifft2(x)), "rfft": lambda x: mx.fft.rfft(x, axis=0),
    "irfft": lambda x: mx.fft.irfft(mx.fft.rfft(x), n=6), "rfftn": lambda x: mx.abs(mx.fft.rfftn(x)) ** 2,
    "stft": lambda x: mx.abs(mx.fft.stft(x.reshape(-1), 4, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_both_modes(name: str) -> None:
    mx.testing.check_grads(GRADIENTS[name], [names(mx)["x"][0]], order=2, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", GRADIENTS)
def test_vmap_and_compile_change_nothing(name: str) -> None:
    f, x = GRADIENTS[name], names(mx)["x"]
    loop = np.stack([np.array(f(row)) for row in x])
    counted = Counter(mx.vmap(f))
    compiled = mx.compile(counted)
    for found in (compiled(x), compiled(x)):
        np.testing.assert_allclose(np.array(found), loop, rtol=1e-4, atol=1e-4)
    assert counted.runs == 1
