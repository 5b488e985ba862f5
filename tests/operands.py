"""Operands of tests."""

from __future__ import annotations

from typing import Any

import numpy as np

import mlxir as mx


def normal(*shape: int, dtype: Any = mx.float32, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)
