"""What loops of elements tell LLVM's vectoriser: how many vectors at once, and how wide they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mlxir as mx

WIDTH, COUNT = "llvm.loop.vectorize.width", "llvm.loop.interleave.count"


@pytest.mark.parametrize(
    ("f", "dtype", "told"),
    [
        (lambda x: x * 3 + x, "f32", set()),
        (lambda x: x * 3 + x, "bf16", {WIDTH}),
        (lambda x: mx.exp(x), "f32", {COUNT}),
        (lambda x: mx.exp(x), "bf16", {WIDTH, COUNT}),
    ],
)
def test_hints(f: Callable[[mx.array], mx.array], dtype: str, told: set[str], tmp_path: Path) -> None:
    folder = mx.dump(f, f"{dtype}[8192]", directory=tmp_path, stages=["llvm"])
    (text,) = [p.read_text() for p in folder.iterdir()]
    assert {hint for hint in (WIDTH, COUNT) if hint in text} == told
