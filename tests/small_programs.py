"""Programs of primitives for tests of the compiler: traced on shapes, compiled, compared with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxir.compiler import evaluate, pipeline
from mlxir.compiler.graph import GraphBuilder, Value, cut
from mlxir.compiler.program import Program
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import float32


def program(function: Callable[..., Any], *shapes: tuple[int, ...], dtype: Any = float32) -> Program:
    """`function(m, *arrays)` traced on arrays of these shapes."""
    m = GraphBuilder()
    inputs = [Value(s, dtype) for s in shapes]
    outs = function(m, *map(m.handle, inputs))
    outs = outs if isinstance(outs, (list, tuple)) else [outs]
    return cut([o.value for o in outs], inputs).program


def run(traced: Program, *arguments: np.ndarray) -> list[np.ndarray]:
    """The results of the compiled program."""
    return [b.numpy() for b in evaluate.executable(traced).run([Buffer.from_numpy(a) for a in arguments])]


def check(traced: Program, arguments: list[np.ndarray], tolerance: float) -> None:
    """Compiled equals reference, relative to the largest value of each result."""
    plain = pipeline.transformed_program(traced) if traced.has_transforms else traced
    expected = plain.run_reference(arguments)
    for a, e in zip(run(traced, *arguments), expected, strict=True):
        assert a.dtype == e.dtype and a.shape == e.shape
        wide = [v.astype(np.float64 if v.dtype.kind != "c" else np.complex128) for v in (a, e)]
        np.testing.assert_array_equal(np.isnan(wide[0]), np.isnan(wide[1]))
        scale = np.max(np.abs(wide[1][np.isfinite(wide[1])]), initial=0) + 1
        np.testing.assert_allclose(*wide, rtol=0, atol=tolerance * scale)
