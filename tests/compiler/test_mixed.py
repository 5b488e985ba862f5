"""Kernels that walk rows and sum columns: which programs have them, and that they compute what the reference does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from operands import normal

import mlxir as mx
from mlxir.compiler.passes.fuse import Fused
from mlxir.runtime.knobs import knobs

TOLERANCE = {mx.float32: 3e-6, mx.float16: 4e-3, mx.bfloat16: 3e-2, mx.float64: 1e-12}
pytestmark = pytest.mark.usefixtures("made")


def check(function: Callable[..., Any], *arguments: mx.array) -> None:
    """Compiled equals reference, relative to the largest value of each result."""
    knobs.tier = "reference"
    expected, actual = function(*arguments), mx.compile(function)(*arguments)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        wide = [np.array(x.astype(mx.float64)) for x in (a, e)]
        scale = max(1.0, float(np.abs(wide[1]).max(initial=0)))
        np.testing.assert_allclose(*wide, rtol=0, atol=TOLERANCE[a.dtype] * scale)


def kinds(made: list[Fused]) -> list[str]:
    return [launch.kind for launch in made[-1].launches]


def layer_norm(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
    return mx.fast.layer_norm(x, w, b, 1e-5)


def rms_norm(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
    return mx.fast.rms_norm(x, w, 1e-5) + b


def gradients(norm: Callable[..., mx.array]) -> Callable[..., Any]:
    def loss(x: mx.array, w: mx.array, b: mx.array, c: mx.array) -> mx.array:
        return (norm(x, w, b).astype(mx.float32) * c).sum()

    return mx.grad(loss, argnums=(0, 1, 2))


@pytest.mark.parametrize("lead", [(64,), (37,), (4, 40), (3, 5, 7), (2048,), (8, 256)])
@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_the_gradient_of_a_norm_is_one_pass(norm: Callable, lead: tuple[int, ...], made: list[Fused]) -> None:
    """Rows that are split for the sums, rows that no number of pieces divides, several leading axes."""
    width = 600 if lead in ((2048,), (8, 256)) else 48
    shapes = (*lead, width), (width,), (width,), (*lead, width)
    check(gradients(norm), *[normal(*s, seed=n) for n, s in enumerate(shapes)])
    assert kinds(made)[0] == "mixed"
    full = [a.size for n, a in enumerate(made[-1].values) if n not in range(made[-1].parameters)]
    assert full.count(max(full)) == 1  # the gradient for x: nothing else of that size is ever stored


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_the_loss_joins_the_gradient_of_a_norm(norm: Callable, made: list[Fused]) -> None:
    """The matrices are read by one kernel, and once from memory."""

    def value_and_gradient(x: mx.array, w: mx.array, b: mx.array, c: mx.array) -> Any:
        loss, grads = mx.value_and_grad(lambda *a: (norm(*a) * c).sum(), argnums=(0, 1, 2))(x, w, b)
        return loss, *grads

    shapes = (512, 96), (96,), (96,), (512, 96)
    check(value_and_gradient, *[normal(*s, seed=n) for n, s in enumerate(shapes)])
    values = made[-1].values
    assert sum(512 * 96 in [values[v].size for v in launch.operands] for launch in made[-1].launches) == 1
    assert kinds(made)[0] == "mixed"


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float64])
def test_dtypes(dtype: Any, made: list[Fused]) -> None:
    arrays = [normal(*s, dtype=dtype, seed=n) for n, s in enumerate([(50, 64), (64,), (64,)])]
    check(gradients(layer_norm), *arrays, normal(50, 64, seed=3))
    assert "mixed" in kinds(made)


def test_what_follows_the_sums_is_computed_with_them(made: list[Fused]) -> None:
    """A step of the optimizer for the weights."""

    def step(x: mx.array, w: mx.array, b: mx.array, c: mx.array, m: mx.array) -> list[mx.array]:
        dx, dw, db = gradients(layer_norm)(x, w, b, c)
        m = 0.9 * m + 0.1 * dw
        return [dx, w - 0.1 * m / (mx.abs(m).sqrt() + 1e-3), m, b - 0.1 * db]

    check(step, normal(100, 32), *[normal(32, seed=n) for n in (1, 2)], normal(100, 32, seed=3), normal(32, seed=4))
    assert kinds(made) == ["mixed"]


def test_a_column_sum_that_the_rows_need_stays_apart(made: list[Fused]) -> None:
    def both(x: mx.array) -> list[mx.array]:
        shares = mx.softmax(x, axis=1)
        return [shares - shares.mean(axis=0), shares]

    check(both, normal(40, 64))
    assert "mixed" not in kinds(made)


def test_a_row_sum_after_a_column_sum_stays_apart(made: list[Fused]) -> None:
    def centred(x: mx.array) -> list[mx.array]:
        y = x - x.mean(axis=0)
        return [mx.softmax(y, axis=1), y.sum(axis=1)]

    check(centred, normal(40, 64))
    assert "mixed" not in kinds(made)


def test_sums_that_share_nothing_stay_apart(made: list[Fused]) -> None:
    check(lambda x, y: [mx.softmax(x, axis=1), y.sum(axis=0)], normal(40, 64), normal(40, 64, seed=1))
    assert kinds(made) == ["loops", "loops"]
