"""Fixtures that tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlxir.compiler import pipeline
from mlxir.compiler.passes.fuse import Fused
from mlxir.dialects.mlir import Module
from mlxir.runtime.knobs import knobs


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Fused]]:
    """The fused programs that a test compiles, here and now, with all IR verified."""
    found: list[Fused] = []
    fuse = pipeline.fuse

    def spy(module: Module, **options: Any) -> Fused:
        found.append(fuse(module, **options))
        return found[-1]

    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "verify", True)
    monkeypatch.setattr(pipeline, "fuse", spy)
    yield found
    knobs.tier = "auto"
