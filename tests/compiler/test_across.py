"""Maps that read an operand across: by squares transposed in registers, with every kind of edge."""

from __future__ import annotations

import numpy as np
import pytest
from small_programs import program, run

import mlxir as mx
from mlxir.compiler import pipeline
from mlxir.runtime.knobs import knobs

SHAPES = [(64, 64), (65, 64), (64, 67), (100, 130), (4, 1024), (1027, 5), (2, 50, 60), (3, 17, 5, 66)]


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "verify", True)


def operands(shape: tuple[int, ...], dtype: mx.Dtype) -> tuple[np.ndarray, mx.array, np.ndarray, mx.array]:
    """An array, and one of its transpose's shape."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 2 if dtype == mx.bool_ else 100, s) for s in (shape, shape[::-1]))
    return x, mx.array(x).astype(dtype), y, mx.array(y).astype(dtype)


def exact(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32))


@pytest.mark.parametrize("shape", SHAPES)
def test_transposed_operand(shape: tuple[int, ...]) -> None:
    x, x_, y, y_ = operands(shape, mx.float32)
    both, joined = mx.compile(lambda x, y: (mx.transpose(x) * 2 + y, mx.concatenate([x.T, y], -1)))(x_, y_)
    np.testing.assert_array_equal(exact(both), x.T * 2 + y)
    np.testing.assert_array_equal(exact(joined), np.concatenate([x.T, y], -1))


@pytest.mark.parametrize("dtype", ["bool_", "uint8", "float16", "bfloat16", "int32", "int64", "float64", "complex64"])
def test_dtypes(dtype: str) -> None:
    with mx.stream(mx.cpu):
        x, x_, y, y_ = operands((65, 70), getattr(mx, dtype))
        swapped = mx.compile(lambda x, y: mx.where(y == y, x.T, y))(x_, y_)
        np.testing.assert_array_equal(exact(swapped), x.T)


def test_more_operands_than_scratch_memory_holds() -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 9, (70, 80)).astype(np.float32) for _ in range(4)]
    total = mx.compile(lambda a, b, c, d: a.T + 2 * b.T + 3 * c.T + 4 * d.T)(*map(mx.array, arrays))
    a, b, c, d = arrays
    np.testing.assert_array_equal(exact(total), (a + 2 * b + 3 * c + 4 * d).T)


@pytest.mark.parametrize(
    ("shape", "axes", "squares"),
    [((64, 64), (1, 0), True), ((63, 65), (1, 0), False), ((8, 16, 32, 4), (0, 2, 1, 3), False),
     ((8, 16, 32, 4), (0, 1, 3, 2), True), ((2, 3, 50, 50), (0, 2, 3, 1), False)],
)  # fmt: skip
def test_when_squares_are_transposed(shape: tuple[int, ...], axes: tuple[int, ...], squares: bool) -> None:
    """Not for few elements, for an innermost axis that stays, nor for three channels."""
    traced = program(lambda m, x: m.add(m.transpose(x, axes=axes), m.scalar(1, x.dtype)), shape)
    loops = str(pipeline.lowered(traced, lambda stage, text: None).module)
    assert ("vector.shuffle" in loops) == squares
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (moved,) = run(traced, x)
    np.testing.assert_array_equal(moved, x.transpose(axes) + 1)
