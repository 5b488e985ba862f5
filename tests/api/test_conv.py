"""Convolutions and pooling: the same values, dtypes, gradients and error types as real MLX."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as real
import numpy as np
import pytest
from oracle import assert_agree, assert_same, expression, numpy_of

import mlxir

# (function, shape of x, shape of w, keyword arguments)
CASES: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ("conv1d", (2, 10, 3), (4, 3, 3), {}),
    ("conv1d", (2, 10, 4), (6, 3, 2), {"groups": 2, "stride": 2, "padding": 1}),
    ("conv1d", (1, 9, 2), (3, 4, 2), {"dilation": 2, "padding": 3}),
    ("conv1d", (2, 10, 3), (4, 3, 3), {"padding": -1}),
    ("conv1d", (2, 12, 4), (4, 1, 4), {"stride": 3}),
    ("conv1d", (0, 10, 3), (4, 3, 3), {}),
    ("conv1d", (2, 0, 3), (4, 3, 3), {"padding": 2}),
    ("conv2d", (2, 9, 8, 3), (5, 3, 3, 3), {"padding": 1}),
    ("conv2d", (2, 9, 8, 3), (5, 3, 2, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}),
    ("conv2d", (1, 6, 6, 6), (6, 3, 3, 1), {"groups": 6, "padding": 1}),
    ("conv2d", (1, 6, 6, 4), (8, 3, 3, 1), {"groups": 4, "stride": 2}),
    ("conv2d", (2, 5, 5, 4), (6, 2, 2, 2), {"groups": 2}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {"stride": 2}),
    ("conv2d", (2, 7, 7, 5), (3, 1, 1, 5), {"padding": 1}),
    ("conv2d", (2, 6, 6, 2), (3, 6, 6, 2), {}),
    ("conv3d", (1, 4, 5, 6, 2), (3, 2, 3, 2, 2), {"padding": 1}),
    ("conv3d", (2, 5, 5, 5, 2), (3, 3, 2, 1, 2), {"stride": (2, 1, 2), "dilation": (1, 2, 1)}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose1d", (2, 5, 4), (4, 3, 2), {"stride": 3, "dilation": 2, "groups": 2}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"padding": 3}),
    ("conv_transpose1d", (2, 5, 3), (4, 3, 3), {"output_padding": -1}),
    ("conv_transpose2d", (2, 4, 5, 3), (4, 3, 2, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ("conv_transpose2d", (1, 4, 4, 2), (3, 4, 4, 2), {"stride": 2, "padding": 1}),
    ("conv_transpose3d", (1, 2, 3, 3, 2), (3, 2, 3, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_general", (2, 6, 7, 3), (4, 3, 3, 3), {"padding": ([1, 0], [2, 1]), "input_dilation": (2, 3), "flip": True}),
    ("conv_general", (2, 6, 7, 3), (4, 2, 3, 3), {"padding": (-1, 2), "kernel_dilation": [2, 1], "stride": [1, 2]}),
    ("conv_general", (2, 9, 4), (6, 3, 2), {"groups": 2, "input_dilation": 2, "stride": 3, "padding": 2}),
    ("conv_general", (2, 6, 3), (4, 3, 3), {"stride": [], "padding": []}),
    ("conv_general", (1, 3, 4, 4, 2), (2, 2, 2, 2, 2), {"input_dilation": 2, "padding": 1, "flip": True}),
]  # fmt: skip


def random(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def name_of(case: Any) -> str:
    name, x, w, options = case
    return "-".join([name, *("x".join(map(str, s)) for s in (x, w)), *(f"{k}={v}" for k, v in options.items())])


def gradients(m: Any, case: Any, compiled: bool) -> list[Any]:
    """The result, and the gradients of both operands, by library `m`."""
    name, x, w, options = case

    def fn(x: Any, w: Any) -> Any:
        return getattr(m, name)(x, w, **options)

    def loss(x: Any, w: Any) -> Any:
        out = fn(x, w)
        return (out * m.sin(m.arange(out.size).reshape(out.shape).astype(m.float32))).sum()

    fn, grad = (m.compile(f) if compiled else f for f in (fn, m.grad(loss, argnums=(0, 1))))
    operands = m.array(random(0, x)), m.array(random(1, w))
    return [fn(*operands), *grad(*operands)]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_convolutions_and_their_gradients(case: Any, compiled: bool) -> None:
    mine = gradients(mlxir, case, compiled)
    if 0 in case[1]:  # MLX's own gradient fails without elements
        assert_same(mine[0], getattr(real, case[0])(*[real.array(random(0, s)) for s in case[1:3]], **case[3]))
        return
    for a, b in zip(mine, gradients(real, case, False), strict=True):
        np.testing.assert_allclose(numpy_of(a), numpy_of(b), rtol=2e-4, atol=2e-4)
