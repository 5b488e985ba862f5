"""Results that are written past the caches: the stores that are emitted, and that nothing else changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime import caches
from mlxir.runtime.knobs import knobs

NONTEMPORAL = re.compile(r"store <\d+ x \w+> .*align 64, !nontemporal")
BYTES = 1 << 15


@pytest.fixture
def llvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Compiles a function that is watched, which no cache serves, compares its results, and gives its LLVM IR."""
    monkeypatch.setattr(knobs, "dump", str(tmp_path))
    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "stream_bytes", BYTES)

    def compile_and_compare(f: Callable[..., Any], *args: np.ndarray) -> str:
        operands = [mx.array(a) for a in args]
        actual, expected = mx.compile(f)(*operands), f(*operands)
        for a, e in zip(*(v if isinstance(v, tuple) else (v,) for v in (actual, expected)), strict=True):
            np.testing.assert_allclose(np.array(a), np.array(e), rtol=1e-5, atol=1e-6)
        (text,) = [p.read_text() for p in tmp_path.rglob("5-kernels.ll")]
        return text

    return compile_and_compare


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("f", "args", "results"),
    [
        (lambda x: x * 1.5, [normal(9001)], 1),  # blocks, and what is left of them
        (lambda x: (x * 2, mx.exp(x) > 1), [normal(20_003)], 2),  # results of 4 bytes and of 1
        (lambda x: x.astype(mx.float16).astype(mx.float32) * 3, [normal(16_384)], 1),
        (lambda x: mx.softmax(x, axis=-1), [normal(9, 2048)], 1),  # the last loop of a row
        (lambda x, b: x + b, [normal(31, 1000), normal(1000)], 1),  # some rows begin in the middle of a line
        (lambda x: mx.concatenate([x, 2 * x], axis=1), [normal(30, 300)], 2),  # as many loops as pieces
    ],
)
def test_large_results_are_streamed(
    llvm: Callable[..., str], f: Callable[..., Any], args: list[np.ndarray], results: int
) -> None:
    text = llvm(f, *args)
    assert len(NONTEMPORAL.findall(text)) == results
    assert "fence seq_cst" in text


@pytest.mark.parametrize(
    ("f", "args"),
    [
        (lambda x: x * 1.5, [normal(BYTES // 8 - 1)]),  # small
        (lambda x: mx.sum(x, axis=1), [normal(64, 1024)]),  # a small result of a large argument
        (lambda x: x.T + 1.0, [normal(100, 300)]),  # rows too short to be worth it
    ],
)
def test_the_rest_is_not(llvm: Callable[..., str], f: Callable[..., Any], args: list[np.ndarray]) -> None:
    assert "!nontemporal" not in llvm(f, *args)


def test_the_threshold_is_twice_the_last_level_of_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "size"
    monkeypatch.setattr(caches, "_LAST", told)
    for text, size in (("16384K\n", 16 << 20), ("?", caches.USUAL), (None, caches.USUAL)):
        told.write_text(text) if text is not None else told.unlink()
        caches.last_level.cache_clear()
        assert caches.streaming_bytes() == 2 * size
    caches.last_level.cache_clear()
    monkeypatch.setattr(knobs, "stream_bytes", 1234)
    assert caches.streaming_bytes() == 1234
