"""Checks that users can run on their own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlxir.runtime.trees import flatten, leaves, unflatten

from .ndarray import array
from .transforms import jvp, vjp

__all__ = ["check_grads"]

_MODES = ("fwd", "rev")
# Steps near the cube root of the rounding error balance it against the truncation error of a central difference.
_STEP = {"float64": 1e-5, "float32": 5e-3, "float16": 5e-2, "bfloat16": 1e-1, "complex64": 5e-3}
_TOLERANCE = {"float64": 1e-6, "float32": 5e-3, "float16": 5e-2, "bfloat16": 1e-1, "complex64": 5e-3}


def check_grads(
    fun: Callable,
    args: Sequence[Any],
    order: int = 1,
    modes: str | Sequence[str] = _MODES,
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Compare the derivatives of `fun` at `args` with central differences along random directions.

    `args` is a sequence of trees; floating and complex arrays in them vary, other leaves stay. Forward mode ("fwd") is
    compared with the difference quotient, reverse mode ("rev") by its inner product with the direction; `order` 2 and
    more check the derivatives of these derivatives too. Steps and tolerances default to what the coarsest dtype allows.

    Raises AssertionError naming the mode and the order where they disagree, ValueError for arguments that cannot vary.
    """
    chosen = (modes,) if isinstance(modes, str) else tuple(modes)
    if not chosen or not set(chosen) <= set(_MODES):
        raise ValueError(f"[check_grads] modes are {_MODES}, got {modes!r}")
    found, structure = flatten(tuple(args))
    varying = [i for i, x in enumerate(found) if isinstance(x, array) and x.dtype.is_inexact]
    if not varying:
        raise ValueError("[check_grads] no argument holds a floating or complex array")

    def flat(*primals: array) -> list[array]:
        full = list(found)
        for i, x in zip(varying, primals, strict=True):
            full[i] = x
        return [y for y in leaves(fun(*unflatten(structure, full))) if isinstance(y, array) and y.dtype.is_inexact]

    primals = [found[i] for i in varying]
    names = [x.dtype.name for x in primals]
    step = max(_STEP[n] for n in names) if eps is None else eps
    bound = max(_TOLERANCE[n] for n in names)
    rng = np.random.default_rng(0)
    _check(
        flat, primals, order, chosen, (bound if atol is None else atol, bound if rtol is None else rtol), step, rng, ""
    )


def _check(
    flat: Callable[..., list[array]],
    primals: list[array],
    order: int,
    modes: tuple[str, ...],
    tolerance: tuple[float, float],
    step: float,
    rng: np.random.Generator,
    path: str,
) -> None:
    tangents = [_direction(x, rng) for x in primals]
    outputs = flat(*primals)
    quotients = _difference(flat, primals, tangents, step)
    weights = [_direction(y, rng) for y in outputs]
    if "fwd" in modes:
        for slope, quotient in zip(jvp(flat, primals, tangents)[1], quotients, strict=True):
            _compare(_wide(slope), quotient, tolerance, f"forward mode{path}")
    if "rev" in modes:
        products = vjp(flat, primals, weights)[1]
        left = sum(_inner(p, t) for p, t in zip(products, map(_wide, tangents), strict=True))
        right = sum(_inner(w, q) for w, q in zip(weights, quotients, strict=True))
        _compare(np.asarray(left), np.asarray(right), tolerance, f"reverse mode{path}")
    if order > 1:
        for mode in modes:
            inner = (
                (lambda *xs: jvp(flat, list(xs), tangents)[1])
                if mode == "fwd"
                else (lambda *xs: vjp(flat, list(xs), weights)[1])
            )
            _check(inner, primals, order - 1, modes, tolerance, step, rng, f" of {mode}{path}")


def _direction(x: array, rng: np.random.Generator) -> array:
    """A random unit direction of the shape and dtype of `x`."""
    data = rng.standard_normal(x.shape)
    if x.dtype.kind == "c":
        data = data + 1j * rng.standard_normal(x.shape)
    return array(data / max(float(np.linalg.norm(data)), 1e-12), x.dtype)


def _wide(x: array) -> np.ndarray:
    data = np.array(x)
    return data.astype(np.complex128 if data.dtype.kind == "c" else np.float64)


def _difference(flat: Callable, primals: list[array], tangents: list[array], step: float) -> list[np.ndarray]:
    """The central difference of every output along the direction."""
    above = flat(*[array(_wide(x) + step * _wide(t), x.dtype) for x, t in zip(primals, tangents, strict=True)])
    below = flat(*[array(_wide(x) - step * _wide(t), x.dtype) for x, t in zip(primals, tangents, strict=True)])
    return [(_wide(a) - _wide(b)) / (2 * step) for a, b in zip(above, below, strict=True)]


def _inner(x: array, y: np.ndarray) -> float:
    """The real inner product; for complex arrays that of the pairs (real, imaginary)."""
    return float(np.real(np.vdot(_wide(x), y)))


def _compare(got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float], what: str) -> None:
    atol, rtol = tolerance
    np.testing.assert_allclose(
        got, expected, rtol=rtol, atol=atol, err_msg=f"[check_grads] {what} disagrees with differences"
    )
